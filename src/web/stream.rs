//! A stream: what is sent to a subscriber, or to all who share its subscription, and when. Nothing here
//! knows how it is sent: as the body of a response ([`events`](super::events)), or straight to the
//! sockets ([`fanout`](super::fanout)).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, Sleep, sleep};

use super::visit::Visit;
use crate::config::Config;
use crate::frame::{self, Format, Gap, Open};
use crate::hub::{Delivery, Subscription};
use crate::journal::Entry;

/// A subscriber: its stay, and what it is sent.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) visit: Visit,
    pub(super) stream: Stream,
}

impl Subscriber {
    /// Waits for the next bytes for it; `None` at the end of its stream. Dropping the future loses
    /// nothing.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.stream.next().await {
                Step::Delivery(delivery) => {
                    self.visit.sent(events(&delivery));
                    return Some(encode(&delivery, self.stream.format));
                }
                Step::Tick { idle: true } => return Some(self.stream.keep_alive().await),
                Step::Tick { idle: false } => {}
                Step::End(reason) => {
                    self.visit.end(reason);
                    return None;
                }
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) subscription: Subscription,
    pub(super) format: Format,
    keep_alive: Duration,
    /// One timer for the stream's life, set anew when it fires and not with every event.
    timer: Pin<Box<Sleep>>,
    active: Instant,
}

/// What is sent next.
#[derive(Debug)]
pub(super) enum Step {
    Delivery(Delivery),
    /// Some time has passed; `idle` tells that nothing else was sent in it.
    Tick {
        idle: bool,
    },
    /// Nothing more, and why.
    End(&'static str),
}

impl Stream {
    pub(super) fn new(subscription: Subscription, format: Format, keep_alive: Duration) -> Self {
        let timer = Box::pin(sleep(keep_alive));
        Stream { subscription, format, keep_alive, timer, active: Instant::now() }
    }

    /// The same stream, from another place.
    pub(super) fn fork(&self, subscription: Subscription) -> Self {
        Stream::new(subscription, self.format, self.keep_alive)
    }

    /// Its first bytes.
    pub(super) fn opening(&self, config: &Config) -> Bytes {
        let retry_ms = fastrand::u128(config.retry_min.as_millis()..=config.retry_max.as_millis());
        let open =
            Open { position: self.subscription.begins_at(), keep_alive_ms: self.keep_alive.as_millis() };
        frame::opening(self.format, retry_ms, Some(open))
    }

    /// Waits for what is next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Step {
        tokio::select! {
            delivery = self.subscription.next() => match delivery {
                Ok(Some(delivery)) => {
                    self.active = Instant::now();
                    Step::Delivery(delivery)
                }
                Ok(None) => Step::End("shutdown"),
                Err(_failed) => Step::End("journal failed"),
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

    /// What is sent to one that was idle.
    pub(super) async fn keep_alive(&mut self) -> Bytes {
        frame::keep_alive(self.format, self.subscription.moved().await)
    }
}

/// The bytes of a delivery: all of it in one piece.
pub(super) fn encode(delivery: &Delivery, format: Format) -> Bytes {
    match delivery {
        Delivery::Messages(entries) => messages(entries, format),
        Delivery::Gap { asked, earliest, position } => {
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

/// How many events a delivery is.
pub(super) fn events(delivery: &Delivery) -> usize {
    match delivery {
        Delivery::Messages(entries) => entries.len(),
        Delivery::Gap { .. } => 1,
    }
}
