//! HTTP: the router and what its handlers share. Requests are parsed here into what the
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

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::response::Response;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tower::util::option_layer;
use tower::{Layer, Service, service_fn};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::config::{self, Config};
use crate::hub::{Hub, Seats};
use crate::journal::Failed;
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
    /// Where the hub listens.
    address: SocketAddr,
    /// Bytes of bodies that may still be taken; see [`body`].
    in_flight: Arc<Semaphore>,
    /// Numbers the subscribers, for the log.
    subscribers: AtomicU64,
}

/// What answers the requests of a connection.
trait Answer:
    Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<S> Answer for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send> + Clone + Send + Sync + 'static
{
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
        seats: Seats::new(config.seat_limits()),
        address: listener.local_addr()?,
        in_flight: Arc::new(Semaphore::new(config::bytes(config.max_in_flight).min(Semaphore::MAX_PERMITS))),
        subscribers: AtomicU64::new(0),
        config,
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "listening on http://{}", app.address);
    connection::serve(listener, service(Arc::clone(&app)), app, shutdown).await;
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
    ranges.any(|range| range.split(';').next().is_some_and(|range| range.trim().eq_ignore_ascii_case(media_type)))
}

/// Answers every request.
fn service(app: Arc<App>) -> impl Answer {
    let router = Router::new()
        .route("/events", get(events::subscribe).head(events::head))
        .route("/messages", get(history::read).post(publish::publish))
        .merge(page::router())
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(async |method: Method| {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not one of this path's methods"))
        })
        .with_state(Arc::clone(&app));
    let cors = cors(&app.config.allow_origin);
    let guarded = service_fn(move |request| guard::guard(Arc::clone(&app), router.clone(), request));
    // Outside the guard, so that the pages of an allowed origin can read what they did wrong.
    option_layer(cors).layer(guarded)
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
