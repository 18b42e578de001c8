//! A line: the connection of a subscriber whose response head hyper has sent, from then on written
//! to directly. What is sent are the chunks of that response's body (RFC 9112 7.1).

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;

use super::connection::Peer;

/// The body's end.
pub(super) const LAST_CHUNK: Bytes = Bytes::from_static(b"0\r\n\r\n");

#[derive(Debug)]
pub(super) struct Line {
    stream: TcpStream,
    peer: Arc<Peer>,
    _slot: OwnedSemaphorePermit,
}

impl Line {
    /// What it holds is allocated anew. What was allocated while hyper served the connection lies
    /// among what hyper has given back since: a small piece for each subscriber would keep all of it.
    ///
    /// # Errors
    /// If the runtime can't watch the socket.
    pub(super) fn new(
        stream: TcpStream,
        address: SocketAddr,
        slot: OwnedSemaphorePermit,
    ) -> io::Result<Self> {
        let stream = TcpStream::from_std(stream.into_std()?)?;
        Ok(Line { stream, peer: Arc::new(Peer::new(address)), _slot: slot })
    }

    /// Who is at the other end.
    pub(super) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Sends as many of the bytes as there is room for at once, and returns how many. The socket is written to
    /// without the runtime, which would first look up elsewhere in memory whether there is room.
    ///
    /// # Errors
    /// If the other side is gone.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        self.sent(SockRef::from(&self.stream).send(bytes))
    }

    /// The same for several pieces; returns what there was no room for.
    ///
    /// # Errors
    /// If the other side is gone.
    pub(super) fn send_pieces(&self, mut pieces: Vec<Bytes>) -> io::Result<Vec<Bytes>> {
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
    /// If the other side is gone.
    pub(super) async fn send_all(&self, pieces: Vec<Bytes>) -> io::Result<()> {
        for mut piece in pieces {
            while piece.has_remaining() {
                self.stream.writable().await?;
                piece.advance(self.sent(self.stream.try_write(&piece))?);
            }
        }
        Ok(())
    }

    fn sent(&self, result: io::Result<usize>) -> io::Result<usize> {
        match result {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result.inspect_err(|error| self.peer.note(error)),
        }
    }

    /// Ready once the other side is gone.
    pub(super) async fn gone(&self) {
        std::future::poll_fn(|cx| self.poll_gone(cx)).await;
    }

    /// See [`Line::gone`].
    pub(super) fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.peer.poll_gone(&self.stream, cx)
    }
}

/// A chunk of the body with these bytes; nothing if there are none, for that would be its end.
pub(super) fn chunk(bytes: &[u8]) -> Bytes {
    if bytes.is_empty() {
        return Bytes::new();
    }
    [size(bytes).as_bytes(), bytes, CHUNK_END].concat().into()
}

/// The same chunk, for one subscriber alone: in pieces, and not copied, if it is large, or one that reads
/// slowly would hold a copy of its own.
pub(super) fn pieces(bytes: Bytes) -> Vec<Bytes> {
    const LARGE: usize = 16 << 10;
    if bytes.len() < LARGE {
        return vec![chunk(&bytes)];
    }
    vec![size(&bytes).into(), bytes, Bytes::from_static(CHUNK_END)]
}

const CHUNK_END: &[u8] = b"\r\n";

/// The line a chunk begins with.
fn size(bytes: &[u8]) -> String {
    format!("{:x}\r\n", bytes.len())
}
