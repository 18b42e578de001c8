//! The load: publishers and subscribers on nonblocking sockets, all on the caller's thread.
//!
//! A subscriber costs one read and one comparison per wake-up: all messages have the same data, so
//! what a subscriber has to get is known to the byte ([`Expected`]), and nothing is parsed but the
//! sizes of chunks.

use std::io::{ErrorKind, Read, Write};
use std::mem;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;

/// How long nothing may come that has to come.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long it waits for something to come before it looks whether that is still to be waited for.
const POLL: Duration = Duration::from_millis(100);

/// How long a replay may take.
const LONGEST_REPLAY: Duration = Duration::from_secs(40);

/// Messages published during a replay, at most.
const PUBLISHED_MEANWHILE: usize = 10_000;

/// Subscribers that connect at once: well below any server's backlog, which when full would cost a
/// second each.
const CONNECTING: usize = 128;

/// The tokens from here on are publishers'; below, subscribers'.
const FIRST_PUBLISHER: usize = 1 << 20;

/// What a message's data is: with what is around it, a body of 100 bytes.
pub(crate) const DATA: &str =
    "The quick brown fox jumps over the lazy dog, and every open tab and watcher sees it all.";

/// When a publisher sends its next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// When its last is acknowledged.
    Answered,
    /// When every message is acknowledged and delivered to every subscriber.
    Delivered,
    /// At this interval, from one publisher: if its answers are late it catches up, and the time it
    /// was late counts as time that took.
    Every(Duration),
}

/// What came of a run.
pub(crate) struct Run {
    /// From the first POST to the last answer and delivery.
    pub(crate) elapsed: Duration,
    /// From each POST to its answer.
    pub(crate) answer_times: Vec<Duration>,
    /// From each POST to each of its deliveries, with [`Pace::Every`]; none otherwise.
    pub(crate) delivery_times: Vec<Duration>,
}

/// Publishers and subscribers of one server.
pub(crate) struct Load {
    address: SocketAddr,
    poll: Poll,
    events: Events,
    subscribers: Vec<Subscriber>,
    publishers: Vec<Publisher>,
    expected: Expected,
    /// A POST's bytes, the same for all.
    post: Vec<u8>,
    /// Larger than what comes between two reads: one that fills it is followed by another.
    buffer: Box<[u8]>,
    /// When each message was sent, or had to be.
    sent: Vec<Instant>,
    /// Subscribers that have had their opening.
    open: usize,
    /// Messages received, summed over the subscribers.
    delivered: usize,
    answer_times: Vec<Duration>,
    /// If they are wanted.
    delivery_times: Option<Vec<Duration>>,
}

