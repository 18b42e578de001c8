//! A shard: the groups of one thread. It hears what is announced on one feed, and has the groups that want it
//! send it, some writes of one after some of another. A group that waits for nothing but messages costs no
//! time, and no more than its place here.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Wake, Waker};
use std::time::Duration;

use hashbrown::HashTable;
use slab::Slab;
use tokio::sync::{Notify, mpsc};
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::task::TaskTracker;

use super::catch_up::CatchUp;
use super::group::{Encoded, Group, Turn};
use super::wheel::Wheel;
use crate::hub::{Feed, Heard, Next, NotHeld, Reason, Subscription};
use crate::journal::JournalError;

/// The writes before other tasks have their turn, of some 5 µs each. Higher: publishers and new connections
/// wait longer. Lower: a round is interrupted more often.
const TURN: usize = 64;

/// How many groups hear something, or are asked for a keep-alive, before other tasks have their turn, of some
/// 1 µs each. Higher and lower: as [`TURN`].
const GROUPS: usize = 256;

/// How many subscribers join, and how many sockets are looked at, before other tasks have their turn, of some
/// 10 µs each. Higher and lower: as [`TURN`].
const SUBSCRIBERS: usize = 32;

/// The groups of one thread.
#[derive(Debug)]
pub(super) struct Shard {
    feed: Feed,
    /// What came on the feed, and how much of what is wanted was given to the groups.
    heard: Heard,
    given: usize,
    /// What the last group was given.
    same: Option<Encoded>,
    /// Each message up to this sequence was given to the groups that want it.
    announced: u64,
    events: mpsc::UnboundedReceiver<Event>,
    /// For the events that the shard sends itself.
    sender: mpsc::WeakUnboundedSender<Event>,
    /// The keys are the listeners' numbers on the feed.
    groups: Slab<Group>,
    /// The keys, found by what their groups' members have in common: a map would keep that a second time.
    keys: HashTable<u32>,
    hasher: RandomState,
    /// The keys of groups that are to go on.
    queue: VecDeque<u32>,
    /// When each group is to be asked for a keep-alive.
    wheel: Wheel,
    /// A step of the wheel, and the keys of its groups that are still to be asked.
    asked: (u8, Vec<u32>),
    /// When the pauses of groups end.
    pauses: BTreeSet<(Instant, u32)>,
    /// The same for all streams.
    keep_alive: Duration,
    readiness: Arc<Readiness>,
    /// Subscribers that are in no group any more, and must catch up by themselves.
    removed: Vec<CatchUp>,
    /// Tracks the tasks that read the journal.
    tasks: TaskTracker,
}

/// What a shard is sent.
#[derive(Debug)]
pub(super) enum Event {
    /// The subscriber has caught up, and joins a group.
    Join(Box<CatchUp>),
    /// The journal's next page for a group.
    Read { group: u32, subscription: Box<Subscription>, next: Result<Option<Next>, JournalError> },
}

impl Shard {
    /// A shard with no groups, and where its events are sent.
    pub(super) fn new(
        feed: Feed,
        keep_alive: Duration,
        tasks: TaskTracker,
    ) -> (Self, mpsc::UnboundedSender<Event>) {
        let (sender, events) = mpsc::unbounded_channel();
        let shard = Shard {
            feed,
            heard: Heard::default(),
            given: 0,
            same: None,
            announced: 0,
            events,
            sender: sender.downgrade(),
            groups: Slab::new(),
            keys: HashTable::new(),
            hasher: RandomState::new(),
            queue: VecDeque::new(),
            wheel: Wheel::new(keep_alive),
            asked: (0, Vec::new()),
            pauses: BTreeSet::new(),
            keep_alive,
            readiness: Arc::default(),
            removed: Vec::new(),
            tasks,
        };
        (shard, sender)
    }

