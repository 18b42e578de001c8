//! The log: while nobody reads it, as on a paused terminal or in a pipe to a program that hangs; in a flood
//! of requests; and its colour.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Instant;

use common::{Hub, PATIENCE, Response, connect, post_text};

/// Messages with more lines in the log than the hub holds until they are read.
const MESSAGES: usize = 6_000;

/// A hub whose log nobody reads.
struct Unread {
    hub: Child,
    log: BufReader<ChildStderr>,
    address: SocketAddr,
}

impl Drop for Unread {
    fn drop(&mut self) {
        let _ = self.hub.kill();
        let _ = self.hub.wait();
    }
}

impl Unread {
    /// A hub whose log is read until it listens, and no further.
    fn start() -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
        command
            .args(["--listen", "127.0.0.1:0", "--journal", "memory", "--log-rate", "0"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        let mut hub = command.spawn().unwrap();
        let mut log = BufReader::new(hub.stderr.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let (_, address) = line.split_once("http://").unwrap();
        let address = address.split_whitespace().next().unwrap().parse().unwrap();
        Unread { hub, log, address }
    }

    /// Publishes [`MESSAGES`], each acknowledged.
    fn publish_all(&self) {
        let mut connection = connect(self.address).unwrap();
        let mut answers = BufReader::new(connection.try_clone().unwrap());
        let post = post_text(self.address, &"x".repeat(300));
        for _ in 0..MESSAGES {
            connection.write_all(&post).unwrap();
            assert_eq!(Response::read(&mut answers, false).status, 201);
        }
    }
}

#[test]
fn messages_are_taken_all_the_same_and_the_log_says_how_many_lines_are_missing() {
    let mut unread = Unread::start();
    unread.publish_all();
    // The first line that fits again says how many are missing.
    let (mut there, mut missing) = (0, 0);
    let mut line = String::new();
    while there + missing < MESSAGES {
        line.clear();
        assert!(
            unread.log.read_line(&mut line).unwrap() > 0,
            "{there} lines, and {missing} that are missing"
        );
        if let Some((_, count)) = line.split_once(" WARN lines are missing here that nobody read count=") {
            missing += count.trim_end().parse::<usize>().unwrap();
        } else {
            assert!(line.contains(" INFO message published id="), "{line}");
            there += 1;
        }
    }
    assert!(there > 1_000 && missing > 1_000, "{there} lines, and {missing} that are missing");
}

#[test]
fn the_hub_ends_on_a_signal() {
    let mut unread = Unread::start();
    unread.publish_all();
    let pid = unread.hub.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let begun = Instant::now();
    while unread.hub.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < PATIENCE, "it waits for somebody to read");
        std::thread::yield_now();
    }
}

#[test]
fn it_is_in_colour_on_a_terminal_unless_no_color_is_set() {
    // script(1) runs the hub on a terminal of its own, and timeout(1) ends it there: it would outlive
    // script(1).
    let says = |no_color: &str| {
        let hub = env!("CARGO_BIN_EXE_tabcast");
        let command = format!("timeout --foreground 5 {hub} --listen 127.0.0.1:0 --journal memory");
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).env("NO_COLOR", no_color).stdin(Stdio::null());
        let mut script = script.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut line).unwrap();
        // Also of what script(1) still has to read: it ends once the hub has.
        let _ = script.wait();
        line
    };
    assert!(says("").contains("\x1b[32m INFO\x1b[0m listening on"));
    assert!(says("1").contains("Z  INFO listening on"));
}

// A flood.

/// Publishes as many messages on one connection.
fn publish(hub: &Hub, count: usize) {
    let mut connection = hub.connect();
    let mut answers = BufReader::new(connection.try_clone().unwrap());
    let post = post_text(hub.address, "x");
    for _ in 0..count {
        connection.write_all(&post).unwrap();
        assert_eq!(Response::read(&mut answers, false).status, 201);
    }
}

/// Waits until the log has, of this kind, `count` lines and lines left out. Returns the lines, and how many
/// were left out.
fn wait_for_all(hub: &Hub, message: &str, count: usize) -> (Vec<String>, usize) {
    let summary = format!("lines left out: {message} count=");
    let begun = Instant::now();
    loop {
        let log = hub.log();
        let (summaries, others): (Vec<_>, Vec<_>) = log.into_iter().partition(|line| line.contains(&summary));
        let counts = summaries.iter().map(|line| line.split_once(&summary).unwrap().1);
        let left_out: usize = counts.map(|count| count.parse::<usize>().unwrap()).sum();
        let lines: Vec<_> = others.into_iter().filter(|line| line.contains(message)).collect();
        if lines.len() + left_out >= count {
            assert_eq!(lines.len() + left_out, count, "{summaries:?}");
            return (lines, left_out);
        }
        assert!(begun.elapsed() < PATIENCE, "{} lines, {left_out} left out", lines.len());
        hub.wait_for_logs(&[&summary], summaries.len() + 1);
    }
}

