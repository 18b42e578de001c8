//! A message: what is published and kept. It has an id, a channel, an event name, data and a time.
//!
//! Raw input is parsed once into the types of this module; what is inside them is valid. How a
//! message looks on the wire is not here but in [`frame`](crate::frame).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// Names that begin so are the hub's own: `tabcast:gap`, `tabcast:full`.
pub const RESERVED_PREFIX: &str = "tabcast:";

/// The event name a message has where none is given. EventSource gives the same to an event
/// without an `event` field (WHATWG HTML 9.2.6).
pub const DEFAULT_EVENT: &str = "message";

/// The channel a message goes to where none is named.
pub const DEFAULT_CHANNEL: &str = "main";

/// One published message.
#[derive(Debug)]
pub struct Message {
    /// Its place in the journal, and what a subscriber resumes from.
    pub id: MessageId,
    /// The fan-out scope it was published to.
    pub channel: ChannelName,
    /// The name it carries.
    pub event: EventName,
    /// What was published.
    pub data: Data,
    /// The subscriber that is not to get it, on replay neither.
    pub except: Option<SubscriberId>,
    /// When the journal took it.
    pub time: Time,
}

/// A message before it is published: it has no id and no time yet.
#[derive(Debug)]
pub struct Draft {
    /// The fan-out scope it goes to.
    pub channel: ChannelName,
    /// The name it carries.
    pub event: EventName,
    /// What is published.
    pub data: Data,
    /// The subscriber that is not to get it.
    pub except: Option<SubscriberId>,
}

impl Draft {
    /// Becomes the message with this id and time.
    pub fn into_message(self, id: MessageId, time: Time) -> Message {
        let Draft { channel, event, data, except } = self;
        Message { id, channel, event, data, except, time }
    }

    /// SHA-256 over every field: two drafts with the same one are the same request.
    pub fn fingerprint(&self) -> Fingerprint {
        let except = self.except.as_ref().map_or("", |id| &id.0);
        let mut hash = Sha256::new();
        for field in [&*self.channel.0, &*self.event.0, self.data.as_json(), except] {
            // The length goes in front, so that no two lists of fields run together to the same bytes.
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field);
        }
        Fingerprint(hash.finalize().into())
    }
}

/// What a publisher is told of its message once the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The message's id.
    pub id: MessageId,
    /// The channel it went to.
    pub channel: ChannelName,
    /// The name it carries.
    pub event: EventName,
    /// When the journal took it.
    pub time: Time,
}

impl From<&Message> for Receipt {
    fn from(message: &Message) -> Self {
        Receipt { id: message.id, channel: message.channel.clone(), event: message.event.clone(), time: message.time }
    }
}

/// Identifies the content of a [`Draft`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

/// Which journal an id belongs to: 8 characters of `[a-z0-9]`, drawn when a journal is created.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Epoch([u8; Epoch::LENGTH]);

impl Epoch {
    /// 36^8 are 2.8e12 epochs: a hub restarted every second for a year repeats one with a chance
    /// of 1 in 5,000; a longer one would be resent with every id for nothing.
    const LENGTH: usize = 8;

    /// A random epoch.
    pub fn draw() -> Self {
        Epoch(std::array::from_fn(|_| fastrand::choice(b"abcdefghijklmnopqrstuvwxyz0123456789").map_or(b'a', |c| *c)))
    }
}

impl FromStr for Epoch {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bytes: [u8; Epoch::LENGTH] = text.as_bytes().try_into().map_err(|_| InvalidId)?;
        let plain = bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if plain { Ok(Epoch(bytes)) } else { Err(InvalidId) }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{}", *byte as char))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// `<epoch>-<sequence>`: the journal, and the place in it. Sequences begin at 1; 0 is the place
/// before the first message. At most 29 bytes of ASCII, opaque to users.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageId {
    /// Which journal.
    pub epoch: Epoch,
    /// The place in it.
    pub sequence: u64,
}

impl FromStr for MessageId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (epoch, sequence) = text.split_once('-').ok_or(InvalidId)?;
        // `parse` alone would take "+1" and "007": each id has one spelling.
        let canonical = sequence == "0" || !sequence.starts_with(['0', '+']);
        if !canonical {
            return Err(InvalidId);
        }
        Ok(MessageId { epoch: epoch.parse()?, sequence: sequence.parse().map_err(|_| InvalidId)? })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{}", self.epoch, self.sequence)
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is no message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message id")]
pub struct InvalidId;

