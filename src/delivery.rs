//! Delivery: sends a subscriber its stream, over a socket.
//!
//! Subscribers that were sent the same messages share a [`group`], and so one position in the journal. A
//! member whose socket is full is removed from its group, with its position in the journal. Like a new
//! subscriber, it catches up by itself ([`catch_up`]), and then joins a group. So a member costs little more
//! than its socket, and a slow subscriber holds up no other.

mod catch_up;
mod chunks;
mod group;
mod socket;
mod stream;

use std::collections::{HashMap, hash_map};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::frame::Format;
use crate::journal::Channels;
use catch_up::CatchUp;
use chunks::{Chunks, Unsent};
use group::Group;

pub(crate) use chunks::Framing;
pub(crate) use socket::{Place, Socket, reason};
pub(crate) use stream::Delivery;
pub(crate) use stream::Options;

/// All groups, and the tasks that send.
#[derive(Debug)]
pub(crate) struct Groups {
    /// The queue of subscribers that join each group.
    joining: Mutex<HashMap<Key, Join>>,
    /// How many groups may have the same channels, format and framing: one for each thread of the runtime.
    /// With only one, one thread would do all the writing.
    shards: usize,
    /// How many times a subscriber joined a group. Each join goes to the next shard.
    joined: AtomicUsize,
    tasks: TaskTracker,
    stopping: CancellationToken,
    overdue: CancellationToken,
}

type Join = mpsc::UnboundedSender<Box<CatchUp>>;

/// Identifies a group: its members have the same channels, format and framing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    channels: Channels,
    format: Format,
    framing: Framing,
    shard: usize,
}

impl Groups {
    /// No groups yet. `tasks` tracks their tasks, which end once `stopping` is cancelled, and at once when
    /// `overdue` is.
    pub(crate) fn new(tasks: TaskTracker, stopping: CancellationToken, overdue: CancellationToken) -> Self {
        let shards = Handle::current().metrics().num_workers();
        Groups { joining: Mutex::default(), shards, joined: AtomicUsize::new(0), tasks, stopping, overdue }
    }

    /// Sends the delivery over this socket, from its opening on.
    pub(crate) fn deliver(self: &Arc<Self>, socket: Socket, mut delivery: Delivery) {
        let opening = Chunks::own(delivery.take_opening(), None, socket.framing);
        let mut catch_up = CatchUp { socket, delivery, unsent: Unsent::Nothing };
        match catch_up.send(&opening) {
            Ok(()) => self.resume(catch_up),
            Err(reason) => catch_up.delivery.subscriber.end(reason),
        }
    }

    /// Sends the subscriber what is unsent, and then the rest of its stream.
    fn resume(self: &Arc<Self>, catch_up: CatchUp) {
        if catch_up.has_caught_up() {
            return self.join(catch_up);
        }
        let groups = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Some(caught_up) = catch_up.run(&groups.stopping, &groups.overdue).await {
                groups.join(caught_up);
            }
        });
    }

    fn joining(&self) -> MutexGuard<'_, HashMap<Key, Join>> {
        self.joining.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(self: &Arc<Self>, caught_up: CatchUp) {
        let stream = &caught_up.delivery.stream;
        let shard = self.joined.fetch_add(1, Ordering::Relaxed) % self.shards;
        let (channels, format) = (stream.subscription.channels().clone(), stream.format);
        let key = Key { channels, format, framing: caught_up.socket.framing, shard };
        match self.joining().entry(key) {
            hash_map::Entry::Occupied(group) => {
                // Never fails: a group is closed under the lock that is held here.
                let _ = group.get().send(Box::new(caught_up));
            }
            hash_map::Entry::Vacant(vacant) => {
                let (sender, joining) = mpsc::unbounded_channel();
                let (key, group) = (vacant.key().clone(), Group::new(caught_up));
                vacant.insert(sender);
                self.tasks.spawn(Arc::clone(self).run(key, group, joining));
            }
        }
    }

    /// Runs the group until it has no members.
    async fn run(
        self: Arc<Self>,
        key: Key,
        mut group: Group,
        mut joining: mpsc::UnboundedReceiver<Box<CatchUp>>,
    ) {
        while !(group.is_empty() && self.close(&key, &joining)) {
            tokio::select! {
                event = group.next() => {
                    if let ControlFlow::Break(reason) = group.handle(event).await {
                        self.joining().remove(&key);
                        let waiting = std::iter::from_fn(|| joining.try_recv().ok());
                        group.end(reason, waiting.map(|caught_up| *caught_up));
                        return group.take_removed().into_iter().for_each(|removed| self.resume(removed));
                    }
                }
                Some(caught_up) = joining.recv() => group.admit(*caught_up).await,
            }
            group.take_removed().into_iter().for_each(|removed| self.resume(removed));
        }
    }

    /// Closes the group, unless a subscriber waits to join. Returns whether it is closed.
    fn close(&self, key: &Key, joining: &mpsc::UnboundedReceiver<Box<CatchUp>>) -> bool {
        let mut groups = self.joining();
        let closes = joining.is_empty();
        if closes {
            groups.remove(key);
        }
        closes
    }
}
