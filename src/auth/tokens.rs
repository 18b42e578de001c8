//! Static tokens, for scripts and CI: a file with a line for each, which has the token's hash and not the
//! token.
//!
//! ```text
//! # name   SHA-256 of the token, in hexadecimal   grants, and when it ends
//! ci       9f86d081884c7d659a2feaa0c55ad015…      publish=build.> expires=2027-01-01T00:00:00Z
//! ```

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use super::caller::{Caller, Token};
use super::grants::Grants;
use super::refused::Refused;

/// What each token begins with, so that scanners of source code find one that leaks.
pub const PREFIX: &str = "tct_";

/// Bytes of chance in a token.
const RANDOM_BYTES: usize = 32;

/// The digits of [`RANDOM_BYTES`] bytes, and of the four bytes of the checksum, with 62 to choose from.
const DIGITS: (usize, usize) = (43, 6);

/// The most tokens. Higher: a file that was never meant to be one is read for longer. Lower: a company with
/// many programs may need more.
const MOST: usize = 10_000;

/// The tokens of one file.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    by_hash: HashMap<[u8; 32], Caller>,
}

impl Tokens {
    /// Parses the file's text.
    ///
    /// # Errors
    /// Which line is wrong, and what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut by_hash = HashMap::new();
        let mut names = std::collections::HashSet::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let bad = |what: &str| format!("line {number}: {what}");
            if names.len() == MOST {
                return Err(bad(&format!("there are more than {MOST} tokens, the limit")));
            }
            let mut words = line.split_whitespace();
            let (Some(name), Some(hash)) = (words.next(), words.next()) else {
                return Err(bad("it must have a name and a SHA-256, and then grants"));
            };
            let hash = unhex(hash).ok_or_else(|| bad("the second word must be 64 hexadecimal digits"))?;
            let (mut grants, mut expires) = (String::new(), None);
            for word in words {
                match word.strip_prefix("expires=") {
                    Some(time) => {
                        let time = humantime::parse_rfc3339(time);
                        let time = time.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                        let time = time.ok_or_else(|| bad("give `expires` as in 2027-01-01T00:00:00Z"))?;
                        expires = Some(time.as_secs());
                    }
                    None => grants.extend([word, " "]),
                }
            }
            let grants = Grants::parse(&grants).map_err(|what| bad(&what))?;
            if !names.insert(name) {
                return Err(bad(&format!("there is another token of the name {name}")));
            }
            let name: Arc<str> = name.into();
            let (subject, id) = (Some(Arc::clone(&name)), Some(name));
            let token = Token { subject, is_static: true, id, issued: None, expires };
            if by_hash.insert(hash, Caller::with_token(token, grants)).is_some() {
                return Err(bad("another line has the same SHA-256"));
            }
        }
        Ok(Tokens { by_hash })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Whose the token is, now. It is looked up by its hash, so that the time which that takes says nothing
    /// of other tokens.
    ///
    /// # Errors
    /// [`Refused`] if it is no token of the file, or has expired.
    pub(super) fn caller(&self, token: &str, now: u64) -> Result<Caller, Refused> {
        if !is_whole(token) {
            return Err(Refused::invalid("the token was cut or mistyped: its checksum is wrong"));
        }
        let hash: [u8; 32] = Sha256::digest(token).into();
        let caller = self.by_hash.get(&hash).ok_or_else(|| Refused::invalid("the hub has no such token"))?;
        match caller.token().and_then(|token| token.expires) {
            Some(expires) if expires <= now => Err(Refused::Expired),
            _ => Ok(caller.clone()),
        }
    }
}

/// A new token: the secret, and its SHA-256 in hexadecimal, for the file.
///
/// # Errors
/// If the system has no random numbers.
pub fn new() -> Result<(String, String), aws_lc_rs::error::Unspecified> {
    let mut bytes = [0; RANDOM_BYTES];
    aws_lc_rs::rand::fill(&mut bytes)?;
    let secret = with_checksum(&base62(&bytes, DIGITS.0));
    let hash = hex(&Sha256::digest(&secret));
    Ok((secret, hash))
}

