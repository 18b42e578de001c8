//! A connection in HTTP/1, served by hyper until it ends or is handed over.

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

/// The longest request head, and about what hyper holds of a stream whose subscriber stops reading. Higher:
/// more memory for such a subscriber. Lower: a head with long cookies of other ports on the same host would
/// be refused. hyper's minimum is 8 KiB.
const BUFFER: usize = 64 << 10;

/// Serves a connection until it has ended, or until it is handed over. Returns the socket and the delivery
/// of a connection that is handed over.
pub(super) async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    api: &Api,
    header_timeout: Duration,
    stopping: &CancellationToken,
) -> Option<(TcpStream, Box<Delivery>)> {
    let handover = Arc::new(Handover::default());
    let respond = service_fn(async |request: hyper::Request<Incoming>| {
        let version = request.version();
        let response = api.respond(address, request.map(Body::new)).await;
        Ok::<_, Infallible>(response.map(|reply| match reply {
            Reply::Body(body) => ReplyBody::Bytes(body),
            // The chunks of HTTP/1.1 can be sent without hyper. HTTP/1.0 has no chunks.
            Reply::Delivery(delivery) if version == Version::HTTP_11 => handover.hand_over(delivery),
            Reply::Delivery(delivery) => handover.stream_in_hyper(*delivery),
        }))
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(BUFFER)
        // With `half_close`, hyper does not read the socket during a response. It would allocate a buffer for
        // each such read.
        .half_close(true)
        // Without `writev`, a chunk goes out as one slice: cheaper than gathering three.
        .writev(false)
        .serve_connection(TokioIo::new(Io::new(stream, Arc::clone(&handover))), respond);
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

/// Serves the connection until it has ended, or until the response head of a delivery to hand over has been
/// flushed.
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
