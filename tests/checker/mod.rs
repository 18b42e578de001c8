//! The checker: a load on a hub that may be killed and started again, and whether what its publishers were
//! answered and what its subscribers got agree. It knows the hub from the wire alone.
//!
//! [`run`] makes the load and gathers the [`Evidence`]; [`check`] finds the [`Violation`]s.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Deref;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use socket2::SockRef;

use crate::common::{self, Event, Hub, PATIENCE, Response, Stream, connect, has_data, parse_event, request};

/// A site whose hubs may drop messages, and may have a bug on purpose.
pub struct Site {
    site: common::Site,
    /// How many messages its hubs keep; [`EVERYTHING`], unless a test is about less.
    pub retention: usize,
}

/// More messages than any test publishes.
const EVERYTHING: usize = 100_000_000;

impl Site {
    pub fn new() -> Site {
        Site::of(env!("CARGO_BIN_EXE_tabcast").into())
    }

    /// A site whose hubs run this binary.
    pub fn of(binary: PathBuf) -> Site {
        let mut site = common::Site::new(&["--hide-data", "--retention-bytes=100GiB"]);
        site.binary = binary;
        Site { site, retention: EVERYTHING }
    }

    /// See [`common::Site::command`].
    pub fn command(&self, prefix: &[&str]) -> Command {
        let mut command = self.site.command(prefix);
        command.args(["--retention-messages", &self.retention.to_string()]);
        command
    }

    pub fn start(&self) -> Hub {
        Hub::start_with(&mut self.command(&[]))
    }
}

/// The folder, the address and the journal.
impl Deref for Site {
    type Target = common::Site;

    fn deref(&self) -> &common::Site {
        &self.site
    }
}

/// Kills the hub, as kill -9 does, and waits for its end.
pub fn kill(mut hub: Hub) {
    hub.end("KILL");
}

/// The seed of a test's random choices. It is printed, and `TABCAST_SEED` sets it, to repeat the choices; the
/// kernel's scheduler is still free.
pub fn seed() -> u64 {
    let given = std::env::var("TABCAST_SEED").ok();
    let seed =
        given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("TABCAST_SEED is a number"));
    println!("TABCAST_SEED={seed}");
    seed
}

/// How a subscriber reads.
#[derive(Clone, Copy, Debug)]
pub enum Reading {
    /// On one connection as long as that lasts.
    Steady,
    /// It closes its connection after every few messages, and reconnects.
    HangsUp,
    /// It stops reading after the first message, until so many messages are acknowledged.
    Stalls { until: usize },
}

/// What is done to a hub.
#[derive(Clone, Debug)]
pub struct Workload {
    /// How many publishers, each with one request at a time.
    pub publishers: usize,
    pub subscribers: Vec<Reading>,
    /// How many bytes a message has beside its key.
    pub padding: usize,
    pub seed: u64,
}

/// A message as a publisher or a subscriber knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub id: String,
    pub key: String,
}

/// What a gap event says: the messages after one sequence, up to and with another, are not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub after: u64,
    pub through: u64,
}

/// What a subscriber got.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub name: String,
    pub messages: Vec<Known>,
    pub gaps: Vec<Gap>,
    /// The beginnings of messages that nobody published.
    pub altered: Vec<String>,
    /// How many streams it has had.
    pub streams: usize,
}

/// What was observed of a hub from outside.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Every 201: the key of the request and the id in the answer.
    pub acknowledged: Vec<Known>,
    /// The number of requests by the status of the answer; by 0 if there was none.
    pub answers: BTreeMap<u16, usize>,
    /// Answers that no publisher should get: the key, and what was wrong.
    pub refused: Vec<(String, String)>,
    /// The last of them subscribed after the load.
    pub subscribers: Vec<Seen>,
    /// Whether the hub was to keep only the newest messages.
    pub forgets: bool,
}

impl Seen {
    /// Whether the message is within one of its gaps; or, if the hub `forgets`, older than its first message.
    fn knows_it_dropped(&self, message: &Known, forgets: bool) -> bool {
        let Some(sequence) = message.sequence() else { return false };
        let first = self.messages.first().and_then(Known::sequence);
        let before_all = forgets && first.is_none_or(|first| sequence < first);
        before_all || self.gaps.iter().any(|gap| gap.after < sequence && sequence <= gap.through)
    }

