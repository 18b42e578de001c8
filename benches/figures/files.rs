//! Files for a measurement, on the disk that the build is on: one in memory would have no fsync to wait
//! for. They are removed with what they are for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use tabcast::journal::{Append, Appended, Journal, KeyLimits, Place, Retention};
use tabcast::message::{ChannelName, Data, Draft, EventName};

use super::load::DATA;

/// Messages appended at once: each append costs an fsync.
const BATCH: usize = 5_000;

/// A folder of this process.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> anyhow::Result<Self> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("figures-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir(&path).with_context(|| format!("can't make {}", path.display()))?;
        Ok(Folder(path))
    }

    /// Where its one journal is, or has to be.
    pub(crate) fn journal(&self) -> PathBuf {
        self.0.join("journal.db")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A journal full of messages, as a hub that was stopped leaves it. Hubs get copies.
#[derive(Debug)]
pub(crate) struct Kept {
    folder: Folder,
    /// What all ids begin with.
    pub(crate) prefix: String,
    /// Of the file.
    pub(crate) bytes: f64,
}

impl Kept {
    /// A journal of so many messages, each as the load's publishers send them.
    pub(crate) fn fill(count: usize) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let retention = Retention { messages: usize::MAX, bytes: usize::MAX, age: Duration::from_secs(3600) };
        let keys = KeyLimits { count: 0, window: Duration::ZERO };
        let journal = Journal::open(&Place::File(folder.journal()), retention, keys)?;
        let prefix = format!("{}-", journal.epoch());
        tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
            for first in (0..count).step_by(BATCH) {
                let batch = (first..count.min(first + BATCH)).map(|_| Append { draft: draft(), key: None });
                let appended = journal.append(batch.collect()).await?;
                ensure!(appended.iter().all(|appended| matches!(appended, Appended::New(_))), "an append is not new");
            }
            Ok(())
        })?;
        // Waits for the last checkpoint: all is in one file then.
        drop(journal);
        let bytes = folder.journal().metadata()?.len() as f64;
        Ok(Kept { folder, prefix, bytes })
    }

    /// A copy, on the disk already: writing it there would hold up the hub's fsyncs.
    pub(crate) fn copy(&self) -> anyhow::Result<Folder> {
        let folder = Folder::new()?;
        fs::copy(self.folder.journal(), folder.journal())?;
        File::open(folder.journal())?.sync_all()?;
        Ok(folder)
    }
}

fn draft() -> Draft {
    Draft { channel: ChannelName::default(), event: EventName::default(), data: Data::text(DATA), except: None }
}
