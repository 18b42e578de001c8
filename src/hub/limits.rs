//! The limits: how many subscribers there may be, in all and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// The limits of subscribers, and the number of those admitted.
#[derive(Debug)]
pub(super) struct Limits {
    total: usize,
    /// The limit for one address. An IPv6 address counts as its /64: one host may have all of a /64.
    per_address: usize,
    admitted: Arc<Mutex<Admitted>>,
}

#[derive(Debug, Default)]
struct Admitted {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A limit of subscribers is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// The limit in all.
    #[error("the limit of subscribers, {limit}, is reached")]
    Total {
        /// The most subscribers.
        limit: usize,
    },
    /// The limit for one address.
    #[error("the limit of subscribers from one address, {limit}, is reached")]
    Address {
        /// The most subscribers from one address.
        limit: usize,
    },
}

/// The admission of one subscriber. Dropping the permit lets another be admitted.
#[derive(Debug)]
pub(super) struct Permit {
    address: IpAddr,
    admitted: Arc<Mutex<Admitted>>,
}

impl Limits {
    /// Limits of `total` subscribers, and `per_address` from one address. None is admitted yet.
    pub(super) fn new(total: usize, per_address: usize) -> Self {
        Limits { total, per_address, admitted: Arc::default() }
    }

    /// Admits a subscriber from this address.
    ///
    /// # Errors
    /// [`Full`] if either limit is reached.
    pub(super) fn admit(&self, address: IpAddr) -> Result<Permit, Full> {
        let address = network(address);
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        if admitted.total >= self.total {
            return Err(Full::Total { limit: self.total });
        }
        if admitted.by_address.get(&address).is_some_and(|count| *count >= self.per_address) {
            return Err(Full::Address { limit: self.per_address });
        }
        admitted.total += 1;
        *admitted.by_address.entry(address).or_default() += 1;
        Ok(Permit { address, admitted: Arc::clone(&self.admitted) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut admitted = self.admitted.lock().unwrap_or_else(PoisonError::into_inner);
        admitted.total -= 1;
        if let Some(count) = admitted.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                admitted.by_address.remove(&self.address);
            }
        }
    }
}

/// The network that one host may have to itself: an IPv4 address or an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn subscribers_are_counted_in_all_and_by_address_until_their_permit_is_dropped() {
        let limits = Limits::new(3, 2);
        let first = limits.admit(address("10.0.0.1")).unwrap();
        let _second = limits.admit(address("10.0.0.1")).unwrap();
        assert_eq!(limits.admit(address("10.0.0.1")).unwrap_err(), Full::Address { limit: 2 });
        let _third = limits.admit(address("10.0.0.2")).unwrap();
        assert_eq!(limits.admit(address("10.0.0.3")).unwrap_err(), Full::Total { limit: 3 });
        drop(first);
        assert!(limits.admit(address("10.0.0.1")).is_ok());
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let limits = Limits::new(9, 1);
        let _first = limits.admit(address("2001:db8::1")).unwrap();
        assert!(limits.admit(address("2001:db8::2")).is_err());
        assert!(limits.admit(address("2001:db8:0:1::2")).is_ok());
    }
}
