//! The state that the writer and the readers share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::watch;

use super::gate::Gate;
use crate::journal::entry::{Failure, JournalError};
use crate::journal::recent::Recent;

/// The newest messages, which messages are kept, the gate before the file, and the journal's failure.
#[derive(Debug)]
pub(super) struct Shared {
    recent: RwLock<Recent>,
    /// Whether rows were deleted that were not the oldest. The writer sets it before it deletes the first of
    /// them: a query that loads it after its rows knows whether it may lack some.
    has_holes: AtomicBool,
    gate: Gate,
    failure: watch::Sender<Option<Failure>>,
}

impl Shared {
    pub(super) fn new(recent: Recent, has_holes: bool) -> Self {
        let (has_holes, failure) = (AtomicBool::new(has_holes), watch::Sender::new(None));
        Shared { recent: RwLock::new(recent), has_holes, gate: Gate::default(), failure }
    }

    pub(super) fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.recent.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn recent_mut(&self) -> RwLockWriteGuard<'_, Recent> {
        self.recent.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same without what has expired by now.
    pub(super) fn unexpired(&self) -> RwLockReadGuard<'_, Recent> {
        if self.recent().has_expired() {
            self.recent_mut().expire();
        }
        self.recent()
    }

    pub(super) fn has_holes(&self) -> bool {
        self.has_holes.load(Ordering::Acquire)
    }

    pub(super) fn set_holes(&self) {
        self.has_holes.store(true, Ordering::Release);
    }

    /// What each query of the file passes.
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(super) fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.failure.subscribe()
    }

    /// Records the journal's failure, unless there is one already, and returns the error for a caller.
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

/// The error of a call that another program's lock prevented, although [`BUSY_TIMEOUT`] was waited for. An
/// earlier retry would most likely meet the same lock.
///
/// [`BUSY_TIMEOUT`]: super::wal::BUSY_TIMEOUT
pub(super) const UNAVAILABLE: JournalError =
    JournalError::Unavailable { retry_after: Duration::from_secs(5) };
