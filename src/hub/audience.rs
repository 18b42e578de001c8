//! The audience: who listens to which channel, by its name or by a pattern.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;

use crate::message::{ChannelName, Pattern, Token};

/// Who listens to each channel.
#[derive(Debug, Default)]
pub(super) struct Audience {
    /// By a channel's name. A look-up finds them, however many other channels there are.
    names: HashMap<ChannelName, Listeners>,
    /// By a pattern with wildcards.
    patterns: Node,
}

/// The most feeds, and the most listeners on one. Both fit into four bytes, with one value to spare.
pub(super) const MAX_FEEDS: u8 = u8::MAX;
/// See [`MAX_FEEDS`].
pub(super) const MAX_LISTENERS: u32 = 1 << 24;

/// A listener on one of the feeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listener {
    /// The feed's number, less than [`MAX_FEEDS`].
    pub(super) feed: u8,
    /// The listener's number on that feed, less than [`MAX_LISTENERS`].
    pub(super) number: u32,
}

/// The listeners of a name or pattern, and how many subscribers it has. Most have one listener of many
/// channels, so these are 16 bytes.
#[derive(Debug, Default)]
struct Listeners {
    subscribers: u32,
    first: Option<Packed>,
    #[expect(clippy::box_collection, reason = "most have none, and then a box is the smallest")]
    others: Option<Box<HashSet<Packed>>>,
}

/// A listener in four bytes: one more than its feed's number, in the highest byte, and its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Packed(NonZeroU32);

/// A tree of patterns, token by token.
#[derive(Debug, Default)]
struct Node {
    /// Those whose pattern ends here.
    here: Listeners,
    /// Those whose pattern goes on with `>`.
    rest: Listeners,
    /// Those whose pattern goes on with `*`.
    any: Option<Box<Node>>,
    /// In boxes, as a map has at least four places.
    named: HashMap<Box<str>, Box<Node>>,
}

impl Audience {
    /// Counts one more subscriber.
    pub(super) fn count(&mut self, pattern: &Pattern) {
        self.with(pattern, |listeners| listeners.subscribers += 1);
    }

    /// Counts one subscriber less.
    pub(super) fn uncount(&mut self, pattern: &Pattern) {
        self.with(pattern, |listeners| listeners.subscribers -= 1);
    }

    /// Adds a listener, which is not there yet.
    pub(super) fn add(&mut self, pattern: &Pattern, listener: Listener) {
        self.with(pattern, |listeners| listeners.add(listener.into()));
    }

    /// Removes a listener.
    pub(super) fn remove(&mut self, pattern: &Pattern, listener: Listener) {
        self.with(pattern, |listeners| listeners.remove(listener.into()));
    }

    /// How many subscribers the channel has. One that asked for it twice, by two patterns, counts twice.
    pub(super) fn subscribers(&self, channel: &ChannelName) -> usize {
        let mut subscribers = 0;
        self.find(channel, &mut |listeners| subscribers += listeners.subscribers as usize);
        subscribers
    }

    /// Calls `each` with each listener of the channel: twice with one that listens to two such patterns.
    pub(super) fn for_each(&self, channel: &ChannelName, mut each: impl FnMut(Listener)) {
        self.find(channel, &mut |listeners| listeners.iter().for_each(|packed| each(packed.into())));
    }

    fn find(&self, channel: &ChannelName, each: &mut impl FnMut(&Listeners)) {
        if let Some(listeners) = self.names.get(channel) {
            each(listeners);
        }
        if !self.patterns.is_empty() {
            self.patterns.find(channel.as_str(), each);
        }
    }

