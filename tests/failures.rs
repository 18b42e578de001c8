//! Each call that the hub makes on its folder fails once, or from then on: strace makes it fail, in a hub of
//! its own for each. The hub serves on, or ends and says why; and the next one has all that was acknowledged,
//! once, and nothing that was refused.

#![cfg(target_os = "linux")]

mod checker;
mod common;
mod traced;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Write};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

use checker::seed;
use common::{Folder, Hub, PATIENCE, Response, connect, has_data, parse_event, request};
use traced::{Traced, parse_calls};

/// What a hub does while its calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scene {
    /// It makes its journal.
    Creates,
    /// It starts with what a killed hub has left.
    Starts,
    /// It serves, and stops.
    Serves,
    /// It serves who reads the file first.
    Reads,
    /// It serves messages so large that the WAL is copied to the file.
    Copies,
}

const SCENES: [Scene; 5] = [Scene::Creates, Scene::Starts, Scene::Serves, Scene::Reads, Scene::Copies];

/// The calls that fail, and the errors of each: those that mean something else to SQLite or to the hub.
const CALLS: [(&str, &[&str]); 12] = [
    ("openat", &["EIO", "ENOSPC", "EDQUOT", "EINTR", "EMFILE", "EROFS"]),
    ("read", &["EIO", "EINTR"]),
    ("pread64", &["EIO", "EINTR"]),
    ("pwrite64", &["EIO", "ENOSPC", "EDQUOT", "EINTR", "EROFS"]),
    ("ftruncate", &["EIO", "ENOSPC", "EDQUOT", "EINTR", "EROFS"]),
    ("fallocate", &["EIO", "ENOSPC", "EDQUOT", "EINTR", "EROFS"]),
    ("fsync", &["EIO", "ENOSPC", "EDQUOT", "EINTR", "EROFS"]),
    ("linkat", &["EIO", "ENOSPC", "EDQUOT", "EMFILE", "EROFS"]),
    ("unlink", &["EIO", "ENOSPC", "EROFS"]),
    ("fcntl", &["EIO", "EINTR", "ENOLCK"]),
    ("mmap", &["EIO", "ENOMEM", "EMFILE"]),
    ("fchown", &["EIO", "EROFS"]),
];

/// What the log says of an error.
const TEXTS: [(&str, &str); 8] = [
    ("EIO", "Input/output error (os error 5)"),
    ("ENOSPC", "No space left on device (os error 28)"),
    ("EDQUOT", "Disk quota exceeded (os error 122)"),
    ("EINTR", "Interrupted system call (os error 4)"),
    ("EMFILE", "Too many open files (os error 24)"),
    ("EROFS", "Read-only file system (os error 30)"),
    ("ENOLCK", "No locks available (os error 37)"),
    ("ENOMEM", "Cannot allocate memory (os error 12)"),
];

/// Which call of a hub fails, and how.
#[derive(Clone, Copy, Debug)]
struct Failure {
    scene: Scene,
    call: &'static str,
    error: &'static str,
    /// The number of the call, counted for each thread from 1.
    number: usize,
    /// Whether all later ones fail too.
    lasts: bool,
}

impl Failure {
    /// As strace takes it.
    fn inject(&self) -> String {
        let Failure { call, error, number, lasts, .. } = self;
        format!("inject={call}:error={error}:when={number}{}", if *lasts { "+" } else { "" })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?} {}", self.scene, self.inject())
    }
}

/// The files of a hub that was killed.
fn image() -> &'static Folder {
    static IMAGE: OnceLock<Folder> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let folder = Folder::new();
        let mut hub = Hub::start_with(&mut command(&folder, &[]));
        (0..OLD).for_each(|number| drop(hub.publish(&format!("old{number} "))));
        hub.end("KILL");
        folder
    })
}

/// How many messages there were before.
const OLD: usize = 30;

