//! The goals: what the hub's fan-out has to reach, as ratios within one run.

use crate::common::numbers::{cell, median, number};
use crate::server::Server;
use crate::workload::{Figure, Measured, Workload};

/// The value to reach, and on which side of it a figure is good.
#[derive(Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

/// A text, a figure of the hub's, the server it is in proportion to, and the goal.
type Row = (&'static str, Figure, Option<Server>, Goal);

const GOALS: [Row; 7] = [
    (
        "CPU per delivery, 100 subscribers, one at a time, × limit",
        Figure::Cpu(Workload::FanOut100),
        Some(Server::Limit),
        Goal::AtMost(1.05),
    ),
    ("… 1,000 subscribers", Figure::Cpu(Workload::FanOut1000), Some(Server::Limit), Goal::AtMost(1.15)),
    ("… 10,000 subscribers", Figure::Cpu(Workload::FanOut10000), Some(Server::Limit), Goal::AtMost(1.05)),
    (
        "CPU per delivery, 1,000 subscribers, 32 at once, × coalescing limit",
        Figure::Cpu(Workload::Burst1000),
        Some(Server::Coalescing),
        Goal::AtMost(0.5),
    ),
    ("resident bytes per idle subscriber, of 10,000", Figure::Bytes, None, Goal::AtMost(1024.0)),
    ("POSTs acknowledged per second, × bare axum", Figure::Posts, Some(Server::Bare), Goal::AtLeast(0.8)),
    (
        "p99 from POST to the last of 1,000, one at a time, × limit",
        Figure::P99(Workload::FanOut1000),
        Some(Server::Limit),
        Goal::AtMost(1.2),
    ),
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
        Some(base) => measured.ratios(*figure, Server::Tabcast, *base)?,
        None => measured.values(*figure, Server::Tabcast)?.to_vec(),
    };
    let (wanted, met) = match goal {
        Goal::AtMost(most) => (format!("≤ {}", number(*most)), median(&values) <= *most),
        Goal::AtLeast(least) => (format!("≥ {}", number(*least)), median(&values) >= *least),
    };
    Some(format!("| {text} | {wanted} | {} | {} |", cell(&values), if met { "met" } else { "missed" }))
}
