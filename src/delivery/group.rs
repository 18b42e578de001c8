//! A group: subscribers that listen to the same channels in the same format and framing, and were sent the
//! same messages. They share one subscription. A group is data: its [`Shard`](super::shard::Shard) hears for
//! it, and has it send a few writes at a time.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use super::catch_up::CatchUp;
use super::chunks::{Chunks, Framing, Unsent};
use super::socket::Socket;
use super::stream::{self, Delivery};
use crate::frame::{self, Format};
use crate::hub::{Due, Next, NotHeld, Reason, Subscriber, Subscription};
use crate::journal::{Channels, Entry};

/// The members of a group, and what they are sent.
#[derive(Debug)]
pub(super) struct Group {
    /// Where all members are.
    pub(super) subscription: Subscription,
    format: Format,
    framing: Framing,
    /// Whether the shard will have the group go on without any event.
    pub(super) is_queued: bool,
    members: Slab<Member>,
    state: State,
    /// When the last messages or keep-alives were sent.
    active: Instant,
    /// The step of the wheel in which the group is to be asked for a keep-alive.
    pub(super) step: u8,
}

/// A subscriber in a group.
#[derive(Debug)]
struct Member {
    socket: Socket,
    subscriber: Subscriber,
    /// Each message up to this sequence was sent before the member joined. The group's position may be lower.
    position: u64,
}

/// What a group does.
#[derive(Debug)]
enum State {
    /// It waits for messages, or is to read what is in memory.
    Idle,
    Sending(Box<Round>),
    /// It waits for more messages after a long round.
    Paused(Box<Pause>),
    /// The journal's file is read.
    Reading,
}

/// One round: bytes are written to one member's socket after the other.
#[derive(Debug)]
struct Round {
    what: What,
    /// What most members are sent.
    all: Arc<Chunks>,
    /// The key of the next member.
    next: usize,
    /// The key after that of the last member.
    end: usize,
    /// The members to which something is due once the round is over.
    due: BTreeSet<usize>,
    began: Instant,
}

#[derive(Debug)]
enum What {
    Messages {
        entries: Arc<[Arc<Entry>]>,
        first: u64,
        /// Whether every subscriber gets each of them.
        is_for_all: bool,
    },
    /// A gap, after which this is the position.
    Gap(u64),
    /// A keep-alive, if the group `was_idle`, with the id of `position` for members that were not sent it.
    KeepAlive { was_idle: bool, position: u64 },
}

#[derive(Debug)]
struct Pause {
    until: Instant,
    /// How many messages end the pause.
    missing: usize,
}

/// Messages with their chunks: groups that are sent the same share them.
#[derive(Debug)]
pub(super) struct Encoded {
    /// Where the messages were heard. Empty if not all of those were sent.
    places: Vec<u32>,
    entries: Arc<[Arc<Entry>]>,
    chunks: Arc<Chunks>,
    key: (Format, Framing),
}

/// What a group is to do next.
#[derive(Debug)]
pub(super) enum Turn {
    /// Nothing, until there is an event.
    Wait,
    /// To go on.
    GoOn,
    /// To wait until then.
    Pause(Instant),
    /// To read the journal.
    Read,
}

impl Group {
    /// A group with no members, at the position of this delivery.
    pub(super) fn new(first: &Delivery, framing: Framing) -> Self {
        let subscription = first.subscription.fork(first.subscription.position(), None);
        let (members, state, active) = (Slab::new(), State::Idle, Instant::now());
        let format = first.format;
        Group { subscription, format, framing, is_queued: false, members, state, active, step: 0 }
    }

    /// What the members have in common, and no other group of the shard has.
    pub(super) fn identity(&self) -> (&Channels, Format, Framing) {
        (self.subscription.channels(), self.format, self.framing)
    }

    /// Whether the group can be forgotten.
    pub(super) fn is_over(&self) -> bool {
        self.members.is_empty() && !matches!(self.state, State::Reading)
    }