impl Load {
    /// None yet. The server keeps so many messages already, which its subscribers don't ask for.
    pub(crate) fn new(address: SocketAddr, kept: usize) -> anyhow::Result<Self> {
        let body = format!("{{\"data\":\"{DATA}\"}}");
        let post = format!(
            "POST /messages HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Load {
            address,
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            subscribers: Vec::new(),
            publishers: Vec::new(),
            expected: Expected { kept, ..Expected::default() },
            post: post.into_bytes(),
            buffer: vec![0; 256 << 10].into(),
            sent: Vec::new(),
            open: 0,
            delivered: 0,
            answer_times: Vec::new(),
            delivery_times: None,
        })
    }

    /// So many more subscribers, each of which has had its stream's opening.
    pub(crate) fn subscribe(&mut self, count: usize) -> anyhow::Result<()> {
        self.subscribe_to("/events", count)
    }

    fn subscribe_to(&mut self, events: &str, count: usize) -> anyhow::Result<()> {
        let request = format!("GET {events} HTTP/1.1\r\nhost: {}\r\n\r\n", self.address);
        let all = self.subscribers.len() + count;
        while self.subscribers.len() < all {
            for _ in 0..CONNECTING.min(all - self.subscribers.len()) {
                let mut stream = self.connect(Token(self.subscribers.len()))?;
                stream.write_all(request.as_bytes())?;
                self.subscribers.push(Subscriber { stream, progress: Progress::new() });
            }
            let begun = Instant::now();
            while self.open < self.subscribers.len() {
                ensure!(begun.elapsed() < PATIENCE, "{} of {} streams opened", self.open, self.subscribers.len());
                self.take_what_comes(POLL)?;
            }
        }
        Ok(())
    }

    /// Replays `count` messages, all that were ever kept, to one subscriber of `events`: how long it
    /// takes from its request to the last of them. More may follow those, as they are published.
    ///
    /// # Errors
    /// If it gets anything but them, in order, once.
    pub(crate) fn replay(address: SocketAddr, events: &str, prefix: &str, count: usize) -> anyhow::Result<Duration> {
        let mut load = Load::new(address, 0)?;
        load.expected.prefix = Some(prefix.to_owned());
        for _ in 0..count + PUBLISHED_MEANWHILE {
            load.expected.push();
        }
        let begun = Instant::now();
        load.subscribe_to(events, 1)?;
        while load.delivered < count {
            ensure!(begun.elapsed() < LONGEST_REPLAY, "{} of {count} messages replayed", load.delivered);
            load.take_what_comes(POLL)?;
        }
        Ok(begun.elapsed())
    }

    /// So many publishers.
    pub(crate) fn connect_publishers(&mut self, count: usize) -> anyhow::Result<()> {
        for index in 0..count {
            let stream = self.connect(Token(FIRST_PUBLISHER + index))?;
            self.publishers.push(Publisher { stream, state: State::Idle(Instant::now()), answer: Vec::new() });
        }
        Ok(())
    }

    fn connect(&self, token: Token) -> anyhow::Result<TcpStream> {
        let stream = std::net::TcpStream::connect(self.address).context("can't connect")?;
        stream.set_nodelay(true)?;
        // Closed by a reset: the ports of tens of thousands of connections are free again at once.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
        Ok(stream)
    }

    /// Publishes for that time, then waits for what is still to come.
    ///
    /// # Errors
    /// If a publish is answered otherwise than by 201, or a subscriber gets anything but what was
    /// published, in order, once.
    pub(crate) fn run(&mut self, pace: Pace, time: Duration) -> anyhow::Result<Run> {
        let begun = Instant::now();
        self.run_while(pace, || begun.elapsed() < time)
    }

    /// [`run`](Self::run) for as long as `more` says so.
    pub(crate) fn run_while(&mut self, pace: Pace, mut more: impl FnMut() -> bool) -> anyhow::Result<Run> {
        let begun = Instant::now();
        let mut over = None;
        // When the next is due, with `Pace::Every`.
        let mut due = begun;
        self.answer_times.clear();
        self.delivery_times = matches!(pace, Pace::Every(_)).then(Vec::new);
        loop {
            let answered = self.publishers.iter().all(Publisher::is_idle);
            let missing = self.sent.len() * self.subscribers.len() - self.delivered;
            if over.is_none() && !more() {
                over = Some(Instant::now());
            }
            let mut wait = POLL;
            match (over, pace) {
                (Some(_), _) if answered && missing == 0 => {
                    return Ok(Run {
                        elapsed: begun.elapsed(),
                        answer_times: mem::take(&mut self.answer_times),
                        delivery_times: self.delivery_times.take().unwrap_or_default(),
                    });
                }
                (Some(over), _) => {
                    let late = over.elapsed() > PATIENCE;
                    ensure!(!late, "{missing} deliveries are missing; all answered: {answered}");
                }
                (None, Pace::Delivered) if missing > 0 || !answered => {}
                (None, Pace::Delivered | Pace::Answered) => self.post_where_idle(None)?,
                (None, Pace::Every(interval)) => {
                    if answered && due <= Instant::now() {
                        self.post_where_idle(Some(due))?;
                        due += interval;
                    }
                    wait = due.saturating_duration_since(Instant::now());
                }
            }
            self.take_what_comes(wait)?;
        }
    }

    /// Sends a message from every publisher that waits for no answer. If it was `due` while its
    /// publisher still waited, that is when it was sent.
    fn post_where_idle(&mut self, due: Option<Instant>) -> anyhow::Result<()> {
        for publisher in &mut self.publishers {
            if let State::Idle(idle_since) = publisher.state {
                let sent = due.filter(|due| *due < idle_since).unwrap_or_else(Instant::now);
                publisher.state = State::Waiting(sent);
                publisher.stream.write_all(&self.post).context("can't POST")?;
                self.sent.push(sent);
                if !self.subscribers.is_empty() {
                    self.expected.push();
                }
            }
        }
        Ok(())
    }

    /// Waits so long for something to read, and reads it all.
    fn take_what_comes(&mut self, wait: Duration) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            let Token(token) = event.token();
            if token >= FIRST_PUBLISHER {
                let publisher = &mut self.publishers[token - FIRST_PUBLISHER];
                read_all(&mut publisher.stream, &mut self.buffer, |bytes| {
                    publisher.answer.extend_from_slice(bytes);
                    Ok(())
                })?;
                self.answer_times.extend(publisher.take_answer()?);
            } else {
                let subscriber = &mut self.subscribers[token];
                let progress = &mut subscriber.progress;
                let (was_open, had) = (progress.is_open(), progress.received);
                read_all(&mut subscriber.stream, &mut self.buffer, |bytes| progress.take(bytes, &mut self.expected))?;
                self.open += usize::from(progress.is_open() && !was_open);
                self.delivered += progress.received - had;
                if let Some(times) = &mut self.delivery_times {
                    let now = Instant::now();
                    times.extend(self.sent[had..progress.received].iter().map(|sent| now - *sent));
                }
            }
        }
        Ok(())
    }
}

