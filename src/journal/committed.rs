//! The journal's announcements: what it has committed, whoever appended it, for the hub to pass on.

use tokio::sync::mpsc;

use super::entry::Batch;

/// Gives every message the journal commits from its opening on: in order, each once, in batches. A
/// batch is readable before it is given.
#[derive(Debug)]
pub struct Committed(mpsc::UnboundedReceiver<Batch>);

/// Where a journal puts the batches it has committed.
#[derive(Debug)]
pub(super) struct Announcer(mpsc::UnboundedSender<Batch>);

/// The two ends. Nothing bounds what waits between them but the hub: it takes what was committed
/// before it appends more.
pub(super) fn announcements() -> (Announcer, Committed) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Announcer(sender), Committed(receiver))
}

impl Announcer {
    pub(super) fn announce(&self, batch: Batch) {
        if !batch.is_empty() {
            // Fails only if nobody listens: a journal can be used without a hub.
            let _ = self.0.send(batch);
        }
    }
}

impl Committed {
    /// Waits for the next batch. Never ready again once the journal is closed. Dropping the future
    /// loses nothing.
    pub async fn next(&mut self) -> Batch {
        match self.0.recv().await {
            Some(batch) => batch,
            None => std::future::pending().await,
        }
    }
}
