//! The writer: the thread that appends to the file, and deletes the messages that retention drops.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Row, TransactionBehavior, params};
use tokio::sync::oneshot;

use super::file::{BUSY_TIMEOUT, Opened};
use super::row;
use super::shared::{Shared, UNAVAILABLE, is_busy, is_full, is_out_of_memory};
use crate::journal::committed::Announcer;
use crate::journal::entry::{Append, Appended, Batch, Entry, JournalError};
use crate::journal::keys::KeyLimits;
use crate::journal::recent::Retention;
use crate::message::{Epoch, MessageId, Receipt, Time};

/// How often an idle writer looks for messages that are too old. Higher: they are kept longer. Lower: an
/// idle hub wakes more often.
const TICK: Duration = Duration::from_secs(1);

/// The shortest time between two checks of retention while messages come in. Higher: the journal is over
/// its limits for longer, and the WAL grows by more. Lower: appends are held up by more checks.
const CHECK_PAUSE: Duration = Duration::from_millis(50);

/// The most messages deleted in one step. Higher: the next append waits longer than some milliseconds. Lower
/// than the hub's batch: messages would come in faster than they are deleted, and the file would grow.
const STEP: u64 = 1_000;

/// The number of WAL pages at which the writer copies them to the file: some 8 MiB, of 4 KiB each. Higher:
/// reads search a longer WAL. Lower: pages that change often are copied more often.
const CHECKPOINT_PAGES: i64 = 2_000;

/// The number of WAL pages at which the writer waits for readers, to start the WAL over: 64 MiB. Higher: the
/// WAL takes more disk space. Lower: publishers wait more often.
const RESTART_PAGES: i64 = 16_000;

/// How long the writer, and so publishers, wait for those readers. Lower: the hub's own readers may need
/// longer. Higher: of no use, as another program's reader may need hours.
const RESTART_WAIT: Duration = Duration::from_millis(50);

/// The shortest time between two such waits. Higher: the WAL grows for longer. Lower: publishers wait more
/// often.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

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
    /// When retention was last checked.
    checked: Instant,
    /// The earliest time to start the WAL over again.
    restart: Instant,
}

impl Writer {
    pub(super) fn new(
        opened: Opened,
        shared: Arc<Shared>,
        announcer: Announcer,
        retention: Retention,
        keys: KeyLimits,
    ) -> Self {
        let Opened { db, epoch, head, earliest } = opened;
        let now = Instant::now();
        let mut writer = Writer {
            db,
            epoch,
            shared,
            announcer,
            retention,
            keys,
            head,
            swept: earliest,
            checked: now,
            restart: now,
        };
        writer.limit_count();
        writer
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
        let _ = self.checkpoint("TRUNCATE");
    }

