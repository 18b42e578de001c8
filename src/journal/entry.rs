//! An entry: a stored message with its frames; what is appended, and what an append comes to.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::frame::{Format, Frames};
use crate::message::{Draft, IdempotencyKey, Message, Receipt};

/// A stored message and its frames.
#[derive(Debug)]
pub struct Entry {
    /// The message.
    pub message: Message,
    frames: Frames,
    weight: usize,
}

impl Entry {
    pub(super) fn new(message: Message) -> Self {
        /// The structs, their allocations and the fields of a frame but for names and data.
        const OVERHEAD: usize = 512;
        let Message { channel, event, data, .. } = &message;
        let json = data.as_json();
        // Each line of a text has `data: ` in front of it in one of the frames.
        let breaks = json.bytes().filter(|byte| *byte == b'\\').count();
        let names_and_data = channel.as_str().len() + event.as_str().len() + json.len();
        let weight = OVERHEAD + 3 * names_and_data + 6 * breaks;
        Entry { message, frames: Frames::default(), weight }
    }

    /// The message's event in `format`. Encoded once, then shared.
    pub fn frame(&self, format: Format) -> Bytes {
        self.frames.get(&self.message, format)
    }

    /// The message as a JSON object. Encoded once, then shared.
    pub fn json(&self) -> Bytes {
        self.frames.json(&self.message)
    }

    /// The memory the entry takes at most, in bytes: its data, and that again in two frames.
    pub fn weight(&self) -> usize {
        self.weight
    }
}

/// A message to append, and the key that makes a retry of it recognisable.
#[derive(Debug)]
pub struct Append {
    /// What is appended.
    pub draft: Draft,
    /// The publisher's idempotency key, if it gave one.
    pub key: Option<IdempotencyKey>,
}

/// What became of an [`Append`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The journal keeps the message.
    New(Receipt),
    /// The same request was stored before, under the same key; this was its answer.
    Repeated(Receipt),
    /// Another request was stored under the same key; nothing is appended.
    KeyReused,
}

impl Appended {
    /// For a key that came before, with the same request or another one.
    pub(super) fn again(is_same: bool, answer: impl FnOnce() -> Receipt) -> Self {
        if is_same { Appended::Repeated(answer()) } else { Appended::KeyReused }
    }
}

/// Messages the journal has committed: at least one, newest last.
pub type Batch = Vec<Arc<Entry>>;

/// Why the journal can't be read or appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// There is no space. Nothing of the batch is kept; the next batch may be.
    #[error("there is no space for the journal")]
    NoSpace,
    /// Not now, as while another program has the file. Nothing of the batch is kept; the same call may
    /// succeed later.
    #[error("the journal is unavailable")]
    Unavailable {
        /// How long to wait before another try.
        retry_after: Duration,
    },
    /// For good. A batch may be kept or not; no further one will be.
    /// [`Journal::failure`](super::Journal::failure) says why.
    #[error("the journal failed")]
    Failed,
}

/// What happened to a journal that failed, in words for whoever runs the hub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub(super) String);
