//! Idempotency keys: the receipt that a publisher's key was answered with, remembered for a while.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::limits::Owner;
use crate::message::{Fingerprint, IdempotencyKey, Receipt};

/// A publisher's idempotency key. Another owner's same text is another key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Whose key it is.
    pub owner: Owner,
    /// The key as the publisher gave it.
    pub text: IdempotencyKey,
}

/// How many keys are remembered, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct KeyLimits {
    /// The most keys. One more replaces the oldest of the owner that has the most.
    pub count: usize,
    /// How long a key is remembered after its message was stored.
    pub window: Duration,
}

/// The remembered keys of a journal in memory.
#[derive(Debug)]
pub(super) struct Keys {
    limits: KeyLimits,
    /// How many keys there are of all owners.
    count: usize,
    /// The keys of each owner. None has no keys.
    owners: HashMap<Owner, Own>,
    /// Each owner by the time of its oldest key.
    by_age: BTreeSet<(Instant, Owner)>,
    /// Each owner by the number of its keys; of those with as many, the one with the oldest key is last.
    by_count: BTreeSet<(usize, Reverse<Instant>, Owner)>,
}

/// The keys of one owner.
#[derive(Debug, Default)]
struct Own {
    answers: HashMap<IdempotencyKey, (Fingerprint, Receipt)>,
    /// When each key was inserted, oldest first.
    order: VecDeque<(Instant, IdempotencyKey)>,
}

impl Keys {
    pub(super) fn new(limits: KeyLimits) -> Self {
        Keys { limits, count: 0, owners: HashMap::new(), by_age: BTreeSet::new(), by_count: BTreeSet::new() }
    }

    /// The request that came with `key`, and its receipt. `None` if the key is not remembered.
    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Option<&(Fingerprint, Receipt)> {
        self.forget_expired(now);
        self.owners.get(&key.owner)?.answers.get(&key.text)
    }

    /// Remembers the request and the receipt of a key that is not remembered yet.
    pub(super) fn insert(&mut self, key: Key, request: Fingerprint, answer: Receipt, now: Instant) {
        self.forget_expired(now);
        let Key { owner, text } = key;
        self.change(owner, |own| {
            own.order.push_back((now, text.clone()));
            own.answers.insert(text, (request, answer));
        });
        self.count += 1;
        // Not before the insertion: an owner with as many keys as this one would lose its own.
        if self.count > self.limits.count
            && let Some(&(_, _, owner)) = self.by_count.last()
        {
            self.forget_oldest(owner);
        }
    }

    /// Forgets the keys past the window.
    fn forget_expired(&mut self, now: Instant) {
        while let Some(&(oldest, owner)) = self.by_age.first()
            && now.duration_since(oldest) >= self.limits.window
        {
            self.forget_oldest(owner);
        }
    }

    fn forget_oldest(&mut self, owner: Owner) {
        self.change(owner, |own| {
            let (_, text) = own.order.pop_front().expect("an owner without keys is not among them");
            own.answers.remove(&text);
        });
        self.count -= 1;
    }

    /// Changes the keys of an owner, and its places among the others.
    fn change(&mut self, owner: Owner, change: impl FnOnce(&mut Own)) {
        let own = self.owners.entry(owner).or_default();
        if let Some((oldest, count)) = own.oldest_and_count() {
            self.by_age.remove(&(oldest, owner));
            self.by_count.remove(&(count, Reverse(oldest), owner));
        }
        change(own);
        if let Some((oldest, count)) = own.oldest_and_count() {
            self.by_age.insert((oldest, owner));
            self.by_count.insert((count, Reverse(oldest), owner));
        } else {
            self.owners.remove(&owner);
        }
    }
}

impl Own {
    /// The time of the oldest key, and how many keys there are. `None` if there are none.
    fn oldest_and_count(&self) -> Option<(Instant, usize)> {
        self.order.front().map(|(oldest, _)| (*oldest, self.order.len()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::limits::Network;
    use crate::message::{ChannelName, Epoch, EventName, MessageId, Time};

    fn receipt(sequence: u64) -> Receipt {
        Receipt {
            id: MessageId { epoch: Epoch::draw(), sequence },
            channel: ChannelName::default(),
            event: EventName::default(),
            time: Time::now(),
            expires: None,
        }
    }

    fn key(network: u8, text: &str) -> Key {
        let owner = Network::from(IpAddr::from([10, 0, 0, network])).into();
        Key { owner, text: IdempotencyKey::parse(text).unwrap() }
    }

    #[test]
    fn the_owner_with_the_most_keys_loses_its_oldest_and_among_equals_the_one_with_the_oldest_key() {
        let mut keys = Keys::new(KeyLimits { count: 4, window: Duration::from_secs(10) });
        let start = Instant::now();
        let inserted = [(2, "x"), (1, "a"), (1, "b"), (1, "c"), (3, "y"), (3, "x"), (4, "x")];
        for (number, (network, text)) in inserted.into_iter().enumerate() {
            let now = start + Duration::from_millis(number as u64);
            keys.insert(key(network, text), Fingerprint([0; 32]), receipt(number as u64), now);
        }
        // 1 lost two for those of 3, and then 3, which had the most, lost one for that of 4.
        let known: Vec<_> =
            inserted.into_iter().filter(|&(n, text)| keys.get(&key(n, text), start).is_some()).collect();
        assert_eq!(known, [(2, "x"), (1, "c"), (3, "x"), (4, "x")]);
        assert_eq!((keys.count, keys.by_age.len(), keys.by_count.len()), (4, 4, 4));
        let now = start + Duration::from_millis(7);
        keys.insert(key(5, "x"), Fingerprint([0; 32]), receipt(8), now);
        assert!(keys.get(&key(2, "x"), now).is_none() && keys.get(&key(5, "x"), now).is_some());
    }

    #[test]
    fn a_key_is_forgotten_after_its_window_or_when_there_are_too_many() {
        let mut keys = Keys::new(KeyLimits { count: 2, window: Duration::from_secs(10) });
        let start = Instant::now();
        let key = |text| key(1, text);
        let known =
            |keys: &mut Keys, text, after| keys.get(&key(text), start + Duration::from_secs(after)).is_some();
        keys.insert(key("a"), Fingerprint([0; 32]), receipt(1), start);
        keys.insert(key("b"), Fingerprint([0; 32]), receipt(2), start + Duration::from_secs(5));
        assert!(known(&mut keys, "a", 9) && known(&mut keys, "b", 9));
        assert!(!known(&mut keys, "a", 10) && known(&mut keys, "b", 10));
        keys.insert(key("c"), Fingerprint([0; 32]), receipt(3), start + Duration::from_secs(11));
        keys.insert(key("d"), Fingerprint([0; 32]), receipt(4), start + Duration::from_secs(11));
        assert!(!known(&mut keys, "b", 11) && known(&mut keys, "c", 11) && known(&mut keys, "d", 11));
        assert!(!known(&mut keys, "d", 21) && keys.owners.is_empty() && keys.by_count.is_empty());
    }
}
