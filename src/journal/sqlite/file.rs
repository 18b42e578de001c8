//! The journal's file: created whole or not at all, checked before it is written to, and locked.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension};

use crate::message::Epoch;

/// Marks a file as a journal, in SQLite's header: "tabc". The command `file` shows it.
const APPLICATION_ID: i32 = 0x7461_6263;

/// The schema's version. A file of an older version is to be migrated when it is opened; there is none yet.
const VERSION: i32 = 1;

/// SQLite 3.51.3. Earlier versions could corrupt a file when the WAL was reset.
const MIN_SQLITE: i32 = 3_051_003;

/// How long a connection waits while another program writes to the file. Higher: publishers wait longer
/// before they are refused. Lower: a short write of another program makes the journal unavailable.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The mode of a new file, whatever the umask: only the hub's user reads messages. SQLite gives the same mode
/// to the files that it makes beside it.
const MODE: u32 = 0o600;

/// Why a journal can't be opened. The file is unchanged, and nothing new is beside it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has locked the file.
    #[error("it is in use by another hub")]
    InUse,
    /// The file is something else.
    #[error("it is not a tabcast journal")]
    NotAJournal,
    /// The file has a later schema version, which is given.
    #[error("it was made by a newer tabcast (its version is {0}, this one knows {VERSION})")]
    Newer(i32),
    /// The file is a journal, but SQLite can't read it.
    #[error("it is damaged: {0}")]
    Damaged(rusqlite::Error),
    /// The file or its folder can't be read or written.
    #[error("{0}")]
    Io(io::Error),
    /// SQLite can't open the file, as in a folder that is not writable.
    #[error("{0}")]
    Sqlite(rusqlite::Error),
    /// The SQLite library in this binary is too old.
    #[error("SQLite {} is too old", rusqlite::version())]
    OldSqlite,
}

/// A journal's file, ready to be written.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) db: Connection,
    pub(super) epoch: Epoch,
    /// The sequence of the last message, 0 if there never was one.
    pub(super) head: u64,
    /// The sequence of the earliest kept message, `head + 1` if none is kept.
    pub(super) earliest: u64,
}

/// Opens the journal, or creates it. The returned [`File`] is the lock: until it is dropped, no other
/// process can open the journal.
pub(super) fn open(path: &Path) -> Result<(Opened, File), OpenError> {
    if rusqlite::version_number() < MIN_SQLITE {
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
    let State { epoch, head, earliest } = check_content(path)?;
    let db = connect(path).map_err(OpenError::Sqlite)?;
    prepare(&db).map_err(OpenError::Sqlite)?;
    Ok((Opened { db, epoch, head, earliest }, lock))
}

/// The path of a file that SQLite makes beside `path`, or that is made here.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The path of a file that this process makes for a moment beside `path`.
fn beside_for_now(path: &Path) -> PathBuf {
    beside(path, &format!(".new-{}", std::process::id()))
}

/// A connection for reading. [`prepare`] makes it one for writing.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // Without URI and CREATE: only an existing file at `path` will do. NO_MUTEX: a connection is used by one
    // thread at a time.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.pragma_update(None, "mmap_size", 0)?;
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    Ok(db)
}

