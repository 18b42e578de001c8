//! Scenarios: hubs one after the other on one folder, with publishers and a subscriber, and a record of all
//! that they do to it and all that they send.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};

use fastrand::Rng;
use memchr::memmem;

use crate::common::{Folder, PATIENCE, Response, connect, has_data, parse_event, request};
use crate::disk::{self, Cut, Disk, Image};
use crate::trace::{self, Call};
use crate::traced::Traced;

/// The name of the journal's file.
pub const JOURNAL: &str = "tabcast.db";

/// What is in the folder, and what was known of it.
#[derive(Clone, Default)]
pub struct Left {
    pub files: Image,
    /// The marks of all messages that ever were acknowledged or shown, by their ids.
    pub marks: BTreeMap<String, String>,
    /// The ids of messages that were acknowledged or shown by now, and of positions to resume from.
    pub known: BTreeSet<String>,
}

/// Hubs on one folder, and what is known of them so far.
pub struct Scene<'a> {
    pub rng: Rng,
    /// How many scenes there were before this one.
    pub number: usize,
    /// How many messages the hubs keep.
    pub retention: usize,
    /// What strace is to trace.
    pub filter: String,
    /// The program that the hubs run.
    hub: &'a Path,
    folder: Folder,
    /// What was there at first, with the marks of all messages so far.
    left: Left,
    /// In the order in which they began.
    calls: Vec<Call>,
    /// The first line of each hub.
    starts: Vec<usize>,
    /// The first line after which the power may be cut.
    from: usize,
    /// How many lines the traces had so far.
    lines: usize,
    /// How many messages there are so far.
    count: usize,
}

/// All that was done to a folder, and all that was sent.
pub struct Record {
    left: Left,
    calls: Vec<Call>,
    disk: Disk,
    /// What was sent, and on which line.
    sightings: Vec<(usize, String)>,
    /// Lines after which the power may be cut, of several kinds.
    moments: Vec<Vec<usize>>,
}

/// A hub that strace watches, and that has a subscriber.
pub struct Running {
    traced: Traced,
    /// The ids that the subscriber got.
    received: Receiver<String>,
}

/// A message's text. It begins with its mark, `{key}/{size}`. It was published with that key if the mark
/// begins with `k`. Another mark is a text by itself.
pub fn text(mark: &str) -> String {
    let size = mark.split_once('/').map(|(_, size)| size.parse().unwrap());
    size.map_or_else(|| mark.to_owned(), |size| format!("{mark} {}", "x".repeat(size)))
}

fn mark_of(text: &str) -> String {
    text.trim_end_matches('x').trim_end().to_owned()
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
    let request = request("POST /messages HTTP/1.1", hub, &headers, Some(text(mark).as_bytes()));
    connection.write_all(&request).ok()?;
    let response = Response::try_read(&mut BufReader::new(connection)).ok()?;
    (response.status == 201).then(|| response.json()["id"].as_str().unwrap().to_owned())
}

