//! The link between the file and its WAL, by which the two are known to belong together.
//!
//! What is first written to a WAL that begins anew is a new mark, beside the mark before it, which the file
//! has by then, as it has all messages up to there. So a file belongs to a WAL if it has one of the WAL's two
//! marks, and those messages. If it has not those, what the two are together decides.

use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rusqlite::{Connection, OpenFlags, params};

use super::schema;
use crate::message::Epoch;

/// What a file says without its WAL.
#[derive(Debug)]
pub(super) struct Alone {
    mark: String,
    /// The sequence of the last message.
    head: u64,
    /// SQLite's number for the schema. `VACUUM INTO` adds one to it.
    schema: i64,
}

impl Alone {
    /// Reads the file at `path`, and nothing beside it. `None` if it can't be read so: while the WAL is
    /// copied to a file, the file lacks what the WAL has. Not to be called while the process has the file
    /// open.
    pub(super) fn read(path: &Path) -> Option<Self> {
        use std::os::unix::ffi::OsStrExt;
        let path = percent_encode(path.as_os_str().as_bytes(), NON_ALPHANUMERIC);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(format!("file:{path}?immutable=1"), flags).ok()?;
        let version: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0)).ok()?;
        let mark = match version {
            1 => schema::first_of_version_1(&db).ok()?.to_string(),
            _ => db.query_row("SELECT mark FROM link", [], |row| row.get(0)).ok()?,
        };
        let head = format!("SELECT ifnull(max(sequence), 0) FROM {}", schema::table(version));
        let head = db.query_row(&head, [], |row| row.get(0)).ok()?;
        let schema = db.pragma_query_value(None, "schema_version", |row| row.get(0)).ok()?;
        Some(Alone { mark, head, schema })
    }

    /// Whether the WAL that `db` reads as well is this file's. If in doubt, all of the file is checked. A WAL
    /// of version 1 has no mark, and passes.
    pub(super) fn belongs_to(&self, db: &Connection) -> rusqlite::Result<bool> {
        if db.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0))? < 2 {
            return Ok(true);
        }
        let link = db.query_row("SELECT mark, before, head, schema FROM link", [], |row| {
            let marks: [String; 2] = [row.get(0)?, row.get(1)?];
            Ok((marks, row.get::<_, u64>(2)?, row.get::<_, i64>(3)?))
        });
        let (marks, head, schema) = link?;
        // While the WAL is copied to the file, the file may seem to have less.
        let is_sure = self.head >= head && self.schema == schema;
        Ok(marks.contains(&self.mark) && (is_sure || is_whole(db)))
    }
}

/// Whether the database is sound, with all tables of a journal, and without a hole between its first message
/// and its last, unless it has those of messages that were dropped one by one.
fn is_whole(db: &Connection) -> bool {
    let check = db.query_row("PRAGMA integrity_check(1)", [], |row| Ok(row.get_ref(0)?.as_str()? == "ok"));
    let count = "SELECT count(*) = 0 OR count(*) = max(sequence) - min(sequence) + 1
                 FROM entries WHERE data IS NOT NULL";
    let count = db.query_row(count, [], |row| row.get(0));
    let is_whole = |state: schema::State| state.earliest.is_some() || count.unwrap_or(false);
    check.unwrap_or(false) && schema::read(db).is_ok_and(is_whole)
}

/// Writes a new mark. To be called when the WAL begins anew, before anything else is written; `head` is the
/// sequence of the last message.
pub(super) fn renew(db: &Connection, head: u64) -> rusqlite::Result<()> {
    // The same kind of text as an epoch, and as unlikely to be drawn twice.
    let mark = Epoch::draw().to_string();
    let transaction = db.unchecked_transaction()?;
    transaction
        .prepare_cached(
            "UPDATE link SET before = mark, mark = ?1, head = ?2,
             schema = (SELECT schema_version FROM pragma_schema_version)",
        )?
        .execute(params![mark, head])?;
    // Writes the first page too, which says where the table is: in a copy it may be elsewhere.
    transaction.pragma_update(None, "user_version", schema::VERSION)?;
    transaction.commit()
}
