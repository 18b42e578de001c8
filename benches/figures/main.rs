//! The figures: how much the hub does on this machine, each beside a limit measured in the same run.
//!
//! ```text
//! cargo bench --bench figures                                   # all of it, some four minutes
//! cargo bench --bench figures -- --rounds 1 posts burst         # some of it, once
//! cargo bench --bench figures -- --hub "--retention-messages 1000"
//! ```
//!
//! The hub is the release binary, a process of its own on a loopback port, with this machine's
//! usual number of threads. So is each limit ([`limits`]), for which this program runs itself. All
//! load comes from the one thread of this process ([`load`]), and a replay beside it from a second;
//! they share the machine with the server: absolute figures are those of both together, and what they
//! say of the server alone is its CPU time (user and system, from `/proc`), which hardly depends on what
//! else runs.
//!
//! | workload | what is done | limit |
//! | --- | --- | --- |
//! | `posts` | 32 publishers, each of which sends its next message when the last was acknowledged; one subscriber, on the hub only | bare axum |
//! | `fan-out` | 1,000 subscribers; the next message is sent when all have the last | naive axum, one send |
//! | `burst` | 1,000 subscribers; 32 publishers as in `posts` | naive axum |
//! | `memory` | 10,000 subscribers that are sent nothing: growth of resident memory | naive axum |
//! | `journal` | 1, 32 and 256 publishers as in `posts`, no subscriber; the hub keeps messages in a file | append + fdatasync; the file alone, without server; the hub with its journal in memory |
//! | `kept` | the hub on a file of 1,000,000 messages: its start, its memory, the file's size; all of it replayed to one subscriber; and one message each 10 ms to 100 others, while that is replayed again | the same 100 without a replay |
//! | `start` | from starting the process to the first bytes of an HTTP answer | |
//! | `size` | the binary as it was built here: with what benches and tests add to the packages' features | |
//!
//! The hub has its journal in memory but for `journal` and `kept`, whose files are on the disk of the
//! build. A replay is read from the file, but that is in the kernel's page cache.
//!
//! Bodies are JSON of 100 bytes. Every subscriber's bytes are compared with what it has to get: each
//! acknowledged message, once, in order, with ids that rise by one. A figure is the median of the
//! rounds, with the least and the greatest. In each round every server is started afresh, and the
//! order of servers changes from round to round; a ratio is the median of the rounds' own ratios, so
//! that a machine that is slower for a while is slower for both. How much of the machine was taken by
//! others is told too: beyond a few per cent, trust the CPU times and the ratios only.
//!
//! Linux only.

mod files;
mod limits;
mod load;
mod machine;
mod server;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Parser, ValueEnum};

use files::{Folder, Kept};
use limits::Limit;
use load::{Load, Pace};
use machine::CpuTime;
use server::{Place, Server, Target};

/// Publishers of a closed loop: enough to keep two cores busy.
const PUBLISHERS: usize = 32;
/// Of the same on a journal, where those that wait share an fsync. The hub's batch is the last.
const JOURNAL_PUBLISHERS: [usize; 3] = [1, 32, 256];
const SUBSCRIBERS: usize = 1_000;
const IDLE_SUBSCRIBERS: usize = 10_000;
/// Messages in the journal that is replayed.
const KEPT: usize = 1_000_000;
/// Who gets messages while it is replayed, and how often.
const LIVE_SUBSCRIBERS: usize = 100;
const LIVE_PACE: Pace = Pace::Every(Duration::from_millis(10));
/// Before each measurement: for allocators, TCP windows and the branch predictor.
const WARM_UP: Duration = Duration::from_millis(300);
/// Starts in a round: each is a matter of milliseconds.
const STARTS: usize = 5;
/// No run takes longer, whatever hangs.
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
    /// More flags for the hub, separated by spaces
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true, default_value = "")]
    hub: String,
    /// Another hub
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_tabcast"))]
    binary: PathBuf,
    /// As cargo bench calls it
    #[arg(long, hide = true)]
    bench: bool,
    /// Be this server instead
    #[arg(long, hide = true, requires = "listen")]
    serve: Option<Limit>,
    #[arg(long, hide = true)]
    listen: Option<SocketAddr>,
    /// Which appends to this file
    #[arg(long, hide = true)]
    file: Option<PathBuf>,
}

/// What is done with a server; see the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Workload {
    Posts,
    FanOut,
    Burst,
    Memory,
    Journal,
    Kept,
    Start,
    Size,
}

impl Workload {
    /// The servers it is done with.
    fn targets(self) -> &'static [Target] {
        use Target::{FileAlone, Hub, HubInMemory, Limit as L};
        match self {
            Workload::Posts => &[Hub, L(Limit::BareAxum)],
            Workload::FanOut => &[Hub, L(Limit::NaiveAxum), L(Limit::OneSend)],
            Workload::Burst | Workload::Memory => &[Hub, L(Limit::NaiveAxum)],
            Workload::Journal => &[Hub, L(Limit::AppendSync), FileAlone, HubInMemory],
            Workload::Kept | Workload::Start | Workload::Size => &[Hub],
        }
    }
}

