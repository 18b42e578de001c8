//! The journal in an SQLite file: no acknowledged message is lost when the process or the machine dies.
//!
//! One thread writes ([`writer`]): a batch is one transaction and one fsync, and is answered after them.
//! [`reader`]s have connections of their own and, in SQLite's WAL mode, don't hold up the writer. The
//! newest messages are also in memory, so that a subscriber only a little behind reads no file.

mod file;
mod gate;
mod pages;
mod reader;
mod row;
mod shared;
mod wal;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use tokio::sync::{oneshot, watch};

use super::committed::Announcer;
use super::entry::{Append, Appended, Failure, JournalError};
use super::keys::KeyLimits;
use super::page::{Channels, Page, PageLimit};
use super::recent::{Recent, RecentLimit, Retention};
use crate::limits::{Budget, Network};
use crate::message::Epoch;
use reader::Readers;
use shared::Shared;
use writer::{Job, Writer};

pub use file::OpenError;

/// The newest messages that are also in memory, of at most 16 MiB. Higher: more memory. Lower: a subscriber
/// that is only a little behind has to read the file.
const RECENT: RecentLimit = RecentLimit { messages: 4096, bytes: 16 << 20 };

/// A journal in a file. Dropping it waits for the writer to finish.
#[derive(Debug)]
pub struct Sqlite {
    epoch: Epoch,
    shared: Arc<Shared>,
    readers: Arc<Readers>,
    /// `None` once the writer has been asked to end.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

impl Sqlite {
    pub(super) fn open(
        path: &Path,
        retention: Retention,
        keys: KeyLimits,
        announcer: Announcer,
        budget: &Budget,
    ) -> Result<Self, OpenError> {
        let (opened, lock) = file::open(path)?;
        let epoch = opened.epoch;
        let limit = RecentLimit { messages: RECENT.messages.min(retention.messages), ..RECENT };
        let shared = Arc::new(Shared::new(Recent::new(limit, opened.head), opened.earliest));
        let readers = Readers::open(path, epoch, Arc::clone(&shared), lock, budget.clone());
        let readers = readers.map_err(OpenError::Sqlite)?;
        let writer = Writer::new(opened, Arc::clone(&shared), announcer, retention, keys);
        let writer = writer.map_err(OpenError::Sqlite)?;
        let (jobs, waiting) = mpsc::channel();
        let writer = std::thread::Builder::new()
            .name("journal".to_owned())
            .spawn(move || writer.run(&waiting))
            .map_err(OpenError::Io)?;
        Ok(Sqlite { epoch, shared, readers: Arc::new(readers), jobs: Some(jobs), writer: Some(writer) })
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) fn head(&self) -> u64 {
        self.shared.recent().head()
    }

    pub(super) fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.shared.failure()
    }

    pub(super) async fn append(&self, batch: Vec<Append>) -> Result<Vec<Appended>, JournalError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.jobs.as_ref().and_then(|jobs| jobs.send(Job { batch, answer }).ok());
        sent.ok_or(JournalError::Failed)?;
        answered.await.unwrap_or(Err(JournalError::Failed))
    }

    pub(super) async fn read(
        &self,
        position: u64,
        channels: &Channels,
        limit: PageLimit,
        reader: Option<Network>,
    ) -> Result<Page, JournalError> {
        {
            let recent = self.shared.recent();
            if position + 1 >= recent.earliest() {
                let page = recent.read(position, channels, limit);
                return Ok(Page { earliest: self.shared.earliest(), ..page });
            }
        }
        self.readers.page(position, channels, limit, reader).await
    }

    pub(super) async fn position_before_newest(
        &self,
        count: usize,
        channels: &Channels,
        reader: Option<Network>,
    ) -> Result<u64, JournalError> {
        {
            let recent = self.shared.recent();
            let mut newest = recent.newest(count);
            while recent.search(&mut newest, channels) {}
            if newest.left == 0 || recent.earliest() <= self.shared.earliest() {
                return Ok(newest.position);
            }
        }
        self.readers.position_before_newest(count, channels, reader).await
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // The writer has recorded its panic as the journal's failure.
            let _ = writer.join();
        }
    }
}
