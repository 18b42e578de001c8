//! The limits: how much there may be, in all and from one address, and whose turn it is.

mod budget;
mod network;
mod shares;
mod turns;

pub use budget::{Budget, Lease};
pub use network::Network;
pub use shares::Full;
pub(crate) use shares::{Share, Shares};
pub(crate) use turns::{Turn, Turns};
