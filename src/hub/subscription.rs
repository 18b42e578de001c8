//! A subscription: what a subscriber asked for, and how far it has got.
//!
//! Replay after a reconnect, history for a newcomer and catching up a slow reader are one code
//! path: while it is `behind`, it reads pages of the journal from its position; once it has reached
//! the journal's head, it follows the live feeds; if they run ahead of it, it is behind again.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::task::coop::unconstrained;
use tokio_stream::Stream;
use tokio_stream::wrappers::BroadcastStream;

use super::{Announcement, Core, Counted, FEED_CAPACITY, Live, Request, Start};
use crate::journal::{Channels, Entry, Failed};
use crate::message::{MessageId, SubscriberId};
use crate::seeded::{self, Bug};

/// What a subscriber is given next.
#[derive(Debug)]
pub enum Delivery {
    /// Messages, newest last; at least one, and no more than a replay page.
    Messages(Vec<Arc<Entry>>),
    /// Messages it asked for are no longer kept, or are not of this journal. What is kept follows.
    Gap {
        /// The last event ID it asked to go on from.
        asked: String,
        /// The earliest message kept; `None` if none is.
        earliest: Option<MessageId>,
        /// Where it is now, for it to resume from.
        position: MessageId,
    },
}

/// What is one subscriber's alone, where several share a subscription.
#[derive(Debug, Default)]
pub struct Share {
    /// Its own id: messages `except` it are passed over.
    pub subscriber: Option<SubscriberId>,
    /// Counts it; `None` for one that follows no feed.
    counted: Option<Counted>,
}

impl Share {
    /// Has it use the memory of that subscription for the channels it has in common with it.
    pub fn has_channels_of(&mut self, subscription: &Subscription) {
        if let Some(counted) = &mut self.counted {
            debug_assert_eq!(counted.channels, subscription.channels);
            counted.channels = subscription.channels.clone();
        }
    }
}

/// A place in the journal: one subscriber's, or that of all who share it.
#[derive(Debug)]
pub struct Subscription {
    core: Arc<Core>,
    channels: Channels,
    share: Share,
    /// One per channel.
    feeds: Vec<BroadcastStream<Announcement>>,
    /// Taken from the feeds but not delivered yet, in order. At most what the feeds can hold, and what was
    /// [gathered](Subscription::gathered) before.
    pending: VecDeque<Announcement>,
    /// Every message up to here was delivered, or is not for this subscriber.
    position: u64,
    /// The sequence of the last id the subscriber was told.
    told: u64,
    /// There may be messages after `position` that no feed will announce.
    behind: bool,
    /// The last event ID it began with, if that is none of this journal's.
    foreign: Option<String>,
    /// The sequence it ends with, if it has an end.
    end: Option<u64>,
}

impl Subscription {
    pub(super) async fn new(core: Arc<Core>, request: Request) -> Result<Self, Failed> {
        let is_live = matches!(request.start, Start::Live);
        let mut subscription = Subscription::at_start(core, request).await?;
        let core = Arc::clone(&subscription.core);
        // The feeds are taken before the journal is read: a message appended in between is then on
        // both, and the position tells so. The other way round it would be on neither. And nothing is
        // awaited from here on: who takes a feed must be there to give it back.
        let mut live = core.live_mut();
        subscription.take_feeds(&mut live);
        for channel in subscription.channels.iter() {
            live.feed(channel).subscribers += 1;
        }
        if is_live {
            (subscription.position, subscription.told) = (live.announced, live.announced);
        }
        drop(live);
        let channels = subscription.channels.clone();
        subscription.share.counted = Some(Counted { core, channels });
        subscription.behind = !is_live;
        Ok(subscription)
    }

    fn take_feeds(&mut self, live: &mut Live) {
        let feeds = self.channels.iter().map(|channel| live.feed(channel).announcements.subscribe());
        self.feeds = feeds.map(BroadcastStream::new).collect();
    }

    /// The kept messages up to now, and then an end.
    pub(super) async fn history(core: Arc<Core>, request: Request) -> Result<Self, Failed> {
        let head = core.journal.head();
        let mut subscription = Subscription::at_start(core, request).await?;
        subscription.behind = true;
        subscription.end = Some(head);
        Ok(subscription)
    }

