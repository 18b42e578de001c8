//! The memory of bodies: of those that are being read, and of the messages parsed from them until these are
//! kept. Where there is none left, bodies wait. What comes free goes to the address that has the least, and
//! the slowest body of the address that has the most gives way to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use slab::Slab;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use crate::limits::{Budget, Lease, Network, Turns};

/// All bodies.
#[derive(Debug)]
pub(crate) struct Bodies {
    /// The memory of bodies that are being read.
    reading: Budget,
    /// The most bodies of one network that are waited for at once. Without a proxy, a network has no more
    /// connections.
    most: AtomicUsize,
    /// The bodies that have to be waited for, or that wait.
    slow: Mutex<Slab<Slow>>,
    /// How many bodies wait for memory.
    asking: AtomicUsize,
    /// The memory of parsed messages. It always comes back soon, as it waits for no publisher.
    parsed: Budget,
    /// The turn of the body that waits for that memory.
    turns: Turns,
}

/// A body that waits for more of itself, or for memory.
#[derive(Debug)]
struct Slow {
    network: Network,
    /// How many bytes of memory it has.
    has: usize,
    /// When it last got more.
    since: Instant,
    /// How many bytes it asks for, and where they are sent.
    asks: Option<(usize, oneshot::Sender<Lease>)>,
    /// Signalled once the body has to give way. `None` from then on.
    gives_way: Option<Arc<Notify>>,
}

/// The memory of a body that is being read. Dropping it gives the memory back.
#[derive(Debug)]
pub(super) struct Memory<'a> {
    bodies: &'a Bodies,
    network: Network,
    lease: Lease,
    /// The key in [`Bodies::slow`], and the signal to give way. `None` until the body has to be waited for:
    /// most bodies never have to be.
    slow: Option<(usize, Arc<Notify>)>,
}

/// There is no memory for the body.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoMemory;

impl Bodies {
    /// Two thirds of the budget are for bodies that are being read. At most so many of one network are waited
    /// for at once.
    pub(crate) fn new(budget: usize, most: usize) -> Self {
        let (reading, parsed) = (Budget::new(budget / 3 * 2), Budget::new(budget / 3));
        let (slow, asking, turns) = (Mutex::default(), AtomicUsize::new(0), Turns::new(1));
        Bodies { reading, most: AtomicUsize::new(most), slow, asking, parsed, turns }
    }

    /// From now on, at most so many bodies of one network are waited for at once.
    pub(crate) fn limit_to(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// The memory of a body from this network, of no bytes yet.
    pub(super) fn memory(&self, network: Network) -> Memory<'_> {
        let lease = self.reading.try_lease(0).expect("0 bytes are always free");
        Memory { bodies: self, network, lease, slow: None }
    }

    /// Waits for the memory of a message of so many bytes. The networks that wait have their turns.
    pub(super) async fn parsed(&self, network: Network, bytes: usize) -> Lease {
        if let Some(lease) = self.parsed.try_lease(bytes) {
            return lease;
        }
        let _turn = self.turns.take(Some(network)).await;
        self.parsed.lease(bytes).await
    }

    fn slow(&self) -> MutexGuard<'_, Slab<Slow>> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for memory for the body with this key.
    fn ask(&self, key: usize, bytes: usize) -> oneshot::Receiver<Lease> {
        let (sender, receiver) = oneshot::channel();
        let mut slow = self.slow();
        slow[key].asks = Some((bytes, sender));
        self.asking.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence of the drop: either `distribute` finds memory that comes free now, or whoever
        // frees it finds this body.
        fence(Ordering::SeqCst);
        self.make_way(&mut slow, key);
        self.distribute(&mut slow);
        receiver
    }

