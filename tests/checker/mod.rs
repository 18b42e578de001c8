//! The checker: a load on a hub that may die and come back, what its publishers were told and its
//! subscribers saw, and whether the two agree. It knows the hub by its wire alone.
//!
//! [`run`] makes the load and gathers the [`Evidence`]; [`check`] judges it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use socket2::SockRef;

use crate::common::{Event, Folder, Hub, PATIENCE, parse_event};

/// What outlasts a hub's process: its journal and its port.
pub struct Site {
    pub folder: Folder,
    pub address: SocketAddr,
    /// Messages its hubs keep; [`EVERYTHING`], unless a test is about less.
    pub retention: usize,
    /// Its hubs' binary.
    binary: PathBuf,
}

/// More messages than any test publishes.
const EVERYTHING: usize = 100_000_000;

impl Site {
    pub fn new() -> Site {
        Site::of(env!("CARGO_BIN_EXE_tabcast").into())
    }

    /// A site whose hubs run this binary.
    pub fn of(binary: PathBuf) -> Site {
        // Below the ports that the kernel gives to outgoing connections: one of those, retried while
        // no hub listens, could take the hub's port, or even connect to itself.
        let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let port = std::iter::repeat_with(|| fastrand::u16(10_000..32_768)).find(free).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Site { folder: Folder::new(), address, retention: EVERYTHING, binary }
    }

    /// The journal's path.
    pub fn journal(&self) -> String {
        self.folder.file("tabcast.db")
    }

    /// `prefix`, if any, and then the command of its hub.
    pub fn command(&self, prefix: &[&str]) -> Command {
        let address = self.address.to_string();
        let journal = self.journal();
        let retention = self.retention.to_string();
        let hub = [
            self.binary.to_str().unwrap(),
            "--listen",
            &address,
            "--journal",
            &journal,
            "--hide-data",
            "--retention-messages",
            &retention,
            "--retention-bytes=100GiB",
        ];
        let mut words = prefix.iter().chain(&hub);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
        command
    }

    pub fn start(&self) -> Hub {
        Hub::start_with(&mut self.command(&[]))
    }
}

/// Kills the hub, as kill -9 does, and waits for its end.
pub fn kill(mut hub: Hub) {
    hub.signal("KILL");
    hub.wait();
}

/// The seed of a test's random choices, printed: `TABCAST_TEST_SEED` gives it again. What the
/// kernel's scheduler does is not in it.
pub fn seed() -> u64 {
    let given = std::env::var("TABCAST_TEST_SEED").ok();
    let seed =
        given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("TABCAST_TEST_SEED is a number"));
    println!("TABCAST_TEST_SEED={seed}");
    seed
}

/// How a subscriber reads.
#[derive(Clone, Copy, Debug)]
pub enum Reading {
    /// All there is, on one connection as long as it lasts.
    Steady,
    /// It hangs up after every few messages, and comes back.
    HangsUp,
    /// It stops reading after the first message until so many are acknowledged.
    Stalls { until: usize },
}

/// What is done to a hub.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Publishers, each with one request at a time.
    pub publishers: usize,
    pub subscribers: Vec<Reading>,
    /// Bytes of each message beyond its key.
    pub padding: usize,
    pub seed: u64,
}

/// A message as somebody outside knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub id: String,
    pub key: String,
}

/// What a subscriber was told is not kept: all after one sequence, up to and with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub after: u64,
    pub through: u64,
}

/// What a subscriber saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub name: String,
    pub messages: Vec<Known>,
    /// What it was told it can't have.
    pub gaps: Vec<Gap>,
    /// Messages that nobody sent, cut short.
    pub altered: Vec<String>,
    /// Streams it had, the first among them.
    pub streams: usize,
}

/// What was observed of a hub from outside.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Every 201: the key it was for and the id it gave.
    pub acknowledged: Vec<Known>,
    /// Requests by the status they were answered with; 0 for those that were not.
    pub answers: BTreeMap<u16, usize>,
    /// Answers no publisher should get: the key, and what was wrong.
    pub refused: Vec<(String, String)>,
    /// The last one came when all was over.
    pub subscribers: Vec<Seen>,
    /// The hub was to keep only the newest messages.
    pub forgets: bool,
}

impl Seen {
    /// Whether it was told that this message is not kept; or if that is so of old ones, and this is
    /// older than all it was given.
    fn knows_it_dropped(&self, message: &Known, forgets: bool) -> bool {
        let Some(sequence) = message.sequence() else { return false };
        let first = self.messages.first().and_then(Known::sequence);
        let before_all = forgets && first.is_none_or(|first| sequence < first);
        before_all || self.gaps.iter().any(|gap| gap.after < sequence && sequence <= gap.through)
    }

