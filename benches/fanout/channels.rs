//! The workloads of many channels: their subscribers have channels of their own, or some of many.

use std::collections::BTreeSet;

use fastrand::Rng;

use crate::common::load::{Load, Pace};
use crate::measured::{Figure, Figures, Measured};
use crate::one_channel::{FIRST, PUBLISHERS, WARM_UP, deliver, idle, run_measured};
use crate::server::Server;
use crate::setting::Setting;
use crate::workload::{IDLE_SUBSCRIBERS, Workload};

/// Channels of `round-robin`, with a subscriber each.
const ROUND: usize = 10_000;
/// Subscribers of `ten-of-1000`, the channels of each, and of how many.
const SUBSCRIBERS: usize = 10_000;
const EACH: usize = 10;
const CHANNELS: usize = 1_000;

/// Idle subscribers, each on so many channels of its own.
pub(crate) fn memory(
    setting: &Setting,
    workload: Workload,
    server: Server,
    each: usize,
) -> anyhow::Result<Figures> {
    let running = server.start(setting)?;
    let all = FIRST + IDLE_SUBSCRIBERS;
    let channels = (0..all).map(|subscriber| (subscriber * each..(subscriber + 1) * each).collect());
    let mut load = Load::on_channels(running.process.address, server.dialect(), channels.collect())?;
    let figures = idle(workload, &running, &mut load)?;
    // They have to be subscribers: each gets a message, on one of its channels after another.
    load.aim(move |number| (number % all) * each + number % each);
    load.connect_publishers(1)?;
    load.run_messages(Pace::Answered, all)?;
    Ok(figures)
}

pub(crate) fn round_robin(setting: &Setting, server: Server) -> anyhow::Result<Figures> {
    let one = post_cpu(setting, server, 1)?;
    let many = post_cpu(setting, server, ROUND)?;
    Ok(vec![(Figure::OneChannelCpu, one.0), (Figure::Cpu(Workload::RoundRobin), many.0), many.1])
}

/// The CPU time of a POST to one channel after the other, with a subscriber each, and the rate.
fn post_cpu(setting: &Setting, server: Server, channels: usize) -> anyhow::Result<(f64, (Figure, f64))> {
    let running = server.start(setting)?;
    let own = (0..channels).map(|channel| vec![channel]).collect();
    let mut load = Load::on_channels(running.process.address, server.dialect(), own)?;
    load.aim(move |number| number % channels);
    load.subscribe(channels)?;
    load.connect_publishers(PUBLISHERS)?;
    load.run(Pace::Answered, WARM_UP)?;
    let (run, cpu) = run_measured(setting, &running, &mut load, Pace::Answered)?;
    let posts = run.answer_times.len() as f64;
    let rate = (Figure::Posts(Workload::RoundRobin), posts / run.elapsed.as_secs_f64());
    Ok((cpu.total() / posts, rate))
}

pub(crate) fn ten_of_1000(
    measured: &mut Measured,
    setting: &Setting,
    server: Server,
) -> anyhow::Result<Figures> {
    let running = server.start(setting)?;
    let mut random = Rng::with_seed(1);
    let mut some = || {
        let mut channels = BTreeSet::new();
        while channels.len() < EACH {
            channels.insert(random.usize(..CHANNELS));
        }
        channels.into_iter().collect()
    };
    let channels = (0..SUBSCRIBERS).map(|_| some()).collect();
    let mut load = Load::on_channels(running.process.address, server.dialect(), channels)?;
    load.aim(move |_| random.usize(..CHANNELS));
    load.subscribe(SUBSCRIBERS)?;
    load.connect_publishers(1)?;
    deliver(measured, setting, Workload::TenOf1000, (server, &running), &mut load, Pace::Window(1))
}
