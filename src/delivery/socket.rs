//! A socket: a plain connection after hyper has sent the response head. The chunks of the response's body
//! are written to the socket directly (RFC 9112 7.1).

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::hub::Reason;

/// The chunk that ends a body.
pub(super) const LAST_CHUNK: Bytes = Bytes::from_static(b"0\r\n\r\n");

/// A subscriber's socket.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    unsolicited: Unsolicited,
    /// Counts the connection against `--max-connections` until the socket is dropped.
    _permit: OwnedSemaphorePermit,
}

impl Socket {
    /// The socket that hyper had, registered with the runtime again. That allocates its state anew: the old
    /// allocation lies between hyper's freed buffers, and would keep their pages in memory.
    ///
    /// # Errors
    /// If the runtime can't register the socket.
    pub(crate) fn new(stream: TcpStream, permit: OwnedSemaphorePermit) -> io::Result<Self> {
        let stream = TcpStream::from_std(stream.into_std()?)?;
        Ok(Socket { stream, unsolicited: Unsolicited::default(), _permit: permit })
    }

    /// Sends as many of the bytes as the socket accepts at once, and returns how many. The runtime is not
    /// asked: it would first look up, elsewhere in memory, whether the socket is ready.
    ///
    /// # Errors
    /// The reason why the other side is gone.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<usize, Reason> {
        if bytes.is_empty() {
            return Ok(0);
        }
        sent(SockRef::from(&self.stream).send(bytes))
    }

    /// Sends as many of the pieces' bytes as the socket accepts at once, and returns the rest.
    ///
    /// # Errors
    /// The reason why the other side is gone.
    pub(super) fn send_pieces(&self, mut pieces: Vec<Bytes>) -> Result<Vec<Bytes>, Reason> {
        while let Some(piece) = pieces.first_mut() {
            piece.advance(self.send(piece)?);
            if piece.has_remaining() {
                break;
            }
            pieces.remove(0);
        }
        Ok(pieces)
    }

    /// Sends all of the pieces, and waits while the socket is full.
    ///
    /// # Errors
    /// The reason why the other side is gone.
    pub(super) async fn send_all(&self, pieces: Vec<Bytes>) -> Result<(), Reason> {
        for mut piece in pieces {
            while piece.has_remaining() {
                self.stream.writable().await.map_err(|error| reason(&error))?;
                piece.advance(sent(self.stream.try_write(&piece))?);
            }
        }
        Ok(())
    }

    /// Waits until the other side is gone, and returns the reason.
    pub(super) async fn gone(&self) -> Reason {
        poll_fn(|cx| self.poll_gone(cx)).await
    }

    /// See [`Socket::gone`].
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Reason> {
        self.unsolicited.poll_gone(&self.stream, cx)
    }
}

/// How many bytes were sent, 0 if the socket is full; or the reason why the other side is gone.
fn sent(result: io::Result<usize>) -> Result<usize, Reason> {
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
pub(crate) struct Unsolicited(AtomicUsize);

impl Unsolicited {
    /// Ready with the reason once the subscriber with this socket is gone.
    pub(crate) fn poll_gone(&self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<Reason> {
        /// A subscriber that sends more bytes is cut. Higher: a hostile one keeps the hub reading for longer.
        /// Lower: a subscriber that sends its next request too early would be cut.
        const MAX_BYTES: usize = 64 << 10;
        let mut bytes = [0; 1024];
        loop {
            if ready!(stream.poll_read_ready(cx)).is_err() {
                return Poll::Ready(Reason::Cut);
            }
            match stream.try_read(&mut bytes) {
                Ok(0) => return Poll::Ready(Reason::Closed),
                Ok(length) if self.0.fetch_add(length, Ordering::Relaxed) < MAX_BYTES => {}
                Ok(_) => {
                    let address =
                        stream.peer_addr().map_or_else(|_| String::new(), |address| address.to_string());
                    tracing::debug!(address, "a subscriber goes on sending");
                    return Poll::Ready(Reason::Cut);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(reason(&error)),
            }
        }
    }
}

/// A chunk of these bytes. Empty if there are none: a chunk of no bytes would end the body.
pub(super) fn chunk(bytes: &[u8]) -> Bytes {
    if bytes.is_empty() {
        return Bytes::new();
    }
    [size(bytes).as_bytes(), bytes, CHUNK_END].concat().into()
}

/// A chunk of these bytes for one subscriber, in pieces. Large bytes are not copied: a slow subscriber would
/// hold a copy of its own.
pub(super) fn pieces(bytes: Bytes) -> Vec<Bytes> {
    /// The least bytes that are not copied. Higher: slow subscribers hold larger copies. Lower: more chunks
    /// take three writes instead of one.
    const LARGE: usize = 16 << 10;
    if bytes.is_empty() {
        return Vec::new();
    }
    if bytes.len() < LARGE {
        return vec![chunk(&bytes)];
    }
    vec![size(&bytes).into(), bytes, Bytes::from_static(CHUNK_END)]
}

const CHUNK_END: &[u8] = b"\r\n";

/// The first line of a chunk: its size.
fn size(bytes: &[u8]) -> String {
    format!("{:x}\r\n", bytes.len())
}
