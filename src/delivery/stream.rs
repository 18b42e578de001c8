//! A stream: what one subscriber is sent, and when. How the bytes are sent is not known here.

use std::future::poll_fn;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::chunks::{Chunks, Framing, Unsent};
use crate::auth::{Caller, Refused};
use crate::frame::{self, Format, Gap, Open};
use crate::hub::{Due, Next, Reason, Subscriber, Subscription};
use crate::journal::{Entry, JournalError};
use crate::message::Time;
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

/// A subscriber and its stream.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) subscriber: Subscriber,
    pub(super) subscription: Subscription,
    pub(super) format: Format,
    pub(super) keep_alive: Duration,
    /// The stream's first bytes. Empty once they are taken.
    opening: Bytes,
}

impl Delivery {
    /// The delivery of this subscription, from the stream's opening on. The opening says who the caller is,
    /// and names the `unknown` parameters of the request.
    pub(crate) fn new(
        subscriber: Subscriber,
        subscription: Subscription,
        caller: &Caller,
        format: Format,
        unknown: &[String],
        options: &Options,
    ) -> Self {
        let keep_alive = options.keep_alive;
        let retry_ms = fastrand::u128(options.retry_min.as_millis()..=options.retry_max.as_millis());
        let (mark, stream) = (caller.mark(), subscriber.pass().map(|pass| pass.stream()));
        let open = Open {
            position: subscription.begins_at(),
            keep_alive_ms: keep_alive.as_millis(),
            caller: mark.as_deref(),
            stream: stream.as_deref(),
            expires: caller.expires(),
        };
        let opening = frame::opening(format, unknown, retry_ms, Some(open));
        Delivery { subscriber, subscription, format, keep_alive, opening }
    }

    /// The delivery of a stream whose opening was sent before.
    pub(super) fn resumed(
        subscriber: Subscriber,
        subscription: Subscription,
        format: Format,
        keep_alive: Duration,
    ) -> Self {
        Delivery { subscriber, subscription, format, keep_alive, opening: Bytes::new() }
    }

    /// Takes the stream's first bytes. Empty in NDJSON, and once they were taken.
    pub(super) fn take_opening(&mut self) -> Bytes {
        mem::take(&mut self.opening)
    }

    /// Waits for the next chunks: what is due to the subscriber, or what the journal has. `None` once the
    /// subscription is not behind. Dropping the future loses nothing.
    ///
    /// # Errors
    /// The reason why the stream ends.
    pub(super) async fn next(&mut self, framing: Framing) -> Result<Option<Chunks>, Reason> {
        let keep_alive = sleep(self.keep_alive);
        tokio::pin!(keep_alive);
        loop {
            match self.subscriber.take_due() {
                Some(Due::Expiring(expires)) => {
                    return Ok(Some(expiring(expires, self.format, framing)));
                }
                Some(Due::End(reason)) => return Err(reason),
                None => {}
            }
            let next = tokio::select! {
                biased;
                next = self.subscription.next() => next.map_err(|_failed| Reason::JournalFailed)?,
                // Others may have their turn to read the journal for long.
                () = &mut keep_alive => return Ok(Some(self.keep_alive(framing))),
                _ = poll_fn(|cx| self.subscriber.poll_due(cx)) => continue,
            };
            let chunks = match next {
                Some(next) => self.encode(next, framing),
                None if self.subscription.is_over() => return Err(Reason::Shutdown),
                None => return Ok(None),
            };
            if chunks.is_some() {
                return Ok(chunks);
            }
        }
    }

    /// The chunks of `next` that the subscriber gets. `None` if it gets none of `next`.
    pub(super) fn encode(&self, next: Next, framing: Framing) -> Option<Chunks> {
        let next = self.subscriber.filter(next)?;
        Some(encode(&next, self.format, framing))
    }

    /// Counts the chunks of which the first `sent` bytes were sent, and returns what is left. Messages that
    /// were not begun are left to the subscription, whose position goes back before them.
    pub(super) fn was_sent(&mut self, chunks: &Chunks, sent: usize) -> Unsent {
        let Delivery { subscriber, subscription, .. } = self;
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

    /// A keep-alive, with the id of the position if the last id sent is an earlier one.
    fn keep_alive(&self, framing: Framing) -> Chunks {
        let position = self.subscription.position();
        let id = self.subscriber.is_before(position).then(|| self.subscription.id());
        let counts = id.is_some().then_some((0, position));
        Chunks::own(frame::keep_alive(self.format, id), counts, framing)
    }

    /// Reads a message again, of which only a part was sent.
    ///
    /// # Errors
    /// The reason why its subscriber has to go: the rest of the message can't be sent.
    pub(super) async fn reread(&self, sequence: u64) -> Result<Arc<Entry>, Reason> {
        let entry = self.subscription.reread(sequence).await;
        entry.map_err(|_failed: JournalError| Reason::JournalFailed)?.ok_or(Reason::TooSlow)
    }
}

/// The chunks of the event that says when the subscriber's token expires.
pub(super) fn expiring(expires: Time, format: Format, framing: Framing) -> Chunks {
    Chunks::own(frame::expiring(format, expires), None, framing)
}

/// The end of a stream that ends for this reason: its subscriber has to know that it needs another token.
pub(super) fn end(reason: Reason, format: Format, framing: Framing) -> Chunks {
    let event = match reason {
        Reason::Expired => frame::expired(format, &Refused::Expired.to_string()),
        Reason::Revoked => frame::expired(format, &Refused::revoked().to_string()),
        _ => Bytes::new(),
    };
    Chunks::end(event, framing)
}

/// The chunks of `next`.
pub(super) fn encode(next: &Next, format: Format, framing: Framing) -> Chunks {
    match next {
        Next::Messages(entries) => Chunks::messages(entries, format, framing),
        Next::Gap { asked, earliest, position } => {
            let bytes = frame::gap(format, &Gap { asked, earliest: *earliest }, *position);
            Chunks::own(bytes, Some((1, position.sequence)), framing)
        }
    }
}
