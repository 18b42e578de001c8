//! Idempotency keys: the receipt that a publisher's key was answered with, remembered for a while.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::message::{Fingerprint, IdempotencyKey, Receipt};

/// How many keys are remembered, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct KeyLimits {
    /// The most keys. One more replaces the oldest.
    pub count: usize,
    /// How long a key is remembered after its message was stored.
    pub window: Duration,
}

/// The remembered keys of a journal in memory.
#[derive(Debug)]
pub(super) struct Keys {
    limits: KeyLimits,
    answers: HashMap<IdempotencyKey, (Fingerprint, Receipt)>,
    /// When each key was inserted, oldest first.
    order: VecDeque<(Instant, IdempotencyKey)>,
}

impl Keys {
    pub(super) fn new(limits: KeyLimits) -> Self {
        Keys { limits, answers: HashMap::new(), order: VecDeque::new() }
    }

    /// The request that came with `key`, and its receipt. `None` if the key is not remembered.
    pub(super) fn get(&mut self, key: &IdempotencyKey, now: Instant) -> Option<&(Fingerprint, Receipt)> {
        self.forget(now, self.limits.count);
        self.answers.get(key)
    }

    /// Remembers the request and the receipt of a key that is not remembered yet.
    pub(super) fn insert(
        &mut self,
        key: IdempotencyKey,
        request: Fingerprint,
        answer: Receipt,
        now: Instant,
    ) {
        if self.limits.count == 0 {
            return;
        }
        self.forget(now, self.limits.count - 1);
        self.order.push_back((now, key.clone()));
        self.answers.insert(key, (request, answer));
    }

    /// Forgets keys past the window, and the oldest until `count` are left.
    fn forget(&mut self, now: Instant, count: usize) {
        while let Some((since, key)) = self.order.front() {
            if self.order.len() <= count && now.duration_since(*since) < self.limits.window {
                break;
            }
            self.answers.remove(key);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{ChannelName, Epoch, EventName, MessageId, Time};

    fn receipt(sequence: u64) -> Receipt {
        Receipt {
            id: MessageId { epoch: Epoch::draw(), sequence },
            channel: ChannelName::default(),
            event: EventName::default(),
            time: Time::now(),
        }
    }

    #[test]
    fn a_key_is_forgotten_after_its_window_or_when_there_are_too_many() {
        let mut keys = Keys::new(KeyLimits { count: 2, window: Duration::from_secs(10) });
        let start = Instant::now();
        let key = |text| IdempotencyKey::parse(text).unwrap();
        let known =
            |keys: &mut Keys, text, after| keys.get(&key(text), start + Duration::from_secs(after)).is_some();
        keys.insert(key("a"), Fingerprint([0; 32]), receipt(1), start);
        keys.insert(key("b"), Fingerprint([0; 32]), receipt(2), start + Duration::from_secs(5));
        assert!(known(&mut keys, "a", 9) && known(&mut keys, "b", 9));
        assert!(!known(&mut keys, "a", 10) && known(&mut keys, "b", 10));
        keys.insert(key("c"), Fingerprint([0; 32]), receipt(3), start + Duration::from_secs(11));
        keys.insert(key("d"), Fingerprint([0; 32]), receipt(4), start + Duration::from_secs(11));
        assert!(!known(&mut keys, "b", 11) && known(&mut keys, "c", 11) && known(&mut keys, "d", 11));
    }
}
