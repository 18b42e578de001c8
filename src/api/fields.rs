//! Fields: the named values of a query, an HTML form or a JSON object. Handlers take fields by name. An
//! unknown field, or one given twice, is a problem that names the field. `GET /events` and HTML forms pass
//! unknown ones over.

use std::borrow::Cow;
use std::fmt;
use std::str::Utf8Error;

use axum::http::{StatusCode, Uri};
use percent_encoding::percent_decode;
use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::options::Options;
use super::problem::Problem;
use crate::journal::Channels;
use crate::message::{ChannelName, Data, InvalidData, InvalidName, Pattern, SubscriberId};

/// The fields that are not taken yet.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(String, Value)>);

#[derive(Debug)]
enum Value {
    Text(String),
    Json(Box<RawValue>),
    /// Of a query or form, where the name or the value is not UTF-8.
    NotText,
    Data(Data),
}

/// The most fields of a body. Higher: a hostile body's fields take more memory. Lower: a form with many
/// fields that are passed over would be refused.
pub(super) const MAX_FIELDS: usize = 32;

/// The parameter of a query that has a credential, with `--token-in-query`. It is no field of any request.
pub(super) const TOKEN: &str = "token";

/// The most tokens that the patterns of one request have together, or four for each of `--max-channels`, if
/// that is more. Higher: a subscriber takes more memory, 250 bytes for each token that no other has. Lower:
/// a pattern of the longest length may be refused.
const MIN_TOKENS: usize = 64;

impl Fields {
    /// The fields of a request's query: at most [`MAX_FIELDS`], and `--max-channels` more.
    ///
    /// # Errors
    /// As of [`Fields::urlencoded`].
    pub(super) fn query(uri: &Uri, options: &Options) -> Result<Self, Problem> {
        let limit = options.max_channels.saturating_add(MAX_FIELDS);
        let mut fields = Fields::urlencoded(uri.query().unwrap_or_default().as_bytes(), limit)?;
        if options.token_in_query {
            fields.0.retain(|(name, _)| name != TOKEN);
        }
        Ok(fields)
    }

