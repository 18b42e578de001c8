//! The proofs: what the hub promises for many, for slow and for returning subscribers.

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::common::files::Folder;
use crate::common::hub::Place;
use crate::common::load::{Dialect, LENGTH, Load, Pace};
use crate::common::numbers::{number, quantile_us, sorted};
use crate::common::process::{Process, free_address};
use crate::setting::Setting;
use crate::workload::Workload;

/// Subscribers of `idle`.
const IDLE: usize = 15_000;
/// How often an idle stream is sent a keep-alive, by default.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How often the memory of `idle` is measured.
const SAMPLES: u32 = 20;
/// The share by which memory may grow while nothing happens.
const FLAT: f64 = 0.02;

/// Subscribers of `stalled` that read, and as many that don't.
const READING: usize = 500;
/// The bytes of a text of `stalled`.
const LARGE: usize = 8 << 10;
/// Messages of `stalled` before it is measured, and as many while it is: each time four times what is kept.
const STREAM: usize = 2048;
const RETENTION: &str = "4MiB";
/// The bytes that a subscriber that does not read may cost.
const STALLED_BYTES: f64 = 256.0 * 1024.0;

/// Subscribers of `storm`, how often they are cut off, and how many messages are published before and
/// meanwhile.
const STORM: usize = 5_000;
const STORMS: usize = 5;
const BEFORE_STORM: usize = 5;
const DURING_STORM: usize = 20;

/// How long the hub may take to notice that all connections are closed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the proof, and prints its numbers.
///
/// # Errors
/// If a promise does not hold.
pub(crate) fn run(setting: &Setting, proof: Workload) -> anyhow::Result<()> {
    let proof = match proof {
        Workload::Idle => idle,
        Workload::Stalled => stalled,
        Workload::Storm => storm,
        _ => bail!("{proof:?} is a measurement"),
    };
    proof(setting)
}

fn idle(setting: &Setting) -> anyhow::Result<()> {
    println!("idle: {IDLE} subscribers for {}", humantime::format_duration(setting.hold));
    let hub = Watched::start(setting, &[("TABCAST_KEEP_ALIVE", "15s")])?;
    let empty = hub.process.resident_bytes()?;
    let mut load = Load::new(hub.process.address, Dialect::Events)?;
    load.subscribe(IDLE)?;
    let first = hub.process.resident_bytes()?;
    println!("  each takes {} bytes", number((first - empty) / IDLE as f64));
    let mut greatest = first;
    for sample in 1..=SAMPLES {
        load.watch(setting.hold / SAMPLES)?;
        let resident = hub.process.resident_bytes()?;
        greatest = greatest.max(resident);
        let held = (setting.hold * sample / SAMPLES).as_secs();
        println!(
            "  after {held} s: {} MB, {} keep-alives or more each",
            number(resident / 1e6),
            load.least_keep_alives()
        );
    }
    load.connect_publishers(1)?;
    load.run_messages(Pace::Window(1), 1)?;
    println!("  all {IDLE} got a message then");
    let expected = (setting.hold.as_secs() / KEEP_ALIVE.as_secs()).saturating_sub(2) as usize;
    ensure!(load.least_keep_alives() >= expected, "a subscriber got fewer than {expected} keep-alives");
    ensure!(greatest <= first * (1.0 + FLAT), "memory grew from {first} bytes to {greatest}");
    hub.close(load)
}

fn stalled(setting: &Setting) -> anyhow::Result<()> {
    let megabytes = number((2 * STREAM * LARGE) as f64 / 1e6);
    println!(
        "stalled: {READING} that read and {READING} that don't, {megabytes} MB of which {RETENTION} are kept"
    );
    let alone = stream(setting, 0)?;
    let beside = stream(setting, READING)?;
    let cost = ((beside.grown - alone.grown) / READING as f64).max(0.0);
    println!("  one that does not read takes {} bytes at most", number(cost));
    ensure!(cost <= STALLED_BYTES, "that is more than {STALLED_BYTES}");
    ensure!(
        beside.p50 <= 1.25 * alone.p50 && beside.p99 <= 2.0 * alone.p99,
        "those that read are slower for it"
    );
    Ok(())
}

/// The cost of a stream of large messages.
struct Streamed {
    /// From POST to the last subscriber that reads, µs.
    p50: f64,
    p99: f64,
    /// By how many bytes resident memory grew, at its peak.
    grown: f64,
}

