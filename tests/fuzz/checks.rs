//! What has to hold for any bytes. Each check takes some, and panics where the hub does wrong. The fuzz
//! targets call the checks with bytes they make up, and `tests/corpus.rs` with those in `corpus`.

#![allow(unreachable_pub, reason = "it is a part of several crates")]

use std::cell::Cell;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Once, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;
use tabcast::journal::{
    Append, Appended, Channels, Committed, Journal, Key, KeyLimits, OpenError, PageLimit, Place, Retention,
    Rules,
};
use tabcast::limits::{Budget, Network};
use tabcast::message::{
    ChannelName, Data, Draft, EventName, IdempotencyKey, InvalidData, MessageId, SubscriberId,
};
use tabcast::{Options, Server};
use tokio::runtime::{self, Runtime};

/// How long the hub may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Panics of threads that are not a check's own: the hub's, which it survives.
static PANICS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_CHECK: Cell<bool> = const { Cell::new(false) };
}

/// Runs a check on this thread, and fails if another thread panics meanwhile.
fn watched(check: impl FnOnce()) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_CHECK.get() {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            others(panic);
        }));
    });
    IS_CHECK.set(true);
    check();
    IS_CHECK.set(false);
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a thread of the hub panicked");
}

// Requests to a hub of this process.

static HUB: LazyLock<SocketAddr> = LazyLock::new(|| {
    let (address, started) = mpsc::channel();
    thread::spawn(move || {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut options = Options::default();
            options.journal.journal = Place::Memory;
            options.journal.retention_messages = 100;
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            address.send(listener.local_addr().unwrap()).unwrap();
            Server::new(options).serve([listener], std::future::pending()).await.unwrap();
        });
    });
    started.recv().unwrap()
});

fn connect() -> TcpStream {
    let stream = TcpStream::connect(*HUB).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The status that an answer begins with; `None` if there is none.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(line).ok()?.parse().ok()
}

/// What the hub sends until the connection ends or is reset; of a stream, the beginning.
fn answer(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let head = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap_or(0);
        let head = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
        if head.contains("text/event-stream") || head.contains("application/x-ndjson") {
            return answer;
        }
        match stream.read(&mut buffer) {
            Ok(0) => return answer,
            Ok(count) => answer.extend(&buffer[..count]),
            // libFuzzer's timer interrupts reads.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("no end after {:?}", String::from_utf8_lossy(&answer))
            }
            Err(_reset) => return answer,
        }
    }
}

/// The status and body of the answer to a request in HTTP/1.0, whose body ends with the connection.
fn exchange(method: &str, target: &str, content_type: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = connect();
    let length = body.len();
    let head = format!(
        "{method} {target} HTTP/1.0\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n"
    );
    // The hub may answer before it has all.
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
    let answer = answer(&mut stream);
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("the answer has a head");
    (status(&answer).expect("the answer has a status"), answer[end + 4..].to_vec())
}

/// Any bytes on a connection: the hub answers or closes it, and goes on.
pub fn request(bytes: &[u8]) {
    watched(|| {
        let mut stream = connect();
        // The hub may rightly have closed the connection by now.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        if let Some(status) = status(&answer(&mut stream)) {
            assert!((100..500).contains(&status), "{status}");
        }
        let (status, _) = exchange("POST", "/messages?channel=alive", "text/plain", b"x");
        assert_eq!(status, 201);
    });
}

// Fields.

type Pairs = Vec<(String, String)>;

/// The fields of a query or form, as WHATWG URL 5.1 has them; `None` if one is not UTF-8.
fn pairs(text: &[u8]) -> Option<Pairs> {
    let parts = text.split(|byte| *byte == b'&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let end = part.iter().position(|byte| *byte == b'=').unwrap_or(part.len());
            Some((decoded(&part[..end])?, decoded(part.get(end + 1..).unwrap_or_default())?))
        })
        .collect()
}

fn decoded(text: &[u8]) -> Option<String> {
    let digit = |at: usize| text.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let (mut bytes, mut at) = (Vec::new(), 0);
    while let Some(byte) = text.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap());
                at += 2;
            }
            (b'+', ..) => bytes.push(b' '),
            (other, ..) => bytes.push(*other),
        }
        at += 1;
    }
    String::from_utf8(bytes).ok()
}

/// Whether it is a duration that a message can have.
fn is_ttl(text: &str) -> bool {
    const MOST: Duration = Duration::from_hours(24 * 3650);
    humantime::parse_duration(text).is_ok_and(|ttl| (Duration::from_millis(1)..=MOST).contains(&ttl))
}

