//! Connections: how long they stay open, what says that they close, and those of HTTP/1.0.

mod common;

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use common::{Folder, Hub, Response, Stream, on_each_journal, post_text, request};

/// A connection on which these bytes were sent.
fn send(hub: &Hub, bytes: impl AsRef<[u8]>) -> BufReader<TcpStream> {
    let mut connection = hub.connect();
    connection.write_all(bytes.as_ref()).unwrap();
    BufReader::new(connection)
}

fn answer(connection: &mut BufReader<TcpStream>) -> Response {
    Response::read(connection, false)
}

/// Checks that nothing comes but the end.
fn assert_closed(mut connection: BufReader<TcpStream>) {
    let mut rest = Vec::new();
    connection.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
}

// HTTP/1.0.

on_each_journal!(every_answer_in_http_1_0_has_a_length_so_that_its_connection_can_stay_open, {
    let hub = Hub::start(&[]);
    let text = "x".repeat(1_000);
    for _ in 0..20 {
        hub.publish(&text);
    }
    let mut connection = BufReader::new(hub.connect());
    for target in ["/messages?last=20", "/messages", "/", "/tabcast.js", "/nowhere", "/messages?last=x"] {
        for method in ["GET", "HEAD"] {
            let request_line = format!("{method} {target} HTTP/1.0");
            let asked = request(&request_line, hub.address, &["Connection: keep-alive"], None);
            connection.get_mut().write_all(&asked).unwrap();
            let response = Response::read(&mut connection, method == "HEAD");
            assert_eq!(response.header("connection"), Some("keep-alive"), "{request_line}");
            assert_eq!(response.header("transfer-encoding"), None, "{request_line}");
            if method == "GET" {
                assert_eq!(response.header("content-length"), Some(&*response.body.len().to_string()));
            }
        }
    }
    let headers = ["Connection: keep-alive", "Content-Type: text/plain"];
    for _ in 0..2 {
        let post = request("POST /messages HTTP/1.0", hub.address, &headers, Some(b"old"));
        connection.get_mut().write_all(&post).unwrap();
        assert_eq!(answer(&mut connection).status, 201);
    }
});

// Of `ab`, which asks in HTTP/1.0.
on_each_journal!(a_load_generator_keeps_its_connections, {
    let hub = Hub::start(&["--hide-data"]);
    (0..20).for_each(|_| drop(hub.publish("kept")));
    let folder = Folder::new();
    let body = folder.file("body");
    std::fs::write(&body, "Hello World!").unwrap();
    let get = ["-k", "-q", "-n", "200", "-c", "4"];
    let post = [&get[..], &["-p", &body, "-T", "text/plain"]].concat();
    for (flags, target) in [(&get[..], "/messages?last=20"), (&get, "/tabcast.js"), (&post, "/messages")] {
        let url = format!("http://{}{target}", hub.address);
        let output =
            Command::new("ab").args(flags).arg(url).output().expect("tests/run installs apache2-utils");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let count = |what: &str| {
            let line = said.lines().find_map(|line| line.strip_prefix(what));
            line.unwrap_or_else(|| panic!("no {what} in {said} {output:?}")).trim().to_owned()
        };
        assert_eq!(count("Complete requests:"), "200");
        assert_eq!(count("Keep-Alive requests:"), "200", "{target}");
    }
});

on_each_journal!(an_answer_in_http_1_0_is_closed_unless_it_is_to_stay_open, {
    let hub = Hub::start(&[]);
    hub.publish("kept");
    let mut connection = send(&hub, request("GET /messages HTTP/1.0", hub.address, &[], None));
    let response = answer(&mut connection);
    assert_eq!(response.header("connection"), None);
    assert_eq!(response.header("content-length"), Some(&*response.body.len().to_string()));
    assert_closed(connection);
});

on_each_journal!(a_long_history_in_http_1_0_ends_with_its_connection, {
    let hub = Hub::start(&["--hide-data"]);
    let text = "x".repeat(100_000);
    for _ in 0..5 {
        hub.publish(&text);
    }
    let asked = request("GET /messages HTTP/1.0", hub.address, &["Connection: keep-alive"], None);
    let mut connection = send(&hub, asked);
    let response = answer(&mut connection);
    for header in ["connection", "content-length", "transfer-encoding"] {
        assert_eq!(response.header(header), None, "{header}");
    }
    assert_eq!(response.json()["messages"].as_array().unwrap().len(), 5);
});

