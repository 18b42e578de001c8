//! A connection's socket while hyper has it. What hyper reads of a request's head is bounded here, in bytes
//! and in time, and the connection's hand-over and pace learn here what happens on the socket.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::deadline::Deadline;
use super::handover::Handover;
use super::pace::Pace;
use crate::delivery::Wire;
use crate::limits::{Budget, Lease};

/// How long the other side of a connection is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// For a request's head, from its first byte on, or from connecting.
    pub(super) head: Duration,
    /// For the first byte of the next request.
    pub(super) idle: Duration,
    /// For it to take any of what it is sent.
    pub(super) stall: Duration,
}

/// The socket, as hyper reads and writes it.
pub(super) struct Io {
    wire: Wire,
    times: Times,
    /// For the present part, and whether its first byte was read.
    deadline: Deadline<(usize, bool)>,
    /// For what comes after so many bytes written.
    stalled: Deadline<usize>,
    written: usize,
    handover: Arc<Handover>,
    pace: Arc<Pace>,
    head: Arc<Head>,
    /// The part of a request that is read, as [`Head::part`] counts them.
    part: usize,
    /// How many bytes of that part were read.
    read: usize,
}

/// The bytes of a head for which no memory is leased: almost all heads are shorter. No more than these are
/// read at once, for what is read beyond a head stays in hyper's buffer. Higher: more memory for heads that
/// are never finished. Lower: longer heads wait for memory.
const FREE: usize = 8 << 10;

/// The heads of a connection's requests.
#[derive(Debug)]
pub(super) struct Head {
    /// The memory for long heads.
    budget: Budget,
    /// How many heads and bodies were read whole: an even number while a head is read, an odd number while a
    /// body is.
    part: AtomicUsize,
    /// The memory of long heads beyond [`FREE`]. hyper keeps the buffer of a long head as long as the
    /// connection lasts.
    lease: Mutex<Option<Lease>>,
}

/// The body of a request. Once it is dropped, the next head is read.
pub(super) struct RequestBody {
    body: Incoming,
    head: Arc<Head>,
}

impl Head {
    /// Long heads lease memory of this budget.
    pub(super) fn new(budget: Budget) -> Self {
        Head { budget, part: AtomicUsize::new(0), lease: Mutex::default() }
    }

    /// Records that hyper has a whole head, and this body to read.
    pub(super) fn is_whole(self: &Arc<Self>, body: Incoming) -> RequestBody {
        self.part.fetch_add(1, Ordering::Relaxed);
        RequestBody { body, head: Arc::clone(self) }
    }

    /// Whether a head was long. The connection is to end with its response, so that its memory comes back.
    pub(super) fn was_long(&self) -> bool {
        self.lease().is_some()
    }

    fn lease(&self) -> MutexGuard<'_, Option<Lease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        self.head.part.fetch_add(1, Ordering::Relaxed);
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Io {
    pub(super) fn new(
        wire: Wire,
        times: Times,
        handover: Arc<Handover>,
        pace: Arc<Pace>,
        head: Arc<Head>,
    ) -> Self {
        Io {
            wire,
            times,
            deadline: Deadline::new(),
            stalled: Deadline::new(),
            written: 0,
            handover,
            pace,
            head,
            part: 0,
            read: 0,
        }
    }

    pub(super) fn into_inner(self) -> Wire {
        self.wire
    }

    /// Counts these bytes, if they are of a head.
    ///
    /// # Errors
    /// If there is no memory for so long a head.
    fn count(&mut self, bytes: usize) -> io::Result<()> {
        let part = self.head.part.load(Ordering::Relaxed);
        if part != self.part {
            (self.part, self.read) = (part, 0);
        }
        self.read += bytes;
        if part.is_multiple_of(2) && self.read > FREE {
            let more = self.head.budget.try_lease(bytes);
            let more = more.ok_or_else(|| io::Error::other("there is no memory for so long a head"))?;
            match &mut *self.head.lease() {
                Some(lease) => lease.merge(more),
                lease => *lease = Some(more),
            }
        }
        Ok(())
    }

    /// Ready once a request's head is no longer waited for: as at the other side's end between two requests.
    /// A body has limits of its own.
    ///
    /// # Errors
    /// If the head has begun, or no request came at all.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let part = self.head.part.load(Ordering::Relaxed);
        if !part.is_multiple_of(2) {
            return Poll::Pending;
        }
        let has_begun = part == 0 || part == self.part && self.read > 0;
        let time = if has_begun { self.times.head } else { self.times.idle };
        ready!(self.deadline.poll(cx, (part, has_begun), time));
        let late = || io::Error::new(ErrorKind::TimedOut, "the request's head did not come in time");
        Poll::Ready(if has_begun { Err(late()) } else { Ok(()) })
    }

    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| self.handover.failed(error))
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let is_head = self.head.part.load(Ordering::Relaxed).is_multiple_of(2);
        let polled = if is_head && buffer.remaining() > FREE {
            let mut some = ReadBuf::new(buffer.initialize_unfilled_to(FREE));
            let polled = Pin::new(&mut self.wire).poll_read(cx, &mut some);
            let read = some.filled().len();
            buffer.advance(read);
            polled
        } else {
            Pin::new(&mut self.wire).poll_read(cx, buffer)
        };
        let Poll::Ready(result) = polled else {
            let result = ready!(self.poll_overdue(cx));
            return Poll::Ready(self.note(result));
        };
        let read = buffer.filled().len() - before;
        if result.is_ok() && read == 0 && buffer.remaining() > 0 {
            self.handover.closed();
        }
        let result = result.and_then(|()| self.count(read));
        Poll::Ready(self.note(result))
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Io { wire, times, stalled, written, .. } = &mut *self;
        let result = match Pin::new(wire).poll_write(cx, bytes) {
            Poll::Ready(result) => result,
            Poll::Pending => {
                ready!(stalled.poll(cx, *written, times.stall));
                Err(ErrorKind::TimedOut.into())
            }
        };
        *written = written.wrapping_add(*result.as_ref().unwrap_or(&0));
        Poll::Ready(self.note(result))
    }

    /// hyper calls this whenever it has written all of its bytes.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handover.flushed();
        self.pace.flushed();
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}