    /// Follows nothing yet.
    async fn at_start(core: Arc<Core>, request: Request) -> Result<Self, Failed> {
        let Request { channels, start, subscriber } = request;
        let share = Share { subscriber, counted: None };
        let mut foreign = None;
        let position = match start {
            Start::Live => core.journal.head(),
            Start::Newest(count) => core.journal.position_before_newest(count, &channels).await?,
            Start::After(asked) => match asked.parse::<MessageId>() {
                Ok(id) if id.epoch == core.journal.epoch() && id.sequence <= core.journal.head() => {
                    id.sequence + u64::from(seeded::has(Bug::ResumeOffByOne))
                }
                _ => {
                    foreign = Some(asked);
                    0
                }
            },
        };
        let (feeds, pending) = (Vec::new(), VecDeque::new());
        Ok(Subscription {
            core,
            channels,
            share,
            feeds,
            pending,
            position,
            told: position,
            behind: false,
            foreign,
            end: None,
        })
    }

    /// Where it begins, for the subscriber to resume from if it is cut off before the first
    /// message. `None` if that is no place in this journal: the gap is told first.
    pub fn begins_at(&self) -> Option<MessageId> {
        self.foreign.is_none().then(|| self.core.id(self.position))
    }

    /// The next messages, or a gap; waits for them. `None` at its end: of a history, or when the
    /// hub ends all subscriptions.
    ///
    /// Dropping the future loses nothing: what it would have returned is returned by the next call.
    ///
    /// # Errors
    /// [`Failed`] if the journal can't be read.
    pub async fn next(&mut self) -> Result<Option<Delivery>, Failed> {
        loop {
            let is_over = match self.end {
                Some(end) => self.position >= end && self.foreign.is_none(),
                None => self.core.stopped(),
            };
            if is_over {
                return Ok(None);
            }
            let delivery = if self.behind { self.replay().await? } else { self.follow().await };
            if delivery.is_some() {
                return Ok(delivery);
            }
            // A page without a message for this subscriber. There may be many such in a row.
            tokio::task::consume_budget().await;
        }
    }

    /// The next page of the journal; `None` if nothing in it is for this subscriber.
    async fn replay(&mut self) -> Result<Option<Delivery>, Failed> {
        let page = self.core.read(self.position, &self.channels).await?;
        if self.foreign.is_some() || page.has_gap_after(self.position) {
            let asked = self.foreign.take().unwrap_or_else(|| self.core.id(self.position).to_string());
            self.position = page.earliest - 1;
            self.told = self.position;
            return Ok(Some(Delivery::Gap {
                asked,
                earliest: (page.earliest <= page.head).then(|| self.core.id(page.earliest)),
                position: self.core.id(self.position),
            }));
        }
        self.position = page.through;
        self.behind = page.through < page.head;
        Ok(self.deliver(page.entries))
    }

    /// What the feeds announce next; `None` if nothing of it is for this subscriber, or if it has
    /// fallen behind.
    async fn follow(&mut self) -> Option<Delivery> {
        // Unconstrained: tokio's budget would let a feed say "nothing there" in the midst of a
        // drain, and a later message of another feed would overtake what it holds.
        unconstrained(poll_fn(|cx| self.drain(1, cx))).await;
        let limit = self.core.page;
        let mut bytes = 0;
        let mut entries = Vec::new();
        while let Some(announcement) = self.pending.front() {
            let Some(entry) = announcement.entry.upgrade() else {
                // Retention has dropped it while it waited: the journal knows what is left.
                self.fall_behind();
                break;
            };
            bytes += entry.weight();
            if !entries.is_empty() && (entries.len() == limit.messages || bytes > limit.bytes) {
                break;
            }
            self.position = announcement.sequence;
            self.pending.pop_front();
            entries.push(entry);
        }
        self.deliver(entries)
    }

    /// Ready once so many messages wait to be delivered, or as many as one feed can hold; or the journal has to be
    /// read for them, or nothing more will come. Dropping the future loses nothing.
    pub async fn gathered(&mut self, count: usize) {
        let count = count.min(FEED_CAPACITY);
        // Unconstrained for the same reason as in `follow`.
        unconstrained(poll_fn(|cx| self.drain(count, cx))).await;
    }

