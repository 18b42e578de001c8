//! A subscription: the channels a subscriber asked for, and its position in the journal.
//!
//! Replay after a reconnect, history for a newcomer and catching up a slow reader are one code path: pages of
//! the journal, from the position on. A subscription that has reached the journal's head is not `behind`. Its
//! owner then listens on a [`Feed`](super::Feed), and says when it is behind again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::core::Core;
use crate::journal::{Channels, Entry, JournalError, Kept, Page};
use crate::limits::{Network, Peer, Share};
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
    /// Before the next message, and after a gap: what came after this last event ID may not be read.
    Hidden(String),
    /// Before the newest kept message of each channel; those after this last event ID, if there is one. The
    /// other messages up to the journal's present head are left out.
    Latest(Option<String>),
    /// Before so many messages that are the newest before this id. Only a history begins so, and ends there.
    Before(String, usize),
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
    /// Each message up to this sequence was returned, or is on another channel.
    position: u64,
    /// Set if there may be messages after `position` that only the journal has.
    behind: bool,
    /// A gap up to this sequence was returned already.
    gap_until: u64,
    /// Who reads the journal, and what only one reader can have asked for. `None` if several subscribers
    /// share the subscription.
    reader: Option<Box<Reader>>,
}

/// The one reader of a subscription.
#[derive(Debug)]
struct Reader {
    network: Network,
    /// Up to this sequence, only the newest message of each channel is returned.
    latest: u64,
    /// The beginning of the last event ID that was asked for, if it is no id of this journal: a gap comes
    /// first.
    unknown: Option<String>,
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

/// The next page is not in memory.
#[derive(Clone, Copy, Debug)]
pub struct NotHeld;

impl Subscription {
    /// A subscription that ends at the journal's present head. It has this share of the readers of history
    /// there may be.
    pub(super) async fn history(
        core: Arc<Core>,
        address: Peer,
        request: &Request,
        share: Share,
    ) -> Result<Self, JournalError> {
        let mut subscription = Subscription::at_start(core, address, request).await?;
        let core = &subscription.core;
        let Some(reader) = &mut subscription.reader else { return Ok(subscription) };
        let end = match &request.start {
            Start::Before(..) if reader.unknown.is_some() => 0,
            Start::Before(id, _) => core.position(id).unwrap_or(0).saturating_sub(1),
            Start::Latest(_) => reader.latest,
            // Not before the start, which may be that of a message that was stored meanwhile.
            _ => core.journal.head(),
        };
        reader.history = Some(History { end, _share: share });
        Ok(subscription)
    }

    /// A subscription at the request's start.
    pub(super) async fn at_start(
        core: Arc<Core>,
        address: Peer,
        request: &Request,
    ) -> Result<Self, JournalError> {
        let journal = &core.journal;
        let (head, network) = (journal.head(), Network::from(address));
        let newest =
            |count, until| journal.position_before_newest(count, until, &request.channels, Some(network));
        let (mut latest, mut unknown) = (0, None);
        // Ids have at most 64 bytes. The rest would be in memory until the journal is read.
        let cut = |asked: &String| asked[..asked.floor_char_boundary(64)].to_owned();
        let mut known = |asked: &String| {
            let position = core.position(asked);
            unknown = position.is_none().then(|| cut(asked));
            position
        };
        let position = match &request.start {
            Start::Live => head,
            Start::Newest(count) => newest(*count, head).await?,
            Start::After(asked) => known(asked).unwrap_or(0),
            Start::Hidden(asked) => {
                unknown = Some(cut(asked));
                head
            }
            Start::Latest(asked) => {
                latest = head;
                asked.as_ref().and_then(&mut known).unwrap_or(0)
            }
            Start::Before(asked, count) => match known(asked) {
                Some(position) => newest(*count, position.saturating_sub(1)).await?,
                None => 0,
            },
        };
        let reader = Some(Box::new(Reader { network, latest, unknown, history: None }));
        let channels = request.channels.clone();
        Ok(Subscription { core, channels, position, behind: true, gap_until: 0, reader })
    }

    /// Begins at this position, up to which all messages are announced, without a look at the journal.
    pub fn begin_live(&mut self, announced: u64) {
        (self.position, self.behind) = (announced, false);
    }

    /// Another subscription to the same channels, at `position` and behind. `address` is that of its one
    /// subscriber; `None` if it is a group's, for which the journal is read in turns of the hub's own.
    pub fn fork(&self, position: u64, address: Option<Peer>) -> Subscription {
        let (core, channels) = (Arc::clone(&self.core), self.channels.clone());
        let network = address.map(Network::from);
        let reader = |network| Box::new(Reader { network, latest: 0, unknown: None, history: None });
        let (behind, gap_until) = (true, self.gap_until);
        Subscription { core, channels, position, behind, gap_until, reader: network.map(reader) }
    }

    /// The id of the position at which the subscription begins: a subscriber that is cut off before the first
    /// message resumes from there. `None` if a gap comes first, or the newest message of each channel: who
    /// has got nothing of these begins anew.
    pub fn begins_at(&self) -> Option<MessageId> {
        let begins = |reader: &Reader| reader.unknown.is_none() && reader.latest == 0;
        self.reader.as_deref().is_none_or(begins).then(|| self.id())
    }

