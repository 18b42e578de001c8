//! A journal's newest messages, held in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::page::{Channels, Page, PageBuilder, PageLimit, SCAN};
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
}

/// The limits of [`Recent`].
#[derive(Clone, Copy, Debug)]
pub(super) struct RecentLimit {
    /// The most messages.
    pub(super) messages: usize,
    /// The most bytes, as the sum of [`Entry::weight`].
    pub(super) bytes: usize,
}

/// A search for the newest messages on some channels, from the head down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Newest {
    /// How many more messages are looked for.
    pub(super) left: usize,
    /// The position before the messages found so far.
    pub(super) position: u64,
    /// Every message after this sequence was looked at.
    searched: u64,
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
            if !page.can_take(if wanted { entry.weight() } else { 0 }) {
                break;
            }
            page.add(entry.message.id.sequence, wanted.then(|| Arc::clone(entry)));
        }
        page.finish(head, earliest)
    }

    /// A search for the newest `count` messages on some channels.
    pub(super) fn newest(&self, count: usize) -> Newest {
        Newest { left: count, position: self.head, searched: self.head }
    }

    /// Goes on with the search, for at most [`SCAN`] messages. Returns whether there are more messages to
    /// look at.
    pub(super) fn search(&self, newest: &mut Newest, channels: &Channels) -> bool {
        let end =
            usize::try_from((newest.searched + 1).saturating_sub(self.earliest())).unwrap_or(usize::MAX);
        for entry in self.entries.range(..end.min(self.entries.len())).rev().take(SCAN) {
            if newest.left == 0 {
                break;
            }
            newest.searched = entry.message.id.sequence - 1;
            if channels.contains(&entry.message.channel) {
                newest.left -= 1;
                newest.position = newest.searched;
            }
        }
        newest.left > 0 && newest.searched >= self.earliest()
    }
}
