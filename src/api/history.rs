//! `GET /messages`: the kept messages, as one JSON object.

use async_stream::stream;
use axum::body::Body;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use tokio_stream::Stream;

use super::fields::{Fields, subscriber_id};
use super::problem::Problem;
use super::state::State;
use crate::frame;
use crate::hub::{Next, Request, Start, Subscription};
use crate::journal::JournalError;
use crate::message::SubscriberId;

/// Responds with `{"messages": [message, …]}`, newest last. If messages after `after` are no longer kept, a
/// gap comes first: `{"gap": {"asked", "earliest"}, "messages": […]}`.
pub(super) async fn read(state: &State, uri: &Uri) -> Result<Response, Problem> {
    let mut query = Fields::query(uri, &state.options)?;
    let channels = query.channels(&state.options)?;
    let subscriber = query.one("as")?.map(|text| subscriber_id("as", &text)).transpose()?;
    let page = state.replay_page;
    let (after, last, limit) = (query.one("after")?, query.number("last")?, query.number("limit")?);
    query.finish("the parameters are channel, after, last, limit, as")?;
    for (name, count) in [("last", last), ("limit", limit)] {
        if count.is_some_and(|count| count > page) {
            return Err(Problem::invalid(name, format_args!("is more than {page}, the limit")).limit(page));
        }
    }
    let (start, limit) = match (after, last) {
        (Some(_), Some(_)) => return Err(Problem::invalid("last", "can't go with `after`")),
        (Some(after), None) => (Start::After(after), limit.unwrap_or(page)),
        (None, last) => {
            let count = last.unwrap_or(page).min(limit.unwrap_or(page));
            (Start::Newest(count), count)
        }
    };
    let request = Request { channels, start, subscriber };
    let history = state.hub.history(&request).await?;
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(stream(history, limit, request.subscriber))).into_response())
}

/// The JSON object, page by page, so that a history is never in memory as a whole. If the journal can't be
/// read, or retention drops messages meanwhile, the object breaks off: it must not look complete.
fn stream(
    mut history: Subscription,
    limit: usize,
    subscriber: Option<SubscriberId>,
) -> impl Stream<Item = Result<Bytes, JournalError>> {
    stream! {
        let mut bytes = BytesMut::from("{");
        let (mut has_gap, mut has_messages) = (false, false);
        let mut left = limit;
        while left > 0 {
            let next = match history.next().await {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(error) => {
                    yield Err(error);
                    return;
                }
            };
            match next {
                Next::Gap { asked, earliest, .. } if !has_gap && !has_messages => {
                    has_gap = true;
                    let gap = frame::Gap { asked: &asked, earliest };
                    let gap = serde_json::to_string(&gap).expect("a gap is JSON");
                    bytes.put(format!("\"gap\":{gap},").as_bytes());
                }
                // Retention dropped messages since the last page: the object can't be complete.
                Next::Gap { .. } => {
                    yield Err(JournalError::Failed);
                    return;
                }
                Next::Messages(mut entries) => {
                    entries.retain(|entry| entry.message.is_for(subscriber.as_ref()));
                    for entry in entries.iter().take(left) {
                        bytes.put(if has_messages { &b","[..] } else { b"\"messages\":[" });
                        has_messages = true;
                        bytes.put(entry.json());
                    }
                    left -= entries.len().min(left);
                    if has_messages {
                        yield Ok(bytes.split().freeze());
                    }
                }
            }
        }
        bytes.put(if has_messages { &b"]}"[..] } else { b"\"messages\":[]}" });
        yield Ok(bytes.freeze());
    }
}
