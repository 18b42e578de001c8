//! The log: while nobody reads it, as on a paused terminal or in a pipe to a program that hangs; and its
//! colour.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Instant;

use common::{PATIENCE, Response, connect, post_text};

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
            .args(["--listen", "127.0.0.1:0", "--journal", "memory"])
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
    // script(1) runs the hub on a terminal of its own, and closes that when it ends.
    let says = |no_color: &str| {
        let command = format!("{} --listen 127.0.0.1:0 --journal memory", env!("CARGO_BIN_EXE_tabcast"));
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).env("NO_COLOR", no_color).stdin(Stdio::null());
        let mut script = script.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(script.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let _ = script.kill();
        script.wait().unwrap();
        line
    };
    assert!(says("").contains("\x1b[32m INFO\x1b[0m listening on"));
    assert!(says("1").contains("Z  INFO listening on"));
}
