//! The tables of the file, and how a file of an older version gets them.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, ffi, params};

use super::ages::StoredBy;
use crate::journal::epochs::Begun;
use crate::journal::recent::Earliest;
use crate::journal::rules::Rules;
use crate::message::{Epoch, Time};

/// Marks a file as a journal, in SQLite's header: "tabc". The command `file` shows it.
pub(super) const APPLICATION_ID: i32 = 0x7461_6263;

/// The version of the tables. A file of version 1 is made one of this version when it is opened.
pub(super) const VERSION: i32 = 2;

/// A row of `entries` for each message; its `data` is NULL if the message was dropped, and the row remains
/// for its key. A row of `epochs` for each hub that has appended a message, after one for the journal itself.
/// `stored_by`: see [`StoredBy`]. The view is for people who query the file.
const TABLES: &str = "
CREATE TABLE entries (
  sequence INTEGER PRIMARY KEY,
  channel TEXT NOT NULL,
  event TEXT NOT NULL,
  data TEXT,
  time_ms INTEGER NOT NULL,
  \"except\" TEXT,
  key TEXT,
  request BLOB
);
CREATE UNIQUE INDEX keys ON entries (key) WHERE key IS NOT NULL;
";

/// What version 2 has beside the messages.
const BESIDE: &str = "
CREATE TABLE epochs (epoch TEXT NOT NULL, after INTEGER NOT NULL);
CREATE TABLE stored_by (sequence INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL);
CREATE TABLE link (mark TEXT NOT NULL, before TEXT NOT NULL, head INTEGER NOT NULL, schema INTEGER NOT NULL);
CREATE VIEW messages AS SELECT
  sequence,
  (SELECT epoch FROM epochs WHERE after < sequence ORDER BY rowid DESC LIMIT 1) || '-' || sequence AS id,
  channel,
  event,
  data,
  strftime('%Y-%m-%dT%H:%M:%fZ', time_ms / 1000.0, 'unixepoch') AS time,
  \"except\",
  key
FROM entries WHERE data IS NOT NULL;
PRAGMA user_version = 2;
";

/// What files of version 2 may lack that were made before messages could be dropped one by one. `retention`
/// is of use once `holes` is 1: messages were deleted that were not the oldest. It has [`Earliest`], and
/// which channels had a share of their own.
const LATER: &str = "
ALTER TABLE entries ADD COLUMN expires_ms INTEGER;
CREATE INDEX expiring ON entries (expires_ms) WHERE expires_ms IS NOT NULL AND data IS NOT NULL;
CREATE INDEX bare ON entries (sequence) WHERE data IS NULL;
CREATE TABLE retention
  (earliest INTEGER NOT NULL, protected INTEGER NOT NULL, holes INTEGER NOT NULL, rules TEXT NOT NULL);
INSERT INTO retention VALUES (0, 0, 0, '');
";

/// What a journal's file says of the journal.
#[derive(Debug)]
pub(super) struct State {
    pub(super) version: i32,
    pub(super) epochs: Vec<Begun>,
    /// The sequence of the last message, 0 if there never was one.
    pub(super) head: u64,
    /// The sequence of the earliest kept message, `head + 1` if none is kept.
    pub(super) begin: u64,
    /// Before which sequences there is a gap. `None` if messages were only ever deleted from the beginning.
    pub(super) earliest: Option<Earliest>,
    /// Which channels had a share of their own then: [`Rules::protected`](crate::journal::Rules::protected).
    pub(super) protected: String,
    /// Whether the file has what [`LATER`] adds.
    pub(super) is_complete: bool,
    /// The time of the last message.
    pub(super) latest: Time,
    pub(super) stored_by: Vec<StoredBy>,
}

/// Why a file's tables can't be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    NotAJournal,
    /// The file has this later version.
    Newer(i32),
    Damaged(rusqlite::Error),
}

impl From<rusqlite::Error> for Unreadable {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error().map(|error| error.extended_code) {
            // A table, or a column, that a journal has is not there.
            Some(ffi::SQLITE_ERROR) => Unreadable::NotAJournal,
            _ => Unreadable::Damaged(error),
        }
    }
}

/// The table that has the messages in a file of this version.
pub(super) fn table(version: i32) -> &'static str {
    if version < 2 { "messages" } else { "entries" }
}

/// Makes the tables of a new journal.
pub(super) fn create(db: &Connection) -> rusqlite::Result<()> {
    // Before the first table, or it has no effect.
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    db.pragma_update(None, "application_id", APPLICATION_ID)?;
    let transaction = db.unchecked_transaction()?;
    transaction.execute_batch(TABLES)?;
    beside(&transaction, Epoch::draw())?;
    transaction.commit()
}