    /// Runs until every subscription ends. `resume` is given the subscribers that must catch up.
    pub(super) async fn run(mut self, resume: impl Fn(CatchUp)) {
        let mut timer = Box::pin(sleep_until(Instant::now()));
        while !self.feed.is_over() {
            let event = if self.queue.is_empty() && self.is_all_given() && self.asked.1.is_empty() {
                self.wait(&mut timer).await
            } else {
                // Publishers and other connections have their turn.
                yield_now().await;
                None
            };
            // Not in between: a key is another group's only once all that came for the key is given.
            if self.is_all_given() {
                event.into_iter().for_each(|event| self.handle(event));
                for _ in 0..SUBSCRIBERS {
                    let Ok(event) = self.events.try_recv() else { break };
                    self.handle(event);
                }
                self.check_sockets();
                self.look_at_time();
                self.hear();
            }
            self.give();
            self.send();
            self.removed.drain(..).for_each(&resume);
        }
        self.end(resume);
    }

    /// Waits until there is something to do.
    async fn wait(&mut self, timer: &mut Pin<Box<Sleep>>) -> Option<Event> {
        let pause = self.pauses.first().map(|(until, _)| *until);
        let next = self.wheel.next().into_iter().chain(pause).min();
        // Not set back: the timer may fire too early, which costs less than to set it for each message.
        if let Some(next) = next
            && (next < timer.deadline() || timer.is_elapsed())
        {
            timer.as_mut().reset(next);
        }
        tokio::select! {
            () = self.feed.changed() => None,
            event = self.events.recv() => event,
            () = self.readiness.notify.notified() => None,
            () = timer, if next.is_some() => None,
        }
    }

    /// Takes what came on the feed.
    fn hear(&mut self) {
        self.heard = self.feed.take();
        if self.heard.has_lagged {
            for (key, group) in &mut self.groups {
                group.subscription.advance(self.announced);
                if group.fall_behind(usize::MAX) {
                    enqueue(&mut self.queue, group, number(key));
                }
            }
        }
    }

    fn is_all_given(&self) -> bool {
        self.given == self.heard.wanted.len()
    }

    /// Gives some groups what came for them.
    fn give(&mut self) {
        let left = &self.heard.wanted[self.given..];
        for wanted in left.chunk_by(|one, other| one.0 == other.0).take(GROUPS) {
            self.given += wanted.len();
            let key = wanted[0].0;
            let Some(group) = self.groups.get_mut(key as usize) else { continue };
            if group.hear(self.announced, wanted, &self.heard.messages, &mut self.same) {
                enqueue(&mut self.queue, group, key);
            }
        }
        if self.is_all_given() {
            self.announced = self.heard.announced;
            // Only the journal keeps messages: nothing may come for long.
            self.heard = Heard { announced: self.announced, ..Heard::default() };
            (self.given, self.same) = (0, None);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Join(joining) => self.join(*joining),
            Event::Read { group: key, subscription, next } => {
                let Some(group) = self.groups.get_mut(key as usize) else { return };
                match next {
                    Ok(next) => group.read(*subscription, next),
                    Err(_failed) => {
                        group.read(*subscription, None);
                        group.end(Reason::JournalFailed, self.keep_alive, &mut self.removed);
                    }
                }
                enqueue(&mut self.queue, group, key);
            }
        }
    }

    /// Makes the subscriber a member of its group, after it was sent what only the group was sent. It has to
    /// catch up by itself if its socket is full, or if more than a page is missing.
    fn join(&mut self, mut joining: CatchUp) {
        if let Some(reason) = joining.delivery.subscriber.pass().and_then(|pass| pass.end()) {
            return self.removed.extend(joining.end(reason));
        }
        let Some(key) = self.group_of(&joining) else {
            return joining.delivery.subscriber.end(Reason::Cut);
        };
        let Some(group) = self.groups.get_mut(key as usize) else { return };
        group.subscription.advance(self.announced);
        let delivery = &mut joining.delivery;
        if delivery.subscription.position() < group.subscription.position() {
            delivery.subscription.fall_behind();
            match delivery.subscription.next_held() {
                Ok(None) => {}
                Ok(Some(next)) => {
                    if let Some(chunks) = delivery.encode(next, joining.socket.framing)
                        && let Err(reason) = joining.send(&chunks)
                    {
                        joining.delivery.subscriber.end(reason);
                        return self.forget_if_over(key);
                    }
                }
                Err(NotHeld) => {}
            }
            if !joining.has_caught_up() {
                self.removed.push(joining);
                return self.forget_if_over(key);
            }
        }
        let member = group.insert(joining);
        group.check(member, &self.readiness.waker(key, member), self.keep_alive, &mut self.removed);
        self.forget_if_over(key);
    }

