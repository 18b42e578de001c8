//! A stream: the bytes that a subscriber, or a group, is sent, and when. How the bytes are sent is not known
//! here: over a socket, or as the body of a response.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep};

use crate::frame::{self, Format, Gap, Open};
use crate::hub::{Next, Reason, Subscriber, Subscription};
use crate::journal::Entry;
use crate::value::duration;

/// The settings of every stream.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// How long a stream is idle before it is sent a keep-alive
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub keep_alive: Duration,

    /// The shortest reconnection time that a subscriber is given, at least 500ms
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = reconnection_time)]
    pub retry_min: Duration,

    /// The longest reconnection time that a subscriber is given
    #[arg(long, value_name = "DURATION", default_value = "4s", value_parser = reconnection_time)]
    pub retry_max: Duration,
}

/// Parses a reconnection time of at least 500 ms. Lower: with `retry: 0`, one tab was seen to reconnect 378
/// times in 1.1 s.
fn reconnection_time(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time < Duration::from_millis(500) { Err("must be at least 500ms".to_owned()) } else { Ok(time) }
}

/// A subscriber and its own stream.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) subscriber: Subscriber,
    pub(super) stream: Stream,
    /// The stream's first bytes. Empty once they are taken.
    opening: Bytes,
}

impl Delivery {
    /// The delivery of this subscription, from the stream's opening on.
    pub(crate) fn new(
        subscriber: Subscriber,
        subscription: Subscription,
        format: Format,
        options: &Options,
    ) -> Self {
        let keep_alive = options.keep_alive;
        let retry_ms = fastrand::u128(options.retry_min.as_millis()..=options.retry_max.as_millis());
        let open = Open { position: subscription.begins_at(), keep_alive_ms: keep_alive.as_millis() };
        let opening = frame::opening(format, retry_ms, Some(open));
        Delivery { subscriber, stream: Stream::new(subscription, format, keep_alive), opening }
    }

    /// The delivery of a stream whose opening was sent before.
    pub(super) fn resumed(subscriber: Subscriber, stream: Stream) -> Self {
        Delivery { subscriber, stream, opening: Bytes::new() }
    }

    /// Takes the stream's first bytes. Empty in NDJSON, and once they were taken.
    pub(super) fn take_opening(&mut self) -> Bytes {
        mem::take(&mut self.opening)
    }

    /// Waits for the next bytes, `None` at the end of the stream. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            let bytes = match self.stream.next().await {
                Step::Next(next) => self.encode(next),
                Step::Tick { idle } => self.keep_alive(idle).await,
                Step::End(reason) => {
                    self.subscriber.end(reason);
                    return None;
                }
            };
            if bytes.is_some() {
                return bytes;
            }
        }
    }

    /// The bytes of `next` that the subscriber gets, which count as sent. `None` if it gets none of `next`.
    pub(super) fn encode(&mut self, next: Next) -> Option<Bytes> {
        let next = self.subscriber.filter(next)?;
        self.subscriber.was_sent(next.events(), next.last_id());
        Some(encode(&next, self.stream.format))
    }

    /// The keep-alive if the stream was `idle`, or if its position has moved without an event; else `None`.
    async fn keep_alive(&mut self, idle: bool) -> Option<Bytes> {
        let Stream { subscription, format, .. } = &mut self.stream;
        if idle {
            subscription.advance().await;
        }
        let position = subscription.position();
        let id = self.subscriber.is_before(position).then(|| subscription.id());
        if id.is_some() {
            self.subscriber.was_sent(0, position);
        }
        (idle || id.is_some()).then(|| frame::keep_alive(*format, id))
    }
}

/// A subscription in a format, with the timer of its keep-alives.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) subscription: Subscription,
    pub(super) format: Format,
    keep_alive: Duration,
    /// Reset when it fires, and not at every event, which would cost more.
    timer: Pin<Box<Sleep>>,
    /// When the last event or keep-alive came.
    active: Instant,
}

/// The next step of a stream.
#[derive(Debug)]
pub(super) enum Step {
    /// Messages or a gap are to be sent.
    Next(Next),
    /// The timer has fired. `idle` is set if no event came for as long as the keep-alive time.
    Tick { idle: bool },
    /// The stream ends, for this reason.
    End(Reason),
}

impl Stream {
    fn new(subscription: Subscription, format: Format, keep_alive: Duration) -> Self {
        let timer = Box::pin(sleep(keep_alive));
        Stream { subscription, format, keep_alive, timer, active: Instant::now() }
    }

    /// A stream like this one, from `position` on.
    pub(super) fn fork(&self, position: u64) -> Self {
        Stream::new(self.subscription.fork(position), self.format, self.keep_alive)
    }

    /// Waits for the next step. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Step {
        tokio::select! {
            next = self.subscription.next() => match next {
                Ok(Some(next)) => {
                    self.active = Instant::now();
                    Step::Next(next)
                }
                Ok(None) => Step::End(Reason::Shutdown),
                Err(_failed) => Step::End(Reason::JournalFailed),
            },
            () = &mut self.timer => {
                let idle = self.active + self.keep_alive <= Instant::now();
                if idle {
                    self.active = Instant::now();
                }
                self.timer.as_mut().reset(self.active + self.keep_alive);
                Step::Tick { idle }
            }
        }
    }
}

/// The frames of `next`, in one piece.
pub(super) fn encode(next: &Next, format: Format) -> Bytes {
    match next {
        Next::Messages(entries) => messages(entries, format),
        Next::Gap { asked, earliest, position } => {
            frame::gap(format, &Gap { asked, earliest: *earliest }, *position)
        }
    }
}

/// The frames of these messages, in one piece.
pub(super) fn messages(entries: &[Arc<Entry>], format: Format) -> Bytes {
    if let [entry] = entries {
        return entry.frame(format);
    }
    let frames: Vec<_> = entries.iter().map(|entry| entry.frame(format)).collect();
    let mut bytes = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
    frames.iter().for_each(|frame| bytes.extend_from_slice(frame));
    bytes.freeze()
}
