//! The hub: publish, subscribe, history.
//!
//! **A subscriber is a position in the journal.** There is no queue per subscriber. To publish is to append
//! to the journal. A committed message is announced to those who listen to its channel ([`Feed`]). To
//! subscribe is to read the journal from the position ([`Subscription`]), and then to listen. HTTP is unknown
//! here.

mod audience;
mod core;
mod feed;
mod live;
mod pass;
mod passes;
mod publish;
mod reason;
mod subscriber;
mod subscription;

use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::core::Core;
use crate::auth::Caller;
use crate::journal::{Append, Channels, Committed, Failure, Journal, JournalError, Key, PageLimit, Rules};
use crate::limits::{Budget, Lease, Network, Peer, Share, Shares};
use crate::message::{ChannelName, Drafts, MessageId, Pattern};
use crate::value::at_least_one;
use publish::{INBOX, Publish};

pub use crate::limits::Full;
pub use feed::{Feed, Heard};
pub use pass::{Due, Pass};
pub use passes::NotRenewed;
pub use publish::{PublishError, Published};
pub use reason::Reason;
pub use subscriber::Subscriber;
pub use subscription::{Next, NotHeld, Request, Start, Subscription};

/// The hub's settings: the limits of subscribers, and of one read of the journal.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// The most subscribers
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    pub max_subscribers: usize,

    /// The most subscribers from one address (of IPv6, one /64). Behind a proxy, all have the proxy's
    #[arg(long, value_name = "COUNT", default_value_t = 1_000)]
    pub max_subscribers_per_address: usize,

    /// The most requests of GET /messages that are answered at once
    #[arg(long, value_name = "COUNT", default_value_t = 500)]
    pub max_readers: usize,

    /// The most such requests from one address
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub max_readers_per_address: usize,

    /// The most messages read from the journal, or answered by GET /messages, at once
    #[arg(long, value_name = "COUNT", default_value_t = 500, value_parser = at_least_one)]
    pub replay_page: usize,
}

/// The hub of one journal. Clones are the same hub. Dropping the last clone stops the hub.
#[derive(Clone, Debug)]
pub struct Hub {
    inbox: mpsc::Sender<Publish>,
    core: Arc<Core>,
}

