//! The writer: the thread that appends to the file.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use smallvec::smallvec;
use tokio::sync::oneshot;

use super::ages::{Ages, StoredBy};
use super::fault::Fault;
use super::file::{self, OpenError};
use super::open::Opened;
use super::pages::Pages;
use super::place::Place;
use super::reader::Readers;
use super::row;
use super::schema;
use super::shared::{Shared, UNAVAILABLE};
use super::wal::{BUSY_TIMEOUT, OTHERS_PAUSE, Wal};
use crate::journal::clock::Clock;
use crate::journal::committed::Announcer;
use crate::journal::entry::{Append, Appended, Batch, Entry, JournalError};
use crate::journal::epochs::Epochs;
use crate::journal::index::Index;
use crate::journal::keys::KeyLimits;
use crate::journal::recent::{Recent, Retention};
use crate::journal::rules::Rules;
use crate::message::{ChannelName, Draft, MessageId, Receipt, Receipts, Time};

/// How often an idle writer looks for messages that are too old, and whether the files are still there.
/// Higher: old messages are kept for longer, and a lost file is noticed later. Lower: an idle hub wakes more
/// often.
const TICK: Duration = Duration::from_secs(1);

/// How long a lock that the writer needs is taken before all connections are opened anew. Higher: a lock that
/// SQLite could not release keeps the journal from being written for longer. Lower: they are also opened anew
/// while another program writes.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// A batch to commit.
#[derive(Debug)]
pub(super) enum Job {
    Append {
        batch: Vec<Append>,
        answer: oneshot::Sender<Result<Vec<Appended>, JournalError>>,
    },
    /// To go by other rules.
    Rules {
        rules: Rules,
        answer: oneshot::Sender<()>,
    },
}

/// What became of a batch.
struct Committed {
    appended: Vec<Appended>,
    new: Batch,
    erased: Vec<(ChannelName, u64)>,
}

/// The state of the writer's thread.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) db: Connection,
    path: PathBuf,
    place: Place,
    epochs: Arc<Epochs>,
    /// Whether the file has the present epoch.
    has_epoch: bool,
    pub(super) shared: Arc<Shared>,
    readers: Arc<Readers>,
    announcer: Announcer,
    pub(super) retention: Retention,
    pub(super) keys: KeyLimits,
    pub(super) ages: Ages,
    pub(super) head: u64,
    /// Every row before this sequence is deleted, or remains without data for its key.
    pub(super) swept: u64,
    /// Whatever is kept before this sequence is protected by a rule.
    pub(super) walked: u64,
    /// How many rows remain without data: for their key, or for the last sequence.
    pub(super) key_rows: usize,
    /// What the index lacks, as far as it was read, and which sequences are still to be read.
    pub(super) earlier: Option<(Index, Range<u64>)>,
    /// When to try again to empty the WAL, which may have the bytes of an erased message.
    pub(super) erased: Option<Instant>,
    /// When retention was last checked.
    pub(super) checked: Instant,
    pub(super) pages: Pages,
    pub(super) wal: Wal,
    /// The most bytes that were written since the pages were counted and the WAL's length was looked at.
    pub(super) unchecked: u64,
    /// Whether `db` is the file, and there are connections to read it.
    pub(super) is_open: bool,
    /// Since when a lock is taken that the writer needs. An append that succeeds ends it.
    locked_since: Option<Instant>,
}

/// The ages of messages and of keys that are asked for.
fn ages(retention: &Retention, keys: KeyLimits) -> Vec<Duration> {
    let rules = retention.rules.iter().filter_map(|rule| rule.age);
    rules.chain([retention.age, keys.window]).collect()
}