    /// Has the slowest bodies of the networks that have more give way to the body with this key, and to
    /// others whose networks have no more than its own, until there will be memory for all of them.
    fn make_way(&self, slow: &mut Slab<Slow>, key: usize) {
        let network = slow[key].network;
        let bytes_asked = |body: &Slow| body.asks.as_ref().map_or(0, |(bytes, _)| *bytes);
        let asked = bytes_asked(&slow[key]);
        loop {
            let has = by_network(slow);
            let own = has.get(&network).copied().unwrap_or_default();
            let goes_first = |body: &&Slow| {
                body.gives_way.is_some() && has.get(&body.network).is_some_and(|bytes| *bytes <= own)
            };
            let needed: usize = slow.iter().map(|(_, body)| body).filter(goes_first).map(bytes_asked).sum();
            let given_way = slow.iter().map(|(_, body)| body).filter(|body| body.gives_way.is_none());
            let coming: usize = self.reading.free() + given_way.map(|body| body.has).sum::<usize>();
            let heaviest = has.into_iter().max_by_key(|(_, bytes)| *bytes);
            let heaviest = heaviest.filter(|(_, bytes)| coming < needed && *bytes > own + asked);
            let Some((heaviest, _)) = heaviest else { return };
            let bodies = slow.iter_mut().map(|(_, body)| body);
            let of_heaviest =
                bodies.filter(|body| body.network == heaviest && body.gives_way.is_some() && body.has > 0);
            if !slowest_gives_way(of_heaviest) {
                return;
            }
        }
    }

    /// Gives free memory to those who ask, first to the network that has the least.
    fn distribute(&self, slow: &mut Slab<Slow>) {
        loop {
            let has = by_network(slow);
            let bodies = slow.iter_mut().map(|(_, body)| body);
            let asking = bodies.filter(|body| body.asks.is_some() && body.gives_way.is_some());
            let next = asking.min_by_key(|body| (has.get(&body.network).copied(), body.since));
            let Some(body) = next else { return };
            let bytes = body.asks.as_ref().map_or(0, |(bytes, _)| *bytes);
            let Some(lease) = self.reading.try_lease(bytes) else { return };
            (body.has, body.since) = (body.has + lease.bytes(), Instant::now());
            if let Some((_, sender)) = body.asks.take() {
                self.asking.fetch_sub(1, Ordering::Relaxed);
                // Fails only if the body is given up: the lease is free again.
                let _ = sender.send(lease);
            }
        }
    }
}

/// Has the slowest of these bodies give way. Returns whether there is one.
fn slowest_gives_way<'a>(bodies: impl Iterator<Item = &'a mut Slow>) -> bool {
    let gives_way = bodies.min_by_key(|body| body.since).and_then(|body| body.gives_way.take());
    gives_way.map(|gives_way| gives_way.notify_one()).is_some()
}

/// How much memory the bodies of each network have, but for those that give way.
fn by_network(slow: &Slab<Slow>) -> HashMap<Network, usize> {
    let mut by_network = HashMap::new();
    for (_, body) in slow.iter().filter(|(_, body)| body.gives_way.is_some()) {
        *by_network.entry(body.network).or_default() += body.has;
    }
    by_network
}

