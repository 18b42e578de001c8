//! The journal's announcements: what it has committed, whoever appended it, for the hub to pass on.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::entry::Batch;

/// Gives every message the journal commits from its opening on: in order, each once, in batches. A
/// batch is readable before it is given.
#[derive(Debug)]
pub struct Committed(Arc<Queue>);

/// Where a journal puts the batches it has committed.
#[derive(Debug)]
pub(super) struct Announcer(Arc<Queue>);

/// The batches that were not taken yet. Nothing bounds them but the hub, which takes what was committed
/// before it appends more. Not a tokio channel: the hub must not be woken by what it appends itself.
#[derive(Debug, Default)]
struct Queue {
    batches: Mutex<VecDeque<Batch>>,
    grown: Notify,
}

/// The two ends.
pub(super) fn announcements() -> (Announcer, Committed) {
    let queue = Arc::<Queue>::default();
    (Announcer(Arc::clone(&queue)), Committed(queue))
}

impl Announcer {
    pub(super) fn announce(&self, batch: Batch) {
        // Nothing is put where nobody will take it: a journal can be used without a hub.
        if !batch.is_empty() && Arc::strong_count(&self.0) > 1 {
            self.0.batches.lock().unwrap_or_else(PoisonError::into_inner).push_back(batch);
            self.0.grown.notify_one();
        }
    }
}

impl Committed {
    /// Waits for the next batch. Dropping the future loses nothing.
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
