//! A problem: the response to a request that can't be served, as `application/problem+json` (RFC 9457). It
//! has the fault, the field and the limit, but never a cause inside the hub.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::MethodRouter;
use serde::Serialize;

use crate::hub::{Full, PublishError, SubscribeError};
use crate::journal::JournalError;
use crate::limits::{Exceeded, Peer};
use crate::message::InvalidName;

/// Why a request can't be served.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    #[serde(serialize_with = "code")]
    status: StatusCode,
    title: &'static str,
    detail: Cow<'static, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u32>,
    #[serde(skip)]
    retry_after_seconds: Option<u32>,
    /// What is taken instead: the methods, with 405, the content codings, with 415, and how the request can
    /// say who asks, with 401 and 403.
    #[serde(skip)]
    taken: Option<&'static str>,
    #[serde(skip)]
    closes: bool,
}

fn code<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem with the request as a whole. A detail may quote what the request has, and is cut.
    pub(super) fn new(status: StatusCode, detail: impl Into<Cow<'static, str>>) -> Self {
        /// The most bytes of a detail. Higher: more memory for an answer that nobody reads. Lower: a detail
        /// that quotes an origin twice, as browsers send it, is cut.
        const LIMIT: usize = 768;
        let title = status.canonical_reason().unwrap_or("Error");
        Problem {
            status,
            title,
            detail: shortened(detail.into(), LIMIT),
            field: None,
            limit: None,
            line: None,
            retry_after_seconds: None,
            taken: None,
            closes: false,
        }
    }

    /// The request can't be parsed: its JSON, its form, its encoding.
    pub(super) fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, detail)
    }

    /// The request can be parsed, but this field (or query parameter, or header) is invalid. `what` follows
    /// the field's name, as in "is empty".
    pub(super) fn invalid(field: &str, what: impl std::fmt::Display) -> Self {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, format!("`{}` {what}", name(field))).field(field)
    }

    /// The name in this field is invalid.
    pub(super) fn invalid_name(field: &str, error: InvalidName) -> Self {
        let problem = Problem::invalid(field, error);
        match error {
            InvalidName::TooLong { limit, .. } => problem.limit(limit),
            _ => problem,
        }
    }

    /// The path exists, but `method` is none of the `allowed` ones.
    pub(super) fn method_not_allowed(method: &Method, allowed: &'static str) -> Self {
        let detail = format!("{method} is not one of this path's methods");
        Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).taken(allowed)
    }

    /// Names the field, query parameter or header.
    pub(super) fn field(self, field: &str) -> Self {
        Problem { field: Some(name(field).into_owned()), ..self }
    }

    /// Names the limit that was exceeded.
    pub(super) fn limit(self, limit: usize) -> Self {
        Problem { limit: u64::try_from(limit).ok(), ..self }
    }

    /// The connection is closed after the response: the rest of the request is not waited for.
    pub(super) fn closing(self) -> Self {
        Problem { closes: true, ..self }
    }

    /// Names the line of a batch, the first of which is 1.
    pub(super) fn in_line(self, line: u32) -> Self {
        Problem { line: Some(line), detail: format!("line {line}: {}", self.detail).into(), ..self }
    }

    /// Says which methods or content codings are taken, or how a request can say who asks (RFC 6750 3).
    pub(super) fn taken(self, taken: &'static str) -> Self {
        Problem { taken: Some(taken), ..self }
    }

    /// Logs the refusal of a request from this address.
    pub(super) fn log(&self, address: Peer) {
        let Problem { status, detail, field, .. } = self;
        tracing::debug!(%address, status = status.as_u16(), field, reason = %detail, "request refused");
    }

    /// The same request may succeed after this many seconds.
    pub(super) fn retry_after(self, seconds: u32) -> Self {
        Problem { retry_after_seconds: Some(seconds), ..self }
    }
}

/// The response to a reader of history.
impl From<SubscribeError> for Problem {
    fn from(error: SubscribeError) -> Self {
        let full = match error {
            SubscribeError::Full(full) => full,
            SubscribeError::Journal(error) => return error.into(),
        };
        let (status, limit) = match full {
            Full::Total { limit, .. } => (StatusCode::SERVICE_UNAVAILABLE, limit),
            Full::Address { limit, .. } => (StatusCode::TOO_MANY_REQUESTS, limit),
        };
        Problem::new(status, full.to_string()).limit(limit).retry_after(1)
    }
}

/// The response to a reader. The cause is in the hub's log.
impl From<JournalError> for Problem {
    fn from(error: JournalError) -> Self {
        let retry_after = match error {
            JournalError::Unavailable { retry_after } => whole_seconds(retry_after),
            JournalError::NoSpace | JournalError::Failed => 1,
        };
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the hub can't read its journal")
            .retry_after(retry_after)
    }
}

/// The response to a publisher. The cause is in the hub's log.
impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::KeyReused => Problem::invalid("Idempotency-Key", "was used for another request"),
            PublishError::NotKept => Problem::new(StatusCode::NOT_FOUND, "there is no such message"),
            PublishError::NoSpace => {
                let detail = "the hub has no space to keep the message; nothing was published";
                Problem::new(StatusCode::INSUFFICIENT_STORAGE, detail)
            }
            PublishError::Unavailable { retry_after } => {
                let detail = "the hub can't write its journal at the moment; nothing was published";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(whole_seconds(retry_after))
            }
            PublishError::Unknown => {
                let detail = "it is not known whether the message is kept: send it again, with the same \
                              Idempotency-Key if it had one";
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(1)
            }
        }
    }
}

/// The response to a caller that asks too often.
impl From<Exceeded> for Problem {
    fn from(exceeded: Exceeded) -> Self {
        let limit = usize::try_from(exceeded.rate.count()).unwrap_or(usize::MAX);
        // Rounded up: a second too early is refused again.
        let wait = whole_seconds(exceeded.wait + Duration::from_nanos(999_999_999));
        let detail = format!("{exceeded}: nothing was done; try again in {wait} s");
        Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).limit(limit).retry_after(wait)
    }
}

fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).max(1)
}

/// The routes of a path that will have `methods`: none yet, and a problem for every other method.
pub(super) fn only<S: Clone + Send + Sync + 'static>(methods: &'static str) -> MethodRouter<S> {
    let problem = move |method: Method| async move { Problem::method_not_allowed(&method, methods) };
    MethodRouter::new().fallback(problem)
}

/// The field's name, cut because a request may give a name of any length.
fn name(field: &str) -> Cow<'_, str> {
    shortened(field.into(), 64)
}

/// The text, cut at this limit.
fn shortened(text: Cow<'_, str>, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit { text } else { format!("{}…", &text[..text.floor_char_boundary(limit)]).into() }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self).expect("a problem is JSON");
        let mut response = (self.status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(taken) = self.taken {
            let name = match self.status {
                StatusCode::METHOD_NOT_ALLOWED => header::ALLOW,
                StatusCode::UNSUPPORTED_MEDIA_TYPE => header::ACCEPT_ENCODING,
                _ => header::WWW_AUTHENTICATE,
            };
            headers.insert(name, HeaderValue::from_static(taken));
        }
        if self.closes {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