    /// The key of the subscriber's group, which is made if there is none. `None` if there are too many.
    fn group_of(&mut self, joining: &CatchUp) -> Option<u32> {
        let Shard { groups, keys, hasher, .. } = self;
        let (delivery, framing) = (&joining.delivery, joining.socket.framing);
        let identity = (delivery.subscription.channels(), delivery.format, framing);
        let hash = hasher.hash_one(identity);
        let is_wanted =
            |key: &u32| groups.get(*key as usize).is_some_and(|group| group.identity() == identity);
        if let Some(key) = keys.find(hash, is_wanted) {
            return Some(*key);
        }
        if groups.len() == Feed::MAX_LISTENERS {
            return None;
        }
        if groups.len() == groups.capacity() {
            // Otherwise the slab would double its capacity, and half of it could be empty.
            groups.reserve_exact(groups.len() / 8 + 1);
        }
        let number = number(groups.insert(Group::new(delivery, framing)));
        keys.insert_unique(hash, number, |key| hash_of(groups, hasher, *key));
        let group = groups.get_mut(number as usize)?;
        // What was announced before is read by the subscriber itself, when it joins.
        let announced = self.feed.listen(group.subscription.channels(), number);
        group.subscription.begin_live(announced);
        group.step = self.wheel.add(number, self.keep_alive);
        Some(number)
    }

    /// Forgets the group if it has no members.
    fn forget_if_over(&mut self, key: u32) {
        let Shard { groups, keys, hasher, .. } = self;
        if groups.get(key as usize).is_some_and(Group::is_over) {
            let group = groups.remove(key as usize);
            self.feed.leave(group.subscription.channels(), key);
            if let Ok(entry) = keys.find_entry(hasher.hash_one(group.identity()), |other| *other == key) {
                entry.remove();
            }
            if keys.len() < keys.capacity() / 4 {
                keys.shrink_to(keys.len() * 2, |key| hash_of(groups, hasher, *key));
            }
        }
    }

    /// Of some members whose sockets can be read from, or to whom something is due, removes those that are
    /// gone, and sends the others what is due.
    fn check_sockets(&mut self) {
        for (key, member) in self.readiness.take(SUBSCRIBERS) {
            if let Some(group) = self.groups.get_mut(key as usize) {
                group.check(member, &self.readiness.waker(key, member), self.keep_alive, &mut self.removed);
                self.forget_if_over(key);
            }
        }
    }

    /// Begins keep-alives that are due, and ends the pauses that are over.
    fn look_at_time(&mut self) {
        let now = Instant::now();
        while let Some((_, key)) = self.pauses.first().copied().filter(|(until, _)| *until <= now) {
            self.pauses.pop_first();
            if let Some(group) = self.groups.get_mut(key as usize) {
                enqueue(&mut self.queue, group, key);
            }
        }
        if self.asked.1.is_empty()
            && let Some(asked) = self.wheel.take(now)
        {
            self.asked = asked;
        }
        let (step, keys) = &mut self.asked;
        for key in keys.drain(keys.len().saturating_sub(GROUPS)..) {
            // Another group may have had the key before.
            let group = self.groups.get_mut(key as usize).filter(|group| group.step == *step);
            let Some(group) = group else { continue };
            let after = group.keep_alive(self.keep_alive, self.announced);
            group.step = self.wheel.add(key, after);
            enqueue(&mut self.queue, group, key);
        }
    }

