//! The endpoint of `--auth-url`, which says who asks and what it may do, of whoever has no token of the
//! hub's own. An answer is for the caller and not for the request, so it is kept for a while. Of several
//! who present the same at once, one question is asked.

use std::borrow::Cow;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

use super::caller::{Caller, Token};
use super::grants::{Grants, Named};
use super::halves::{Halves, Hash};
use super::json;
use super::refused::Refused;
use crate::fetch::{Fetch, Fetched, Url};
use crate::limits::{Network, Peer, Turns};
use crate::message::Time;

/// How long a request waits for the answer. Higher: requests pile up while the endpoint is slow. Lower: an
/// endpoint that asks a database is given up.
const WITHIN: Duration = Duration::from_secs(1);

/// The most questions at once. Higher: an endpoint may be asked more than it can answer. Lower: a storm of
/// reconnects takes longer.
const AT_ONCE: usize = 64;

/// How long an answer is kept that does not say how long it may be. Higher: what has changed is noticed
/// later. Lower: more questions.
const KEPT: Duration = Duration::from_secs(10);

/// The longest that an answer is kept, whatever it says. Higher: somebody who was shut out is let in for
/// longer. Lower: more questions.
const LONGEST_KEPT: Duration = Duration::from_secs(60);

/// The longest that a refusal is kept. Higher: somebody who has just logged in is refused for longer. Lower:
/// whoever presents something wrong again and again has more questions asked.
const REFUSAL_KEPT: Duration = Duration::from_secs(1);

/// The most answers that are kept. Higher: more memory. Lower: more questions where more callers are there.
const MOST: usize = 10_000;

/// The longest answer, in bytes. Higher: more memory for each caller. Lower: a user of many channels needs
/// patterns that cover several.
const LONGEST_ANSWER: usize = 16 << 10;

/// The longest value of a header that is passed on, in bytes. Higher: more is hashed and sent for nothing.
/// Lower: a token with many grants, or the cookies of many programs on one host, would be refused.
const LONGEST_HEADER: usize = 8 << 10;

/// The most bytes of the endpoint's text that a refusal says. Higher: a longer answer that nobody reads.
/// Lower: a reason is cut.
const LONGEST_DETAIL: usize = 512;

/// What a request presents, and what else the endpoint may want to know of it.
#[derive(Debug)]
pub struct Question<'a> {
    /// The header `Authorization`.
    pub authorization: Option<Cow<'a, [u8]>>,
    /// The header `Cookie`.
    pub cookie: Option<Cow<'a, [u8]>>,
    /// Who sent the request.
    pub address: Peer,
    /// The request's method.
    pub method: &'a str,
    /// The path and the query, without a token.
    pub uri: String,
    /// The channels that are asked for, separated by commas and percent-encoded.
    pub channels: Option<String>,
}

impl Question<'_> {
    /// Whether the request presents anything.
    pub(super) fn has_credentials(&self) -> bool {
        self.authorization.is_some() || self.cookie.is_some()
    }

    /// What is the same for all requests that present the same.
    fn key(&self) -> Hash {
        let mut hash = Sha256::new();
        for part in [&self.authorization, &self.cookie] {
            let length = part.as_ref().map_or(usize::MAX, |part| part.len());
            hash.update(length.to_be_bytes());
            hash.update(part.as_deref().unwrap_or_default());
        }
        hash.finalize().into()
    }

    /// # Errors
    /// [`Refused`] if a credential is too long to be passed on.
    fn check(&self) -> Result<(), Refused> {
        for (name, value) in [("Authorization", &self.authorization), ("Cookie", &self.cookie)] {
            if value.as_ref().is_some_and(|value| value.len() > LONGEST_HEADER) {
                let what = format!("the {name} header is longer than {LONGEST_HEADER} bytes, the limit");
                return Err(Refused::invalid(what));
            }
        }
        Ok(())
    }

    /// The headers of the question. What is only said beside is left out where it is too long.
    fn headers(&self) -> Vec<(&'static str, Cow<'_, [u8]>)> {
        let borrowed = |value: &Option<Cow<'_, [u8]>>| value.as_deref().map(|value| value.to_vec().into());
        let text = |text: &str| Cow::from(text.as_bytes().to_vec());
        let address = match self.address {
            Peer::Inet(address) => Some(text(&address.ip().to_string())),
            Peer::Unix => None,
        };
        let uri = if self.uri.len() > LONGEST_HEADER {
            self.uri.split('?').next().unwrap_or_default()
        } else {
            &self.uri
        };
        let headers = [
            ("authorization", borrowed(&self.authorization)),
            ("cookie", borrowed(&self.cookie)),
            ("x-forwarded-for", address),
            ("x-original-method", Some(text(self.method))),
            ("x-original-uri", Some(text(uri))),
            ("x-tabcast-channels", self.channels.as_deref().map(text)),
        ];
        let headers = headers.into_iter().filter_map(|(name, value)| Some((name, value?)));
        headers.filter(|(_, value)| value.len() <= LONGEST_HEADER).collect()
    }
}