    /// What it saw but for what the other knows that it was dropped.
    fn without_gaps_of<'a>(&'a self, other: &'a Seen, forgets: bool) -> impl Iterator<Item = &'a Known> {
        self.messages.iter().filter(move |message| !other.knows_it_dropped(message, forgets))
    }
}

impl Known {
    fn sequence(&self) -> Option<u64> {
        place_in_journal(&self.id).map(|(_, sequence)| sequence)
    }
}

impl Evidence {
    /// Requests that were answered with one of these statuses; 0 for those that were not.
    pub fn count(&self, statuses: &[u16]) -> usize {
        statuses.iter().filter_map(|status| self.answers.get(status)).sum()
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A message was acknowledged, and this subscriber never received it.
    Lost { subscriber: String, message: Known },
    /// A subscriber's ids do not go up.
    Disordered { subscriber: String, before: String, after: String },
    /// A subscriber received what has one key under two ids.
    Doubled { subscriber: String, key: String, ids: [String; 2] },
    /// Two subscribers saw different sequences; from this place on.
    Diverged { subscriber: String, other: String, place: usize },
    /// A key was answered with one id, and answered or seen with another.
    Reassigned { key: String, ids: [String; 2] },
    /// A subscriber was told of a gap, where everything is kept.
    Gap { subscriber: String, gap: Gap },
    /// A subscriber received what nobody sent.
    Altered { subscriber: String, data: String },
    /// A publisher got an answer it should not.
    Refused { key: String, answer: String },
}

/// Each promise that the evidence shows broken.
pub fn check(evidence: &Evidence) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut answered: HashMap<&str, &str> = HashMap::new();
    for Known { id, key } in &evidence.acknowledged {
        let first = *answered.entry(key).or_insert(id);
        if first != id {
            violations.push(Violation::Reassigned { key: key.clone(), ids: [first.to_owned(), id.clone()] });
        }
    }
    for (key, answer) in &evidence.refused {
        violations.push(Violation::Refused { key: key.clone(), answer: answer.clone() });
    }
    for seen in &evidence.subscribers {
        let subscriber = || seen.name.clone();
        let mut ids: HashMap<&str, &str> = HashMap::new();
        for Known { id, key } in &seen.messages {
            if let Some(first) = ids.insert(key, id) {
                let ids = [first.to_owned(), id.clone()];
                violations.push(Violation::Doubled { subscriber: subscriber(), key: key.clone(), ids });
            }
            if let Some(answer) = answered.get(&**key).filter(|answer| *answer != id) {
                let ids = [(*answer).to_owned(), id.clone()];
                violations.push(Violation::Reassigned { key: key.clone(), ids });
            }
        }
        for pair in seen.messages.windows(2) {
            let [before, after] = [&pair[0].id, &pair[1].id];
            let in_order = matches!(
                (place_in_journal(before), place_in_journal(after)),
                (Some((epoch, before)), Some((same, after))) if epoch == same && before < after
            );
            if !in_order {
                let (before, after) = (before.clone(), after.clone());
                violations.push(Violation::Disordered { subscriber: subscriber(), before, after });
            }
        }
        let received: HashSet<&str> = ids.into_keys().collect();
        let mut told = HashSet::new();
        for message in &evidence.acknowledged {
            let known = received.contains(&*message.key) || seen.knows_it_dropped(message, evidence.forgets);
            if !known && told.insert(&message.key) {
                violations.push(Violation::Lost { subscriber: subscriber(), message: message.clone() });
            }
        }
        for gap in seen.gaps.iter().filter(|_| !evidence.forgets) {
            violations.push(Violation::Gap { subscriber: subscriber(), gap: *gap });
        }
        for data in &seen.altered {
            violations.push(Violation::Altered { subscriber: subscriber(), data: data.clone() });
        }
    }
    for pair in evidence.subscribers.windows(2) {
        let [one, other] = [&pair[0], &pair[1]];
        let sequence =
            |one: &Seen, other| one.without_gaps_of(other, evidence.forgets).cloned().collect::<Vec<_>>();
        let (of_one, of_other) = (sequence(one, other), sequence(other, one));
        if of_one != of_other {
            let place = of_one.iter().zip(&of_other).take_while(|(one, other)| one == other).count();
            let (subscriber, other) = (one.name.clone(), other.name.clone());
            violations.push(Violation::Diverged { subscriber, other, place });
        }
    }
    violations
}

