//! The live feeds: what the journal has committed, to who listens.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use crate::journal::{Channels, Entry};
use crate::message::ChannelName;

/// Announcements a channel's feed holds for subscribers that have not looked yet. One that falls
/// further behind reads the journal instead, so this bounds nothing but how often that happens. A
/// feed allocates them all at once, some 40 bytes each, and a stranger can open many feeds.
pub(super) const FEED_CAPACITY: usize = 128;

/// A feed for each channel that has a subscriber.
#[derive(Debug)]
pub(super) struct Live {
    feeds: RwLock<Feeds>,
    /// Every subscription ends.
    stopped: AtomicBool,
}

/// The feeds under their lock. Messages are announced under the write lock: while anyone holds the
/// read lock, every message up to `announced` is on its channel's feed and none above it is.
#[derive(Debug)]
pub(super) struct Feeds {
    /// One per channel that has a subscriber: made with its first, gone with its last.
    by_channel: HashMap<ChannelName, Feed>,
    /// The sequence of the last message announced.
    pub(super) announced: u64,
}

/// What one channel's messages are announced on.
#[derive(Debug)]
struct Feed {
    announcements: broadcast::Sender<Announcement>,
    /// How many subscribers the channel has. Several may follow one subscription.
    subscribers: usize,
}

/// That a message is there to be read. It doesn't keep the message: only the journal does, so a
/// feed nobody reads holds no data and retention is the one bound on memory.
#[derive(Clone, Debug)]
pub(super) struct Announcement {
    pub(super) sequence: u64,
    pub(super) entry: Weak<Entry>,
}

/// One channel's announcements, as a follower takes them.
pub(super) type Follow = BroadcastStream<Announcement>;

impl Live {
    /// Follows a journal whose last message has the sequence `head`.
    pub(super) fn new(head: u64) -> Self {
        let feeds = Feeds { by_channel: HashMap::new(), announced: head };
        Live { feeds: RwLock::new(feeds), stopped: AtomicBool::new(false) }
    }

    /// The feeds, on which nothing is announced while the guard is held.
    pub(super) fn feeds(&self) -> RwLockReadGuard<'_, Feeds> {
        self.feeds.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn feeds_mut(&self) -> RwLockWriteGuard<'_, Feeds> {
        self.feeds.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces these messages, each to the followers of its channel.
    pub(super) fn announce(&self, entries: &[Arc<Entry>]) {
        let mut feeds = self.feeds_mut();
        for entry in entries {
            feeds.announced = entry.message.id.sequence;
            if let Some(feed) = feeds.by_channel.get(&entry.message.channel) {
                let announcement = Announcement { sequence: feeds.announced, entry: Arc::downgrade(entry) };
                // Fails only if nobody follows.
                let _ = feed.announcements.send(announcement);
            }
        }
    }

    /// Takes the feeds of these channels, and counts one more subscriber of each. Also the sequence of
    /// the last message that will not come by them.
    pub(super) fn join(&self, channels: &Channels) -> (Vec<Follow>, u64) {
        let mut feeds = self.feeds_mut();
        for channel in channels.iter() {
            feeds.feed(channel).subscribers += 1;
        }
        (feeds.follow(channels), feeds.announced)
    }

    /// Takes the feeds of these channels for a subscriber that is counted already.
    pub(super) fn follow(&self, channels: &Channels) -> Vec<Follow> {
        self.feeds_mut().follow(channels)
    }

    /// Counts one subscriber of these channels less.
    pub(super) fn leave(&self, channels: &Channels) {
        let mut feeds = self.feeds_mut();
        for channel in channels.iter() {
            if let Some(feed) = feeds.by_channel.get_mut(channel) {
                feed.subscribers -= 1;
            }
        }
        feeds.tidy(channels);
    }

    /// Drops the feeds of these channels that nobody needs.
    pub(super) fn tidy(&self, channels: &Channels) {
        self.feeds_mut().tidy(channels);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Ends every subscription, those to come too.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // A feed whose sender is gone wakes its followers, and ends.
        for feed in self.feeds_mut().by_channel.values_mut() {
            feed.announcements = broadcast::Sender::new(1);
        }
    }
}

impl Feeds {
    /// How many subscribers this channel has.
    pub(super) fn subscribers(&self, channel: &ChannelName) -> usize {
        self.by_channel.get(channel).map_or(0, |feed| feed.subscribers)
    }

    fn feed(&mut self, channel: &ChannelName) -> &mut Feed {
        self.by_channel
            .entry(channel.clone())
            .or_insert_with(|| Feed { announcements: broadcast::Sender::new(FEED_CAPACITY), subscribers: 0 })
    }

    fn follow(&mut self, channels: &Channels) -> Vec<Follow> {
        let receivers = channels.iter().map(|channel| self.feed(channel).announcements.subscribe());
        receivers.map(BroadcastStream::new).collect()
    }

    fn tidy(&mut self, channels: &Channels) {
        for channel in channels.iter() {
            let is_unused = |feed: &Feed| feed.subscribers == 0 && feed.announcements.receiver_count() == 0;
            if self.by_channel.get(channel).is_some_and(is_unused) {
                self.by_channel.remove(channel);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.by_channel.len()
    }
}
