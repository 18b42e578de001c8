//! The state that the writer and the readers share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::watch;

use super::gate::Gate;
use crate::journal::entry::{Failure, JournalError};
use crate::journal::recent::Recent;

/// The newest messages, the earliest kept message, the gate before the file, and the journal's failure.
#[derive(Debug)]
pub(super) struct Shared {
    recent: RwLock<Recent>,
    /// The sequence of the earliest kept message, `head + 1` if none is kept. The writer raises it before it
    /// deletes rows: a query that loads `earliest` after its rows knows whether it may lack some.
    earliest: AtomicU64,
    gate: Gate,
    failure: watch::Sender<Option<Failure>>,
}

impl Shared {
    pub(super) fn new(recent: Recent, earliest: u64) -> Self {
        let (earliest, failure) = (AtomicU64::new(earliest), watch::Sender::new(None));
        Shared { recent: RwLock::new(recent), earliest, gate: Gate::default(), failure }
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

    /// Drops the messages before `earliest`. Their rows are deleted later.
    pub(super) fn drop_before(&self, earliest: u64) {
        self.earliest.store(earliest, Ordering::Release);
        self.recent_mut().drop_before(earliest);
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
