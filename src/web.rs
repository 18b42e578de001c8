//! HTTP: who answers which request, and what they share. Requests are parsed here into what the
//! [`hub`](crate::hub) takes; nothing below this module sees a header.

mod body;
mod connection;
mod events;
mod fanout;
mod fields;
mod guard;
mod history;
mod line;
mod page;
mod problem;
mod publish;
mod stream;
mod visit;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::{Layer, Service, service_fn};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::{self, Config};
use crate::hub::{Hub, Seats};
use crate::journal::Failed;
use connection::Peer;
use fields::{Fields, MOST};
use problem::Problem;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What every handler may use.
#[derive(Debug)]
struct App {
    config: Config,
    hub: Hub,
    seats: Seats,
    /// What lets the pages of other origins read answers, if any may.
    cors: Option<CorsLayer>,
    /// Where the hub listens.
    address: SocketAddr,
    /// Bytes of bodies that may still be taken; see [`body`].
    in_flight: Arc<Semaphore>,
    /// Numbers the subscribers, for the log.
    subscribers: AtomicU64,
}

/// See [`crate::serve`].
pub(crate) async fn serve(
    listener: TcpListener,
    hub: Hub,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let app = Arc::new(App {
        hub,
        cors: cors(&config.allow_origin),
        seats: Seats::new(config.seat_limits()),
        address: listener.local_addr()?,
        in_flight: Arc::new(Semaphore::new(config::bytes(config.max_in_flight).min(Semaphore::MAX_PERMITS))),
        subscribers: AtomicU64::new(0),
        config,
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "listening on http://{}", app.address);
    connection::serve(listener, app, shutdown).await;
    Ok(())
}

/// The hub is about to stop, having said why in its log.
fn journal_failed(_: Failed) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the hub can't read its journal").retry_after(1)
}

/// The fields of a request's query: as many as anyone may ask with.
fn query_fields(uri: &Uri, config: &Config) -> Result<Fields, Problem> {
    Fields::urlencoded(uri.query().unwrap_or_default().as_bytes(), config.max_channels.saturating_add(MOST))
}

/// Whether the request's Accept names this media type.
fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let mut ranges = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    ranges.any(|range| {
        range.split(';').next().is_some_and(|range| range.trim().eq_ignore_ascii_case(media_type))
    })
}

/// The answer to a request.
async fn answer(app: &App, peer: &Arc<Peer>, request: Request) -> Result<Response, Infallible> {
    match &app.cors {
        None => guarded(app, peer, request).await,
        // Outside the guard, so that the pages of an allowed origin can read what they did wrong.
        Some(cors) => cors.layer(service_fn(|request| guarded(app, peer, request))).call(request).await,
    }
}

async fn guarded(app: &App, peer: &Arc<Peer>, request: Request) -> Result<Response, Infallible> {
    let (head, mut body) = request.into_parts();
    // Whoever says so waits to be told before it sends the body.
    let expects = head.headers.contains_key(header::EXPECT);
    let answer = match guard::check(app, &head) {
        Ok(()) => route(app, peer, head, &mut body).await,
        Err(problem) => Err(problem),
    };
    if !expects {
        body::drain(body);
    }
    let mut response = answer.into_response();
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// Has the request answered by whom it is for. A `match` and not a router, which costs a publish as much as its
/// parsing: it boxes and clones.
async fn route(app: &App, peer: &Arc<Peer>, head: Parts, body: &mut Body) -> Result<Response, Problem> {
    let allowed = match (head.uri.path(), &head.method) {
        ("/messages", &Method::POST) => return publish::publish(app, head, body).await,
        ("/messages", &Method::GET | &Method::HEAD) => return history::read(app, &head.uri).await,
        ("/messages", _) => "GET, HEAD, POST",
        ("/events", &Method::GET) => return events::subscribe(app, peer, &head).await,
        ("/events", &Method::HEAD) => return events::head(app, &head),
        ("/events", _) => "GET, HEAD",
        (path, method) => match (page::asset(path), method) {
            (Some(asset), &Method::GET | &Method::HEAD) => return Ok(asset.answer(&head.headers)),
            (Some(_), _) => "GET, HEAD",
            (None, _) => return Err(Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path")),
        },
    };
    Err(Problem::method_not_allowed(&head.method, allowed))
}

/// Lets the pages of other origins read answers. `None` without an allowed origin.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    let allowed = match origins {
        [] => return None,
        any if any.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        some => AllowOrigin::list(some.iter().filter_map(|origin| origin.parse().ok())),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::HEAD, Method::POST])
        .allow_headers([header::CONTENT_TYPE, IDEMPOTENCY_KEY, LAST_EVENT_ID])
        .expose_headers([header::RETRY_AFTER]);
    Some(layer)
}