/// The endpoint, and what it has answered.
#[derive(Debug)]
pub(super) struct Forward {
    fetch: Fetch,
    turns: Turns,
    answers: Mutex<Answers>,
}

/// The questions that are being asked, and the answers that are kept, by what was presented.
#[derive(Debug)]
struct Answers(Halves<Arc<Asked>>);

/// A question, and its answer once it is there.
#[derive(Debug)]
struct Asked {
    /// Until when the answer is waited for.
    deadline: Instant,
    answer: OnceCell<Answer>,
}

#[derive(Debug)]
struct Answer {
    caller: Result<Caller, Refused>,
    until: Instant,
}

impl Asked {
    /// Whether the answer is kept no longer, or the question was given up by whoever asked it.
    fn is_over(&self, users: usize) -> bool {
        self.answer.get().map_or(users == 1, |answer| answer.until <= Instant::now())
    }
}

impl Default for Answers {
    fn default() -> Self {
        Answers(Halves::new(MOST))
    }
}

impl Answers {
    /// The question for those who present this.
    fn get(&mut self, hash: Hash) -> Arc<Asked> {
        if let Some(asked) = self.0.get(&hash)
            && !asked.is_over(Arc::strong_count(asked))
        {
            return Arc::clone(asked);
        }
        let asked = Arc::new(Asked { deadline: Instant::now() + WITHIN, answer: OnceCell::new() });
        self.0.insert(hash, Arc::clone(&asked));
        asked
    }
}

impl Forward {
    /// # Errors
    /// If this machine has no certificates by which another can be known.
    pub(super) fn new(url: Url) -> io::Result<Self> {
        let fetch = Fetch::new(url, LONGEST_ANSWER)?;
        Ok(Forward { fetch, turns: Turns::new(AT_ONCE), answers: Mutex::default() })
    }

    /// Where the endpoint is.
    pub(super) fn url(&self) -> &Url {
        self.fetch.url()
    }

    /// Who asks, as the endpoint has it.
    ///
    /// # Errors
    /// [`Refused`] as the endpoint has it, or if it gives no answer.
    pub(super) async fn caller(&self, question: Question<'_>) -> Result<Caller, Refused> {
        question.check()?;
        let asked = self.answers.lock().unwrap_or_else(PoisonError::into_inner).get(question.key());
        // If the request is dropped meanwhile, the next one that waits asks.
        let answer = asked.answer.get_or_init(|| self.ask(&question, asked.deadline)).await;
        answer.caller.clone()
    }

    async fn ask(&self, question: &Question<'_>, deadline: Instant) -> Answer {
        let url = self.url();
        let headers = question.headers();
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
        let fetched = timeout_at(deadline, async {
            let _turn = self.turns.take(Some(Network::from(question.address))).await;
            self.fetch.get(&headers, deadline).await
        });
        let read = match fetched.await {
            Ok(Ok(fetched)) => read(&fetched, question),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("there are {AT_ONCE} questions that it has not answered")),
        };
        let (caller, kept) = read.unwrap_or_else(|reason| {
            tracing::warn!(%url, %reason, "no answer about a caller");
            (Err(Refused::Unavailable("it can't be found out who asks at the moment")), Duration::ZERO)
        });
        Answer { caller, until: Instant::now() + kept }
    }
}

/// What the endpoint's answer says, and how long it may be kept.
///
/// # Errors
/// What is wrong with it.
fn read(fetched: &Fetched, question: &Question<'_>) -> Result<(Result<Caller, Refused>, Duration), String> {
    let kept = fetched.max_age.unwrap_or(KEPT).min(LONGEST_KEPT);
    let refused = |refused| Ok((Err(refused), kept.min(REFUSAL_KEPT)));
    match fetched.status {
        200..300 => {}
        401 => return refused(Refused::Unknown(detail(fetched))),
        403 => return refused(Refused::Forbidden(detail(fetched))),
        status => return Err(format!("it answered with the status {status}")),
    }
    let body = fetched.body.as_deref();
    let body = body.ok_or_else(|| format!("its answer is longer than {LONGEST_ANSWER} bytes, the limit"))?;
    let caller = caller(body, question).map_err(|what| format!("its answer: {what}"))?;
    let left = caller.expires().map(|end| end.as_ms().saturating_sub(Time::now().as_ms()));
    let left = left.map(Duration::from_millis);
    match left {
        Some(Duration::ZERO) => refused(Refused::Expired),
        left => Ok((Ok(caller), left.map_or(kept, |left| left.min(kept)))),
    }
}

/// The caller that a body describes: an object of grants, with a subject and an end if it has them.
fn caller(body: &[u8], question: &Question<'_>) -> Result<Caller, String> {
    let mut fields = json::object(body)?;
    let subject = match fields.remove("subject") {
        None | Some(Value::Null) => None,
        Some(Value::String(subject)) if !subject.is_empty() => Some(Arc::from(subject)),
        Some(_) => return Err("`subject` must be a text that is not empty".to_owned()),
    };
    let expires = fields.remove("expires").filter(|value| !value.is_null()).map(|value| seconds(&value));
    let expires = expires.transpose()?;
    let grants = Named::deserialize(Value::Object(fields)).map_err(|error| error.to_string())?;
    let grants = Grants::named(grants)?;
    if subject.is_some() && !question.has_credentials() {
        // Whoever presents nothing shares one answer.
        return Err("it has a `subject`, and the request had no credentials".to_owned());
    }
    // A browser has cookies that are no credentials: without a subject, they are none.
    if subject.is_none() && expires.is_none() && question.authorization.is_none() {
        return Ok(Caller::anonymous(grants));
    }
    Ok(Caller::with_token(Token { subject, expires, ..Token::default() }, grants))
}

