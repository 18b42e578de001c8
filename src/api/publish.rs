//! `POST /messages`: publishes one message.

use std::mem;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use smallvec::smallvec;

use super::body;
use super::codings::Codings;
use super::drafts::Content;
use super::fields::Fields;
use super::headers::{IDEMPOTENCY_KEY, prefers};
use super::options::Options;
use super::origin;
use super::problem::Problem;
use super::reply::Reply;
use super::state::State;
use crate::hub::Published;
use crate::limits::{Network, Peer};
use crate::message::{Data, IdempotencyKey, Receipt};

/// Responds with 201 and the receipt once the message is stored. A browser's form is answered with a redirect
/// to a page.
pub(super) async fn publish(
    state: &State,
    address: Peer,
    mut head: Parts,
    body: &mut Body,
) -> Result<Response<Reply>, Problem> {
    let options = &state.options;
    let key = idempotency_key(&head.headers)?;
    let (codings, content) = (Codings::of(&head.headers)?, Content::of(&head.headers)?);
    let query = Fields::query(&head.uri, options)?;
    let is_browser = matches!(content, Content::Form | Content::Multipart(_))
        && prefers(&head.headers, ("text", "html"), ("application", "json"));
    let back = is_browser.then(|| origin::own_page(&head));
    // The request's head is freed before the wait: many publishes may wait. Its header map is reused for the
    // response, which saves two allocations.
    let mut headers = mem::take(&mut head.headers);
    headers.clear();
    drop(head);
    let network = Network::from(address);
    let mut memory = state.bodies.memory(network);
    let bytes = body::read(state, &mut memory, body).await?;
    let bytes = codings.decode(bytes, &mut memory, options).await?;
    let mut lease = state.bodies.parsed(network, content.most_memory(&bytes)).await;
    let draft = content.draft(bytes, query, options).await?;
    lease.shrink(draft.weight());
    drop(memory);

    let logged = Logged::new(&draft.data, options);
    let receipts = match state.hub.publish(network, smallvec![draft], key, lease).await? {
        Published::New { receipts, subscribers } => {
            logged.log(&receipts[0], subscribers[0]);
            receipts
        }
        Published::Repeated(receipts) => receipts,
    };
    if let Some(page) = back {
        return Ok(back_to(page));
    }
    let json = serde_json::to_vec(&receipts[0]).expect("a receipt is JSON");
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = Response::new(Reply::from(json));
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
