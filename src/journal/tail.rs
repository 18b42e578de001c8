//! The tail: a journal's newest messages in memory, without a hole.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{Channels, Entry, Page, PageLimit};

/// The newest messages, within limits.
#[derive(Debug)]
pub(super) struct Tail {
    limit: TailLimit,
    /// Newest last: the last one's sequence is `head`, each other's is one less than the next's.
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    head: u64,
}

/// How much a tail holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct TailLimit {
    /// Messages.
    pub(super) messages: usize,
    /// The sum of their [`Entry::weight`], in bytes.
    pub(super) bytes: usize,
}

impl Tail {
    /// Empty, after the message at `head`.
    pub(super) fn new(limit: TailLimit, head: u64) -> Self {
        Tail { limit, entries: VecDeque::new(), bytes: 0, head }
    }

    /// The sequence of the last message; what it began with if there was none.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// The sequence of the earliest message in it; `head + 1` if it is empty.
    pub(super) fn earliest(&self) -> u64 {
        self.head + 1 - self.entries.len() as u64
    }

    /// Adds the message after `head`, and drops the oldest until it is within its limits.
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
    /// nothing earlier is kept elsewhere: what the tail does not hold, the page does not have.
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

    /// The newest `count` messages' first position on `channels`, and how many of them it holds.
    pub(super) fn position_before_newest(&self, count: usize, channels: &Channels) -> (u64, usize) {
        let newest = self.entries.iter().rev().filter(|entry| channels.contains(&entry.message.channel));
        let (mut position, mut found) = (self.head, 0);
        for entry in newest.take(count) {
            (position, found) = (entry.message.id.sequence - 1, found + 1);
        }
        (position, found)
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