/// A named fan-out scope: dot-separated tokens of `[A-Za-z0-9_-]`, a NATS subject as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// The channel of this name.
    ///
    /// # Errors
    /// [`InvalidName`] if it is empty, longer than `limit` bytes, or no list of tokens.
    pub fn parse(text: &str, limit: usize) -> Result<Self, InvalidName> {
        check_length(text, limit)?;
        let token = |token: &str| {
            !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        };
        if text.split('.').all(token) { Ok(ChannelName(text.into())) } else { Err(InvalidName::NotTokens) }
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ChannelName {
    fn default() -> Self {
        ChannelName(DEFAULT_CHANNEL.into())
    }
}

/// The name a message carries: printable, and not one of the hub's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EventName(Arc<str>);

impl EventName {
    /// The event name with this text.
    ///
    /// # Errors
    /// [`InvalidName`] if it is empty, longer than `limit` bytes, not printable, or begins with
    /// [`RESERVED_PREFIX`].
    pub fn parse(text: &str, limit: usize) -> Result<Self, InvalidName> {
        check_length(text, limit)?;
        if !text.chars().all(is_printable) {
            return Err(InvalidName::NotPrintable);
        }
        if text.starts_with(RESERVED_PREFIX) {
            return Err(InvalidName::Reserved);
        }
        Ok(EventName(text.into()))
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for EventName {
    fn default() -> Self {
        EventName(DEFAULT_EVENT.into())
    }
}

/// A subscriber's own id, which it chooses: 1 to 64 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriberId(Arc<str>);

impl SubscriberId {
    /// Room for any UUID or token, and small enough to be kept with every message.
    pub const LIMIT: usize = 64;

    /// The id with this text.
    ///
    /// # Errors
    /// [`InvalidName`] if it is empty, longer than [`SubscriberId::LIMIT`], or not visible ASCII.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_length(text, SubscriberId::LIMIT)?;
        visible_ascii(text).map(SubscriberId)
    }

    /// The id's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What makes a retry of a publish recognisable: 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// The longest key, as the HTTP contract has it.
    pub const LIMIT: usize = 255;

    /// The key with this text.
    ///
    /// # Errors
    /// [`InvalidName`] if it is empty, longer than [`IdempotencyKey::LIMIT`], or not visible ASCII.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_length(text, IdempotencyKey::LIMIT)?;
        visible_ascii(text).map(IdempotencyKey)
    }

    /// The key's text.
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

fn visible_ascii(text: &str) -> Result<Arc<str>, InvalidName> {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    if visible { Ok(text.into()) } else { Err(InvalidName::NotVisibleAscii) }
}

/// Not a control character, a line break, or one of those that reorder or hide the text beside them.
pub(crate) fn is_printable(c: char) -> bool {
    let hidden = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !hidden && (c == ' ' || !c.is_whitespace())
}

/// What was published: one JSON value, kept as its compact text exactly as it was sent (no number
/// is rounded, no key reordered).
#[derive(Debug)]
pub struct Data(Box<RawValue>);

impl Data {
    /// The JSON string of this text.
    pub fn text(text: &str) -> Self {
        Data(serde_json::value::to_raw_value(text).expect("a str is always a JSON string"))
    }

    /// A JSON value, without the white space between its tokens.
    ///
    /// # Errors
    /// [`InvalidData`] if arrays and objects nest deeper than `depth_limit`, or a string value has
    /// half a surrogate pair and so is no text.
    pub fn json(raw: &RawValue, depth_limit: usize) -> Result<Self, InvalidData> {
        let compact = compact(raw.get(), depth_limit)?;
        let value = RawValue::from_string(compact).expect("white space between tokens carries no meaning");
        let data = Data(value);
        match data.as_json().starts_with('"') && data.as_text().is_none() {
            true => Err(InvalidData::NotText),
            false => Ok(data),
        }
    }

    /// Data that was kept before.
    ///
    /// # Errors
    /// If it is no JSON value.
    pub fn kept(json: String) -> Result<Self, serde_json::Error> {
        RawValue::from_string(json).map(Data)
    }

    /// Its compact JSON text.
    pub fn as_json(&self) -> &str {
        self.0.get()
    }

    /// Its text if it is a string, `None` for any other JSON.
    pub fn as_text(&self) -> Option<String> {
        serde_json::from_str(self.as_json()).ok()
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
        /// The most levels there may be.
        limit: usize,
    },
    /// A string that is no Unicode text.
    #[error("is a string with half a surrogate pair")]
    NotText,
}

/// Valid JSON without the white space between tokens. Keeps every token as it is written.
fn compact(json: &str, depth_limit: usize) -> Result<String, InvalidData> {
    let mut out = String::with_capacity(json.len());
    let mut depth = 0usize;
    let mut in_string = false;
    let mut escaped = false;
    for c in json.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else {
            match c {
                ' ' | '\t' | '\n' | '\r' => continue,
                '"' => in_string = true,
                '{' | '[' if depth == depth_limit => return Err(InvalidData::TooDeep { limit: depth_limit }),
                '{' | '[' => depth += 1,
                '}' | ']' => depth -= 1,
                _ => {}
            }
        }
        out.push(c);
    }
    Ok(out)
}

/// A point in time, to the millisecond: milliseconds since 1970 UTC. Shown as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// The system clock's time.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// This many milliseconds since 1970 UTC.
    pub fn from_ms(ms: u64) -> Self {
        Time(ms)
    }

    /// Milliseconds since 1970 UTC.
    pub fn as_ms(self) -> u64 {
        self.0
    }

    /// Whether so much time has gone by since then, at `now`.
    pub fn has_passed(self, duration: Duration, now: Time) -> bool {
        u128::from(now.0.saturating_sub(self.0)) >= duration.as_millis()
    }
}

