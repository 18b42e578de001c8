//! The journal in an SQLite file: nothing acknowledged is lost, whatever dies.
//!
//! One thread writes ([`writer`]): all appends that wait go in one transaction and one fsync, and
//! are answered after it. Readers have connections of their own (WAL) and hold up nobody. The
//! newest messages are in memory as well, so that a subscriber only a little behind reads no disk.

mod file;
mod writer;

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread::JoinHandle;

use rusqlite::{Connection, Row};
use tokio::sync::{Semaphore, oneshot, watch};

use super::tail::{PageBuilder, Tail, TailLimit};
use super::{Append, AppendError, Appended, Channels, Entry, Failed, KeyLimits, Page, PageLimit, Retention};
use crate::message::{ChannelName, Data, Epoch, EventName, Message, MessageId, SubscriberId, Time};

pub use file::OpenError;

/// How much of the newest is in memory, at most. It is what live delivery and short lags are
/// served from; a subscriber further behind reads the file.
const TAIL: TailLimit = TailLimit { messages: 4096, bytes: 16 << 20 };

/// Reads of the file at once. More would not make the disk faster, and each holds a page.
const READERS: usize = 4;

/// The journal. Dropping it waits for the writer to finish.
#[derive(Debug)]
pub struct Sqlite {
    epoch: Epoch,
    shared: Arc<Shared>,
    readers: Arc<Readers>,
    /// `None` once the writer is told to end.
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<JoinHandle<()>>,
}

/// A batch to commit.
#[derive(Debug)]
struct Job {
    batch: Vec<Append>,
    answer: oneshot::Sender<Result<Vec<Appended>, AppendError>>,
}

/// What the writer tells the readers.
#[derive(Debug)]
struct Shared {
    tail: RwLock<Tail>,
    /// The sequence of the earliest message that is kept; `head + 1` if none is. Goes up before
    /// anything is deleted: who reads it after a query knows whether that query may lack messages.
    earliest: AtomicU64,
    failure: watch::Sender<Option<String>>,
}

impl Shared {
    fn tail(&self) -> RwLockReadGuard<'_, Tail> {
        self.tail.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn tail_mut(&self) -> RwLockWriteGuard<'_, Tail> {
        self.tail.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn earliest(&self) -> u64 {
        self.earliest.load(Ordering::Acquire)
    }

    /// Says once, and for good, that the journal is of no more use.
    fn fail(&self, what: String) -> Failed {
        self.failure.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                *failure = Some(what);
            }
            first
        });
        Failed
    }
}

impl Sqlite {
    pub(super) fn open(path: &Path, retention: Retention, keys: KeyLimits) -> Result<Self, OpenError> {
        let (opened, lock) = file::open(path)?;
        let tail =
            Tail::new(TailLimit { messages: TAIL.messages.min(retention.messages), ..TAIL }, opened.head);
        let shared = Arc::new(Shared {
            tail: RwLock::new(tail),
            earliest: AtomicU64::new(opened.earliest),
            failure: watch::Sender::new(None),
        });
        let epoch = opened.epoch;
        // All at once: later, a hub out of descriptors could not read, or the path may lead elsewhere.
        let idle: rusqlite::Result<_> = (0..READERS).map(|_| file::connect(path)).collect();
        let idle = Mutex::new(idle.map_err(OpenError::Sqlite)?);
        let readers = Readers { epoch, idle, slots: Arc::new(Semaphore::new(READERS)), _lock: lock };
        let (jobs, waiting) = mpsc::channel();
        let writer = writer::Writer::new(opened, Arc::clone(&shared), retention, keys);
        let writer =
            std::thread::Builder::new().name("journal".to_owned()).spawn(move || writer.run(&waiting));
        let writer = writer.map_err(OpenError::Io)?;
        Ok(Sqlite { epoch, shared, readers: Arc::new(readers), jobs: Some(jobs), writer: Some(writer) })
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) fn head(&self) -> u64 {
        self.shared.tail().head()
    }

    pub(super) async fn failure(&self) -> String {
        let mut failure = self.shared.failure.subscribe();
        match failure.wait_for(Option::is_some).await {
            Ok(what) => what.clone().unwrap_or_default(),
            // Not while `shared`, which is the sender, is borrowed.
            Err(_) => std::future::pending().await,
        }
    }

