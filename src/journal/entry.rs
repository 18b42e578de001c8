//! An entry: a stored message with its frames. Also the input, the result and the errors of an append.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;

use super::keys::Key;
use crate::frame::{Format, Frames};
use crate::limits::{Budget, Lease};
use crate::message::{Draft, Drafts, Message, MessageId, Receipts};

/// A stored message and its frames.
#[derive(Debug)]
pub struct Entry {
    /// The message.
    pub message: Message,
    frames: Frames,
    weight: usize,
    /// The memory of an entry that was read from a file.
    lease: Option<Lease>,
}

/// An entry that a reader keeps while it waits, maybe for long.
#[derive(Debug)]
pub struct Kept {
    /// The entry.
    pub entry: Arc<Entry>,
    /// The memory of an entry that has none of its own: the journal may drop it meanwhile.
    _lease: Option<Lease>,
}

impl Entry {
    /// Bytes of the structs, their allocations, and the text of the frames beside names and data. Lower:
    /// small messages would take more memory than retention allows. Higher: fewer would be kept.
    const OVERHEAD: usize = 512;

    pub(super) fn new(message: Message) -> Self {
        let Message { channel, event, data, .. } = &message;
        let json = data.as_json();
        // An escape may be a line break, which adds `data: ` to the bare frame.
        let breaks = json.bytes().filter(|byte| *byte == b'\\').count();
        let names = channel.as_str().len() + event.as_str().len();
        let weight = Self::least_weight(names, json.len()) + 6 * breaks;
        Entry { message, frames: Frames::default(), weight, lease: None }
    }

    /// The same entry, whose memory is leased already.
    pub(super) fn leased(self, mut lease: Lease) -> Self {
        lease.shrink(self.weight);
        Entry { lease: Some(lease), ..self }
    }

    /// The least weight of an entry with names and data of these lengths, in bytes: no line break is in it.
    pub(super) fn least_weight(names: usize, data: usize) -> usize {
        Self::OVERHEAD + 3 * (names + data)
    }

    /// The greatest weight of such an entry: every byte of its data is a `\`.
    pub(super) fn most_weight(names: usize, data: usize) -> usize {
        Self::least_weight(names, data) + 6 * data
    }

    /// Keeps the entry for a reader that waits. `None` if there is not plenty of memory.
    pub fn keep(self: &Arc<Self>, budget: &Budget) -> Option<Kept> {
        let lease = match &self.lease {
            Some(_) => None,
            None => Some(budget.try_lease(self.weight)?),
        };
        budget.is_plenty().then(|| Kept { entry: Arc::clone(self), _lease: lease })
    }

    /// The message's event in `format`. Encoded once, then shared.
    pub fn frame(&self, format: Format) -> Bytes {
        self.frames.get(&self.message, format)
    }

    /// The message as a JSON object. Encoded once, then shared.
    pub fn json(&self) -> Bytes {
        self.frames.json(&self.message)
    }

    /// The most memory the entry takes, in bytes, once all its frames are encoded: names and data are in the
    /// message and in two frames.
    pub fn weight(&self) -> usize {
        self.weight
    }
}

/// What is appended.
#[derive(Debug)]
pub enum Append {
    /// The messages of one publish, which are stored together or not at all.
    Messages {
        /// The messages before they have ids, at least one.
        drafts: Drafts,
        /// The publisher's idempotency key, if it gave one.
        key: Option<Key>,
    },
    /// The hub's event that says that the message with this id was deleted. That message is erased.
    Erase(MessageId),
}

impl Append {
    /// One message.
    pub fn message(draft: Draft, key: Option<Key>) -> Self {
        Append::Messages { drafts: smallvec![draft], key }
    }

    /// How many messages are stored.
    pub(crate) fn count(&self) -> usize {
        match self {
            Append::Messages { drafts, .. } => drafts.len(),
            Append::Erase(_) => 1,
        }
    }

    /// The bytes of the messages' data.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Append::Messages { drafts, .. } => drafts.iter().map(|draft| draft.data.as_json().len()).sum(),
            Append::Erase(_) => 0,
        }
    }
}

/// The result of an [`Append`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The messages are stored, or the one that says what was deleted.
    New(Receipts),
    /// The same request was stored before, under the same key, and has these receipts.
    Repeated(Receipts),
    /// Another request was stored before, under the same key. Nothing is appended.
    KeyReused,
    /// The message that was to be erased is not kept. Nothing is appended.
    NotKept,
}

impl Appended {
    /// The result for a key that was used before, by the same request or another one.
    pub(super) fn again(is_same: bool, receipts: impl FnOnce() -> Receipts) -> Self {
        if is_same { Appended::Repeated(receipts()) } else { Appended::KeyReused }
    }
}

/// Committed messages, newest last.
pub type Batch = Vec<Arc<Entry>>;

/// Why the journal can't be read or appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// The disk is full. Nothing of the batch is stored; a later batch may be.
    #[error("there is no space for the journal")]
    NoSpace,
    /// Another program has the file. Nothing of the batch is stored; the same call may succeed later.
    #[error("the journal is unavailable")]
    Unavailable {
        /// How long to wait before another try.
        retry_after: Duration,
    },
    /// The journal failed for good. The batch may be stored or not; no later batch will be.
    /// [`Journal::failure`](super::Journal::failure) says why.
    #[error("the journal failed")]
    Failed,
}

/// Why a journal failed, in words for the operator of the hub.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub(super) String);