    /// Changes the listeners of this pattern, which are made if there are none, and removed if none are left.
    fn with(&mut self, pattern: &Pattern, change: impl FnOnce(&mut Listeners)) {
        let Some(name) = pattern.name() else {
            return self.patterns.with(&mut pattern.tokens(), change);
        };
        let listeners = self.names.entry(name.clone()).or_default();
        change(listeners);
        if listeners.is_empty() {
            self.names.remove(&name);
            if self.names.len() < self.names.capacity() / 4 {
                self.names.shrink_to_fit();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty()
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.here.is_empty() && self.rest.is_empty() && self.any.is_none() && self.named.is_empty()
    }

    /// Calls `each` with those whose pattern matches these tokens.
    fn find(&self, tokens: &str, each: &mut impl FnMut(&Listeners)) {
        each(&self.rest);
        let (token, after) =
            tokens.split_once('.').map_or((tokens, None), |(token, rest)| (token, Some(rest)));
        for node in self.any.as_deref().into_iter().chain(self.named.get(token).map(|node| &**node)) {
            match after {
                Some(tokens) => node.find(tokens, each),
                None => each(&node.here),
            }
        }
    }

    fn with<'a>(
        &mut self,
        tokens: &mut impl Iterator<Item = Token<'a>>,
        change: impl FnOnce(&mut Listeners),
    ) {
        match tokens.next() {
            None => change(&mut self.here),
            Some(Token::Rest) => change(&mut self.rest),
            Some(Token::Any) => {
                let node = self.any.get_or_insert_default();
                node.with(tokens, change);
                if node.is_empty() {
                    self.any = None;
                }
            }
            Some(Token::Name(name)) => {
                let node = self.named.entry(name.into()).or_default();
                node.with(tokens, change);
                if node.is_empty() {
                    self.named.remove(name);
                }
            }
        }
    }
}

impl Listeners {
    fn is_empty(&self) -> bool {
        self.subscribers == 0 && self.first.is_none()
    }

    fn iter(&self) -> impl Iterator<Item = Packed> {
        self.first.into_iter().chain(self.others.iter().flat_map(|others| others.iter().copied()))
    }

    fn add(&mut self, listener: Packed) {
        match self.first {
            None => self.first = Some(listener),
            Some(_) => drop(self.others.get_or_insert_default().insert(listener)),
        }
    }

    fn remove(&mut self, listener: Packed) {
        let others = self.others.as_deref_mut();
        if self.first == Some(listener) {
            let next = others.and_then(|others| Some(*others.iter().next()?));
            self.first = next;
            if let (Some(next), Some(others)) = (next, &mut self.others) {
                others.remove(&next);
            }
        } else if let Some(others) = others {
            others.remove(&listener);
        }
        self.others.take_if(|others| others.is_empty());
    }
}

impl From<Listener> for Packed {
    fn from(Listener { feed, number }: Listener) -> Self {
        debug_assert!(feed < MAX_FEEDS && number < MAX_LISTENERS);
        Packed(NonZeroU32::MIN.saturating_add(u32::from(feed) << 24 | number))
    }
}

impl From<Packed> for Listener {
    fn from(Packed(packed): Packed) -> Self {
        let packed = packed.get() - 1;
        Listener { feed: (packed >> 24) as u8, number: packed & (MAX_LISTENERS - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text, 32).unwrap()
    }

    fn listeners(audience: &Audience, channel: &str) -> Vec<u32> {
        let mut numbers = Vec::new();
        audience
            .for_each(&ChannelName::parse(channel, 32).unwrap(), |listener| numbers.push(listener.number));
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn a_channel_has_the_listeners_of_its_name_and_of_the_patterns_that_match() {
        let mut audience = Audience::default();
        let patterns = ["a", "a", "a.b", "a.*", "a.>", "*", ">", "*.b", "a.*.c", "*.*.c"];
        let listener = |number| Listener { feed: 254, number };
        for (pattern, number) in patterns.iter().map(|text| self::pattern(text)).zip(0..) {
            audience.add(&pattern, listener(number));
            audience.count(&pattern);
        }
        assert_eq!(listeners(&audience, "a"), [0, 1, 5, 6]);
        assert_eq!(listeners(&audience, "a.b"), [2, 3, 4, 6, 7]);
        assert_eq!(listeners(&audience, "a.b.c"), [4, 6, 8, 9]);
        assert_eq!(listeners(&audience, "b.b.c.d"), [6]);
        assert_eq!(audience.subscribers(&ChannelName::parse("a.b", 32).unwrap()), 5);
        for (pattern, number) in patterns.iter().map(|text| self::pattern(text)).zip(0..) {
            assert!(!audience.is_empty());
            audience.remove(&pattern, listener(number));
            audience.uncount(&pattern);
        }
        assert!(audience.is_empty());
    }

    #[test]
    fn each_of_many_listeners_of_a_channel_can_leave() {
        let mut audience = Audience::default();
        let name = pattern("a");
        for number in 0..100 {
            audience.add(&name, Listener { feed: 0, number });
        }
        for number in (0..100).filter(|number| number % 3 != 1) {
            audience.remove(&name, Listener { feed: 0, number });
        }
        assert_eq!(listeners(&audience, "a"), (0..100).filter(|number| number % 3 == 1).collect::<Vec<_>>());
    }
}