/// How many messages a hub keeps: some of the old ones are deleted, none of those that a test publishes.
const KEPT: usize = 20;

fn command(folder: &Folder, prefix: &[&str]) -> Command {
    let mut words = prefix.iter().copied().chain([env!("CARGO_BIN_EXE_tabcast")]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).args(["--listen", "127.0.0.1:0", "--hide-data", "--journal"]);
    command.arg(folder.file(JOURNAL)).args(["--retention-messages", &KEPT.to_string()]);
    command
}

const JOURNAL: &str = "tabcast.db";

/// A publish: what was published, and what became of it.
#[derive(Debug)]
struct Published {
    text: String,
    answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// 201, with this id.
    Kept(String),
    /// 507, or 503 that says so.
    NotKept,
    /// 503, or none: the hub ends.
    Unknown,
}

/// Publishes a text under the key that is the text's first word.
fn publish(address: SocketAddr, text: &str) -> Result<Answer, String> {
    let send = || -> io::Result<Response> {
        let mut connection = connect(address)?;
        // SQLite tries for ten seconds to get a lock that no call gives: for a read, a publish, and this one.
        connection.set_read_timeout(Some(2 * PATIENCE))?;
        let key = format!("Idempotency-Key: {}", text.split(' ').next().unwrap());
        let headers = [&*key, "Content-Type: text/plain"];
        connection.write_all(&request(
            "POST /messages HTTP/1.1",
            address,
            &headers,
            Some(text.as_bytes()),
        ))?;
        Response::try_read(&mut BufReader::new(connection))
    };
    let response = match send() {
        Ok(response) => response,
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            return Err(format!("no answer: {error}"));
        }
        Err(_closed) => return Ok(Answer::Unknown),
    };
    let is_retried = response.header("retry-after").is_some();
    match response.status {
        201 => Ok(Answer::Kept(response.json()["id"].as_str().unwrap().to_owned())),
        507 => Ok(Answer::NotKept),
        503 if is_retried && response.text().contains("nothing was published") => Ok(Answer::NotKept),
        503 if is_retried => Ok(Answer::Unknown),
        _ => Err(format!("{response:?}")),
    }
}

/// What became of a hub whose calls failed.
#[derive(Debug, Default)]
struct Outcome {
    /// Whether a call failed at all.
    is_injected: bool,
    /// Whether it listened.
    listened: bool,
    /// Whether it went on until it was ended.
    served: bool,
    /// How many publishes were refused.
    refused: usize,
    log: Vec<String>,
}

/// A subscriber's messages: their ids and texts.
type Messages = Vec<(String, String)>;

/// Reads a stream to its end, whatever that is.
fn subscribe(address: SocketAddr, is_open: impl FnOnce()) -> Messages {
    let read = |seen: &mut Messages| -> io::Result<()> {
        let mut connection = connect(address)?;
        connection.write_all(&request("GET /events?last=100 HTTP/1.1", address, &[], None))?;
        let mut stream = common::Stream::try_read(connection)?;
        let mut is_open = Some(is_open);
        while let Some(block) = stream.try_block()? {
            if let Some(is_open) = is_open.take() {
                is_open();
            }
            if has_data(&block) {
                let event = parse_event(&block);
                seen.push((event.id, event.data));
            }
        }
        Ok(())
    };
    let mut seen = Vec::new();
    let _ = read(&mut seen);
    seen
}

/// The options by which strace watches the hub's files.
fn options(scene: Scene, folder: &Folder, failure: Option<Failure>) -> Vec<String> {
    let mut options = vec!["-e".to_owned()];
    match failure {
        Some(failure) => {
            options.extend([format!("trace={}", failure.call), "-e".to_owned(), failure.inject()])
        }
        None => options.push(format!("trace={}", CALLS.map(|(call, _)| call).join(","))),
    }
    let names: &[&str] = match scene {
        Scene::Copies => &["", "-shm"],
        _ => &["", "-wal", "-shm", "-journal", ".new", ".new-journal", ".new-wal"],
    };
    for name in names {
        options.extend(["-P".to_owned(), folder.file(&format!("{JOURNAL}{name}"))]);
    }
    if scene != Scene::Copies {
        options.extend(["-P".to_owned(), folder.path.to_str().unwrap().to_owned()]);
    }
    options
}

