//! A journal's newest messages, held in memory.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::entry::Entry;
use super::index::{Found, Index};
use super::page::{Channels, Page, PageBuilder, PageLimit};
use crate::message::Time;

/// The most messages of which the channels are looked at in one read of a wide pattern. Higher: such a read
/// holds up publishing for longer than some hundred microseconds. Lower: a search among many messages takes
/// more reads.
pub(super) const STEP: u64 = 1_000;

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

    /// The messages held after `position` on `channels`; up to `latest`, only the newest of each channel. The
    /// page lacks messages if `position + 1 < earliest` and earlier messages are kept elsewhere.
    pub(super) fn read(
        &self,
        position: u64,
        channels: &Channels,
        latest: Option<u64>,
        limit: PageLimit,
    ) -> Page {
        let (head, earliest) = (self.head, self.earliest());
        let start = position.max(earliest - 1);
        let range = start + 1..=latest.unwrap_or(head);
        let found = self.index.first(limit.messages, &range, channels, latest.is_some());
        let found = found.unwrap_or_else(|| {
            let range = step(&range);
            Found { through: *range.end(), sequences: self.matching(&range, channels, latest) }
        });
        let mut page = PageBuilder::new(start, limit);
        for sequence in found.sequences {
            let Some(entry) = self.entry(sequence) else { break };
            if !page.can_take(entry.weight()) {
                return page.finish(head, earliest);
            }
            page.add(sequence, Arc::clone(entry));
        }
        page.reached(found.through);
        page.finish(head, earliest)
    }

    /// The sequences of those messages of this range that are held, and on `channels`; up to `latest`, only
    /// the newest of each channel. Looks at every message, so a range is at most a [`step`].
    pub(super) fn matching(
        &self,
        range: &RangeInclusive<u64>,
        channels: &Channels,
        latest: Option<u64>,
    ) -> Vec<u64> {
        let is_asked_for = |sequence: &u64| {
            self.entry(*sequence).is_some_and(|entry| {
                let name = &entry.message.channel;
                let is_newest = |latest| self.index.has_none(name, &(sequence + 1..=latest));
                channels.contains(name) && latest.is_none_or(is_newest)
            })
        };
        range.clone().filter(is_asked_for).collect()
    }

    fn entry(&self, sequence: u64) -> Option<&Arc<Entry>> {
        self.entries.get(usize::try_from(sequence.checked_sub(self.earliest())?).ok()?)
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

/// The beginning of this range, as far as one read of a wide pattern goes.
pub(super) fn step(range: &RangeInclusive<u64>) -> RangeInclusive<u64> {
    *range.start()..=*range.end().min(&(range.start() + STEP - 1))
}
