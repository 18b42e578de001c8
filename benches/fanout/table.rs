//! The tables: a row for each server, ready to be pasted.

use clap::ValueEnum;

use crate::common::machine::{self, version};
use crate::common::numbers::{median, number};
use crate::cpu::Accounting;
use crate::goals;
use crate::measured::{Figure, Measured};
use crate::server::Server;
use crate::setting::{Given, Setting};
use crate::workload::Workload;

/// A column's heading, and its cell for a server.
type Column<'a> = (String, Box<dyn Fn(Server) -> Option<String> + 'a>);

/// What the results are of: the day, the machine, the versions.
pub(crate) fn caption(servers: &[Server], given: &Given) -> String {
    let rustc = version("rustc", "--version").and_then(|text| Some(text.split_once(" (")?.0.to_owned()));
    let versions: Vec<_> =
        rustc.into_iter().chain(servers.iter().filter_map(|server| server.version(given))).collect();
    let (today, machine, release) = (machine::today(), machine::description(), machine::kernel_release());
    let kernel = release.split('-').next().unwrap_or_default();
    format!("{today}; {machine}; Linux {kernel}; {}", versions.join(", "))
}

/// Prints all tables. `others` is the share of the machine that other processes took.
pub(crate) fn print(setting: &Setting, rounds: u16, others: f64, measured: &Measured) {
    let time = humantime::format_duration(setting.time);
    println!("{rounds} rounds of {time}; other processes took {:.0} % of the machine.", others * 100.0);
    println!(
        "Softirqs are {}.",
        match setting.accounting {
            Accounting::Apart => "counted by core, and added to the server's time",
            Accounting::InSystem => "a part of the server's time",
        }
    );
    if !setting.hub.flags.is_empty() {
        println!("The hub's flags: {}", setting.hub.flags);
    }

    let mut cpu: Vec<_> = fan_outs(|workload, server| {
        let value = number(measured.median(Figure::Cpu(workload), server)?);
        let ratio = measured.ratios(Figure::Cpu(workload), server, workload.base());
        Some(ratio.map_or(value.clone(), |ratios| format!("{value} ({})", number(median(&ratios)))))
    });
    cpu.push((
        "… user + system + softirq, 1,000, 1".to_owned(),
        Box::new(|server| {
            let part = |figure: fn(Workload) -> Figure| measured.median(figure(Workload::FanOut1000), server);
            let parts = [part(Figure::User)?, part(Figure::System)?, part(Figure::Softirq)?];
            Some(parts.map(number).join(" + "))
        }),
    ));
    section("Server CPU, µs per delivery (× the limit; with 32 at once, × the coalescing one)", cpu);
    section(
        "Deliveries per second",
        fan_outs(|workload, server| Some(number(measured.median(Figure::Rate(workload), server)?))),
    );
    section(
        "From POST to the last subscriber, ms: p50 / p99 / p99.9",
        fan_outs(|workload, server| {
            let quantile = |share| measured.quantile_ms(workload, server, share).map(number);
            Some([quantile(0.5)?, quantile(0.99)?, quantile(0.999)?].join(" / "))
        }),
    );
    let column = |heading: &str, figure| -> Column<'_> {
        (heading.to_owned(), Box::new(move |server| Some(number(measured.median(figure, server)?))))
    };
    let times = |p50, p99| {
        move |server| {
            let ms = |figure| Some(number(measured.median(figure, server)? / 1e3));
            Some(format!("{} / {}", ms(p50)?, ms(p99)?))
        }
    };
    section(
        "Resident bytes per idle subscriber",
        vec![
            column("all on one channel", Figure::Bytes(Workload::Memory)),
            column("each on a channel of its own", Figure::Bytes(Workload::MemoryOwn)),
            column("each on ten of its own", Figure::Bytes(Workload::MemoryTen)),
        ],
    );
    section(
        "Around it",
        vec![
            column("connects/s", Figure::Connects(Workload::Memory)),
            column("POSTs acknowledged/s", Figure::Posts(Workload::Posts)),
            column("POSTs of 256 publishers acknowledged/s", Figure::Posts(Workload::FilePosts)),
            (
                "POST to answer during a fan-out to 10,000, ms: p50 / p99".to_owned(),
                Box::new(times(Figure::BesideP50, Figure::BesideP99)),
            ),
            ("… without one".to_owned(), Box::new(times(Figure::AloneP50, Figure::AloneP99))),
        ],
    );
    section(
        "10,000 channels published on in turn, a subscriber each",
        vec![
            column("CPU, µs per message", Figure::Cpu(Workload::RoundRobin)),
            column("… all on one channel of one subscriber", Figure::OneChannelCpu),
            column("messages/s", Figure::Posts(Workload::RoundRobin)),
        ],
    );
    section(
        "5,000 reconnect, each on a channel of its own, 50,000 messages of other channels behind",
        vec![
            column("CPU, µs each", Figure::ReturnCpu),
            column("until all are live, s", Figure::ReturnTime),
            (
                "a POST meanwhile, ms: p99 / worst".to_owned(),
                Box::new(times(Figure::ReturnP99, Figure::ReturnWorst)),
            ),
            column("the load is late by, ms at most", Figure::ReturnLook),
        ],
    );
    section(
        "A journal of 1,000,000 messages",
        vec![
            column("newest message of a quiet channel, µs", Figure::QuietTime),
            column("newest of a busy one, µs", Figure::BusyTime),
            column("start on 1,000,000 channels, ms", Figure::StartTime),
            column("… the first read of one, ms", Figure::FirstRead),
            column("… resident bytes for each channel", Figure::ChannelBytes),
        ],
    );
    goals::print(measured);
}

/// A column for each fan-out.
fn fan_outs<'a>(cell: impl Fn(Workload, Server) -> Option<String> + Copy + 'a) -> Vec<Column<'a>> {
    let column = |workload: Workload| {
        let heading = match workload.fan_out() {
            Some((subscribers, window)) => {
                format!("{} subscribers, {window} at once", number(subscribers as f64))
            }
            None => "10,000, each on ten of 1,000 channels".to_owned(),
        };
        let cell: Box<dyn Fn(Server) -> Option<String>> = Box::new(move |server| cell(workload, server));
        (heading, cell)
    };
    Workload::fan_outs().chain([Workload::TenOf1000]).map(column).collect()
}

/// Prints a table without empty columns and rows; nothing if all are empty.
fn section(title: &str, columns: Vec<Column<'_>>) {
    let servers = Server::value_variants();
    let columns: Vec<_> = columns
        .into_iter()
        .filter(|(_, cell)| servers.iter().any(|server| cell(*server).is_some()))
        .collect();
    if columns.is_empty() {
        return;
    }
    let headings: Vec<_> = columns.iter().map(|(heading, _)| heading.as_str()).collect();
    println!("\n{title}\n\n| | {} |\n| --- |{}", headings.join(" | "), " ---: |".repeat(columns.len()));
    for server in servers {
        let cells: Vec<_> = columns.iter().map(|(_, cell)| cell(*server)).collect();
        if cells.iter().any(Option::is_some) {
            let cells: Vec<_> = cells.into_iter().map(Option::unwrap_or_default).collect();
            println!("| {server} | {} |", cells.join(" | "));
        }
    }
}
