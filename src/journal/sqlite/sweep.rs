//! Sweeping: messages beyond the limits are dropped, and then deleted from the file, in steps.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::ages::Old;
use super::fault::Fault;
use super::reader::read_index;
use super::row;
use super::schema;
use super::writer::{Writer, delete};
use crate::journal::entry::Append;
use crate::journal::index::Index;
use crate::journal::recent::Recent;
use crate::message::{ChannelName, Time};

/// The shortest time between two checks of retention while messages come in. Higher: the journal is over
/// its limits for longer. Lower: appends are held up by more checks.
const CHECK_PAUSE: Duration = Duration::from_millis(50);

/// The most messages deleted in one step. Higher: the next append waits longer than some milliseconds. Lower
/// than the hub's batch: messages would come in faster than they are deleted, and the file would grow.
const STEP: u64 = 1_000;

/// The same as a number of things in memory.
const FULL: usize = STEP as usize;

/// How many messages are looked at at once to be dropped one by one. Higher: more are read than are dropped.
/// Lower: more queries.
const LOOK: u64 = 100;

/// The most messages read for the index in one step. Higher: the next append waits longer than some
/// milliseconds. Lower: rules apply to what an earlier run has left later.
const INDEX_STEP: usize = 10_000;

/// The most bytes of data deleted in one step, unless its first message has more. Higher and lower: as
/// [`STEP`].
const STEP_BYTES: u64 = 1 << 20;

/// How far the file may be over `retention.bytes` before an append waits until messages are deleted, twice
/// [`STEP_BYTES`]. Higher: the file takes more disk space. Lower: appends wait for steps that would be done
/// after them.
const SLACK: u64 = 2 << 20;

