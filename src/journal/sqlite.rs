//! The journal in an SQLite file: no acknowledged message is lost when the process or the machine dies.
//!
//! One thread writes ([`writer`]): a batch is one transaction and one fsync, and is answered after them.
//! [`reader`]s have connections of their own and, in SQLite's WAL mode, don't hold up the writer. The
//! newest messages are also in memory, so that a subscriber only a little behind reads no file.

mod ages;
mod check;
mod copy;
mod fault;
mod file;
mod gate;
mod link;
mod open;
mod pages;
mod place;
mod reader;
mod row;
mod schema;
mod shared;
mod sweep;
mod verify;
mod wal;
mod writer;

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tokio::sync::{oneshot, watch};

use super::clock::{Clock, Steady};
use super::committed::Announcer;
use super::entry::{Append, Appended, Failure, JournalError};
use super::epochs::Epochs;
use super::index::Found;
use super::keys::KeyLimits;
use super::page::{Channels, Page, PageLimit};
use super::recent::{Earliest, Recent, RecentLimit, Retention};
use super::rules::Rules;
use crate::limits::{Budget, Network};
use reader::{Readers, Wanted};
use schema::State;
use shared::Shared;
use writer::{Job, Writer};

pub use copy::{CopyError, copy};
pub use file::OpenError;
pub(super) use file::beside;
pub use verify::{Report, verify};

/// The newest messages that are also in memory, of at most 16 MiB. Higher: more memory. Lower: a subscriber
/// that is only a little behind has to read the file.
const RECENT: RecentLimit = RecentLimit { messages: 4096, bytes: 16 << 20 };

/// A journal in a file. Dropping it waits for the writer to finish.
#[derive(Debug)]
pub struct Sqlite {
    epochs: Arc<Epochs>,
    shared: Arc<Shared>,
    readers: Arc<Readers>,
    /// `None` once the writer has been asked to end.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<Option<Connection>>>,
}

