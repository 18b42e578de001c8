//! Patterns: which channels are asked for.

use std::sync::Arc;

use serde::Serialize;

use super::name::{self, ChannelName, InvalidName};

/// A channel's name, or one in which `*` stands for any one token, and a last `>` for all that follow, at
/// least one. A NATS subject's wildcards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Pattern(Arc<str>);

/// The token that stands for any one token.
const ANY: &str = "*";

/// The token that stands for all that follow, at least one.
const REST: &str = ">";

impl Pattern {
    /// Parses a pattern as a request gives it.
    ///
    /// # Errors
    /// [`InvalidName`] if `text` is empty, longer than `limit` bytes, or not made of such tokens.
    pub fn parse(text: &str, limit: usize) -> Result<Self, InvalidName> {
        name::check_length(text, limit)?;
        let (most, last) = text.rsplit_once('.').unwrap_or(("", text));
        let is_token = |token: &str| token == ANY || name::is_channel_token(token);
        if (most.is_empty() && last == text || most.split('.').all(is_token))
            && (last == REST || is_token(last))
        {
            Ok(Pattern(text.into()))
        } else {
            Err(InvalidName::NotPattern)
        }
    }

    /// Every channel.
    pub fn all() -> Self {
        Pattern(REST.into())
    }

    /// The one channel that is asked for. `None` if there may be several.
    pub fn name(&self) -> Option<ChannelName> {
        // No name has these characters.
        (!self.0.contains(['*', '>'])).then(|| ChannelName::from_pattern(Arc::clone(&self.0)))
    }

    /// Whether the channel is asked for.
    pub fn matches(&self, channel: &ChannelName) -> bool {
        let mut tokens = channel.as_str().split('.');
        for wanted in self.0.split('.') {
            match tokens.next() {
                None => return false,
                Some(_) if wanted == REST => return true,
                Some(token) if wanted != ANY && wanted != token => return false,
                Some(_) => {}
            }
        }
        tokens.next().is_none()
    }

    /// Whether each channel that `other` matches is asked for.
    pub fn covers(&self, other: &Pattern) -> bool {
        let (mut tokens, mut others) = (self.tokens(), other.tokens());
        loop {
            match (tokens.next(), others.next()) {
                (None, None) | (Some(Token::Rest), Some(_)) => return true,
                (Some(Token::Any), Some(Token::Any | Token::Name(_))) => {}
                (Some(token), Some(other)) if token == other => {}
                _ => return false,
            }
        }
    }

    /// Whether there can be a channel that both match.
    pub fn overlaps(&self, other: &Pattern) -> bool {
        let (mut tokens, mut others) = (self.tokens(), other.tokens());
        loop {
            match (tokens.next(), others.next()) {
                (None, None) | (Some(Token::Rest), Some(_)) | (Some(_), Some(Token::Rest)) => return true,
                (Some(Token::Name(name)), Some(Token::Name(other))) if name != other => return false,
                (None, _) | (_, None) => return false,
                _ => {}
            }
        }
    }

    /// The text with which each such channel begins.
    pub fn prefix(&self) -> &str {
        self.0.split(['*', '>']).next().unwrap_or_default()
    }

    /// The pattern's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The pattern's tokens.
    pub fn tokens(&self) -> impl Iterator<Item = Token<'_>> {
        self.0.split('.').map(|token| match token {
            ANY => Token::Any,
            REST => Token::Rest,
            name => Token::Name(name),
        })
    }
}

/// A token of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// This token.
    Name(&'a str),
    /// Any one token.
    Any,
    /// All tokens that follow, at least one.
    Rest,
}

impl From<ChannelName> for Pattern {
    fn from(name: ChannelName) -> Self {
        Pattern(name.into_text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text, 32).unwrap()
    }

    #[test]
    fn a_pattern_is_a_name_with_wildcards_as_whole_tokens() {
        for good in
            ["main", "a.*", "*", ">", "*.>", "a.*.c", "chat:42", "https://example.org/books/1", "été.>"]
        {
            assert!(Pattern::parse(good, 32).is_ok(), "{good}");
        }
        for bad in ["a*", "*a", "a.>.b", ">.a", "a>", "**", ">>", "a..*", ".*", "*.", "a b", "a. ", "."] {
            assert_eq!(Pattern::parse(bad, 32), Err(InvalidName::NotPattern), "{bad:?}");
        }
        assert_eq!(Pattern::parse("", 32), Err(InvalidName::Empty));
        assert_eq!(Pattern::parse("a.*", 2), Err(InvalidName::TooLong { length: 3, limit: 2 }));
        assert_eq!(pattern("a.b").name(), Some(ChannelName::parse("a.b", 9).unwrap()));
        assert_eq!((pattern("a.*").name(), pattern(">").name()), (None, None));
    }

    #[test]
    fn a_pattern_matches_the_channels_that_nats_would() {
        let matches = |text: &str, channel: &str| {
            let pattern = pattern(text);
            let is_match = pattern.matches(&ChannelName::parse(channel, 32).unwrap());
            assert!(!is_match || channel.starts_with(pattern.prefix()));
            is_match
        };
        for (text, channel) in [
            ("a", "a"),
            ("*", "a"),
            (">", "a"),
            (">", "a.b.c"),
            ("a.*", "a.b"),
            ("a.>", "a.b"),
            ("a.>", "a.b.c"),
        ] {
            assert!(matches(text, channel), "{text} {channel}");
        }
        for (text, channel) in
            [("a", "b"), ("*", "a.b"), ("a.*", "a"), ("a.>", "a"), ("a.>", "ab.c"), ("a.*", "b.a")]
        {
            assert!(!matches(text, channel), "{text} {channel}");
        }
        assert!(matches("*.b.>", "a.b.c.d") && matches("*.*.c", "a.b.c") && !matches("*.*.c", "a.b.d"));
    }

    #[test]
    fn of_two_patterns_one_may_cover_the_other_or_both_match_some_channel() {
        let texts = ["a", "*", ">", "a.b", "a.*", "a.>", "*.b", "*.>", "*.*", "a.b.c", "a.*.c", "*.b.>"];
        let channels = ["a", "b", "a.b", "b.b", "a.x", "x.y", "a.b.c", "a.x.c", "x.b.y", "a.b.y.z", "x.y.z"];
        let channels = channels.map(|channel| ChannelName::parse(channel, 9).unwrap());
        for one in texts.map(pattern) {
            for other in texts.map(pattern) {
                let others = || channels.iter().filter(|channel| other.matches(channel));
                assert_eq!(
                    one.covers(&other),
                    others().all(|channel| one.matches(channel)),
                    "{one:?} {other:?}"
                );
                assert_eq!(
                    one.overlaps(&other),
                    others().any(|channel| one.matches(channel)),
                    "{one:?} {other:?}"
                );
            }
        }
    }
}