/// What is told of a server, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Figure {
    Posts(Posts),
    FanOutRate,
    FanOutCpu,
    BurstRate,
    BurstCpu,
    Memory,
    /// By so many publishers, on a journal.
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

/// What is told of POSTs.
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
            Figure::Posts(Posts::Rate) => "POSTs acknowledged per second, 32 publishers",
            Figure::Journal(1, Posts::Rate) => "POSTs acknowledged per second, journal in a file, 1 publisher",
            Figure::Journal(publishers, Posts::Rate) => return format!("… the same, {publishers} publishers"),
            Figure::Posts(Posts::P50) | Figure::Journal(_, Posts::P50) => "… time to the answer, µs, p50",
            Figure::Posts(Posts::P99) | Figure::Journal(_, Posts::P99) => "… time to the answer, µs, p99",
            Figure::Posts(Posts::Cpu) | Figure::Journal(_, Posts::Cpu) => "… server CPU, µs per POST",
            Figure::FanOutRate => "deliveries per second, 1,000 subscribers, one message at a time",
            Figure::FanOutCpu => "… server CPU, µs per delivery",
            Figure::BurstRate => "deliveries per second, 1,000 subscribers, 32 publishers",
            Figure::BurstCpu => "… server CPU, µs per delivery",
            Figure::Memory => "resident memory, bytes per idle subscriber of 10,000",
            Figure::KeptSize => "file of 1,000,000 messages, bytes per message",
            Figure::KeptStart => "… start on it to first HTTP answer, ms",
            Figure::KeptMemory => "… resident memory then, MB",
            Figure::ReplayRate => "… replay of all of it from the file, messages per second",
            Figure::ReplayMemory => "… greatest growth of resident memory meanwhile, MB",
            Figure::LiveP50 => "POST to delivery during a replay, 100 messages per second to 100 subscribers, µs, p50",
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
    // `cargo test --all-targets` runs benches too, without this; there is nothing to test here.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let args = Args::parse();
    if let (Some(limit), Some(address)) = (args.serve, args.listen) {
        return limit.serve(address, args.file);
    }
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).context("can't raise the limit of open files")?;
    ensure!(descriptors > IDLE_SUBSCRIBERS as u64 + 100, "{descriptors} open files are too few: see ulimit -Hn");
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
                ensure!(begun.elapsed() < LONGEST_RUN, "out of time in round {}: ask for fewer --rounds", round + 1);
                let figures = if workload == Workload::Kept {
                    measure_kept(args, &mut kept)
                } else {
                    let figures = measure(args, workload, target);
                    figures.map(|figures| figures.into_iter().map(|(figure, value)| (figure, target, value)).collect())
                };
                let figures = figures.with_context(|| format!("{workload:?} with {target}, round {}", round + 1))?;
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
        Workload::Posts => {
            // The bare server has no subscribers to offer.
            let subscribers = usize::from(target == Target::Hub);
            let load = put_load(args, target, Place::Memory, subscribers, PUBLISHERS, Pace::Answered)?;
            Ok(load.of_posts().map(|(of_posts, value)| (Figure::Posts(of_posts), value)).into())
        }
        Workload::FanOut => {
            let load = put_load(args, target, Place::Memory, SUBSCRIBERS, 1, Pace::Delivered)?;
            Ok(vec![
                (Figure::FanOutRate, load.deliveries() / load.seconds),
                (Figure::FanOutCpu, load.cpu_us / load.deliveries()),
            ])
        }
        Workload::Burst => {
            let load = put_load(args, target, Place::Memory, SUBSCRIBERS, PUBLISHERS, Pace::Answered)?;
            Ok(vec![
                (Figure::BurstRate, load.deliveries() / load.seconds),
                (Figure::BurstCpu, load.cpu_us / load.deliveries()),
            ])
        }
        Workload::Memory => {
            let server = Server::start(target, args, Place::Memory)?;
            // What the first subscriber brings about is no other's.
            let mut load = Load::new(server.address, 0)?;
            load.subscribe(1)?;
            let before = server.resident_bytes()?;
            load.subscribe(IDLE_SUBSCRIBERS)?;
            let grown = server.resident_bytes()? - before;
            Ok(vec![(Figure::Memory, grown / IDLE_SUBSCRIBERS as f64)])
        }
        Workload::Journal => {
            let mut figures = Vec::new();
            for publishers in JOURNAL_PUBLISHERS {
                let folder = Folder::new()?;
                let journal = folder.journal();
                if target == Target::FileAlone {
                    let rate = limits::file_alone(&journal, publishers, args.time / 3)?;
                    figures.push((Figure::Journal(publishers, Posts::Rate), rate));
                    continue;
                }
                let place = if target == Target::HubInMemory { Place::Memory } else { Place::File(&journal) };
                let load = put_load(args, target, place, 0, publishers, Pace::Answered)?;
                let of_posts = load.of_posts();
                figures.extend(of_posts.map(|(of_posts, value)| (Figure::Journal(publishers, of_posts), value)));
            }
            Ok(figures)
        }
        Workload::Kept => bail!("it is measured with what it is compared with"),
        Workload::Start => {
            let starts: Result<Vec<f64>, _> = (0..STARTS).map(|_| server::start_time_ms(args)).collect();
            Ok(vec![(Figure::Start, median(&starts?))])
        }
        Workload::Size => {
            let binary = args.binary.metadata().context("there is no hub binary")?;
            Ok(vec![(Figure::Size, binary.len() as f64)])
        }
    }
}

