//! Publishing: appends waiting messages, announces committed messages, answers the publishers.

use std::sync::Arc;
use std::time::Duration;
use std::vec::Drain;

use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};
use tokio::task::yield_now;

use super::core::Core;
use crate::journal::{Append, Appended, Committed, JournalError};
use crate::limits::Lease;
use crate::message::Receipts;

/// The most messages in one append, unless its first publish has more. Higher: the first of them waits
/// longer, for no gain. Lower: more appends, of one fsync each.
const BATCH: usize = 256;

/// The most bytes of data that one append stores or erases, unless its first publish has more. Higher: an
/// append takes longer, and the write-ahead log of a file grows by more at once. Lower: large messages need
/// more fsyncs.
const BATCH_BYTES: usize = 4 << 20;

/// The most publishes in the inbox; further publishers wait for space. Higher than these four batches: of no
/// use, as publishes only wait in another place. Lower: the next batch might not be complete. The leases of
/// [`Hub::publish`](super::Hub::publish) bound the bytes.
pub(super) const INBOX: usize = 1024;

/// A publish that waits to be appended.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) append: Append,
    pub(super) lease: Lease,
    pub(super) answer: oneshot::Sender<Result<Published, PublishError>>,
}

/// The result of a publish.
#[derive(Debug)]
pub enum Published {
    /// The messages are stored and announced.
    New {
        /// The answer for the publisher.
        receipts: Receipts,
        /// How many subscribers each message's channel has, the one in `except` among them.
        subscribers: SmallVec<[usize; 1]>,
    },
    /// The same request was published before, under the same key, and has these receipts.
    Repeated(Receipts),
}

/// Why nothing was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// Another request was published before, under the same key.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// The message that was to be deleted is not kept.
    #[error("there is no such message")]
    NotKept,
    /// The disk is full.
    #[error("there is no space for the journal")]
    NoSpace,
    /// The journal can't be written now, but may be later.
    #[error("the journal is unavailable")]
    Unavailable {
        /// How long to wait before another try.
        retry_after: Duration,
    },
    /// The journal failed, or the hub stopped, during the append. The message may be stored or not.
    #[error("it is not known whether the message is kept")]
    Unknown,
}

impl From<JournalError> for PublishError {
    fn from(error: JournalError) -> Self {
        match error {
            JournalError::NoSpace => PublishError::NoSpace,
            JournalError::Unavailable { retry_after } => PublishError::Unavailable { retry_after },
            JournalError::Failed => PublishError::Unknown,
        }
    }
}

/// The hub's task: appends the waiting publishes in batches, and announces committed messages. Ends once
/// every sender of `requests` is dropped.
pub(super) async fn run(core: Arc<Core>, mut committed: Committed, mut requests: mpsc::Receiver<Publish>) {
    let mut waiting = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            // Publishes first: `append` announces what is committed as well.
            biased;
            count = requests.recv_many(&mut waiting, BATCH) => {
                if count == 0 {
                    return;
                }
                // Other publishers that are ready have their turn first. Their messages then share one
                // append, one round of the fan-out and, in a file, one fsync.
                yield_now().await;
                while waiting.len() < BATCH
                    && let Ok(publish) = requests.try_recv()
                {
                    waiting.push(publish);
                }
                while !waiting.is_empty() {
                    let count = next_batch(&waiting);
                    append(&core, &mut committed, waiting.drain(..count)).await;
                }
            }
            batch = committed.next() => core.live.announce(&batch),
        }
    }
}

/// How many of the waiting publishes the next append takes, the first of them in any case.
fn next_batch(waiting: &[Publish]) -> usize {
    let (mut count, mut bytes) = (0, 0);
    let fits = |publish: &&Publish| {
        count += publish.append.count();
        bytes += match publish.append {
            Append::Erase(_) => publish.lease.bytes(),
            _ => publish.append.bytes(),
        };
        count <= BATCH && bytes <= BATCH_BYTES
    };
    waiting.iter().take_while(fits).count().max(1)
}

/// Appends these publishes as one batch, and answers each once its message is stored and announced.
async fn append(core: &Core, committed: &mut Committed, publishes: Drain<'_, Publish>) {
    let count = publishes.len();
    let (mut batch, mut leases, mut answers) =
        (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
    for Publish { append, lease, answer } in publishes {
        batch.push(append);
        leases.push(lease);
        answers.push(answer);
    }
    let appending = core.journal.append(batch);
    tokio::pin!(appending);
    let appended = loop {
        tokio::select! {
            biased;
            appended = &mut appending => break appended,
            // The journal may commit messages of others during the append.
            batch = committed.next() => core.live.announce(&batch),
        }
    };
    drop(leases);
    let appended = match appended {
        Ok(appended) => appended,
        Err(error) => {
            for answer in answers {
                let _ = answer.send(Err(error.into()));
            }
            return;
        }
    };
    let sequence = |appended: &Appended| match appended {
        Appended::New(receipts) => receipts.last().map(|receipt| receipt.id.sequence),
        Appended::Repeated(_) | Appended::KeyReused | Appended::NotKept => None,
    };
    let last = appended.iter().rev().find_map(sequence).unwrap_or(0);
    while core.live.state().announced < last {
        core.live.announce(&committed.next().await);
    }
    let results: Vec<_> = {
        let live = core.live.state();
        let published = |appended| match appended {
            Appended::New(receipts) => {
                let subscribers = receipts.iter().map(|receipt| live.subscribers(&receipt.channel)).collect();
                Ok(Published::New { receipts, subscribers })
            }
            Appended::Repeated(receipts) => Ok(Published::Repeated(receipts)),
            Appended::KeyReused => Err(PublishError::KeyReused),
            Appended::NotKept => Err(PublishError::NotKept),
        };
        appended.into_iter().map(published).collect()
    };
    for (answer, result) in answers.into_iter().zip(results) {
        // Fails only if the publisher hung up. Its message is stored all the same.
        let _ = answer.send(result);
    }
}
