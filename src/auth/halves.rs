//! Halves: what is known of credentials, by their hashes. The half that was not asked for of late is
//! forgotten first.

use std::collections::HashMap;
use std::mem;

/// The SHA-256 of what was presented.
pub(super) type Hash = [u8; 32];

/// At most so many values.
#[derive(Debug)]
pub(super) struct Halves<V> {
    most: usize,
    newer: HashMap<Hash, V>,
    older: HashMap<Hash, V>,
}

impl<V> Halves<V> {
    pub(super) fn new(most: usize) -> Self {
        Halves { most, newer: HashMap::new(), older: HashMap::new() }
    }

    /// What is known of this.
    pub(super) fn get(&mut self, hash: &Hash) -> Option<&V> {
        if let Some(value) = self.older.remove(hash) {
            self.insert(*hash, value);
        }
        self.newer.get(hash)
    }

    /// Remembers this, in the place of what was known.
    pub(super) fn insert(&mut self, hash: Hash, value: V) {
        self.older.remove(&hash);
        if self.newer.len() >= self.most / 2 {
            self.older = mem::take(&mut self.newer);
        }
        self.newer.insert(hash, value);
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.newer.len() + self.older.len()
    }
}
