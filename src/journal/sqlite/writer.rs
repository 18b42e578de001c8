//! The writer: the thread that appends to the file, and deletes the messages that retention drops.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Row, TransactionBehavior, params};
use tokio::sync::oneshot;

use super::file::Opened;
use super::pages::Pages;
use super::row;
use super::shared::{Shared, UNAVAILABLE, is_busy, is_full, is_out_of_memory};
use super::wal::Wal;
use crate::journal::committed::Announcer;
use crate::journal::entry::{Append, Appended, Batch, Entry, JournalError};
use crate::journal::keys::KeyLimits;
use crate::journal::recent::Retention;
use crate::message::{Epoch, MessageId, Receipt, Time};

/// How often an idle writer looks for messages that are too old. Higher: they are kept longer. Lower: an
/// idle hub wakes more often.
const TICK: Duration = Duration::from_secs(1);

/// The shortest time between two checks of retention while messages come in. Higher: the journal is over
/// its limits for longer. Lower: appends are held up by more checks.
const CHECK_PAUSE: Duration = Duration::from_millis(50);

/// The most messages deleted in one step. Higher: the next append waits longer than some milliseconds. Lower
/// than the hub's batch: messages would come in faster than they are deleted, and the file would grow.
const STEP: u64 = 1_000;

/// The most bytes of data deleted in one step, unless its first message has more. Higher and lower: as
/// [`STEP`].
const STEP_BYTES: u64 = 1 << 20;

/// How far the file may be over `retention.bytes` before an append waits until messages are deleted, twice
/// [`STEP_BYTES`]. Higher: the file takes more disk space. Lower: appends wait for steps that would be done
/// after them.
const SLACK: u64 = 2 << 20;

/// The most bytes written before the pages are counted again. Higher: the WAL grows by more. Lower: small
/// messages cost more.
const CHECK_BYTES: u64 = 1 << 20;

/// The most bytes that a small message adds to the WAL: a page of the table, one of the keys, and one of
/// SQLite's own. Higher: checks that are of no use. Lower: the WAL grows by more between two checks.
const MESSAGE_BYTES: u64 = 3 * 4096;

/// A row's bytes beside its data. Higher: more messages are dropped than must be. Lower: more checks are
/// needed to drop enough.
const ROW_BYTES: u64 = 100;

/// A batch to commit.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) batch: Vec<Append>,
    pub(super) answer: oneshot::Sender<Result<Vec<Appended>, JournalError>>,
}

/// The state of the writer's thread.
#[derive(Debug)]
pub(super) struct Writer {
    db: Connection,
    epoch: Epoch,
    shared: Arc<Shared>,
    announcer: Announcer,
    retention: Retention,
    keys: KeyLimits,
    head: u64,
    /// Every row before this sequence is deleted, or remains without data for its key.
    swept: u64,
    /// How many rows remain for their key.
    key_rows: usize,
    /// When retention was last checked.
    checked: Instant,
    pages: Pages,
    wal: Wal,
    /// The most bytes that were written since the pages were counted and the WAL's length was looked at.
    unchecked: u64,
}

impl Writer {
    pub(super) fn new(
        opened: Opened,
        shared: Arc<Shared>,
        announcer: Announcer,
        retention: Retention,
        keys: KeyLimits,
    ) -> rusqlite::Result<Self> {
        let Opened { db, epoch, head, earliest } = opened;
        let pages = Pages::of(&db)?;
        let key_rows =
            db.query_row("SELECT count(*) FROM messages WHERE sequence < ?1", [earliest], |row| row.get(0))?;
        let mut writer = Writer {
            db,
            epoch,
            shared,
            announcer,
            retention,
            keys,
            head,
            swept: earliest,
            key_rows,
            checked: Instant::now(),
            pages,
            wal: Wal::new(),
            unchecked: 0,
        };
        writer.limit_count();
        Ok(writer)
    }

