//! The page's files and the browser client, embedded in the binary.

use std::sync::OnceLock;

use axum::Router;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::problem::only;

/// One embedded file.
#[derive(Debug)]
struct Asset {
    path: &'static str,
    content_type: &'static str,
    body: &'static str,
    /// The hash of `body`, made on first use. A browser fetches each version once.
    etag: OnceLock<String>,
}

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const TYPESCRIPT: &str = "application/typescript; charset=utf-8";
const CROSS_ORIGIN_RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// The page may use files and requests of the hub's origin: no inline code, nothing from elsewhere. The
/// worker is the browser client's, for tabs that can't share a stream in another way.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; worker-src 'self'; \
    style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; \
    frame-ancestors 'none'";

/// The paths of the browser client, its source and its types. Pages of any origin may import and read them.
const CLIENT: [&str; 3] = ["/tabcast.js", "/tabcast.src.js", "/tabcast.d.ts"];

static ASSETS: [Asset; 7] = [
    Asset::new("/", "text/html; charset=utf-8", include_str!("../../assets/index.html")),
    Asset::new("/app.css", "text/css; charset=utf-8", include_str!("../../assets/app.css")),
    Asset::new("/app.js", JAVASCRIPT, include_str!("../../assets/app.js")),
    Asset::new("/icon.svg", "image/svg+xml", include_str!("../../assets/icon.svg")),
    // Stripped of its comments by build.rs.
    Asset::new(CLIENT[0], JAVASCRIPT, include_str!(concat!(env!("OUT_DIR"), "/tabcast.js"))),
    Asset::new(CLIENT[1], JAVASCRIPT, include_str!("../../assets/tabcast.js")),
    Asset::new(CLIENT[2], TYPESCRIPT, include_str!("../../assets/tabcast.d.ts")),
];

/// Serves each file at its path.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    ASSETS.iter().fold(Router::new(), |router, asset| {
        let respond = move |headers: HeaderMap| async move { asset.respond(&headers) };
        router.route(asset.path, only("GET, HEAD").get(respond))
    })
}

impl Asset {
    const fn new(path: &'static str, content_type: &'static str, body: &'static str) -> Self {
        Asset { path, content_type, body, etag: OnceLock::new() }
    }

    fn etag(&self) -> &str {
        self.etag.get_or_init(|| {
            let hash = Sha256::digest(self.body);
            let hash: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            format!("\"{hash}\"")
        })
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

    /// The response for pages of the hub's own origin.
    fn for_own_pages(&self, request: &HeaderMap) -> Response {
        let headers: [(HeaderName, &str); 5] = [
            (header::ETAG, self.etag()),
            // A browser keeps the file, but asks for changes each time.
            (header::CACHE_CONTROL, "no-cache"),
            (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
            (header::X_FRAME_OPTIONS, "DENY"),
            // With `no-referrer`, browsers would send `Origin: null` with the page's own form.
            (header::REFERRER_POLICY, "same-origin"),
        ];
        let matches = |tag: &str| tag == "*" || tag.trim_start_matches("W/") == self.etag();
        let known = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        if known.flat_map(|value| value.split(',')).any(|tag| matches(tag.trim())) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        (headers, [(header::CONTENT_TYPE, self.content_type)], self.body).into_response()
    }
}
