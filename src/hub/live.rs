//! The live feeds: they announce committed messages to the subscribers of a channel.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

use crate::journal::{Channels, Entry};
use crate::message::{ChannelName, Pattern};

/// The announcements that a feed holds for its readers. Higher: more memory, as a feed allocates all of
/// them at once, some 40 bytes each, and one host can open many feeds. Lower: a reader misses announcements
/// sooner, and then reads the journal.
pub(super) const FEED_CAPACITY: usize = 128;

/// A feed for each channel that has a subscriber.
#[derive(Debug)]
pub(super) struct Live {
    feeds: RwLock<Feeds>,
    /// Set once every subscription ends.
    stopped: AtomicBool,
}

/// The feeds, inside their lock. Messages are announced under the write lock. So while a read lock is held,
/// each message up to `announced` is on its channel's feed, and no later message is.
#[derive(Debug)]
pub(super) struct Feeds {
    /// One for each channel that has a subscriber: made for its first, removed after its last.
    by_channel: HashMap<Pattern, Feed>,
    /// The sequence of the last message announced.
    pub(super) announced: u64,
}

/// The feed of one channel.
#[derive(Debug)]
struct Feed {
    announcements: broadcast::Sender<Announcement>,
    /// How many subscribers the channel has. A group of them has one subscription, and so one reader.
    subscribers: usize,
}

/// The announcement of one message. It does not keep the message, which only the journal does: an unread feed
/// holds no data, and retention is the one bound on memory.
#[derive(Clone, Debug)]
pub(super) struct Announcement {
    pub(super) sequence: u64,
    pub(super) entry: Weak<Entry>,
}

/// One reader of a channel's feed.
pub(super) type FeedReader = BroadcastStream<Announcement>;

impl Live {
    /// No feeds yet, for a journal whose last message has the sequence `head`.
    pub(super) fn new(head: u64) -> Self {
        let feeds = Feeds { by_channel: HashMap::new(), announced: head };
        Live { feeds: RwLock::new(feeds), stopped: AtomicBool::new(false) }
    }

    /// Locks the feeds. Nothing is announced while the guard is held.
    pub(super) fn feeds(&self) -> RwLockReadGuard<'_, Feeds> {
        self.feeds.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn feeds_mut(&self) -> RwLockWriteGuard<'_, Feeds> {
        self.feeds.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces these messages, each on its channel's feed.
    pub(super) fn announce(&self, entries: &[Arc<Entry>]) {
        let mut feeds = self.feeds_mut();
        for entry in entries {
            feeds.announced = entry.message.id.sequence;
            if let Some(feed) = feeds.by_channel.get(&Pattern::from(entry.message.channel.clone())) {
                let announcement = Announcement { sequence: feeds.announced, entry: Arc::downgrade(entry) };
                // Fails only if the feed has no reader.
                let _ = feed.announcements.send(announcement);
            }
        }
    }

    /// Counts one more subscriber of these channels. Returns readers of their feeds, and the sequence of the
    /// last message announced before those readers began.
    pub(super) fn join(&self, channels: &Channels) -> (Vec<FeedReader>, u64) {
        let mut feeds = self.feeds_mut();
        for channel in channels.iter() {
            feeds.feed(channel).subscribers += 1;
        }
        (feeds.follow(channels), feeds.announced)
    }

    /// Readers of the feeds of these channels, for subscribers that are counted already.
    pub(super) fn follow(&self, channels: &Channels) -> Vec<FeedReader> {
        self.feeds_mut().follow(channels)
    }

    /// Counts one subscriber less on these channels.
    pub(super) fn leave(&self, channels: &Channels) {
        let mut feeds = self.feeds_mut();
        for channel in channels.iter() {
            if let Some(feed) = feeds.by_channel.get_mut(channel) {
                feed.subscribers -= 1;
            }
        }
        feeds.tidy(channels);
    }

    /// Removes those feeds of these channels that have neither subscribers nor readers.
    pub(super) fn tidy(&self, channels: &Channels) {
        self.feeds_mut().tidy(channels);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Ends every subscription, now and later.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        // Dropping a feed's old sender wakes and ends its readers.
        for feed in self.feeds_mut().by_channel.values_mut() {
            feed.announcements = broadcast::Sender::new(1);
        }
    }
}

impl Feeds {
    /// How many subscribers this channel has.
    pub(super) fn subscribers(&self, channel: &ChannelName) -> usize {
        self.by_channel.get(&Pattern::from(channel.clone())).map_or(0, |feed| feed.subscribers)
    }

    fn feed(&mut self, channel: &Pattern) -> &mut Feed {
        self.by_channel
            .entry(channel.clone())
            .or_insert_with(|| Feed { announcements: broadcast::Sender::new(FEED_CAPACITY), subscribers: 0 })
    }

    fn follow(&mut self, channels: &Channels) -> Vec<FeedReader> {
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
