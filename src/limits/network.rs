//! A network: the addresses that count as one, because one host may have all of them.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::peer::Peer;

/// An IPv4 address, an IPv6 /64, or all that connect to Unix sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Network(Option<IpAddr>);

impl Network {
    /// A number that no other network has.
    pub(crate) fn to_bits(self) -> u128 {
        match self.0 {
            Some(IpAddr::V4(address)) => address.to_ipv6_mapped().to_bits(),
            Some(IpAddr::V6(address)) => address.to_bits(),
            // No /64 has these bits.
            None => u128::MAX,
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(IpAddr::V4(address)) => address.fmt(f),
            Some(IpAddr::V6(address)) => write!(f, "{address}/64"),
            None => Peer::Unix.fmt(f),
        }
    }
}

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Network(Some(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        }))
    }
}

impl From<Peer> for Network {
    fn from(peer: Peer) -> Self {
        match peer {
            Peer::Inet(address) => address.ip().into(),
            Peer::Unix => Network(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let network = |text: &str| Network::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), network("10.0.0.1"));
        assert_ne!(network("10.0.0.1"), network("10.0.0.2"));
    }
}
