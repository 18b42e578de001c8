//! The load: publishers and subscribers on nonblocking sockets, all on the caller's thread.
//!
//! A subscriber costs one read and one comparison per wake-up: what the first of them gets is parsed, and all
//! others have to get the same ([`record`]). Subscribers of channels of their own get different messages:
//! there each message is parsed, and has to be the one that is due ([`due`]). Each message has a number in
//! its text, by which its time of sending is known.

pub(crate) mod aside;
mod audience;
mod chunks;
pub(crate) mod dialect;
mod due;
pub(crate) mod publisher;
mod record;
mod subscriber;
mod taker;
mod tally;
mod text;

use std::io::{ErrorKind, Read, Write};
use std::mem;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use socket2::SockRef;

use aside::Aside;
use audience::Audience;
pub(crate) use dialect::Dialect;
use due::Due;
use publisher::{Exchange, Publisher};
use record::{Place, Reader, Record};
use subscriber::{Progress, Subscriber};
use tally::Tally;
use text::Numbered;
pub(crate) use text::{LENGTH, channel_name, text};

/// How long the load waits for bytes that have to come before it fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long the load waits for an event before it looks again whether it has to wait.
const POLL: Duration = Duration::from_millis(100);

/// How long a replay may take.
const LONGEST_REPLAY: Duration = Duration::from_secs(40);

/// How long it may take until all that were cut off are back.
const LONGEST_RETURN: Duration = Duration::from_secs(120);

/// Messages published during a replay, at most.
const PUBLISHED_MEANWHILE: usize = 10_000;

/// Subscribers that connect at once: well below any server's backlog. A connect to a full backlog takes a
/// second.
const CONNECTING: usize = 128;

/// The same, of those that come back at once: as many as fit in the hub's backlog.
const COMING_BACK: usize = 3_000;

/// The first token of a publisher. Lower tokens are subscribers'.
const FIRST_PUBLISHER: usize = 1 << 20;

/// The token of the publisher aside.
const ASIDE: Token = Token(usize::MAX - 1);

/// When a publisher sends its next message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// When its last is acknowledged.
    Answered,
    /// When its last is acknowledged, and fewer than so many messages are on their way to subscribers.
    Window(usize),
    /// At this interval, from one publisher. If an answer is late, the publisher catches up; a message counts
    /// from when it was due.
    Every(Duration),
}

/// The times of a run.
pub(crate) struct Run {
    /// From the first POST to the last answer and delivery.
    pub(crate) elapsed: Duration,
    /// From each POST to its answer.
    pub(crate) answer_times: Vec<Duration>,
    /// From each POST until the last subscriber has got the whole message.
    pub(crate) delivery_times: Vec<Duration>,
}

/// Publishers and subscribers of one server.
pub(crate) struct Load {
    address: SocketAddr,
    dialect: Dialect,
    poll: Poll,
    events: Events,
    subscribers: Vec<Subscriber>,
    /// The subscribers that are never read.
    stalled: Vec<TcpStream>,
    publishers: Vec<Publisher>,
    record: Record,
    /// Who listens to which channels; `None` if all listen to the same.
    audience: Option<Audience>,
    post: Numbered,
    /// Larger than what usually comes between two reads: a read that fills it is followed by another.
    buffer: Box<[u8]>,
    tally: Tally,
    /// How many subscribers have had their opening.
    open: usize,
    answer_times: Vec<Duration>,
}

/// Where a subscriber was when it was cut off.
pub(crate) struct Cut {
    place: Place,
}

impl Load {
    /// A load without publishers and subscribers.
    pub(crate) fn new(address: SocketAddr, dialect: Dialect) -> anyhow::Result<Self> {
        Load::numbered(address, dialect, LENGTH, 0)
    }

    /// The same, with texts of that length, numbered from `first` on.
    pub(crate) fn numbered(
        address: SocketAddr,
        dialect: Dialect,
        length: usize,
        first: usize,
    ) -> anyhow::Result<Self> {
        Ok(Load {
            address,
            dialect,
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            subscribers: Vec::new(),
            stalled: Vec::new(),
            publishers: Vec::new(),
            record: Record::new(dialect, length, first),
            audience: None,
            post: Numbered::new(dialect.post(address, None, &text(first, length)), first),
            buffer: vec![0; 256 << 10].into(),
            tally: Tally::default(),
            open: 0,
            answer_times: Vec::new(),
        })
    }

    /// A load whose subscribers listen to these channels, the first to those of the first entry. All messages
    /// are on channel 0, until [`aim`](Self::aim) says something else.
    pub(crate) fn on_channels(
        address: SocketAddr,
        dialect: Dialect,
        channels: Vec<Vec<usize>>,
    ) -> anyhow::Result<Self> {
        let mut load = Load::new(address, dialect)?;
        let post = dialect.post(address, Some(&channel_name(0)), &text(0, LENGTH));
        load.post = Numbered::new(post, 0);
        load.audience = Some(Audience::new(channels, || Due::new(dialect, LENGTH)));
        Ok(load)
    }

