//! Shares: how many of one kind there may be, in all and from one network.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::network::Network;

/// The limits of one kind, as subscribers, and the number of those taken.
#[derive(Debug)]
pub(crate) struct Shares {
    what: &'static str,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug)]
struct Taken {
    /// The most shares in all, and of one network.
    most: (usize, usize),
    total: usize,
    /// How many shares each network has, and what they have in common.
    by_network: HashMap<Network, (usize, Arc<Taker>)>,
}

/// What the shares of one network have in common.
#[derive(Debug)]
struct Taker {
    network: Network,
    taken: Arc<Mutex<Taken>>,
}

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The limit in all.
    #[error("the limit of {what}, {limit}, is reached")]
    Total {
        /// Of what there are too many, as in "subscribers".
        what: &'static str,
        /// The most of them.
        limit: usize,
    },
    /// The limit for one address.
    #[error("the limit of {what} from one address, {limit}, is reached by {network}")]
    Address {
        /// Of what there are too many, as in "subscribers".
        what: &'static str,
        /// The most of them from one address.
        limit: usize,
        /// Whose limit it is.
        network: Network,
    },
}

/// One of the kind. Dropping the share lets another be taken. Every subscriber has two, so a share is small.
#[derive(Debug)]
pub(crate) struct Share(Arc<Taker>);

impl Shares {
    /// Limits of `total`, and `per_network` from one network. None is taken yet. `what` names them in the
    /// plural.
    pub(crate) fn new(what: &'static str, total: usize, per_network: usize) -> Self {
        let taken = Taken { most: (total, per_network), total: 0, by_network: HashMap::new() };
        Shares { what, taken: Arc::new(Mutex::new(taken)) }
    }

    /// Changes the limits. Of those taken, none is taken back.
    pub(crate) fn limit_to(&self, total: usize, per_network: usize) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).most = (total, per_network);
    }

    /// Takes a share for this network.
    ///
    /// # Errors
    /// [`Full`] if either limit is reached.
    pub(crate) fn take(&self, network: Network) -> Result<Share, Full> {
        let what = self.what;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let (total, per_network) = taken.most;
        if taken.total >= total {
            return Err(Full::Total { what, limit: total });
        }
        if taken.by_network.get(&network).map_or(0, |(count, _)| *count) >= per_network {
            return Err(Full::Address { what, limit: per_network, network });
        }
        taken.total += 1;
        let new = || (0, Arc::new(Taker { network, taken: Arc::clone(&self.taken) }));
        let (count, taker) = taken.by_network.entry(network).or_insert_with(new);
        *count += 1;
        Ok(Share(Arc::clone(taker)))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Share(taker) = self;
        let mut taken = taker.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        if let Some((count, _)) = taken.by_network.get_mut(&taker.network) {
            *count -= 1;
            if *count == 0 {
                taken.by_network.remove(&taker.network);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn shares_are_counted_in_all_and_by_network_until_they_are_dropped() {
        let network = |text: &str| Network::from(text.parse::<IpAddr>().unwrap());
        let what = "subscribers";
        let shares = Shares::new(what, 3, 2);
        let first = shares.take(network("10.0.0.1")).unwrap();
        let _second = shares.take(network("10.0.0.1")).unwrap();
        let full = Full::Address { what, limit: 2, network: network("10.0.0.1") };
        assert_eq!(shares.take(network("10.0.0.1")).unwrap_err(), full);
        let _third = shares.take(network("10.0.0.2")).unwrap();
        assert_eq!(shares.take(network("10.0.0.3")).unwrap_err(), Full::Total { what, limit: 3 });
        drop(first);
        assert!(shares.take(network("10.0.0.1")).is_ok());
        shares.limit_to(1, 1);
        assert_eq!(shares.take(network("10.0.0.3")).unwrap_err(), Full::Total { what, limit: 1 });
        shares.limit_to(9, 1);
        let full = Full::Address { what, limit: 1, network: network("10.0.0.1") };
        assert_eq!(shares.take(network("10.0.0.1")).unwrap_err(), full);
        assert!(shares.take(network("10.0.0.3")).is_ok());
    }
}