    /// Does the jobs and maintains the file, until the sender of `jobs` is dropped or the journal fails.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        /// Turns a panic of this thread into a failure of the journal. Without it, the hub would take
        /// requests and never answer.
        struct Watch(Arc<Shared>);
        impl Drop for Watch {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    self.0.fail("the journal's thread panicked".to_owned());
                }
            }
        }
        let _watch = Watch(Arc::clone(&self.shared));
        let mut is_sweeping = false;
        loop {
            // While there is more to sweep, a job goes first if one waits.
            match jobs.recv_timeout(if is_sweeping { Duration::ZERO } else { TICK }) {
                Ok(Job { batch, answer }) => {
                    let result = self.append(batch);
                    let has_failed = matches!(result, Err(JournalError::Failed));
                    // Fails only if the hub is gone.
                    let _ = answer.send(result);
                    if has_failed {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            match self.maintain() {
                Ok(more) => is_sweeping = more,
                // Deleting needs space and the lock as well. Both may be there at the next try.
                Err(error) if is_full(&error) || is_busy(&error) || is_out_of_memory(&error) => {
                    is_sweeping = false
                }
                Err(error) => {
                    self.shared.fail(format!("can't write the journal: {error}"));
                    return;
                }
            }
        }
        // Copies the WAL to the file, so that one file is left. If that fails, the two files are the journal.
        let _ = Wal::remove(&self.db);
    }

    /// Commits the batch, and announces its new messages. They are on the disk once this returns `Ok`.
    fn append(&mut self, batch: Vec<Append>) -> Result<Vec<Appended>, JournalError> {
        match self.make_space(&batch).and_then(|()| self.commit(batch)) {
            Ok((appended, committed)) => {
                let mut recent = self.shared.recent_mut();
                committed.iter().for_each(|entry| recent.push(Arc::clone(entry)));
                self.head = recent.head();
                drop(recent);
                self.announcer.announce(committed);
                self.limit_count();
                Ok(appended)
            }
            Err(error) if is_full(&error) && self.db.is_autocommit() => {
                tracing::error!(%error, "no space for the journal; nothing of these publishes is kept");
                Err(JournalError::NoSpace)
            }
            Err(error) if is_busy(&error) && self.db.is_autocommit() => {
                tracing::error!(
                    %error,
                    "another program writes to the journal; nothing of these publishes is kept"
                );
                Err(UNAVAILABLE)
            }
            Err(error) if is_out_of_memory(&error) && self.db.is_autocommit() => {
                tracing::error!(%error, "no memory to write the journal; nothing of these publishes is kept");
                Err(UNAVAILABLE)
            }
            // After a failed fsync the batch may be on the disk or not, and a later fsync that succeeds does
            // not make up for it. So the journal fails for good.
            Err(error) => Err(self.shared.fail(format!("can't write the journal: {error}"))),
        }
    }

    /// Commits the batch in one transaction. Returns the result of each append, and the new entries.
    fn commit(&mut self, batch: Vec<Append>) -> rusqlite::Result<(Vec<Appended>, Batch)> {
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut appended, mut committed) =
            (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let mut insert = transaction.prepare_cached(
            "INSERT INTO messages (sequence, channel, event, data, time_ms, \"except\", key, request)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        for Append { draft, key } in batch {
            let now = Time::now();
            let is_remembered = self.keys.count > 0;
            let key = key.filter(|_| is_remembered);
            let key = key.map(|key| (row::key(self.epoch, &key), draft.fingerprint()));
            if let Some((key, request)) = &key {
                match row::remembered(&transaction, self.epoch, key)? {
                    Some((_, receipt)) if receipt.time.has_passed(self.keys.window, now) => {
                        forget(&transaction, receipt.id.sequence)?;
                    }
                    Some((first, receipt)) => {
                        appended.push(Appended::again(first == *request, || receipt));
                        continue;
                    }
                    None => {}
                }
            }
            let sequence = self.head + 1 + committed.len() as u64;
            let id = MessageId { epoch: self.epoch, sequence };
            let entry = Entry::new(draft.into_message(id, now));
            let message = &entry.message;
            insert.execute(params![
                sequence,
                message.channel.as_str(),
                message.event.as_str(),
                message.data.as_json(),
                message.time.as_ms(),
                message.except.as_ref().map(|subscriber| subscriber.as_str()),
                key.as_ref().map(|(key, _)| key),
                key.as_ref().map(|(_, request)| request.0),
            ])?;
            appended.push(Appended::New(Receipt::from(message)));
            committed.push(Arc::new(entry));
        }
        drop(insert);
        transaction.commit()?;
        Ok((appended, committed))
    }

    /// Deletes the oldest messages until there is space for this batch. What they take is known only once
    /// they are deleted: so one step follows the other.
    fn make_space(&mut self, batch: &[Append]) -> rusqlite::Result<()> {
        let (count, data) =
            (batch.len() as u64, batch.iter().map(|append| append.draft.data.as_json().len()));
        let data = data.sum::<usize>() as u64;
        self.unchecked += data + count * MESSAGE_BYTES;
        if self.excess(self.unchecked) <= SLACK {
            return Ok(());
        }
        self.pages.count(&self.db)?;
        let bytes = data + count * ROW_BYTES;
        while self.excess(bytes) > SLACK {
            if self.swept == self.earliest() {
                self.limit_bytes(bytes)?;
            }
            // Only the newest message may be left, which stays.
            if self.swept == self.earliest() && !self.forget_oldest_keys()? {
                return Ok(());
            }
            self.sweep()?;
            self.shorten_wal()?;
        }
        Ok(())
    }

    /// By how many bytes the file would be over `retention.bytes`, with so many bytes more.
    fn excess(&self, more: u64) -> u64 {
        let limit = u64::try_from(self.retention.bytes).unwrap_or(u64::MAX);
        (self.pages.used_bytes() + more).saturating_sub(limit)
    }

    fn earliest(&self) -> u64 {
        self.shared.earliest()
    }

    /// Drops the messages before `earliest`. [`sweep`](Self::sweep) deletes their rows later.
    fn drop_before(&self, earliest: u64) {
        // The newest message is kept whatever its age or size: its sequence is the head after a restart.
        let earliest = earliest.min(self.head).max(self.earliest());
        self.shared.drop_before(earliest);
    }

    /// Drops messages beyond `retention.messages`.
    fn limit_count(&mut self) {
        let most = u64::try_from(self.retention.messages).unwrap_or(u64::MAX).max(1);
        if self.head >= self.earliest().saturating_add(most) {
            self.drop_before(self.head + 1 - most);
        }
    }

    /// Does one step of maintenance: keeps the WAL short, drops messages that are over the limits, deletes
    /// dropped rows, gives free pages back. Returns whether there may be more to do.
    fn maintain(&mut self) -> rusqlite::Result<bool> {
        let is_time = self.checked.elapsed() >= CHECK_PAUSE;
        if is_time || self.unchecked >= CHECK_BYTES {
            self.pages.count(&self.db)?;
            self.unchecked = 0;
            self.shorten_wal()?;
        }
        // A step that is not full can wait: after each append, it would cost as much as the append.
        let is_full = self.earliest() - self.swept >= STEP || self.excess(0) >= STEP_BYTES;
        if is_time || is_full {
            self.checked = Instant::now();
            if self.swept == self.earliest() {
                self.limit_bytes(0)?;
                self.limit_age()?;
            }
            if self.swept < self.earliest() {
                self.sweep()?;
                self.shorten_wal()?;
                return Ok(true);
            }
        }
        if !self.pages.has_surplus() {
            return Ok(false);
        }
        self.without_sync(|writer| writer.pages.give_back(&writer.db))?;
        let more = self.pages.has_surplus();
        if !more {
            self.wal.cut_file();
        }
        self.shorten_wal()?;
        Ok(more)
    }

    fn shorten_wal(&mut self) -> rusqlite::Result<()> {
        self.wal.shorten(&self.db, self.shared.gate())
    }

    /// Drops the oldest messages, so that the file has space for so many bytes more.
    fn limit_bytes(&self, more: u64) -> rusqlite::Result<()> {
        let excess = self.excess(more);
        if excess > 0 {
            self.drop_before(self.after(|so_far, row| {
                // Dropped as well if it is larger than the rest of `excess`, or it would stay for good.
                let is_dropped = *so_far < excess;
                *so_far += row.get::<_, u64>(2)? + ROW_BYTES;
                Ok(is_dropped)
            })?);
        }
        Ok(())
    }

    fn limit_age(&self) -> rusqlite::Result<()> {
        let now = Time::now();
        self.drop_before(
            self.after(|_, row| Ok(Time::from_ms(row.get(1)?).has_passed(self.retention.age, now)))?,
        );
        Ok(())
    }

    /// The sequence after the oldest messages for which `is_dropped` is true, at most [`STEP`] of them.
    /// `is_dropped` is given a sum, 0 at first, to add to, and a row: sequence, time in ms, bytes of data.
    fn after(
        &self,
        mut is_dropped: impl FnMut(&mut u64, &Row<'_>) -> rusqlite::Result<bool>,
    ) -> rusqlite::Result<u64> {
        let mut select = self.db.prepare_cached(
            "SELECT sequence, time_ms, octet_length(data) FROM messages
             WHERE sequence >= ?1 AND data IS NOT NULL ORDER BY sequence LIMIT ?2",
        )?;
        let mut rows = select.query([self.earliest(), STEP])?;
        let (mut after, mut sum) = (self.earliest(), 0);
        while let Some(row) = rows.next()? {
            let is_dropped = is_dropped(&mut sum, row)?;
            after = row.get(0)?;
            if !is_dropped {
                break;
            }
            after += 1;
        }
        Ok(after)
    }

    /// Deletes the rows of dropped messages, a step of them. A row with a key to remember loses only its
    /// data.
    fn sweep(&mut self) -> rusqlite::Result<()> {
        let to = self.end_of_step()?;
        let window = u64::try_from(self.keys.window.as_millis()).unwrap_or(u64::MAX);
        let cutoff = Time::now().as_ms().saturating_sub(window);
        self.without_sync(|writer| {
            let transaction = writer.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction
                .prepare_cached(
                    "DELETE FROM messages WHERE sequence >= ?1 AND sequence < ?2
                     AND (key IS NULL OR time_ms <= ?3)",
                )?
                .execute(params![writer.swept, to, cutoff])?;
            let remaining = transaction
                .prepare_cached("UPDATE messages SET data = NULL WHERE sequence >= ?1 AND sequence < ?2")?
                .execute([writer.swept, to])?;
            // Rows that remained for their key, and have been there long enough.
            let expired = transaction
                .prepare_cached(
                    "DELETE FROM messages WHERE sequence IN
                     (SELECT sequence FROM messages WHERE sequence < ?1 ORDER BY sequence LIMIT ?2)
                     AND time_ms <= ?3",
                )?
                .execute(params![writer.swept, STEP, cutoff])?;
            let rows = (writer.key_rows + remaining).saturating_sub(expired);
            let excess = excess_keys(rows, writer.keys.count);
            let forgotten = if excess > 0 { forget_most(&transaction, to, excess)? } else { 0 };
            writer.pages.count(&transaction)?;
            transaction.commit()?;
            writer.key_rows = rows.saturating_sub(forgotten);
            writer.swept = to;
            Ok(())
        })
    }

    /// The sequence before which the next step deletes: of at most [`STEP`] messages, and at most
    /// [`STEP_BYTES`] of data, but of one message in any case.
    fn end_of_step(&self) -> rusqlite::Result<u64> {
        let end = self.earliest().min(self.swept + STEP);
        let mut select = self.db.prepare_cached(
            "SELECT sequence, octet_length(data) FROM messages
             WHERE sequence >= ?1 AND sequence < ?2 AND data IS NOT NULL ORDER BY sequence",
        )?;
        let mut rows = select.query([self.swept, end])?;
        let mut sum = 0;
        while let Some(row) = rows.next()? {
            sum += row.get::<_, u64>(1)?;
            let sequence = row.get(0)?;
            if sum > STEP_BYTES && sequence > self.swept {
                return Ok(sequence);
            }
        }
        Ok(end)
    }

    /// Deletes the oldest rows that remain for their key, a step of them. Returns whether there were any.
    fn forget_oldest_keys(&mut self) -> rusqlite::Result<bool> {
        let count = self.without_sync(|writer| {
            writer
                .db
                .prepare_cached(
                    "DELETE FROM messages WHERE sequence IN
                     (SELECT sequence FROM messages WHERE sequence < ?1 ORDER BY sequence LIMIT ?2)",
                )?
                .execute([writer.swept, STEP])
        })?;
        self.key_rows = self.key_rows.saturating_sub(count);
        self.pages.count(&self.db)?;
        Ok(count > 0)
    }

    /// Does something without an fsync: the next append's fsync covers it, and what is lost in a crash is
    /// done again.
    fn without_sync<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> rusqlite::Result<T>,
    ) -> rusqlite::Result<T> {
        self.db.pragma_update(None, "synchronous", "NORMAL")?;
        let result = work(self);
        self.db.pragma_update(None, "synchronous", "FULL")?;
        result
    }
}

/// How many of these rows that remain for their key are too many: an eighth of `most` at once, as finding
/// them takes a look at all.
fn excess_keys(rows: usize, most: usize) -> usize {
    if rows > most { rows - (most - most / 8) } else { 0 }
}

/// Deletes `count` of the rows before `swept`, which remain for their key: one after the other, the oldest of
/// the network that has the most. Returns how many there were.
fn forget_most(db: &Connection, swept: u64, count: usize) -> rusqlite::Result<usize> {
    // A row's `nth` is how many rows its network has from there on. The digits are those of `row::key`.
    db.prepare_cached(
        "DELETE FROM messages WHERE sequence IN
         (SELECT sequence FROM
          (SELECT sequence, row_number() OVER (PARTITION BY substr(key, 1, 16) ORDER BY sequence DESC) AS nth
           FROM messages WHERE sequence < ?1)
          ORDER BY nth DESC, sequence LIMIT ?2)",
    )?
    .execute(params![swept, count])
}

/// Removes the key of the message at `sequence`, so that another message can have it.
fn forget(db: &Connection, sequence: u64) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE messages SET key = NULL, request = NULL WHERE sequence = ?1")?
        .execute([sequence])?;
    Ok(())
}
