//! The journal's file and what is beside it: how the file is created, locked and connected to.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::fault::Fault;
use super::schema::{Unreadable, VERSION};
use super::wal::BUSY_TIMEOUT;

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
    /// The file has a later version of the tables, which is given.
    #[error("it was made by a newer tabcast (its version is {0}, this one knows {VERSION})")]
    Newer(i32),
    /// The WAL beside the file is another file's.
    #[error("{}-wal does not belong to it: move one of the two away", .0.display())]
    NotItsWal(PathBuf),
    /// The file is a journal, but SQLite can't read it.
    #[error("it is damaged: {0}")]
    Damaged(rusqlite::Error),
    /// The file or its folder can't be read or written.
    #[error("{0}")]
    Io(io::Error),
    /// SQLite can't open the file, as in a folder that is not writable. The reason is given.
    #[error("{0}")]
    Sqlite(String),
    /// The SQLite library in this binary is too old.
    #[error("SQLite {} is too old", rusqlite::version())]
    OldSqlite,
}

impl OpenError {
    /// SQLite can't read the file. That it is in use is left for the caller to see.
    pub(super) fn unreadable(error: rusqlite::Error) -> Self {
        let is_busy = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
        if is_of_system(&error) && !is_busy { error.into() } else { OpenError::Damaged(error) }
    }
}

/// Whether it was not for what the file has that the call failed.
pub(super) fn is_of_system(error: &rusqlite::Error) -> bool {
    use ErrorCode::{CannotOpen, DatabaseBusy, FileLockingProtocolFailed, OutOfMemory, SystemIoFailure};
    let of_system = [CannotOpen, DatabaseBusy, FileLockingProtocolFailed, OutOfMemory, SystemIoFailure];
    error.sqlite_error_code().is_some_and(|code| of_system.contains(&code))
}

impl From<Fault> for OpenError {
    fn from(fault: Fault) -> Self {
        OpenError::Sqlite(fault.to_string())
    }
}

impl From<rusqlite::Error> for OpenError {
    fn from(error: rusqlite::Error) -> Self {
        Fault::from(error).into()
    }
}

impl From<Unreadable> for OpenError {
    fn from(unreadable: Unreadable) -> Self {
        match unreadable {
            Unreadable::NotAJournal => OpenError::NotAJournal,
            Unreadable::Newer(version) => OpenError::Newer(version),
            Unreadable::Damaged(error) => OpenError::unreadable(error),
        }
    }
}

/// Locks the file, so that no other hub opens it.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let lock = File::options().read(true).write(true).open(path).map_err(OpenError::Io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse),
        Err(TryLockError::Error(error)) => Err(OpenError::Io(error)),
    }
}

/// The path of a file that SQLite makes beside `path`, or that is made here.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The path of the WAL of the file at `path`.
pub(super) fn wal(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

/// The path of a file that is made for a moment beside `path`.
pub(super) fn copy_of(path: &Path) -> PathBuf {
    beside(path, ".new")
}

/// Makes an empty file at [`copy_of`]. A hub that was cut off may have left one there which is the journal's
/// file itself, under its first name.
pub(super) fn begin_copy(path: &Path) -> io::Result<File> {
    remove_copy(path);
    File::create_new(copy_of(path))
}

/// Removes the file at [`copy_of`], and what SQLite may have made beside it.
pub(super) fn remove_copy(path: &Path) {
    for suffix in ["", "-journal", "-wal"] {
        let _ = fs::remove_file(beside(&copy_of(path), suffix));
    }
}

/// The bytes of the file at `path`, 0 if there is none.
pub(super) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A connection for reading. [`prepare`] makes it one for writing. Closing it leaves the files as they are:
/// after a failed sync, what they seem to have may not be on the disk.
pub(super) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    // Without URI and CREATE: only an existing file at `path` will do. NO_MUTEX: a connection is used by one
    // thread at a time.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(BUSY_TIMEOUT)?;
    db.pragma_update(None, "mmap_size", 0)?;
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    Ok(db)
}

/// A connection for writing, to a file that was opened before.
pub(super) fn connect_writer(path: &Path) -> rusqlite::Result<Connection> {
    let db = connect(path)?;
    prepare(&db)?;
    Ok(db)
}

/// Prepares a connection for the writer.
fn prepare(db: &Connection) -> rusqlite::Result<()> {
    /// The size to which the WAL's file is cut when the WAL is started over, twice that of normal work.
    /// Higher: a burst takes disk space for good. Lower: normal work would cut the file and grow it again.
    const WAL_BYTES: i64 = 16 << 20;
    let mut select = db.prepare("PRAGMA journal_mode = WAL")?;
    let mut rows = select.query([])?;
    let mode: String = rows.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?.get(0)?;
    // Whether the file is of that mode now comes after the answer.
    rows.next()?;
    if mode != "wal" {
        return Err(rusqlite::Error::InvalidParameterName(format!(
            "journal mode {mode}, where WAL is needed"
        )));
    }
    db.pragma_update_and_check(None, "journal_size_limit", WAL_BYTES, |_| Ok(()))?;
    // NORMAL would lose acknowledged messages on a power cut.
    db.pragma_update(None, "synchronous", "FULL")
}

pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Creates a file that `fill` fills under another name, and links it to `path` once it is complete, so that
/// a crash leaves no half-made journal.
pub(super) fn create(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    path.file_name().ok_or_else(|| OpenError::Io(io::ErrorKind::InvalidFilename.into()))?;
    let new = copy_of(path);
    // SQLite could create the file too, but its error would not say why it can't. A hub that was cut off may
    // have left one.
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false).mode(MODE).open(&new);
    let file = file.map_err(OpenError::Io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(OpenError::InUse),
        Err(TryLockError::Error(error)) => return Err(OpenError::Io(error)),
    }
    let emptied = file.set_len(0).and_then(|()| file.set_permissions(Permissions::from_mode(MODE)));
    let result = emptied.map_err(OpenError::Io).and_then(|()| fill(&new)).and_then(|()| {
        file.sync_all().map_err(OpenError::Io)?;
        match fs::hard_link(&new, path) {
            Ok(()) => {}
            // Another hub was faster. The lock decides which of the two opens the file.
            Err(_) if path.exists() => {}
            Err(error) => return Err(OpenError::Io(error)),
        }
        sync_folder(path).map_err(OpenError::Io)
    });
    remove_copy(path);
    // A process that is being forked keeps the descriptor for a moment.
    let _ = file.unlock();
    result
}

/// A connection to a file that no other program has open: the WAL's index is in memory, not beside the file.
pub(super) fn connect_apart(path: &Path) -> rusqlite::Result<Connection> {
    let db = connect(path)?;
    db.busy_timeout(Duration::ZERO)?;
    db.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    Ok(db)
}
