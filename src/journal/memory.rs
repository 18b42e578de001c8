//! The journal in memory: as many messages as retention allows, lost when the process ends.

use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use tokio::sync::watch;
use tokio::task::yield_now;

use super::clock::{Clock, Moment};
use super::committed::Announcer;
use super::entry::{Append, Appended, Entry, Failure, JournalError};
use super::epochs::Epochs;
use super::keys::{KeyLimits, Keys};
use super::page::{Channels, Page, PageLimit};
use super::recent::{Recent, RecentLimit, Retention};
use crate::limits::{Network, Turns};
use crate::message::Receipt;

/// A journal that stores its messages in memory only.
#[derive(Debug)]
pub struct Memory {
    epochs: Epochs,
    stored: RwLock<Stored>,
    announcer: Announcer,
    /// The turns of those who read.
    turns: Turns,
    /// Always `None`: this journal can't fail.
    failure: watch::Sender<Option<Failure>>,
}

#[derive(Debug)]
struct Stored {
    recent: Recent,
    keys: Keys,
}

impl Memory {
    /// An empty journal with a new epoch. `retention.age` is ignored.
    pub(super) fn new(retention: Retention, keys: KeyLimits, announcer: Announcer) -> Self {
        let limit = RecentLimit { messages: retention.messages, bytes: retention.bytes };
        let stored = RwLock::new(Stored { recent: Recent::new(limit, 0, false), keys: Keys::new(keys) });
        // Half of the runtime's threads: the others go on publishing and sending.
        let at_once = std::thread::available_parallelism().map_or(1, |threads| threads.get().div_ceil(2));
        let (turns, failure) = (Turns::new(at_once), watch::Sender::new(None));
        Memory { epochs: Epochs::begin(vec![], 0), stored, announcer, turns, failure }
    }

    pub(super) fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    fn stored(&self) -> RwLockReadGuard<'_, Stored> {
        self.stored.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn head(&self) -> u64 {
        self.stored().recent.head()
    }

    pub(super) fn earliest(&self) -> u64 {
        self.stored().recent.earliest()
    }

    pub(super) fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.failure.subscribe()
    }

    pub(super) async fn append(&self, batch: Vec<Append>) -> Result<Vec<Appended>, JournalError> {
        let mut stored = self.stored.write().unwrap_or_else(PoisonError::into_inner);
        let Moment { time, instant: now } = Clock::System.now();
        // Not before an earlier message's, if the clock was set back.
        let time = stored.recent.newest_time().map_or(time, |newest| time.max(newest));
        let mut committed = Vec::with_capacity(batch.len());
        let mut append = |Append { draft, key }| {
            // Only a key needs the fingerprint, which costs as much as the rest of an append.
            let key = key.map(|key| (key, draft.fingerprint()));
            if let Some((key, request)) = &key
                && let Some((first, answer)) = stored.keys.get(key, now)
            {
                return Appended::again(first == request, || answer.clone());
            }
            let id = self.epochs.id(stored.recent.head() + 1);
            let entry = Arc::new(Entry::new(draft.into_message(id, time)));
            let receipt = Receipt::from(&entry.message);
            if let Some((key, request)) = key {
                stored.keys.insert(key, request, receipt.clone(), now);
            }
            stored.recent.push(Arc::clone(&entry));
            committed.push(entry);
            Appended::New(receipt)
        };
        let appended = batch.into_iter().map(&mut append).collect();
        self.announcer.announce(committed);
        Ok(appended)
    }

    pub(super) async fn read(
        &self,
        position: u64,
        channels: &Channels,
        latest: Option<u64>,
        limit: PageLimit,
        reader: Option<Network>,
    ) -> Result<Page, JournalError> {
        let turn = self.turns.take(reader).await;
        let page = self.stored().recent.read(position, channels, latest, limit);
        if page.entries.is_empty() && page.through < page.head {
            // Many such pages of a wide pattern may follow.
            drop(turn);
            yield_now().await;
        }
        Ok(page)
    }

    /// Always a page.
    pub(super) fn read_held(
        &self,
        position: u64,
        channels: &Channels,
        latest: Option<u64>,
        limit: PageLimit,
    ) -> Option<Page> {
        Some(self.stored().recent.read(position, channels, latest, limit))
    }

    pub(super) async fn before_newest(
        &self,
        count: usize,
        until: u64,
        channels: &Channels,
        reader: Option<Network>,
    ) -> Result<Option<u64>, JournalError> {
        let _turn = self.turns.take(reader).await;
        let Stored { recent, .. } = &*self.stored();
        let before = recent.index().before_newest(count, &(recent.earliest()..=until), channels);
        Ok(before.map(|(position, _)| position))
    }

    pub(super) async fn matching(
        &self,
        range: RangeInclusive<u64>,
        channels: &Channels,
        reader: Option<Network>,
    ) -> Result<Vec<u64>, JournalError> {
        let turn = self.turns.take(reader).await;
        let found = self.stored().recent.matching(&range, channels, None);
        drop(turn);
        yield_now().await;
        Ok(found)
    }
}
