//! A pass: what is due to the stream of a subscriber whose caller has a token. The hub's
//! [`Passes`](super::passes::Passes) say what is due and when, and whoever has the stream's socket sends it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::reason::Reason;
use crate::message::Time;

/// The bytes of a stream's id, by which its caller renews it. Nobody can guess it.
pub(super) type StreamId = [u8; 16];

/// A subscriber's pass.
#[derive(Debug)]
pub struct Pass {
    pub(super) id: StreamId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    due: Option<Due>,
    /// Wakes whoever has the stream's socket.
    waker: Option<Waker>,
}

/// What is due to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The event that says when the token expires.
    Expiring(Time),
    /// The end.
    End(Reason),
}

impl Pass {
    pub(super) fn new() -> Self {
        let mut id = StreamId::default();
        aws_lc_rs::rand::fill(&mut id).expect("the system has random numbers");
        Pass { id, state: Mutex::default() }
    }

    /// The id of the stream: 22 characters of base64url.
    pub fn stream(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.id)
    }

    /// The id that this text is. `None` if it is none.
    pub(super) fn parse(stream: &str) -> Option<StreamId> {
        URL_SAFE_NO_PAD.decode(stream).ok()?.try_into().ok()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes this due, and wakes whoever has the socket. Nothing is due after an end.
    pub(super) fn set(&self, due: Due) {
        let mut state = self.state();
        if state.end().is_none() {
            state.due = Some(due);
        }
        let waker = state.waker.clone();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The token that was about to expire does so later. Returns false if the stream ends already.
    pub(super) fn renew(&self) -> bool {
        let mut state = self.state();
        let is_over = state.end().is_some();
        if !is_over {
            state.due = None;
        }
        !is_over
    }

    /// Why the stream is to end, if it is.
    pub fn end(&self) -> Option<Reason> {
        self.state().end()
    }

    /// Ready if something is due. From now on, it is this task that is woken.
    pub fn poll_due(&self, cx: &mut Context<'_>) -> Poll<Due> {
        let mut state = self.state();
        state.waker = Some(cx.waker().clone());
        state.due.map_or(Poll::Pending, Poll::Ready)
    }

    /// Ready once the stream is to end. From now on, it is this task that is woken.
    pub fn poll_end(&self, cx: &mut Context<'_>) -> Poll<Reason> {
        let mut state = self.state();
        state.waker = Some(cx.waker().clone());
        state.end().map_or(Poll::Pending, Poll::Ready)
    }

    /// Takes what is due. An end stays due.
    pub fn take_due(&self) -> Option<Due> {
        let mut state = self.state();
        let due = state.due;
        if let Some(Due::Expiring(_)) = due {
            state.due = None;
        }
        due
    }
}

impl State {
    fn end(&self) -> Option<Reason> {
        match self.due {
            Some(Due::End(reason)) => Some(reason),
            _ => None,
        }
    }
}
