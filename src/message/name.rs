//! Names: of channels, events, subscribers and retries. Each within a length and an alphabet.

use std::sync::{Arc, LazyLock};

use serde::Serialize;

/// Names that begin so are the hub's own: `tabcast:gap`, `tabcast:full`.
pub const RESERVED_PREFIX: &str = "tabcast:";

/// The event name a message has where none is given. EventSource gives the same to an event
/// without an `event` field (WHATWG HTML 9.2.6).
pub const DEFAULT_EVENT: &str = "message";

/// The channel a message goes to where none is named.
pub const DEFAULT_CHANNEL: &str = "main";

/// A named fan-out scope: dot-separated tokens of `[A-Za-z0-9_-]`, a NATS subject as it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// The channel of this name.
    ///
    /// # Errors
    /// [`InvalidName`] if it is empty, longer than `limit` bytes, or no list of tokens.
    pub fn parse(text: &str, limit: usize) -> Result<Self, InvalidName> {
        check_length(text, limit)?;
        let token = |token: &str| {
            !token.is_empty()
                && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        };
        if text.split('.').all(token) { Ok(ChannelName(text.into())) } else { Err(InvalidName::NotTokens) }
    }

    /// The channel of this name in a stored message: `parse` without its limit, which is a setting and
    /// may have been another when the message was published.
    ///
    /// # Errors
    /// [`InvalidName`] if no publisher can have named a channel so.
    pub fn stored(text: &str) -> Result<Self, InvalidName> {
        ChannelName::parse(text, usize::MAX)
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ChannelName {
    fn default() -> Self {
        /// One for all messages that have it.
        static NAME: LazyLock<Arc<str>> = LazyLock::new(|| DEFAULT_CHANNEL.into());
        ChannelName(Arc::clone(&NAME))
    }
}

/// The name a message carries: printable, and not one of the hub's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventName(Arc<str>);

impl EventName {
    /// The event name with this text, as a publisher gives it.
    ///
    /// # Errors
    /// [`InvalidName`] if it is empty, longer than `limit` bytes, not printable, or begins with
    /// [`RESERVED_PREFIX`].
    pub fn parse(text: &str, limit: usize) -> Result<Self, InvalidName> {
        check_length(text, limit)?;
        let name = EventName::stored(text)?;
        if text.starts_with(RESERVED_PREFIX) { Err(InvalidName::Reserved) } else { Ok(name) }
    }

    /// The event name of a stored message. It may be one of the hub's own: those are kept as well.
    ///
    /// # Errors
    /// [`InvalidName`] if it is empty or not printable.
    pub fn stored(text: &str) -> Result<Self, InvalidName> {
        check_length(text, usize::MAX)?;
        if text.chars().all(is_printable) {
            Ok(EventName(text.into()))
        } else {
            Err(InvalidName::NotPrintable)
        }
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for EventName {
    fn default() -> Self {
        /// One for all messages that have it.
        static NAME: LazyLock<Arc<str>> = LazyLock::new(|| DEFAULT_EVENT.into());
        EventName(Arc::clone(&NAME))
    }
}

/// A subscriber's own id, which it chooses: room for any UUID or token, and small enough to be kept
/// with every message.
pub type SubscriberId = VisibleAscii<64>;

/// What makes a retry of a publish recognisable; the limit is the HTTP contract's.
pub type IdempotencyKey = VisibleAscii<255>;

/// A text of 1 to `LIMIT` visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct VisibleAscii<const LIMIT: usize>(Arc<str>);

impl<const LIMIT: usize> VisibleAscii<LIMIT> {
    /// The longest text, in bytes.
    pub const LIMIT: usize = LIMIT;

    /// The value with this text.
    ///
    /// # Errors
    /// [`InvalidName`] if the text is empty, longer than [`Self::LIMIT`], or not visible ASCII.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_length(text, LIMIT)?;
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if visible { Ok(VisibleAscii(text.into())) } else { Err(InvalidName::NotVisibleAscii) }
    }

    /// The value's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing is there.
    #[error("is empty")]
    Empty,
    /// It has more bytes than its limit.
    #[error("is {length} bytes long, the limit is {limit}")]
    TooLong {
        /// The text's bytes.
        length: usize,
        /// The most it may have.
        limit: usize,
    },
    /// A channel name of other characters, or with an empty token.
    #[error("must be dot-separated tokens of A-Z, a-z, 0-9, _ and -")]
    NotTokens,
    /// An event name with control, formatting or line-breaking characters.
    #[error("has a character that is not printable")]
    NotPrintable,
    /// An id or key with other characters.
    #[error("must be visible ASCII characters")]
    NotVisibleAscii,
    /// An event name of the hub's own.
    #[error("must not begin with \"tabcast:\", which marks the hub's own events")]
    Reserved,
}

fn check_length(text: &str, limit: usize) -> Result<(), InvalidName> {
    match text.len() {
        0 => Err(InvalidName::Empty),
        length if length > limit => Err(InvalidName::TooLong { length, limit }),
        _ => Ok(()),
    }
}

/// Not a control character, a line break, or one of those that reorder or hide the text beside them.
pub(crate) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let hidden = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !c.is_control() && !hidden && !c.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_dot_separated_tokens() {
        for good in ["main", "a", "build.42", "A_b-C.d"] {
            assert!(ChannelName::parse(good, 32).is_ok(), "{good}");
        }
        for bad in ["a..b", ".a", "a.", "a b", "a/b", "ü", "a*", ">", "a\n"] {
            assert_eq!(ChannelName::parse(bad, 32), Err(InvalidName::NotTokens), "{bad:?}");
        }
        assert_eq!(ChannelName::parse("", 32), Err(InvalidName::Empty));
        assert_eq!(ChannelName::parse("abc", 2), Err(InvalidName::TooLong { length: 3, limit: 2 }));
    }

    #[test]
    fn an_event_name_is_printable_and_not_the_hubs_own() {
        for good in ["chat message", "größe", "🎉", "tabcast", " x"] {
            assert!(EventName::parse(good, 32).is_ok(), "{good}");
        }
        for bad in [
            "a\nb",
            "a\rb",
            "\0",
            "a\tb",
            "\u{2028}",
            "\u{202e}abc",
            "\u{85}",
            "\u{feff}",
            "a\u{61c}",
            "\u{e0061}",
        ] {
            assert_eq!(EventName::parse(bad, 32), Err(InvalidName::NotPrintable), "{bad:?}");
        }
        assert_eq!(EventName::parse("tabcast:gap", 32), Err(InvalidName::Reserved));
        assert!(EventName::stored("tabcast:gap").is_ok());
        assert_eq!(EventName::stored("a\nb"), Err(InvalidName::NotPrintable));
    }
}
