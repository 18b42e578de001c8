//! Random input. Rubbish must not harm the hub. And whatever is published, an independent parser of event
//! streams must read it back, wherever the bytes are cut.
//!
//! `PROPTEST_CASES=10000 cargo test --release --test rubbish` makes a long run of it.

mod common;

use std::cell::RefCell;
use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use common::{Hub, Stream};
use eventsource_stream::EventStream;
use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use tokio_stream::Stream as _;

/// A run of this many cases, or of as many as `PROPTEST_CASES` says.
fn config(cases: u32) -> ProptestConfig {
    let config =
        ProptestConfig { failure_persistence: None, max_shrink_time: 20_000, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { ProptestConfig { cases, ..config } }
}

/// A hub that is sent rubbish, with a subscriber.
struct Victim {
    hub: Hub,
    /// The subscriber's stream, and how many messages were published for it.
    watch: RefCell<(Stream, u64)>,
}

/// The subscriber's channel, which no rubbish names.
const ALIVE: &str = "it-is-alive";

impl Victim {
    fn start() -> Victim {
        let names = ["--allow-host", "hub.example", "--allow-origin", "https://app.example"];
        let hub = Hub::start(&[&names[..], &["--retention-messages", "20"]].concat());
        let stream = hub.watch(&format!("/events?channel={ALIVE}"), &[]);
        Victim { hub, watch: RefCell::new((stream, 0)) }
    }

    /// Checks that a message still reaches the subscriber.
    fn is_alive(&self) -> Result<(), TestCaseError> {
        let mut watch = self.watch.borrow_mut();
        watch.1 += 1;
        let text = watch.1.to_string();
        self.hub.publish_to(ALIVE, &text);
        prop_assert_eq!(watch.0.data(), text);
        Ok(())
    }

    /// Checks that the hub stops as it should, and that nothing in it has panicked.
    fn assert_unharmed(mut self) {
        self.hub.signal("TERM");
        // The log is in order: this line comes after that of any panic.
        self.hub.wait_for_log(&["stopping"]);
        let log = self.hub.log();
        let panicked = log.iter().find(|line| line.contains("panicked"));
        assert_eq!(panicked, None);
        assert!(self.hub.wait().success());
    }
}

/// The status that an answer begins with; `None` if there is none.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    line.split(' ').nth(1)?.parse().ok()
}

/// The bytes that the hub sends until the connection ends or is reset; of a stream, the first of them. An
/// interim response is left out. Panics if the connection stays open.
fn answer(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    loop {
        if let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") {
            if status(&answer) == Some(100) {
                answer.drain(..end + 4);
                continue;
            }
            let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
            if head.contains("text/event-stream") || head.contains("application/x-ndjson") {
                return answer;
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer) {
            Ok(0) => return answer,
            Ok(count) => answer.extend(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("no end after {:?}", String::from_utf8_lossy(&answer))
            }
            Err(_reset) => return answer,
        }
    }
}

// Bytes.

/// Pieces of HTTP, so that rubbish gets past the first byte.
#[rustfmt::skip]
const PIECES: &[&str] = &[
    "GET ", "POST ", "HEAD ", "OPTIONS ", "CONNECT ", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "/", "/events",
    "/messages", "/app.js", "*", "http://localhost/messages", "?", "&", "=", "last=1", "channel=a", "%",
    "%00", "%ff", " ",
    " HTTP/1.1", " HTTP/1.0", " HTTP/2.0", " HTTP/9.9", "\r\n", "\n", "\r", "\r\n\r\n", "\t", "\0", ":", ": ",
    "Host: localhost\r\n", "Host:", "Content-Length: 5\r\n", "Content-Length: 18446744073709551616\r\n",
    "Content-Length: -1\r\n", "Content-Length: 5, 5\r\n", "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n", "Transfer-Encoding: identity\r\n",
    "Content-Type: application/json\r\n", "Content-Type: text/plain\r\n", "Expect: 100-continue\r\n",
    "Content-Type: application/x-ndjson\r\n", "Content-Type: multipart/form-data; boundary=x\r\n", "--x\r\n",
    "Content-Disposition: form-data; name=data\r\n", "--x--\r\n", "Content-Encoding: deflate, gzip\r\n",
    "Connection: Upgrade\r\nUpgrade: websocket\r\n", "Connection: close\r\n", "Connection: keep-alive\r\n",
    "{\"data\":1}", "hello", "5\r\nhello\r\n", "0\r\n\r\n",
    "ffffffffffffffff\r\n", "5;ext=\"\r\n", "\u{feff}", "\u{80}",
];

