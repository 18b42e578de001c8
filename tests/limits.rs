//! Every limit: what just fits is taken, what is one more is refused, and the answer names the field and the
//! limit. And every kind of bad input, with its status.

mod common;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Hub, PATIENCE, Response, on_each_journal, post_text, request};
use serde_json::{Value, json};

/// A problem with this status, checked for what every problem has.
fn problem(response: &Response, status: u16) -> Value {
    let problem = response.problem(status);
    assert_eq!(response.header("x-content-type-options"), Some("nosniff"), "{problem}");
    assert_eq!(problem.get("title").and_then(Value::as_str).map(str::is_empty), Some(false));
    problem
}

/// A problem that names this field.
fn problem_of(response: &Response, status: u16, field: &str) -> Value {
    let problem = problem(response, status);
    assert_eq!(problem["field"], field, "{problem}");
    problem
}

/// A problem that names this field and this limit.
fn problem_past(response: &Response, status: u16, field: &str, limit: u64) -> Value {
    let problem = problem_of(response, status, field);
    assert_eq!(problem["limit"], limit, "{problem}");
    problem
}

fn json_post(hub: &Hub, body: impl AsRef<[u8]>) -> Response {
    hub.post("", "application/json", body)
}

fn with_key(hub: &Hub, key: &str, text: &str) -> Response {
    let headers = [&*format!("Idempotency-Key: {key}"), "Content-Type: text/plain"];
    hub.send("POST", "/messages", &headers, text.as_bytes())
}

/// The bytes of a request that publishes text in two chunks, without a declared length.
fn chunked_request(hub: &Hub, text: &str) -> String {
    let (first, second) = text.split_at(1);
    let length = second.len();
    let headers = ["Content-Type: text/plain", "Transfer-Encoding: chunked"];
    let head = request("POST /messages HTTP/1.1", hub.address, &headers, None);
    let body = format!("1\r\n{first}\r\n{length:x}\r\n{second}\r\n0\r\n\r\n");
    String::from_utf8(head).unwrap() + &body
}

fn answer(connection: &mut BufReader<TcpStream>) -> Response {
    Response::read(connection, false)
}

/// Reads until the hub closes or resets the connection. Panics if it does neither.
fn wait_for_close(mut stream: &TcpStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it stays open: {error}"),
    }
}

/// The exit code of a hub that is not to start, and what it printed.
fn refused_start(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tabcast"))
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap());
    while lines.read_line(&mut said).unwrap() > 0 {
        if said.contains("listening on http://") {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it starts with {arguments:?} {environment:?}");
        }
    }
    (child.wait().unwrap().code(), said)
}

// Bodies.

on_each_journal!(a_body_of_the_limit_is_taken_and_one_byte_more_is_not, {
    let hub = Hub::start(&["--max-body", "10"]);
    assert_eq!(hub.post("", "text/plain", "0123456789").status, 201);
    problem_past(&hub.post("", "text/plain", "0123456789x"), 413, "body", 10);
    assert_eq!(hub.raw(chunked_request(&hub, "0123456789")).status, 201);
    problem_past(&hub.raw(chunked_request(&hub, "0123456789x")), 413, "body", 10);
    assert_eq!(hub.history_data(""), ["0123456789", "0123456789"]);
});

on_each_journal!(a_publisher_that_expects_100_continue_and_sends_too_long_a_body_reads_the_answer, {
    let hub = Hub::start(&["--max-body", "10"]);
    let request = chunked_request(&hub, "xx");
    let (head, _) = request.split_once("\r\n\r\n").unwrap();
    let mut connection = hub.connect();
    connection.write_all(format!("{head}\r\nExpect: 100-continue\r\n\r\n").as_bytes()).unwrap();
    let mut answers = BufReader::new(connection.try_clone().unwrap());
    assert_eq!(Response::read_interim(&mut answers), 100);
    // Far more than the hub reads before it answers.
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    for _ in 0..4 {
        connection.write_all(chunk.as_bytes()).unwrap();
    }
    connection.write_all(b"0\r\n\r\n").unwrap();
    problem_past(&answer(&mut answers), 413, "body", 10);
});

#[test]
fn a_size_has_units_and_may_come_from_the_environment_over_which_a_flag_wins() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    command.args(["--listen", "127.0.0.1:0", "--journal", "memory"]);
    let hub = Hub::start_with(command.env("TABCAST_MAX_BODY", "1KiB"));
    assert_eq!(hub.post("", "text/plain", vec![b'x'; 1024]).status, 201);
    problem_past(&hub.post("", "text/plain", vec![b'x'; 1025]), 413, "body", 1024);

    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    let command = command.envs([
        ("TABCAST_MAX_BODY", "1KiB"),
        ("TABCAST_LISTEN", "127.0.0.1:0"),
        ("TABCAST_JOURNAL", "memory"),
    ]);
    let hub = Hub::start_with(command.args(["--max-body", "2KB"]));
    assert_eq!(hub.post("", "text/plain", vec![b'x'; 2000]).status, 201);
    problem_past(&hub.post("", "text/plain", vec![b'x'; 2001]), 413, "body", 2000);
}

// Most programs write the whole body before they read. If the hub closed its socket with a part of the body
// unread, the kernel would reset the connection, and the 413 would be lost.
on_each_journal!(a_publisher_that_writes_all_of_a_far_too_long_body_reads_why_it_is_refused, {
    const SIZE: usize = 4 << 20;
    let hub = Hub::start(&["--max-body", "1KiB"]);
    let head = format!("POST /messages HTTP/1.1\r\nHost: {}\r\nContent-Type: text/plain\r\n", hub.address);
    let body = "x".repeat(SIZE);
    let known_length = format!("{head}Content-Length: {SIZE}\r\n\r\n{body}");
    let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{SIZE:x}\r\n{body}\r\n0\r\n\r\n");
    for (kind, request) in [("of known length", known_length), ("chunked", chunked)] {
        // Buffers and timing may hide a reset, but not ten times.
        for _ in 0..10 {
            let cut_off = |error| panic!("a body {kind} is cut off: {error}");
            let mut stream = hub.connect();
            stream.write_all(request.as_bytes()).unwrap_or_else(cut_off);
            let mut stream = BufReader::new(stream);
            problem_past(&answer(&mut stream), 413, "body", 1024);
            // After a reset this fails; the read below says so.
            let _ = stream.get_ref().shutdown(Shutdown::Write);
            stream.read_to_end(&mut Vec::new()).map_or_else(cut_off, drop);
        }
    }
    assert!(hub.history("").is_empty());
});

