//! The journal: the append-only, totally ordered record of published messages. Replay after a reconnect,
//! history for a newcomer and a slow subscriber that catches up all read the journal. Subscribers are
//! unknown here: the [`hub`](crate::hub) decides which of them is sent a message.

mod clock;
mod committed;
mod entry;
mod epochs;
mod index;
mod keys;
mod memory;
mod page;
mod passed;
mod recent;
mod rules;
mod sqlite;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use tokio::sync::watch;

use crate::limits::{Budget, Network};
use crate::message::MessageId;
use crate::value::{at_least_one, bytes, duration};
use recent::STEP;

pub use committed::Committed;
pub use entry::{Append, Appended, Batch, Entry, Failure, JournalError, Kept};
pub use keys::{Key, KeyLimits};
pub use memory::Memory;
pub use page::{Channels, Page, PageLimit};
pub use recent::Retention;
pub use rules::{Rule, Rules};
pub use sqlite::{CopyError, OpenError, Report, Sqlite, copy, verify};

/// The journal's settings: its place, and the limits of what it keeps.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// The file messages are kept in; `memory` for none, and then they are gone with the process
    #[arg(long, value_name = "PATH", default_value = "tabcast.db", value_parser = place, global = true)]
    pub journal: Place,

    /// The most messages kept
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = at_least_one)]
    pub retention_messages: usize,

    /// The most bytes of kept messages: on the disk, or of `--journal memory` in memory
    #[arg(long, value_name = "SIZE", default_value = "256MiB")]
    pub retention_bytes: ByteSize,

    /// How long a message is kept; `--journal memory` keeps it as long as it fits
    #[arg(long, value_name = "DURATION", default_value = "7days", value_parser = duration)]
    pub retention_age: Duration,

    /// The most idempotency keys remembered; 0 remembers none
    #[arg(long, value_name = "COUNT", default_value_t = 10_000)]
    pub idempotency_keys: usize,

    /// How long an idempotency key is remembered
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub idempotency_window: Duration,

    /// Rules for some channels: the tables `[[channel]]` of the settings file
    #[arg(skip)]
    pub rules: Rules,
}

impl Options {
    /// Opens the journal that these settings describe. What is read from its file is leased from `budget`.
    ///
    /// # Errors
    /// [`OpenError`], as of [`Journal::open`].
    pub fn open(&self, budget: &Budget) -> Result<(Journal, Committed), OpenError> {
        let retention = Retention {
            messages: self.retention_messages,
            bytes: bytes(self.retention_bytes),
            age: self.retention_age,
            rules: self.rules.clone(),
        };
        let keys = KeyLimits { count: self.idempotency_keys, window: self.idempotency_window };
        Journal::open(&self.journal, retention, keys, budget)
    }
}

fn place(text: &str) -> Result<Place, String> {
    match text {
        "" => Err("is empty".to_owned()),
        // The second is what SQLite calls it.
        "memory" | ":memory:" => Ok(Place::Memory),
        path => Ok(Place::File(path.into())),
    }
}

/// Where a journal stores its messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In memory, for as long as the process lives.
    Memory,
    /// In this SQLite file.
    File(PathBuf),
}

impl Place {
    /// The path of a file beside the journal's, with this at the end of its name. `None` if there is no file.
    pub fn beside(&self, suffix: &str) -> Option<PathBuf> {
        match self {
            Place::Memory => None,
            Place::File(path) => Some(sqlite::beside(path, suffix)),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Memory => out.write_str("memory"),
            Place::File(path) => path.display().fmt(out),
        }
    }
}

/// The journal, in memory or in a file. Both kinds promise:
///
/// - [`append`](Self::append) gives ids in the order of its calls, and within a call in the order of the
///   batch. Sequences go up by one. No id is given twice, even after a restart, or where an older copy of
///   the file is restored.
/// - Once `append` has returned [`Appended::New`], the message is stored: in memory as long as the
///   process lives, in a file whatever happens to the process or the machine's power.
/// - [`Committed`] gives each committed message once, in order, whoever appended it. The message is
///   readable by then, and not before it is committed.
/// - [`read`](Self::read) gives the kept messages after a position, in order, without a hole. If retention
///   has dropped messages after that position, [`Page::has_gap_after`] is true.
///
/// Only one caller appends, one call after the other. Any number of callers may read, and reads don't
/// hold up appends. Only some reads are done at once. The networks that wait for one have their turns one
/// after the other.
#[derive(Debug)]
pub enum Journal {
    /// A journal in memory.
    Memory(Box<Memory>),
    /// A journal in a file.
    Sqlite(Sqlite),
}

/// Evaluates the same expression for either kind of journal.
macro_rules! either {
    ($self:ident, $journal:ident => $answer:expr) => {
        match $self {
            Journal::Memory($journal) => $answer,
            Journal::Sqlite($journal) => $answer,
        }
    };
}

