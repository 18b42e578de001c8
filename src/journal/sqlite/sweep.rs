//! Sweeping: messages beyond the limits are dropped, and then deleted from the file, in steps.

use std::time::{Duration, Instant};

use rusqlite::{Connection, Row, TransactionBehavior, params};

use super::ages::Old;
use super::fault::Fault;
use super::row;
use super::writer::Writer;
use crate::journal::entry::Append;
use crate::message::{ChannelName, Time};

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

impl Writer {
    /// Deletes the oldest messages until there is space for this batch. What they take is known only once
    /// they are deleted: so one step follows the other.
    pub(super) fn make_space(&mut self, batch: &[Append]) -> Result<(), Fault> {
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
    pub(super) fn limit_count(&mut self) {
        let most = u64::try_from(self.retention.messages).unwrap_or(u64::MAX).max(1);
        if self.head >= self.earliest().saturating_add(most) {
            self.drop_before(self.head + 1 - most);
        }
    }

    /// Does one step of maintenance: keeps the WAL short, drops messages that are over the limits, deletes
    /// dropped rows, gives free pages back. Returns whether there may be more to do.
    pub(super) fn maintain(&mut self) -> Result<bool, Fault> {
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
        self.wal.begin(&self.db, self.head)?;
        self.pages.give_back(&self.db)?;
        let more = self.pages.has_surplus();
        if !more {
            self.wal.cut_file();
        }
        self.shorten_wal()?;
        Ok(more)
    }

    fn shorten_wal(&mut self) -> Result<(), Fault> {
        Ok(self.wal.shorten(&self.db, self.shared.gate())?)
    }

    /// Drops the oldest messages, so that the file has space for so many bytes more.
    fn limit_bytes(&self, more: u64) -> Result<(), Fault> {
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

    fn limit_age(&mut self) -> Result<(), Fault> {
        let old = self.ages.old(self.retention.age, self.ages.now());
        self.drop_before(self.after(|_, row| Ok(old.contains(row.get(0)?, Time::from_ms(row.get(1)?))))?);
        Ok(())
    }

    /// The sequence after the oldest messages for which `is_dropped` is true, at most [`STEP`] of them.
    /// `is_dropped` is given a sum, 0 at first, to add to, and a row: sequence, time in ms, bytes of data.
    fn after(
        &self,
        mut is_dropped: impl FnMut(&mut u64, &Row<'_>) -> rusqlite::Result<bool>,
    ) -> Result<u64, Fault> {
        let mut select = self.db.prepare_cached(
            "SELECT sequence, time_ms, octet_length(data) FROM entries
             WHERE sequence >= ?1 AND data IS NOT NULL ORDER BY sequence LIMIT ?2",
        )?;
        let mut rows = select.query([self.earliest(), STEP])?;
        let (mut after, mut sum) = (self.earliest(), 0);
        while let Some(row) = rows.next()? {
            if row.get::<_, u64>(0)? != after {
                return Err(row::out_of_order().into());
            }
            if !is_dropped(&mut sum, row)? {
                break;
            }
            after += 1;
        }
        Ok(after)
    }

    /// Deletes the rows of dropped messages, a step of them. A row with a key to remember loses only its
    /// data.
    fn sweep(&mut self) -> Result<(), Fault> {
        let to = self.end_of_step()?;
        let Old { before, opened, until } = self.ages.old(self.keys.window, self.ages.now());
        // -1: before the time of any message.
        let until = until.map_or(-1, |until| until.as_ms().try_into().unwrap_or(i64::MAX));
        let swept = self.channels_of_step(to)?;
        self.wal.begin(&self.db, self.head)?;
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction
            .prepare_cached(
                "DELETE FROM entries WHERE sequence >= ?1 AND sequence < ?2
                 AND (key IS NULL OR sequence < ?3 OR sequence <= ?4 AND time_ms <= ?5)",
            )?
            .execute(params![self.swept, to, before, opened, until])?;
        let remaining = transaction
            .prepare_cached("UPDATE entries SET data = NULL WHERE sequence >= ?1 AND sequence < ?2")?
            .execute([self.swept, to])?;
        // Rows that remained for their key, and have been there long enough.
        let expired = transaction
            .prepare_cached(
                "DELETE FROM entries WHERE sequence IN
                 (SELECT sequence FROM entries WHERE sequence < ?1 ORDER BY sequence LIMIT ?2)
                 AND (sequence < ?3 OR sequence <= ?4 AND time_ms <= ?5)",
            )?
            .execute(params![self.swept, STEP, before, opened, until])?;
        let rows = (self.key_rows + remaining).saturating_sub(expired);
        let excess = excess_keys(rows, self.keys.count);
        let forgotten = if excess > 0 { forget_most(&transaction, to, excess)? } else { 0 };
        self.pages.count(&transaction)?;
        transaction.commit()?;
        self.key_rows = rows.saturating_sub(forgotten);
        self.swept = to;
        let mut recent = self.shared.recent_mut();
        swept.iter().for_each(|(channel, sequence)| recent.index_mut().remove(channel, *sequence));
        Ok(())
    }

    /// The messages of this step that are in the index, with their channels.
    fn channels_of_step(&self, to: u64) -> Result<Vec<(ChannelName, u64)>, Fault> {
        let from = self.swept.max(self.shared.recent().index().from());
        let mut select = self.db.prepare_cached(
            "SELECT sequence, channel FROM entries
             WHERE sequence >= ?1 AND sequence < ?2 AND data IS NOT NULL ORDER BY sequence",
        )?;
        let rows = select.query_map([from, to], |row| Ok((row::channel(row, 1)?, row.get(0)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The sequence before which the next step deletes: of at most [`STEP`] messages, and at most
    /// [`STEP_BYTES`] of data, but of one message in any case.
    fn end_of_step(&self) -> Result<u64, Fault> {
        let end = self.earliest().min(self.swept + STEP);
        let mut select = self.db.prepare_cached(
            "SELECT sequence, octet_length(data) FROM entries
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
    fn forget_oldest_keys(&mut self) -> Result<bool, Fault> {
        self.wal.begin(&self.db, self.head)?;
        let count = self
            .db
            .prepare_cached(
                "DELETE FROM entries WHERE sequence IN
                 (SELECT sequence FROM entries WHERE sequence < ?1 ORDER BY sequence LIMIT ?2)",
            )?
            .execute([self.swept, STEP])?;
        self.key_rows = self.key_rows.saturating_sub(count);
        self.pages.count(&self.db)?;
        Ok(count > 0)
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
        "DELETE FROM entries WHERE sequence IN
         (SELECT sequence FROM
          (SELECT sequence, row_number() OVER (PARTITION BY substr(key, 1, 16) ORDER BY sequence DESC) AS nth
           FROM entries WHERE sequence < ?1)
          ORDER BY nth DESC, sequence LIMIT ?2)",
    )?
    .execute(params![swept, count])
}
