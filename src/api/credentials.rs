//! Credentials: where a request has its token, and who asks.

use std::borrow::Cow;

use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::fields::{Fields, TOKEN};
use super::origin::Trust;
use super::problem::Problem;
use super::state::State;
use crate::auth::{Caller, Question, Refused, Verb};
use crate::journal::Channels;
use crate::limits::Peer;
use crate::message::{ChannelName, Pattern};

/// The cookies that have a token. A page of another host, or of plain http, can't set the first.
const COOKIES: [&str; 2] = ["__Host-tabcast", "tabcast"];

/// Who asks.
///
/// # Errors
/// 401 if the request has a token that is wrong, or may be.
pub(super) async fn caller(
    state: &State,
    address: Peer,
    head: &Parts,
    trust: Trust,
) -> Result<Caller, Refused> {
    state.auth.caller(|| token(state, head, trust), || question(state, address, head, trust)).await
}

/// The request's token. The header wins over the query, and that over the cookie.
fn token(state: &State, head: &Parts, trust: Trust) -> Result<Option<String>, Refused> {
    let wrong = |why: &'static str| Err(Refused::Invalid(why.into()));
    let mut lines = head.headers.get_all(header::AUTHORIZATION).iter();
    match (lines.next(), lines.next()) {
        (None, _) => {}
        (_, Some(_)) => return wrong("the Authorization header is there twice"),
        (Some(line), None) => {
            let line = line.to_str().unwrap_or_default();
            let (scheme, token) = line.split_once(' ').unwrap_or((line, ""));
            if !scheme.eq_ignore_ascii_case("Bearer") {
                // Whoever is asked may know other schemes.
                if state.auth.asks() {
                    return Ok(None);
                }
                return wrong("the Authorization header must be Bearer and a token");
            }
            return Ok(Some(token.trim().to_owned()));
        }
    }
    if let Some(token) = token_in_query(state, &head.uri)? {
        return Ok(Some(token));
    }
    match cookie(&head.headers)? {
        // With `--allow-origin '*'`, any page may publish, but not by the cookie that the browser has.
        Some(_) if trust == Trust::AnyPage => wrong(NO_COOKIE),
        cookie => Ok(cookie.map(str::to_owned)),
    }
}

const NO_COOKIE: &str =
    "a page of an origin that is not listed may not use the cookie: it needs a token of its own";

/// The token in the query, if it may be there.
fn token_in_query(state: &State, uri: &Uri) -> Result<Option<String>, Refused> {
    if !state.options.token_in_query {
        return Ok(None);
    }
    let mut tokens = pairs(uri).filter(|pair| is_token(pair));
    match (tokens.next(), tokens.next()) {
        (Some(_), Some(_)) => Err(Refused::Invalid("the parameter `token` is there twice".into())),
        (first, _) => Ok(first.map(|pair| {
            let (_, token) = pair.split_once('=').unwrap_or_default();
            percent_decode_str(token).decode_utf8_lossy().into_owned()
        })),
    }
}

/// The parameters of the query, as they stand there.
fn pairs(uri: &Uri) -> impl Iterator<Item = &str> {
    uri.query().unwrap_or_default().split('&')
}

fn is_token(pair: &str) -> bool {
    pair.split('=').next() == Some(TOKEN)
}

/// What an endpoint is asked about the caller of this request.
fn question<'a>(
    state: &State,
    address: Peer,
    head: &'a Parts,
    trust: Trust,
) -> Result<Question<'a>, Refused> {
    let authorization = match (head.headers.get(header::AUTHORIZATION), token_in_query(state, &head.uri)?) {
        (Some(line), _) => Some(Cow::from(line.as_bytes())),
        (None, Some(token)) if token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Some(format!("Bearer {token}").into_bytes().into())
        }
        (None, Some(_)) => return Err(Refused::Invalid("the parameter `token` has no token".into())),
        (None, None) => None,
    };
    let mut cookies = head.headers.get_all(header::COOKIE).iter().map(|line| line.as_bytes());
    let cookie = match (cookies.next(), trust) {
        (Some(_), Trust::AnyPage) if authorization.is_some() => None,
        (Some(_), Trust::AnyPage) => return Err(Refused::Invalid(NO_COOKIE.into())),
        (Some(first), Trust::Own) => Some(cookies.fold(Cow::from(first), |mut all, line| {
            all.to_mut().extend_from_slice(b"; ");
            all.to_mut().extend_from_slice(line);
            all
        })),
        (None, _) => None,
    };
    let mut uri = head.uri.path().to_owned();
    for pair in pairs(&head.uri).filter(|pair| !pair.is_empty() && !is_token(pair)) {
        uri.push(if uri.len() == head.uri.path().len() { '?' } else { '&' });
        uri.push_str(pair);
    }
    let (method, channels) = (head.method.as_str(), channels(state, head));
    Ok(Question { authorization, cookie, address, method, uri, channels })
}