on_each_journal!(bodies_beyond_the_memory_for_them_wait_and_are_503_in_the_end, {
    // A quarter of it is for bodies that are being read: five of these.
    let flags =
        ["--max-body", "1000", "--max-memory", "20000", "--body-timeout", "1h", "--min-body-rate", "0"];
    let hub = Hub::start(&flags);
    let request = post_text(hub.address, &"x".repeat(1000));
    let hold = || {
        let mut slow = BufReader::new(hub.connect());
        slow.get_mut().write_all(&request[..request.len() - 1]).unwrap();
        slow
    };
    let held: Vec<_> = (0..5).map(|_| hold()).collect();
    // A body of unknown length does not wait for long. There is no event for the hub's having read the heads
    // of
    // `held` but that it is refused.
    let head = "POST /messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n";
    let chunked = format!("{head}{}\r\n0\r\n\r\n", "x".repeat(1000));
    let deadline = Instant::now() + PATIENCE;
    let refused = loop {
        let response = hub.raw(&chunked);
        if response.status != 201 {
            break response;
        }
        assert!(Instant::now() < deadline, "no body is ever refused");
    };
    problem(&refused, 503);
    let seconds: u32 = refused.header("retry-after").expect("it says when").parse().unwrap();
    assert!(seconds > 0);
    // One of known length waits until there is memory.
    let waiting = hold();
    for mut slow in held.into_iter().chain([waiting]) {
        slow.get_mut().write_all(b"x").unwrap();
        assert_eq!(answer(&mut slow).status, 201);
    }
    assert_eq!(hub.raw(&chunked).status, 201);
});

on_each_journal!(behind_a_trusted_proxy_limits_count_for_the_address_it_asks_for, {
    let flags = ["--max-subscribers-per-address", "1", "--max-connections-per-address", "3"];
    let hub = Hub::start(&[&flags[..], &["--trust-proxy", "192.0.2.0/24,127.0.0.1"]].concat());
    let ada = ["X-Forwarded-For: 203.0.113.1"];
    let streams: Vec<_> = (1..6)
        .map(|number| hub.watch("/events", &[&format!("X-Forwarded-For: 198.51.100.9, 203.0.113.{number}")]))
        .collect();
    hub.wait_for_log(&["subscriber connected", "203.0.113.5:"]);
    let mut full = hub.open("/events", &ada);
    assert_eq!(full.event().unwrap().event, "tabcast:full");
    hub.wait_for_log(&["subscriber turned away", "203.0.113.1:"]);
    drop(streams);

    // Whoever else says so is not believed.
    let hub = Hub::start(&[&flags[..], &["--trust-proxy", "192.0.2.0/24"]].concat());
    let _first = hub.watch("/events", &ada);
    let mut full = hub.open("/events", &["X-Forwarded-For: 203.0.113.2"]);
    assert_eq!(full.event().unwrap().event, "tabcast:full");
    hub.wait_for_log(&["subscriber turned away", "127.0.0.1:"]);
});

on_each_journal!(the_address_that_a_trusted_proxy_asks_for_is_in_limits_problems_and_the_log, {
    let flags = ["--trust-proxy", "private", "--max-subscribers-per-address", "1"];
    let hub = Hub::start(&[&flags[..], &["--max-readers-per-address", "0"]].concat());
    for (headers, address, network) in [
        (&["X-Forwarded-For: 203.0.113.1:4711"][..], "203.0.113.1:4711", "203.0.113.1"),
        (
            &["X-Forwarded-For: 198.51.100.1", "X-Forwarded-For: 203.0.113.2, 10.0.0.1"],
            "203.0.113.2:0",
            "203.0.113.2",
        ),
        (&["X-Forwarded-For: 2001:db8:1::1"], "[2001:db8:1::1]:0", "2001:db8:1::/64"),
        (
            &["Forwarded: for=198.51.100.1, For=\"[2001:db8:2::1]:47\";proto=https"],
            "[2001:db8:2::1]:47",
            "2001:db8:2::/64",
        ),
        (&["Forwarded: for=\"203.0.113.4:_p\";host=\"a, for=198.51.100.1\""], "203.0.113.4:0", "203.0.113.4"),
        (&["X-Forwarded-For: 203.0.113.5, _hidden", "Forwarded: for=203.0.113.6"], "127.0.0.1:", "127.0.0.1"),
    ] {
        let _stream = hub.watch("/events", headers);
        hub.wait_for_log(&["subscriber connected", &format!("address={address}")]);
        let full = hub.open("/events", headers).event().unwrap();
        let detail = format!("the limit of subscribers from one address, 1, is reached by {network}");
        assert_eq!(full.json()["detail"], detail);
        hub.wait_for_log(&["subscriber turned away", &format!("address={address}"), &detail]);
        let problem = problem(&hub.send("GET", "/messages", headers, b""), 429);
        assert!(problem["detail"].as_str().unwrap().ends_with(&format!(" by {network}")), "{problem}");
    }
});

on_each_journal!(a_query_may_name_all_its_channels_and_no_more, {
    let hub = Hub::start(&["--max-channels", "64"]);
    let channels: Vec<_> = (0..64).map(|number| format!("channel=c{number}")).collect();
    let target = format!("/events?{}&last=5", channels.join("&"));
    hub.publish_to("c63", "kept");
    let mut stream = hub.watch(&target, &[]);
    hub.publish_to("c62", "live");
    assert_eq!([stream.data(), stream.data()], ["kept", "live"]);
    assert_eq!(problem(&hub.get(&format!("{target}{}", "&x=1".repeat(99))), 422)["limit"], 96);
});

on_each_journal!(a_body_that_does_not_arrive_in_time_is_given_up, {
    let hub = Hub::start(&["--body-timeout", "200ms"]);
    let request = post_text(hub.address, "never whole");
    problem(&hub.raw(&request[..request.len() - 1]), 408);
    problem(&hub.raw(&request[..request.len() - "never whole".len()]), 408);
    assert_eq!(hub.raw(&request).status, 201);
    assert_eq!(hub.history("").len(), 1);
});

// Names and JSON.

