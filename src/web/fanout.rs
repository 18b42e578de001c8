//! The fan-out: every subscriber whose stream has left hyper is a socket in a group, and a group is
//! one position in the journal.
//!
//! Those who listen to the same channels in the same format, and have seen the same, share one
//! subscription: it is woken once for each batch of messages, which is encoded once and written to
//! one socket after the other. A socket that has no room leaves the group, with what it has not taken
//! and its position. It goes on alone, as a subscriber without a group does, and joins again once it
//! has caught up. So a follower costs a socket and little else, and a slow one holds nobody up.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use bytes::Bytes;
use slab::Slab;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::GRACE;
use super::line::{LAST_CHUNK, Line, chunk, pieces};
use super::stream::{Step, Stream, Subscriber, encode, events, messages};
use super::visit::Visit;
use crate::frame::{self, Format};
use crate::hub::{Delivery, Share};
use crate::journal::{Channels, Entry};

/// Sockets written to before others have their turn: publishers, and those who connect. They wait for so
/// many writes of some 5 µs each.
const TURN: usize = 64;

#[derive(Debug)]
pub(super) struct Fanout {
    /// Where to join each group.
    groups: Mutex<HashMap<Key, mpsc::UnboundedSender<Box<Lone>>>>,
    /// A group for each thread of the runtime, or one thread would do all the writing.
    shards: usize,
    /// Counts those who join a group, each of another shard than the one before.
    joined: AtomicUsize,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

/// What the followers of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    channels: Channels,
    format: Format,
    shard: usize,
}

/// A subscriber that is in no group.
#[derive(Debug)]
struct Lone {
    line: Line,
    subscriber: Subscriber,
}

impl Fanout {
    /// Its tasks are `tasks`'. Once `stopping` is cancelled, they have [`GRACE`] to end.
    pub(super) fn new(tasks: TaskTracker, stopping: CancellationToken) -> Self {
        let shards = Handle::current().metrics().num_workers();
        Fanout { groups: Mutex::default(), shards, joined: AtomicUsize::new(0), tasks, stopping }
    }

    /// Sends the subscriber its opening, and from then on its stream.
    pub(super) fn take(self: &Arc<Self>, line: Line, mut subscriber: Subscriber, opening: Bytes) {
        subscriber.visit.goes_on_with(line.peer());
        self.go_on(Lone { line, subscriber }, pieces(opening));
    }

    /// Has the subscriber sent what it is still to be sent, and what follows.
    fn go_on(self: &Arc<Self>, lone: Lone, unsent: Vec<Bytes>) {
        match lone.line.send_pieces(unsent) {
            Ok(unsent) if unsent.is_empty() && !lone.is_behind() => self.join(lone),
            Ok(unsent) => {
                self.tasks.spawn(alone(Arc::clone(self), lone, unsent));
            }
            Err(_gone) => {}
        }
    }

    fn groups(&self) -> MutexGuard<'_, HashMap<Key, mpsc::UnboundedSender<Box<Lone>>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(self: &Arc<Self>, lone: Lone) {
        let stream = &lone.subscriber.stream;
        let shard = self.joined.fetch_add(1, Ordering::Relaxed) % self.shards;
        let key = Key { channels: stream.subscription.channels().clone(), format: stream.format, shard };
        match self.groups().entry(key) {
            Place::Occupied(place) => {
                // Never fails: a group closes under the same lock.
                let _ = place.get().send(Box::new(lone));
            }
            Place::Vacant(place) => {
                let (sender, joining) = mpsc::unbounded_channel();
                let group = Group::new(Arc::clone(self), place.key().clone(), joining, lone);
                place.insert(sender);
                self.tasks.spawn(group.run());
            }
        }
    }
}

impl Lone {
    fn is_behind(&self) -> bool {
        self.subscriber.stream.subscription.is_behind()
    }
}

/// Sends a subscriber its stream until it can join a group.
async fn alone(fanout: Arc<Fanout>, mut lone: Lone, mut unsent: Vec<Bytes>) {
    let mut ended = false;
    loop {
        let overdue = async {
            fanout.stopping.cancelled().await;
            sleep(GRACE).await;
        };
        tokio::select! {
            result = lone.line.send_all(unsent) => if result.is_err() { return },
            () = lone.line.gone() => return,
            () = overdue => {
                tracing::warn!(address = %lone.line.peer().address, "connection cut: it did not end in time");
                lone.subscriber.visit.end("shutdown");
                return;
            }
        }
        if ended {
            return;
        }
        if !lone.is_behind() {
            return fanout.join(lone);
        }
        // It may have much to catch up with: others have their turn after each page.
        yield_now().await;
        let next = tokio::select! {
            next = lone.subscriber.next() => next,
            () = lone.line.gone() => return,
        };
        ended = next.is_none();
        unsent = next.map_or_else(|| vec![LAST_CHUNK], pieces);
    }
}

