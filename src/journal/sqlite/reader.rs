//! The readers: connections to the file beside the writer's, so that reads don't hold up appends.

use std::fs::File;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::Connection;

use super::fault::Fault;
use super::file;
use super::row::{self, channel};
use super::shared::{Shared, UNAVAILABLE};
use crate::journal::entry::{Entry, JournalError};
use crate::journal::epochs::Epochs;
use crate::journal::index::{Found, Index};
use crate::journal::page::{Channels, Page, PageBuilder, PageLimit};
use crate::limits::{Budget, Lease, Network, Turns};
use crate::message::ChannelName;

/// The most reads of the file at once. Higher: more pages in memory, and the disk is no faster. Lower: reads
/// wait for each other.
const READERS: usize = 4;

/// Messages to be read: those after `position` on some channels, or the first of them.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) position: u64,
    pub(super) found: Found,
    /// The sequence of the last message appended when they were looked up.
    pub(super) head: u64,
}

impl Wanted {
    /// The ranges of sequences to read: one, if at least half of what is in it is wanted.
    fn ranges(&self) -> Vec<[u64; 2]> {
        let sequences = &self.found.sequences;
        match sequences[..] {
            [first, .., last] if last - first < 2 * sequences.len() as u64 => vec![[first, last]],
            _ => sequences.iter().map(|sequence| [*sequence; 2]).collect(),
        }
    }
}

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
    /// Held while the index is completed.
    completing: tokio::sync::Mutex<()>,
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
        let completing = tokio::sync::Mutex::new(());
        Ok(Readers { epochs, shared, idle, turns, completing, budget, _lock: lock })
    }

    /// Reads as many of the wanted messages as `limit` allows, once it is the reader's turn.
    pub(super) async fn page(
        self: &Arc<Self>,
        wanted: Wanted,
        limit: PageLimit,
        reader: Option<Network>,
    ) -> Result<Page, JournalError> {
        if wanted.found.sequences.is_empty() {
            let page = PageBuilder::new(wanted.position.max(wanted.found.through), limit);
            return Ok(page.finish(wanted.head, self.shared.earliest()));
        }
        let wanted = Arc::new(wanted);
        let mut lease = None;
        loop {
            let wanted = Arc::clone(&wanted);
            let query =
                move |readers: &Readers, db: &Connection| readers.read_page(db, &wanted, limit, lease);
            match self.query(reader, query).await? {
                Read::Page(page) => return Ok(page),
                Read::Needs(bytes) => lease = Some(self.budget.lease(bytes).await),
            }
        }
    }

    /// Reads which messages are on which channel, of those that the index lacks: once, when somebody first
    /// falls behind the newest messages.
    pub(super) async fn complete_index(
        self: &Arc<Self>,
        reader: Option<Network>,
    ) -> Result<(), JournalError> {
        let _completing = self.completing.lock().await;
        let (from, earliest) = (self.shared.recent().index().from(), self.shared.earliest());
        if from <= earliest {
            return Ok(());
        }
        let earlier = self.query(reader, move |_, db| read_index(db, earliest, from)).await?;
        self.shared.recent_mut().index_mut().prepend(earlier);
        Ok(())
    }

    /// Those messages of this range that are on `channels`; up to `latest`, only the newest of each channel.
    /// Looks at every message, so a range is at most a [`step`](crate::journal::recent::step).
    pub(super) async fn matching(
        self: &Arc<Self>,
        range: RangeInclusive<u64>,
        channels: &Channels,
        latest: Option<u64>,
        reader: Option<Network>,
    ) -> Result<Found, JournalError> {
        let channels = channels.clone();
        let query = move |readers: &Readers, db: &Connection| {
            let mut found = Vec::new();
            for_each(db, &range, |name, sequence| {
                if channels.contains(&name) {
                    found.push((name, sequence));
                }
            })?;
            if let Some(latest) = latest {
                let recent = readers.shared.recent();
                found.retain(|(name, sequence)| recent.index().has_none(name, &(sequence + 1..=latest)));
            }
            let sequences = found.into_iter().map(|(_, sequence)| sequence).collect();
            Ok(Found { sequences, through: *range.end() })
        };
        self.query(reader, query).await
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
        wanted: &Wanted,
        limit: PageLimit,
        mut first: Option<Lease>,
    ) -> rusqlite::Result<Read> {
        let mut page = PageBuilder::new(wanted.position, limit);
        let mut select = db.prepare_cached(
            "SELECT sequence, channel, event, data, time_ms, \"except\", octet_length(data) FROM entries
             WHERE sequence BETWEEN ?1 AND ?2 AND data IS NOT NULL ORDER BY sequence",
        )?;
        let mut is_complete = true;
        let mut left = wanted.found.sequences.iter().copied().peekable();
        'ranges: for range in wanted.ranges() {
            let mut rows = select.query(range)?;
            while let Some(row) = rows.next()? {
                let sequence: u64 = row.get(0)?;
                // Retention raises `earliest` before it deletes a row, and it is loaded after the rows.
                while left.next_if(|next| *next < sequence && *next < self.shared.earliest()).is_some() {}
                match left.peek() {
                    Some(next) if *next < sequence => return Err(row::out_of_order()),
                    Some(next) if *next == sequence => {}
                    _ => continue,
                }
                // The data is read only once there is memory for it.
                let channel = channel(row, 1)?;
                let names = channel.as_str().len() + row.get_ref(2)?.as_str()?.len();
                let data: usize = row.get(6)?;
                if !page.can_take(Entry::least_weight(names, data)) {
                    is_complete = false;
                    break 'ranges;
                }
                // Half of the budget always comes back soon; the other half may be kept for long.
                let most = Entry::most_weight(names, data).min(self.budget.total() / 2);
                let enough = first.take().filter(|lease| lease.bytes() >= most);
                let Some(lease) = enough.or_else(|| self.budget.try_lease(most)) else {
                    if page.is_empty() {
                        return Ok(Read::Needs(most));
                    }
                    is_complete = false;
                    break 'ranges;
                };
                left.next();
                let id = self.epochs.id(sequence);
                page.add(sequence, Arc::new(row::entry(row, id, channel)?.leased(lease)));
            }
        }
        if is_complete && left.any(|next| next >= self.shared.earliest()) {
            return Err(row::out_of_order());
        }
        if is_complete {
            page.reached(wanted.found.through);
        }
        // `earliest` is loaded after the rows: retention may have deleted some of them during the query.
        Ok(Read::Page(page.finish(wanted.head, self.shared.earliest())))
    }
}

