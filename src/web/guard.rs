//! The guard: no request passes that a foreign web page made somebody's browser send.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::{App, body};

/// Refuses a Host that is not the hub's own, and a write from a foreign origin: 400 for a Host that is
/// none, 403 for what is refused.
pub(super) async fn guard(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let mut response = match check(&app, &request) {
        Ok(()) => next.run(body::drain_on_drop(request)).await,
        Err(problem) => {
            drop(body::drain_on_drop(request));
            problem.into_response()
        }
    };
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn check(app: &App, request: &Request) -> Result<(), Problem> {
    let host = host(request.uri(), request.headers())?;
    // Without a Host (HTTP/1.0) it is no browser.
    if let Some(host) = &host
        && !is_own_host(app, host.host())
    {
        let detail = format!("the hub is not {}; if it is, start it with --allow-host {0}", host.host());
        return Err(Problem::new(StatusCode::FORBIDDEN, detail).field("Host"));
    }
    if request.method().is_safe() { Ok(()) } else { check_origin(app, request.headers(), host.as_ref()) }
}

/// The host a request is for: of the target, or else of the header (RFC 9112 3.2.2).
fn host(uri: &Uri, headers: &HeaderMap) -> Result<Option<Authority>, Problem> {
    let bad = |what| Problem::malformed(format!("the Host header {what}")).field("Host");
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(bad("is there twice"));
    }
    if let Some(authority) = uri.authority() {
        return Ok(Some(authority.clone()));
    }
    let Some(host) = host else { return Ok(None) };
    let authority = Authority::try_from(host.as_bytes()).map_err(|_| bad("is no host"))?;
    // A URL's authority may name a user as well; a host has none.
    if authority.as_str().contains('@') { Err(bad("is no host")) } else { Ok(Some(authority)) }
}

/// A page can point a name of its own at a loopback or private address (DNS rebinding), and its
/// scripts then count as this hub's. It can't do that to a name or an address of the hub's.
fn is_own_host(app: &App, host: &str) -> bool {
    let named = |name: &str| host.eq_ignore_ascii_case(name);
    if named("localhost") || app.config.allow_host.iter().any(|allowed| named(allowed)) {
        return true;
    }
    let listening = app.address.ip();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    // On every address, the hub can't know them all: port forwarding adds some.
    address
        .map(|address| address.to_canonical())
        .is_ok_and(|address| address.is_loopback() || address == listening || listening.is_unspecified())
}

/// A form or text POST needs no preflight, so any page can send one; what it can't do is hide
/// where from.
fn check_origin(app: &App, headers: &HeaderMap, host: Option<&Authority>) -> Result<(), Problem> {
    let refused = |detail: String, field| Err(Problem::new(StatusCode::FORBIDDEN, detail).field(field));
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        let allowed = app.config.allow_origin.iter().any(|allowed| allowed == "*" || *allowed == origin);
        let own = origin
            .split_once("://")
            .zip(host)
            .is_some_and(|((_, origin), host)| origin.eq_ignore_ascii_case(host.as_str()));
        if !allowed && !own {
            let detail = format!(
                "pages of {origin} may not publish here; if they may, start the hub with --allow-origin {origin}"
            );
            return refused(detail, "Origin");
        }
        return Ok(());
    }
    match headers.get("sec-fetch-site") {
        Some(site) if site.as_bytes() == b"cross-site" => {
            refused("pages of other sites may not publish here".to_owned(), "Sec-Fetch-Site")
        }
        _ => Ok(()),
    }
}
