//! A stream: the bytes that a subscriber, or a group, is sent, and when. How the bytes are sent is not known
//! here: over a socket, or as the body of a response.

use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep};

use super::chunks::{Chunks, Framing, Unsent};
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

    /// Waits for the next chunks, `None` at the end of the stream. Dropping the future loses nothing.
    pub(super) async fn next(&mut self, framing: Framing) -> Option<Chunks> {
        loop {
            let chunks = match self.stream.next().await {
                Step::Next(next) => self.encode(next, framing),
                Step::Tick { idle } => self.keep_alive(idle, framing).await,
                Step::End(reason) => {
                    self.subscriber.end(reason);
                    return None;
                }
            };
            if chunks.is_some() {
                return chunks;
            }
        }
    }

    /// The chunks of `next` that the subscriber gets. `None` if it gets none of `next`.
    pub(super) fn encode(&self, next: Next, framing: Framing) -> Option<Chunks> {
        let next = self.subscriber.filter(next)?;
        Some(self.stream.encode(&next, framing))
    }

    /// Counts the chunks of which the first `sent` bytes were sent, and returns what is left. Messages that
    /// were not begun are left to the subscription, whose position goes back before them.
    pub(super) fn was_sent(&mut self, chunks: &Chunks, sent: usize) -> Unsent {
        let Delivery { subscriber, stream: Stream { subscription, .. }, .. } = self;
        if sent == chunks.len() {
            subscriber.was_sent(chunks.counts);
            return Unsent::Nothing;
        }
        let cut = chunks.cut(sent, subscription);
        if let Some(position) = cut.position {
            subscription.go_back(position);
        }
        subscriber.was_sent(cut.counts);
        cut.unsent
    }

    /// The keep-alive if the stream was `idle`, or if its position has moved without an event; else `None`.
    async fn keep_alive(&mut self, idle: bool, framing: Framing) -> Option<Chunks> {
        let Stream { subscription, format, .. } = &mut self.stream;
        if idle {
            subscription.advance().await;
        }
        let position = subscription.position();
        let id = self.subscriber.is_before(position).then(|| subscription.id());
        let counts = id.is_some().then_some((0, position));
        (idle || id.is_some()).then(|| Chunks::own(frame::keep_alive(*format, id), counts, framing))
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

    /// A stream like this one for a subscriber of its own, from `position` on.
    pub(super) fn fork(&self, position: u64, subscriber: &Subscriber) -> Self {
        let subscription = self.subscription.fork(position, subscriber.address());
        Stream::new(subscription, self.format, self.keep_alive)
    }

    /// The chunks of `next`.
    pub(super) fn encode(&self, next: &Next, framing: Framing) -> Chunks {
        match next {
            Next::Messages(entries) => Chunks::messages(entries, self.format, framing),
            Next::Gap { asked, earliest, position } => {
                let bytes = frame::gap(self.format, &Gap { asked, earliest: *earliest }, *position);
                Chunks::own(bytes, Some((1, position.sequence)), framing)
            }
        }
    }

    /// Reads a message again, of which only a part was sent.
    ///
    /// # Errors
    /// The reason why its subscriber has to go: the rest of the message can't be sent.
    pub(super) async fn reread(&self, sequence: u64) -> Result<Arc<Entry>, Reason> {
        match self.subscription.reread(sequence).await {
            Ok(entry) => entry.ok_or(Reason::TooSlow),
            Err(_failed) => Err(Reason::JournalFailed),
        }
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
