//! `GET /messages`: the kept messages, as one JSON object.

use async_stream::stream;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use tokio_stream::Stream;

use super::credentials;
use super::fields::{Fields, subscriber_id};
use super::problem::Problem;
use super::state::State;
use crate::auth::{Caller, Verb};
use crate::frame;
use crate::hub::{Next, Request, Start, Subscription};
use crate::journal::{JournalError, Kept};
use crate::limits::{Network, Peer};
use crate::message::SubscriberId;

/// Responds with `{"messages": [message, …]}`, newest last. If messages after `after` are no longer kept, or
/// `before` is no id of this journal, a gap comes first: `{"gap": {"asked", "earliest"}, "messages": […]}`.
pub(super) async fn read(
    state: &State,
    address: Peer,
    caller: &Caller,
    head: &Parts,
) -> Result<Response, Problem> {
    state.connecting.take(caller.owner(Network::from(address)))?;
    let (request, limit) = parse(state, caller, &head.uri)?;
    let history = state.hub.history(address, &request).await?;
    Ok(response(Body::from_stream(stream(history, limit, request.subscriber))))
}

/// Responds with the headers of the same response. Nothing is read.
pub(super) fn respond_to_head(state: &State, caller: &Caller, uri: &Uri) -> Result<Response, Problem> {
    parse(state, caller, uri)?;
    Ok(response(Body::from_stream(tokio_stream::pending::<Result<Bytes, JournalError>>())))
}

fn response(body: Body) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    (headers, body).into_response()
}

/// What is asked for, and how many messages at most.
fn parse(state: &State, caller: &Caller, uri: &Uri) -> Result<(Request, usize), Problem> {
    let mut query = Fields::query(uri, &state.options)?;
    let channels = query.channels(&state.options)?;
    let subscriber = query.one("as")?.map(|text| subscriber_id("as", &text)).transpose()?;
    let subscriber = subscriber.map(|id| caller.own_id(id));
    credentials::check(caller, Verb::History, &channels)?;
    let page = state.replay_page;
    let is_given = |id: &String| !id.is_empty();
    let (after, before) = (query.one("after")?.filter(is_given), query.one("before")?.filter(is_given));
    let is_latest = query.flag("latest")?;
    let (last, limit) = (query.number("last")?, query.number("limit")?);
    query.finish("the parameters are channel, after, before, last, latest, limit, as")?;
    for (name, count) in [("last", last), ("limit", limit)] {
        if count.is_some_and(|count| count > page) {
            return Err(Problem::invalid(name, format_args!("is more than {page}, the limit")).limit(page));
        }
    }
    let limit = limit.unwrap_or(page).min(last.unwrap_or(page));
    let start = match (before, is_latest, last, after) {
        (Some(before), false, None, None) => Start::Before(before, limit),
        (Some(_), ..) => return Err(Problem::invalid("before", "can't go with `after`, `last` or `latest`")),
        (None, true, Some(_), _) => return Err(Problem::invalid("latest", "can't go with `last`")),
        (None, true, None, after) => Start::Latest(after),
        (None, false, Some(_), Some(_)) => return Err(Problem::invalid("last", "can't go with `after`")),
        (None, false, None, Some(after)) => Start::After(after),
        (None, false, _, None) => Start::Newest(limit),
    };
    Ok((Request { channels, start, subscriber }, limit))
}

/// The JSON object, page by page, so that a history is never in memory as a whole. The next page is read only
/// once the reader has taken the last: the stream is polled then. If the journal can't be read, or retention
/// drops messages meanwhile, the object breaks off: it must not look complete.
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
            let entries = match next {
                Next::Gap { asked, earliest, .. } if !has_gap && !has_messages => {
                    has_gap = true;
                    let gap = frame::Gap { asked: &asked, earliest };
                    let gap = serde_json::to_string(&gap).expect("a gap is JSON");
                    bytes.put(format!("\"gap\":{gap},").as_bytes());
                    continue;
                }
                // Retention dropped messages since the last page: the object can't be complete.
                Next::Gap { .. } => {
                    yield Err(JournalError::Failed);
                    return;
                }
                Next::Messages(entries) => entries,
            };
            for entry in entries {
                if left == 0 || !entry.message.is_for(subscriber.as_ref()) {
                    continue;
                }
                left -= 1;
                bytes.put(if has_messages { &b","[..] } else { b"\"messages\":[" });
                has_messages = true;
                // The pieces of a message that does not fit into a page with others. While the reader takes
                // one, the message is kept only if there is plenty of memory.
                let (sequence, mut put) = (entry.message.id.sequence, 0);
                let (mut present, mut kept) = (Some(entry), None::<Kept>);
                loop {
                    let whole = match present.take().or_else(|| kept.take().map(|kept| kept.entry)) {
                        Some(entry) => entry,
                        None => match history.reread(sequence).await {
                            Ok(Some(entry)) => entry,
                            Ok(None) | Err(_) => {
                                yield Err(JournalError::Failed);
                                return;
                            }
                        },
                    };
                    let json = whole.json();
                    let end = json.len().min(put + PIECE);
                    bytes.put(&json[put..end]);
                    put = end;
                    if put == json.len() {
                        break;
                    }
                    kept = history.keep(&whole);
                    drop((json, whole));
                    yield Ok(bytes.split().freeze());
                }
            }
            if has_messages {
                yield Ok(bytes.split().freeze());
            }
        }
        bytes.put(if has_messages { &b"]}"[..] } else { b"\"messages\":[]}" });
        yield Ok(bytes.freeze());
    }
}

/// The most bytes of one message that are encoded at once. Higher: more memory for a reader who takes
/// nothing. Lower: a message may be read again more often. Not lower than a page's: a message that is cut
/// would be among others.
const PIECE: usize = 48 << 10;
