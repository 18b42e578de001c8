//! The journal in memory: as much as retention allows, gone with the process.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use super::keys::{KeyLimits, Keys};
use super::{Append, Appended, Channels, Entry, Page, PageLimit, id};
use crate::message::{Epoch, Receipt, Time};

/// How much is kept. The oldest messages are dropped to stay within each limit.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Messages.
    pub messages: usize,
    /// The sum of their [`Entry::weight`], in bytes.
    pub bytes: usize,
}

/// The journal.
#[derive(Debug)]
pub struct Journal {
    epoch: Epoch,
    retention: Retention,
    kept: RwLock<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// Newest last, without a hole: the last one's sequence is `head`.
    entries: VecDeque<Arc<Entry>>,
    bytes: usize,
    head: u64,
    keys: Keys,
}

impl Kept {
    fn earliest(&self) -> u64 {
        self.head + 1 - self.entries.len() as u64
    }
}

impl Journal {
    /// An empty journal with an epoch of its own.
    pub fn new(retention: Retention, keys: KeyLimits) -> Self {
        let kept = Kept { entries: VecDeque::new(), bytes: 0, head: 0, keys: Keys::new(keys) };
        Journal { epoch: Epoch::draw(), retention, kept: RwLock::new(kept) }
    }

    /// Which journal this is.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The sequence of the last message appended; 0 if there was none.
    pub fn head(&self) -> u64 {
        self.kept.read().unwrap_or_else(PoisonError::into_inner).head
    }

    /// Appends each message of the batch, in order, and drops what retention no longer allows.
    /// One answer per message, in the same order.
    pub fn append(&self, batch: impl IntoIterator<Item = Append>) -> Vec<Appended> {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        batch.into_iter().map(|append| self.append_one(&mut kept, append)).collect()
    }

    fn append_one(&self, kept: &mut Kept, Append { draft, key }: Append) -> Appended {
        let now = Instant::now();
        // Hashing costs as much as the rest of an append; only a key needs it.
        let key = key.map(|key| (key, draft.fingerprint()));
        if let Some((key, request)) = &key
            && let Some((first, answer)) = kept.keys.get(key, now)
        {
            return if first == request { Appended::Repeated(answer.clone()) } else { Appended::KeyReused };
        }
        let entry = Arc::new(Entry::new(draft.into_message(id(self.epoch, kept.head + 1), Time::now())));
        if let Some((key, request)) = key {
            kept.keys.insert(key, request, Receipt::from(&entry.message), now);
        }
        kept.head += 1;
        kept.bytes += entry.weight();
        kept.entries.push_back(Arc::clone(&entry));
        // The newest stays whatever its size: it was accepted, and its subscribers are yet to read it.
        while kept.entries.len() > 1
            && (kept.entries.len() > self.retention.messages || kept.bytes > self.retention.bytes)
        {
            if let Some(dropped) = kept.entries.pop_front() {
                kept.bytes -= dropped.weight();
            }
        }
        Appended::New(entry)
    }

    /// The kept messages after `position` on `channels`.
    pub fn read(&self, position: u64, channels: &Channels, limit: PageLimit) -> Page {
        /// Entries looked at under one lock: a quiet channel must not make publishers wait while
        /// a whole journal of others is skipped.
        const SCAN: usize = 4096;

        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let (head, earliest) = (kept.head, kept.earliest());
        let mut page = Page { entries: Vec::new(), through: position.max(earliest - 1), head, earliest };
        let mut bytes = 0;
        let read = usize::try_from(page.through + 1 - earliest).unwrap_or(usize::MAX);
        for entry in kept.entries.range(read.min(kept.entries.len())..).take(SCAN) {
            if channels.contains(&entry.message.channel) {
                bytes += entry.weight();
                let full = page.entries.len() == limit.messages || bytes > limit.bytes;
                if full && !page.entries.is_empty() {
                    break;
                }
                page.entries.push(Arc::clone(entry));
            }
            page.through = entry.message.id.sequence;
        }
        page
    }

    /// The position from which a read gives the newest `count` kept messages on `channels`, or as
    /// many as there are.
    pub fn position_before_newest(&self, count: usize, channels: &Channels) -> u64 {
        let kept = self.kept.read().unwrap_or_else(PoisonError::into_inner);
        let newest = kept.entries.iter().rev().filter(|entry| channels.contains(&entry.message.channel));
        newest.take(count).last().map_or(kept.head, |entry| entry.message.id.sequence - 1)
    }
}
