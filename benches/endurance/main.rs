//! Endurance: whether the hub's memory is steady while subscribers come and go.
//!
//! ```text
//! cargo bench --bench endurance                                    # an hour
//! cargo bench --bench endurance -- --time 10m --warm-up 6m         # a first look: it still grows
//! cargo bench --bench endurance -- --hub "--retention-messages 1000"
//! ```
//!
//! The hub is the release binary with its default settings, and a journal in a file. The load ([`crowd`]) is
//! the one thread of this process, and leaves most of the machine idle. Each half minute a line has the hub's
//! resident memory: all of it, and the part that is in no file. The last line says by how much all of it grew
//! in an hour, by the method of least squares, after the warm-up. The bench fails where that is more than
//! [`STEADY`]. What the kept messages take varies by half a MiB: the error falls with the time.
//!
//! The warm-up has to be longer than retention takes to fill: 100,000 messages are published in six minutes.
//!
//! Linux only.

#[path = "../common/mod.rs"]
mod common;
mod crowd;

use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Parser;

use common::files::Folder;
use common::hub::Hub;
use common::process::{Process, free_address};
use crowd::Crowd;

/// The most by which memory may grow in an hour, in MiB.
const STEADY: f64 = 1.0;
/// How often memory is measured.
const SAMPLE: Duration = Duration::from_secs(30);
/// How often the load does what is due. Shorter: more CPU time. Longer: messages come in larger batches.
const TICK: Duration = Duration::from_millis(10);

#[derive(Debug, Parser)]
#[command(name = "endurance", about = "Measures whether the hub's memory is steady")]
struct Args {
    /// How long the load lasts
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    time: Duration,
    /// How much of that time memory may grow
    #[arg(long, default_value = "30m", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    #[command(flatten)]
    hub: Hub,
    /// As cargo bench calls it
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    // `cargo test --all-targets` also runs benches, without `--bench`. There is nothing to test here.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let args = Args::parse();
    let folder = Folder::new()?;
    let address = free_address()?;
    let mut command = Command::new(&args.hub.binary);
    command.args(["--listen", &address.to_string(), "--journal"]).arg(folder.journal());
    command.args(args.hub.flags.split_whitespace()).stdin(Stdio::null()).stderr(Stdio::null());
    let mut hub = Process::spawn(command, address)?;
    drop(hub.connect()?);
    let mut crowd = Crowd::new(address)?;
    let begun = Instant::now();
    // Hours since the start, and MiB then.
    let mut samples = Vec::new();
    let mut next_sample = SAMPLE;
    while begun.elapsed() < args.time {
        let tick = Instant::now();
        crowd.act()?;
        if begun.elapsed() >= next_sample {
            next_sample += SAMPLE;
            let (resident, anonymous) = (mib(hub.resident_bytes()?), mib(hub.anonymous_bytes()?));
            let seconds = begun.elapsed().as_secs();
            println!("{seconds:5} s: {resident:.2} MiB, {anonymous:.2} MiB in no file; {}", crowd.counts());
            if begun.elapsed() >= args.warm_up {
                samples.push((begun.elapsed().as_secs_f64() / 3600.0, resident));
            }
        }
        thread::sleep(TICK.saturating_sub(tick.elapsed()));
    }
    ensure!(samples.len() > 2, "too little time is left after the warm-up");
    let (slope, error) = slope(&samples);
    println!("the hub used {:.1} s of CPU time", hub.cpu_us()? / 1e6);
    println!("after the warm-up, memory grew by {slope:.2} MiB an hour, with a standard error of {error:.2}");
    ensure!(slope < STEADY, "that is more than {STEADY} MiB");
    Ok(())
}

fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// The slope of the line with the least squares through these points, and its standard error.
fn slope(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let covariance: f64 = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let variance: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let slope = covariance / variance;
    let residuals: f64 = points.iter().map(|(x, y)| (y - mean_y - slope * (x - mean_x)).powi(2)).sum();
    (slope, (residuals / (count - 2.0) / variance).sqrt())
}
