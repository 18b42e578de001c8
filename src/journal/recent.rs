//! A journal's recent messages, held in memory without a hole.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::page::{Channels, Page, PageBuilder, PageLimit};

/// How much is kept. The oldest messages are dropped to stay within each limit.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Messages.
    pub messages: usize,
    /// Of a journal in memory, the sum of the messages' [`Entry::weight`]; of a file, its pages in
    /// use. In bytes.
    pub bytes: usize,
    /// Since a message was kept. For a file alone.
    pub age: Duration,
}

/// The newest messages, within limits.
#[derive(Debug)]
pub(super) struct Recent {
    limit: RecentLimit,
    /// Newest last: the last one's sequence is `head`, each other's is one less than the next's.
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    head: u64,
}

/// How much [`Recent`] holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecentLimit {
    /// Messages.
    pub(super) messages: usize,
    /// The sum of their [`Entry::weight`], in bytes.
    pub(super) bytes: usize,
}

impl Recent {
    /// Empty, after the message at `head`.
    pub(super) fn new(limit: RecentLimit, head: u64) -> Self {
        Recent { limit, entries: VecDeque::new(), bytes: 0, head }
    }

    /// The sequence of the last message; what `new` was given if there was none.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// The sequence of the earliest message held; `head + 1` if none is.
    pub(super) fn earliest(&self) -> u64 {
        self.head + 1 - self.entries.len() as u64
    }

    /// Adds the message after `head`, and drops the oldest messages until the limits are kept.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        debug_assert_eq!(entry.message.id.sequence, self.head + 1, "a hole");
        self.head += 1;
        self.bytes += entry.weight();
        self.entries.push_back(entry);
        // The newest stays whatever its size: it was accepted, and its subscribers are yet to read it.
        while self.entries.len() > 1
            && (self.entries.len() > self.limit.messages || self.bytes > self.limit.bytes)
        {
            self.pop();
        }
    }

    /// Drops the messages before `earliest`.
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

    /// The messages after `position` on `channels`. Right only if `position + 1 >= earliest`, or if
    /// nothing earlier is kept elsewhere: the page has only what is held here.
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

    /// The position before the newest `count` messages on `channels`, and how many of those are held.
    pub(super) fn position_before_newest(&self, count: usize, channels: &Channels) -> (u64, usize) {
        let newest = self.entries.iter().rev().filter(|entry| channels.contains(&entry.message.channel));
        let (mut position, mut found) = (self.head, 0);
        for entry in newest.take(count) {
            (position, found) = (entry.message.id.sequence - 1, found + 1);
        }
        (position, found)
    }
}