/// An id's epoch and sequence; `None` if it is no id.
fn place_in_journal(id: &str) -> Option<(&str, u64)> {
    let (epoch, sequence) = id.split_once('-')?;
    Some((epoch, sequence.parse().ok()?))
}

/// Fails the test if a promise was broken, or if nothing was asked of the hub.
pub fn assert_kept(evidence: &Evidence) {
    assert!(!evidence.acknowledged.is_empty() && !evidence.subscribers.is_empty(), "{:?}", evidence.answers);
    let violations = check(evidence);
    assert!(
        violations.is_empty(),
        "{} promises broken, among them:\n{:#?}",
        violations.len(),
        &violations[..violations.len().min(10)]
    );
}

/// A load under way.
pub struct Load<'a> {
    address: SocketAddr,
    workload: &'a Workload,
    /// Publishers finish what they have begun.
    stopping: AtomicBool,
    /// Subscribers that lose their stream don't come back.
    over: AtomicBool,
    gathered: Mutex<Gathered>,
    grown: Condvar,
}

#[derive(Default)]
struct Gathered {
    evidence: Evidence,
    /// The sequence of the last message each subscriber has received, by its name.
    reached: HashMap<String, u64>,
    /// Subscribers that have seen the end.
    done: usize,
}

/// Publishes and subscribes while `drive` does to the hub what it will; it returns the hub that
/// runs afterwards. That one is then killed, for what is acknowledged to be on the disk at any
/// moment; a last hub shows what became of it all.
pub fn run(
    site: &Site,
    hub: Hub,
    workload: &Workload,
    drive: impl FnOnce(Hub, &Load<'_>) -> Hub,
) -> Evidence {
    /// However the driving ends, the threads end.
    struct End<'a>(&'a Load<'a>);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.stopping.store(true, Ordering::SeqCst);
            self.0.over.store(true, Ordering::SeqCst);
            self.0.grown.notify_all();
        }
    }
    let load = Load {
        address: site.address,
        workload,
        stopping: AtomicBool::new(false),
        over: AtomicBool::new(false),
        gathered: Mutex::default(),
        grown: Condvar::new(),
    };
    let mut rng = Rng::with_seed(workload.seed);
    let mut fork = || rng.fork();
    let load = &load;
    let subscribers = std::thread::scope(|scope| {
        let end = End(load);
        let mut subscribers: Vec<_> = workload
            .subscribers
            .iter()
            .enumerate()
            .map(|(number, reading)| {
                let (name, rng, reading) = (format!("subscriber {number}"), fork(), *reading);
                scope.spawn(move || load.subscribe(name, reading, rng))
            })
            .collect();
        let publishers: Vec<_> = (0..workload.publishers)
            .map(|number| {
                let rng = fork();
                scope.spawn(move || load.publish_on(number, rng))
            })
            .collect();
        let hub = drive(hub, load);
        load.stopping.store(true, Ordering::SeqCst);
        // An unwrap here would end the hub only after the scope has waited for all threads.
        if publishers.into_iter().any(|publisher| publisher.join().is_err()) {
            drop((end, hub));
            panic!("a publisher panicked");
        }
        kill(hub);
        let hub = site.start();
        let newcomer = "newcomer".to_owned();
        let rng = fork();
        subscribers.push(scope.spawn(move || load.subscribe(newcomer, Reading::Steady, rng)));
        load.tell_the_end(subscribers.len());
        // Whoever has not seen the end yet loses its stream, and the checker tells what it missed.
        drop((end, hub));
        subscribers.into_iter().map(|subscriber| subscriber.join().unwrap()).collect()
    });
    let gathered = std::mem::take(&mut *load.gathered());
    Evidence { subscribers, forgets: site.retention < EVERYTHING, ..gathered.evidence }
}

/// Before a request is made again. Nothing depends on its length: it is there for the machine's
/// sake while no hub listens.
fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// The event that ends the reading.
const END: &str = "end";

