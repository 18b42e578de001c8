//! How a journal's file is opened: created if it is missing, checked, made one of the present version, and on
//! the disk before anyone learns what is in it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::check;
use super::fault::Fault;
use super::file::{self, OpenError};
use super::place::Place;
use super::schema::{self, State, VERSION};
use super::wal::Wal;

/// SQLite 3.51.3. Earlier versions could corrupt a file when the WAL was reset.
const MIN_SQLITE: i32 = 3_051_003;

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
        if file::length(&file::wal(path)) > 0 {
            return Err(OpenError::NotItsWal(path.to_owned()));
        }
        file::create(path, |new| {
            let _ = fs::remove_file(file::beside(new, "-journal"));
            let db = Connection::open(new)?;
            schema::create(&db)?;
            db.close().map_err(|(_, error)| error.into())
        })?;
    }
    let lock = file::lock(path)?;
    // SQLite's names are those of the file that a link leads to.
    let resolved = fs::canonicalize(path).map_err(OpenError::Io)?;
    let found = check::check(&lock, &resolved)?;
    // What a hub that was cut off has left. No other makes it, now that there is a file.
    file::remove_copy(&resolved);
    let mut db = file::connect_writer(&resolved)?;
    if found.version < VERSION {
        schema::migrate(&mut db, found.epochs[0].epoch)?;
    } else if !found.is_complete {
        schema::complete(&mut db)?;
    }
    settle(&db, &resolved)?;
    let state = schema::read(&db)?;
    let place = Place::of([path.to_owned(), file::wal(&resolved)]).map_err(OpenError::Io)?;
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
        let lock = match file::lock(path) {
            Ok(lock) => lock,
            Err(OpenError::InUse) => {
                let db = file::connect(&resolved)?;
                let state = schema::read(&db)?;
                return Ok(Reading { db, state, made: None, _lock: None });
            }
            Err(error) => return Err(error),
        };
        let wal = file::wal(&resolved);
        let made = (!wal.exists()).then_some(wal);
        let state = check::check(&lock, &resolved)?;
        let db = file::connect_apart(&resolved)?;
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

/// Makes what was found last, before anyone learns of it: a hub that was killed may have left what is not on
/// the disk yet, and what is written from now on must not follow a hole.
fn settle(db: &Connection, path: &Path) -> Result<(), OpenError> {
    let wal = file::wal(path);
    if file::length(&wal) > 0 {
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
    file::sync_folder(path).map_err(OpenError::Io)
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
