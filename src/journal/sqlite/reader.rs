//! The readers: connections to the file beside the writer's, so that reads don't hold up appends.

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::fault::Fault;
use super::file;
use super::row::{self, channel};
use super::shared::{Shared, UNAVAILABLE};
use crate::journal::entry::{Entry, JournalError};
use crate::journal::epochs::Epochs;
use crate::journal::page::{Channels, Page, PageBuilder, PageLimit};
use crate::limits::{Budget, Lease, Network, Turns};

/// The most reads of the file at once. Higher: more pages in memory, and the disk is no faster. Lower: reads
/// wait for each other.
const READERS: usize = 4;

/// The result of one query for a page.
enum Read {
    Page(Page),
    /// The first message needs this many bytes of the budget, and they are not free.
    Needs(usize),
}

/// The connections that read the file.
#[derive(Debug)]
pub(super) struct Readers {
    pub(super) epochs: Arc<Epochs>,
    pub(super) shared: Arc<Shared>,
    /// The connections not in use: one for each turn that is free.
    idle: Mutex<Vec<Connection>>,
    turns: Turns,
    /// The memory of what is read.
    budget: Budget,
    /// The lock on the file. It must be dropped after all connections, so it is the last field: when a
    /// process closes any descriptor of a file, it loses the POSIX locks that SQLite holds on that file.
    _lock: File,
}

impl Readers {
    /// Opens all connections. Later the process may be out of descriptors, or `path` may be another file.
    pub(super) fn open(
        path: &Path,
        epochs: Arc<Epochs>,
        shared: Arc<Shared>,
        lock: File,
        budget: Budget,
    ) -> rusqlite::Result<Self> {
        let (idle, turns) = (Mutex::new(connections(path)?), Turns::new(READERS));
        Ok(Readers { epochs, shared, idle, turns, budget, _lock: lock })
    }

    /// See [`Journal::read`](crate::journal::Journal::read).
    pub(super) async fn page(
        self: &Arc<Self>,
        position: u64,
        channels: &Channels,
        limit: PageLimit,
        reader: Option<Network>,
    ) -> Result<Page, JournalError> {
        let mut lease = None;
        loop {
            let channels = channels.clone();
            let query = move |readers: &Readers, db: &Connection| {
                readers.read_page(db, position, &channels, limit, lease)
            };
            match self.query(reader, query).await? {
                Read::Page(page) => return Ok(page),
                Read::Needs(bytes) => lease = Some(self.budget.lease(bytes).await),
            }
        }
    }

    /// See [`Journal::position_before_newest`](crate::journal::Journal::position_before_newest).
    pub(super) async fn position_before_newest(
        self: &Arc<Self>,
        count: usize,
        channels: &Channels,
        reader: Option<Network>,
    ) -> Result<u64, JournalError> {
        let channels = channels.clone();
        self.query(reader, move |readers, db| readers.read_position(db, count, &channels)).await
    }