impl Load<'_> {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `is_so` of what was observed so far; false if it does not come to it.
    pub fn wait_until(&self, is_so: impl Fn(&Evidence) -> bool) -> bool {
        self.wait(PATIENCE, |gathered| is_so(&gathered.evidence) || self.over.load(Ordering::SeqCst))
    }

    fn wait(&self, patience: Duration, is_so: impl Fn(&Gathered) -> bool) -> bool {
        let waited = self.grown.wait_timeout_while(self.gathered(), patience, |gathered| !is_so(gathered));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// So far.
    pub fn acknowledged(&self) -> usize {
        self.gathered().evidence.acknowledged.len()
    }

    /// Waits until this subscriber has received the last message acknowledged so far, or a later one.
    pub fn wait_until_received_by(&self, subscriber: usize) -> bool {
        let last = self.gathered().evidence.acknowledged.iter().filter_map(Known::sequence).max();
        let name = format!("subscriber {subscriber}");
        self.wait(PATIENCE, |gathered| gathered.reached.get(&name).copied() >= last)
    }

    /// How often a request came to one of these so far; see [`Evidence::count`].
    pub fn count(&self, statuses: &[u16]) -> usize {
        self.gathered().evidence.count(statuses)
    }

    /// A publisher: one message after the other, each until it is acknowledged.
    fn publish_on(&self, number: usize, mut rng: Rng) {
        let mut connection = None;
        for count in 0.. {
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let key = format!("{number}.{count}");
            if rng.u8(..) < 16 {
                // Its connection breaks before the answer.
                let _ = self.send(&mut connection, &key, "");
                connection = None;
            }
            self.publish(&mut connection, &key);
            if rng.u8(..) < 16 {
                // The answer is lost on the way to whoever asked for it.
                self.publish(&mut connection, &key);
            }
        }
    }

    /// Publishes under this key, again and again until there is an answer that settles it.
    fn publish(&self, connection: &mut Option<BufReader<TcpStream>>, key: &str) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let answer =
                self.send(connection, key, "").and_then(|()| Answer::read(connection.as_mut().unwrap()));
            let refusal = match &answer {
                Ok(Answer { status: 201, id, .. }) if id.is_empty() => Some("201 without an id"),
                Ok(Answer { status: 503, retry_after: None, .. }) => Some("503 without Retry-After"),
                Ok(Answer { status: 201 | 503 | 507, .. }) => None,
                Ok(_) => Some("refused"),
                Err(_broken) => None,
            };
            let mut gathered = self.gathered();
            let evidence = &mut gathered.evidence;
            // A hub that is not there was not asked.
            if answer.is_ok() || connection.is_some() {
                *evidence.answers.entry(answer.as_ref().map_or(0, |answer| answer.status)).or_default() += 1;
            }
            if let Some(refusal) = refusal {
                evidence.refused.push((key.to_owned(), format!("{refusal}: {answer:?}")));
            }
            let settled = match answer {
                Ok(Answer { status: 201, id, .. }) => {
                    evidence.acknowledged.push(Known { id, key: key.to_owned() });
                    true
                }
                Ok(_) => refusal.is_some(),
                Err(_) => {
                    *connection = None;
                    false
                }
            };
            drop(gathered);
            self.grown.notify_all();
            if settled {
                return;
            }
            pause();
        }
        panic!("{key} was never answered");
    }

    /// Sends one request, on a new connection if there is none.
    fn send(&self, connection: &mut Option<BufReader<TcpStream>>, key: &str, query: &str) -> io::Result<()> {
        let body = text(key, self.workload.padding);
        let head = format!(
            "POST /messages{query} HTTP/1.1\r\nHost: {}\r\nIdempotency-Key: {key}\r\nContent-Type: text/plain\r\n\
             Content-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(BufReader::new(connect(self.address)?)),
        };
        connection.get_mut().write_all(&[head, body].concat().into_bytes())
    }

    /// Publishes the last message, and another one for each subscriber that does not see it.
    fn tell_the_end(&self, subscribers: usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut connection = None;
        for number in 0.. {
            let sent = self.send(&mut connection, &format!("{END}.{number}"), &format!("?event={END}"));
            let answer = sent.and_then(|()| Answer::read(connection.as_mut().unwrap()));
            assert!(matches!(answer, Ok(Answer { status: 201, .. })), "{answer:?}");
            let all = self.wait(Duration::from_secs(1), |gathered| gathered.done == subscribers);
            if all || Instant::now() > deadline {
                return;
            }
        }
    }

    /// A subscriber: from the journal's beginning to the end, over as many streams as it takes.
    fn subscribe(&self, name: String, reading: Reading, mut rng: Rng) -> Seen {
        let mut seen = Seen { name, ..Seen::default() };
        let mut last_event_id = String::new();
        while !self.over.load(Ordering::SeqCst) {
            // What breaks it off, if anything, tells nothing: all that counts is what it has seen.
            if let Ok(true) = self.read_stream(&mut seen, &mut last_event_id, reading, &mut rng) {
                self.gathered().done += 1;
                self.grown.notify_all();
                break;
            }
            pause();
        }
        seen
    }

    /// One stream of a subscriber's. True once it has seen the end.
    fn read_stream(
        &self,
        seen: &mut Seen,
        last_event_id: &mut String,
        reading: Reading,
        rng: &mut Rng,
    ) -> io::Result<bool> {
        let mut connection = connect(self.address)?;
        if matches!(reading, Reading::Stalls { .. }) {
            // The sockets are to hold little of what the live feed has to. Much less than this, and
            // what is read later comes at a crawl, a few segments at a time.
            SockRef::from(&connection).set_recv_buffer_size(256 << 10)?;
        }
        let cursor = if last_event_id.is_empty() {
            String::new()
        } else {
            format!("Last-Event-ID: {last_event_id}\r\n")
        };
        let request =
            format!("GET /events?last=1000000000 HTTP/1.1\r\nHost: {}\r\n{cursor}\r\n", self.address);
        connection.write_all(request.as_bytes())?;
        let mut reader = BufReader::new(connection);
        let (status, headers) = read_head(&mut reader)?;
        if status != 200 {
            assert_eq!(status, 503, "{headers:?}");
            return Ok(false);
        }
        seen.streams += 1;
        let mut left = if matches!(reading, Reading::HangsUp) { rng.u32(1..40) } else { u32::MAX };
        let mut bytes = Vec::new();
        loop {
            read_chunk(&mut reader, &mut bytes)?;
            let mut rest = &bytes[..];
            while let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") {
                let block = String::from_utf8(rest[..end].to_vec()).unwrap();
                rest = &rest[end + 2..];
                let event = parse_event(&block);
                let before = place_in_journal(last_event_id).map(|(_, sequence)| sequence);
                if !event.id.is_empty() {
                    last_event_id.clone_from(&event.id);
                }
                if event.event == END {
                    return Ok(true);
                }
                if block.lines().any(|line| line.starts_with("data:")) {
                    self.receive(seen, event, before);
                    left -= 1;
                    if left == 0 {
                        return Ok(false);
                    }
                }
            }
            bytes = rest.to_vec();
            if let Reading::Stalls { until } = reading
                && !seen.messages.is_empty()
            {
                self.wait_until(|evidence| evidence.acknowledged.len() >= until);
            }
        }
    }

    /// An event, after one with this sequence.
    fn receive(&self, seen: &mut Seen, Event { id, event, data }: Event, before: Option<u64>) {
        if event == "tabcast:gap" {
            let through = place_in_journal(&id).map_or(0, |(_, sequence)| sequence);
            return seen.gaps.push(Gap { after: before.unwrap_or(0), through });
        }
        if let Some((_, sequence)) = place_in_journal(&id) {
            self.gathered().reached.insert(seen.name.clone(), sequence);
            self.grown.notify_all();
        }
        let key = data.split(' ').next().unwrap().to_owned();
        if event == "message" && data == text(&key, self.workload.padding) {
            seen.messages.push(Known { id, key });
        } else {
            seen.altered.push(format!("{id} {event} {}", data.chars().take(80).collect::<String>()));
        }
    }
}

