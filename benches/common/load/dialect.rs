//! What differs between servers: the requests they take, and where a message ends in what they stream.

use std::net::SocketAddr;

use anyhow::Context;

use super::text::channel_name;

/// One for each kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// The hub: JSON is posted, and `text/event-stream` comes.
    Events,
    /// The same, but streams are asked for in HTTP/1.0.
    OldEvents,
    /// nchan: a body is streamed as it was posted, and the query names the channel.
    Nchan,
    /// Socket.IO: JSON is posted, and messages come as Engine.IO packets over a WebSocket (RFC 6455).
    SocketIo,
}

/// A text frame of `40`, Socket.IO's CONNECT, masked by zeros.
const CONNECT: &[u8] = b"\x81\x82\0\0\0\x0040";

impl Dialect {
    /// The path of a stream of these channels, or of the one that is meant where none is named.
    pub(super) fn path(self, channels: &[usize]) -> String {
        let names: Vec<_> =
            channels.iter().map(|channel| format!("channel={}", channel_name(*channel))).collect();
        if names.is_empty() { "/events".to_owned() } else { format!("/events?{}", names.join("&")) }
    }

    /// The request for the stream of this path, after the message that `last` names.
    pub(super) fn subscribe(self, address: SocketAddr, path: &str, last: Option<&str>) -> Vec<u8> {
        if self == Dialect::SocketIo {
            let head = format!(
                "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nhost: {address}\r\n\
                 connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                 sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            );
            return head.into_bytes();
        }
        let resume = last.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        let version = if self == Dialect::OldEvents { "1.0" } else { "1.1" };
        let head = format!(
            "GET {path} HTTP/{version}\r\nhost: {address}\r\naccept: text/event-stream\r\n{resume}\r\n"
        );
        head.into_bytes()
    }

    /// The request that publishes `text`, on the subscribers' channel or on another.
    pub(crate) fn post(self, address: SocketAddr, channel: Option<&str>, text: &str) -> Vec<u8> {
        let (path, member) = match (self, channel) {
            (_, None) => ("/messages".to_owned(), String::new()),
            (Dialect::Nchan, Some(channel)) => (format!("/messages?channel={channel}"), String::new()),
            (_, Some(channel)) => ("/messages".to_owned(), format!(",\"channel\":\"{channel}\"")),
        };
        let body = format!("{{\"data\":\"{text}\"{member}}}");
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n");
        format!("{head}content-length: {length}\r\n\r\n{body}").into_bytes()
    }

    /// What `last` has to be to go on after that message: its event ID.
    pub(super) fn last(self, message: &[u8]) -> anyhow::Result<String> {
        let message = std::str::from_utf8(message)?;
        let id = message.lines().find_map(|line| line.strip_prefix("id: "));
        Ok(id.context("a message has no id")?.to_owned())
    }

    /// Whether a response's head, in lower case, opens a stream.
    pub(super) fn opens(self, head: &str) -> bool {
        head.starts_with(match self {
            Dialect::Events | Dialect::Nchan => "http/1.1 200 ",
            Dialect::OldEvents => "http/1.0 200 ",
            Dialect::SocketIo => "http/1.1 101 ",
        })
    }

    /// The answer that a subscriber has to give to the first bytes of a stream, once those are there.
    pub(super) fn answer(self, opening: &[u8]) -> Option<&'static [u8]> {
        (self == Dialect::SocketIo && frame_end(opening).is_some()).then_some(CONNECT)
    }

    /// The index behind the opening of a stream, where messages begin.
    pub(super) fn opening_end(self, bytes: &[u8]) -> Option<usize> {
        match self {
            // Engine.IO's opening, and the answer to CONNECT.
            Dialect::SocketIo => {
                let first = frame_end(bytes)?;
                let second = frame_end(&bytes[first..])?;
                Some(first + second)
            }
            // A comment, with or without fields behind it.
            _ => end_of(b"\n\n", bytes),
        }
    }

    /// The index behind the first message in `bytes`.
    pub(super) fn message_end(self, bytes: &[u8]) -> Option<usize> {
        match self {
            Dialect::SocketIo => frame_end(bytes),
            _ => end_of(b"\n\n", bytes),
        }
    }
}

/// The index behind the first `mark` in `bytes`.
pub(super) fn end_of(mark: &[u8], bytes: &[u8]) -> Option<usize> {
    bytes.windows(mark.len()).position(|window| window == mark).map(|start| start + mark.len())
}

/// The index behind the first WebSocket frame in `bytes`. It is shorter than 64 KiB and not masked.
fn frame_end(bytes: &[u8]) -> Option<usize> {
    let end = match *bytes.get(1)? {
        126 => 4 + usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?])),
        length => 2 + usize::from(length),
    };
    (bytes.len() >= end).then_some(end)
}