    /// Makes the subscriber a member. All that the group was sent was sent to the subscriber, and maybe more.
    pub(super) fn insert(&mut self, joining: CatchUp) -> usize {
        let CatchUp { socket, delivery: Delivery { mut subscriber, subscription, .. }, .. } = joining;
        subscriber.share_channels(self.subscription.channels());
        if self.members.len() == self.members.capacity() {
            // Otherwise the slab would double its capacity, and half of it could be empty.
            self.members.reserve_exact(self.members.len() / 8 + 1);
        }
        self.members.insert(Member { socket, subscriber, position: subscription.position() })
    }

    /// Removes the member if it is gone. If not, this waker watches its socket and its pass, and what is due
    /// is sent. `removed` gets the member if its socket is full.
    pub(super) fn check(
        &mut self,
        key: usize,
        waker: &Waker,
        keep_alive: Duration,
        removed: &mut Vec<CatchUp>,
    ) {
        let Some(member) = self.members.get_mut(key) else { return };
        let mut cx = Context::from_waker(waker);
        if let Poll::Ready(reason) = member.socket.poll_gone(&mut cx) {
            member.subscriber.end(reason);
            self.members.remove(key);
        } else if member.subscriber.poll_due(&mut cx).is_ready() {
            match &mut self.state {
                // The group's position is not the member's before it is sent the round's bytes.
                State::Sending(round) if (round.next..round.end).contains(&key) => {
                    round.due.insert(key);
                }
                _ => self.send_due(key, keep_alive, removed),
            }
        }
    }

    /// Sends the member, which was sent all that the group was sent, what is due to it.
    fn send_due(&mut self, key: usize, keep_alive: Duration, removed: &mut Vec<CatchUp>) {
        let Some(member) = self.members.get_mut(key) else { return };
        match member.subscriber.take_due() {
            Some(Due::Expiring(expires)) => {
                let chunks = stream::expiring(expires, self.format, self.framing);
                match member.socket.send(&chunks, 0) {
                    Ok(sent) if sent == chunks.len() => {}
                    Ok(sent) => {
                        let mut member = self.remove(key, keep_alive);
                        member.unsent = chunks.cut(sent, &self.subscription).unsent;
                        removed.push(member);
                    }
                    Err(reason) => {
                        member.subscriber.end(reason);
                        self.members.remove(key);
                    }
                }
            }
            Some(Due::End(reason)) => removed.extend(self.remove(key, keep_alive).end(reason)),
            None => {}
        }
    }

    /// Removes the member, which was sent all that the group was sent.
    fn remove(&mut self, key: usize, keep_alive: Duration) -> CatchUp {
        self.members.remove(key).leave(None, &self.subscription, self.format, keep_alive)
    }

    /// Sends the messages at the `wanted` places of `messages` next, if the group waits for them and they fit
    /// into a page; else it reads them in the journal. Each message up to `before` was heard earlier. `same`
    /// is what the last group was sent, and becomes what this one is sent. Returns whether the group is to go
    /// on now.
    pub(super) fn hear(
        &mut self,
        before: u64,
        wanted: &[(u32, u32)],
        messages: &[Option<Arc<Entry>>],
        same: &mut Option<Encoded>,
    ) -> bool {
        self.subscription.advance(before);
        if !self.is_idle() {
            return self.fall_behind(wanted.len());
        }
        let position = self.subscription.position();
        let is_same = |same: &Encoded| {
            let places = wanted.iter().map(|(_, place)| place);
            same.key == (self.format, self.framing)
                && same.places.iter().eq(places)
                && same.entries.first().is_some_and(|first| sequence(first) > position)
        };
        if !same.as_ref().is_some_and(is_same) {
            let entries = wanted.iter().map(|(_, place)| messages[*place as usize].clone());
            let Some(mut entries) = entries.collect::<Option<Vec<_>>>() else { return self.fall_behind(1) };
            entries.retain(|entry| sequence(entry) > position);
            let bytes = entries.iter().map(|entry| entry.weight()).sum();
            if entries.len() > 1 && !self.subscription.fits_page(entries.len(), bytes) {
                return self.fall_behind(wanted.len());
            }
            let is_whole = entries.len() == wanted.len();
            let places = wanted.iter().filter(|_| is_whole).map(|(_, place)| *place).collect();
            let chunks = Arc::new(Chunks::messages(&entries, self.format, self.framing));
            let key = (self.format, self.framing);
            *same = Some(Encoded { places, entries: entries.into(), chunks, key });
        }
        let Some(Encoded { entries, chunks, .. }) = same else { return false };
        let Some(last) = entries.last() else { return false };
        self.subscription.advance(sequence(last));
        self.active = Instant::now();
        self.begin(What::messages(Arc::clone(entries)), Arc::clone(chunks));
        true
    }

    fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle) && !self.subscription.is_behind()
    }

    /// Sends what was read in the journal next.
    fn begin_next(&mut self, next: Next) {
        self.active = Instant::now();
        let chunks = Arc::new(stream::encode(&next, self.format, self.framing));
        match next {
            Next::Messages(entries) => self.begin(What::messages(entries.into()), chunks),
            Next::Gap { position, .. } => self.begin(What::Gap(position.sequence), chunks),
        }
    }

    /// Sends every member a keep-alive if the group was idle for so long. Sends the current id to members
    /// that were not sent it, as `except` left them out, or messages were on other channels. `announced` is
    /// the sequence of the last message announced. Returns after what time this is to be called again.
    pub(super) fn keep_alive(&mut self, keep_alive: Duration, announced: u64) -> Duration {
        let now = Instant::now();
        if self.is_idle() {
            let was_idle = now.duration_since(self.active) >= keep_alive;
            if was_idle {
                self.active = now;
                self.subscription.advance(announced);
            }
            let position = self.subscription.position();
            let with_id = frame::keep_alive(self.format, Some(self.subscription.id()));
            let chunks = Chunks::own(with_id, Some((0, position)), self.framing);
            self.begin(What::KeepAlive { was_idle, position }, Arc::new(chunks));
        }
        match keep_alive.saturating_sub(now.duration_since(self.active)) {
            // The group is still sending.
            Duration::ZERO => keep_alive,
            left => left,
        }
    }

    fn begin(&mut self, what: What, all: Arc<Chunks>) {
        let end = self.members.iter().next_back().map_or(0, |(key, _)| key + 1);
        let (due, began) = (BTreeSet::new(), Instant::now());
        self.state = State::Sending(Box::new(Round { what, all, next: 0, end, due, began }));
    }

    /// Records that so many messages may have been announced that only the journal has. Returns whether the
    /// group is to read them now.
    pub(super) fn fall_behind(&mut self, messages: usize) -> bool {
        self.subscription.fall_behind();
        match &mut self.state {
            State::Idle => true,
            State::Sending(_) | State::Reading => false,
            State::Paused(pause) => {
                pause.missing = pause.missing.saturating_sub(messages);
                pause.missing == 0
            }
        }
    }

    /// Goes on with what was read in the journal. `subscription` has read it.
    pub(super) fn read(&mut self, subscription: Subscription, next: Option<Next>) {
        self.state = State::Idle;
        self.subscription = subscription;
        // More may have been announced meanwhile.
        self.subscription.fall_behind();
        if let Some(next) = next {
            self.begin_next(next);
        }
    }

    /// Writes to at most `most` members, which must be at least one. `removed` gets those whose socket is
    /// full. Returns how many writes there were, and what is next.
    pub(super) fn go_on(
        &mut self,
        most: usize,
        keep_alive: Duration,
        removed: &mut Vec<CatchUp>,
    ) -> (usize, Turn) {
        if !matches!(self.state, State::Sending(_) | State::Reading) {
            self.state = State::Idle;
            match self.subscription.next_held() {
                Ok(Some(next)) => self.begin_next(next),
                Ok(None) => return (0, Turn::Wait),
                Err(NotHeld) => {
                    self.state = State::Reading;
                    return (0, Turn::Read);
                }
            }
        }
        let State::Sending(round) = &mut self.state else { return (0, Turn::Wait) };
        let mut written = 0;
        while round.next < round.end && written < most {
            let key = round.next;
            round.next += 1;
            let Some(member) = self.members.get_mut(key) else { continue };
            written += 1;
            let own = round.own(member, self.format, self.framing);
            let chunks = own.as_ref().unwrap_or(&round.all);
            let cut = match member.socket.send(chunks, 0) {
                Ok(sent) if sent == chunks.len() => {
                    member.subscriber.was_sent(chunks.counts);
                    continue;
                }
                Ok(sent) => Ok(chunks.cut(sent, &self.subscription)),
                Err(reason) => Err(reason),
            };
            let mut member = self.members.remove(key);
            match cut {
                Ok(cut) => {
                    member.subscriber.was_sent(cut.counts);
                    let mut member = member.leave(cut.position, &self.subscription, self.format, keep_alive);
                    member.unsent = cut.unsent;
                    removed.push(member);
                }
                Err(reason) => member.subscriber.end(reason),
            }
        }
        if round.next < round.end {
            return (written, Turn::GoOn);
        }
        while let State::Sending(round) = &mut self.state
            && let Some(key) = round.due.first().copied()
        {
            if written >= most {
                return (written, Turn::GoOn);
            }
            round.due.remove(&key);
            written += 1;
            self.send_due(key, keep_alive, removed);
        }
        let pause = if let State::Sending(round) = &self.state { round.pause() } else { None };
        self.state = State::Idle;
        match pause {
            Some(pause) => {
                let until = pause.until;
                self.state = State::Paused(Box::new(pause));
                (written, Turn::Pause(until))
            }
            None if self.subscription.is_behind() => (written, Turn::GoOn),
            None => (written, Turn::Wait),
        }
    }

    /// Ends the stream of every member. `removed` gets those whose socket is full.
    pub(super) fn end(&mut self, reason: Reason, keep_alive: Duration, removed: &mut Vec<CatchUp>) {
        for member in self.members.drain() {
            let member = member.leave(None, &self.subscription, self.format, keep_alive);
            removed.extend(member.end(reason));
        }
    }
}

