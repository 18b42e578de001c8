//! The bodies that are being read, and their memory. Where there is none left, the slowest body of the
//! address that has the most gives way: to a body of an address that has less, or to one that is whole.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::limits::{Budget, Lease, Network, Turns};

/// All bodies that are being read.
#[derive(Debug)]
pub(super) struct Bodies {
    budget: Budget,
    /// The turn of the body that waits for memory.
    turns: Turns,
    /// The bodies that have to be waited for.
    waiting: Mutex<Slab<Waiting>>,
}

/// A body that waits for more of itself, or for memory.
#[derive(Debug)]
struct Waiting {
    network: Network,
    /// How many bytes of the budget it has.
    bytes: usize,
    /// When it last got more bytes.
    since: Instant,
    /// Notified once the body has to give way. `None` from then on.
    gives_way: Option<Arc<Notify>>,
}

/// A body's memory. Dropping it gives the memory back.
#[derive(Debug)]
pub(super) struct Memory<'a> {
    bodies: &'a Bodies,
    network: Network,
    lease: Lease,
    /// The key in [`Bodies::waiting`], and the signal to give way. `None` until the body has to be
    /// waited for: most bodies never have to be.
    waiting: Option<(usize, Arc<Notify>)>,
}

/// There is no memory for the body.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoMemory;

impl Bodies {
    pub(super) fn new(budget: Budget) -> Self {
        Bodies { budget, turns: Turns::new(1), waiting: Mutex::default() }
    }

    /// The memory of a body from this network, of no bytes yet.
    pub(super) fn memory(&self, network: Network) -> Memory<'_> {
        let lease = self.budget.try_lease(0).expect("0 bytes are always free");
        Memory { bodies: self, network, lease, waiting: None }
    }

    fn waiting(&self) -> MutexGuard<'_, Slab<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has other bodies give way to the one with this key, which may be whole, until `bytes` will be free.
    /// Bodies that are being published will be free soon, too.
    ///
    /// # Errors
    /// [`NoMemory`] if that is not enough.
    fn free_up(&self, key: usize, is_whole: bool, bytes: usize) -> Result<(), NoMemory> {
        let mut waiting = self.waiting();
        let own = waiting[key].network;
        let mut left = bytes;
        loop {
            let mut by_network = HashMap::<_, usize>::new();
            for (_, body) in waiting.iter().filter(|(_, body)| body.gives_way.is_some()) {
                *by_network.entry(body.network).or_default() += body.bytes;
            }
            let held: usize = by_network.values().sum();
            let own_bytes = by_network.get(&own).copied().unwrap_or_default();
            let heaviest = by_network.into_iter().max_by_key(|(_, bytes)| *bytes);
            let goes_first = |(_, most): &(Network, usize)| is_whole || *most > own_bytes + bytes;
            let Some((network, _)) = heaviest.filter(|most| left > 0 && goes_first(most)) else {
                let soon = self.budget.leased().saturating_sub(held);
                return if soon >= left { Ok(()) } else { Err(NoMemory) };
            };
            let gives_way = |(other, body): &(usize, &mut Waiting)| {
                *other != key && body.network == network && body.gives_way.is_some() && body.bytes > 0
            };
            let slowest = waiting.iter_mut().filter(gives_way).min_by_key(|(_, body)| body.since);
            let Some((_, slowest)) = slowest else { return Err(NoMemory) };
            left = left.saturating_sub(slowest.bytes);
            if let Some(gives_way) = slowest.gives_way.take() {
                gives_way.notify_one();
            }
        }
    }
}

impl Memory<'_> {
    /// Takes more memory for a body that may be whole; all that there is if there never is so much. Waits for
    /// that of others.
    ///
    /// # Errors
    /// [`NoMemory`] if there is none in time, or if the body has to give way.
    pub(super) async fn grow(&mut self, is_whole: bool, bytes: usize) -> Result<(), NoMemory> {
        /// How long a body waits for memory. Higher: a publisher is refused late. Lower: more are refused.
        const PATIENCE: Duration = Duration::from_secs(5);
        let Bodies { budget, turns, .. } = self.bodies;
        let bytes = bytes.min(budget.total() - self.lease.bytes());
        let more = match budget.try_lease(bytes) {
            Some(more) => more,
            None => {
                let (key, gives_way) = self.wait();
                self.bodies.free_up(key, is_whole, bytes)?;
                let more = async {
                    let _turn = turns.take(Some(self.network)).await;
                    budget.lease(bytes).await
                };
                tokio::select! {
                    more = timeout(PATIENCE, more) => more.map_err(|_elapsed| NoMemory)?,
                    () = gives_way.notified() => return Err(NoMemory),
                }
            }
        };
        self.lease.merge(more);
        if let Some((key, _)) = &self.waiting {
            let mut waiting = self.bodies.waiting();
            (waiting[*key].bytes, waiting[*key].since) = (self.lease.bytes(), Instant::now());
        }
        Ok(())
    }

    /// Waits until the body has to give way. It may have to from the first call on.
    pub(super) async fn gives_way(&mut self) {
        self.wait().1.notified().await;
    }

    /// Counts the body among those that have to be waited for. Returns its key, and the signal to give
    /// way.
    fn wait(&mut self) -> (usize, Arc<Notify>) {
        let Memory { bodies, network, lease, waiting } = self;
        let (key, gives_way) = waiting.get_or_insert_with(|| {
            let gives_way = Arc::<Notify>::default();
            let (network, bytes, since) = (*network, lease.bytes(), Instant::now());
            let body = Waiting { network, bytes, since, gives_way: Some(Arc::clone(&gives_way)) };
            (bodies.waiting().insert(body), gives_way)
        });
        (*key, Arc::clone(gives_way))
    }

    /// The lease of `bytes`; the rest is given back. The body no longer has to give way.
    pub(super) fn keep(mut self, bytes: usize) -> Lease {
        self.lease.shrink(bytes);
        self.lease.take()
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        if let Some((key, _)) = &self.waiting {
            self.bodies.waiting().remove(*key);
        }
    }
}
