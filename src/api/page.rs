//! The page's files and the browser client, embedded in the binary.

use std::mem;
use std::sync::OnceLock;

use axum::Router;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::fields::{Fields, MAX_FIELDS};
use super::headers::accepts_gzip;
use super::problem::only;

/// One embedded file.
#[derive(Debug)]
struct Asset {
    path: &'static str,
    content_type: &'static str,
    body: &'static str,
    /// The same, compressed by build.rs.
    gzip: &'static [u8],
    /// The hash of `body`, made on first use. A browser fetches each version once.
    hash: OnceLock<String>,
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const TYPESCRIPT: &str = "application/typescript; charset=utf-8";
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The page may use files and requests of the hub's origin: no inline code, nothing from elsewhere. Pictures
/// in messages are `blob:`. The worker is the browser client's, for tabs that can't share a stream in another
/// way.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; worker-src 'self'; \
    style-src 'self'; img-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; \
    frame-ancestors 'none'";

/// The paths of the browser client, its source, its types and its classic form. Pages of any origin may load
/// and read them.
const CLIENT: [&str; 4] = ["/tabcast.js", "/tabcast.src.js", "/tabcast.d.ts", "/io.js"];

/// Where the page is, whatever is at `/`. Below it is everything of the hub, as below a proxy's path: so the
/// page asks there for the same as at `/`.
const PREFIX: &str = "/hub";

/// A file as it is, and compressed under this name.
macro_rules! asset {
    ($path:expr, $content_type:expr, $body:expr, $name:literal) => {
        Asset {
            path: $path,
            content_type: $content_type,
            body: include_str!($body),
            gzip: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".gz")),
            hash: OnceLock::new(),
        }
    };
}

static ASSETS: [Asset; 8] = [
    asset!("/", "text/html; charset=utf-8", "../../assets/index.html", "index.html"),
    // Stripped of their comments by build.rs, as the client is.
    asset!("/app.css", "text/css; charset=utf-8", concat!(env!("OUT_DIR"), "/app.css"), "app.css"),
    asset!("/app.js", JAVASCRIPT, concat!(env!("OUT_DIR"), "/app.js"), "app.js"),
    asset!("/icon.svg", "image/svg+xml", "../../assets/icon.svg", "icon.svg"),
    asset!(CLIENT[0], JAVASCRIPT, concat!(env!("OUT_DIR"), "/tabcast.js"), "tabcast.js"),
    asset!(CLIENT[1], JAVASCRIPT, "../../assets/tabcast.js", "tabcast.src.js"),
    asset!(CLIENT[2], TYPESCRIPT, "../../assets/tabcast.d.ts", "tabcast.d.ts"),
    asset!(CLIENT[3], JAVASCRIPT, concat!(env!("OUT_DIR"), "/io.js"), "io.js"),
];

/// Serves the page's files at their paths.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    files(false)
}

/// Serves the browser client at its paths, and leads to the page.
pub(super) fn client<S: Clone + Send + Sync + 'static>() -> Router<S> {
    // Relative, so that it leads there below a proxy's path too.
    let to_page = async || (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, "./hub/")]);
    files(true).route(PREFIX, only("GET, HEAD").get(to_page))
}

fn files<S: Clone + Send + Sync + 'static>(of_client: bool) -> Router<S> {
    let files = ASSETS.iter().filter(|asset| CLIENT.contains(&asset.path) == of_client);
    files.fold(Router::new(), |router, asset| {
        let respond = move |uri: Uri, headers: HeaderMap| async move {
            match (asset.path, channels(&uri)) {
                ("/", Some(channels)) => {
                    asset.respond_with(&headers, with_channels(asset.body, &channels, &headers))
                }
                _ => asset.respond(&headers),
            }
        };
        router.route(asset.path, only("GET, HEAD").get(respond))
    })
}

/// The channels that the page is asked to show. `None` if it is not asked for any.
fn channels(uri: &Uri) -> Option<Vec<String>> {
    /// The most that are named where there is no script. Higher: a longer page. Lower: a script names more.
    const MOST: usize = 16;
    let query = uri.query()?;
    let mut channels = Fields::urlencoded(query.as_bytes(), MAX_FIELDS).ok()?.all("channel").ok()?;
    channels.retain(|channel| !channel.is_empty());
    channels.truncate(MOST);
    (!channels.is_empty()).then_some(channels)
}