impl Member {
    /// The member without its group, at this position; without one, all that its group was sent was sent to
    /// the member too.
    fn leave(
        self,
        position: Option<u64>,
        group: &Subscription,
        format: Format,
        keep_alive: Duration,
    ) -> CatchUp {
        let Member { socket, subscriber, position: own } = self;
        let position = position.unwrap_or_else(|| own.max(group.position()));
        let subscription = group.fork(position, Some(subscriber.address()));
        let delivery = Delivery::resumed(subscriber, subscription, format, keep_alive);
        CatchUp { socket, delivery, unsent: Unsent::Nothing }
    }
}

fn sequence(entry: &Arc<Entry>) -> u64 {
    entry.message.id.sequence
}

impl What {
    fn messages(entries: Arc<[Arc<Entry>]>) -> Self {
        let is_for_all = entries.iter().all(|entry| entry.message.except.is_none());
        What::Messages { first: entries.first().map_or(0, sequence), is_for_all, entries }
    }
}

impl Round {
    /// The chunks for this member, `None` for `all`. A member that gets only some of the messages is sent
    /// chunks of its own.
    fn own(&self, member: &Member, format: Format, framing: Framing) -> Option<Chunks> {
        match &self.what {
            What::Messages { entries, first, is_for_all } => {
                if *is_for_all && member.position < *first {
                    return None;
                }
                let is_for_member =
                    |entry: &&Arc<Entry>| sequence(entry) > member.position && member.subscriber.wants(entry);
                let own: Vec<_> = entries.iter().filter(is_for_member).cloned().collect();
                (own.len() < entries.len()).then(|| Chunks::messages(&own, format, framing))
            }
            What::Gap(position) => (member.position > *position).then(Chunks::default),
            What::KeepAlive { was_idle, position } => {
                let is_before = member.position <= *position && member.subscriber.is_before(*position);
                (!is_before).then(|| match was_idle {
                    true => Chunks::own(frame::keep_alive(format, None), None, framing),
                    false => Chunks::default(),
                })
            }
        }
    }

