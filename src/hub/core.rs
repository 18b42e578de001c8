//! The state that the publishers and subscribers of one hub share.

use std::sync::atomic::{AtomicU64, Ordering};

use super::limits::Limits;
use super::live::Live;
use crate::journal::{Channels, Journal, JournalError, Page, PageLimit};
use crate::message::MessageId;

/// A hub's journal, its live feeds and its limits.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) journal: Journal,
    pub(super) live: Live,
    pub(super) limits: Limits,
    /// The limit of one read of the journal.
    page: PageLimit,
    /// How many subscribers were admitted so far.
    subscribers: AtomicU64,
}

impl Core {
    pub(super) fn new(journal: Journal, limits: Limits, page: PageLimit) -> Self {
        let live = Live::new(journal.head());
        Core { journal, live, limits, page, subscribers: AtomicU64::new(0) }
    }

    /// The number of a new subscriber in the log. The first is 1.
    pub(super) fn next_number(&self) -> u64 {
        self.subscribers.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn page(&self) -> PageLimit {
        self.page
    }

    pub(super) fn id(&self, sequence: u64) -> MessageId {
        MessageId { epoch: self.journal.epoch(), sequence }
    }

    pub(super) async fn read(&self, position: u64, channels: &Channels) -> Result<Page, JournalError> {
        self.journal.read(position, channels, self.page).await
    }
}
