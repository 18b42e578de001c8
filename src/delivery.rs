//! Delivery: sends a subscriber its stream, over a socket.
//!
//! Subscribers that were sent the same messages share a [`group`], and so one position in the journal. A
//! member whose socket is full is removed from its group, with its position in the journal. Like a new
//! subscriber, it catches up by itself ([`catch_up`]), and then joins a group. So a member costs little more
//! than its socket, and a slow subscriber holds up no other. The groups of one thread are a [`shard`].

mod catch_up;
mod chunks;
mod group;
mod shard;
mod socket;
mod stream;
mod wheel;
mod wire;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::{self, error::SendError};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::hub::{Feed, Reason};
use catch_up::CatchUp;
use chunks::{Chunks, Unsent};
use shard::{Event, Shard};

pub(crate) use chunks::Framing;
pub(crate) use socket::{Place, Socket, reason};
pub(crate) use stream::Delivery;
pub(crate) use stream::Options;
pub(crate) use wire::Wire;

/// All groups, and the tasks that send.
#[derive(Debug)]
pub(crate) struct Groups {
    /// One for each thread of the runtime. With only one, one thread would do all the writing.
    shards: Vec<mpsc::UnboundedSender<Event>>,
    /// How many times a subscriber joined a group. Each join goes to the next shard.
    joined: AtomicUsize,
    /// How long a socket may take nothing.
    stall: Duration,
    tasks: TaskTracker,
    stopping: CancellationToken,
    overdue: CancellationToken,
}

impl Groups {
    /// No groups yet, with a shard for each feed. Keep-alives are sent after the first of `times`, and who
    /// takes nothing for the second is cut. `tasks` tracks their tasks, which end once every subscription
    /// ends and `stopping` is cancelled, and at once when `overdue` is.
    pub(crate) fn new(
        feeds: Vec<Feed>,
        (keep_alive, stall): (Duration, Duration),
        tasks: TaskTracker,
        stopping: CancellationToken,
        overdue: CancellationToken,
    ) -> Arc<Self> {
        let shards = feeds.into_iter().map(|feed| Shard::new(feed, keep_alive, tasks.clone()));
        let (shards, senders): (Vec<_>, _) = shards.unzip();
        let groups = Groups { shards: senders, joined: AtomicUsize::new(0), stall, tasks, stopping, overdue };
        let groups = Arc::new(groups);
        for shard in shards {
            let owner = Arc::clone(&groups);
            groups.tasks.spawn(shard.run(move |catch_up| owner.resume(catch_up)));
        }
        groups
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
            if let Some(caught_up) = catch_up.run(groups.stall, &groups.stopping, &groups.overdue).await {
                groups.join(caught_up);
            }
        });
    }

    fn join(self: &Arc<Self>, caught_up: CatchUp) {
        let shard = self.joined.fetch_add(1, Ordering::Relaxed) % self.shards.len();
        // Fails once every subscription ends.
        if let Err(SendError(Event::Join(joining))) =
            self.shards[shard].send(Event::Join(Box::new(caught_up)))
            && let Some(unsent) = joining.end(Reason::Shutdown)
        {
            self.resume(unsent);
        }
    }
}