    /// From now on the message of a number is published on the channel that `aim` says.
    pub(crate) fn aim(&mut self, aim: impl FnMut(usize) -> usize + 'static) {
        if let Some(audience) = &mut self.audience {
            audience.aim = Box::new(aim);
        }
    }

    /// The number of the next message.
    pub(crate) fn next_number(&self) -> usize {
        self.record.first + self.tally.sent.len()
    }

    /// How many messages were received, summed over the subscribers.
    pub(crate) fn delivered(&self) -> usize {
        self.tally.delivered
    }

    /// Connects so many more subscribers. Returns when each has had its stream's opening.
    pub(crate) fn subscribe(&mut self, count: usize) -> anyhow::Result<()> {
        self.subscribe_all(count, |load| {
            let path = load.dialect.path(load.channels(load.subscribers.len()), None);
            load.dialect.subscribe(load.address, &path, None)
        })
    }

    /// Connects so many subscribers of channels of their own, of which each begins with the newest message of
    /// its channel: the one of the number that `newest` gives for that channel. Returns when all have it.
    pub(crate) fn subscribe_to_newest(
        &mut self,
        count: usize,
        newest: impl Fn(usize) -> usize,
    ) -> anyhow::Result<()> {
        let all = self.tally.delivered + count;
        for subscriber in 0..count {
            let number = newest(self.channels(subscriber)[0]);
            if let Some(audience) = &mut self.audience {
                audience.dues[subscriber].add(number);
            }
            let left = &mut self.tally.left;
            left.resize(left.len().max(number + 1), 0);
            left[number] += 1;
        }
        self.subscribe_all(count, |load| {
            let path = load.dialect.path(load.channels(load.subscribers.len()), None) + "&last=1";
            load.dialect.subscribe(load.address, &path, None)
        })?;
        self.wait_for(all)
    }

    fn subscribe_to(&mut self, path: &str, count: usize) -> anyhow::Result<()> {
        self.subscribe_all(count, |load| load.dialect.subscribe(load.address, path, None))
    }

    fn subscribe_all(&mut self, count: usize, request: impl Fn(&Self) -> Vec<u8>) -> anyhow::Result<()> {
        let all = self.subscribers.len() + count;
        let begun = Instant::now();
        while self.open < all {
            while self.subscribers.len() < all.min(self.open + CONNECTING) {
                self.connect_subscriber(&request(self), Place::after(self.record.len(), &self.record))?;
            }
            ensure!(begun.elapsed() < PATIENCE, "{} of {all} streams opened", self.open);
            self.take_what_comes(POLL)?;
        }
        Ok(())
    }

