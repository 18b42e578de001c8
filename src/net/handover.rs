//! The hand-over: how the socket of a stream is taken back from hyper.
//!
//! A stream does not need hyper once its response head is sent, and hyper holds 10 kB for each connection. So
//! hyper is given a body that never yields, and the socket is taken back as soon as hyper has flushed the
//! head. Each connection has one [`Handover`], shared by the response's body, by `Io` and by the
//! connection's task.
//!
//! ```text
//!  http1.rs          hyper                         handover.rs
//!  ────────          ─────                         ───────────
//!  Reply::Delivery ─────────────────────────────▶  ReplyBody::HandedOver
//!                    encodes the head
//!                    asks the body for a frame ─▶  poll_frame: the delivery moves to `waiting`; Pending
//!                    writes the head ───────────▶  Io::poll_write ──▶ socket
//!                    flushes ───────────────────▶  Io::poll_flush: `waiting` is there, so `flushed` is set
//!                    has nothing to do: Pending
//!  ended_or_flushed() sees `flushed`
//!  into_parts() ◀─── gives the socket back
//!  takes `waiting` ────────────────────────────▶  Handover::take
//!  net.rs: Groups::deliver(socket, delivery)
//! ```

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};

use crate::delivery::{Delivery, Framing, reason};
use crate::hub::Reason;

/// The state of one connection's hand-over.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// The delivery to hand over, once hyper has its response head.
    waiting: Mutex<Option<HandedOver>>,
    /// Set once that response head has been flushed to the socket.
    flushed: AtomicBool,
    /// Why the connection ended. hyper returns its error only after it has dropped the body.
    ended: OnceLock<Reason>,
}

/// What a connection is handed over with.
pub(super) type HandedOver = (Box<Delivery>, Framing);

impl Handover {
    /// The body of a response whose connection is handed over with this delivery.
    pub(super) fn hand_over(self: &Arc<Self>, delivery: Box<Delivery>, framing: Framing) -> SilentBody {
        SilentBody { handover: Arc::clone(self), delivery: Some((delivery, framing)) }
    }

    /// Whether the response head of a delivery to hand over has been flushed.
    pub(super) fn is_flushed(&self) -> bool {
        self.flushed.load(Ordering::Relaxed)
    }

    /// Records that hyper has written all of its bytes to the socket.
    pub(super) fn flushed(&self) {
        let is_waiting = self.waiting().is_some();
        self.flushed.store(is_waiting, Ordering::Relaxed);
    }

    /// Takes the delivery to hand over. `None` if there is none, or if its response head was not flushed: its
    /// subscriber then ends.
    pub(super) fn take(&self) -> Option<HandedOver> {
        let (mut delivery, framing) = self.waiting().take()?;
        if self.is_flushed() {
            return Some((delivery, framing));
        }
        delivery.subscriber.end(self.reason());
        None
    }

    fn waiting(&self) -> MutexGuard<'_, Option<HandedOver>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the connection ended, [`Reason::Cut`] if that is not known.
    fn reason(&self) -> Reason {
        self.ended.get().copied().unwrap_or(Reason::Cut)
    }

    /// Records that the other side closed the connection.
    pub(super) fn closed(&self) {
        self.ended.get_or_init(|| Reason::Closed);
    }

    /// Records that the connection failed with this error. Only the first reason counts.
    pub(super) fn failed(&self, error: &io::Error) {
        self.ended.get_or_init(|| reason(error));
    }
}

/// A body that never yields. Its first poll means that hyper has the response head.
pub(super) struct SilentBody {
    handover: Arc<Handover>,
    /// `None` once hyper has polled the body: the delivery is then in [`Handover::waiting`].
    delivery: Option<HandedOver>,
}

impl HttpBody for SilentBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(delivery) = self.delivery.take() {
            *self.handover.waiting() = Some(delivery);
        }
        Poll::Pending
    }
}

impl Drop for SilentBody {
    fn drop(&mut self) {
        if let Some((delivery, _)) = &mut self.delivery {
            delivery.subscriber.end(self.handover.reason());
        }
    }
}
