//! What was measured: a value a round, and how those are put in proportion.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::common::numbers::{median, quantile_us};
use crate::server::Server;
use crate::workload::Workload;

/// What is measured of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    /// CPU time, µs per delivery; of `round-robin` per message.
    Cpu(Workload),
    User(Workload),
    System(Workload),
    Softirq(Workload),
    /// Deliveries per second.
    Rate(Workload),
    /// From POST to the last subscriber, µs.
    P99(Workload),
    /// Resident bytes per idle subscriber.
    Bytes(Workload),
    /// Subscribers that connect, per second.
    Connects(Workload),
    /// POSTs acknowledged per second.
    Posts(Workload),
    /// CPU time of the POSTs of `round-robin`, µs each, where all are on one channel of one subscriber.
    OneChannelCpu,
    /// From POST to answer on another channel, µs; during a fan-out and without one.
    BesideP50,
    BesideP99,
    AloneP50,
    AloneP99,
    /// CPU time of a reconnect, µs.
    ReturnCpu,
    /// Until all that were cut off have what they missed, s.
    ReturnTime,
    /// From POST to answer on another channel meanwhile, µs.
    ReturnP99,
    ReturnWorst,
    /// The longest time that the load did not look for that answer, ms: a time is too long by as much at
    /// most.
    ReturnLook,
    /// From the request for the newest message of a channel to the answer, µs.
    QuietTime,
    BusyTime,
    /// From starting on a file of many channels to the first answer, ms.
    StartTime,
    /// The first read of a channel's newest message, ms.
    FirstRead,
    /// Resident bytes for each channel, beyond those of the same messages on one.
    ChannelBytes,
}

/// What was measured in a round.
pub(crate) type Figures = Vec<(Figure, f64)>;

/// What was measured.
#[derive(Default)]
pub(crate) struct Measured {
    /// A value a round.
    values: BTreeMap<(Figure, Server), Vec<f64>>,
    /// From each POST to the last subscriber, of all rounds; the shortest first.
    times: BTreeMap<(Workload, Server), Vec<Duration>>,
}

impl Measured {
    /// The median of the rounds.
    pub(crate) fn median(&self, figure: Figure, server: Server) -> Option<f64> {
        self.values.get(&(figure, server)).map(|values| median(values))
    }

    /// A server's values in proportion to another's of the same round.
    pub(crate) fn ratios(&self, figure: Figure, server: Server, base: Server) -> Option<Vec<f64>> {
        self.in_proportion((figure, server), (figure, base))
    }

    /// Values in proportion to others of the same round.
    pub(crate) fn in_proportion(&self, values: (Figure, Server), base: (Figure, Server)) -> Option<Vec<f64>> {
        let (values, base) = (self.values.get(&values)?, self.values.get(&base)?);
        Some(values.iter().zip(base).map(|(value, base)| value / base).collect())
    }

    pub(crate) fn values(&self, figure: Figure, server: Server) -> Option<&[f64]> {
        self.values.get(&(figure, server)).map(Vec::as_slice)
    }

    /// The ms from POST to the last subscriber that this share of POSTs does not exceed; no number if there
    /// are so few that none is beyond the share.
    pub(crate) fn quantile_ms(&self, workload: Workload, server: Server, share: f64) -> Option<f64> {
        let times = self.times.get(&(workload, server))?;
        let enough = times.len() as f64 * (1.0 - share) >= 1.0;
        Some(if enough { quantile_us(times, share) / 1e3 } else { f64::NAN })
    }

    /// Adds what was measured in a round.
    pub(crate) fn add(&mut self, server: Server, figures: impl IntoIterator<Item = (Figure, f64)>) {
        for (figure, value) in figures {
            self.values.entry((figure, server)).or_default().push(value);
        }
    }

    /// Adds a round's times from each POST to the last subscriber.
    pub(crate) fn add_times(&mut self, workload: Workload, server: Server, times: Vec<Duration>) {
        let all = self.times.entry((workload, server)).or_default();
        all.extend(times);
        all.sort_unstable();
    }
}