/// Requests to spoil.
const REQUESTS: &[&str] = &[
    "GET /messages?last=1&channel=a HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n",
    "GET /events?last=2 HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: abc-1\r\n\r\n",
    "POST /messages?event=x HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n\
     Content-Length: 5\r\n\r\nhello",
    "POST /messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
     Transfer-Encoding: chunked\r\n\r\na\r\n{\"data\":1}\r\n0\r\n\r\n",
    "POST /messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
     Content-Length: 21\r\n\r\n{\"data\":1}\n{\"data\":2}",
    "POST /messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=\"x\"\r\n\
     Content-Length: 66\r\n\r\n\
     --x\r\nContent-Disposition: form-data; name=\"data\"\r\n\r\nhello\r\n--x--\r\n",
    // Nothing, deflated.
    "POST /messages HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: deflate\r\n\
     Content-Length: 8\r\n\r\nx\x01\x03\0\0\0\0\x01",
];

fn raw_request() -> impl Strategy<Value = Vec<u8>> {
    let piece = || {
        prop_oneof![
            12 => select(PIECES).prop_map(|piece| piece.as_bytes().to_vec()),
            1 => vec(any::<u8>(), 0..8),
        ]
    };
    // A request with a few bytes of it replaced.
    let spoilt = (select(REQUESTS), vec((any::<prop::sample::Index>(), 0..12usize, piece()), 1..4)).prop_map(
        |(request, changes)| {
            let mut bytes = request.as_bytes().to_vec();
            for (place, length, new) in changes {
                let from = place.index(bytes.len() + 1);
                let to = (from + length).min(bytes.len());
                bytes.splice(from..to, new);
            }
            bytes
        },
    );
    prop_oneof![
        1 => vec(any::<u8>(), 0..2_000),
        4 => vec(piece(), 0..24).prop_map(|pieces| pieces.concat()),
        4 => spoilt,
    ]
}

#[test]
fn no_bytes_harm_the_hub() {
    let victim = Victim::start();
    proptest!(config(1024), |(bytes in raw_request())| {
        let mut stream = victim.hub.connect();
        // The hub may rightly have closed the connection by now.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        if let Some(status) = status(&answer(&mut stream)) {
            prop_assert!((100..500).contains(&status), "{status}");
        }
        victim.is_alive()?;
    });
    victim.assert_unharmed();
}

// Requests.

/// Values of headers that some program knows.
#[rustfmt::skip]
const HEADER_VALUES: &[&str] = &[
    "", "*", "*/*", "null", "none", "cross-site", "same-origin", "localhost", "hub.example", "[::1]", "[::1",
    "127.0.0.1:99999", "user:password@localhost", "https://app.example", "https://evil.example", "text/html",
    "text/event-stream", "application/x-ndjson", "application/json", "application/x-www-form-urlencoded",
    "text/plain; charset=utf-8", "image/png", "multipart/form-data; boundary=x", "100-continue", "websocket",
    "upgrade", "bytes=0-1", "gzip", "trailers", "aaaaaaaa-1", "aaaaaaaa-18446744073709551615", "POST",
    "content-type", "W/\"x\", *", "deflate, gzip", "identity", "x/y; z=\"a\\\",b\"", "*/*;q=0, x/y;q=2",
];

/// Headers that some program knows.
#[rustfmt::skip]
const HEADER_NAMES: &[&str] = &[
    "Accept", "Accept-Encoding", "Access-Control-Request-Headers", "Access-Control-Request-Method",
    "Authorization", "Content-Encoding", "Content-Type", "Cookie", "Expect", "Forwarded", "Host",
    "Idempotency-Key", "If-Modified-Since", "If-None-Match", "Last-Event-ID", "Origin", "Range", "Referer",
    "Sec-Fetch-Site", "TE", "Trailer", "Upgrade", "X-Forwarded-Host",
];

/// Names of query parameters.
#[rustfmt::skip]
const PARAMETER_NAMES: &[&str] = &[
    "channel", "last", "last_event_id", "lastEventId", "as", "format", "after", "limit", "event", "except",
    "data",
];

/// Values of query parameters, good and bad.
#[rustfmt::skip]
const PARAMETER_VALUES: &[&str] = &[
    "", "main", "a.b", "..", "0", "1", "18446744073709551615", "-1", "message", "aaaaaaaa-1", "%", "%0",
    "%00", "%0d%0a", "%ff", "%F0%9F%8E%89", "tabcast:gap", "tabcast%3agap", "+",
];

/// Pieces of JSON.
#[rustfmt::skip]
const JSON_PIECES: &[&str] = &[
    "{", "}", "[", "]", ",", ":", "\"data\":", "\"event\":", "\"channel\":", "\"except\":", "\"", "\"a\"",
    "1", "-0.0e99999", "null", "\\u0000", "\"\\ud800\"", "\"\\n\"", " ", "\n",
];

/// A header's value: mostly visible text, but any byte that is not a control character may be in it.
fn header_value() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        8 => 0x20..0x7fu8,
        1 => 0x80..=0xffu8,
        1 => Just(b'\t'),
        1 => select(&b",;=\"*/:@[]%&"[..]),
    ];
    let known = select(HEADER_VALUES);
    prop_oneof![2 => known.prop_map(|value| value.as_bytes().to_vec()), 1 => vec(byte, 0..40)]
}

