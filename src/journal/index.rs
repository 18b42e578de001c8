//! The index by channel: which messages are on which channel. So a read of a channel costs what the channel
//! has, and not what others have.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::mem;
use std::ops::{Bound, Range, RangeInclusive};

use super::page::Channels;
use super::rules::Rules;
use crate::message::{ChannelName, Time};

/// The most channels that are looked at for one read. Higher: such a read holds up publishing for longer than
/// some hundred microseconds. Lower: more patterns are wide, and their reads cost what all channels hold.
const FEW: usize = 1_024;

/// The sequences of each channel's messages, from one sequence on. A message that is dropped for its rule,
/// has expired or is erased leaves the index at once.
///
/// A pattern is wide if more than [`FEW`] channels begin as it does. For these, the journal is read in its
/// order instead.
#[derive(Debug)]
pub(super) struct Index {
    /// Every kept message from this sequence on is in the index.
    from: u64,
    rules: Rules,
    /// No channel is without messages.
    channels: BTreeMap<ChannelName, Channel>,
    /// How many messages there are.
    count: usize,
    /// The first message of each channel that has a rule with an age, by the rule's number.
    oldest: BTreeMap<(usize, u64), ChannelName>,
    /// When messages expire: by their sequences, and in the order in which they do.
    expires: BTreeMap<u64, Time>,
    expiring: BTreeMap<(Time, u64), ChannelName>,
    /// What was dropped as more than a rule keeps, or passed over, until it is taken.
    over: Vec<u64>,
    /// What was removed before it was in the index: messages before `from`.
    gone: BTreeMap<u64, ChannelName>,
}

#[derive(Debug)]
struct Channel {
    places: Places,
    /// The number of the channel's rule.
    rule: Option<u16>,
}

/// The sequences of one channel's messages, in order. Most channels of many have one message.
#[derive(Debug)]
enum Places {
    One(u64),
    Many(VecDeque<u64>),
}

/// The messages that a read found.
#[derive(Debug)]
pub(super) struct Found {
    /// Their sequences, in order.
    pub(super) sequences: Vec<u64>,
    /// The sequence up to which no other message was asked for.
    pub(super) through: u64,
}

impl Index {
    /// Empty. The first message added has the sequence `from`, or a later one.
    pub(super) fn new(from: u64, rules: Rules) -> Self {
        let (channels, oldest, over, gone) = (BTreeMap::new(), BTreeMap::new(), Vec::new(), BTreeMap::new());
        let (expires, expiring) = (BTreeMap::new(), BTreeMap::new());
        Index { from, rules, channels, count: 0, oldest, expires, expiring, over, gone }
    }

    /// Every kept message from this sequence on is in the index.
    pub(super) fn from(&self) -> u64 {
        self.from
    }

    /// How many messages there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Adds a message that is later than all others. What its channel then has too many is dropped.
    pub(super) fn push(&mut self, channel: &ChannelName, sequence: u64, expires: Option<Time>) {
        if let Some(time) = expires {
            self.expires.insert(sequence, time);
            self.expiring.insert((time, sequence), channel.clone());
        }
        self.count += 1;
        match self.channels.get_mut(channel) {
            Some(known) => known.places.push(sequence),
            None => {
                let rule = self.rule_of(channel);
                self.channels.insert(channel.clone(), Channel { places: Places::One(sequence), rule });
                self.note_oldest(channel);
            }
        }
        self.limit(channel);
    }

    fn rule_of(&self, channel: &ChannelName) -> Option<u16> {
        self.rules.of(channel).and_then(|number| u16::try_from(number).ok())
    }

