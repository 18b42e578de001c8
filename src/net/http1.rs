//! A connection in HTTP/1, served by hyper until it ends or is handed over.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::BytesMut;
use http_body_util::Either;
use hyper::body::{Body as _, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, Version};
use hyper_util::rt::TokioIo;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;

use super::handover::{HandedOver, Handover};
use super::io::{Head, Io, Times};
use super::pace::Pace;
use crate::api::{Api, Body, Reply};
use crate::delivery::{Framing, Wire};
use crate::limits::{Budget, Peer};

/// The longest request head. Higher: more memory for a head that is never finished. Lower: a head with long
/// cookies of other ports on the same host would be refused. hyper's minimum is 8 KiB.
const BUFFER: usize = 64 << 10;

/// Serves a connection until it has ended, or until it is handed over. Returns the socket of a
/// connection that is handed over, and with what. Long heads lease memory of `heads`. The connection ends
/// with its present request once `stopping` is cancelled, and is cut once `overdue` is.
pub(super) async fn serve(
    wire: Wire,
    address: Peer,
    api: &Api,
    times: Times,
    heads: &Budget,
    stopping: &CancellationToken,
    overdue: &CancellationToken,
) -> Option<(Wire, HandedOver)> {
    let (handover, pace) = (Arc::new(Handover::default()), Arc::new(Pace::default()));
    let head = Arc::new(Head::new(heads.clone()));
    let respond = service_fn(async |request: hyper::Request<Incoming>| {
        let has_chunks = request.version() == Version::HTTP_11;
        let is_head = request.method() == Method::HEAD;
        let mut response = api.respond(address, request.map(|body| Body::new(head.is_whole(body)))).await;
        if !has_chunks && !is_head {
            response = without_chunks(response).await;
        }
        if head.was_long() && matches!(response.body(), Reply::Body(_)) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok::<_, Infallible>(response.map(|reply| match reply {
            Reply::Body(body) => Either::Left(pace.body(body)),
            Reply::Delivery(delivery) => {
                let framing = if has_chunks { Framing::Chunked } else { Framing::UntilClose };
                Either::Right(handover.hand_over(delivery, framing))
            }
        }))
    });
    let io = Io::new(wire, times, Arc::clone(&handover), Arc::clone(&pace), Arc::clone(&head));
    let mut connection = http1::Builder::new()
        // `Io` has timers of its own: hyper's would be the same for a head and between two requests.
        .header_read_timeout(None)
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

/// The response to an HTTP/1.0 request. A body of unknown length is given its length if it is short. A longer
/// one, or a stream, ends with the connection: its response is of HTTP/1.0, so that hyper does not say
/// `Connection: keep-alive` where the request asks for that (RFC 9112 9.3).
async fn without_chunks(mut response: Response<Reply>) -> Response<Reply> {
    /// The longest body that is collected. Higher: more memory for a reader who takes nothing. Lower: more
    /// histories end with their connection.
    const SHORT: usize = 64 << 10;
    let body = match response.body_mut() {
        Reply::Body(body) if body.size_hint().exact().is_some() => return response,
        Reply::Body(body) => mem::take(body),
        Reply::Delivery(_) => {
            *response.version_mut() = Version::HTTP_10;
            return response;
        }
    };
    let (mut rest, mut begun, mut failed) = (body.into_data_stream(), BytesMut::new(), None);
    while begun.len() <= SHORT && failed.is_none() {
        match rest.next().await {
            Some(Ok(data)) => begun.extend_from_slice(&data),
            Some(failure) => failed = Some(failure),
            None => return response.map(|_| begun.freeze().into()),
        }
    }
    *response.version_mut() = Version::HTTP_10;
    let begun = [Ok(begun.freeze())].into_iter().chain(failed);
    response.map(|_| Body::from_stream(tokio_stream::iter(begun).chain(rest)).into())
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
