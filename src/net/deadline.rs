//! A deadline: when the other side of a connection is no longer waited for.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

/// A timer, which is made when it is first needed, and what it is set for.
#[derive(Debug)]
pub(super) struct Deadline<T> {
    timer: Option<Pin<Box<Sleep>>>,
    awaited: Option<T>,
}

impl<T: PartialEq> Deadline<T> {
    pub(super) const fn new() -> Self {
        Deadline { timer: None, awaited: None }
    }

    /// Ready once `awaited` has been waited for so long. Anything else that is waited for begins anew.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, awaited: T, time: Duration) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(time)));
        if self.awaited.as_ref() != Some(&awaited) {
            self.awaited = Some(awaited);
            timer.set(sleep(time));
        }
        timer.as_mut().poll(cx)
    }
}