    /// Goes by these rules from now on: a look at each channel.
    pub(super) fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
        self.oldest.clear();
        for channel in self.channels.keys().cloned().collect::<Vec<_>>() {
            let rule = self.rule_of(&channel);
            if let Some(known) = self.channels.get_mut(&channel) {
                known.rule = rule;
            }
            self.note_oldest(&channel);
            self.limit(&channel);
        }
    }

    /// Drops what the channel has more than its rule keeps.
    fn limit(&mut self, channel: &ChannelName) {
        let rule = self.channels.get(channel).and_then(|known| known.rule);
        let Some(most) = rule.and_then(|number| self.rules.get(number.into()).messages) else { return };
        while let Some(Channel { places: Places::Many(many), .. }) = self.channels.get(channel)
            && many.len() > most
            && let Some(&first) = many.front()
        {
            self.remove(channel, first);
            self.over.push(first);
        }
    }

    /// Passes over a message that has expired.
    pub(super) fn pass_over(&mut self, sequence: u64) {
        self.over.push(sequence);
    }

    /// Removes the message. Returns whether it was there, or is one that the index lacks.
    pub(super) fn remove(&mut self, channel: &ChannelName, sequence: u64) -> bool {
        if sequence < self.from {
            return self.gone.insert(sequence, channel.clone()).is_none();
        }
        let Some(known) = self.channels.get_mut(channel) else { return false };
        let (first, rule) = (known.places.first(), known.rule);
        let is_over = match &mut known.places {
            Places::One(only) if *only == sequence => true,
            Places::One(_) => return false,
            Places::Many(many) => {
                let Ok(at) = many.binary_search(&sequence) else { return false };
                many.remove(at);
                many.is_empty()
            }
        };
        if is_over {
            self.channels.remove(channel);
        }
        if first == sequence
            && let Some(rule) = rule
        {
            self.oldest.remove(&(rule.into(), first));
            self.note_oldest(channel);
        }
        if let Some(time) = self.expires.remove(&sequence) {
            self.expiring.remove(&(time, sequence));
        }
        self.count -= 1;
        true
    }

    fn note_oldest(&mut self, channel: &ChannelName) {
        let Some(Channel { places, rule: Some(rule) }) = self.channels.get(channel) else { return };
        let rule = usize::from(*rule);
        if self.rules.get(rule).age.is_some() {
            self.oldest.insert((rule, places.first()), channel.clone());
        }
    }

    /// Adds the messages of an index that ends where this one begins, but for those before `begin`, which
    /// were dropped meanwhile.
    pub(super) fn prepend(&mut self, mut earlier: Index, begin: u64) {
        if earlier.rules != self.rules {
            earlier.set_rules(self.rules.clone());
        }
        for (sequence, channel) in mem::take(&mut self.gone) {
            earlier.remove(&channel, sequence);
        }
        earlier.gone.clear();
        earlier.drop_before(begin);
        let mut later = mem::replace(self, earlier);
        self.over.append(&mut later.over);
        for (channel, known) in later.channels {
            for sequence in known.places.iter() {
                self.push(&channel, sequence, later.expires.remove(&sequence));
            }
        }
    }

    /// Removes the messages before `begin`: a look at each channel.
    pub(super) fn drop_before(&mut self, begin: u64) {
        let dropped = |(channel, known): (&ChannelName, &Channel)| {
            let before = known.places.iter().take_while(|sequence| *sequence < begin);
            before.map(|sequence| (channel.clone(), sequence)).collect::<Vec<_>>()
        };
        for (channel, sequence) in self.channels.iter().flat_map(dropped).collect::<Vec<_>>() {
            self.remove(&channel, sequence);
        }
    }

    /// Whether the message is in the index.
    pub(super) fn contains(&self, channel: &ChannelName, sequence: u64) -> bool {
        let known = self.channels.get(channel);
        known.is_some_and(|known| !known.places.within(&(sequence..=sequence)).is_empty())
    }

    /// Whether a rule gives the channel a share of its own.
    pub(super) fn is_protected(&self, channel: &ChannelName) -> bool {
        if self.rules.is_empty() {
            return false;
        }
        let rule = match self.channels.get(channel) {
            Some(known) => known.rule.map(usize::from),
            None => self.rules.of(channel),
        };
        rule.is_some_and(|rule| self.rules.get(rule).messages.is_some())
    }

    /// Takes the sequences of what was dropped as more than a rule keeps, or passed over.
    pub(super) fn take_over(&mut self) -> Vec<u64> {
        mem::take(&mut self.over)
    }

    /// The oldest message on the channels of this rule, which has an age.
    pub(super) fn oldest(&self, rule: usize) -> Option<(u64, ChannelName)> {
        let ((_, sequence), channel) = self.oldest.range((rule, 0)..=(rule, u64::MAX)).next()?;
        Some((*sequence, channel.clone()))
    }

    /// The message that expires first, if it has expired at `now`.
    pub(super) fn expired(&self, now: impl FnOnce() -> Time) -> Option<(u64, ChannelName)> {
        let ((time, sequence), channel) = self.expiring.first_key_value()?;
        (*time <= now()).then(|| (*sequence, channel.clone()))
    }

    /// The first messages in this range on these channels, at most so many. If `is_latest`, only the range's
    /// newest of each channel. `None` if a pattern is wide.
    pub(super) fn first(
        &self,
        most: usize,
        range: &RangeInclusive<u64>,
        channels: &Channels,
        is_latest: bool,
    ) -> Option<Found> {
        let lists = self.of(channels)?.into_iter();
        let mut lists: Vec<_> = lists
            .map(|places| {
                let within = places.within(range);
                let from =
                    if is_latest { within.end.saturating_sub(1).max(within.start) } else { within.start };
                (from..within.end).map(|nth| places.at(nth))
            })
            .collect();
        let next = |(nth, list): (usize, &mut _)| Some(Reverse((Iterator::next(list)?, nth)));
        let mut heap: BinaryHeap<_> = lists.iter_mut().enumerate().filter_map(next).collect();
        let mut sequences = Vec::new();
        while sequences.len() < most
            && let Some(Reverse((sequence, nth))) = heap.pop()
        {
            sequences.push(sequence);
            heap.extend(next((nth, &mut lists[nth])));
        }
        let last = sequences.last().copied().filter(|_| !heap.is_empty());
        Some(Found { sequences, through: last.unwrap_or(*range.end()) })
    }

    /// The last position after which there are `count` messages in this range on these channels, or all if
    /// there are fewer; and how many there are. `None` if a pattern is wide.
    pub(super) fn before_newest(
        &self,
        count: usize,
        range: &RangeInclusive<u64>,
        channels: &Channels,
    ) -> Option<(u64, usize)> {
        let lists = self.of(channels)?;
        let after = |position: u64| -> usize {
            let range = position + 1..=*range.end();
            lists.iter().map(|places| places.within(&range).len()).sum()
        };
        let (mut low, mut high) = (*range.end().min(&(range.start() - 1)), *range.end());
        let count = count.min(after(low));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if after(middle) < count { high = middle - 1 } else { low = middle }
        }
        Some((low, count))
    }

    /// Whether the channel has no message in this range.
    pub(super) fn has_none(&self, channel: &ChannelName, range: &RangeInclusive<u64>) -> bool {
        self.channels.get(channel).is_none_or(|known| known.places.within(range).is_empty())
    }

    /// The messages of each of these channels, once for each channel. `None` if a pattern is wide.
    fn of(&self, channels: &Channels) -> Option<Vec<&Places>> {
        let (mut lists, mut looked_at) = (Vec::new(), 0);
        for (nth, pattern) in channels.iter().enumerate() {
            let is_new = |name: &ChannelName| !channels.iter().take(nth).any(|earlier| earlier.matches(name));
            if let Some(name) = pattern.name() {
                let known = self.channels.get(&name).filter(|_| is_new(&name));
                lists.extend(known.map(|known| &known.places));
                continue;
            }
            let prefix = pattern.prefix();
            let from = self.channels.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
            for (name, known) in from.take_while(|(name, _)| name.as_str().starts_with(prefix)) {
                looked_at += 1;
                if looked_at > FEW {
                    return None;
                }
                if pattern.matches(name) && is_new(name) {
                    lists.push(&known.places);
                }
            }
        }
        Some(lists)
    }
}

