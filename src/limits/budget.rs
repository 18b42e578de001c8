//! The budget: the bytes that were read or encoded, and that nobody has taken yet.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bytes there may be. Clones are the same budget.
#[derive(Clone, Debug)]
pub struct Budget {
    total: usize,
    free: Arc<Semaphore>,
}

/// Bytes of a budget. Dropping the lease gives them back.
#[derive(Debug)]
pub struct Lease(OwnedSemaphorePermit);

impl Budget {
    /// A budget of `total` bytes, all free.
    pub fn new(total: usize) -> Self {
        let total = total.min(Semaphore::MAX_PERMITS);
        Budget { total, free: Arc::new(Semaphore::new(total)) }
    }

    /// A budget that is never used up.
    pub fn unlimited() -> Self {
        Budget::new(usize::MAX)
    }

    /// Waits until `bytes` are free, and takes them; all of the budget if it is smaller. Those who wait are
    /// served in the order of their calls.
    pub async fn lease(&self, bytes: usize) -> Lease {
        let lease = Arc::clone(&self.free).acquire_many_owned(self.permits(bytes)).await;
        Lease(lease.expect("the semaphore is never closed"))
    }

    /// Takes `bytes`, if they are free at once.
    pub fn try_lease(&self, bytes: usize) -> Option<Lease> {
        Arc::clone(&self.free).try_acquire_many_owned(self.permits(bytes)).ok().map(Lease)
    }

    /// Whether at least half of the budget is free. Only then may somebody keep bytes for long: the other
    /// half always comes back soon.
    pub fn is_plenty(&self) -> bool {
        self.free.available_permits() >= self.total / 2
    }

    /// The bytes that are free.
    pub fn free(&self) -> usize {
        self.free.available_permits()
    }

    /// All bytes, free or not.
    pub fn total(&self) -> usize {
        self.total
    }

    fn permits(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.min(self.total)).unwrap_or(u32::MAX)
    }
}

impl Lease {
    /// How many bytes these are.
    pub fn bytes(&self) -> usize {
        self.0.num_permits()
    }

    /// Adds the bytes of `more`, which must be of the same budget.
    pub fn merge(&mut self, more: Lease) {
        self.0.merge(more.0);
    }

    /// Takes all of the bytes out of this lease, which then has none.
    pub fn take(&mut self) -> Lease {
        let bytes = self.0.num_permits();
        Lease(self.0.split(bytes).expect("there are as many"))
    }

    /// Gives all but `bytes` back.
    pub fn shrink(&mut self, bytes: usize) {
        let excess = self.0.num_permits().saturating_sub(bytes);
        drop(self.0.split(excess));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_free_again_once_their_lease_is_dropped_or_shrunk() {
        let budget = Budget::new(100);
        let mut lease = budget.lease(60).await;
        assert!(budget.try_lease(41).is_none());
        lease.shrink(10);
        assert_eq!(lease.bytes(), 10);
        assert!(budget.try_lease(90).is_some());
        drop(lease);
        assert_eq!(budget.lease(1_000).await.bytes(), 100);
    }

    #[test]
    fn there_is_plenty_until_more_than_half_is_leased() {
        let budget = Budget::new(100);
        let _half = budget.try_lease(50).unwrap();
        assert!(budget.is_plenty());
        let _more = budget.try_lease(1).unwrap();
        assert!(!budget.is_plenty());
    }
}
