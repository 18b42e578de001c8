//! The readers: connections to the file beside the writer's, so that reads don't hold up appends.

use std::fs::File;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, params};

use super::fault::Fault;
use super::file;
use super::row::{self, channel};
use super::shared::{Shared, UNAVAILABLE};
use crate::journal::entry::{Entry, JournalError};
use crate::journal::epochs::Epochs;
use crate::journal::index::{Found, Index};
use crate::journal::page::{Channels, Page, PageBuilder, PageLimit};
use crate::journal::recent::STEP;
use crate::limits::{Budget, Lease, Network, Turns};
use crate::message::Time;

/// The most reads of the file at once. Higher: more pages in memory, and the disk is no faster. Lower: reads
/// wait for each other.
const READERS: usize = 4;

/// Messages to be read: those after `position` on some channels, or the first of them.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) position: u64,
    pub(super) channels: Channels,
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
            let recent = self.shared.recent();
            return Ok(page.finish(wanted.head, recent.begin(), recent.earliest(&wanted.channels)));
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
        let (begin, until, rules, now) = {
            let recent = self.shared.recent();
            (recent.begin(), recent.index().from(), recent.index().rules().clone(), recent.now())
        };
        if until <= begin {
            return Ok(());
        }
        let read = move |readers: &Readers, db: &Connection| {
            let mut earlier = Index::new(begin, rules);
            let rows = read_index(db, &mut earlier, begin..until, usize::MAX, now)?;
            // The first ones may have been dropped meanwhile, the last one not without all others.
            let is_whole = rows.count == 0 || rows.are_consecutive && rows.last + 1 == until;
            if is_whole || readers.shared.has_holes() { Ok(earlier) } else { Err(row::out_of_order()) }
        };
        let earlier = self.query(reader, read).await?;
        self.shared.recent_mut().complete_index(earlier, until);
        Ok(())
    }

    /// The first messages of this range that are on `channels`; up to `latest`, only the newest of each
    /// channel. Looks at every message, at most [`STEP`] of them. The index must be complete.
    pub(super) async fn matching(
        self: &Arc<Self>,
        range: RangeInclusive<u64>,
        channels: &Channels,
        latest: Option<u64>,
        reader: Option<Network>,
    ) -> Result<Found, JournalError> {
        let channels = channels.clone();
        let query = move |readers: &Readers, db: &Connection| {
            let mut select = db.prepare_cached(
                "SELECT sequence, channel FROM entries
                 WHERE sequence BETWEEN ?1 AND ?2 AND data IS NOT NULL ORDER BY sequence LIMIT ?3",
            )?;
            let rows = select.query_map(params![range.start(), range.end(), STEP], |row| {
                Ok((row.get(0)?, row::channel(row, 1)?))
            })?;
            let rows: Vec<(u64, _)> = rows.collect::<rusqlite::Result<_>>()?;
            let last = rows.get(STEP - 1).map(|(last, _)| *last);
            let recent = readers.shared.recent();
            let is_asked_for = |(sequence, name): &(u64, _)| {
                let is_newest = |latest| recent.index().has_none(name, &(sequence + 1..=latest));
                // A row may be that of a message which was dropped.
                channels.contains(name)
                    && recent.index().contains(name, *sequence)
                    && latest.is_none_or(is_newest)
            };
            let sequences = rows.iter().filter(|row| is_asked_for(row)).map(|(sequence, _)| *sequence);
            Ok(Found { sequences: sequences.collect(), through: last.unwrap_or(*range.end()) })
        };
        self.query(reader, query).await
    }

    /// The bytes of the data of the message at `sequence`; 0 if there is none.
    pub(super) async fn data_bytes(
        self: &Arc<Self>,
        sequence: u64,
        reader: Network,
    ) -> Result<usize, JournalError> {
        // No sequence beyond the head: one may be greater than SQLite's numbers.
        let sequence = sequence.min(self.shared.recent().head());
        let query = move |_: &Readers, db: &Connection| {
            let mut select =
                db.prepare_cached("SELECT ifnull(octet_length(data), 0) FROM entries WHERE sequence = ?1")?;
            Ok(select.query_row([sequence], |row| row.get(0)).optional()?.unwrap_or(0))
        };
        self.query(Some(reader), query).await
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
            "SELECT sequence, channel, event, data, time_ms, \"except\", expires_ms, octet_length(data)
             FROM entries WHERE sequence BETWEEN ?1 AND ?2 AND data IS NOT NULL ORDER BY sequence",
        )?;
        let mut is_cut = false;
        // A message that was dropped since it was looked up: then its row may be deleted.
        let is_dropped = |sequence| self.shared.has_holes() || sequence < self.shared.recent().begin();
        let mut left = wanted.found.sequences.iter().copied().peekable();
        'ranges: for range in wanted.ranges() {
            let mut rows = select.query(range)?;
            while let Some(row) = rows.next()? {
                let sequence: u64 = row.get(0)?;
                while left.next_if(|next| *next < sequence && is_dropped(*next)).is_some() {}
                match left.peek() {
                    Some(next) if *next < sequence => return Err(row::out_of_order()),
                    Some(next) if *next == sequence => {}
                    _ => continue,
                }
                // The data is read only once there is memory for it.
                let channel = channel(row, 1)?;
                let names = channel.as_str().len() + row.get_ref(2)?.as_str()?.len();
                let data: usize = row.get(7)?;
                if !page.can_take(Entry::least_weight(names, data)) {
                    is_cut = true;
                    break 'ranges;
                }
                // Half of the budget always comes back soon; the other half may be kept for long.
                let most = Entry::most_weight(names, data).min(self.budget.total() / 2);
                let enough = first.take().filter(|lease| lease.bytes() >= most);
                let Some(lease) = enough.or_else(|| self.budget.try_lease(most)) else {
                    if page.is_empty() {
                        return Ok(Read::Needs(most));
                    }
                    is_cut = true;
                    break 'ranges;
                };
                left.next();
                let id = self.epochs.id(sequence);
                page.add(sequence, Arc::new(row::entry(row, id, channel)?.leased(lease)));
            }
        }
        if !is_cut {
            if left.any(|next| !is_dropped(next)) {
                return Err(row::out_of_order());
            }
            page.reached(wanted.found.through);
        }
        // `earliest` is loaded after the rows: retention may have deleted some of them during the query.
        let recent = self.shared.recent();
        Ok(Read::Page(page.finish(wanted.head, recent.begin(), recent.earliest(&wanted.channels))))
    }
}

