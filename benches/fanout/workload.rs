//! What is done with a server: the workloads, and which suit which server.

use clap::ValueEnum;

use crate::limits::BURST;
use crate::server::Server;

pub(crate) const IDLE_SUBSCRIBERS: usize = 10_000;

/// See the bench's own documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Workload {
    #[value(name = "fan-out-100")]
    FanOut100,
    #[value(name = "fan-out-1000")]
    FanOut1000,
    #[value(name = "fan-out-10000")]
    FanOut10000,
    #[value(name = "burst-1000")]
    Burst1000,
    #[value(name = "burst-10000")]
    Burst10000,
    Memory,
    MemoryOwn,
    MemoryTen,
    Posts,
    Beside,
    RoundRobin,
    #[value(name = "ten-of-1000")]
    TenOf1000,
    Reconnect,
    Quiet,
    FilePosts,
    Million,
    Idle,
    Stalled,
    Storm,
}

impl Workload {
    /// The workloads that are measured where none is named.
    pub(crate) fn by_default() -> impl Iterator<Item = Workload> {
        Self::value_variants().iter().copied().filter(|workload| *workload <= Workload::Beside)
    }

    pub(crate) fn fan_outs() -> impl Iterator<Item = Workload> {
        Self::value_variants().iter().copied().filter(|workload| workload.fan_out().is_some())
    }

    /// The proofs are of the hub alone; all others are measured.
    pub(crate) fn is_proof(self) -> bool {
        matches!(self, Workload::Idle | Workload::Stalled | Workload::Storm)
    }

    /// Whether its subscribers have different channels.
    fn has_channels(self) -> bool {
        matches!(self, Workload::MemoryOwn | Workload::MemoryTen | Workload::RoundRobin | Workload::TenOf1000)
    }

    /// How many subscribers and how many messages at once; `None` if it is no fan-out.
    pub(crate) fn fan_out(self) -> Option<(usize, usize)> {
        match self {
            Workload::FanOut100 => Some((100, 1)),
            Workload::FanOut1000 => Some((1_000, 1)),
            Workload::FanOut10000 => Some((10_000, 1)),
            Workload::Burst1000 => Some((1_000, BURST)),
            Workload::Burst10000 => Some((10_000, BURST)),
            _ => None,
        }
    }

    /// Whether it is done with that server.
    pub(crate) fn suits(self, server: Server) -> bool {
        match self {
            _ if self.is_proof() => server == Server::Tabcast,
            Workload::FilePosts => matches!(server, Server::TabcastFile | Server::AgainstFile),
            Workload::Quiet => matches!(server, Server::Tabcast | Server::TabcastFile),
            Workload::Million => server == Server::TabcastFile,
            // A bare server takes no subscribers.
            _ if server == Server::Bare => self == Workload::Posts,
            // It waits for bursts.
            _ if server == Server::Whole => matches!(self, Workload::Burst1000 | Workload::Burst10000),
            // Mercure would need minutes: a reconnect reads all that was published meanwhile.
            Workload::Reconnect => server.is_hub() || server == Server::Centrifugo,
            _ if self.has_channels() => server.is_hub() || server.has_channels(),
            _ => true,
        }
    }

    /// The server that the others are compared with.
    pub(crate) fn base(self) -> Server {
        match self {
            Workload::Burst1000 | Workload::Burst10000 => Server::Coalescing,
            Workload::Posts => Server::Bare,
            _ => Server::Limit,
        }
    }
}