/// A message's data.
fn text(key: &str, padding: usize) -> String {
    format!("{key} {}", "x".repeat(padding))
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// What a publisher is told.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// Of a 201.
    id: String,
    retry_after: Option<String>,
}

impl Answer {
    /// The whole of it, or an error.
    fn read(reader: &mut BufReader<TcpStream>) -> io::Result<Answer> {
        let (status, headers) = read_head(reader)?;
        let mut body =
            vec![0; headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let id = json["id"].as_str().unwrap_or_default().to_owned();
        Ok(Answer { status, id, retry_after: headers.get("retry-after").cloned() })
    }
}

/// A line, or an error if it is torn.
fn read_line(reader: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let whole = line.strip_suffix("\r\n").ok_or(ErrorKind::UnexpectedEof)?;
    Ok(whole.to_owned())
}

/// Status and headers, names in lower case.
fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, HashMap<String, String>)> {
    let status = read_line(reader)?.split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = HashMap::new();
    loop {
        let line = read_line(reader)?;
        let Some((name, value)) = line.split_once(": ") else { return Ok((status, headers)) };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
}

/// Adds a chunk of a body to `bytes`. The last one is an error: no stream here is to end.
fn read_chunk(reader: &mut impl BufRead, bytes: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from_str_radix(&read_line(reader)?, 16).map_err(io::Error::other)?;
    let mut chunk = vec![0; length + 2];
    reader.read_exact(&mut chunk)?;
    bytes.extend(&chunk[..length]);
    if length == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}
