//! Fan-out: what it costs to bring a message to many subscribers, for the hub, for the machine's limit and
//! for other servers, side by side in one run.
//!
//! ```text
//! benches/fanout/peers/setup                        # nchan, Node.js and Socket.IO, where they are missing
//! cargo bench --bench fanout                        # those that run by default, some twelve minutes
//! cargo bench --bench fanout -- --svg fanout.svg    # and a picture
//! cargo bench --bench fanout -- --rounds 1 --time 1s --servers limit,tabcast fan-out-1000 burst-1000
//! cargo bench --bench fanout -- --binary target/other/tabcast --hub "--keep-alive 1m"
//! cargo bench --bench fanout -- round-robin ten-of-1000 reconnect quiet million    # many channels
//! cargo bench --bench fanout -- --rounds 10 --against target/other/tabcast file-posts
//! cargo bench --bench fanout -- --mercure ~/bin/mercure --centrifugo ~/go/bin/centrifugo memory-own
//! cargo bench --bench fanout -- --hub "--tokens tokens.txt" --token tct_… posts reconnect
//! cargo bench --bench fanout -- idle stalled storm  # the proofs, some twelve minutes
//! ```
//!
//! A server is a process of its own on a loopback port, and has one core to itself. The load
//! ([`load`](common::load)), the one thread of this process, has another ([`cores`]). Every server speaks
//! plain HTTP/1.1 and gets the same JSON of 100 bytes, each with its number. The hub has its default
//! settings, but for more subscribers and longer timeouts; its journal is in memory, unless said otherwise,
//! and its log goes to `/dev/null`.
//!
//! The workloads:
//! - `fan-out-100`, `-1000`, `-10000`: so many subscribers. The next message is sent when all have the last.
//! - `burst-1000`, `-10000`: the same, but 32 messages are on their way at a time, each from a publisher of
//!   its own.
//! - `memory`: 10,000 subscribers that are sent nothing. Measured are the growth of resident memory and how
//!   fast they connect.
//! - `memory-own`, `memory-ten`: the same, but each has a channel of its own, or ten.
//! - `posts`: 32 publishers, each of which sends its next message when the last is acknowledged. There is one
//!   subscriber, but none on the bare server, nor on nchan, which stops sending to it at such a rate.
//! - `beside`: one message at a time to 10,000 subscribers, and beside it a publisher on another channel.
//!   Measured is the time to that publisher's answers.
//!
//! These run only if they are named:
//! - `round-robin`: 10,000 channels with one subscriber each, and 32 publishers as in `posts`, which publish
//!   on one channel after the other. It is compared with the same POSTs on one channel of one subscriber.
//! - `ten-of-1000`: 10,000 subscribers, each on ten of 1,000 channels, and one message at a time on one of
//!   the channels. Which these are is random, and the same in each run.
//! - `reconnect`: 5,000 subscribers, each on a channel of its own, are cut off. 55,000 messages are
//!   published, one on each of these channels and 50,000 on others. Then all come back at once with their
//!   last event ID. Measured are the CPU time of each, the time until each has what it missed, and the time
//!   to the answers of a publisher on another channel ([`aside`](common::load::aside)). At last each has to
//!   get a live message.
//! - `quiet`: beside 1,000,000 messages on 100 channels, `GET /messages?last=1` of a channel that has only
//!   one, among the oldest, and of one of the hundred, in turn.
//! - `file-posts`: 256 publishers as in `posts`, without a subscriber. The hub's journal is in a file, and so
//!   is that of the hub of `--against`.
//! - `million`: the hub is started on a file of 1,000,000 messages, each on a channel of its own. Then a
//!   subscriber comes to each of 10,000 of these channels, and takes its message. Resident memory is compared
//!   with that of the same on a file whose messages are all on one channel.
//!
//! Where subscribers have channels of their own, the servers are the limit, the hub, Mercure and Centrifugo.
//! nchan's configuration here has no such channels. Mercure does no `reconnect`: each of its subscribers
//! would read all 55,000 messages. Mercure and Centrifugo keep messages as the hub does: Mercure in a file,
//! Centrifugo the last hundred of each channel in memory.
//!
//! What every subscriber gets is checked: each acknowledged message of its channels, once, in the order in
//! which all others get it. CPU time is the server's, softirqs included ([`cpu`]). Times to the last
//! subscriber are of all rounds together. All else is the median of the rounds. In each round every server is
//! started afresh, and the order of servers changes from round to round. A ratio is the median of the rounds'
//! own ratios, so that a machine that is slower for a while is slower for both. The output says how much of
//! the machine other processes took: beyond a few per cent, run it again.
//!
//! The proofs ([`proofs`]) are of the hub alone, and run only if they are named. Each prints its numbers, and
//! fails if what the hub promises does not hold:
//! - `idle`: 15,000 subscribers are held for `--hold`, with keep-alives as by default. Memory has to stay
//!   flat, and all have to get a message at the end.
//! - `stalled`: 500 subscribers never read, 500 others do, and much more than is kept is published. The
//!   others have to be as fast as alone, and memory has to be bounded.
//! - `storm`: 5,000 subscribers are cut off at once, and reconnect at once with their last event ID. None may
//!   be refused, and none may miss a message.
//!
//! After each proof, the hub has to have as many open descriptors as before, and to have logged no warning.
//!
//! Linux only.

