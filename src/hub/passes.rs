//! The passes of all streams whose callers have tokens, by the streams' ids and by when something is due. One
//! timer is for all of them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::pass::{Due, Pass, StreamId};
use super::reason::Reason;
use crate::auth::{Caller, Verb};
use crate::journal::Channels;
use crate::message::{Pattern, Time};

/// How long before its end a stream is sent the event that announces it, or half of the time that is left.
/// Higher: pages get new tokens more often. Lower: one that takes long to get a token loses its stream.
const NOTICE: Duration = Duration::from_secs(60);

/// The longest sleep of the timer. Higher: it takes longer until it is noticed that the system's clock was
/// set, or that the machine slept. Lower: the hub wakes for nothing more often.
const LONGEST_SLEEP: Duration = Duration::from_secs(10);

/// All passes, of which there are no more than subscribers.
#[derive(Debug)]
pub(super) struct Passes {
    shared: Arc<Shared>,
    _timer: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when something is due sooner than all else.
    is_sooner: Notify,
}

#[derive(Debug, Default)]
struct State {
    by_id: HashMap<StreamId, Held>,
    /// When something is due next, to which stream.
    by_time: BTreeSet<(Time, StreamId)>,
}

/// A pass, and for what it was given.
#[derive(Debug)]
struct Held {
    pass: Arc<Pass>,
    caller: Caller,
    channels: Channels,
    /// When something is due next.
    next: Option<Time>,
}

/// Why a stream does not go on for longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRenewed {
    /// There is none of this id.
    #[error("there is no such stream, or it has ended")]
    NoStream,
    /// The token is not of the stream's subject.
    #[error("the stream is of another subject than the token")]
    OtherSubject,
    /// The token does not grant to subscribe to this channel of the stream.
    #[error("the token does not grant the stream's channel {}", .0.as_str())]
    NotGranted(Pattern),
}

impl Passes {
    /// No passes yet, and their timer. Must be called on a tokio runtime.
    pub(super) fn new() -> Self {
        let shared = Arc::<Shared>::default();
        let timer = tokio::spawn(run(Arc::clone(&shared)));
        Passes { shared, _timer: AbortOnDropHandle::new(timer) }
    }

    /// The pass of a stream of these channels. `None` if the caller has no token. Whoever has it must
    /// [remove](Self::remove) it.
    pub(super) fn add(&self, caller: &Caller, channels: &Channels) -> Option<Arc<Pass>> {
        caller.token()?;
        let pass = Arc::new(Pass::new());
        let (caller, channels) = (caller.clone(), channels.clone());
        let held = Held { pass: Arc::clone(&pass), caller, channels, next: None };
        let mut state = self.shared.state();
        state.by_id.insert(pass.id, held);
        self.shared.schedule(&mut state, pass.id);
        Some(pass)
    }

    /// Forgets a pass whose stream has ended.
    pub(super) fn remove(&self, pass: &Pass) {
        let mut state = self.shared.state();
        if let Some(Held { next: Some(next), .. }) = state.by_id.remove(&pass.id) {
            state.by_time.remove(&(next, pass.id));
        }
    }

    /// See [`Hub::renew`](super::Hub::renew).
    pub(super) fn renew(&self, stream: &str, caller: &Caller) -> Result<(), NotRenewed> {
        let id = Pass::parse(stream).ok_or(NotRenewed::NoStream)?;
        // What ends a stream has this lock too: a stream is renewed, or it ends.
        let mut state = self.shared.state();
        let held = state.by_id.get_mut(&id).ok_or(NotRenewed::NoStream)?;
        if !held.caller.is_same(caller) {
            return Err(NotRenewed::OtherSubject);
        }
        if let Some(channel) = held.channels.iter().find(|channel| !caller.may(Verb::Subscribe, channel)) {
            return Err(NotRenewed::NotGranted(channel.clone()));
        }
        if !held.pass.renew() {
            return Err(NotRenewed::NoStream);
        }
        held.caller = caller.clone();
        self.shared.schedule(&mut state, id);
        Ok(())
    }

