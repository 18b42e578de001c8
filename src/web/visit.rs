//! A visit: a subscriber's stay, logged when it begins and, however it ends, when it is dropped.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::App;
use super::connection::Peer;
use crate::hub::Seat;
use crate::journal::Channels;

#[derive(Debug)]
pub(super) struct Visit {
    _seat: Seat,
    peer: Arc<Peer>,
    number: u64,
    since: Instant,
    sent: u64,
    /// Why the hub ended it; `None` if the other side did.
    ended: Option<&'static str>,
}

impl Visit {
    pub(super) fn begin(app: &App, peer: Arc<Peer>, seat: Seat, channels: &Channels) -> Self {
        let number = app.subscribers.fetch_add(1, Ordering::Relaxed) + 1;
        let channels: Vec<_> = channels.iter().map(|name| name.as_str()).collect();
        tracing::info!(subscriber = number, address = %peer.address, channels = channels.join(","), "subscriber connected");
        Visit { _seat: seat, peer, number, since: Instant::now(), sent: 0, ended: None }
    }

    /// It goes on with this peer, which is the same one.
    pub(super) fn goes_on_with(&mut self, peer: &Arc<Peer>) {
        self.peer = Arc::clone(peer);
    }

    /// So many more events were sent.
    pub(super) fn sent(&mut self, events: usize) {
        self.sent += events as u64;
    }

    /// Says why, before the stream is ended from this side.
    pub(super) fn end(&mut self, reason: &'static str) {
        self.ended = Some(reason);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        tracing::info!(
            subscriber = self.number,
            address = %self.peer.address,
            duration_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            sent = self.sent,
            reason = self.ended.unwrap_or_else(|| self.peer.why_gone()),
            "subscriber disconnected"
        );
    }
}
