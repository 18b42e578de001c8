//! A socket: a plain connection after hyper has sent the response head. The response's body is written to the
//! socket directly.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::chunks::{Chunks, Framing};
use super::wire::Wire;
use crate::hub::Reason;
use crate::limits::Share;

/// What a connection counts for: of those from its address, and of all. Its share is dropped first: whoever
/// is accepted next, in the place of the permit, may need it.
pub(crate) type Place = (Option<Share>, OwnedSemaphorePermit);

/// A subscriber's socket.
#[derive(Debug)]
pub(crate) struct Socket {
    wire: Wire,
    pub(super) framing: Framing,
    unsolicited: Unsolicited,
    /// Counts the connection against the limits until the socket is dropped.
    _place: Place,
}

impl Socket {
    /// The socket that hyper had, registered with the runtime again. That allocates its state anew: the old
    /// allocation lies between hyper's freed buffers, and would keep their pages in memory.
    ///
    /// # Errors
    /// If the runtime can't register the socket.
    pub(crate) fn new(wire: Wire, framing: Framing, place: Place) -> io::Result<Self> {
        let wire = wire.registered_again()?;
        Ok(Socket { wire, framing, unsolicited: Unsolicited::default(), _place: place })
    }

    /// Sends as many of the bytes after the first `sent` as the socket takes at once. Returns how many are
    /// sent then. The runtime is not asked: it would first look up, elsewhere in memory, whether the socket
    /// is ready.
    ///
    /// # Errors
    /// The reason why the other side is gone.
    pub(super) fn send(&self, chunks: &Chunks, sent: usize) -> Result<usize, Reason> {
        if chunks.len() == sent {
            return Ok(sent);
        }
        taken(self.write(chunks, sent)).map(|taken| sent + taken)
    }

    /// Sends as [`send`](Self::send) does, if the socket is [`writable`](Self::writable).
    ///
    /// # Errors
    /// The reason why the other side is gone.
    pub(super) fn send_if_writable(&self, chunks: &Chunks, sent: usize) -> Result<usize, Reason> {
        if chunks.len() == sent {
            return Ok(sent);
        }
        taken(self.wire.try_write(|| self.write(chunks, sent))).map(|taken| sent + taken)
    }

    fn write(&self, chunks: &Chunks, sent: usize) -> io::Result<usize> {
        let socket = SockRef::from(&self.wire);
        match chunks.as_one() {
            Some(piece) => socket.send(&piece[sent..]),
            None => socket.send_vectored(&chunks.slices(sent)),
        }
    }

    /// Waits until the socket takes more bytes, for so long at most: the kernel gives up connections over TCP
    /// by itself, and no others.
    ///
    /// # Errors
    /// The reason why the other side is gone.
    pub(super) async fn writable(&self, stall: Duration) -> Result<(), Reason> {
        let is_writable = timeout(stall, self.wire.writable()).await;
        is_writable.map_err(|_| Reason::TimedOut)?.map_err(|error| reason(&error))
    }

    /// Waits until the other side is gone, and returns the reason.
    pub(super) async fn gone(&self) -> Reason {
        poll_fn(|cx| self.poll_gone(cx)).await
    }

    /// See [`Socket::gone`].
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Reason> {
        self.unsolicited.poll_gone(&self.wire, cx)
    }
}

/// How many bytes were taken, 0 if the socket is full; or the reason why the other side is gone.
fn taken(result: io::Result<usize>) -> Result<usize, Reason> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result.map_err(|error| reason(&error)),
    }
}

/// The reason for the end of a connection that failed with this error.
pub(crate) fn reason(error: &io::Error) -> Reason {
    match error.kind() {
        ErrorKind::TimedOut => Reason::TimedOut,
        ErrorKind::BrokenPipe => Reason::Closed,
        _ => Reason::Reset,
    }
}

/// How many bytes a subscriber has sent after its request. The bytes themselves are ignored.
#[derive(Debug, Default)]
pub(crate) struct Unsolicited(AtomicU32);

impl Unsolicited {
    /// Ready with the reason once the subscriber with this socket is gone.
    pub(crate) fn poll_gone(&self, wire: &Wire, cx: &mut Context<'_>) -> Poll<Reason> {
        /// A subscriber that sends more bytes is cut. Higher: a hostile one keeps the hub reading for longer.
        /// Lower: a subscriber that sends its next request too early would be cut.
        const MAX_BYTES: u32 = 64 << 10;
        let mut bytes = [0; 1024];
        loop {
            if ready!(wire.poll_read_ready(cx)).is_err() {
                return Poll::Ready(Reason::Cut);
            }
            match wire.try_read(&mut bytes) {
                Ok(0) => return Poll::Ready(Reason::Closed),
                Ok(length) if self.0.fetch_add(length as u32, Ordering::Relaxed) < MAX_BYTES => {}
                Ok(_) => {
                    let address = wire.peer().map_or_else(|_| String::new(), |peer| peer.to_string());
                    tracing::debug!(address, "a subscriber goes on sending");
                    return Poll::Ready(Reason::Cut);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(reason(&error)),
            }
        }
    }
}
