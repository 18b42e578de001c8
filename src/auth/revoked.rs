//! What was revoked: the tokens of a subject, the token of an id, a static token, or all that were issued
//! before some time. It is kept in a file, a JSON object a line, which is beside the journal's.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::caller::Token;
use crate::message::Time;

/// The most revocations. Higher: a bigger file is written anew for each. Lower: fewer subjects can be shut
/// out.
pub const MOST: usize = 10_000;

/// The longest subject, id or name that can be revoked, in bytes. Higher: more memory for each revocation.
/// Lower: tokens with longer ones can't be revoked by these.
const LONGEST: usize = 1_024;

/// What was revoked so far.
#[derive(Debug, Default)]
pub(super) struct Revoked {
    entries: RwLock<Entries>,
    /// The file. `None` if there is none: what was revoked is forgotten at the end.
    path: Option<PathBuf>,
    /// Held while the file is written.
    writing: Mutex<()>,
}

/// What was revoked, and before when such a token must have been issued. `None` if that does not matter.
type Entries = BTreeMap<What, Option<Time>>;

/// Which tokens are revoked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    All,
    Subject(Arc<str>),
    Id(Arc<str>),
    /// A static token, by its name.
    Token(Arc<str>),
}

/// One revocation.
#[derive(Clone, Debug)]
pub struct Revocation {
    what: What,
    before: Option<Time>,
}

/// A revocation as a file has it.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<Arc<str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    before: Option<String>,
}

/// Why there can be no such revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRevocation {
    /// It does not say what is revoked, or says too much.
    #[error("give one of `subject`, `id` and `token`; `before` can go with `subject`, or stand alone")]
    What,
    /// The time in `before` can't be read.
    #[error("must be a time as in 2027-01-01T00:00:00Z")]
    Before,
    /// The subject, the id or the name in this field is empty or too long.
    #[error("must have 1 to {limit} bytes, the limit")]
    Length {
        /// The field.
        field: &'static str,
        /// The most bytes.
        limit: usize,
    },
}

/// Why nothing was revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// There are [`MOST`] revocations.
    #[error(
        "{MOST} things were revoked, which is the limit: revoke all before some time, or change the keys"
    )]
    TooMany,
    /// The file can't be written.
    #[error("the hub can't write down what is revoked; nothing was revoked")]
    Write(#[source] io::Error),
}

impl Revocation {
    /// The revocation of one of the first three: all tokens of this subject that were issued `before`, which
    /// is now if it is not given; the token with this id; the static token of this name. With `before` alone,
    /// it is that of all tokens issued before it, but for static ones.
    ///
    /// # Errors
    /// [`InvalidRevocation`].
    pub fn new(
        subject: Option<Arc<str>>,
        id: Option<Arc<str>>,
        token: Option<Arc<str>>,
        before: Option<&str>,
    ) -> Result<Self, InvalidRevocation> {
        for (field, text) in [("subject", &subject), ("id", &id), ("token", &token)] {
            if text.as_ref().is_some_and(|text| text.is_empty() || text.len() > LONGEST) {
                return Err(InvalidRevocation::Length { field, limit: LONGEST });
            }
        }
        let before = before.map(|time| parse_time(time).ok_or(InvalidRevocation::Before)).transpose()?;
        let (what, before) = match (subject, id, token, before) {
            (Some(subject), None, None, before) => {
                (What::Subject(subject), Some(before.unwrap_or_else(Time::now)))
            }
            (None, Some(id), None, None) => (What::Id(id), None),
            (None, None, Some(name), None) => (What::Token(name), None),
            (None, None, None, Some(before)) => (What::All, Some(before)),
            _ => return Err(InvalidRevocation::What),
        };
        Ok(Revocation { what, before })
    }
}

fn parse_time(text: &str) -> Option<Time> {
    let since = humantime::parse_rfc3339(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    since.as_millis().try_into().ok().map(Time::from_ms)
}

impl Revoked {
    /// What the file at this path says was revoked, and is written to from now on. There may be none yet.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(super) fn open(path: PathBuf) -> Result<Self, String> {
        let entries = match fs::read_to_string(&path) {
            Ok(text) => parse(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Entries::new(),
            Err(error) => return Err(error.to_string()),
        };
        Ok(Revoked { entries: RwLock::new(entries), path: Some(path), ..Revoked::default() })
    }

    /// Whether this token was revoked.
    pub(super) fn has(&self, token: &Token) -> bool {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let hits = |what: What| {
            let Some(before) = entries.get(&what) else { return false };
            // In which second a token was issued is known: not when in that second.
            let is_before = |before: &Time| {
                token.issued.is_none_or(|issued| issued.saturating_mul(1_000) < before.as_ms())
            };
            before.as_ref().is_none_or(is_before)
        };
        let hits_id = |of: fn(Arc<str>) -> What| token.id.clone().is_some_and(|id| hits(of(id)));
        match token.is_static {
            true => hits_id(What::Token),
            false => {
                hits(What::All)
                    || token.subject.clone().map(What::Subject).is_some_and(hits)
                    || hits_id(What::Id)
            }
        }
    }

    /// Revokes this from now on. Returns whether it outlives the process: it is in the file then. Blocks.
    ///
    /// # Errors
    /// [`RevokeError`]. Nothing is revoked.
    pub(super) fn add(&self, revocation: Revocation) -> Result<bool, RevokeError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = self.entries.read().unwrap_or_else(PoisonError::into_inner).clone();
        let before = entries.entry(revocation.what).or_default();
        *before = revocation.before.max(*before);
        if entries.len() > MOST {
            return Err(RevokeError::TooMany);
        }
        if let Some(path) = &self.path {
            write(path, text(&entries).as_bytes()).map_err(RevokeError::Write)?;
        }
        *self.entries.write().unwrap_or_else(PoisonError::into_inner) = entries;
        Ok(self.path.is_some())
    }
}

