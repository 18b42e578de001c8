//! Committed messages on their way from the journal to the hub.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::entry::Batch;

/// Every message that the journal commits after it was opened: in order, each once, in batches.
#[derive(Debug)]
pub struct Committed(Arc<Queue>);

/// The journal's end of [`Committed`].
#[derive(Debug)]
pub(super) struct Announcer(Arc<Queue>);

/// The batches that [`Committed::next`] has not returned yet. Unbounded: the hub takes what was committed
/// before it appends more. Not one of tokio's queues, which would wake the hub for what it appends itself.
#[derive(Debug, Default)]
struct Queue {
    batches: Mutex<VecDeque<Batch>>,
    grown: Notify,
}

/// The two ends of a new queue.
pub(super) fn announcements() -> (Announcer, Committed) {
    let queue = Arc::<Queue>::default();
    (Announcer(Arc::clone(&queue)), Committed(queue))
}

impl Announcer {
    /// Gives the batch to [`Committed::next`]. Its messages must be readable already.
    pub(super) fn announce(&self, batch: Batch) {
        // Not if the `Committed` was dropped: a journal works without a hub.
        if !batch.is_empty() && Arc::strong_count(&self.0) > 1 {
            self.0.batches.lock().unwrap_or_else(PoisonError::into_inner).push_back(batch);
            self.0.grown.notify_one();
        }
    }
}

impl Committed {
    /// Waits for the next batch, of at least one message. Dropping the future loses no batch.
    pub async fn next(&mut self) -> Batch {
        loop {
            let batch = self.0.batches.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(batch) = batch {
                return batch;
            }
            self.0.grown.notified().await;
        }
    }
}