impl Sqlite {
    pub(super) fn open(
        path: &Path,
        retention: Retention,
        keys: KeyLimits,
        announcer: Announcer,
        budget: &Budget,
    ) -> Result<Self, OpenError> {
        let (mut opened, lock) = open::open(path)?;
        let State { head, begin, latest, earliest, .. } = opened.state;
        let has_holes = earliest.is_some();
        let mut earliest = earliest.unwrap_or(Earliest { others: begin, protected: begin });
        if has_holes && opened.state.protected != retention.rules.protected() {
            // What was dropped of channels that have a share now is a gap for their readers.
            earliest.protected = earliest.others;
            schema::store_retention(&opened.db, earliest, &retention.rules)?;
        }
        let epochs = Arc::new(Epochs::begin(std::mem::take(&mut opened.state.epochs), head));
        let limit = RecentLimit { messages: RECENT.messages.min(retention.messages), ..RECENT };
        let clock = Steady::begin(Clock::System, latest);
        let recent = Recent::of_file(limit, retention.rules.clone(), (begin, head), earliest, clock);
        let shared = Arc::new(Shared::new(recent, has_holes));
        let readers =
            Readers::open(&opened.path, Arc::clone(&epochs), Arc::clone(&shared), lock, budget.clone())?;
        let readers = Arc::new(readers);
        let writer = Writer::new(opened, Arc::clone(&readers), announcer, retention, keys, Clock::System)?;
        let (jobs, waiting) = mpsc::channel();
        let writer = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&waiting))
            .map_err(OpenError::Io)?;
        Ok(Sqlite { epochs, shared, readers, jobs: Some(jobs), writer: Some(writer) })
    }

    pub(super) fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    pub(super) fn head(&self) -> u64 {
        self.shared.recent().head()
    }

    pub(super) fn begin(&self) -> u64 {
        self.shared.recent().begin()
    }

    pub(super) fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.shared.failure()
    }

    /// Goes by these rules, after what waits to be appended.
    pub(super) async fn set_rules(&self, rules: Rules) {
        let (answer, answered) = oneshot::channel();
        // Either fails only if the journal has failed.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send(Job::Rules { rules, answer }));
        let _ = answered.await;
    }

    pub(super) async fn append(&self, batch: Vec<Append>) -> Result<Vec<Appended>, JournalError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.jobs.as_ref().and_then(|jobs| jobs.send(Job::Append { batch, answer }).ok());
        sent.ok_or(JournalError::Failed)?;
        answered.await.unwrap_or(Err(JournalError::Failed))
    }

    pub(super) async fn read(
        &self,
        position: u64,
        channels: &Channels,
        latest: Option<u64>,
        limit: PageLimit,
        reader: Option<Network>,
    ) -> Result<Page, JournalError> {
        loop {
            if let Some(page) = self.read_held(position, channels, latest, limit) {
                return Ok(page);
            }
            let wanted = {
                let recent = self.shared.recent();
                let range = position.max(recent.begin() - 1) + 1..=latest.unwrap_or(recent.head());
                let is_indexed = recent.index().from() <= *range.start();
                let found = || recent.index().first(limit.messages, &range, channels, latest.is_some());
                is_indexed.then(|| (found(), range.clone(), recent.head()))
            };
            let Some((found, range, head)) = wanted else {
                self.readers.complete_index(reader).await?;
                continue;
            };
            let found = match found {
                Some(found) => found,
                None => self.readers.matching(range, channels, latest, reader).await?,
            };
            let wanted = Wanted { position, channels: channels.clone(), found, head };
            return self.readers.page(wanted, limit, reader).await;
        }
    }

    pub(super) fn read_held(
        &self,
        position: u64,
        channels: &Channels,
        latest: Option<u64>,
        limit: PageLimit,
    ) -> Option<Page> {
        let recent = self.shared.unexpired();
        let range = position.max(recent.begin() - 1) + 1..=latest.unwrap_or(recent.head());
        let is_held = *range.start() >= recent.held_from()
            || recent.index().from() <= *range.start() && {
                let found = recent.index().first(1, &range, channels, latest.is_some());
                found.is_some_and(|found| {
                    found.sequences.first().is_none_or(|first| *first >= recent.held_from())
                })
            };
        is_held.then(|| recent.read(position, channels, latest, limit))
    }

    pub(super) async fn before_newest(
        &self,
        count: usize,
        until: u64,
        channels: &Channels,
        reader: Option<Network>,
    ) -> Result<Option<u64>, JournalError> {
        loop {
            {
                let recent = self.shared.unexpired();
                let begin = recent.begin();
                let before = recent.index().before_newest(count, &(begin..=until), channels);
                let is_all = |found| found == count || recent.index().from() <= begin;
                if before.is_none_or(|(_, found)| is_all(found)) {
                    return Ok(before.map(|(position, _)| position));
                }
            }
            self.readers.complete_index(reader).await?;
        }
    }

    pub(super) async fn matching(
        &self,
        range: RangeInclusive<u64>,
        channels: &Channels,
        reader: Option<Network>,
    ) -> Result<Found, JournalError> {
        {
            let recent = self.shared.unexpired();
            if *range.start() >= recent.held_from() {
                return Ok(recent.matching(&range, channels, None));
            }
        }
        self.readers.complete_index(reader).await?;
        self.readers.matching(range, channels, None, reader).await
    }

    pub(super) async fn data_bytes(&self, sequence: u64, reader: Network) -> Result<usize, JournalError> {
        self.readers.data_bytes(sequence, reader).await
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.jobs = None;
        // The writer has recorded its panic as the journal's failure.
        let last = self.writer.take().and_then(|writer| writer.join().ok().flatten());
        let Some(db) = last else { return };
        // Only the last connection to be closed deletes the WAL.
        let _closed = self.shared.gate().close(wal::BUSY_TIMEOUT);
        self.readers.close();
        let _ = db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
    }
}