/// The file's entries.
fn parse(text: &str) -> Result<Entries, String> {
    let mut entries = Entries::new();
    for (number, line) in (1..).zip(text.lines()) {
        let bad = |what: String| format!("line {number}: {what}");
        let Line { subject, id, token, before } =
            serde_json::from_str(line).map_err(|error| bad(error.to_string()))?;
        let revocation = Revocation::new(subject, id, token, before.as_deref());
        let Revocation { what, before } = revocation.map_err(|error| bad(error.to_string()))?;
        entries.insert(what, before);
    }
    Ok(entries)
}

/// The file's text.
fn text(entries: &Entries) -> String {
    let line = |(what, before): (&What, &Option<Time>)| {
        let before = before.map(|time| time.to_string());
        let line = match what.clone() {
            What::All => Line { before, ..Line::default() },
            What::Subject(subject) => Line { subject: Some(subject), before, ..Line::default() },
            What::Id(id) => Line { id: Some(id), before, ..Line::default() },
            What::Token(name) => Line { token: Some(name), before, ..Line::default() },
        };
        serde_json::to_string(&line).expect("a revocation is JSON") + "\n"
    };
    entries.iter().map(line).collect()
}

/// Replaces the file at this path, or leaves it as it is. Returns once it outlives a power cut.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_added_extension("new");
    // A hub that was cut off may have left one.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(subject: &str, id: Option<&str>, issued: Option<u64>) -> Token {
        Token { subject: Some(subject.into()), id: id.map(Arc::from), issued, ..Token::default() }
    }

    fn revocation(field: &str, text: &str, before: Option<&str>) -> Result<Revocation, InvalidRevocation> {
        let of = |name| (name == field).then(|| text.into());
        Revocation::new(of("subject"), of("id"), of("token"), before)
    }

    #[test]
    fn a_token_is_revoked_by_its_subject_its_id_its_name_or_its_time() {
        let revoked = Revoked::default();
        let ci = Token { is_static: true, ..token("ci", Some("ci"), None) };
        let now = Time::now().as_seconds();
        let all = [
            token("ada", Some("1"), Some(now - 10)),
            token("ada", Some("2"), Some(now + 10)),
            token("bob", Some("3"), Some(1_000)),
            // The name of a static token is no user's.
            token("ci", Some("ci"), Some(now)),
            ci,
        ];
        let hit = || all.iter().map(|token| u8::from(revoked.has(token))).collect::<Vec<_>>();
        assert_eq!(hit(), [0; 5]);
        revoked.add(revocation("subject", "ada", None).unwrap()).unwrap();
        assert_eq!(hit(), [1, 0, 0, 0, 0]);
        assert!(revoked.has(&token("ada", None, Some(now))) && revoked.has(&token("ada", None, None)));
        // The later time counts.
        revoked.add(revocation("subject", "ada", Some("1980-01-01T00:00:00Z")).unwrap()).unwrap();
        assert_eq!(hit(), [1, 0, 0, 0, 0]);
        revoked.add(revocation("id", "2", None).unwrap()).unwrap();
        assert_eq!(hit(), [1, 1, 0, 0, 0]);
        revoked.add(revocation("", "", Some("1970-01-01T00:16:40Z")).unwrap()).unwrap();
        assert_eq!(hit(), [1, 1, 0, 0, 0]);
        revoked.add(revocation("", "", Some("1970-01-01T00:16:40.1Z")).unwrap()).unwrap();
        assert_eq!(hit(), [1, 1, 1, 0, 0]);
        revoked.add(revocation("token", "ci", None).unwrap()).unwrap();
        assert_eq!(hit(), [1, 1, 1, 0, 1]);
        let read = parse(&text(&revoked.entries.read().unwrap())).unwrap();
        assert_eq!(read, *revoked.entries.read().unwrap());
    }

    #[test]
    fn there_are_so_many_revocations_and_no_more() {
        let entries = (0..MOST as u64).map(|number| (What::Id(number.to_string().into()), None));
        let revoked = Revoked { entries: RwLock::new(entries.collect()), ..Revoked::default() };
        assert!(matches!(revoked.add(revocation("id", "x", None).unwrap()), Err(RevokeError::TooMany)));
        assert!(!revoked.has(&token("", Some("x"), None)));
        assert!(revoked.add(revocation("id", "7", None).unwrap()).is_ok());
    }

    #[test]
    fn a_revocation_says_what_is_revoked() {
        let (what, before) = (InvalidRevocation::What, Some("2026-01-01T00:00:00Z"));
        let refused = |field, text, before| revocation(field, text, before).unwrap_err();
        assert_eq!(refused("", "", None), what);
        assert_eq!(refused("id", "1", before), what);
        assert_eq!(refused("token", "ci", before), what);
        assert_eq!(refused("subject", "ada", Some("now")), InvalidRevocation::Before);
        let length = |field| InvalidRevocation::Length { field, limit: LONGEST };
        assert_eq!(refused("subject", "", None), length("subject"));
        assert_eq!(refused("id", &"x".repeat(LONGEST + 1), None), length("id"));
        assert_eq!(Revocation::new(Some("a".into()), Some("b".into()), None, None).unwrap_err(), what);
        let bad = "{\"id\":\"1\"}\n{\"id\":1}";
        assert!(parse(bad).unwrap_err().starts_with("line 2: "), "{bad}");
        assert!(parse("{\"ids\":\"1\"}").is_err() && parse("{}").is_err());
    }
}
