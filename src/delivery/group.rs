//! A group: sockets of subscribers that listen to the same channels in the same format, and have seen
//! the same. They share one position in the journal: it is woken once for each batch of messages, which
//! is encoded once and written to one socket after the other.

use std::mem;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::sync::Notify;
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use super::catch_up::CatchUp;
use super::socket::{LAST_CHUNK, Socket, chunk, pieces};
use super::stream::{Delivery, Step, Stream, encode, messages};
use crate::frame;
use crate::hub::{Next, Reason, Subscriber};
use crate::journal::Entry;

/// Sockets written to before others have their turn: publishers, and those who connect. They wait for so
/// many writes of some 5 µs each.
const TURN: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Group {
    /// What all of its members are sent.
    stream: Stream,
    members: Slab<Member>,
    /// Those that are members no more, and are to go on by themselves.
    removed: Vec<CatchUp>,
    readiness: Arc<Readiness>,
    /// Sockets written to so far.
    written: usize,
}

/// A subscriber in a group.
#[derive(Debug)]
struct Member {
    socket: Socket,
    subscriber: Subscriber,
    /// It has had every message up to here, which may be further than its group has got.
    position: u64,
}

/// What a group has to attend to.
#[derive(Debug)]
pub(super) enum Event {
    /// Its stream goes on.
    Step(Step),
    /// Something can be read from the sockets with these keys.
    Readable(Vec<usize>),
}

impl Group {
    /// A group with its first member, whose stream becomes the group's.
    pub(super) fn new(first: CatchUp) -> Self {
        let CatchUp { socket, delivery: Delivery { subscriber, stream, .. }, .. } = first;
        let position = stream.subscription.position();
        let (members, removed) = (Slab::new(), Vec::new());
        let mut group = Group { stream, members, removed, readiness: Arc::default(), written: 0 };
        group.insert(Member { socket, subscriber, position });
        group
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Waits for what is to be handled next. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Event {
        tokio::select! {
            step = self.stream.next() => Event::Step(step),
            keys = self.readiness.wait() => Event::Readable(keys),
        }
    }

    /// Handles it; breaks at the end of the group's stream.
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

    /// Those that were removed, and are to go on by themselves.
    pub(super) fn take_removed(&mut self) -> Vec<CatchUp> {
        mem::take(&mut self.removed)
    }

    fn position(&self) -> u64 {
        self.stream.subscription.position()
    }

    /// Makes the subscriber a member, once it has got as far as the group; or removes it at once.
    pub(super) async fn admit(&mut self, mut joining: CatchUp) {
        loop {
            let CatchUp { socket, delivery, .. } = &mut joining;
            let before = delivery.stream.subscription.position();
            if before >= self.position() {
                break;
            }
            let Some(next) = delivery.stream.subscription.announced().await else {
                if delivery.stream.subscription.position() > before {
                    continue;
                }
                // What the group read in the journal is about to be announced: `joining` reads it there too.
                delivery.stream.subscription.fall_behind();
                return self.removed.push(joining);
            };
            let Some(bytes) = delivery.encode(next) else { continue };
            match socket.send_pieces(pieces(bytes)) {
                Ok(unsent) if unsent.is_empty() => {}
                Ok(unsent) => return self.removed.push(CatchUp { unsent, ..joining }),
                Err(reason) => return delivery.subscriber.end(reason),
            }
        }
        let CatchUp { socket, delivery: Delivery { subscriber, stream, .. }, .. } = joining;
        self.insert(Member { socket, subscriber, position: stream.subscription.position() });
    }

    fn insert(&mut self, mut member: Member) {
        member.subscriber.share_channels(self.stream.subscription.channels());
        if self.members.len() == self.members.capacity() {
            // By itself it would double, and be half empty at worst.
            self.members.reserve_exact(self.members.len() / 8 + 1);
        }
        let key = self.members.insert(member);
        self.check(key);
    }

    /// Sees whether the member is still there, and is called again when that may have changed.
    fn check(&mut self, key: usize) {
        let Some(member) = self.members.get_mut(key) else { return };
        let waker = Waker::from(Arc::new(Readable { key, readiness: Arc::clone(&self.readiness) }));
        if let std::task::Poll::Ready(reason) = member.socket.poll_gone(&mut Context::from_waker(&waker)) {
            member.subscriber.end(reason);
            self.members.remove(key);
        }
    }

    /// Sends these messages to every member they are for. After a long round that brought several there is a
    /// pause, until as many have come again: they go out together, and the next round is worth as much.
    async fn broadcast(&mut self, entries: Vec<Arc<Entry>>) {
        const LONG: Duration = Duration::from_millis(2);
        const PAUSE: u32 = 8;
        let began = Instant::now();
        self.send_messages(&entries).await;
        let time = began.elapsed();
        if entries.len() > 1 && time > LONG {
            let _ = timeout(time / PAUSE, self.stream.subscription.gathered(entries.len())).await;
        }
    }

    async fn send_messages(&mut self, entries: &[Arc<Entry>]) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        let sequence = |entry: &Arc<Entry>| entry.message.id.sequence;
        let (first, last) = (sequence(first), sequence(last));
        let format = self.stream.format;
        let all = chunk(&messages(entries, format));
        let is_for_all = entries.iter().all(|entry| entry.message.except.is_none());
        self.send(&all, |member| {
            if is_for_all && member.position < first {
                member.subscriber.was_sent(entries.len(), last);
                return None;
            }
            let is_for_member =
                |entry: &&Arc<Entry>| sequence(entry) > member.position && member.subscriber.wants(entry);
            let own: Vec<_> = entries.iter().filter(is_for_member).cloned().collect();
            if let Some(last) = own.last() {
                member.subscriber.was_sent(own.len(), sequence(last));
            }
            Some(chunk(&messages(&own, format)))
        })
        .await;
    }

