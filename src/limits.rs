//! The limits: how much there may be, in all and from one address, and whose turn it is.

mod budget;
mod network;
mod owner;
mod peer;
mod proxies;
mod rates;
mod shares;
mod turns;

use std::sync::Arc;

use bytesize::ByteSize;

use crate::value::bytes;

pub use budget::{Budget, Lease};
pub use network::Network;
pub use owner::Owner;
pub use peer::Peer;
pub use proxies::Proxies;
pub use rates::Rate;
pub(crate) use rates::{Exceeded, Rates};
pub use shares::Full;
pub(crate) use shares::{Share, Shares};
pub(crate) use turns::Turns;

/// The settings of memory, of addresses, and of rates.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// The most memory for what is read or encoded and not taken yet: an eighth of it for long request heads,
    /// three for what is being published, half for messages being read. What --journal memory keeps is not
    /// counted: see --retention-bytes
    #[arg(long, value_name = "SIZE", default_value = "128MiB")]
    pub max_memory: ByteSize,

    /// The proxies whose X-Forwarded-For or Forwarded says for whom they ask, as in 10.1.0.0/16; repeat it,
    /// or separate several by commas; `private` is the addresses of this machine and of private networks,
    /// `unix` whoever connects to a Unix socket
    #[arg(long, value_name = "ADDRESSES", value_delimiter = ',')]
    pub trust_proxy: Vec<Proxies>,

    /// The most messages that one caller publishes, as in 50/s, 300/m or 10/h; ten times as many at once; 0
    /// is no limit. A caller is a token's subject, else an address (of IPv6, one /64)
    #[arg(long, value_name = "RATE", default_value = "1000/s")]
    pub publish_rate: Rate,

    /// The most streams and histories that one caller asks for, in the same way
    #[arg(long, value_name = "RATE", default_value = "1000/s")]
    pub connect_rate: Rate,
}

impl Options {
    /// How far callers have used up what they may publish, and what they may ask for.
    pub(crate) fn rates(&self) -> [Arc<Rates>; 2] {
        let publish = Rates::new("messages", self.publish_rate);
        let connect = Rates::new("streams and histories", self.connect_rate);
        [publish, connect].map(Arc::new)
    }

    /// The budget of request heads, the bytes for bodies, and the budget of what is read.
    pub(crate) fn shares(&self) -> (Budget, usize, Budget) {
        let eighth = bytes(self.max_memory) / 8;
        (Budget::new(eighth), 3 * eighth, Budget::new(4 * eighth))
    }
}
