//! The state that the publishers and subscribers of one hub share.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;

use super::live::Live;
use super::passes::Passes;
use crate::journal::{Channels, Journal, JournalError, Page, PageLimit};
use crate::limits::{Budget, Network, Shares, Turns};
use crate::message::MessageId;

/// A hub's journal, its live feeds and its limits.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) journal: Journal,
    pub(super) live: Live,
    /// Until when the subscribers with tokens may go on.
    pub(super) passes: Passes,
    /// The subscribers there may be.
    pub(super) subscribers: Shares,
    /// The readers of history there may be.
    pub(super) readers: Shares,
    /// The turn of the publisher who waits for space in the inbox.
    pub(super) publishing: Turns,
    /// The memory for what is read and not taken yet.
    pub(super) budget: Budget,
    /// The limit of one read of the journal.
    page: PageLimit,
    /// How many subscribers were admitted so far.
    admitted: AtomicU64,
}

impl Core {
    pub(super) fn new(
        journal: Journal,
        subscribers: Shares,
        readers: Shares,
        budget: Budget,
        page: PageLimit,
    ) -> Self {
        let threads = Handle::current().metrics().num_workers();
        let (live, publishing) = (Live::new(journal.head(), threads), Turns::new(1));
        let (passes, admitted) = (Passes::new(), AtomicU64::new(0));
        Core { journal, live, passes, subscribers, readers, publishing, budget, page, admitted }
    }

    /// The number of a new subscriber in the log. The first is 1.
    pub(super) fn next_number(&self) -> u64 {
        self.admitted.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn page(&self) -> PageLimit {
        self.page
    }

    pub(super) fn id(&self, sequence: u64) -> MessageId {
        self.journal.id(sequence)
    }

    /// The position of a last event ID. `None` if it is no id of this journal.
    pub(super) fn position(&self, asked: &str) -> Option<u64> {
        self.journal.position(asked.parse().ok()?)
    }

    pub(super) async fn read(
        &self,
        position: u64,
        channels: &Channels,
        latest: Option<u64>,
        reader: Option<Network>,
    ) -> Result<Page, JournalError> {
        self.journal.read(position, channels, latest, self.page, reader).await
    }

    /// The same page, if it is in memory.
    pub(super) fn read_held(&self, position: u64, channels: &Channels, latest: Option<u64>) -> Option<Page> {
        self.journal.read_held(position, channels, latest, self.page)
    }
}
