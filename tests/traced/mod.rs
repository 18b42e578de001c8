//! A hub that strace(1) watches: the system calls it makes, and calls that strace makes fail.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Hub, PATIENCE};

/// A hub that strace watches.
pub struct Traced {
    pub hub: Hub,
    /// The path of the trace.
    trace: String,
    /// The strace that was attached to it.
    strace: Option<Child>,
}

impl Traced {
    /// The hub that this makes of a command's first words. It is this process's child: with `-D` strace
    /// watches it from the side, and ends when it does.
    pub fn spawn(options: &[&str], command: impl FnOnce(&[&str]) -> Command) -> Traced {
        let installed = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(installed.is_ok_and(|status| status.success()), "this test needs strace");
        let trace = trace();
        // A filter in the kernel is faster, and strace can't send a signal with it.
        let sends_signal = options.iter().any(|option| option.contains(":signal="));
        let filter: &[&str] = if sends_signal { &[] } else { &["--seccomp-bpf"] };
        let words = ["strace", "-D", "-f", "-q", "-y", "-o", &trace];
        let hub = Hub::spawn(&mut command(&[&words, filter, options, &["--"]].concat()));
        Traced { hub, trace, strace: None }
    }

    /// Watches a hub that runs. What each of its threads does is counted from here on. `None` where this
    /// process may not.
    pub fn attach(hub: Hub, options: &[&str]) -> Option<Traced> {
        let trace = trace();
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-o", &trace, "-p", &hub.pid().to_string()]).args(options);
        let mut strace = strace.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(strace.stderr.take().unwrap()).lines().map_while(Result::ok);
        let is_attached = lines.any(|line| line.contains(" attached"));
        // It goes on to write, of threads that begin.
        std::thread::spawn(move || lines.for_each(drop));
        let traced = Traced { hub, trace, strace: Some(strace) };
        is_attached.then_some(traced)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.trace).unwrap()).into_owned()
    }

    /// Whether a system call has been made to fail so far.
    pub fn is_injected(&self) -> bool {
        self.text().contains("(INJECTED)")
    }

    pub fn kill(&mut self) {
        self.hub.end("KILL");
    }

    /// All calls of the hub, once it has ended.
    pub fn calls(mut self) -> Vec<Call> {
        self.hub.wait();
        self.wait_for_trace();
        parse_calls(&self.text())
    }

    /// Waits until the trace of a hub that has ended is whole.
    pub fn wait_for_trace(&self) {
        let pid = self.hub.pid().to_string();
        let is_end = |line: &str| line.split_whitespace().next() == Some(&pid) && line.ends_with(" +++");
        let deadline = Instant::now() + PATIENCE;
        // There is no event for the end of strace but what it writes at last.
        while !self.text().lines().rev().take(30).any(is_end) {
            assert!(Instant::now() < deadline, "the trace does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A path for a trace that no other has.
fn trace() -> String {
    let name = format!("tabcast-trace-{}-{}", std::process::id(), fastrand::u64(..));
    std::env::temp_dir().join(name).to_str().unwrap().to_owned()
}

impl Drop for Traced {
    fn drop(&mut self) {
        if let Some(strace) = &mut self.strace {
            // A hub that has ended ends it as well.
            let _ = strace.kill();
            let _ = strace.wait();
        }
        let _ = std::fs::remove_file(&self.trace);
    }
}

/// A system call.
#[derive(Debug)]
pub struct Call {
    /// The thread that makes it.
    pub thread: String,
    pub name: String,
    pub arguments: String,
    pub result: String,
    /// The numbers of the lines in the trace on which it began and ended. strace stops a thread at both: of
    /// two lines, also of different threads, the first was earlier.
    pub began: usize,
    pub ended: usize,
}

impl Call {
    /// Whether it is one of these, on the descriptor of this file.
    pub fn is_on(&self, names: &[&str], path: &str) -> bool {
        let descriptor = self.arguments.split([',', ')']).next().unwrap_or_default();
        names.contains(&&*self.name) && descriptor.ends_with(&format!("<{path}>"))
    }

    /// Whether it has put this file on the disk.
    pub fn syncs(&self, path: &str) -> bool {
        self.is_on(&["fsync", "fdatasync"], path) && self.result == "0"
    }

    /// Whether it began after one call had ended, and ended before another began.
    pub fn is_between(&self, before: &Call, after: &Call) -> bool {
        before.ended < self.began && self.ended < after.began
    }
}

/// The calls of a trace, in the order in which they began. A line is `PID name(arguments) = result`; or
/// `PID name(arguments <unfinished ...>`, with a later `PID <... name resumed>) = result`.
pub fn parse_calls(trace: &str) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for (number, line) in trace.lines().enumerate() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let result = |rest: &str| rest.rsplit_once(" = ").map_or("", |(_, result)| result).to_owned();
        if rest.starts_with("<... ") {
            let unfinished = |call: &&mut Call| call.thread == pid && call.ended == usize::MAX;
            let call = calls.iter_mut().rev().find(unfinished).expect("what is resumed began");
            (call.ended, call.result) = (number, result(rest));
        } else if let Some((name, arguments)) = rest.split_once('(') {
            let (arguments, ended, result) = match arguments.strip_suffix(" <unfinished ...>") {
                Some(arguments) => (arguments, usize::MAX, String::new()),
                None => (arguments, number, result(rest)),
            };
            let (name, arguments) = (name.to_owned(), arguments.to_owned());
            let thread = pid.to_owned();
            calls.push(Call { thread, name, arguments, result, began: number, ended });
        }
    }
    calls
}
