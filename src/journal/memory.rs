//! The journal in memory: as much as retention allows, gone with the process.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use super::keys::Keys;
use super::tail::{Tail, TailLimit};
use super::{Append, Appended, Channels, Entry, KeyLimits, Page, PageLimit, Retention};
use crate::message::{Epoch, MessageId, Receipt, Time};

/// A journal that is a tail and nothing else.
#[derive(Debug)]
pub struct Memory {
    epoch: Epoch,
    kept: RwLock<Kept>,
}

#[derive(Debug)]
struct Kept {
    tail: Tail,
    keys: Keys,
}

impl Memory {
    /// An empty journal with an epoch of its own. Retention by age is not for memory.
    pub fn new(retention: Retention, keys: KeyLimits) -> Self {
        let limit = TailLimit { messages: retention.messages, bytes: retention.bytes };
        let kept = Kept { tail: Tail::new(limit, 0), keys: Keys::new(keys) };
        Memory { epoch: Epoch::draw(), kept: RwLock::new(kept) }
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn kept(&self) -> RwLockReadGuard<'_, Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn head(&self) -> u64 {
        self.kept().tail.head()
    }

    pub(super) fn append(&self, batch: Vec<Append>) -> Vec<Appended> {
        let mut kept = self.kept.write().unwrap_or_else(PoisonError::into_inner);
        let (now, time) = (Instant::now(), Time::now());
        batch.into_iter().map(|append| self.append_one(&mut kept, append, now, time)).collect()
    }

    fn append_one(
        &self,
        kept: &mut Kept,
        Append { draft, key }: Append,
        now: Instant,
        time: Time,
    ) -> Appended {
        // Hashing costs as much as the rest of an append; only a key needs it.
        let key = key.map(|key| (key, draft.fingerprint()));
        if let Some((key, request)) = &key
            && let Some((first, answer)) = kept.keys.get(key, now)
        {
            return Appended::again(first == request, || answer.clone());
        }
        let id = MessageId { epoch: self.epoch, sequence: kept.tail.head() + 1 };
        let entry = Arc::new(Entry::new(draft.into_message(id, time)));
        if let Some((key, request)) = key {
            kept.keys.insert(key, request, Receipt::from(&entry.message), now);
        }
        kept.tail.push(Arc::clone(&entry));
        Appended::New(entry)
    }

    pub(super) fn read(&self, position: u64, channels: &Channels, limit: PageLimit) -> Page {
        self.kept().tail.read(position, channels, limit)
    }

    pub(super) fn position_before_newest(&self, count: usize, channels: &Channels) -> u64 {
        self.kept().tail.position_before_newest(count, channels).0
    }
}
