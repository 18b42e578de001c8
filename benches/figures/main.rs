//! The figures: what the hub's journal in a file does on this machine, beside a limit measured in the same
//! run. (The hub's fan-out is measured by the bench `fanout`.)
//!
//! ```text
//! cargo bench --bench figures                                   # all of it, some four minutes
//! cargo bench --bench figures -- --rounds 1 journal             # some of it, once
//! cargo bench --bench figures -- --hub "--retention-messages 1000"
//! ```
//!
//! The hub is the release binary, a process of its own on a loopback port, with as many threads as it usually
//! has on this machine. So is the limit ([`limits`]), for which this program runs itself. All load comes from
//! the one thread of this process ([`load`](common::load)), and a replay beside it from a second thread. They
//! share the machine with the server: absolute figures are those of both together. The server's CPU time
//! (user and system, from `/proc`) is its own, and hardly depends on what else runs.
//!
//! The workloads:
//! - `journal`: 1, 32 and 256 publishers, each of which sends its next message when the last is acknowledged.
//!   There is no subscriber; the hub keeps messages in a file. The limits are a server that only appends and
//!   syncs, the file alone without a server, and the hub with its journal in memory.
//! - `kept`: the hub on a file of 1,000,000 messages. Measured are its start, its memory and the file's size;
//!   a replay of all of it to one subscriber; and one message each 10 ms to 100 others during another such
//!   replay. The limit is the same 100 without a replay.
//! - `start`: the time from starting the process to the first bytes of an HTTP answer.
//! - `size`: the binary as it was built here, with what benches and tests add to the packages' features.
//!
//! The files are on the disk of the build. A replay is read from the file, which is in the kernel's page
//! cache.
//!
//! Bodies are JSON of 100 bytes. A subscriber's bytes are checked: each acknowledged message, once, in order.
//! A figure is the median of the rounds, with the least and the greatest. In each round every server is
//! started afresh, and the order of servers changes from round to round. A ratio is the median of the rounds'
//! own ratios, so that a machine that is slower for a while is slower for both. The output says how much of
//! the machine other processes took: beyond a few per cent, trust the CPU times and the ratios only.
//!
//! Linux only.

#[path = "../common/mod.rs"]
mod common;
mod limits;
mod target;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};

use common::files::Folder;
use common::hub::Hub;
use common::kept::Kept;
use common::load::{Dialect, LENGTH, Load, Pace};
use common::machine::{self, CpuTime};
use common::numbers::{cell, median, quantile_us, sorted};
use target::Target;

/// Publishers that each wait for their answer: publishes that wait together share an fsync. The last is the
/// hub's batch.
const PUBLISHERS: [usize; 3] = [1, 32, 256];
/// Messages in the journal that is replayed.
const KEPT: usize = 1_000_000;
/// The subscribers that get messages during a replay, and how often.
const LIVE_SUBSCRIBERS: usize = 100;
const LIVE_PACE: Pace = Pace::Every(Duration::from_millis(10));
/// Before each measurement: for allocators, TCP windows and the branch predictor.
const WARM_UP: Duration = Duration::from_millis(300);
/// Starts in a round: each takes milliseconds.
const STARTS: usize = 5;
/// A run that takes longer fails, whatever hangs.
const LONGEST_RUN: Duration = Duration::from_secs(290);

#[derive(Debug, Parser)]
#[command(name = "figures", about = "Measures the hub")]
struct Args {
    /// What to measure; everything if left out
    workloads: Vec<Workload>,
    /// How often each measurement is repeated
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long load is put on a server at a time
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    time: Duration,
    #[command(flatten)]
    hub: Hub,
    /// As cargo bench calls it
    #[arg(long, hide = true)]
    bench: bool,
    /// Be the limit instead, here
    #[arg(long, hide = true, requires = "file")]
    serve: Option<SocketAddr>,
    /// Which appends to this file
    #[arg(long, hide = true)]
    file: Option<PathBuf>,
}

/// What is done with a server: see the bench's own documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    Journal,
    Kept,
    Start,
    Size,
}

impl Workload {
    /// The servers that it is done with.
    fn targets(self) -> &'static [Target] {
        match self {
            Workload::Journal => &[Target::Hub, Target::AppendSync, Target::FileAlone, Target::HubInMemory],
            Workload::Kept | Workload::Start | Workload::Size => &[Target::Hub],
        }
    }
}

/// What is measured of a server, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    /// Of so many publishers, on a journal.
    Journal(usize, Posts),
    KeptSize,
    KeptStart,
    KeptMemory,
    ReplayRate,
    ReplayMemory,
    LiveP50,
    LiveP99,
    Start,
    Size,
}