    /// Has the groups in the queue go on, for [`TURN`] writes.
    fn send(&mut self) {
        let mut left = TURN;
        while left > 0
            && let Some(key) = self.queue.pop_front()
        {
            let Some(group) = self.groups.get_mut(key as usize).filter(|group| group.is_queued) else {
                continue;
            };
            group.is_queued = false;
            let (written, turn) = group.go_on(left, self.keep_alive, &mut self.removed);
            left = left.saturating_sub(written.max(1));
            match turn {
                Turn::Wait => {}
                Turn::GoOn => enqueue(&mut self.queue, group, key),
                Turn::Pause(until) => drop(self.pauses.insert((until, key))),
                Turn::Read => {
                    let position = group.subscription.position();
                    let subscription = group.subscription.fork(position, None);
                    self.tasks.spawn(read(key, subscription, self.sender.clone()));
                }
            }
            self.forget_if_over(key);
        }
    }

    /// Ends the streams of all members, and of those who wait to join.
    fn end(mut self, resume: impl Fn(CatchUp)) {
        self.events.close();
        for (_, group) in &mut self.groups {
            group.end(Reason::Shutdown, self.keep_alive, &mut self.removed);
        }
        while let Ok(event) = self.events.try_recv() {
            if let Event::Join(joining) = event {
                self.removed.extend(joining.end(Reason::Shutdown));
            }
        }
        self.removed.drain(..).for_each(resume);
    }
}

/// Has the group go on, after those that were in the queue before.
fn enqueue(queue: &mut VecDeque<u32>, group: &mut Group, key: u32) {
    if !mem::replace(&mut group.is_queued, true) {
        queue.push_back(key);
    }
}

/// Reads the journal's next page for the group of this key.
async fn read(group: u32, mut subscription: Subscription, sender: mpsc::WeakUnboundedSender<Event>) {
    let next = subscription.next().await;
    if let Some(sender) = sender.upgrade() {
        // Fails once every subscription ends.
        let _ = sender.send(Event::Read { group, subscription: Box::new(subscription), next });
    }
}

/// The hash by which the key of this group is found.
fn hash_of(groups: &Slab<Group>, hasher: &RandomState, key: u32) -> u64 {
    groups.get(key as usize).map_or(0, |group| hasher.hash_one(group.identity()))
}

fn number(key: usize) -> u32 {
    u32::try_from(key).expect("there are at most Feed::MAX_LISTENERS groups")
}

/// The members whose sockets can be read from, or to whom something is due: the group's key, and the
/// member's.
#[derive(Debug, Default)]
struct Readiness {
    keys: Mutex<Vec<(u32, usize)>>,
    notify: Notify,
}

impl Readiness {
    /// Takes at most so many. If there are more, the shard goes on with them next.
    fn take(&self, most: usize) -> Vec<(u32, usize)> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = keys.len().saturating_sub(most);
        if rest > 0 {
            self.notify.notify_one();
        }
        keys.split_off(rest)
    }

    fn waker(self: &Arc<Self>, group: u32, member: usize) -> Waker {
        Waker::from(Arc::new(Readable { group, member, readiness: Arc::clone(self) }))
    }
}

/// The waker of a member's socket and pass.
struct Readable {
    group: u32,
    member: usize,
    readiness: Arc<Readiness>,
}

impl Wake for Readable {
    fn wake(self: Arc<Self>) {
        let mut keys = self.readiness.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.push((self.group, self.member));
        drop(keys);
        self.readiness.notify.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::super::group::tests::{publish, subscriber};
    use super::*;

    #[tokio::test]
    async fn a_message_that_was_sent_is_not_kept_by_the_shard() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _reader = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (hub, joining) = subscriber(listener.accept().await.unwrap().0).await;
        let (mut shard, _events) = Shard::new(hub.feeds().remove(0), Duration::MAX, TaskTracker::new());
        shard.join(joining);
        publish(&hub, "first").await;
        shard.hear();
        let first = Arc::downgrade(shard.heard.messages[0].as_ref().unwrap());
        shard.give();
        shard.send();
        assert_eq!((shard.groups.len(), shard.queue.len(), shard.removed.len()), (1, 0, 0));
        // Retention drops the first.
        publish(&hub, "second").await;
        assert!(first.upgrade().is_none());
    }
}