/// The hub on a file of many messages, which is filled the first time.
fn measure_kept(args: &Args, kept: &mut Option<Kept>) -> anyhow::Result<Vec<(Figure, Target, f64)>> {
    let kept: &Kept = match kept {
        Some(kept) => kept,
        None => kept.insert(Kept::fill(KEPT)?),
    };
    let folder = kept.copy()?;
    let (server, start_ms) = server::start_on(args, &folder.journal())?;
    let resident = server.resident_bytes()?;
    server.forget_peak()?;
    let replay = Load::replay(server.address, &format!("/events?last={KEPT}"), &kept.prefix, KEPT)?;
    let grown = server.peak_resident_bytes()? - resident;

    let mut live = Load::new(server.address, KEPT)?;
    live.subscribe(LIVE_SUBSCRIBERS)?;
    live.connect_publishers(1)?;
    live.run(LIVE_PACE, WARM_UP)?;
    let without = sorted(live.run(LIVE_PACE, args.time)?.delivery_times);
    let during = thread::scope(|scope| {
        let everything = format!("/events?last_event_id={}0", kept.prefix);
        let replay = scope.spawn(move || Load::replay(server.address, &everything, &kept.prefix, KEPT));
        let run = live.run_while(LIVE_PACE, || !replay.is_finished())?;
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

fn sorted(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort_unstable();
    times
}

/// The time that this share of them does not exceed, in µs. The shortest is the first.
fn quantile_us(times: &[Duration], share: f64) -> f64 {
    let rank = (times.len() as f64 * share) as usize;
    times.get(rank).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

/// What a server did under load.
struct Loaded {
    subscribers: f64,
    messages: f64,
    seconds: f64,
    cpu_us: f64,
    /// From each POST to its answer; the shortest first.
    answer_times: Vec<Duration>,
}

impl Loaded {
    fn deliveries(&self) -> f64 {
        self.messages * self.subscribers
    }

    fn of_posts(&self) -> [(Posts, f64); 4] {
        [
            (Posts::Rate, self.messages / self.seconds),
            (Posts::P50, quantile_us(&self.answer_times, 0.50)),
            (Posts::P99, quantile_us(&self.answer_times, 0.99)),
            (Posts::Cpu, self.cpu_us / self.messages),
        ]
    }
}

fn put_load(
    args: &Args,
    target: Target,
    place: Place<'_>,
    subscribers: usize,
    publishers: usize,
    pace: Pace,
) -> anyhow::Result<Loaded> {
    let server = Server::start(target, args, place)?;
    let mut load = Load::new(server.address, 0)?;
    load.subscribe(subscribers)?;
    load.connect_publishers(publishers)?;
    load.run(pace, WARM_UP)?;
    // The clock of a process goes by 10 ms: of a time too short it tells nothing.
    let cpu_before = server.cpu_us()?;
    let run = load.run(pace, args.time)?;
    let cpu_us = server.cpu_us()? - cpu_before;
    Ok(Loaded {
        subscribers: subscribers as f64,
        messages: run.answer_times.len() as f64,
        seconds: run.elapsed.as_secs_f64(),
        cpu_us,
        answer_times: sorted(run.answer_times),
    })
}

/// The table. The hub's ratio to a limit is that of the same round.
fn print(args: &Args, measured: &Measured) {
    let time = humantime::format_duration(args.time);
    println!("Rounds of {time}: {}; median (least–greatest).", args.rounds);
    if !args.hub.is_empty() {
        println!("The hub's flags: {}", args.hub);
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

/// `median (least–greatest)`, or the value alone if it is always the same.
fn cell(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if least == greatest {
        return number(least);
    }
    format!("{} ({}–{})", number(median(values)), number(least), number(greatest))
}

/// To three digits or the whole number, with commas between thousands.
fn number(value: f64) -> String {
    if value < 100.0 {
        return if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") };
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The middle value; of an even number of values, the mean of the two in the middle.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}
