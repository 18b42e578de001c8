//! Scenarios: hubs one after the other on one folder, with publishers and a subscriber, and a record of all
//! that they do to it and all that they send.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use fastrand::Rng;
use memchr::memmem;

use crate::common::{Folder, Hub, PATIENCE, Response, connect, has_data, parse_event, request};
use crate::disk::{Cut, Disk, Image};
use crate::trace::{self, Call};

/// The name of the journal's file.
pub const JOURNAL: &str = "tabcast.db";

/// Hubs on one folder, and what is known of them so far.
pub struct Scene {
    pub rng: Rng,
    /// How many scenes there were before this one.
    pub number: usize,
    /// How many messages the hubs keep.
    pub retention: usize,
    folder: Folder,
    record: Record,
    /// How many lines the traces had so far.
    lines: usize,
    /// How many messages there are so far.
    count: usize,
}

/// What was done to a folder, and what was sent.
pub struct Record {
    pub folder: String,
    /// The folder's files before the first call.
    pub start: Image,
    /// In the order in which they began.
    pub calls: Vec<Call>,
    /// The mark of each message that was acknowledged or shown, by its id.
    pub marks: BTreeMap<String, String>,
    /// The ids of the messages that were there before the first call.
    pub kept: BTreeSet<String>,
    /// The first line of each hub.
    pub starts: Vec<usize>,
    /// The first line after which the power may be cut.
    pub from: usize,
}

/// A hub that strace watches, and that has a subscriber.
pub struct Running {
    hub: Hub,
    trace: String,
    /// The ids that the subscriber got.
    received: Receiver<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.trace);
    }
}

/// A message's text. It begins with its mark, `{key}/{size}`. It was published with that key if the mark
/// begins with `k`.
pub fn text(mark: &str) -> String {
    format!("{mark} {}", "x".repeat(mark.split_once('/').unwrap().1.parse().unwrap()))
}

/// The idempotency key that the message with this mark is published with.
pub fn key(mark: &str) -> Option<&str> {
    mark.split_once('/').map(|(key, _)| key).filter(|key| key.starts_with('k'))
}

/// Publishes the message with this mark, and returns its id. `None` if the answer is another or none.
pub fn publish(hub: SocketAddr, mark: &str) -> Option<String> {
    let key = key(mark).map(|key| format!("Idempotency-Key: {key}"));
    let headers: Vec<_> = ["Content-Type: text/plain"].into_iter().chain(key.as_deref()).collect();
    let mut connection = connect(hub).ok()?;
    connection
        .write_all(&request("POST /messages HTTP/1.1", hub, &headers, Some(text(mark).as_bytes())))
        .ok()?;
    let response = Response::try_read(&mut BufReader::new(connection)).ok()?;
    (response.status == 201).then(|| response.json()["id"].as_str().unwrap().to_owned())
}

impl Scene {
    /// An empty folder, or one with this journal.
    pub fn new(rng: Rng, number: usize, journal: Option<Vec<u8>>) -> Scene {
        let folder = Folder::new();
        let mut record = Record {
            folder: folder.path.to_str().unwrap().to_owned(),
            start: Image::new(),
            calls: Vec::new(),
            marks: BTreeMap::new(),
            kept: BTreeSet::new(),
            starts: Vec::new(),
            from: 0,
        };
        if let Some(journal) = journal {
            std::fs::write(folder.file(JOURNAL), &journal).unwrap();
            record.start.insert(JOURNAL.to_owned(), journal);
            let db = rusqlite::Connection::open(folder.file(JOURNAL)).unwrap();
            let mut select = db.prepare("SELECT id, data ->> '$' FROM messages").unwrap();
            let rows = select.query_map([], |row| Ok((row.get(0)?, mark_of(&row.get::<_, String>(1)?))));
            record.marks = rows.unwrap().map(Result::unwrap).collect();
            record.kept = record.marks.keys().cloned().collect();
        }
        Scene { rng, number, retention: 100_000, folder, record, lines: 0, count: 0 }
    }

