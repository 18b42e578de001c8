//! Rules: how much of some channels is kept, whatever is published on others.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::page::Channels;
use crate::message::{ChannelName, Pattern};

/// A rule for each channel that a pattern matches. It has one of the two limits at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The channels.
    pub channels: Pattern,
    /// The most messages kept of each of them. They are its own share: retention drops others first.
    pub messages: Option<usize>,
    /// How long a message of theirs is kept.
    pub age: Option<Duration>,
}

impl fmt::Display for Rule {
    /// As a settings file has it, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rule { channels, messages, age } = self;
        write!(f, "match = {}", channels.as_str())?;
        messages.iter().try_for_each(|messages| write!(f, ", messages = {messages}"))?;
        age.iter().try_for_each(|age| write!(f, ", age = {}", humantime::format_duration(*age)))
    }
}

/// The rules of a journal. Of those that match a channel, the first counts. Clones share one allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Arc<[Rule]>);

impl Rules {
    /// The most rules. Higher: a message is compared with more patterns. Lower: an application with many
    /// kinds of channels may need more.
    pub const MOST: usize = 1_000;

    /// These rules, of which the first [`MOST`](Self::MOST) count.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Self {
        Rules(rules.into_iter().take(Self::MOST).collect())
    }

    /// Each rule, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of the channel's rule.
    pub(super) fn of(&self, channel: &ChannelName) -> Option<usize> {
        self.0.iter().position(|rule| rule.channels.matches(channel))
    }

    pub(super) fn get(&self, number: usize) -> &Rule {
        &self.0[number]
    }

    /// Whether each of these channels has a share of its own.
    pub(super) fn protect(&self, channels: &Channels) -> bool {
        !self.is_empty()
            && channels.iter().all(|asked| {
                let first = self.0.iter().find(|rule| rule.channels.overlaps(asked));
                first.is_some_and(|rule| rule.messages.is_some() && rule.channels.covers(asked))
            })
    }

    /// Which channels have a share of their own, as text.
    pub(super) fn protected(&self) -> String {
        let line = |rule: &Rule| format!("{} {}\n", rule.channels.as_str(), rule.messages.is_some());
        self.0.iter().map(line).collect()
    }
}