fn connections(path: &Path) -> rusqlite::Result<Vec<Connection>> {
    (0..READERS).map(|_| file::connect(path)).collect()
}

/// The rows that were read for an index.
pub(super) struct Rows {
    pub(super) last: u64,
    pub(super) count: u64,
    pub(super) are_consecutive: bool,
}

/// Reads which messages are on which channel, at most so many of those in the range. What has expired `now`
/// is passed over: it is none of those that a rule keeps.
pub(super) fn read_index(
    db: &Connection,
    index: &mut Index,
    range: Range<u64>,
    most: usize,
    now: Time,
) -> rusqlite::Result<Rows> {
    let mut select = db.prepare_cached(
        "SELECT sequence, channel, expires_ms FROM entries
         WHERE sequence >= ?1 AND sequence < ?2 AND data IS NOT NULL ORDER BY sequence LIMIT ?3",
    )?;
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let mut rows = select.query(params![range.start, range.end, most])?;
    let mut read = Rows { last: 0, count: 0, are_consecutive: true };
    while let Some(row) = rows.next()? {
        let sequence = row.get(0)?;
        read.are_consecutive &= read.count == 0 || read.last + 1 == sequence;
        (read.last, read.count) = (sequence, read.count + 1);
        match row::time(row, 2)? {
            Some(expires) if expires <= now => index.pass_over(read.last),
            expires => index.push(&channel(row, 1)?, read.last, expires),
        }
    }
    Ok(read)
}