    /// Reads what comes next, messages or a gap; also while the journal is unavailable, but not in a history.
    /// `None` once the subscription is no longer [`behind`](Self::is_behind) or [over](Self::is_over).
    ///
    /// Dropping the future loses nothing: the next call returns what this call would have returned.
    ///
    /// # Errors
    /// [`JournalError`] if the journal failed. In a history, also if the journal is unavailable.
    pub async fn next(&mut self) -> Result<Option<Next>, JournalError> {
        while self.behind && !self.is_over() {
            match self.core.read(self.position, &self.channels, self.latest(), self.network()).await {
                Ok(page) => {
                    let next = self.take(page);
                    if next.is_some() {
                        return Ok(next);
                    }
                }
                Err(JournalError::Unavailable { retry_after }) if self.end().is_none() => {
                    sleep(retry_after.min(PAUSE)).await;
                }
                Err(error) => return Err(error),
            }
            // The page had no message on these channels. Many such pages may follow.
            tokio::task::consume_budget().await;
        }
        Ok(None)
    }

    /// As [`next`](Self::next), but of what is in memory, and at once.
    ///
    /// # Errors
    /// [`NotHeld`] if the next page is not in memory.
    pub fn next_held(&mut self) -> Result<Option<Next>, NotHeld> {
        if !self.behind || self.is_over() {
            return Ok(None);
        }
        let page = self.core.read_held(self.position, &self.channels, self.latest()).ok_or(NotHeld)?;
        match self.take(page) {
            // Many more pages may follow.
            None if self.behind => Err(NotHeld),
            next => Ok(next),
        }
    }

    /// The sequence up to which the next page has only the newest message of each channel.
    fn latest(&self) -> Option<u64> {
        let latest = self.reader.as_ref()?.latest;
        (self.position < latest).then_some(latest)
    }

    fn network(&self) -> Option<Network> {
        self.reader.as_ref().map(|reader| reader.network)
    }

    /// The sequence at which a history ends.
    fn end(&self) -> Option<u64> {
        Some(self.reader.as_ref()?.history.as_ref()?.end)
    }

    /// Goes on to the end of the page. `None` if the page has no message on these channels.
    fn take(&mut self, page: Page) -> Option<Next> {
        let unknown = self.reader.as_mut().and_then(|reader| reader.unknown.take());
        let has_gap = match self.latest() {
            // A newest message that is no longer kept is no gap, and a history has no other.
            Some(latest) => self.end().is_none() && page.has_gap_after(latest),
            None => page.has_gap_after(self.position),
        };
        if unknown.is_some() || has_gap && page.earliest > self.gap_until {
            let asked = unknown.unwrap_or_else(|| self.id().to_string());
            // What a rule keeps from before `earliest` follows, without another gap. A message from before
            // `begin` was dropped since it was read.
            let first = page.entries.first().map_or(page.through + 1, |first| first.message.id.sequence);
            // Not before the position, from which on a subscriber may read.
            self.position = self.position.max(first.max(page.begin).min(page.earliest) - 1);
            self.gap_until = page.earliest;
            return Some(Next::Gap {
                asked,
                // More may have been stored since the page was read, and dropped.
                earliest: (page.earliest <= self.core.journal.head()).then(|| self.core.id(page.earliest)),
                position: self.id(),
            });
        }
        self.position = page.through;
        self.behind = page.through < page.head;
        let mut entries = page.entries;
        if let Some(end) = self.end() {
            entries.retain(|entry| entry.message.id.sequence <= end);
        }
        (!entries.is_empty()).then_some(Next::Messages(entries))
    }

    /// Whether nothing comes any more: at the end of a history, or once every subscription ends.
    pub fn is_over(&self) -> bool {
        let is_unknown = || self.reader.as_ref().is_some_and(|reader| reader.unknown.is_some());
        match self.end() {
            Some(end) => self.position >= end && !is_unknown(),
            None => self.core.live.is_stopped(),
        }
    }

    /// Whether there may be messages after the position that only the journal has.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// Records that there may be.
    pub fn fall_behind(&mut self) {
        self.behind = true;
    }

    /// Goes back to `position`, at or before the present one, and so falls behind.
    pub fn go_back(&mut self, position: u64) {
        debug_assert!(position <= self.position, "{position} is after {}", self.position);
        self.position = position;
        self.behind = true;
    }

    /// Goes on to `position`, if it is after the present one, and the subscription is not behind: no message
    /// in between is on these channels, or each of them was sent. A subscriber of a quiet channel then
    /// resumes from a recent position, which retention has not passed.
    pub fn advance(&mut self, position: u64) {
        if !self.behind {
            self.position = self.position.max(position);
        }
    }

    /// Reads the message at `sequence` again; also while the journal is unavailable, but not in a history.
    /// `None` if the message is no longer kept.
    ///
    /// # Errors
    /// As of [`next`](Self::next).
    pub async fn reread(&self, sequence: u64) -> Result<Option<Arc<Entry>>, JournalError> {
        loop {
            let page = match self.core.read(sequence - 1, &self.channels, None, self.network()).await {
                Err(JournalError::Unavailable { retry_after }) if self.end().is_none() => {
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

    /// Whether so many messages, of so many bytes, are no more than one read may return.
    pub fn fits_page(&self, messages: usize, bytes: usize) -> bool {
        let page = self.core.page();
        messages <= page.messages && bytes <= page.bytes
    }
}
