//! The picture of the results: an SVG with a bar for each server, on a card with a background of its own, so
//! that it can be read on light and on dark pages.

use std::fmt::Write as _;

use clap::ValueEnum;

use crate::common::numbers::number;
use crate::measured::{Figure, Measured};
use crate::server::Server;
use crate::workload::Workload;

/// A column of bars: heading, a second line, figure.
const COLUMNS: [(&str, &str, Figure); 3] = [
    ("One message at a time", "CPU, µs per delivery", Figure::Cpu(Workload::FanOut1000)),
    ("32 messages at a time", "CPU, µs per delivery", Figure::Cpu(Workload::Burst1000)),
    ("Idle subscriber", "resident bytes, of 10,000", Figure::Bytes(Workload::Memory)),
];

// All in px.
const WIDTH: usize = 920;
const MARGIN: usize = 28;
const LABELS: usize = 168;
const COLUMN: usize = 236;
/// The longest bar; its number stands beside it.
const BAR: f64 = 152.0;
const ROW: usize = 30;
/// Above the first row, and below the last.
const HEAD: usize = 138;
const FOOT: usize = 46;

const STYLE: &str = "
    text { font: 14px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; fill: #1f2328 }
    .title { font-size: 19px; font-weight: 600 }
    .heading, .hub { font-weight: 600 }
    .small { font-size: 12px; fill: #59636e }
    .number { font-variant-numeric: tabular-nums }
    .card { fill: #ffffff; stroke: #d1d9e0 }
    .axis { stroke: #d1d9e0 }
    rect.limit { fill: #c3cad2 }
    rect.other { fill: #8593a3 }
    rect.hub { fill: #0969da }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc }
      .small { fill: #9198a1 }
      .card { fill: #0d1117; stroke: #3d444d }
      .axis { stroke: #3d444d }
      rect.limit { fill: #3d444d }
      rect.other { fill: #656c76 }
      rect.hub { fill: #4493f8 }
    }
";

/// The text of the SVG. `caption` says of what the results are.
pub(crate) fn draw(measured: &Measured, caption: &str) -> String {
    let has_bar =
        |server: &Server| COLUMNS.iter().any(|(.., figure)| measured.median(*figure, *server).is_some());
    let servers: Vec<_> = Server::value_variants().iter().copied().filter(has_bar).collect();
    let height = HEAD + ROW * servers.len() + FOOT;
    let mut svg = format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height}' \
         width='{WIDTH}' height='{height}' role='img'>\n\
         <title>What a subscriber costs each server</title>\n\
         <style>{STYLE}</style>\n\
         <rect class='card' x='.5' y='.5' width='{}' height='{}' rx='8'/>\n",
        WIDTH - 1,
        height - 1
    );
    write(&mut svg, "title", MARGIN, 42, "What a subscriber costs the server");
    write(
        &mut svg,
        "small",
        MARGIN,
        64,
        "Messages of 100 bytes to 1,000 subscribers; plain HTTP/1.1 on loopback, one core. \
         Shorter is better.",
    );
    for (column, (heading, unit, figure)) in COLUMNS.iter().enumerate() {
        let left = MARGIN + LABELS + COLUMN * column;
        write(&mut svg, "heading", left, 102, heading);
        write(&mut svg, "small", left, 120, unit);
        let values: Vec<_> = servers.iter().map(|server| measured.median(*figure, *server)).collect();
        let greatest = values.iter().flatten().copied().fold(f64::MIN_POSITIVE, f64::max);
        for (row, (server, value)) in servers.iter().zip(values).enumerate() {
            let Some(value) = value else { continue };
            let (top, class) = (HEAD + ROW * row, class(*server));
            let width = (value / greatest * BAR).max(1.0);
            let _ = writeln!(
                svg,
                "<rect class='{class}' x='{left}' y='{}' width='{width:.1}' height='{}'/>",
                top + 5,
                ROW - 10
            );
            write(&mut svg, &format!("number {class}"), left + width as usize + 8, top + 20, &number(value));
        }
        let bottom = HEAD + ROW * servers.len();
        let _ = writeln!(svg, "<line class='axis' x1='{left}' y1='{HEAD}' x2='{left}' y2='{bottom}'/>");
    }
    for (row, server) in servers.iter().enumerate() {
        write(&mut svg, class(*server), MARGIN, HEAD + ROW * row + 20, &server.to_string());
    }
    write(&mut svg, "small", MARGIN, height - 20, caption);
    svg.push_str("</svg>\n");
    svg
}

fn class(server: Server) -> &'static str {
    match server {
        Server::TabcastOld => "hub",
        _ if server.is_hub() => "hub",
        Server::Limit | Server::Coalescing | Server::Whole => "limit",
        _ => "other",
    }
}

fn write(svg: &mut String, class: &str, x: usize, y: usize, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text class='{class}' x='{x}' y='{y}'>{text}</text>");
}