/// Seconds since 1970, given as such or as in RFC 3339.
fn seconds(value: &Value) -> Result<u64, String> {
    let time = match value {
        Value::Number(number) => number.as_f64().map(|seconds| seconds as u64),
        Value::String(text) => humantime::parse_rfc3339(text)
            .ok()
            .map(|time| time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
        _ => None,
    };
    time.ok_or_else(|| "`expires` must be seconds since 1970, or as in 2027-01-01T00:00:00Z".to_owned())
}

/// The reason that the endpoint gives for a refusal: a problem's detail, or a short text.
fn detail(fetched: &Fetched) -> String {
    let body = fetched.body.as_deref().unwrap_or_default();
    let text = match &*fetched.media_type {
        "application/problem+json" => {
            let problem: Value = serde_json::from_slice(body).unwrap_or_default();
            problem["detail"].as_str().map(str::to_owned)
        }
        "text/plain" => String::from_utf8(body.to_vec()).ok(),
        _ => None,
    };
    let text = text.filter(|text| text.len() <= LONGEST_DETAIL).map(|text| text.trim().to_owned());
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "the credentials are refused".to_owned())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn question(authorization: Option<&'static str>, cookie: Option<&'static str>) -> Question<'static> {
        let bytes = |text: Option<&'static str>| text.map(|text| Cow::from(text.as_bytes()));
        Question {
            authorization: bytes(authorization),
            cookie: bytes(cookie),
            address: Peer::Unix,
            method: "GET",
            uri: "/events".to_owned(),
            channels: None,
        }
    }

    #[test]
    fn an_answer_is_kept_as_it_says_within_limits() {
        let kept = |status, seconds: Option<u64>, body: &str| {
            let (body, max_age) = (Some(Bytes::from(body.to_owned())), seconds.map(Duration::from_secs));
            let fetched = Fetched { status, media_type: String::new(), max_age, body };
            read(&fetched, &question(Some("x"), None)).unwrap().1
        };
        let ages = [None, Some(0), Some(20), Some(999)];
        let seconds = |list: [u64; 4]| list.map(Duration::from_secs);
        assert_eq!(ages.map(|age| kept(200, age, "{}")), seconds([10, 0, 20, 60]));
        for status in [401, 403] {
            assert_eq!(ages.map(|age| kept(status, age, "")), seconds([1, 0, 1, 1]));
        }
        let past = r#"{"expires": 1}"#;
        assert_eq!(ages.map(|age| kept(200, age, past)), seconds([1, 0, 1, 1]));
        // No longer than the caller may go on.
        let soon = std::time::SystemTime::now() + Duration::from_secs(5);
        let soon = soon.duration_since(UNIX_EPOCH).unwrap().as_secs();
        let kept = kept(200, Some(60), &format!("{{\"expires\": {soon}}}"));
        assert!(kept <= Duration::from_secs(5), "{kept:?}");
    }

    #[test]
    fn what_is_presented_otherwise_is_asked_about_by_itself() {
        let keys = [
            question(None, None),
            question(Some(""), None),
            question(None, Some("")),
            question(Some("a"), Some("b")),
            question(Some("b"), Some("a")),
            question(Some("ab"), None),
            question(None, Some("ab")),
        ]
        .map(|question| question.key());
        for (at, key) in keys.iter().enumerate() {
            assert!(!keys[..at].contains(key), "{at}");
        }
    }

    #[test]
    fn there_are_never_more_answers_than_the_limit_and_what_is_wanted_stays() {
        let (mut answers, wanted) = (Answers::default(), [255; 32]);
        let mut ask = |key: [u8; 32]| {
            let asked = answers.get(key);
            let caller = Ok(Caller::anonymous(Grants::default()));
            let until = Instant::now() + KEPT;
            let is_new = asked.answer.set(Answer { caller, until }).is_ok();
            assert!(answers.0.len() <= MOST);
            is_new
        };
        assert!(ask(wanted));
        for number in 0..3 * MOST {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            assert!(ask(key));
            if number % 1_000 == 0 {
                assert!(!ask(wanted), "{number}");
            }
        }
        assert!(!ask(wanted));
    }

    #[test]
    fn a_question_that_nobody_waits_for_is_asked_again() {
        let mut answers = Answers::default();
        let first = answers.get([1; 32]);
        assert!(Arc::ptr_eq(&first, &answers.get([1; 32])));
        let address = Arc::as_ptr(&first);
        let kept = Arc::downgrade(&first);
        drop(first);
        assert_ne!(Arc::as_ptr(&answers.get([1; 32])), address);
        assert!(kept.upgrade().is_none());
    }
}
