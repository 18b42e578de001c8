//! A journal full of messages. Hubs are started on copies of it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::ensure;
use tabcast::journal::{Append, Appended, Journal, KeyLimits, Place, Retention, Rules};
use tabcast::limits::Budget;
use tabcast::message::{ChannelName, Data, Draft, EventName};

use super::files::Folder;
use super::load::{LENGTH, text};

/// Messages appended at once: each append costs an fsync.
const BATCH: usize = 5_000;

/// The journal, as a hub that was stopped leaves it.
#[derive(Debug)]
pub(crate) struct Kept {
    folder: Folder,
    /// What all ids begin with.
    pub(crate) prefix: String,
    /// The size of the file.
    pub(crate) bytes: f64,
}

impl Kept {
    /// A journal of so many messages, numbered as the load's publishers send them, each on the channel that
    /// `channel` names for its number.
    pub(crate) fn fill(count: usize, channel: impl Fn(usize) -> String) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let (age, rules) = (Duration::from_secs(3600), Rules::default());
        let retention = Retention { messages: usize::MAX, bytes: usize::MAX, age, rules };
        let keys = KeyLimits { count: 0, window: Duration::ZERO };
        let (journal, _) =
            Journal::open(&Place::File(folder.journal()), retention, keys, &Budget::unlimited())?;
        let prefix = format!("{}-", journal.id(1).epoch);
        tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
            for first in (0..count).step_by(BATCH) {
                let batch: anyhow::Result<_> = (first..count.min(first + BATCH))
                    .map(|number| Ok(Append::message(draft(number, &channel(number))?, None)))
                    .collect();
                let appended = journal.append(batch?).await?;
                ensure!(
                    appended.iter().all(|appended| matches!(appended, Appended::New(_))),
                    "an append is not new"
                );
            }
            Ok(())
        })?;
        // The drop waits for the last checkpoint: then all messages are in one file.
        drop(journal);
        // What is not on the disk yet would hold up a hub's fsyncs.
        let file = File::open(folder.journal())?;
        file.sync_all()?;
        let bytes = file.metadata()?.len() as f64;
        Ok(Kept { folder, prefix, bytes })
    }

    /// The path of its file.
    pub(crate) fn journal(&self) -> PathBuf {
        self.folder.journal()
    }

    /// A copy that is on the disk, too.
    pub(crate) fn copy(&self) -> anyhow::Result<Folder> {
        let folder = Folder::new()?;
        fs::copy(self.folder.journal(), folder.journal())?;
        File::open(folder.journal())?.sync_all()?;
        Ok(folder)
    }
}

fn draft(number: usize, channel: &str) -> anyhow::Result<Draft> {
    let data = Data::text(&text(number, LENGTH));
    let channel = ChannelName::parse(channel, channel.len())?;
    Ok(Draft { channel, event: EventName::default(), data, except: None, ttl: None })
}
