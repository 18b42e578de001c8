//! A journal's newest messages, held in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::index::Index;
use super::page::{Channels, Page, PageBuilder, PageLimit};
use crate::message::Time;

/// The limits of the messages a journal keeps. The oldest are dropped to stay within each limit.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// The most messages.
    pub messages: usize,
    /// The most bytes: in memory, the sum of [`Entry::weight`]; in a file, the pages in use.
    pub bytes: usize,
    /// The longest time since a message was stored. A journal in memory ignores it.
    pub age: Duration,
}

/// The newest messages of a journal, without a hole.
#[derive(Debug)]
pub(super) struct Recent {
    limit: RecentLimit,
    /// Newest last. Their sequences are consecutive, and the last one is `head`.
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    head: u64,
    index: Index,
    /// Whether messages are kept elsewhere once they are no longer held, and so stay in the index.
    are_kept: bool,
}

/// The limits of [`Recent`].
#[derive(Clone, Copy, Debug)]
pub(super) struct RecentLimit {
    /// The most messages.
    pub(super) messages: usize,
    /// The most bytes, as the sum of [`Entry::weight`].
    pub(super) bytes: usize,
}

impl Recent {
    /// No messages yet. The first one pushed must have the sequence `head + 1`. `are_kept`: messages that are
    /// no longer held are kept elsewhere, and stay in the index.
    pub(super) fn new(limit: RecentLimit, head: u64, are_kept: bool) -> Self {
        Recent { limit, entries: VecDeque::new(), bytes: 0, head, index: Index::new(head + 1), are_kept }
    }

    /// The sequence of the last message pushed, or the `head` given to `new`.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// The time of the last message held.
    pub(super) fn newest_time(&self) -> Option<Time> {
        self.entries.back().map(|entry| entry.message.time)
    }

    /// The sequence of the earliest message held, `head + 1` if none is held.
    pub(super) fn earliest(&self) -> u64 {
        self.head + 1 - self.entries.len() as u64
    }

    /// Adds the message after `head`, and drops the oldest messages until all are within the limits.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        debug_assert_eq!(entry.message.id.sequence, self.head + 1, "a hole");
        self.head += 1;
        self.bytes += entry.weight();
        self.index.push(&entry.message.channel, self.head);
        self.entries.push_back(entry);
        // The newest message stays whatever its weight: it was accepted, and subscribers have yet to read it.
        while self.entries.len() > 1
            && (self.entries.len() > self.limit.messages || self.bytes > self.limit.bytes)
        {
            self.pop();
        }
    }

    /// Drops the messages with a sequence below `earliest`.
    pub(super) fn drop_before(&mut self, earliest: u64) {
        while self.earliest() < earliest && !self.entries.is_empty() {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.weight();
            if !self.are_kept {
                self.index.remove(&entry.message.channel, entry.message.id.sequence);
            }
        }
    }

    /// The messages held after `position` on `channels`. The page lacks messages if `position + 1 < earliest`
    /// and earlier messages are kept elsewhere.
    pub(super) fn read(&self, position: u64, channels: &Channels, limit: PageLimit) -> Page {
        let (head, earliest) = (self.head, self.earliest());
        let start = position.max(earliest - 1);
        let mut page = PageBuilder::new(start, limit);
        for sequence in self.index.after(start, channels) {
            let place = usize::try_from(sequence - earliest).unwrap_or(usize::MAX);
            let Some(entry) = self.entries.get(place) else { break };
            if !page.can_take(entry.weight()) {
                return page.finish(head, earliest);
            }
            page.add(sequence, Arc::clone(entry));
        }
        page.reached(head);
        page.finish(head, earliest)
    }

    /// Which messages are on which channel, of those held and maybe of earlier ones.
    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// The same, for a journal that keeps messages which are no longer held.
    pub(super) fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }
}