/// Makes what version 2 has beside the messages, in a journal that was made with this epoch.
fn beside(db: &Connection, first: Epoch) -> rusqlite::Result<()> {
    db.execute_batch(BESIDE)?;
    db.execute_batch(LATER)?;
    db.execute("INSERT INTO epochs VALUES (?1, 0)", [first.to_string()])?;
    // A new journal has no WAL. A file of version 1 is known by its epoch, whatever it has without its WAL.
    db.execute(
        "INSERT INTO link VALUES (?1, ?1, 0, (SELECT schema_version FROM pragma_schema_version))",
        [first.to_string()],
    )
    .map(drop)
}

/// Makes a file of version 1 one of version 2, as a whole or not at all.
pub(super) fn migrate(db: &mut Connection, first: Epoch) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(
        "ALTER TABLE messages DROP COLUMN id;
         ALTER TABLE messages DROP COLUMN time;
         ALTER TABLE messages RENAME TO entries;",
    )?;
    beside(&transaction, first)?;
    transaction.commit()
}

/// Adds what a file of this version lacks, as a whole or not at all.
pub(super) fn complete(db: &mut Connection) -> rusqlite::Result<()> {
    let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(LATER)?;
    transaction.commit()
}

/// Reads the journal's state.
pub(super) fn read(db: &Connection) -> Result<State, Unreadable> {
    let application: i32 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let version: i32 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if application != APPLICATION_ID {
        return Err(Unreadable::NotAJournal);
    }
    let table = table(version);
    let (epochs, stored_by) = match version {
        1 => (vec![Begun { epoch: first_of_version_1(db)?, after: 0 }], vec![]),
        VERSION => (epochs(db)?, stored_by(db)?),
        newer if newer > VERSION => return Err(Unreadable::Newer(newer)),
        _ => return Err(Unreadable::NotAJournal),
    };
    if epochs.is_empty() || !epochs.is_sorted_by_key(|begun| begun.after) {
        return Err(Unreadable::NotAJournal);
    }
    let is_complete =
        db.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'retention'", [], |row| row.get(0))?;
    // With each column that the journal reads or writes.
    let last = format!(
        "SELECT sequence, time_ms, channel, event, data, {table}.\"except\", key, request{} FROM {table}
         ORDER BY sequence DESC LIMIT 1",
        if is_complete { ", expires_ms" } else { "" }
    );
    let last: Option<(u64, u64)> =
        db.query_row(&last, [], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (head, latest) = last.unwrap_or_default();
    let begin = format!("SELECT sequence FROM {table} WHERE data IS NOT NULL ORDER BY sequence LIMIT 1");
    let begin: Option<u64> = db.query_row(&begin, [], |row| row.get(0)).optional()?;
    let (begin, latest) = (begin.unwrap_or(head + 1), Time::from_ms(latest));
    let (earliest, protected) = if is_complete { retention(db)? } else { (None, String::new()) };
    Ok(State { version, epochs, head, begin, earliest, protected, is_complete, latest, stored_by })
}

fn retention(db: &Connection) -> Result<(Option<Earliest>, String), Unreadable> {
    let row = db.query_row("SELECT earliest, protected, holes, rules FROM retention", [], |row| {
        let earliest = Earliest { others: row.get(0)?, protected: row.get(1)? };
        Ok((row.get::<_, bool>(2)?.then_some(earliest), row.get(3)?))
    });
    Ok(row?)
}

/// Writes that messages were deleted which were not the oldest, and before which sequences there is a gap.
pub(super) fn store_retention(db: &Connection, earliest: Earliest, rules: &Rules) -> rusqlite::Result<()> {
    let Earliest { others, protected } = earliest;
    db.prepare_cached("UPDATE retention SET earliest = ?1, protected = ?2, holes = 1, rules = ?3")?
        .execute(params![others, protected, rules.protected()])
        .map(drop)
}

/// The epoch of a journal of version 1, which is a part of its table's definition.
pub(super) fn first_of_version_1(db: &Connection) -> Result<Epoch, Unreadable> {
    let sql: Option<String> = db
        .query_row("SELECT sql FROM sqlite_schema WHERE name = 'messages'", [], |row| row.get(0))
        .optional()?;
    let epoch = sql.as_deref().and_then(|sql| sql.split_once("('")?.1.get(..8)?.parse().ok());
    epoch.ok_or(Unreadable::NotAJournal)
}

fn epochs(db: &Connection) -> Result<Vec<Begun>, Unreadable> {
    let mut select = db.prepare("SELECT epoch, after FROM epochs ORDER BY rowid")?;
    let mut rows = select.query([])?;
    let mut epochs = Vec::new();
    while let Some(row) = rows.next()? {
        let epoch = row.get_ref(0)?.as_str().ok().and_then(|text| text.parse().ok());
        epochs.push(Begun { epoch: epoch.ok_or(Unreadable::NotAJournal)?, after: row.get(1)? });
    }
    Ok(epochs)
}

fn stored_by(db: &Connection) -> Result<Vec<StoredBy>, Unreadable> {
    let mut select = db.prepare("SELECT sequence, time_ms FROM stored_by ORDER BY sequence")?;
    let rows = select
        .query_map([], |row| Ok(StoredBy { sequence: row.get(0)?, time: Time::from_ms(row.get(1)?) }))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
