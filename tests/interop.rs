//! Published clients of event streams, which know nothing of the hub: their streams are cut off again and
//! again, in every kind of place, and no client misses a message or gets one twice.
//!
//! `tests/interop/` has a program for each client, written as the client's documentation tells a careful
//! user; the program prints each message. Most of them reconnect and resume by themselves.
//! `fetch-event-source` does if its user throws in `onclose`. `httpx-sse` and curl never do: their programs
//! call them again with the last event's id. `htmx` and `turbo` are pages of another origin in a browser.
//!
//! `tests/run` installs them. Each goes through 200 drops, or `TABCAST_DROPS`, half of them in each format.
//! That takes two minutes: no client reconnects before half a second has passed, and some of them wait a
//! second.

mod browser;
mod common;
mod pages;
mod proxy;

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use browser::Browser;
use common::{Hub, PATIENCE, Stream, parse_event};
use fastrand::Rng;
use pages::Pages;
use proxy::{Mode, Proxy};
use socket2::SockRef;

/// The programs, in `tests/interop/`.
const PROGRAMS: [&str; 11] = [
    "curl.sh",
    "event-source-polyfill.mjs",
    "eventsource.mjs",
    "eventsource-client.mjs",
    "fetch-event-source.mjs",
    "htmx.html",
    "httpx-sse.py",
    "reconnecting-eventsource.mjs",
    "requests-sse.py",
    "reqwest-eventsource",
    "turbo.html",
];

/// The programs of clients that ignore an id without data, as the opening has one. Cut off before their first
/// message they reconnect without an id, so they have `last=` in their query. With `format=message` the
/// opening has data, and they need no `last=`.
const PASS_OVER_BARE_IDS: [&str; 5] = [
    "event-source-polyfill.mjs",
    "eventsource.mjs",
    "eventsource-client.mjs",
    "reconnecting-eventsource.mjs",
    "reqwest-eventsource",
];

/// What each format adds to the query.
const FORMATS: [&str; 2] = ["", "&format=message"];

/// The same for a page, which shows HTML: the second is what Datastar adds to every request.
const OF_PAGES: [&str; 2] = ["", "&datastar=%7B%7D"];

/// The HTML in which a page is sent a text: what is before it, and what is after it.
fn html(program: &str) -> (&'static str, &'static str) {
    match program {
        "htmx.html" => ("<li>", "</li>"),
        "turbo.html" => (
            "<turbo-stream action=\"append\" target=\"list\"><template><li>",
            "</li></template></turbo-stream>",
        ),
        _ => ("", ""),
    }
}

/// The shortest reconnection time that the hub allows, and a keep-alive in every pause.
const FLAGS: [&str; 8] =
    ["--journal", "memory", "--retry-min", "500ms", "--retry-max", "500ms", "--keep-alive", "100ms"];

/// Where a stream is cut off.
#[derive(Clone, Copy)]
enum Place {
    /// After the request, before there is a response.
    Request,
    /// Before the first message.
    Opening,
    /// Within an event.
    Event,
    /// Between two events.
    Between,
    /// After the client has printed every message, and got a keep-alive.
    Idle,
}

/// How it is cut off.
#[derive(Clone, Copy)]
enum End {
    /// By the last chunk of the body.
    Clean,
    /// By the end of the connection, within the body.
    Close,
    Reset,
}

const DROPS: [(Place, End); 13] = [
    (Place::Opening, End::Reset),
    (Place::Event, End::Reset),
    (Place::Between, End::Clean),
    (Place::Idle, End::Close),
    (Place::Event, End::Clean),
    (Place::Opening, End::Close),
    (Place::Idle, End::Reset),
    (Place::Between, End::Close),
    (Place::Request, End::Reset),
    (Place::Opening, End::Clean),
    (Place::Idle, End::Clean),
    (Place::Event, End::Close),
    (Place::Between, End::Reset),
];

