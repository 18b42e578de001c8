//! Tokens that were found right a moment ago, so that a storm of reconnects costs hashes and not signatures.

use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::caller::Caller;
use super::halves::{Halves, Hash};

/// The most tokens. Higher: more memory, a few hundred bytes each. Lower: of as many users, some are verified
/// more than once a minute.
const MOST: usize = 10_000;

/// How long a token is remembered, in seconds. Higher: more is remembered of those that are gone. Lower: more
/// signatures are verified.
const LONGEST: u64 = 60;

/// The callers of tokens, by the tokens' SHA-256.
#[derive(Debug)]
pub(super) struct Cache(Mutex<Halves<Known>>);

impl Default for Cache {
    fn default() -> Self {
        Cache(Mutex::new(Halves::new(MOST)))
    }
}

#[derive(Debug)]
struct Known {
    caller: Caller,
    /// Until when it is known, in seconds since 1970.
    until: u64,
}

impl Cache {
    /// Whose the token is, now. What is not known, `verify` says.
    ///
    /// # Errors
    /// As of `verify`.
    pub(super) fn caller<E>(
        &self,
        token: &str,
        now: u64,
        verify: impl FnOnce() -> Result<Caller, E>,
    ) -> Result<Caller, E> {
        let hash = Sha256::digest(token).into();
        if let Some(caller) = self.get(&hash, now) {
            return Ok(caller);
        }
        let caller = verify()?;
        self.keep(hash, &caller, now);
        Ok(caller)
    }

    fn get(&self, hash: &Hash, now: u64) -> Option<Caller> {
        let mut halves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = halves.get(hash)?;
        (now < known.until).then(|| known.caller.clone())
    }

    fn keep(&self, hash: Hash, caller: &Caller, now: u64) {
        let expires = caller.token().and_then(|token| token.expires).unwrap_or(u64::MAX);
        let known = Known { caller: caller.clone(), until: expires.min(now.saturating_add(LONGEST)) };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(hash, known);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::auth::caller::Token;
    use crate::auth::grants::Grants;

    /// A cache, and how often it asked whose a token is that expires then.
    #[derive(Default)]
    struct Counted {
        cache: Cache,
        count: Cell<usize>,
    }

    impl Counted {
        fn ask(&self, token: &str, now: u64, expires: u64) -> usize {
            let caller = self.cache.caller(token, now, || {
                self.count.set(self.count.get() + 1);
                let token = Token { id: Some(token.into()), expires: Some(expires), ..Token::default() };
                Ok::<_, ()>(Caller::with_token(token, Grants::default()))
            });
            assert_eq!(caller.unwrap().token().unwrap().id.as_deref(), Some(token));
            self.count.get()
        }
    }

    #[test]
    fn a_token_is_verified_once_a_minute_and_again_when_it_has_ended() {
        let counted = Counted::default();
        assert_eq!([0, 1, 59].map(|now| counted.ask("a", now, 1_000)), [1, 1, 1]);
        assert_eq!([60, 61, 119].map(|now| counted.ask("a", now, 1_000)), [2, 2, 2]);
        assert_eq!([0, 9, 10, 11].map(|now| counted.ask("b", now, 10)), [3, 3, 4, 5]);
    }

    #[test]
    fn what_is_wrong_is_not_remembered() {
        let cache = Cache::default();
        assert_eq!(cache.caller("a", 0, || Err(1)).unwrap_err(), 1);
        assert_eq!(cache.caller("a", 0, || Err(2)).unwrap_err(), 2);
    }

    #[test]
    fn there_are_never_more_tokens_than_the_limit_and_the_oldest_go_first() {
        let counted = Counted::default();
        let names: Vec<_> = (0..MOST + 1).map(|number| number.to_string()).collect();
        for name in &names {
            counted.ask(name, 0, 99);
            assert!(counted.cache.0.lock().unwrap().len() <= MOST);
        }
        assert_eq!(counted.ask(&names[MOST], 0, 99), MOST + 1);
        assert_eq!(counted.ask(&names[MOST / 2], 0, 99), MOST + 1);
        assert_eq!(counted.ask(&names[0], 0, 99), MOST + 2);
    }
}
