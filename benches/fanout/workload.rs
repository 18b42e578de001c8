//! What is done with a server, and what is measured of it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::ValueEnum;

use crate::common::load::publisher::Exchange;
use crate::common::load::{Dialect, LENGTH, Load, Pace, text};
use crate::common::numbers::{median, quantile_us, sorted};
use crate::cpu::Cpu;
use crate::limits::BURST;
use crate::server::Server;
use crate::setting::Setting;

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
    Posts,
    Beside,
    Idle,
    Stalled,
    Storm,
}

/// What is measured of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Figure {
    /// CPU time, µs per delivery.
    Cpu(Workload),
    User(Workload),
    System(Workload),
    Softirq(Workload),
    /// Deliveries per second.
    Rate(Workload),
    /// From POST to the last subscriber, µs.
    P99(Workload),
    /// Resident bytes per idle subscriber.
    Bytes,
    /// Subscribers that connect, per second.
    Connects,
    /// POSTs acknowledged per second.
    Posts,
    /// From POST to answer on another channel, µs; during a fan-out and without one.
    BesideP50,
    BesideP99,
    AloneP50,
    AloneP99,
}

/// Publishers of `posts`: enough to keep a core busy.
const PUBLISHERS: usize = 32;
pub(crate) const IDLE_SUBSCRIBERS: usize = 10_000;
/// Before each measurement: for allocators, TCP windows and the branch predictor.
const WARM_UP: Duration = Duration::from_millis(300);
/// Between two POSTs on the other channel, so that they are no load of their own.
const PAUSE: Duration = Duration::from_millis(1);

impl Workload {
    /// The workloads that are measured. The others are proofs, of the hub alone.
    pub(crate) fn measurements() -> impl Iterator<Item = Workload> {
        Self::value_variants().iter().copied().filter(|workload| !workload.is_proof())
    }

    pub(crate) fn fan_outs() -> impl Iterator<Item = Workload> {
        Self::value_variants().iter().copied().filter(|workload| workload.fan_out().is_some())
    }

