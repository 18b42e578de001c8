//! Turns: how many may do the same thing at once. The networks that wait have their turns one after the
//! other, however many of one network wait.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use super::network::Network;

/// Turns, of which a number can be taken at once. Clones are the same turns.
#[derive(Clone, Debug)]
pub(crate) struct Turns(Arc<Mutex<Queue>>);

#[derive(Debug)]
struct Queue {
    /// How many more turns can be taken now. Nobody waits unless this is 0.
    free: usize,
    /// Those who wait, by network. The first network has the next turn. None is empty.
    waiting: VecDeque<(Option<Network>, VecDeque<oneshot::Sender<Turn>>)>,
}

/// A turn. Dropping it gives it to the next who waits.
#[derive(Debug)]
pub(crate) struct Turn(Turns);

impl Turns {
    pub(crate) fn new(at_once: usize) -> Self {
        Turns(Arc::new(Mutex::new(Queue { free: at_once, waiting: VecDeque::new() })))
    }

    /// Waits for a turn of this network; the hub's own work has `None`. Dropping the future gives up the
    /// place.
    pub(crate) async fn take(&self, network: Option<Network>) -> Turn {
        let turn = {
            let mut queue = self.queue();
            if queue.free > 0 {
                queue.free -= 1;
                return Turn(self.clone());
            }
            let (sender, turn) = oneshot::channel();
            match queue.waiting.iter_mut().find(|(waiting, _)| *waiting == network) {
                Some((_, senders)) => senders.push_back(sender),
                None => queue.waiting.push_back((network, [sender].into())),
            }
            turn
        };
        turn.await.expect("a sender is dropped only after it has sent")
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is next. Counts the turn as free if nobody waits.
    fn next(&self) -> Option<oneshot::Sender<Turn>> {
        let mut queue = self.queue();
        let Some((network, mut senders)) = queue.waiting.pop_front() else {
            queue.free += 1;
            return None;
        };
        let next = senders.pop_front();
        if !senders.is_empty() {
            queue.waiting.push_back((network, senders));
        }
        next
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        while let Some(next) = self.0.next() {
            if next.is_closed() {
                continue;
            }
            // If the receiver is dropped meanwhile, the turn is dropped with it, and is passed on there.
            let _ = next.send(Turn(self.0.clone()));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[tokio::test]
    async fn networks_have_their_turns_one_after_the_other() {
        let network = |last: u8| Some(Network::from(IpAddr::from([10, 0, 0, last])));
        let turns = Turns::new(1);
        let first = turns.take(network(1)).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiting = Vec::new();
        for (name, last) in [("a1", 1), ("a2", 1), ("gone", 1), ("a3", 1), ("b1", 2), ("b2", 2), ("c1", 3)] {
            let (turns, order) = (turns.clone(), Arc::clone(&order));
            let task = tokio::spawn(async move {
                let _turn = turns.take(network(last)).await;
                order.lock().unwrap().push(name);
            });
            tokio::task::yield_now().await;
            if name == "gone" { task.abort() } else { waiting.push(task) }
        }
        drop(first);
        for task in waiting {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), ["a1", "b1", "c1", "a2", "b2", "a3"]);
        assert_eq!(turns.queue().free, 1);
    }
}
