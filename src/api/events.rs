//! `GET /events`: a subscriber, and the stream of its events.

use std::convert::Infallible;
use std::fmt;
use std::mem;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::credentials;
use super::fields::{Fields, subscriber_id};
use super::headers::{LAST_EVENT_ID, prefers};
use super::options::Options;
use super::problem::Problem;
use super::reply::Reply;
use super::state::State;
use crate::auth::{Caller, Refused, Verb};
use crate::delivery::Delivery;
use crate::frame::{self, Format};
use crate::hub::{Request, Start, SubscribeError};
use crate::limits::{Network, Peer};

/// Responds with a stream that ends when the subscriber goes, or the hub stops. On a passing fault, the
/// stream ends at once: an EventSource reconnects after a stream that ends, but never after a status other
/// than 200.
pub(super) async fn subscribe(
    state: &State,
    address: Peer,
    caller: Result<Caller, Refused>,
    head: &Parts,
) -> Result<Response<Reply>, Problem> {
    let Asked { mut request, format, unknown } = parse(&head.uri, &head.headers, &state.options)?;
    let caller = match allowed(caller, &mut request, head) {
        Ok(caller) => caller,
        Err(NotAllowed::Problem(problem)) => return Err(problem),
        Err(NotAllowed::Unavailable(why)) => {
            tracing::debug!(%address, reason = why, "subscriber turned away");
            let opening = frame::opening(format, &unknown, state.streams.retry_max.as_millis(), None);
            return Ok(response_head(format).map(|_| opening.into()));
        }
        Err(NotAllowed::Expired) => {
            tracing::debug!(%address, reason = %Refused::Expired, "subscriber turned away");
            let later = EXPIRED_RETRY.mul_f64(0.75 + 0.5 * fastrand::f64());
            let opening = frame::opening(format, &unknown, later.as_millis(), None);
            let expired = frame::expired(format, &Refused::Expired.to_string());
            return Ok(response_head(format).map(|_| [opening, expired].concat().into()));
        }
    };
    if !unknown.is_empty() {
        tracing::debug!(%address, parameters = ?unknown, "unknown parameters passed over");
    }
    let streams = &state.streams;
    let turned_away = |reason: &dyn fmt::Display, wait: Duration| {
        tracing::warn!(%address, %reason, "subscriber turned away");
        let later = streams.retry_max.max(Duration::from_secs(5)).max(wait).mul_f64(1.0 + fastrand::f64());
        let opening = frame::opening(format, &unknown, later.as_millis(), None);
        [opening, frame::full(format, &reason.to_string())].concat().into()
    };
    if let Err(exceeded) = state.connecting.take(caller.owner(Network::from(address))) {
        let reply = turned_away(&exceeded, exceeded.wait);
        return Ok(response_head(format).map(|_| reply));
    }
    let reply = match state.hub.subscribe(address, &caller, request).await {
        Ok(_) if state.auth.is_revoked(&caller) => return Err(Refused::revoked().into()),
        Ok((subscriber, subscription)) => {
            let delivery = Delivery::new(subscriber, subscription, &caller, format, &unknown, streams);
            Reply::Delivery(Box::new(delivery))
        }
        Err(SubscribeError::Full(full)) => turned_away(&full, Duration::ZERO),
        // The journal is unavailable, or has failed and the hub is about to stop. The subscriber must
        // reconnect.
        Err(SubscribeError::Journal(_)) => {
            frame::opening(format, &unknown, streams.retry_max.as_millis(), None).into()
        }
    };
    Ok(response_head(format).map(|_| reply))
}

/// The reconnection time of a subscriber whose token has expired. Higher: a page that has a new one by then
/// is without messages for longer. Lower: tabs that nobody looks at ask more often.
const EXPIRED_RETRY: Duration = Duration::from_secs(30);