/// The channels that the query asks for. `None` where it does not say: a publisher's may be in the body.
fn channels(state: &State, head: &Parts) -> Option<String> {
    /// A comma may be in a channel's name, and so may what is not ASCII.
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'.')
        .remove(b'-')
        .remove(b'_')
        .remove(b':')
        .remove(b'/')
        .remove(b'*')
        .remove(b'>');
    let is_read = head.method == Method::GET || head.method == Method::HEAD;
    if !is_read && !pairs(&head.uri).any(|pair| pair.starts_with("channel=")) {
        return None;
    }
    let channels = Fields::query(&head.uri, &state.options).ok()?.channels(&state.options).ok()?;
    let names = channels.iter().map(|channel| utf8_percent_encode(channel.as_str(), ENCODED).to_string());
    Some(names.collect::<Vec<_>>().join(","))
}

/// The token in a cookie. Browsers send cookies in no certain order, and somebody else may have set one of
/// the same name: two that differ are refused.
fn cookie(headers: &HeaderMap) -> Result<Option<&str>, Refused> {
    let lines = headers.get_all(header::COOKIE).iter().filter_map(|line| line.to_str().ok());
    let pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let pairs: Vec<_> = pairs.filter(|(name, _)| COOKIES.contains(name)).collect();
    for name in COOKIES {
        let mut values = pairs.iter().filter(|(other, _)| *other == name).map(|(_, value)| *value);
        let Some(first) = values.next() else { continue };
        if values.any(|other| other != first) {
            return Err(Refused::Invalid(format!("there are two cookies {name}").into()));
        }
        return Ok(Some(first.trim_matches('"')));
    }
    Ok(None)
}

/// Checks that the caller may do this on each of these channels: all of it is granted, or nothing.
///
/// # Errors
/// 401 if the caller has to say who it is, or 403.
pub(super) fn check(caller: &Caller, verb: Verb, channels: &Channels) -> Result<(), Problem> {
    match channels.iter().find(|asked| !caller.may(verb, asked)) {
        Some(refused) => Err(not_granted(caller, verb, refused)),
        None => Ok(()),
    }
}

/// Checks that the caller may do this on this channel.
///
/// # Errors
/// As of [`check`].
pub(super) fn check_on(caller: &Caller, verb: Verb, channel: &ChannelName) -> Result<(), Problem> {
    if caller.may_on(verb, channel) {
        return Ok(());
    }
    Err(not_granted(caller, verb, &channel.clone().into()))
}

/// Checks that the caller may administer the hub.
///
/// # Errors
/// As of [`check`].
pub(super) fn check_admin(caller: &Caller) -> Result<(), Problem> {
    if caller.grants().allow_admin() {
        return Ok(());
    }
    if caller.token().is_none() {
        return Err(needed("the administration of the hub"));
    }
    let detail = "the token does not grant `admin`, the administration of the hub";
    Err(Problem::new(StatusCode::FORBIDDEN, detail).taken("Bearer error=\"insufficient_scope\""))
}

/// 401, as a token is needed for `what`.
pub(super) fn needed(what: &str) -> Problem {
    let detail = format!("{what} needs a token, and the request has none");
    Problem::new(StatusCode::UNAUTHORIZED, detail).taken("Bearer").field("Authorization")
}

/// The answer to a caller to whom this is not granted: 401 without a token, or else 403.
pub(super) fn not_granted(caller: &Caller, verb: Verb, channel: &Pattern) -> Problem {
    let (verb, channel) = (verb.as_str(), channel.as_str());
    if caller.token().is_none() {
        return needed(&format!("`{verb}` on the channel {channel}"));
    }
    let detail = format!("the token does not grant `{verb}` on the channel {channel}");
    let problem = Problem::new(StatusCode::FORBIDDEN, detail).field("channel");
    problem.taken("Bearer error=\"insufficient_scope\"")
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        let detail = refused.to_string();
        let (status, challenge) = match refused {
            Refused::Unavailable(_) => {
                return Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(1);
            }
            Refused::Invalid(_) | Refused::Expired => {
                (StatusCode::UNAUTHORIZED, "Bearer error=\"invalid_token\"")
            }
            Refused::Unknown(_) => (StatusCode::UNAUTHORIZED, "Bearer"),
            Refused::Forbidden(_) => (StatusCode::FORBIDDEN, "Bearer error=\"insufficient_scope\""),
        };
        Problem::new(status, detail).taken(challenge).field("Authorization")
    }
}
