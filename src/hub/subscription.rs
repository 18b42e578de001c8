//! A subscription: the channels a subscriber asked for, and its position in the journal.
//!
//! Replay after a reconnect, history for a newcomer and catching up a slow reader are one code path. While a
//! subscription is `behind`, it reads pages of the journal from its position. Once it has reached the
//! journal's head, it follows the live feeds. If a feed drops announcements before the subscription has read
//! them, the subscription is behind again.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::task::coop::unconstrained;
use tokio::time::sleep;
use tokio_stream::Stream;

use super::core::Core;
use super::live::{Announcement, FEED_CAPACITY, FeedReader};
use crate::journal::{Channels, Entry, JournalError, Kept};
use crate::limits::{Network, Share};
use crate::message::{MessageId, SubscriberId};

/// The longest pause between two tries to read an unavailable journal. Higher: the end of all subscriptions
/// is noticed too late for the two seconds of a shutdown. Lower: more tries for the same lock.
const PAUSE: Duration = Duration::from_millis(500);

/// The position at which a subscriber begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// Before the next message.
    Live,
    /// Before this many of the newest kept messages.
    Newest(usize),
    /// After this last event ID, as the subscriber sent it.
    After(String),
}

/// The request of a subscriber, or of a reader of history.
#[derive(Clone, Debug)]
pub struct Request {
    /// The channels to listen to.
    pub channels: Channels,
    /// The position to begin at.
    pub start: Start,
    /// The id that the subscriber chose. It does not get messages with this id in `except`.
    pub subscriber: Option<SubscriberId>,
}

/// The next messages of a subscription, or a gap.
#[derive(Debug)]
pub enum Next {
    /// Messages, newest last: at least one, at most a replay page.
    Messages(Vec<Arc<Entry>>),
    /// Messages that were asked for are no longer kept, or are not of this journal. The kept ones follow.
    Gap {
        /// The last event ID that was asked for.
        asked: String,
        /// The earliest kept message, `None` if none is kept.
        earliest: Option<MessageId>,
        /// The position after the gap, from which a subscriber can resume.
        position: MessageId,
    },
}

/// A position in the journal: of one subscriber, or of a group that was sent the same messages.
#[derive(Debug)]
pub struct Subscription {
    core: Arc<Core>,
    channels: Channels,
    /// One for each channel. None in a history.
    feeds: Vec<FeedReader>,
    /// Announcements read from the feeds whose messages are not returned yet, in order. At most as many as
    /// the feeds can hold, and those that [`gathered`](Subscription::gathered) read before.
    pending: VecDeque<Announcement>,
    /// Each message up to this sequence was returned, or is on another channel.
    position: u64,
    /// Set if there may be messages after `position` that no feed will announce.
    behind: bool,
    /// The last event ID that was asked for, if it is no id of this journal: a gap comes first.
    unknown: Option<String>,
    /// Who reads the journal; `None` if several subscribers share the subscription.
    reader: Option<Network>,
    /// Set in a history.
    history: Option<History>,
}

/// What a history has, and no other subscription.
#[derive(Debug)]
struct History {
    /// The sequence at which the history ends.
    end: u64,
    _share: Share,
}

impl Subscription {
    /// A subscription that ends at the journal's present head. It has this share of the readers of history
    /// there may be.
    pub(super) async fn history(
        core: Arc<Core>,
        address: SocketAddr,
        request: &Request,
        share: Share,
    ) -> Result<Self, JournalError> {
        let mut subscription = Subscription::at_start(core, address, request).await?;
        // Not before the start, which may be that of a message that was stored meanwhile.
        let end = subscription.core.journal.head();
        subscription.history = Some(History { end, _share: share });
        Ok(subscription)
    }

    /// A subscription at the request's start, without feeds.
    pub(super) async fn at_start(
        core: Arc<Core>,
        address: SocketAddr,
        request: &Request,
    ) -> Result<Self, JournalError> {
        let mut unknown = None;
        let reader = Some(Network::from(address.ip()));
        let position = match &request.start {
            Start::Live => core.journal.head(),
            Start::Newest(count) => {
                core.journal.position_before_newest(*count, &request.channels, reader).await?
            }
            Start::After(asked) => {
                let position = asked.parse().ok().and_then(|id| core.journal.position(id));
                position.unwrap_or_else(|| {
                    unknown = Some(asked.clone());
                    0
                })
            }
        };
        let mut subscription = Subscription::at(core, request.channels.clone(), position, reader);
        subscription.unknown = unknown;
        Ok(subscription)
    }

