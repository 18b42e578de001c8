//! The provider of `--jwks-url`: its keys, fetched now and then. While it is down, the keys that it had last
//! are good.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::caller::Caller;
use super::jwt::Fault;
use super::keys::Keys;
use super::refused::Refused;
use crate::fetch::{Fetch, Fetched, Url};

/// How long a fetch may take. Higher: while there are no keys yet, requests with a token wait for longer.
/// Lower: a slow provider is given up.
const WITHIN: Duration = Duration::from_secs(5);

/// The longest set of keys, in bytes. Higher: more memory for what was never meant to be one. Lower: a set of
/// many keys with certificates would be refused.
const LONGEST: usize = 256 << 10;

/// How long keys are good whose provider does not say how long. Higher: a key that was taken back is good for
/// longer. Lower: more fetches.
const KEPT: Duration = Duration::from_secs(15 * 60);

/// The least and the most of what a provider may say instead.
const KEPT_BETWEEN: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 60 * 60));

/// How long after a fetch that failed the next one is. Higher: keys that were taken back meanwhile are good
/// for longer. Lower: a provider that is down is asked more often.
const AGAIN: Duration = Duration::from_secs(30);

/// The same while there are no keys at all. Higher: tokens are refused for longer once the provider is back.
/// Lower: a provider that is down is asked more often.
const AGAIN_WITHOUT_KEYS: Duration = Duration::from_secs(1);

/// How long after a fetch for a key that was not known the next such fetch is. Higher: a provider that
/// changes its keys twice has its tokens refused for longer. Lower: whoever makes up keys has the provider
/// asked more often.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(30);

/// The provider, and what it had.
#[derive(Debug)]
pub(super) struct Provider {
    fetch: Fetch,
    state: Mutex<State>,
    /// Locked while there is a fetch.
    fetching: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct State {
    keys: Option<Arc<Keys>>,
    /// When the keys are to be fetched again.
    due: Instant,
    /// From when on a key that is not known is a reason to fetch them.
    unknown_from: Instant,
    /// Whether the last fetch failed.
    is_failing: bool,
}

impl Provider {
    /// A provider of which nothing is fetched yet.
    ///
    /// # Errors
    /// If this machine has no certificates by which another can be known.
    pub(super) fn new(url: Url) -> io::Result<Arc<Self>> {
        let now = Instant::now();
        let state = State { keys: None, due: now, unknown_from: now, is_failing: false };
        let (fetch, fetching) = (Fetch::new(url, LONGEST)?, Arc::default());
        Ok(Arc::new(Provider { fetch, state: Mutex::new(state), fetching }))
    }

    /// Where its keys are.
    pub(super) fn url(&self) -> &Url {
        self.fetch.url()
    }

    /// Whose a token is that `verify` looks at, by the provider's keys.
    ///
    /// # Errors
    /// As of `verify`, or if there are no keys yet.
    pub(super) async fn caller(
        self: &Arc<Self>,
        verify: impl Fn(&Keys) -> Result<Caller, Fault>,
    ) -> Result<Caller, Refused> {
        let mut keys = self.begin_if_due();
        if keys.is_none() {
            self.end().await;
            keys = self.state().keys.clone();
        }
        let keys = keys.ok_or(Refused::Unavailable("the keys of tokens can't be fetched at the moment"))?;
        match verify(&keys) {
            Err(Fault::UnknownKey(refused)) => match self.newer(&keys).await {
                Some(keys) => Ok(verify(&keys)?),
                None => Err(refused),
            },
            verified => Ok(verified?),
        }
    }

    /// Begins to fetch the keys if it is time. Returns those that there are.
    pub(super) fn begin_if_due(self: &Arc<Self>) -> Option<Arc<Keys>> {
        let state = self.state();
        if state.due <= Instant::now() {
            self.begin();
        }
        state.keys.clone()
    }

