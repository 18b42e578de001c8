//! The age of messages by the time that has passed since they were stored, in one run of a hub.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Into how many parts an age is divided. Higher: more memory. Lower: messages are kept for longer than their
/// age, by one of the parts.
pub(super) const PARTS: u32 = 1024;

/// An age of messages that were stored since the journal was opened.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) age: Duration,
    /// At each instant, the sequence of the next message. Oldest first, and only the first is of that age.
    stored: VecDeque<(Instant, u64)>,
    /// The same after the last message.
    last: Option<(Instant, u64)>,
}

impl Passed {
    pub(super) fn new(age: Duration) -> Self {
        Passed { age, stored: VecDeque::new(), last: None }
    }

    /// Records that the message at this sequence is stored `now`.
    pub(super) fn store(&mut self, now: Instant, sequence: u64) {
        if self.stored.back().is_none_or(|(last, _)| now.duration_since(*last) >= self.age / PARTS) {
            self.stored.push_back((now, sequence));
        }
        while self.stored.get(1).is_some_and(|(second, _)| now.duration_since(*second) >= self.age) {
            self.stored.pop_front();
        }
        self.last = Some((now, sequence + 1));
    }

    /// The sequence before which all messages have the age, 0 if none has.
    pub(super) fn before(&self, now: Instant) -> u64 {
        if self.age.is_zero() {
            // As late as any sequence can be in a file.
            return i64::MAX.cast_unsigned();
        }
        let is_old = |(at, _): &(Instant, u64)| now.duration_since(*at) >= self.age;
        let old = self.stored.partition_point(is_old).checked_sub(1).map(|last| self.stored[last].1);
        self.last.filter(is_old).map(|(_, next)| next).or(old).unwrap_or(0)
    }
}