/// Reads until nothing more is there.
///
/// # Errors
/// If the connection ended, or `take` fails.
fn read_all(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    loop {
        match stream.read(buffer) {
            Ok(0) => bail!("the server closed a connection"),
            Ok(length) => {
                take(&buffer[..length])?;
                // A short read has emptied the socket (epoll(7)): asking again would only cost.
                if length < buffer.len() {
                    return Ok(());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("can't read"),
        }
    }
}

/// One connection that POSTs one message after the other.
struct Publisher {
    stream: TcpStream,
    state: State,
    /// What has come of the answer.
    answer: Vec<u8>,
}

#[derive(Clone, Copy)]
enum State {
    /// Since then.
    Idle(Instant),
    /// For the answer to the message sent then.
    Waiting(Instant),
}

impl Publisher {
    fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle(_))
    }

    /// The time the answer took, if it is there whole.
    fn take_answer(&mut self) -> anyhow::Result<Option<Duration>> {
        let Some(head) = end_of(b"\r\n\r\n", &self.answer) else { return Ok(None) };
        let text = || String::from_utf8_lossy(&self.answer);
        ensure!(self.answer.starts_with(b"HTTP/1.1 201 "), "a POST is answered with {:?}", text());
        let mut headers = self.answer[..head].split(|byte| *byte == b'\n');
        let length = headers.find_map(|line| line.strip_prefix(b"content-length: "));
        let length: usize = std::str::from_utf8(length.context("an answer has no length")?)?.trim_end().parse()?;
        if self.answer.len() < head + length {
            return Ok(None);
        }
        ensure!(self.answer.len() == head + length, "more than an answer: {:?}", text());
        self.answer.clear();
        let State::Waiting(sent) = self.state else { bail!("an answer to nothing") };
        let now = Instant::now();
        self.state = State::Idle(now);
        Ok(Some(now - sent))
    }
}

/// One stream of events.
struct Subscriber {
    stream: TcpStream,
    progress: Progress,
}

/// How far a subscriber has got.
struct Progress {
    stage: Stage,
    chunks: Chunks,
    /// Bytes of [`Expected::bytes`] it has received.
    position: usize,
    /// Messages it has received whole.
    received: usize,
}

/// What comes next of a stream; what has come of it so far, until it is whole.
enum Stage {
    Head(Vec<u8>),
    /// The first event, which tells where the subscriber is.
    Opening(Vec<u8>),
    Messages,
}

impl Progress {
    fn new() -> Self {
        Progress { stage: Stage::Head(Vec::new()), chunks: Chunks::new(), position: 0, received: 0 }
    }

    fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Messages)
    }

    /// Goes on by what came on the connection.
    fn take(&mut self, bytes: &[u8], expected: &mut Expected) -> anyhow::Result<()> {
        let Stage::Head(head) = &mut self.stage else { return self.take_body(bytes, expected) };
        head.extend_from_slice(bytes);
        let Some(end) = end_of(b"\r\n\r\n", head) else { return Ok(()) };
        let body = head.split_off(end);
        let head = String::from_utf8_lossy(head).into_owned();
        let streams = head.starts_with("HTTP/1.1 200 ") && head.contains("transfer-encoding: chunked");
        ensure!(streams, "a subscriber is answered with {head:?}");
        self.stage = Stage::Opening(Vec::new());
        self.take_body(&body, expected)
    }

    fn take_body(&mut self, mut bytes: &[u8], expected: &mut Expected) -> anyhow::Result<()> {
        while let Some(data) = self.chunks.next(&mut bytes)? {
            match &mut self.stage {
                Stage::Opening(opening) => {
                    opening.extend_from_slice(data);
                    let Some(end) = end_of(b"\n\n", opening) else { continue };
                    let messages = opening.split_off(end);
                    expected.check_opening(std::str::from_utf8(opening)?)?;
                    self.stage = Stage::Messages;
                    self.take_messages(&messages, expected)?;
                }
                _ => self.take_messages(data, expected)?,
            }
        }
        Ok(())
    }

    fn take_messages(&mut self, bytes: &[u8], expected: &Expected) -> anyhow::Result<()> {
        let end = self.position + bytes.len();
        if expected.bytes.get(self.position..end) != Some(bytes) {
            let came = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]);
            bail!("after {} messages a subscriber gets {came:?}, which is not what follows", self.received);
        }
        self.position = end;
        while expected.ends.get(self.received).is_some_and(|end| *end <= self.position) {
            self.received += 1;
        }
        Ok(())
    }
}

/// What every subscriber has to get after its opening, byte for byte.
#[derive(Default)]
struct Expected {
    /// Messages before the first it gets.
    kept: usize,
    /// What all ids begin with, as the first opening told it.
    prefix: Option<String>,
    bytes: Vec<u8>,
    /// Where each message ends in `bytes`.
    ends: Vec<usize>,
}

impl Expected {
    /// One more message.
    fn push(&mut self) {
        let prefix = self.prefix.as_deref().unwrap_or_default();
        let number = self.kept + self.ends.len() + 1;
        self.bytes.extend_from_slice(format!("id: {prefix}{number}\ndata: {DATA}\n\n").as_bytes());
        self.ends.push(self.bytes.len());
    }

    /// Every server tells a subscriber that it begins with the next message: after those it keeps.
    fn check_opening(&mut self, opening: &str) -> anyhow::Result<()> {
        let id = opening.lines().find_map(|line| line.strip_prefix("id: "));
        let last = format!("-{}", self.kept);
        let prefix =
            id.and_then(|id| id.strip_suffix(&last)).with_context(|| format!("a stream begins {opening:?}"))?;
        let prefix = format!("{prefix}-");
        let known = self.prefix.get_or_insert_with(|| prefix.clone());
        ensure!(*known == prefix, "subscribers are told of two journals: {known}, {prefix}");
        Ok(())
    }
}

/// Where in a chunked body (RFC 9112 7.1) a stream is.
enum Chunks {
    /// In the line of a chunk's size, or the line break before it; the size as far as it was read.
    Size(Option<usize>),
    /// In a chunk's data, of which so many bytes are left.
    Data(usize),
}

impl Chunks {
    fn new() -> Self {
        Chunks::Size(None)
    }

    /// The data `bytes` begin with, which it takes from them; `None` if they are used up.
    fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> anyhow::Result<Option<&'a [u8]>> {
        while let Some((first, after)) = bytes.split_first() {
            match self {
                Chunks::Data(left) => {
                    let (data, after) = bytes.split_at(bytes.len().min(*left));
                    *bytes = after;
                    *self = if data.len() < *left { Chunks::Data(*left - data.len()) } else { Chunks::Size(None) };
                    return Ok(Some(data));
                }
                Chunks::Size(size) => {
                    *bytes = after;
                    match (first, *size) {
                        (b'\r', _) | (b'\n', None) => {}
                        (b'\n', Some(0)) => bail!("the server ended a stream"),
                        (b'\n', Some(size)) => *self = Chunks::Data(size),
                        (digit, size_so_far) => {
                            let digit = char::from(*digit).to_digit(16).context("a chunk's size is not hexadecimal")?;
                            *size = Some(size_so_far.unwrap_or(0) * 16 + digit as usize);
                        }
                    }
                }
            }
        }
        Ok(None)
    }
}

/// The index behind the first `mark` in `bytes`.
fn end_of(mark: &[u8], bytes: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|window| window == mark).map(|start| start + mark.len())
}