/// What the hub has to make of a publish with these fields: the data, event and channel of the message that
/// is kept; or only the status.
fn expected(
    fields: Option<Pairs>,
    most: usize,
    count: usize,
    text: Option<&str>,
) -> Result<[String; 3], u16> {
    if count > most {
        return Err(422);
    }
    let fields = fields.ok_or(400u16)?;
    let known = ["data", "event", "channel", "except", "ttl"];
    let known = if text.is_some() { &known[1..] } else { &known[..] };
    let of = |name: &str| -> Vec<&str> {
        let named = fields.iter().filter(|(field, _)| field == name);
        named.map(|(_, value)| &**value).collect()
    };
    // A form may have fields that nobody knows.
    let is_unknown = |(name, _): &(String, String)| text.is_some() && !known.contains(&&**name);
    if fields.iter().any(is_unknown) || known.iter().any(|name| of(name).len() > 1) {
        return Err(422);
    }
    let one = |name| of(name).first().copied();
    let (event, channel) = (one("event").unwrap_or("message"), one("channel").unwrap_or("main"));
    let is_good = EventName::parse(event, 128).is_ok()
        && ChannelName::parse(channel, 128).is_ok()
        && one("except").is_none_or(|except| SubscriberId::parse(except).is_ok())
        && one("ttl").is_none_or(is_ttl);
    let data = text.or(one("data")).ok_or(422u16)?;
    match one("ttl") {
        _ if !is_good => Err(422),
        None => Ok([data, event, channel].map(str::to_owned)),
        // The message may be gone by the time it is looked for.
        Some(_) => Err(201),
    }
}

/// Publishes, and compares with what has to come of it.
fn publish(target: &str, content_type: &str, body: &[u8], expected: &Result<[String; 3], u16>) {
    let (status, answer) = exchange("POST", target, content_type, body);
    let text = String::from_utf8_lossy(&answer);
    let [data, event, channel] = match expected {
        Err(expected) => return assert_eq!(status, *expected, "{text}"),
        Ok(expected) => expected,
    };
    assert_eq!(status, 201, "{text}");
    let receipt: Value = serde_json::from_slice(&answer).unwrap();
    // Other checks may have published since.
    let encoded: String = channel.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let (_, history) = exchange("GET", &format!("/messages?last=9&channel={encoded}"), "none", b"");
    let history: Value = serde_json::from_slice(&history).unwrap();
    let messages = history["messages"].as_array().unwrap();
    let message = messages.iter().find(|message| message["id"] == receipt["id"]).expect("it is kept");
    assert_eq!((message["data"].as_str(), message["event"].as_str()), (Some(&**data), Some(&**event)));
    assert_eq!(message["channel"].as_str(), Some(&**channel));
}

fn count(text: &[u8]) -> usize {
    text.split(|byte| *byte == b'&').filter(|part| !part.is_empty()).count()
}

/// Any query of a publish: its fields are what they have to be, or the publish is refused.
pub fn query(bytes: &[u8]) {
    // Bytes that no target has would be refused with it.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"%+&=._~-".contains(&byte);
    let encode = |byte: &u8| match *byte {
        plain if is_plain(plain) => char::from(plain).to_string(),
        other => format!("%{other:02X}"),
    };
    let query: String = bytes.iter().take(10_000).map(encode).collect();
    let (fields, count) = (pairs(query.as_bytes()), count(query.as_bytes()));
    watched(|| {
        publish(&format!("/messages?{query}"), "text/plain", b"x", &expected(fields, 48, count, Some("x")))
    });
}

/// Any body under a form's type: it is a form, or it is text, as `curl -d` sends it.
pub fn form(bytes: &[u8]) {
    let is_data = |part: &[u8]| {
        let end = part.iter().position(|byte| *byte == b'=');
        end.is_some_and(|end| decoded(&part[..end]).as_deref() == Some("data"))
    };
    let expected = if bytes.split(|byte| *byte == b'&').any(is_data) {
        expected(pairs(bytes), 32, count(bytes), None)
    } else {
        let text = std::str::from_utf8(bytes).map_err(|_| 400);
        text.map(|text| [text, "message", "main"].map(str::to_owned))
    };
    watched(|| publish("/messages", "application/x-www-form-urlencoded", bytes, &expected));
}

// JSON.

/// The JSON text without white space between tokens, and how deep its brackets nest.
fn compacted(json: &str) -> (String, usize) {
    let (mut out, mut depth, mut deepest) = (String::new(), 0usize, 0);
    let (mut in_string, mut escapes) = (false, false);
    for c in json.chars() {
        match c {
            _ if escapes => escapes = false,
            '\\' => escapes = in_string,
            '"' => in_string = !in_string,
            _ if in_string => {}
            '[' | '{' => depth += 1,
            ']' | '}' => depth -= 1,
            ' ' | '\t' | '\n' | '\r' => continue,
            _ => {}
        }
        deepest = deepest.max(depth);
        out.push(c);
    }
    (out, deepest)
}

