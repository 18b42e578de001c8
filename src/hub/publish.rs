//! Publishing: appends the messages that wait, announces what is committed, answers the publishers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::yield_now;

use super::core::Core;
use crate::journal::{Append, Appended, Committed, JournalError};
use crate::message::Receipt;

/// Messages appended at once. More would make the first of them wait for no gain.
const BATCH: usize = 256;

/// Publishes waiting to be appended, beyond which publishers wait. Their bytes are bounded by the
/// caller, see [`Hub::publish`](super::Hub::publish).
pub(super) const INBOX: usize = 1024;

/// A publish that waits to be appended.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) append: Append,
    pub(super) permit: OwnedSemaphorePermit,
    pub(super) answer: oneshot::Sender<Result<Published, PublishError>>,
}

/// What a publish came to.
#[derive(Debug)]
pub enum Published {
    /// The message is kept, and was announced to this many subscribers of its channel.
    New {
        /// What its publisher is answered.
        receipt: Receipt,
        /// Those subscribed to its channel, `except` among them.
        subscribers: usize,
    },
    /// The same request was published before, under the same key; this was its answer.
    Repeated(Receipt),
}

/// Why nothing was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The key came before, with another request.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// There is no space to keep the message.
    #[error("there is no space for the journal")]
    NoSpace,
    /// The journal can't be written now; it may be later.
    #[error("the journal is unavailable")]
    Unavailable {
        /// How long to wait before another try.
        retry_after: Duration,
    },
    /// The journal failed, or the hub stopped, while the message was appended: it may be kept or not.
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

/// Appends what comes by the inbox, all that waits at once, and announces what the journal has
/// committed. Ends with the other end of `requests`.
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
                // Whoever is about to publish has its turn first: then all share one append, one round
                // of the fan-out and, in a file, one fsync.
                yield_now().await;
                while waiting.len() < BATCH
                    && let Ok(publish) = requests.try_recv()
                {
                    waiting.push(publish);
                }
                append(&core, &mut committed, &mut waiting).await;
            }
            batch = committed.next() => core.live.announce(&batch),
        }
    }
}

/// Appends these publishes, and answers each once its message is kept and announced.
async fn append(core: &Core, committed: &mut Committed, waiting: &mut Vec<Publish>) {
    let count = waiting.len();
    let (mut batch, mut permits, mut answers) =
        (Vec::with_capacity(count), Vec::with_capacity(count), Vec::with_capacity(count));
    for Publish { append, permit, answer } in waiting.drain(..) {
        batch.push(append);
        permits.push(permit);
        answers.push(answer);
    }
    let appending = core.journal.append(batch);
    tokio::pin!(appending);
    let appended = loop {
        tokio::select! {
            biased;
            appended = &mut appending => break appended,
            // Also what others have appended, while the journal works.
            batch = committed.next() => core.live.announce(&batch),
        }
    };
    drop(permits);
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
        Appended::New(receipt) => Some(receipt.id.sequence),
        Appended::Repeated(_) | Appended::KeyReused => None,
    };
    let last = appended.iter().rev().find_map(sequence).unwrap_or(0);
    while core.live.feeds().announced < last {
        core.live.announce(&committed.next().await);
    }
    let results: Vec<_> = {
        let feeds = core.live.feeds();
        let published = |appended| match appended {
            Appended::New(receipt) => {
                let subscribers = feeds.subscribers(&receipt.channel);
                Ok(Published::New { receipt, subscribers })
            }
            Appended::Repeated(receipt) => Ok(Published::Repeated(receipt)),
            Appended::KeyReused => Err(PublishError::KeyReused),
        };
        appended.into_iter().map(published).collect()
    };
    for (answer, result) in answers.into_iter().zip(results) {
        // A publisher that hung up has its message kept all the same.
        let _ = answer.send(result);
    }
}
