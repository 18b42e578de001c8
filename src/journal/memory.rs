//! The journal in memory: as many messages as retention allows, lost when the process ends.

use std::mem;
use std::ops::RangeInclusive;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use smallvec::smallvec;
use tokio::sync::watch;
use tokio::task::yield_now;

use super::clock::{Clock, Moment};
use super::committed::Announcer;
use super::entry::{Append, Appended, Entry, Failure, JournalError};
use super::epochs::Epochs;
use super::index::Found;
use super::keys::{KeyLimits, Keys};
use super::page::{Channels, Page, PageLimit};
use super::passed::Passed;
use super::recent::{Recent, RecentLimit, Retention};
use super::rules::Rules;
use crate::limits::{Network, Turns};
use crate::message::{ChannelName, Draft, MessageId, Receipt, Receipts, Time};

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
    /// The time of the last message.
    latest: Time,
    /// The rules that have an age, by their numbers.
    ages: Vec<(usize, Passed)>,
}

impl Stored {
    /// Whether messages are to be dropped that have expired, or have the age of their rule.
    fn is_overdue(&self, now: Instant) -> bool {
        let is_old = |(rule, passed): &(usize, Passed)| {
            let oldest = self.recent.index().oldest(*rule);
            oldest.is_some_and(|(sequence, _)| sequence < passed.before(now))
        };
        self.recent.has_expired() || self.ages.iter().any(is_old)
    }

    /// Drops those messages.
    fn drop_overdue(&mut self, now: Instant) {
        self.recent.expire();
        for (rule, passed) in &self.ages {
            let before = passed.before(now);
            self.recent.drop_old(*rule, |sequence| sequence < before);
        }
    }
}

/// The rules that have an age, by their numbers.
fn ages(rules: &Rules) -> impl Iterator<Item = (usize, Passed)> {
    rules.iter().enumerate().filter_map(|(rule, of)| Some((rule, Passed::new(of.age?))))
}

impl Memory {
    /// An empty journal with a new epoch. `retention.age` is ignored.
    pub(super) fn new(retention: Retention, keys: KeyLimits, announcer: Announcer) -> Self {
        let Retention { messages, bytes, rules, .. } = retention;
        let ages = ages(&rules).collect();
        let recent = Recent::new(RecentLimit { messages, bytes }, rules);
        let (keys, latest) = (Keys::new(keys), Time::from_ms(0));
        let stored = RwLock::new(Stored { recent, keys, latest, ages });
        // Half of the runtime's threads: the others go on publishing and sending.
        let at_once = std::thread::available_parallelism().map_or(1, |threads| threads.get().div_ceil(2));
        let (turns, failure) = (Turns::new(at_once), watch::Sender::new(None));
        Memory { epochs: Epochs::begin(vec![], 0), stored, announcer, turns, failure }
    }

    /// Goes by these rules from now on. Of an age that no rule had before, the messages have none yet.
    pub(super) async fn set_rules(&self, rules: Rules) {
        let mut stored = self.stored.write().unwrap_or_else(PoisonError::into_inner);
        let (now, head) = (Instant::now(), stored.recent.head());
        // What has expired does not count for a rule.
        stored.drop_overdue(now);
        let mut before = mem::take(&mut stored.ages);
        stored.ages = ages(&rules)
            .map(|(rule, mut new)| match before.iter().position(|(_, passed)| passed.age == new.age) {
                Some(known) => (rule, before.swap_remove(known).1),
                None => {
                    new.store(now, head);
                    (rule, new)
                }
            })
            .collect();
        stored.recent.set_rules(rules);
        stored.drop_overdue(now);
    }

    pub(super) fn epochs(&self) -> &Epochs {
        &self.epochs
    }

    /// What is stored, without what is to be dropped by now.
    fn stored(&self) -> RwLockReadGuard<'_, Stored> {
        let now = Instant::now();
        let stored = self.stored.read().unwrap_or_else(PoisonError::into_inner);
        if !stored.is_overdue(now) {
            return stored;
        }
        drop(stored);
        self.stored.write().unwrap_or_else(PoisonError::into_inner).drop_overdue(now);
        self.stored.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn head(&self) -> u64 {
        self.stored().recent.head()
    }

    pub(super) fn begin(&self) -> u64 {
        self.stored().recent.begin()
    }

    pub(super) fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.failure.subscribe()
    }

    pub(super) async fn append(&self, batch: Vec<Append>) -> Result<Vec<Appended>, JournalError> {
        let mut stored = self.stored.write().unwrap_or_else(PoisonError::into_inner);
        let Moment { time, instant: now } = Clock::System.now();
        stored.drop_overdue(now);
        // Not before an earlier message's, if the clock was set back.
        let time = time.max(stored.latest);
        stored.latest = time;
        let mut committed = Vec::with_capacity(batch.len());
        let mut append = |append| {
            let (drafts, key) = match append {
                Append::Messages { drafts, key } => (drafts, key),
                Append::Erase(id) => match self.erase(&mut stored.recent, id) {
                    Some(channel) => (smallvec![Draft::deleted(id, channel)], None),
                    None => return Appended::NotKept,
                },
            };
            // Only a key needs the fingerprint, which costs as much as the rest of an append.
            let key = key.map(|key| (key, Draft::fingerprint_of(&drafts)));
            if let Some((key, request)) = &key
                && let Some((first, answer)) = stored.keys.get(key, now)
            {
                return Appended::again(first == request, || answer.clone().expand(drafts));
            }
            let (of_key, mut begins) = (Receipt::key_of(&drafts), None);
            let mut store = |draft: Draft| {
                let sequence = stored.recent.head() + 1;
                let begins = || *begins.get_or_insert_with(|| stored.recent.now());
                let entry = Arc::new(Entry::new(draft.into_message(self.epochs.id(sequence), time, begins)));
                let receipt = Receipt::from(&entry.message);
                for (_, passed) in &mut stored.ages {
                    passed.store(now, sequence);
                }
                stored.recent.push(Arc::clone(&entry));
                committed.push(entry);
                receipt
            };
            let receipts: Receipts = drafts.into_iter().map(&mut store).collect();
            if let Some((key, request)) = key {
                stored.keys.insert(key, request, receipts[of_key].clone(), now);
            }
            Appended::New(receipts)
        };
        let appended = batch.into_iter().map(&mut append).collect();
        self.announcer.announce(committed);
        Ok(appended)
    }

    /// Drops the message with this id. Returns its channel, or `None` if it is not kept.
    fn erase(&self, recent: &mut Recent, id: MessageId) -> Option<ChannelName> {
        let sequence = self.epochs.position(id, recent.head())?;
        let channel = recent.get(sequence).filter(|message| message.id == id)?.channel.clone();
        recent.remove(&channel, sequence).then_some(channel)
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
        let before = recent.index().before_newest(count, &(recent.begin()..=until), channels);
        Ok(before.map(|(position, _)| position))
    }

    pub(super) async fn matching(
        &self,
        range: RangeInclusive<u64>,
        channels: &Channels,
        reader: Option<Network>,
    ) -> Result<Found, JournalError> {
        let turn = self.turns.take(reader).await;
        let found = self.stored().recent.matching(&range, channels, None);
        drop(turn);
        yield_now().await;
        Ok(found)
    }
}
