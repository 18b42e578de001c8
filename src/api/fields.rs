//! Fields: the named values of a query, an HTML form or a JSON object. They are taken by name; one
//! that is unknown, or there twice, is an error that names it.

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
use crate::message::{ChannelName, Data, InvalidData, SubscriberId};

/// The fields not taken yet.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(String, Value)>);

#[derive(Debug)]
enum Value {
    Text(String),
    Json(Box<RawValue>),
}

/// More fields than a body has: enough to name one that is too many, and no memory for a stranger's
/// million of them.
pub(super) const MOST: usize = 32;

impl Fields {
    /// The fields of a request's query: as many as anyone may ask with.
    ///
    /// # Errors
    /// As those of [`Fields::urlencoded`].
    pub(super) fn query(uri: &Uri, options: &Options) -> Result<Self, Problem> {
        let most = options.max_channels.saturating_add(MOST);
        Fields::urlencoded(uri.query().unwrap_or_default().as_bytes(), most)
    }

    /// The fields of a query string or a form (WHATWG URL 5.1).
    ///
    /// # Errors
    /// If a name or value is not UTF-8, or there are more than `most`.
    pub(super) fn urlencoded(text: &[u8], most: usize) -> Result<Self, Problem> {
        if pairs(text).nth(most).is_some() {
            let detail = format!("the form or query has more than {most} fields, the limit");
            return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).limit(most));
        }
        let decode = |text| {
            decode(text)
                .map(Cow::into_owned)
                .map_err(|_| Problem::malformed("the form or query is not UTF-8"))
        };
        let pairs = pairs(text)
            .map(|(name, value)| Ok((decode(name)?, Value::Text(decode(value.unwrap_or_default())?))));
        pairs.collect::<Result<_, Problem>>().map(Fields)
    }

    /// The fields of a JSON object.
    ///
    /// # Errors
    /// If it is not JSON, or not an object.
    pub(super) fn json(text: &[u8]) -> Result<Self, Problem> {
        serde_json::from_slice(text).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "the body must be a JSON object")
            }
            _ => Problem::malformed(format!("the body is not JSON: {error}")),
        })
    }

    /// These fields and `others`.
    pub(super) fn and(mut self, others: Fields) -> Self {
        self.0.extend(others.0);
        self
    }

    /// Takes the text of every field of this name.
    ///
    /// # Errors
    /// If one is JSON but no string.
    pub(super) fn all(&mut self, name: &str) -> Result<Vec<String>, Problem> {
        let taken = self.0.extract_if(.., |(field, _)| field == name);
        taken
            .map(|(_, value)| match value {
                Value::Text(text) => Ok(text),
                Value::Json(json) => {
                    serde_json::from_str(json.get()).map_err(|_| Problem::invalid(name, "must be a string"))
                }
            })
            .collect()
    }

    /// Takes the text of the field of this name, if there is one.
    ///
    /// # Errors
    /// If it is there twice, or JSON but no string.
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
    /// If it is there twice, or no whole number.
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

    /// Takes the data in the field `data`, if there is one.
    ///
    /// # Errors
    /// If it is there twice, nests too deeply, or is a string that is no text.
    pub(super) fn data(&mut self, depth_limit: usize) -> Result<Option<Data>, Problem> {
        let is_data = |(field, _): &(String, Value)| field == "data";
        let Some(at) = self.0.iter().position(is_data) else { return Ok(None) };
        let (_, value) = self.0.remove(at);
        if self.0.iter().any(is_data) {
            return Err(twice("data"));
        }
        match value {
            Value::Text(text) => Ok(Some(Data::text(&text))),
            Value::Json(json) => Data::json(json, depth_limit).map(Some).map_err(|error| match error {
                InvalidData::TooDeep { limit } => Problem::invalid("data", error).limit(limit),
                InvalidData::NotText => Problem::invalid("data", error),
            }),
        }
    }

    /// Takes the channels in the fields `channel`; the default one if there is none.
    ///
    /// # Errors
    /// If there are too many, or one is no channel.
    pub(super) fn channels(&mut self, options: &Options) -> Result<Channels, Problem> {
        let names = self.all("channel")?;
        let limit = options.max_channels;
        if names.len() > limit {
            let what = format_args!("is there {} times, the limit is {limit}", names.len());
            return Err(Problem::invalid("channel", what).limit(limit));
        }
        let names: Vec<_> = names.iter().map(|name| channel_name(name, options)).collect::<Result<_, _>>()?;
        Ok(Channels::new(names))
    }

    /// Checks that every field was taken. `hint` tells which there are.
    ///
    /// # Errors
    /// If one was not: nobody knows it.
    pub(super) fn finish(self, hint: &str) -> Result<(), Problem> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(Problem::invalid(name, format_args!("is unknown: {hint}"))),
        }
    }
}

/// The channel with the name that the field `channel` has.
pub(super) fn channel_name(text: &str, options: &Options) -> Result<ChannelName, Problem> {
    ChannelName::parse(text, options.max_channel_name)
        .map_err(|error| Problem::invalid_name("channel", error))
}

/// The subscriber's id that this field has.
pub(super) fn subscriber_id(field: &str, text: &str) -> Result<SubscriberId, Problem> {
    SubscriberId::parse(text).map_err(|error| Problem::invalid_name(field, error))
}

fn twice(name: &str) -> Problem {
    Problem::invalid(name, "is there twice")
}

/// Whether the body is an HTML form with a field `data`. `curl -d 'Hello World!'` sends text under
/// a form's type; that is no form.
pub(super) fn is_form(body: &[u8]) -> bool {
    pairs(body).any(|(name, value)| value.is_some() && matches!(decode(name).as_deref(), Ok("data")))
}

/// Each `name=value`, undecoded; of a part without `=`, the name alone.
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
                    if fields.len() < MOST {
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
        assert!(Fields::urlencoded(b"data=%ff", 1).is_err());
        assert!(Fields::urlencoded(b"data=x&data=y", 1).is_err());
    }
}
