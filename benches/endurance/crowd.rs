//! The crowd: publishers, subscribers that come and go, and readers of history, all on one thread.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use fastrand::Rng;
use memchr::{memchr, memmem};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::common::load::publisher::Exchange;

/// Messages published in a second.
const RATE: f64 = 300.0;
/// The channels they are on, evenly. More: fewer subscribers get each.
const CHANNELS: usize = 12;
/// The bytes of most texts, and of one in a hundred.
const SHORT: std::ops::Range<usize> = 20..2_000;
const LONG: usize = 30_000;
/// Connections that publish. A publish waits where its connection has no answer to the last.
const PUBLISHERS: usize = 8;
/// Subscribers at a time, and how many seconds each stays.
const SUBSCRIBERS: usize = 600;
const STAY: std::ops::Range<f64> = 1.0..60.0;
/// Time between two reads of the history.
const READ: Duration = Duration::from_millis(500);
/// The tokens: subscribers first, then publishers, then the reader.
const READER: usize = SUBSCRIBERS + PUBLISHERS;

/// All connections, and what is due next.
pub(crate) struct Crowd {
    address: SocketAddr,
    poll: Poll,
    events: Events,
    random: Rng,
    buffer: Box<[u8]>,
    text: String,
    begun: Instant,
    next_read: Instant,
    subscribers: Vec<Subscriber>,
    publishers: Vec<(TcpStream, Exchange)>,
    reader: Option<TcpStream>,
    counts: Counts,
}

struct Subscriber {
    stream: TcpStream,
    leaves: Instant,
    last_id: Option<String>,
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    published: u32,
    came: usize,
    /// Streams that the hub ended.
    ended: usize,
    bytes: usize,
    read: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { published, came, ended, bytes, read } = self;
        let megabytes = bytes / 1_000_000;
        write!(out, "{published} published, {came} came, {ended} ended, {megabytes} MB sent, {read} read")
    }
}

impl Crowd {
    /// All publishers and subscribers of the hub at this address.
    pub(crate) fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let mut random = Rng::with_seed(1);
        let now = Instant::now();
        let mut crowd = Crowd {
            address,
            poll: Poll::new()?,
            events: Events::with_capacity(2 * READER),
            buffer: vec![0; 64 << 10].into(),
            text: std::iter::repeat_with(|| random.alphanumeric()).take(LONG).collect(),
            random,
            begun: now,
            next_read: now,
            subscribers: Vec::new(),
            publishers: Vec::new(),
            reader: None,
            counts: Counts::default(),
        };
        for index in 0..PUBLISHERS {
            let stream = crowd.connect(Some(Token(SUBSCRIBERS + index)))?;
            crowd.publishers.push((stream, Exchange::new()));
        }
        for index in 0..SUBSCRIBERS {
            let subscriber = crowd.subscriber(index, None)?;
            crowd.subscribers.push(subscriber);
        }
        Ok(crowd)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Reads what has come, and does what is due.
    pub(crate) fn act(&mut self) -> anyhow::Result<()> {
        self.take_what_came()?;
        let now = Instant::now();
        for index in 0..SUBSCRIBERS {
            if self.subscribers[index].leaves <= now {
                let last_id = self.subscribers[index].last_id.take();
                self.subscribers[index] = self.subscriber(index, last_id)?;
            }
        }
        if self.reader.is_none() && self.next_read <= now {
            self.next_read = now + READ;
            let mut reader = self.connect(Some(Token(READER)))?;
            let (address, channel) = (self.address, self.random.usize(..CHANNELS));
            let path = format!("/messages?channel=c{channel}&last={}", self.random.usize(1..=500));
            let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
            reader.write_all(head.as_bytes())?;
            self.reader = Some(reader);
        }
        let due = (now - self.begun).as_secs_f64() * RATE;
        while f64::from(self.counts.published) < due {
            // In turn: the hub closes a connection that is idle for long.
            let publisher = self.counts.published as usize % PUBLISHERS;
            if !self.publishers[publisher].1.is_idle() {
                break;
            }
            self.publish(publisher)?;
        }
        Ok(())
    }

    /// A connection. Without a token it is never read.
    fn connect(&self, token: Option<Token>) -> anyhow::Result<TcpStream> {
        let stream = std::net::TcpStream::connect(self.address).context("can't connect")?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        if let Some(token) = token {
            self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
        }
        Ok(stream)
    }