    /// Runs `query` on a blocking thread, with a connection of its own, once it is the reader's turn. If the
    /// query fails, the journal has failed, unless another program has the file.
    async fn query<T: Send + 'static>(
        self: &Arc<Self>,
        reader: Option<Network>,
        query: impl FnOnce(&Readers, &Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, JournalError> {
        let turn = self.turns.take(reader).await;
        let readers = Arc::clone(self);
        let result = tokio::task::spawn_blocking(move || {
            // Moved in here: the query goes on even if the caller stops waiting.
            let _turn = turn;
            let _inside = readers.shared.gate().enter();
            // There is one for each turn, unless another program keeps the file from being opened anew.
            let db = readers.idle().pop().ok_or(None)?;
            let result = query(&readers, &db).map_err(|error| Some(Fault::from(error)));
            readers.idle().push(db);
            result
        });
        match result.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(None)) => Err(UNAVAILABLE),
            Ok(Err(Some(fault))) if fault.is_busy() => {
                tracing::error!(error = %fault, "another program keeps the journal from being read");
                Err(UNAVAILABLE)
            }
            Ok(Err(Some(fault))) if fault.is_passing() => {
                tracing::error!(error = %fault, "there is no space, or no memory, to read the journal");
                Err(UNAVAILABLE)
            }
            Ok(Err(Some(fault))) => Err(self.shared.fail(format!("can't read the journal: {fault}"))),
            Err(panic) => Err(self.shared.fail(format!("can't read the journal: {panic}"))),
        }
    }

    /// Closes the connections, and opens them anew once `writer` has opened the writer's. No query may run.
    pub(super) fn open_anew(
        &self,
        path: &Path,
        writer: impl FnOnce() -> rusqlite::Result<()>,
    ) -> rusqlite::Result<()> {
        self.close();
        writer()?;
        *self.idle() = connections(path)?;
        Ok(())
    }

    /// Closes the connections. No query may run.
    pub(super) fn close(&self) {
        self.idle().clear();
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a page. `first` is the lease for its first message, if it was read before and needs one.
    fn read_page(
        &self,
        db: &Connection,
        position: u64,
        channels: &Channels,
        limit: PageLimit,
        mut first: Option<Lease>,
    ) -> rusqlite::Result<Read> {
        // Loaded before the query, so that the query sees every message up to `head`. Messages after `head`
        // are left out: they may be committed, but are not acknowledged yet.
        let head = self.shared.recent().head();
        let mut page = PageBuilder::new(position, limit);
        let mut select = db.prepare_cached(
            "SELECT sequence, channel, event, data, time_ms, \"except\", octet_length(data) FROM entries
             WHERE sequence > ?1 AND sequence >= ?2 AND sequence <= ?3 AND data IS NOT NULL
             ORDER BY sequence",
        )?;
        let mut rows = select.query([position, self.shared.earliest(), head])?;
        let mut last = None;
        let complete = loop {
            let Some(row) = rows.next()? else {
                // The last message is always kept.
                if last.is_some_and(|last| last != head) {
                    return Err(row::out_of_order());
                }
                break true;
            };
            let id = self.epochs.id(row.get(0)?);
            if last.replace(id.sequence).is_some_and(|last| last + 1 != id.sequence) {
                return Err(row::out_of_order());
            }
            let channel = channel(row, 1)?;
            if !channels.contains(&channel) {
                if !page.can_take(0) {
                    break false;
                }
                page.add(id.sequence, None);
                continue;
            }
            // The data is read only once there is memory for it.
            let names = channel.as_str().len() + row.get_ref(2)?.as_str()?.len();
            let data: usize = row.get(6)?;
            if !page.can_take(Entry::least_weight(names, data)) {
                break false;
            }
            // Half of the budget always comes back soon; the other half may be kept for long.
            let most = Entry::most_weight(names, data).min(self.budget.total() / 2);
            let enough = first.take().filter(|lease| lease.bytes() >= most);
            let Some(lease) = enough.or_else(|| self.budget.try_lease(most)) else {
                if page.is_empty() {
                    return Ok(Read::Needs(most));
                }
                break false;
            };
            page.add(id.sequence, Some(Arc::new(row::entry(row, id, channel)?.leased(lease))));
        };
        if complete {
            page.reached(head);
        }
        // `earliest` is loaded after the rows: retention may have deleted some of them during the query.
        Ok(Read::Page(page.finish(head, self.shared.earliest())))
    }

    fn read_position(&self, db: &Connection, count: usize, channels: &Channels) -> rusqlite::Result<u64> {
        // As in `read_page`, later messages are left out.
        let head = self.shared.recent().head();
        let mut position = head;
        let mut select = db.prepare_cached(
            "SELECT sequence, channel FROM entries
             WHERE sequence >= ?1 AND sequence <= ?2 AND data IS NOT NULL ORDER BY sequence DESC",
        )?;
        let mut rows = select.query([self.shared.earliest(), head])?;
        let (mut left, mut last) = (count, head + 1);
        while left > 0
            && let Some(row) = rows.next()?
        {
            if row.get::<_, u64>(0)? + 1 != last {
                return Err(row::out_of_order());
            }
            last -= 1;
            if channels.contains(&channel(row, 1)?) {
                position = last - 1;
                left -= 1;
            }
        }
        Ok(position)
    }
}

fn connections(path: &Path) -> rusqlite::Result<Vec<Connection>> {
    (0..READERS).map(|_| file::connect(path)).collect()
}
