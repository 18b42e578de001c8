//! `POST /messages`: publishes a message, or a batch of them.

use std::convert::Infallible;
use std::mem;

use async_stream::stream;
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use smallvec::SmallVec;

use super::body;
use super::codings::Codings;
use super::credentials;
use super::drafts::Content;
use super::fields::Fields;
use super::headers::{IDEMPOTENCY_KEY, prefers};
use super::options::Options;
use super::origin;
use super::problem::Problem;
use super::reply::Reply;
use super::state::State;
use crate::auth::{Caller, Verb};
use crate::hub::Published;
use crate::journal::Key;
use crate::limits::{Network, Peer};
use crate::message::{Data, Draft, IdempotencyKey, Receipt};

/// Responds with 201 and the receipts once the messages are stored. A browser's form is answered with a
/// redirect to a page.
pub(super) async fn publish(
    state: &State,
    address: Peer,
    caller: &Caller,
    mut head: Parts,
    body: &mut Body,
) -> Result<Response<Reply>, Problem> {
    let options = &state.options;
    let network = Network::from(address);
    let owner = caller.owner(network);
    state.publishing.take(owner)?;
    let key = idempotency_key(&head.headers)?;
    let (codings, content) = (Codings::of(&head.headers)?, Content::of(&head.headers)?);
    let (query, query_length) = (Fields::query(&head.uri, options)?, head.uri.query().map_or(0, str::len));
    let is_batch = matches!(content, Content::Lines);
    let is_browser = matches!(content, Content::Form | Content::Multipart(_))
        && prefers(&head.headers, ("text", "html"), ("application", "json"));
    let back = is_browser.then(|| origin::own_page(&head));
    // The request's head is freed before the wait: many publishes may wait. Its header map is reused for the
    // response, which saves two allocations.
    let mut headers = mem::take(&mut head.headers);
    headers.clear();
    drop(head);
    let mut memory = state.bodies.memory(network);
    let bytes = body::read(state, &mut memory, body).await?;
    let bytes = codings.decode(bytes, &mut memory, options).await?;
    let most = content.most_memory(&bytes, query_length, options);
    let mut lease = state.bodies.parsed(network, most).await;
    let mut drafts = content.drafts(bytes, query, options).await?;
    for draft in &mut drafts {
        credentials::check_on(caller, Verb::Publish, &draft.channel)?;
        draft.except = draft.except.take().map(|id| caller.own_id(id));
    }
    state.publishing.take_rest(owner, drafts.len())?;
    let more = (drafts.len() - 1) * size_of::<Draft>();
    lease.shrink(drafts.iter().map(Draft::weight).sum::<usize>() + more);
    drop(memory);
    // A long answer may wait for its publisher, as history does for its reader.
    let share = if is_batch { Some(state.hub.reader(address)?) } else { None };

    let logged: SmallVec<[Logged; 1]> =
        drafts.iter().map(|draft| Logged::new(&draft.data, options)).collect();
    let key = key.map(|text| Key { owner, text });
    let receipts = match state.hub.publish(network, drafts, key, lease).await? {
        Published::New { receipts, subscribers } => {
            for ((receipt, logged), subscribers) in receipts.iter().zip(logged).zip(subscribers) {
                logged.log(receipt, subscribers);
            }
            receipts
        }
        Published::Repeated(receipts) => receipts,
    };
    if let Some(page) = back {
        return Ok(back_to(page));
    }
    let mut json = Vec::with_capacity(128 * receipts.len());
    for receipt in &receipts {
        serde_json::to_writer(&mut json, receipt).expect("a receipt is JSON");
        if is_batch {
            json.push(b'\n');
        }
    }
    let media_type = if is_batch { "application/x-ndjson" } else { "application/json" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    let reply = match share {
        None => Reply::from(json),
        Some(share) => Reply::Body(Body::from_stream(stream! {
            yield Ok::<_, Infallible>(Bytes::from(json));
            drop(share);
        })),
    };
    let mut response = Response::new(reply);
    *response.status_mut() = StatusCode::CREATED;
    *response.headers_mut() = headers;
    Ok(response)
}

/// A browser's form is answered so: with the page that it came from, or the hub's, relative to `/messages`.
fn back_to(page: Option<HeaderValue>) -> Response<Reply> {
    let mut response = Response::new(Reply::default());
    *response.status_mut() = StatusCode::SEE_OTHER;
    let page = page.unwrap_or_else(|| HeaderValue::from_static("./"));
    response.headers_mut().insert(header::LOCATION, page);
    response
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    const NAME: &str = "Idempotency-Key";
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let (key, second) = (keys.next(), keys.next());
    if second.is_some() {
        return Err(Problem::malformed("`Idempotency-Key` is there twice").field(NAME));
    }
    // A value that is no text becomes one that `parse` refuses.
    let parse = |key: &HeaderValue| IdempotencyKey::parse(key.to_str().unwrap_or("\u{fffd}"));
    key.map(parse).transpose().map_err(|error| {
        let problem = Problem::malformed(format!("`{NAME}` {error}")).field(NAME);
        if key.is_some_and(|key| key.len() > IdempotencyKey::LIMIT) {
            problem.limit(IdempotencyKey::LIMIT)
        } else {
            problem
        }
    })
}

/// The fields of a message's data in the log.
struct Logged {
    /// The length of the JSON text, in bytes.
    size: usize,
    /// The beginning of the JSON text. `None` if the log does not show data.
    data: Option<String>,
}

impl Logged {
    fn new(data: &Data, options: &Options) -> Self {
        /// The most bytes shown. Higher: long lines in the log. Lower: messages are hard to recognise.
        const SHOWN: usize = 256;
        let json = data.as_json();
        let is_shown = !options.hide_data && tracing::enabled!(tracing::Level::INFO);
        let data = is_shown.then(|| {
            let cut = json.floor_char_boundary(SHOWN);
            let mut beginning = String::with_capacity(cut + '…'.len_utf8());
            beginning.push_str(&json[..cut]);
            if cut < json.len() {
                beginning.push('…');
            }
            beginning
        });
        Logged { size: json.len(), data }
    }

    fn log(&self, receipt: &Receipt, subscribers: usize) {
        tracing::info!(
            id = %receipt.id,
            channel = receipt.channel.as_str(),
            event = receipt.event.as_str(),
            size = self.size,
            subscribers,
            data = self.data.as_ref().map(tracing::field::display),
            "message published"
        );
    }
}
