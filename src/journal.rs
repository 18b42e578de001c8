//! The journal: the append-only, totally ordered record of published messages. Everything reads
//! from it: replay after a reconnect, history for a newcomer, and a slow subscriber catching up.
//! It knows nothing of subscribers; who is sent what is the [`hub`](crate::hub)'s.

mod keys;
mod memory;

use std::sync::Arc;

use bytes::Bytes;

use crate::frame::{Format, Frames};
use crate::message::{ChannelName, Draft, Epoch, IdempotencyKey, Message, MessageId, Receipt};

pub use keys::KeyLimits;
pub use memory::{Journal, Retention};

/// A message to append, and the key that makes a retry of it recognisable.
#[derive(Debug)]
pub struct Append {
    /// What is appended.
    pub draft: Draft,
    /// The publisher's idempotency key, if it gave one.
    pub key: Option<IdempotencyKey>,
}

/// What became of an [`Append`].
#[derive(Debug)]
pub enum Appended {
    /// The journal keeps it.
    New(Arc<Entry>),
    /// It was kept before, under the same key; this was the answer then.
    Repeated(Receipt),
    /// Another request was kept under the same key; nothing is appended.
    KeyReused,
}

/// A kept message and its frames.
#[derive(Debug)]
pub struct Entry {
    /// The message.
    pub message: Message,
    frames: Frames,
}

impl Entry {
    fn new(message: Message) -> Self {
        Entry { message, frames: Frames::default() }
    }

    /// The message's event in `format`. Encoded once, then shared.
    pub fn frame(&self, format: Format) -> Bytes {
        self.frames.get(&self.message, format)
    }

    /// The message as a JSON object. Encoded once, then shared.
    pub fn json(&self) -> Bytes {
        self.frames.json(&self.message)
    }

    /// The memory it takes at most, in bytes: its data, and that again in two frames.
    pub fn weight(&self) -> usize {
        /// The structs, their allocations and the fields of a frame but for names and data.
        const OVERHEAD: usize = 512;
        let Message { channel, event, data, .. } = &self.message;
        OVERHEAD + 3 * (channel.as_str().len() + event.as_str().len() + data.as_json().len())
    }
}

/// How much one read returns at most. At least one message, if there is any.
#[derive(Clone, Copy, Debug)]
pub struct PageLimit {
    /// Messages.
    pub messages: usize,
    /// The sum of their [`Entry::weight`], in bytes.
    pub bytes: usize,
}

/// The kept messages after some position, on some channels.
#[derive(Debug)]
pub struct Page {
    /// The messages, newest last; none if none of the channels has any up to `through`.
    pub entries: Vec<Arc<Entry>>,
    /// The position that has been read up to: read on from here.
    pub through: u64,
    /// The sequence of the last message appended; 0 if there was none. The read is complete when
    /// `through` has reached it.
    pub head: u64,
    /// The sequence of the earliest message kept; `head + 1` if none is.
    pub earliest: u64,
}

impl Page {
    /// Messages after `position` have been dropped, so that reading on from there would leave them
    /// out in silence.
    pub fn has_gap_after(&self, position: u64) -> bool {
        position + 1 < self.earliest
    }
}

/// The channels somebody asked for: at least one, none twice.
#[derive(Clone, Debug)]
pub struct Channels(Vec<ChannelName>);

impl Channels {
    /// These channels, or the default one if there are none.
    pub fn new(names: impl IntoIterator<Item = ChannelName>) -> Self {
        let mut channels = Vec::new();
        for name in names {
            if !channels.contains(&name) {
                channels.push(name);
            }
        }
        if channels.is_empty() {
            channels.push(ChannelName::default());
        }
        Channels(channels)
    }

    /// Whether `name` is one of them.
    pub fn contains(&self, name: &ChannelName) -> bool {
        self.0.contains(name)
    }

    /// Each of them, once.
    pub fn iter(&self) -> impl Iterator<Item = &ChannelName> {
        self.0.iter()
    }
}

/// The id of the message at `sequence` of the journal `epoch`.
fn id(epoch: Epoch, sequence: u64) -> MessageId {
    MessageId { epoch, sequence }
}
