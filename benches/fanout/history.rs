//! The workloads of a journal full of messages: what one channel's history costs beside all others'.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::common::hub::Place;
use crate::common::kept::Kept;
use crate::common::load::{Dialect, LENGTH, Load, Pace, channel_name, text};
use crate::common::numbers::{quantile_us, sorted};
use crate::common::process::{Process, free_address};
use crate::measured::{Figure, Figures};
use crate::one_channel::PUBLISHERS;
use crate::server::Server;
use crate::setting::Setting;

/// Messages on other channels than the quiet one, and how many channels those are.
const OTHERS: usize = 1_000_000;
const BUSY_CHANNELS: usize = 100;
/// The channel of one message, published before all others.
const QUIET: usize = BUSY_CHANNELS;
/// The channel that is compared with it.
const BUSY: usize = 0;
/// The fewest reads of each, and how many of them are not measured.
const READS: usize = 200;
const FIRST_READS: usize = 100;

/// Messages in the file of `million`, each on a channel of its own.
const CHANNELS: usize = 1_000_000;
/// Subscribers of some of these channels.
const SUBSCRIBERS: usize = 10_000;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The newest message of a quiet channel and of a busy one, in turn.
pub(crate) fn quiet(setting: &Setting, server: Server) -> anyhow::Result<Figures> {
    let channel = |number: usize| if number == 0 { QUIET } else { number % BUSY_CHANNELS };
    let count = 1 + OTHERS;
    let (process, _kept) = if server == Server::TabcastFile {
        let kept = Kept::fill(count, |number| channel_name(channel(number)))?;
        (start(setting, Place::LargeFile(&kept.journal()))?.0, Some(kept))
    } else {
        let (process, _) = start(setting, Place::LargeMemory)?;
        let mut load = Load::on_channels(process.address, Dialect::Events, Vec::new())?;
        load.aim(channel);
        load.connect_publishers(PUBLISHERS)?;
        load.run_messages(Pace::Answered, count)?;
        (process, None)
    };
    let mut reader = Reader::connect(process.address)?;
    let mut both = || anyhow::Ok((reader.newest(QUIET, Some(0))?, reader.newest(BUSY, None)?));
    let mut times = Vec::new();
    let begun = Instant::now();
    while times.len() < READS || begun.elapsed() < setting.time {
        times.push(both()?);
    }
    // The first reads make the hub's caches warm.
    let (quiet, busy): (Vec<_>, Vec<_>) = times.into_iter().skip(FIRST_READS).unzip();
    let median = |times| quantile_us(&sorted(times), 0.5);
    Ok(vec![(Figure::QuietTime, median(quiet)), (Figure::BusyTime, median(busy))])
}

/// A file of many channels, beside the same messages on one.
pub(crate) fn million(setting: &Setting) -> anyhow::Result<Figures> {
    let many = many_channels(setting, CHANNELS)?;
    let one = many_channels(setting, 1)?;
    let more = (many.resident - one.resident) / CHANNELS as f64;
    Ok(vec![
        (Figure::StartTime, many.start_ms),
        (Figure::FirstRead, many.first_read_ms),
        (Figure::ChannelBytes, more),
    ])
}

struct Started {
    start_ms: f64,
    first_read_ms: f64,
    /// With the subscribers.
    resident: f64,
}

/// A hub on a file of messages on so many channels, with subscribers of some.
fn many_channels(setting: &Setting, channels: usize) -> anyhow::Result<Started> {
    let kept = Kept::fill(CHANNELS, |number| channel_name(number % channels))?;
    let (process, start_ms) = start(setting, Place::LargeFile(&kept.journal()))?;
    // The number of the newest message of a channel.
    let newest = |channel: usize| CHANNELS - channels + channel;
    let middle = channels / 2;
    let first_read = Reader::connect(process.address)?.newest(middle, Some(newest(middle)))?;
    let asked = (0..SUBSCRIBERS).map(|subscriber| vec![subscriber * (CHANNELS / SUBSCRIBERS) % channels]);
    let mut load = Load::on_channels(process.address, Dialect::Events, asked.collect())?;
    load.subscribe_to_newest(SUBSCRIBERS, newest)?;
    let resident = process.resident_bytes()?;
    Ok(Started { start_ms, first_read_ms: first_read.as_secs_f64() * 1e3, resident })
}

/// The hub, and the ms until it answers.
fn start(setting: &Setting, place: Place<'_>) -> anyhow::Result<(Process, f64)> {
    let address = free_address()?;
    let mut command = setting.hub.command(address, place);
    command.stderr(std::process::Stdio::null());
    let begun = Instant::now();
    let mut process = setting.cores.on_server(|| Process::spawn(command, address))??;
    // An answer that needs no message: reads are measured apart.
    process.await_answer("/")?;
    Ok((process, begun.elapsed().as_secs_f64() * 1e3))
}

/// A connection that reads the history.
struct Reader {
    stream: TcpStream,
    address: SocketAddr,
}

impl Reader {
    fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Reader { stream, address })
    }

    /// Reads the newest message of a channel, which has to be that of this number, and returns how long it
    /// took.
    fn newest(&mut self, channel: usize, number: Option<usize>) -> anyhow::Result<Duration> {
        let (name, address) = (channel_name(channel), self.address);
        let request = format!("GET /messages?channel={name}&last=1 HTTP/1.1\r\nhost: {address}\r\n\r\n");
        let begun = Instant::now();
        self.stream.write_all(request.as_bytes())?;
        let answer = self.answer()?;
        let time = begun.elapsed();
        let has = |text: &str| answer.contains(text);
        let is_it = answer.starts_with("HTTP/1.1 200 ")
            && answer.matches("\"id\"").count() == 1
            && has(&format!("\"channel\":\"{name}\""))
            && number.is_none_or(|number| has(&text(number, LENGTH)));
        ensure!(is_it, "the newest message of {name} is answered with {answer:?}");
        Ok(time)
    }

    /// One answer, to its end.
    fn answer(&mut self) -> anyhow::Result<String> {
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let length = self.stream.read(&mut buffer)?;
            ensure!(length > 0, "the hub closed a connection");
            answer.extend_from_slice(&buffer[..length]);
            let text = std::str::from_utf8(&answer)?;
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let head = head.to_ascii_lowercase();
            let is_whole = if head.contains("transfer-encoding: chunked") {
                body.ends_with("0\r\n\r\n")
            } else if let Some((_, after)) = head.split_once("content-length: ") {
                let length = after.lines().next().context("an answer has no length")?;
                body.len() == length.parse::<usize>()?
            } else {
                bail!("an answer has no end: {text:?}")
            };
            if is_whole {
                return Ok(String::from_utf8(answer)?);
            }
        }
    }
}
