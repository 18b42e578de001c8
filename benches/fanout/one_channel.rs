//! The workloads of one channel, and what all workloads share.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::common::load::aside::{CHANNEL, PAUSE};
use crate::common::load::publisher::Exchange;
use crate::common::load::{Dialect, LENGTH, Load, Pace, Run, text};
use crate::common::numbers::{quantile_us, sorted};
use crate::cpu::Cpu;
use crate::measured::{Figure, Figures, Measured};
use crate::server::{Running, Server};
use crate::setting::Setting;
use crate::workload::{IDLE_SUBSCRIBERS, Workload};

/// Publishers of `posts`: enough to keep a core busy.
pub(crate) const PUBLISHERS: usize = 32;
/// Publishers of `file-posts`: the hub's batch.
const FILE_PUBLISHERS: usize = 256;
/// Before each measurement: for allocators, TCP windows and the branch predictor.
pub(crate) const WARM_UP: Duration = Duration::from_millis(300);

/// Subscribers before those whose memory is measured.
pub(crate) const FIRST: usize = 10;

pub(crate) fn fan_out(
    measured: &mut Measured,
    setting: &Setting,
    workload: Workload,
    server: Server,
    subscribers: usize,
    window: usize,
) -> anyhow::Result<Figures> {
    let running = server.start(setting)?;
    let mut load = Load::new(running.process.address, server.dialect())?;
    load.subscribe(subscribers)?;
    load.connect_publishers(window)?;
    deliver(measured, setting, workload, (server, &running), &mut load, Pace::Window(window))
}

/// Publishes at that pace, and measures what the deliveries cost.
pub(crate) fn deliver(
    measured: &mut Measured,
    setting: &Setting,
    workload: Workload,
    (server, running): (Server, &Running),
    load: &mut Load,
    pace: Pace,
) -> anyhow::Result<Figures> {
    load.run(pace, WARM_UP)?;
    let delivered = load.delivered();
    let (run, cpu) = run_measured(setting, running, load, pace)?;
    let deliveries = (load.delivered() - delivered) as f64;
    let times = sorted(run.delivery_times);
    let p99 = quantile_us(&times, 0.99);
    measured.add_times(workload, server, times);
    Ok(vec![
        (Figure::Cpu(workload), cpu.total() / deliveries),
        (Figure::User(workload), cpu.user / deliveries),
        (Figure::System(workload), cpu.system / deliveries),
        (Figure::Softirq(workload), cpu.softirq / deliveries),
        (Figure::Rate(workload), deliveries / run.elapsed.as_secs_f64()),
        (Figure::P99(workload), p99),
    ])
}

/// Publishes at that pace, and measures the server's CPU time meanwhile.
pub(crate) fn run_measured(
    setting: &Setting,
    running: &Running,
    load: &mut Load,
    pace: Pace,
) -> anyhow::Result<(Run, Cpu)> {
    let cpu = || Cpu::of(&running.process, setting.cores.server, setting.accounting);
    let before = cpu()?;
    let run = load.run(pace, setting.time)?;
    Ok((run, cpu()? - before))
}

pub(crate) fn memory(setting: &Setting, workload: Workload, server: Server) -> anyhow::Result<Figures> {
    let running = server.start(setting)?;
    let mut load = Load::new(running.process.address, server.dialect())?;
    idle(workload, &running, &mut load)
}

/// Connects subscribers that are sent nothing, and measures what each takes.
pub(crate) fn idle(workload: Workload, running: &Running, load: &mut Load) -> anyhow::Result<Figures> {
    // What the hub allocates once, for the first subscribers, is not counted.
    load.subscribe(FIRST)?;
    load.watch(WARM_UP)?;
    let before = running.process.resident_bytes()?;
    let begun = Instant::now();
    load.subscribe(IDLE_SUBSCRIBERS)?;
    let elapsed = begun.elapsed();
    load.watch(WARM_UP)?;
    let grown = running.process.resident_bytes()? - before;
    let subscribers = IDLE_SUBSCRIBERS as f64;
    Ok(vec![
        (Figure::Bytes(workload), grown / subscribers),
        (Figure::Connects(workload), subscribers / elapsed.as_secs_f64()),
    ])
}

pub(crate) fn posts(setting: &Setting, workload: Workload, server: Server) -> anyhow::Result<Figures> {
    let running = server.start(setting)?;
    let mut load = Load::new(running.process.address, server.dialect())?;
    // At such a rate nchan's subscriber was seen to get no more. (Its ids have 16 bits for the
    // messages of one second.)
    let subscribes = workload == Workload::Posts && !matches!(server, Server::Bare | Server::Nchan);
    load.subscribe(usize::from(subscribes))?;
    load.connect_publishers(if workload == Workload::Posts { PUBLISHERS } else { FILE_PUBLISHERS })?;
    load.run(Pace::Answered, WARM_UP)?;
    let run = load.run(Pace::Answered, setting.time)?;
    Ok(vec![(Figure::Posts(workload), run.answer_times.len() as f64 / run.elapsed.as_secs_f64())])
}

pub(crate) fn beside(setting: &Setting, server: Server) -> anyhow::Result<Figures> {
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
    Ok(vec![
        (Figure::BesideP50, quantile_us(&beside, 0.50)),
        (Figure::BesideP99, quantile_us(&beside, 0.99)),
        (Figure::AloneP50, quantile_us(&alone, 0.50)),
        (Figure::AloneP99, quantile_us(&alone, 0.99)),
    ])
}

/// Publishes on a channel that nobody listens to, one message at a time: the times to the answers.
fn publish_aside(
    address: SocketAddr,
    dialect: Dialect,
    mut more: impl FnMut() -> bool,
) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let post = dialect.post(address, Some(CHANNEL), &text(0, LENGTH));
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