    /// Sends the gap to every member that is not beyond it.
    async fn send_gap(&mut self, gap: &Next) {
        let (bytes, position) = (chunk(&encode(gap, self.stream.format)), self.position());
        self.send(&bytes, |member| {
            if member.position > position {
                return Some(Bytes::new());
            }
            member.subscriber.was_sent(gap.events(), gap.last_id());
            None
        })
        .await;
    }

    /// Sends everyone a keep-alive if the group was `idle`, and the current id to members that were not
    /// sent it: their last messages were filtered out by `except`, or of other channels.
    async fn keep_alive(&mut self, idle: bool) {
        if idle {
            self.stream.subscription.advance().await;
        }
        let (format, position) = (self.stream.format, self.position());
        let with_id = chunk(&frame::keep_alive(format, Some(self.stream.subscription.id())));
        let bare = if idle { chunk(&frame::keep_alive(format, None)) } else { Bytes::new() };
        self.send(&with_id, |member| {
            let is_before = member.position <= position && member.subscriber.is_before(position);
            if !is_before {
                return Some(bare.clone());
            }
            member.subscriber.was_sent(0, position);
            None
        })
        .await;
    }

    /// Writes to one socket after the other, and removes members whose socket has no room. A member gets
    /// `all`, or else its `own`.
    async fn send(&mut self, all: &Bytes, mut own: impl FnMut(&mut Member) -> Option<Bytes>) {
        let mut removed = Vec::new();
        for (key, member) in &mut self.members {
            let own = own(member);
            let bytes = own.as_ref().unwrap_or(all);
            match member.socket.send(bytes) {
                Ok(length) if length == bytes.len() => {}
                Ok(length) => removed.push((key, Ok(bytes.slice(length..)))),
                Err(reason) => removed.push((key, Err(reason))),
            }
            self.written += 1;
            if self.written.is_multiple_of(TURN) {
                yield_now().await;
            }
        }
        for (key, unsent) in removed {
            let Member { socket, mut subscriber, position } = self.members.remove(key);
            match unsent {
                Ok(unsent) => {
                    let stream = self.stream.fork(position.max(self.position()));
                    let delivery = Delivery::resumed(subscriber, stream);
                    self.removed.push(CatchUp { socket, delivery, unsent: vec![unsent] });
                }
                Err(reason) => subscriber.end(reason),
            }
        }
    }

    /// Ends the stream of every member, and of subscribers that wait to join.
    pub(super) fn end(self, reason: Reason, waiting: impl Iterator<Item = CatchUp>) {
        let waiting = waiting.map(|catch_up| (catch_up.socket, catch_up.delivery.subscriber));
        let members = self.members.into_iter().map(|(_, member)| (member.socket, member.subscriber));
        for (socket, mut subscriber) in members.chain(waiting) {
            subscriber.end(reason);
            // A member whose socket was full has already left the group, so this fits.
            let _ = socket.send(&LAST_CHUNK);
        }
    }
}

/// The keys of sockets from which something can be read.
#[derive(Debug, Default)]
struct Readiness {
    keys: Mutex<Vec<usize>>,
    notify: Notify,
}

impl Readiness {
    /// Waits until there is one, and returns those that there are.
    async fn wait(&self) -> Vec<usize> {
        self.notify.notified().await;
        mem::take(&mut self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Puts a socket's key there when the runtime wakes it.
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