impl Writer {
    pub(super) fn new(
        opened: Opened,
        readers: Arc<Readers>,
        announcer: Announcer,
        retention: Retention,
        keys: KeyLimits,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        let Opened { db, path, state, place } = opened;
        let (head, begin) = (state.head, state.begin);
        let (epochs, shared) = (Arc::clone(&readers.epochs), Arc::clone(&readers.shared));
        let pages = Pages::of(&db)?;
        let key_rows =
            db.query_row("SELECT count(*) FROM entries INDEXED BY bare WHERE data IS NULL", [], |row| {
                row.get(0)
            })?;
        let ages = Ages::new(clock, head, state.latest, state.stored_by, ages(&retention, keys));
        let wal = Wal::of(&db)?;
        let mut writer = Writer {
            db,
            path,
            place,
            epochs,
            has_epoch: false,
            shared,
            readers,
            announcer,
            retention,
            keys,
            ages,
            head,
            swept: begin,
            walked: begin,
            key_rows,
            earlier: None,
            erased: None,
            checked: Instant::now(),
            pages,
            wal,
            unchecked: 0,
            is_open: true,
            locked_since: None,
        };
        // Where that takes a look at each message, it is done later: a start is fast.
        if writer.is_plain() {
            writer.limit_count()?;
        }
        Ok(writer)
    }