#[test]
fn every_client_resumes_after_every_drop_with_nothing_lost_or_doubled() {
    let drops =
        std::env::var("TABCAST_DROPS").map_or(200, |drops| drops.parse().expect("TABCAST_DROPS is a number"));
    let folder = installed();
    let pages = Pages::start(&[&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop"), &folder]);
    let hub = Hub::start(&[&FLAGS[..], &["--allow-origin", &pages.origin()]].concat());
    // All at once: they mostly wait. And what is published for one client moves the others' positions.
    let tallies: Vec<Tally> = thread::scope(|scope| {
        let formats = |program: &str| if program.ends_with(".html") { OF_PAGES } else { FORMATS };
        let pairs = PROGRAMS.into_iter().flat_map(|program| formats(program).map(|format| (program, format)));
        let (hub, folder, pages) = (&hub, &folder, &pages);
        let drops = drops / FORMATS.len();
        let start = |(program, format)| scope.spawn(move || run(hub, folder, pages, program, format, drops));
        let threads: Vec<_> = pairs.map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    tallies.iter().for_each(|tally| println!("{}", tally.summary()));
    tallies.iter().for_each(|tally| assert!(tally.printed == tally.published, "{}", tally.summary()));
}

/// The folder of the clients. Panics if they are not there, or not in the versions that are wanted.
fn installed() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("interop");
    let wanted = concat!(include_str!("interop/package.json"), include_str!("interop/requirements.txt"));
    let installed = std::fs::read_to_string(folder.join("installed")).unwrap_or_default();
    assert!(installed == wanted, "the clients are not there, or others than these; tests/run installs them");
    folder
}

/// Runs one client in one format through so many drops, and to one more message after the last of them.
fn run(
    hub: &Hub,
    folder: &Path,
    pages: &Pages,
    program: &'static str,
    format: &'static str,
    drops: usize,
) -> Tally {
    let mut rng = Rng::with_seed(1);
    let proxy = Proxy::start(hub.address, Mode::Leave);
    let name = format.trim_start_matches('&').split('=').next().unwrap();
    let channel = format!("{program}.{name}").trim_end_matches('.').to_owned();
    let mut feed = Feed { hub, channel, html: html(program), published: Vec::new() };
    let mut url = format!("http://{}/events?channel={}{format}", proxy.address, feed.channel);
    if format.is_empty() && PASS_OVER_BARE_IDS.contains(&program) {
        url += "&last=1000";
        feed.publish(1);
    } else {
        hub.publish_to(&feed.channel, "before its first stream");
    }
    let mut client = Client::start(program, folder, pages, &url);
    for (place, end) in DROPS.into_iter().cycle().take(drops) {
        let mut relay = Relay::accept(&proxy, hub, program);
        if !matches!(place, Place::Request) {
            relay.open();
        }
        match place {
            Place::Request | Place::Opening => {}
            Place::Event => {
                feed.publish(2);
                relay.pass_messages(rng.usize(..2));
                relay.pass_part_of_message(&mut rng);
            }
            Place::Between => {
                feed.publish(3);
                relay.pass_messages(rng.usize(1..3));
            }
            Place::Idle => {
                let last = feed.publish(2);
                relay.pass_until(&last);
                client.wait_until_printed(&last);
                relay.pass_keep_alive();
            }
        }
        relay.cut(end);
        feed.publish(rng.usize(1..3));
    }
    let mut relay = Relay::accept(&proxy, hub, program);
    relay.open();
    let last = feed.publish(1);
    relay.pass_until(&last);
    client.wait_until_printed(&last);
    let text = |(id, text): Message| match serde_json::from_str::<serde_json::Value>(&text) {
        Ok(message) if !format.is_empty() && message["id"] == *id => {
            (id, message["data"].as_str().unwrap().to_owned())
        }
        _ => (id, text.replace("\\n", "\n")),
    };
    let printed = std::mem::take(&mut client.printed).into_iter().map(text).collect();
    Tally { program, format, drops, published: feed.published, printed }
}

/// An id and a text.
type Message = (String, String);

/// What was published for one client, and what it printed.
struct Tally {
    program: &'static str,
    format: &'static str,
    drops: usize,
    published: Vec<Message>,
    printed: Vec<Message>,
}

impl Tally {
    fn summary(&self) -> String {
        let Tally { program, format, drops, published, printed } = self;
        let lost = published.iter().filter(|message| !printed.contains(message)).count();
        let once: HashSet<_> = printed.iter().collect();
        let (delivered, doubled) = (printed.len(), printed.len() - once.len());
        format!("{program}{format}: {drops} drops, {delivered} delivered, {lost} lost, {doubled} doubled")
    }
}

/// The messages published for one client.
struct Feed<'a> {
    hub: &'a Hub,
    channel: String,
    /// What is before each text, and what is after it.
    html: (&'static str, &'static str),
    published: Vec<Message>,
}

impl Feed<'_> {
    /// Publishes so many messages, and returns the last one's id.
    fn publish(&mut self, count: usize) -> String {
        for _ in 0..count {
            let number = self.published.len();
            let text = match number % 4 {
                0 => format!("{number}"),
                // Characters of several bytes, for a cut within one; and U+2028 and U+0085, which some
                // clients take for line breaks.
                1 => format!("{number} Gr\u{fc}\u{df}e \u{1f388}\u{2028}\u{85}."),
                2 => format!("{number}\nof three\nlines"),
                // More than a client reads at once.
                _ => format!("{number} {}", "x".repeat(20_000)),
            };
            let id = self.hub.publish_to(&self.channel, &[self.html.0, &text, self.html.1].concat());
            self.published.push((id, text));
        }
        self.published.last().unwrap().0.clone()
    }
}

/// A client's program or page, ended when dropped.
struct Client {
    program: &'static str,
    _run: Run,
    lines: Receiver<String>,
    printed: Vec<Message>,
}

/// What runs a client.
enum Run {
    Program(Child),
    Page(#[expect(dead_code, reason = "it ends when it is dropped")] Browser),
}

impl Client {
    fn start(program: &'static str, folder: &Path, pages: &Pages, url: &str) -> Client {
        let (run, lines) = if program.ends_with(".html") {
            Client::open(program, pages, url)
        } else {
            Client::spawn(program, folder, url)
        };
        Client { program, _run: run, lines, printed: Vec::new() }
    }

    /// Opens the page, which is given the stream's URL, and the path to print to.
    fn open(program: &str, pages: &Pages, url: &str) -> (Run, Receiver<String>) {
        let (path, lines) = pages.printer();
        let browser = Browser::start();
        let url = url.replace('%', "%25").replace('&', "%26");
        browser.open(&format!("{}/{program}?{url}!{path}", pages.origin()));
        (Run::Page(browser), lines)
    }

    fn spawn(program: &str, folder: &Path, url: &str) -> (Run, Receiver<String>) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(program);
        let mut command = match source.extension().and_then(|extension| extension.to_str()) {
            Some("mjs") => {
                // Read from its input, the program finds the packages of the folder it runs in.
                let mut node = Command::new("node");
                node.args(["--input-type=module", "-"])
                    .current_dir(folder)
                    .stdin(File::open(&source).unwrap());
                node
            }
            Some(script) => {
                let interpreter =
                    if script == "py" { &*folder.join("venv/bin/python") } else { Path::new("bash") };
                let mut interpreter = Command::new(interpreter);
                interpreter.arg(&source);
                interpreter
            }
            None => Command::new(folder.join("debug/reqwest-eventsource-client")),
        };
        let child = command.arg(url).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs it"));
        let output = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in output {
                let _ = sender.send(line);
            }
        });
        (Run::Program(child), lines)
    }

    fn wait_until_printed(&mut self, id: &str) {
        while self.printed.last().is_none_or(|last| last.0 != id) {
            let line = self.lines.recv_timeout(PATIENCE);
            let line =
                line.unwrap_or_else(|error| panic!("{}, of which {id} is awaited: {error}", self.program));
            let (id, text) = line.split_once(' ').expect("a line is an id and a text");
            self.printed.push((id.to_owned(), text.to_owned()));
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Run::Program(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A client's connection, and the hub's stream for it, which the test passes on block by block.
struct Relay {
    connection: TcpStream,
    stream: Stream,
}

impl Relay {
    /// The client's next connection, with the hub's answer to its request.
    fn accept(proxy: &Proxy, hub: &Hub, program: &str) -> Relay {
        let connection = proxy.accept(program);
        let lines = BufReader::new(&connection).lines().map(Result::unwrap);
        let head: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        let target = head[0].split(' ').nth(1).expect("a request names its target");
        let headers: Vec<_> = head[1..].iter().map(|header| &**header).collect();
        let stream = hub.open(target, &headers);
        Relay { connection, stream }
    }

    /// Passes on the head of the hub's response, and the opening.
    fn open(&mut self) {
        let headers = self.stream.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n"));
        let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", headers.collect::<String>());
        self.connection.write_all(head.as_bytes()).unwrap();
        let opening = self.next();
        self.send(opening.as_bytes());
    }

    fn pass_messages(&mut self, count: usize) {
        for _ in 0..count {
            let message = self.next_message();
            self.send(message.as_bytes());
        }
    }

    fn pass_part_of_message(&mut self, rng: &mut Rng) {
        let message = self.next_message();
        let end = match rng.u8(..3) {
            0 => message.find('\n').unwrap() + 1,
            1 => message.len() - 1,
            _ => rng.usize(1..message.len()),
        };
        self.send(&message.as_bytes()[..end]);
    }

    /// Passes on everything up to and with the message that has this id.
    fn pass_until(&mut self, id: &str) {
        loop {
            let message = self.next_message();
            self.send(message.as_bytes());
            if parse_event(&message).id == id {
                return;
            }
        }
    }

    fn pass_keep_alive(&mut self) {
        let keep_alive = self.next();
        assert!(!is_message(&keep_alive), "{keep_alive}");
        self.send(keep_alive.as_bytes());
    }

    /// The next message, which is not passed on yet. All blocks before it are.
    fn next_message(&mut self) -> String {
        loop {
            let block = self.next();
            if is_message(&block) {
                return block;
            }
            self.send(block.as_bytes());
        }
    }

    fn next(&mut self) -> String {
        self.stream.block().expect("the hub's stream goes on")
    }

    /// Sends the client a chunk.
    fn send(&mut self, bytes: &[u8]) {
        let length = format!("{:x}\r\n", bytes.len());
        self.connection.write_all(&[length.as_bytes(), bytes, b"\r\n"].concat()).unwrap();
    }

    fn cut(mut self, end: End) {
        match end {
            End::Clean => self.connection.write_all(b"0\r\n\r\n").unwrap(),
            End::Close => {}
            End::Reset => SockRef::from(&self.connection).set_linger(Some(Duration::ZERO)).unwrap(),
        }
    }
}

/// Whether this is a message, and not the opening or a keep-alive.
fn is_message(block: &str) -> bool {
    block.contains("\ndata:") && !parse_event(block).event.starts_with("tabcast:")
}
