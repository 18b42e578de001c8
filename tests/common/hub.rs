//! A hub's process: its start and end, its log, and requests to it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Folder, PATIENCE, Path, Response, Stream, connect, connect_from, request};

/// A hub process, ended when dropped.
pub struct Hub {
    child: Child,
    pub address: SocketAddr,
    log: Arc<Log>,
    path: Path,
    /// The folder of its journal, where that is no other hub's.
    _folder: Option<Folder>,
}

/// The lines that the process writes to stderr.
#[derive(Default)]
struct Log {
    /// The lines so far, and whether stderr is closed.
    lines: Mutex<(Vec<String>, bool)>,
    grown: Condvar,
}

impl Hub {
    /// A hub with these flags, once it listens. Its journal, unless they name one, is as the test's [`Path`]
    /// has it.
    pub fn start(flags: &[&str]) -> Hub {
        Hub::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), flags)
    }

    /// The same on this address.
    pub fn start_at(address: SocketAddr, flags: &[&str]) -> Hub {
        Hub::start_by(Command::new(env!("CARGO_BIN_EXE_tabcast")), address, flags)
    }

    /// A hub that may have at most so much address space, and ends where it asks for more.
    pub fn start_within(mebibytes: usize, flags: &[&str]) -> Hub {
        let mut command = Command::new("sh");
        let kibibytes = mebibytes << 10;
        command.args(["-c", &format!("ulimit -v {kibibytes}; exec \"$0\" \"$@\"")]);
        command.arg(env!("CARGO_BIN_EXE_tabcast"));
        Hub::start_by(command, SocketAddr::from(([127, 0, 0, 1], 0)), flags)
    }

    /// The hub that this command runs with these flags.
    fn start_by(mut command: Command, address: SocketAddr, flags: &[&str]) -> Hub {
        command.args(["--listen", &address.to_string()]).args(flags);
        let names_journal = flags.contains(&"--journal");
        let folder = (!names_journal && Path::current().in_file).then(Folder::new);
        if let Some(folder) = &folder {
            command.args(["--journal", &folder.file("tabcast.db")]);
        } else if !names_journal {
            command.args(["--journal", "memory"]);
        }
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
        // The rates of callers are for tests/rates.rs. Elsewhere a test would be refused, or not, by how fast
        // it publishes.
        for rate in ["TABCAST_PUBLISH_RATE", "TABCAST_CONNECT_RATE"] {
            if !command.get_envs().any(|(name, _)| name == rate) {
                command.env(rate, "0");
            }
        }
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
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Hub { child, address, log, path: Path::current(), _folder: None }
    }

    fn wait_until_it_listens(&mut self) {
        let line = self.wait_for_log(&["listening on http://"]);
        let address = line.split("http://").nth(1).unwrap().split_whitespace().next().unwrap();
        self.address = address.parse().unwrap();
    }

    /// Waits until the log says that the hub listens, or until it ends. True if the hub listens.
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
                // A panic with the lock held would poison it for the thread that reads stderr.
                let (found, log) = (found.len(), lines.0.join("\n"));
                drop(lines);
                panic!("{found} of {count} lines with {parts:?} in the log:\n{log}");
            }
            lines = self.log.grown.wait_timeout(lines, left).unwrap().0;
        }
    }

    /// The log so far.
    pub fn log(&self) -> Vec<String> {
        // A test that is failing may have poisoned the lock.
        self.log.lines.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// How many lines of the log so far have this part.
    pub fn count_log(&self, part: &str) -> usize {
        self.log().iter().filter(|line| line.contains(part)).count()
    }

    /// The bytes of its journal's file and write-ahead log; 0 if it is in memory.
    pub fn journal_bytes(&self) -> u64 {
        let Some(folder) = &self._folder else { return 0 };
        let files = ["tabcast.db", "tabcast.db-wal"].map(|name| std::fs::metadata(folder.file(name)));
        files.into_iter().flatten().map(|file| file.len()).sum()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, as in "TERM".
    pub fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]).status().unwrap();
        assert!(sent.success());
    }

    /// Ends the process by this signal.
    pub fn end(&mut self, signal: &str) -> ExitStatus {
        self.signal(signal);
        self.wait()
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the hub does not end");
            // std can't wait for the end of a process with a limit.
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> usize {
        self.status_bytes("VmRSS:")
    }

    /// The most resident memory that there has been, in bytes.
    pub fn peak_resident_bytes(&self) -> usize {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// A connection to it.
    pub fn connect(&self) -> TcpStream {
        connect(self.address).unwrap()
    }

    /// The response to these bytes, on a connection of its own.
    pub fn raw(&self, request: impl AsRef<[u8]>) -> Response {
        self.exchange(request.as_ref(), false)
    }

    fn exchange(&self, request: &[u8], is_head: bool) -> Response {
        let mut connection = self.connect();
        // A hub that refuses a request early may close before all of it is written.
        let _ = connection.write_all(request);
        Response::read(&mut BufReader::new(connection), is_head)
    }

    /// The response to a request with these headers, each as in "Name: value".
    pub fn send(&self, method: &str, target: &str, headers: &[&str], body: &[u8]) -> Response {
        let body = (method == "POST" || !body.is_empty()).then_some(body);
        let request = request(&self.request_line(method, target), self.address, headers, body);
        self.exchange(&request, method == "HEAD")
    }

    /// The response to a publish of this text with an idempotency key, from this address.
    pub fn publish_from(&self, source: [u8; 4], key: &str, text: &str) -> Response {
        let headers = [&*format!("Idempotency-Key: {key}"), "Content-Type: text/plain"];
        let line = self.request_line("POST", "/messages");
        let mut connection = connect_from(source, self.address).unwrap();
        connection.write_all(&request(&line, self.address, &headers, Some(text.as_bytes()))).unwrap();
        Response::read(&mut BufReader::new(connection), false)
    }

    fn request_line(&self, method: &str, target: &str) -> String {
        let version = if target.starts_with("/events") { self.path.http } else { "1.1" };
        format!("{method} {target} HTTP/{version}")
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

    /// The messages that `GET /messages` with this query answers, oldest first.
    pub fn history(&self, query: &str) -> Vec<Value> {
        self.get(&format!("/messages{query}")).json()["messages"].as_array().unwrap().clone()
    }

    /// The data of those messages.
    pub fn history_data(&self, query: &str) -> Vec<Value> {
        self.history(query).iter().map(|message| message["data"].clone()).collect()
    }

    /// The newest message of `main`.
    pub fn newest(&self) -> Value {
        self.history("?last=1").remove(0)
    }

    /// Opens a stream and reads its head and its opening.
    pub fn watch(&self, target: &str, headers: &[&str]) -> Stream {
        let mut stream = self.open(target, headers);
        stream.opening = stream.block().expect("a stream begins with a block");
        stream
    }

    /// Opens a stream and reads its head alone.
    pub fn open(&self, target: &str, headers: &[&str]) -> Stream {
        Stream::read(self.ask_for_stream(target, headers))
    }

    /// Opens a connection, asks for a stream, and never reads a byte of it.
    pub fn watch_without_reading(&self, target: &str) -> TcpStream {
        self.ask_for_stream(target, &[])
    }

    fn ask_for_stream(&self, target: &str, headers: &[&str]) -> TcpStream {
        let mut connection = self.connect();
        let request = request(&self.request_line("GET", target), self.address, headers, None);
        connection.write_all(&request).unwrap();
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
