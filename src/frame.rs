//! A frame: the bytes of one event in one format. A message's frames are encoded when they are first asked
//! for, and shared by all who have the same entry of the journal: every subscriber of a group, and everyone
//! who reads the recent messages. A message that is read back from the file is encoded anew.

use std::fmt::Write as _;
use std::sync::OnceLock;

use bytes::Bytes;
use memchr::memchr2;
use serde::Serialize;

use crate::message::{
    ChannelName, DEFAULT_EVENT, Data, EventName, Message, MessageId, RESERVED_PREFIX, SubscriberId, Time,
};

/// The format in which a subscriber gets its events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `text/event-stream` with the bare data, for any EventSource.
    Bare,
    /// `text/event-stream` with the whole message as one JSON object, for programs.
    Message,
    /// `application/x-ndjson`: the whole message as one JSON object a line.
    Ndjson,
}

/// The frames of one message, each encoded on first use.
#[derive(Debug, Default)]
pub struct Frames {
    bare: OnceLock<Bytes>,
    message: OnceLock<Bytes>,
}

impl Frames {
    /// The frame of `message` in `format`. Every call must give the same message: the frames are cached.
    pub fn get(&self, message: &Message, format: Format) -> Bytes {
        match format {
            Format::Bare => self.bare.get_or_init(|| bare(message)).clone(),
            Format::Message => self.message(message).clone(),
            Format::Ndjson => {
                let frame = self.message(message);
                frame.slice(json_start(frame)..frame.len() - 1)
            }
        }
    }

    /// The message as a JSON object: `id`, `channel`, `event`, `data`, `time`, and `expires` and `except` if
    /// the message has them. By `except`, a program can pass events on to several subscribers.
    pub fn json(&self, message: &Message) -> Bytes {
        let frame = self.message(message);
        frame.slice(json_start(frame)..frame.len() - 2)
    }

    /// `id: …\ndata: {…}\n\n`. The bare JSON object and the NDJSON line are slices of these bytes.
    fn message(&self, message: &Message) -> &Bytes {
        self.message.get_or_init(|| format!("id: {}\ndata: {}\n\n", message.id, json(message)).into())
    }
}

fn json_start(frame: &[u8]) -> usize {
    frame.iter().position(|byte| *byte == b'{').expect("the frame holds an object, and an id has no brace")
}

fn json(message: &Message) -> String {
    #[derive(Serialize)]
    struct Object<'a> {
        id: MessageId,
        channel: &'a ChannelName,
        event: &'a EventName,
        data: &'a Data,
        time: Time,
        #[serde(skip_serializing_if = "Option::is_none")]
        expires: Option<Time>,
        #[serde(skip_serializing_if = "Option::is_none")]
        except: Option<&'a SubscriberId>,
    }
    let Message { id, channel, event, data, time, expires, except } = message;
    let except = except.as_ref();
    let object = Object { id: *id, channel, event, data, time: *time, expires: *expires, except };
    serde_json::to_string(&object).expect("a message is JSON")
}

/// The frame in [`Format::Bare`]: `id:`, `event:` unless the name is [`DEFAULT_EVENT`], and a `data:` for
/// each line of the data. A string is its text, any other JSON its JSON text.
fn bare(message: &Message) -> Bytes {
    let text = message.data.as_text();
    let text = text.as_deref().unwrap_or(message.data.as_json());
    let event = Some(message.event.as_str()).filter(|event| *event != DEFAULT_EVENT);
    // Exact if the text is one line. Spare capacity would be held as long as the message, and `Bytes` would
    // allocate a record of it.
    let of_event = event.map_or(0, |event| "event: \n".len() + event.len());
    let length =
        "id: \n".len() + message.id.text_length() + of_event + "data: \n".len() + text.len() + "\n".len();
    let mut frame = String::with_capacity(length);
    let _ = writeln!(frame, "id: {}", message.id);
    if let Some(event) = event {
        frame.push_str("event: ");
        frame.push_str(event);
        frame.push('\n');
    }
    for line in lines(text) {
        frame.push_str("data: ");
        frame.push_str(line);
        frame.push('\n');
    }
    frame.push('\n');
    frame.into()
}

/// Splits at CR, LF and CRLF, each of which ends a line for an EventSource (WHATWG HTML 9.2.5). At least
/// one line; any line may be empty.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = memchr2(b'\r', b'\n', text.as_bytes()) else {
            return rest.take();
        };
        let (line, after) = text.split_at(end);
        rest = Some(after.strip_prefix("\r\n").unwrap_or(&after[1..]));
        Some(line)
    })
}

/// The event that opens a stream: the subscriber's position, the stream's keep-alive, and whose it is.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Open<'a> {
    /// The subscriber's position, so that it misses nothing if its connection is lost before the first
    /// message. `None` if the stream begins with a gap, whose id is the position.
    #[serde(skip)]
    pub position: Option<MessageId>,
    /// The longest silence on the stream, in ms.
    pub keep_alive_ms: u128,
    /// The caller's mark. `None` on a hub that asks for no credentials.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<&'a str>,
    /// The stream's id, by which the stream is renewed. `None` if the caller has no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<&'a str>,
    /// When the stream ends, if it is not renewed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Time>,
}

