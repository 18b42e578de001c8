//! A stream: what is sent to a subscriber, or to all of a group, and when. Nothing here knows how the
//! bytes leave: as the body of a response, or straight to sockets.

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

    /// The shortest reconnection time a subscriber is told, at least 500ms
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = reconnection_time)]
    pub retry_min: Duration,

    /// The longest reconnection time a subscriber is told
    #[arg(long, value_name = "DURATION", default_value = "4s", value_parser = reconnection_time)]
    pub retry_max: Duration,
}

/// With `retry: 0` one tab was seen to reconnect 378 times in 1.1 s.
fn reconnection_time(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time < Duration::from_millis(500) { Err("must be at least 500ms".to_owned()) } else { Ok(time) }
}

/// One subscriber and the stream that is its own.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) subscriber: Subscriber,
    pub(super) stream: Stream,
    /// The stream's first bytes, until they are taken.
    opening: Bytes,
}

impl Delivery {
    /// Sends the subscriber what comes next on its subscription.
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

    /// Sends the subscriber what comes next on this stream, which was opened before.
    pub(super) fn resumed(subscriber: Subscriber, stream: Stream) -> Self {
        Delivery { subscriber, stream, opening: Bytes::new() }
    }

    /// The stream's first bytes, once; empty in NDJSON.
    pub(super) fn take_opening(&mut self) -> Bytes {
        mem::take(&mut self.opening)
    }

    /// Waits for the next bytes; `None` at the end of the stream. Dropping the future loses nothing.
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

    /// The bytes of what is for the subscriber, which then counts as sent; `None` if nothing is.
    pub(super) fn encode(&mut self, next: Next) -> Option<Bytes> {
        let next = self.subscriber.filter(next)?;
        self.subscriber.was_sent(next.events(), next.last_id());
        Some(encode(&next, self.stream.format))
    }

    /// What a subscriber that was idle is sent, or one whose position has moved without an event.
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

/// What comes next on a subscription, and when it is time for a keep-alive.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) subscription: Subscription,
    pub(super) format: Format,
    keep_alive: Duration,
    /// One timer for the stream's life, set anew when it fires and not with every event.
    timer: Pin<Box<Sleep>>,
    active: Instant,
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Step {
    /// Send this.
    Next(Next),
    /// Some time has passed; `idle` tells that nothing came in it.
    Tick { idle: bool },
    /// Nothing more comes, and why.
    End(Reason),
}

impl Stream {
    fn new(subscription: Subscription, format: Format, keep_alive: Duration) -> Self {
        let timer = Box::pin(sleep(keep_alive));
        Stream { subscription, format, keep_alive, timer, active: Instant::now() }
    }

    /// The same stream from `position` on.
    pub(super) fn fork(&self, position: u64) -> Self {
        Stream::new(self.subscription.fork(position), self.format, self.keep_alive)
    }

    /// Waits for what is next. Dropping the future loses nothing.
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

/// The bytes of what comes next, in one piece.
pub(super) fn encode(next: &Next, format: Format) -> Bytes {
    match next {
        Next::Messages(entries) => messages(entries, format),
        Next::Gap { asked, earliest, position } => {
            frame::gap(format, &Gap { asked, earliest: *earliest }, *position)
        }
    }
}

/// The messages' events.
pub(super) fn messages(entries: &[Arc<Entry>], format: Format) -> Bytes {
    if let [entry] = entries {
        return entry.frame(format);
    }
    let frames: Vec<_> = entries.iter().map(|entry| entry.frame(format)).collect();
    let mut bytes = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
    frames.iter().for_each(|frame| bytes.extend_from_slice(frame));
    bytes.freeze()
}