/// Runs a hub whose calls fail so, or none, and then one more. `Err` says which promise is broken.
fn run(scene: Scene, failure: Option<Failure>, seed: u64) -> Result<(Outcome, String), String> {
    let folder = Folder::new();
    if scene != Scene::Creates {
        for name in [JOURNAL, "tabcast.db-wal"] {
            std::fs::copy(image().file(name), folder.file(name)).unwrap();
        }
    }
    let options = options(scene, &folder, failure);
    let options: Vec<_> = options.iter().map(|option| &**option).collect();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut outcome = Outcome::default();
    let mut published: Vec<Published> = Vec::new();
    let mut seen = Vec::new();
    let (opened, is_open) = std::sync::mpsc::channel();
    let trace = std::thread::scope(|scope| -> Result<String, String> {
        let mut subscriber = None;
        let mut subscribe_to = |address| {
            let opened = opened.clone();
            subscriber = Some(scope.spawn(move || {
                let signal = opened.clone();
                let seen = subscribe(address, move || signal.send(()).unwrap_or(()));
                let _ = opened.send(());
                seen
            }));
            let _ = is_open.recv_timeout(PATIENCE);
        };
        let mut traced = match scene {
            Scene::Creates | Scene::Starts => {
                let mut traced = Traced::spawn(&options, |prefix| command(&folder, prefix));
                if traced.hub.listens() {
                    outcome.listened = true;
                    subscribe_to(traced.hub.address);
                }
                traced
            }
            Scene::Serves | Scene::Reads | Scene::Copies => {
                let hub = Hub::start_with(&mut command(&folder, &[]));
                outcome.listened = true;
                if scene != Scene::Reads {
                    subscribe_to(hub.address);
                }
                let traced = Traced::attach(hub, &options).expect("strace may attach to a process");
                if scene == Scene::Reads {
                    subscribe_to(traced.hub.address);
                }
                traced
            }
        };
        let address = traced.hub.address;
        let count = if scene == Scene::Copies { 12 } else { 6 };
        let size = if scene == Scene::Copies { 1_000_000 } else { 10 };
        let lasts = failure.is_some_and(|failure| failure.lasts);
        let mut is_alive = outcome.listened;
        let deadline = Instant::now() + PATIENCE;
        for number in 0.. {
            let done = number >= count
                && (lasts || matches!(published.last(), Some(Published { answer: Answer::Kept(_), .. })));
            if !is_alive || done || lasts && outcome.refused >= 2 {
                break;
            }
            if Instant::now() > deadline {
                return Err(format!("publishing does not go on: {:?}", traced.hub.log()));
            }
            let text = format!("new{number} {}", "x".repeat(size));
            let answer =
                publish(address, &text).map_err(|error| format!("{error}: {:?}", traced.hub.log()))?;
            match answer {
                Answer::NotKept => outcome.refused += 1,
                Answer::Unknown => is_alive = false,
                Answer::Kept(_) => {}
            }
            published.push(Published { text, answer });
        }
        let by_kill = outcome.refused > 0 && rng.bool();
        if is_alive {
            traced.hub.signal(if by_kill { "KILL" } else { "TERM" });
        }
        let status = traced.hub.wait();
        traced.wait_for_trace();
        if status.code() == Some(1) {
            traced.hub.wait_for_log(&["tabcast: can't "]);
        }
        outcome.log = traced.hub.log();
        seen = subscriber.map(|subscriber| subscriber.join().unwrap()).unwrap_or_default();
        outcome.served = match status.code() {
            Some(0) if is_alive && !by_kill => true,
            None if is_alive && by_kill => true,
            Some(1) => false,
            _ => return Err(format!("it ended with {status}: {:?}", outcome.log)),
        };
        if outcome.log.iter().any(|line| line.contains("panicked")) {
            return Err(format!("it panicked: {:?}", outcome.log));
        }
        let reason = outcome.log.iter().find(|line| line.starts_with("tabcast: can't "));
        if !outcome.served && reason.is_none() {
            return Err(format!("it ended without a reason: {:?}", outcome.log));
        }
        outcome.is_injected = traced.is_injected();
        Ok(traced.text())
    })?;
    check(&folder, scene, &published, &seen)
        .map_err(|broken| format!("{broken}\n{published:?}\n{seen:?}\n{}", outcome.log.join("\n")))?;
    Ok((outcome, trace))
}

