//! The hub: publish, subscribe, history.
//!
//! **A subscriber is a position in the journal.** There is no queue per subscriber. To publish is to append
//! to the journal. A committed message is announced on its channel's live feed. To subscribe is to take the
//! live feeds first, to read the journal from the position, and then to follow the feeds
//! ([`Subscription`]). HTTP is unknown here.

mod core;
mod live;
mod publish;
mod subscriber;
mod subscription;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::core::Core;
use crate::journal::{Append, Committed, Failure, Journal, JournalError, Key, PageLimit};
use crate::limits::{Budget, Lease, Network, Shares};
use crate::message::{Draft, IdempotencyKey};
use crate::value::at_least_one;
use publish::{INBOX, Publish};

pub use crate::limits::Full;
pub use publish::{PublishError, Published};
pub use subscriber::{Reason, Subscriber};
pub use subscription::{Next, Request, Start, Subscription};

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

    /// Appends the message of a publisher of this network, and returns once it is stored and announced.
    /// `lease` is held until the message is stored or refused, even if the caller stops waiting.
    ///
    /// # Errors
    /// [`PublishError`]. The message is not stored, but for [`PublishError::Unknown`]: then it may be.
    pub async fn publish(
        &self,
        network: Network,
        draft: Draft,
        key: Option<IdempotencyKey>,
        lease: Lease,
    ) -> Result<Published, PublishError> {
        let (answer, answered) = oneshot::channel();
        let key = key.map(|text| Key { network, text });
        let publish = Publish { append: Append { draft, key }, lease, answer };
        self.send(network, publish).await?;
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
    /// order, each once.
    ///
    /// # Errors
    /// [`SubscribeError`] if a limit is reached, or the journal can't be read.
    pub async fn subscribe(
        &self,
        address: SocketAddr,
        request: Request,
    ) -> Result<(Subscriber, Subscription), SubscribeError> {
        let core = &self.core;
        let share = core.subscribers.take(Network::from(address.ip()))?;
        let mut subscription = Subscription::at_start(Arc::clone(core), address, &request).await?;
        // The feeds are taken before the journal is read. A message committed in between is then on both, and
        // is skipped on the feed by its sequence. In the other order it would be on neither.
        // Nothing is awaited from here on: only dropping a `Subscriber` undoes the count of `join`.
        let Request { channels, start, subscriber } = request;
        let (feeds, announced) = core.live.join(&channels);
        subscription.follow_from(feeds, matches!(start, Start::Live).then_some(announced));
        let position = subscription.position();
        let core = Arc::clone(core);
        let subscriber = Subscriber::new(core, share, address, channels, subscriber, position);
        Ok((subscriber, subscription))
    }

    /// The kept messages on the request's channels, from its start up to now; none for [`Start::Live`].
    /// [`Subscription::next`] returns `None` after the last. Until the subscription is dropped, it counts
    /// against the limits of readers.
    ///
    /// # Errors
    /// [`SubscribeError`] if a limit is reached, or the journal can't be read.
    pub async fn history(
        &self,
        address: SocketAddr,
        request: &Request,
    ) -> Result<Subscription, SubscribeError> {
        let core = &self.core;
        let share = core.readers.take(Network::from(address.ip()))?;
        Ok(Subscription::history(Arc::clone(core), address, request, share).await?)
    }

    /// The journal's failure: see [`Journal::failure`].
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.core.journal.failure()
    }

    /// Ends every subscription, now and later. Publishing goes on.
    pub fn end_subscriptions(&self) {
        self.core.live.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::journal::{Channels, Entry, KeyLimits, Place, Retention};
    use crate::message::{ChannelName, Data, EventName, Pattern};
    use live::FEED_CAPACITY;

    fn hub() -> Hub {
        let retention = Retention { messages: 1_000, bytes: 1 << 20, age: Duration::MAX };
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
        hub.subscribe(([127, 0, 0, 1], 1).into(), request).await.unwrap()
    }

    async fn publish(hub: &Hub, channel: &str, text: &str) -> Arc<Entry> {
        let (name, event) = (ChannelName::parse(channel, 9).unwrap(), EventName::default());
        let draft = Draft { channel: name, event, data: Data::text(text), except: None };
        let lease = Budget::unlimited().try_lease(0).unwrap();
        let Published::New { receipt, .. } = hub.publish(network(), draft, None, lease).await.unwrap() else {
            unreachable!("it had no key")
        };
        let page = hub.core.read(receipt.id.sequence - 1, &channels(&[channel]), None).await.unwrap();
        Arc::clone(&page.entries[0])
    }

    /// Asserts that the subscription gives each message from the journal's first to `through` once, in order.
    async fn assert_delivers(subscription: &mut Subscription, through: u64) {
        let mut next = 1;
        while next <= through {
            let Some(Next::Messages(entries)) = subscription.next().await.unwrap() else { panic!("a gap") };
            for entry in entries {
                assert_eq!(entry.message.id.sequence, next);
                next += 1;
            }
        }
    }

    #[tokio::test]
    async fn a_live_feed_is_made_with_the_first_subscriber_of_its_channel_and_gone_with_the_last() {
        let hub = hub();
        let feeds = || hub.core.live.feeds().len();
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
    async fn a_publisher_that_hangs_up_gives_its_memory_back_only_when_its_message_is_stored() {
        let (hub, budget) = (hub(), Budget::new(1));
        let (channel, event) = (ChannelName::default(), EventName::default());
        let draft = Draft { channel, event, data: Data::text("x"), except: None };
        let publish = hub.publish(network(), draft, None, budget.try_lease(1).unwrap());
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
            };
            let network = Network::from(std::net::IpAddr::from([127, 0, 0, last]));
            let lease = Budget::unlimited().try_lease(0).unwrap();
            match hub.publish(network, draft, None, lease).await.unwrap() {
                Published::New { receipt, .. } => receipt.id.sequence,
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
        let (_subscriber, mut subscription) = subscribe(&hub, &["a"]).await;
        let count = FEED_CAPACITY as u64 + 50;
        for _ in 0..count {
            publish(&hub, "a", "x").await;
        }
        assert_delivers(&mut subscription, count).await;
    }

    #[tokio::test]
    async fn no_feed_is_left_half_read_where_messages_were_gathered_before() {
        let hub = hub();
        let (_subscriber, mut subscription) = subscribe(&hub, &["a", "b"]).await;
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
    async fn messages_gathered_on_several_channels_come_in_order_and_at_most_one_feed_is_awaited() {
        let hub = hub();
        let (_subscriber, mut subscription) = subscribe(&hub, &["a", "b"]).await;
        for channel in ["b", "a", "b"] {
            assert!(tokio::time::timeout(Duration::ZERO, subscription.gathered(3)).await.is_err());
            publish(&hub, channel, "x").await;
        }
        subscription.gathered(3).await;
        let Some(Next::Messages(entries)) = subscription.next().await.unwrap() else { panic!("a gap") };
        assert_eq!(entries.iter().map(|entry| entry.message.id.sequence).collect::<Vec<_>>(), [1, 2, 3]);

        for _ in 0..FEED_CAPACITY {
            publish(&hub, "a", "x").await;
        }
        subscription.gathered(1_000).await;
    }

    #[tokio::test]
    async fn no_message_is_lost_by_dropping_the_future_of_next() {
        let hub = hub();
        let (_subscriber, mut subscription) = subscribe(&hub, &["a", "b"]).await;
        for number in 0..100 {
            publish(&hub, ["a", "b"][number % 2], "x").await;
            // The future is polled once, and dropped whether it was ready or not.
            let polled = tokio::time::timeout(Duration::ZERO, subscription.next()).await;
            if let Ok(Ok(Some(Next::Messages(entries)))) = polled {
                assert_eq!(entries[0].message.id.sequence, number as u64 + 1);
                assert_eq!(entries.len(), 1);
            } else {
                panic!("it was there");
            }
            assert!(tokio::time::timeout(Duration::ZERO, subscription.next()).await.is_err());
        }
    }
}
