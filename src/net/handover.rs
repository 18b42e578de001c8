//! The hand-over: how the socket of a stream is taken back from hyper.
//!
//! A stream does not need hyper once its response head is sent, and hyper holds 10 kB for each connection. So
//! hyper is given a body that never yields, and the socket is taken back as soon as hyper has flushed the
//! head. Each connection has one [`Handover`], shared by the response's body, by [`Io`] and by the
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

/// The state of one connection's hand-over.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// The delivery to hand over, once hyper has its response head.
    waiting: Mutex<Option<Box<Delivery>>>,
    /// Set once that response head has been flushed to the socket.
    flushed: AtomicBool,
    /// Set once hyper sends a subscriber's stream.
    streams_in_hyper: AtomicBool,
    /// Why the connection ended. hyper returns its error only after it has dropped the body.
    ended: OnceLock<Reason>,
    unsolicited: Unsolicited,
}

impl Handover {
    /// The body of a response whose connection is handed over with this delivery.
    pub(super) fn hand_over(self: &Arc<Self>, delivery: Box<Delivery>) -> ReplyBody {
        ReplyBody::HandedOver(SilentBody { handover: Arc::clone(self), delivery: Some(delivery) })
    }

    /// The body of a response whose delivery is sent by hyper.
    pub(super) fn stream_in_hyper(self: &Arc<Self>, delivery: Delivery) -> ReplyBody {
        self.streams_in_hyper.store(true, Ordering::Relaxed);
        let handover = Arc::clone(self);
        let body = delivery::body(delivery, move || handover.reason());
        ReplyBody::Bytes(Body::from_stream(body))
    }

    /// Whether the response head of a delivery to hand over has been flushed.
    pub(super) fn is_flushed(&self) -> bool {
        self.flushed.load(Ordering::Relaxed)
    }

    /// Takes the delivery to hand over. `None` if there is none, or if its response head was not flushed: its
    /// subscriber then ends.
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

    /// Why the connection ended, [`Reason::Cut`] if that is not known.
    fn reason(&self) -> Reason {
        self.ended.get().copied().unwrap_or(Reason::Cut)
    }

    /// Records why the connection ended. Only the first reason counts.
    fn note(&self, reason: Reason) {
        self.ended.get_or_init(|| reason);
    }
}

/// The body of a response, as hyper polls it.
pub(super) enum ReplyBody {
    /// Bytes, all of them or as they come.
    Bytes(Body),
    /// The body of a connection that is handed over.
    HandedOver(SilentBody),
}

/// A body that never yields. Its first poll means that hyper has the response head.
pub(super) struct SilentBody {
    handover: Arc<Handover>,
    /// `None` once hyper has polled the body: the delivery is then in [`Handover::waiting`].
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
            ReplyBody::HandedOver(SilentBody { handover, delivery }) => {
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
            ReplyBody::HandedOver(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ReplyBody::Bytes(body) => body.size_hint(),
            ReplyBody::HandedOver(_) => SizeHint::default(),
        }
    }
}

impl Drop for SilentBody {
    fn drop(&mut self) {
        if let Some(delivery) = &mut self.delivery {
            delivery.subscriber.end(self.handover.reason());
        }
    }
}

/// A connection's socket while hyper has it. Records why the connection ended, and when the response head of
/// a delivery to hand over is flushed.
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

    /// Whether hyper sends a subscriber's stream on this socket, and the subscriber is gone. hyper does not
    /// read the socket meanwhile, so this function does. It may read bytes of the request's body, which are
    /// then lost.
    fn is_gone(&self, cx: &mut Context<'_>) -> bool {
        if !self.handover.streams_in_hyper.load(Ordering::Relaxed) {
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

    /// hyper calls this whenever it has written all of its bytes.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_gone(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let is_waiting = self.handover.waiting().is_some();
        self.handover.flushed.store(is_waiting, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