/// Subscribers that have seen the same.
struct Group {
    fanout: Arc<Fanout>,
    key: Key,
    /// What all of them are sent.
    stream: Stream,
    followers: Slab<Follower>,
    joining: mpsc::UnboundedReceiver<Box<Lone>>,
    bell: Arc<Bell>,
    /// Counts sockets written to.
    written: usize,
}

#[derive(Debug)]
struct Follower {
    line: Line,
    visit: Visit,
    share: Share,
    /// It has had every message up to here, which may be further than its group has got.
    position: u64,
    /// It has not been told where it is: what came since was not for it.
    untold: bool,
}

impl Group {
    /// A group with its first follower, whose stream becomes the group's.
    fn new(fanout: Arc<Fanout>, key: Key, joining: mpsc::UnboundedReceiver<Box<Lone>>, first: Lone) -> Self {
        let Lone { line, subscriber: Subscriber { visit, mut stream } } = first;
        let share = stream.subscription.share();
        let follower = Follower { line, visit, share, position: 0, untold: false };
        let mut group =
            Group { fanout, key, stream, followers: Slab::new(), joining, bell: Arc::default(), written: 0 };
        group.insert(follower);
        group
    }

    /// Until it has no followers.
    async fn run(mut self) {
        while !(self.followers.is_empty() && self.close()) {
            tokio::select! {
                step = self.stream.next() => match step {
                    Step::Delivery(Delivery::Messages(entries)) => self.go_round(entries).await,
                    Step::Delivery(gap) => self.tell(&gap).await,
                    Step::Tick { idle } => self.keep_alive(idle).await,
                    Step::End(reason) => return self.end(reason),
                },
                Some(lone) = self.joining.recv() => self.admit(*lone).await,
                keys = self.bell.rung() => keys.into_iter().for_each(|key| self.look_after(key)),
            }
        }
    }

    /// Lets nobody join any more, unless somebody is about to.
    fn close(&self) -> bool {
        let mut groups = self.fanout.groups();
        let closes = self.joining.is_empty();
        if closes {
            groups.remove(&self.key);
        }
        closes
    }

    fn position(&self) -> u64 {
        self.stream.subscription.position()
    }

    /// Makes it a follower, once it has got as far as the group.
    async fn admit(&mut self, mut lone: Lone) {
        let subscription = &mut lone.subscriber.stream.subscription;
        while subscription.position() < self.position() {
            let before = subscription.position();
            let Some(delivery) = subscription.announced().await else {
                if subscription.position() > before {
                    continue;
                }
                // What the group read in the journal is about to be announced: it is read there too.
                subscription.fall_behind();
                return self.fanout.go_on(lone, Vec::new());
            };
            lone.subscriber.visit.sent(events(&delivery));
            match lone.line.send_pieces(pieces(encode(&delivery, self.stream.format))) {
                Ok(unsent) if unsent.is_empty() => {}
                Ok(unsent) => return self.fanout.go_on(lone, unsent),
                Err(_gone) => return,
            }
        }
        let Lone { line, subscriber: Subscriber { visit, mut stream } } = lone;
        let (position, untold) = (stream.subscription.position(), stream.subscription.is_untold());
        self.insert(Follower { line, visit, share: stream.subscription.share(), position, untold });
    }

    fn insert(&mut self, mut follower: Follower) {
        follower.share.has_channels_of(&self.stream.subscription);
        if self.followers.len() == self.followers.capacity() {
            // By itself it would double, and be half empty at worst.
            self.followers.reserve_exact(self.followers.len() / 8 + 1);
        }
        let key = self.followers.insert(follower);
        self.look_after(key);
    }

    /// Sees whether the follower is still there, and is called again when that may have changed.
    fn look_after(&mut self, key: usize) {
        let Some(follower) = self.followers.get(key) else { return };
        let waker = Waker::from(Arc::new(Pull { key, bell: Arc::clone(&self.bell) }));
        if follower.line.poll_gone(&mut Context::from_waker(&waker)).is_ready() {
            self.followers.remove(key);
        }
    }

    /// Sends the followers these messages. After a long round that brought several there is a pause, until as many
    /// have come again: they go out together, and the next round is worth as much.
    async fn go_round(&mut self, entries: Vec<Arc<Entry>>) {
        const LONG: Duration = Duration::from_millis(2);
        const PAUSE: u32 = 8;
        let began = Instant::now();
        self.deliver(&entries).await;
        let time = began.elapsed();
        if entries.len() > 1 && time > LONG {
            let _ = timeout(time / PAUSE, self.stream.subscription.gathered(entries.len())).await;
        }
    }

