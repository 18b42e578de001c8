//! `POST /events/STREAM`: a stream goes on with another token.

use axum::http::{Response, StatusCode};

use super::credentials;
use super::problem::Problem;
use super::reply::Reply;
use super::state::State;
use crate::auth::{Caller, Refused, Verb};
use crate::hub::NotRenewed;
use crate::limits::{Network, Peer};

/// Responds with 204 once the stream goes on for as long as the caller's token is good.
pub(super) fn renew(
    state: &State,
    address: Peer,
    caller: &Caller,
    stream: &str,
) -> Result<Response<Reply>, Problem> {
    if caller.token().is_none() {
        return Err(credentials::needed("the renewal of a stream"));
    }
    state.connecting.take(caller.owner(Network::from(address)))?;
    state.hub.renew(stream, caller).map_err(|error| match error {
        NotRenewed::NoStream => Problem::new(StatusCode::NOT_FOUND, error.to_string()),
        NotRenewed::OtherSubject => Problem::new(StatusCode::FORBIDDEN, error.to_string()),
        NotRenewed::NotGranted(channel) => credentials::not_granted(caller, Verb::Subscribe, &channel),
    })?;
    if state.auth.is_revoked(caller) {
        // It was so after the token was found right. The stream has it now.
        state.hub.end_revoked(|caller| state.auth.is_revoked(caller));
        return Err(Refused::revoked().into());
    }
    tracing::debug!(%address, subject = caller.subject(), "stream renewed");
    let mut response = Response::new(Reply::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}