on_each_journal!(a_stream_in_http_1_0_does_not_say_that_its_connection_stays_open, {
    let hub = Hub::start(&[]);
    let asked = request("GET /events HTTP/1.0", hub.address, &["Connection: keep-alive"], None);
    let mut stream = Stream::read(send(&hub, asked).into_inner());
    assert_eq!(stream.header("connection"), None);
    hub.publish("old but good");
    assert_eq!(stream.data(), "old but good");
});

// hyper has 10 kB and more for each connection that it serves, so this tells whether it still does.
on_each_journal!(a_subscriber_in_http_1_0_costs_as_little_as_another, {
    const COUNT: usize = 700;
    let hub = Hub::start(&["--hide-data"]);
    // As nginx asks, unless it is given another version.
    let asked = request("GET /events HTTP/1.0", hub.address, &["Connection: close"], None);
    let watch = || {
        let mut stream = Stream::read(send(&hub, &asked).into_inner());
        stream.block().unwrap();
        stream
    };
    let _warm: Vec<_> = (0..100).map(|_| watch()).collect();
    let before = hub.resident_bytes();
    let mut streams: Vec<_> = (0..COUNT).map(|_| watch()).collect();
    let each = hub.resident_bytes().saturating_sub(before) / COUNT;
    assert!(each < 5_000, "{each} bytes");
    hub.publish("to all");
    assert!(streams.iter_mut().all(|stream| stream.data() == "to all"));
});

// What says that a connection closes.

on_each_journal!(a_refusal_after_which_the_hub_closes_says_so, {
    let hub = Hub::start(&["--max-body", "10", "--body-timeout", "200ms"]);
    let too_long = post_text(hub.address, &"x".repeat(1_000_000));
    let never_whole = post_text(hub.address, "never");
    let expects = |length: &str, target: &str| {
        let headers = ["Expect: 100-continue", &format!("Content-Length: {length}")];
        request(&format!("POST {target} HTTP/1.1"), hub.address, &headers, None)
    };
    for (bytes, status) in [
        (&too_long[..1_000], 413),
        (&never_whole[..never_whole.len() - 1], 408),
        (&expects("5", "/nowhere"), 404),
        (&expects("11", "/messages"), 413),
        (b"no HTTP\r\n\r\n", 400),
    ] {
        let response = answer(&mut send(&hub, bytes));
        assert_eq!(response.status, status);
        assert_eq!(response.header("connection"), Some("close"), "{status}");
    }
});

on_each_journal!(a_refusal_of_a_request_that_is_there_whole_leaves_the_connection_open, {
    let hub = Hub::start(&["--max-body", "10"]);
    let mut connection = BufReader::new(hub.connect());
    let refused = [
        ("/messages", "Content-Type: text/plain", "x".repeat(11), 413),
        ("/messages", "Origin: https://evil.example", "hello".to_owned(), 403),
        ("/nowhere", "Content-Type: text/plain", "hello".to_owned(), 404),
        ("/messages?bogus=1", "Content-Type: text/plain", "hello".to_owned(), 422),
    ];
    for (target, header, body, status) in refused {
        let bytes =
            request(&format!("POST {target} HTTP/1.1"), hub.address, &[header], Some(body.as_bytes()));
        connection.get_mut().write_all(&bytes).unwrap();
        let response = answer(&mut connection);
        assert_eq!((response.status, response.header("connection")), (status, None));
    }
});

on_each_journal!(the_last_answer_of_a_hub_that_stops_says_that_the_connection_closes, {
    let mut hub = Hub::start(&[]);
    let bytes = post_text(hub.address, "in flight");
    let head = bytes.len() - "in flight".len();
    let headers = ["Expect: 100-continue", "Content-Type: text/plain", "Content-Length: 9"];
    let mut connection = send(&hub, request("POST /messages HTTP/1.1", hub.address, &headers, None));
    assert_eq!(Response::read_interim(&mut connection), 100);
    hub.signal("TERM");
    hub.wait_for_log(&["stopping"]);
    connection.get_mut().write_all(&bytes[head..]).unwrap();
    let response = answer(&mut connection);
    assert_eq!((response.status, response.header("connection")), (201, Some("close")));
    assert_eq!(hub.wait().code(), Some(0));
});
