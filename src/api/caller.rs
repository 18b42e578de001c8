//! `GET /caller`: who asks, and what it may do.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::auth::{Caller, Verb};
use crate::message::{Pattern, Time};

/// The caller as it is answered.
#[derive(Serialize)]
struct Answer<'a> {
    caller: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<Time>,
    publish: Vec<&'a str>,
    subscribe: Vec<&'a str>,
    history: Vec<&'a str>,
    presence: Vec<&'a str>,
    delete: Vec<&'a str>,
    admin: bool,
}

/// Responds with what the hub knows of the caller.
pub(super) fn respond(caller: &Caller) -> Response {
    let grants = caller.grants();
    let of = |verb| grants.of(verb).iter().map(Pattern::as_str).collect();
    let answer = Answer {
        caller: caller.mark(),
        subject: caller.subject(),
        expires: caller.expires(),
        publish: of(Verb::Publish),
        subscribe: of(Verb::Subscribe),
        history: of(Verb::History),
        presence: of(Verb::Presence),
        delete: of(Verb::Delete),
        admin: grants.allow_admin(),
    };
    let json = serde_json::to_vec(&answer).expect("a caller is JSON");
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, json).into_response()
}
