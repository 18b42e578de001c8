//! `GET /events`: the stream of a subscriber's events.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_stream::stream;
use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, sleep};
use tokio_stream::Stream;

use super::connection::Peer;
use super::fields::Fields;
use super::problem::Problem;
use super::publish::{channel_name, subscriber_id};
use super::{App, LAST_EVENT_ID, accepts, query_fields};
use crate::config::Config;
use crate::frame::{self, Format, Gap};
use crate::hub::{Delivery, Request, Seat, Start, Subscription};
use crate::journal::{Channels, Failed};
use crate::message::SubscriberId;

/// Answers with a stream that ends when the subscriber goes, or the hub stops.
pub(super) async fn subscribe(
    State(app): State<Arc<App>>,
    Extension(peer): Extension<Arc<Peer>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (request, format) = parse(&uri, &headers, &app.config)?;
    let seat = match app.seats.take(peer.address.ip()) {
        Ok(seat) => seat,
        // A native EventSource gives up for good on any answer but 200; after this one it comes back.
        Err(full) => {
            tracing::warn!(address = %peer.address, reason = %full, "subscriber turned away");
            let later = app.config.retry_max.max(Duration::from_secs(5)).mul_f64(1.0 + fastrand::f64());
            let opening = frame::opening(format, later.as_millis(), None);
            return Ok(answer(format, Body::from([opening, frame::full(format, &full.to_string())].concat())));
        }
    };
    let stream = match Visit::begin(&app, peer, seat, request).await {
        Ok(visit) => Body::from_stream(stream(visit, format, &app.config)),
        // The hub is about to stop; whoever starts it again, this subscriber is to come back.
        Err(_failed) => Body::from(frame::opening(format, app.config.retry_max.as_millis(), None)),
    };
    Ok(answer(format, stream))
}

/// Answers with the headers a subscriber would get. It is none.
pub(super) async fn head(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let (_, format) = parse(&uri, &headers, &app.config)?;
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
    let asked = in_header.or(in_query).filter(|id| !id.is_empty());
    let start = match (asked, newest) {
        (Some(asked), _) => Start::After(asked),
        (None, Some(count)) => Start::Newest(count),
        (None, None) => Start::Live,
    };
    Ok((Request { channels, start, subscriber }, format))
}

/// The channels of the parameters `channel`, and the subscriber's id of `as`.
pub(super) fn subscription(query: &mut Fields, config: &Config) -> Result<(Channels, Option<SubscriberId>), Problem> {
    let names = query.all("channel")?;
    if names.len() > config.max_channels {
        let what = format_args!("is there {} times, the limit is {}", names.len(), config.max_channels);
        return Err(Problem::invalid("channel", what).limit(config.max_channels));
    }
    let names: Vec<_> = names.iter().map(|name| channel_name(name, config)).collect::<Result<_, _>>()?;
    let subscriber = query.one("as")?.map(|text| subscriber_id("as", &text)).transpose()?;
    Ok((Channels::new(names), subscriber))
}

/// The bytes of the stream: all that waits for the subscriber in one chunk, and a keep-alive when
/// nothing did for a while.
fn stream(mut visit: Visit, format: Format, config: &Config) -> impl Stream<Item = Result<Bytes, Infallible>> + use<> {
    let keep_alive = config.keep_alive;
    let retry_ms = fastrand::u128(config.retry_min.as_millis()..=config.retry_max.as_millis());
    stream! {
        let open = frame::Open { position: visit.subscription.begins_at(), keep_alive_ms: keep_alive.as_millis() };
        let opening = frame::opening(format, retry_ms, Some(open));
        if !opening.is_empty() {
            yield Ok(opening);
        }
        // One timer for the stream's life, set anew when it fires and not with every event.
        let mut idle = std::pin::pin!(sleep(keep_alive));
        let mut active = Instant::now();
        loop {
            let bytes = tokio::select! {
                biased;
                delivery = visit.subscription.next() => {
                    let delivery = match delivery {
                        Ok(Some(delivery)) => delivery,
                        Ok(None) => {
                            visit.end("shutdown");
                            break;
                        }
                        Err(_failed) => {
                            visit.end("journal failed");
                            break;
                        }
                    };
                    active = Instant::now();
                    visit.encode(&delivery, format)
                }
                () = &mut idle => {
                    let due = active + keep_alive;
                    if due > Instant::now() {
                        idle.as_mut().reset(due);
                        continue;
                    }
                    active = Instant::now();
                    idle.as_mut().reset(active + keep_alive);
                    frame::keep_alive(format, visit.subscription.moved().await)
                }
            };
            yield Ok(bytes);
        }
    }
}

/// A subscriber's stay, logged when it begins and, however it ends, when it is dropped.
#[derive(Debug)]
struct Visit {
    subscription: Subscription,
    _seat: Seat,
    peer: Arc<Peer>,
    number: u64,
    since: Instant,
    sent: u64,
    /// Why the hub ended it; `None` if the other side did.
    ended: Option<&'static str>,
}

impl Visit {
    async fn begin(app: &App, peer: Arc<Peer>, seat: Seat, request: Request) -> Result<Self, Failed> {
        let channels = request.channels.clone();
        let subscription = app.hub.subscribe(request).await?;
        let number = app.subscribers.fetch_add(1, Ordering::Relaxed) + 1;
        let channels: Vec<_> = channels.iter().map(|name| name.as_str()).collect();
        tracing::info!(subscriber = number, address = %peer.address, channels = channels.join(","), "subscriber connected");
        Ok(Visit { subscription, _seat: seat, peer, number, since: Instant::now(), sent: 0, ended: None })
    }

    /// Says why, before the stream is ended from this side.
    fn end(&mut self, reason: &'static str) {
        self.ended = Some(reason);
    }

    fn encode(&mut self, delivery: &Delivery, format: Format) -> Bytes {
        match delivery {
            Delivery::Messages(entries) => {
                self.sent += entries.len() as u64;
                match &entries[..] {
                    [entry] => entry.frame(format),
                    entries => {
                        let frames: Vec<_> = entries.iter().map(|entry| entry.frame(format)).collect();
                        let mut bytes = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
                        frames.iter().for_each(|frame| bytes.extend_from_slice(frame));
                        bytes.freeze()
                    }
                }
            }
            Delivery::Gap { asked, earliest, position } => {
                self.sent += 1;
                frame::gap(format, &Gap { asked, earliest: *earliest }, *position)
            }
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        tracing::info!(
            subscriber = self.number,
            address = %self.peer.address,
            duration_ms = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            sent = self.sent,
            reason = self.ended.unwrap_or_else(|| self.peer.why_gone()),
            "subscriber disconnected"
        );
    }
}