/// A new folder in memory, where there is such: then it does not matter how fast the disk is.
pub fn new_folder() -> Folder {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("tabcast-cut-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let path = Path::new("/dev/shm").join(name);
    std::fs::create_dir(&path).map_or_else(|_| Folder::new(), |()| Folder { path })
}

impl Scene<'_> {
    /// A folder where this is left, for hubs that run this program.
    pub fn new(hub: &Path, left: Left, number: usize, rng: Rng) -> Scene<'_> {
        let folder = new_folder();
        for (name, bytes) in &left.files {
            std::fs::write(folder.path.join(name), bytes).unwrap();
        }
        let (calls, starts, filter) = (Vec::new(), Vec::new(), trace::filter());
        // Its marks are not those of the messages that are left.
        let count = left.marks.len() * 100;
        Scene {
            rng,
            number,
            retention: 100_000,
            filter,
            hub,
            folder,
            left,
            calls,
            starts,
            from: 0,
            lines: 0,
            count,
        }
    }

    /// From now on the power may be cut.
    pub fn cuts_from_here(&mut self) {
        self.from = self.lines;
    }

    /// The next hub, with a subscriber to all that is kept. `None` if it ended before it listened.
    pub fn start(&mut self) -> Running {
        self.start_with(&[]).expect("the hub listens")
    }

    /// The same with these faults, as strace(1) injects them.
    pub fn start_with(&mut self, faults: &[&str]) -> Option<Running> {
        self.starts.push(self.lines);
        let faults: Vec<_> = faults.iter().map(|fault| format!("inject={fault}")).collect();
        let mut options = vec!["-s", "2000000", "-e", &self.filter];
        faults.iter().for_each(|fault| options.extend(["-e", fault]));
        let mut traced = Traced::spawn(&options, |words| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).arg(self.hub).args(["--listen", "127.0.0.1:0", "--hide-data"]);
            command.args(["--journal", &self.folder.file(JOURNAL)]);
            command.args(["--retention-messages", &self.retention.to_string()]);
            command
        });
        let (sender, received) = channel();
        let listens = traced.hub.listens();
        if listens {
            let mut stream = traced.hub.open("/events?last=1000000000", &[]);
            std::thread::spawn(move || {
                while let Ok(Some(block)) = stream.try_block() {
                    if has_data(&block) && sender.send(parse_event(&block).id).is_err() {
                        break;
                    }
                }
            });
        }
        let running = Running { traced, received };
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
        let address = on.traced.hub.address;
        let one = |marks: Vec<String>| {
            let mut ids = Vec::new();
            for mark in marks {
                match publish(address, &mark) {
                    Some(id) => ids.push((id, mark)),
                    None => return (ids, Some(mark)),
                }
            }
            (ids, None)
        };
        let published: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = marks.into_iter().map(|marks| scope.spawn(|| one(marks))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (ids, refused): (Vec<_>, Vec<_>) = published.into_iter().unzip();
        ids.into_iter().flatten().for_each(|(id, mark)| self.note(id, mark));
        refused.into_iter().flatten().collect()
    }

    fn note(&mut self, id: String, mark: String) {
        let before = self.left.marks.insert(id.clone(), mark.clone());
        assert!(before.is_none_or(|before| before == mark), "{id} is two messages without any power cut");
    }

    /// Waits until the subscriber has got the last message.
    pub fn wait_until_shown(&self, on: &Running) {
        let newest = on.traced.hub.newest()["id"].as_str().unwrap().to_owned();
        while on.received.recv_timeout(PATIENCE).expect("the subscriber gets the newest message") != newest {}
    }

    /// Ends the hub by this signal.
    pub fn end(&mut self, on: Running, signal: &str) {
        on.traced.hub.signal(signal);
        self.ended(on);
    }

    /// Waits for the end of the hub, and adds its calls to the record.
    pub fn ended(&mut self, mut on: Running) {
        on.traced.hub.wait();
        on.traced.wait_for_trace();
        let trace = on.traced.text();
        let calls = trace::parse(&trace, self.lines, self.folder.path.to_str().unwrap());
        self.lines += trace.lines().count();
        for (id, mark) in calls.iter().flat_map(sightings) {
            mark.into_iter().for_each(|mark| self.note(id.clone(), mark));
        }
        self.calls.extend(calls);
    }

    /// The record, once all hubs have ended.
    pub fn record(self) -> Record {
        let disk = Disk::new(self.folder.path.to_str().unwrap(), &self.left.files, &self.calls);
        // Nothing is missing: by its calls, the folder is what it is.
        let image = disk.image(self.lines, (Cut::All, Cut::All), &mut Rng::new());
        let files = std::fs::read_dir(&self.folder.path).unwrap().map(|entry| entry.unwrap());
        let files = files
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()));
        let files: Image = files.filter(|(name, _)| !name.ends_with("-shm")).collect();
        let differs = |name: &&String| image.get(*name) != files.get(*name);
        let differing: Vec<_> = image.keys().chain(files.keys()).filter(differs).collect();
        assert!(differing.is_empty(), "{differing:?} are not what the calls have made of them");

        let moments = self.moments(&disk);
        let Scene { left, calls, .. } = self;
        let sightings = calls
            .iter()
            .flat_map(|call| sightings(call).into_iter().map(|(id, _)| (call.began, id)))
            .collect();
        Record { left, calls, disk, sightings, moments }
    }

    /// Any lines on which a call began or ended; those on which something was sent while something else was
    /// not durable; those of a hub that has not sent anything yet; and those between an fsync that failed and
    /// the start of the next hub.
    fn moments(&self, disk: &Disk) -> Vec<Vec<usize>> {
        let lines = self.calls.iter().flat_map(|call| [call.began, call.ended]);
        let any: Vec<_> = lines.filter(|line| (self.from..usize::MAX).contains(line)).collect();
        let between = |from, until| any.iter().copied().filter(move |line| (from..until).contains(line));
        let sends: Vec<_> = self.calls.iter().filter(|call| call.is_send()).map(|call| call.began).collect();
        let next = |lines: &[usize], from| lines.iter().copied().find(|line| *line > from);
        let until = |lines, from| between(from, next(lines, from).unwrap_or(usize::MAX));
        let failed = self.calls.iter().filter(|call| call.is_sync() && call.result != Some(0));
        let starting = self.starts.iter().flat_map(|start| until(&sends, *start)).collect();
        let after_failure = failed.flat_map(|call| until(&self.starts, call.ended)).collect();
        let sent = sends.iter().copied().filter(|line| *line >= self.from && !disk.is_clean(*line)).collect();
        vec![any, sent, starting, after_failure]
    }
}

