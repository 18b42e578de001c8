//! The check of a file before anything is written to it: whether it is a journal, of a version that is known,
//! readable, and beside its own WAL.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use rusqlite::{Connection, ErrorCode};

use super::file::{self, OpenError};
use super::link::Alone;
use super::schema::{self, APPLICATION_ID, State, VERSION};

/// Checks a file that is locked, and reads the journal's state. If the file is refused, it is as it was, and
/// so is all that lies beside it.
pub(super) fn check(file: &File, path: &Path) -> Result<State, OpenError> {
    check_header(file, path)?;
    check_content(path)
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
    let is_a_journals = header.starts_with(b"SQLite format 3\0") && number(68) == APPLICATION_ID;
    if is_a_journals && number(60) > VERSION {
        return Err(OpenError::Newer(number(60)));
    }
    // A cut may have torn the page that a copy of the WAL was writing; the WAL has it whole.
    if is_a_journals || wal_is_a_journals(path) { Ok(()) } else { Err(OpenError::NotAJournal) }
}

/// Whether the WAL beside `path` has the first page of a journal. A copy of it is looked at.
fn wal_is_a_journals(path: &Path) -> bool {
    /// SQLite passes over the WAL of an empty file. The largest page there is.
    const PAGE: u64 = 65_536;
    let (wal, copy) = (file::wal(path), file::copy_of(path));
    if file::length(&wal) == 0 {
        return false;
    }
    let copied = file::begin_copy(path)
        .and_then(|file| file.set_len(PAGE))
        .and_then(|()| fs::copy(wal, file::wal(&copy)));
    let found = copied.is_ok()
        && file::connect_apart(&copy).is_ok_and(|db| {
            let application = db.pragma_query_value(None, "application_id", |row| row.get(0));
            application.is_ok_and(|id: i32| id == APPLICATION_ID)
        });
    file::remove_copy(path);
    found
}

/// Reads the journal's state, and checks that the WAL is the file's own.
fn check_content(path: &Path) -> Result<State, OpenError> {
    let rollback = file::beside(path, "-journal");
    if file::length(&rollback) > 0 {
        // Another program has left it: only in WAL mode is the journal written here. Whoever reads the file
        // has to roll it back first, and so changes both.
        let copy = file::copy_of(path);
        let copied = file::begin_copy(path)
            .and_then(|_| fs::copy(path, &copy))
            .and_then(|_| fs::copy(&rollback, file::beside(&copy, "-journal")));
        let state =
            copied.map_err(OpenError::Io).and_then(|_| Ok(schema::read(&file::connect_apart(&copy)?)?));
        file::remove_copy(path);
        return state;
    }
    let wal = file::wal(path);
    let had_wal = wal.exists();
    let alone = if file::length(&wal) > 0 { Alone::read(path) } else { None };
    let state = match read_apart(path, alone.as_ref()) {
        // Another program has the file open, and so has made all that is beside it.
        Err(OpenError::Damaged(error)) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
            return Ok(schema::read(&file::connect(path)?)?);
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
    let db = match file::connect_apart(path).and_then(|db| Ok((belongs(&db)?, db))) {
        Ok((true, db)) => db,
        Ok((false, _)) => return Err(OpenError::NotItsWal(path.to_owned())),
        // Each is sound, and the two together are not.
        Err(error) if alone.is_some() && !file::is_of_system(&error) => {
            return Err(OpenError::NotItsWal(path.to_owned()));
        }
        Err(error) => return Err(OpenError::unreadable(error)),
    };
    Ok(schema::read(&db)?)
}
