//! A socket: a plain connection whose response head hyper has sent, from then on written to
//! directly. What is sent are the chunks of that response's body (RFC 9112 7.1).

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::hub::Reason;

/// The end of a body in chunks.
pub(super) const LAST_CHUNK: Bytes = Bytes::from_static(b"0\r\n\r\n");

/// See the module.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    unasked: Unasked,
    /// Counts the connection until it is closed.
    _permit: OwnedSemaphorePermit,
}

impl Socket {
    /// The socket that hyper had. It is registered with the runtime anew, so that its state is
    /// allocated now: the old allocation lies between hyper's freed buffers, and would keep those pages.
    ///
    /// # Errors
    /// If the runtime can't watch the socket.
    pub(crate) fn new(stream: TcpStream, permit: OwnedSemaphorePermit) -> io::Result<Self> {
        let stream = TcpStream::from_std(stream.into_std()?)?;
        Ok(Socket { stream, unasked: Unasked::default(), _permit: permit })
    }

    /// Sends as many of the bytes as there is room for at once, and returns how many. Writes to the
    /// socket without asking the runtime, which would first look up elsewhere in memory whether there is
    /// room.
    ///
    /// # Errors
    /// Why the other side is gone.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<usize, Reason> {
        if bytes.is_empty() {
            return Ok(0);
        }
        sent(SockRef::from(&self.stream).send(bytes))
    }

    /// The same for several pieces; returns what there was no room for.
    ///
    /// # Errors
    /// Why the other side is gone.
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

    /// Sends all of the pieces, as there is room for them.
    ///
    /// # Errors
    /// Why the other side is gone.
    pub(super) async fn send_all(&self, pieces: Vec<Bytes>) -> Result<(), Reason> {
        for mut piece in pieces {
            while piece.has_remaining() {
                self.stream.writable().await.map_err(|error| reason(&error))?;
                piece.advance(sent(self.stream.try_write(&piece))?);
            }
        }
        Ok(())
    }

    /// Ready once the other side is gone, with the reason.
    pub(super) async fn gone(&self) -> Reason {
        poll_fn(|cx| self.poll_gone(cx)).await
    }

    /// See [`Socket::gone`].
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Reason> {
        self.unasked.poll_gone(&self.stream, cx)
    }
}

fn sent(result: io::Result<usize>) -> Result<usize, Reason> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        result => result.map_err(|error| reason(&error)),
    }
}

/// Why a connection that failed so ended.
pub(crate) fn reason(error: &io::Error) -> Reason {
    match error.kind() {
        ErrorKind::TimedOut => Reason::TimedOut,
        ErrorKind::BrokenPipe => Reason::Closed,
        _ => Reason::Reset,
    }
}

/// How many bytes came after the request of a subscriber. They are not looked at.
#[derive(Debug, Default)]
pub(crate) struct Unasked(AtomicUsize);

impl Unasked {
    /// Ready once the subscriber with this socket is gone, with the reason.
    pub(crate) fn poll_gone(&self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<Reason> {
        /// A subscriber has nothing to say after its request. A little is passed over: it may be the
        /// next request, of one that does not know that this response has no end.
        const MOST: usize = 64 << 10;
        let mut bytes = [0; 1024];
        loop {
            if ready!(stream.poll_read_ready(cx)).is_err() {
                return Poll::Ready(Reason::Cut);
            }
            match stream.try_read(&mut bytes) {
                Ok(0) => return Poll::Ready(Reason::Closed),
                Ok(length) if self.0.fetch_add(length, Ordering::Relaxed) < MOST => {}
                Ok(_) => {
                    let address = stream.peer_addr().map_or_else(|_| String::new(), |it| it.to_string());
                    tracing::debug!(address, "a subscriber goes on sending");
                    return Poll::Ready(Reason::Cut);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(reason(&error)),
            }
        }
    }
}

/// A chunk of the body with these bytes; nothing if there are none, for that would be its end.
pub(super) fn chunk(bytes: &[u8]) -> Bytes {
    if bytes.is_empty() {
        return Bytes::new();
    }
    [size(bytes).as_bytes(), bytes, CHUNK_END].concat().into()
}

/// The same chunk, for one subscriber alone: in pieces, and not copied, if it is large. A subscriber
/// that reads slowly would otherwise hold a copy of its own.
pub(super) fn pieces(bytes: Bytes) -> Vec<Bytes> {
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

/// The first line of a chunk.
fn size(bytes: &[u8]) -> String {
    format!("{:x}\r\n", bytes.len())
}
