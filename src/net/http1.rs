//! A connection in HTTP/1, served by hyper until it ends or is handed over.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http_body_util::Either;
use hyper::Version;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::handover::{HandedOver, Handover};
use super::io::{Head, Io};
use super::pace::Pace;
use crate::api::{Api, Body, Reply};
use crate::delivery::Framing;
use crate::limits::Budget;

/// The longest request head. Higher: more memory for a head that is never finished. Lower: a head with long
/// cookies of other ports on the same host would be refused. hyper's minimum is 8 KiB.
const BUFFER: usize = 64 << 10;

/// Serves a connection until it has ended, or until it is handed over. Returns the socket of a
/// connection that is handed over, and with what. Long heads lease memory of `heads`. The connection ends
/// with its present request once `stopping` is cancelled, and is cut once `overdue` is.
pub(super) async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    api: &Api,
    header_timeout: Duration,
    heads: &Budget,
    stopping: &CancellationToken,
    overdue: &CancellationToken,
) -> Option<(TcpStream, HandedOver)> {
    let (handover, pace) = (Arc::new(Handover::default()), Arc::new(Pace::default()));
    let head = Arc::new(Head::new(heads.clone()));
    let respond = service_fn(async |request: hyper::Request<Incoming>| {
        let version = request.version();
        let response = api.respond(address, request.map(|body| Body::new(head.is_whole(body)))).await;
        Ok::<_, Infallible>(response.map(|reply| match reply {
            Reply::Body(body) => Either::Left(pace.body(body)),
            Reply::Delivery(delivery) => {
                // HTTP/1.0 has no chunks.
                let is_chunked = version == Version::HTTP_11;
                let framing = if is_chunked { Framing::Chunked } else { Framing::UntilClose };
                Either::Right(handover.hand_over(delivery, framing))
            }
        }))
    });
    let io = Io::new(stream, Arc::clone(&handover), Arc::clone(&pace), Arc::clone(&head));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(BUFFER)
        // With `half_close`, hyper does not read the socket during a response. It would allocate a buffer for
        // each such read.
        .half_close(true)
        // Without `writev`, a chunk goes out as one slice: cheaper than gathering three.
        .writev(false)
        .serve_connection(TokioIo::new(io), respond);
    let result = tokio::select! {
        biased;
        result = ended_or_flushed(&mut connection, &handover) => result,
        () = stopping.cancelled() => {
            Pin::new(&mut connection).graceful_shutdown();
            tokio::select! {
                biased;
                result = ended_or_flushed(&mut connection, &handover) => result,
                () = overdue.cancelled() => {
                    tracing::warn!(%address, "connection cut: it did not end in time");
                    Ok(())
                }
            }
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