/// What is measured of POSTs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Posts {
    Rate,
    P50,
    P99,
    Cpu,
}

impl Figure {
    fn text(self) -> String {
        let text = match self {
            Figure::Journal(1, Posts::Rate) => {
                "POSTs acknowledged per second, journal in a file, 1 publisher"
            }
            Figure::Journal(publishers, Posts::Rate) => {
                return format!("… the same, {publishers} publishers");
            }
            Figure::Journal(_, Posts::P50) => "… time to the answer, µs, p50",
            Figure::Journal(_, Posts::P99) => "… time to the answer, µs, p99",
            Figure::Journal(_, Posts::Cpu) => "… server CPU, µs per POST",
            Figure::KeptSize => "file of 1,000,000 messages, bytes per message",
            Figure::KeptStart => "… start on it to first HTTP answer, ms",
            Figure::KeptMemory => "… resident memory then, MB",
            Figure::ReplayRate => "… replay of all of it from the file, messages per second",
            Figure::ReplayMemory => "… greatest growth of resident memory meanwhile, MB",
            Figure::LiveP50 => {
                "POST to the last of 100 subscribers during a replay, 100 messages per second, µs, p50"
            }
            Figure::LiveP99 => "… p99",
            Figure::Start => "start to first HTTP answer, ms",
            Figure::Size => "binary, bytes",
        };
        text.to_owned()
    }
}

/// What was measured, a value a round.
type Measured = BTreeMap<(Figure, Target), Vec<f64>>;

fn main() -> anyhow::Result<()> {
    // `cargo test --all-targets` also runs benches, without `--bench`. There is nothing to test here.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let args = Args::parse();
    if let (Some(address), Some(file)) = (args.serve, &args.file) {
        return limits::serve_append_sync(address, file);
    }
    let before = CpuTime::now()?;
    let measured = measure_all(&args)?;
    let others = CpuTime::now()?.others_share_since(&before);
    println!("{}, of whose time other processes took {:.0} %.", machine::description(), others * 100.0);
    print(&args, &measured);
    Ok(())
}

fn measure_all(args: &Args) -> anyhow::Result<Measured> {
    let begun = Instant::now();
    let mut measured = Measured::new();
    let mut kept = None;
    for round in 0..usize::from(args.rounds) {
        eprintln!("round {} of {}, after {} s", round + 1, args.rounds, begun.elapsed().as_secs());
        for &workload in Workload::value_variants() {
            if !args.workloads.is_empty() && !args.workloads.contains(&workload) {
                continue;
            }
            let mut targets = workload.targets().to_vec();
            let first = round % targets.len();
            targets.rotate_left(first);
            for target in targets {
                ensure!(
                    begun.elapsed() < LONGEST_RUN,
                    "out of time in round {}: ask for fewer --rounds",
                    round + 1
                );
                let figures = if workload == Workload::Kept {
                    measure_kept(args, &mut kept)
                } else {
                    let figures = measure(args, workload, target);
                    figures.map(|figures| {
                        figures.into_iter().map(|(figure, value)| (figure, target, value)).collect()
                    })
                };
                let figures =
                    figures.with_context(|| format!("{workload:?} with {target}, round {}", round + 1))?;
                for (figure, target, value) in figures {
                    measured.entry((figure, target)).or_default().push(value);
                }
            }
        }
    }
    Ok(measured)
}

/// One measurement of one server.
fn measure(args: &Args, workload: Workload, target: Target) -> anyhow::Result<Vec<(Figure, f64)>> {
    match workload {
        Workload::Journal => {
            let mut figures = Vec::new();
            for publishers in PUBLISHERS {
                let folder = Folder::new()?;
                let journal = folder.journal();
                if target == Target::FileAlone {
                    let rate = limits::file_alone(&journal, publishers, args.time / 3)?;
                    figures.push((Figure::Journal(publishers, Posts::Rate), rate));
                    continue;
                }
                let of_posts = put_posts(args, target, &journal, publishers)?;
                figures
                    .extend(of_posts.map(|(of_posts, value)| (Figure::Journal(publishers, of_posts), value)));
            }
            Ok(figures)
        }
        Workload::Kept => bail!("it is measured with what it is compared with"),
        Workload::Start => {
            let starts: Result<Vec<f64>, _> = (0..STARTS).map(|_| target::start_time_ms(&args.hub)).collect();
            Ok(vec![(Figure::Start, median(&starts?))])
        }
        Workload::Size => {
            let binary = args.hub.binary.metadata().context("there is no hub binary")?;
            Ok(vec![(Figure::Size, binary.len() as f64)])
        }
    }
}

