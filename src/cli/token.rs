//! The verbs for keys and tokens: makes both, and says what a token holds. No secret is an argument, which
//! others on the machine could read.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tabcast::Options;
use tabcast::auth::keys::Algorithm;
use tabcast::auth::signer::Signer;
use tabcast::auth::{self, Auth, Caller, Refused, Unverified, signer, tokens};
use tokio::runtime::Builder;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Makes a key that signs tokens: a JWKS with its secret half
    Key(Key),
    /// Signs a token, and prints it
    Sign(Sign),
    /// Says what the token on stdin holds, or why it is refused: then it exits with 1
    Check(Check),
    /// Makes a static token: prints the line for the file of --tokens, and on stderr, this once, the secret
    New(New),
}

#[derive(Debug, Args)]
pub(super) struct Key {
    /// The algorithm. With HS256, whoever checks tokens can sign them too; with the others, the public half
    /// is enough to check
    #[arg(long, value_name = "ALG", value_enum, default_value = "HS256")]
    alg: Alg,

    /// Instead of a new key, the public halves of the keys in this file
    #[arg(long, value_name = "FILE", conflicts_with = "alg")]
    public: Option<PathBuf>,

    /// Writes to this new file, which only its owner may read, and not to stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Alg {
    #[value(name = "HS256")]
    HS256,
    #[value(name = "ES256")]
    ES256,
    #[value(name = "EdDSA")]
    EdDSA,
}

#[derive(Debug, Args)]
pub(super) struct Sign {
    /// The file of keys; if none is given, that of the hub's --keys
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,

    /// Which of the keys signs, by its id; if none is given, the first that can
    #[arg(long, value_name = "ID")]
    kid: Option<String>,

    /// Whom the token is for: the claim `sub`
    #[arg(long, value_name = "TEXT")]
    sub: Option<String>,

    /// How long it is good
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires: Duration,

    /// The claim `aud`; if none is given, the hub's --token-audience
    #[arg(long, value_name = "TEXT")]
    audience: Option<String>,

    /// The claim `iss`; if none is given, the hub's --token-issuer
    #[arg(long, value_name = "TEXT")]
    issuer: Option<String>,

    /// The token's own id, by which it can be revoked: the claim `jti`
    #[arg(long, value_name = "TEXT")]
    id: Option<String>,

    #[command(flatten)]
    granted: Granted,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// The file of keys; if none is given, that of the hub's --keys
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,

    /// The file of static tokens; if none is given, that of the hub's --tokens
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,

    /// For whom it must be; if none is given, the hub's --token-audience
    #[arg(long, value_name = "TEXT")]
    audience: Option<String>,

    /// Who must have issued it; if none is given, the hub's --token-issuer
    #[arg(long, value_name = "TEXT")]
    issuer: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct New {
    /// The token's name, one word: it is in the log, and the token is revoked by it
    #[arg(long, value_name = "NAME")]
    name: String,

    /// How long it is good; for ever if left out
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    expires: Option<Duration>,

    #[command(flatten)]
    granted: Granted,
}

/// What a token grants: patterns of channels, separated by commas.
#[derive(Debug, Args)]
struct Granted {
    /// Where it may publish, as in 'chat.42,user.ada.>'
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    publish: Option<Vec<String>>,

    /// Where it may listen
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    subscribe: Option<Vec<String>>,

    /// Where it may read the history; where it may listen, if left out
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    history: Option<Vec<String>>,

    /// Where it may see who is there
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    presence: Option<Vec<String>>,

    /// Where it may delete messages
    #[arg(long, value_name = "PATTERNS", value_delimiter = ',')]
    delete: Option<Vec<String>>,

