//! A wire: what a connection's bytes go over.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::limits::Peer;

/// A connection of one kind or another.
#[derive(Debug)]
pub(crate) enum Wire {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

/// The same for each kind of wire.
macro_rules! each {
    ($wire:expr, $stream:ident => $does:expr) => {
        match $wire {
            Wire::Tcp($stream) => $does,
            Wire::Unix($stream) => $does,
        }
    };
}

impl Wire {
    /// The same connection, registered with the runtime again.
    ///
    /// # Errors
    /// If the runtime can't register it.
    pub(super) fn registered_again(self) -> io::Result<Self> {
        Ok(match self {
            Wire::Tcp(stream) => Wire::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Wire::Unix(stream) => Wire::Unix(UnixStream::from_std(stream.into_std()?)?),
        })
    }

    pub(super) fn peer(&self) -> io::Result<Peer> {
        match self {
            Wire::Tcp(stream) => stream.peer_addr().map(Peer::from),
            Wire::Unix(_) => Ok(Peer::Unix),
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        each!(self, stream => stream.writable().await)
    }

    pub(super) fn try_write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        each!(self, stream => stream.try_io(Interest::WRITABLE, write))
    }

    pub(super) fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => stream.poll_read_ready(cx))
    }

    pub(super) fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        each!(self, stream => stream.try_read(bytes))
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        each!(self, stream => stream.as_fd())
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(&mut *self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(&mut *self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
