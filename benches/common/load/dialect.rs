//! What differs between servers: the requests they take, and where a message ends in what they stream.

use std::net::SocketAddr;
use std::sync::OnceLock;

use anyhow::Context;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

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
    /// Mercure: a form is posted, and `text/event-stream` comes.
    Mercure,
    /// Centrifugo: JSON is posted, and its pushes come as `text/event-stream`.
    Centrifugo,
}

/// A JSON Web Token that may publish on every topic, signed with the key in `peers/mercure.Caddyfile`.
const MERCURE_TOKEN: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.\
    eyJtZXJjdXJlIjp7InB1Ymxpc2giOlsiKiJdfX0.g_b6CgPdiH7kIv2UjgEtnPVW6jhziKUwMK7rE_qhfKQ";

/// The header by which all of the load says who it is to a hub. Not set: it does not say.
static AUTHORIZATION: OnceLock<String> = OnceLock::new();

/// Has each request to a hub carry this token, from now on.
pub(crate) fn present(token: &str) {
    let _ = AUTHORIZATION.set(format!("authorization: Bearer {token}\r\n"));
}

/// The channel where none is named.
const MAIN: &str = "main";

/// A text frame of `40`, Socket.IO's CONNECT, masked by zeros.
const CONNECT: &[u8] = b"\x81\x82\0\0\0\x0040";

impl Dialect {
    /// The path of a stream of these channels, or of the one that is meant where none is named; after the
    /// message that `last` names, where the path says so.
    pub(super) fn path(self, channels: &[usize], last: Option<&str>) -> String {
        let names = channels.iter().copied().map(channel_name);
        let mut names: Vec<_> = names.collect();
        let (base, parameter) = match self {
            Dialect::Mercure => ("/.well-known/mercure", "topic"),
            Dialect::Centrifugo => ("/connection/uni_sse", "cf_connect"),
            _ => ("/events", "channel"),
        };
        if names.is_empty() && matches!(self, Dialect::Mercure | Dialect::Centrifugo) {
            names.push(MAIN.to_owned());
        }
        if self == Dialect::Centrifugo {
            let after = last.and_then(|last| last.split_once('/'));
            let after = after
                .map(|(epoch, offset)| format!("\"recover\":true,\"epoch\":\"{epoch}\",\"offset\":{offset}"));
            let after = after.unwrap_or_default();
            let asked: Vec<_> = names.iter().map(|name| format!("\"{name}\":{{{after}}}")).collect();
            let asked = format!("{{\"subs\":{{{}}}}}", asked.join(","));
            names = vec![utf8_percent_encode(&asked, NON_ALPHANUMERIC).to_string()];
        }
        let query: Vec<_> = names.iter().map(|name| format!("{parameter}={name}")).collect();
        if query.is_empty() { base.to_owned() } else { format!("{base}?{}", query.join("&")) }
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
        let last = last.filter(|_| self != Dialect::Centrifugo);
        let mut resume = last.map(|id| format!("last-event-id: {id}\r\n")).unwrap_or_default();
        resume += self.authorization();
        let version = if self == Dialect::OldEvents { "1.0" } else { "1.1" };
        let head = format!(
            "GET {path} HTTP/{version}\r\nhost: {address}\r\naccept: text/event-stream\r\n{resume}\r\n"
        );
        head.into_bytes()
    }

    /// The header that says who asks.
    fn authorization(self) -> &'static str {
        let is_hub = matches!(self, Dialect::Events | Dialect::OldEvents);
        AUTHORIZATION.get().filter(|_| is_hub).map_or("", String::as_str)
    }

    /// The request that publishes `text`, on the subscribers' channel or on another.
    pub(crate) fn post(self, address: SocketAddr, channel: Option<&str>, text: &str) -> Vec<u8> {
        let (mut path, mut kind, mut fields) = ("/messages".to_owned(), "application/json", String::new());
        let member = channel.map(|channel| format!(",\"channel\":\"{channel}\"")).unwrap_or_default();
        let mut body = format!("{{\"data\":\"{text}\"{member}}}");
        match self {
            Dialect::Nchan => {
                body = format!("{{\"data\":\"{text}\"}}");
                path += &channel.map(|channel| format!("?channel={channel}")).unwrap_or_default();
            }
            Dialect::Mercure => {
                path = "/.well-known/mercure".to_owned();
                kind = "application/x-www-form-urlencoded";
                fields = format!("authorization: Bearer {MERCURE_TOKEN}\r\n");
                let text = text.replace('#', "%23").replace(' ', "+");
                body = format!("topic={}&data={text}", channel.unwrap_or(MAIN));
            }
            Dialect::Centrifugo => {
                path = "/api/publish".to_owned();
                body = format!("{{\"channel\":\"{}\",\"data\":\"{text}\"}}", channel.unwrap_or(MAIN));
            }
            _ => fields += self.authorization(),
        }
        let length = body.len();
        let head = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: {kind}\r\n{fields}");
        format!("{head}content-length: {length}\r\n\r\n{body}").into_bytes()
    }

    /// What `last` has to be to go on after that message, which came on a stream with that opening.
    pub(super) fn last(self, opening: &[u8], message: &[u8]) -> anyhow::Result<String> {
        let after = |bytes: &[u8], mark: &str, end: &[char]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let (_, after) = text.split_once(mark).with_context(|| format!("no {mark} in {text:?}"))?;
            Ok(after.split(end).next().unwrap_or_default().to_owned())
        };
        match self {
            Dialect::Centrifugo => {
                let epoch: anyhow::Result<String> = after(opening, "\"epoch\":\"", &['"']);
                Ok(format!("{}/{}", epoch?, after(message, "\"offset\":", &[',', '}'])?))
            }
            _ => after(message, "id: ", &['\n']),
        }
    }

    /// Whether a response's head, in lower case, opens a stream.
    pub(super) fn opens(self, head: &str) -> bool {
        head.starts_with(match self {
            Dialect::Events | Dialect::Nchan | Dialect::Mercure | Dialect::Centrifugo => "http/1.1 200 ",
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
            // A comment of one line.
            Dialect::Mercure => end_of(b"\n", bytes),
            // Engine.IO's opening, and the answer to CONNECT.
            Dialect::SocketIo => {
                let first = frame_end(bytes)?;
                let second = frame_end(&bytes[first..])?;
                Some(first + second)
            }
            // A comment, with or without fields behind it; Centrifugo's answer to the request.
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
