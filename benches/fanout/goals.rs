//! The goals: what the hub's fan-out has to reach, as ratios within one run.

use crate::common::numbers::{cell, median, number};
use crate::measured::{Figure, Measured};
use crate::server::Server;
use crate::workload::Workload;

/// The value to reach, and on which side of it a figure is good.
#[derive(Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// A text, a server's figure, what it is in proportion to, and the goal.
type Row = (&'static str, (Figure, Server), Option<(Figure, Server)>, Goal);

/// CPU time in one workload, in proportion to another server's.
const fn cpu(text: &'static str, workload: Workload, base: Server, most: f64) -> Row {
    let figure = Figure::Cpu(workload);
    (text, (figure, Server::Tabcast), Some((figure, base)), Goal::AtMost(most))
}

/// A figure of the hub's that is in proportion to nothing.
const fn alone(text: &'static str, figure: Figure, server: Server, most: f64) -> Row {
    (text, (figure, server), None, Goal::AtMost(most))
}

/// A figure of the hub's, in proportion to another of its own.
const fn pair(text: &'static str, server: Server, figure: Figure, base: Figure, most: f64) -> Row {
    (text, (figure, server), Some((base, server)), Goal::AtMost(most))
}

const GOALS: &[Row] = &[
    cpu(
        "CPU per delivery, 100 subscribers, one at a time, × limit",
        Workload::FanOut100,
        Server::Limit,
        1.05,
    ),
    cpu("… 1,000 subscribers", Workload::FanOut1000, Server::Limit, 1.15),
    cpu("… 10,000 subscribers", Workload::FanOut10000, Server::Limit, 1.05),
    cpu(
        "CPU per delivery, 10,000 subscribers, each on ten of 1,000 channels, × limit",
        Workload::TenOf1000,
        Server::Limit,
        1.5,
    ),
    cpu(
        "CPU per delivery, 1,000 subscribers, 32 at once, × coalescing limit",
        Workload::Burst1000,
        Server::Coalescing,
        0.5,
    ),
    pair(
        "CPU per message, 10,000 channels in turn, × one channel",
        Server::Tabcast,
        Figure::Cpu(Workload::RoundRobin),
        Figure::OneChannelCpu,
        1.3,
    ),
    pair("… in a file", Server::TabcastFile, Figure::Cpu(Workload::RoundRobin), Figure::OneChannelCpu, 1.3),
    alone(
        "resident bytes per idle subscriber, of 10,000 on one channel",
        Figure::Bytes(Workload::Memory),
        Server::Tabcast,
        750.0,
    ),
    alone(
        "resident bytes per idle subscriber, each on a channel of its own",
        Figure::Bytes(Workload::MemoryOwn),
        Server::Tabcast,
        1000.0,
    ),
    alone(
        "resident bytes per idle subscriber, each on ten channels of its own",
        Figure::Bytes(Workload::MemoryTen),
        Server::Tabcast,
        2000.0,
    ),
    (
        "POSTs acknowledged per second, × bare axum",
        (Figure::Posts(Workload::Posts), Server::Tabcast),
        Some((Figure::Posts(Workload::Posts), Server::Bare)),
        Goal::AtLeast(0.8),
    ),
    (
        "POSTs acknowledged per second in a file, 256 publishers, × the other hub",
        (Figure::Posts(Workload::FilePosts), Server::TabcastFile),
        Some((Figure::Posts(Workload::FilePosts), Server::AgainstFile)),
        Goal::AtLeast(0.95),
    ),
    (
        "p99 from POST to the last of 1,000, one at a time, × limit",
        (Figure::P99(Workload::FanOut1000), Server::Tabcast),
        Some((Figure::P99(Workload::FanOut1000), Server::Limit)),
        Goal::AtMost(1.2),
    ),
    alone("reconnect of 5,000, CPU µs each", Figure::ReturnCpu, Server::Tabcast, 60.0),
    alone("… in a file", Figure::ReturnCpu, Server::TabcastFile, 60.0),
    alone("… until all are live, s", Figure::ReturnTime, Server::Tabcast, 1.0),
    alone("… in a file", Figure::ReturnTime, Server::TabcastFile, 1.0),
    alone("… a POST meanwhile, µs, p99", Figure::ReturnP99, Server::Tabcast, 10_000.0),
    alone("… in a file", Figure::ReturnP99, Server::TabcastFile, 10_000.0),
    pair(
        "newest message of a quiet channel beside 1,000,000 others, × of a busy one",
        Server::Tabcast,
        Figure::QuietTime,
        Figure::BusyTime,
        1.2,
    ),
    pair("… in a file", Server::TabcastFile, Figure::QuietTime, Figure::BusyTime, 1.2),
    alone("start on 1,000,000 channels, ms", Figure::StartTime, Server::TabcastFile, 50.0),
    alone("… resident bytes for each", Figure::ChannelBytes, Server::TabcastFile, 150.0),
];

/// Prints the table of the goals that were measured.
pub(crate) fn print(measured: &Measured) {
    let rows: Vec<_> = GOALS.iter().filter_map(|goal| row(measured, goal)).collect();
    if rows.is_empty() {
        return;
    }
    println!("\n| goal | | measured | |\n| --- | ---: | ---: | --- |\n{}", rows.join("\n"));
}

fn row(measured: &Measured, (text, figure, base, goal): &Row) -> Option<String> {
    let values = match base {
        Some(base) => measured.in_proportion(*figure, *base)?,
        None => measured.values(figure.0, figure.1)?.to_vec(),
    };
    let (wanted, met) = match goal {
        Goal::AtMost(most) => (format!("≤ {}", number(*most)), median(&values) <= *most),
        Goal::AtLeast(least) => (format!("≥ {}", number(*least)), median(&values) >= *least),
    };
    Some(format!("| {text} | {wanted} | {} | {} |", cell(&values), if met { "met" } else { "missed" }))
}
