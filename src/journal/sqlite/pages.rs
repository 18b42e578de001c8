//! The pages of the file: how many are in use, and how many are free and given back to the disk.

use std::time::{Duration, Instant};

use rusqlite::Connection;

/// How long a page must have been free to be given back. Higher: the file stays large for longer after a
/// burst. Lower: pages are given back that are soon used again.
const SPARE_TIME: Duration = Duration::from_secs(5);

/// The fewest pages that are given back: 1 MiB, of 4 KiB each. Higher: the file stays larger. Lower: pages
/// are moved about for hardly any space.
const LEAST: u64 = 256;

/// The most pages given back in one step. Higher: the next append waits longer than some milliseconds. Lower:
/// more transactions.
const STEP: u64 = 64;

/// The file's pages, as they were last counted.
#[derive(Debug)]
pub(super) struct Pages {
    /// A page's bytes.
    size: u64,
    used: u64,
    free: u64,
    /// Whether free pages can be given back. They can't in a file that was made without `auto_vacuum`.
    can_shrink: bool,
    /// The fewest free pages since `since`: so many have not been needed.
    spare: u64,
    since: Instant,
    /// How many pages are still to be given back.
    surplus: u64,
}

impl Pages {
    /// Counts the pages of this file.
    pub(super) fn of(db: &Connection) -> rusqlite::Result<Self> {
        /// `PRAGMA auto_vacuum`, where pages are given back when they are asked for.
        const INCREMENTAL: u64 = 2;
        let mut pages = Pages {
            size: pragma(db, "page_size")?,
            used: 0,
            free: 0,
            can_shrink: pragma(db, "auto_vacuum")? == INCREMENTAL,
            spare: u64::MAX,
            since: Instant::now(),
            surplus: 0,
        };
        pages.count(db)?;
        Ok(pages)
    }

    /// Counts the pages again. To be called after each transaction.
    pub(super) fn count(&mut self, db: &Connection) -> rusqlite::Result<()> {
        self.free = pragma(db, "freelist_count")?;
        self.used = pragma(db, "page_count")?.saturating_sub(self.free);
        self.spare = self.spare.min(self.free);
        Ok(())
    }

    /// The bytes of the pages in use.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used * self.size
    }

    /// Whether there are pages to give back.
    pub(super) fn has_surplus(&mut self) -> bool {
        if self.since.elapsed() >= SPARE_TIME {
            self.surplus = if self.spare < LEAST || !self.can_shrink { 0 } else { self.spare };
            (self.spare, self.since) = (self.free, Instant::now());
        }
        self.surplus > 0
    }

    /// Gives some of those pages back. The file itself shrinks when the WAL is copied to it.
    pub(super) fn give_back(&mut self, db: &Connection) -> rusqlite::Result<()> {
        let step = self.surplus.min(STEP);
        // A row for each page.
        let mut vacuum = db.prepare_cached(&format!("PRAGMA incremental_vacuum({step})"))?;
        let mut rows = vacuum.query([])?;
        while rows.next()?.is_some() {}
        drop(rows);
        self.surplus -= step;
        self.count(db)
    }
}

fn pragma(db: &Connection, name: &str) -> rusqlite::Result<u64> {
    db.prepare_cached(&format!("PRAGMA {name}"))?.query_row([], |row| row.get(0))
}