on_each_journal!(an_event_name_has_a_longest_length_in_bytes, {
    let hub = Hub::start(&["--max-event-name", "4"]);
    for name in ["abcd", "üü"] {
        assert_eq!(json_post(&hub, json!({"data": 1, "event": name}).to_string()).status, 201);
    }
    for name in ["abcde", "üüx"] {
        problem_past(&json_post(&hub, json!({"data": 1, "event": name}).to_string()), 422, "event", 4);
    }
    assert_eq!(hub.post("?event=abcd", "text/plain", "x").status, 201);
    problem_past(&hub.post("?event=abcde", "text/plain", "x"), 422, "event", 4);
    problem_past(&hub.post("", "application/x-www-form-urlencoded", "data=1&event=abcde"), 422, "event", 4);
});

on_each_journal!(a_channel_name_has_a_longest_length_wherever_it_is_given, {
    let hub = Hub::start(&["--max-channel-name", "4"]);
    assert_eq!(json_post(&hub, r#"{"data":1,"channel":"a.bc"}"#).status, 201);
    problem_past(&json_post(&hub, r#"{"data":1,"channel":"a.bcd"}"#), 422, "channel", 4);
    for target in ["/events", "/messages"] {
        problem_past(&hub.get(&format!("{target}?channel=abcd&channel=abcde")), 422, "channel", 4);
    }
    assert_eq!(hub.history("?channel=a.bc").len(), 1);
    assert!(hub.watch("/events?channel=a.bc&last=1", &[]).event().is_some());
});

on_each_journal!(a_subscriber_listens_to_so_many_channels_and_no_more, {
    let hub = Hub::start(&["--max-channels", "2"]);
    let mut stream = hub.watch("/events?channel=a&channel=b", &[]);
    for target in ["/events", "/messages"] {
        problem_past(&hub.get(&format!("{target}?channel=a&channel=b&channel=c")), 422, "channel", 2);
    }
    hub.publish_to("a", "to a");
    hub.publish_to("b", "to b");
    assert_eq!((stream.data(), stream.data()), ("to a".to_owned(), "to b".to_owned()));
});

on_each_journal!(patterns_have_so_many_tokens_together_and_no_more, {
    let hub = Hub::start(&["--max-channels", "20"]);
    let query = |patterns: usize, last: &str| {
        let patterns: Vec<_> = (0..patterns).map(|number| format!("channel={number}.b.c.%2A")).collect();
        format!("?{}&channel=a.name.of.five.tokens{last}", patterns.join("&"))
    };
    for path in ["/events", "/messages"] {
        // Of the names of channels, no token counts.
        assert_eq!(hub.send("HEAD", &format!("{path}{}", query(19, "")), &[], b"").status, 200);
        let over = format!("{path}{}", query(18, "&channel=a.b.c.d.e.f.g.h.%3E"));
        problem_past(&hub.get(&over), 422, "channel", 80);
    }
    // One pattern of the longest length.
    let hub = Hub::start(&["--max-channels", "1"]);
    let longest = format!("channel={}%2A", "a.".repeat(63));
    assert_eq!(hub.get(&format!("/messages?{longest}")).status, 200);
});

on_each_journal!(json_data_nests_so_deep_and_no_deeper, {
    let hub = Hub::start(&["--max-json-depth", "2"]);
    for data in ["1", "[[]]", r#"[{"a":1},{"b":2}]"#, r#"[["[[[[ \" {{{{"]]"#] {
        assert_eq!(json_post(&hub, format!("{{\"data\":{data}}}")).status, 201, "{data}");
    }
    for data in ["[[[]]]", r#"{"a":{"b":[]}}"#, r#"[[1],{"a":[2]}]"#] {
        problem_past(&json_post(&hub, format!("{{\"data\":{data}}}")), 422, "data", 2);
    }
    let hub = Hub::start(&["--max-json-depth", "0"]);
    assert_eq!(json_post(&hub, r#"{"data":"flat"}"#).status, 201);
    problem_past(&json_post(&hub, r#"{"data":[]}"#), 422, "data", 0);
});

on_each_journal!(no_depth_of_json_ends_the_hub, {
    let hub = Hub::start(&[]);
    let depth = 200_000;
    let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    problem_past(&json_post(&hub, format!("{{\"data\":{deep}}}")), 422, "data", 64);
    problem_of(&json_post(&hub, format!("{{\"data\":1,\"other\":{deep}}}")), 422, "other");
    problem_of(&json_post(&hub, format!("{{\"data\":1,\"event\":{deep}}}")), 422, "event");
    problem(&json_post(&hub, &deep), 422);
    problem(&json_post(&hub, format!("{{\"data\":{}", "[".repeat(depth))), 400);

    let hub = Hub::start(&["--max-json-depth", "1000000"]);
    assert_eq!(json_post(&hub, format!("{{\"data\":{deep}}}")).status, 201);
    let body = hub.get("/messages?last=1").body;
    assert!(body.windows(deep.len()).any(|window| window == deep.as_bytes()));
});

// Subscribers and connections.

/// Checks the answer to a subscriber beyond a limit: a 200 with a `retry`, the reason, and an end.
fn assert_full(hub: &Hub, reason: &str) {
    let full = hub.get("/events");
    assert_eq!((full.status, full.header("content-type")), (200, Some("text/event-stream")));
    let blocks: Vec<_> = full.text().split_inclusive("\n\n").collect();
    assert_eq!(blocks.len(), 2, "{blocks:?}");
    let retry = blocks[0].lines().find_map(|line| line.strip_prefix("retry: ")).expect("it may reconnect");
    // Later than for a subscriber within the limits: that range ends at 4 s by default.
    assert!(retry.parse::<u32>().unwrap() > 4_000, "{retry}");
    let event = common::parse_event(blocks[1]);
    assert_eq!((&*event.event, &*event.id), ("tabcast:full", ""));
    assert!(event.json()["detail"].as_str().unwrap().contains(reason), "{event:?}");
}

on_each_journal!(a_subscriber_beyond_the_limit_gets_the_reason_and_a_stream_once_another_leaves, {
    let hub = Hub::start(&["--max-subscribers", "2"]);
    let mut first = hub.watch("/events", &[]);
    let second = hub.watch("/events", &[]);
    assert_full(&hub, "the limit of subscribers, 2,");
    assert_full(&hub, "the limit of subscribers, 2,");
    let full = hub.send("GET", "/events", &["Accept: application/x-ndjson"], b"");
    assert_eq!((full.status, full.header("content-type")), (200, Some("application/x-ndjson")));
    assert!(full.text().ends_with('\n') && full.text().lines().count() == 1, "{}", full.text());
    assert_eq!(full.json()["event"], "tabcast:full");

    drop(second);
    hub.wait_for_log(&["subscriber disconnected"]);
    let mut third = hub.watch("/events", &[]);
    assert_full(&hub, "the limit of subscribers, 2,");
    hub.publish("for both");
    assert_eq!([first.data(), third.data()], ["for both", "for both"]);
});

on_each_journal!(one_address_has_only_so_many_subscribers, {
    let hub = Hub::start(&["--max-subscribers-per-address", "1"]);
    let first = hub.watch("/events", &[]);
    assert_full(&hub, "the limit of subscribers from one address, 1,");
    drop(first);
    hub.wait_for_log(&["subscriber disconnected"]);
    let mut second = hub.watch("/events", &[]);
    hub.publish("again");
    assert_eq!(second.data(), "again");
});

on_each_journal!(another_address_may_have_as_many_subscribers, {
    let flags = ["--max-subscribers-per-address", "1", "--anonymous", "all"];
    let hub = Hub::start_at(SocketAddr::from(([0, 0, 0, 0], 0)), &flags);
    // All of 127.0.0.0/8 is this machine. A connection to one of its addresses comes from that address.
    let port = hub.address.port();
    let watch = |address: &str| {
        let mut stream = TcpStream::connect((address, port)).unwrap();
        stream.write_all(&request("GET /events HTTP/1.1", hub.address, &["Host: localhost"], None)).unwrap();
        stream
    };
    let _first = watch("127.0.0.1");
    hub.wait_for_logs(&["subscriber connected"], 1);
    let _turned_away = watch("127.0.0.1");
    hub.wait_for_log(&["subscriber turned away", "127.0.0.1:"]);
    // If the kernel gives both the same source address, there is no second address to test with.
    let other = watch("127.0.0.2");
    if other.local_addr().unwrap().ip().to_string() != "127.0.0.1" {
        hub.wait_for_logs(&["subscriber connected"], 2);
    }
});

on_each_journal!(head_is_not_counted_as_a_subscriber, {
    let hub = Hub::start(&["--max-subscribers", "1"]);
    let connections: Vec<_> = (0..3)
        .map(|_| {
            let mut connection = BufReader::new(hub.connect());
            let request = request("HEAD /events HTTP/1.1", hub.address, &[], None);
            connection.get_mut().write_all(&request).unwrap();
            let head = Response::read(&mut connection, true);
            assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
            connection
        })
        .collect();
    let mut stream = hub.watch("/events", &[]);
    hub.publish("for the only subscriber");
    assert_eq!(stream.data(), "for the only subscriber");
    assert_eq!(hub.wait_for_logs(&["subscriber connected"], 1).len(), 1);
    drop(connections);
});

on_each_journal!(a_connection_beyond_the_limit_waits_until_another_closes, {
    let hub = Hub::start(&["--max-connections", "1"]);
    let mut first = BufReader::new(hub.connect());
    let mut publish_first = |text: &str| {
        first.get_mut().write_all(&post_text(hub.address, text)).unwrap();
        assert_eq!(answer(&mut first).status, 201);
    };
    publish_first("0");
    let mut second = BufReader::new(hub.connect());
    second.get_mut().write_all(&post_text(hub.address, "waits")).unwrap();
    // `second` was sent before all of these, and is answered after them.
    for number in 1..=50 {
        publish_first(&number.to_string());
    }
    drop(first);
    assert_eq!(answer(&mut second).status, 201);
    drop(second);
    let expected: Vec<_> = (0..=50).map(|number| number.to_string()).chain(["waits".to_owned()]).collect();
    assert_eq!(hub.history_data(""), expected);
});

// Times.

on_each_journal!(a_connection_that_sends_nothing_is_closed, {
    let hub = Hub::start(&["--header-timeout", "200ms"]);
    wait_for_close(&hub.connect());
});

on_each_journal!(a_head_that_comes_byte_by_byte_is_not_waited_for, {
    let hub = Hub::start(&["--header-timeout", "300ms"]);
    let mut stream = hub.connect();
    stream.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut head = b"GET /messages HTTP/1.1\r\nX: ".iter().copied().chain(std::iter::repeat(b'x'));
    loop {
        assert!(Instant::now() < deadline, "every byte buys it more time");
        if stream.write_all(&[head.next().unwrap()]).is_err() {
            break;
        }
        match stream.read(&mut [0; 1024]) {
            Ok(0) => break,
            Ok(_some_answer) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_reset) => break,
        }
    }
});

on_each_journal!(half_a_head_is_not_waited_for, {
    let hub = Hub::start(&["--header-timeout", "200ms"]);
    let mut stream = hub.connect();
    stream.write_all(b"GET /messages HTTP/1.1\r\nHost: loc").unwrap();
    wait_for_close(&stream);
});

on_each_journal!(an_idle_connection_is_closed_after_its_answer, {
    let hub = Hub::start(&["--idle-timeout", "200ms", "--header-timeout", "1h"]);
    let mut connection = BufReader::new(hub.connect());
    for text in ["one", "two"] {
        connection.get_mut().write_all(&post_text(hub.address, text)).unwrap();
        assert_eq!(answer(&mut connection).status, 201);
    }
    wait_for_close(connection.get_ref());
});

on_each_journal!(a_connection_between_two_requests_outlives_the_time_limit_of_a_head, {
    let hub = Hub::start(&["--header-timeout", "100ms", "--idle-timeout", "1h"]);
    let mut connection = BufReader::new(hub.connect());
    for text in ["one", "two", "three"] {
        connection.get_mut().write_all(&post_text(hub.address, text)).unwrap();
        assert_eq!(answer(&mut connection).status, 201);
        // That takes as long as a head may.
        wait_for_close(&hub.connect());
    }
    // A head that has begun is not waited for longer than the first.
    connection.get_mut().write_all(b"GET /messages HTTP/1.1\r\nHost: loc").unwrap();
    wait_for_close(connection.get_ref());
});

on_each_journal!(half_a_head_behind_a_whole_request_is_waited_for_no_longer_than_the_next_request, {
    let hub = Hub::start(&["--idle-timeout", "200ms", "--header-timeout", "200ms"]);
    let mut connection = BufReader::new(hub.connect());
    let mut bytes = post_text(hub.address, "whole");
    bytes.extend(b"GET /messages HTTP/1.1\r\nHost: loc");
    connection.get_mut().write_all(&bytes).unwrap();
    assert_eq!(answer(&mut connection).status, 201);
    wait_for_close(connection.get_ref());
});

on_each_journal!(a_stream_outlives_the_time_limits_of_requests, {
    let times = ["--header-timeout", "20ms", "--body-timeout", "20ms", "--idle-timeout", "20ms"];
    let hub = Hub::start(&[&times[..], &["--keep-alive", "20ms"]].concat());
    let mut stream = hub.watch("/events", &[]);
    for _ in 0..10 {
        assert_eq!(stream.block().as_deref(), Some(":\n\n"));
    }
});

on_each_journal!(an_idle_stream_is_kept_alive, {
    let hub = Hub::start(&["--keep-alive", "20ms"]);
    let mut stream = hub.watch("/events", &[]);
    assert_eq!(stream.block().as_deref(), Some(":\n\n"));
    let mut lines = hub.open("/events", &["Accept: application/x-ndjson"]);
    assert_eq!(lines.line().as_deref(), Some("\n"));
    let id = hub.publish("between");
    assert_eq!(stream.event().unwrap().id, id);
    assert_eq!(stream.block().as_deref(), Some(":\n\n"));
});

on_each_journal!(a_subscriber_that_reads_nothing_is_cut_off_and_others_are_not, {
    let hub = Hub::start(&["--stall-timeout", "500ms"]);
    let _reads_nothing = hub.watch_without_reading("/events");
    let stalled = hub.wait_for_log(&["subscriber connected"]);
    let number =
        stalled.split_whitespace().find(|field| field.starts_with("subscriber=")).unwrap().to_owned();
    let mut reads = hub.watch("/events", &[]);
    // More than the buffers of both sockets hold.
    let text = "x".repeat(1 << 20);
    for _ in 0..16 {
        hub.publish(&text);
        assert_eq!(reads.data().len(), text.len());
    }
    let line = hub.wait_for_log(&["subscriber disconnected"]);
    assert!(line.contains(&format!("{number} ")) && line.contains("reason=\"timed out\""), "{line}");
    hub.publish("still here");
    assert_eq!(reads.data(), "still here");
});

on_each_journal!(the_reconnection_time_is_drawn_from_its_range, {
    let hub = Hub::start(&["--retry-min", "500ms", "--retry-max", "520ms"]);
    let times: Vec<u32> = (0..60)
        .map(|_| {
            let opening = hub.watch("/events", &[]).opening;
            opening.lines().find_map(|line| line.strip_prefix("retry: ")).unwrap().parse().unwrap()
        })
        .collect();
    assert!(times.iter().all(|time| (500..=520).contains(time)), "{times:?}");
    assert!(times.iter().any(|time| *time != times[0]), "{times:?}");

    let hub = Hub::start(&["--retry-min", "2s", "--retry-max", "2s"]);
    assert!(hub.watch("/events", &[]).opening.contains("\nretry: 2000\n"));
});

// What is kept.

on_each_journal!(only_so_many_messages_are_kept, {
    let hub = Hub::start(&["--retention-messages", "3"]);
    let ids: Vec<_> = (1..=3).map(|number| hub.publish(&number.to_string())).collect();
    assert_eq!(hub.history_data(""), ["1", "2", "3"]);
    hub.publish("4");
    assert_eq!(hub.history_data(""), ["2", "3", "4"]);
    // No message after the first is dropped yet.
    let mut stream = hub.watch("/events", &[&format!("Last-Event-ID: {}", ids[0])]);
    assert_eq!((stream.data(), stream.data(), stream.data()), ("2".into(), "3".into(), "4".into()));
    hub.publish("5");
    let mut stream = hub.watch("/events", &[&format!("Last-Event-ID: {}", ids[0])]);
    let gap = stream.event().unwrap();
    assert_eq!((&*gap.event, &gap.json()), ("tabcast:gap", &json!({"asked": ids[0], "earliest": ids[2]})));
    assert_eq!(stream.data(), "3");
});

#[test]
fn kept_messages_take_only_so_much_memory() {
    let hub = Hub::start(&["--retention-bytes", "64KiB", "--journal", "memory"]);
    let text = |number: usize| format!("{number:05}{}", "x".repeat(3_995));
    let first = hub.publish(&text(0));
    hub.publish(&text(1));
    assert_eq!(hub.history_data(""), [text(0), text(1)]);
    for number in 2..100 {
        hub.publish(&text(number));
    }
    let kept = hub.history_data("");
    assert!(kept.len() >= 2 && kept.len() * 4_000 <= 64 << 10, "{} are kept", kept.len());
    let newest: Vec<_> = (100 - kept.len()..100).map(text).collect();
    assert_eq!(kept, newest);
    let gap = hub.get(&format!("/messages?after={first}")).json()["gap"].clone();
    assert_eq!(gap["asked"], first);

    // A message larger than the limit was acknowledged, so it is kept, and no other is.
    let large = "y".repeat(100_000);
    hub.publish(&large);
    assert_eq!(hub.history_data(""), [large]);
}

on_each_journal!(a_page_of_history_has_a_limit_and_a_replay_has_none, {
    let hub = Hub::start(&["--replay-page", "2"]);
    (1..=5).for_each(|number| drop(hub.publish(&number.to_string())));
    assert_eq!(hub.history_data(""), ["4", "5"]);
    for parameter in ["last", "limit"] {
        assert_eq!(hub.get(&format!("/messages?{parameter}=2")).status, 200);
        problem_past(&hub.get(&format!("/messages?{parameter}=3")), 422, parameter, 2);
    }
    let mut stream = hub.watch("/events?last=5", &[]);
    for number in 1..=5 {
        assert_eq!(stream.data(), number.to_string());
    }
});

on_each_journal!(only_so_many_idempotency_keys_are_remembered, {
    let id = |response: Response| response.json()["id"].clone();
    // A journal in a file also remembers the keys of the messages it keeps.
    let hub = Hub::start(&["--idempotency-keys", "2", "--journal", "memory"]);
    let (a, b) = (id(with_key(&hub, "a", "x")), id(with_key(&hub, "b", "x")));
    assert_eq!((id(with_key(&hub, "a", "x")), id(with_key(&hub, "b", "x"))), (a.clone(), b.clone()));
    id(with_key(&hub, "c", "x"));
    assert_eq!(id(with_key(&hub, "b", "x")), b);
    assert_ne!(id(with_key(&hub, "a", "x")), a);

    let hub = Hub::start(&["--idempotency-keys", "0"]);
    let first = id(with_key(&hub, "a", "x"));
    assert_ne!(id(with_key(&hub, "a", "x")), first);
    assert_eq!(with_key(&hub, "a", "y").status, 201);
});

on_each_journal!(an_idempotency_key_is_forgotten_after_its_window, {
    let hub = Hub::start(&["--idempotency-window", "100ms"]);
    let first = with_key(&hub, "key", "x");
    let deadline = Instant::now() + PATIENCE;
    // A retry within the window does not lengthen it.
    while with_key(&hub, "key", "x").body == first.body {
        assert!(Instant::now() < deadline, "it is never forgotten");
    }
    assert_eq!(hub.history("").len(), 2);
});

// Starting.

#[test]
fn a_port_that_is_taken_ends_the_start_with_1_and_says_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, said) = refused_start(&["--listen", &address], &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--listen") && said.contains(&address), "{said}");
    // The hub says so even if it logs nothing.
    let (code, said) = refused_start(&["--listen", &address, "--log-level", "off"], &[]);
    assert!(code == Some(1) && said.contains("--listen"), "{said}");
}

#[test]
fn a_bad_flag_ends_the_start_with_2_and_is_named() {
    for (flag, value) in [
        ("--listen", "nowhere"),
        ("--listen", "127.0.0.1:99999"),
        ("--allow-host", ""),
        ("--allow-origin", "example.org"),
        ("--allow-origin", "https://example.org/path"),
        ("--retention-messages", "-1"),
        ("--retention-bytes", "plenty"),
        ("--idempotency-keys", "many"),
        ("--idempotency-window", "soon"),
        ("--max-body", "1 furlong"),
        ("--max-memory", "x"),
        ("--min-body-rate", "x"),
        ("--max-readers", "x"),
        ("--trust-proxy", "10.0.0.0/33"),
        ("--max-readers-per-address", "x"),
        ("--max-connections-per-address", "0"),
        ("--max-event-name", "1.5"),
        ("--max-channel-name", "x"),
        ("--max-channels", ""),
        ("--max-json-depth", "-1"),
        ("--max-subscribers", "x"),
        ("--max-subscribers-per-address", "x"),
        ("--max-connections", "0"),
        ("--replay-page", "0"),
        ("--header-timeout", "10"),
        ("--header-timeout", "0s"),
        ("--idle-timeout", "0s"),
        ("--body-timeout", "0s"),
        ("--stall-timeout", "0s"),
        ("--keep-alive", "0s"),
        ("--retry-min", "499ms"),
        ("--retry-max", "0s"),
        ("--log-level", "loud"),
        ("--no-such-flag", "x"),
    ] {
        // As `--flag=value`: a value of its own that begins with a dash would be taken for a flag.
        let argument = format!("{flag}={value}");
        let arguments: &[&str] =
            if flag == "--listen" { &[&argument] } else { &["--listen", "127.0.0.1:0", &argument] };
        let (code, said) = refused_start(arguments, &[]);
        assert_eq!(code, Some(2), "{argument}: {said}");
        assert!(said.contains(flag), "{argument}: {said}");
    }
}

#[test]
fn a_bad_environment_variable_ends_the_start_with_2_and_its_flag_is_named() {
    let listen = ("TABCAST_LISTEN", "127.0.0.1:0");
    let (code, said) = refused_start(&[], &[listen, ("TABCAST_MAX_CONNECTIONS", "0")]);
    assert!(code == Some(2) && said.contains("--max-connections"), "{said}");
    let (code, said) = refused_start(&[], &[listen, ("TABCAST_RETRY_MIN", "100ms")]);
    assert!(code == Some(2) && said.contains("--retry-min") && said.contains("500ms"), "{said}");
}

#[test]
fn settings_that_contradict_each_other_end_the_start_with_2() {
    let listen = ["--listen", "127.0.0.1:0"];
    let (code, said) =
        refused_start(&[&listen[..], &["--retry-min", "5s", "--retry-max", "4s"]].concat(), &[]);
    assert!(code == Some(2) && said.contains("--retry-min") && said.contains("--retry-max"), "{said}");
    let flags = ["--max-body", "2MiB", "--max-memory", "39MiB"];
    let (code, said) = refused_start(&[&listen[..], &flags].concat(), &[]);
    assert!(code == Some(2) && said.contains("--max-body") && said.contains("--max-memory"), "{said}");
}

// Bad input.

on_each_journal!(a_request_head_has_a_longest_length, {
    let hub = Hub::start(&[]);
    let head = |length: usize| {
        format!("GET / HTTP/1.1\r\nHost: localhost\r\nCookie: {}\r\n\r\n", "c".repeat(length))
    };
    assert_eq!(hub.raw(head(16 << 10)).status, 200);
    let refused = hub.raw(head(1 << 20));
    assert!((400..500).contains(&refused.status), "{refused:?}");
    let refused = hub.raw(format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "p".repeat(1 << 20)));
    assert!((400..500).contains(&refused.status), "{refused:?}");
    let many: String = (0..10_000).map(|number| format!("X{number}: y\r\n")).collect();
    let refused = hub.raw(format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"));
    assert!((400..500).contains(&refused.status), "{refused:?}");
});

on_each_journal!(json_that_can_not_be_read_is_400, {
    let hub = Hub::start(&[]);
    for body in [
        "",
        "{",
        r#"{"data":}"#,
        r#"{"data":1}x"#,
        r#"{"data":1,}"#,
        r#"{'data':1}"#,
        r#"{"data":01}"#,
        r#"{"data":nul}"#,
        r#"{"data":NaN}"#,
        r#"{"data":"\x"}"#,
        r#"{"data":["\ud8"]}"#,
        "{\"data\":\"a\nb\"}",
        "{\"data\":[\"a\rb\"]}",
        "{\"data\":[\"a\0b\"]}",
        r#"{"data":1}{"data":2}"#,
    ] {
        problem(&json_post(&hub, body), 400);
    }
    assert!(hub.history("").is_empty());
});

on_each_journal!(what_is_not_utf8_is_400, {
    let hub = Hub::start(&[]);
    let form = "application/x-www-form-urlencoded";
    for (content_type, body) in [
        ("text/plain", &b"\xff"[..]),
        ("text/plain", b"\xed\xa0\x80"),
        ("text/plain", b"torn \xf0\x9f\x8e"),
        (form, b"\xff"),
        (form, b"data=\xff"),
        (form, b"data=%ff"),
        (form, b"data=1&event=%c3"),
        ("application/json", b"{\"data\":\"\xff\"}"),
        ("application/json", b"{\"data\":[\"\xff\"]}"),
        ("application/json", b"{\"data\":{\"\xff\":1}}"),
        ("application/json", b"{\"data\":1,\"\xff\":1}"),
        ("application/json", b"{\"data\":1,\"event\":\"\xff\"}"),
    ] {
        problem(&hub.post("", content_type, body), 400);
    }
    problem(&hub.post("?event=%ff", "text/plain", "x"), 400);
    problem(&hub.post("?%ff=x", "text/plain", "x"), 400);
    problem(&hub.get("/events?channel=%ff"), 400);
    problem(&hub.get("/messages?after=%ff"), 400);
    assert!(hub.history("").is_empty());
});

on_each_journal!(json_that_is_no_object_is_422, {
    let hub = Hub::start(&[]);
    for body in ["[]", "1", "null", "true", r#""data""#, r#"[{"data":1}]"#] {
        problem(&json_post(&hub, body), 422);
    }
    assert!(hub.history("").is_empty());
});

on_each_journal!(an_unknown_field_is_422_and_named, {
    let hub = Hub::start(&[]);
    problem_of(&json_post(&hub, r#"{"data":1,"evnet":"x"}"#), 422, "evnet");
    problem_of(&json_post(&hub, r#"{"Data":1}"#), 422, "Data");
    problem_of(&json_post(&hub, r#"{"data":1,"":1}"#), 422, "");
    problem_of(&json_post(&hub, r#"{"data":1,"id":"mine"}"#), 422, "id");
    problem_of(&hub.post("?evnet=x", "application/x-www-form-urlencoded", "data=1"), 422, "evnet");
    problem_of(&hub.post("?evnet=x", "text/plain", "x"), 422, "evnet");
    problem_of(&hub.post("?data=x", "text/plain", "x"), 422, "data");
    problem_of(&hub.post("?evnet=x", "image/png", "x"), 422, "evnet");
    problem_of(&hub.post("?evnet=x", "application/json", r#"{"data":1}"#), 422, "evnet");
    problem_of(&hub.post("?evnet=x", "application/x-ndjson", r#"{"data":1}"#), 422, "evnet");
    problem_of(&hub.get("/messages?lasst=1"), 422, "lasst");
    problem_of(&hub.get("/messages?format=message"), 422, "format");
    assert_eq!(hub.send("HEAD", "/messages?lasst=1", &[], b"").status, 422);

    // The answer has only the beginning of a long name, and only the first of a thousand.
    let long = "n".repeat(100_000);
    let answer = json_post(&hub, format!("{{\"data\":1,\"{long}\":1}}"));
    assert!(answer.body.len() < 1_000 && problem(&answer, 422)["field"].as_str().unwrap().starts_with("nnn"));
    let many: String = (0..1_000).map(|number| format!(",\"f{number}\":1")).collect();
    problem_of(&json_post(&hub, format!("{{\"data\":1{many}}}")), 422, "f0");
    assert!(hub.history("").is_empty());
});

on_each_journal!(missing_data_is_422, {
    let hub = Hub::start(&[]);
    problem_of(&json_post(&hub, "{}"), 422, "data");
    problem_of(&json_post(&hub, r#"{"event":"x","channel":"y"}"#), 422, "data");
    assert!(hub.history("").is_empty());
});

on_each_journal!(a_field_that_is_there_twice_is_422, {
    let hub = Hub::start(&[]);
    let form = |query: &str, body: &str| hub.post(query, "application/x-www-form-urlencoded", body);
    problem_of(&json_post(&hub, r#"{"data":1,"data":1}"#), 422, "data");
    problem_of(&json_post(&hub, r#"{"data":1,"d\u0061ta":1}"#), 422, "data");
    for field in ["event", "channel", "except"] {
        problem_of(&json_post(&hub, format!(r#"{{"data":1,"{field}":"a","{field}":"a"}}"#)), 422, field);
        problem_of(&form("", &format!("data=1&{field}=a&{field}=a")), 422, field);
        problem_of(&form(&format!("?{field}=a"), &format!("data=1&{field}=a")), 422, field);
        problem_of(&hub.post(&format!("?{field}=a&{field}=a"), "text/plain", "x"), 422, field);
    }
    problem_of(&form("", "data=1&data=2"), 422, "data");
    for parameter in ["last", "as", "format"] {
        problem_of(&hub.get(&format!("/events?{parameter}=1&{parameter}=1")), 422, parameter);
    }
    for parameter in ["after", "last", "limit", "as"] {
        problem_of(&hub.get(&format!("/messages?{parameter}=1&{parameter}=1")), 422, parameter);
    }
    problem_of(&hub.get("/messages?after=x&last=1"), 422, "last");
    assert!(hub.history("").is_empty());
});

on_each_journal!(a_field_of_a_wrong_type_is_422, {
    let hub = Hub::start(&[]);
    for field in ["event", "channel", "except"] {
        for value in ["1", "null", "true", "[]", "{}", r#"["a"]"#] {
            problem_of(&json_post(&hub, format!(r#"{{"data":1,"{field}":{value}}}"#)), 422, field);
        }
    }
    // Half a surrogate pair is JSON, but not text.
    problem_of(&json_post(&hub, r#"{"data":"\ud800"}"#), 422, "data");
    assert!(hub.history("").is_empty());
});

/// Percent-encoded, as a query or the body of a form has it.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

on_each_journal!(a_bad_name_is_422_wherever_it_is_given, {
    let hub = Hub::start(&[]);
    let long = "n".repeat(129);
    let events = [
        "",
        &*long,
        "a\nb",
        "a\rb",
        "\0",
        "a\tb",
        "\u{7f}",
        "\u{85}",
        "\u{2028}",
        "\u{202e}x",
        "tabcast:gap",
    ];
    let events = events.into_iter().chain(["tabcast:", "tabcast:mine"]).map(|name| ("event", name));
    let channels = ["", &*long, "a b", "a..b", ".a", "a.", "a*", ">.a", "\u{a0}", "\u{202e}", "a\n", "\0"]
        .into_iter()
        .map(|name| ("channel", name));
    let excepts = ["", &long[..65], "a b", "ü", "a\n", "\0"].into_iter().map(|name| ("except", name));
    for (field, name) in events.chain(channels).chain(excepts) {
        let limit = match field {
            "except" => 64,
            _ => 128,
        };
        let query = format!("{field}={}", encoded(name));
        let mut object = json!({"data": 1});
        object[field] = name.into();
        for answer in [
            json_post(&hub, object.to_string()),
            hub.post(&format!("?{query}"), "text/plain", "x"),
            hub.post(&format!("?{query}"), "image/png", "x"),
            hub.post("", "application/x-www-form-urlencoded", format!("data=1&{query}")),
        ] {
            let problem = problem_of(&answer, 422, field);
            let past = (name.len() > 64).then_some(limit);
            assert_eq!(problem.get("limit").and_then(Value::as_u64), past, "{problem}");
        }
        if field == "channel" {
            problem_of(&hub.get(&format!("/events?{query}")), 422, "channel");
            problem_of(&hub.get(&format!("/messages?channel=fine&{query}")), 422, "channel");
        }
        if field == "except" {
            let query = format!("as={}", encoded(name));
            problem_of(&hub.get(&format!("/events?{query}")), 422, "as");
            problem_of(&hub.get(&format!("/messages?{query}")), 422, "as");
        }
    }
    assert!(hub.history("").is_empty());
    // The longest names that are taken.
    let (name, id) = (&long[..128], &long[..64]);
    assert_eq!(
        json_post(&hub, json!({"data": 1, "event": name, "channel": name, "except": id}).to_string()).status,
        201
    );
    assert_eq!(hub.get(&format!("/messages?as={}", &long[1..64])).status, 200);
});

on_each_journal!(a_bad_number_or_format_is_422, {
    let hub = Hub::start(&[]);
    for number in ["", "-1", "%2B1", "1.5", "x", "0x10", "%201", "99999999999999999999999", "%D9%A1"] {
        problem_of(&hub.get(&format!("/events?last={number}")), 422, "last");
        problem_of(&hub.get(&format!("/messages?last={number}")), 422, "last");
        problem_of(&hub.get(&format!("/messages?limit={number}")), 422, "limit");
    }
    for format in ["", "xml", "Message", "json"] {
        problem_of(&hub.get(&format!("/events?format={format}")), 422, "format");
    }
    assert_eq!(hub.get("/messages?last=0").json()["messages"], json!([]));
});

on_each_journal!(a_body_of_a_type_that_is_not_taken_is_415, {
    let hub = Hub::start(&[]);
    let long = format!("text/{}", "x".repeat(300));
    for content_type in [
        "multipart/form-data",
        "Multipart/Mixed; boundary=x",
        "text/plain; charset=iso-8859-1",
        "text/csv; charset=utf-16",
        "application/x-ndjson; charset=utf-16",
        "text/plain;charset=\"UTF-16\"",
        "application/json; charset=utf-16",
        "application/x-www-form-urlencoded; charset=latin1",
        "",
        "text",
        "text/",
        "/plain",
        "text/plain; charset",
        "te xt/plain",
        "text/plain, text/plain",
        "text/html\"><script>",
        "*/*; q=\"\\\"\"",
        &long,
    ] {
        problem_of(&hub.post("", content_type, "data=1"), 415, "Content-Type");
    }
    assert!(hub.history("").is_empty());
    for content_type in
        ["text/plain; charset=UTF-8", "TEXT/PLAIN", "text/plain ; charset=\"utf-8\"", "text/plain;"]
    {
        assert_eq!(hub.post("", content_type, "x").status, 201, "{content_type}");
    }
    assert_eq!(hub.history_data(""), ["x", "x", "x", "x"]);
});

on_each_journal!(a_method_that_a_path_does_not_have_is_405_with_those_it_has, {
    let hub = Hub::start(&[]);
    let page = ["/", "/app.css", "/app.js", "/icon.svg", "/hub", "/hub/app.js"];
    let files = page.into_iter().chain(["/tabcast.js", "/tabcast.src.js", "/tabcast.d.ts", "/io.js"]);
    let files = files.map(|path| (path, "GET,HEAD"));
    for (path, allowed) in files.chain([("/messages", "GET,HEAD,POST"), ("/events", "GET,HEAD")]) {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE"] {
            if allowed.split(',').any(|allowed| allowed == method) {
                continue;
            }
            let refused = hub.send(method, path, &[], b"");
            let problem = problem(&refused, 405);
            assert!(problem["detail"].as_str().unwrap().contains(method), "{problem}");
            let mut answered: Vec<_> =
                refused.header("allow").expect("Allow").split(',').map(str::trim).collect();
            answered.sort_unstable();
            assert_eq!(answered.join(","), allowed, "{method} {path}");
        }
    }
});

on_each_journal!(a_path_that_nothing_has_is_404, {
    let hub = Hub::start(&[]);
    for path in [
        "/nothing",
        "/events/1/2",
        "/messages/1/2",
        "//",
        "/index.html",
        "/../Cargo.toml",
        "/%2e%2e/Cargo.toml",
    ] {
        problem(&hub.get(path), 404);
        problem(&hub.send("POST", path, &[], b"x"), 404);
    }
});

on_each_journal!(a_bad_idempotency_key_is_400, {
    let hub = Hub::start(&[]);
    let long = "k".repeat(256);
    for key in ["", "a b", "ü", "a\tb", "\u{80}"] {
        let problem = problem_of(&with_key(&hub, key, "x"), 400, "Idempotency-Key");
        assert!(problem.get("limit").is_none(), "{problem}");
    }
    problem_past(&with_key(&hub, &long, "x"), 400, "Idempotency-Key", 255);
    let twice = ["Idempotency-Key: a", "Idempotency-Key: a", "Content-Type: text/plain"];
    problem_of(&hub.send("POST", "/messages", &twice, b"x"), 400, "Idempotency-Key");
    assert!(hub.history("").is_empty());
    assert_eq!(with_key(&hub, &long[1..], "x").status, 201);
});