fn header() -> impl Strategy<Value = Vec<u8>> {
    let known = select(HEADER_NAMES);
    let name = prop_oneof![8 => known.prop_map(str::to_owned), 1 => "[a-zA-Z!#$%&'*+.^_`|~0-9-]{1,20}"];
    (name, header_value())
        // The test frames the request itself: else the hub could wait for bytes that never come.
        .prop_filter("framing", |(name, _)| {
            !["content-length", "transfer-encoding", "connection"].contains(&&*name.to_ascii_lowercase())
        })
        .prop_map(|(name, value)| [name.as_bytes(), b": ", &value, b"\r\n"].concat())
}

fn target() -> impl Strategy<Value = String> {
    let path = prop_oneof![
        6 => Just("/messages".to_owned()),
        3 => Just("/events".to_owned()),
        2 => select(&["/", "/app.js", "/icon.svg", "/nothing", "*", "//", "/messages/", "/%2e%2e/x"][..])
            .prop_map(str::to_owned),
        1 => "/[!$&'()*+,;=:@a-zA-Z0-9._~%/-]{0,30}",
        1 => "https?://[a-z.@:\\[\\]0-9]{1,20}(/messages)?",
    ];
    let name = prop_oneof![
        8 => select(PARAMETER_NAMES).prop_map(str::to_owned),
        1 => "[a-z%+]{0,10}",
    ];
    let value = prop_oneof![
        select(PARAMETER_VALUES).prop_map(str::to_owned),
        "[a-zA-Z0-9%+=./?:-]{0,30}",
        vec(any::<u8>(), 0..20).prop_map(|bytes| bytes.iter().map(|byte| format!("%{byte:02x}")).collect()),
    ];
    let query = vec((name, value), 0..6).prop_map(|pairs| {
        pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    });
    (path, proptest::option::of(query))
        .prop_map(|(path, query)| query.map_or(path.clone(), |query| format!("{path}?{query}")))
}

/// A body that is compressed by gzip. Some are damaged.
fn coded() -> impl Strategy<Value = Vec<u8>> {
    (vec(any::<u8>(), 0..40), any::<prop::sample::Index>(), 0..=255u8).prop_map(|(bytes, place, byte)| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&bytes).unwrap();
        let mut coded = encoder.finish().unwrap();
        let place = place.index(coded.len());
        coded[place] ^= byte.saturating_sub(128);
        coded
    })
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let json_piece = select(JSON_PIECES);
    let object = (any_json(), select(&["data", "event", "channel", "except", "id", ""][..]), any_json())
        .prop_map(|(data, name, other)| json!({ "data": data, name: other }).to_string().into_bytes());
    prop_oneof![
        1 => Just(Vec::new()),
        2 => vec(any::<u8>(), 0..300),
        2 => vec(json_piece, 0..20).prop_map(|pieces| pieces.concat().into_bytes()),
        2 => object,
        2 => "(data|event|channel|x)=[a-z%+&=\\x00-\\xff]{0,30}(&data=x)?".prop_map(String::into_bytes),
        2 => vec((select(&["data", "event", "\"ttl\"", "x"][..]), any::<u8>()), 0..4).prop_map(|parts| {
            let part = |(name, byte): &(&str, u8)| {
                let head = format!("--x\r\nContent-Disposition: form-data; name={name}\r\n\r\n");
                [head.as_bytes(), &[*byte], b"\r\n"].concat()
            };
            [parts.iter().map(part).collect::<Vec<_>>().concat(), b"--x--".to_vec()].concat()
        }),
        1 => coded(),
    ]
}