/// Measures the hub on a file of many messages, which is filled the first time.
fn measure_kept(args: &Args, kept: &mut Option<Kept>) -> anyhow::Result<Vec<(Figure, Target, f64)>> {
    let kept: &Kept = match kept {
        Some(kept) => kept,
        None => kept.insert(Kept::fill(KEPT, |_| "main".to_owned())?),
    };
    let folder = kept.copy()?;
    let (server, start_ms) = target::start_on(&args.hub, &folder.journal())?;
    let resident = server.resident_bytes()?;
    server.forget_peak()?;
    let replay = Load::replay(server.address, &format!("/events?last={KEPT}"), KEPT)?;
    let grown = server.peak_resident_bytes()? - resident;

    let mut live = Load::numbered(server.address, Dialect::Events, LENGTH, KEPT)?;
    live.subscribe(LIVE_SUBSCRIBERS)?;
    live.connect_publishers(1)?;
    live.run(LIVE_PACE, WARM_UP)?;
    let without = sorted(live.run(LIVE_PACE, args.time)?.delivery_times);
    let during = thread::scope(|scope| {
        let everything = format!("/events?last_event_id={}0", kept.prefix);
        let replay = scope.spawn(move || Load::replay(server.address, &everything, KEPT));
        let run = live.run_while(LIVE_PACE, |_| !replay.is_finished())?;
        replay.join().expect("a replay does not panic")?;
        anyhow::Ok(sorted(run.delivery_times))
    })?;
    Ok(vec![
        (Figure::KeptSize, Target::Hub, kept.bytes / KEPT as f64),
        (Figure::KeptStart, Target::Hub, start_ms),
        (Figure::KeptMemory, Target::Hub, resident / 1e6),
        (Figure::ReplayRate, Target::Hub, KEPT as f64 / replay.as_secs_f64()),
        (Figure::ReplayMemory, Target::Hub, grown / 1e6),
        (Figure::LiveP50, Target::Hub, quantile_us(&during, 0.50)),
        (Figure::LiveP99, Target::Hub, quantile_us(&during, 0.99)),
        (Figure::LiveP50, Target::WithoutReplay, quantile_us(&without, 0.50)),
        (Figure::LiveP99, Target::WithoutReplay, quantile_us(&without, 0.99)),
    ])
}

/// Measures a server with so many publishers.
fn put_posts(
    args: &Args,
    target: Target,
    journal: &Path,
    publishers: usize,
) -> anyhow::Result<[(Posts, f64); 4]> {
    let server = target.start(&args.hub, journal)?;
    let mut load = Load::new(server.address, Dialect::Events)?;
    load.connect_publishers(publishers)?;
    load.run(Pace::Answered, WARM_UP)?;
    // A process's CPU time is counted in steps of 10 ms, which `args.time` exceeds by far.
    let cpu_before = server.cpu_us()?;
    let run = load.run(Pace::Answered, args.time)?;
    let cpu_us = server.cpu_us()? - cpu_before;
    let messages = run.answer_times.len() as f64;
    let answer_times = sorted(run.answer_times);
    Ok([
        (Posts::Rate, messages / run.elapsed.as_secs_f64()),
        (Posts::P50, quantile_us(&answer_times, 0.50)),
        (Posts::P99, quantile_us(&answer_times, 0.99)),
        (Posts::Cpu, cpu_us / messages),
    ])
}

/// Prints the table. A ratio is that of the hub to a limit in the same round.
fn print(args: &Args, measured: &Measured) {
    let time = humantime::format_duration(args.time);
    println!("Rounds of {time}: {}; median (least–greatest).", args.rounds);
    if !args.hub.flags.is_empty() {
        println!("The hub's flags: {}", args.hub.flags);
    }
    println!();
    println!("| | tabcast | limit | | ratio |");
    println!("| --- | ---: | --- | ---: | ---: |");
    for ((figure, target), values) in measured {
        if *target != Target::Hub {
            continue;
        }
        let hub = cell(values);
        let limits: Vec<_> = measured.iter().filter(|((f, t), _)| f == figure && *t != Target::Hub).collect();
        if limits.is_empty() {
            println!("| {} | {hub} | | | |", figure.text());
        }
        for ((_, limit), of_limit) in limits {
            let ratios: Vec<f64> = values.iter().zip(of_limit).map(|(hub, limit)| hub / limit).collect();
            println!("| {} | {hub} | {limit} | {} | {:.2} |", figure.text(), cell(of_limit), median(&ratios));
        }
    }
}
