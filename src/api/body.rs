//! The body of a publish: read whole, within its limits of length, time and memory; or drained.

use std::future::ready;
use std::mem;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::StatusCode;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep_until, timeout};

use super::bodies::{Memory, NoMemory};
use super::options::Options;
use super::problem::Problem;
use super::state::State;
use crate::value;

/// Reads the body into its memory, and leaves an empty one. A body that declares too great a length is left
/// as it is.
///
/// # Errors
/// 413 past `--max-body`, 408 past `--body-timeout` or below `--min-body-rate`, 503 if there is no memory,
/// and 400 if the body can't be read.
pub(super) async fn read(
    state: &State,
    memory: &mut Memory<'_>,
    body: &mut Body,
) -> Result<BytesMut, Problem> {
    let limit = value::bytes(state.options.max_body);
    // The lower bound is the Content-Length, if there is one.
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large(limit));
    }
    let mut body = mem::take(body);
    match collect(state, memory, &mut body).await {
        Err(problem) if !drain(body).await => Err(problem.closing()),
        bytes => bytes,
    }
}

/// How long a body of unknown length waits for more memory. Higher: such bodies may all wait for each other.
/// Lower: more are refused.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

async fn collect(state: &State, memory: &mut Memory<'_>, body: &mut Body) -> Result<BytesMut, Problem> {
    let limit = value::bytes(state.options.max_body);
    // All at once: a body that has a part of its memory, and waits for the rest, is in the way of others.
    if let Some(length) = body.size_hint().exact() {
        memory.take(usize::try_from(length).unwrap_or(limit), state.options.body_timeout).await?;
    }
    let mut clock = Clock::new(&state.options);
    let mut bytes = BytesMut::new();
    loop {
        // Polling the body sends `100 Continue`: a publisher that waits for it sends the body now. Most
        // bodies come with their head.
        let frame = match at_once(body.frame()).await {
            Some(frame) => frame,
            None => tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = memory.gives_way() => return Err(NoMemory.into()),
                () = sleep_until(clock.next_check()) => {
                    clock.check(bytes.len())?;
                    continue;
                }
            },
        };
        let Some(frame) = frame else { return Ok(bytes) };
        let frame = frame.map_err(|_| Problem::malformed("the body can't be read"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > limit {
            return Err(too_large(limit));
        }
        let more = (bytes.len() + data.len()).saturating_sub(memory.bytes());
        if more > 0 {
            memory.take(more, PATIENCE).await?;
        }
        memory.progresses();
        bytes.extend_from_slice(&data);
    }
}

/// How long a body takes, and how much it has to bring by when.
struct Clock {
    began: Instant,
    /// The most time.
    time: Duration,
    /// The least bytes a second, in each window.
    rate: usize,
    /// When the present window ends.
    end: Instant,
    /// How many bytes there were when it began.
    before: usize,
}

impl Clock {
    /// How often the rate is looked at. Higher: a body that has stopped holds its memory for longer. Lower:
    /// one whose network was lost for a while is given up.
    const WINDOW: Duration = Duration::from_secs(5);

    fn new(options: &Options) -> Self {
        let (began, time) = (Instant::now(), options.body_timeout);
        let rate = value::bytes(options.min_body_rate);
        Clock { began, time, rate, end: began + Self::WINDOW, before: 0 }
    }

    fn next_check(&self) -> Instant {
        self.end.min(self.began + self.time)
    }

    /// Checks that a body of so many bytes so far may go on.
    ///
    /// # Errors
    /// 408 if it may not.
    fn check(&mut self, bytes: usize) -> Result<(), Problem> {
        if self.began.elapsed() >= self.time {
            let time = humantime::format_duration(self.time);
            return Err(too_slow(format!("took longer than {time}")));
        }
        let seconds = usize::try_from(Self::WINDOW.as_secs()).unwrap_or(usize::MAX);
        if bytes - self.before < self.rate.saturating_mul(seconds) {
            return Err(too_slow(format!("brought less than {} bytes a second", self.rate)));
        }
        (self.end, self.before) = (self.end + Self::WINDOW, bytes);
        Ok(())
    }
}

impl From<NoMemory> for Problem {
    fn from(_: NoMemory) -> Self {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the hub is taking as much as it can at once")
            .retry_after(1)
    }
}

fn too_slow(what: String) -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, format!("the body {what}")).field("body")
}

pub(super) fn too_large(limit: usize) -> Problem {
    let detail = format!("the body is longer than {limit} bytes, the limit");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).field("body").limit(limit)
}

/// Reads and drops the rest of a body, and returns whether all of it was there. What comes later is read in a
/// task of its own: many publishers write a whole body before they read the response. If the connection were
/// closed while a part of the body is unread, a reset could destroy the response.
pub(super) async fn drain(mut body: Body) -> bool {
    /// The longest time for one body. Higher: a hostile publisher can waste more of the hub's time. Lower: a
    /// slow publisher may not get its response.
    const TIME: Duration = Duration::from_secs(5);
    /// The most bytes of one body, for the same reasons.
    const BYTES: usize = 16 << 20;

    if let Some(end) = at_once(rest(&mut body, BYTES)).await {
        return end;
    }
    tokio::spawn(timeout(TIME, async move { rest(&mut body, BYTES).await }));
    false
}

/// Reads and drops so many bytes of the body, or the rest of it. Returns whether it is at its end.
async fn rest(body: &mut Body, mut bytes: usize) -> bool {
    while !body.is_end_stream() && bytes > 0 {
        match body.frame().await {
            Some(Ok(frame)) => bytes = bytes.saturating_sub(frame.data_ref().map_or(0, Bytes::len)),
            end => return end.is_none(),
        }
    }
    bytes > 0
}

/// What the future returns if it is ready now.
async fn at_once<F: Future>(future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = ready(()) => None,
    }
}
