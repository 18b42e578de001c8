//! The writer: the thread that appends to the file and drops what retention no longer allows.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, Row, TransactionBehavior, params};
use tokio::sync::oneshot;

use super::file::{BUSY, Opened};
use super::row;
use super::shared::{Shared, UNAVAILABLE, is_busy, is_full};
use crate::journal::committed::Announcer;
use crate::journal::entry::{Append, Appended, Batch, Entry, JournalError};
use crate::journal::keys::KeyLimits;
use crate::journal::recent::Retention;
use crate::message::{Epoch, MessageId, Receipt, Time};

/// How often the writer looks for messages that have grown too old, when nothing else is to do.
const TICK: Duration = Duration::from_secs(1);

/// How long the writer appends before it looks again what retention allows. What comes in meanwhile is
/// over the limits for so long, and the WAL grows by so much.
const LOOK: Duration = Duration::from_millis(50);

/// Messages deleted at once. Higher: the next append waits longer than some milliseconds. It must be
/// higher than the hub's batch, or the file would grow.
const STEP: u64 = 1_000;

/// Pages in the WAL from which they are copied to the file, 4 KiB each: some 8 MiB. Higher: reads
/// search a longer WAL. Lower: pages that change often are copied more often.
const CHECKPOINT_PAGES: i64 = 2_000;

/// Pages in the WAL from which readers are waited for to start it over: 64 MiB.
const RESTART_PAGES: i64 = 16_000;

/// How long those readers, and with them publishers, are waited for. The hub's own readers need less;
/// another program's may need hours.
const RESTART_WAIT: Duration = Duration::from_millis(50);

/// How long after such a wait the next one is.
const RESTART_PAUSE: Duration = Duration::from_secs(5);

/// A batch to commit.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) batch: Vec<Append>,
    pub(super) answer: oneshot::Sender<Result<Vec<Appended>, JournalError>>,
}

#[derive(Debug)]
pub(super) struct Writer {
    db: Connection,
    epoch: Epoch,
    shared: Arc<Shared>,
    announcer: Announcer,
    retention: Retention,
    keys: KeyLimits,
    head: u64,
    /// Every row before this sequence is deleted, or has lost its data.
    swept: u64,
    /// When the writer last looked what retention allows.
    looked: Instant,
    /// When the writer may try again to start the WAL over.
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
            looked: now,
            restart: now,
        };
        writer.limit_count();
        writer
    }

    /// Works until the other end of `jobs` is dropped, or the journal fails.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        /// A panic here must not leave a hub that takes requests and never answers.
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
            // With more to sweep the writer only looks whether there is something better to do.
            match jobs.recv_timeout(if is_sweeping { Duration::ZERO } else { TICK }) {
                Ok(Job { batch, answer }) => {
                    let result = self.append(batch);
                    let has_failed = matches!(result, Err(JournalError::Failed));
                    // The hub waits for the answer, or is gone.
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
                // There is no space to free space with; it may come.
                Err(error) if is_full(&error) || is_busy(&error) => is_sweeping = false,
                Err(error) => {
                    self.shared.fail(format!("can't write the journal: {error}"));
                    return;
                }
            }
        }
        // Leaves one file. If that fails, the file and the WAL beside it are as good.
        let _ = self.checkpoint("TRUNCATE");
    }

    /// Commits the batch, and announces what is new of it. Once this returns, the batch is on the disk.
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
            // A failed fsync may have kept the batch or not, and a later one that succeeds says nothing of
            // what the failed one left out: there is no going on from here.
            Err(error) => Err(self.shared.fail(format!("can't write the journal: {error}"))),
        }
    }

    /// What each append came to, and the entries that are new.
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
                match row::answer(&transaction, self.epoch, key.as_str())? {
                    Some((_, answer)) if answer.time.has_passed(self.keys.window, now) => {
                        forget(&transaction, answer.id.sequence)?;
                    }
                    Some((first, answer)) => {
                        appended.push(Appended::again(first == *request, || answer));
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

    /// From now on, what is before `earliest` is not kept. Deleting it comes later.
    fn drop_before(&self, earliest: u64) {
        // The newest is kept whatever its age or size, as is its number.
        let earliest = earliest.min(self.head).max(self.earliest());
        self.shared.drop_before(earliest);
    }

    fn limit_count(&mut self) {
        let most = u64::try_from(self.retention.messages).unwrap_or(u64::MAX).max(1);
        if self.head >= self.earliest().saturating_add(most) {
            self.drop_before(self.head + 1 - most);
        }
    }

    /// One step of dropping what retention no longer allows, deleting what was dropped, and keeping
    /// the WAL short. True if there is more to do.
    fn maintain(&mut self) -> rusqlite::Result<bool> {
        // A step that is not full can wait: after each append it would cost as much as that did.
        if self.earliest() - self.swept < STEP {
            if self.looked.elapsed() < LOOK {
                return Ok(false);
            }
            self.looked = Instant::now();
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
                // With the one that covers the rest, or a large one would stay for good.
                let is_left = *so_far < excess;
                *so_far += row.get::<_, u64>(2)?;
                Ok(is_left)
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

    /// The sequence after the oldest messages for which `goes_on` says so, at most a step of them; the
    /// number it is given is 0 at first, for it to count with. A row is sequence, time, bytes.
    fn after(
        &self,
        mut goes_on: impl FnMut(&mut u64, &Row<'_>) -> rusqlite::Result<bool>,
    ) -> rusqlite::Result<u64> {
        let mut select = self.db.prepare_cached(
            "SELECT sequence, time_ms, octet_length(data) + 100 FROM messages
             WHERE sequence >= ?1 AND data IS NOT NULL ORDER BY sequence LIMIT ?2",
        )?;
        let mut rows = select.query([self.earliest(), STEP])?;
        let (mut after, mut number) = (self.earliest(), 0);
        while let Some(row) = rows.next()? {
            let goes_on = goes_on(&mut number, row)?;
            after = row.get(0)?;
            if !goes_on {
                break;
            }
            after += 1;
        }
        Ok(after)
    }

    /// Deletes a step of what was dropped. A row whose key is still to be remembered loses its data.
    fn sweep(&mut self) -> rusqlite::Result<()> {
        let to = self.earliest().min(self.swept + STEP);
        let window = u64::try_from(self.keys.window.as_millis()).unwrap_or(u64::MAX);
        let cutoff = Time::now().as_ms().saturating_sub(window);
        let remembered = self.head.saturating_sub(u64::try_from(self.keys.count).unwrap_or(u64::MAX));
        // Deleting again is cheaper than waiting for the disk: a sweep that is lost in a crash is
        // done anew. The next append's fsync covers it.
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
            // Rows kept for a key, that were kept long enough.
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

    /// The WAL's pages, and how many of them are in the file.
    fn checkpoint(&self, mode: &str) -> rusqlite::Result<(i64, i64)> {
        self.db.busy_timeout(RESTART_WAIT)?;
        let result = self
            .db
            .query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| Ok((row.get(1)?, row.get(2)?)));
        self.db.busy_timeout(BUSY)?;
        result
    }
}

/// Forgets the key of this message, so that it can be given to another.
fn forget(db: &Connection, sequence: u64) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE messages SET key = NULL, request = NULL WHERE sequence = ?1")?
        .execute([sequence])?;
    Ok(())
}
