//! The journal's file: created whole or not at all, checked before it is written to, and locked.

use std::fs::{self, File, Permissions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::fault::Fault;
use super::link::Alone;
use super::place::Place;
use super::schema::{self, APPLICATION_ID, State, Unreadable, VERSION};
use super::wal::{BUSY_TIMEOUT, Wal};

/// SQLite 3.51.3. Earlier versions could corrupt a file when the WAL was reset.
const MIN_SQLITE: i32 = 3_051_003;

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
    fn unreadable(error: rusqlite::Error) -> Self {
        let is_busy = error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy);
        if is_of_system(&error) && !is_busy { error.into() } else { OpenError::Damaged(error) }
    }
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

/// A journal's file, ready to be written.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) db: Connection,
    /// The file's path, without links.
    pub(super) path: PathBuf,
    pub(super) state: State,
    /// Where the file and its WAL are.
    pub(super) place: Place,
}

/// Opens the journal, or creates it. The returned [`File`] is the lock: until it is dropped, no other
/// process can open the journal.
pub(super) fn open(path: &Path) -> Result<(Opened, File), OpenError> {
    if rusqlite::version_number() < MIN_SQLITE {
        return Err(OpenError::OldSqlite);
    }
    if !path.try_exists().map_err(OpenError::Io)? {
        if length(&wal(path)) > 0 {
            return Err(OpenError::NotItsWal(path.to_owned()));
        }
        create(path, |new| {
            let _ = fs::remove_file(beside(new, "-journal"));
            let db = Connection::open(new)?;
            schema::create(&db)?;
            db.close().map_err(|(_, error)| error.into())
        })?;
    }
    let lock = lock(path)?;
    // SQLite's names are those of the file that a link leads to.
    let resolved = fs::canonicalize(path).map_err(OpenError::Io)?;
    check_header(&lock, &resolved)?;
    let mut state = check_content(&resolved)?;
    // What a hub that was cut off has left. No other makes it, now that there is a file.
    remove_copy(&resolved);
    let mut db = connect_writer(&resolved)?;
    if state.version < VERSION {
        schema::migrate(&mut db, state.epochs[0].epoch)?;
        state = schema::read(&db)?;
    }
    settle(&db, &resolved)?;
    let place = Place::of([path.to_owned(), wal(&resolved)]).map_err(OpenError::Io)?;
    Ok((Opened { db, path: resolved, state, place }, lock))
}

/// A journal that is read and not written, whether a hub has it or not.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) db: Connection,
    pub(super) state: State,
    /// The WAL, if SQLite has made it only now, and nobody else uses it.
    made: Option<PathBuf>,
    /// The lock, unless a hub has it. Dropped after the connection, as in `Readers`.
    _lock: Option<File>,
}

impl Reading {
    /// Opens the journal. The file stays as it is, and so does what is beside it.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let resolved = fs::canonicalize(path).map_err(OpenError::Io)?;
        let lock = match lock(path) {
            Ok(lock) => lock,
            Err(OpenError::InUse) => {
                let db = connect(&resolved)?;
                let state = schema::read(&db)?;
                return Ok(Reading { db, state, made: None, _lock: None });
            }
            Err(error) => return Err(error),
        };
        check_header(&lock, &resolved)?;
        let wal = wal(&resolved);
        let made = (!wal.exists()).then_some(wal);
        let state = check_content(&resolved)?;
        let db = connect_apart(&resolved)?;
        Ok(Reading { db, state, made, _lock: Some(lock) })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(wal) = &self.made {
            let _ = fs::remove_file(wal);
        }
    }
}

/// Locks the file, so that no other hub opens it.
fn lock(path: &Path) -> Result<File, OpenError> {
    let lock = File::options().read(true).write(true).open(path).map_err(OpenError::Io)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse),
        Err(TryLockError::Error(error)) => Err(OpenError::Io(error)),
    }
}

