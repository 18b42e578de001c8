//! The WAL: SQLite's write-ahead log beside the file. It is copied to the file, and started over, before it
//! gets long.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::gate::Gate;
use super::link;

/// How long a connection waits while another program writes to the file. Higher: publishers wait longer
/// before they are refused, and a stop takes longer. Lower: a short write of another program makes the
/// journal unavailable.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(1);

/// The number of pages at which the WAL is copied to the file: some 8 MiB, of 4 KiB each. SQLite then starts
/// it over by itself, unless it is being read. Higher: reads search a longer WAL. Lower: pages that change
/// often are copied more often.
const COPY_PAGES: i64 = 2_000;

/// The number of pages at which the hub's own queries are held up for a moment, so that nobody reads the WAL:
/// 16 MiB. Higher: the WAL takes more disk space. Lower: queries are held up although SQLite would have
/// started the WAL over by itself.
const RESTART_PAGES: i64 = 4_000;

/// The number of pages at which publishers wait as long as the hub's own queries take: 32 MiB. Higher: the
/// bound in docs/operations.md no longer holds. Lower: publishers wait more often.
const MOST_PAGES: i64 = 8_000;

/// How long publishers wait then. Lower: the log grows further under long queries. Higher: of no use, as no
/// query takes longer.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// How long publishers wait for the hub's own queries before that. Lower: most queries need longer. Higher:
/// publishers notice.
const OWN_WAIT: Duration = Duration::from_millis(5);

/// The shortest time between two such waits, and between two copies that queries hindered. Higher: the WAL
/// grows by more. Lower: publishers wait more often.
const OWN_PAUSE: Duration = Duration::from_millis(50);

/// How long publishers wait for another program that reads. Lower: it may be done in a moment. Higher: of no
/// use, as it may need hours.
const OTHERS_WAIT: Duration = Duration::from_millis(50);

/// The shortest time between two such waits. Higher: the WAL grows for longer. Lower: publishers wait more
/// often.
pub(super) const OTHERS_PAUSE: Duration = Duration::from_secs(5);

/// When the WAL may be copied and started over again.
#[derive(Debug)]
pub(super) struct Wal {
    /// Not before this time, as the hub's own queries hindered it.
    own_pause: Instant,
    /// Not started over before this time, as another program hindered it.
    others_pause: Instant,
    /// Whether all of it is to be copied although it is short: only then is the file cut to its pages.
    cuts_file: bool,
    /// Whether all of it is copied, so that what is written next may begin it anew.
    is_copied: bool,
    /// Since when another connection has had the lock that copying needs.
    locked_since: Option<Instant>,
}

/// What a checkpoint says of the WAL.
#[derive(Debug)]
struct Length {
    /// Whether somebody who reads has hindered the checkpoint.
    was_hindered: bool,
    /// -1 if another connection has the lock that copying needs; then `copied` is -1 too.
    pages: i64,
    /// How many of the pages are in the file.
    copied: i64,
}

impl Length {
    fn is_locked(&self) -> bool {
        self.pages < 0
    }

    /// Whether all pages are known to be in the file.
    fn is_whole(&self) -> bool {
        !self.is_locked() && self.copied == self.pages
    }
}

impl Wal {
    /// The WAL of this connection's file. What a killed hub has left of it may not be copied yet.
    pub(super) fn of(db: &Connection) -> rusqlite::Result<Self> {
        let (now, is_copied) = (Instant::now(), checkpoint(db, "NOOP")?.is_whole());
        Ok(Wal { own_pause: now, others_pause: now, cuts_file: false, is_copied, locked_since: None })
    }

    /// To be called before each transaction: links a WAL that may begin anew to its file. `head` is the
    /// sequence of the last message.
    pub(super) fn begin(&mut self, db: &Connection, head: u64) -> rusqlite::Result<()> {
        if self.is_copied {
            link::renew(db, head)?;
            self.is_copied = false;
        }
        Ok(())
    }

    /// Has all of the WAL copied as soon as possible, as the file has fewer pages now.
    pub(super) fn cut_file(&mut self) {
        self.cuts_file = true;
    }

    /// Copies the WAL to the file, and starts it over, if it is long. To be called after each transaction.
    pub(super) fn shorten(&mut self, db: &Connection, gate: &Gate) -> rusqlite::Result<()> {
        let Length { pages, copied, .. } = checkpoint(db, "NOOP")?;
        let now = Instant::now();
        let is_own_pause = now < self.own_pause;
        if pages > RESTART_PAGES && self.others_pause <= now && (pages > MOST_PAGES || !is_own_pause) {
            let Some(_closed) = gate.close(if pages > MOST_PAGES { LONGEST_WAIT } else { OWN_WAIT }) else {
                self.own_pause = Instant::now() + OWN_PAUSE;
                return Ok(());
            };
            let length = checkpoint(db, "RESTART")?;
            self.note(&length);
            if length.was_hindered {
                self.others_pause = Instant::now() + OTHERS_PAUSE;
            }
        } else if !is_own_pause && (pages - copied > COPY_PAGES || self.cuts_file) {
            let length = checkpoint(db, "PASSIVE")?;
            self.note(&length);
            self.cuts_file &= !length.is_whole();
            if !length.is_whole() {
                self.own_pause = Instant::now() + OWN_PAUSE;
            }
        }
        Ok(())
    }

