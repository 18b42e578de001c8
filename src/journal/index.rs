//! The index by channel: which messages are on which channel. So a read of a channel costs what the channel
//! has, and not what others have.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::page::Channels;
use crate::message::ChannelName;

/// The sequences of each channel's messages, from one sequence on.
#[derive(Debug)]
pub(super) struct Index {
    /// Every kept message from this sequence on is in the index.
    from: u64,
    /// No channel is without messages.
    channels: BTreeMap<ChannelName, Places>,
}

/// The sequences of one channel's messages, in order. Most channels of many have one message.
#[derive(Debug)]
enum Places {
    One(u64),
    Many(VecDeque<u64>),
}

impl Index {
    /// Empty. The first message added has the sequence `from`, or a later one.
    pub(super) fn new(from: u64) -> Self {
        Index { from, channels: BTreeMap::new() }
    }

    /// Every kept message from this sequence on is in the index.
    pub(super) fn from(&self) -> u64 {
        self.from
    }

    /// Adds a message that is later than all others.
    pub(super) fn push(&mut self, channel: &ChannelName, sequence: u64) {
        match self.channels.get_mut(channel) {
            Some(places) => places.push(sequence),
            None => drop(self.channels.insert(channel.clone(), Places::One(sequence))),
        }
    }

    /// Removes the channel's messages up to `sequence`.
    pub(super) fn remove(&mut self, channel: &ChannelName, sequence: u64) {
        let Some(places) = self.channels.get_mut(channel) else { return };
        let is_over = match places {
            Places::One(only) => *only <= sequence,
            Places::Many(many) => {
                while many.front().is_some_and(|first| *first <= sequence) {
                    many.pop_front();
                }
                many.is_empty()
            }
        };
        if is_over {
            self.channels.remove(channel);
        }
    }

    /// Adds the messages of an index that ends where this one begins.
    pub(super) fn prepend(&mut self, earlier: Index) {
        let later = std::mem::replace(self, earlier);
        for (channel, places) in later.channels {
            match self.channels.get_mut(&channel) {
                Some(earlier) => places.iter_from(0).for_each(|sequence| earlier.push(sequence)),
                None => drop(self.channels.insert(channel, places)),
            }
        }
    }

    /// The sequences of the messages after `position` on these channels, in order.
    pub(super) fn after(&self, position: u64, channels: &Channels) -> impl Iterator<Item = u64> {
        let mut lists: Vec<_> =
            self.of(channels).map(|places| places.iter_from(position + 1).peekable()).collect();
        std::iter::from_fn(move || {
            let next = lists.iter_mut().filter_map(|list| Some((*list.peek()?, list)));
            next.min_by_key(|(sequence, _)| *sequence)?.1.next()
        })
    }

    /// The newest `count` of the messages from `earliest` on, on these channels: the sequence of the first of
    /// them, and how many there are. `None` if there is none.
    pub(super) fn first_of_newest(
        &self,
        count: usize,
        earliest: u64,
        channels: &Channels,
    ) -> Option<(u64, usize)> {
        (1..=count).zip(self.newest(earliest, channels)).last().map(|(count, first)| (first, count))
    }

    /// The sequences of the messages from `earliest` on, on these channels, the newest first.
    fn newest(&self, earliest: u64, channels: &Channels) -> impl Iterator<Item = u64> {
        let mut lists: Vec<_> =
            self.of(channels).map(|places| places.iter_from(earliest).rev().peekable()).collect();
        std::iter::from_fn(move || {
            let next = lists.iter_mut().filter_map(|list| Some((*list.peek()?, list)));
            next.max_by_key(|(sequence, _)| *sequence)?.1.next()
        })
    }
}

impl Index {
    /// The messages of each of these channels, once for each channel.
    fn of(&self, channels: &Channels) -> impl Iterator<Item = &Places> {
        channels.iter().enumerate().flat_map(move |(nth, pattern)| {
            let is_new =
                move |name: &ChannelName| !channels.iter().take(nth).any(|other| other.matches(name));
            let (one, many) = match pattern.name() {
                Some(name) => (self.channels.get(&name).filter(|_| is_new(&name)), None),
                None => {
                    let from =
                        self.channels.range::<str, _>((Bound::Included(pattern.prefix()), Bound::Unbounded));
                    let begin = from.take_while(|(name, _)| name.as_str().starts_with(pattern.prefix()));
                    (None, Some(begin.filter(move |(name, _)| pattern.matches(name) && is_new(name))))
                }
            };
            one.into_iter().chain(many.into_iter().flatten().map(|(_, places)| places))
        })
    }
}

impl Places {
    fn push(&mut self, sequence: u64) {
        match self {
            Places::One(first) => *self = Places::Many(VecDeque::from([*first, sequence])),
            Places::Many(many) => many.push_back(sequence),
        }
    }

    /// The sequences that are at least `from`.
    fn iter_from(&self, from: u64) -> impl DoubleEndedIterator<Item = u64> + use<'_> {
        let (one, many) = match self {
            Places::One(only) => (Some(*only).filter(|only| *only >= from), None),
            Places::Many(many) => {
                let start = many.partition_point(|sequence| *sequence < from);
                (None, Some(many.range(start..).copied()))
            }
        };
        one.into_iter().chain(many.into_iter().flatten())
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
        let mut index = Index::new(5);
        let channels = ["a", "b", "c", "a", "a", "b", "d"];
        for (channel, sequence) in channels.into_iter().zip(5..) {
            index.push(&name(channel), sequence);
        }
        let mut earlier = Index::new(1);
        for (channel, sequence) in ["b", "a", "e", "a"].into_iter().zip(1..) {
            earlier.push(&name(channel), sequence);
        }
        index.prepend(earlier);
        assert_eq!(index.from(), 1);
        let after = |index: &Index, position, channels: &[&str]| {
            let channels = Channels::new(channels.iter().map(|text| Pattern::parse(text, 9).unwrap()));
            index.after(position, &channels).collect::<Vec<_>>()
        };
        assert_eq!(after(&index, 0, &["a"]), [2, 4, 5, 8, 9]);
        assert_eq!(after(&index, 4, &["b", "a", "nobody"]), [5, 6, 8, 9, 10]);
        assert_eq!(after(&index, 7, &["*", ">", "a", "a.*"]), [8, 9, 10, 11]);
        let newest = |count, earliest, channels: &[&str]| {
            let channels = Channels::new(channels.iter().map(|text| Pattern::parse(text, 9).unwrap()));
            index.first_of_newest(count, earliest, &channels)
        };
        assert_eq!(newest(3, 1, &["a", "b"]), Some((8, 3)));
        assert_eq!(newest(9, 4, &["a", "e"]), Some((4, 4)));
        assert_eq!((newest(0, 1, &["a"]), newest(3, 4, &["e"])), (None, None));
        for (channel, sequence) in [("b", 1), ("a", 2), ("e", 3), ("a", 4), ("a", 5), ("b", 6), ("c", 7)] {
            index.remove(&name(channel), sequence);
        }
        assert_eq!(after(&index, 0, &["a", "b", "c", "d", "e"]), [8, 9, 10, 11]);
        assert_eq!(index.channels.len(), 3);
    }
}
