//! Delivery: gives a subscriber's stream to its sink, a socket in a group or the body of a response.
//!
//! Subscribers that have seen the same share a [`group`], and so one position in the journal. A socket
//! that has no room leaves its group, with what it has not taken and its position. It goes on alone, as
//! a new subscriber does, and joins a group again once it has caught up ([`catch_up`]). So a member
//! costs a socket and little else, and a slow one holds nobody up.

mod catch_up;
mod group;
mod socket;
mod stream;

use std::collections::HashMap;
use std::collections::hash_map::Entry as Place;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_stream::stream;
use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::frame::Format;
use crate::hub::Reason;
use crate::journal::Channels;
use catch_up::CatchUp;
use group::Group;
use socket::pieces;

pub(crate) use catch_up::GRACE;
pub(crate) use socket::{Socket, Unasked, reason};
pub(crate) use stream::Delivery;
pub(crate) use stream::Options;

/// Every group there is, and the tasks that send.
#[derive(Debug)]
pub(crate) struct Groups {
    /// Where to join each group.
    joining: Mutex<HashMap<Key, Join>>,
    /// A group for each thread of the runtime, or one thread would do all the writing.
    shards: usize,
    /// Counts those who join a group, each of another shard than the one before.
    joined: AtomicUsize,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

type Join = mpsc::UnboundedSender<Box<CatchUp>>;

/// What the members of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    channels: Channels,
    format: Format,
    shard: usize,
}

impl Groups {
    /// No groups yet. Their tasks are `tasks`'. Once `stopping` is cancelled, they have [`GRACE`] to end.
    pub(crate) fn new(tasks: TaskTracker, stopping: CancellationToken) -> Self {
        let shards = Handle::current().metrics().num_workers();
        Groups { joining: Mutex::default(), shards, joined: AtomicUsize::new(0), tasks, stopping }
    }

    /// Sends the delivery to this socket, from its opening on.
    pub(crate) fn deliver(self: &Arc<Self>, socket: Socket, mut delivery: Delivery) {
        let unsent = pieces(delivery.take_opening());
        self.go_on(CatchUp { socket, delivery, unsent });
    }

    /// Has the subscriber sent what it is still to be sent, and what follows.
    fn go_on(self: &Arc<Self>, catch_up: CatchUp) {
        let Some(catch_up) = catch_up.send() else { return };
        if catch_up.has_caught_up() {
            return self.join(catch_up);
        }
        let groups = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Some(caught_up) = catch_up.run(&groups.stopping).await {
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
        let key = Key { channels: stream.subscription.channels().clone(), format: stream.format, shard };
        match self.joining().entry(key) {
            Place::Occupied(place) => {
                // Never fails: a group closes under the same lock.
                let _ = place.get().send(Box::new(caught_up));
            }
            Place::Vacant(place) => {
                let (sender, joining) = mpsc::unbounded_channel();
                let (key, group) = (place.key().clone(), Group::new(caught_up));
                place.insert(sender);
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
                        return group.end(reason, waiting.map(|caught_up| *caught_up));
                    }
                }
                Some(caught_up) = joining.recv() => group.admit(*caught_up).await,
            }
            group.take_removed().into_iter().for_each(|removed| self.go_on(removed));
        }
    }

    /// Lets nobody join this group any more, unless somebody is about to.
    fn close(&self, key: &Key, joining: &mpsc::UnboundedReceiver<Box<CatchUp>>) -> bool {
        let mut groups = self.joining();
        let closes = joining.is_empty();
        if closes {
            groups.remove(key);
        }
        closes
    }
}

/// The delivery as the body of a response, for a subscriber without a socket of its own. `why` is asked
/// at the end why the connection ended.
pub(crate) fn body(
    delivery: Delivery,
    why: impl Fn() -> Reason + Send + 'static,
) -> impl tokio_stream::Stream<Item = Result<Bytes, Infallible>> {
    /// Whoever drops a body does so without a word: the reason is asked for here.
    struct Ending<F: Fn() -> Reason>(Delivery, F);
    impl<F: Fn() -> Reason> Drop for Ending<F> {
        fn drop(&mut self) {
            self.0.subscriber.end(self.1());
        }
    }
    let mut delivery = Ending(delivery, why);
    stream! {
        let opening = delivery.0.take_opening();
        if !opening.is_empty() {
            yield Ok(opening);
        }
        while let Some(bytes) = delivery.0.next().await {
            yield Ok(bytes);
        }
    }
}
