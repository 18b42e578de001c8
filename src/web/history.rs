//! `GET /messages`: the kept messages, as one JSON object.

use async_stream::stream;
use axum::body::Body;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use tokio_stream::Stream;

use super::events::subscription;
use super::problem::Problem;
use super::{App, journal_failed, query_fields};
use crate::frame;
use crate::hub::{Delivery, Request, Start, Subscription};
use crate::journal::Failed;

/// Answers `{"messages": [message, …]}`, newest last. Where messages after `after` are no longer
/// kept, a `gap` stands in front: `{"gap": {"asked", "earliest"}, "messages": […]}`.
pub(super) async fn read(app: &App, uri: &Uri) -> Result<Response, Problem> {
    let mut query = query_fields(uri, &app.config)?;
    let (channels, subscriber) = subscription(&mut query, &app.config)?;
    let page = app.config.replay_page;
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
    let history = app.hub.history(Request { channels, start, subscriber }).await.map_err(journal_failed)?;
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(stream(history, limit))).into_response())
}

/// The object, page by page: a history of large messages is never in memory as a whole. If the
/// journal fails, or messages are dropped while it is read, it breaks off and does not pass for whole.
fn stream(mut history: Subscription, limit: usize) -> impl Stream<Item = Result<Bytes, Failed>> {
    stream! {
        let mut bytes = BytesMut::from("{");
        let (mut told, mut begun) = (false, false);
        let mut left = limit;
        while left > 0 {
            let delivery = match history.next().await {
                Ok(Some(delivery)) => delivery,
                Ok(None) => break,
                Err(failed) => {
                    yield Err(failed);
                    return;
                }
            };
            match delivery {
                Delivery::Gap { asked, earliest, .. } if !told && !begun => {
                    told = true;
                    let gap = serde_json::to_string(&frame::Gap { asked: &asked, earliest }).expect("a gap is JSON");
                    bytes.put(format!("\"gap\":{gap},").as_bytes());
                }
                // Retention overtook this reading: what is left would pass for all.
                Delivery::Gap { .. } => {
                    yield Err(Failed);
                    return;
                }
                Delivery::Messages(entries) => {
                    for entry in entries.iter().take(left) {
                        bytes.put(if begun { &b","[..] } else { b"\"messages\":[" });
                        begun = true;
                        bytes.put(entry.json());
                    }
                    left -= entries.len().min(left);
                    yield Ok(bytes.split().freeze());
                }
            }
        }
        bytes.put(if begun { &b"]}"[..] } else { b"\"messages\":[]}" });
        yield Ok(bytes.freeze());
    }
}