mod axums;
mod channels;
#[path = "../common/mod.rs"]
mod common;
mod cores;
mod cpu;
mod goals;
mod history;
mod limits;
mod measure;
mod measured;
mod one_channel;
mod picture;
mod proofs;
mod reconnect;
mod server;
mod setting;
mod table;
mod workload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};

use common::hub::Hub;
use common::load::dialect;
use common::machine::CpuTime;
use cores::Cores;
use cpu::Accounting;
use measured::Measured;
use server::{SETUP, Server};
use setting::{Given, NOT_GIVEN, Setting};
use workload::Workload;

/// Descriptors for the proof with the most subscribers, and some for all else.
const DESCRIPTORS: u64 = 15_100;

#[derive(Debug, Parser)]
#[command(name = "fanout", about = "Measures the hub's fan-out beside the machine's limit and other servers")]
struct Args {
    /// What to do; everything from fan-out-100 to beside if left out
    workloads: Vec<Workload>,
    /// How often each measurement is repeated
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// How long load is put on a server at a time
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Which servers; all that are there if left out
    #[arg(long, value_delimiter = ',')]
    servers: Vec<Server>,
    #[command(flatten)]
    hub: Hub,
    /// A token that every request to a hub carries; `--hub "--tokens PATH"` has the hub know it
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    #[command(flatten)]
    given: Given,
    /// Where to write a picture of the results
    #[arg(long, value_name = "PATH")]
    svg: Option<PathBuf>,
    /// How long the proof `idle` holds its subscribers
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    hold: Duration,
    /// As cargo bench calls it
    #[arg(long, hide = true)]
    bench: bool,
    /// Be this server instead
    #[arg(long, hide = true, requires = "listen")]
    serve: Option<Server>,
    #[arg(long, hide = true)]
    listen: Option<SocketAddr>,
}

fn main() -> anyhow::Result<()> {
    // `cargo test --all-targets` also runs benches, without `--bench`. There is nothing to test here.
    if !std::env::args().any(|arg| arg == "--bench") {
        return Ok(());
    }
    let args = Args::parse();
    if let (Some(server), Some(address)) = (args.serve, args.listen) {
        return server.serve(address);
    }
    if let Some(token) = &args.token {
        dialect::present(token);
    }
    let descriptors =
        rlimit::increase_nofile_limit(u64::MAX).context("can't raise the limit of open files")?;
    ensure!(
        descriptors > DESCRIPTORS,
        "{descriptors} open files are too few, {DESCRIPTORS} are needed: see ulimit -Hn"
    );
    let cores = Cores::choose()?;
    cores.take_load()?;
    let (proofs, mut measurements): (Vec<_>, Vec<_>) =
        args.workloads.iter().partition(|workload| workload.is_proof());
    if args.workloads.is_empty() {
        measurements = Workload::by_default().collect();
    }
    let setting = Setting {
        hub: args.hub,
        given: args.given,
        cores,
        accounting: Accounting::of_kernel(),
        time: args.time,
        hold: args.hold,
    };
    for proof in proofs {
        proofs::run(&setting, proof)?;
    }
    if measurements.is_empty() {
        return Ok(());
    }
    let (servers, missing) = choose(args.servers, &setting.given);
    let before = CpuTime::now()?;
    let measured = measure_all(&setting, args.rounds, &measurements, &servers)?;
    let others = CpuTime::now()?.others_share_since(&before);
    let caption = table::caption(&servers, &setting.given);
    println!("{caption}.");
    table::print(&setting, args.rounds, others, &measured);
    for (server, reason) in missing {
        if reason != NOT_GIVEN {
            println!("\n{server} is left out: {reason}. `{SETUP}` brings it.");
        }
    }
    if let Some(path) = args.svg {
        std::fs::write(&path, picture::draw(&measured, &caption))
            .with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// The servers to measure, of those asked for or of all, and why the others can't be measured.
fn choose(asked: Vec<Server>, given: &Given) -> (Vec<Server>, Vec<(Server, &'static str)>) {
    let asked = if asked.is_empty() { Server::value_variants().to_vec() } else { asked };
    let missing: Vec<_> = asked.iter().filter_map(|server| Some((*server, server.missing(given)?))).collect();
    let there =
        asked.into_iter().filter(|server| missing.iter().all(|(missing, _)| missing != server)).collect();
    (there, missing)
}

fn measure_all(
    setting: &Setting,
    rounds: u16,
    workloads: &[Workload],
    servers: &[Server],
) -> anyhow::Result<Measured> {
    let begun = Instant::now();
    let mut measured = Measured::default();
    for round in 0..usize::from(rounds) {
        for &workload in workloads {
            let elapsed = begun.elapsed().as_secs();
            eprintln!("round {} of {rounds}, after {elapsed} s: {workload:?}", round + 1);
            let mut servers: Vec<_> =
                servers.iter().copied().filter(|server| workload.suits(*server)).collect();
            let first = round % servers.len().max(1);
            servers.rotate_left(first);
            for server in servers {
                measure::measure(&mut measured, setting, workload, server)
                    .with_context(|| format!("{workload:?} with {server}"))?;
            }
        }
    }
    Ok(measured)
}
