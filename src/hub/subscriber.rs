//! ONE subscriber: who it is, how long it has been there, what it was sent, why it ended.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::Instant;

use super::core::Core;
use super::limits::Permit;
use super::subscription::Next;
use crate::journal::{Channels, Entry};
use crate::message::SubscriberId;

/// A subscriber, from the moment it is admitted until it is dropped: for so long it counts against
/// the limits and for its channels. Its beginning and its end are a line in the log each.
#[derive(Debug)]
pub struct Subscriber {
    core: Arc<Core>,
    channels: Channels,
    /// Its own id: messages `except` this one are not for it.
    id: Option<SubscriberId>,
    address: SocketAddr,
    number: u64,
    since: Instant,
    /// Events.
    sent: u64,
    /// The sequence of the last id it was sent.
    last_id: u64,
    ended: Option<Reason>,
    _permit: Permit,
}

/// Why a subscriber ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The other side closed the connection.
    Closed,
    /// The connection failed.
    Reset,
    /// The other side took nothing for `--stall-timeout`.
    TimedOut,
    /// The connection was given up before anything else was known.
    Cut,
    /// The hub stops.
    Shutdown,
    /// The journal failed, and so the hub stops.
    JournalFailed,
}

impl Reason {
    /// The reason in words, for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Closed => "closed",
            Reason::Reset => "reset",
            Reason::TimedOut => "timed out",
            Reason::Cut => "cut",
            Reason::Shutdown => "shutdown",
            Reason::JournalFailed => "journal failed",
        }
    }
}

impl Subscriber {
    /// A subscriber that [`Live::join`](super::live::Live::join) has counted for these channels, and
    /// that is sent everything after `position`.
    pub(super) fn new(
        core: Arc<Core>,
        permit: Permit,
        address: SocketAddr,
        channels: Channels,
        id: Option<SubscriberId>,
        position: u64,
    ) -> Self {
        let number = core.next_number();
        let names: Vec<_> = channels.iter().map(|name| name.as_str()).collect();
        tracing::info!(subscriber = number, %address, channels = names.join(","), "subscriber connected");
        let since = Instant::now();
        let (sent, last_id, ended) = (0, position, None);
        Subscriber { core, channels, id, address, number, since, sent, last_id, ended, _permit: permit }
    }

    /// Where it subscribed from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The channels it listens to.
    pub fn channels(&self) -> &Channels {
        &self.channels
    }

    /// Replaces its channels by equal ones, whose memory they then share.
    pub fn share_channels(&mut self, channels: &Channels) {
        debug_assert_eq!(self.channels, *channels);
        self.channels = channels.clone();
    }

    /// Whether this message is for it: not one that is `except` its id.
    pub fn wants(&self, entry: &Entry) -> bool {
        entry.message.is_for(self.id.as_ref())
    }

    /// Leaves only what is for it. `None` if that is nothing.
    pub fn filter(&self, next: Next) -> Option<Next> {
        match next {
            Next::Messages(mut entries) => {
                entries.retain(|entry| self.wants(entry));
                (!entries.is_empty()).then_some(Next::Messages(entries))
            }
            gap => Some(gap),
        }
    }

    /// So many more events were sent, of which the last had the id of this sequence.
    pub fn was_sent(&mut self, events: usize, last_id: u64) {
        self.sent += events as u64;
        self.last_id = last_id;
    }

    /// Whether the id of `position` would move it on.
    pub fn is_before(&self, position: u64) -> bool {
        self.last_id < position
    }

    /// Records why it ended. Only the first reason counts.
    pub fn end(&mut self, reason: Reason) {
        self.ended.get_or_insert(reason);
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        self.core.live.leave(&self.channels);
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
