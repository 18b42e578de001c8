//! The proxies that are trusted to say for whom they ask.

use std::net::IpAddr;
use std::str::FromStr;

use super::peer::Peer;

/// Addresses of trusted proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxies {
    /// Every address of this machine and of private networks.
    Private,
    /// All that connect to a Unix socket.
    Unix,
    /// The addresses whose first `bits` are those of `address`.
    Range {
        /// Any address of the range.
        address: IpAddr,
        /// How many bits the addresses have in common.
        bits: u32,
    },
}

impl Proxies {
    /// Whether this is a trusted proxy.
    pub fn contains(&self, peer: Peer) -> bool {
        let Peer::Inet(address) = peer else { return matches!(self, Proxies::Unix) };
        let first = |address: u128, width: u32, bits: u32| address.checked_shr(width - bits).unwrap_or(0);
        match (*self, address.ip().to_canonical()) {
            (Proxies::Private, IpAddr::V4(address)) => {
                address.is_loopback() || address.is_private() || address.is_link_local()
            }
            (Proxies::Private, IpAddr::V6(address)) => {
                address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
            }
            (Proxies::Range { address: IpAddr::V4(own), bits }, IpAddr::V4(address)) => {
                first(own.to_bits().into(), 32, bits) == first(address.to_bits().into(), 32, bits)
            }
            (Proxies::Range { address: IpAddr::V6(own), bits }, IpAddr::V6(address)) => {
                first(own.to_bits(), 128, bits) == first(address.to_bits(), 128, bits)
            }
            (Proxies::Unix | Proxies::Range { .. }, _) => false,
        }
    }
}

impl FromStr for Proxies {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const ERROR: &str = "give it as in 10.1.2.3, 10.1.0.0/16 or fd00::/8, or say private or unix";
        let text = text.trim();
        match text {
            "private" => return Ok(Proxies::Private),
            "unix" => return Ok(Proxies::Unix),
            _ => {}
        }
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address = address.parse::<IpAddr>().map_err(|_| ERROR)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(width), str::parse).map_err(|_| ERROR)?;
        if bits <= width { Ok(Proxies::Range { address, bits }) } else { Err(ERROR) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_the_addresses_that_begin_as_it_does() {
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
            ("fd00::/8", "fd12::1", "fe12::1"),
            ("0.0.0.0/0", "203.0.113.1", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("private", "::1", "203.0.113.1"),
            ("private", "172.16.0.1", "172.32.0.1"),
            ("private", "::ffff:192.168.0.1", "2001:db8::1"),
        ] {
            let proxies: Proxies = range.parse().unwrap();
            let peer = |address: &str| Peer::Inet((address.parse::<IpAddr>().unwrap(), 9).into());
            assert!(proxies.contains(peer(inside)), "{inside} in {range}");
            assert!(!proxies.contains(peer(outside)), "{outside} in {range}");
            assert!(!proxies.contains(Peer::Unix), "{range}");
            assert!(!Proxies::Unix.contains(peer(inside)), "{inside}");
        }
        assert!(Proxies::Unix.contains(Peer::Unix));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in ["", "10.0.0.0/33", "::/129", "10.0.0", "10.0.0.0/", "example.org", "10.0.0.0/-1"] {
            assert!(bad.parse::<Proxies>().is_err(), "{bad}");
        }
    }
}
