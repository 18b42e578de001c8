//! The drafts of a body: what its type, its fields and its query make of it.

use std::fmt::Display;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use smallvec::smallvec;

use super::fields::{self, Fields, MAX_FIELDS, channel_name, is_form, json, subscriber_id};
use super::media_type::MediaType;
use super::multipart::{self, Part};
use super::options::Options;
use super::problem::Problem;
use crate::message::{ChannelName, Data, Draft, Drafts, EventName, SubscriberId};

/// What a body has.
#[derive(Debug)]
pub(super) enum Content {
    /// The data of a message; or, if it is JSON and there is no query, the message's fields.
    One(Kind),
    /// NDJSON: such JSON for each message, one a line.
    Lines,
    /// An HTML form, or text that `curl -d` sends with that type.
    Form,
    /// An HTML form in parts that this boundary separates.
    Multipart(String),
}

/// How bytes become data.
#[derive(Debug)]
pub(super) enum Kind {
    Json,
    Text,
    /// Text if it is UTF-8: there is no media type.
    Untyped,
    /// A `data:` URL of this media type.
    Binary(MediaType),
}

impl Content {
    /// # Errors
    /// 415 if the content type can't be read, or is not taken.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Content::One(Kind::Untyped)) };
        // The spelling of almost all programs needs no parsing.
        match value.as_bytes() {
            b"application/json" => return Ok(Content::One(Kind::Json)),
            b"text/plain" => return Ok(Content::One(Kind::Text)),
            _ => {}
        }
        let media_type = media_type(value)?;
        let content = match media_type.names() {
            ("application", "x-ndjson") => Content::Lines,
            ("application", "x-www-form-urlencoded") => Content::Form,
            ("multipart", "form-data") => {
                let boundary = media_type.parameter("boundary").next().map(<[u8]>::to_vec);
                let boundary = boundary.and_then(|boundary| String::from_utf8(boundary).ok());
                Content::Multipart(boundary.ok_or_else(|| unsupported("a form in parts needs its boundary"))?)
            }
            ("multipart", _) => {
                return Err(unsupported("of multipart bodies, only multipart/form-data is taken"));
            }
            _ => return Ok(Content::One(Kind::of(media_type)?)),
        };
        is_utf8(&media_type)?;
        Ok(content)
    }

    /// The most memory that parsing this body takes, in bytes, beside the body's own. `query` is the query's
    /// length.
    pub(super) fn most_memory(&self, body: &[u8], query: usize, options: &Options) -> usize {
        let length = body.len();
        match self {
            Content::One(kind) => kind.most_memory(body),
            Content::Lines => {
                let count = lines(body).take(options.max_batch).count();
                2 * length + count * (size_of::<Draft>() + query)
            }
            // Three bytes of a form may be one character, and that six of JSON. The fields are copied before.
            Content::Form => length + 2 * length.max(Data::text_length(body)),
            // The body and its parts are copied before.
            Content::Multipart(_) => 2 * length + Kind::Untyped.most_memory(body),
        }
    }

    /// # Errors
    /// 400 if the body can't be parsed, 413 if it has more than `--max-batch` messages, 422 if a field is
    /// invalid, 415 if a part's content type is not taken.
    pub(super) async fn drafts(
        self,
        body: BytesMut,
        query: Fields,
        options: &Options,
    ) -> Result<Drafts, Problem> {
        let depth = options.max_json_depth;
        let draft = match self {
            Content::Lines => return batch(&body, query, options),
            Content::One(Kind::Json) if query.is_empty() => message(Fields::json(&body)?, options)?,
            Content::One(kind) => Names::of(query, options)?.draft(kind.data(&body, depth)?),
            Content::Form if is_form(&body) => {
                message(Fields::urlencoded(&body, MAX_FIELDS)?.known(FIELDS).and(query), options)?
            }
            Content::Form => Names::of(query, options)?.draft(Kind::Text.data(&body, depth)?),
            Content::Multipart(boundary) => {
                // Boxed: most publishes have no such form, and a future as large would be kept for each.
                let parts = Box::pin(multipart::parts(body.freeze(), boundary, FIELDS)).await?;
                let mut fields = Fields::default();
                for Part { name, content_type, bytes } in parts {
                    if name == "data" {
                        let kind = content_type.map(|value| Kind::of(media_type(&value)?)).transpose()?;
                        fields.push_data(name, kind.unwrap_or(Kind::Untyped).data(&bytes, depth)?);
                    } else {
                        fields.push_text(name, &bytes)?;
                    }
                }
                message(fields.and(query), options)?
            }
        };
        Ok(smallvec![draft])
    }
}

impl Kind {
    /// # Errors
    /// 415 if it is text that is not UTF-8.
    fn of(media_type: MediaType) -> Result<Self, Problem> {
        let kind = match media_type.names() {
            ("application", "json") => Kind::Json,
            ("text", _) => Kind::Text,
            _ => return Ok(Kind::Binary(media_type)),
        };
        is_utf8(&media_type)?;
        Ok(kind)
    }