    /// See [`Hub::end_revoked`](super::Hub::end_revoked).
    pub(super) fn end_revoked(&self, is_revoked: impl Fn(&Caller) -> bool) -> usize {
        let state = self.shared.state();
        let revoked = state.by_id.values().filter(|held| is_revoked(&held.caller));
        revoked.map(|held| held.pass.set(Due::End(Reason::Revoked))).count()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the timer look at the pass of this id when its caller's token is about to expire.
    fn schedule(&self, state: &mut State, id: StreamId) {
        let State { by_id, by_time } = state;
        let Some(held) = by_id.get_mut(&id) else { return };
        if let Some(before) = held.next.take() {
            by_time.remove(&(before, id));
        }
        let Some(expires) = held.caller.expires() else { return };
        let left = expires.as_ms().saturating_sub(Time::now().as_ms());
        let notice = u64::try_from(NOTICE.as_millis()).unwrap_or(u64::MAX).min(left / 2);
        let next = Time::from_ms(expires.as_ms() - notice);
        held.next = Some(next);
        by_time.insert((next, id));
        if by_time.first() == Some(&(next, id)) {
            self.is_sooner.notify_one();
        }
    }
}

impl State {
    /// Makes due whatever is at this time. Returns when there is more.
    fn look(&mut self, now: Time) -> Option<Time> {
        while let Some((at, id)) = self.by_time.first().copied() {
            if at > now {
                return Some(at);
            }
            self.by_time.pop_first();
            let Some(held) = self.by_id.get_mut(&id) else { continue };
            held.next = held.caller.expires().filter(|expires| *expires > now);
            match held.next {
                Some(expires) => {
                    held.pass.set(Due::Expiring(expires));
                    self.by_time.insert((expires, id));
                }
                None => held.pass.set(Due::End(Reason::Expired)),
            }
        }
        None
    }
}

/// Looks at the passes whenever something is due.
async fn run(shared: Arc<Shared>) {
    loop {
        let now = Time::now();
        let next = shared.state().look(now);
        let left = next.map(|next| Duration::from_millis(next.as_ms().saturating_sub(now.as_ms())));
        tokio::select! {
            () = shared.is_sooner.notified() => {}
            () = sleep(left.map_or(Duration::MAX, |left| left.min(LONGEST_SLEEP))) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{Grants, Token};

    /// Somebody whose token expires so many seconds after now.
    fn caller(seconds: u64) -> (Caller, Time) {
        let expires = Time::now().as_seconds() + seconds;
        let token = Token { expires: Some(expires), ..Token::default() };
        (Caller::with_token(token, Grants::all()), Time::from_ms(expires * 1_000))
    }

    #[tokio::test]
    async fn an_end_is_announced_a_minute_before_it_comes_and_then_it_comes() {
        let passes = Passes::new();
        let (caller, expires) = caller(3_600);
        let pass = passes.add(&caller, &Channels::new([])).unwrap();
        let before = |ms| Time::from_ms(expires.as_ms() - ms);
        let look = |now| (passes.shared.state().look(now), pass.take_due());
        assert_eq!(look(before(60_001)), (Some(before(60_000)), None));
        assert_eq!(look(before(60_000)), (Some(expires), Some(Due::Expiring(expires))));
        assert_eq!(look(before(1)), (Some(expires), None));
        assert_eq!(look(expires), (None, Some(Due::End(Reason::Expired))));
        assert_eq!(passes.renew(&pass.stream(), &caller), Err(NotRenewed::NoStream));
        assert_eq!((passes.end_revoked(|_| true), pass.end()), (1, Some(Reason::Expired)));
    }

    #[tokio::test]
    async fn a_renewal_moves_what_is_due() {
        let passes = Passes::new();
        let ((short, expires), (long, later)) = (caller(3_600), caller(7_200));
        let pass = passes.add(&short, &Channels::new([])).unwrap();
        let look = |now| passes.shared.state().look(now);
        look(Time::from_ms(expires.as_ms() - 1));
        // It was due, and nobody took it.
        passes.renew(&pass.stream(), &long).unwrap();
        assert_eq!((pass.take_due(), look(expires)), (None, Some(Time::from_ms(later.as_ms() - 60_000))));
        assert_eq!(pass.take_due(), None);
        passes.renew(&pass.stream(), &short).unwrap();
        assert_eq!((look(expires), pass.end()), (None, Some(Reason::Expired)));
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_pass_that_is_removed() {
        let passes = Passes::new();
        assert!(passes.add(&Caller::anyone(), &Channels::new([])).is_none());
        let pass = passes.add(&caller(3_600).0, &Channels::new([])).unwrap();
        passes.remove(&pass);
        let state = passes.shared.state();
        assert!(state.by_id.is_empty() && state.by_time.is_empty());
    }
}