/// The path of a file that SQLite makes beside `path`, or that is made here.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The path of the WAL of the file at `path`.
pub(super) fn wal(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

/// The path of a file that is made for a moment beside `path`.
fn copy_of(path: &Path) -> PathBuf {
    beside(path, ".new")
}

/// Makes an empty file at [`copy_of`]. A hub that was cut off may have left one there which is the journal's
/// file itself, under its first name.
fn begin_copy(path: &Path) -> io::Result<File> {
    remove_copy(path);
    File::create_new(copy_of(path))
}

/// Removes the file at [`copy_of`], and what SQLite may have made beside it.
fn remove_copy(path: &Path) {
    for suffix in ["", "-journal", "-wal"] {
        let _ = fs::remove_file(beside(&copy_of(path), suffix));
    }
}

/// The bytes of the file at `path`, 0 if there is none.
fn length(path: &Path) -> u64 {
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

/// Makes what was found last, before anyone learns of it: a hub that was killed may have left what is not on
/// the disk yet, and what is written from now on must not follow a hole.
fn settle(db: &Connection, path: &Path) -> Result<(), OpenError> {
    let wal = wal(path);
    if length(&wal) > 0 {
        // No other program writes meanwhile.
        db.execute_batch("BEGIN IMMEDIATE")?;
        let written = write_again(&wal).map_err(OpenError::Io);
        db.execute_batch("ROLLBACK")?;
        written?;
    }
    // Makes a WAL where there is none. If another program reads, or there is no space, the WAL goes on as it
    // is.
    match Wal::remove(db).map_err(Fault::from) {
        Err(fault) if !fault.is_full() => return Err(fault.into()),
        _ => {}
    }
    // SQLite does this too, and passes over a failure.
    sync_folder(path).map_err(OpenError::Io)
}

/// Writes the same bytes to the file once more, and has them on the disk. After a sync that failed, another
/// one would succeed, and put nothing there that was not written since.
fn write_again(path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let (mut piece, mut at) = (vec![0; 1 << 20], 0);
    loop {
        let count = match file.read_at(&mut piece, at) {
            Ok(0) => return file.sync_all(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        file.write_all_at(&piece[..count], at)?;
        at += count as u64;
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
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

/// Checks the file's header. SQLite is not asked, as it may change a file that is not ours: it would replay
/// a rollback journal that lies beside the file.
fn check_header(mut file: &File, path: &Path) -> Result<(), OpenError> {
    const LENGTH: usize = 100;
    let mut header = [0; LENGTH];
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(OpenError::NotAJournal),
        Err(error) => return Err(OpenError::Io(error)),
    }
    // SQLite's file format, section 1.3: the magic, the user version at 60, the application id at 68.
    let number = |at: usize| i32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    match number(60) {
        _ if !header.starts_with(b"SQLite format 3\0") || number(68) != APPLICATION_ID => {
            // A cut may have torn the page that a copy of the WAL was writing; the WAL has it whole.
            if wal_is_a_journals(path) { Ok(()) } else { Err(OpenError::NotAJournal) }
        }
        newer if newer > VERSION => Err(OpenError::Newer(newer)),
        _ => Ok(()),
    }
}

/// Whether the WAL beside `path` has the first page of a journal. A copy of it is looked at.
fn wal_is_a_journals(path: &Path) -> bool {
    /// SQLite passes over the WAL of an empty file. The largest page there is.
    const PAGE: u64 = 65_536;
    let (wal, copy) = (self::wal(path), copy_of(path));
    if length(&wal) == 0 {
        return false;
    }
    let copied =
        begin_copy(path).and_then(|file| file.set_len(PAGE)).and_then(|()| fs::copy(wal, self::wal(&copy)));
    let found = copied.is_ok()
        && connect_apart(&copy).is_ok_and(|db| {
            let application = db.pragma_query_value(None, "application_id", |row| row.get(0));
            application.is_ok_and(|id: i32| id == APPLICATION_ID)
        });
    remove_copy(path);
    found
}

/// Reads the journal's state. If the file is refused, it is as it was, and so is all that lies beside it.
pub(super) fn check_content(path: &Path) -> Result<State, OpenError> {
    let rollback = beside(path, "-journal");
    if length(&rollback) > 0 {
        // Another program has left it: only in WAL mode is the journal written here. Whoever reads the file
        // has to roll it back first, and so changes both.
        let copy = copy_of(path);
        let copied = begin_copy(path)
            .and_then(|_| fs::copy(path, &copy))
            .and_then(|_| fs::copy(&rollback, beside(&copy, "-journal")));
        let state = copied.map_err(OpenError::Io).and_then(|_| Ok(schema::read(&connect_apart(&copy)?)?));
        remove_copy(path);
        return state;
    }
    let wal = self::wal(path);
    let had_wal = wal.exists();
    let alone = if length(&wal) > 0 { Alone::read(path) } else { None };
    let state = match read_apart(path, alone.as_ref()) {
        // Another program has the file open, and so has made all that is beside it.
        Err(OpenError::Damaged(error)) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
            return Ok(schema::read(&connect(path)?)?);
        }
        state => state,
    };
    if state.is_err() && !had_wal {
        // SQLite has made it, and it is empty.
        let _ = fs::remove_file(wal);
    }
    state
}

/// Reads the state of a journal that no other program has open, and checks that its WAL is its own. `alone`
/// is what the file says without it.
fn read_apart(path: &Path, alone: Option<&Alone>) -> Result<State, OpenError> {
    let belongs = |db: &Connection| alone.map_or(Ok(true), |alone| alone.belongs_to(db));
    let db = match connect_apart(path).and_then(|db| Ok((belongs(&db)?, db))) {
        Ok((true, db)) => db,
        Ok((false, _)) => return Err(OpenError::NotItsWal(path.to_owned())),
        // Each is sound, and the two together are not.
        Err(error) if alone.is_some() && !is_of_system(&error) => {
            return Err(OpenError::NotItsWal(path.to_owned()));
        }
        Err(error) => return Err(OpenError::unreadable(error)),
    };
    Ok(schema::read(&db)?)
}

/// Whether it was not for what the file has that the call failed.
fn is_of_system(error: &rusqlite::Error) -> bool {
    use ErrorCode::{CannotOpen, DatabaseBusy, FileLockingProtocolFailed, OutOfMemory, SystemIoFailure};
    let of_system = [CannotOpen, DatabaseBusy, FileLockingProtocolFailed, OutOfMemory, SystemIoFailure];
    error.sqlite_error_code().is_some_and(|code| of_system.contains(&code))
}

/// A connection to a file that no other program has open: the WAL's index is in memory, not beside the file.
fn connect_apart(path: &Path) -> rusqlite::Result<Connection> {
    let db = connect(path)?;
    db.busy_timeout(Duration::ZERO)?;
    db.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
    Ok(db)
}