/// Checks what the next hub has.
fn check(folder: &Folder, scene: Scene, published: &[Published], seen: &Messages) -> Result<(), String> {
    let mut hub = Hub::spawn(&mut command(folder, &[]));
    if !hub.listens() {
        return Err(format!("the next hub does not start: {:?}", hub.log()));
    }
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let history = hub.history("?limit=100");
    let kept: Messages =
        history.iter().map(|message| (text(&message["id"]), text(&message["data"]))).collect();
    let sequence = |id: &str| id.split_once('-').unwrap().1.parse::<u64>().unwrap();
    let sequences: Vec<_> = kept.iter().map(|(id, _)| sequence(id)).collect();
    let known: Vec<_> = kept.iter().filter(|(_, text)| text.starts_with("old")).collect();
    let old = if scene == Scene::Creates { 0 } else { OLD };
    let last_old = format!("old{} ", OLD - 1);
    if !sequences.windows(2).all(|pair| pair[0] + 1 == pair[1]) {
        return Err(format!("out of order: {sequences:?}"));
    }
    if old > 0 && known.last().is_none_or(|(_, text)| *text != last_old) {
        return Err("an old message is lost".to_owned());
    }
    for (id, text) in seen {
        let is_kept = kept.iter().any(|kept| kept.0 == *id && kept.1 == *text);
        if !is_kept && sequences.first().is_some_and(|first| sequence(id) >= *first) {
            return Err(format!("{id} was seen and is not kept"));
        }
    }
    if !seen.windows(2).all(|pair| sequence(&pair[0].0) + 1 == sequence(&pair[1].0)) {
        return Err("the subscriber's messages are out of order".to_owned());
    }
    for Published { text, answer } in published {
        let ids: Vec<_> = kept.iter().filter(|(_, kept)| kept == text).map(|(id, _)| id).collect();
        let key = text.split(' ').next().unwrap();
        let is_right = match answer {
            Answer::Kept(id) => ids == [id],
            Answer::NotKept => ids.is_empty(),
            Answer::Unknown => ids.len() <= 1,
        };
        if !is_right {
            return Err(format!("{key} was answered with {answer:?}, and kept as {ids:?}"));
        }
        match publish(hub.address, text)? {
            Answer::Kept(id) if ids.is_empty() || *ids[0] == id => {}
            other => return Err(format!("{key} is kept as {ids:?}, and answered with {other:?}")),
        }
    }
    hub.end("KILL");
    let db = rusqlite::Connection::open(folder.file(JOURNAL)).unwrap();
    let integrity: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    if integrity == "ok" { Ok(()) } else { Err(integrity) }
}