    pub(super) async fn append(&self, batch: Vec<Append>) -> Result<Vec<Appended>, AppendError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.jobs.as_ref().and_then(|jobs| jobs.send(Job { batch, answer }).ok());
        sent.ok_or(Failed)?;
        answered.await.unwrap_or(Err(Failed.into()))
    }

    pub(super) async fn read(
        &self,
        position: u64,
        channels: &Channels,
        limit: PageLimit,
    ) -> Result<Page, Failed> {
        {
            let tail = self.shared.tail();
            if position + 1 >= tail.earliest() {
                let page = tail.read(position, channels, limit);
                return Ok(Page { earliest: self.shared.earliest(), ..page });
            }
        }
        let channels = channels.clone();
        self.query(move |readers, db, shared| readers.page(db, shared, position, &channels, limit)).await
    }

    pub(super) async fn position_before_newest(
        &self,
        count: usize,
        channels: &Channels,
    ) -> Result<u64, Failed> {
        {
            let tail = self.shared.tail();
            let (position, found) = tail.position_before_newest(count, channels);
            if found == count || tail.earliest() <= self.shared.earliest() {
                return Ok(position);
            }
        }
        let channels = channels.clone();
        self.query(move |_, db, shared| position_before_newest(db, shared, count, &channels)).await
    }

    /// Runs a query off the runtime, on a connection of its own. If it fails, so has the journal.
    async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Readers, &Connection, &Shared) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failed> {
        let slots = Arc::clone(&self.readers.slots);
        let slot = slots.acquire_owned().await.expect("the semaphore is never closed");
        let (readers, shared) = (Arc::clone(&self.readers), Arc::clone(&self.shared));
        let result = tokio::task::spawn_blocking(move || {
            // Held by the query, which goes on when nobody waits for it any more.
            let _slot = slot;
            let db = readers.idle().pop().expect("there is a connection for each slot");
            let result = query(&readers, &db, &shared);
            readers.idle().push(db);
            let result = result?;
            Ok::<_, rusqlite::Error>(result)
        });
        match result.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(self.shared.fail(format!("can't read the journal: {error}"))),
            Err(panic) => Err(self.shared.fail(format!("can't read the journal: {panic}"))),
        }
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            // A panic there has been told as a failure.
            let _ = writer.join();
        }
    }
}

/// The connections that read.
#[derive(Debug)]
struct Readers {
    epoch: Epoch,
    /// One for each slot that is not taken.
    idle: Mutex<Vec<Connection>>,
    slots: Arc<Semaphore>,
    /// The last to be dropped, and the readers are the last to have the file open: closing any
    /// descriptor of it ends the locks that SQLite holds on it in this process.
    _lock: File,
}

impl Readers {
    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(
        &self,
        db: &Connection,
        shared: &Shared,
        position: u64,
        channels: &Channels,
        limit: PageLimit,
    ) -> rusqlite::Result<Page> {
        // Taken before the query, which then sees every message up to it; one after it is committed, but
        // not acknowledged yet.
        let head = shared.tail().head();
        let mut page = PageBuilder::new(position, limit);
        let mut select = db.prepare_cached(
            "SELECT sequence, channel, event, data, time_ms, \"except\" FROM messages
             WHERE sequence > ?1 AND sequence >= ?2 AND sequence <= ?3 AND data IS NOT NULL ORDER BY sequence",
        )?;
        let mut rows = select.query([position, shared.earliest(), head])?;
        let complete = loop {
            let Some(row) = rows.next()? else { break true };
            let sequence: u64 = row.get(0)?;
            let channel = channel(row, 1)?;
            let entry =
                channels.contains(&channel).then(|| self.entry(row, sequence, channel)).transpose()?;
            if !page.take(sequence, entry.map(Arc::new)) {
                break false;
            }
        };
        if complete {
            page.reached(head);
        }
        Ok(page.finish(head, shared.earliest()))
    }

    fn entry(&self, row: &Row<'_>, sequence: u64, channel: ChannelName) -> rusqlite::Result<Entry> {
        Ok(Entry::new(Message {
            id: MessageId { epoch: self.epoch, sequence },
            channel,
            event: event(row, 2)?,
            data: Data::kept(row.get(3)?).map_err(|error| damaged(3, error))?,
            time: Time::from_ms(row.get(4)?),
            except: match row.get_ref(5)?.as_str_or_null().map_err(|error| damaged(5, error))? {
                Some(text) => Some(SubscriberId::parse(text).map_err(|error| damaged(5, error))?),
                None => None,
            },
        }))
    }
}

fn position_before_newest(
    db: &Connection,
    shared: &Shared,
    count: usize,
    channels: &Channels,
) -> rusqlite::Result<u64> {
    let mut position = shared.tail().head();
    let mut select = db.prepare_cached(
        "SELECT sequence, channel FROM messages WHERE sequence >= ?1 AND data IS NOT NULL ORDER BY sequence DESC",
    )?;
    let mut rows = select.query([shared.earliest()])?;
    let mut left = count;
    while left > 0
        && let Some(row) = rows.next()?
    {
        if channels.contains(&channel(row, 1)?) {
            position = row.get::<_, u64>(0)? - 1;
            left -= 1;
        }
    }
    Ok(position)
}

fn channel(row: &Row<'_>, column: usize) -> rusqlite::Result<ChannelName> {
    ChannelName::parse(row.get_ref(column)?.as_str()?, usize::MAX).map_err(|error| damaged(column, error))
}

fn event(row: &Row<'_>, column: usize) -> rusqlite::Result<EventName> {
    EventName::parse(row.get_ref(column)?.as_str()?, usize::MAX).map_err(|error| damaged(column, error))
}

/// The column holds what the journal never wrote.
fn damaged(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}
