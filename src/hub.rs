//! The hub: this process's fan-out from the journal to its subscribers.
//!
//! **A subscriber is a position in the journal.** There is no queue per subscriber: to publish is
//! to append to the journal and announce the message on its channel's live feed; to subscribe is to
//! take the live feed first, read the journal from the position, then follow the feed
//! ([`Subscription`]). The hub knows nothing of HTTP.

mod seats;
mod subscription;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use tokio::sync::{OwnedSemaphorePermit, broadcast, mpsc, oneshot};
use tokio::task::yield_now;

use crate::journal::{Append, AppendError, Appended, Channels, Entry, Failed, Journal, Page, PageLimit};
use crate::message::{ChannelName, Draft, IdempotencyKey, MessageId, Receipt, SubscriberId};

pub use seats::{Full, Seat, SeatLimits, Seats};
pub use subscription::{Delivery, Share, Subscription};

/// Announcements a live feed holds for subscribers that have not looked yet. One that falls
/// further behind reads the journal instead, so this bounds nothing but how often that happens. A
/// feed allocates them all at once, some 40 bytes each, and a stranger can open many feeds.
const FEED_CAPACITY: usize = 128;

/// Messages appended at once. More would make the first of them wait for no gain.
const BATCH: usize = 256;

/// Publishes waiting to be appended, beyond which publishers wait. Their bytes are bounded by the
/// caller, see [`Hub::publish`].
const INBOX: usize = 1024;

/// The fan-out of one journal. Clones are the same hub. Dropping the last one stops it.
#[derive(Clone, Debug)]
pub struct Hub {
    inbox: mpsc::Sender<Publish>,
    core: Arc<Core>,
}

/// What publishing and subscribing share.
#[derive(Debug)]
struct Core {
    journal: Journal,
    live: RwLock<Live>,
    page: PageLimit,
    /// Every subscription ends.
    stopped: AtomicBool,
}

/// The live feeds. Messages are announced under its write lock, so that while anyone holds the
/// read lock, every message up to `announced` is on its channel's feed and none above it is.
#[derive(Debug)]
struct Live {
    /// One per channel that has a subscriber: made with its first, gone with its last.
    feeds: HashMap<ChannelName, Feed>,
    /// The sequence of the last message announced.
    announced: u64,
}

/// What a channel's messages are announced on.
#[derive(Debug)]
struct Feed {
    announcements: broadcast::Sender<Announcement>,
    /// How many subscribers the channel has. Several may follow one subscription, see
    /// [`Subscription::share`].
    subscribers: usize,
}

/// That a message is there to be read. It doesn't keep the message: only the journal does, so a
/// feed nobody reads holds no data and retention is the one bound on memory.
#[derive(Clone, Debug)]
struct Announcement {
    sequence: u64,
    entry: Weak<Entry>,
}

#[derive(Debug)]
struct Publish {
    append: Append,
    room: OwnedSemaphorePermit,
    answer: oneshot::Sender<Result<Published, PublishError>>,
}

/// What a publish came to.
#[derive(Debug)]
pub enum Published {
    /// The message is kept, and was announced to this many subscribers of its channel.
    New {
        /// The kept message.
        entry: Arc<Entry>,
        /// Those subscribed to its channel, `except` among them.
        subscribers: usize,
    },
    /// The same request was published before, under the same key; this was its answer.
    Repeated(Receipt),
}

/// Why nothing was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The key came before, with another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// There is no space to keep it.
    #[error("there is no space for the journal")]
    NoSpace,
    /// Another program keeps the journal from being written.
    #[error("the journal is being written by another program")]
    Busy,
    /// The journal failed, or the hub stopped, while it was appended: it may be kept or not.
    #[error("it is not known whether the message is kept")]
    Unknown,
}

impl From<AppendError> for PublishError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::NoSpace => PublishError::NoSpace,
            AppendError::Busy => PublishError::Busy,
            AppendError::Failed(_) => PublishError::Unknown,
        }
    }
}

/// Where a subscriber begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// With the next message.
    Live,
    /// With the newest of the kept messages, this many of them.
    Newest(usize),
    /// After this last event ID, as the subscriber gave it.
    After(String),
}

