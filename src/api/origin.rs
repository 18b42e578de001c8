//! The origin check: refuses requests that a web page of another origin made a user's browser send.

use std::net::{IpAddr, SocketAddr};

use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};

use super::options;
use super::problem::Problem;
use super::state::State;

/// Checks the request's Host and, if the request is a write, which page it is from.
///
/// # Errors
/// 403 if the Host is not the hub's, or if a write is from another origin; 400 if the Host is missing or no
/// host, or if a checked header is there twice.
pub(super) fn check(state: &State, head: &Parts) -> Result<Trust, Problem> {
    let host = host(head)?;
    // A request without Host (HTTP/1.0) is not from a browser.
    if let Some(host) = host
        && !is_own_host(state, host)
    {
        // An authority may be `user@host`, which is no host.
        let named = Authority::try_from(host).ok().filter(|authority| !authority.as_str().contains('@'));
        let Some(named) = named else { return Err(bad_host("is no host")) };
        let mut detail = format!(
            "the hub is not {}; a proxy in front of it has to set the Host header to the host that browsers \
             ask for",
            named.host()
        );
        if options::host(named.host()).is_ok() {
            detail += &format!("; if it is that one, start the hub with --allow-host {}", named.host());
        }
        return Err(Problem::new(StatusCode::FORBIDDEN, detail).field("Host"));
    }
    let source = Source::of(&head.headers)?;
    if head.method.is_safe() { Ok(Trust::Own) } else { check_source(state, &source, host) }
}

/// How far the page that a request is from is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// It is the hub's own or of a listed origin, or there is no page, or the request only reads.
    Own,
    /// It may be any page, as `--allow-origin '*'` has it.
    AnyPage,
}

/// The host of the request, with its port if there is one: from the target, or else from the Host header
/// (RFC 9112 3.2.2). `None` if there is none, which HTTP/1.1 does not allow (RFC 9112 3.2).
fn host(head: &Parts) -> Result<Option<&str>, Problem> {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(bad_host("is there twice"));
    }
    if host.is_none() && head.version == Version::HTTP_11 {
        return Err(bad_host("is missing"));
    }
    if let Some(authority) = head.uri.authority() {
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
fn check_source(state: &State, source: &Source<'_>, host: Option<&str>) -> Result<Trust, Problem> {
    match check_page(state, source, host) {
        Err(_) if state.options.allows_any_origin() => Ok(Trust::AnyPage),
        checked => checked.map(|()| Trust::Own),
    }
}

fn check_page(state: &State, source: &Source<'_>, host: Option<&str>) -> Result<(), Problem> {
    let refused = |detail: String, field| Err(Problem::new(StatusCode::FORBIDDEN, detail).field(field));
    let Some(origin) = source.origin else {
        return match source.site {
            None | Some(b"same-origin" | b"none") => Ok(()),
            Some(_) => refused("pages of other origins may not publish here".to_owned(), SITE),
        };
    };
    let origin = String::from_utf8_lossy(origin);
    if options::is_listed(&state.options.allow_origin, &origin) {
        return Ok(());
    }
    // With `Referrer-Policy: no-referrer`, as a proxy may set it, the hub's own page has its origin hidden.
    if origin == "null" && source.site == Some(b"same-origin") {
        return Ok(());
    }
    let detail = match options::origin(&origin) {
        Ok(allowed) if !allowed.contains('*') => format!(
            "pages of {origin} may not publish here; if they may, start the hub with --allow-origin {allowed}"
        ),
        _ => "the Origin header is no origin".to_owned(),
    };
    if !host.is_some_and(|host| is_own_origin(&origin, host)) {
        return refused(detail, ORIGIN);
    }
    // A page at http:// may have the host of a hub at https://, and is of another origin. The hub does not
    // know whether a proxy in front of it speaks TLS. The browser does.
    match source.site {
        None | Some(b"same-origin") => Ok(()),
        Some(_) => refused(detail, SITE),
    }
}

/// Whether `origin` is that of a page on `host`. Its scheme may be either: a proxy may end TLS. Either may
/// leave out the scheme's own port.
fn is_own_origin(origin: &str, host: &str) -> bool {
    let (scheme, authority) = origin.split_once("://").unwrap_or_default();
    let [authority, host] = [authority, host].map(|text| options::without_default_port(scheme, text));
    ["http", "https"].contains(&scheme) && authority.eq_ignore_ascii_case(host)
}

/// The page that sent the request, if it is of the hub's own origin.
pub(super) fn own_page(head: &Parts) -> Option<HeaderValue> {
    let referer = head.headers.get(header::REFERER)?;
    let (page, host) = (referer.to_str().ok()?, host(head).ok()??);
    let authority = page.find("://")? + "://".len();
    let end = page[authority..].find(['/', '?', '#']).map_or(page.len(), |length| authority + length);
    is_own_origin(&page[..end], host).then(|| referer.clone())
}

const ORIGIN: &str = "Origin";
const SITE: &str = "Sec-Fetch-Site";

/// What a browser says of the page that sends a request. A page can change neither.
struct Source<'a> {
    /// The page's origin.
    origin: Option<&'a [u8]>,
    /// How the page's origin relates to that of the hub.
    site: Option<&'a [u8]>,
}

impl<'a> Source<'a> {
    /// # Errors
    /// 400 if one of both is there twice: another program could go by the other one.
    fn of(headers: &'a HeaderMap) -> Result<Self, Problem> {
        const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
        let one = |header: HeaderName, name: &str| {
            let mut values = headers.get_all(header).iter().map(HeaderValue::as_bytes);
            let (value, second) = (values.next(), values.next());
            let twice = || Problem::malformed(format!("the {name} header is there twice")).field(name);
            if second.is_some() { Err(twice()) } else { Ok(value) }
        };
        Ok(Source { origin: one(header::ORIGIN, ORIGIN)?, site: one(SEC_FETCH_SITE, SITE)? })
    }
}