/// The page as it is without a script: its commands, its link and its form are for these channels. Its script
/// writes the same.
fn with_channels(page: &str, channels: &[String], request: &HeaderMap) -> String {
    const URL: &str = "http://127.0.0.1:3000/";
    let host = request.get(header::HOST).and_then(|host| host.to_str().ok());
    let is_https = request.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
    let scheme = if is_https { "https" } else { "http" };
    let url = host.map_or(URL.to_owned(), |host| format!("{scheme}://{host}/"));
    let query = |channels: &[String]| {
        let pair = |name: &String| format!("channel={}", utf8_percent_encode(name, NON_ALPHANUMERIC));
        channels.iter().map(pair).collect::<Vec<_>>().join("&")
    };
    let (first, all) = (&channels[0], query(channels));
    let argument = if channels.len() > 1 { json!(channels) } else { json!(first) };
    // In the order in which they stand in the page.
    let changes = [
        (format!("{URL}events"), format!("'{url}events?{all}'")),
        (format!("{URL}messages"), format!("'{url}messages?{}'", query(&channels[..1]))),
        (URL.to_owned(), url),
        ("connect()".to_owned(), format!("connect({{ channel: {argument} }})")),
        ("messages?last=20".to_owned(), format!("messages?last=20&{all}")),
    ];
    let (mut changed, mut rest) = (String::new(), page);
    for (from, to) in &changes {
        let Some((before, after)) = rest.split_once(from.as_str()) else { continue };
        changed.extend([before, &escaped(to)]);
        rest = after;
    }
    let form = "<input id=\"channel\" name=\"channel\" value=\"";
    let rest = rest.replacen(&format!("{form}main"), &format!("{form}{}", escaped(first)), 1);
    changed + &rest
}

/// The text as HTML, also within quotes.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Takes the page's own path off the target. Whether it was there.
pub(super) fn take_prefix(target: &mut Uri) -> bool {
    let rest = target.path_and_query().and_then(|path| path.as_str().strip_prefix(PREFIX));
    let Some(Ok(rest)) = rest.filter(|rest| rest.starts_with('/')).map(PathAndQuery::try_from) else {
        return false;
    };
    let mut parts = mem::take(target).into_parts();
    parts.path_and_query = Some(rest);
    *target = Uri::from_parts(parts).expect("a target with another path is one");
    true
}

impl Asset {
    /// The tag of one of the two forms: what has the same tag has the same bytes (RFC 9110 8.8.3.3).
    fn etag(&self, is_gzip: bool) -> String {
        let hash = self.hash.get_or_init(|| {
            let hash = Sha256::digest(self.body);
            hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
        });
        format!("\"{hash}{}\"", if is_gzip { "-gzip" } else { "" })
    }

    /// Responds with the file, or with 304 if the request's headers name this version.
    fn respond(&self, request: &HeaderMap) -> Response {
        let mut response = self.for_own_pages(request);
        if CLIENT.contains(&self.path) {
            // Pages of other origins may import the client; `--allow-origin` says what they may do with it. A
            // policy on the client's response would restrict its shared worker to this hub.
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            headers.insert(CROSS_ORIGIN_RESOURCE_POLICY, HeaderValue::from_static("cross-origin"));
            headers.remove(header::CONTENT_SECURITY_POLICY);
        }
        response
    }

    /// Responds with this text in the place of the file.
    fn respond_with(&self, request: &HeaderMap, text: String) -> Response {
        let mut response = self.for_own_pages(request);
        let headers = response.headers_mut();
        for header in [header::ETAG, header::CONTENT_ENCODING, header::CONTENT_LENGTH] {
            headers.remove(header);
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        *response.status_mut() = StatusCode::OK;
        response.map(|_| text.into())
    }

    /// The response for pages of the hub's own origin.
    fn for_own_pages(&self, request: &HeaderMap) -> Response {
        let is_gzip = accepts_gzip(request);
        let etag = self.etag(is_gzip);
        let headers: [(HeaderName, &str); 6] = [
            (header::ETAG, &etag),
            (header::VARY, "accept-encoding"),
            // A browser keeps the file, but asks for changes each time.
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
            (header::X_FRAME_OPTIONS, "DENY"),
            // With `no-referrer`, browsers would send `Origin: null` with the page's own form.
            (header::REFERRER_POLICY, "same-origin"),
        ];
        let matches = |tag: &str| tag == "*" || tag.trim_start_matches("W/") == etag;
        let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        if known.flat_map(|value| value.split(',')).any(|tag| matches(tag.trim())) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        let content_type = [(header::CONTENT_TYPE, self.content_type)];
        if is_gzip {
            return (headers, content_type, [(header::CONTENT_ENCODING, "gzip")], self.gzip).into_response();
        }
        (headers, content_type, self.body).into_response()
    }
}
