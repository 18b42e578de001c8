//! The body of a publish: read whole, within its limits of length, time and memory; or drained.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::Problem;
use super::state::State;
use crate::value;

/// A body that was read. The permit is its share of [`State::in_flight`].
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) bytes: BytesMut,
    pub(super) permit: OwnedSemaphorePermit,
}

/// Reads the body, and leaves an empty one. A body that declares too great a length is left as it is.
///
/// # Errors
/// 413 past `--max-body`, 408 past `--body-timeout`, 503 past `--max-in-flight`, and 400 if the body
/// can't be read.
pub(super) async fn read(state: &State, body: &mut Body) -> Result<Taken, Problem> {
    let limit = value::bytes(state.options.max_body);
    // The lower bound is the Content-Length, if there is one.
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large(limit));
    }
    // Polling the body sends `100 Continue`: a publisher that waits for it sends the body now.
    let mut body = mem::take(body);
    let time = state.options.body_timeout;
    let taken = timeout(time, collect(&state.in_flight, limit, &mut body)).await.unwrap_or_else(|_elapsed| {
        let detail = format!("the body took longer than {}", humantime::format_duration(time));
        Err(Problem::new(StatusCode::REQUEST_TIMEOUT, detail))
    });
    if taken.is_err() {
        drain(body);
    }
    taken
}

async fn collect(in_flight: &Arc<Semaphore>, limit: usize, body: &mut Body) -> Result<Taken, Problem> {
    let mut bytes = BytesMut::new();
    let mut permit = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Problem::malformed("the body can't be read"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        let more = reserve(in_flight, data.len())?;
        match &mut permit {
            None => permit = Some(more),
            Some(permit) => permit.merge(more),
        }
        bytes.extend_from_slice(&data);
    }
    let permit = permit.map_or_else(|| reserve(in_flight, 0), Ok)?;
    Ok(Taken { bytes, permit })
}

fn reserve(in_flight: &Arc<Semaphore>, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Arc::clone(in_flight).try_acquire_many_owned(bytes).map_err(|_| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the hub is taking as much as it can at once")
            .retry_after(1)
    })
}

fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is longer than {limit} bytes, the limit");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).field("body").limit(limit)
}

/// Reads and drops the rest of a body, in a task of its own. Many publishers write a whole body before they
/// read the response. If the connection were closed while a part of the body is unread, a reset could
/// destroy the response.
pub(super) fn drain(mut body: Body) {
    /// The longest time for one body. Higher: a hostile publisher can waste more of the hub's time. Lower: a
    /// slow publisher may not get its response.
    const TIME: Duration = Duration::from_secs(5);
    /// The most bytes of one body, for the same reasons.
    const BYTES: usize = 16 << 20;

    if body.is_end_stream() {
        return;
    }
    tokio::spawn(timeout(TIME, async move {
        let mut left = BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    }));
}
