//! What a journal's file is, in words: for `tabcast verify`.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::file::{self, OpenError};
use super::open::Reading;
use super::row;
use super::schema::{self, State};
use crate::journal::epochs::{Begun, Epochs};

/// The most faults that a report has.
const MOST: usize = 10;

/// What a journal's file is. Displayed in words.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    version: i32,
    begun: Vec<Begun>,
    epochs: Epochs,
    /// The sequences of the first message kept, and of the last.
    kept: Option<(u64, u64)>,
    /// The messages kept, and their bytes.
    messages: (u64, u64),
    keys: u64,
    /// A page's bytes, and how many pages there are, and are free.
    pages: (u64, u64, u64),
    /// The bytes of the write-ahead log.
    wal: u64,
    faults: Vec<String>,
}

/// Reads all of the file, also while a hub of another process has it. The file stays as it is. Not for a file
/// that this process has open: closing it here would drop the locks that SQLite holds on it.
///
/// # Errors
/// [`OpenError`] if the file can't be opened as a journal.
pub fn verify(path: &Path) -> Result<Report, OpenError> {
    let reading = Reading::open(path)?;
    let Reading { db, state, .. } = &reading;
    let damaged = OpenError::Damaged;
    let pragma = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, u64>(0)).map_err(damaged);
    let mut faults = Vec::new();
    let mut check = db.prepare(&format!("PRAGMA integrity_check({MOST})")).map_err(damaged)?;
    match check.query_map([], |row| row.get(0)).and_then(Iterator::collect::<rusqlite::Result<Vec<String>>>) {
        Ok(found) => faults.extend(found.into_iter().filter(|fault| fault != "ok")),
        Err(error) => faults.push(error.to_string()),
    }
    drop(check);
    let epochs = Epochs::of(state.epochs.clone());
    let messages = check_rows(db, state, &epochs, &mut faults).unwrap_or_else(|error| {
        faults.push(error.to_string());
        (0, 0)
    });
    let keys = format!("SELECT count(*) FROM {} WHERE key IS NOT NULL", schema::table(state.version));
    let keys = db.query_row(&keys, [], |row| row.get(0)).unwrap_or(0);
    let pages = (pragma("page_size")?, pragma("page_count")?, pragma("freelist_count")?);
    let wal = fs::metadata(file::wal(path)).map_or(0, |file| file.len());
    let kept = (state.begin <= state.head).then_some((state.begin, state.head));
    let (path, version, begun) = (path.to_owned(), state.version, state.epochs.clone());
    Ok(Report { path, version, begun, kept, epochs, messages, keys, pages, wal, faults })
}

/// Parses each kept message, and adds what is wrong to `faults`. Returns how many messages there are, and
/// their bytes.
fn check_rows(
    db: &Connection,
    state: &State,
    epochs: &Epochs,
    faults: &mut Vec<String>,
) -> rusqlite::Result<(u64, u64)> {
    let mut select = db.prepare(&format!(
        "SELECT sequence, channel, event, data, time_ms, \"except\", {} FROM {}
         WHERE data IS NOT NULL ORDER BY sequence",
        if state.is_complete { "expires_ms" } else { "NULL" },
        schema::table(state.version)
    ))?;
    let mut rows = select.query([])?;
    let (mut count, mut bytes, mut expected) = (0, 0, state.begin);
    while let Some(row) = rows.next()?
        && faults.len() < MOST
    {
        let sequence: u64 = row.get(0)?;
        // Where messages were dropped one by one, nobody knows which should be there.
        if sequence != expected && state.earliest.is_none() {
            faults.push(format!("message {sequence} is where {expected} should be"));
        }
        expected = sequence + 1;
        match row::channel(row, 1).and_then(|channel| row::entry(row, epochs.id(sequence), channel)) {
            Ok(entry) => bytes += entry.message.data.as_json().len() as u64,
            Err(error) => faults.push(format!("message {sequence}: {error}")),
        }
        count += 1;
    }
    Ok((count, bytes))
}

impl Report {
    /// Whether nothing is wrong with the file.
    pub fn is_sound(&self) -> bool {
        self.faults.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { path, version, begun, epochs, kept, messages, keys, pages, wal, faults } = self;
        let size = bytesize::ByteSize;
        let soundness = if faults.is_empty() { "sound" } else { "damaged" };
        writeln!(out, "{}: a journal of version {version}, {soundness}", path.display())?;
        for fault in faults {
            writeln!(out, "  damage    {fault}")?;
        }
        write!(out, "  messages  {} kept, {} of data", messages.0, size(messages.1))?;
        if let Some((first, last)) = kept {
            write!(out, ", from {} to {}", epochs.id(*first), epochs.id(*last))?;
        }
        write!(out, "\n  epochs    {}", begun.len())?;
        for (number, begun) in begun.iter().enumerate() {
            let before = if number == 0 { ": " } else { ", " };
            write!(out, "{before}{} after {}", begun.epoch, begun.after)?;
        }
        writeln!(out, "\n  keys      {keys} remembered")?;
        let (page, count, free) = pages;
        write!(out, "  file      {} in {count} pages, {free} of them free", size(count * page))?;
        if *wal > 0 {
            write!(out, "\n  log       {} in {}", size(*wal), file::wal(path).display())?;
        }
        Ok(())
    }
}
