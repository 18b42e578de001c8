//! `POST /messages`: publishes one message.

use std::mem;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::response::{IntoResponse, Redirect};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use smallvec::smallvec;

use super::body;
use super::fields::{Fields, MAX_FIELDS, channel_name, is_form, subscriber_id};
use super::headers::{IDEMPOTENCY_KEY, accepts};
use super::options::Options;
use super::problem::Problem;
use super::reply::Reply;
use super::state::State;
use crate::hub::Published;
use crate::limits::{Network, Peer};
use crate::message::{ChannelName, Data, Draft, EventName, IdempotencyKey, Receipt};

/// Responds with 201 and the receipt once the message is stored. A browser's form is answered with a redirect
/// to the page.
pub(super) async fn publish(
    state: &State,
    address: Peer,
    mut head: Parts,
    body: &mut Body,
) -> Result<Response<Reply>, Problem> {
    let options = &state.options;
    let key = idempotency_key(&head.headers)?;
    let kind = Kind::of(&head.headers)?;
    let query = Fields::query(&head.uri, options)?;
    let is_browser = matches!(kind, Kind::Form) && accepts(&head.headers, "text/html");
    // The request's head is freed before the wait: many publishes may wait. Its header map is reused for the
    // response, which saves two allocations.
    let mut headers = mem::take(&mut head.headers);
    headers.clear();
    drop(head);
    let network = Network::from(address);
    let mut memory = state.bodies.memory(network);
    let bytes = body::read(state, &mut memory, body).await?;
    let mut lease = state.bodies.parsed(network, kind.most_memory(&bytes)).await;
    let draft = draft(kind, &bytes, query, options)?;
    lease.shrink(draft.weight());
    drop((bytes, memory));

    let logged = Logged::new(&draft.data, options);
    let receipts = match state.hub.publish(network, smallvec![draft], key, lease).await? {
        Published::New { receipts, subscribers } => {
            logged.log(&receipts[0], subscribers[0]);
            receipts
        }
        Published::Repeated(receipts) => receipts,
    };
    if is_browser {
        return Ok(Redirect::to("/").into_response().map(Reply::Body));
    }
    let json = serde_json::to_vec(&receipts[0]).expect("a receipt is JSON");
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut response = Response::new(Reply::from(json));
    *response.status_mut() = StatusCode::CREATED;
    *response.headers_mut() = headers;
    Ok(response)
}

/// The kind of a body, by its content type.
#[derive(Debug)]
enum Kind {
    Json,
    Text,
    /// An HTML form, or text that `curl -d` sends with that type.
    Form,
    /// Any other media type, which is given.
    Binary(String),
}

impl Kind {
    /// The most memory that parsing this body takes, in bytes, beside the body's own.
    fn most_memory(&self, body: &[u8]) -> usize {
        match self {
            // A copy, and one without white space.
            Kind::Json => 2 * body.len(),
            Kind::Text => Data::text_length(body),
            // Three bytes of a form may be one character, and that six of JSON. The fields are copied before.
            Kind::Form => body.len() + 2 * body.len().max(Data::text_length(body)),
            Kind::Binary(_) => 4 * body.len(),
        }
    }

    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let unsupported =
            |detail| Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).field("Content-Type");
        // A body without a type may be taken as arbitrary bytes (RFC 9110 8.3).
        let Some(value) = headers.get(header::CONTENT_TYPE) else {
            return Ok(Kind::Binary("application/octet-stream".to_owned()));
        };
        // The spelling of almost all programs needs no parsing.
        if value == "application/json" {
            return Ok(Kind::Json);
        }
        let media_type =
            parse_media_type(value).ok_or_else(|| unsupported("the content type can't be read"))?;
        let (essence, parameters) = media_type.split_once(';').unwrap_or((&media_type, ""));
        let utf8 =
            parameters.split(';').filter_map(|parameter| parameter.strip_prefix("charset=")).all(|charset| {
                ["utf-8", "utf8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known))
            });
        let kind = match essence {
            "application/json" => Kind::Json,
            "text/plain" => Kind::Text,
            "application/x-www-form-urlencoded" => Kind::Form,
            multipart if multipart.starts_with("multipart/") => {
                return Err(unsupported(
                    "multipart bodies are not taken: send the file's bytes as the body, with its type",
                ));
            }
            _ => return Ok(Kind::Binary(media_type)),
        };
        if utf8 { Ok(kind) } else { Err(unsupported("text must be UTF-8")) }
    }
}