    /// Whether it may administer the hub
    #[arg(long)]
    admin: bool,
}

impl Granted {
    /// Each verb that is named, and its patterns.
    fn verbs(&self) -> impl Iterator<Item = (&'static str, Vec<&str>)> {
        let Granted { publish, subscribe, history, presence, delete, admin: _ } = self;
        let lists = [publish, subscribe, history, presence, delete];
        auth::Verb::ALL.into_iter().zip(lists).filter_map(|(verb, list)| {
            let patterns = list.as_ref()?.iter().map(|pattern| pattern.trim());
            Some((verb.as_str(), patterns.filter(|pattern| !pattern.is_empty()).collect()))
        })
    }

    /// As the claim `tabcast` has it.
    fn claim(&self) -> Value {
        let mut claim: Value = self.verbs().map(|(verb, patterns)| (verb, json!(patterns))).collect();
        if self.admin {
            claim["admin"] = true.into();
        }
        claim
    }

    /// As the line of a static token has it.
    fn words(&self) -> String {
        let verbs = self.verbs().map(|(verb, patterns)| format!("{verb}={}", patterns.join(",")));
        verbs.chain(self.admin.then(|| "admin".to_owned())).collect::<Vec<_>>().join(" ")
    }
}

/// Runs the verb. `hub` has the settings of the hub.
pub(super) fn run(verb: Verb, hub: auth::Options) -> ExitCode {
    let done = match verb {
        Verb::Key(verb) => key(&verb),
        Verb::Sign(verb) => sign(verb, hub),
        Verb::Check(verb) => check(verb, hub),
        Verb::New(verb) => new(&verb),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tabcast: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn key(Key { alg, public, out }: &Key) -> anyhow::Result<()> {
    let set = match public {
        Some(path) => signer::public(&read(path)?).map_err(|what| anyhow!("{}: {what}", path.display()))?,
        None => signer::new(match alg {
            Alg::HS256 => Algorithm::HS256,
            Alg::ES256 => Algorithm::ES256,
            Alg::EdDSA => Algorithm::EdDSA,
        })
        .context("the system has no random numbers")?,
    };
    let Some(path) = out else {
        println!("{set}");
        return Ok(());
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| writeln!(file, "{set}"));
    written.with_context(|| format!("can't write {}", path.display()))
}

fn sign(verb: Sign, hub: auth::Options) -> anyhow::Result<()> {
    let Sign { keys, kid, sub, expires, audience, issuer, id, granted } = verb;
    let path = keys.or(hub.keys).context("name the file of keys with --keys")?;
    let signer = Signer::parse(&read(&path)?, kid.as_deref());
    let signer = signer.map_err(|what| anyhow!("{}: {what}", path.display()))?;
    let now = SystemTime::now();
    let expires = seconds(now.checked_add(expires).context("--expires is too long")?);
    let mut claims = json!({"iat": seconds(now), "exp": expires, "tabcast": granted.claim()});
    let (audience, issuer) = (audience.or(hub.token_audience), issuer.or(hub.token_issuer));
    for (name, value) in [("sub", sub), ("jti", id), ("aud", audience), ("iss", issuer)] {
        if let Some(value) = value {
            claims[name] = value.into();
        }
    }
    let token = signer.sign(&claims).context("the system has no random numbers")?;
    // What a hub would not take is not printed.
    let hub = auth::Options { keys: Some(path), ..Options::default().auth };
    ask(&hub, &token)?.map_err(|refused| anyhow!("a hub would refuse it: {refused}"))?;
    println!("{token}");
    Ok(())
}

fn check(verb: Check, hub: auth::Options) -> anyhow::Result<()> {
    let hub = auth::Options {
        keys: verb.keys.or(hub.keys),
        tokens: verb.tokens.or(hub.tokens),
        token_audience: verb.audience.or(hub.token_audience),
        token_issuer: verb.issuer.or(hub.token_issuer),
        auth_url: None,
        ..hub
    };
    if hub.keys.is_none() && hub.tokens.is_none() && hub.jwks_url.is_none() {
        bail!("name the file of keys with --keys, or that of static tokens with --tokens");
    }
    /// The most that is read of stdin: more than the longest token that a hub takes. Higher: more is read for
    /// nothing. Lower: that a token is too long could not be said.
    const LONGEST: u64 = 64 << 10;
    let mut token = String::new();
    io::stdin().take(LONGEST).read_to_string(&mut token).context("can't read the token from stdin")?;
    let token = token.trim();
    if token.is_empty() {
        bail!("there is no token on stdin: give it as in `tabcast token check --keys keys.json < token`");
    }
    let said = Unverified::parse(token).ok();
    match ask(&hub, token)? {
        Ok(caller) => {
            print(&caller, said.as_ref());
            Ok(())
        }
        Err(refused) => Err(refusal(&refused, said.as_ref())),
    }
}

/// Whose the token is, as a hub with these settings would have it.
fn ask(hub: &auth::Options, token: &str) -> anyhow::Result<Result<Caller, Refused>> {
    let auth = Auth::new(hub)?;
    let runtime = Builder::new_current_thread().enable_all().build().context("can't start")?;
    // No endpoint is asked, of which a token alone is no question.
    let no_question = || Err(Refused::Invalid("the token is not the hub's own".into()));
    Ok(runtime.block_on(auth.caller(|| Ok(Some(token.to_owned())), no_question)))
}

fn print(caller: &Caller, said: Option<&Unverified>) {
    let line = |name: &str, value: &str| println!("{name:<10} {}", value.escape_debug());
    println!("The token is good.");
    if let Some(Unverified { algorithm, key_id, .. }) = said {
        line("algorithm", algorithm);
        line("key", key_id.as_deref().unwrap_or("none is named"));
    }
    if let Some(token) = caller.token() {
        line(if token.is_static { "name" } else { "subject" }, token.subject.as_deref().unwrap_or("none"));
        if let Some(id) = token.id.as_deref().filter(|_| !token.is_static) {
            line("id", id);
        }
        if let Some(issued) = token.issued {
            line("issued", &time(issued));
        }
        line("expires", &token.expires.map_or_else(|| "never".to_owned(), time));
    }
    for verb in auth::Verb::ALL {
        let patterns: Vec<_> = caller.grants().of(verb).iter().map(|pattern| pattern.as_str()).collect();
        line(
            verb.as_str(),
            if patterns.is_empty() { "nothing".to_owned() } else { patterns.join(", ") }.as_str(),
        );
    }
    if caller.grants().allow_admin() {
        line("admin", "yes");
    }
}

/// Why the token is refused, and what it says, if it can be read.
fn refusal(refused: &Refused, said: Option<&Unverified>) -> anyhow::Error {
    let mut why = format!("the token is refused: {refused}");
    let Some(Unverified { algorithm, key_id, claims }) = said else { return anyhow!(why) };
    if let Some(expires) = claims.get("exp").and_then(Value::as_f64).filter(|_| *refused == Refused::Expired)
    {
        why += &format!(" at {}", time(expires as u64));
    }
    let key = key_id.as_deref().map_or_else(|| "none".to_owned(), |id| format!("{id:?}"));
    anyhow!("{why}\nIt says, whoever signed it: alg {algorithm:?}, kid {key}, {}", json!(claims))
}

fn new(New { name, expires, granted }: &New) -> anyhow::Result<()> {
    let (secret, hash) = tokens::new().context("the system has no random numbers")?;
    let expires = match expires {
        Some(expires) => Some(SystemTime::now().checked_add(*expires).context("--expires is too long")?),
        None => None,
    };
    let line = tokens::line(name, &hash, &granted.words(), expires).map_err(|what| anyhow!(what))?;
    println!("{line}");
    eprintln!("The token, which is shown only now:\n{secret}");
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The time in words, and how far away it is.
fn time(at: u64) -> String {
    let now = seconds(SystemTime::now());
    let distance = humantime::format_duration(Duration::from_secs(now.abs_diff(at)));
    let distance = if at > now { format!("in {distance}") } else { format!("{distance} ago") };
    // humantime can write years of four digits.
    let time = UNIX_EPOCH + Duration::from_secs(at.min(253_402_300_799));
    format!("{} ({distance})", humantime::format_rfc3339_seconds(time))
}