    /// Waits until so many messages were received.
    fn wait_for(&mut self, delivered: usize) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.tally.delivered < delivered {
            let come = self.tally.delivered;
            ensure!(begun.elapsed() < LONGEST_REPLAY, "{come} of {delivered} messages came");
            self.take_what_comes(POLL)?;
        }
        Ok(())
    }

    /// The channels of a subscriber; none if all listen to the same.
    fn channels(&self, subscriber: usize) -> &[usize] {
        self.audience.as_ref().map_or(&[], |audience| audience.channels(subscriber))
    }

    fn connect_subscriber(&mut self, request: &[u8], place: Place) -> anyhow::Result<()> {
        let mut stream = self.connect(Token(self.subscribers.len()))?;
        stream.write_all(request)?;
        self.subscribers.push(Subscriber { stream, progress: Progress::new(self.dialect), place });
        Ok(())
    }

    /// From now on the present subscribers stay connected and are never read.
    pub(crate) fn stall(&mut self) -> anyhow::Result<()> {
        for mut subscriber in self.subscribers.drain(..) {
            self.poll.registry().deregister(&mut subscriber.stream)?;
            self.stalled.push(subscriber.stream);
        }
        self.open = 0;
        Ok(())
    }

    /// Cuts all subscribers off at once.
    pub(crate) fn cut(&mut self) -> Vec<Cut> {
        self.open = 0;
        self.subscribers.drain(..).map(|subscriber| Cut { place: subscriber.place }).collect()
    }

    /// Reconnects them all at once, each with its last event ID.
    pub(crate) fn bring_back(&mut self, cut: &[Cut]) -> anyhow::Result<()> {
        for Cut { place } in cut {
            self.come_back(*place)?;
        }
        Ok(())
    }

    /// Reconnects them all at once, each with its last event ID, while a publisher aside publishes. Returns
    /// the time until each has all that it missed.
    pub(crate) fn bring_back_beside(&mut self, cut: &[Cut], aside: &mut Aside) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        let mut cut = cut.iter().peekable();
        self.poll.registry().register(aside.stream(), ASIDE, Interest::READABLE)?;
        while cut.peek().is_some() || self.open < self.subscribers.len() || self.on_their_way() > 0 {
            while self.subscribers.len() < self.open + COMING_BACK
                && let Some(Cut { place }) = cut.next()
            {
                self.come_back(*place)?;
                aside.look()?;
            }
            ensure!(begun.elapsed() < LONGEST_RETURN, "{} streams opened", self.open);
            self.take_beside(aside.wait().min(POLL), aside)?;
        }
        Ok(begun.elapsed())
    }

    /// Reconnects the next subscriber, which was there in the record.
    fn come_back(&mut self, place: Place) -> anyhow::Result<()> {
        let subscriber = self.subscribers.len();
        let last = match &self.audience {
            Some(audience) => audience.dues[subscriber].last()?,
            None => {
                let last = place.received.checked_sub(1);
                self.record.last(last.context("who has had no message has no last event ID")?)?
            }
        };
        let path = self.dialect.path(self.channels(subscriber), Some(&last));
        let request = self.dialect.subscribe(self.address, &path, Some(&last));
        self.connect_subscriber(&request, place)
    }

    /// Reads what comes, for that time.
    pub(crate) fn watch(&mut self, time: Duration) -> anyhow::Result<()> {
        let begun = Instant::now();
        while let Some(left) = time.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            self.take_what_comes(left.min(POLL))?;
        }
        Ok(())
    }

    /// The fewest keep-alives that a subscriber has received.
    pub(crate) fn least_keep_alives(&self) -> usize {
        self.subscribers.iter().map(|subscriber| subscriber.progress.keep_alives).min().unwrap_or_default()
    }

    /// Replays all of the `count` messages that the hub keeps to one subscriber of `path`, and returns the
    /// time from its request to the last of them. Messages published meanwhile may follow.
    ///
    /// # Errors
    /// If the subscriber gets anything but those messages, in order, once.
    pub(crate) fn replay(address: SocketAddr, path: &str, count: usize) -> anyhow::Result<Duration> {
        let mut load = Load::new(address, Dialect::Events)?;
        load.record.published = count + PUBLISHED_MEANWHILE;
        let begun = Instant::now();
        load.subscribe_to(path, 1)?;
        load.wait_for(count)?;
        Ok(begun.elapsed())
    }

    /// Connects so many publishers.
    pub(crate) fn connect_publishers(&mut self, count: usize) -> anyhow::Result<()> {
        for index in 0..count {
            let stream = self.connect(Token(FIRST_PUBLISHER + index))?;
            self.publishers.push(Publisher { stream, exchange: Exchange::new() });
        }
        self.record.in_order = self.publishers.len() <= 1;
        for due in self.audience.iter_mut().flat_map(|audience| &mut audience.dues) {
            due.in_order = self.record.in_order;
        }
        Ok(())
    }

    fn connect(&self, token: Token) -> anyhow::Result<TcpStream> {
        let stream = std::net::TcpStream::connect(self.address).context("can't connect")?;
        stream.set_nodelay(true)?;
        // Closed by a reset, so that the ports of tens of thousands of connections are free at once.
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        self.poll.registry().register(&mut stream, token, Interest::READABLE)?;
        Ok(stream)
    }

    /// Publishes for that time, then waits for all answers and deliveries.
    ///
    /// # Errors
    /// If a publish is not acknowledged, or a subscriber gets anything but what was published, in
    /// order, once.
    pub(crate) fn run(&mut self, pace: Pace, time: Duration) -> anyhow::Result<Run> {
        let begun = Instant::now();
        self.run_while(pace, |_| begun.elapsed() < time)
    }

    /// [`run`](Self::run) for so many messages, or some more if several are sent at once.
    pub(crate) fn run_messages(&mut self, pace: Pace, count: usize) -> anyhow::Result<Run> {
        self.run_while(pace, |sent| sent < count)
    }

    /// [`run`](Self::run) for as long as `more` says so, given the number of messages sent.
    pub(crate) fn run_while(
        &mut self,
        pace: Pace,
        mut more: impl FnMut(usize) -> bool,
    ) -> anyhow::Result<Run> {
        let begun = Instant::now();
        let sent_before = self.tally.sent.len();
        // When an answer or a message last came, and how many had come until then.
        let mut progress = (begun, 0);
        let mut over = false;
        // When the next message is due, for `Pace::Every`.
        let mut due = begun;
        self.answer_times.clear();
        self.tally.delivery_times.clear();
        loop {
            let answered = self.publishers.iter().all(|publisher| publisher.exchange.is_idle());
            let on_their_way = self.on_their_way();
            let come = self.tally.delivered + self.answer_times.len();
            if come != progress.1 {
                progress = (Instant::now(), come);
            }
            let late = progress.0.elapsed() > PATIENCE;
            ensure!(!late, "{on_their_way} messages are not delivered to all; all answered: {answered}");
            over = over || !more(self.tally.sent.len() - sent_before);
            let mut wait = POLL;
            match pace {
                _ if over && answered && on_their_way == 0 => {
                    return Ok(Run {
                        elapsed: begun.elapsed(),
                        answer_times: mem::take(&mut self.answer_times),
                        delivery_times: mem::take(&mut self.tally.delivery_times),
                    });
                }
                _ if over => {}
                Pace::Answered => self.post_where_idle(usize::MAX, None)?,
                Pace::Window(window) => self.post_where_idle(window.saturating_sub(on_their_way), None)?,
                Pace::Every(interval) => {
                    if answered && due <= Instant::now() {
                        self.post_where_idle(1, Some(due))?;
                        due += interval;
                    }
                    wait = due.saturating_duration_since(Instant::now());
                }
            }
            self.take_what_comes(wait)?;
        }
    }

    /// Sends a message from each publisher that waits for no answer, `most` at most. A message that was `due`
    /// while its publisher still waited counts as sent then.
    fn post_where_idle(&mut self, most: usize, due: Option<Instant>) -> anyhow::Result<()> {
        for publisher in
            self.publishers.iter_mut().filter(|publisher| publisher.exchange.is_idle()).take(most)
        {
            let number = self.record.first + self.tally.sent.len();
            let mut channel = 0;
            if let Some(audience) = &mut self.audience {
                channel = (audience.aim)(number);
                let listeners = audience.add(number, channel);
                self.tally.left.push(listeners);
                self.tally.finished += usize::from(listeners == 0);
            }
            let post = self.post.with(number, channel);
            self.tally.sent.push(publisher.exchange.begin(due));
            self.record.published = number + 1;
            publisher.stream.write_all(post).context("can't POST")?;
        }
        Ok(())
    }

    /// How many messages are still to be delivered to somebody.
    fn on_their_way(&self) -> usize {
        if self.subscribers.is_empty() { 0 } else { self.tally.sent.len() - self.tally.finished }
    }

    /// Waits this long for bytes, and reads all that are there.
    fn take_what_comes(&mut self, wait: Duration) -> anyhow::Result<()> {
        self.wait(wait)?;
        let events = mem::replace(&mut self.events, Events::with_capacity(0));
        let taken = events.iter().try_for_each(|event| self.take_from(event.token()));
        self.events = events;
        taken
    }

    fn wait(&mut self, time: Duration) -> anyhow::Result<()> {
        match self.poll.poll(&mut self.events, Some(time)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            result => Ok(result?),
        }
    }

    /// The same, with a look at the publisher aside after each connection that was read.
    fn take_beside(&mut self, wait: Duration, aside: &mut Aside) -> anyhow::Result<()> {
        self.wait(wait)?;
        aside.wake();
        aside.look()?;
        let events = mem::replace(&mut self.events, Events::with_capacity(0));
        let taken = events.iter().try_for_each(|event| {
            self.take_from(event.token())?;
            aside.look()
        });
        self.events = events;
        taken
    }

    /// Reads all bytes that are there on that connection.
    fn take_from(&mut self, token: Token) -> anyhow::Result<()> {
        if token == ASIDE {
            return Ok(());
        }
        let Token(token) = token;
        if token >= FIRST_PUBLISHER {
            let Publisher { stream, exchange } = &mut self.publishers[token - FIRST_PUBLISHER];
            return read_all(stream, &mut self.buffer, |bytes| {
                self.answer_times.extend(exchange.take(bytes)?);
                Ok(())
            });
        }
        let Subscriber { stream, progress, place } = &mut self.subscribers[token];
        let was_open = progress.is_open();
        if let Some(audience) = &mut self.audience {
            let due = &mut audience.dues[token];
            read_all(stream, &mut self.buffer, |bytes| progress.take(bytes, due))?;
            for number in due.take_came() {
                self.tally.deliver(number, number);
            }
        } else {
            let had = place.received;
            let mut reader = Reader { place, record: &mut self.record };
            read_all(stream, &mut self.buffer, |bytes| progress.take(bytes, &mut reader))?;
            let received = had..reader.place.received;
            self.tally.left.resize(self.record.len(), self.subscribers.len());
            for place in received {
                self.tally.deliver(place, self.record.number(place) - self.record.first);
            }
        }
        let Subscriber { stream, progress, .. } = &mut self.subscribers[token];
        if let Some(answer) = progress.take_answer() {
            stream.write_all(answer)?;
        }
        self.open += usize::from(progress.is_open() && !was_open);
        Ok(())
    }
}

/// Reads all bytes that are there.
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
                // A short read has emptied the socket (epoll(7)): another read would only cost time.
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
