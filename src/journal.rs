//! The journal: the append-only, totally ordered record of published messages. Everything reads
//! from it: replay after a reconnect, history for a newcomer, and a slow subscriber catching up.
//! It knows nothing of subscribers; who is sent what is decided by the [`hub`](crate::hub).

mod committed;
mod entry;
mod keys;
mod memory;
mod page;
mod recent;
mod sqlite;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::sync::watch;

use crate::message::Epoch;
use crate::value::{at_least_one, bytes, duration};

pub use committed::Committed;
pub use entry::{Append, Appended, Batch, Entry, Failure, JournalError};
pub use keys::KeyLimits;
pub use memory::Memory;
pub use page::{Channels, Page, PageLimit};
pub use recent::Retention;
pub use sqlite::{OpenError, Sqlite};

/// Where messages are kept, and how much of them.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// The file messages are kept in; `memory` for none, and then they are gone with the process
    #[arg(long, value_name = "PATH", default_value = "tabcast.db", value_parser = place)]
    pub journal: Place,

    /// The most messages kept
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = at_least_one)]
    pub retention_messages: usize,

    /// The most bytes of kept messages: on the disk, or of `--journal memory` in memory
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub retention_bytes: ByteSize,

    /// How long a message is kept; `--journal memory` keeps it as long as there is room
    #[arg(long, value_name = "DURATION", default_value = "7days", value_parser = duration)]
    pub retention_age: Duration,

    /// The most idempotency keys remembered; 0 remembers none
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    pub idempotency_keys: usize,

    /// How long an idempotency key is remembered
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub idempotency_window: Duration,
}

impl Options {
    /// Opens the journal that these settings describe.
    ///
    /// # Errors
    /// As those of [`Journal::open`].
    pub fn open(&self) -> Result<(Journal, Committed), OpenError> {
        let retention = Retention {
            messages: self.retention_messages,
            bytes: bytes(self.retention_bytes),
            age: self.retention_age,
        };
        let keys = KeyLimits { count: self.idempotency_keys, window: self.idempotency_window };
        Journal::open(&self.journal, retention, keys)
    }
}

fn place(text: &str) -> Result<Place, String> {
    match text {
        "" => Err("is empty".to_owned()),
        "memory" => Ok(Place::Memory),
        path => Ok(Place::File(path.into())),
    }
}

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

/// The journal. What both kinds promise:
///
/// - [`append`](Self::append) gives ids in the order of the batch, and batches in the order of the
///   calls. Sequences go up by one. None is given twice, also after a restart.
/// - Once `append` has returned [`Appended::New`], the message is kept: in memory as long as the
///   process lives, in a file whatever happens to the process or the machine's power.
/// - Each committed message comes by [`Committed`], whoever appended it, in order, once. It is readable
///   from then on, and not before.
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

/// Asks the same of whichever journal this is.
macro_rules! either {
    ($self:ident, $journal:ident => $answer:expr) => {
        match $self {
            Journal::Memory($journal) => $answer,
            Journal::Sqlite($journal) => $answer,
        }
    };
}

impl Journal {
    /// Opens the journal, or makes a new one with an epoch of its own. With it comes what it will have
    /// committed from now on.
    ///
    /// # Errors
    /// [`OpenError`] if the file is no journal, not writable, or another hub's.
    pub fn open(
        place: &Place,
        retention: Retention,
        keys: KeyLimits,
    ) -> Result<(Self, Committed), OpenError> {
        let (announcer, committed) = committed::announcements();
        let journal = match place {
            Place::Memory => Journal::Memory(Memory::new(retention, keys, announcer)),
            Place::File(path) => Journal::Sqlite(Sqlite::open(path, retention, keys, announcer)?),
        };
        Ok((journal, committed))
    }

    /// Which journal this is.
    pub fn epoch(&self) -> Epoch {
        either!(self, journal => journal.epoch())
    }

    /// The sequence of the last message appended; 0 if there was none.
    pub fn head(&self) -> u64 {
        either!(self, journal => journal.head())
    }

    /// Appends each message of the batch, in order. One answer per message, in the same order.
    ///
    /// # Errors
    /// [`JournalError`], for the batch as a whole.
    pub async fn append(&self, batch: Vec<Append>) -> Result<Vec<Appended>, JournalError> {
        either!(self, journal => journal.append(batch).await)
    }

    /// The kept messages after `position` on `channels`.
    ///
    /// # Errors
    /// [`JournalError`] if the journal can't be read.
    pub async fn read(
        &self,
        position: u64,
        channels: &Channels,
        limit: PageLimit,
    ) -> Result<Page, JournalError> {
        either!(self, journal => journal.read(position, channels, limit).await)
    }

    /// The position from which a read gives the newest `count` kept messages on `channels`, or as
    /// many as there are.
    ///
    /// # Errors
    /// [`JournalError`] if the journal can't be read.
    pub async fn position_before_newest(
        &self,
        count: usize,
        channels: &Channels,
    ) -> Result<u64, JournalError> {
        either!(self, journal => journal.position_before_newest(count, channels).await)
    }

    /// Whether the journal has failed, and how: the process must stop, and say so.
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        either!(self, journal => journal.failure())
    }
}
