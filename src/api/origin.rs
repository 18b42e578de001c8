//! The origin check: refuses requests that a web page of another origin made a user's browser send.

use std::net::{IpAddr, SocketAddr};

use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode, Uri, header};

use super::problem::Problem;
use super::state::State;

/// Checks the request's Host and, if the request is a write, its Origin.
///
/// # Errors
/// 403 if the Host is not the hub's, or if a write is from another origin; 400 if the Host is no host.
pub(super) fn check(state: &State, head: &Parts) -> Result<(), Problem> {
    let host = host(&head.uri, &head.headers)?;
    // A request without Host (HTTP/1.0) is not from a browser.
    if let Some(host) = host
        && !is_own_host(state, host)
    {
        // An authority may be `user@host`, which is no host.
        let named = Authority::try_from(host).ok().filter(|authority| !authority.as_str().contains('@'));
        let Some(named) = named else { return Err(bad_host("is no host")) };
        let detail = format!("the hub is not {}; if it is, start it with --allow-host {0}", named.host());
        return Err(Problem::new(StatusCode::FORBIDDEN, detail).field("Host"));
    }
    if head.method.is_safe() { Ok(()) } else { check_origin(state, &head.headers, host) }
}

/// The host of the request, with its port if there is one: from the target, or else from the Host header
/// (RFC 9112 3.2.2).
fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<Option<&'a str>, Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(bad_host("is there twice"));
    }
    if let Some(authority) = uri.authority() {
        return Ok(Some(authority.as_str()));
    }
    host.map(|host| host.to_str().map_err(|_| bad_host("is no host"))).transpose()
}

fn bad_host(what: &str) -> Problem {
    Problem::malformed(format!("the Host header {what}")).field("Host")
}

/// Whether `host` is a name or address of the hub, whatever its port. A page can point a name of its own at a
/// loopback or private address (DNS rebinding), and its scripts then have the hub's origin. A page can't
/// point the hub's own names and addresses elsewhere.
fn is_own_host(state: &State, host: &str) -> bool {
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let host = host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(name, _)| name);
    let named = |name: &str| host.eq_ignore_ascii_case(name);
    if named("localhost") || state.options.allow_host.iter().any(|allowed| named(allowed)) {
        return true;
    }
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let address = match in_brackets {
        Some(address) => address.parse().map(IpAddr::V6),
        None => host.parse().map(IpAddr::V4),
    };
    let Ok(address) = address.map(|address| address.to_canonical()) else { return false };
    // A hub that listens on every address can't know all of its own: port forwarding adds some.
    let mut listening = state.listening.iter().map(SocketAddr::ip);
    address.is_loopback() || listening.any(|own| own == address || own.is_unspecified())
}

/// Checks that a write is from the hub's own page, an allowed origin, or no page. Any page can send a form or
/// text POST, which needs no preflight, but it can't hide its origin.
fn check_origin(state: &State, headers: &HeaderMap, host: Option<&str>) -> Result<(), Problem> {
    let refused = |detail: String, field| Err(Problem::new(StatusCode::FORBIDDEN, detail).field(field));
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = String::from_utf8_lossy(origin.as_bytes());
        let allowed = state.options.allow_origin.iter().any(|allowed| allowed == "*" || *allowed == origin);
        let own = origin
            .split_once("://")
            .zip(host)
            .is_some_and(|((_, origin), host)| origin.eq_ignore_ascii_case(host));
        if !allowed && !own {
            let detail = format!(
                "pages of {origin} may not publish here; if they may, start the hub with \
                 --allow-origin {origin}"
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