/// How long a hub that stops deletes rows. Higher: a stop takes longer than promised. Lower: more is left to
/// the next start.
const LAST_SWEEP: Duration = Duration::from_millis(500);

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
        let sum = |of: fn(&Append) -> usize| batch.iter().map(of).sum::<usize>() as u64;
        let (count, data) = (sum(Append::count), sum(Append::bytes));
        self.unchecked += data + count * MESSAGE_BYTES;
        if self.excess(self.unchecked) <= SLACK {
            return Ok(());
        }
        self.pages.count(&self.db)?;
        let bytes = data + count * ROW_BYTES;
        while self.excess(bytes) > SLACK {
            if !self.has_dropped() {
                while !self.is_plain() && !self.is_complete() {
                    self.complete_index()?;
                }
                self.limit_bytes(bytes)?;
            }
            // Only the newest message may be left, which stays.
            if !self.has_dropped() && !self.forget_oldest_keys()? {
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

    /// Whether messages are dropped from the beginning alone, so that they are counted by their sequences.
    pub(super) fn is_plain(&self) -> bool {
        self.retention.rules.is_empty()
            && !self.shared.has_holes()
            && self.shared.recent().dropped().next().is_none()
    }

    fn begin(&self) -> u64 {
        self.shared.recent().begin()
    }

    /// Whether there are rows to be deleted.
    fn has_dropped(&self) -> bool {
        let recent = self.shared.recent();
        self.swept < recent.begin() || recent.dropped().next().is_some()
    }

    /// Drops the messages before `begin`. [`sweep`](Self::sweep) deletes their rows later.
    fn drop_before(&self, begin: u64) {
        // The newest message is kept whatever its age or size: its sequence is the head after a restart.
        let mut recent = self.shared.recent_mut();
        let begin = begin.min(self.head).max(recent.begin());
        recent.drop_before(begin);
    }

    /// Drops messages beyond `retention.messages`.
    pub(super) fn limit_count(&mut self) -> Result<(), Fault> {
        let most = u64::try_from(self.retention.messages).unwrap_or(u64::MAX).max(1);
        if self.is_plain() {
            if self.head >= self.begin().saturating_add(most) {
                self.drop_before(self.head + 1 - most);
            }
        } else if self.is_complete() {
            let mut excess = (self.shared.recent_mut().count() as u64).saturating_sub(most);
            if excess > 0 {
                self.drop_each(|_| {
                    let is_dropped = excess > 0;
                    excess = excess.saturating_sub(1);
                    is_dropped
                })?;
            }
        }
        Ok(())
    }

    /// Does one step of maintenance: keeps the WAL short, drops messages that are over the limits, deletes
    /// dropped rows, gives free pages back. Returns whether there may be more to do.
    pub(super) fn maintain(&mut self) -> Result<bool, Fault> {
        let mut is_time = self.checked.elapsed() >= CHECK_PAUSE;
        if is_time || self.unchecked >= CHECK_BYTES {
            self.pages.count(&self.db)?;
            self.unchecked = 0;
            self.shorten_wal()?;
        }
        if self.is_complete() {
            self.earlier = None;
        } else if self.earlier.is_some() || !self.is_plain() || is_time && self.lacks_expired()? {
            self.complete_index()?;
            if !self.is_complete() {
                return Ok(true);
            }
            is_time = true;
        }
        // A step that is not full can wait: after each append, it would cost as much as the append.
        let dropped = self.shared.recent().dropped().take(FULL).count() as u64;
        let is_full = self.begin() - self.swept + dropped >= STEP || self.excess(0) >= STEP_BYTES;
        if is_time || is_full {
            self.checked = Instant::now();
            if self.erased.is_some_and(|next| next <= Instant::now()) {
                self.empty_wal()?;
            }
            drop(self.shared.unexpired());
            if !self.is_plain() && self.has_dropped() {
                self.sweep()?;
            }
            if !self.has_dropped() {
                self.limit_count()?;
                self.limit_bytes(0)?;
                self.limit_age()?;
                self.apply_ages()?;
            }
            if self.has_dropped() {
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

    /// Whether each kept message is in the index.
    pub(super) fn is_complete(&self) -> bool {
        let recent = self.shared.recent();
        recent.index().from() <= recent.begin()
    }

    /// Whether a message has expired that the index lacks.
    fn lacks_expired(&self) -> Result<bool, Fault> {
        let now = self.shared.recent().now();
        let mut select = self.db.prepare_cached(
            "SELECT count(*) FROM (SELECT 1 FROM entries INDEXED BY expiring
             WHERE expires_ms IS NOT NULL AND data IS NOT NULL AND expires_ms <= ?1 LIMIT 1)",
        )?;
        Ok(select.query_row([now.as_ms()], |row| row.get(0))?)
    }

    /// Reads the next step of what the index lacks: only by the index are messages dropped one by one.
    pub(super) fn complete_index(&mut self) -> Result<(), Fault> {
        let (begin, until, now) = {
            let recent = self.shared.recent();
            (recent.begin(), recent.index().from(), recent.now())
        };
        let anew = || (Index::new(begin, self.retention.rules.clone()), begin..until);
        let (mut earlier, range) = self.earlier.take().unwrap_or_else(anew);
        let rows = read_index(&self.db, &mut earlier, range.clone(), INDEX_STEP, now)?;
        if rows.count < INDEX_STEP as u64 {
            // Unless a reader was faster.
            self.shared.recent_mut().complete_index(earlier, range.end);
        } else {
            self.earlier = Some((earlier, rows.last + 1..range.end));
        }
        Ok(())
    }

    fn shorten_wal(&mut self) -> Result<(), Fault> {
        Ok(self.wal.shorten(&self.db, self.shared.gate())?)
    }

    /// Drops the oldest messages, so that the file has space for so many bytes more.
    fn limit_bytes(&mut self, more: u64) -> Result<(), Fault> {
        let excess = self.excess(more);
        if excess == 0 {
            return Ok(());
        }
        let mut so_far = 0;
        // Dropped as well if it is larger than the rest of `excess`, or it would stay for good.
        let mut is_dropped = |row: &Oldest| {
            let is_dropped = so_far < excess;
            so_far += row.bytes + ROW_BYTES;
            is_dropped
        };
        if self.is_plain() {
            self.drop_before(self.after(is_dropped)?);
        } else if self.is_complete() {
            self.drop_each(&mut is_dropped)?;
        }
        Ok(())
    }

    fn limit_age(&mut self) -> Result<(), Fault> {
        let old = self.ages.old(self.retention.age, self.ages.now());
        let is_old = |row: &Oldest| old.contains(row.sequence, row.time);
        if self.is_plain() {
            self.drop_before(self.after(is_old)?);
        } else if self.is_complete() {
            self.drop_from(self.begin(), |_, row| is_old(row).then_some(true))?;
        }
        Ok(())
    }

    /// Drops messages that have the age of their rule, a step of them.
    fn apply_ages(&mut self) -> Result<(), Fault> {
        let rules = self.retention.rules.clone();
        let mut left = STEP;
        for (number, rule) in rules.iter().enumerate() {
            let Some(age) = rule.age.filter(|_| self.is_complete()) else { continue };
            let old = self.ages.old(age, self.ages.now());
            loop {
                let oldest = self.shared.recent().index().oldest(number);
                let Some((sequence, channel)) = oldest.filter(|_| left > 0) else { break };
                let mut select = self.db.prepare_cached("SELECT time_ms FROM entries WHERE sequence = ?1")?;
                let time = select.query_row([sequence], |row| row.get(0))?;
                if !old.contains(sequence, Time::from_ms(time)) {
                    break;
                }
                self.shared.recent_mut().remove(&channel, sequence);
                left -= 1;
            }
        }
        Ok(())
    }

    /// Drops the oldest messages that no rule protects, one by one, while `is_dropped` is true. Where there
    /// are none any more, those that are protected follow.
    fn drop_each(&mut self, mut is_dropped: impl FnMut(&Oldest) -> bool) -> Result<(), Fault> {
        let is_protected = |recent: &Recent, row: &Oldest| recent.is_protected(&row.channel);
        let (walked, is_over) = self.drop_from(self.walked, |recent, row| {
            if is_protected(recent, row) { Some(false) } else { is_dropped(row).then_some(true) }
        })?;
        self.walked = walked;
        if is_over {
            self.drop_from(self.begin(), |_, row| is_dropped(row).then_some(true))?;
        }
        Ok(())
    }

    /// Drops those of the messages from `from` on for which `is_dropped` is true, until it is `None`, or
    /// [`STEP`] were dropped. Returns up to where all were looked at, and whether those are all.
    fn drop_from(
        &self,
        from: u64,
        mut is_dropped: impl FnMut(&Recent, &Oldest) -> Option<bool>,
    ) -> Result<(u64, bool), Fault> {
        let (mut at, mut dropped) = (from, 0);
        while dropped < STEP {
            let rows = self.rows_from(at, LOOK)?;
            let mut recent = self.shared.recent_mut();
            for row in &rows {
                if recent.index().contains(&row.channel, row.sequence) {
                    match is_dropped(&recent, row) {
                        Some(true) => {
                            recent.drop_for_limits(&row.channel, row.sequence);
                            dropped += 1;
                        }
                        Some(false) => {}
                        None => return Ok((at, false)),
                    }
                }
                at = row.sequence + 1;
            }
            if (rows.len() as u64) < LOOK {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// The rows of the oldest messages from `from` on, at most `most`, without the last message.
    fn rows_from(&self, from: u64, most: u64) -> Result<Vec<Oldest>, Fault> {
        let mut select = self.db.prepare_cached(
            "SELECT sequence, time_ms, octet_length(data), channel FROM entries
             WHERE sequence >= ?1 AND sequence < ?2 AND data IS NOT NULL ORDER BY sequence LIMIT ?3",
        )?;
        let rows = select.query_map([from, self.head, most], |row| {
            let (sequence, time, bytes) = (row.get(0)?, Time::from_ms(row.get(1)?), row.get(2)?);
            Ok(Oldest { sequence, time, bytes, channel: row::channel(row, 3)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The sequence after the oldest messages for which `is_dropped` is true, at most [`STEP`]. All of them
    /// are there.
    fn after(&self, mut is_dropped: impl FnMut(&Oldest) -> bool) -> Result<u64, Fault> {
        let mut after = self.begin();
        for row in self.rows_from(after, STEP)? {
            if row.sequence != after {
                return Err(row::out_of_order().into());
            }
            if !is_dropped(&row) {
                break;
            }
            after += 1;
        }
        Ok(after)
    }

    /// Deletes the rows of dropped messages, as far as that can be done while a hub stops. What is
    /// left is dropped again at the next start.
    pub(super) fn sweep_all(&mut self) {
        let begun = Instant::now();
        while self.is_open && self.has_dropped() && begun.elapsed() < LAST_SWEEP {
            if self.sweep().is_err() {
                break;
            }
        }
    }

    /// Deletes the rows of dropped messages, a step of them. A row with a key to remember loses only its
    /// data.
    fn sweep(&mut self) -> Result<(), Fault> {
        let old = self.ages.old(self.keys.window, self.ages.now());
        if self.swept < self.begin() { self.sweep_beginning(old) } else { self.sweep_dropped(old) }
    }

    /// The same for those before the beginning.
    fn sweep_beginning(&mut self, old: Old) -> Result<(), Fault> {
        let to = self.end_of_step()?;
        let swept = self.channels_of_step(to)?;
        self.wal.begin(&self.db, self.head)?;
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let Old { before, opened, .. } = old;
        transaction
            .prepare_cached(
                "DELETE FROM entries WHERE sequence >= ?1 AND sequence < ?2 AND data IS NOT NULL
                 AND (key IS NULL OR sequence < ?3 OR sequence <= ?4 AND time_ms <= ?5)",
            )?
            .execute(params![self.swept, to, before, opened, until_ms(old)])?;
        let remaining = transaction
            .prepare_cached(
                "UPDATE entries SET data = NULL WHERE sequence >= ?1 AND sequence < ?2 AND data IS NOT NULL",
            )?
            .execute([self.swept, to])?;
        let rows = forget(&transaction, self.head, self.key_rows + remaining, self.keys.count, old)?;
        if self.shared.has_holes() {
            schema::store_retention(&transaction, self.shared.recent().gaps(), &self.retention.rules)?;
        }
        self.pages.count(&transaction)?;
        transaction.commit()?;
        self.key_rows = rows;
        self.swept = to;
        let mut recent = self.shared.recent_mut();
        for (channel, sequence) in swept {
            recent.index_mut().remove(&channel, sequence);
        }
        Ok(())
    }

    /// The same for those that were dropped one by one.
    fn sweep_dropped(&mut self, old: Old) -> Result<(), Fault> {
        let step = self.dropped_of_step()?;
        self.shared.set_holes();
        self.wal.begin(&self.db, self.head)?;
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut remaining = 0;
        for sequence in &step {
            remaining += delete(&transaction, *sequence)?;
        }
        let rows = forget(&transaction, self.head, self.key_rows + remaining, self.keys.count, old)?;
        schema::store_retention(&transaction, self.shared.recent().gaps(), &self.retention.rules)?;
        self.pages.count(&transaction)?;
        transaction.commit()?;
        self.key_rows = rows;
        self.shared.recent_mut().were_deleted(&step);
        Ok(())
    }

    /// The messages that the next step deletes of those that were dropped one by one: limited as in
    /// [`end_of_step`](Self::end_of_step).
    fn dropped_of_step(&self) -> Result<Vec<u64>, Fault> {
        let dropped: Vec<_> = self.shared.recent().dropped().take(FULL).collect();
        let mut select = self
            .db
            .prepare_cached("SELECT ifnull(octet_length(data), 0) FROM entries WHERE sequence = ?1")?;
        let (mut step, mut sum) = (Vec::new(), 0);
        for sequence in dropped {
            sum += select.query_row([sequence], |row| row.get::<_, u64>(0)).optional()?.unwrap_or(0);
            if sum > STEP_BYTES && !step.is_empty() {
                break;
            }
            step.push(sequence);
        }
        Ok(step)
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
        let end = self.begin().min(self.swept + STEP);
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
                 (SELECT sequence FROM entries INDEXED BY bare WHERE data IS NULL AND sequence < ?1
                  ORDER BY sequence LIMIT ?2)",
            )?
            .execute([self.head, STEP])?;
        self.key_rows = self.key_rows.saturating_sub(count);
        self.pages.count(&self.db)?;
        Ok(count > 0)
    }
}

/// A row, as one of the oldest.
struct Oldest {
    sequence: u64,
    time: Time,
    /// Of its data.
    bytes: u64,
    channel: ChannelName,
}

/// The time until which earlier messages are old; -1, before the time of any message, if none is.
fn until_ms(old: Old) -> i64 {
    old.until.map_or(-1, |until| until.as_ms().try_into().unwrap_or(i64::MAX))
}

/// Deletes those of the `rows` rows that remain for their key which have been there long enough, or are more
/// than `most`. Returns how many are left. The last row of all stays.
fn forget(db: &Connection, head: u64, rows: usize, most: usize, old: Old) -> rusqlite::Result<usize> {
    let expired = db
        .prepare_cached(
            "DELETE FROM entries WHERE sequence IN
             (SELECT sequence FROM entries INDEXED BY bare WHERE data IS NULL AND sequence < ?1
              ORDER BY sequence LIMIT ?2)
             AND (key IS NULL OR sequence < ?3 OR sequence <= ?4 AND time_ms <= ?5)",
        )?
        .execute(params![head, STEP, old.before, old.opened, until_ms(old)])?;
    let rows = rows.saturating_sub(expired);
    let excess = excess_keys(rows, most);
    let forgotten = if excess > 0 { forget_most(db, head, excess)? } else { 0 };
    Ok(rows.saturating_sub(forgotten))
}

/// How many of these rows that remain for their key are too many: an eighth of `most` at once, as finding
/// them takes a look at all.
fn excess_keys(rows: usize, most: usize) -> usize {
    if rows > most { rows - (most - most / 8) } else { 0 }
}

/// Deletes `count` of the rows before `head` that remain for their key: one after the other, the oldest of
/// the owner that has the most. Returns how many there were.
fn forget_most(db: &Connection, head: u64, count: usize) -> rusqlite::Result<usize> {
    // A row's `nth` is how many rows its owner has from there on. The digits are those of `row::key`.
    db.prepare_cached(
        "DELETE FROM entries WHERE sequence IN
         (SELECT sequence FROM
          (SELECT sequence, row_number() OVER (PARTITION BY substr(key, 1, 16) ORDER BY sequence DESC) AS nth
           FROM entries INDEXED BY bare WHERE data IS NULL AND sequence < ?1)
          ORDER BY nth DESC, sequence LIMIT ?2)",
    )?
    .execute(params![head, count])
}