    /// Ready once there is something to look at: so many `pending` messages, or a journal to catch up with.
    fn drain(&mut self, least: usize, cx: &mut Context<'_>) -> Poll<()> {
        if self.feeds.len() > 1 {
            // A message must not overtake an earlier one of another feed: under the lock nothing
            // is announced, so what is collected is complete up to its last.
            let core = Arc::clone(&self.core);
            let _quiet = core.live();
            self.collect(least, cx);
        } else {
            self.collect(least, cx);
        }
        let ready = self.behind || self.pending.len() >= least || self.core.stopped();
        if ready { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Moves what the feeds hold to `pending`, unless there are as many as that.
    fn collect(&mut self, least: usize, cx: &mut Context<'_>) {
        if self.behind || self.pending.len() >= least {
            return;
        }
        let mut lagged = false;
        for feed in &mut self.feeds {
            // All that a feed can hold. The bound ends it where a publisher is as fast as this loop.
            let most = self.pending.len() + FEED_CAPACITY;
            while self.pending.len() < most {
                match Pin::new(&mut *feed).poll_next(cx) {
                    Poll::Ready(Some(Ok(announcement))) if announcement.sequence <= self.position => {}
                    Poll::Ready(Some(Ok(announcement))) => self.pending.push_back(announcement),
                    Poll::Ready(Some(Err(_lagged))) => lagged = true,
                    // `Ready(None)`: the hub has ended all subscriptions.
                    Poll::Ready(None) | Poll::Pending => break,
                }
            }
        }
        if lagged {
            self.fall_behind();
        } else if self.feeds.len() > 1 {
            self.pending.make_contiguous().sort_unstable_by_key(|announcement| announcement.sequence);
        }
    }

    /// Has it read the journal from its position before it follows what is announced again. So it must
    /// where the feeds ran ahead, and what they hold no longer follows on its position.
    pub fn fall_behind(&mut self) {
        self.pending.clear();
        self.behind = !seeded::has(Bug::SkipALag);
    }

    fn deliver(&mut self, mut entries: Vec<Arc<Entry>>) -> Option<Delivery> {
        if let Some(subscriber) = &self.share.subscriber {
            entries.retain(|entry| entry.message.except.as_ref() != Some(subscriber));
        }
        if let Some(end) = self.end {
            entries.retain(|entry| entry.message.id.sequence <= end);
        }
        self.told = entries.last()?.message.id.sequence;
        Some(Delivery::Messages(entries))
    }

    /// Where it is, if that has moved since the subscriber was last told of an id, and there is
    /// nothing to deliver: the messages in between were not for it. To resume from there later asks
    /// for less, and a quiet channel's subscriber does not fall out of retention.
    pub async fn moved(&mut self) -> Option<MessageId> {
        if !self.arrive().await {
            return None;
        }
        let moved = self.is_untold();
        self.told = self.position;
        moved.then(|| self.core.id(self.position))
    }

    /// The next messages if any are announced already, without waiting. If not, and it is not behind,
    /// it is where the last announcement was.
    pub async fn announced(&mut self) -> Option<Delivery> {
        if self.arrive().await || self.behind { None } else { self.follow().await }
    }

    /// Whether nothing is announced for it after its position, which is then that of the last
    /// announcement.
    async fn arrive(&mut self) -> bool {
        // Unconstrained for the same reason as in `follow`.
        unconstrained(poll_fn(|cx| Poll::Ready(self.look(cx)))).await
    }

    fn look(&mut self, cx: &mut Context<'_>) -> bool {
        let core = Arc::clone(&self.core);
        // Under the lock, all that was announced is on the feeds.
        let live = core.live();
        self.collect(1, cx);
        if self.behind || !self.pending.is_empty() {
            return false;
        }
        self.position = self.position.max(live.announced);
        true
    }

    /// The channels it listens to.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// The sequence up to which every message was delivered, or is not for it.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Where it is, as an id.
    pub fn id(&self) -> MessageId {
        self.core.id(self.position)
    }

    /// Whether it reads the journal, rather than follow what is announced.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Whether its position has moved since the subscriber was last told of an id.
    pub fn is_untold(&self) -> bool {
        self.position > self.told
    }

    /// Makes it one that several subscribers may follow: messages `except` any of them are
    /// delivered too, and whoever has a share is to pass over those that are not for it.
    pub fn share(&mut self) -> Share {
        mem::take(&mut self.share)
    }

    /// Another one, for the owner of this share, that goes on from `position`.
    pub fn fork(&self, position: u64, share: Share) -> Subscription {
        let mut fork = Subscription {
            core: Arc::clone(&self.core),
            channels: self.channels.clone(),
            share,
            feeds: Vec::new(),
            pending: VecDeque::new(),
            position,
            told: position,
            behind: !seeded::has(Bug::SkipALag),
            foreign: None,
            end: None,
        };
        fork.take_feeds(&mut self.core.live_mut());
        fork
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if !self.feeds.is_empty() {
            self.feeds.clear();
            self.core.live_mut().tidy(&self.channels);
        }
    }
}