/// What a subscriber asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The channels it listens to.
    pub channels: Channels,
    /// Where it begins.
    pub start: Start,
    /// Its own id, for messages that are not for it.
    pub subscriber: Option<SubscriberId>,
}

impl Hub {
    /// A hub over `journal` that replays in pages of `page`. Must be called on a tokio runtime: one
    /// task there appends every message, so that ids, announcements and replay have one order.
    pub fn new(journal: Journal, page: PageLimit) -> Self {
        let live = Live { feeds: HashMap::new(), announced: journal.head() };
        let core = Arc::new(Core { journal, live: RwLock::new(live), page, stopped: AtomicBool::new(false) });
        let (inbox, requests) = mpsc::channel(INBOX);
        tokio::spawn(publish(Arc::clone(&core), requests));
        Hub { inbox, core }
    }

    /// Appends the message, then announces it. It is kept once this returns; and perhaps even if
    /// the caller stops waiting. `room` is what it takes of some bound, given back once it is no longer
    /// waiting to be kept, also if nobody waits for that.
    ///
    /// # Errors
    /// [`PublishError`]: then it was not kept, but for [`PublishError::Unknown`].
    pub async fn publish(
        &self,
        draft: Draft,
        key: Option<IdempotencyKey>,
        room: OwnedSemaphorePermit,
    ) -> Result<Published, PublishError> {
        let (answer, answered) = oneshot::channel();
        let publish = Publish { append: Append { draft, key }, room, answer };
        self.inbox.send(publish).await.map_err(|_| PublishError::Unknown)?;
        answered.await.unwrap_or(Err(PublishError::Unknown))
    }

    /// Everything on the channels from the start on, in order, each message once.
    ///
    /// # Errors
    /// [`Failed`] if the journal can't be read.
    pub async fn subscribe(&self, request: Request) -> Result<Subscription, Failed> {
        Subscription::new(Arc::clone(&self.core), request).await
    }

    /// The kept messages on the request's channels up to now, from its start on; [`Start::Live`]
    /// gives none. Its [`Subscription::next`] ends with `None`.
    ///
    /// # Errors
    /// [`Failed`] if the journal can't be read.
    pub async fn history(&self, request: Request) -> Result<Subscription, Failed> {
        Subscription::history(Arc::clone(&self.core), request).await
    }

    /// Ready when the journal has failed, with what happened: the process must stop, and say so.
    pub async fn failure(&self) -> String {
        self.core.journal.failure().await
    }

    /// Ends every subscription, those to come too. Publishing goes on.
    pub fn end_subscriptions(&self) {
        self.core.stopped.store(true, Ordering::Release);
        // A sender that is gone wakes those who wait on it, and is their end.
        for feed in self.core.live_mut().feeds.values_mut() {
            feed.announcements = broadcast::Sender::new(1);
        }
    }
}

impl Live {
    fn feed(&mut self, channel: &ChannelName) -> &mut Feed {
        self.feeds
            .entry(channel.clone())
            .or_insert_with(|| Feed { announcements: broadcast::Sender::new(FEED_CAPACITY), subscribers: 0 })
    }

    /// Puts what was appended on its live feed. Returns what the publish has come to.
    fn announce(&mut self, appended: Appended) -> Result<Published, PublishError> {
        let entry = match appended {
            Appended::New(entry) => entry,
            Appended::Repeated(receipt) => return Ok(Published::Repeated(receipt)),
            Appended::KeyReused => return Err(PublishError::KeyReused),
        };
        self.announced = entry.message.id.sequence;
        let mut subscribers = 0;
        if let Some(feed) = self.feeds.get(&entry.message.channel) {
            // Fails only if nobody follows, which is no failure of the publisher's.
            let announcement = Announcement { sequence: self.announced, entry: Arc::downgrade(&entry) };
            let _ = feed.announcements.send(announcement);
            subscribers = feed.subscribers;
        }
        Ok(Published::New { entry, subscribers })
    }

    /// Drops the feeds of these channels that nobody needs.
    fn tidy(&mut self, channels: &Channels) {
        for channel in channels.iter() {
            let unused = |feed: &Feed| feed.subscribers == 0 && feed.announcements.receiver_count() == 0;
            if self.feeds.get(channel).is_some_and(unused) {
                self.feeds.remove(channel);
            }
        }
    }
}