    /// The pause after the round, if it took long for several messages: until as many messages have come
    /// again, which go out in one round then.
    fn pause(&self) -> Option<Pause> {
        /// The shortest round that is followed by a pause. Higher: busy groups have more rounds. Lower: a
        /// small group's messages would wait as well.
        const LONG: Duration = Duration::from_millis(2);
        /// The pause takes at most the round's time, divided by this. Higher: more rounds, of fewer messages.
        /// Lower: messages wait longer.
        const PAUSE: u32 = 8;
        let What::Messages { entries, .. } = &self.what else { return None };
        let time = self.began.elapsed();
        let is_long = entries.len() > 1 && time > LONG;
        is_long.then(|| Pause { until: Instant::now() + time / PAUSE, missing: entries.len() })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Read;

    use bytes::Bytes;
    use smallvec::smallvec;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;

    use super::super::wire::Wire;
    use super::*;
    use crate::auth::{Caller, Grants, Token};
    use crate::hub::{self, Hub, Request, Start};
    use crate::journal::{Journal, KeyLimits, Place, Retention, Rules};
    use crate::limits::{Budget, Network};
    use crate::message::{ChannelName, Data, Draft, EventName, Time};

    /// A hub that keeps one message, and its subscriber, which listens at this socket.
    pub(crate) async fn subscriber(stream: TcpStream) -> (Hub, CatchUp) {
        let hub = hub();
        let subscriber = subscribe(&hub, stream, &Caller::anyone()).await;
        (hub, subscriber)
    }

    fn hub() -> Hub {
        let retention = Retention { messages: 1, bytes: 1, age: Duration::MAX, rules: Rules::default() };
        let keys = KeyLimits { count: 0, window: Duration::ZERO };
        let budget = Budget::unlimited();
        let (journal, committed) = Journal::open(&Place::Memory, retention, keys, &budget).unwrap();
        let options = hub::Options {
            max_subscribers: 2,
            max_subscribers_per_address: 2,
            max_readers: 0,
            max_readers_per_address: 0,
            replay_page: 1,
        };
        Hub::new(journal, committed, &options, budget).0
    }

    async fn subscribe(hub: &Hub, stream: TcpStream, caller: &Caller) -> CatchUp {
        let request = Request { channels: Channels::new([]), start: Start::Live, subscriber: None };
        let address = stream.peer_addr().unwrap().into();
        let (subscriber, subscription) = hub.subscribe(address, caller, request).await.unwrap();
        let options = stream::Options {
            keep_alive: Duration::MAX,
            retry_min: Duration::ZERO,
            retry_max: Duration::ZERO,
        };
        let delivery = Delivery::new(subscriber, subscription, caller, Format::Bare, &[], &options);
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let socket = Socket::new(Wire::Tcp(stream), Framing::Chunked, (None, permit)).unwrap();
        CatchUp { socket, delivery, unsent: Unsent::Nothing }
    }

    /// Somebody with a token that is good for so long.
    fn caller(seconds: Option<u64>) -> Caller {
        let expires = seconds.map(|seconds| Time::now().as_seconds() + seconds);
        Caller::with_token(Token { expires, ..Token::default() }, Grants::all())
    }

    pub(crate) async fn publish(hub: &Hub, text: &str) {
        let (channel, event, data) = (ChannelName::default(), EventName::default(), Data::text(text));
        let draft = Draft { channel, event, data, except: None, ttl: None };
        let network = Network::from(std::net::IpAddr::from([127, 0, 0, 1]));
        hub.publish(network, smallvec![draft], None, Budget::unlimited().try_lease(0).unwrap())
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_member_whose_socket_is_full_gets_its_last_chunk_once_it_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut reader = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_hub, joining) = subscriber(listener.accept().await.unwrap().0).await;
        let mut group = Group::new(&joining.delivery, Framing::Chunked);
        group.insert(joining);
        let filler = Chunks::from(Bytes::from(vec![b'x'; 1 << 20]));
        while group.members[0].socket.send(&filler, 0).unwrap() > 0 {}
        let mut removed = Vec::new();
        group.end(Reason::Shutdown, Duration::MAX, &mut removed);
        assert_eq!((group.is_over(), removed.len()), (true, 1));
        let read = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        for member in removed {
            let never = CancellationToken::new();
            assert!(member.run(Duration::MAX, &never, &never).await.is_none());
        }
        assert!(read.join().unwrap().ends_with(b"x0\r\n\r\n"));
    }

