//! One subscriber: its address and channels, since when it is there, what it was sent, why it ended.

use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::core::Core;
use super::pass::{Due, Pass};
use super::reason::Reason;
use super::subscription::Next;
use crate::journal::{Channels, Entry};
use crate::limits::{Peer, Share};
use crate::message::SubscriberId;

/// A subscriber, from its admission to its end. Until it is dropped, it counts against the limits and for
/// its channels. Its beginning and its end are logged.
#[derive(Debug)]
pub struct Subscriber {
    core: Arc<Core>,
    channels: Channels,
    /// The id that the subscriber chose. It does not get messages with this id in `except`.
    id: Option<SubscriberId>,
    address: Peer,
    number: u64,
    since: Instant,
    /// How many events were sent.
    sent: u64,
    /// The sequence of the last id sent.
    last_id: u64,
    /// The first reason that [`end`](Self::end) recorded.
    ended: Option<Reason>,
    /// The share of the subscribers there may be. `None` once it is given back.
    share: Option<Share>,
    /// Until when the stream may go on. `None` if its caller has no token.
    pass: Option<Arc<Pass>>,
}

impl Subscriber {
    /// A subscriber from `position` on. [`Live::count`](super::live::Live::count) must have counted it for
    /// `channels`, and `pass` must be one of the hub's: dropping the subscriber undoes both.
    pub(super) fn new(
        core: Arc<Core>,
        share: Share,
        address: Peer,
        channels: Channels,
        id: Option<SubscriberId>,
        position: u64,
        pass: Option<Arc<Pass>>,
    ) -> Self {
        let number = core.next_number();
        let names: Vec<_> = channels.iter().map(|name| name.as_str()).collect();
        tracing::info!(subscriber = number, %address, channels = names.join(" "), "subscriber connected");
        let since = Instant::now();
        let (sent, last_id, ended) = (0, position, None);
        let share = Some(share);
        Subscriber { core, channels, id, address, number, since, sent, last_id, ended, share, pass }
    }

    /// Whom the subscriber is for, as limits count it.
    pub fn address(&self) -> Peer {
        self.address
    }

    /// The channels the subscriber listens to.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Replaces the subscriber's channels by `channels`, which must be equal, to share their allocation.
    pub fn share_channels(&mut self, channels: &Channels) {
        debug_assert_eq!(self.channels, *channels);
        self.channels = channels.clone();
    }

    /// Whether the subscriber gets this message: its id is not in `except`.
    pub fn wants(&self, entry: &Entry) -> bool {
        entry.message.is_for(self.id.as_ref())
    }

    /// `next` without the messages that the subscriber does not get. `None` if no message is left.
    pub fn filter(&self, next: Next) -> Option<Next> {
        match next {
            Next::Messages(mut entries) => {
                entries.retain(|entry| self.wants(entry));
                (!entries.is_empty()).then_some(Next::Messages(entries))
            }
            gap => Some(gap),
        }
    }

    /// Records what was sent: how many events, and the sequence of the last id. `None` records nothing.
    pub fn was_sent(&mut self, counts: Option<(usize, u64)>) {
        let Some((events, last_id)) = counts else { return };
        self.sent += events as u64;
        self.last_id = last_id;
    }

    /// Whether the last id sent is before `position`.
    pub fn is_before(&self, position: u64) -> bool {
        self.last_id < position
    }

    /// The pass of a subscriber whose caller has a token.
    pub fn pass(&self) -> Option<&Arc<Pass>> {
        self.pass.as_ref()
    }

    /// See [`Pass::poll_due`]. Never ready without a pass.
    pub fn poll_due(&self, cx: &mut Context<'_>) -> Poll<Due> {
        self.pass.as_ref().map_or(Poll::Pending, |pass| pass.poll_due(cx))
    }

    /// See [`Pass::take_due`].
    pub fn take_due(&self) -> Option<Due> {
        self.pass.as_ref()?.take_due()
    }

    /// Records why the subscriber ended. Only the first reason counts.
    pub fn end(&mut self, reason: Reason) {
        self.ended.get_or_insert(reason);
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.core.live.uncount(&self.channels);
        if let Some(pass) = &self.pass {
            self.core.passes.remove(pass);
        }
        // Before the line: whoever reads it may send another subscriber.
        self.share = None;
        tracing::info!(
            subscriber = self.number,
            address = %self.address,
            duration_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            sent = self.sent,
            reason = self.ended.unwrap_or(Reason::Cut).as_str(),
            "subscriber disconnected"
        );
    }
}
