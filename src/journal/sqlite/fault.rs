//! A call of SQLite's that failed, and what it means for the journal.

use std::fmt;
use std::io;

use rusqlite::{ErrorCode, ffi};

/// A call that failed. To be made as soon as it has.
#[derive(Debug)]
pub(super) struct Fault {
    error: rusqlite::Error,
    /// Why the operating system refused what SQLite asked for. SQLite tells most of its reasons as one.
    reason: Option<io::Error>,
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        // SQLite's own way to tell the reason: the last call that failed in this thread. Those with which it
        // undid the transaction have succeeded.
        let reason = io::Error::last_os_error();
        let is_of_system = matches!(
            error.sqlite_error_code(),
            Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::ReadOnly)
        );
        Fault { error, reason: is_of_system.then_some(reason) }
    }
}

impl Fault {
    /// Whether there was no space, or no more of it for this user. SQLite has then undone the transaction.
    pub(super) fn is_full(&self) -> bool {
        let is_write = !matches!(
            self.error.sqlite_error().map(|error| error.extended_code),
            // After a failed sync, what was written before may be lost.
            Some(ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC)
        );
        let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        self.error.sqlite_error_code() == Some(ErrorCode::DiskFull)
            || is_write && self.reason.as_ref().is_some_and(|reason| kinds.contains(&reason.kind()))
    }

    /// Whether there was no space for the WAL's index. SQLite may have written all of the transaction.
    pub(super) fn is_of_index(&self) -> bool {
        const OF_INDEX: [i32; 3] =
            [ffi::SQLITE_IOERR_SHMOPEN, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_SHMMAP];
        self.error.sqlite_error().is_some_and(|error| OF_INDEX.contains(&error.extended_code))
    }

    /// Whether another program has the lock. The transaction or query was then not begun.
    pub(super) fn is_busy(&self) -> bool {
        // The second is SQLite's answer where the locks of readers were taken for some ten seconds.
        matches!(
            self.error.sqlite_error_code(),
            Some(ErrorCode::DatabaseBusy | ErrorCode::FileLockingProtocolFailed)
        )
    }

    /// Whether there was no memory. The same call may succeed later.
    pub(super) fn is_out_of_memory(&self) -> bool {
        self.error.sqlite_error_code() == Some(ErrorCode::OutOfMemory)
    }

    /// Whether the same call may succeed later, and nothing is damaged.
    pub(super) fn is_passing(&self) -> bool {
        self.is_full() || self.is_busy() || self.is_out_of_memory()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            rusqlite::Error::FromSqlConversionFailure(_, _, what) => write!(out, "it is damaged: {what}")?,
            error => error.fmt(out)?,
        }
        match &self.reason {
            Some(reason) => write!(out, ": {reason}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Fault {}
