//! A copy of a journal in a new file: for `tabcast backup` and `tabcast restore`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::file::{self, OpenError};
use super::link;
use super::open::Reading;
use super::schema::VERSION;
use super::verify::{Report, verify};

/// Why a journal was not copied. Nothing is at the copy's path.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The journal can't be opened.
    #[error("can't open the journal {}: {error}", .path.display())]
    Open {
        /// The journal's path.
        path: PathBuf,
        /// Why it can't be opened.
        error: OpenError,
    },
    /// The journal is damaged, as the report says.
    #[error("it is damaged, and not copied:\n{0}")]
    Damaged(Box<Report>),
    /// There is a file where the copy, or its write-ahead log, would be.
    #[error("{} is there already: move it away first", .0.display())]
    Exists(PathBuf),
    /// The copy can't be written.
    #[error("can't write {}: {error}", .path.display())]
    Write {
        /// The copy's path.
        path: PathBuf,
        /// Why it can't be written.
        error: OpenError,
    },
}

/// Copies the journal at `from`, also one that a hub of another process has, with what is in its write-ahead
/// log, to a new file at `to`. Returns what the copy is, which is sound, and on the disk. Not for a file that
/// this process has open, as of [`verify`].
///
/// # Errors
/// [`CopyError`]; there is no file at `to` then that was not there before.
pub fn copy(from: &Path, to: &Path) -> Result<Report, CopyError> {
    for path in [to.to_owned(), file::wal(to)] {
        if path.exists() {
            return Err(CopyError::Exists(path));
        }
    }
    let open = |error| CopyError::Open { path: from.to_owned(), error };
    let report = verify(from).map_err(open)?;
    if !report.is_sound() {
        return Err(CopyError::Damaged(Box::new(report)));
    }
    let reading = Reading::open(from).map_err(open)?;
    let Reading { db, state, .. } = &reading;
    file::create(to, |new| {
        // SQLite takes an empty file for none, and so the copy has the mode of a new journal.
        let path = new.to_str().ok_or_else(|| OpenError::Io(io::ErrorKind::InvalidFilename.into()))?;
        db.execute("VACUUM INTO ?1", [path])?;
        let copy = Connection::open(new)?;
        if state.version == VERSION {
            // The write-ahead log of the original is none of the copy's.
            link::renew(&copy, state.head)?;
            link::renew(&copy, state.head)?;
        }
        copy.close().map_err(|(_, error)| error.into())
    })
    .map_err(|error| CopyError::Write { path: to.to_owned(), error })?;
    let copied = verify(to).map_err(|error| CopyError::Write { path: to.to_owned(), error })?;
    if copied.is_sound() {
        return Ok(copied);
    }
    let _ = fs::remove_file(to);
    Err(CopyError::Damaged(Box::new(copied)))
}