/// The most lines with the same second in front.
fn most_in_a_second(lines: &[String]) -> usize {
    let mut seconds = BTreeMap::new();
    for line in lines {
        *seconds.entry(&line["2026-11-23T".len().."2026-11-23T02:40:11".len()]).or_default() += 1;
    }
    seconds.into_values().max().unwrap_or(0)
}

#[test]
fn a_flood_of_one_kind_is_bounded_and_what_is_left_out_is_counted() {
    let hub = Hub::start(&["--log-rate", "7"]);
    publish(&hub, 1_500);
    let (lines, left_out) = wait_for_all(&hub, "message published", 1_500);
    assert_eq!(most_in_a_second(&lines), 7);
    assert!(left_out > 0);
    // The summary has the level of its kind.
    hub.wait_for_log(&["Z  INFO lines left out: message published count="]);
    // After the flood, and for another flood.
    publish(&hub, 1_500);
    let (lines, _) = wait_for_all(&hub, "message published", 3_000);
    assert_eq!(most_in_a_second(&lines), 7);
}

#[test]
fn a_flood_of_one_kind_leaves_the_lines_of_another() {
    let hub = Hub::start(&["--log-rate", "2"]);
    publish(&hub, 1_000);
    let mut stream = hub.watch("/events?last=1", &[]);
    hub.wait_for_log(&["INFO subscriber connected subscriber=1"]);
    assert_eq!(stream.data(), "x");
    drop(stream);
    hub.wait_for_log(&["INFO subscriber disconnected subscriber=1"]);
}

#[test]
fn what_was_left_out_is_counted_when_the_hub_ends() {
    let mut hub = Hub::start(&["--log-rate", "1"]);
    publish(&hub, 500);
    assert!(hub.end("TERM").success());
    wait_for_all(&hub, "message published", 500);
}

#[test]
fn a_flood_of_those_turned_away_is_bounded() {
    let hub = Hub::start(&["--log-rate", "5", "--max-subscribers", "1"]);
    let _first = hub.watch("/events", &[]);
    for _ in 0..300 {
        assert_eq!(hub.watch("/events", &[]).event().unwrap().event, "tabcast:full");
    }
    let (lines, left_out) = wait_for_all(&hub, "subscriber turned away", 300);
    assert_eq!(most_in_a_second(&lines), 5);
    assert!(left_out > 0);
    hub.wait_for_log(&[" WARN lines left out: subscriber turned away count="]);
}

#[test]
fn there_are_1000_lines_of_a_kind_in_a_second_by_default_and_any_number_with_0() {
    let lines = |flags: &[&str]| {
        let mut hub = Hub::start(flags);
        publish(&hub, 2_500);
        hub.end("TERM");
        let (lines, left_out) = wait_for_all(&hub, "message published", 2_500);
        (most_in_a_second(&lines), left_out)
    };
    // A slow machine may not publish as many in a second.
    assert!(lines(&[]).0 <= 1_000);
    assert_eq!(lines(&["--log-rate", "0"]).1, 0);
}

#[test]
fn a_long_value_is_cut_and_says_how_much_is_left_out() {
    let hub = Hub::start(&["--max-event-name", "2000"]);
    let channels: Vec<_> = (0..16).map(|number| format!("channel={number:x<128}")).collect();
    let _stream = hub.watch(&format!("/events?{}", channels.join("&")), &[]);
    let line = hub.wait_for_log(&["subscriber connected"]);
    let (_, value) = line.split_once(" channels=").unwrap();
    // 16 names of 128 bytes, 15 spaces and 2 quotes, of which 256 bytes are there.
    assert!(value.starts_with("\"0xxx") && value.ends_with("x…+1809"), "{line}");
    assert_eq!(value.len(), 256 + "…+1809".len());

    let event = "e".repeat(2_000);
    assert_eq!(hub.post(&format!("?event={event}"), "text/plain", "\0".repeat(5_000)).status, 201);
    let line = hub.wait_for_log(&["message published"]);
    assert!(line.contains("e…+1746 size=30002"), "{line}");
    assert!(line.contains("data=\"\\u0000\\u0000") && line.ends_with('…') && line.len() < 800, "{line}");
}
