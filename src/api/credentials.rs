//! Credentials: where a request has its token, and who asks.

use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use percent_encoding::percent_decode_str;

use super::fields::TOKEN;
use super::origin::Trust;
use super::problem::Problem;
use super::state::State;
use crate::auth::{Caller, Refused, Verb};
use crate::journal::Channels;
use crate::message::{ChannelName, Pattern};

/// The cookies that have a token. A page of another host, or of plain http, can't set the first.
const COOKIES: [&str; 2] = ["__Host-tabcast", "tabcast"];

/// Who asks.
///
/// # Errors
/// 401 if the request has a token that is wrong, or may be.
pub(super) async fn caller(state: &State, head: &Parts, trust: Trust) -> Result<Caller, Refused> {
    if state.auth.is_open() {
        return state.auth.caller(None).await;
    }
    let token = token(state, head, trust)?;
    state.auth.caller(token.as_deref()).await
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
                return wrong("the Authorization header must be Bearer and a token");
            }
            return Ok(Some(token.trim().to_owned()));
        }
    }
    if state.options.token_in_query {
        let query = head.uri.query().unwrap_or_default();
        let mut tokens = query.split('&').filter_map(|pair| {
            let (name, token) = pair.split_once('=').unwrap_or((pair, ""));
            (name == TOKEN).then_some(token)
        });
        match (tokens.next(), tokens.next()) {
            (None, _) => {}
            (_, Some(_)) => return wrong("the parameter `token` is there twice"),
            (Some(token), None) => {
                return Ok(Some(percent_decode_str(token).decode_utf8_lossy().into_owned()));
            }
        }
    }
    match cookie(&head.headers)? {
        // With `--allow-origin '*'`, any page may publish, but not by the cookie that the browser has.
        Some(_) if trust == Trust::AnyPage => wrong(
            "a page of an origin that is not listed may not use the cookie: it needs a token of its own",
        ),
        cookie => Ok(cookie.map(str::to_owned)),
    }
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
        let problem = Problem::new(StatusCode::UNAUTHORIZED, refused.to_string());
        problem.taken("Bearer error=\"invalid_token\"").field("Authorization")
    }
}
