//! A media type: what a body is, or what a response may be, with its parameters (RFC 9110 8.3.1).

use std::{fmt, iter};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// What is percent-encoded in a `data:` URL's media type: all that has a meaning there, or can't stand in a
/// path (RFC 2397, RFC 3986 3.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A media type. It is displayed as it stands in a `data:` URL: the URL's first comma follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MediaType {
    /// The type, in lower case.
    kind: String,
    /// The subtype, in lower case.
    subtype: String,
    /// The names are in lower case, the values without quotes.
    parameters: Vec<(String, Vec<u8>)>,
}

impl MediaType {
    /// The longest media type, in bytes; real ones are far shorter. Higher: each message stores its media
    /// type in its data, and would grow.
    pub(super) const LIMIT: usize = 256;

    /// Parses a whole value. `None` if it is no media type.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let (media_type, rest) = Self::first(value)?;
        rest.is_empty().then_some(media_type)
    }

    /// Parses the media types of a list, which are separated by commas. What can't be parsed is left out.
    pub(super) fn list(value: &[u8]) -> impl Iterator<Item = Self> {
        let mut left = Some(value);
        let next = move || {
            let (parsed, rest) = Self::first(left?).unzip();
            let rest = rest.or(left)?;
            left = rest.iter().position(|byte| *byte == b',').map(|comma| &rest[comma + 1..]);
            Some(parsed)
        };
        iter::from_fn(next).flatten()
    }

    /// The media type at the beginning of `value`, and what follows it and white space.
    fn first(value: &[u8]) -> Option<(Self, &[u8])> {
        let (kind, rest) = token(value.trim_ascii_start())?;
        let (subtype, rest) = token(rest.strip_prefix(b"/")?)?;
        let (mut parameters, mut rest) = (Vec::new(), rest.trim_ascii_start());
        while let Some(after) = rest.strip_prefix(b";") {
            rest = after.trim_ascii_start();
            // There may be no parameter after a `;`.
            if let Some((name, after)) = token(rest) {
                let (value, after) = parameter_value(after.strip_prefix(b"=")?)?;
                parameters.push((name, value));
                rest = after.trim_ascii_start();
            }
        }
        Some((MediaType { kind, subtype, parameters }, rest))
    }

    /// The type and the subtype.
    pub(super) fn names(&self) -> (&str, &str) {
        (&self.kind, &self.subtype)
    }

    /// Whether it is a media range, as `text/*`.
    pub(super) fn is_range(&self) -> bool {
        self.kind == "*" || self.subtype == "*"
    }

    /// The values of each parameter of this name.
    pub(super) fn parameter(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.parameters.iter().filter(move |(known, _)| known == name).map(|(_, value)| &**value)
    }
}

/// The token that `text` begins with (RFC 9110 5.6.2), in lower case, and what follows it.
fn token(text: &[u8]) -> Option<(String, &[u8])> {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let end = text.iter().position(|byte| !is_token(byte)).unwrap_or(text.len());
    let (token, rest) = text.split_at(end);
    (end > 0).then(|| (String::from_utf8_lossy(token).to_ascii_lowercase(), rest))
}

/// The value that `text` begins with, a token or a quoted string (RFC 9110 5.6.4), and what follows it.
fn parameter_value(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(mut rest) = text.strip_prefix(b"\"") else {
        let (_, rest) = token(text)?;
        return Some((text[..text.len() - rest.len()].to_vec(), rest));
    };
    let mut value = Vec::new();
    loop {
        match rest {
            [b'"', after @ ..] => return Some((value, after)),
            [b'\\', byte, after @ ..] | [byte, after @ ..] => {
                value.push(*byte);
                rest = after;
            }
            [] => return None,
        }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = |text| percent_encode(text, ENCODED);
        write!(out, "{}/{}", encoded(self.kind.as_bytes()), encoded(self.subtype.as_bytes()))?;
        self.parameters
            .iter()
            .try_for_each(|(name, value)| write!(out, ";{}={}", encoded(name.as_bytes()), encoded(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_displayed_as_it_stands_in_a_url() {
        for (value, url) in [
            ("Image/SVG+xml", "image/svg+xml"),
            ("a/b;x=1 ; ; Y=\"2\";", "a/b;x=1;y=2"),
            ("video/mp4; codecs=\"avc1.42E01E, mp4a.40.2\"", "video/mp4;codecs=avc1.42E01E%2C%20mp4a.40.2"),
            ("a/b;c=\"\\\"\\\\ ;,\"", "a/b;c=%22%5C%20%3B%2C"),
            ("a/b;c=\"\"", "a/b;c="),
            ("!#$%&'*+-.^_`|~/1;a'*%=%41", "!%23$%25&'*+-.%5E_%60%7C~/1;a'*%25=%2541"),
        ] {
            assert_eq!(MediaType::parse(value.as_bytes()).unwrap().to_string(), url);
        }
        for bad in
            ["", "a", "a/", "/b", "a /b", "a/b c", "a/b;c", "a/b;c=", "a/b;c =d", "a/b;c=\"d", "a/b,c/d"]
        {
            assert_eq!(MediaType::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_list_is_separated_by_commas_outside_quotes() {
        let list = MediaType::list(b"a/b;c=\"d,e/f\", rubbish, ,*/*;q=0.5,, g/h");
        let names: Vec<_> = list.map(|media_type| media_type.to_string()).collect();
        assert_eq!(names, ["a/b;c=d%2Ce%2Ff", "*/*;q=0.5", "g/h"]);
    }
}
