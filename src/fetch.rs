//! A fetch: a GET of the one URL that a setting names, within a time and a number of bytes. Connections are
//! kept for the next. No redirect is followed: what is named is asked, and nobody else.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::{Instant, timeout_at};

/// Where to fetch from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url(Uri);

impl Url {
    /// Parses an URL of `https` or `http`.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let example = "give it as in https://login.example.org/keys";
        let url = text.parse::<Uri>().map_err(|error| format!("{error}: {example}"))?;
        let has_user = url.authority().is_some_and(|authority| authority.as_str().contains('@'));
        match (url.scheme_str(), url.host()) {
            (Some("https" | "http"), Some(host)) if !host.is_empty() && !has_user => Ok(Url(url)),
            (Some("https" | "http"), _) if has_user => Err(format!("it has a name or password: {example}")),
            _ => Err(example.to_owned()),
        }
    }

    /// Parses an URL of which nobody on the way can change what is fetched: of `https`, or of `http` on this
    /// machine.
    ///
    /// # Errors
    /// What is wrong.
    pub fn parse_safe(text: &str) -> Result<Self, String> {
        let url = Url::parse(text)?;
        let host = url.0.host().unwrap_or_default();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        if url.is_https() || is_here {
            return Ok(url);
        }
        Err("it must be https, as whoever can change what is fetched could do everything; \
             http is for 127.0.0.1 and localhost"
            .to_owned())
    }

    fn is_https(&self) -> bool {
        self.0.scheme_str() == Some("https")
    }
}

/// Without the query, which may have a secret.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.authority().map_or("", |authority| authority.as_str());
        write!(f, "{}://{host}{}", self.0.scheme_str().unwrap_or_default(), self.0.path())
    }
}

/// Fetches from one URL.
#[derive(Debug)]
pub(crate) struct Fetch {
    url: Url,
    /// The most bytes of a body.
    most: usize,
    pool: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

/// What was fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) status: u16,
    /// The media type without its parameters, in lower case.
    pub(crate) media_type: String,
    /// How long it may be kept, as `Cache-Control` has it. `None` if that says nothing.
    pub(crate) max_age: Option<Duration>,
    /// `None` if it is longer than it may be.
    pub(crate) body: Option<Bytes>,
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("it did not answer in time")]
    TooSlow,
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

impl Fetch {
    /// Fetches from this URL, of a body no more than so many bytes.
    ///
    /// # Errors
    /// If this machine has no certificates by which another can be known.
    pub(crate) fn new(url: Url, most: usize) -> io::Result<Self> {
        /// How long a connection is kept for the next fetch. Higher: the other side may close the connection
        /// as the hub asks, and the hub asks again; Node.js waits 5 s. Lower: more TLS handshakes.
        const KEPT: Duration = Duration::from_secs(4);
        /// The longest head of an answer. Higher: more memory for an answer that nobody needs. Lower: an
        /// answer with many cookies fails.
        const HEAD: usize = 64 << 10;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?;
        let tls = if url.is_https() {
            tls.with_native_roots()?
        } else {
            tls.with_root_certificates(RootCertStore::empty())
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .build();
        let pool = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEPT)
            .http1_max_buf_size(HEAD)
            .build(connector);
        Ok(Fetch { url, most, pool })
    }

    /// Where this fetches from.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// GETs the URL with these headers.
    ///
    /// # Errors
    /// [`FetchError`] if no whole answer comes before `deadline`.
    pub(crate) async fn get(
        &self,
        headers: &[(&'static str, &[u8])],
        deadline: Instant,
    ) -> Result<Fetched, FetchError> {
        let fetched = timeout_at(deadline, self.get_at_leisure(headers)).await;
        fetched.map_or(Err(FetchError::TooSlow), |fetched| fetched.map_err(FetchError::Failed))
    }

    async fn get_at_leisure(&self, headers: &[(&'static str, &[u8])]) -> anyhow::Result<Fetched> {
        let mut request = Request::get(self.url.0.clone())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("tabcast/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(*name, HeaderValue::from_bytes(value)?);
        }
        let request = request.body(Empty::new())?;
        let response = match self.pool.request(request.clone()).await {
            // A connection that was kept may be closed by the other side at this moment.
            Err(error) if !error.is_connect() => self.pool.request(request).await?,
            response => response?,
        };
        let (head, body) = Response::into_parts(response);
        let media_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let body = match Limited::new(body, self.most).collect().await {
            Ok(body) => Some(body.to_bytes()),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => None,
            Err(error) => return Err(anyhow::Error::from_boxed(error)),
        };
        Ok(Fetched {
            status: head.status.as_u16(),
            media_type: media_type.to_ascii_lowercase(),
            max_age: max_age(&head.headers),
            body,
        })
    }
}

/// How long an answer with these headers may be kept (RFC 9111 5.2.2).
fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let lines = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    let words = lines.flat_map(|line| line.split(',')).map(|word| word.trim().to_ascii_lowercase());
    let ages = words.filter_map(|word| match word.split_once('=') {
        None if word == "no-store" || word == "no-cache" => Some(Duration::ZERO),
        Some(("max-age", seconds)) => seconds.trim_matches('"').parse().ok().map(Duration::from_secs),
        _ => None,
    });
    ages.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_url_is_of_https_or_http_and_keys_come_by_https_or_from_this_machine() {
        for (text, is_safe) in [
            ("https://login.example.org/keys?x=1", true),
            ("http://127.0.0.1:8080/keys", true),
            ("http://[::1]/keys", true),
            ("http://localhost:8080", true),
            ("http://auth:8080/keys", false),
            ("http://127.0.0.1.example.org/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert!(Url::parse(text).is_ok(), "{text}");
            assert_eq!(Url::parse_safe(text).is_ok(), is_safe, "{text}");
        }
        for bad in ["", "/keys", "login.example.org", "file:///keys", "https://", "https://a:b@example.org/"]
        {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
        let url = Url::parse("https://login.example.org:1/keys?secret=1").unwrap();
        assert_eq!(url.to_string(), "https://login.example.org:1/keys");
    }

    #[test]
    fn cache_control_says_how_long_an_answer_is_kept() {
        let age = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(header::CACHE_CONTROL, HeaderValue::from_static(line));
            }
            max_age(&headers).map(|age| age.as_secs())
        };
        assert_eq!(age(&[]), None);
        assert_eq!(age(&["private, Max-Age=\"60\""]), Some(60));
        assert_eq!(age(&["max-age=60", "no-store"]), Some(0));
        assert_eq!(age(&["no-cache"]), Some(0));
        assert_eq!(age(&["max-age=-1, public"]), None);
    }
}
