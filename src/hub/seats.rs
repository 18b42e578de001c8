//! Seats: how many subscribers there may be, in all and from one address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// The most subscribers there may be at once.
#[derive(Clone, Copy, Debug)]
pub struct SeatLimits {
    /// In all.
    pub total: usize,
    /// From one address. An IPv6 address counts as its /64, which one host may have all of.
    pub per_address: usize,
}

/// The seats taken. Clones share them.
#[derive(Clone, Debug)]
pub struct Seats {
    limits: SeatLimits,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// No seat is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// In all.
    #[error("the limit of subscribers, {limit}, is reached")]
    Total {
        /// The most there may be.
        limit: usize,
    },
    /// For this address.
    #[error("the limit of subscribers from one address, {limit}, is reached")]
    Address {
        /// The most there may be.
        limit: usize,
    },
}

/// One subscriber's place among them. Free again when dropped.
#[derive(Debug)]
pub struct Seat {
    address: IpAddr,
    taken: Arc<Mutex<Taken>>,
}

impl Seats {
    /// All seats, free.
    pub fn new(limits: SeatLimits) -> Self {
        Seats { limits, taken: Arc::default() }
    }

    /// Takes a seat for a subscriber from this address.
    ///
    /// # Errors
    /// [`Full`] if either limit is reached.
    pub fn take(&self, address: IpAddr) -> Result<Seat, Full> {
        let address = network(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.total >= self.limits.total {
            return Err(Full::Total { limit: self.limits.total });
        }
        if taken.by_address.get(&address).is_some_and(|count| *count >= self.limits.per_address) {
            return Err(Full::Address { limit: self.limits.per_address });
        }
        taken.total += 1;
        *taken.by_address.entry(address).or_default() += 1;
        Ok(Seat { address, taken: Arc::clone(&self.taken) })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        if let Some(count) = taken.by_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

/// What one stranger can be expected to hold: an IPv4 address or an IPv6 /64.
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
    fn seats_are_counted_in_all_and_by_address_and_freed_on_drop() {
        let seats = Seats::new(SeatLimits { total: 3, per_address: 2 });
        let first = seats.take(address("10.0.0.1")).unwrap();
        let _second = seats.take(address("10.0.0.1")).unwrap();
        assert_eq!(seats.take(address("10.0.0.1")).unwrap_err(), Full::Address { limit: 2 });
        let _third = seats.take(address("10.0.0.2")).unwrap();
        assert_eq!(seats.take(address("10.0.0.3")).unwrap_err(), Full::Total { limit: 3 });
        drop(first);
        assert!(seats.take(address("10.0.0.1")).is_ok());
    }

    #[test]
    fn a_v6_network_is_one_address() {
        let seats = Seats::new(SeatLimits { total: 9, per_address: 1 });
        let _first = seats.take(address("2001:db8::1")).unwrap();
        assert!(seats.take(address("2001:db8::2")).is_err());
        assert!(seats.take(address("2001:db8:0:1::2")).is_ok());
    }
}
