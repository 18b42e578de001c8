//! A page: what one read of the journal asks for, and what it gives.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::entry::Entry;
use crate::message::ChannelName;

/// The channels somebody asked for: at least one, none twice. Clones share them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Channels(Arc<[ChannelName]>);

impl Channels {
    /// These channels, or the default one if there are none.
    pub fn new(names: impl IntoIterator<Item = ChannelName>) -> Self {
        // In one order, so that equal sets are equal lists.
        let mut channels = BTreeSet::from_iter(names);
        if channels.is_empty() {
            channels.insert(ChannelName::default());
        }
        Channels(channels.into_iter().collect())
    }

    /// Whether `name` is one of them.
    pub fn contains(&self, name: &ChannelName) -> bool {
        self.0.contains(name)
    }

    /// Each of them, once.
    pub fn iter(&self) -> impl Iterator<Item = &ChannelName> {
        self.0.iter()
    }
}

/// How much one read returns at most. At least one message, if there is any.
#[derive(Clone, Copy, Debug)]
pub struct PageLimit {
    /// Messages.
    pub messages: usize,
    /// The sum of their [`Entry::weight`], in bytes.
    pub bytes: usize,
}

/// The kept messages after some position, on some channels.
#[derive(Debug)]
pub struct Page {
    /// The messages, newest last; none if none of the channels has any up to `through`.
    pub entries: Vec<Arc<Entry>>,
    /// The position up to which the journal has been read: read on from here.
    pub through: u64,
    /// The sequence of the last message appended; 0 if there was none. The read is complete when
    /// `through` has reached it.
    pub head: u64,
    /// The sequence of the earliest message kept; `head + 1` if none is.
    pub earliest: u64,
}

impl Page {
    /// Whether messages after `position` have been dropped: reading on from there would leave them out
    /// in silence.
    pub fn has_gap_after(&self, position: u64) -> bool {
        position + 1 < self.earliest
    }
}

/// A page while it is read, message by message.
#[derive(Debug)]
pub(super) struct PageBuilder {
    limit: PageLimit,
    entries: Vec<Arc<Entry>>,
    bytes: usize,
    seen: usize,
    through: u64,
}

impl PageBuilder {
    /// Messages looked at for one page: a quiet channel must not hold a lock, or a thread, while a
    /// whole journal of others is skipped.
    const SCAN: usize = 4096;

    pub(super) fn new(position: u64, limit: PageLimit) -> Self {
        PageBuilder { limit, entries: Vec::new(), bytes: 0, seen: 0, through: position }
    }

    /// Takes the message at `sequence`, `None` if it is of another channel. False if the page was
    /// full before it.
    pub(super) fn take(&mut self, sequence: u64, entry: Option<Arc<Entry>>) -> bool {
        if self.seen == Self::SCAN {
            return false;
        }
        if let Some(entry) = entry {
            let bytes = self.bytes + entry.weight();
            let full = self.entries.len() == self.limit.messages || bytes > self.limit.bytes;
            if full && !self.entries.is_empty() {
                return false;
            }
            self.bytes = bytes;
            self.entries.push(entry);
        }
        self.seen += 1;
        self.through = sequence;
        true
    }

    /// Nothing is left up to `head`.
    pub(super) fn reached(&mut self, head: u64) {
        self.through = self.through.max(head);
    }

    pub(super) fn finish(self, head: u64, earliest: u64) -> Page {
        Page { entries: self.entries, through: self.through, head, earliest }
    }
}
