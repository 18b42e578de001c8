//! Names of channels, events, subscribers and retries, each with its limit of length and its alphabet.

use std::borrow::Borrow;
use std::sync::{Arc, LazyLock};

use serde::Serialize;

/// The beginning of the hub's own event names, such as `tabcast:gap`. A publisher can't use it.
pub const RESERVED_PREFIX: &str = "tabcast:";

/// The event name of a message whose publisher gave none. EventSource gives the same name to an event
/// without an `event` field (WHATWG HTML 9.2.6).
pub const DEFAULT_EVENT: &str = "message";

/// The channel of a request that names none.
pub const DEFAULT_CHANNEL: &str = "main";

/// A channel's name: dot-separated tokens of printable characters, none of them white space, `*` or `>`. So
/// it is a valid NATS subject. Names are compared byte by byte.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// Parses a channel name as a request gives it.
    ///
    /// # Errors
    /// [`InvalidName`] if `text` is empty, longer than `limit` bytes, or not made of such tokens.
    pub fn parse(text: &str, limit: usize) -> Result<Self, InvalidName> {
        check_length(text, limit)?;
        if text.split('.').all(is_channel_token) {
            Ok(ChannelName(text.into()))
        } else {
            Err(InvalidName::NotTokens)
        }
    }

    /// Parses the channel name of a stored message. Any length is accepted: the limit is a setting, and may
    /// have been higher when the message was published.
    ///
    /// # Errors
    /// [`InvalidName`] if `text` is empty or not made of such tokens.
    pub fn stored(text: &str) -> Result<Self, InvalidName> {
        ChannelName::parse(text, usize::MAX)
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name whose text is that of a pattern without wildcards.
    pub(super) fn from_pattern(text: Arc<str>) -> Self {
        ChannelName(text)
    }

    pub(super) fn into_text(self) -> Arc<str> {
        self.0
    }
}

/// A name is found by its text.
impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Default for ChannelName {
    fn default() -> Self {
        /// One allocation for all messages on the default channel.
        static NAME: LazyLock<Arc<str>> = LazyLock::new(|| DEFAULT_CHANNEL.into());
        ChannelName(Arc::clone(&NAME))
    }
}

/// A message's event name: printable characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventName(Arc<str>);

impl EventName {
    /// Parses an event name as a publisher gives it.
    ///
    /// # Errors
    /// [`InvalidName`] if `text` is empty, longer than `limit` bytes, not printable, or begins with
    /// [`RESERVED_PREFIX`].
    pub fn parse(text: &str, limit: usize) -> Result<Self, InvalidName> {
        check_length(text, limit)?;
        let name = EventName::stored(text)?;
        if text.starts_with(RESERVED_PREFIX) { Err(InvalidName::Reserved) } else { Ok(name) }
    }

    /// Parses the event name of a stored message. Any length and [`RESERVED_PREFIX`] are accepted: the hub
    /// may have stored an event of its own.
    ///
    /// # Errors
    /// [`InvalidName`] if `text` is empty or not printable.
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

    /// The name of the hub's own event that says that a message was deleted.
    pub fn deleted() -> Self {
        EventName(format!("{RESERVED_PREFIX}deleted").into())
    }
}

impl Default for EventName {
    fn default() -> Self {
        /// One allocation for all messages with the default name.
        static NAME: LazyLock<Arc<str>> = LazyLock::new(|| DEFAULT_EVENT.into());
        EventName(Arc::clone(&NAME))
    }
}

/// The id that a subscriber chooses for itself, of up to [`SubscriberId::CHOSEN`] bytes, and the mark of its
/// caller.
pub type SubscriberId = VisibleAscii<76>;

impl SubscriberId {
    /// The longest id that is chosen, in bytes. Lower: some tokens would not fit. Higher: a message stores
    /// the id in `except`, and would grow.
    pub const CHOSEN: usize = 64;

    /// The bytes that a mark encodes. Higher: a message grows. Lower: somebody finds a subject that has
    /// another's mark.
    pub const MARK_BYTES: usize = 8;

    /// The id with the mark of its caller, of at most 12 bytes of visible ASCII.
    pub fn marked(&self, mark: &str) -> Self {
        debug_assert!(mark.len() <= Self::LIMIT - Self::CHOSEN);
        VisibleAscii(format!("{}{mark}", self.as_str()).into())
    }
}

/// The key by which a retry of a publish is recognised. The HTTP API promises its limit of 255 bytes.
pub type IdempotencyKey = VisibleAscii<255>;

/// A text of 1 to `LIMIT` visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct VisibleAscii<const LIMIT: usize>(Arc<str>);

impl<const LIMIT: usize> VisibleAscii<LIMIT> {
    /// The longest text, in bytes.
    pub const LIMIT: usize = LIMIT;

    /// Parses the text.
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

/// Why a text is no valid name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// The text is longer than its limit.
    #[error("is {length} bytes long, the limit is {limit}")]
    TooLong {
        /// The text's length in bytes.
        length: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A channel name with another character, or with an empty token.
    #[error("must be tokens separated by dots, of printable characters but white space, * and >")]
    NotTokens,
    /// A pattern that is no channel name with wildcards.
    #[error("must be a channel's name, in which * may stand for a token, and a last > for all that follow")]
    NotPattern,
    /// An event name with a control, formatting or line-breaking character.
    #[error("has a character that is not printable")]
    NotPrintable,
    /// An id or key with a character that is not visible ASCII.
    #[error("must be visible ASCII characters")]
    NotVisibleAscii,
    /// An event name that begins with [`RESERVED_PREFIX`].
    #[error("must not begin with \"tabcast:\", which marks the hub's own events")]
    Reserved,
}

pub(super) fn check_length(text: &str, limit: usize) -> Result<(), InvalidName> {
    match text.len() {
        0 => Err(InvalidName::Empty),
        length if length > limit => Err(InvalidName::TooLong { length, limit }),
        _ => Ok(()),
    }
}

/// Whether the text is a token of a channel's name.
pub(super) fn is_channel_token(text: &str) -> bool {
    let is_allowed = |c| is_printable(c) && !matches!(c, ' ' | '*' | '>' | '.');
    !text.is_empty() && text.chars().all(is_allowed)
}

/// Whether `c` is safe to show: no control character, no line break, and no formatting character that
/// hides or reorders the text beside it.
pub(crate) fn is_printable(c: char) -> bool {
    if c.is_ascii() {
        return !c.is_ascii_control();
    }
    let hidden = matches!(
        c,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    !c.is_control() && !hidden && !c.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_is_dot_separated_tokens() {
        for good in
            ["main", "a", "build.42", "A_b-C.d", "chat:42", "https://example.org/books/1", "été", "🎉"]
        {
            assert!(ChannelName::parse(good, 32).is_ok(), "{good}");
        }
        for bad in ["a..b", ".a", "a.", "a b", "a\u{a0}b", "a\u{202e}", "a*", ">", "a\n", "*", "a.>"] {
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
