//! An owner: whose an idempotency key is, or a share of a rate.

use super::network::Network;

/// A subject, wherever it asks from, or else all who ask from one network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// All who ask from it.
    Network(Network),
    /// The hash of a subject.
    Subject(u128),
}

impl Owner {
    /// The subject with this hash.
    pub fn subject(hash: u128) -> Self {
        // No network has such bits, but for those of IPv4 addresses, of which 80 are 0.
        Owner::Subject(hash | 1)
    }

    /// A number that no other owner has.
    pub(crate) fn to_bits(self) -> u128 {
        match self {
            Owner::Network(network) => network.to_bits(),
            Owner::Subject(hash) => hash,
        }
    }
}

impl From<Network> for Owner {
    fn from(network: Network) -> Self {
        Owner::Network(network)
    }
}
