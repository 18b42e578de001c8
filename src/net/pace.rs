//! The pace of a response's body: hyper is given the next bytes once the socket has taken the last.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::api::Body;

/// Whether the socket has taken what hyper was given.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<Given>);

#[derive(Debug, Default)]
struct Given {
    /// Set while hyper has bytes of a body that the socket has not taken.
    has_bytes: bool,
    /// Woken once the socket has taken them.
    waiting: Option<Waker>,
}

/// A body in small pieces, at the pace of the socket. hyper copies what it is given, and would otherwise hold
/// a whole body for a reader who takes nothing. Whoever makes the body is asked for more only when the reader
/// has taken all before.
pub(super) struct PacedBody {
    pace: Arc<Pace>,
    body: Body,
    /// The rest of the body's last frame.
    rest: Bytes,
}

impl Pace {
    /// The body at this pace.
    pub(super) fn body(self: &Arc<Self>, body: Body) -> PacedBody {
        PacedBody { pace: Arc::clone(self), body, rest: Bytes::new() }
    }

    /// Records that hyper has written all of its bytes to the socket.
    pub(super) fn flushed(&self) {
        let mut given = self.given();
        given.has_bytes = false;
        if let Some(waiting) = given.waiting.take() {
            waiting.wake();
        }
    }

    fn given(&self) -> MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready once hyper has no bytes of a body.
    fn poll_flushed(&self, cx: &Context<'_>) -> Poll<()> {
        let mut given = self.given();
        if given.has_bytes {
            given.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

impl HttpBody for PacedBody {
    type Data = Bytes;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        /// The most bytes that hyper is given at once. Higher: more memory for a reader who takes nothing.
        /// Lower: more writes.
        const PIECE: usize = 16 << 10;
        ready!(self.pace.poll_flushed(cx));
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        self.pace.given().has_bytes = length > 0;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    /// hyper asks once, before the first frame.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
