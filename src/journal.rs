//! The journal: the append-only, totally ordered record of published messages. Everything reads
//! from it: replay after a reconnect, history for a newcomer, and a slow subscriber catching up.
//! It knows nothing of subscribers; who is sent what is the [`hub`](crate::hub)'s.

mod keys;
mod memory;
mod sqlite;
mod tail;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::frame::{Format, Frames};
use crate::message::{ChannelName, Draft, Epoch, IdempotencyKey, Message, Receipt};

pub use keys::KeyLimits;
pub use memory::Memory;
pub use sqlite::{OpenError, Sqlite};

/// Where a journal is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory, for as long as the process lives.
    Memory,
    /// In this SQLite file.
    File(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Memory => out.write_str("memory"),
            Place::File(path) => path.display().fmt(out),
        }
    }
}

/// How much is kept. The oldest messages are dropped to stay within each limit.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Messages.
    pub messages: usize,
    /// Of a journal in memory, the sum of the messages' [`Entry::weight`]; of a file, its pages in
    /// use. In bytes.
    pub bytes: usize,
    /// Since a message was kept. For a file alone.
    pub age: Duration,
}

/// The journal. What both kinds promise:
///
/// - [`append`](Self::append) gives ids in the order of the batch, and batches in the order of the
///   calls. Sequences go up by one. None is given twice, also after a restart.
/// - Once it has returned [`Appended::New`], the message is kept: in memory as long as the process
///   lives, in a file whatever happens to the process or the machine's power.
/// - The newest message is readable from then on, and not before.
/// - [`read`](Self::read) gives what is kept after a position, in order, without a hole. Where
///   retention has made one, [`Page::has_gap_after`] tells.
///
/// Appends are made by one caller, one after the other. Reads are made by any number of callers and
/// don't hold up appends.
#[derive(Debug)]
pub enum Journal {
    /// In memory.
    Memory(Memory),
    /// In a file.
    Sqlite(Sqlite),
}

impl Journal {
    /// Opens the journal, or makes a new one with an epoch of its own.
    ///
    /// # Errors
    /// [`OpenError`] if the file is no journal, not writable, or another hub's.
    pub fn open(place: &Place, retention: Retention, keys: KeyLimits) -> Result<Self, OpenError> {
        match place {
            Place::Memory => Ok(Journal::Memory(Memory::new(retention, keys))),
            Place::File(path) => Sqlite::open(path, retention, keys).map(Journal::Sqlite),
        }
    }

    /// Which journal this is.
    pub fn epoch(&self) -> Epoch {
        match self {
            Journal::Memory(memory) => memory.epoch(),
            Journal::Sqlite(sqlite) => sqlite.epoch(),
        }
    }

    /// The sequence of the last message appended; 0 if there was none.
    pub fn head(&self) -> u64 {
        match self {
            Journal::Memory(memory) => memory.head(),
            Journal::Sqlite(sqlite) => sqlite.head(),
        }
    }

    /// Appends each message of the batch, in order. One answer per message, in the same order.
    ///
    /// # Errors
    /// [`AppendError`], for the batch as a whole.
    pub async fn append(&self, batch: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
        match self {
            Journal::Memory(memory) => Ok(memory.append(batch)),
            Journal::Sqlite(sqlite) => sqlite.append(batch).await,
        }
    }

    /// The kept messages after `position` on `channels`.
    ///
    /// # Errors
    /// [`Failed`] if the journal can't be read; it is of no more use then.
    pub async fn read(&self, position: u64, channels: &Channels, limit: PageLimit) -> Result<Page, Failed> {
        match self {
            Journal::Memory(memory) => Ok(memory.read(position, channels, limit)),
            Journal::Sqlite(sqlite) => sqlite.read(position, channels, limit).await,
        }
    }

    /// The position from which a read gives the newest `count` kept messages on `channels`, or as
    /// many as there are.
    ///
    /// # Errors
    /// [`Failed`] if the journal can't be read; it is of no more use then.
    pub async fn position_before_newest(&self, count: usize, channels: &Channels) -> Result<u64, Failed> {
        match self {
            Journal::Memory(memory) => Ok(memory.position_before_newest(count, channels)),
            Journal::Sqlite(sqlite) => sqlite.position_before_newest(count, channels).await,
        }
    }

    /// Ready when the journal has failed, with what happened: the process must stop, and say so.
    pub async fn failure(&self) -> String {
        match self {
            Journal::Memory(_) => std::future::pending().await,
            Journal::Sqlite(sqlite) => sqlite.failure().await,
        }
    }
}

/// Why a batch was not appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// There is no space. Nothing of the batch is kept; the next may be.
    #[error("there is no space for the journal")]
    NoSpace,
    /// Another program writes to the file, and did not end in time. Nothing of the batch is kept; the
    /// next may be.
    #[error("the journal is being written by another program")]
    Busy,
    /// The journal failed. The batch may be kept or not; no further one will be.
    #[error(transparent)]
    Failed(#[from] Failed),
}

/// The journal can't be read or written any more. [`Journal::failure`] tells why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal failed")]
pub struct Failed;

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

impl Appended {
    /// To a key that came before, with the same request or another one.
    fn again(same: bool, answer: impl FnOnce() -> Receipt) -> Self {
        if same { Appended::Repeated(answer()) } else { Appended::KeyReused }
    }
}

/// A kept message and its frames.
#[derive(Debug)]
pub struct Entry {
    /// The message.
    pub message: Message,
    frames: Frames,
    weight: usize,
}

impl Entry {
    fn new(message: Message) -> Self {
        /// The structs, their allocations and the fields of a frame but for names and data.
        const OVERHEAD: usize = 512;
        let Message { channel, event, data, .. } = &message;
        let json = data.as_json();
        // Each line of a text has `data: ` in front of it in one of the frames.
        let breaks = json.bytes().filter(|byte| *byte == b'\\').count();
        let weight = OVERHEAD + 3 * (channel.as_str().len() + event.as_str().len() + json.len()) + 6 * breaks;
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

    /// The memory it takes at most, in bytes: its data, and that again in two frames.
    pub fn weight(&self) -> usize {
        self.weight
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

/// The channels somebody asked for: at least one, none twice. Clones share them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Channels(Arc<[ChannelName]>);

impl Channels {
    /// These channels, or the default one if there are none.
    pub fn new(names: impl IntoIterator<Item = ChannelName>) -> Self {
        // In one order, so that whoever asks for the same is seen to.
        let mut channels = BTreeSet::from_iter(names);
        if channels.is_empty() {
            channels.insert(ChannelName::default());
        }
        Channels(channels.into_iter().collect())
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