    /// The most memory that making data of this body takes, in bytes, beside the body's own.
    fn most_memory(&self, body: &[u8]) -> usize {
        match self {
            // A copy, and one without white space.
            Kind::Json => 2 * body.len(),
            Kind::Text => Data::text_length(body),
            Kind::Untyped => Data::text_length(body).max(4 * body.len()),
            Kind::Binary(_) => 4 * body.len(),
        }
    }

    /// # Errors
    /// 400 if the body is no JSON or no UTF-8 where it has to be, 422 if the data is invalid.
    fn data(&self, body: &[u8], depth_limit: usize) -> Result<Data, Problem> {
        let url = |media_type: &dyn Display| {
            Data::text(&format!("data:{media_type};base64,{}", BASE64.encode(body)))
        };
        match (self, std::str::from_utf8(body)) {
            (Kind::Json, _) => fields::data(json(body)?, depth_limit),
            (Kind::Text | Kind::Untyped, Ok(text)) => Ok(Data::text(text)),
            (Kind::Text, Err(_)) => Err(Problem::malformed("the body is not UTF-8")),
            (Kind::Untyped, Err(_)) => Ok(url(&"application/octet-stream")),
            (Kind::Binary(media_type), _) => Ok(url(media_type)),
        }
    }
}

/// What a message has beside its data.
#[derive(Clone)]
struct Names {
    event: EventName,
    channel: ChannelName,
    except: Option<SubscriberId>,
    ttl: Option<Duration>,
}

impl Names {
    /// # Errors
    /// 422 if a field is invalid, or is none of these.
    fn of(mut fields: Fields, options: &Options) -> Result<Self, Problem> {
        let (event, channel, except) = (fields.one("event")?, fields.one("channel")?, fields.one("except")?);
        let ttl = fields.one("ttl")?.map(|text| ttl(&text)).transpose()?;
        fields.finish("the fields are data, event, channel, except, ttl")?;
        let event = event.map(|text| EventName::parse(&text, options.max_event_name)).transpose();
        Ok(Names {
            event: event.map_err(|error| Problem::invalid_name("event", error))?.unwrap_or_default(),
            channel: channel.map(|text| channel_name(&text, options)).transpose()?.unwrap_or_default(),
            except: except.map(|text| subscriber_id("except", &text)).transpose()?,
            ttl,
        })
    }

    fn draft(self, data: Data) -> Draft {
        let Names { event, channel, except, ttl } = self;
        Draft { event, channel, except, ttl, data }
    }
}

/// The fields of a message.
const FIELDS: &[&str] = &["data", "event", "channel", "except", "ttl"];

/// The draft with these fields.
fn message(mut fields: Fields, options: &Options) -> Result<Draft, Problem> {
    let data = fields.data(options.max_json_depth)?;
    let names = Names::of(fields, options)?;
    Ok(names.draft(data.ok_or_else(|| Problem::invalid("data", "is missing"))?))
}

/// The drafts of NDJSON, one a line.
fn batch(body: &[u8], query: Fields, options: &Options) -> Result<Drafts, Problem> {
    let limit = options.max_batch;
    if lines(body).nth(limit).is_some() {
        let detail = format!("the batch has more than {limit} messages, the limit: send it in parts");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail).field("body").limit(limit));
    }
    let names = if query.is_empty() { None } else { Some(Names::of(query, options)?) };
    let draft = |(number, line): (u32, &[u8])| {
        let draft = match &names {
            None => Fields::json(line).and_then(|fields| message(fields, options)),
            Some(names) => {
                Kind::Json.data(line, options.max_json_depth).map(|data| names.clone().draft(data))
            }
        };
        draft.map_err(|problem| problem.in_line(number))
    };
    let drafts = lines(body).map(draft).collect::<Result<Drafts, _>>()?;
    if drafts.is_empty() {
        return Err(Problem::invalid("body", "has no line with a message"));
    }
    Ok(drafts)
}

/// The lines of NDJSON that are not empty, each with its number. The first is 1.
fn lines(body: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let lines = (1..).zip(body.split(|byte| *byte == b'\n'));
    lines.filter(|(_, line)| !line.trim_ascii().is_empty())
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

fn unsupported(detail: &'static str) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail).field("Content-Type")
}

fn media_type(value: &HeaderValue) -> Result<MediaType, Problem> {
    if value.len() > MediaType::LIMIT {
        let limit = MediaType::LIMIT;
        return Err(unsupported("the content type is longer than 256 bytes, the limit").limit(limit));
    }
    let media_type = MediaType::parse(value.as_bytes()).filter(|media_type| !media_type.is_range());
    media_type.ok_or_else(|| unsupported("the content type can't be read"))
}

fn is_utf8(media_type: &MediaType) -> Result<(), Problem> {
    let is_known = |charset: &[u8]| {
        ["utf-8", "utf8", "us-ascii"].iter().any(|known| charset.eq_ignore_ascii_case(known.as_bytes()))
    };
    if media_type.parameter("charset").all(is_known) {
        Ok(())
    } else {
        Err(unsupported("text must be UTF-8"))
    }
}