    /// The fields of a query string or a form (WHATWG URL 5.1).
    ///
    /// # Errors
    /// 422 if there are more than `limit` fields.
    pub(super) fn urlencoded(text: &[u8], limit: usize) -> Result<Self, Problem> {
        if pairs(text).nth(limit).is_some() {
            let detail = format!("the form or query has more than {limit} fields, the limit");
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).limit(limit));
        }
        let pairs =
            pairs(text).map(|(name, value)| match (decode(name), decode(value.unwrap_or_default())) {
                (Ok(name), Ok(value)) => (name.into_owned(), Value::Text(value.into_owned())),
                (name, _) => (name.map_or("\u{fffd}".to_owned(), Cow::into_owned), Value::NotText),
            });
        Ok(Fields(pairs.collect()))
    }

    /// The fields of a JSON object.
    ///
    /// # Errors
    /// 400 if the text is not JSON, 422 if it is no object.
    pub(super) fn json(text: &[u8]) -> Result<Self, Problem> {
        json(text)
    }

    /// Adds a field of a form.
    ///
    /// # Errors
    /// 400 if the text is not UTF-8.
    pub(super) fn push_text(&mut self, name: String, text: &[u8]) -> Result<(), Problem> {
        let text = std::str::from_utf8(text).map_err(|_| Problem::malformed("the form is not UTF-8"))?;
        self.0.push((name, Value::Text(text.to_owned())));
        Ok(())
    }

    /// Adds a field of which the data is known.
    pub(super) fn push_data(&mut self, name: String, data: Data) {
        self.0.push((name, Value::Data(data)));
    }

    /// Whether there are no fields.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The fields of these names: an HTML form has fields that its author did not write, as that of the
    /// button.
    pub(super) fn known(mut self, names: &[&str]) -> Self {
        self.0.retain(|(name, _)| names.contains(&&**name));
        self
    }

    /// These fields, and then `others`.
    pub(super) fn and(mut self, others: Fields) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Takes the text of every field of this name.
    ///
    /// # Errors
    /// 400 if such a field is not UTF-8, 422 if it is JSON but no string.
    pub(super) fn all(&mut self, name: &str) -> Result<Vec<String>, Problem> {
        self.any_of(&[name])
    }

    /// Takes the text of every field of one of these names, in the order in which the fields stand.
    ///
    /// # Errors
    /// As of [`all`](Self::all).
    pub(super) fn any_of(&mut self, names: &[&str]) -> Result<Vec<String>, Problem> {
        let taken = self.0.extract_if(.., |(field, _)| names.contains(&field.as_str()));
        taken
            .map(|(name, value)| match value {
                Value::NotText => Err(not_text(&name)),
                Value::Text(text) => Ok(text),
                Value::Json(json) => serde_json::from_str(json.get()).map_err(|_| no_string(&name)),
                Value::Data(_) => Err(no_string(&name)),
            })
            .collect()
    }

    /// Takes the text of the field of this name, if there is one.
    ///
    /// # Errors
    /// 422 if there are two such fields, or the field is JSON but no string.
    pub(super) fn one(&mut self, name: &str) -> Result<Option<String>, Problem> {
        let mut values = self.all(name)?;
        match values.len() {
            0 | 1 => Ok(values.pop()),
            _ => Err(twice(name)),
        }
    }

    /// Takes the number in the field of this name, if there is one.
    ///
    /// # Errors
    /// 422 if there are two such fields, or the field is no whole number.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<usize>, Problem> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits => Ok(Some(number)),
            _ => {
                Err(Problem::invalid(name, format_args!("must be a whole number of at most {}", usize::MAX)))
            }
        }
    }

    /// Takes the field of this name. Whether it is 1, and not 0 or left out.
    ///
    /// # Errors
    /// 422 if there are two such fields, or the field is neither.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.one(name)?.as_deref() {
            None | Some("0") => Ok(false),
            Some("1") => Ok(true),
            Some(_) => Err(Problem::invalid(name, "must be 1, or left out")),
        }
    }

    /// Takes the data in the field `data`, if there is one.
    ///
    /// # Errors
    /// 422 if there are two such fields, or the data nests too deeply or is a string that is no text.
    pub(super) fn data(&mut self, depth_limit: usize) -> Result<Option<Data>, Problem> {
        let is_data = |(field, _): &(String, Value)| field == "data";
        let Some(at) = self.0.iter().position(is_data) else { return Ok(None) };
        let (_, value) = self.0.remove(at);
        if self.0.iter().any(is_data) {
            return Err(twice("data"));
        }
        match value {
            Value::NotText => Err(not_text("data")),
            Value::Text(text) => Ok(Some(Data::text(&text))),
            Value::Json(json) => data(json, depth_limit).map(Some),
            Value::Data(data) => Ok(Some(data)),
        }
    }

    /// Takes the channels in the fields `channel`, the default channel if there are none.
    ///
    /// # Errors
    /// 422 if there are more than `--max-channels`, one is no pattern, or the patterns are too long.
    pub(super) fn channels(&mut self, options: &Options) -> Result<Channels, Problem> {
        let names = self.all("channel")?;
        let limit = options.max_channels;
        if names.len() > limit {
            let what = format_args!("is there {} times, the limit is {limit}", names.len());
            return Err(Problem::invalid("channel", what).limit(limit));
        }
        let pattern = |text: &String| {
            Pattern::parse(text, options.max_channel_name)
                .map_err(|error| Problem::invalid_name("channel", error))
        };
        let patterns = names.iter().map(pattern).collect::<Result<Vec<_>, _>>()?;
        let wild = patterns.iter().filter(|pattern| pattern.name().is_none());
        let tokens: usize = wild.map(|pattern| pattern.tokens().count()).sum();
        let limit = limit.saturating_mul(4).max(MIN_TOKENS);
        if tokens > limit {
            let what =
                format_args!("has patterns of {tokens} tokens, the limit is {limit}: end some with `>`");
            return Err(Problem::invalid("channel", what).limit(limit));
        }
        Ok(Channels::new(patterns))
    }

    /// Checks that every field was taken. `hint` says which fields are known.
    ///
    /// # Errors
    /// 422 if a field was not taken: it is unknown. 400 if it is not UTF-8.
    pub(super) fn finish(self, hint: &str) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, Value::NotText)) => Err(not_text(name)),
            Some((name, _)) => Err(Problem::invalid(name, format_args!("is unknown: {hint}"))),
        }
    }

    /// The names of the fields that were not taken, each once: the first few of them, each cut.
    pub(super) fn unknown(self) -> Vec<String> {
        let mut names = Vec::new();
        for (name, _) in self.0 {
            let cut = &name[..name.floor_char_boundary(LONGEST_NAMED)];
            if names.len() < MOST_NAMED && !names.iter().any(|known| known == cut) {
                names.push(cut.to_owned());
            }
        }
        names
    }
}

