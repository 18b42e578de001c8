//! A group: subscribers that listen to the same channels in the same format and framing, and were sent the
//! same messages. They share one subscription. A batch of messages wakes it once, is encoded once, and is
//! written to one socket after the other.

use std::mem;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use slab::Slab;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use super::catch_up::CatchUp;
use super::chunks::{Chunks, Framing, Unsent};
use super::socket::Socket;
use super::stream::{Delivery, Step, Stream};
use crate::frame;
use crate::hub::{Next, Reason, Subscriber};
use crate::journal::Entry;

/// The writes before other tasks have their turn, of some 5 µs each. Higher: publishers and new connections
/// wait longer. Lower: a round is interrupted more often.
const TURN: usize = 64;

/// The members of a group, and their stream.
#[derive(Debug)]
pub(super) struct Group {
    /// The stream that all members are sent.
    stream: Stream,
    framing: Framing,
    members: Slab<Member>,
    /// Subscribers that are no longer members, and must catch up by themselves.
    removed: Vec<CatchUp>,
    readiness: Arc<Readiness>,
    /// How many writes there were, in all rounds.
    written: usize,
}

/// A subscriber in a group.
#[derive(Debug)]
struct Member {
    socket: Socket,
    subscriber: Subscriber,
    /// Each message up to this sequence was sent before the member joined. The group's position may be lower.
    position: u64,
}

/// An event that a group has to handle.
#[derive(Debug)]
pub(super) enum Event {
    /// The next step of the stream.
    Step(Step),
    /// The sockets of the members with these keys can be read from.
    Readable(Vec<usize>),
}