    /// Commits the batch, and announces its new messages. They are on the disk once this returns `Ok`.
    fn append(&mut self, batch: Vec<Append>) -> Result<Vec<Appended>, JournalError> {
        match self.commit(batch) {
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
            let key = key.filter(|_| is_remembered).map(|key| (key, draft.fingerprint()));
            if let Some((key, request)) = &key {
                match row::remembered(&transaction, self.epoch, key.as_str())? {
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
                key.as_ref().map(|(key, _)| key.as_str()),
                key.as_ref().map(|(_, request)| request.0),
            ])?;
            appended.push(Appended::New(Receipt::from(message)));
            committed.push(Arc::new(entry));
        }
        drop(insert);
        transaction.commit()?;
        Ok((appended, committed))
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

    /// Does one step of maintenance: drops messages that are over the limits, deletes dropped rows, keeps the
    /// WAL short. Returns whether there may be more rows to delete.
    fn maintain(&mut self) -> rusqlite::Result<bool> {
        // A step that is not full can wait: after each append, it would cost as much as the append.
        if self.earliest() - self.swept < STEP {
            if self.checked.elapsed() < CHECK_PAUSE {
                return Ok(false);
            }
            self.checked = Instant::now();
            if self.swept == self.earliest() {
                self.limit_bytes()?;
                self.limit_age()?;
            }
        }
        let more = self.swept < self.earliest();
        if more {
            self.sweep()?;
        }
        let (pages, copied) = self.checkpoint("NOOP")?;
        if pages > RESTART_PAGES && self.restart <= Instant::now() {
            self.restart = Instant::now() + RESTART_PAUSE;
            self.checkpoint("RESTART")?;
        } else if pages - copied > CHECKPOINT_PAGES {
            self.checkpoint("PASSIVE")?;
        }
        Ok(more)
    }

    fn limit_bytes(&self) -> rusqlite::Result<()> {
        let pragma = |name| self.db.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
        let used = (pragma("page_count")? - pragma("freelist_count")?) * pragma("page_size")?;
        let excess = used.saturating_sub(u64::try_from(self.retention.bytes).unwrap_or(u64::MAX));
        if excess > 0 {
            self.drop_before(self.after(|so_far, row| {
                // Dropped as well if it is larger than the rest of `excess`, or it would stay for good.
                let is_dropped = *so_far < excess;
                *so_far += row.get::<_, u64>(2)?;
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
    /// `is_dropped` is given a sum, 0 at first, to add to, and a row of sequence, time in ms, and bytes.
    fn after(
        &self,
        mut is_dropped: impl FnMut(&mut u64, &Row<'_>) -> rusqlite::Result<bool>,
    ) -> rusqlite::Result<u64> {
        let mut select = self.db.prepare_cached(
            "SELECT sequence, time_ms, octet_length(data) + 100 FROM messages
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

    /// Deletes the rows of at most [`STEP`] dropped messages. A row with a key to remember loses only its
    /// data.
    fn sweep(&mut self) -> rusqlite::Result<()> {
        let to = self.earliest().min(self.swept + STEP);
        let window = u64::try_from(self.keys.window.as_millis()).unwrap_or(u64::MAX);
        let cutoff = Time::now().as_ms().saturating_sub(window);
        let remembered = self.head.saturating_sub(u64::try_from(self.keys.count).unwrap_or(u64::MAX));
        // Without an fsync: the next append's fsync covers the deletions too, and deletions that are lost in
        // a crash are done again.
        self.db.pragma_update(None, "synchronous", "NORMAL")?;
        let result = (|| {
            let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction
                .prepare_cached(
                    "DELETE FROM messages WHERE sequence >= ?1 AND sequence < ?2
                     AND (key IS NULL OR time_ms <= ?3 OR sequence <= ?4)",
                )?
                .execute(params![self.swept, to, cutoff, remembered])?;
            transaction
                .prepare_cached("UPDATE messages SET data = NULL WHERE sequence >= ?1 AND sequence < ?2")?
                .execute([self.swept, to])?;
            // Rows that remained for their key, and have been there long enough.
            transaction
                .prepare_cached(
                    "DELETE FROM messages WHERE sequence IN
                     (SELECT sequence FROM messages WHERE sequence < ?1 ORDER BY sequence LIMIT ?2)
                     AND (time_ms <= ?3 OR sequence <= ?4)",
                )?
                .execute(params![self.swept, STEP, cutoff, remembered])?;
            transaction.commit()
        })();
        self.db.pragma_update(None, "synchronous", "FULL")?;
        result?;
        self.swept = to;
        Ok(())
    }

    /// Runs a checkpoint in this mode. Returns how many pages the WAL has, and how many of those are in the
    /// file.
    fn checkpoint(&self, mode: &str) -> rusqlite::Result<(i64, i64)> {
        self.db.busy_timeout(RESTART_WAIT)?;
        let result = self
            .db
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| Ok((row.get(1)?, row.get(2)?)));
        self.db.busy_timeout(BUSY_TIMEOUT)?;
        result
    }
}

/// Removes the key of the message at `sequence`, so that another message can have it.
fn forget(db: &Connection, sequence: u64) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE messages SET key = NULL, request = NULL WHERE sequence = ?1")?
        .execute([sequence])?;
    Ok(())
}