    /// A new subscriber: of one channel or two, in one of three formats. It may go on after `last_id`; one in
    /// ten never reads.
    fn subscriber(&mut self, index: usize, last_id: Option<String>) -> anyhow::Result<Subscriber> {
        let mut path = format!("/events?channel=c{}", self.random.usize(..CHANNELS));
        if self.random.u8(..4) == 0 {
            path += &format!("&channel=c{}", self.random.usize(..CHANNELS));
        }
        let mut headers = format!("host: {}\r\n", self.address);
        match (self.random.u8(..4), &last_id) {
            (0, _) => path += "&last=50",
            (1 | 2, Some(id)) => headers += &format!("last-event-id: {id}\r\n"),
            _ => {}
        }
        match self.random.u8(..10) {
            0 => headers += "accept: application/x-ndjson\r\n",
            1 | 2 => path += "&format=message",
            _ => {}
        }
        let reads = self.random.u8(..10) > 0;
        let mut stream = self.connect(reads.then_some(Token(index)))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\n{headers}\r\n").as_bytes())?;
        let stay = STAY.start + self.random.f64() * (STAY.end - STAY.start);
        self.counts.came += 1;
        Ok(Subscriber { stream, leaves: Instant::now() + Duration::from_secs_f64(stay), last_id })
    }

    /// Publishes a message from this publisher, which is idle. One in two has an idempotency key.
    fn publish(&mut self, index: usize) -> anyhow::Result<()> {
        let length = if self.random.u8(..100) == 0 { LONG } else { self.random.usize(SHORT) };
        let channel = self.random.usize(..CHANNELS);
        let body = format!("{{\"channel\":\"c{channel}\",\"data\":\"{}\"}}", &self.text[..length]);
        let (address, number, length) = (self.address, self.counts.published, body.len());
        let key = number.is_multiple_of(2).then(|| format!("idempotency-key: {number}\r\n"));
        let head = format!(
            "POST /messages HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n{}\r\n",
            key.unwrap_or_default()
        );
        let (stream, exchange) = &mut self.publishers[index];
        exchange.begin(None);
        stream.write_all((head + &body).as_bytes()).context("can't POST")?;
        self.counts.published += 1;
        Ok(())
    }

    fn take_what_came(&mut self) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(Duration::ZERO)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(()),
            result => result?,
        }
        for event in &self.events {
            match event.token() {
                Token(READER) => {
                    let Some(reader) = &mut self.reader else { continue };
                    if !read_all(reader, &mut self.buffer, |_| Ok(()))? {
                        self.reader = None;
                        self.counts.read += 1;
                    }
                }
                Token(index @ SUBSCRIBERS..) => {
                    let (stream, exchange) = &mut self.publishers[index - SUBSCRIBERS];
                    let is_open = read_all(stream, &mut self.buffer, |bytes| exchange.take(bytes).map(drop))?;
                    if !is_open {
                        bail!("the hub closed a publisher's connection");
                    }
                }
                Token(index) => {
                    let Subscriber { stream, leaves, last_id } = &mut self.subscribers[index];
                    let is_open = read_all(stream, &mut self.buffer, |bytes| {
                        self.counts.bytes += bytes.len();
                        if let Some(id) = last_id_in(bytes) {
                            *last_id = Some(String::from_utf8_lossy(id).into_owned());
                        }
                        Ok(())
                    })?;
                    if !is_open {
                        self.counts.ended += 1;
                        *leaves = Instant::now();
                    }
                }
            }
        }
        Ok(())
    }
}

/// The last id that is whole in these bytes of a stream.
fn last_id_in(bytes: &[u8]) -> Option<&[u8]> {
    let from = &bytes[memmem::rfind(bytes, b"id: ")? + b"id: ".len()..];
    Some(&from[..memchr(b'\n', from)?])
}

/// Reads all bytes that are there. False at the end of the connection.
///
/// # Errors
/// If `take` fails.
fn read_all(
    stream: &mut TcpStream,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<bool> {
    loop {
        match stream.read(buffer) {
            Ok(0) => return Ok(false),
            Ok(length) => take(&buffer[..length])?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_closed) => return Ok(false),
        }
    }
}
