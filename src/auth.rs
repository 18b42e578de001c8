//! Who asks, and what it may do: a credential becomes a [`Caller`]. HTTP is unknown here.
//!
//! A credential that is presented and wrong is never taken for none: it is [`Refused`].

mod cache;
mod caller;
mod forward;
mod grants;
mod halves;
mod json;
mod jws;
mod jwt;
pub mod keys;
mod provider;
mod refused;
mod revoked;
mod rules;
pub mod signer;
pub mod tokens;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use cache::Cache;
pub use caller::{Caller, Token};
use forward::Forward;
pub use forward::Question;
pub use grants::{Grants, Verb};
use jwt::Fault;
pub use jwt::Unverified;
use keys::Keys;
use provider::Provider;
pub use refused::Refused;
use revoked::Revoked;
pub use revoked::{InvalidRevocation, MOST as MOST_REVOCATIONS, Revocation, RevokeError};
pub use rules::Rules;
use tokens::Tokens;

pub use crate::fetch::Url;
use crate::message::Time;

/// The settings of who may do what. With none of them, whoever reaches the hub may do everything.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// A file of static tokens, for scripts and CI, a line for each; `tabcast token new` makes one
    #[arg(long, value_name = "PATH")]
    pub tokens: Option<PathBuf>,

    /// A file of keys, a JWKS, that sign tokens (JWT); `tabcast token key` makes one
    #[arg(long, value_name = "PATH")]
    pub keys: Option<PathBuf>,

    /// For whom a signed token must be: its claim `aud` is this, or has it
    #[arg(long, value_name = "TEXT")]
    pub token_audience: Option<String>,

    /// Who must have issued a signed token: its claim `iss`
    #[arg(long, value_name = "TEXT")]
    pub token_issuer: Option<String>,

    /// What is granted by other claims: the tables `[[grant]]` of the settings file
    #[arg(skip)]
    pub rules: Rules,

    /// What may be done without a token, as in 'subscribe=public.> publish=public.chat'; `all` is
    /// everything, and an empty text nothing
    #[arg(long, value_name = "GRANTS", value_parser = Grants::parse)]
    pub anonymous: Option<Grants>,

    /// Where a provider has the keys of its tokens, a JWKS, as in https://login.example.org/jwks.json
    #[arg(long, value_name = "URL", value_parser = Url::parse_safe)]
    pub jwks_url: Option<Url>,

    /// An endpoint that is asked who a caller is and what it may do, unless it has a token of the hub's own
    #[arg(long, value_name = "URL", value_parser = Url::parse)]
    pub auth_url: Option<Url>,
}

impl Options {
    /// Whether nothing says who may do what.
    pub fn is_open(&self) -> bool {
        let (has_files, is_asked) =
            (!self.files().is_empty(), self.jwks_url.is_some() || self.auth_url.is_some());
        !has_files && !is_asked && self.anonymous.is_none()
    }

    /// The files that the settings name.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        self.tokens.iter().chain(&self.keys).cloned().collect()
    }
}

/// Says who asks.
#[derive(Debug)]
pub struct Auth {
    current: RwLock<Arc<Current>>,
    provider: Option<Arc<Provider>>,
    forward: Option<Forward>,
    revoked: Arc<Revoked>,
}

/// What the settings and their files say now.
#[derive(Debug)]
struct Current {
    /// Whoever presents nothing.
    anonymous: Caller,
    /// Whether the settings say what may be done without a credential.
    has_anonymous: bool,
    /// Whether credentials are looked at.
    is_open: bool,
    tokens: Option<Tokens>,
    keys: Option<Keys>,
    expected: jwt::Expected,
    /// Signed tokens that were found right.
    verified: Cache,
}

/// A setting, or a file that a setting names, can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{flag} {path}: {what}")]
pub struct InvalidFile {
    flag: &'static str,
    path: String,
    what: String,
}

impl Auth {
    /// # Errors
    /// [`InvalidFile`].
    pub fn new(options: &Options) -> Result<Self, InvalidFile> {
        let current = RwLock::new(Arc::new(Current::new(options)?));
        let provider =
            options.jwks_url.clone().map(|url| at("--jwks-url", url, Provider::new)).transpose()?;
        let forward = options.auth_url.clone().map(|url| at("--auth-url", url, Forward::new)).transpose()?;
        Ok(Auth { current, provider, forward, revoked: Arc::default() })
    }