/// A request that is framed as it should be, and is random in all else.
fn request() -> impl Strategy<Value = Vec<u8>> {
    let method = prop_oneof![
        8 => select(&["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"][..])
            .prop_map(str::to_owned),
        8 => Just("POST".to_owned()),
        1 => "[A-Z!#$%&'*+.^_`|~a-z-]{1,12}",
    ];
    // Mostly headers with which the hub reads the body.
    let known = [
        "Host: localhost\r\nContent-Type: application/json\r\n",
        "Host: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n",
        "Host: localhost\r\nContent-Type: text/plain\r\n",
        "Host: localhost\r\nContent-Type: application/x-ndjson\r\n",
        "Host: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n",
        "Host: localhost\r\nContent-Encoding: gzip\r\n",
        "Host: localhost\r\nContent-Encoding: deflate\r\n",
        "Host: localhost\r\n",
    ];
    let known = prop_oneof![8 => select(known.to_vec()), 1 => Just("")];
    (method, target(), known, vec(header(), 0..4), body(), any::<bool>()).prop_map(
        |(method, target, known, headers, body, chunked)| {
            let mut request =
                format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n{known}").into_bytes();
            request.extend(headers.concat());
            match body.split_first() {
                Some((first, rest)) if chunked => {
                    request.extend(b"Transfer-Encoding: chunked\r\n\r\n1\r\n");
                    request.extend([*first]);
                    if !rest.is_empty() {
                        request.extend(format!("\r\n{:X};x=y\r\n", rest.len()).as_bytes());
                        request.extend(rest);
                    }
                    request.extend(b"\r\n0\r\n\r\n");
                }
                _ => {
                    request.extend(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
                    request.extend(&body);
                }
            }
            request
        },
    )
}

#[test]
fn every_request_is_answered_and_the_hub_goes_on() {
    let victim = Victim::start();
    proptest!(config(1024), |(request in request())| {
        let mut stream = victim.hub.connect();
        let _ = stream.write_all(&request);
        let answer = answer(&mut stream);
        let status = status(&answer);
        let is_answer = status.is_some_and(|status| (200..500).contains(&status));
        prop_assert!(is_answer, "{:?}", String::from_utf8_lossy(&answer));
        victim.is_alive()?;
    });
    victim.assert_unharmed();
}

// What is published is what is received.

/// Pieces of an event stream.
#[rustfmt::skip]
const FIELD_PIECES: &[&str] = &[
    ":", " ", ": ", "data", "data:", "data: x", "event: evil", "id: 1", "id:", "retry: 1", "\0", "\u{feff}",
    "\t",
];

/// Characters that JSON or UTF-8 makes much of, or that some program takes for the end of a line.
#[rustfmt::skip]
const HARD_CHARACTERS: &[&str] = &[
    "\"", "\\", "\\n", "{", "}", "\u{b}", "\u{c}", "\u{7f}", "\u{85}", "\u{2028}", "\u{2029}", "é",
    "e\u{301}", "\u{200d}", "🎉", "\u{fffd}", "\u{ffff}", "\u{10ffff}",
];

/// Text that a parser could take for something else.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        6 => select(&["\r", "\n", "\r\n", "\n\r", "\n\n", "\r\r"][..]).prop_map(str::to_owned),
        6 => select(FIELD_PIECES).prop_map(str::to_owned),
        3 => select(HARD_CHARACTERS).prop_map(str::to_owned),
        2 => any::<char>().prop_map(String::from),
        1 => "[ -~]{0,12}",
    ];
    vec(piece, 0..14).prop_map(|pieces| pieces.concat())
}

/// Valid names, with all that a parser could trip over.
fn event_name() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        select(
            &[
                "message", "data", ":", ": ", " ", "  ", "\"", "\\", "🎉", "e\u{301}", "<b>", "tabcast",
                "id", ","
            ][..]
        )
        .prop_map(str::to_owned),
        "[ -~]{1,6}",
        any::<char>().prop_filter("letters and digits", |c| c.is_alphanumeric()).prop_map(String::from),
    ];
    vec(piece, 1..6)
        .prop_map(|pieces| pieces.concat())
        .prop_filter("the hub's own", |name| !name.starts_with("tabcast:"))
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((text(), inner), 0..4).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// The text as an EventSource gives it to a script: CR, LF and CRLF are each a LF.
fn lines_normalised(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// The id, event and data of each event in these bytes of a stream, parsed piece by piece.
fn parsed(pieces: &[&[u8]]) -> Vec<(String, String, String)> {
    let pieces = pieces.iter().map(|piece| Ok::<_, Infallible>(*piece));
    let mut events = pin!(EventStream::new(tokio_stream::iter(pieces)));
    let mut all = Vec::new();
    loop {
        match events.as_mut().poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(event)) => {
                let event = event.expect("the stream is well formed");
                all.push((event.id, event.event, event.data));
            }
            Poll::Ready(None) => return all,
            // All bytes are there: the parser only yields to other tasks.
            Poll::Pending => {}
        }
    }
}

