//! The file: made whole or not at all, checked before anything is written to it, and locked.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use crate::message::Epoch;

/// In the file's header, so that `file` and others can tell what it is: "tabc".
const APPLICATION_ID: i32 = 0x7461_6263;

/// The schema's version. A file of an older one is brought up to it when it is opened.
const VERSION: i32 = 1;

/// Before it, SQLite could corrupt a file when the WAL was reset.
const LEAST_SQLITE: i32 = 3_051_003;

/// How long another program that writes to the file is waited for.
pub(super) const BUSY: Duration = Duration::from_secs(10);

/// Why a journal can't be opened. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("it is in use by another hub")]
    InUse,
    /// It is some other file.
    #[error("it is not a tabcast journal")]
    Foreign,
    /// A newer tabcast made it.
    #[error("it was made by a newer tabcast (its version is {0}, this one knows {VERSION})")]
    Newer(i32),
    /// It is a journal, but can't be read.
    #[error("it is damaged: {0}")]
    Damaged(rusqlite::Error),
    /// The file, or its folder, can't be read or written.
    #[error("{0}")]
    Io(io::Error),
    /// SQLite can't open it, as where its folder is not writable.
    #[error("{0}")]
    Sqlite(rusqlite::Error),
    /// The library this hub was built with is too old.
    #[error("SQLite {} is too old", rusqlite::version())]
    OldSqlite,
}

/// A journal's file, ready to be written.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) db: Connection,
    pub(super) epoch: Epoch,
    /// The sequence of its last message; 0 if there never was one.
    pub(super) head: u64,
    /// The sequence of its earliest kept message; `head + 1` if none is.
    pub(super) earliest: u64,
}

/// Opens the journal, or makes a new one. It is no other process's while the file is not dropped.
pub(super) fn open(path: &Path) -> Result<(Opened, File), OpenError> {
    if rusqlite::version_number() < LEAST_SQLITE {
        return Err(OpenError::OldSqlite);
    }
    if !path.try_exists().map_err(OpenError::Io)? {
        create(path)?;
    }
    let lock = File::options().read(true).write(true).open(path).map_err(OpenError::Io)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse),
        Err(TryLockError::Error(error)) => return Err(OpenError::Io(error)),
    }
    check_header(&lock)?;
    let db = connect(path).map_err(OpenError::Sqlite)?;
    // Or else closing it would copy the WAL to a file that turns out to be damaged.
    let keep_wal = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    db.set_db_config(keep_wal, true).map_err(OpenError::Sqlite)?;
    let (epoch, head, earliest) = read_state(&db)?;
    db.set_db_config(keep_wal, false).and_then(|_| prepare(&db)).map_err(OpenError::Sqlite)?;
    Ok((Opened { db, epoch, head, earliest }, lock))
}

/// A connection, for reading unless it is told more.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // No URIs, no creating; and each connection is used by one thread at a time.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY)?;
    db.pragma_update(None, "mmap_size", 0)?;
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(db)
}

/// What the writer's connection has beyond others.
fn prepare(db: &Connection) -> rusqlite::Result<()> {
    /// To which the WAL is cut when it is reset: it is no larger but after a burst.
    const WAL_BYTES: i64 = 16 << 20;
    let mode: String = db.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode != "wal" {
        return Err(rusqlite::Error::InvalidParameterName(format!(
            "journal mode {mode}, where WAL is needed"
        )));
    }
    db.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES, |_| Ok(()))?;
    // NORMAL would lose acknowledged messages on a power cut.
    db.pragma_update(None, "synchronous", "FULL")
}

