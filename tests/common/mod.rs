//! A real hub, the binary itself, on port 0; and raw HTTP over real sockets against it. Nothing here
//! knows the hub's code: what a test sees is what crossed the wire.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long anything is waited for before the test fails. No test is faster or slower for it.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A hub process, ended when dropped.
pub struct Hub {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Log>,
    /// Of a journal that is nobody else's.
    _folder: Option<Folder>,
}

/// A journal in memory, or in a new file where the variable says so: every test that names none
/// holds for both.
fn any_journal(command: &mut Command) -> Option<Folder> {
    let folder = (std::env::var("TABCAST_TEST_JOURNAL").as_deref() == Ok("file")).then(Folder::new);
    match &folder {
        Some(folder) => command.arg("--journal").arg(folder.path.join("tabcast.db")),
        None => command.args(["--journal", "memory"]),
    };
    folder
}

/// A new folder, removed when dropped.
pub struct Folder {
    pub path: PathBuf,
}

impl Folder {
    pub fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("tabcast-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Folder { path }
    }

    /// The path of a file in it, as a flag takes it.
    pub fn file(&self, name: &str) -> String {
        self.path.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

#[derive(Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

impl Hub {
    /// A hub with these flags, once it listens.
    pub fn start(flags: &[&str]) -> Hub {
        Hub::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), flags)
    }

    /// The same on a port that was a hub's before.
    pub fn start_at(address: SocketAddr, flags: &[&str]) -> Hub {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
        command.args(["--listen", &address.to_string()]).args(flags);
        let folder = (!flags.contains(&"--journal")).then(|| any_journal(&mut command)).flatten();
        let mut hub = Hub::start_with(&mut command);
        hub._folder = folder;
        hub
    }

    /// The hub that this command runs, once it listens.
    pub fn start_with(command: &mut Command) -> Hub {
        let mut hub = Hub::spawn(command);
        hub.wait_until_it_listens();
        hub
    }