/// Any text: if it is JSON, it is the same JSON without its white space, unless it nests too deeply or is a
/// string that is no text.
pub fn json(bytes: &[u8]) {
    watched(|| {
        const DEPTH: usize = 9;
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let value = serde_json::from_str::<Value>(text);
        let Ok(raw) = RawValue::from_string(text.to_owned()) else {
            assert!(value.is_err(), "{text:?} is JSON");
            return;
        };
        let (compact, depth) = compacted(text.trim_matches([' ', '\t', '\n', '\r']));
        let data = match Data::json(raw, DEPTH) {
            Ok(data) => data,
            Err(InvalidData::TooDeep { limit }) => {
                return assert!(limit == DEPTH && depth > DEPTH, "{text:?}");
            }
            Err(InvalidData::NotText) => {
                return assert!(value.is_err() && compact.starts_with('"'), "{text:?}");
            }
        };
        assert!(depth <= DEPTH, "{text:?}");
        assert_eq!(data.as_json(), compact);
        // Numbers beyond a double are kept to the letter, and are no `Value`.
        if let Ok(value) = value {
            assert_eq!(serde_json::from_str::<Value>(data.as_json()).unwrap(), value);
            assert_eq!(data.as_text().as_deref(), value.as_str());
        }
        assert_eq!(Data::stored(compact.clone()).unwrap().as_json(), compact);
    });
}

// Cursors.

/// Any text: it is an id only in the one spelling that ids have.
pub fn cursor(bytes: &[u8]) {
    watched(|| {
        if let Some((number, epoch)) = bytes.split_first_chunk::<8>() {
            let letter =
                |byte: &u8| char::from(b"abcdefghijklmnopqrstuvwxyz0123456789"[usize::from(*byte) % 36]);
            let epoch: String = epoch.iter().chain(&[0; 8]).take(8).map(letter).collect();
            let sequence = u64::from_le_bytes(*number);
            let text = format!("{epoch}-{sequence}");
            let id: MessageId = text.parse().unwrap();
            assert_eq!((id.sequence, id.epoch.to_string(), id.to_string()), (sequence, epoch, text.clone()));
            assert_eq!(id.text_length(), text.len());
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        let is_id = text.split_once('-').is_some_and(|(epoch, sequence)| {
            epoch.len() == 8
                && epoch.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                && sequence.parse::<u64>().is_ok_and(|number| number.to_string() == sequence)
        });
        let parsed = text.parse::<MessageId>();
        assert_eq!(parsed.is_ok(), is_id, "{text:?}");
        if let Ok(id) = parsed {
            assert_eq!(id.to_string(), text);
        }
    });
}

// Journals.

/// A folder for journals, on a disk in memory where there is one. Removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = parent.join(format!("tabcast-check-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn file(&self) -> PathBuf {
        self.0.join("tabcast.db")
    }

    fn wal(&self) -> PathBuf {
        self.0.join("tabcast.db-wal")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A good journal: its file, with some messages, and a write-ahead log with more of them.
struct Good {
    file: Vec<u8>,
    wal: Vec<u8>,
    messages: Vec<String>,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let folder = Folder::new();
    let text = |number: u64| format!("message {number}, {}", "ü".repeat(100));
    RUNTIME.block_on(async {
        let (journal, _committed) = open(&folder).unwrap();
        for number in 1..=10 {
            append(&journal, &text(number)).await.unwrap();
        }
        drop((journal, _committed));
        let file = fs::read(folder.file()).unwrap();
        let (journal, _committed) = open(&folder).unwrap();
        for number in 11..=20 {
            append(&journal, &text(number)).await.unwrap();
        }
        let wal = fs::read(folder.wal()).unwrap();
        assert_eq!(fs::read(folder.file()).unwrap(), file, "no checkpoint yet");
        Good { file, wal, messages: (1..=20).map(text).collect() }
    })
});

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap());

fn open(folder: &Folder) -> Result<(Journal, Committed), OpenError> {
    let (age, rules) = (Duration::from_secs(1_000_000_000), Rules::default());
    let retention = Retention { messages: 1_000, bytes: usize::MAX >> 1, age, rules };
    let keys = KeyLimits { count: 1_000, window: Duration::from_secs(3600) };
    Journal::open(&Place::File(folder.file()), retention, keys, &Budget::unlimited())
}

