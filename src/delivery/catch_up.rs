//! Catching up: one subscriber that is in no group, because it is new or its socket was full.

use std::mem;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::yield_now;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::socket::{LAST_CHUNK, Socket, pieces};
use super::stream::Delivery;
use crate::hub::Reason;

/// How long a connection may take to end at shutdown, before it is cut. Higher: a shutdown may exceed the two
/// seconds promised. Lower: more subscribers are cut in the middle of a message.
pub(crate) const GRACE: Duration = Duration::from_millis(1_500);

/// A subscriber with its socket, and the bytes that the socket has not accepted yet.
#[derive(Debug)]
pub(super) struct CatchUp {
    pub(super) socket: Socket,
    pub(super) delivery: Delivery,
    pub(super) unsent: Vec<Bytes>,
}

impl CatchUp {
    /// Sends as many of the unsent bytes as the socket accepts at once. `None` if the subscriber is gone.
    pub(super) fn send(mut self) -> Option<Self> {
        match self.socket.send_pieces(mem::take(&mut self.unsent)) {
            Ok(unsent) => Some(CatchUp { unsent, ..self }),
            Err(reason) => {
                self.delivery.subscriber.end(reason);
                None
            }
        }
    }

    /// Whether the subscriber can join a group: nothing is unsent, and its subscription is not behind.
    pub(super) fn has_caught_up(&self) -> bool {
        self.unsent.is_empty() && !self.delivery.stream.subscription.is_behind()
    }

    /// Sends the subscriber its stream until it has caught up. `None` if the subscriber is gone, or its
    /// stream has ended.
    pub(super) async fn run(mut self, stopping: &CancellationToken) -> Option<Self> {
        let CatchUp { socket, delivery, unsent } = &mut self;
        let mut is_over = false;
        loop {
            let overdue = async {
                stopping.cancelled().await;
                sleep(GRACE).await;
            };
            let gone = tokio::select! {
                result = socket.send_all(mem::take(unsent)) => result.err(),
                reason = socket.gone() => Some(reason),
                () = overdue => {
                    let address = delivery.subscriber.address();
                    tracing::warn!(%address, "connection cut: it did not end in time");
                    Some(Reason::Shutdown)
                }
            };
            if let Some(reason) = gone {
                delivery.subscriber.end(reason);
                return None;
            }
            if is_over {
                return None;
            }
            if !delivery.stream.subscription.is_behind() {
                return Some(self);
            }
            // Other tasks have their turn after each page: many pages may follow.
            yield_now().await;
            let next = tokio::select! {
                next = delivery.next() => next,
                reason = socket.gone() => {
                    delivery.subscriber.end(reason);
                    return None;
                }
            };
            is_over = next.is_none();
            *unsent = next.map_or_else(|| vec![LAST_CHUNK], pieces);
        }
    }
}