/// How many calls of each kind one thread makes at most in this scene.
fn counts(scene: Scene) -> BTreeMap<&'static str, usize> {
    let (outcome, trace) = run(scene, None, 0).unwrap();
    assert!(outcome.served, "{:?}", outcome.log);
    let mut counts: BTreeMap<(String, &str), usize> = BTreeMap::new();
    for call in parse_calls(&trace) {
        if let Some((name, _)) = CALLS.iter().find(|(name, _)| *name == call.name) {
            *counts.entry((call.thread, name)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((_, name), count) in counts {
        let most: &mut usize = most.entry(name).or_default();
        *most = count.max(*most);
    }
    most
}

fn failures() -> Vec<Failure> {
    let mut failures = Vec::new();
    for scene in SCENES {
        let counts = counts(scene);
        println!("{scene:?}: {counts:?}");
        for (call, errors) in CALLS {
            let Some(count) = counts.get(call) else { continue };
            let step = if scene == Scene::Copies { count / 20 + 1 } else { 1 };
            // One more, as the number differs by a few.
            for number in (1..=count + 1).step_by(step) {
                for error in errors {
                    for lasts in [false, true] {
                        // No signal is handled for ever.
                        if *error == "EINTR" && lasts {
                            continue;
                        }
                        failures.push(Failure { scene, call, error, number, lasts });
                    }
                }
            }
        }
    }
    failures
}

/// How many hubs the test takes, unless `TABCAST_FAULTS` says `all`, or a part of the failures' names.
const SOME: usize = 100;

/// How many hubs have ended in one of these ways, with one kind of failure.
#[derive(Debug, Default)]
struct Counts {
    /// No call had the number.
    unharmed: usize,
    served: usize,
    /// The hub ended, and its log has the error's text.
    stopped: usize,
    /// The hub ended, and its log has another reason, as SQLite tells no other.
    stopped_otherwise: usize,
}

impl Counts {
    fn add(&mut self, error: &str, outcome: &Outcome) {
        let text = TEXTS.iter().find(|(name, _)| *name == error).unwrap().1;
        let names = |line: &String| line.starts_with("tabcast: can't ") && line.contains(text);
        *match outcome {
            Outcome { is_injected: false, .. } => &mut self.unharmed,
            Outcome { served: true, .. } => &mut self.served,
            Outcome { log, .. } if log.iter().any(names) => &mut self.stopped,
            _ => &mut self.stopped_otherwise,
        } += 1;
    }
}

#[test]
fn whichever_call_fails_the_hub_serves_on_or_says_why_it_ends_and_keeps_what_it_acknowledged() {
    let seed = seed();
    let mut failures = failures();
    fastrand::Rng::with_seed(seed).shuffle(&mut failures);
    match std::env::var("TABCAST_FAULTS").ok() {
        Some(all) if all == "all" => {}
        Some(part) => failures.retain(|failure| failure.to_string().contains(&part)),
        None => {
            // Each of those takes half a minute.
            failures.retain(|failure| failure.call != "fcntl" || !failure.lasts);
            failures.truncate(SOME);
        }
    }
    let next = AtomicUsize::new(0);
    let table: Mutex<BTreeMap<_, Counts>> = Mutex::default();
    let broken = Mutex::new(Vec::new());
    let work = || {
        while let Some(failure) = failures.get(next.fetch_add(1, Ordering::Relaxed)) {
            let run = || run(failure.scene, Some(*failure), seed ^ failure.number as u64);
            match catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err("see above".to_owned())) {
                Ok((outcome, _)) => {
                    let Failure { scene, call, error, lasts, .. } = *failure;
                    let kind = (scene, call, error, lasts);
                    table.lock().unwrap().entry(kind).or_default().add(error, &outcome);
                }
                Err(what) => {
                    println!("{failure}: {what}");
                    broken.lock().unwrap().push(failure.to_string());
                }
            }
        }
    };
    std::thread::scope(|scope| (0..2).for_each(|_| drop(scope.spawn(work))));
    println!("{} failures: scene, call, error, lasts", failures.len());
    for (kind, counts) in table.into_inner().unwrap() {
        println!("{kind:?}: {counts:?}");
    }
    let broken = broken.into_inner().unwrap();
    assert!(broken.is_empty(), "{} broken: {broken:#?}", broken.len());
}
