//! A connection in HTTP/1, served by hyper until it ends or leaves as a stream.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::Version;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::handover::{Handover, Io, ReplyBody};
use crate::api::{Api, Body, Reply};
use crate::delivery::{Delivery, GRACE};

/// The longest request head, and about what hyper holds for a subscriber that stops reading. Its
/// least is 8 KiB; a head with long cookies of other ports on the same host needs more.
const BUFFER: usize = 64 << 10;

/// Serves a connection until it has ended, or until it leaves: then the socket, and what is delivered
/// to it.
pub(super) async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    api: &Api,
    header_timeout: Duration,
    stopping: &CancellationToken,
) -> Option<(TcpStream, Box<Delivery>)> {
    let handover = Arc::new(Handover::default());
    let service = service_fn(async |request: hyper::Request<Incoming>| {
        let version = request.version();
        let response = api.respond(address, request.map(Body::new)).await;
        Ok::<_, Infallible>(response.map(|reply| match reply {
            Reply::Body(body) => ReplyBody::Bytes(body),
            // Plain bytes on a socket of its own: the stream needs nothing of hyper's any more.
            Reply::Delivery(delivery) if version == Version::HTTP_11 => handover.leave(delivery),
            Reply::Delivery(delivery) => handover.stay(*delivery),
        }))
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(BUFFER)
        // Not read from while a request is answered: for that, hyper would take a buffer each time.
        .half_close(true)
        // A chunk's frame and its size go out as one slice: cheaper than gathering three.
        .writev(false)
        .serve_connection(TokioIo::new(Io::new(stream, Arc::clone(&handover))), service);
    let result = tokio::select! {
        biased;
        result = ended_or_flushed(&mut connection, &handover) => result,
        () = stopping.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            timeout(GRACE, ended_or_flushed(&mut connection, &handover)).await.unwrap_or_else(|_elapsed| {
                tracing::warn!(%address, "connection cut: it did not end in time");
                Ok(())
            })
        }
    };
    let delivery = handover.take();
    if let Err(error) = result {
        tracing::debug!(%address, %error, "connection failed");
        return None;
    }
    Some((connection.into_parts().io.into_inner().into_inner(), delivery?))
}

/// Serves the connection until it has ended, or until the response head of a stream that leaves has
/// been flushed.
async fn ended_or_flushed<C>(connection: &mut C, handover: &Handover) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    poll_fn(|cx| match Pin::new(&mut *connection).poll(cx) {
        Poll::Pending if handover.is_flushed() => Poll::Ready(Ok(())),
        poll => poll,
    })
    .await
}
