//! Connections: accepted, served by hyper, and ended. One that asks for nothing, or takes nothing,
//! is cut off. One that has become a stream leaves hyper, with its socket, for the
//! [`fanout`](super::fanout).

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fanout::Fanout;
use super::line::Line;
use super::stream::Subscriber;
use super::{App, answer};

/// How long a connection has to finish its request at shutdown, after which it is cut.
/// With what else there is to do it keeps the promise of two seconds.
pub(super) const GRACE: Duration = Duration::from_millis(1_500);

/// The longest request head, and about what hyper holds for a subscriber that stops reading. Its
/// least is 8 KiB; a head with long cookies of other ports on the same host needs more.
const BUFFER: usize = 64 << 10;

/// Accepts connections until `shutdown` is ready, then ends them all.
pub(super) async fn serve(listener: TcpListener, app: Arc<App>, shutdown: impl Future<Output = ()>) {
    let open = TaskTracker::new();
    let stopping = CancellationToken::new();
    let fanout = Arc::new(Fanout::new(open.clone(), stopping.clone()));
    let slots = Arc::new(Semaphore::new(app.config.max_connections.min(Semaphore::MAX_PERMITS)));
    let mut shutdown = pin!(shutdown);
    loop {
        let (stream, address, slot) = tokio::select! {
            biased;
            () = &mut shutdown => break,
            accepted = accept(&listener, &slots) => accepted,
        };
        if let Err(error) = prepare(&stream, &app) {
            tracing::debug!(%address, %error, "connection can't be set up");
            continue;
        }
        let (app, stopping, fanout) = (Arc::clone(&app), stopping.clone(), Arc::clone(&fanout));
        open.spawn(async move {
            let peer = Arc::new(Peer::new(address));
            let left = connection(stream, Arc::clone(&peer), app, stopping).await;
            let Some((stream, Leaving { subscriber, opening })) = left else { return };
            match Line::new(stream, address, slot) {
                Ok(line) => fanout.take(line, subscriber, opening),
                Err(error) => tracing::error!(%address, %error, "a subscriber is lost"),
            }
        });
    }
    drop(listener);
    app.hub.end_subscriptions();
    stopping.cancel();
    open.close();
    open.wait().await;
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        let slot = Arc::clone(slots).acquire_owned().await.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((stream, address)) => {
                return (stream, SocketAddr::new(address.ip().to_canonical(), address.port()), slot);
            }
            // It was gone before it was accepted.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                tracing::error!(%error, "can't accept a connection");
                // Most likely out of descriptors: it stays in the backlog, and asking again at once would spin.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn prepare(stream: &TcpStream, app: &App) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Covers a cut network and a reader that stopped: what was sent stays unacknowledged, or unsent.
    SockRef::from(stream).set_tcp_user_timeout(Some(app.config.stall_timeout))
}

/// Serves a connection until it ends, or leaves as a stream.
async fn connection(
    stream: TcpStream,
    peer: Arc<Peer>,
    app: Arc<App>,
    stopping: CancellationToken,
) -> Option<(TcpStream, Leaving)> {
    let service = service_fn(|request: hyper::Request<Incoming>| answer(&app, &peer, request.map(Body::new)));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.header_timeout)
        .max_buf_size(BUFFER)
        // Not read from while a request is answered: for that, hyper would take a buffer each time.
        .half_close(true)
        // A chunk's frame and its size go out as one slice: cheaper than gathering three.
        .writev(false)
        .serve_connection(TokioIo::new(Watched { stream, peer: Arc::clone(&peer) }), service);
    let result = tokio::select! {
        biased;
        result = ended_or_left(&mut connection, &peer) => result,
        () = stopping.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            timeout(GRACE, ended_or_left(&mut connection, &peer)).await.unwrap_or_else(|_elapsed| {
                tracing::warn!(address = %peer.address, "connection cut: it did not end in time");
                Ok(())
            })
        }
    };
    // One that is cut before the head is out does not leave.
    let leaving = peer.leaving().take().filter(|_| peer.flushed.load(Ordering::Relaxed));
    if let Err(error) = result {
        tracing::debug!(address = %peer.address, %error, "connection failed");
        return None;
    }
    Some((connection.into_parts().io.into_inner().stream, *leaving?))
}