    #[tokio::test]
    async fn in_the_midst_of_a_round_what_is_due_to_a_member_waits_for_its_part() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (hub, mut members, mut readers) = (hub(), Vec::new(), Vec::new());
        for _ in 0..2 {
            readers.push(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let (stream, _) = listener.accept().await.unwrap();
            members.push(subscribe(&hub, stream, &caller(None)).await);
        }
        let mut group = Group::new(&members[0].delivery, Framing::Chunked);
        for member in members {
            group.insert(member);
        }
        publish(&hub, "x").await;
        group.subscription.fall_behind();
        let mut removed = Vec::new();
        assert!(matches!(group.go_on(1, Duration::MAX, &mut removed), (1, Turn::GoOn)));
        assert_eq!(hub.end_revoked(|_| true), 2);
        for (key, left) in [(0, 1), (1, 1)] {
            group.check(key, Waker::noop(), Duration::MAX, &mut removed);
            assert_eq!(group.members.len(), left);
        }
        assert!(matches!(group.go_on(1, Duration::MAX, &mut removed), (1, Turn::GoOn)));
        assert_eq!(group.members.len(), 1);
        assert!(matches!(group.go_on(1, Duration::MAX, &mut removed), (1, Turn::Wait)));
        assert!(group.is_over() && removed.is_empty());
        for mut reader in readers {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            let (message, end) = text.split_once("event: tabcast:expired\n").unwrap();
            assert!(message.contains("data: x\n\n") && end.ends_with("\n\n\r\n0\r\n\r\n"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_member_whose_socket_is_full_is_announced_its_end_once_it_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut reader = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let hub = hub();
        let joining = subscribe(&hub, listener.accept().await.unwrap().0, &caller(Some(3))).await;
        let pass = Arc::clone(joining.delivery.subscriber.pass().unwrap());
        let mut group = Group::new(&joining.delivery, Framing::Chunked);
        group.insert(joining);
        let mut removed = Vec::new();
        group.check(0, Waker::noop(), Duration::MAX, &mut removed);
        assert_eq!((group.members.len(), removed.len()), (1, 0), "nothing is due");
        let due = std::future::poll_fn(|cx| pass.poll_due(cx)).await;
        assert!(matches!(due, Due::Expiring(_)));
        let filler = Chunks::from(Bytes::from(vec![b'x'; 1 << 20]));
        while group.members[0].socket.send(&filler, 0).unwrap() > 0 {}
        group.check(0, Waker::noop(), Duration::MAX, &mut removed);
        assert_eq!((group.members.len(), removed.len()), (0, 1));
        hub.renew(&pass.stream(), &caller(None)).unwrap();
        let read = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let never = CancellationToken::new();
        let member = removed.remove(0).run(Duration::MAX, &never, &never).await;
        assert!(member.is_some_and(|member| member.has_caught_up()));
        let read = String::from_utf8(read.join().unwrap()).unwrap();
        assert!(read.trim_start_matches('x').contains("event: tabcast:expiring\n"));
    }
}
