//! A subscription: what a subscriber asked for, and how far it has got.
//!
//! Replay after a reconnect, history for a newcomer and catching up a slow reader are one code
//! path: while a subscription is `behind`, it reads pages of the journal from its position; once it has
//! reached the journal's head, it follows the live feeds; if they run ahead of it, it is behind again.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::coop::unconstrained;
use tokio::time::sleep;
use tokio_stream::Stream;

use super::core::Core;
use super::live::{Announcement, FEED_CAPACITY, Follow};
use crate::journal::{Channels, Entry, JournalError};
use crate::message::{MessageId, SubscriberId};

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

/// What comes next from a position.
#[derive(Debug)]
pub enum Next {
    /// Messages, newest last; at least one, and no more than a replay page.
    Messages(Vec<Arc<Entry>>),
    /// Messages that were asked for are no longer kept, or are not of this journal. What is kept follows.
    Gap {
        /// The last event ID that was asked for.
        asked: String,
        /// The earliest message kept; `None` if none is.
        earliest: Option<MessageId>,
        /// The position now, for a subscriber to resume from.
        position: MessageId,
    },
}

impl Next {
    /// How many events it is.
    pub fn events(&self) -> usize {
        match self {
            Next::Messages(entries) => entries.len(),
            Next::Gap { .. } => 1,
        }
    }

    /// The sequence of the id of its last event; 0 of no event.
    pub fn last_id(&self) -> u64 {
        match self {
            Next::Messages(entries) => entries.last().map_or(0, |entry| entry.message.id.sequence),
            Next::Gap { position, .. } => position.sequence,
        }
    }
}

/// A place in the journal: one subscriber's, or that of several who have seen the same.
#[derive(Debug)]
pub struct Subscription {
    core: Arc<Core>,
    channels: Channels,
    /// One per channel; none of a history.
    feeds: Vec<Follow>,
    /// Taken from the feeds but not given yet, in order. At most what the feeds can hold, and what was
    /// [gathered](Subscription::gathered) before.
    pending: VecDeque<Announcement>,
    /// Every message up to here was given, or is of another channel.
    position: u64,
    /// There may be messages after `position` that no feed will announce.
    behind: bool,
    /// The last event ID that was asked for, if it is none of this journal's.
    unknown: Option<String>,
    /// The sequence it ends with, if it has an end.
    end: Option<u64>,
}

impl Subscription {
    /// The kept messages up to now, and then an end.
    pub(super) async fn history(core: Arc<Core>, request: &Request) -> Result<Self, JournalError> {
        let head = core.journal.head();
        let mut subscription = Subscription::at_start(core, request).await?;
        subscription.end = Some(head);
        Ok(subscription)
    }

    /// At the request's start. It follows no feed yet.
    pub(super) async fn at_start(core: Arc<Core>, request: &Request) -> Result<Self, JournalError> {
        let mut unknown = None;
        let position = match &request.start {
            Start::Live => core.journal.head(),
            Start::Newest(count) => core.journal.position_before_newest(*count, &request.channels).await?,
            Start::After(asked) => match asked.parse::<MessageId>() {
                Ok(id) if id.epoch == core.journal.epoch() && id.sequence <= core.journal.head() => {
                    id.sequence
                }
                _ => {
                    unknown = Some(asked.clone());
                    0
                }
            },
        };
        let mut subscription = Subscription::at(core, request.channels.clone(), position);
        subscription.unknown = unknown;
        Ok(subscription)
    }

    /// At this position, with everything after it to be read in the journal.
    fn at(core: Arc<Core>, channels: Channels, position: u64) -> Self {
        let (feeds, pending) = (Vec::new(), VecDeque::new());
        Subscription { core, channels, feeds, pending, position, behind: true, unknown: None, end: None }
    }

    /// Follows these feeds from now on, and reads the journal up to where they begin; or goes on `live`,
    /// with what they announce.
    pub(super) fn follow_from(&mut self, feeds: Vec<Follow>, live: Option<u64>) {
        self.feeds = feeds;
        if let Some(announced) = live {
            (self.position, self.behind) = (announced, false);
        }
    }

    /// Another one, for a subscriber that is at `position`.
    pub fn fork(&self, position: u64) -> Subscription {
        let mut fork = Subscription::at(Arc::clone(&self.core), self.channels.clone(), position);
        // The feeds are taken before the journal is read: a message committed in between is then on both,
        // and the position tells so. The other way round it would be on neither.
        fork.feeds = self.core.live.follow(&self.channels);
        fork
    }

    /// Where it begins, for a subscriber to resume from if it is cut off before the first
    /// message. `None` if that is no place in this journal: the gap comes first.
    pub fn begins_at(&self) -> Option<MessageId> {
        self.unknown.is_none().then(|| self.id())
    }