    pub(crate) fn is_proof(self) -> bool {
        matches!(self, Workload::Idle | Workload::Stalled | Workload::Storm)
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
            // A bare server takes no subscribers.
            _ if server == Server::Bare => self == Workload::Posts,
            // It waits for bursts.
            _ if server == Server::Whole => matches!(self, Workload::Burst1000 | Workload::Burst10000),
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
        let (values, base) = (self.values.get(&(figure, server))?, self.values.get(&(figure, base))?);
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

    fn add(&mut self, server: Server, figures: impl IntoIterator<Item = (Figure, f64)>) {
        for (figure, value) in figures {
            self.values.entry((figure, server)).or_default().push(value);
        }
    }

    /// One measurement of one server.
    pub(crate) fn measure(
        &mut self,
        setting: &Setting,
        workload: Workload,
        server: Server,
    ) -> anyhow::Result<()> {
        match workload {
            Workload::Memory => self.memory(setting, server),
            Workload::Posts => self.posts(setting, server),
            Workload::Beside => self.beside(setting, server),
            _ => match workload.fan_out() {
                Some((subscribers, window)) => self.fan_out(setting, workload, server, subscribers, window),
                None => Ok(()),
            },
        }
    }

    fn fan_out(
        &mut self,
        setting: &Setting,
        workload: Workload,
        server: Server,
        subscribers: usize,
        window: usize,
    ) -> anyhow::Result<()> {
        let running = server.start(setting)?;
        let mut load = Load::new(running.process.address, server.dialect())?;
        load.subscribe(subscribers)?;
        load.connect_publishers(window)?;
        load.run(Pace::Window(window), WARM_UP)?;
        let cpu = || Cpu::of(&running.process, setting.cores.server, setting.accounting);
        let before = cpu()?;
        let run = load.run(Pace::Window(window), setting.time)?;
        let cpu = cpu()? - before;
        let deliveries = (run.delivery_times.len() * subscribers) as f64;
        let times = sorted(run.delivery_times);
        self.add(
            server,
            [
                (Figure::Cpu(workload), cpu.total() / deliveries),
                (Figure::User(workload), cpu.user / deliveries),
                (Figure::System(workload), cpu.system / deliveries),
                (Figure::Softirq(workload), cpu.softirq / deliveries),
                (Figure::Rate(workload), deliveries / run.elapsed.as_secs_f64()),
                (Figure::P99(workload), quantile_us(&times, 0.99)),
            ],
        );
        let all = self.times.entry((workload, server)).or_default();
        all.extend(times);
        all.sort_unstable();
        Ok(())
    }

    fn memory(&mut self, setting: &Setting, server: Server) -> anyhow::Result<()> {
        let running = server.start(setting)?;
        // What the hub allocates once, for the first subscribers, is not counted.
        let mut load = Load::new(running.process.address, server.dialect())?;
        load.subscribe(10)?;
        load.watch(WARM_UP)?;
        let before = running.process.resident_bytes()?;
        let begun = Instant::now();
        load.subscribe(IDLE_SUBSCRIBERS)?;
        let elapsed = begun.elapsed();
        load.watch(WARM_UP)?;
        let grown = running.process.resident_bytes()? - before;
        let subscribers = IDLE_SUBSCRIBERS as f64;
        self.add(
            server,
            [(Figure::Bytes, grown / subscribers), (Figure::Connects, subscribers / elapsed.as_secs_f64())],
        );
        Ok(())
    }

    fn posts(&mut self, setting: &Setting, server: Server) -> anyhow::Result<()> {
        let running = server.start(setting)?;
        let mut load = Load::new(running.process.address, server.dialect())?;
        // At such a rate nchan's subscriber was seen to get no more. (Its ids have 16 bits for the
        // messages of one second.)
        load.subscribe(usize::from(!matches!(server, Server::Bare | Server::Nchan)))?;
        load.connect_publishers(PUBLISHERS)?;
        load.run(Pace::Answered, WARM_UP)?;
        let run = load.run(Pace::Answered, setting.time)?;
        self.add(server, [(Figure::Posts, run.answer_times.len() as f64 / run.elapsed.as_secs_f64())]);
        Ok(())
    }

    fn beside(&mut self, setting: &Setting, server: Server) -> anyhow::Result<()> {
        let running = server.start(setting)?;
        let address = running.process.address;
        let mut load = Load::new(address, server.dialect())?;
        load.subscribe(IDLE_SUBSCRIBERS)?;
        load.connect_publishers(1)?;
        load.run(Pace::Window(1), WARM_UP)?;
        let begun = Instant::now();
        let alone = sorted(publish_aside(address, server.dialect(), || begun.elapsed() < setting.time / 4)?);
        let over = AtomicBool::new(false);
        let beside = thread::scope(|scope| {
            let aside =
                scope.spawn(|| publish_aside(address, server.dialect(), || !over.load(Ordering::Relaxed)));
            let run = load.run(Pace::Window(1), setting.time);
            over.store(true, Ordering::Relaxed);
            let times = aside.join().expect("publishing does not panic")?;
            run?;
            anyhow::Ok(sorted(times))
        })?;
        self.add(
            server,
            [
                (Figure::BesideP50, quantile_us(&beside, 0.50)),
                (Figure::BesideP99, quantile_us(&beside, 0.99)),
                (Figure::AloneP50, quantile_us(&alone, 0.50)),
                (Figure::AloneP99, quantile_us(&alone, 0.99)),
            ],
        );
        Ok(())
    }
}

/// Publishes on a channel that nobody listens to, one message at a time: the times to the answers.
fn publish_aside(
    address: SocketAddr,
    dialect: Dialect,
    mut more: impl FnMut() -> bool,
) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let post = dialect.post(address, Some("aside"), &text(0, LENGTH));
    let mut exchange = Exchange::new();
    let mut buffer = [0; 4096];
    let mut times = Vec::new();
    while more() {
        exchange.begin(None);
        stream.write_all(&post)?;
        loop {
            let length = stream.read(&mut buffer)?;
            ensure!(length > 0, "the server closed a connection");
            if let Some(time) = exchange.take(&buffer[..length])? {
                times.push(time);
                break;
            }
        }
        thread::sleep(PAUSE);
    }
    Ok(times)
}
