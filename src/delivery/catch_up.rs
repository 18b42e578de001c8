//! Catching up: one subscriber that is in no group, because it is new or its socket was full.

use std::future::{pending, poll_fn};
use std::mem;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::chunks::{Chunks, Partial, Unsent};
use super::socket::Socket;
use super::stream::{self, Delivery};
use crate::hub::{Pass, Reason};

/// A subscriber with its socket, and what the socket has not taken yet.
#[derive(Debug)]
pub(super) struct CatchUp {
    pub(super) socket: Socket,
    pub(super) delivery: Delivery,
    pub(super) unsent: Unsent,
}

impl CatchUp {
    /// Sends as much of the chunks as the socket takes at once. The rest is left to [`run`](Self::run).
    ///
    /// # Errors
    /// The reason why the subscriber is gone.
    pub(super) fn send(&mut self, chunks: &Chunks) -> Result<(), Reason> {
        let sent = self.socket.send(chunks, 0)?;
        self.unsent = self.delivery.was_sent(chunks, sent);
        Ok(())
    }

    /// Whether the subscriber can join a group: nothing is unsent, and its subscription is not behind.
    pub(super) fn has_caught_up(&self) -> bool {
        self.unsent.is_nothing() && !self.delivery.subscription.is_behind()
    }

    /// Ends the stream. Returns itself if the socket has not taken the end, to be [run](Self::run).
    pub(super) fn end(mut self, reason: Reason) -> Option<Self> {
        self.delivery.subscriber.end(reason);
        let end = stream::end(reason, self.delivery.format, self.socket.framing);
        let sent = self.socket.send(&end, 0).ok().filter(|sent| *sent < end.len())?;
        self.unsent = Unsent::End(end.copy(sent, end.len()));
        Some(self)
    }

    /// Sends the subscriber its stream until it has caught up. `None` if the subscriber is gone, or its
    /// stream has ended. The stream ends once `stopping` is cancelled, and is cut once `overdue` is, or once
    /// the socket has taken nothing for so long.
    pub(super) async fn run(
        mut self,
        stall: Duration,
        stopping: &CancellationToken,
        overdue: &CancellationToken,
    ) -> Option<Self> {
        let address = self.delivery.subscriber.address();
        let pass = self.delivery.subscriber.pass().cloned();
        let CatchUp { socket, delivery, unsent } = &mut self;
        let result = tokio::select! {
            biased;
            result = catch_up(socket, delivery, unsent, stall, stopping) => result,
            reason = socket.gone() => Err(reason),
            reason = overstayed(pass.as_deref()) => Err(reason),
            () = overdue.cancelled() => {
                tracing::warn!(%address, "connection cut: it did not end in time");
                Err(Reason::Shutdown)
            }
        };
        match result {
            Ok(has_caught_up) => has_caught_up.then_some(self),
            Err(reason) => {
                self.delivery.subscriber.end(reason);
                None
            }
        }
    }
}

/// Waits until the stream should have ended, and did not: its socket takes too little.
async fn overstayed(pass: Option<&Pass>) -> Reason {
    /// How long a stream takes to end. Higher: a token is good for longer than it says. Lower: a socket that
    /// is full for a moment is cut, and its subscriber is not sent why.
    const TIME: Duration = Duration::from_secs(1);
    let Some(pass) = pass else { return pending().await };
    let reason = poll_fn(|cx| pass.poll_end(cx)).await;
    sleep(TIME).await;
    reason
}

/// Sends what is unsent, then pages of the journal, and the end of the stream. While the
/// socket is full, no page is read, and no message is kept but in [`Partial::kept`]. Returns false at the end
/// of the stream.
///
/// # Errors
/// The reason why the subscriber is gone, or has to go.
async fn catch_up(
    socket: &Socket,
    delivery: &mut Delivery,
    unsent: &mut Unsent,
    stall: Duration,
    stopping: &CancellationToken,
) -> Result<bool, Reason> {
    let end = loop {
        if unsent.is_nothing() && !delivery.subscription.is_behind() {
            return Ok(true);
        }
        socket.writable(stall).await?;
        let (chunks, from) = match mem::take(unsent) {
            Unsent::Nothing => {
                let next = tokio::select! {
                    biased;
                    next = delivery.next(socket.framing) => next,
                    // The journal is not waited for: thousands may wait to read it, one after the other.
                    () = stopping.cancelled() => Err(Reason::Shutdown),
                };
                match next {
                    Ok(Some(chunks)) => (chunks, 0),
                    Ok(None) => continue,
                    Err(reason) => {
                        delivery.subscriber.end(reason);
                        break stream::end(reason, delivery.format, socket.framing);
                    }
                }
            }
            Unsent::Bytes(bytes) => (Chunks::from(bytes), 0),
            Unsent::Message(Partial { sequence, sent, kept }) => {
                let entry = match kept {
                    Some(kept) => kept.entry,
                    None => delivery.reread(sequence).await?,
                };
                (Chunks::begun(entry, delivery.format, socket.framing), sent)
            }
            Unsent::End(bytes) => break Chunks::from(bytes),
        };
        let sent = socket.send_if_writable(&chunks, from)?;
        *unsent = delivery.was_sent(&chunks, sent);
        // Other tasks have their turn after each page: many pages may follow.
        yield_now().await;
    };
    let mut sent = 0;
    while sent < end.len() {
        socket.writable(stall).await?;
        sent = socket.send_if_writable(&end, sent)?;
    }
    Ok(false)
}