/// Why a subscriber, or a reader of history, can't be admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubscribeError {
    /// A limit of subscribers or readers is reached.
    #[error(transparent)]
    Full(#[from] Full),
    /// The journal can't be read, to find the position at which the subscriber begins.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Hub {
    /// The hub of `journal`, and its one task. The task appends and announces every message, so that ids,
    /// announcements and replay have one order. It ends once the last clone of the hub is dropped, and closes
    /// the journal. What is read, and not taken at once, is leased from `budget`. Must be called on a tokio
    /// runtime.
    pub fn new(
        journal: Journal,
        committed: Committed,
        options: &Options,
        budget: Budget,
    ) -> (Self, JoinHandle<()>) {
        /// The bytes of a page, which a subscriber that stops reading can hold beside its socket's buffer.
        /// Higher: more memory for each slow subscriber. Lower: more and smaller writes.
        const PAGE_BYTES: usize = 128 << 10;
        let subscribers =
            Shares::new("subscribers", options.max_subscribers, options.max_subscribers_per_address);
        let readers = Shares::new("readers", options.max_readers, options.max_readers_per_address);
        let page = PageLimit { messages: options.replay_page, bytes: PAGE_BYTES };
        let core = Arc::new(Core::new(journal, subscribers, readers, budget, page));
        let (inbox, requests) = mpsc::channel(INBOX);
        let task = tokio::spawn(publish::run(Arc::clone(&core), committed, requests));
        (Hub { inbox, core }, task)
    }

    /// Appends the messages of a publisher of this network, at least one, and returns once all of them are
    /// stored and announced. `key` is its owner's, wherever that asks from. `lease` is held until they are
    /// stored or refused, even if the caller stops waiting.
    ///
    /// # Errors
    /// [`PublishError`]. No message is stored, but for [`PublishError::Unknown`]: then all or none may be.
    pub async fn publish(
        &self,
        network: Network,
        drafts: Drafts,
        key: Option<Key>,
        lease: Lease,
    ) -> Result<Published, PublishError> {
        let (answer, answered) = oneshot::channel();
        let publish = Publish { append: Append::Messages { drafts, key }, lease, answer };
        self.send(network, publish).await?;
        answered.await.unwrap_or(Err(PublishError::Unknown))
    }

    /// The channel of the message with this id. `None` if there is no such message.
    ///
    /// # Errors
    /// [`JournalError`] if the journal can't be read.
    pub async fn channel_of(
        &self,
        network: Network,
        id: MessageId,
    ) -> Result<Option<ChannelName>, JournalError> {
        let (journal, channels) = (&self.core.journal, Channels::new([Pattern::all()]));
        let (Some(sequence), page) = (journal.position(id), PageLimit { messages: 1, bytes: 1 }) else {
            return Ok(None);
        };
        let page = journal.read(sequence.saturating_sub(1), &channels, None, page, Some(network)).await?;
        let first = page.entries.first().filter(|entry| entry.message.id == id);
        Ok(first.map(|entry| entry.message.channel.clone()))
    }

    /// How many bytes are written to erase the message with this id: the lease of [`delete`](Self::delete).
    ///
    /// # Errors
    /// [`JournalError`] if the journal can't be read.
    pub async fn erased_bytes(&self, network: Network, id: MessageId) -> Result<usize, JournalError> {
        self.core.journal.erased_bytes(id.sequence, network).await
    }

    /// Erases the message with this id for good, and publishes the event that says so on its channel. Returns
    /// once both are done, as of [`publish`](Self::publish).
    ///
    /// # Errors
    /// [`PublishError`]; [`PublishError::NotKept`] if there is no such message.
    pub async fn delete(
        &self,
        network: Network,
        id: MessageId,
        lease: Lease,
    ) -> Result<Published, PublishError> {
        let (answer, answered) = oneshot::channel();
        self.send(network, Publish { append: Append::Erase(id), lease, answer }).await?;
        answered.await.unwrap_or(Err(PublishError::Unknown))
    }

    /// Puts the publish into the inbox. If it is full, the networks that wait have their turns.
    async fn send(&self, network: Network, publish: Publish) -> Result<(), PublishError> {
        let publish = match self.inbox.try_send(publish) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Closed(_)) => return Err(PublishError::Unknown),
            Err(TrySendError::Full(publish)) => publish,
        };
        let _turn = self.core.publishing.take(Some(network)).await;
        self.inbox.send(publish).await.map_err(|_| PublishError::Unknown)
    }

    /// A subscriber at this address, and its subscription: the messages on its channels from its start on, in
    /// order, each once. If the caller has a token, the stream ends with it.
    ///
    /// # Errors
    /// [`SubscribeError`] if a limit is reached, or the journal can't be read.
    pub async fn subscribe(
        &self,
        address: Peer,
        caller: &Caller,
        request: Request,
    ) -> Result<(Subscriber, Subscription), SubscribeError> {
        let core = &self.core;
        let share = core.subscribers.take(Network::from(address))?;
        let mut subscription = Subscription::at_start(Arc::clone(core), address, &request).await?;
        // Nothing is awaited from here on: only dropping a `Subscriber` undoes the count.
        let Request { channels, start, subscriber } = request;
        let announced = core.live.count(&channels);
        if matches!(start, Start::Live) {
            subscription.begin_live(announced);
        }
        let position = subscription.position();
        let pass = core.passes.add(caller, &channels);
        let core = Arc::clone(core);
        let subscriber = Subscriber::new(core, share, address, channels, subscriber, position, pass);
        Ok((subscriber, subscription))
    }

    /// Lets the stream of this id go on for as long as the caller's token is good. It may be sooner that the
    /// stream ends then.
    ///
    /// # Errors
    /// [`NotRenewed`]: the stream goes on as before, if there is one.
    pub fn renew(&self, stream: &str, caller: &Caller) -> Result<(), NotRenewed> {
        self.core.passes.renew(stream, caller)
    }

    /// Ends the streams of all callers whose tokens were revoked. Returns how many there are.
    pub fn end_revoked(&self, is_revoked: impl Fn(&Caller) -> bool) -> usize {
        self.core.passes.end_revoked(is_revoked)
    }

    /// The kept messages on the request's channels, from its start up to now; none for [`Start::Live`].
    /// [`Subscription::next`] returns `None` after the last. Until the subscription is dropped, it counts
    /// against the limits of readers.
    ///
    /// # Errors
    /// [`SubscribeError`] if a limit is reached, or the journal can't be read.
    pub async fn history(&self, address: Peer, request: &Request) -> Result<Subscription, SubscribeError> {
        let core = &self.core;
        let share = core.readers.take(Network::from(address))?;
        Ok(Subscription::history(Arc::clone(core), address, request, share).await?)
    }

    /// Counts somebody at this address among those who read history, until the share is dropped.
    ///
    /// # Errors
    /// [`SubscribeError::Full`] if a limit is reached.
    pub(crate) fn reader(&self, address: Peer) -> Result<Share, SubscribeError> {
        Ok(self.core.readers.take(Network::from(address))?)
    }

    /// Changes the limits of subscribers and readers to these. Of those that are there, all stay.
    pub fn limit_to(&self, options: &Options) {
        let Options { max_subscribers, max_subscribers_per_address, .. } = *options;
        self.core.subscribers.limit_to(max_subscribers, max_subscribers_per_address);
        self.core.readers.limit_to(options.max_readers, options.max_readers_per_address);
    }

    /// The feeds, on which what is announced can be heard: one for each thread of the runtime. Each feed is
    /// for one owner, so this is called once.
    pub fn feeds(&self) -> Vec<Feed> {
        (0..self.core.live.feeds()).map(|number| Feed::new(Arc::clone(&self.core), number)).collect()
    }

    /// The journal's failure: see [`Journal::failure`].
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.core.journal.failure()
    }

    /// Keeps of some channels what these rules say, from now on.
    pub async fn set_rules(&self, rules: Rules) {
        self.core.journal.set_rules(rules).await;
    }

    /// Ends every subscription, now and later. Publishing goes on.
    pub fn end_subscriptions(&self) {
        self.core.live.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use smallvec::smallvec;

    use super::*;
    use crate::journal::{Entry, KeyLimits, Place, Retention, Rule};
    use crate::message::{Data, Draft, EventName};
    use live::FEED_CAPACITY;

    fn hub() -> Hub {
        hub_with(1_000, Rules::default())
    }

    /// A hub that keeps so many messages, with these rules.
    fn hub_with(messages: usize, rules: Rules) -> Hub {
        let retention = Retention { messages, bytes: 1 << 20, age: Duration::MAX, rules };
        let keys = KeyLimits { count: 0, window: Duration::ZERO };
        let budget = Budget::unlimited();
        let (journal, committed) = Journal::open(&Place::Memory, retention, keys, &budget).unwrap();
        let options = Options {
            max_subscribers: 10,
            max_subscribers_per_address: 10,
            max_readers: 10,
            max_readers_per_address: 10,
            replay_page: 10,
        };
        Hub::new(journal, committed, &options, budget).0
    }

    fn network() -> Network {
        Network::from(std::net::IpAddr::from([127, 0, 0, 1]))
    }

    fn channels(names: &[&str]) -> Channels {
        Channels::new(names.iter().map(|name| Pattern::parse(name, 9).unwrap()))
    }

    async fn subscribe(hub: &Hub, names: &[&str]) -> (Subscriber, Subscription) {
        let request = Request { channels: channels(names), start: Start::Live, subscriber: None };
        hub.subscribe(Peer::Unix, &Caller::anyone(), request).await.unwrap()
    }

    async fn publish(hub: &Hub, channel: &str, text: &str) -> Arc<Entry> {
        let (name, event) = (ChannelName::parse(channel, 9).unwrap(), EventName::default());
        let draft = Draft { channel: name, event, data: Data::text(text), except: None, ttl: None };
        let lease = Budget::unlimited().try_lease(0).unwrap();
        let published = hub.publish(network(), smallvec![draft], None, lease).await.unwrap();
        let Published::New { receipts, .. } = published else { unreachable!("it had no key") };
        let page =
            hub.core.read(receipts[0].id.sequence - 1, &channels(&[channel]), None, None).await.unwrap();
        Arc::clone(&page.entries[0])
    }

    /// What came on the feed: who wants the message of which sequence.
    fn heard(feed: &Feed) -> Vec<(u32, u64)> {
        let Heard { messages, wanted, has_lagged, .. } = feed.take();
        assert!(!has_lagged);
        let sequence = |place: u32| messages[place as usize].as_ref().unwrap().message.id.sequence;
        wanted.into_iter().map(|(listener, place)| (listener, sequence(place))).collect()
    }

    #[tokio::test]
    async fn nothing_is_left_of_the_subscribers_and_listeners_that_are_gone() {
        let hub = hub();
        let feeds = hub.feeds();
        let (first, second) = (subscribe(&hub, &["a", "b.*"]).await, subscribe(&hub, &["b.*"]).await);
        let announced = feeds[0].listen(&channels(&["a", "b.*"]), 7);
        assert_eq!(announced, hub.core.journal.head());
        drop((first, second));
        assert!(!hub.core.live.state().is_quiet());
        publish(&hub, "a", "x").await;
        feeds[0].leave(&channels(&["a", "b.*"]), 7);
        assert!(hub.core.live.state().is_quiet());
        // Another listener may have the number: it does not get what the first was to get.
        assert_eq!(heard(&feeds[0]), []);
    }

    #[tokio::test]
    async fn a_publisher_that_hangs_up_gives_its_memory_back_only_when_its_message_is_stored() {
        let (hub, budget) = (hub(), Budget::new(1));
        let (channel, event) = (ChannelName::default(), EventName::default());
        let draft = Draft { channel, event, data: Data::text("x"), except: None, ttl: None };
        let publish = hub.publish(network(), smallvec![draft], None, budget.try_lease(1).unwrap());
        // One poll puts the message into the inbox. The hub's task, on this one thread, has not run yet.
        assert!(tokio::time::timeout(Duration::ZERO, publish).await.is_err() || hub.core.journal.head() == 1);
        let _lease = budget.lease(1).await;
        assert_eq!(hub.core.journal.head(), 1);
    }

    #[tokio::test]
    async fn a_publisher_waits_for_the_inbox_but_not_for_all_of_another_network() {
        let hub = hub();
        let sequence = |hub: Hub, last: u8| async move {
            let draft = Draft {
                channel: ChannelName::default(),
                event: EventName::default(),
                data: Data::text("x"),
                except: None,
                ttl: None,
            };
            let network = Network::from(std::net::IpAddr::from([127, 0, 0, last]));
            let lease = Budget::unlimited().try_lease(0).unwrap();
            match hub.publish(network, smallvec![draft], None, lease).await.unwrap() {
                Published::New { receipts, .. } => receipts[0].id.sequence,
                Published::Repeated(_) => unreachable!("it had no key"),
            }
        };
        // Three times as many as the inbox takes. All are polled before the hub's task, on this one thread.
        let flood: Vec<_> = (0..3 * INBOX).map(|_| tokio::spawn(sequence(hub.clone(), 66))).collect();
        let good = tokio::spawn(sequence(hub.clone(), 77)).await.unwrap();
        // Behind a full inbox and a few of the flood, not behind all of it.
        assert!(good < INBOX as u64 + 100, "{good}");
        for publish in flood {
            publish.await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_unread_feed_keeps_no_message() {
        let hub = hub();
        let feeds = hub.feeds();
        feeds[0].listen(&channels(&["a"]), 0);
        let message = publish(&hub, "a", "dropped by retention").await;
        let announced = Arc::downgrade(&message);
        drop(message);
        for _ in 0..5 {
            publish(&hub, "a", &"x".repeat(1 << 18)).await;
        }
        assert!(announced.upgrade().is_none());
        let Heard { messages, wanted, has_lagged, .. } = feeds[0].take();
        assert!(messages[0].is_none() && messages[5].is_some());
        assert!(wanted.iter().map(|(_, place)| *place).eq(0..6) && !has_lagged);
    }

    #[tokio::test]
    async fn a_listener_hears_each_message_of_its_channels_once_and_in_order() {
        let hub = hub();
        let feeds = hub.feeds();
        feeds[0].listen(&channels(&["a", "*", "b.*", "b.>"]), 1);
        feeds[0].listen(&channels(&["b.c"]), 0);
        for channel in ["a", "b.c", "c", "c.d", "b.c", "b.d.e"] {
            publish(&hub, channel, "x").await;
        }
        assert_eq!(heard(&feeds[0]), [(0, 2), (0, 5), (1, 1), (1, 2), (1, 3), (1, 5), (1, 6)]);
        assert_eq!(heard(&feeds[0]), []);
    }

    #[tokio::test]
    async fn a_feed_that_is_not_taken_for_long_says_so() {
        let hub = hub();
        let feeds = hub.feeds();
        feeds[0].listen(&channels(&["a"]), 0);
        let count = FEED_CAPACITY as u64 + 50;
        for _ in 0..count {
            publish(&hub, "a", "x").await;
        }
        let Heard { announced, wanted, has_lagged, .. } = feeds[0].take();
        assert!(announced == count && has_lagged && wanted.is_empty());
        publish(&hub, "a", "x").await;
        assert_eq!(heard(&feeds[0]), [(0, count + 1)]);
    }

    #[tokio::test]
    async fn a_subscription_that_has_fallen_behind_reads_each_message_once_also_if_its_future_is_dropped() {
        let hub = hub();
        let (_subscriber, mut subscription) = subscribe(&hub, &["a", "b"]).await;
        for number in 0..100 {
            publish(&hub, ["a", "b"][number % 2], "x").await;
            assert!(subscription.next().await.unwrap().is_none(), "it does not know that it is behind");
            subscription.fall_behind();
            // The future is polled once, and dropped whether it was ready or not.
            let polled = tokio::time::timeout(Duration::ZERO, subscription.next()).await;
            let Ok(Ok(Some(Next::Messages(entries)))) = polled else { panic!("it was there") };
            assert_eq!(entries[0].message.id.sequence, number as u64 + 1);
            assert_eq!((entries.len(), subscription.is_behind()), (1, false));
        }
    }

    #[tokio::test]
    async fn a_gap_comes_once_also_where_another_subscription_goes_on() {
        let channels = Pattern::parse("kept", 9).unwrap();
        let hub = hub_with(3, Rules::new([Rule { channels, messages: Some(1), age: None }]));
        let (_subscriber, mut subscription) = subscribe(&hub, &["kept", "a"]).await;
        publish(&hub, "kept", "older than all that is kept of the other channel").await;
        for _ in 0..9 {
            publish(&hub, "a", "x").await;
        }
        subscription.fall_behind();
        assert!(matches!(subscription.next().await.unwrap(), Some(Next::Gap { .. })));
        // As a group's subscription is, for each page that is read from a file.
        let mut fork = subscription.fork(subscription.position(), None);
        let Some(Next::Messages(entries)) = fork.next().await.unwrap() else { panic!("the gap again") };
        let sequences: Vec<_> = entries.iter().map(|entry| entry.message.id.sequence).collect();
        assert_eq!(sequences, [1, 9, 10]);
    }
}