impl Memory<'_> {
    /// Takes more memory; all that there is if there never is so much. Waits for it as long as `patience`
    /// says.
    ///
    /// # Errors
    /// [`NoMemory`] if there is none in time, or if the body has to give way.
    pub(super) async fn take(&mut self, bytes: usize, patience: Duration) -> Result<(), NoMemory> {
        let Bodies { reading, asking, .. } = self.bodies;
        let bytes = bytes.min(reading.total() - self.lease.bytes());
        let at_once = (asking.load(Ordering::Relaxed) == 0).then(|| reading.try_lease(bytes)).flatten();
        let more = match at_once {
            Some(more) => more,
            None => {
                let (key, gives_way) = self.is_slow();
                let given = self.bodies.ask(key, bytes);
                tokio::select! {
                    given = timeout(patience, given) => {
                        given.ok().and_then(Result::ok).ok_or(NoMemory)?
                    }
                    () = gives_way.notified() => return Err(NoMemory),
                }
            }
        };
        self.lease.merge(more);
        if let Some((key, _)) = &self.slow {
            let mut slow = self.bodies.slow();
            (slow[*key].has, slow[*key].since) = (self.lease.bytes(), Instant::now());
        }
        Ok(())
    }

    /// How much memory the body has, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.lease.bytes()
    }

    /// Waits until the body has to give way. It may have to from the first call on.
    pub(super) async fn gives_way(&mut self) {
        self.is_slow().1.notified().await;
    }

    /// Records that the body brought something.
    pub(super) fn progresses(&mut self) {
        if let Some((key, _)) = &self.slow {
            self.bodies.slow()[*key].since = Instant::now();
        }
    }

    /// Counts the body among those that have to be waited for. If its network then has too many, the slowest
    /// gives way. Returns the body's key, and the signal to give way.
    fn is_slow(&mut self) -> (usize, Arc<Notify>) {
        let Memory { bodies, network, lease, slow } = self;
        let (key, gives_way) = slow.get_or_insert_with(|| {
            let gives_way = Arc::<Notify>::default();
            let (network, has, since) = (*network, lease.bytes(), Instant::now());
            let body = Slow { network, has, since, asks: None, gives_way: Some(Arc::clone(&gives_way)) };
            let mut slow = bodies.slow();
            let key = slow.insert(body);
            let is_same = |body: &&mut Slow| body.network == network && body.gives_way.is_some();
            if slow.iter_mut().map(|(_, body)| body).filter(is_same).count()
                > bodies.most.load(Ordering::Relaxed)
            {
                slowest_gives_way(slow.iter_mut().map(|(_, body)| body).filter(is_same));
            }
            (key, gives_way)
        });
        (*key, Arc::clone(gives_way))
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        drop(self.lease.take());
        // Pairs with the fence in `ask`.
        fence(Ordering::SeqCst);
        if let Some((key, _)) = &self.slow
            && self.bodies.slow().remove(*key).asks.is_some()
        {
            self.bodies.asking.fetch_sub(1, Ordering::Relaxed);
        }
        if self.bodies.asking.load(Ordering::Relaxed) > 0 {
            self.bodies.distribute(&mut self.bodies.slow());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn network(last: u8) -> Network {
        Network::from(IpAddr::from([10, 0, 0, last]))
    }

    /// The memory of a body of which so many bytes are there, and more are waited for.
    async fn slow(bodies: &Bodies, last: u8, bytes: usize) -> Memory<'_> {
        let mut memory = bodies.memory(network(last));
        memory.take(bytes, PATIENCE).await.unwrap();
        assert!(timeout(Duration::ZERO, memory.gives_way()).await.is_err());
        memory
    }

    #[tokio::test]
    async fn the_slowest_body_of_the_network_that_has_most_gives_way() {
        // 200 bytes are for bodies that are being read.
        let bodies = Bodies::new(300, 9);
        let mut slowest = slow(&bodies, 1, 60).await;
        let mut second = slow(&bodies, 1, 60).await;
        let other = slow(&bodies, 2, 70).await;
        slowest.progresses();
        let mut memory = bodies.memory(network(3));
        let (taken, ()) = tokio::join!(memory.take(50, PATIENCE), async {
            // `slowest` has brought something since.
            second.gives_way().await;
            drop(second);
        });
        assert!(taken.is_ok());
        for mut stays in [slowest, other] {
            assert!(timeout(Duration::ZERO, stays.gives_way()).await.is_err());
        }
    }

    #[tokio::test]
    async fn what_comes_free_goes_to_the_network_that_has_least() {
        let bodies = Bodies::new(300, 9);
        let mut heavy = slow(&bodies, 1, 100).await;
        let done = slow(&bodies, 2, 100).await;
        let mut light = bodies.memory(network(3));
        // The heavy network asks first, and nobody has more than 100 bytes more than the others.
        let (heavy_taken, light_taken, ()) =
            tokio::join!(heavy.take(60, Duration::from_millis(1)), light.take(100, PATIENCE), async {
                drop(done)
            });
        assert!(heavy_taken.is_err());
        assert!(light_taken.is_ok());
    }

    #[tokio::test]
    async fn a_body_that_is_given_up_is_no_longer_in_the_way() {
        let bodies = Bodies::new(300, 9);
        let held = slow(&bodies, 1, 200).await;
        let mut gives_up = bodies.memory(network(1));
        assert!(gives_up.take(10, Duration::ZERO).await.is_err());
        drop((gives_up, held));
        assert_eq!(bodies.asking.load(Ordering::Relaxed), 0);
        assert!(bodies.memory(network(2)).take(200, Duration::ZERO).await.is_ok());
    }
}
