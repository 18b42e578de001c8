//! A journal's newest messages, held in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::clock::{Clock, Steady};
use super::entry::Entry;
use super::index::{Found, Index};
use super::page::{Channels, Page, PageBuilder, PageLimit};
use super::rules::Rules;
use crate::message::{ChannelName, Message, Time};

/// The most messages of which the channels are looked at in one read of a wide pattern. Higher: such a read
/// holds up publishing for longer than some hundred microseconds. Lower: a search among many messages takes
/// more reads.
pub(super) const STEP: usize = 1_000;

/// The limits of the messages a journal keeps. The oldest are dropped to stay within each limit.
#[derive(Clone, Debug)]
pub struct Retention {
    /// The most messages.
    pub messages: usize,
    /// The most bytes: in memory, the sum of [`Entry::weight`]; in a file, the pages in use.
    pub bytes: usize,
    /// The longest time since a message was stored. A journal in memory ignores it.
    pub age: Duration,
    /// Rules for some channels.
    pub rules: Rules,
}

/// The newest messages of a journal; all that are kept, if they are kept in memory alone.
#[derive(Debug)]
pub(super) struct Recent {
    limit: RecentLimit,
    /// The messages held, by their sequences.
    entries: BTreeMap<u64, Arc<Entry>>,
    bytes: usize,
    head: u64,
    /// Every kept message from this sequence on is held.
    held_from: u64,
    /// Every message before this sequence was dropped.
    begin: u64,
    /// The index has no message before this sequence.
    indexed_from: u64,
    earliest: Earliest,
    /// In memory, whatever is before this sequence is protected.
    walked: u64,
    index: Index,
    clock: Steady,
    /// In a file, the messages that were dropped one by one, and whose rows are not deleted yet.
    dropped: Option<BTreeSet<u64>>,
}

