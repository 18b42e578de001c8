//! `DELETE /messages/ID`: erases one message for good.

use axum::http::request::Parts;
use axum::http::{Response, StatusCode};

use super::credentials;
use super::fields::Fields;
use super::problem::Problem;
use super::reply::Reply;
use super::state::State;
use crate::auth::{Caller, Verb};
use crate::hub::{PublishError, Published};
use crate::limits::{Network, Peer};
use crate::message::{MessageId, Pattern};

/// Responds with 204 once the message's bytes are overwritten, and the event that says so is stored.
pub(super) async fn delete(
    state: &State,
    address: Peer,
    caller: &Caller,
    head: Parts,
    id: &str,
) -> Result<Response<Reply>, Problem> {
    let network = Network::from(address);
    state.publishing.take(caller.owner(network))?;
    let id: MessageId = id.parse().map_err(|_| Problem::malformed("the path has no message's id"))?;
    Fields::query(&head.uri, &state.options)?.finish("there are no parameters")?;
    drop(head);
    if !caller.may(Verb::Delete, &Pattern::all()) {
        let channel = state.hub.channel_of(network, id).await?.ok_or(PublishError::NotKept)?;
        credentials::check_on(caller, Verb::Delete, &channel)?;
    }
    let bytes = state.hub.erased_bytes(network, id).await?;
    let lease = state.bodies.parsed(network, bytes).await;
    if let Published::New { receipts, subscribers } = state.hub.delete(network, id, lease).await? {
        for (receipt, subscribers) in receipts.iter().zip(subscribers) {
            let channel = receipt.channel.as_str();
            tracing::info!(%id, channel, event_id = %receipt.id, subscribers, "message deleted");
        }
    }
    let mut response = Response::new(Reply::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}