fn connections(path: &Path) -> rusqlite::Result<Vec<Connection>> {
    (0..READERS).map(|_| file::connect(path)).collect()
}

/// Reads which messages are on which channel, from one sequence on and up to another.
fn read_index(db: &Connection, from: u64, until: u64) -> rusqlite::Result<Index> {
    let mut index = Index::new(from);
    for_each(db, &(from..=until - 1), |name, sequence| index.push(&name, sequence))?;
    Ok(index)
}

/// Reads the channel and the sequence of each message in this range.
fn for_each(
    db: &Connection,
    range: &RangeInclusive<u64>,
    mut act: impl FnMut(ChannelName, u64),
) -> rusqlite::Result<()> {
    let mut select = db.prepare_cached(
        "SELECT sequence, channel FROM entries
         WHERE sequence BETWEEN ?1 AND ?2 AND data IS NOT NULL ORDER BY sequence",
    )?;
    let mut rows = select.query([range.start(), range.end()])?;
    let mut last = None;
    while let Some(row) = rows.next()? {
        let sequence: u64 = row.get(0)?;
        if last.replace(sequence).is_some_and(|last| last + 1 != sequence) {
            return Err(row::out_of_order());
        }
        act(channel(row, 1)?, sequence);
    }
    // The first ones may have been dropped meanwhile, the last one not without all others.
    if last.is_some_and(|last| last != *range.end()) { Err(row::out_of_order()) } else { Ok(()) }
}