impl Journal {
    /// Opens the journal, or creates one, with a new epoch for what is appended. The [`Committed`] gives
    /// every message that the journal commits from now on. What is read from a file is leased from `budget`.
    ///
    /// # Errors
    /// [`OpenError`] if the file is no journal, is not writable, or is in use by another hub.
    pub fn open(
        place: &Place,
        retention: Retention,
        keys: KeyLimits,
        budget: &Budget,
    ) -> Result<(Self, Committed), OpenError> {
        let (announcer, committed) = committed::announcements();
        let journal = match place {
            Place::Memory => Journal::Memory(Box::new(Memory::new(retention, keys, announcer))),
            Place::File(path) => Journal::Sqlite(Sqlite::open(path, retention, keys, announcer, budget)?),
        };
        Ok((journal, committed))
    }

    /// The id of the message at `sequence`.
    pub fn id(&self, sequence: u64) -> MessageId {
        either!(self, journal => journal.epochs().id(sequence))
    }

    /// The position of a cursor. `None` if this journal's history does not have it: it is of another journal,
    /// or of messages that were lost when an older copy of the file was restored.
    pub fn position(&self, cursor: MessageId) -> Option<u64> {
        either!(self, journal => journal.epochs().position(cursor, journal.head()))
    }

    /// The sequence of the last message appended, 0 if there was none.
    pub fn head(&self) -> u64 {
        either!(self, journal => journal.head())
    }

    /// Appends the messages of the batch, in order. Returns one [`Appended`] for each, in the same order.
    ///
    /// # Errors
    /// [`JournalError`] for the batch as a whole.
    pub async fn append(&self, batch: Vec<Append>) -> Result<Vec<Appended>, JournalError> {
        either!(self, journal => journal.append(batch).await)
    }

    /// Every message before this sequence was dropped.
    fn begin(&self) -> u64 {
        either!(self, journal => journal.begin())
    }

    /// The kept messages after `position` on `channels`, as many as `limit` allows; up to the sequence
    /// `latest`, only the newest of each channel. `reader` has the turn; `None` is the hub itself.
    ///
    /// # Errors
    /// [`JournalError`] if the journal can't be read.
    pub async fn read(
        &self,
        position: u64,
        channels: &Channels,
        latest: Option<u64>,
        limit: PageLimit,
        reader: Option<Network>,
    ) -> Result<Page, JournalError> {
        either!(self, journal => journal.read(position, channels, latest, limit, reader).await)
    }

    /// What [`read`](Self::read) returns, at once, if memory has the page.
    pub fn read_held(
        &self,
        position: u64,
        channels: &Channels,
        latest: Option<u64>,
        limit: PageLimit,
    ) -> Option<Page> {
        either!(self, journal => journal.read_held(position, channels, latest, limit))
    }

    /// The position from which a read up to the sequence `until` gives the newest `count` kept messages on
    /// `channels`, or all if there are fewer. `reader` has the turn; `None` is the hub itself.
    ///
    /// # Errors
    /// [`JournalError`] if the journal can't be read.
    pub async fn position_before_newest(
        &self,
        count: usize,
        until: u64,
        channels: &Channels,
        reader: Option<Network>,
    ) -> Result<u64, JournalError> {
        let before = either!(self, journal => journal.before_newest(count, until, channels, reader).await);
        if let Some(position) = before? {
            return Ok(position);
        }
        // A pattern is wide: back through the messages of all channels.
        let (mut left, mut end, mut position) = (count, until, until);
        loop {
            let range = self.begin().max((end + 1).saturating_sub(STEP as u64))..=end;
            if left == 0 || range.is_empty() {
                return Ok(position);
            }
            end = range.start() - 1;
            let found = either!(self, journal => journal.matching(range, channels, reader).await)?;
            let newest = &found.sequences[found.sequences.len().saturating_sub(left)..];
            position = newest.first().map_or(position, |first| first - 1);
            left -= newest.len();
        }
    }

    /// How many bytes of a file are written to erase the message at `sequence`, if it is kept. `reader` has
    /// the turn.
    ///
    /// # Errors
    /// [`JournalError`] if the journal can't be read.
    pub async fn erased_bytes(&self, sequence: u64, reader: Network) -> Result<usize, JournalError> {
        match self {
            Journal::Memory(_) => Ok(0),
            Journal::Sqlite(journal) => journal.data_bytes(sequence, reader).await,
        }
    }

    /// Goes by these rules from now on, as after a restart with them. Of an age that no rule had before, a
    /// message that was stored in this run has none yet.
    pub async fn set_rules(&self, rules: Rules) {
        either!(self, journal => journal.set_rules(rules).await);
    }

    /// The journal's failure, `None` as long as it works. Once there is one, the process must report it and
    /// stop.
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        either!(self, journal => journal.failure())
    }
}