impl fmt::Display for Time {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(self.0)).fmt(out)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        let id = MessageId { epoch: Epoch::draw(), sequence: 42 };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().ends_with("-42"));
    }

    #[test]
    fn an_id_has_one_spelling() {
        for text in [
            "",
            "-",
            "abcdefgh",
            "abcdefgh-",
            "abcdefgh-+1",
            "abcdefgh-01",
            "ABCDEFGH-1",
            "abcdefg-1",
            "abcdefgh-1 ",
            "abcdefgh--1",
        ] {
            assert_eq!(text.parse::<MessageId>(), Err(InvalidId), "{text:?}");
        }
        assert!("abcdefgh-0".parse::<MessageId>().is_ok());
    }

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
        for bad in ["a\nb", "a\rb", "\0", "a\tb", "\u{2028}", "\u{202e}abc", "\u{85}", "\u{feff}"] {
            assert_eq!(EventName::parse(bad, 32), Err(InvalidName::NotPrintable), "{bad:?}");
        }
        assert_eq!(EventName::parse("tabcast:gap", 32), Err(InvalidName::Reserved));
    }

    #[test]
    fn json_is_compacted_and_otherwise_left_as_it_was_sent() {
        let sent = "{ \"b\" : [ 1.0 , 1e400, 12345678901234567890123 ],\n \"a\": \" x \\\" { y \" }";
        let kept = Data::json(&raw(sent), 8).unwrap();
        assert_eq!(kept.as_json(), "{\"b\":[1.0,1e400,12345678901234567890123],\"a\":\" x \\\" { y \"}");
        assert_eq!(kept.as_text(), None);
    }

    #[test]
    fn depth_counts_open_brackets_outside_strings() {
        assert!(Data::json(&raw("[[1],[\"[[[[\"]]"), 2).is_ok());
        assert_eq!(Data::json(&raw("[[[1]]]"), 2).unwrap_err(), InvalidData::TooDeep { limit: 2 });
    }

    #[test]
    fn half_a_surrogate_pair_is_no_text() {
        assert_eq!(Data::json(&raw("\"\\ud800\""), 2).unwrap_err(), InvalidData::NotText);
        assert_eq!(Data::json(&raw("\"\\ud83c\\udf89\""), 2).unwrap().as_text().as_deref(), Some("🎉"));
    }

    #[test]
    fn the_fingerprint_tells_where_a_field_ends() {
        let draft = |event: &str, data: &str| Draft {
            channel: ChannelName::default(),
            event: EventName::parse(event, 32).unwrap(),
            data: Data::text(data),
            except: None,
        };
        assert_eq!(draft("a", "b").fingerprint(), draft("a", "b").fingerprint());
        assert_ne!(draft("ab", "c").fingerprint(), draft("a", "bc").fingerprint());
    }
}