/// The raw bytes of the stream up to and with the event that has this text.
fn bytes_up_to(stream: &mut Stream, end: &str) -> Vec<u8> {
    let mut bytes = stream.opening.clone();
    loop {
        let block = stream.block().expect("the stream goes on");
        bytes += &block;
        if block.contains(end) {
            return bytes.into_bytes();
        }
    }
}

/// A hub to which each case publishes its messages, and at last one that marks the case's end.
struct Echo {
    hub: Hub,
    cases: RefCell<u64>,
}

/// What three subscribers, one of each format, were sent in one case.
struct Echoed {
    bare: Vec<u8>,
    message: Vec<u8>,
    lines: Vec<String>,
}

impl Echo {
    fn start() -> Echo {
        Echo { hub: Hub::start(&[]), cases: RefCell::new(0) }
    }

    /// Publishes these messages, each an event name and data. Returns what three new subscribers were sent,
    /// the ids of the messages and of the end, and the end's text.
    fn publish(&self, messages: &[(Option<String>, Value)], as_text: bool) -> (Echoed, Vec<String>, String) {
        let mut bare = self.hub.watch("/events", &[]);
        let mut message = self.hub.watch("/events?format=message", &[]);
        let mut lines = self.hub.open("/events", &["Accept: application/x-ndjson"]);
        let id = |response: common::Response| {
            assert_eq!(response.status, 201, "{response:?}");
            response.json()["id"].as_str().unwrap().to_owned()
        };
        let mut ids: Vec<_> = messages
            .iter()
            .map(|(event, data)| match (event, data) {
                (Some(event), Value::String(text)) if as_text => {
                    id(self.hub.post(&format!("?event={}", encoded(event)), "text/plain", text))
                }
                (None, Value::String(text)) if as_text => id(self.hub.post("", "text/plain", text)),
                (Some(event), data) => id(self.hub.post(
                    "",
                    "application/json",
                    json!({"data": data, "event": event}).to_string(),
                )),
                (None, data) => {
                    id(self.hub.post("", "application/json", json!({ "data": data }).to_string()))
                }
            })
            .collect();
        *self.cases.borrow_mut() += 1;
        let end = format!("the end of case {}", self.cases.borrow());
        ids.push(self.hub.publish(&end));
        let echoed = Echoed {
            bare: bytes_up_to(&mut bare, &end),
            message: bytes_up_to(&mut message, &end),
            lines: ids.iter().map(|_| lines.line().expect("the stream goes on")).collect(),
        };
        // A replay sends the same bytes.
        let mut replay = self.hub.watch(&format!("/events?last={}", ids.len()), &[]);
        let again = bytes_up_to(&mut replay, &end);
        let frames =
            |bytes: &[u8], opening: &str| String::from_utf8(bytes[opening.len()..].to_vec()).unwrap();
        assert_eq!(frames(&again, &replay.opening), frames(&echoed.bare, &bare.opening));
        (echoed, ids, end)
    }
}