    /// Does the jobs and maintains the file, until the sender of `jobs` is dropped or the journal fails.
    /// Returns the connection if the journal has not failed, to be closed as the last one.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) -> Option<Connection> {
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
        let mut is_sweeping = !self.is_plain();
        loop {
            // While there is more to sweep, a job goes first if one waits.
            match jobs.recv_timeout(if is_sweeping { Duration::ZERO } else { TICK }) {
                Ok(Job::Rules { rules, answer }) => {
                    self.set_rules(rules);
                    let _ = answer.send(());
                }
                Ok(Job::Append { batch, answer }) => {
                    let result = self.append(batch);
                    let has_failed = matches!(result, Err(JournalError::Failed));
                    // Fails only if the hub is gone.
                    let _ = answer.send(result);
                    if has_failed {
                        return None;
                    }
                }
                // After an append, this was checked before the answer.
                Err(RecvTimeoutError::Timeout) => self.check_place().ok()?,
                Err(RecvTimeoutError::Disconnected) => break,
            }
            is_sweeping = self.maintain_until_failure().ok()?;
        }
        self.sweep_all();
        // Copies the WAL to the file, so that one file is left. If that fails, the two files are the journal.
        (self.is_open && self.shared.failure().borrow().is_none()).then(|| {
            let _ = Wal::remove(&self.db);
            self.db
        })
    }

    /// Goes by these rules from now on. The file has them once something is dropped by them. Until then, a
    /// restart finds those of before, which others may have been dropped by.
    fn set_rules(&mut self, rules: Rules) {
        self.retention.rules = rules.clone();
        self.ages.ask(ages(&self.retention, self.keys), self.head);
        (self.earlier, self.walked) = (None, self.swept);
        // What has expired does not count for a rule.
        drop(self.shared.unexpired());
        self.shared.recent_mut().set_rules(rules);
    }

    /// Maintains the file. Returns whether there may be more to do.
    fn maintain_until_failure(&mut self) -> Result<bool, JournalError> {
        let since = self.locked_since.into_iter().chain(self.wal.locked_since()).min();
        if !self.is_open || since.is_some_and(|since| since.elapsed() >= LOCK_PATIENCE) {
            self.open_anew()?;
        }
        if !self.is_open {
            return Ok(false);
        }
        let begun = Instant::now();
        let result = self.maintain();
        if matches!(&result, Err(fault) if fault.is_busy()) {
            self.locked_since.get_or_insert(begun);
        }
        match result {
            Ok(more) => Ok(more),
            // Deleting needs space and the lock as well. Both may be there at the next try.
            Err(fault) if fault.is_passing() => Ok(false),
            Err(fault) => Err(self.shared.fail(format!("can't write the journal: {fault}"))),
        }
    }

    /// Opens all connections anew, once no query runs. A lock that SQLite could not release counts as taken
    /// until the process has closed its last connection. If it is another program's after all, there are no
    /// connections until it is gone.
    fn open_anew(&mut self) -> Result<(), JournalError> {
        let shared = Arc::clone(&self.shared);
        let Some(_closed) = shared.gate().close(BUSY_TIMEOUT) else { return Ok(()) };
        if self.is_open {
            tracing::warn!("a lock on the journal has been taken for long; opening the journal anew");
        }
        self.is_open = false;
        let opened = self.readers.open_anew(&self.path, || {
            self.db = Connection::open_in_memory()?;
            self.db = file::connect_writer(&self.path)?;
            self.wal = Wal::of(&self.db)?;
            Ok(())
        });
        match opened.map_err(Fault::from) {
            Ok(()) => {
                (self.is_open, self.locked_since) = (true, None);
                Ok(())
            }
            Err(fault) if fault.is_passing() => Ok(()),
            Err(fault) => Err(shared.fail(format!(
                "can't open the journal anew, after a lock on it was taken for long: {fault}"
            ))),
        }
    }

    /// Fails if the file or its WAL was deleted, moved or replaced: what would be written to it could not be
    /// found again.
    fn check_place(&self) -> Result<(), JournalError> {
        let Some(path) = self.place.lost() else { return Ok(()) };
        // A file that was moved has then all that was acknowledged.
        let _ = Wal::remove(&self.db);
        let what = format!("{} was deleted, moved or replaced while the hub ran", path.display());
        Err(self.shared.fail(format!("can't go on with the journal: {what}")))
    }

    /// Commits the batch, and announces its new messages. They are on the disk once this returns `Ok`.
    fn append(&mut self, batch: Vec<Append>) -> Result<Vec<Appended>, JournalError> {
        if !self.is_open {
            return Err(UNAVAILABLE);
        }
        // Who comes later does not wait for the same lock as long.
        let is_locked_out = self.locked_since.is_some();
        let _ = self.db.busy_timeout(if is_locked_out { Duration::ZERO } else { BUSY_TIMEOUT });
        let begun = Instant::now();
        let erases = batch.iter().any(|append| matches!(append, Append::Erase(_)));
        let result = self.make_space(&batch).and_then(|()| {
            if erases {
                self.prepare_to_erase()?;
            }
            let committed = self.commit(batch);
            if erases {
                self.set_secure(false)?;
            }
            committed
        });
        match result {
            Ok(Committed { appended, new, erased }) => {
                self.locked_since = None;
                self.check_place()?;
                let mut recent = self.shared.recent_mut();
                recent.expire();
                erased.iter().for_each(|(channel, sequence)| recent.erase(channel, *sequence));
                new.iter().for_each(|entry| recent.push(Arc::clone(entry)));
                self.head = recent.head();
                drop(recent);
                let emptied = if erased.is_empty() { Ok(()) } else { self.empty_wal() };
                let result = emptied.and_then(|()| self.limit_count());
                self.announcer.announce(new);
                match result {
                    Err(fault) if !fault.is_passing() => {
                        Err(self.shared.fail(format!("can't write the journal: {fault}")))
                    }
                    _ => Ok(appended),
                }
            }
            Err(fault) if !fault.is_passing() || !self.db.is_autocommit() => {
                // After a failed fsync the batch may be on the disk or not, and a later fsync that succeeds
                // does not make up for it. So the journal fails for good.
                Err(self.shared.fail(format!("can't write the journal: {fault}")))
            }
            Err(fault) if fault.is_full() => {
                if fault.is_of_index()
                    && let Err(error) = Wal::erase(&self.db, &file::wal(&self.path))
                {
                    return Err(self.shared.fail(format!("can't write the journal: {fault}: {error}")));
                }
                tracing::error!(
                    error = %fault,
                    "no space for the journal; nothing of these publishes is kept"
                );
                Err(JournalError::NoSpace)
            }
            Err(fault) if fault.is_busy() => {
                self.locked_since.get_or_insert(begun);
                tracing::error!(
                    error = %fault,
                    "another program writes to the journal; nothing of these publishes is kept"
                );
                Err(UNAVAILABLE)
            }
            Err(fault) => {
                tracing::error!(
                    error = %fault,
                    "no memory to write the journal; nothing of these publishes is kept"
                );
                Err(UNAVAILABLE)
            }
        }
    }

    /// Commits the batch in one transaction. Returns the result of each append, and the new entries.
    fn commit(&mut self, batch: Vec<Append>) -> Result<Committed, Fault> {
        self.wal.begin(&self.db, self.head)?;
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut appended, mut committed) =
            (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let (mut erased, mut bare) = (Vec::new(), 0);
        let mut insert = transaction.prepare_cached(
            "INSERT INTO entries
                 (sequence, channel, event, data, time_ms, \"except\", key, request, expires_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        )?;
        let now = self.ages.now();
        let forgotten = self.ages.old(self.keys.window, now);
        for append in batch {
            let (drafts, key) = match append {
                Append::Messages { drafts, key } => (drafts, key),
                Append::Erase(id) => {
                    let found = kept(&transaction, &self.epochs, &self.shared.recent(), id)?;
                    let Some(channel) = found.filter(|_| !erased.iter().any(|(_, at)| *at == id.sequence))
                    else {
                        appended.push(Appended::NotKept);
                        continue;
                    };
                    bare += delete(&transaction, id.sequence)?;
                    erased.push((channel.clone(), id.sequence));
                    (smallvec![Draft::deleted(id, channel)], None)
                }
            };
            let is_remembered = self.keys.count > 0;
            let key = key.filter(|_| is_remembered);
            let key = key.map(|key| (row::key(self.epochs.first(), &key), Draft::fingerprint_of(&drafts)));
            if let Some((key, request)) = &key {
                match row::remembered(&transaction, &self.epochs, key)? {
                    Some((_, receipt)) if forgotten.contains(receipt.id.sequence, receipt.time) => {
                        forget_key(&transaction, receipt.id.sequence)?;
                    }
                    Some((first, receipt)) => {
                        appended.push(Appended::again(first == *request, || receipt.expand(drafts)));
                        continue;
                    }
                    None => {}
                }
            }
            let (of_key, mut begins) = (Receipt::key_of(&drafts), None);
            let mut receipts = Receipts::with_capacity(drafts.len());
            for (place, draft) in drafts.into_iter().enumerate() {
                let sequence = self.head + 1 + committed.len() as u64;
                let time = self.ages.store(sequence, now);
                let begins = || *begins.get_or_insert_with(|| self.shared.recent().now());
                let entry = Entry::new(draft.into_message(self.epochs.id(sequence), time, begins));
                let message = &entry.message;
                let key = key.as_ref().filter(|_| place == of_key);
                insert.execute(params![
                    sequence,
                    message.channel.as_str(),
                    message.event.as_str(),
                    message.data.as_json(),
                    message.time.as_ms(),
                    message.except.as_ref().map(|subscriber| subscriber.as_str()),
                    key.map(|(key, _)| key),
                    key.map(|(_, request)| request.0),
                    message.expires.map(Time::as_ms),
                ])?;
                receipts.push(Receipt::from(message));
                committed.push(Arc::new(entry));
            }
            appended.push(Appended::New(receipts));
        }
        drop(insert);
        if !committed.is_empty() && !self.has_epoch {
            let gaps = self.shared.recent().gaps();
            let gone = if self.shared.has_holes() { gaps.protected.min(gaps.others) } else { self.head };
            begin_epoch(&transaction, &self.epochs, gone)?;
        }
        if let Some(stored_by) = self.ages.unrecorded() {
            record(&transaction, stored_by)?;
        }
        if !erased.is_empty() {
            self.shared.set_holes();
            let gaps = self.shared.recent().gaps();
            schema::store_retention(&transaction, gaps, &self.retention.rules)?;
        }
        transaction.commit()?;
        self.key_rows += bare;
        self.has_epoch |= !committed.is_empty();
        self.ages.set_recorded();
        Ok(Committed { appended, new: committed, erased })
    }

    /// Prepares the next transaction to erase messages: it is to overwrite their bytes.
    fn prepare_to_erase(&mut self) -> Result<(), Fault> {
        while !self.is_complete() {
            self.complete_index()?;
        }
        drop(self.shared.unexpired());
        self.set_secure(true)
    }

    /// Whether SQLite overwrites what it deletes.
    fn set_secure(&self, is_secure: bool) -> Result<(), Fault> {
        Ok(self.db.pragma_update_and_check(None, "secure_delete", is_secure, |_| Ok(()))?)
    }

    /// Copies the WAL to the file, and empties it, as it may have the bytes of an erased message. While
    /// another program reads it, that has to wait.
    pub(super) fn empty_wal(&mut self) -> Result<(), Fault> {
        self.erased = Some(Instant::now() + OTHERS_PAUSE);
        if self.wal.empty(&self.db, self.shared.gate())? {
            self.erased = None;
        }
        Ok(())
    }
}

/// The channel of the message with this id, if it is kept.
fn kept(
    db: &Connection,
    epochs: &Epochs,
    recent: &Recent,
    id: MessageId,
) -> rusqlite::Result<Option<ChannelName>> {
    // No sequence beyond the head: one may be greater than SQLite's numbers.
    if epochs.position(id, recent.head()).is_none() || epochs.id(id.sequence) != id {
        return Ok(None);
    }
    let mut select = db.prepare_cached("SELECT channel FROM entries WHERE sequence = ?1")?;
    let channel = select.query_row([id.sequence], |row| row::channel(row, 0)).optional()?;
    let is_kept = |channel: &ChannelName| {
        id.sequence >= recent.begin() && recent.index().contains(channel, id.sequence)
    };
    Ok(channel.filter(is_kept))
}

/// Deletes the row of this message, or only its data if it is the last or has a key. Returns how many rows
/// remain, 0 or 1.
pub(super) fn delete(db: &Connection, sequence: u64) -> rusqlite::Result<usize> {
    let deleted = db
        .prepare_cached(
            "DELETE FROM entries WHERE sequence = ?1 AND data IS NOT NULL AND key IS NULL
             AND sequence < (SELECT max(sequence) FROM entries)",
        )?
        .execute([sequence])?;
    if deleted > 0 {
        return Ok(0);
    }
    db.prepare_cached("UPDATE entries SET data = NULL WHERE sequence = ?1 AND data IS NOT NULL")?
        .execute([sequence])
}

/// Writes the present epoch, and deletes those of which nothing is left before the sequence `gone`. A cursor
/// of theirs is a gap all the same, as all that follows it is dropped.
fn begin_epoch(db: &Connection, epochs: &Epochs, gone: u64) -> rusqlite::Result<()> {
    let begun = epochs.current();
    db.execute("INSERT INTO epochs VALUES (?1, ?2)", params![begun.epoch.to_string(), begun.after])?;
    db.execute(
        "DELETE FROM epochs WHERE rowid > (SELECT min(rowid) FROM epochs) AND rowid <
         (SELECT max(rowid) FROM epochs WHERE after < min(?1, (SELECT min(sequence) FROM entries)) - 1)",
        [gone],
    )
    .map(drop)
}

fn record(db: &Connection, stored_by: &[StoredBy]) -> rusqlite::Result<()> {
    db.execute("DELETE FROM stored_by", [])?;
    let mut insert = db.prepare_cached("INSERT INTO stored_by VALUES (?1, ?2)")?;
    for StoredBy { sequence, time } in stored_by {
        insert.execute(params![sequence, time.as_ms()])?;
    }
    Ok(())
}

/// Removes the key of the message at `sequence`, so that another message can have it.
fn forget_key(db: &Connection, sequence: u64) -> rusqlite::Result<()> {
    db.prepare_cached("UPDATE entries SET key = NULL, request = NULL WHERE sequence = ?1")?
        .execute([sequence])?;
    Ok(())
}