/// A stream's first bytes: a comment, which names `unknown` parameters of the request; the reconnection time
/// in ms; and `open` unless the subscriber is turned away. Empty in NDJSON.
pub fn opening(format: Format, unknown: &[String], retry_ms: u128, open: Option<Open<'_>>) -> Bytes {
    if format == Format::Ndjson {
        return Bytes::new();
    }
    let mut frame = concat!(": tabcast ", env!("CARGO_PKG_VERSION")).to_owned();
    if !unknown.is_empty() {
        // `Debug` escapes line breaks, which would end the comment.
        let _ = write!(frame, ", which does not know these parameters: {unknown:?}");
    }
    let _ = writeln!(frame, "\nretry: {retry_ms}");
    if let Some(open) = open {
        if let Some(id) = open.position {
            let _ = writeln!(frame, "id: {id}");
        }
        // A script sees an id only on an event, and needs `keep_alive_ms` to notice a dead connection.
        if format == Format::Message {
            let data = serde_json::to_string(&open).expect("the hub's own data is JSON");
            let _ = writeln!(frame, "event: {RESERVED_PREFIX}open\ndata: {data}");
        }
    }
    frame.push('\n');
    frame.into()
}

/// The keep-alive of an idle stream. `position` is given if the subscriber's position has moved without an
/// event, as by messages of other channels. In [`Format::Bare`] it is a comment, or an id alone, which an
/// EventSource remembers without an event. In [`Format::Message`] it is the event `tabcast:keep-alive`,
/// because a script sees neither comments nor ids alone.
pub fn keep_alive(format: Format, position: Option<MessageId>) -> Bytes {
    match (format, position) {
        (Format::Ndjson, _) => Bytes::from_static(b"\n"),
        (Format::Bare, None) => Bytes::from_static(b":\n\n"),
        (Format::Bare, Some(id)) => format!("id: {id}\n\n").into(),
        (Format::Message, position) => own(format, "keep-alive", &serde_json::json!({}), position),
    }
}

/// A gap: messages that a subscriber asked for are not kept.
#[derive(Debug, Serialize)]
pub struct Gap<'a> {
    /// The last event ID that was asked for, or its beginning.
    pub asked: &'a str,
    /// The earliest kept message, `None` if none is kept.
    pub earliest: Option<MessageId>,
}

/// The event `tabcast:gap`. Its id is `position`, so that a reconnect resumes after the gap.
pub fn gap(format: Format, gap: &Gap<'_>, position: MessageId) -> Bytes {
    own(format, "gap", gap, Some(position))
}

/// The event `tabcast:full`: the subscriber is turned away, and `detail` says by which limit.
pub fn full(format: Format, detail: &str) -> Bytes {
    #[derive(Serialize)]
    struct Detail<'a> {
        detail: &'a str,
    }
    own(format, "full", &Detail { detail }, None)
}

/// The event `tabcast:expiring`: the stream ends then, if it is not renewed.
pub fn expiring(format: Format, expires: Time) -> Bytes {
    own(format, "expiring", &serde_json::json!({ "expires": expires }), None)
}

/// The event `tabcast:expired`: the subscriber's token is no longer good, for this reason. The stream ends,
/// and the subscriber comes back with a new token.
pub fn expired(format: Format, reason: &str) -> Bytes {
    own(format, "expired", &serde_json::json!({ "reason": reason }), None)
}

/// The hub's own event `tabcast:<name>`.
fn own(format: Format, name: &str, data: &impl Serialize, id: Option<MessageId>) -> Bytes {
    let data = serde_json::to_string(data).expect("the hub's own data is JSON");
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    match format {
        Format::Ndjson => format!("{{\"event\":\"{RESERVED_PREFIX}{name}\",\"data\":{data}}}\n").into(),
        Format::Bare | Format::Message => {
            format!("{id}event: {RESERVED_PREFIX}{name}\ndata: {data}\n\n").into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Draft;

    fn message(event: &str, data: Data) -> Message {
        let event = EventName::parse(event, 64).unwrap();
        let draft = Draft { channel: ChannelName::default(), event, data, except: None, ttl: None };
        draft.into_message("abcdefgh-7".parse().unwrap(), Time::from_ms(0), Time::now)
    }

    #[test]
    fn a_message_is_encoded_once_and_its_ndjson_line_is_a_slice_of_its_event() {
        let (frames, message) = (Frames::default(), message("x", Data::text("1\n2")));
        for format in [Format::Bare, Format::Message, Format::Ndjson] {
            let (first, second) = (frames.get(&message, format), frames.get(&message, format));
            assert_eq!(first.as_ptr(), second.as_ptr(), "{format:?}");
        }
        let (event, line) = (frames.get(&message, Format::Message), frames.get(&message, Format::Ndjson));
        assert_eq!(event.as_ptr_range().end, line.as_ptr_range().end.wrapping_add(1));
        assert_eq!([&frames.json(&message)[..], b"\n"].concat(), line);
    }

    #[test]
    fn every_kind_of_line_break_ends_a_line_and_none_is_lost() {
        let text = |text| lines(text).collect::<Vec<_>>();
        assert_eq!(text(""), [""]);
        assert_eq!(text("a\nb\rc\r\nd"), ["a", "b", "c", "d"]);
        assert_eq!(text("\n\r\r\n"), ["", "", "", ""]);
        assert_eq!(text("\r\n\n"), ["", "", ""]);
    }
}