    /// The same, but what is revoked, and was before, is kept in the file at this path, beside the journal's.
    ///
    /// # Errors
    /// [`InvalidFile`].
    pub fn with_revoked(self, path: PathBuf) -> Result<Self, InvalidFile> {
        let shown = path.display().to_string();
        let invalid = |what| InvalidFile { flag: "--journal", path: shown, what };
        Ok(Auth { revoked: Arc::new(Revoked::open(path).map_err(invalid)?), ..self })
    }

    /// Begins to fetch the keys of `--jwks-url`, on the runtime of which this is called.
    pub fn begin(&self) {
        self.provider.as_ref().map(Provider::begin_if_due);
    }

    /// Goes by these settings from now on, and by what their files say now. Which URLs are asked stays.
    ///
    /// # Errors
    /// [`InvalidFile`]: nothing has changed.
    pub fn reload(&self, options: &Options) -> Result<(), InvalidFile> {
        let jwks_url = self.provider.as_ref().map(|provider| provider.url().clone());
        let auth_url = self.forward.as_ref().map(|forward| forward.url().clone());
        let current = Arc::new(Current::new(&Options { jwks_url, auth_url, ..options.clone() })?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// Whether an endpoint says who asks: then a credential may be anything.
    pub fn asks(&self) -> bool {
        self.forward.is_some()
    }

    /// Refuses from now on what is revoked. Returns whether that outlives the process.
    ///
    /// # Errors
    /// [`RevokeError`]. Nothing is revoked.
    pub async fn revoke(&self, revocation: Revocation) -> Result<bool, RevokeError> {
        let revoked = Arc::clone(&self.revoked);
        let added = tokio::task::spawn_blocking(move || revoked.add(revocation)).await;
        added.unwrap_or_else(|panic| Err(RevokeError::Write(panic.into())))
    }

    /// Whether the caller's token was revoked since it was found right.
    pub fn is_revoked(&self, caller: &Caller) -> bool {
        caller.token().is_some_and(|token| self.revoked.has(token))
    }

    /// Who asks with this token, or without one. A hub that is open does not look at it. `question` is for
    /// the endpoint of `--auth-url`, if there is one: it is asked of whoever has no token of the hub's own.
    ///
    /// # Errors
    /// [`Refused`] if the token is wrong.
    pub async fn caller<'a>(
        &self,
        token: impl FnOnce() -> Result<Option<String>, Refused>,
        question: impl FnOnce() -> Result<Question<'a>, Refused>,
    ) -> Result<Caller, Refused> {
        let caller = self.found(token, question).await?;
        if self.is_revoked(&caller) { Err(Refused::revoked()) } else { Ok(caller) }
    }

    /// The same, whether or not the token was revoked.
    async fn found<'a>(
        &self,
        token: impl FnOnce() -> Result<Option<String>, Refused>,
        question: impl FnOnce() -> Result<Question<'a>, Refused>,
    ) -> Result<Caller, Refused> {
        let current = self.current();
        if current.is_open {
            return Ok(current.anonymous.clone());
        }
        let own = match token()? {
            Some(token) => Some(self.own(&current, &token).await),
            None => None,
        };
        let Some(forward) = &self.forward else {
            return own.unwrap_or_else(|| Ok(current.anonymous.clone()));
        };
        match own {
            None | Some(Err(Refused::Invalid(_))) => {}
            Some(own) => return own,
        }
        let question = question()?;
        if current.has_anonymous && !question.has_credentials() {
            return Ok(current.anonymous.clone());
        }
        // The future of a request that is not asked about stays small.
        Box::pin(forward.caller(question)).await
    }

    /// Whose this token is, if it is the hub's own.
    async fn own(&self, current: &Current, token: &str) -> Result<Caller, Refused> {
        /// The longest token, in bytes. Higher: more is hashed for nothing. Lower: a token with many grants
        /// would be refused.
        const LONGEST: usize = 8 << 10;
        if token.len() > LONGEST {
            return Err(Refused::invalid(format!("the token is longer than {LONGEST} bytes, the limit")));
        }
        let now = Time::now().as_seconds();
        if let Some(tokens) = &current.tokens
            && token.starts_with(tokens::PREFIX)
        {
            return tokens.caller(token, now);
        }
        let verified =
            |keys: &Keys| current.verified.caller(token, now, || current.expected.caller(keys, token, now));
        let of_file = current.keys.as_ref().map(verified);
        match (of_file, &self.provider) {
            // What the keys of the file don't know, those of the provider may.
            (
                None | Some(Err(Fault::UnknownKey(_) | Fault::Refused(Refused::Invalid(_)))),
                Some(provider),
            ) => provider.caller(verified).await,
            (Some(verified), _) => Ok(verified?),
            (None, None) => Err(Refused::invalid("the hub takes no such tokens")),
        }
    }