/// Appends a message with a key; returns its sequence, or `None` if the journal refuses.
async fn append(journal: &Journal, text: &str) -> Option<u64> {
    let draft = Draft {
        channel: ChannelName::default(),
        event: EventName::default(),
        data: Data::text(text),
        except: None,
        ttl: None,
    };
    let text = IdempotencyKey::parse(&fastrand::u64(..).to_string()).unwrap();
    let key = Some(Key { owner: Network::from(IpAddr::from([127, 0, 0, 1])).into(), text });
    match journal.append(vec![Append::message(draft, key)]).await.ok()?.remove(0) {
        Appended::New(receipts) => Some(receipts[0].id.sequence),
        other => panic!("{other:?}"),
    }
}

/// The kept messages of the default channel, each with its sequence; `None` if the journal can't be read.
async fn read(journal: &Journal) -> Option<Vec<(u64, String)>> {
    let channels = Channels::new([]);
    let limit = PageLimit { messages: 7, bytes: 1 << 20 };
    let (mut position, mut messages) = (0, Vec::new());
    loop {
        let page = journal.read(position, &channels, None, limit, None).await.ok()?;
        for entry in &page.entries {
            let message = &entry.message;
            assert!(message.id.sequence > position && message.id.sequence <= page.through);
            let id = journal.id(message.id.sequence);
            assert_eq!((message.id, message.channel.as_str()), (id, "main"));
            position = message.id.sequence;
            messages.push((position, message.data.as_json().to_owned()));
        }
        assert!(page.through >= position && page.through <= page.head);
        if page.through >= page.head {
            return Some(messages);
        }
        position = page.through.max(page.earliest - 1).max(position);
    }
}

/// Changes bytes as a script says: each four of it are a place, what to do there, and a byte for it.
fn changed(good: &[u8], script: &[u8]) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for step in script.as_chunks::<4>().0 {
        let [high, low, what, byte] = *step;
        if bytes.is_empty() {
            break;
        }
        let place = usize::from(u16::from_be_bytes([high, low])) % bytes.len();
        match what % 4 {
            0 => bytes[place] = byte,
            1 => bytes[place] ^= byte,
            2 => bytes[place..].iter_mut().take(64).for_each(|old| *old = byte),
            _ => bytes.truncate(place),
        }
    }
    bytes
}

/// Any bytes as a journal's file, as the write-ahead log beside a good one, or as a change of either: opening
/// answers an error or a journal. What that journal acknowledges can be read, at once and when it is opened
/// again.
pub fn journal(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let good = &*GOOD;
    let (file, wal) = match kind % 4 {
        0 => (bytes.to_vec(), Vec::new()),
        1 => (good.file.clone(), bytes.to_vec()),
        2 => (changed(&good.file, bytes), good.wal.clone()),
        _ => (good.file.clone(), changed(&good.wal, bytes)),
    };
    let is_good = file == good.file && wal == good.wal;
    watched(|| {
        let (done, ended) = mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            IS_CHECK.set(true);
            let folder = Folder::new();
            fs::write(folder.file(), file).unwrap();
            fs::write(folder.wal(), wal).unwrap();
            RUNTIME.block_on(use_journal(&folder, is_good));
            drop(done);
        });
        // A journal that hangs would hang the check.
        let waited = ended.recv_timeout(PATIENCE);
        assert_ne!(waited, Err(mpsc::RecvTimeoutError::Timeout), "the journal hangs");
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

async fn use_journal(folder: &Folder, is_good: bool) {
    let opened = open(folder);
    if is_good {
        let messages = read(&opened.as_ref().unwrap().0).await.unwrap();
        let texts: Vec<_> =
            messages.iter().map(|(_, json)| serde_json::from_str::<String>(json).unwrap()).collect();
        assert_eq!(texts, GOOD.messages);
    }
    let Ok((journal, committed)) = opened else { return };
    let before = read(&journal).await;
    let Some(sequence) = append(&journal, "acknowledged").await else { return };
    let acknowledged = (sequence, "\"acknowledged\"".to_owned());
    if let Some(before) = &before {
        let after = read(&journal).await.expect("what could be read can be read");
        assert_eq!(after.split_last(), Some((&acknowledged, &before[..])));
    }
    drop((journal, committed));
    let Ok((journal, _committed)) = open(folder) else {
        assert!(before.is_none(), "a journal that could be read can't be opened again");
        return;
    };
    match read(&journal).await {
        Some(again) => assert_eq!(again.last(), Some(&acknowledged)),
        None => assert!(before.is_none(), "a journal that could be read can't be read again"),
    }
}
