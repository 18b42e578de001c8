//! A journal's newest messages, held in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::page::{Channels, Page, PageBuilder, PageLimit};

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
    /// No messages yet. The first one pushed must have the sequence `head + 1`.
    pub(super) fn new(limit: RecentLimit, head: u64) -> Self {
        Recent { limit, entries: VecDeque::new(), bytes: 0, head }
    }

    /// The sequence of the last message pushed, or the `head` given to `new`.
    pub(super) fn head(&self) -> u64 {
        self.head
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
        }
    }

    /// The messages held after `position` on `channels`. The page lacks messages if `position + 1 < earliest`
    /// and earlier messages are kept elsewhere.
    pub(super) fn read(&self, position: u64, channels: &Channels, limit: PageLimit) -> Page {
        let (head, earliest) = (self.head, self.earliest());
        let start = position.max(earliest - 1);
        let mut page = PageBuilder::new(start, limit);
        let read = usize::try_from(start + 1 - earliest).unwrap_or(usize::MAX).min(self.entries.len());
        for entry in self.entries.range(read..) {
            let wanted = channels.contains(&entry.message.channel);
            if !page.take(entry.message.id.sequence, wanted.then(|| Arc::clone(entry))) {
                break;
            }
        }
        page.finish(head, earliest)
    }

    /// The position before the newest `count` messages on `channels`, and how many such messages are held.
    pub(super) fn position_before_newest(&self, count: usize, channels: &Channels) -> (u64, usize) {
        let newest = self.entries.iter().rev().filter(|entry| channels.contains(&entry.message.channel));
        let (mut position, mut found) = (self.head, 0);
        for entry in newest.take(count) {
            (position, found) = (entry.message.id.sequence - 1, found + 1);
        }
        (position, found)
    }
}