    /// A subscription at `position`, behind and without feeds.
    fn at(core: Arc<Core>, channels: Channels, position: u64, reader: Option<Network>) -> Self {
        let (feeds, pending) = (Vec::new(), VecDeque::new());
        let (behind, unknown, history) = (true, None, None);
        Subscription { core, channels, feeds, pending, position, behind, unknown, reader, history }
    }

    /// Follows `feeds` from now on, after reading the journal up to where they begin. If `live` is given, the
    /// journal is not read: `live` is the sequence of the last message announced before, and becomes the
    /// position.
    pub(super) fn follow_from(&mut self, feeds: Vec<FeedReader>, live: Option<u64>) {
        self.feeds = feeds;
        if let Some(announced) = live {
            (self.position, self.behind) = (announced, false);
        }
    }

    /// Makes the subscription a group's: the journal is read in turns of the hub's own.
    pub fn read_for_group(&mut self) {
        self.reader = None;
    }

    /// Another subscription to the same channels, at `position`, of one subscriber at this address.
    pub fn fork(&self, position: u64, address: SocketAddr) -> Subscription {
        let (core, channels) = (Arc::clone(&self.core), self.channels.clone());
        let mut fork = Subscription::at(core, channels, position, Some(Network::from(address.ip())));
        // The feeds are taken before the journal is read, for the reason given in `Hub::subscribe`.
        fork.feeds = self.core.live.follow(&self.channels);
        fork
    }

    /// The id of the position at which the subscription begins: a subscriber that is cut off before the first
    /// message resumes from there. `None` if a gap comes first.
    pub fn begins_at(&self) -> Option<MessageId> {
        self.unknown.is_none().then(|| self.id())
    }

    /// Waits for the next messages, or a gap; also while the journal is unavailable. `None` at the end of a
    /// history, or once the hub ends all subscriptions.
    ///
    /// Dropping the future loses nothing: the next call returns what this call would have returned.
    ///
    /// # Errors
    /// [`JournalError`] if the journal failed. In a history, also if the journal is unavailable.
    pub async fn next(&mut self) -> Result<Option<Next>, JournalError> {
        loop {
            let is_over = match &self.history {
                Some(History { end, .. }) => self.position >= *end && self.unknown.is_none(),
                None => self.core.live.is_stopped(),
            };
            if is_over {
                return Ok(None);
            }
            let next = if !self.behind {
                self.follow().await
            } else {
                match self.replay().await {
                    Err(JournalError::Unavailable { retry_after }) if self.history.is_none() => {
                        sleep(retry_after.min(PAUSE)).await;
                        continue;
                    }
                    result => result?,
                }
            };
            if next.is_some() {
                return Ok(next);
            }
            // The page had no message on these channels. Many such pages may follow.
            tokio::task::consume_budget().await;
        }
    }

    /// Reads the next page of the journal. `None` if the page has no message on these channels.
    async fn replay(&mut self) -> Result<Option<Next>, JournalError> {
        let page = self.core.read(self.position, &self.channels, self.reader).await?;
        if self.unknown.is_some() || page.has_gap_after(self.position) {
            let asked = self.unknown.take().unwrap_or_else(|| self.id().to_string());
            self.position = page.earliest - 1;
            return Ok(Some(Next::Gap {
                asked,
                // More may have been stored since the page was read, and dropped.
                earliest: (page.earliest <= self.core.journal.head()).then(|| self.core.id(page.earliest)),
                position: self.id(),
            }));
        }
        self.position = page.through;
        self.behind = page.through < page.head;
        let mut entries = page.entries;
        if let Some(History { end, .. }) = self.history {
            entries.retain(|entry| entry.message.id.sequence <= end);
        }
        Ok(messages(entries))
    }

