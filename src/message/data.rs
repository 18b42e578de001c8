//! Data: the JSON value that a message carries.

use std::borrow::Cow;

use memchr::memchr2;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// One JSON value, as the publisher wrote it but for white space between tokens: no number is rounded
/// and no key is reordered.
#[derive(Debug)]
pub struct Data(Box<RawValue>);

impl Data {
    /// A JSON string with this text.
    pub fn text(text: &str) -> Self {
        Data(serde_json::value::to_raw_value(text).expect("a str is always a JSON string"))
    }

    /// How long the JSON string with this text is, in bytes, for memory to be found first.
    pub fn text_length(text: &[u8]) -> usize {
        let length = |byte: &u8| match byte {
            b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
            0..0x20 => "\\u0001".len(),
            _ => 1,
        };
        "\"\"".len() + text.iter().map(length).sum::<usize>()
    }

    /// The JSON value `raw`, without the white space between its tokens.
    ///
    /// # Errors
    /// [`InvalidData`] if arrays and objects nest deeper than `depth_limit`, or if `raw` is a string with
    /// half a surrogate pair.
    pub fn json(raw: Box<RawValue>, depth_limit: usize) -> Result<Self, InvalidData> {
        let data = Data(match compact(raw.get(), depth_limit)? {
            None => raw,
            Some(compact) => {
                RawValue::from_string(compact).expect("white space between tokens carries no meaning")
            }
        });
        let json = data.as_json();
        // Only an escape can write half a pair: a string without `\` needs no check.
        if json.starts_with('"') && json.contains('\\') && data.as_text().is_none() {
            return Err(InvalidData::NotText);
        }
        Ok(data)
    }

    /// The data of a stored message, from its JSON text.
    ///
    /// # Errors
    /// [`serde_json::Error`] if the text is no JSON value.
    pub fn stored(json: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(json).map(Data)
    }

    /// The JSON text, without white space between tokens.
    pub fn as_json(&self) -> &str {
        self.0.get()
    }

    /// The text of a JSON string, unescaped; `None` for any other JSON value.
    pub fn as_text(&self) -> Option<Cow<'_, str>> {
        let quoted = self.as_json().strip_prefix('"')?.strip_suffix('"')?;
        if !quoted.contains('\\') {
            return Some(Cow::Borrowed(quoted));
        }
        serde_json::from_str(self.as_json()).map(Cow::Owned).ok()
    }
}

impl Serialize for Data {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Why a JSON value can't be published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidData {
    /// Arrays and objects nest too deeply.
    #[error("nests deeper than {limit} levels")]
    TooDeep {
        /// The most levels allowed.
        limit: usize,
    },
    /// The data is a string that is no Unicode text.
    #[error("is a string with half a surrogate pair")]
    NotText,
}

/// The tokens of `json`, which must be valid, copied without the white space between them. `None` if
/// `json` has no such white space.
fn compact(json: &str, depth_limit: usize) -> Result<Option<String>, InvalidData> {
    let mut out = None::<String>;
    let mut depth = 0usize;
    // The first byte that is not copied to `out` yet.
    let mut start = 0;
    let mut at = 0;
    while let Some(byte) = json.as_bytes().get(at) {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {
                out.get_or_insert_with(|| String::with_capacity(json.len())).push_str(&json[start..at]);
                start = at + 1;
            }
            b'"' => at += string_length(&json.as_bytes()[at..]),
            b'{' | b'[' if depth == depth_limit => return Err(InvalidData::TooDeep { limit: depth_limit }),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    if let Some(out) = &mut out {
        out.push_str(&json[start..]);
    }
    Ok(out)
}

/// The length in bytes of the string that `json` begins with, without its closing quote.
fn string_length(json: &[u8]) -> usize {
    let mut at = 1;
    while let Some(ahead) = memchr2(b'"', b'\\', &json[at..]) {
        at += ahead;
        if json[at] == b'"' {
            break;
        }
        // The byte after `\` may be an escaped quote.
        at += 2;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn json_is_compacted_and_otherwise_left_as_it_was_sent() {
        let sent = "{ \"b\" : [ 1.0 , 1e400, 12345678901234567890123 ],\n \"a\": \" x \\\" { y \" }";
        let data = Data::json(raw(sent), 8).unwrap();
        assert_eq!(data.as_json(), "{\"b\":[1.0,1e400,12345678901234567890123],\"a\":\" x \\\" { y \"}");
        assert_eq!(data.as_text(), None);
    }

    #[test]
    fn depth_counts_open_brackets_outside_strings() {
        assert!(Data::json(raw("[[1],[\"[[[[\"]]"), 2).is_ok());
        assert_eq!(Data::json(raw("[[[1]]]"), 2).unwrap_err(), InvalidData::TooDeep { limit: 2 });
    }

    #[test]
    fn the_length_of_a_text_as_json_is_known_before() {
        let text: String = ('\0'..'\u{100}').chain(['🎉']).collect();
        assert_eq!(Data::text_length(text.as_bytes()), Data::text(&text).as_json().len());
    }

    #[test]
    fn half_a_surrogate_pair_is_no_text() {
        assert_eq!(Data::json(raw("\"\\ud800\""), 2).unwrap_err(), InvalidData::NotText);
        assert_eq!(Data::json(raw("\"\\ud83c\\udf89\""), 2).unwrap().as_text().as_deref(), Some("🎉"));
    }
}