/// The most unknown fields that are named. Higher: longer openings and lines of the log. Lower: the field
/// that was meant may be left out.
const MOST_NAMED: usize = 8;

/// The most bytes that are given of an unknown field's name. Higher: a secret that stands where a name should
/// may be given whole. Lower: the name can't be recognised.
const LONGEST_NAMED: usize = 24;

/// A field that is not UTF-8.
fn not_text(name: &str) -> Problem {
    Problem::malformed(format!("`{name}` is not UTF-8")).field(name)
}

/// The data with this JSON text.
///
/// # Errors
/// 422 if the data nests too deeply or is a string that is no text.
pub(super) fn data(json: Box<RawValue>, depth_limit: usize) -> Result<Data, Problem> {
    Data::json(json, depth_limit).map_err(|error| match error {
        InvalidData::TooDeep { limit } => Problem::invalid("data", error).limit(limit),
        InvalidData::NotText => Problem::invalid("data", error),
    })
}

/// Parses JSON.
///
/// # Errors
/// 400 if the text is not JSON, 422 if it is no object where there has to be one.
pub(super) fn json<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "the body must be a JSON object")
        }
        // Of most bodies, and of a batch's lines, there is but one line.
        _ => Problem::malformed(format!("the body is not JSON: {error}").replace(" line 1 ", " ")),
    })
}

/// Parses the text of a field `channel`.
pub(super) fn channel_name(text: &str, options: &Options) -> Result<ChannelName, Problem> {
    ChannelName::parse(text, options.max_channel_name)
        .map_err(|error| Problem::invalid_name("channel", error))
}

/// Parses the text of `field`, which is a subscriber's id.
pub(super) fn subscriber_id(field: &str, text: &str) -> Result<SubscriberId, Problem> {
    let limit = SubscriberId::CHOSEN;
    let id = SubscriberId::parse(text).and_then(|id| match text.len() {
        length if length > limit => Err(InvalidName::TooLong { length, limit }),
        _ => Ok(id),
    });
    id.map_err(|error| Problem::invalid_name(field, error))
}

fn no_string(name: &str) -> Problem {
    Problem::invalid(name, "must be a string")
}

fn twice(name: &str) -> Problem {
    Problem::invalid(name, "is there twice")
}

/// Whether the body is an HTML form with a field `data`. `curl -d 'Hello World!'` sends plain text with a
/// form's content type.
pub(super) fn is_form(body: &[u8]) -> bool {
    pairs(body).any(|(name, value)| value.is_some() && matches!(decode(name).as_deref(), Ok("data")))
}

/// The name and value of each `name=value`, not decoded. The value is `None` in a part without `=`.
fn pairs(text: &[u8]) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> {
    text.split(|byte| *byte == b'&').filter(|part| !part.is_empty()).map(|part| {
        let mut halves = part.splitn(2, |byte| *byte == b'=');
        (halves.next().unwrap_or_default(), halves.next())
    })
}

fn decode(text: &[u8]) -> Result<Cow<'_, str>, Utf8Error> {
    if !text.contains(&b'+') {
        return percent_decode(text).decode_utf8();
    }
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    percent_decode(&spaced).decode_utf8().map(|text| text.into_owned().into())
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if fields.len() < MAX_FIELDS {
                        fields.push((name, Value::Json(map.next_value()?)));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_under_a_forms_type_is_no_form() {
        for text in ["Hello World!", "a=b&c=d", "", "&", "Tom & Jerry", "event=x", "data", "datax=1", "100%"]
        {
            assert!(!is_form(text.as_bytes()), "{text}");
        }
        for form in ["data=", "event=x&data=1", "d%61ta=1"] {
            assert!(is_form(form.as_bytes()), "{form}");
        }
    }

    #[test]
    fn a_form_is_decoded_as_browsers_encode_it() {
        let mut fields = Fields::urlencoded(b"data=a+b%26c%3D%F0%9F%8E%89+100%", 1).unwrap();
        assert_eq!(fields.one("data").unwrap().as_deref(), Some("a b&c=🎉 100%"));
        assert!(Fields::urlencoded(b"data=%ff", 1).unwrap().one("data").is_err());
        assert!(Fields::urlencoded(b"data=x&data=y", 1).is_err());
    }
}