    /// Waits for the next messages on the feeds. `None` if the subscription has fallen behind, or ends.
    async fn follow(&mut self) -> Option<Next> {
        // Unconstrained: once tokio's budget is spent, a feed returns `Pending` even if it holds messages. A
        // later message on another feed would then overtake them.
        unconstrained(poll_fn(|cx| self.drain(1, cx))).await;
        let limit = self.core.page();
        let mut bytes = 0;
        let mut entries = Vec::new();
        while let Some(announcement) = self.pending.front() {
            let Some(entry) = announcement.entry.upgrade() else {
                // Retention dropped the message while it was pending. The journal has the kept ones.
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

    /// Waits until `count` messages are pending, or as many as one feed can hold. Also returns once the
    /// subscription has fallen behind, or ends. Dropping the future loses nothing.
    pub async fn gathered(&mut self, count: usize) {
        let count = count.min(FEED_CAPACITY);
        // Unconstrained for the same reason as in `follow`.
        unconstrained(poll_fn(|cx| self.drain(count, cx))).await;
    }

    /// Moves announcements to `pending`. Ready once at least `least` are there, or once the subscription has
    /// fallen behind, or ends.
    fn drain(&mut self, least: usize, cx: &mut Context<'_>) -> Poll<()> {
        if self.feeds.len() > 1 {
            // A message must not overtake an earlier one on another feed. Nothing is announced under this
            // lock, so no message before the last one collected is missing.
            let core = Arc::clone(&self.core);
            let _feeds = core.live.feeds();
            self.collect(least, cx);
        } else {
            self.collect(least, cx);
        }
        let ready = self.behind || self.pending.len() >= least || self.core.live.is_stopped();
        if ready { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Moves the announcements of all feeds to `pending`, unless at least `least` are there already.
    fn collect(&mut self, least: usize, cx: &mut Context<'_>) {
        if self.behind || self.pending.len() >= least {
            return;
        }
        let mut lagged = false;
        for feed in &mut self.feeds {
            // As many as a feed can hold. Without a bound, a fast publisher could keep the loop going.
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

    /// Drops the pending announcements, and reads the journal from `position` next. Needed whenever a feed
    /// may have skipped messages.
    pub fn fall_behind(&mut self) {
        self.pending.clear();
        self.behind = true;
    }

    /// Goes back to `position`, at or before the present one, and reads the journal from there next.
    pub fn go_back(&mut self, position: u64) {
        debug_assert!(position <= self.position, "{position} is after {}", self.position);
        self.position = position;
        self.fall_behind();
    }

    /// Reads the message at `sequence` again; also while the journal is unavailable, but not in a history.
    /// `None` if the message is no longer kept.
    ///
    /// # Errors
    /// As of [`next`](Self::next).
    pub async fn reread(&self, sequence: u64) -> Result<Option<Arc<Entry>>, JournalError> {
        loop {
            let page = match self.core.read(sequence - 1, &self.channels, self.reader).await {
                Err(JournalError::Unavailable { retry_after }) if self.history.is_none() => {
                    sleep(retry_after.min(PAUSE)).await;
                    continue;
                }
                page => page?,
            };
            let first = page.entries.into_iter().next();
            return Ok(first.filter(|entry| entry.message.id.sequence == sequence));
        }
    }

    /// Keeps the message for a reader that waits: see [`Entry::keep`].
    pub fn keep(&self, entry: &Arc<Entry>) -> Option<Kept> {
        entry.keep(&self.core.budget)
    }

    /// The next messages, if they are announced already. If none are, and the subscription is not behind, its
    /// position is now that of the last announcement.
    pub async fn announced(&mut self) -> Option<Next> {
        if self.advance().await || self.behind { None } else { self.follow().await }
    }

    /// Moves the position to the last announcement, if no message up to there is on these channels. Returns
    /// whether the position moved there. A subscriber of a quiet channel then resumes from a recent position,
    /// which retention has not passed.
    pub async fn advance(&mut self) -> bool {
        // Unconstrained for the same reason as in `follow`.
        unconstrained(poll_fn(|cx| Poll::Ready(self.try_advance(cx)))).await
    }

    fn try_advance(&mut self, cx: &mut Context<'_>) -> bool {
        let core = Arc::clone(&self.core);
        // Under this lock, every announced message is on its feed.
        let feeds = core.live.feeds();
        self.collect(1, cx);
        if self.behind || !self.pending.is_empty() {
            return false;
        }
        self.position = self.position.max(feeds.announced);
        true
    }

    /// The channels of the subscription.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// The position: each message up to this sequence was returned, or is on another channel.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The position as an id.
    pub fn id(&self) -> MessageId {
        self.core.id(self.position)
    }

    /// Whether the subscription reads the journal next, rather than its feeds.
    pub fn is_behind(&self) -> bool {
        self.behind
    }
}

/// The entries as [`Next::Messages`], `None` if there are none.
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