/// Streams large messages to subscribers that read, beside so many that don't.
fn stream(setting: &Setting, stalled: usize) -> anyhow::Result<Streamed> {
    let hub = Watched::start(setting, &[("TABCAST_RETENTION_BYTES", RETENTION)])?;
    let mut load = Load::numbered(hub.process.address, Dialect::Events, LARGE, 0)?;
    load.subscribe(stalled)?;
    load.stall()?;
    load.subscribe(READING)?;
    load.connect_publishers(1)?;
    let before = hub.process.resident_bytes()?;
    hub.process.forget_peak()?;
    // Not measured: the kernel first fills the buffers of those that don't read.
    load.run_messages(Pace::Window(1), STREAM)?;
    let run = load.run_messages(Pace::Window(1), STREAM)?;
    let grown = hub.process.peak_resident_bytes()? - before;
    let times = sorted(run.delivery_times);
    let (p50, p99) = (quantile_us(&times, 0.50), quantile_us(&times, 0.99));
    println!(
        "  beside {stalled}: POST to the last that reads {} ms p50, {} ms p99; memory grew by {} MB",
        number(p50 / 1e3),
        number(p99 / 1e3),
        number(grown / 1e6)
    );
    hub.close(load)?;
    Ok(Streamed { p50, p99, grown })
}

fn storm(setting: &Setting) -> anyhow::Result<()> {
    println!(
        "storm: {STORM} subscribers cut off at once, {STORMS} times, {DURING_STORM} messages missed each time"
    );
    let hub = Watched::start(setting, &[])?;
    let mut load = Load::numbered(hub.process.address, Dialect::Events, LENGTH, 0)?;
    load.subscribe(STORM)?;
    load.connect_publishers(1)?;
    for _ in 0..STORMS {
        load.run_messages(Pace::Window(1), BEFORE_STORM)?;
        let cut = load.cut();
        load.run_messages(Pace::Answered, DURING_STORM)?;
        let begun = Instant::now();
        load.bring_back(&cut)?;
        // The next message is sent when all have got those they missed.
        load.run_messages(Pace::Window(1), 1)?;
        println!("  all back and up to date after {} ms", number(begun.elapsed().as_secs_f64() * 1e3));
    }
    hub.close(load)
}

/// A hub whose log is kept and whose descriptors are counted.
struct Watched {
    process: Process,
    /// How many were open before the load.
    descriptors: usize,
    log: PathBuf,
    _folder: Folder,
}

impl Watched {
    /// The hub with settings of its own.
    fn start(setting: &Setting, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let log = folder.path().join("log");
        let address = free_address()?;
        let mut command = setting.hub.command(address, Place::Memory);
        command.envs(settings.iter().copied()).stderr(File::create(&log)?);
        let mut process = setting.cores.on_server(|| Process::spawn(command, address))??;
        process.connect()?;
        // The descriptors that the hub opens for the first subscriber stay open.
        let mut first = Load::new(address, Dialect::Events)?;
        first.subscribe(1)?;
        drop(first);
        let descriptors = settled(&process)?;
        Ok(Watched { process, descriptors, log, _folder: folder })
    }

    /// Closes all connections.
    ///
    /// # Errors
    /// If descriptors stay open, or the log has a warning.
    fn close(self, load: Load) -> anyhow::Result<()> {
        let open = self.process.descriptors()?;
        drop(load);
        let begun = Instant::now();
        while self.process.descriptors()? > self.descriptors {
            ensure!(
                begun.elapsed() < PATIENCE,
                "of {open} descriptors {} stay open",
                self.process.descriptors()?
            );
            thread::sleep(Duration::from_millis(10));
        }
        println!(
            "  descriptors: {} before, {open} then, {} at last",
            self.descriptors,
            self.process.descriptors()?
        );
        let log = fs::read_to_string(&self.log).context("there is no log")?;
        let wrong =
            log.lines().find(|line| ["WARN", "ERROR", "panicked"].iter().any(|word| line.contains(word)));
        wrong.map_or(Ok(()), |line| bail!("the hub logs {line:?}"))
    }
}

/// How many descriptors are open, once the number has not changed for a while.
fn settled(process: &Process) -> anyhow::Result<usize> {
    let mut last = process.descriptors()?;
    loop {
        thread::sleep(Duration::from_millis(300));
        let now = process.descriptors()?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
}