/// Why a subscriber is not admitted.
enum NotAllowed {
    /// Its token was right until it expired. It must come back with a new one, which an EventSource does
    /// after a stream that ends, but never after an error.
    Expired,
    /// It is not known at the moment whether it may. It must come back.
    Unavailable(&'static str),
    Problem(Problem),
}

/// The caller, if it may subscribe as it asks. Without `history`, a subscriber that comes back is not sent
/// what it has missed.
fn allowed(
    caller: Result<Caller, Refused>,
    request: &mut Request,
    head: &Parts,
) -> Result<Caller, NotAllowed> {
    let caller = caller.map_err(|refused| match refused {
        Refused::Expired => NotAllowed::Expired,
        Refused::Unavailable(why) => NotAllowed::Unavailable(why),
        refused => NotAllowed::Problem(refused.into()),
    })?;
    let Request { channels, start, subscriber } = request;
    if let Err(problem) = credentials::check(&caller, Verb::Subscribe, channels) {
        // It was admitted before, with a cookie that its browser has dropped since.
        let was_admitted = caller.token().is_none() && head.headers.contains_key(LAST_EVENT_ID);
        let is_event_source = prefers(&head.headers, ("text", "event-stream"), ("application", "json"));
        let has_expired = was_admitted && is_event_source;
        return Err(if has_expired { NotAllowed::Expired } else { NotAllowed::Problem(problem) });
    }
    if let Err(problem) = credentials::check(&caller, Verb::History, channels) {
        match start {
            Start::Live | Start::Hidden(_) => {}
            Start::After(asked) => *start = Start::Hidden(mem::take(asked)),
            Start::Newest(_) | Start::Latest(_) | Start::Before(..) => {
                return Err(NotAllowed::Problem(problem));
            }
        }
    }
    *subscriber = subscriber.take().map(|id| caller.own_id(id));
    Ok(caller)
}

/// Responds with the headers that a subscriber would get, without making one.
pub(super) fn respond_to_head(
    state: &State,
    caller: Result<Caller, Refused>,
    head: &Parts,
) -> Result<Response, Problem> {
    let Asked { mut request, format, .. } = parse(&head.uri, &head.headers, &state.options)?;
    if let Err(NotAllowed::Problem(problem)) = allowed(caller, &mut request, head) {
        return Err(problem);
    }
    // A body of unknown length, as that of a stream: the headers must be the same.
    let body = Body::from_stream(tokio_stream::pending::<Result<Bytes, Infallible>>());
    Ok(response_head(format).map(|_| body))
}

/// The status and headers of a stream in this format.
fn response_head(format: Format) -> Response {
    let content_type = match format {
        // Without a charset: EventSource assumes UTF-8, and rejects any other charset.
        Format::Bare | Format::Message => "text/event-stream",
        Format::Ndjson => "application/x-ndjson",
    };
    let headers = [
        (header::CONTENT_TYPE, content_type),
        // `no-transform`: a proxy that compresses would hold events back until a block is full.
        (header::CACHE_CONTROL, "no-store, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    headers.into_response()
}

/// What is asked for.
struct Asked {
    request: Request,
    format: Format,
    /// The names of parameters that are passed over: cache busters, and what proxies and frameworks add. A
    /// browser whose stream is refused for one never comes back.
    unknown: Vec<String>,
}

/// The names under which a query gives the last event ID: that of this API, and those that EventSource
/// polyfills use.
const LAST_EVENT_IDS: [&str; 4] = ["last_event_id", "lastEventId", "lastEventID", "Last-Event-ID"];

fn parse(uri: &Uri, headers: &HeaderMap, options: &Options) -> Result<Asked, Problem> {
    let mut query = Fields::query(uri, options)?;
    let channels = query.channels(options)?;
    let subscriber = query.one("as")?.map(|text| subscriber_id("as", &text)).transpose()?;
    let (newest, is_latest) = (query.number("last")?, query.flag("latest")?);
    let in_query = query.any_of(&LAST_EVENT_IDS)?;
    let format = match query.one("format")?.as_deref() {
        _ if prefers(headers, ("application", "x-ndjson"), ("text", "event-stream")) => Format::Ndjson,
        None => Format::Bare,
        Some("message") => Format::Message,
        Some(_) => return Err(Problem::invalid("format", "must be message, or left out")),
    };
    // An EventSource that reconnects sends its first URL again: the header's id is newer than the query's.
    let in_header = headers.get(LAST_EVENT_ID).map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
    let is_given = |id: &String| !id.is_empty();
    // A polyfill that reconnects appends the id to the URL.
    let asked = in_header.filter(is_given).or(in_query.into_iter().rfind(is_given));
    let start = match (asked, newest) {
        (_, Some(_)) if is_latest => return Err(Problem::invalid("latest", "can't go with `last`")),
        (Some(asked), _) => Start::After(asked),
        (None, Some(count)) => Start::Newest(count),
        (None, None) if is_latest => Start::Latest(None),
        (None, None) => Start::Live,
    };
    Ok(Asked { request: Request { channels, start, subscriber }, format, unknown: query.unknown() })
}