    /// The hub that this command runs, at once: it may never listen.
    pub fn spawn(command: &mut Command) -> Hub {
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the hub starts");
        let log = Arc::new(Log::default());
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in lines.map_while(Result::ok) {
                    log.lines.lock().unwrap().0.push(line);
                    log.grown.notify_all();
                }
                log.lines.lock().unwrap().1 = true;
                log.grown.notify_all();
            }
        });
        Hub { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), log, _folder: None }
    }

    fn wait_until_it_listens(&mut self) {
        let line = self.wait_for_log(&["listening on http://"]);
        let address = line.split("http://").nth(1).unwrap().split_whitespace().next().unwrap();
        self.address = address.parse().unwrap();
    }

    /// Waits for the process to say that it listens, or to say nothing any more. True if it listens.
    pub fn listens(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lines.lock().unwrap();
        while !lines.1 && !lines.0.iter().any(|line| line.contains("listening on http://")) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the hub neither listens nor ends:\n{}", lines.0.join("\n"));
            lines = self.log.grown.wait_timeout(lines, left).unwrap().0;
        }
        let listens = lines.0.iter().any(|line| line.contains("listening on http://"));
        drop(lines);
        if listens {
            self.wait_until_it_listens();
        }
        listens
    }

    /// Waits for a line of the log that has all these parts, and returns it.
    pub fn wait_for_log(&self, parts: &[&str]) -> String {
        self.wait_for_logs(parts, 1).remove(0)
    }

    /// Waits until `count` lines of the log have all these parts, and returns them.
    pub fn wait_for_logs(&self, parts: &[&str], count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let mut lines = self.log.lines.lock().unwrap();
        loop {
            let has_all = |line: &&String| parts.iter().all(|part| line.contains(part));
            let found: Vec<_> = lines.0.iter().filter(has_all).cloned().collect();
            if found.len() >= count {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.1 {
                // Panicking with it locked would poison it for the thread that reads the log.
                let (found, log) = (found.len(), lines.0.join("\n"));
                drop(lines);
                panic!("{found} of {count} lines with {parts:?} in the log:\n{log}");
            }
            lines = self.log.grown.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// The log so far.
    pub fn log(&self) -> Vec<String> {
        // Also while a test fails, which may have poisoned it.
        self.log.lines.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, as in "TERM".
    pub fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the hub does not end");
            // There is no event to wait for but the end itself, which std can't wait for with a limit.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// A connection to it.
    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// The response to these bytes, on a connection of its own.
    pub fn raw(&self, request: impl AsRef<[u8]>) -> Response {
        let mut stream = self.connect();
        // A hub that refuses a request early may close before all of it is written.
        let _ = stream.write_all(request.as_ref());
        Response::read(&mut BufReader::new(stream), false)
    }

    /// The response to a request with these headers, each as in "Name: value".
    pub fn send(&self, method: &str, target: &str, headers: &[&str], body: &[u8]) -> Response {
        let head = self.head(
            method,
            target,
            headers,
            Some(body.len()).filter(|length| *length > 0 || method == "POST"),
        );
        let mut stream = self.connect();
        let _ = stream.write_all(&[head.as_bytes(), body].concat());
        Response::read(&mut BufReader::new(stream), method == "HEAD")
    }

    pub fn get(&self, target: &str) -> Response {
        self.send("GET", target, &[], b"")
    }

    /// POSTs to `/messages`, or there with a query.
    pub fn post(&self, query: &str, content_type: &str, body: impl AsRef<[u8]>) -> Response {
        self.send(
            "POST",
            &format!("/messages{query}"),
            &[&format!("Content-Type: {content_type}")],
            body.as_ref(),
        )
    }

    /// Publishes text on `main` and returns the message's id.
    pub fn publish(&self, text: &str) -> String {
        self.publish_to("main", text)
    }

    /// Publishes text on a channel and returns the message's id.
    pub fn publish_to(&self, channel: &str, text: &str) -> String {
        let response = self.post(&format!("?channel={channel}"), "text/plain", text);
        assert_eq!(response.status, 201, "{response:?}");
        response.json()["id"].as_str().unwrap().to_owned()
    }

    fn head(&self, method: &str, target: &str, headers: &[&str], length: Option<usize>) -> String {
        // Where the variable says so, streams are asked for in HTTP/1.0: whatever holds for one that
        // leaves hyper holds for the ordinary body too.
        let old = target.starts_with("/events") && std::env::var("TABCAST_TEST_HTTP").as_deref() == Ok("1.0");
        let version = if old { "1.0" } else { "1.1" };
        let mut head = format!("{method} {target} HTTP/{version}\r\n");
        if !headers.iter().any(|header| header.to_ascii_lowercase().starts_with("host:")) {
            head += &format!("Host: {}\r\n", self.address);
        }
        headers.iter().for_each(|header| head += &format!("{header}\r\n"));
        if let Some(length) = length {
            head += &format!("Content-Length: {length}\r\n");
        }
        head + "\r\n"
    }

    /// Opens a stream and reads its head, its opening too.
    pub fn watch(&self, target: &str, headers: &[&str]) -> Stream {
        let mut stream = self.open(target, headers);
        stream.opening = stream.block().expect("a stream begins with a block");
        stream
    }

    /// Opens a stream and reads its head alone.
    pub fn open(&self, target: &str, headers: &[&str]) -> Stream {
        let mut connection = self.connect();
        connection.write_all(self.head("GET", target, headers, None).as_bytes()).unwrap();
        Stream::read(connection)
    }

    /// Opens a connection, asks for a stream, and never reads a byte of it.
    pub fn watch_without_reading(&self, target: &str) -> TcpStream {
        let mut connection = self.connect();
        connection.write_all(self.head("GET", target, &[], None).as_bytes()).unwrap();
        connection
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            eprintln!("the end of the hub's log:\n{}", log[log.len().saturating_sub(30)..].join("\n"));
        }
    }
}

type Headers = Vec<(String, String)>;

fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// Status and headers, names in lower case.
fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, Headers)> {
    let mut line = || {
        let mut line = String::new();
        match reader.read_line(&mut line)? {
            0 => Err(io::Error::new(ErrorKind::UnexpectedEof, "no head")),
            _ => Ok(line.trim_end().to_owned()),
        }
    };
    let status = line()?.split(' ').nth(1).unwrap().parse().unwrap();
    let mut headers = Vec::new();
    loop {
        match line()? {
            end if end.is_empty() => return Ok((status, headers)),
            line => {
                let (name, value) = line.split_once(':').unwrap();
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }
}

/// A whole response.
#[derive(Debug)]
pub struct Response {
    /// 0 if the connection was closed without an answer.
    pub status: u16,
    pub headers: Headers,
    pub body: Vec<u8>,
}

impl Response {
    /// The status of an interim response, which has a head alone.
    pub fn read_interim(reader: &mut impl BufRead) -> u16 {
        read_head(reader).unwrap().0
    }

    pub fn read(reader: &mut impl BufRead, is_head: bool) -> Response {
        let (status, headers) = match read_head(reader) {
            Ok(head) => head,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("no answer")
            }
            Err(_closed) => return Response { status: 0, headers: Vec::new(), body: Vec::new() },
        };
        let mut body = Vec::new();
        if is_head || status == 204 || status == 304 {
        } else if header(&headers, "transfer-encoding") == Some("chunked") {
            while let Some(chunk) = read_chunk(reader).unwrap() {
                body.extend(chunk);
            }
        } else if let Some(length) = header(&headers, "content-length") {
            body.resize(length.parse().unwrap(), 0);
            reader.read_exact(&mut body).unwrap();
        } else {
            reader.read_to_end(&mut body).unwrap();
        }
        Response { status, headers, body }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Checks that it is a problem with this status, and returns it.
    pub fn problem(&self, status: u16) -> serde_json::Value {
        assert_eq!(self.status, status, "{:?}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let problem = self.json();
        assert_eq!(problem["status"], status);
        assert!(problem["title"].is_string() && problem["detail"].is_string(), "{problem}");
        problem
    }
}

fn read_chunk(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Err(io::Error::new(ErrorKind::UnexpectedEof, "torn stream"));
    }
    let length = usize::from_str_radix(line.trim_end(), 16).unwrap();
    let mut chunk = vec![0; length + 2];
    reader.read_exact(&mut chunk)?;
    assert!(chunk.ends_with(b"\r\n"));
    chunk.truncate(length);
    Ok((length > 0).then_some(chunk))
}

/// An open stream of events.
pub struct Stream {
    reader: BufReader<TcpStream>,
    pub headers: Headers,
    chunked: bool,
    left: usize,
    bytes: VecDeque<u8>,
    /// The first block, where it was read: a comment, `retry` and perhaps an id.
    pub opening: String,
}

/// One event that was dispatched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    pub event: String,
    pub data: String,
}

impl Event {
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

impl Stream {
    /// The stream that was asked for on this connection, its head read.
    pub fn read(connection: TcpStream) -> Stream {
        let mut reader = BufReader::new(connection);
        let (status, headers) = read_head(&mut reader).unwrap();
        assert_eq!(status, 200, "{headers:?}");
        let chunked = header(&headers, "transfer-encoding") == Some("chunked");
        Stream { reader, headers, chunked, left: 0, bytes: VecDeque::new(), opening: String::new() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// More bytes; false at the end.
    fn fill(&mut self) -> bool {
        if self.chunked {
            match read_chunk(&mut self.reader) {
                Ok(Some(chunk)) => self.bytes.extend(chunk),
                Ok(None) => return false,
                Err(error) => panic!("the stream breaks off: {error}"),
            }
            true
        } else {
            let mut buffer = [0; 4096];
            let count = self.reader.read(&mut buffer).unwrap();
            self.bytes.extend(&buffer[..count]);
            count > 0
        }
    }

    /// The next chunk of the body, whole: what the hub wrote at once. `None` if it has no chunks.
    pub fn chunk(&mut self) -> Option<String> {
        if !self.chunked {
            return None;
        }
        assert!(self.bytes.is_empty(), "in the midst of a chunk");
        assert!(self.fill(), "the stream has ended");
        Some(String::from_utf8(self.bytes.drain(..).collect()).unwrap())
    }

    /// The raw bytes up to and with the next blank line; `None` at the end.
    pub fn block(&mut self) -> Option<String> {
        let mut seen = 0;
        loop {
            let bytes = self.bytes.make_contiguous();
            let from = seen.max(1) - 1;
            if let Some(end) = bytes[from..].windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.bytes.drain(..from + end + 2).collect();
                return Some(String::from_utf8(block).unwrap());
            }
            seen = bytes.len();
            if !self.fill() {
                assert!(self.bytes.is_empty(), "torn block");
                return None;
            }
        }
    }

    /// The next line, of NDJSON; `None` at the end.
    pub fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                return Some(String::from_utf8(line).unwrap());
            }
            if !self.fill() {
                return None;
            }
        }
    }

    /// The next event, passing over comments and checkpoints; `None` at the end.
    pub fn event(&mut self) -> Option<Event> {
        loop {
            let block = self.block()?;
            if block.lines().any(|line| line.starts_with("data:")) {
                return Some(parse_event(&block));
            }
        }
    }

    /// The next event's data.
    pub fn data(&mut self) -> String {
        self.event().expect("the stream goes on").data
    }
}

/// One block, as WHATWG HTML 9.2.6 interprets it.
pub fn parse_event(block: &str) -> Event {
    let mut event = Event { event: "message".to_owned(), ..Event::default() };
    let mut data = Vec::new();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = value.to_owned(),
            "event" => event.event = value.to_owned(),
            "data" => data.push(value),
            _ => {}
        }
    }
    event.data = data.join("\n");
    event
}