/// Before which sequences messages were dropped to stay within the limits of the journal as a whole: there is
/// a gap. What a rule drops, what expires and what is erased is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Earliest {
    /// On channels without a share of their own.
    pub(super) others: u64,
    /// On channels that have one by a rule.
    pub(super) protected: u64,
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
    /// No messages yet, in memory alone.
    pub(super) fn new(limit: RecentLimit, rules: Rules) -> Self {
        let clock = Steady::begin(Clock::System, Time::from_ms(0));
        Recent {
            limit,
            entries: BTreeMap::new(),
            bytes: 0,
            head: 0,
            held_from: 1,
            begin: 1,
            indexed_from: 1,
            earliest: Earliest { others: 1, protected: 1 },
            walked: 1,
            index: Index::new(1, rules),
            clock,
            dropped: None,
        }
    }

    /// The same for a file, which keeps messages from `begin` to `head`; none of them is held yet.
    pub(super) fn of_file(
        limit: RecentLimit,
        rules: Rules,
        (begin, head): (u64, u64),
        earliest: Earliest,
        clock: Steady,
    ) -> Self {
        let index = Index::new(if begin > head { 1 } else { head + 1 }, rules.clone());
        let (held_from, dropped) = (head + 1, Some(BTreeSet::new()));
        Recent { head, held_from, begin, earliest, index, clock, dropped, ..Recent::new(limit, rules) }
    }

    /// The sequence of the last message pushed, or the `head` of the file.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// Every kept message from this sequence on is held.
    pub(super) fn held_from(&self) -> u64 {
        self.held_from
    }

    /// Every message before this sequence was dropped.
    pub(super) fn begin(&self) -> u64 {
        self.begin
    }

    /// Before which sequence there is a gap for the readers of these channels.
    pub(super) fn earliest(&self, channels: &Channels) -> u64 {
        let is_protected = self.index.rules().protect(channels);
        if is_protected { self.earliest.protected } else { self.earliest.others }
    }

    /// How many messages are kept. The index is complete.
    pub(super) fn count(&mut self) -> usize {
        if self.indexed_from < self.begin {
            self.index.drop_before(self.begin);
            self.indexed_from = self.begin;
        }
        self.index.count()
    }

    /// The clock by which messages expire.
    pub(super) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Adds the message after `head`, and drops messages until all are within the limits.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        debug_assert_eq!(entry.message.id.sequence, self.head + 1, "a hole");
        self.head += 1;
        self.bytes += entry.weight();
        self.index.push(&entry.message.channel, self.head, entry.message.expires);
        self.entries.insert(self.head, entry);
        self.let_go_over();
        // The newest message stays whatever its weight: it was accepted, and subscribers have yet to read it.
        while self.entries.len() > 1
            && (self.entries.len() > self.limit.messages || self.bytes > self.limit.bytes)
        {
            if self.dropped.is_none() {
                self.drop_oldest();
            } else if let Some((sequence, entry)) = self.entries.pop_first() {
                self.bytes -= entry.weight();
                self.held_from = sequence + 1;
            }
        }
    }

    /// Goes by these rules from now on. What was dropped of channels that have a share now is a gap for their
    /// readers.
    pub(super) fn set_rules(&mut self, rules: Rules) {
        if rules.protected() != self.index.rules().protected() {
            self.earliest.protected = self.earliest.others;
        }
        self.walked = 1;
        self.index.set_rules(rules);
        self.let_go_over();
    }

    /// Drops the oldest message that no rule protects, else the oldest.
    fn drop_oldest(&mut self) {
        while let Some((&sequence, entry)) = self.entries.range(self.walked..self.head).next() {
            self.walked = sequence + 1;
            let channel = entry.message.channel.clone();
            if !self.index.is_protected(&channel) {
                return self.drop_for_limits(&channel, sequence);
            }
        }
        let Some((&sequence, oldest)) = self.entries.first_key_value() else { return };
        let channel = oldest.message.channel.clone();
        self.drop_for_limits(&channel, sequence);
    }

    /// Drops a message. Returns whether it was kept, as far as the index knows.
    pub(super) fn remove(&mut self, channel: &ChannelName, sequence: u64) -> bool {
        let was_kept = self.index.remove(channel, sequence);
        if was_kept {
            self.let_go(sequence);
        }
        was_kept
    }

    /// Drops the messages that have expired.
    pub(super) fn expire(&mut self) {
        while let Some((sequence, channel)) = self.index.expired(|| self.clock.now()) {
            self.remove(&channel, sequence);
        }
    }

    /// Drops the messages on the channels of this rule, the oldest first, while `is_old` is true.
    pub(super) fn drop_old(&mut self, rule: usize, is_old: impl Fn(u64) -> bool) {
        while let Some((sequence, channel)) =
            self.index.oldest(rule).filter(|(sequence, _)| is_old(*sequence))
        {
            self.remove(&channel, sequence);
        }
    }

    /// Whether a message has expired that was not dropped yet.
    pub(super) fn has_expired(&self) -> bool {
        self.index.expired(|| self.clock.now()).is_some()
    }

    /// Drops the messages before `begin`.
    pub(super) fn drop_before(&mut self, begin: u64) {
        self.begin = begin;
        self.earliest = Earliest { others: begin, protected: begin };
        while let Some(first) = self.entries.first_entry().filter(|first| *first.key() < begin) {
            self.held_from = first.key() + 1;
            self.bytes -= first.remove().weight();
        }
    }

    /// Whether a rule protects the channel's messages.
    pub(super) fn is_protected(&self, channel: &ChannelName) -> bool {
        self.index.is_protected(channel)
    }

    /// Before which sequences there is a gap.
    pub(super) fn gaps(&self) -> Earliest {
        self.earliest
    }

    /// Drops a message to stay within the limits of the journal. It is the oldest of all, or of those that no
    /// rule protects.
    pub(super) fn drop_for_limits(&mut self, channel: &ChannelName, sequence: u64) {
        let Earliest { others, protected } = &mut self.earliest;
        *others = (*others).max(sequence + 1);
        if self.index.is_protected(channel) {
            *protected = (*protected).max(sequence + 1);
        }
        self.remove(channel, sequence);
    }

    /// Drops a message whose row is deleted already.
    pub(super) fn erase(&mut self, channel: &ChannelName, sequence: u64) {
        self.remove(channel, sequence);
        self.were_deleted(&[sequence]);
    }

    /// The messages held after `position` on `channels`: all that are kept, if the first of them is held. Up
    /// to `latest`, only the newest of each channel.
    pub(super) fn read(
        &self,
        position: u64,
        channels: &Channels,
        latest: Option<u64>,
        limit: PageLimit,
    ) -> Page {
        let (head, earliest) = (self.head, self.earliest(channels));
        let start = position.max(self.begin - 1);
        let range = start + 1..=latest.unwrap_or(head);
        let found = self.index.first(limit.messages, &range, channels, latest.is_some());
        let found = found.unwrap_or_else(|| self.matching(&range, channels, latest));
        let mut page = PageBuilder::new(start, limit);
        for sequence in found.sequences {
            let Some(entry) = self.entries.get(&sequence) else { break };
            if !page.can_take(entry.weight()) {
                return page.finish(head, self.begin, earliest);
            }
            page.add(sequence, Arc::clone(entry));
        }
        page.reached(found.through);
        page.finish(head, self.begin, earliest)
    }

    /// The first messages of this range that are held, and on `channels`; up to `latest`, only the newest of
    /// each channel. Looks at every message, at most [`STEP`] of them.
    pub(super) fn matching(
        &self,
        range: &RangeInclusive<u64>,
        channels: &Channels,
        latest: Option<u64>,
    ) -> Found {
        let (mut sequences, mut through) = (Vec::new(), *range.end());
        // An empty range is an error to the map.
        let held = range.clone().min().into_iter().flat_map(|_| self.entries.range(range.clone()));
        for (nth, (&sequence, entry)) in held.enumerate() {
            if nth == STEP {
                through = sequence - 1;
                break;
            }
            let name = &entry.message.channel;
            let is_newest = |latest| self.index.has_none(name, &(sequence + 1..=latest));
            if channels.contains(name) && latest.is_none_or(is_newest) {
                sequences.push(sequence);
            }
        }
        Found { sequences, through }
    }

    /// The message at this sequence, if it is held.
    pub(super) fn get(&self, sequence: u64) -> Option<&Message> {
        self.entries.get(&sequence).map(|entry| &entry.message)
    }

    /// Which messages are on which channel, of those held and maybe of earlier ones.
    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    /// The same, for a journal that keeps messages which are no longer held.
    pub(super) fn index_mut(&mut self) -> &mut Index {
        &mut self.index
    }

    /// Adds the messages that the index lacks, unless somebody else has. What rules drop of them is dropped.
    pub(super) fn complete_index(&mut self, earlier: Index, until: u64) {
        if self.index.from() == until {
            self.index.prepend(earlier, self.begin);
            self.let_go_over();
        }
    }

    /// The messages that were dropped one by one, and whose rows are not deleted yet.
    pub(super) fn dropped(&self) -> impl Iterator<Item = u64> {
        self.dropped.iter().flatten().copied()
    }

    /// The rows of these messages are deleted.
    pub(super) fn were_deleted(&mut self, sequences: &[u64]) {
        let Some(dropped) = &mut self.dropped else { return };
        for sequence in sequences {
            dropped.remove(sequence);
        }
    }

    fn let_go_over(&mut self) {
        for sequence in self.index.take_over() {
            self.let_go(sequence);
        }
    }

    /// Holds a message no longer that has left the index.
    fn let_go(&mut self, sequence: u64) {
        if let Some(entry) = self.entries.remove(&sequence) {
            self.bytes -= entry.weight();
        }
        if let Some(dropped) = &mut self.dropped {
            dropped.insert(sequence);
        }
    }
}
