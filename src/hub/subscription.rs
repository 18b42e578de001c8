//! A subscription: what a subscriber asked for, and how far it has got.
//!
//! Replay after a reconnect, history for a newcomer and catching up a slow reader are one code
//! path: while it is `behind`, it reads pages of the journal from its position; once it has reached
//! the journal's head, it follows the live feeds; if they run ahead of it, it is behind again.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::broadcast;
use tokio::task::coop::unconstrained;
use tokio_stream::Stream;
use tokio_stream::wrappers::BroadcastStream;

use super::{Announcement, Core, FEED_CAPACITY, Request, Start};
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

/// One subscriber's place in the journal.
#[derive(Debug)]
pub struct Subscription {
    core: Arc<Core>,
    channels: Channels,
    /// Its own id: messages `except` it are passed over.
    subscriber: Option<SubscriberId>,
    /// One per channel.
    feeds: Vec<BroadcastStream<Announcement>>,
    /// Taken from the feeds but not delivered yet, in order. At most what the feeds can hold.
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
        for name in subscription.channels.iter() {
            let feed = live.feeds.entry(name.clone()).or_insert_with(|| broadcast::Sender::new(FEED_CAPACITY));
            subscription.feeds.push(BroadcastStream::new(feed.subscribe()));
        }
        if is_live {
            (subscription.position, subscription.told) = (live.announced, live.announced);
        }
        subscription.behind = !is_live;
        drop(live);
        Ok(subscription)
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
            subscriber,
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
        unconstrained(poll_fn(|cx| self.drain(cx))).await;
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

    /// Ready once there is something to look at: `pending` messages, or a journal to catch up with.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.feeds.len() > 1 {
            // A message must not overtake an earlier one of another feed: under the lock nothing
            // is announced, so what is collected is complete up to its last.
            let core = Arc::clone(&self.core);
            let _quiet = core.live();
            self.collect(cx);
        } else {
            self.collect(cx);
        }
        let ready = self.behind || !self.pending.is_empty() || self.core.stopped();
        if ready { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Moves what the feeds hold to `pending`, unless there is some.
    fn collect(&mut self, cx: &mut Context<'_>) {
        if self.behind || !self.pending.is_empty() {
            return;
        }
        let mut lagged = false;
        let most = FEED_CAPACITY * self.feeds.len();
        for feed in &mut self.feeds {
            // The bound ends it where a publisher is as fast as this loop.
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

    /// The feeds ran ahead: what they hold no longer follows on `position`, the journal does.
    fn fall_behind(&mut self) {
        self.pending.clear();
        self.behind = !seeded::has(Bug::SkipALag);
    }

    fn deliver(&mut self, mut entries: Vec<Arc<Entry>>) -> Option<Delivery> {
        if let Some(subscriber) = &self.subscriber {
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
        // Unconstrained for the same reason as in `follow`.
        unconstrained(poll_fn(|cx| Poll::Ready(self.look(cx)))).await
    }

    fn look(&mut self, cx: &mut Context<'_>) -> Option<MessageId> {
        let core = Arc::clone(&self.core);
        // Under the lock, all that was announced is on the feeds.
        let live = core.live();
        self.collect(cx);
        if self.behind || !self.pending.is_empty() {
            return None;
        }
        self.position = self.position.max(live.announced);
        let moved = self.position > self.told;
        self.told = self.position;
        moved.then(|| core.id(self.position))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.feeds.is_empty() {
            return;
        }
        self.feeds.clear();
        let mut live = self.core.live_mut();
        for channel in self.channels.iter() {
            if live.feeds.get(channel).is_some_and(|feed| feed.receiver_count() == 0) {
                live.feeds.remove(channel);
            }
        }
    }
}