fn assert_echoed(
    echo: &Echo,
    messages: &[(Option<String>, Value)],
    as_text: bool,
) -> Result<(), TestCaseError> {
    let (echoed, ids, end) = echo.publish(messages, as_text);
    let all: Vec<_> = messages.iter().cloned().chain([(None, Value::from(end))]).zip(ids).collect();
    let name = |event: &Option<String>| event.clone().unwrap_or("message".to_owned());

    let bare: Vec<_> = all
        .iter()
        .map(|((event, data), id)| {
            let text = data.as_str().map_or(data.to_string(), lines_normalised);
            (id.clone(), name(event), text)
        })
        .collect();
    let whole = parsed(&[&echoed.bare]);
    prop_assert_eq!(&whole, &bare, "{:?}", String::from_utf8_lossy(&echoed.bare));
    for cut in 0..=echoed.bare.len() {
        let (left, right) = echoed.bare.split_at(cut);
        prop_assert_eq!(&parsed(&[left, right]), &bare, "cut at {}", cut);
    }
    prop_assert_eq!(&parsed(&echoed.bare.chunks(1).collect::<Vec<_>>()), &bare, "byte by byte");

    let check = |json: &str, (event, data): &(Option<String>, Value), id: &str| {
        let object: Value = serde_json::from_str(json).unwrap();
        prop_assert_eq!(&object["data"], data, "{}", json);
        prop_assert_eq!(object["event"].as_str(), Some(&*name(event)));
        prop_assert_eq!(object["id"].as_str(), Some(id));
        prop_assert_eq!(object["channel"].as_str(), Some("main"));
        prop_assert_eq!(object.as_object().unwrap().len(), 5);
        Ok(())
    };
    let whole = parsed(&[&echoed.message]);
    prop_assert_eq!(whole.len(), 1 + all.len());
    prop_assert_eq!(&whole[0].1, "tabcast:open");
    for ((id, event, json), (sent, sent_id)) in whole[1..].iter().zip(&all) {
        prop_assert_eq!((id, &**event), (sent_id, "message"));
        check(json, sent, sent_id)?;
    }
    for cut in 0..=echoed.message.len() {
        let (left, right) = echoed.message.split_at(cut);
        prop_assert_eq!(&parsed(&[left, right]), &whole, "cut at {}", cut);
    }
    prop_assert_eq!(&parsed(&echoed.message.chunks(1).collect::<Vec<_>>()), &whole, "byte by byte");

    for (line, (sent, sent_id)) in echoed.lines.iter().zip(&all) {
        prop_assert!(!line.trim_end_matches('\n').contains(['\r', '\n']), "{:?}", line);
        check(line, sent, sent_id)?;
    }
    Ok(())
}

#[test]
fn any_text_is_read_back_however_the_stream_is_cut() {
    let echo = Echo::start();
    let message = (proptest::option::of(event_name()), text().prop_map(Value::from));
    proptest!(config(64), |(messages in vec(message, 1..3), as_text in any::<bool>())| {
        assert_echoed(&echo, &messages, as_text)?;
    });
}

#[test]
fn any_json_is_read_back_however_the_stream_is_cut() {
    let echo = Echo::start();
    let message = (proptest::option::of(event_name()), any_json());
    proptest!(config(64), |(message in message)| {
        assert_echoed(&echo, &[message], false)?;
    });
}

#[test]
fn any_event_name_comes_back_as_it_is_or_is_refused() {
    let hub = Hub::start(&[]);
    let stream = RefCell::new(hub.watch("/events", &[]));
    proptest!(config(256), |(name in prop_oneof![text(), "\\PC{1,20}", any::<String>(), event_name()])| {
        let answer = hub.post(&format!("?event={}", encoded(&name)), "text/plain", "x");
        if answer.status == 201 {
            let breaks_lines = |c: char| c.is_control() || ['\u{2028}', '\u{2029}'].contains(&c);
            prop_assert!(!name.contains(breaks_lines), "{:?}", name);
            prop_assert!(!name.is_empty() && name.len() <= 128 && !name.starts_with("tabcast:"));
            let block = stream.borrow_mut().block().unwrap();
            let events = parsed(&[block.as_bytes()]);
            let id = answer.json()["id"].as_str().unwrap().to_owned();
            prop_assert_eq!(&events, &[(id, name, "x".to_owned())]);
        } else {
            prop_assert_eq!(&answer.problem(422)["field"], "event");
        }
    });
    let id = hub.publish("nothing else was sent");
    assert_eq!(stream.borrow_mut().event().unwrap().id, id);
}

#[test]
fn any_text_of_a_form_is_read_back() {
    let hub = Hub::start(&[]);
    let browser = |text: &str| {
        text.bytes()
            .map(|byte| match byte {
                b' ' => "+".to_owned(),
                b'*' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                    char::from(byte).to_string()
                }
                _ => format!("%{byte:02X}"),
            })
            .collect::<String>()
    };
    proptest!(config(128), |(data in text(), event in event_name())| {
        let body = format!("event={}&data={}", browser(&event), browser(&data));
        let answer = hub.post("", "application/x-www-form-urlencoded", body);
        prop_assert_eq!(answer.status, 201, "{}", answer.text());
        let message = hub.newest();
        prop_assert_eq!((&message["data"], &message["event"]), (&json!(data), &json!(event)));
    });
}