    /// How many tokens and keys the files have, each by its setting's name.
    pub fn counts(&self) -> Vec<(&'static str, usize)> {
        let current = self.current();
        let tokens = current.tokens.as_ref().map(|tokens| ("tokens", tokens.len()));
        let keys = current.keys.as_ref().map(|keys| ("keys", keys.count()));
        tokens.into_iter().chain(keys).collect()
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Current {
    fn new(options: &Options) -> Result<Self, InvalidFile> {
        let Options { tokens, keys, token_audience, token_issuer, rules, anonymous, .. } = options;
        let (is_open, has_anonymous) = (options.is_open(), anonymous.is_some());
        let anonymous = match anonymous {
            Some(grants) => Caller::anonymous(grants.clone()),
            None if is_open => Caller::anyone(),
            None => Caller::anonymous(Grants::default()),
        };
        let tokens = tokens.as_deref().map(|path| read("--tokens", path, Tokens::parse)).transpose()?;
        if let Some(tokens) = &tokens {
            tracing::info!(tokens = tokens.len(), "static tokens read");
        }
        let keys = keys.as_deref().map(read_keys).transpose()?;
        let (audience, issuer) = (token_audience.clone(), token_issuer.clone());
        let expected = jwt::Expected { audience, issuer, rules: rules.clone() };
        let verified = Cache::default();
        Ok(Current { anonymous, has_anonymous, is_open, tokens, keys, expected, verified })
    }
}

/// What is at the URL that this flag names.
fn at<T>(
    flag: &'static str,
    url: Url,
    make: impl FnOnce(Url) -> std::io::Result<T>,
) -> Result<T, InvalidFile> {
    let path = url.to_string();
    make(url).map_err(|error| InvalidFile { flag, path, what: error.to_string() })
}

/// Reads the file that this flag names.
fn read<T>(
    flag: &'static str,
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, InvalidFile> {
    let invalid = |what| InvalidFile { flag, path: path.display().to_string(), what };
    let text = fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
    parse(&text).map_err(invalid)
}

fn read_keys(path: &Path) -> Result<Keys, InvalidFile> {
    let keys = read("--keys", path, Keys::parse)?;
    tracing::info!(keys = keys.count(), "keys read");
    for what in keys.skipped() {
        tracing::warn!(%what, "a key is passed over");
    }
    let mode = fs::metadata(path).map_or(0, |file| file.permissions().mode() & 0o777);
    if keys.has_secrets() && mode & 0o077 != 0 {
        let (path, mode) = (path.display(), format_args!("{mode:o}"));
        tracing::warn!(%path, %mode, "others may read the keys: chmod 600 keeps them out");
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_urls_are_asked_stays_until_a_restart() {
        let open = crate::Options::default().auth;
        assert!(open.is_open());
        let url = Url::parse("http://127.0.0.1:1/").ok();
        for asked in [
            Options { auth_url: url.clone(), ..open.clone() },
            Options { jwks_url: url.clone(), ..open.clone() },
        ] {
            let auth = Auth::new(&asked).unwrap();
            assert!(!auth.current().is_open);
            auth.reload(&open).unwrap();
            assert!(!auth.current().is_open);
        }
    }

    #[tokio::test]
    async fn a_token_that_was_right_is_asked_about_anew_after_a_reload() {
        let path = std::env::temp_dir().join(format!("tabcast-keys-{}.json", std::process::id()));
        let set = signer::new(keys::Algorithm::HS256).unwrap();
        let claims = serde_json::json!({"sub": "ada", "exp": Time::now().as_seconds() + 60});
        let token = signer::Signer::parse(&set, None).unwrap().sign(&claims).unwrap();
        fs::write(&path, &set).unwrap();
        let options = Options { keys: Some(path.clone()), ..crate::Options::default().auth };
        let auth = Auth::new(&options).unwrap();
        let ask = || auth.caller(|| Ok(Some(token.clone())), || Err(Refused::Expired));
        assert_eq!(ask().await.unwrap().subject(), Some("ada"));
        fs::write(&path, signer::new(keys::Algorithm::HS256).unwrap()).unwrap();
        assert!(ask().await.is_ok());
        auth.reload(&options).unwrap();
        assert!(matches!(ask().await, Err(Refused::Invalid(_))));
        // What is no set of keys changes nothing.
        fs::write(&path, &set).unwrap();
        auth.reload(&options).unwrap();
        fs::write(&path, "{}").unwrap();
        assert!(auth.reload(&options).unwrap_err().to_string().starts_with("--keys "));
        assert!(ask().await.is_ok());
        fs::remove_file(path).unwrap();
    }
}