/// The media type as it can stand in a `data:` URL: without white space, its type in lower case, its
/// parameters unquoted. `None` if `value` is no media type, or has characters that can't stand there.
fn parse_media_type(value: &HeaderValue) -> Option<String> {
    /// The longest media type, in bytes; real ones are far shorter. Higher: each message stores its media
    /// type in its data, and would grow.
    const LIMIT: usize = 256;
    let value = value.to_str().ok().filter(|value| value.len() <= LIMIT)?;
    let is_token = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&byte))
    };
    let mut parts = value.split(';').map(str::trim);
    let essence = parts.next()?.to_ascii_lowercase();
    let (kind, subtype) = essence.split_once('/')?;
    if !is_token(kind) || !is_token(subtype) {
        return None;
    }
    let mut media_type = essence;
    for parameter in parts.filter(|part| !part.is_empty()) {
        let (name, value) = parameter.split_once('=')?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        if !is_token(name) || !is_token(value) {
            return None;
        }
        media_type.push_str(&format!(";{}={value}", name.to_ascii_lowercase()));
    }
    Some(media_type)
}

fn draft(kind: Kind, body: &[u8], query: Fields, options: &Options) -> Result<Draft, Problem> {
    let text = || std::str::from_utf8(body).map_err(|_| Problem::malformed("the body is not UTF-8"));
    let depth_limit = options.max_json_depth;
    let (data, mut fields) = match kind {
        Kind::Json => {
            query.finish("the fields of a JSON body are in the body")?;
            let mut fields = Fields::json(body)?;
            (fields.data(depth_limit)?, fields)
        }
        Kind::Form if is_form(body) => {
            let mut fields = Fields::urlencoded(body, MAX_FIELDS)?;
            (fields.data(depth_limit)?, fields.and(query))
        }
        Kind::Form | Kind::Text => (Some(Data::text(text()?)), query),
        Kind::Binary(media_type) => {
            let url = format!("data:{media_type};base64,{}", BASE64.encode(body));
            (Some(Data::text(&url)), query)
        }
    };
    let (event, channel, except) = (fields.one("event")?, fields.one("channel")?, fields.one("except")?);
    let ttl = fields.one("ttl")?.map(|text| ttl(&text)).transpose()?;
    fields.finish("the fields are data, event, channel, except, ttl")?;
    let data = data.ok_or_else(|| Problem::invalid("data", "is missing"))?;
    Ok(Draft {
        event: match event {
            Some(text) => EventName::parse(&text, options.max_event_name)
                .map_err(|error| Problem::invalid_name("event", error))?,
            None => EventName::default(),
        },
        channel: match channel {
            Some(text) => channel_name(&text, options)?,
            None => ChannelName::default(),
        },
        except: except.map(|text| subscriber_id("except", &text)).transpose()?,
        data,
        ttl,
    })
}

/// Parses the text of a field `ttl`, a duration.
fn ttl(text: &str) -> Result<Duration, Problem> {
    /// The longest, some ten years. Higher: of no use, as retention drops messages sooner.
    const LIMIT: Duration = Duration::from_hours(24 * 3650);
    match humantime::parse_duration(text) {
        Ok(ttl) if ttl > LIMIT => {
            let limit = usize::try_from(LIMIT.as_secs()).unwrap_or(usize::MAX);
            Err(Problem::invalid("ttl", "is more than 3650days, the limit").limit(limit))
        }
        Ok(ttl) if ttl.as_millis() > 0 => Ok(ttl),
        Ok(_) => Err(Problem::invalid("ttl", "must be at least 1ms")),
        Err(_) => Err(Problem::invalid("ttl", "must be a duration, as in 30s or 7days")),
    }
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