impl Group {
    /// A group with its first member, whose stream becomes the group's.
    pub(super) fn new(first: CatchUp) -> Self {
        let CatchUp { socket, delivery: Delivery { subscriber, mut stream, .. }, .. } = first;
        stream.subscription.read_for_group();
        let (position, framing) = (stream.subscription.position(), socket.framing);
        let (members, removed) = (Slab::new(), Vec::new());
        let mut group = Group { stream, framing, members, removed, readiness: Arc::default(), written: 0 };
        group.insert(Member { socket, subscriber, position });
        group
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Waits for the next event. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Event {
        tokio::select! {
            step = self.stream.next() => Event::Step(step),
            keys = self.readiness.wait() => Event::Readable(keys),
        }
    }

    /// Handles the event. Breaks at the end of the group's stream.
    pub(super) async fn handle(&mut self, event: Event) -> ControlFlow<Reason> {
        match event {
            Event::Step(Step::Next(Next::Messages(entries))) => self.broadcast(entries).await,
            Event::Step(Step::Next(gap)) => self.send_gap(&gap).await,
            Event::Step(Step::Tick { idle }) => self.keep_alive(idle).await,
            Event::Step(Step::End(reason)) => return ControlFlow::Break(reason),
            Event::Readable(keys) => keys.into_iter().for_each(|key| self.check(key)),
        }
        ControlFlow::Continue(())
    }

    /// Takes the subscribers that were removed since the last call, and must catch up by themselves.
    pub(super) fn take_removed(&mut self) -> Vec<CatchUp> {
        mem::take(&mut self.removed)
    }

    fn position(&self) -> u64 {
        self.stream.subscription.position()
    }

    /// Makes the subscriber a member, after sending it the messages that only the group was sent. Removes it
    /// at once if its socket is full, or if it has to read the journal.
    pub(super) async fn admit(&mut self, mut joining: CatchUp) {
        loop {
            let delivery = &mut joining.delivery;
            let before = delivery.stream.subscription.position();
            if before >= self.position() {
                break;
            }
            let Some(next) = delivery.stream.subscription.announced().await else {
                if delivery.stream.subscription.position() > before {
                    continue;
                }
                // The group has read messages that are not announced yet: `joining` must read them in the
                // journal too.
                delivery.stream.subscription.fall_behind();
                return self.removed.push(joining);
            };
            let Some(chunks) = delivery.encode(next, self.framing) else { continue };
            match joining.send(&chunks) {
                Ok(()) if joining.has_caught_up() => {}
                Ok(()) => return self.removed.push(joining),
                Err(reason) => return joining.delivery.subscriber.end(reason),
            }
        }
        let CatchUp { socket, delivery: Delivery { subscriber, stream, .. }, .. } = joining;
        self.insert(Member { socket, subscriber, position: stream.subscription.position() });
    }

    fn insert(&mut self, mut member: Member) {
        member.subscriber.share_channels(self.stream.subscription.channels());
        if self.members.len() == self.members.capacity() {
            // Otherwise the slab would double its capacity, and half of it could be empty.
            self.members.reserve_exact(self.members.len() / 8 + 1);
        }
        let key = self.members.insert(member);
        self.check(key);
    }

    /// Removes the member if it is gone. If not, its socket is watched, and the next [`Event::Readable`]
    /// leads here again.
    fn check(&mut self, key: usize) {
        let Some(member) = self.members.get_mut(key) else { return };
        let waker = Waker::from(Arc::new(Readable { key, readiness: Arc::clone(&self.readiness) }));
        if let std::task::Poll::Ready(reason) = member.socket.poll_gone(&mut Context::from_waker(&waker)) {
            member.subscriber.end(reason);
            self.members.remove(key);
        }
    }

    /// Sends these messages to every member they are for. A long round of several messages is followed by a
    /// pause, until as many messages have come again: they go out in one round.
    async fn broadcast(&mut self, entries: Vec<Arc<Entry>>) {
        /// The shortest round that is followed by a pause. Higher: busy groups have more rounds. Lower: a
        /// small group's messages would wait as well.
        const LONG: Duration = Duration::from_millis(2);
        /// The pause takes at most the round's time, divided by this. Higher: more rounds, of fewer messages.
        /// Lower: messages wait longer.
        const PAUSE: u32 = 8;
        let began = Instant::now();
        self.send_messages(&entries).await;
        let time = began.elapsed();
        if entries.len() > 1 && time > LONG {
            let _ = timeout(time / PAUSE, self.stream.subscription.gathered(entries.len())).await;
        }
    }

    /// Writes the messages to every member they are for. A member that gets only some of them is sent a chunk
    /// of its own.
    async fn send_messages(&mut self, entries: &[Arc<Entry>]) {
        let sequence = |entry: &Arc<Entry>| entry.message.id.sequence;
        let Some(first) = entries.first().map(sequence) else { return };
        let (format, framing) = (self.stream.format, self.framing);
        let all = Chunks::messages(entries, format, framing);
        let is_for_all = entries.iter().all(|entry| entry.message.except.is_none());
        self.send(&all, |member| {
            if is_for_all && member.position < first {
                return None;
            }
            let is_for_member =
                |entry: &&Arc<Entry>| sequence(entry) > member.position && member.subscriber.wants(entry);
            let own: Vec<_> = entries.iter().filter(is_for_member).cloned().collect();
            (own.len() < entries.len()).then(|| Chunks::messages(&own, format, framing))
        })
        .await;
    }

    /// Sends the gap to every member whose position is not after the gap.
    async fn send_gap(&mut self, gap: &Next) {
        let (chunks, position) = (self.stream.encode(gap, self.framing), self.position());
        self.send(&chunks, |member| (member.position > position).then(Chunks::default)).await;
    }

    /// Sends every member a keep-alive if the group was `idle`. Sends the current id to members that were not
    /// sent it, as `except` left them out, or messages were on other channels.
    async fn keep_alive(&mut self, idle: bool) {
        if idle {
            self.stream.subscription.advance().await;
        }
        let (format, framing, position) = (self.stream.format, self.framing, self.position());
        let with_id = frame::keep_alive(format, Some(self.stream.subscription.id()));
        let with_id = Chunks::own(with_id, Some((0, position)), framing);
        let bare = frame::keep_alive(format, None);
        self.send(&with_id, |member| {
            let is_before = member.position <= position && member.subscriber.is_before(position);
            let own = || if idle { Chunks::own(bare.clone(), None, framing) } else { Chunks::default() };
            (!is_before).then(own)
        })
        .await;
    }

    /// Writes to one socket after the other, and removes members whose socket is full. A member is sent its
    /// `own` chunks, or `all` if `own` returns `None`.
    async fn send(&mut self, all: &Chunks, own: impl Fn(&Member) -> Option<Chunks>) {
        let mut removed = Vec::new();
        for (key, member) in &mut self.members {
            let own = own(member);
            let chunks = own.as_ref().unwrap_or(all);
            match member.socket.send(chunks, 0) {
                Ok(sent) if sent == chunks.len() => member.subscriber.was_sent(chunks.counts),
                Ok(sent) => removed.push((key, Ok(chunks.cut(sent, &self.stream.subscription)))),
                Err(reason) => removed.push((key, Err(reason))),
            }
            self.written += 1;
            if self.written.is_multiple_of(TURN) {
                yield_now().await;
            }
        }
        for (key, cut) in removed {
            let Member { socket, mut subscriber, position } = self.members.remove(key);
            match cut {
                Ok(cut) => {
                    subscriber.was_sent(cut.counts);
                    let position = cut.position.unwrap_or_else(|| position.max(self.position()));
                    let stream = self.stream.fork(position, &subscriber);
                    let delivery = Delivery::resumed(subscriber, stream);
                    self.removed.push(CatchUp { socket, delivery, unsent: cut.unsent });
                }
                Err(reason) => subscriber.end(reason),
            }
        }
    }

    /// Ends the stream of every member, and of the subscribers that wait to join. Removes those whose socket
    /// is full.
    pub(super) fn end(&mut self, reason: Reason, waiting: impl Iterator<Item = CatchUp>) {
        let position = self.position();
        let waiting = waiting.map(|catch_up| (catch_up.socket, catch_up.delivery.subscriber));
        let members = self.members.drain().map(|member| (member.socket, member.subscriber));
        for (socket, mut subscriber) in members.chain(waiting) {
            subscriber.end(reason);
            let last = Chunks::last(socket.framing);
            if let Ok(sent) = socket.send(&last, 0)
                && sent < last.len()
            {
                let stream = self.stream.fork(position, &subscriber);
                let delivery = Delivery::resumed(subscriber, stream);
                self.removed.push(CatchUp { socket, delivery, unsent: Unsent::Last(sent) });
            }
        }
    }
}

/// The keys of the members whose sockets can be read from.
#[derive(Debug, Default)]
struct Readiness {
    keys: Mutex<Vec<usize>>,
    notify: Notify,
}

impl Readiness {
    /// Waits for at least one key, and takes all keys.
    async fn wait(&self) -> Vec<usize> {
        self.notify.notified().await;
        mem::take(&mut self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The waker of a member's socket: adds the member's key to `readiness`.
struct Readable {
    key: usize,
    readiness: Arc<Readiness>,
}

impl Wake for Readable {
    fn wake(self: Arc<Self>) {
        self.readiness.keys.lock().unwrap_or_else(PoisonError::into_inner).push(self.key);
        self.readiness.notify.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use bytes::Bytes;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;

    use super::super::stream;
    use super::*;
    use crate::frame::Format;
    use crate::hub::{self, Hub, Request, Start};
    use crate::journal::{Channels, Journal, KeyLimits, Place, Retention};
    use crate::limits::Budget;

    /// The one member of a new group, which listens at this socket.
    async fn member(stream: TcpStream) -> CatchUp {
        let retention = Retention { messages: 1, bytes: 1, age: Duration::MAX };
        let keys = KeyLimits { count: 0, window: Duration::ZERO };
        let budget = Budget::unlimited();
        let (journal, committed) = Journal::open(&Place::Memory, retention, keys, &budget).unwrap();
        let options = hub::Options {
            max_subscribers: 1,
            max_subscribers_per_address: 1,
            max_readers: 0,
            max_readers_per_address: 0,
            replay_page: 1,
        };
        let (hub, _) = Hub::new(journal, committed, &options, budget);
        let request = Request { channels: Channels::new([]), start: Start::Live, subscriber: None };
        let address = stream.peer_addr().unwrap();
        let (subscriber, subscription) = hub.subscribe(address, request).await.unwrap();
        let options = stream::Options {
            keep_alive: Duration::MAX,
            retry_min: Duration::ZERO,
            retry_max: Duration::ZERO,
        };
        let delivery = Delivery::new(subscriber, subscription, Format::Bare, &options);
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let socket = Socket::new(stream, Framing::Chunked, (None, permit)).unwrap();
        CatchUp { socket, delivery, unsent: Unsent::Nothing }
    }

    #[tokio::test]
    async fn a_member_whose_socket_is_full_gets_its_last_chunk_once_it_reads() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut reader = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut group = Group::new(member(listener.accept().await.unwrap().0).await);
        let filler = Chunks::from(Bytes::from(vec![b'x'; 1 << 20]));
        while group.members[0].socket.send(&filler, 0).unwrap() > 0 {}
        group.end(Reason::Shutdown, std::iter::empty());
        let removed = group.take_removed();
        assert_eq!((group.is_empty(), removed.len()), (true, 1));
        let read = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        for member in removed {
            let never = CancellationToken::new();
            assert!(member.run(&never, &never).await.is_none());
        }
        assert!(read.join().unwrap().ends_with(b"x0\r\n\r\n"));
    }
}