    /// The messages it got, without those that the other subscriber knows to be dropped.
    fn without_gaps_of<'a>(&'a self, other: &'a Seen, forgets: bool) -> impl Iterator<Item = &'a Known> {
        self.messages.iter().filter(move |message| !other.knows_it_dropped(message, forgets))
    }
}

impl Known {
    fn sequence(&self) -> Option<u64> {
        place_in_journal(&self.id)
    }
}

impl Evidence {
    /// How many requests were answered with one of these statuses, where 0 stands for no answer.
    pub fn count(&self, statuses: &[u16]) -> usize {
        statuses.iter().filter_map(|status| self.answers.get(status)).sum()
    }
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A message was acknowledged, and this subscriber never got it.
    Lost { subscriber: String, message: Known },
    /// The ids that a subscriber got do not go up.
    Disordered { subscriber: String, before: String, after: String },
    /// A subscriber got the message of one key under two ids.
    Doubled { subscriber: String, key: String, ids: [String; 2] },
    /// Two subscribers got different messages from this place on.
    Diverged { subscriber: String, other: String, place: usize },
    /// The message of a key was acknowledged under one id, and acknowledged or delivered under another.
    Reassigned { key: String, ids: [String; 2] },
    /// A subscriber got a gap event, where everything is kept.
    Gap { subscriber: String, gap: Gap },
    /// A subscriber got a message that nobody published.
    Altered { subscriber: String, data: String },
    /// A publisher got an answer it should not.
    Refused { key: String, answer: String },
}

/// Every violation that the evidence shows.
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
                (Some(before), Some(after)) if before < after
            );
            if !in_order {
                let (before, after) = (before.clone(), after.clone());
                violations.push(Violation::Disordered { subscriber: subscriber(), before, after });
            }
        }
        let received: HashSet<&str> = ids.into_keys().collect();
        let mut lost = HashSet::new();
        for message in &evidence.acknowledged {
            let known = received.contains(&*message.key) || seen.knows_it_dropped(message, evidence.forgets);
            if !known && lost.insert(&message.key) {
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

/// An id's sequence; `None` if it is no id. Its epoch is another one for each hub that is started.
fn place_in_journal(id: &str) -> Option<u64> {
    id.split_once('-')?.1.parse().ok()
}

/// Panics if a promise is broken, or if nothing was asked of the hub.
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
    /// Set when publishers are to finish the message they have begun, and to end.
    stopping: AtomicBool,
    /// Set when subscribers that lose their stream are not to reconnect.
    over: AtomicBool,
    gathered: Mutex<Gathered>,
    grown: Condvar,
}

#[derive(Default)]
struct Gathered {
    evidence: Evidence,
    /// The sequence of the last message that each subscriber has got, by the subscriber's name.
    reached: HashMap<String, u64>,
    /// How many subscribers have got [`END`].
    done: usize,
}

/// Publishes and subscribes while `drive` does to the hub what it will. `drive` returns the hub that runs
/// afterwards. That one is killed too: what is acknowledged has to be on the disk at any moment. One more hub
/// then shows a newcomer all that is kept.
pub fn run(
    site: &Site,
    hub: Hub,
    workload: &Workload,
    drive: impl FnOnce(Hub, &Load<'_>) -> Hub,
) -> Evidence {
    /// Ends the threads, also if `drive` panics.
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
        // Without this drop a panic here would end the hub only after the scope has waited for all threads.
        if publishers.into_iter().any(|publisher| publisher.join().is_err()) {
            drop((end, hub));
            panic!("a publisher panicked");
        }
        kill(hub);
        let hub = site.start();
        let newcomer = "newcomer".to_owned();
        let rng = fork();
        subscribers.push(scope.spawn(move || load.subscribe(newcomer, Reading::Steady, rng)));
        load.publish_the_end(subscribers.len());
        // A subscriber that has not got the end yet loses its stream, and the checker finds what it missed.
        drop((end, hub));
        subscribers.into_iter().map(|subscriber| subscriber.join().unwrap()).collect()
    });
    let gathered = std::mem::take(&mut *load.gathered());
    Evidence { subscribers, forgets: site.retention < EVERYTHING, ..gathered.evidence }
}

