//! What the writer's thread and the readers share: the recent messages, what is kept, and failure.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use rusqlite::ErrorCode;
use tokio::sync::watch;

use crate::journal::entry::{Failure, JournalError};
use crate::journal::recent::Recent;

/// See the module.
#[derive(Debug)]
pub(super) struct Shared {
    recent: RwLock<Recent>,
    /// The sequence of the earliest message that is kept; `head + 1` if none is. Goes up before
    /// anything is deleted: a query that reads `earliest` after its rows knows whether it may lack some.
    earliest: AtomicU64,
    failure: watch::Sender<Option<Failure>>,
}

impl Shared {
    pub(super) fn new(recent: Recent, earliest: u64) -> Self {
        let (earliest, failure) = (AtomicU64::new(earliest), watch::Sender::new(None));
        Shared { recent: RwLock::new(recent), earliest, failure }
    }

    pub(super) fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.recent.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn recent_mut(&self) -> RwLockWriteGuard<'_, Recent> {
        self.recent.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn earliest(&self) -> u64 {
        self.earliest.load(Ordering::Acquire)
    }

    /// Nothing before `earliest` is kept from now on.
    pub(super) fn drop_before(&self, earliest: u64) {
        self.earliest.store(earliest, Ordering::Release);
        self.recent_mut().drop_before(earliest);
    }

    pub(super) fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.failure.subscribe()
    }

    /// Records that the journal is of no more use. Only the first failure is kept.
    pub(super) fn fail(&self, what: String) -> JournalError {
        self.failure.send_if_modified(|failure| {
            let is_first = failure.is_none();
            if is_first {
                *failure = Some(Failure(what));
            }
            is_first
        });
        JournalError::Failed
    }
}

/// For a call that another program stood in the way of.
pub(super) const UNAVAILABLE: JournalError =
    JournalError::Unavailable { retry_after: Duration::from_secs(5) };

/// No space: SQLite has undone the transaction, and it is certain that nothing of it is kept.
pub(super) fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// Another program has the lock: the transaction, or the query, was not begun.
pub(super) fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}
