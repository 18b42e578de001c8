//! The WAL: SQLite's write-ahead log beside the file. It is copied to the file, and started over, before it
//! gets long.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::file::BUSY_TIMEOUT;
use super::gate::Gate;

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
const OTHERS_PAUSE: Duration = Duration::from_secs(5);

/// When the WAL may be copied and started over again.
#[derive(Debug)]
pub(super) struct Wal {
    /// Not before this time, as the hub's own queries hindered it.
    own_pause: Instant,
    /// Not started over before this time, as another program hindered it.
    others_pause: Instant,
    /// Whether all of it is to be copied although it is short: only then is the file cut to its pages.
    cuts_file: bool,
}

/// What a checkpoint says of the WAL.
#[derive(Debug)]
struct Length {
    /// Whether somebody who reads has hindered the checkpoint.
    was_hindered: bool,
    pages: i64,
    /// How many of the pages are in the file.
    copied: i64,
}

impl Wal {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Wal { own_pause: now, others_pause: now, cuts_file: false }
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
            let Some(_closed) = gate.close(if pages > MOST_PAGES { BUSY_TIMEOUT } else { OWN_WAIT }) else {
                self.own_pause = Instant::now() + OWN_PAUSE;
                return Ok(());
            };
            if checkpoint(db, "RESTART")?.was_hindered {
                self.others_pause = Instant::now() + OTHERS_PAUSE;
            }
        } else if !is_own_pause && (pages - copied > COPY_PAGES || self.cuts_file) {
            let Length { pages, copied, .. } = checkpoint(db, "PASSIVE")?;
            self.cuts_file &= copied < pages;
            if copied < pages {
                self.own_pause = Instant::now() + OWN_PAUSE;
            }
        }
        Ok(())
    }

    /// Copies all of the WAL to the file, and removes it.
    pub(super) fn remove(db: &Connection) -> rusqlite::Result<()> {
        checkpoint(db, "TRUNCATE").map(drop)
    }
}

/// Runs a checkpoint in this mode of SQLite's.
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
            let mut wal = Wal::new();
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
