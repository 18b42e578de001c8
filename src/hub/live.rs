//! Live: what was committed, to those who listen.
//!
//! Those who listen do so on a few feeds, one for each thread that sends. A message comes on the feeds of
//! its channel's listeners, and on no other. So neither a channel nor a listener has a queue of its own, and
//! a quiet channel costs no more than a place in a map.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use super::audience::{Audience, Listener, MAX_FEEDS};
use crate::journal::{Channels, Entry};
use crate::message::ChannelName;

/// The most messages that a feed holds. Higher: more memory. Lower: listeners read the journal more often.
pub(super) const FEED_CAPACITY: usize = 1024;

/// The most listeners for whom a feed holds messages, each counted once for each message. Higher and lower:
/// as [`FEED_CAPACITY`], eight bytes each.
const MAX_WANTED: usize = 1 << 17;

/// The audience, and the feeds.
#[derive(Debug)]
pub(super) struct Live {
    state: Mutex<State>,
    /// One for each feed, notified when messages come, and when every subscription ends.
    changed: Vec<Notify>,
    /// Set once every subscription ends.
    stopped: AtomicBool,
}

/// What is inside the lock. While it is held, each message up to `announced` is on the feeds of its
/// listeners, and no later message is.
#[derive(Debug)]
pub(super) struct State {
    audience: Audience,
    /// The sequence of the last message announced.
    pub(super) announced: u64,
    feeds: Vec<Announcements>,
}

/// What came on a feed since it was last taken.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    /// The messages. They are kept by the journal only: a feed that nobody takes holds no data, and retention
    /// is the one bound on memory.
    pub(super) messages: Vec<Weak<Entry>>,
    /// Who wants which: a listener's number, and a place in `messages`.
    pub(super) wanted: Vec<(u32, u32)>,
    /// Whether there were too many to be held. The rest is empty then.
    pub(super) has_lagged: bool,
}

impl Live {
    /// So many feeds, on which nobody listens yet, for a journal whose last message has the sequence `head`.
    pub(super) fn new(head: u64, feeds: usize) -> Self {
        let feeds = feeds.clamp(1, usize::from(MAX_FEEDS));
        let changed = (0..feeds).map(|_| Notify::new()).collect();
        let feeds = (0..feeds).map(|_| Announcements::default()).collect();
        let state = State { audience: Audience::default(), announced: head, feeds };
        Live { state: Mutex::new(state), changed, stopped: AtomicBool::new(false) }
    }

    /// The lock. Nothing is announced while the guard is held.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces these messages to those who listen to their channels.
    pub(super) fn announce(&self, entries: &[Arc<Entry>]) {
        let mut has_changed = vec![false; self.changed.len()];
        let mut state = self.state();
        let State { audience, announced, feeds } = &mut *state;
        for entry in entries {
            *announced = entry.message.id.sequence;
            audience.for_each(&entry.message.channel, |Listener { feed, number }| {
                has_changed[usize::from(feed)] = true;
                feeds[usize::from(feed)].add(entry, number);
            });
        }
        drop(state);
        let changed = self.changed.iter().zip(has_changed).filter(|(_, has_changed)| *has_changed);
        changed.for_each(|(feed, _)| feed.notify_one());
    }

    /// Counts one more subscriber of these channels. Returns the sequence of the last message announced.
    pub(super) fn count(&self, channels: &Channels) -> u64 {
        let mut state = self.state();
        channels.iter().for_each(|pattern| state.audience.count(pattern));
        state.announced
    }

    /// Counts one subscriber less on these channels.
    pub(super) fn uncount(&self, channels: &Channels) {
        let mut state = self.state();
        channels.iter().for_each(|pattern| state.audience.uncount(pattern));
    }

    /// Adds a listener to these channels. Returns the sequence of the last message announced before.
    pub(super) fn listen(&self, channels: &Channels, listener: Listener) -> u64 {
        let mut state = self.state();
        channels.iter().for_each(|pattern| state.audience.add(pattern, listener));
        state.announced
    }

    /// Removes the listener, and what came for it.
    pub(super) fn leave(&self, channels: &Channels, listener: Listener) {
        let mut state = self.state();
        channels.iter().for_each(|pattern| state.audience.remove(pattern, listener));
        state.feeds[usize::from(listener.feed)].wanted.retain(|(number, _)| *number != listener.number);
    }

    /// Waits until something came on the feed since the last call, or until every subscription ends.
    pub(super) async fn changed(&self, feed: u8) {
        self.changed[usize::from(feed)].notified().await;
    }

    /// Takes what came on the feed. Also returns the sequence of the last message announced.
    pub(super) fn take(&self, feed: u8) -> (u64, Announcements) {
        let mut state = self.state();
        (state.announced, mem::take(&mut state.feeds[usize::from(feed)]))
    }

    /// How many feeds there are.
    pub(super) fn feeds(&self) -> usize {
        self.changed.len()
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Ends every subscription, now and later.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.changed.iter().for_each(Notify::notify_one);
    }
}

impl State {
    /// How many subscribers this channel has.
    pub(super) fn subscribers(&self, channel: &ChannelName) -> usize {
        self.audience.subscribers(channel)
    }

    #[cfg(test)]
    pub(super) fn is_quiet(&self) -> bool {
        self.audience.is_empty()
    }
}

impl Announcements {
    /// Adds a message that this listener wants.
    fn add(&mut self, entry: &Arc<Entry>, listener: u32) {
        if self.has_lagged {
            return;
        }
        // A message's listeners come one after the other.
        let is_new = self.messages.last().is_none_or(|last| last.as_ptr() != Arc::as_ptr(entry));
        if self.wanted.len() == MAX_WANTED || is_new && self.messages.len() == FEED_CAPACITY {
            *self = Announcements { has_lagged: true, ..Announcements::default() };
            return;
        }
        if is_new {
            self.messages.push(Arc::downgrade(entry));
        }
        let place = u32::try_from(self.messages.len() - 1).expect("a feed's capacity is less");
        self.wanted.push((listener, place));
    }
}