/// The line that a file has for a token with this name and SHA-256.
///
/// # Errors
/// What the file could not have.
pub fn line(name: &str, hash: &str, grants: &str, expires: Option<SystemTime>) -> Result<String, String> {
    if name.is_empty() || name.starts_with('#') || name.contains(char::is_whitespace) {
        return Err(format!("{name:?} can't be a name: it must be one word, and not begin with #"));
    }
    let mut line = format!("{name} {hash} {grants}").trim_end().to_owned();
    if let Some(expires) = expires {
        line += &format!(" expires={}", humantime::format_rfc3339_seconds(expires));
    }
    Tokens::parse(&line).map_err(|what| what.trim_start_matches("line 1: ").to_owned())?;
    Ok(line)
}

/// Whether the text is a token whose checksum is right.
pub fn is_whole(token: &str) -> bool {
    let body = token.strip_prefix(PREFIX).filter(|body| body.len() == DIGITS.0 + DIGITS.1 && body.is_ascii());
    body.is_some_and(|body| with_checksum(&body[..DIGITS.0]) == token)
}

fn with_checksum(digits: &str) -> String {
    let checksum = &Sha256::digest(digits)[..4];
    format!("{PREFIX}{digits}{}", base62(checksum, DIGITS.1))
}

/// The bytes as a number of so many digits.
fn base62(bytes: &[u8], digits: usize) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut number = bytes.to_vec();
    let digit = |_| {
        let mut rest = 0;
        for byte in &mut number {
            let value = rest * 256 + usize::from(*byte);
            *byte = u8::try_from(value / DIGITS.len()).expect("the rest is less than the divisor");
            rest = value % DIGITS.len();
        }
        char::from(DIGITS[rest])
    };
    let mut digits: Vec<char> = (0..digits).map(digit).collect();
    digits.reverse();
    digits.into_iter().collect()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..][..2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Verb;
    use crate::message::ChannelName;

    #[test]
    fn a_new_token_is_found_by_its_hash_until_it_ends() {
        let (secret, hash) = new().unwrap();
        assert!(is_whole(&secret) && secret.len() == 53, "{secret}");
        let channel = ChannelName::parse("build.7", 9).unwrap();
        let tokens = |rest: &str| Tokens::parse(&format!("# x\n\nci {hash} publish=build.> {rest}")).unwrap();
        let caller = tokens("").caller(&secret, 0).unwrap();
        assert!(caller.subject() == Some("ci") && caller.may_on(Verb::Publish, &channel));
        assert!(!caller.may_on(Verb::Subscribe, &channel));
        assert!(tokens("expires=1970-01-01T00:00:09Z").caller(&secret, 8).is_ok());
        let expired = tokens("expires=1970-01-01T00:00:09Z").caller(&secret, 9);
        assert!(matches!(expired, Err(Refused::Expired)));
        for bad in [&secret[1..], &secret[..52], &new().unwrap().0, "", "tct_"] {
            assert!(matches!(tokens("").caller(bad, 0), Err(Refused::Invalid(_))), "{bad}");
        }
    }

    #[test]
    fn a_new_line_is_one_that_the_file_can_have() {
        let (secret, hash) = new().unwrap();
        let expires = UNIX_EPOCH.checked_add(std::time::Duration::from_secs(9)).unwrap();
        let text = line("ci", &hash, "publish=build.> admin", Some(expires)).unwrap();
        assert_eq!(text, format!("ci {hash} publish=build.> admin expires=1970-01-01T00:00:09Z"));
        let caller = Tokens::parse(&text).unwrap().caller(&secret, 8).unwrap();
        assert!(caller.subject() == Some("ci") && caller.grants().allow_admin());
        assert_eq!(line("ci", &hash, "", None).unwrap(), format!("ci {hash}"));
        for (name, grants) in
            [("", ""), ("#ci", ""), ("a b", ""), ("ci", "x"), ("a\nb", ""), ("ci", "publish=a*")]
        {
            assert!(line(name, &hash, grants, None).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_line_that_is_wrong_is_named() {
        let hash = hex(&[7; 32]);
        let (other, twice) = (hex(&[8; 32]), format!("a {hash}\nb {hash}"));
        for (text, line) in [
            ("ci".to_owned(), "line 1"),
            ("\nci 12".to_owned(), "line 2"),
            (format!("ci {hash} publish"), "line 1"),
            (format!("ci {hash} expires=tomorrow"), "line 1"),
            (twice, "line 2"),
            (format!("a {hash}\na {other}"), "line 2"),
        ] {
            let error = Tokens::parse(&text).unwrap_err();
            assert!(error.starts_with(line), "{error}");
        }
    }
}
