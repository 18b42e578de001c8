//! `GET /events`: the stream of a subscriber's events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_stream::stream;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, Version, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio_stream::Stream;

use super::connection::Peer;
use super::fields::Fields;
use super::problem::Problem;
use super::publish::{channel_name, subscriber_id};
use super::stream::{Stream as EventStream, Subscriber};
use super::visit::Visit;
use super::{App, LAST_EVENT_ID, accepts, query_fields};
use crate::config::Config;
use crate::frame::{self, Format};
use crate::hub::{Request, Start};
use crate::journal::Channels;
use crate::message::SubscriberId;

/// Answers with a stream that ends when the subscriber goes, or the hub stops.
pub(super) async fn subscribe(app: &App, peer: &Arc<Peer>, head: &Parts) -> Result<Response, Problem> {
    let config = &app.config;
    let (request, format) = parse(&head.uri, &head.headers, config)?;
    let seat = match app.seats.take(peer.address.ip()) {
        Ok(seat) => seat,
        // A native EventSource gives up for good on any answer but 200; after this one it comes back.
        Err(full) => {
            tracing::warn!(address = %peer.address, reason = %full, "subscriber turned away");
            let later = config.retry_max.max(Duration::from_secs(5)).mul_f64(1.0 + fastrand::f64());
            let opening = frame::opening(format, later.as_millis(), None);
            return Ok(answer(
                format,
                Body::from([opening, frame::full(format, &full.to_string())].concat()),
            ));
        }
    };
    let Ok(subscription) = app.hub.subscribe(request).await else {
        // The hub is about to stop; whoever starts it again, this subscriber is to come back.
        return Ok(answer(format, Body::from(frame::opening(format, config.retry_max.as_millis(), None))));
    };
    let visit = Visit::begin(app, Arc::clone(peer), seat, subscription.channels());
    let stream = EventStream::new(subscription, format, config.keep_alive);
    let opening = stream.opening(config);
    let subscriber = Subscriber { visit, stream };
    let body = match head.version {
        // Plain bytes on a socket of its own: it needs nothing of hyper's any more.
        Version::HTTP_11 => Arc::clone(peer).leave(subscriber, opening),
        _ => peer.stay(Body::from_stream(body(subscriber, opening))),
    };
    Ok(answer(format, body))
}

/// Answers with the headers a subscriber would get. It is none.
pub(super) fn head(app: &App, head: &Parts) -> Result<Response, Problem> {
    let (_, format) = parse(&head.uri, &head.headers, &app.config)?;
    // Of no known length, as the stream is.
    Ok(answer(format, Body::from_stream(tokio_stream::pending::<Result<Bytes, Infallible>>())))
}

fn answer(format: Format, body: Body) -> Response {
    let content_type = match format {
        // Without a charset: EventSource rejects any but UTF-8, which is what it takes it for.
        Format::Bare | Format::Message => "text/event-stream",
        Format::Ndjson => "application/x-ndjson",
    };
    let headers = [
        (header::CONTENT_TYPE, content_type),
        // `no-transform`: a proxy that compresses would hold events back until a block is full.
        (header::CACHE_CONTROL, "no-store, no-transform"),
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, body).into_response()
}

fn parse(uri: &Uri, headers: &HeaderMap, config: &Config) -> Result<(Request, Format), Problem> {
    let mut query = query_fields(uri, config)?;
    let (channels, subscriber) = subscription(&mut query, config)?;
    let newest = query.number("last")?;
    let in_query = query.one("last_event_id")?;
    let format = match query.one("format")?.as_deref() {
        _ if accepts(headers, "application/x-ndjson") => Format::Ndjson,
        None => Format::Bare,
        Some("message") => Format::Message,
        Some(_) => return Err(Problem::invalid("format", "must be message, or left out")),
    };
    query.finish("the parameters are channel, last, last_event_id, as, format")?;
    // An EventSource that reconnects sends its first URL again, so what the query says is older.
    let in_header = headers.get(LAST_EVENT_ID).map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
    let given = |id: &String| !id.is_empty();
    let asked = in_header.filter(given).or(in_query.filter(given));
    let start = match (asked, newest) {
        (Some(asked), _) => Start::After(asked),
        (None, Some(count)) => Start::Newest(count),
        (None, None) => Start::Live,
    };
    Ok((Request { channels, start, subscriber }, format))
}

/// The channels of the parameters `channel`, and the subscriber's id of `as`.
pub(super) fn subscription(
    query: &mut Fields,
    config: &Config,
) -> Result<(Channels, Option<SubscriberId>), Problem> {
    let names = query.all("channel")?;
    if names.len() > config.max_channels {
        let what = format_args!("is there {} times, the limit is {}", names.len(), config.max_channels);
        return Err(Problem::invalid("channel", what).limit(config.max_channels));
    }
    let names: Vec<_> = names.iter().map(|name| channel_name(name, config)).collect::<Result<_, _>>()?;
    let subscriber = query.one("as")?.map(|text| subscriber_id("as", &text)).transpose()?;
    Ok((Channels::new(names), subscriber))
}

/// The stream as a response's body.
fn body(mut subscriber: Subscriber, opening: Bytes) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream! {
        if !opening.is_empty() {
            yield Ok(opening);
        }
        while let Some(bytes) = subscriber.next().await {
            yield Ok(bytes);
        }
    }
}
