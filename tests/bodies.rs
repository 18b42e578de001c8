//! `POST /messages`: forms, webhooks and compressed bodies.

mod common;

use std::io::Write;

use common::{Hub, Response, on_each_journal};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use serde_json::{Value, json};

on_each_journal!(with_a_query_json_is_published_as_it_is, {
    let hub = Hub::start(&[]);
    let body = r#" {"action": "opened", "data": [1.0], "n": 1e400} "#;
    let receipt = hub.post("?channel=hooks&event=push&ttl=1h", "application/json", body).json();
    assert_eq!((&receipt["channel"], &receipt["event"]), (&json!("hooks"), &json!("push")));
    assert!(receipt["expires"].is_string());
    let text = hub.get("/messages?last=1&channel=hooks").text().to_owned();
    assert!(text.contains(r#""data":{"action":"opened","data":[1.0],"n":1e400},"#), "{text}");
    for query in ["?channel=main", "?event=x", "?except=me", "?ttl=1h"] {
        for data in ["[]", "null", "\"x\"", "{\"data\":1}"] {
            assert_eq!(hub.post(query, "application/json", data).status, 201);
            assert_eq!(hub.newest()["data"], serde_json::from_str::<Value>(data).unwrap());
        }
    }
    for bad in ["", "{", "nul", "1 2", "\"\u{0}\""] {
        hub.post("?event=x", "application/json", bad).problem(400);
    }
    hub.post("?event=x", "application/json", "\"\\ud800\"").problem(422);
    let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
    assert_eq!(hub.post("?event=x", "application/json", deep).problem(422)["limit"], 64);
});

on_each_journal!(what_a_browser_adds_to_a_form_is_passed_over, {
    let hub = Hub::start(&[]);
    let body = "_charset_=utf-8&data=hi&data.dir=ltr&send=Send&send=Send&event=x";
    for query in ["", "?channel=main"] {
        assert_eq!(hub.post(query, "application/x-www-form-urlencoded", body).status, 201);
        assert_eq!((&hub.newest()["data"], &hub.newest()["event"]), (&json!("hi"), &json!("x")));
    }
    hub.post("?event=y", "application/x-www-form-urlencoded", body).problem(422);
    hub.post("?evnet=y", "application/x-www-form-urlencoded", body).problem(422);
});

/// A form of these parts: each has its `Content-Disposition` after the name, its type, and its bytes.
fn parts(parts: &[(&str, &str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, content_type, bytes) in parts {
        body.extend(format!("--a b\r\nContent-Disposition: form-data; name={name}\r\n").as_bytes());
        if !content_type.is_empty() {
            body.extend(format!("Content-Type: {content_type}\r\n").as_bytes());
        }
        body.extend(b"\r\n");
        body.extend(*bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--a b--\r\n");
    body
}

/// Publishes that form.
fn multipart(hub: &Hub, body: impl AsRef<[u8]>) -> Response {
    hub.post("", "multipart/form-data; boundary=\"a b\"", body)
}

on_each_journal!(a_form_in_parts_has_the_same_fields_and_a_file_keeps_its_type, {
    let hub = Hub::start(&[]);
    for (name, content_type, bytes, data) in [
        ("\"data\"", "", "ü\r\n--a".as_bytes(), json!("ü\r\n--a")),
        (
            "\"data\"; filename=\"a \\\"b.png\"",
            "image/png",
            b"\x00\xff\n",
            json!("data:image/png;base64,AP8K"),
        ),
        ("\"data\"; filename=a.txt", "text/plain", b"text", json!("text")),
        ("\"data\"; filename=a", "", b"\xff", json!("data:application/octet-stream;base64,/w==")),
        ("\"data\"", "application/json", b" {\"a\": 1}", json!({"a": 1})),
        ("data", "text/plain; charset=\"utf-8\"", b"", json!("")),
    ] {
        let body =
            parts(&[("\"_charset_\"", "", b"\xff"), (name, content_type, bytes), ("\"event\"", "", b"x")]);
        let answer = multipart(&hub, body);
        assert_eq!(answer.status, 201, "{answer:?}");
        assert_eq!((&hub.newest()["data"], &hub.newest()["event"]), (&data, &json!("x")));
    }
    let body = parts(&[("data", "", b"1"), ("channel", "", b"a.b")]);
    assert_eq!(multipart(&hub, body).json()["channel"], "a.b");
});

on_each_journal!(a_form_in_parts_that_is_damaged_or_too_much_is_refused, {
    let hub = Hub::start(&[]);
    let whole = parts(&[("data", "", b"1")]);
    for cut in [0, 3, 20, 60, whole.len() - 4] {
        multipart(&hub, &whole[..cut]).problem(400);
    }
    multipart(&hub, "data=1").problem(400);
    multipart(&hub, parts(&[("data", "", b"1"), ("event", "", b"\xff")])).problem(400);
    multipart(&hub, parts(&[("data", "text/plain", b"\xff")])).problem(400);
    assert_eq!(
        multipart(&hub, parts(&[("data", "text/plain; charset=x", b"1")])).problem(415)["field"],
        "Content-Type"
    );
    for (body, field) in [
        (parts(&[]), "data"),
        (parts(&[("Data", "", b"1")]), "data"),
        (parts(&[("data", "", b"1"), ("data", "image/png", b"1")]), "data"),
        (parts(&[("data", "", b"1"), ("event", "", b"a"), ("event", "", b"a")]), "event"),
        (parts(&[("data", "", b"1"), ("channel", "", b"a b")]), "channel"),
    ] {
        assert_eq!(multipart(&hub, body).problem(422)["field"], field);
    }
    let many = vec![("x", "", &b"1"[..]); 40];
    assert_eq!(multipart(&hub, parts(&many)).problem(422)["limit"], 32);
    assert!(hub.history("").is_empty());
});

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Publishes text that was coded so.
fn coded(hub: &Hub, codings: &str, body: impl AsRef<[u8]>) -> Response {
    let headers = ["Content-Type: text/plain", &format!("Content-Encoding: {codings}")];
    hub.send("POST", "/messages", &headers, body.as_ref())
}

on_each_journal!(a_compressed_body_is_published_as_it_was_before, {
    let hub = Hub::start(&[]);
    let text = "Größe ".repeat(10_000);
    let text = text.as_bytes();
    let (half, rest) = text.split_at(7);
    for (codings, body) in [
        ("gzip", gzip(text)),
        ("X-GZip", gzip(text)),
        ("deflate", zlib(text)),
        ("identity", text.to_vec()),
        ("identity, , gzip", gzip(text)),
        ("deflate, gzip", gzip(&zlib(text))),
        ("gzip\r\nContent-Encoding: deflate", zlib(&gzip(text))),
        ("gzip", [gzip(half), gzip(rest)].concat()),
    ] {
        assert_eq!(coded(&hub, codings, body).status, 201, "{codings}");
        assert_eq!(hub.newest()["data"].as_str().unwrap().as_bytes(), text);
    }
});

on_each_journal!(a_coding_that_is_not_taken_is_415_with_those_that_are_and_a_damaged_body_is_400, {
    let hub = Hub::start(&[]);
    for codings in ["br", "zstd", "gzip, br", "compress", "chunked", "gzip, gzip, gzip", "gzip;q=1", "\u{fc}"]
    {
        let answer = coded(&hub, codings, gzip(b"x"));
        assert_eq!(answer.problem(415)["field"], "Content-Encoding", "{codings}");
        assert_eq!(answer.header("accept-encoding"), Some("gzip, deflate"));
    }
    let (gzipped, deflated) = (gzip(b"some text, some text"), zlib(b"some text, some text"));
    for (coding, good) in [("gzip", &gzipped), ("deflate", &deflated)] {
        for cut in 0..good.len() {
            coded(&hub, coding, &good[..cut]).problem(400);
        }
        coded(&hub, coding, [&good[..], b"x"].concat()).problem(400);
        let mut changed = good.clone();
        *changed.last_mut().unwrap() ^= 1;
        coded(&hub, coding, changed).problem(400);
    }
    coded(&hub, "gzip", &deflated).problem(400);
    coded(&hub, "deflate", &gzipped).problem(400);
    assert!(hub.history("").is_empty());
});

on_each_journal!(a_transfer_coding_but_chunked_is_501, {
    let hub = Hub::start(&[]);
    let publish = |coding: &str| {
        let head = format!("POST /messages HTTP/1.1\r\nHost: {}\r\n", hub.address);
        let body = "Content-Type: text/plain\r\nConnection: close\r\n\r\n1\r\nx\r\n0\r\n\r\n";
        hub.raw(format!("{head}Transfer-Encoding: {coding}\r\n{body}"))
    };
    for coding in ["gzip, chunked", "identity, chunked", "gzip\r\nTransfer-Encoding: chunked"] {
        assert_eq!(publish(coding).problem(501)["field"], "Transfer-Encoding", "{coding}");
    }
    assert_eq!(publish("gzip").status, 400, "its end is not known");
    assert!(hub.history("").is_empty());
    assert_eq!(publish("Chunked").status, 201);
});

#[test]
fn a_compressed_bomb_is_413_and_takes_no_more_memory_than_a_body() {
    let hub = Hub::start(&["--max-body", "256KiB", "--journal", "memory"]);
    let bomb = gzip(&vec![b'x'; 64 << 20]);
    assert!(bomb.len() < 256 << 10, "{}", bomb.len());
    let before = hub.peak_resident_bytes();
    for (codings, body) in [("gzip", bomb.clone()), ("deflate, gzip", gzip(&zlib(&vec![0; 64 << 20])))] {
        let problem = coded(&hub, codings, body).problem(413);
        assert_eq!((&problem["field"], &problem["limit"]), (&json!("body"), &json!(256 << 10)));
    }
    assert!(hub.peak_resident_bytes() - before < 16 << 20);
    assert_eq!(coded(&hub, "gzip", gzip(&vec![b'x'; 256 << 10])).status, 201);
    assert_eq!(hub.newest()["data"].as_str().unwrap().len(), 256 << 10);
}

on_each_journal!(ndjson_is_sent_to_who_prefers_it_by_its_weight, {
    let hub = Hub::start(&[]);
    hub.publish("x");
    for (accept, is_ndjson) in [
        ("application/x-ndjson", true),
        ("Application/X-NDJSON;q=0.1", true),
        ("application/x-ndjson, */*", true),
        ("application/*", true),
        ("text/event-stream;q=0.4, application/x-ndjson;q=0.5", true),
        ("*/*;q=0.8, application/x-ndjson;q=0.9", true),
        ("text/plain;a=\",application/x-ndjson\", text/event-stream", false),
        ("application/x-ndjson;q=0", false),
        ("application/x-ndjson; q=0.000, */*;q=0.1", false),
        ("text/event-stream, application/x-ndjson", false),
        ("application/x-ndjson;q=0.5, text/event-stream;q=0.6", false),
        ("application/x-ndjson;q=0.5, */*", false),
        ("*/*", false),
        ("text/event-stream", false),
        ("", false),
    ] {
        let stream = hub.open("/events?last=1", &[&format!("Accept: {accept}")]);
        let expected = if is_ndjson { "application/x-ndjson" } else { "text/event-stream" };
        assert_eq!(stream.header("content-type"), Some(expected), "{accept}");
    }
});