/// Serves the connection until it has ended, or until the response's head of a subscriber that leaves
/// is written.
async fn ended_or_left<C>(connection: &mut C, peer: &Peer) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    std::future::poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Pending if peer.flushed.load(Ordering::Relaxed) => Poll::Ready(Ok(())),
        poll => poll,
    })
    .await
}

/// The other side of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    gone: OnceLock<&'static str>,
    /// The subscriber it becomes once hyper has written what it has to.
    leaving: Mutex<Option<Box<Leaving>>>,
    /// That is written.
    flushed: AtomicBool,
    /// It is a subscriber whose stream stays with hyper.
    stays: AtomicBool,
    /// Bytes that came after the subscriber's request.
    unasked: AtomicUsize,
}

/// A subscriber whose stream leaves hyper.
#[derive(Debug)]
struct Leaving {
    subscriber: Subscriber,
    opening: Bytes,
}

impl Peer {
    pub(super) fn new(address: SocketAddr) -> Self {
        Peer {
            address,
            gone: OnceLock::new(),
            leaving: Mutex::default(),
            flushed: AtomicBool::new(false),
            stays: AtomicBool::new(false),
            unasked: AtomicUsize::new(0),
        }
    }

    /// Why its connection ended, as far as it is known by now.
    pub(super) fn why_gone(&self) -> &'static str {
        self.gone.get().copied().unwrap_or("cut")
    }

    /// The connection was closed from the other side.
    fn note_closed(&self) {
        self.gone.get_or_init(|| "closed");
    }

    /// The connection failed.
    pub(super) fn note(&self, error: &io::Error) {
        let reason = match error.kind() {
            io::ErrorKind::TimedOut => "timed out",
            io::ErrorKind::BrokenPipe => "closed",
            _ => "reset",
        };
        self.gone.get_or_init(|| reason);
    }

    /// The body of a response in chunks, for a subscriber that leaves with the connection.
    pub(super) fn leave(self: Arc<Self>, subscriber: Subscriber, opening: Bytes) -> Body {
        Body::new(Left { peer: self, leaving: Some(Box::new(Leaving { subscriber, opening })) })
    }

    /// The body of a response as it is, for a subscriber that stays.
    pub(super) fn stay(&self, body: Body) -> Body {
        self.stays.store(true, Ordering::Relaxed);
        body
    }

    /// Ready once a subscriber is gone, whose socket this is.
    pub(super) fn poll_gone(&self, stream: &TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        /// It has nothing to say after its request. A little is read over: it may be the next
        /// request, of one that does not know that this response has no end.
        const MOST_UNASKED: usize = 64 << 10;
        let mut unasked = [0; 1024];
        loop {
            if ready!(stream.poll_read_ready(cx)).is_err() {
                return Poll::Ready(());
            }
            match stream.try_read(&mut unasked) {
                Ok(0) => self.note_closed(),
                Ok(length) if self.unasked.fetch_add(length, Ordering::Relaxed) < MOST_UNASKED => continue,
                Ok(_) => tracing::debug!(address = %self.address, "a subscriber goes on sending"),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => self.note(&error),
            }
            return Poll::Ready(());
        }
    }

    fn leaving(&self) -> MutexGuard<'_, Option<Box<Leaving>>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body that hyper waits for in vain: when it is first asked for, the response's head is with hyper, and
/// once that is written, the connection leaves.
struct Left {
    peer: Arc<Peer>,
    leaving: Option<Box<Leaving>>,
}

impl HttpBody for Left {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(leaving) = self.leaving.take() {
            *self.peer.leaving() = Some(leaving);
        }
        Poll::Pending
    }
}

/// A connection's socket, which notes how it ended: hyper tells only its own task, and that later.
struct Watched {
    stream: TcpStream,
    peer: Arc<Peer>,
}

impl Watched {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| self.peer.note(error))
    }

    /// Whether it was a subscriber's that is gone. hyper does not read while it sends; if a body came with the
    /// request, its bytes may go here.
    fn is_gone(&self, cx: &mut Context<'_>) -> bool {
        self.peer.stays.load(Ordering::Relaxed) && self.peer.poll_gone(&self.stream, cx).is_ready()
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if result.is_ok() && buffer.filled().len() == before && buffer.remaining() > 0 {
            self.peer.note_closed();
        }
        Poll::Ready(self.note(result))
    }
}

impl AsyncWrite for Watched {
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
        let leaves = self.peer.leaving().is_some();
        self.peer.flushed.store(leaves, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