/// Prepares a connection for the writer.
fn prepare(db: &Connection) -> rusqlite::Result<()> {
    /// The size to which the WAL's file is cut when the WAL is started over, twice that of normal work.
    /// Higher: a burst takes disk space for good. Lower: normal work would cut the file and grow it again.
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

/// The one table, with a row for each message. The columns `id` and `time` are derived, for people who query
/// the file. `data` is NULL in a row whose message was dropped, and which remains for its key. The table is
/// not STRICT: SQLite would compute the derived columns at every INSERT, to check their types.
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

/// Creates the file under another name, and links it to `path` once it is complete, so that a crash leaves
/// no half-made journal.
fn create(path: &Path) -> Result<(), OpenError> {
    path.file_name().ok_or_else(|| OpenError::Io(io::ErrorKind::InvalidFilename.into()))?;
    let new = beside_for_now(path);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    // A process with the same id may have left it, if it was killed in this function.
    let _ = fs::remove_file(&new);
    // SQLite could create the file too, but its error would not say why it can't.
    let file = File::options().write(true).create_new(true).mode(MODE).open(&new).map_err(OpenError::Io)?;
    let result = file.set_permissions(Permissions::from_mode(MODE)).map_err(OpenError::Io);
    drop(file);
    let result = result.and_then(|()| fill(&new).map_err(OpenError::Sqlite)).and_then(|()| {
        File::open(&new).and_then(|file| file.sync_all()).map_err(OpenError::Io)?;
        match fs::hard_link(&new, path) {
            Ok(()) => {}
            // Another hub was faster. The lock decides which of the two opens the file.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(OpenError::Io(error)),
        }
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(OpenError::Io)
    });
    let _ = fs::remove_file(&new);
    // After a failure SQLite may have left it.
    let _ = fs::remove_file(beside(&new, "-journal"));
    result
}

fn fill(path: &Path) -> rusqlite::Result<()> {
    let db = Connection::open(path)?;
    // Before the first table, or it has no effect.
    db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    db.pragma_update(None, "application_id", APPLICATION_ID)?;
    db.pragma_update(None, "user_version", VERSION)?;
    db.execute_batch(&schema(Epoch::draw()))?;
    db.execute_batch("CREATE UNIQUE INDEX keys ON messages (key) WHERE key IS NOT NULL")?;
    db.close().map_err(|(_, error)| error)
}

/// Checks the file's header. SQLite is not asked, as it may change a file that is not ours: it would replay
/// a rollback journal that lies beside the file.
fn check_header(mut file: &File) -> Result<(), OpenError> {
    const LENGTH: usize = 100;
    let mut header = [0; LENGTH];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(OpenError::NotAJournal),
        Err(error) => return Err(OpenError::Io(error)),
    }
    // SQLite's file format, section 1.3: the magic, the user version at 60, the application id at 68.
    let number = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if !header.starts_with(b"SQLite format 3\0") || number(68) != APPLICATION_ID {
        return Err(OpenError::NotAJournal);
    }
    match number(60) {
        newer if newer > VERSION => Err(OpenError::Newer(newer)),
        VERSION => Ok(()),
        // No older version exists. The migration of the first one belongs here.
        _ => Err(OpenError::NotAJournal),
    }
}

/// What a journal's file says of the journal.
#[derive(Debug)]
struct State {
    epoch: Epoch,
    head: u64,
    earliest: u64,
}

/// Reads the journal's state. If the file is refused, it is as it was, and so is all that lies beside it.
fn check_content(path: &Path) -> Result<State, OpenError> {
    // SQLite's names are those of the file that a link leads to.
    let path = &fs::canonicalize(path).map_err(OpenError::Io)?;
    let rollback = beside(path, "-journal");
    if fs::metadata(&rollback).is_ok_and(|file| file.len() > 0) {
        // Another program has left it: only in WAL mode is the journal written here. Whoever reads the file
        // has to roll it back first, and so changes both.
        let copy = beside_for_now(path);
        let copied = fs::copy(path, &copy).and_then(|_| fs::copy(&rollback, beside(&copy, "-journal")));
        let state = copied.map_err(OpenError::Io).and_then(|_| read_apart(&copy));
        for suffix in ["", "-journal", "-wal"] {
            let _ = fs::remove_file(beside(&copy, suffix));
        }
        return state;
    }
    let wal = beside(path, "-wal");
    let had_wal = wal.exists();
    let state = match read_apart(path) {
        // Another program has the file open, and so has made all that is beside it.
        Err(OpenError::Damaged(error)) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
            return connect_to_check(path).map_err(OpenError::Sqlite).and_then(|db| read_state(&db));
        }
        state => state,
    };
    if state.is_err() && !had_wal {
        // SQLite has made it, and it is empty.
        let _ = fs::remove_file(wal);
    }
    state
}

/// Reads the state of a journal that no other program has open.
fn read_apart(path: &Path) -> Result<State, OpenError> {
    let db = connect_to_check(path).map_err(OpenError::Sqlite)?;
    db.busy_timeout(Duration::ZERO).map_err(OpenError::Sqlite)?;
    // The WAL's index is then in memory, and not beside the file.
    let exclusive = db.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()));
    exclusive.map_err(OpenError::Sqlite)?;
    read_state(&db)
}

/// A connection for reading that does not copy the WAL to the file when it is closed: the file may turn out
/// to be damaged.
fn connect_to_check(path: &Path) -> rusqlite::Result<Connection> {
    let db = connect(path)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(db)
}

/// The journal's state. The epoch is a part of the table's schema.
fn read_state(db: &Connection) -> Result<State, OpenError> {
    let damaged = OpenError::Damaged;
    let sql: Option<String> = db
        .query_row("SELECT sql FROM sqlite_schema WHERE name = 'messages'", [], |row| row.get(0))
        .optional()
        .map_err(damaged)?;
    let sql = sql.ok_or(OpenError::NotAJournal)?;
    let epoch = sql.split_once("('").and_then(|(_, rest)| rest.get(..8)?.parse::<Epoch>().ok());
    let epoch = epoch.filter(|epoch| schema(*epoch) == sql).ok_or(OpenError::NotAJournal)?;
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
    Ok(State { epoch, head, earliest: earliest.unwrap_or(head + 1) })
}