/// A pause before a request is made again. Nothing depends on its length: without it a thread would take a
/// core while no hub listens.
fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// The event after which subscribers end.
const END: &str = "end";

impl Load<'_> {
    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `is_so` of the evidence so far; false if that never comes.
    pub fn wait_until(&self, is_so: impl Fn(&Evidence) -> bool) -> bool {
        self.wait(PATIENCE, |gathered| is_so(&gathered.evidence) || self.over.load(Ordering::SeqCst))
    }

    fn wait(&self, patience: Duration, is_so: impl Fn(&Gathered) -> bool) -> bool {
        let waited = self.grown.wait_timeout_while(self.gathered(), patience, |gathered| !is_so(gathered));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// How many messages are acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.gathered().evidence.acknowledged.len()
    }

    /// Waits until this subscriber has got the last message that is acknowledged so far, or a later one.
    pub fn wait_until_received_by(&self, subscriber: usize) -> bool {
        let last = self.gathered().evidence.acknowledged.iter().filter_map(Known::sequence).max();
        let name = format!("subscriber {subscriber}");
        self.wait(PATIENCE, |gathered| gathered.reached.get(&name).copied() >= last)
    }

    /// See [`Evidence::count`], so far.
    pub fn count(&self, statuses: &[u16]) -> usize {
        self.gathered().evidence.count(statuses)
    }

    /// A publisher's thread: it publishes one message after another, each until that is acknowledged.
    fn publish_on(&self, number: usize, mut rng: Rng) {
        let mut connection = None;
        for count in 0.. {
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            let key = format!("{number}.{count}");
            if rng.u8(..) < 16 {
                // The connection breaks before the answer, and the request is made again.
                let _ = self.send(&mut connection, &key, "");
                connection = None;
            }
            self.publish(&mut connection, &key);
            if rng.u8(..) < 16 {
                // As if the answer had been lost, the request is made again.
                self.publish(&mut connection, &key);
            }
        }
    }

    /// Publishes under this key, again and again until an answer settles it.
    fn publish(&self, connection: &mut Option<BufReader<TcpStream>>, key: &str) {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let answer =
                self.send(connection, key, "").and_then(|()| Answer::read(connection.as_mut().unwrap()));
            let refusal = match &answer {
                Ok(Answer { status: 201, ids, .. }) if ids.len() != keys(key).len() => {
                    Some("201 without an id")
                }
                Ok(Answer { status: 503, retry_after: None, .. }) => Some("503 without Retry-After"),
                Ok(Answer { status: 201 | 503 | 507, .. }) => None,
                Ok(_) => Some("refused"),
                Err(_broken) => None,
            };
            let mut gathered = self.gathered();
            let evidence = &mut gathered.evidence;
            // If there is no connection, no hub was asked.
            if answer.is_ok() || connection.is_some() {
                *evidence.answers.entry(answer.as_ref().map_or(0, |answer| answer.status)).or_default() += 1;
            }
            if let Some(refusal) = refusal {
                evidence.refused.push((key.to_owned(), format!("{refusal}: {answer:?}")));
            }
            let settled = match answer {
                Ok(Answer { status: 201, ids, .. }) => {
                    let known = ids.into_iter().zip(keys(key)).map(|(id, key)| Known { id, key });
                    evidence.acknowledged.extend(known);
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
        let texts: Vec<_> = keys(key).iter().map(|key| text(key, self.workload.padding)).collect();
        let (content_type, body) = match &texts[..] {
            [text] => ("Content-Type: text/plain", text.clone()),
            texts => {
                let lines = texts.iter().map(|text| format!("{}\n", serde_json::json!({ "data": text })));
                ("Content-Type: application/x-ndjson", lines.collect())
            }
        };
        let headers = [&*format!("Idempotency-Key: {key}"), content_type];
        let line = format!("POST /messages{query} HTTP/1.1");
        let request = request(&line, self.address, &headers, Some(body.as_bytes()));
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(BufReader::new(connect(self.address)?)),
        };
        connection.get_mut().write_all(&request)
    }

    /// Publishes [`END`], and again until each subscriber has got one.
    fn publish_the_end(&self, subscribers: usize) {
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

    /// A subscriber's thread: it reads from the journal's beginning to [`END`], over as many streams as it
    /// takes.
    fn subscribe(&self, name: String, reading: Reading, mut rng: Rng) -> Seen {
        let mut seen = Seen { name, ..Seen::default() };
        let mut last_event_id = String::new();
        while !self.over.load(Ordering::SeqCst) {
            // What broke off the stream does not matter: what counts is in `seen`.
            if let Ok(true) = self.read_stream(&mut seen, &mut last_event_id, reading, &mut rng) {
                self.gathered().done += 1;
                self.grown.notify_all();
                break;
            }
            pause();
        }
        seen
    }

    /// One stream of a subscriber. True once it has got [`END`].
    fn read_stream(
        &self,
        seen: &mut Seen,
        last_event_id: &mut String,
        reading: Reading,
        rng: &mut Rng,
    ) -> io::Result<bool> {
        let mut connection = connect(self.address)?;
        if matches!(reading, Reading::Stalls { .. }) {
            // The live feed is to hold most of the messages, and the sockets few. With a much smaller buffer,
            // what is read later would come very slowly, a few segments at a time.
            SockRef::from(&connection).set_recv_buffer_size(256 << 10)?;
        }
        let cursor = format!("Last-Event-ID: {last_event_id}");
        let headers = if last_event_id.is_empty() { vec![] } else { vec![&*cursor] };
        let line = "GET /events?last=1000000000 HTTP/1.1";
        connection.write_all(&request(line, self.address, &headers, None))?;
        let mut stream = Stream::try_read(connection)?;
        if stream.status != 200 {
            assert_eq!(stream.status, 503, "{:?}", stream.headers);
            return Ok(false);
        }
        seen.streams += 1;
        let mut left = if matches!(reading, Reading::HangsUp) { rng.u32(1..40) } else { u32::MAX };
        while let Some(block) = stream.try_block()? {
            let event = parse_event(&block);
            let before = place_in_journal(last_event_id);
            if !event.id.is_empty() {
                last_event_id.clone_from(&event.id);
            }
            if event.event == END {
                return Ok(true);
            }
            if has_data(&block) {
                self.receive(seen, event, before);
                left -= 1;
                if left == 0 {
                    return Ok(false);
                }
            }
            if let Reading::Stalls { until } = reading
                && !seen.messages.is_empty()
            {
                self.wait_until(|evidence| evidence.acknowledged.len() >= until);
            }
        }
        Ok(false)
    }

    /// Notes an event that came after the one with the sequence `before`.
    fn receive(&self, seen: &mut Seen, Event { id, event, data }: Event, before: Option<u64>) {
        if event == "tabcast:gap" {
            let through = place_in_journal(&id).unwrap_or(0);
            return seen.gaps.push(Gap { after: before.unwrap_or(0), through });
        }
        if let Some(sequence) = place_in_journal(&id) {
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

/// The keys of the messages that are published under this key: each fourth of a publisher's requests is a
/// batch.
pub fn keys(key: &str) -> Vec<String> {
    let (publisher, count) = key.split_once('.').unwrap_or_default();
    let is_batch = publisher.parse::<u32>().is_ok() && count.parse::<u32>().is_ok_and(|count| count % 4 == 3);
    let others = if is_batch { 1..3 } else { 1..1 };
    [key.to_owned()].into_iter().chain(others.map(|number| format!("{key}/{number}"))).collect()
}

/// The data of a message.
fn text(key: &str, padding: usize) -> String {
    format!("{key} {}", "x".repeat(padding))
}

/// The answer to a publisher.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// One for each message that is acknowledged.
    ids: Vec<String>,
    retry_after: Option<String>,
}

impl Answer {
    /// # Errors
    /// If the answer does not come whole.
    fn read(reader: &mut BufReader<TcpStream>) -> io::Result<Answer> {
        let response = Response::try_read(reader)?;
        let id = |line: &[u8]| {
            let json: serde_json::Value = serde_json::from_slice(line).ok()?;
            Some(json["id"].as_str()?.to_owned())
        };
        let ids = response.body.split(|byte| *byte == b'\n').filter_map(id).collect();
        let retry_after = response.header("retry-after").map(str::to_owned);
        Ok(Answer { status: response.status, ids, retry_after })
    }
}
