//! The hand-over: how a connection that has become a stream leaves hyper.
//!
//! A stream needs nothing of hyper's once its response head is out, and a connection that stays with
//! hyper holds 10 kB for as long. So hyper is given a body that never yields, and the socket is taken
//! back as soon as hyper has flushed the head. One [`Handover`] belongs to a connection; hyper's side and
//! ours both hold it.
//!
//! ```text
//!  http1.rs          hyper                         handover.rs
//!  ────────          ─────                         ───────────
//!  Reply::Delivery ─────────────────────────────▶  ReplyBody::Delivery
//!                    encodes the head
//!                    asks the body for a frame ─▶  poll_frame: the delivery moves to `waiting`; Pending
//!                    writes the head ───────────▶  Io::poll_write ──▶ socket
//!                    flushes ───────────────────▶  Io::poll_flush: `waiting` is there, so `flushed` is set
//!                    has nothing to do: Pending
//!  connection() sees `flushed`
//!  into_parts() ◀─── gives the socket back
//!  takes `waiting` ────────────────────────────▶  Handover::take
//!  Groups::deliver(socket, delivery)
//! ```

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::api::Body;
use crate::delivery::{self, Delivery, Unsolicited, reason};
use crate::hub::Reason;

/// What one connection has come to.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// The delivery whose response head hyper has.
    waiting: Mutex<Option<Box<Delivery>>>,
    /// Set once that head has been flushed to the socket.
    flushed: AtomicBool,
    /// Set once the connection has a subscriber whose stream stays with hyper.
    stays: AtomicBool,
    /// Why the connection ended: hyper tells only its own task, and that later.
    ended: OnceLock<Reason>,
    unsolicited: Unsolicited,
}

impl Handover {
    /// The body of a response whose connection leaves hyper with this delivery.
    pub(super) fn leave(self: &Arc<Self>, delivery: Box<Delivery>) -> ReplyBody {
        ReplyBody::Delivery(Leaving { handover: Arc::clone(self), delivery: Some(delivery) })
    }

    /// The body of a response whose connection stays with hyper for this delivery.
    pub(super) fn stay(self: &Arc<Self>, delivery: Delivery) -> ReplyBody {
        self.stays.store(true, Ordering::Relaxed);
        let handover = Arc::clone(self);
        let body = delivery::body(delivery, move || handover.reason());
        ReplyBody::Bytes(Body::from_stream(body))
    }

    /// Whether hyper is done with the connection.
    pub(super) fn is_flushed(&self) -> bool {
        self.flushed.load(Ordering::Relaxed)
    }

    /// The delivery that leaves with the connection. `None` if there is none, or if its head was not
    /// flushed: then its subscriber ends.
    pub(super) fn take(&self) -> Option<Box<Delivery>> {
        let mut delivery = self.waiting().take()?;
        if self.is_flushed() {
            return Some(delivery);
        }
        delivery.subscriber.end(self.reason());
        None
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Box<Delivery>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the connection ended, as far as that is known by now.
    fn reason(&self) -> Reason {
        self.ended.get().copied().unwrap_or(Reason::Cut)
    }

    fn note(&self, reason: Reason) {
        self.ended.get_or_init(|| reason);
    }
}

/// The body of a response, as hyper takes it.
pub(super) enum ReplyBody {
    /// Bytes, all of them or as they come.
    Bytes(Body),
    /// Of a connection that leaves.
    Delivery(Leaving),
}

/// A body that never yields.
pub(super) struct Leaving {
    handover: Arc<Handover>,
    /// `None` once hyper has the response head.
    delivery: Option<Box<Delivery>>,
}

impl HttpBody for ReplyBody {
    type Data = Bytes;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut *self {
            ReplyBody::Bytes(body) => Pin::new(body).poll_frame(cx),
            ReplyBody::Delivery(Leaving { handover, delivery }) => {
                if let Some(delivery) = delivery.take() {
                    *handover.waiting() = Some(delivery);
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ReplyBody::Bytes(body) => body.is_end_stream(),
            ReplyBody::Delivery(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ReplyBody::Bytes(body) => body.size_hint(),
            ReplyBody::Delivery(_) => SizeHint::default(),
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(delivery) = &mut self.delivery {
            delivery.subscriber.end(self.handover.reason());
        }
    }
}

/// A connection's socket while hyper has it. Records why it ended, and when it can leave.
pub(super) struct Io {
    stream: TcpStream,
    handover: Arc<Handover>,
}

impl Io {
    pub(super) fn new(stream: TcpStream, handover: Arc<Handover>) -> Self {
        Io { stream, handover }
    }

    pub(super) fn into_inner(self) -> TcpStream {
        self.stream
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| self.handover.note(reason(error)))
    }

    /// Whether this was a subscriber's socket, and the subscriber is gone. hyper does not read while it
    /// sends; if a body came with the request, its bytes may go here.
    fn is_gone(&self, cx: &mut Context<'_>) -> bool {
        if !self.handover.stays.load(Ordering::Relaxed) {
            return false;
        }
        let gone = self.handover.unsolicited.poll_gone(&self.stream, cx);
        gone.map(|reason| self.handover.note(reason)).is_ready()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if result.is_ok() && buffer.filled().len() == before && buffer.remaining() > 0 {
            self.handover.note(Reason::Closed);
        }
        Poll::Ready(self.note(result))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Ready(result) => Poll::Ready(self.note(result)),
            Poll::Pending if self.is_gone(cx) => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices));
        Poll::Ready(self.note(result))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called whenever hyper has written all it had.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_gone(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let leaves = self.handover.waiting().is_some();
        self.handover.flushed.store(leaves, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
