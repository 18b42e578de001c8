//! CORS: lets pages of allowed origins read responses (WHATWG Fetch 3.3).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderValue, Method, Response, header};
use tower::{Layer, Service, service_fn};
use tower_http::cors::{AllowCredentials, AllowHeaders, AllowOrigin, CorsLayer};

use super::options::{Options, is_listed};
use super::reply::Reply;

/// How long a browser may go by the answer to a preflight. Higher: an origin that is no longer allowed is
/// asked about later; Chromium takes no more than this. Lower: more requests have to wait for a preflight.
const MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// Adds the headers by which a browser lets a page of another origin read a response, and answers preflights.
#[derive(Debug)]
pub(super) struct Cors {
    listed_origins: Arc<[String]>,
    /// For pages of listed origins: with credentials, for which a `*` does not count.
    listed: CorsLayer,
    /// For all other pages. `None` if not every origin is allowed.
    others: Option<CorsLayer>,
}

impl Cors {
    /// `None` if no other origin is allowed.
    pub(super) fn new(options: &Options) -> Option<Self> {
        let listed_origins: Arc<[String]> = options.allow_origin.clone().into();
        if listed_origins.is_empty() {
            return None;
        }
        let layer = CorsLayer::new()
            .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
            // A request's headers say nothing that the hub would not check by itself.
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers([header::RETRY_AFTER])
            .max_age(MAX_AGE)
            .vary([header::ORIGIN, header::ACCESS_CONTROL_REQUEST_HEADERS]);
        let (origins, credentials) = (Arc::clone(&listed_origins), Arc::clone(&listed_origins));
        let listed = layer
            .clone()
            .allow_origin(AllowOrigin::predicate(move |origin, _| has(&origins, origin)))
            .allow_credentials(AllowCredentials::predicate(move |origin, _| has(&credentials, origin)));
        let others = options.allows_any_origin().then(|| layer.allow_origin(AllowOrigin::any()));
        Some(Cors { listed_origins, listed, others })
    }

    /// The response of `respond`, or to a preflight, with these headers.
    pub(super) async fn around<F>(
        &self,
        request: Request,
        respond: impl FnMut(Request) -> F,
    ) -> Response<Reply>
    where
        F: Future<Output = Result<Response<Reply>, Infallible>>,
    {
        let is_listed = request.headers().get(header::ORIGIN).is_some_and(|it| has(&self.listed_origins, it));
        let layer = self.others.as_ref().filter(|_| !is_listed).unwrap_or(&self.listed);
        let result = layer.layer(service_fn(respond)).call(request).await;
        result.unwrap_or_else(|never| match never {})
    }
}

fn has(listed: &[String], origin: &HeaderValue) -> bool {
    origin.to_str().is_ok_and(|origin| is_listed(listed, origin))
}