/// A subscriber, counted among those of its channels until it is dropped.
#[derive(Debug)]
pub struct Counted {
    core: Arc<Core>,
    channels: Channels,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut live = self.core.live_mut();
        for channel in self.channels.iter() {
            if let Some(feed) = live.feeds.get_mut(channel) {
                feed.subscribers -= 1;
            }
        }
        live.tidy(&self.channels);
    }
}

impl Core {
    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn live(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn live_mut(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn id(&self, sequence: u64) -> MessageId {
        MessageId { epoch: self.journal.epoch(), sequence }
    }

    async fn read(&self, position: u64, channels: &Channels) -> Result<Page, Failed> {
        self.journal.read(position, channels, self.page).await
    }
}

/// Appends and announces what the hub is given, all that waits at once. Ends with the hub.
async fn publish(core: Arc<Core>, mut requests: mpsc::Receiver<Publish>) {
    let mut waiting = Vec::with_capacity(BATCH);
    while requests.recv_many(&mut waiting, BATCH).await > 0 {
        // Whoever is about to publish has its turn first: then all share one append, one round of the
        // fan-out and, in a file, one fsync.
        yield_now().await;
        while waiting.len() < BATCH
            && let Ok(publish) = requests.try_recv()
        {
            waiting.push(publish);
        }
        let count = waiting.len();
        let mut batch = Vec::with_capacity(count);
        let (mut answers, mut rooms) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for Publish { append, room, answer } in waiting.drain(..) {
            batch.push(append);
            rooms.push(room);
            answers.push(answer);
        }
        let appended = match core.journal.append(batch).await {
            Ok(appended) => appended,
            Err(error) => {
                for answer in answers {
                    let _ = answer.send(Err(error.into()));
                }
                continue;
            }
        };
        drop(rooms);
        let results: Vec<_> = {
            let mut live = core.live_mut();
            appended.into_iter().map(|appended| live.announce(appended)).collect()
        };
        for (answer, result) in answers.into_iter().zip(results) {
            // A publisher that hung up has its message kept all the same.
            let _ = answer.send(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::journal::{KeyLimits, Place, Retention};
    use crate::message::{Data, EventName};

    fn hub() -> Hub {
        let retention = Retention { messages: 1_000, bytes: 1 << 20, age: Duration::MAX };
        let keys = KeyLimits { count: 0, window: Duration::ZERO };
        let journal = Journal::open(&Place::Memory, retention, keys).unwrap();
        Hub::new(journal, PageLimit { messages: 10, bytes: 1 << 20 })
    }

    async fn subscribe(hub: &Hub, names: &[&str]) -> Subscription {
        let channels = Channels::new(names.iter().map(|name| ChannelName::parse(name, 9).unwrap()));
        hub.subscribe(Request { channels, start: Start::Live, subscriber: None }).await.unwrap()
    }

    async fn publish(hub: &Hub, channel: &str, text: &str) -> Arc<Entry> {
        let (channel, event) = (ChannelName::parse(channel, 9).unwrap(), EventName::default());
        let draft = Draft { channel, event, data: Data::text(text), except: None };
        let room = Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned().unwrap();
        match hub.publish(draft, None, room).await.unwrap() {
            Published::New { entry, .. } => entry,
            Published::Repeated(_) => unreachable!("it had no key"),
        }
    }

    /// Every message from the journal's first to this one, each once and in order.
    async fn assert_delivers(subscription: &mut Subscription, through: u64) {
        let mut next = 1;
        while next <= through {
            let Some(Delivery::Messages(entries)) = subscription.next().await.unwrap() else {
                panic!("a gap")
            };
            for entry in entries {
                assert_eq!(entry.message.id.sequence, next);
                next += 1;
            }
        }
    }

    #[tokio::test]
    async fn a_live_feed_is_made_with_the_first_subscriber_of_its_channel_and_gone_with_the_last() {
        let hub = hub();
        let feeds = || hub.core.live().feeds.len();
        publish(&hub, "a", "nobody listens").await;
        assert_eq!(feeds(), 0);
        let (first, second) = (subscribe(&hub, &["a", "b"]).await, subscribe(&hub, &["b"]).await);
        assert_eq!(feeds(), 2);
        drop(first);
        assert_eq!(feeds(), 1);
        drop(second);
        assert_eq!(feeds(), 0);
    }

    #[tokio::test]
    async fn a_publisher_that_hangs_up_gives_its_room_back_only_when_its_message_is_kept() {
        let (hub, rooms) = (hub(), Arc::new(tokio::sync::Semaphore::new(1)));
        let (channel, event) = (ChannelName::default(), EventName::default());
        let draft = Draft { channel, event, data: Data::text("x"), except: None };
        let publish = hub.publish(draft, None, Arc::clone(&rooms).try_acquire_owned().unwrap());
        // Polled once, it is in the inbox; on this one thread, nobody has looked there yet.
        assert!(tokio::time::timeout(Duration::ZERO, publish).await.is_err() || hub.core.journal.head() == 1);
        let _room = rooms.acquire().await.unwrap();
        assert_eq!(hub.core.journal.head(), 1);
    }

    #[tokio::test]
    async fn a_feed_nobody_reads_keeps_no_message() {
        let hub = hub();
        let _stalled = subscribe(&hub, &["a"]).await;
        let message = publish(&hub, "a", "dropped by retention").await;
        let announced = Arc::downgrade(&message);
        drop(message);
        for _ in 0..5 {
            publish(&hub, "a", &"x".repeat(1 << 18)).await;
        }
        assert!(announced.upgrade().is_none());
    }

    #[tokio::test]
    async fn a_subscriber_that_lags_behind_its_feed_reads_on_from_the_journal() {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a"]).await;
        let count = FEED_CAPACITY as u64 + 50;
        for _ in 0..count {
            publish(&hub, "a", "x").await;
        }
        assert_delivers(&mut subscription, count).await;
    }

    #[tokio::test]
    async fn no_feed_is_left_half_read_where_messages_were_gathered_before() {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a", "b"]).await;
        publish(&hub, "a", "x").await;
        assert!(tokio::time::timeout(Duration::ZERO, subscription.gathered(FEED_CAPACITY)).await.is_err());
        for channel in ["b", "a"] {
            for _ in 0..FEED_CAPACITY {
                publish(&hub, channel, "x").await;
            }
        }
        subscription.gathered(FEED_CAPACITY).await;
        assert_delivers(&mut subscription, 1 + 2 * FEED_CAPACITY as u64).await;
    }

    #[tokio::test]
    async fn messages_gathered_on_several_channels_come_in_order_and_more_than_a_feed_holds_is_not_waited_for()
     {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a", "b"]).await;
        for channel in ["b", "a", "b"] {
            assert!(tokio::time::timeout(Duration::ZERO, subscription.gathered(3)).await.is_err());
            publish(&hub, channel, "x").await;
        }
        subscription.gathered(3).await;
        let Some(Delivery::Messages(entries)) = subscription.next().await.unwrap() else { panic!("a gap") };
        assert_eq!(entries.iter().map(|entry| entry.message.id.sequence).collect::<Vec<_>>(), [1, 2, 3]);

        for _ in 0..FEED_CAPACITY {
            publish(&hub, "a", "x").await;
        }
        subscription.gathered(1_000).await;
    }

    #[tokio::test]
    async fn nothing_is_lost_by_not_waiting_for_the_next_message() {
        let hub = hub();
        let mut subscription = subscribe(&hub, &["a", "b"]).await;
        for number in 0..100 {
            publish(&hub, ["a", "b"][number % 2], "x").await;
            // Polled once, and dropped whether it was ready or not.
            let polled = tokio::time::timeout(Duration::ZERO, subscription.next()).await;
            if let Ok(Ok(Some(Delivery::Messages(entries)))) = polled {
                assert_eq!(entries[0].message.id.sequence, number as u64 + 1);
                assert_eq!(entries.len(), 1);
            } else {
                panic!("it was there");
            }
            assert!(tokio::time::timeout(Duration::ZERO, subscription.next()).await.is_err());
        }
    }
}