    /// Notes what came of a copy.
    fn note(&mut self, length: &Length) {
        self.is_copied |= length.is_whole();
        let since = self.locked_since.unwrap_or_else(Instant::now);
        self.locked_since = length.is_locked().then_some(since);
    }

    /// Since when another connection has kept the WAL from being copied at all.
    pub(super) fn locked_since(&self) -> Option<Instant> {
        self.locked_since
    }

    /// Copies all of the WAL to the file, and empties it. Returns whether nobody hindered that.
    pub(super) fn remove(db: &Connection) -> rusqlite::Result<bool> {
        Ok(!checkpoint(db, "TRUNCATE")?.was_hindered)
    }

    /// Copies all of the WAL to the file, and empties it, while the hub's own queries are held up. Returns
    /// whether nobody else hindered that.
    pub(super) fn empty(&mut self, db: &Connection, gate: &Gate) -> rusqlite::Result<bool> {
        let Some(_closed) = gate.close(LONGEST_WAIT) else { return Ok(false) };
        let length = checkpoint(db, "TRUNCATE")?;
        self.note(&length);
        Ok(length.is_whole() && !length.was_hindered)
    }

    /// Has on the disk that the last transaction failed. SQLite can write all of one to the WAL, and then
    /// have no space for the WAL's index: whoever opens the file next would take it for committed.
    pub(super) fn erase(db: &Connection, path: &Path) -> io::Result<()> {
        /// SQLite's file format, section 4.1: the bytes of the WAL's header, and of a frame's before its
        /// page.
        const HEADER: u64 = 32;
        const FRAME: u64 = 24;
        let length = checkpoint(db, "NOOP").map_err(io::Error::other)?;
        let page: u64 =
            db.pragma_query_value(None, "page_size", |row| row.get(0)).map_err(io::Error::other)?;
        let file = File::options().write(true).open(path)?;
        // Where all is copied, the transaction may have been written to the beginning.
        for frames in [length.pages.cast_unsigned()].into_iter().chain(length.is_whole().then_some(0)) {
            let at = HEADER + frames * (FRAME + page);
            if at + FRAME <= fs::metadata(path)?.len() {
                file.write_all_at(&[0; FRAME as usize], at)?;
            }
        }
        file.sync_all()
    }
}

/// Runs a checkpoint in this mode of SQLite's. NOOP only looks at the WAL.
fn checkpoint(db: &Connection, mode: &str) -> rusqlite::Result<Length> {
    let mut pragma = db.prepare_cached(&format!("PRAGMA wal_checkpoint({mode})"))?;
    db.busy_timeout(OTHERS_WAIT)?;
    let length = pragma.query_row([], |row| {
        Ok(Length { was_hindered: row.get(0)?, pages: row.get(1)?, copied: row.get(2)? })
    });
    db.busy_timeout(BUSY_TIMEOUT)?;
    length
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn the_wal_is_started_over_although_there_is_always_a_query_that_reads_it() {
        let folder = std::env::temp_dir().join(format!("tabcast-wal-{}", std::process::id()));
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("db");
        let db = Connection::open(&file).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        db.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
        db.execute_batch("CREATE TABLE t (data)").unwrap();
        let (gate, done) = (Gate::default(), AtomicBool::new(false));
        let mut longest = 0;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let db = Connection::open(&file).unwrap();
                    while !done.load(Ordering::Relaxed) {
                        let _inside = gate.enter();
                        db.execute_batch("BEGIN; SELECT * FROM t").unwrap();
                        std::thread::sleep(Duration::from_millis(20));
                        db.execute_batch("COMMIT").unwrap();
                    }
                });
            }
            let mut wal = Wal::of(&db).unwrap();
            for _ in 0..150 {
                db.execute("INSERT INTO t VALUES (zeroblob(1 << 20))", []).unwrap();
                db.execute("DELETE FROM t", []).unwrap();
                wal.shorten(&db, &gate).unwrap();
                longest = longest.max(checkpoint(&db, "NOOP").unwrap().pages);
            }
            done.store(true, Ordering::Relaxed);
        });
        std::fs::remove_dir_all(folder).unwrap();
        assert!(longest < MOST_PAGES + 600, "{longest} pages");
    }
}