impl Places {
    /// The sequence of the first message.
    fn first(&self) -> u64 {
        self.at(0)
    }

    /// The sequences, in order.
    fn iter(&self) -> impl Iterator<Item = u64> + use<'_> {
        self.within(&(0..=u64::MAX)).map(|nth| self.at(nth))
    }

    fn push(&mut self, sequence: u64) {
        match self {
            Places::One(first) => *self = Places::Many(VecDeque::from([*first, sequence])),
            Places::Many(many) => many.push_back(sequence),
        }
    }

    /// Which of the messages are in this range.
    fn within(&self, range: &RangeInclusive<u64>) -> Range<usize> {
        match self {
            Places::One(only) => 0..usize::from(range.contains(only)),
            Places::Many(many) => {
                let start = many.partition_point(|sequence| sequence < range.start());
                start..many.partition_point(|sequence| sequence <= range.end()).max(start)
            }
        }
    }

    /// The sequence of the message that has so many before it.
    fn at(&self, nth: usize) -> u64 {
        match self {
            Places::One(only) => *only,
            Places::Many(many) => many[nth],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Pattern;

    fn name(text: &str) -> ChannelName {
        ChannelName::stored(text).unwrap()
    }

    #[test]
    fn the_messages_of_some_channels_are_found_in_order_from_either_end() {
        let mut index = Index::new(5, Rules::default());
        let channels = ["a", "b", "c", "a", "a", "b", "d"];
        for (channel, sequence) in channels.into_iter().zip(5..) {
            index.push(&name(channel), sequence, None);
        }
        let mut earlier = Index::new(1, Rules::default());
        for (channel, sequence) in ["b", "a", "e", "a"].into_iter().zip(1..) {
            earlier.push(&name(channel), sequence, None);
        }
        index.prepend(earlier, 0);
        assert_eq!(index.from(), 1);
        let asked =
            |channels: &[&str]| Channels::new(channels.iter().map(|text| Pattern::parse(text, 9).unwrap()));
        let first = |index: &Index, most, range: RangeInclusive<u64>, channels: &[&str], is_latest| {
            let Found { sequences, through } =
                index.first(most, &range, &asked(channels), is_latest).unwrap();
            (sequences, through)
        };
        let all = |index: &Index, range, channels: &[&str]| {
            let (sequences, through) = first(index, 99, range, channels, false);
            assert_eq!(through, 11);
            sequences
        };
        assert_eq!(all(&index, 1..=11, &["a"]), [2, 4, 5, 8, 9]);
        assert_eq!(all(&index, 5..=11, &["b", "a", "nobody"]), [5, 6, 8, 9, 10]);
        assert_eq!(all(&index, 8..=11, &["*", ">", "a", "a.*"]), [8, 9, 10, 11]);
        assert_eq!(first(&index, 2, 1..=9, &["a", "b"], false), (vec![1, 2], 2));
        assert_eq!(first(&index, 2, 6..=8, &["a", "b"], false), (vec![6, 8], 8));
        assert_eq!(first(&index, 9, 1..=9, &["*"], true), (vec![3, 6, 7, 9], 9));
        assert_eq!(first(&index, 1, 4..=11, &["a", "e"], true), (vec![9], 11));
        let newest = |count, range, channels: &[&str]| index.before_newest(count, &range, &asked(channels));
        assert_eq!(newest(3, 1..=11, &["a", "b"]), Some((7, 3)));
        assert_eq!(newest(9, 4..=11, &["a", "e"]), Some((3, 4)));
        assert_eq!(newest(2, 1..=8, &["a"]), Some((4, 2)));
        assert_eq!((newest(0, 1..=11, &["a"]), newest(3, 4..=11, &["e"])), (Some((11, 0)), Some((11, 0))));
        assert!(index.has_none(&name("a"), &(6..=7)) && !index.has_none(&name("a"), &(6..=8)));
        for (channel, sequence) in [("b", 1), ("a", 2), ("e", 3), ("a", 4), ("a", 5), ("b", 6), ("c", 7)] {
            assert!(index.remove(&name(channel), sequence));
        }
        assert_eq!(all(&index, 1..=11, &["a", "b", "c", "d", "e"]), [8, 9, 10, 11]);
        assert_eq!(index.channels.len(), 3);
    }

    #[test]
    fn only_so_many_channels_are_looked_at() {
        let mut index = Index::new(1, Rules::default());
        for sequence in 1..=FEW as u64 + 1 {
            index.push(&name(&format!("many.{sequence}")), sequence, None);
        }
        let found = |index: &Index, text| {
            let channels = Channels::new([Pattern::parse(text, 9).unwrap()]);
            let found = index.first(9_999, &(1..=9_999), &channels, false);
            found.map(|found| found.sequences.len())
        };
        assert_eq!(
            (found(&index, "many.*"), found(&index, "*.7"), found(&index, "m.>")),
            (None, None, Some(0))
        );
        assert_eq!((found(&index, "many.7.>"), found(&index, "many.7")), (Some(0), Some(1)));
        index.remove(&name("many.1"), 1);
        assert_eq!((found(&index, "many.*"), found(&index, "*.7")), (Some(FEW), Some(1)));
    }
}
