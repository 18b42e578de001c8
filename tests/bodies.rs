//! `POST /messages`: forms, webhooks, compressed bodies and batches.

mod common;

use std::io::{BufReader, Write};

use common::{Hub, Path, Response, Site, on_each_journal, request};
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
    // Whatever the body is.
    let headers = ["Content-Type: application/x-ndjson", "Content-Encoding: gzip"];
    assert_eq!(hub.send("POST", "/messages", &headers, &gzip(b"{\"data\":1}\n{\"data\":2}")).status, 201);
    assert_eq!(hub.newest()["data"], 2);
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

fn batch(hub: &Hub, query: &str, headers: &[&str], body: impl AsRef<[u8]>) -> Response {
    let headers = [&["Content-Type: application/x-ndjson"], headers].concat();
    hub.send("POST", &format!("/messages{query}"), &headers, body.as_ref())
}

/// The receipts of a batch.
fn receipts(answer: &Response) -> Vec<Value> {
    assert_eq!(answer.status, 201, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/x-ndjson"));
    assert!(answer.text().ends_with('\n'));
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

on_each_journal!(a_batch_has_a_message_and_a_receipt_a_line, {
    let hub = Hub::start(&[]);
    let mut stream = hub.watch("/events?channel=main&channel=b", &[]);
    let body = "{\"data\":1}\n\r\n \t\n{\"data\": \"two\", \"channel\":\"b\",\"event\":\"x\"}\r\n\
                {\"data\":3,\"ttl\":\"1h\"}";
    let answer = receipts(&batch(&hub, "", &[], body));
    let ids: Vec<_> = answer.iter().map(|receipt| receipt["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.iter().map(|id| id.split_once('-').unwrap().1).collect::<Vec<_>>(), ["1", "2", "3"]);
    assert_eq!((&answer[1]["channel"], &answer[1]["event"]), (&json!("b"), &json!("x")));
    assert!(answer[0].get("expires").is_none() && answer[2]["expires"].is_string());
    for (id, data) in ids.iter().zip(["1", "two", "3"]) {
        let event = stream.event().unwrap();
        assert_eq!((&event.id, &*event.data), (id, data));
    }
    // With a query, each line is the data.
    let answer = receipts(&batch(&hub, "?channel=c&event=hook&ttl=1h", &[], "{\"data\":1}\nnull\n"));
    assert!(answer.iter().all(|receipt| receipt["event"] == "hook" && receipt["expires"].is_string()));
    assert_eq!(hub.history_data("?channel=c"), [json!({"data": 1}), Value::Null]);
});

on_each_journal!(a_batch_is_kept_whole_or_not_at_all_and_its_line_is_named, {
    let hub = Hub::start(&["--max-batch", "4"]);
    for (line, status, field) in [
        ("{\"data\":1", 400, Value::Null),
        ("nonsense", 400, Value::Null),
        ("[1]", 422, Value::Null),
        ("{}", 422, json!("data")),
        ("{\"data\":1,\"dta\":1}", 422, json!("dta")),
        ("{\"data\":1,\"channel\":\"a*\"}", 422, json!("channel")),
        ("{\"data\":1,\"event\":\"tabcast:gap\"}", 422, json!("event")),
        ("{\"data\":\"\\ud800\"}", 422, json!("data")),
    ] {
        let problem =
            batch(&hub, "", &[], format!("{{\"data\":1}}\n\n{line}\n{{\"data\":2}}\n")).problem(status);
        assert_eq!((&problem["line"], &problem["field"]), (&json!(3), &field), "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.starts_with("line 3: ") && !detail.contains("line 1"), "{detail}");
    }
    for empty in ["", "\n", " \r\n\n"] {
        assert_eq!(batch(&hub, "", &[], empty).problem(422)["field"], "body");
    }
    let five = batch(&hub, "", &[], "{\"data\":1}\n".repeat(5)).problem(413);
    assert_eq!((&five["limit"], &five["field"]), (&json!(4), &json!("body")));
    assert!(hub.history("").is_empty());
    assert_eq!(receipts(&batch(&hub, "", &[], "{\"data\":1}\n".repeat(4))).len(), 4);
});

/// Five messages, of which some expire.
const FIVE: &str = r#"{"data":1}
{"data":2,"channel":"b","ttl":"1h"}
{"data":3,"event":"x"}
{"data":4,"ttl":"2h"}
{"data":5,"except":"me"}
"#;

on_each_journal!(a_retry_of_a_batch_gets_the_same_receipts_and_publishes_nothing, {
    // One key is remembered of a batch, however many messages it has.
    let hub = Hub::start(&["--idempotency-keys", "2"]);
    let key = &["Idempotency-Key: k"];
    let first = batch(&hub, "", key, FIVE);
    assert_eq!(receipts(&first).len(), 5);
    assert_eq!(batch(&hub, "", key, FIVE).body, first.body);
    assert_eq!(batch(&hub, "", key, FIVE.replace("}\n", "}\n\n")).body, first.body, "the same messages");
    let fewer = FIVE.split_inclusive('\n').take(4).collect::<String>();
    for other in
        [fewer, format!("{FIVE}{FIVE}"), FIVE.replace("\"data\":4", "\"data\":5"), "{\"data\":1}".into()]
    {
        assert_eq!(batch(&hub, "", key, other).problem(422)["field"], "Idempotency-Key");
    }
    let headers = ["Content-Type: application/json", key[0]];
    hub.send("POST", "/messages", &headers, b"{\"data\":1}").problem(422);
    assert_eq!(hub.history("?channel=%3E").len(), 5);
});

on_each_journal!(concurrent_retries_of_a_batch_publish_once, {
    let hub = Hub::start(&[]);
    let answers: Vec<_> = std::thread::scope(|scope| {
        let send = || batch(&hub, "", &["Idempotency-Key: k"], FIVE).body;
        let threads: Vec<_> = (0..20).map(|_| scope.spawn(send)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(hub.history("?channel=%3E").len(), 5);
});

#[test]
fn a_retry_of_a_batch_is_known_after_a_kill_and_after_its_messages_are_dropped() {
    let site = Site::new(&["--retention-messages", "3"]);
    let mut hub = site.start();
    let first = batch(&hub, "", &["Idempotency-Key: k"], FIVE);
    assert_eq!(receipts(&first).len(), 5);
    hub.end("KILL");
    let hub = site.start();
    assert_eq!(batch(&hub, "", &["Idempotency-Key: k"], FIVE).body, first.body);
    (0..10).for_each(|number| drop(hub.publish(&number.to_string())));
    assert_eq!(batch(&hub, "", &["Idempotency-Key: k"], FIVE).body, first.body);
    assert_eq!(hub.history_data("?channel=%3E"), ["7", "8", "9"]);
}

on_each_journal!(a_batch_beyond_one_append_is_announced_and_answered_whole, {
    let hub = Hub::start(&["--max-batch", "5000"]);
    let mut stream = hub.watch("/events", &[]);
    let body: String = (0..5_000).map(|number| format!("{{\"data\":{number}}}\n")).collect();
    let answer = receipts(&batch(&hub, "", &[], body));
    assert_eq!(answer.len(), 5_000);
    for (number, receipt) in answer.iter().enumerate() {
        let event = stream.event().unwrap();
        assert_eq!((event.data, &json!(event.id)), (number.to_string(), &receipt["id"]));
    }
    assert!(!Path::current().in_file || hub.journal_bytes() > 0);
});

#[test]
fn batches_whose_answers_are_not_read_count_with_the_readers_of_their_address() {
    let flags = ["--max-batch", "100000", "--max-readers-per-address", "1", "--journal", "memory"];
    let hub = Hub::start(&flags);
    let mut stream = hub.watch("/events?channel=end", &[]);
    // Some 10 MB of receipts are more than sockets hold.
    let body = format!("{}{{\"data\":1,\"channel\":\"end\"}}", "{\"data\":1}\n".repeat(90_000));
    let headers = ["Content-Type: application/x-ndjson"];
    let mut unread = hub.connect();
    unread
        .write_all(&request("POST /messages HTTP/1.1", hub.address, &headers, Some(body.as_bytes())))
        .unwrap();
    assert_eq!(stream.data(), "1");
    let refused = batch(&hub, "", &[], "{\"data\":2}");
    assert_eq!(refused.problem(429)["limit"], 1);
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(hub.post("", "text/plain", "3").status, 201);
    assert_eq!(receipts(&Response::read(&mut BufReader::new(unread), false)).len(), 90_001);
    // The share is given back once the answer is taken, which the hub learns a moment after its publisher.
    while batch(&hub, "", &[], "{\"data\":4}").status == 429 {}
    assert_eq!(hub.history_data("?last=2"), [json!("3"), json!(4)]);
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
