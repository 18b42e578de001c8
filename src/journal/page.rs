//! A page: the result of one read of the journal, and the channels and limits of a read.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::entry::Entry;
use crate::message::{ChannelName, Pattern};

/// The channels of a request: at least one pattern, none twice. Clones share one allocation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Channels(Arc<[Pattern]>);

impl Channels {
    /// The channels that match these patterns, or the default channel if there are no patterns.
    pub fn new(patterns: impl IntoIterator<Item = Pattern>) -> Self {
        // Sorted, so that equal sets are equal lists.
        let mut channels = BTreeSet::from_iter(patterns);
        if channels.is_empty() {
            channels.insert(ChannelName::default().into());
        }
        Channels(channels.into_iter().collect())
    }

    /// Whether `name` is one of the channels.
    pub fn contains(&self, name: &ChannelName) -> bool {
        self.0.iter().any(|pattern| pattern.matches(name))
    }

    /// Each pattern, once.
    pub fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.0.iter()
    }
}

/// The most that one read returns. A first message is returned whatever its weight.
#[derive(Clone, Copy, Debug)]
pub struct PageLimit {
    /// The most messages.
    pub messages: usize,
    /// The most bytes, as the sum of [`Entry::weight`].
    pub bytes: usize,
}

/// The kept messages after a position, on some channels.
#[derive(Debug)]
pub struct Page {
    /// The messages, newest last. Empty if no message up to `through` is on the channels.
    pub entries: Vec<Arc<Entry>>,
    /// The position up to which the journal was read, and from which the next page follows.
    pub through: u64,
    /// The sequence of the last message appended, 0 if there was none. The last page is the one whose
    /// `through` is `head`.
    pub head: u64,
    /// Every message before this sequence was dropped.
    pub begin: u64,
    /// Before this sequence, messages on the channels were dropped to stay within the limits of the journal.
    /// What a rule keeps may be from before it.
    pub earliest: u64,
}

impl Page {
    /// Whether retention has dropped messages after `position`. A read from there leaves them out.
    /// It also leaves out what a rule has dropped, what has expired and what was erased; that is no gap.
    pub fn has_gap_after(&self, position: u64) -> bool {
        position + 1 < self.earliest
    }
}

/// A page that is built message by message.
#[derive(Debug)]
pub(super) struct PageBuilder {
    limit: PageLimit,
    entries: Vec<Arc<Entry>>,
    bytes: usize,
    through: u64,
}

impl PageBuilder {
    pub(super) fn new(position: u64, limit: PageLimit) -> Self {
        PageBuilder { limit, entries: Vec::new(), bytes: 0, through: position }
    }

    /// Whether the page can take one more message of this weight. The first message is taken whatever its
    /// weight.
    pub(super) fn can_take(&self, weight: usize) -> bool {
        let is_full =
            self.entries.len() == self.limit.messages || self.bytes.saturating_add(weight) > self.limit.bytes;
        !is_full || self.entries.is_empty()
    }

    /// Adds the message at `sequence`, which the page can take.
    pub(super) fn add(&mut self, sequence: u64, entry: Arc<Entry>) {
        self.bytes += entry.weight();
        self.entries.push(entry);
        self.through = sequence;
    }

    /// Whether no message was added yet.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Records that every message on the channels up to `head` was added.
    pub(super) fn reached(&mut self, head: u64) {
        self.through = self.through.max(head);
    }

    pub(super) fn finish(self, head: u64, begin: u64, earliest: u64) -> Page {
        Page { entries: self.entries, through: self.through, head, begin, earliest }
    }
}