    /// The path of the journal's file.
    pub fn journal(&self) -> String {
        self.folder.file(JOURNAL)
    }

    /// From now on the power may be cut.
    pub fn cuts_from_here(&mut self) {
        self.record.from = self.lines;
    }

    /// The next hub, with a subscriber to all that is kept. `None` if it ended before it listened.
    pub fn start(&mut self) -> Running {
        self.start_with(&[]).expect("the hub listens")
    }

    /// The same with these options of strace's.
    pub fn start_with(&mut self, options: &[&str]) -> Option<Running> {
        let installed = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(installed.is_ok_and(|status| status.success()), "this test needs strace");
        self.record.starts.push(self.lines);
        let trace = format!("{}.trace-{}", self.folder.path.display(), self.lines);
        let mut command = Command::new("strace");
        // The hub is this process's child: with `-D` strace watches it from the side, and ends when it does.
        // Everything but reads, which change nothing.
        let calls = "trace=!read,pread64,recvfrom";
        command
            .args(["-D", "-f", "-q", "-y", "-s", "2000000", "-o", &trace, "-e", calls])
            .args(options)
            .arg("--");
        command.args([env!("CARGO_BIN_EXE_tabcast"), "--listen", "127.0.0.1:0", "--hide-data", "--journal"]);
        command.args([&self.journal(), "--retention-messages", &self.retention.to_string()]);
        let mut hub = Hub::spawn(&mut command);
        let (sender, received) = channel();
        let listens = hub.listens();
        if listens {
            let mut stream = hub.open("/events?last=1000000000", &[]);
            std::thread::spawn(move || {
                while let Ok(Some(block)) = stream.try_block() {
                    if has_data(&block) && sender.send(parse_event(&block).id).is_err() {
                        break;
                    }
                }
            });
        }
        let running = Running { hub, trace, received };
        if listens {
            return Some(running);
        }
        self.ended(running);
        None
    }

    /// Publishes `count` messages of this size from each of several publishers at once, some with a key. A
    /// publisher stops when its message is not acknowledged. Returns the marks of those.
    pub fn publish(&mut self, on: &Running, publishers: usize, count: usize, size: usize) -> Vec<String> {
        let mut mark = || {
            self.count += 1;
            format!("{}{}/{size}", if size < 100_000 && self.rng.bool() { 'k' } else { 'u' }, self.count)
        };
        let marks = (0..publishers).map(|_| (0..count).map(|_| mark()).collect()).collect();
        self.publish_these(on, marks)
    }

    /// Publishes again what was not acknowledged, where a key makes sure that it is there once.
    pub fn retry(&mut self, on: &Running, marks: Vec<String>) {
        let marks = marks.into_iter().filter(|mark| key(mark).is_some()).map(|mark| vec![mark]).collect();
        assert_eq!(self.publish_these(on, marks), [""; 0]);
    }

