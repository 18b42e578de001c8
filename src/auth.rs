//! Who asks, and what it may do: a credential becomes a [`Caller`]. HTTP is unknown here.
//!
//! A credential that is presented and wrong is never taken for none: it is [`Refused`].

mod cache;
mod caller;
mod grants;
mod json;
mod jws;
mod jwt;
pub mod keys;
mod refused;
mod rules;
pub mod signer;
pub mod tokens;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use cache::Cache;
pub use caller::{Caller, Token};
pub use grants::{Grants, Verb};
use keys::Keys;
pub use refused::Refused;
pub use rules::Rules;
use tokens::Tokens;

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
}

/// Says who asks.
#[derive(Debug)]
pub struct Auth {
    current: RwLock<Arc<Current>>,
}

/// What the settings and their files say now.
#[derive(Debug)]
struct Current {
    /// Whoever presents nothing.
    anonymous: Caller,
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
        Ok(Auth { current: RwLock::new(Arc::new(Current::new(options)?)) })
    }

    /// Goes by these settings from now on, and by what their files say now.
    ///
    /// # Errors
    /// [`InvalidFile`]: nothing has changed.
    pub fn reload(&self, options: &Options) -> Result<(), InvalidFile> {
        let current = Arc::new(Current::new(options)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = current;
        Ok(())
    }

    /// Whether no credentials are looked at: whoever reaches the hub may do everything.
    pub fn is_open(&self) -> bool {
        self.current().is_open
    }

    /// Who asks with this token, or without one.
    ///
    /// # Errors
    /// [`Refused`] if the token is wrong.
    pub async fn caller(&self, token: Option<&str>) -> Result<Caller, Refused> {
        /// The longest token, in bytes. Higher: more is hashed for nothing. Lower: a token with many grants
        /// would be refused.
        const LONGEST: usize = 8 << 10;
        let current = self.current();
        let Some(token) = token.filter(|_| !current.is_open) else { return Ok(current.anonymous.clone()) };
        if token.len() > LONGEST {
            return Err(Refused::invalid(format!("the token is longer than {LONGEST} bytes, the limit")));
        }
        let now = seconds_now();
        match (&current.tokens, &current.keys) {
            (Some(tokens), _) if token.starts_with(tokens::PREFIX) => tokens.caller(token, now),
            (_, Some(keys)) => {
                let verify = || current.expected.caller(keys, token, now);
                Ok(current.verified.caller(token, now, verify)?)
            }
            _ => Err(Refused::invalid("the hub takes no such tokens")),
        }
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Current {
    fn new(options: &Options) -> Result<Self, InvalidFile> {
        let Options { tokens, keys, token_audience, token_issuer, rules, anonymous } = options;
        let is_open = tokens.is_none() && keys.is_none() && anonymous.is_none();
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
        Ok(Current { anonymous, is_open, tokens, keys, expected, verified: Cache::default() })
    }
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
        let mode = format!("{mode:o}");
        tracing::warn!(path = %path.display(), mode, "others may read the keys: chmod 600 keeps them out");
    }
    Ok(keys)
}

/// Seconds since 1970.
fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}