    /// Keys that are newer than these. Whoever makes up keys can't have them fetched again and again.
    async fn newer(self: &Arc<Self>, keys: &Arc<Keys>) -> Option<Arc<Keys>> {
        {
            let (mut state, now) = (self.state(), Instant::now());
            if state.unknown_from <= now && self.begin() {
                state.unknown_from = now + UNKNOWN_AGAIN;
            }
        }
        self.end().await;
        self.state().keys.clone().filter(|newer| !Arc::ptr_eq(newer, keys))
    }

    /// Begins a fetch. False if there is one already.
    fn begin(self: &Arc<Self>) -> bool {
        let Ok(fetching) = Arc::clone(&self.fetching).try_lock_owned() else { return false };
        let provider = Arc::clone(self);
        // Not of the request: it may be dropped meanwhile.
        tokio::spawn(async move {
            provider.fetch().await;
            drop(fetching);
        });
        true
    }

    /// Waits for the end of the fetch, if there is one.
    async fn end(&self) {
        drop(self.fetching.lock().await);
    }

    async fn fetch(&self) {
        let fetched = self.fetch.get(&[], Instant::now() + WITHIN).await;
        let read = fetched.map_err(|error| error.to_string()).and_then(|fetched| read(&fetched));
        let (url, mut state) = (self.url(), self.state());
        let again = match read {
            Ok((keys, again)) => {
                if state.is_failing || state.keys.is_none() {
                    tracing::info!(%url, keys = keys.count(), "keys fetched");
                }
                (state.keys, state.is_failing) = (Some(Arc::new(keys)), false);
                again
            }
            Err(reason) => {
                if !state.is_failing {
                    let has_keys = state.keys.is_some();
                    tracing::warn!(%url, %reason, has_keys, "keys can't be fetched");
                }
                state.is_failing = true;
                if state.keys.is_some() { AGAIN } else { AGAIN_WITHOUT_KEYS }
            }
        };
        state.due = Instant::now() + again;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys that were fetched, and when to fetch them again.
///
/// # Errors
/// What is wrong with them.
fn read(fetched: &Fetched) -> Result<(Keys, Duration), String> {
    if fetched.status != 200 {
        return Err(format!("it answered with the status {}", fetched.status));
    }
    let body = fetched.body.as_deref();
    let body = body.ok_or_else(|| format!("the set of keys is longer than {LONGEST} bytes, the limit"))?;
    let keys = Keys::parse(std::str::from_utf8(body).map_err(|error| error.to_string())?)?;
    if keys.has_secrets() {
        return Err("it has secrets, which whoever can fetch them knows".to_owned());
    }
    for what in keys.skipped() {
        tracing::debug!(%what, "a key is passed over");
    }
    Ok((keys, fetched.max_age.map_or(KEPT, |age| age.clamp(KEPT_BETWEEN.0, KEPT_BETWEEN.1))))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const SET: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    fn fetched(status: u16, seconds: Option<u64>, body: &str) -> Fetched {
        let (body, max_age) = (Some(Bytes::from(body.to_owned())), seconds.map(Duration::from_secs));
        Fetched { status, media_type: String::new(), max_age, body }
    }

    #[test]
    fn keys_are_fetched_again_as_the_provider_says_within_limits() {
        let again = |seconds| read(&fetched(200, seconds, SET)).unwrap().1.as_secs();
        assert_eq!([None, Some(0), Some(300), Some(999_999)].map(again), [900, 60, 300, 86_400]);
    }

    #[test]
    fn what_is_no_set_of_public_keys_is_refused() {
        let secret = r#"{"keys": [{"kty": "oct", "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T"}]}"#;
        for (status, body, reason) in [
            (404, SET, "status 404"),
            (301, SET, "status 301"),
            (200, "<p>Not here", "expected value"),
            (200, secret, "secrets"),
        ] {
            let error = read(&fetched(status, None, body)).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        let too_long = Fetched { body: None, ..fetched(200, None, "") };
        assert!(read(&too_long).unwrap_err().contains("262144"));
    }
}