    /// The next messages, or a gap; waits for them, and while the journal is unavailable. `None` at its
    /// end: of a history, or when the hub ends all subscriptions.
    ///
    /// Dropping the future loses nothing: what it would have returned is returned by the next call.
    ///
    /// # Errors
    /// [`JournalError`] if the journal failed; of a history also if it is unavailable.
    pub async fn next(&mut self) -> Result<Option<Next>, JournalError> {
        /// The longest pause between two tries: the hub may stop meanwhile, and has promised to be quick.
        const PAUSE: Duration = Duration::from_millis(500);
        loop {
            let is_over = match self.end {
                Some(end) => self.position >= end && self.unknown.is_none(),
                None => self.core.live.is_stopped(),
            };
            if is_over {
                return Ok(None);
            }
            let next = if !self.behind {
                self.follow().await
            } else {
                match self.replay().await {
                    Err(JournalError::Unavailable { retry_after }) if self.end.is_none() => {
                        sleep(retry_after.min(PAUSE)).await;
                        continue;
                    }
                    result => result?,
                }
            };
            if next.is_some() {
                return Ok(next);
            }
            // A page without a message of these channels. There may be many such in a row.
            tokio::task::consume_budget().await;
        }
    }

    /// The next page of the journal; `None` if nothing in it is of these channels.
    async fn replay(&mut self) -> Result<Option<Next>, JournalError> {
        let page = self.core.read(self.position, &self.channels).await?;
        if self.unknown.is_some() || page.has_gap_after(self.position) {
            let asked = self.unknown.take().unwrap_or_else(|| self.id().to_string());
            self.position = page.earliest - 1;
            return Ok(Some(Next::Gap {
                asked,
                earliest: (page.earliest <= page.head).then(|| self.core.id(page.earliest)),
                position: self.id(),
            }));
        }
        self.position = page.through;
        self.behind = page.through < page.head;
        let mut entries = page.entries;
        if let Some(end) = self.end {
            entries.retain(|entry| entry.message.id.sequence <= end);
        }
        Ok(messages(entries))
    }

    /// What the feeds announce next; `None` if the subscription has fallen behind.
    async fn follow(&mut self) -> Option<Next> {
        // Unconstrained: tokio's budget would let a feed say "nothing there" in the midst of a
        // drain, and a later message of another feed would overtake what it holds.
        unconstrained(poll_fn(|cx| self.drain(1, cx))).await;
        let limit = self.core.page();
        let mut bytes = 0;
        let mut entries = Vec::new();
        while let Some(announcement) = self.pending.front() {
            let Some(entry) = announcement.entry.upgrade() else {
                // Retention has dropped the message while it waited: the journal knows what is left.
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
        messages(entries)
    }

    /// Ready once so many messages are pending, or as many as one feed can hold; or the journal has to be
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
            let _quiet = core.live.feeds();
            self.collect(least, cx);
        } else {
            self.collect(least, cx);
        }
        let ready = self.behind || self.pending.len() >= least || self.core.live.is_stopped();
        if ready { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Moves what the feeds hold to `pending`, unless `least` messages are there already.
    fn collect(&mut self, least: usize, cx: &mut Context<'_>) {
        if self.behind || self.pending.len() >= least {
            return;
        }
        let mut lagged = false;
        for feed in &mut self.feeds {
            // All that a feed can hold. The bound ends the loop where a publisher is as fast as it.
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

    /// Drops what the feeds hold and reads the journal from `position`; needed whenever a feed may have
    /// skipped messages.
    pub fn fall_behind(&mut self) {
        self.pending.clear();
        self.behind = true;
    }

    /// The next messages if any are announced already, without waiting. If not, and the subscription is
    /// not behind, its position is that of the last announcement.
    pub async fn announced(&mut self) -> Option<Next> {
        if self.arrive().await || self.behind { None } else { self.follow().await }
    }

    /// Moves the position on to the last announcement, if nothing before that is for these channels.
    /// Whether it did. To resume from there later asks for less, and a quiet channel's subscriber does
    /// not fall out of retention.
    pub async fn arrive(&mut self) -> bool {
        // Unconstrained for the same reason as in `follow`.
        unconstrained(poll_fn(|cx| Poll::Ready(self.look(cx)))).await
    }

    fn look(&mut self, cx: &mut Context<'_>) -> bool {
        let core = Arc::clone(&self.core);
        // Under the lock, all that was announced is on the feeds.
        let feeds = core.live.feeds();
        self.collect(1, cx);
        if self.behind || !self.pending.is_empty() {
            return false;
        }
        self.position = self.position.max(feeds.announced);
        true
    }

    /// The channels it listens to.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// The sequence up to which every message was given, or is of another channel.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Its position as an id.
    pub fn id(&self) -> MessageId {
        self.core.id(self.position)
    }

    /// Whether it reads the journal, rather than follow what is announced.
    pub fn is_behind(&self) -> bool {
        self.behind
    }
}

/// `None` if there are none.
fn messages(entries: Vec<Arc<Entry>>) -> Option<Next> {
    (!entries.is_empty()).then_some(Next::Messages(entries))
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if !self.feeds.is_empty() {
            self.feeds.clear();
            self.core.live.tidy(&self.channels);
        }
    }
}