impl Record {
    /// What a power cut at a moment of this kind leaves, and a line on how it came about. `None` if there is
    /// no such moment.
    pub fn cut(&self, kind: usize, rng: &mut Rng) -> Option<(Left, String)> {
        let kinds = self.moments.len();
        let line = rng.choice(&self.moments[kind % kinds]).copied()?;
        let cut = disk::cut(rng);
        let mut left = Left { files: self.disk.image(line, cut, rng), ..self.left.clone() };
        let seen = self.sightings.iter().filter(|(at, _)| *at <= line).map(|(_, id)| id.clone());
        left.known.extend(seen);
        let before: Vec<_> = self.calls.iter().filter(|call| call.began <= line).collect();
        let last = before.iter().skip(before.len().saturating_sub(6));
        let last: String = last.map(|call| format!("\n    {}", call.summary())).collect();
        let files: Vec<_> = left.files.iter().map(|(name, bytes)| (name, bytes.len())).collect();
        let how = format!("{cut:?}: {files:?}\n  call {} of {}:{last}", before.len(), self.calls.len());
        Some((left, how))
    }
}

/// The ids of messages and positions in the bytes that the call sends, with the mark of a message that is
/// shown.
fn sightings(call: &Call) -> Vec<(String, Option<String>)> {
    if !call.is_send() {
        return Vec::new();
    }
    let bytes = call.bytes();
    let after = |mark: &'static [u8]| {
        memmem::find_iter(&bytes, mark).map(|at| String::from_utf8_lossy(&bytes[at + mark.len()..]))
    };
    let until = |text: &str, end: &str| text.split(end).next().unwrap().to_owned();
    let mut found: Vec<_> = after(b"\"id\":\"").map(|rest| (until(&rest, "\""), None)).collect();
    found.extend(after(b"\nid: ").map(|rest| {
        let block = until(&rest, "\n\n");
        // The hub's own events, such as that of a gap, have the id of a position.
        let shown = block.split_once("\ndata: ").filter(|(head, _)| !head.contains("\nevent: tabcast:"));
        (until(&block, "\n"), shown.map(|(_, data)| mark_of(data)))
    }));
    found
}