    fn publish_these(&mut self, on: &Running, marks: Vec<Vec<String>>) -> Vec<String> {
        let address = on.hub.address;
        let one = |marks: Vec<String>| {
            let (mut ids, mut refused) = (Vec::new(), None);
            for mark in marks {
                match publish(address, &mark) {
                    Some(id) => ids.push((id, mark)),
                    None => {
                        refused = Some(mark);
                        break;
                    }
                }
            }
            (ids, refused)
        };
        let published: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = marks.into_iter().map(|marks| scope.spawn(|| one(marks))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (ids, refused): (Vec<_>, Vec<_>) = published.into_iter().unzip();
        ids.into_iter().flatten().for_each(|(id, mark)| self.record.note(id, mark));
        refused.into_iter().flatten().collect()
    }

    /// Waits until the subscriber has got the last message.
    pub fn wait_until_shown(&self, on: &Running) {
        let newest = on.hub.newest()["id"].as_str().unwrap().to_owned();
        while on.received.recv_timeout(PATIENCE).expect("the subscriber gets the newest message") != newest {}
    }

    /// Ends the hub by this signal.
    pub fn end(&mut self, on: Running, signal: &str) {
        on.hub.signal(signal);
        self.ended(on);
    }

    /// Waits for the end of the hub, and adds its calls to the record.
    pub fn ended(&mut self, mut on: Running) {
        on.hub.wait();
        let last = format!("{} ", on.hub.pid());
        let is_end = |line: &[u8]| line.starts_with(last.as_bytes()) && line.ends_with(b" +++");
        let deadline = Instant::now() + PATIENCE;
        // There is no event for the end of strace but what it writes at last.
        let trace = loop {
            let trace = std::fs::read(&on.trace).unwrap();
            if trace.rsplit(|byte| *byte == b'\n').take(30).any(is_end) {
                break String::from_utf8(trace).unwrap();
            }
            assert!(Instant::now() < deadline, "the trace does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let calls = trace::parse(&trace, self.lines, &self.record.folder);
        self.lines += trace.lines().count();
        let sightings = calls.iter().flat_map(sightings);
        for sighting in sightings {
            if let Sighting::Message { id, mark: Some(mark) } = sighting {
                self.record.note(id, mark);
            }
        }
        self.record.calls.extend(calls);
    }

    /// The record, once all hubs have ended.
    pub fn record(self) -> Record {
        // Nothing is missing: by its calls, the folder is what it is.
        let image = self.record.disk().image(self.lines, (Cut::All, Cut::All), &mut Rng::new());
        let files = std::fs::read_dir(&self.folder.path).unwrap().map(|entry| entry.unwrap());
        let files = files
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()));
        let files: Image = files.filter(|(name, _)| !name.ends_with("-shm")).collect();
        let differs = |name: &&String| image.get(*name) != files.get(*name);
        let differing: Vec<_> = image.keys().chain(files.keys()).filter(differs).collect();
        assert!(differing.is_empty(), "{differing:?} are not what the calls have made of them");
        self.record
    }
}

impl Record {
    fn note(&mut self, id: String, mark: String) {
        let before = self.marks.insert(id.clone(), mark.clone());
        assert!(before.is_none_or(|before| before == mark), "{id} is two messages without any power cut");
    }

    /// The disk with all that the calls have done.
    pub fn disk(&self) -> Disk {
        Disk::new(&self.folder, &self.start, &self.calls)
    }
}

/// What somebody is sent of the journal.
pub enum Sighting {
    /// A message, acknowledged or shown. Only an event says its mark.
    Message { id: String, mark: Option<String> },
    /// A position to resume from.
    Position { id: String },
}

/// What is in the bytes that the call sends.
pub fn sightings(call: &Call) -> Vec<Sighting> {
    let mut found = Vec::new();
    if !call.is_send() {
        return found;
    }
    let bytes = call.strings().concat();
    let after = |mark: &'static [u8]| {
        let bytes = &bytes;
        memmem::find_iter(bytes, mark)
            .map(move |at| String::from_utf8_lossy(&bytes[at + mark.len()..]).into_owned())
    };
    let until = |text: &str, end: char| text.split(end).next().unwrap().to_owned();
    found.extend(after(b"\"id\":\"").map(|rest| Sighting::Message { id: until(&rest, '"'), mark: None }));
    found.extend(after(b"\nid: ").map(|rest| {
        let block = rest.split("\n\n").next().unwrap();
        let id = until(block, '\n');
        match block.split_once("\ndata: ") {
            // The hub's own events, such as that of a gap, have the id of a position.
            Some((head, data)) if !head.contains("\nevent: tabcast:") => {
                Sighting::Message { id, mark: Some(mark_of(data)) }
            }
            _ => Sighting::Position { id },
        }
    }));
    found
}

fn mark_of(text: &str) -> String {
    text.split(' ').next().unwrap().to_owned()
}