/// The one table: a message a row, read as the message is, by `id, channel, event, data, time`. Data
/// that retention has dropped is NULL while the row is kept for its key. Not STRICT, or SQLite would
/// compute the columns that are derived with every INSERT, to check their types.
fn schema(epoch: Epoch) -> String {
    format!(
        "CREATE TABLE messages (
  sequence INTEGER PRIMARY KEY,
  id TEXT AS ('{epoch}-' || sequence),
  channel TEXT NOT NULL,
  event TEXT NOT NULL,
  data TEXT,
  time TEXT AS (strftime('%Y-%m-%dT%H:%M:%fZ', time_ms / 1000.0, 'unixepoch')),
  time_ms INTEGER NOT NULL,
  \"except\" TEXT,
  key TEXT,
  request BLOB
)"
    )
}

/// Makes the file beside its place and moves it there when it is complete, so that a crash leaves
/// none that is half made.
fn create(path: &Path) -> Result<(), OpenError> {
    let mut name =
        path.file_name().ok_or_else(|| OpenError::Io(io::ErrorKind::InvalidFilename.into()))?.to_owned();
    name.push(format!(".new-{}", std::process::id()));
    let new = path.with_file_name(name);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    // Left by a process of the same number that was killed just here.
    let _ = fs::remove_file(&new);
    // SQLite says only that it can't; this says why.
    File::options().write(true).create_new(true).open(&new).map_err(OpenError::Io)?;
    let result = fill(&new).map_err(OpenError::Sqlite).and_then(|()| {
        File::open(&new).and_then(|file| file.sync_all()).map_err(OpenError::Io)?;
        match fs::hard_link(&new, path) {
            Ok(()) => {}
            // Another hub was faster; which of the two has it is settled by the lock.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(OpenError::Io(error)),
        }
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(OpenError::Io)
    });
    let _ = fs::remove_file(&new);
    result
}

fn fill(path: &Path) -> rusqlite::Result<()> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "application_id", APPLICATION_ID)?;
    db.pragma_update(None, "user_version", VERSION)?;
    db.execute_batch(&schema(Epoch::draw()))?;
    db.execute_batch("CREATE UNIQUE INDEX keys ON messages (key) WHERE key IS NOT NULL")?;
    db.close().map_err(|(_, error)| error)
}

/// Looks at the file without SQLite, which might change it: replay a journal beside it, say.
fn check_header(mut file: &File) -> Result<(), OpenError> {
    const LENGTH: usize = 100;
    let mut header = [0; LENGTH];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(OpenError::Foreign),
        Err(error) => return Err(OpenError::Io(error)),
    }
    // SQLite file format 1.3: the magic, the user version at 60, the application id at 68.
    let number = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if !header.starts_with(b"SQLite format 3\0") || number(68) != APPLICATION_ID {
        return Err(OpenError::Foreign);
    }
    match number(60) {
        newer if newer > VERSION => Err(OpenError::Newer(newer)),
        VERSION => Ok(()),
        // There has been no older one yet. The first is brought up to date here.
        _ => Err(OpenError::Foreign),
    }
}

fn read_state(db: &Connection) -> Result<(Epoch, u64, u64), OpenError> {
    let damaged = OpenError::Damaged;
    let sql: Option<String> = db
        .query_row("SELECT sql FROM sqlite_schema WHERE name = 'messages'", [], |row| row.get(0))
        .optional()
        .map_err(damaged)?;
    let sql = sql.ok_or(OpenError::Foreign)?;
    let epoch = sql.split_once("('").and_then(|(_, rest)| rest.get(..8)?.parse::<Epoch>().ok());
    let epoch = epoch.filter(|epoch| schema(*epoch) == sql).ok_or(OpenError::Foreign)?;
    let head: Option<u64> =
        db.query_row("SELECT max(sequence) FROM messages", [], |row| row.get(0)).map_err(damaged)?;
    let head = head.unwrap_or(0);
    let earliest: Option<u64> = db
        .query_row(
            "SELECT sequence FROM messages WHERE data IS NOT NULL ORDER BY sequence LIMIT 1",
            [],
            |row| row.get(0),
        )
        .optional()
        .map_err(damaged)?;
    Ok((epoch, head, earliest.unwrap_or(head + 1)))
}
