//! `POST /admin/revoke`: tokens are refused from now on, and their streams end.

use std::sync::Arc;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::json;

use super::body;
use super::credentials;
use super::fields::Fields;
use super::problem::Problem;
use super::reply::Reply;
use super::state::State;
use crate::auth::{Caller, InvalidRevocation, MOST_REVOCATIONS, Revocation, RevokeError};
use crate::limits::{Network, Peer};

/// Responds with how many streams end, once it is written down what is revoked.
pub(super) async fn revoke(
    state: &Arc<State>,
    address: Peer,
    caller: &Caller,
    head: Parts,
    body: &mut Body,
) -> Result<Response<Reply>, Problem> {
    credentials::check_admin(caller)?;
    Fields::query(&head.uri, &state.options)?.finish("there are no parameters")?;
    drop(head);
    let mut memory = state.bodies.memory(Network::from(address));
    let bytes = body::read(state, &mut memory, body).await?;
    let mut fields = Fields::json(&bytes)?;
    let (subject, id, token) = (fields.one("subject")?, fields.one("id")?, fields.one("token")?);
    let before = fields.one("before")?;
    fields.finish("the fields are subject, id, token, before")?;
    let shared = |text: &Option<String>| text.as_deref().map(Into::into);
    let revocation =
        Revocation::new(shared(&subject), shared(&id), shared(&token), before.as_deref()).map_err(invalid)?;
    let (state, caller) = (Arc::clone(state), caller.clone());
    // Also if whoever asks hangs up meanwhile: what is revoked has no streams.
    let revoking = tokio::spawn(async move {
        let is_kept = state.auth.revoke(revocation).await?;
        // Whoever subscribes meanwhile finds out by itself.
        let streams = state.hub.end_revoked(|caller| state.auth.is_revoked(caller));
        let by = caller.subject();
        tracing::info!(%address, by, subject, id, token, before, streams, "tokens revoked");
        Ok::<_, RevokeError>((streams, is_kept))
    });
    let revoked = revoking.await.unwrap_or_else(|panic| Err(RevokeError::Write(panic.into())));
    let (streams, is_kept) = revoked?;
    let json = json!({ "streams": streams, "kept": is_kept }).to_string();
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response().map(Reply::Body))
}

fn invalid(error: InvalidRevocation) -> Problem {
    match error {
        InvalidRevocation::What => Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()),
        InvalidRevocation::Before => Problem::invalid("before", error),
        InvalidRevocation::Length { field, limit } => Problem::invalid(field, error).limit(limit),
    }
}

impl From<RevokeError> for Problem {
    fn from(error: RevokeError) -> Self {
        match &error {
            RevokeError::TooMany => {
                Problem::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string()).limit(MOST_REVOCATIONS)
            }
            RevokeError::Write(cause) => {
                tracing::error!(error = %cause, "can't write down what is revoked");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).retry_after(1)
            }
        }
    }
}