    /// Sends the messages to every follower they are for.
    async fn deliver(&mut self, entries: &[Arc<Entry>]) {
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else { return };
        let format = self.stream.format;
        let all = chunk(&messages(entries, format));
        let for_all = entries.iter().all(|entry| entry.message.except.is_none());
        self.send(&all, |follower| {
            if for_all && follower.position < first.message.id.sequence {
                follower.visit.sent(entries.len());
                return None;
            }
            let own: Vec<_> = entries.iter().filter(|entry| follower.wants(entry)).cloned().collect();
            follower.visit.sent(own.len());
            if follower.position < last.message.id.sequence {
                follower.untold = own.last().is_none_or(|told| told.message.id != last.message.id);
            }
            Some(chunk(&messages(&own, format)))
        })
        .await;
    }

    /// Tells every follower of the gap.
    async fn tell(&mut self, gap: &Delivery) {
        let (bytes, position) = (chunk(&encode(gap, self.stream.format)), self.position());
        self.send(&bytes, |follower| {
            if follower.position > position {
                return Some(Bytes::new());
            }
            follower.visit.sent(events(gap));
            None
        })
        .await;
    }

    /// Sends all followers something if nothing was sent for a while, and tells those where they are whom
    /// what was sent was not for.
    async fn keep_alive(&mut self, idle: bool) {
        let format = self.stream.format;
        let (all, bare) = match idle {
            true => (chunk(&self.stream.keep_alive().await), chunk(&frame::keep_alive(format, None))),
            false => (Bytes::new(), Bytes::new()),
        };
        let position = self.position();
        let told = chunk(&frame::keep_alive(format, Some(self.stream.subscription.id())));
        self.send(&all, |follower| {
            if follower.position > position {
                // It was told of a later one.
                Some(bare.clone())
            } else if mem::take(&mut follower.untold) {
                Some(told.clone())
            } else {
                None
            }
        })
        .await;
    }

    /// Writes to one socket after the other, and parts with those that have no room. A follower gets what is
    /// for all, or else its `own`.
    async fn send(&mut self, all: &Bytes, mut own: impl FnMut(&mut Follower) -> Option<Bytes>) {
        let mut parting = Vec::new();
        for (key, follower) in &mut self.followers {
            let own = own(follower);
            let bytes = own.as_ref().unwrap_or(all);
            match follower.line.send(bytes) {
                Ok(length) if length == bytes.len() => {}
                Ok(length) => parting.push((key, Some(bytes.slice(length..)))),
                Err(_gone) => parting.push((key, None)),
            }
            self.written += 1;
            if self.written.is_multiple_of(TURN) {
                yield_now().await;
            }
        }
        for (key, unsent) in parting {
            let Follower { line, visit, share, position, .. } = self.followers.remove(key);
            let Some(unsent) = unsent else { continue };
            let subscription = self.stream.subscription.fork(position.max(self.position()), share);
            let stream = self.stream.fork(subscription);
            let lone = Lone { line, subscriber: Subscriber { visit, stream } };
            self.fanout.tasks.spawn(alone(Arc::clone(&self.fanout), lone, vec![unsent]));
        }
    }

    /// Ends every follower's stream, and those of who would have been one.
    fn end(mut self, reason: &'static str) {
        self.fanout.groups().remove(&self.key);
        let waiting = std::iter::from_fn(|| self.joining.try_recv().ok())
            .map(|lone| (lone.line, lone.subscriber.visit));
        let followers =
            mem::take(&mut self.followers).into_iter().map(|(_, follower)| (follower.line, follower.visit));
        for (line, mut visit) in followers.chain(waiting) {
            visit.end(reason);
            // One that had no room would be alone.
            let _ = line.send(&LAST_CHUNK);
        }
    }
}

impl Follower {
    fn wants(&self, entry: &Entry) -> bool {
        let is_except = self.share.subscriber.is_some() && entry.message.except == self.share.subscriber;
        entry.message.id.sequence > self.position && !is_except
    }
}

/// Rung by sockets from which something can be read.
#[derive(Debug, Default)]
struct Bell {
    keys: Mutex<Vec<usize>>,
    notify: Notify,
}

impl Bell {
    /// Waits for it to be rung, and returns whose sockets did.
    async fn rung(&self) -> Vec<usize> {
        self.notify.notified().await;
        mem::take(&mut self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A follower's cord at the bell.
struct Pull {
    key: usize,
    bell: Arc<Bell>,
}

impl Wake for Pull {
    fn wake(self: Arc<Self>) {
        self.bell.keys.lock().unwrap_or_else(PoisonError::into_inner).push(self.key);
        self.bell.notify.notify_one();
    }
}
