//! `POST /messages`: what message each body becomes, and what its publisher is answered.

mod common;

use std::io::{BufReader, Write};
use std::net::Shutdown;

use common::{Folder, Hub, Path, Response, connect_from, on_each_journal, post_text, request};

on_each_journal!(json_is_published_with_its_fields_and_answered_with_the_messages_id, {
    let hub = Hub::start(&[]);
    let body =
        r#"{"data": {"b": 1.0, "a": [1e400]}, "event": "chat message", "channel": "chat.1", "except": "me"}"#;
    let response = hub.post("", "application/json", body);
    assert_eq!(response.status, 201);
    assert_eq!(response.header("content-type"), Some("application/json"));
    let receipt = response.json();
    assert_eq!(receipt["channel"], "chat.1");
    assert_eq!(receipt["event"], "chat message");
    let (id, time) = (receipt["id"].as_str().unwrap(), receipt["time"].as_str().unwrap());
    assert!(id.ends_with("-1") && id.len() <= 64 && id.is_ascii(), "{id}");
    assert!(time.ends_with('Z') && time.len() == "2026-11-22T20:28:14.123Z".len(), "{time}");
    assert_eq!(receipt.as_object().unwrap().len(), 4);

    // The history has the data byte by byte: no number is rounded, no key reordered.
    let history = hub.get("/messages?last=1&channel=chat.1");
    let message =
        format!(r#"{{"id":"{id}","channel":"chat.1","event":"chat message","data":{{"b":1.0,"a":[1e400]}},"#);
    let message = format!(r#"{{"messages":[{message}"time":"{time}","except":"me"}}]}}"#);
    assert_eq!(history.text(), message);
});

on_each_journal!(any_json_is_data, {
    let hub = Hub::start(&[]);
    for data in ["null", "true", "0", "-1.50", "\"\"", "[]", "{}", r#""\u0000\n""#] {
        assert_eq!(hub.post("", "application/json", format!("{{\"data\":{data}}}")).status, 201, "{data}");
        let expected: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(hub.newest()["data"], expected);
    }
});

on_each_journal!(text_is_a_string_and_the_query_carries_the_rest, {
    let hub = Hub::start(&[]);
    let mut main = hub.watch("/events?channel=main&channel=c", &[]);
    let response =
        hub.post("?event=greeting&channel=c", "text/plain; charset=utf-8", "{\"not\": \"json\"} ü\n");
    assert_eq!(response.json()["event"], "greeting");
    let event = main.event().unwrap();
    assert_eq!((&*event.event, &*event.data), ("greeting", "{\"not\": \"json\"} ü\n"));
});

on_each_journal!(curl_d_is_text_and_an_html_form_is_a_form, {
    let hub = Hub::start(&[]);
    let form = |body: &str| hub.post("", "application/x-www-form-urlencoded", body);
    for (body, data) in [
        ("Hello World!", "Hello World!"),
        ("a=b&c=d", "a=b&c=d"),
        ("100% + 1", "100% + 1"),
        ("", ""),
        ("event=x", "event=x"),
        ("data", "data"),
        ("data=Hello+World%21", "Hello World!"),
        ("data=", ""),
        ("data=%F0%9F%8E%89&event=party", "🎉"),
    ] {
        assert_eq!(form(body).status, 201, "{body}");
        assert_eq!(hub.newest()["data"], data, "{body}");
    }
    assert_eq!(hub.newest()["event"], "party");
});

on_each_journal!(a_browsers_form_without_script_is_sent_back_to_the_page, {
    let hub = Hub::start(&[]);
    let accept = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let headers = ["Content-Type: application/x-www-form-urlencoded", accept];
    let response = hub.send("POST", "/messages", &headers, b"data=hi&channel=main");
    assert_eq!((response.status, response.header("location")), (303, Some("./")));
    assert_eq!(hub.newest()["data"], "hi");
    // Its own page is where it came from, and no other's.
    let host = hub.address;
    for (referer, location) in [
        (format!("http://{host}/hub/?a=1"), format!("http://{host}/hub/?a=1")),
        (format!("https://{host}"), format!("https://{host}")),
        (format!("http://{host}.example.org/"), "./".to_owned()),
        (format!("http://{host}@example.org/"), "./".to_owned()),
        (format!("http://{host}\\@example.org/"), "./".to_owned()),
        ("http://example.org/".to_owned(), "./".to_owned()),
        (format!("javascript://{host}/"), "./".to_owned()),
        (format!("//{host}/"), "./".to_owned()),
        ("".to_owned(), "./".to_owned()),
    ] {
        let referer = format!("Referer: {referer}");
        let headers = [&headers[..], &[&*referer]].concat();
        let response = hub.send("POST", "/messages", &headers, b"data=hi");
        assert_eq!(response.header("location"), Some(&*location), "{referer}");
    }
    let parts = b"--x\r\nContent-Disposition: form-data; name=\"data\"\r\n\r\nhi\r\n--x--\r\n";
    let headers = ["Content-Type: multipart/form-data; boundary=x", accept];
    assert_eq!(hub.send("POST", "/messages", &headers, parts).status, 303);
    // Who prefers JSON, or takes anything, is a program.
    let form = "Content-Type: application/x-www-form-urlencoded";
    for accept in ["*/*", "text/*;q=0.5, application/json", "text/html;q=0", "text/html;q=0.0, */*"] {
        let headers = [form, &format!("Accept: {accept}")];
        assert_eq!(hub.send("POST", "/messages", &headers, b"data=hi").status, 201, "{accept}");
    }
    // A publisher of JSON is a program, whatever it accepts.
    let response =
        hub.send("POST", "/messages", &["Content-Type: application/json", accept], b"{\"data\":1}");
    assert_eq!(response.status, 201);
});

on_each_journal!(any_other_type_is_binary_and_becomes_a_data_url, {
    let hub = Hub::start(&[]);
    for (content_type, url) in [
        ("image/png", "data:image/png;base64,AP8K"),
        ("Application/Octet-Stream", "data:application/octet-stream;base64,AP8K"),
        // Quotes are left out, and what the URL can't have is percent-encoded, also before its first comma.
        (
            "video/mp4; codecs=\"avc1.42E01E, mp4a.40.2\"; a=\"\\\"#;\"",
            "data:video/mp4;codecs=avc1.42E01E%2C%20mp4a.40.2;a=%22%23%3B;base64,AP8K",
        ),
        ("a!#$%&'*+-.^_`|~/b; C*=it's;", "data:a!%23$%25&'*+-.%5E_%60%7C~/b;c*=it's;base64,AP8K"),
        ("application/vnd.api+json", "data:application/vnd.api+json;base64,AP8K"),
        ("audio/webm;codecs=opus", "data:audio/webm;codecs=opus;base64,AP8K"),
    ] {
        assert_eq!(hub.post("?event=file", content_type, b"\x00\xff\n").status, 201);
        assert_eq!(hub.newest()["data"], url);
    }
    for (content_type, text) in [
        ("application/json; profile=\"https://example.org/v1, ;\"", "{\"data\":\"ü\"}"),
        ("APPLICATION/JSON;charset=\"UTF-8\"", "{\"data\":\"ü\"}"),
        ("text/csv; charset=\"utf\\-8\"; header=present", "ü"),
        ("text/html", "ü"),
    ] {
        assert_eq!(hub.post("", content_type, text).status, 201, "{content_type}");
        assert_eq!(hub.newest()["data"], "ü");
    }
    // Without a type it is text, if it can be.
    assert_eq!(hub.send("POST", "/messages?event=x", &[], "ü\n".as_bytes()).status, 201);
    assert_eq!(hub.newest()["data"], "ü\n");
    assert_eq!(hub.send("POST", "/messages", &[], b"\x00\xff\n").status, 201);
    assert_eq!(hub.newest()["data"], "data:application/octet-stream;base64,AP8K");
});

on_each_journal!(a_retry_with_the_same_key_gets_the_first_answer_and_publishes_nothing, {
    let hub = Hub::start(&[]);
    let mut stream = hub.watch("/events", &[]);
    let send = |key: &str, body: &str| {
        let headers = [&*format!("Idempotency-Key: {key}"), "Content-Type: text/plain"];
        hub.send("POST", "/messages", &headers, body.as_bytes())
    };
    let first = send("k-1", "once");
    let again = send("k-1", "once");
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(first.body, again.body);
    let other = send("k-1", "twice").problem(422);
    assert_eq!(other["field"], "Idempotency-Key");
    assert_eq!(send("k-2", "twice").status, 201);
    assert_eq!(stream.data(), "once");
    assert_eq!(stream.data(), "twice");
});

/// Two addresses of publishers.
const ONE: [u8; 4] = [127, 0, 0, 66];
const OTHER: [u8; 4] = [127, 0, 0, 77];

on_each_journal!(a_key_is_its_publishers_own, {
    let hub = Hub::start(&[]);
    let (one, other) = (hub.publish_from(ONE, "k", "a"), hub.publish_from(OTHER, "k", "b"));
    assert_eq!((one.status, other.status), (201, 201));
    assert_eq!(hub.publish_from(OTHER, "k", "b").body, other.body);
    assert_eq!(hub.publish_from(ONE, "k", "a").body, one.body);
    hub.publish_from(ONE, "k", "b").problem(422);
    assert_eq!(hub.history_data(""), ["a", "b"]);
});

on_each_journal!(a_flood_of_keys_leaves_the_keys_of_other_addresses, {
    let hub = Hub::start(&["--idempotency-keys", "10"]);
    let publish = |source, number: u32| {
        hub.publish_from(source, &number.to_string(), "x").json()["id"].as_str().unwrap().to_owned()
    };
    let first: Vec<_> = (0..5).map(|number| publish(ONE, number)).collect();
    (0..30).for_each(|number| drop(publish(OTHER, number)));
    assert_eq!((0..5).map(|number| publish(ONE, number)).collect::<Vec<_>>(), first);
    // The same flood from the same address is too much. A file remembers the keys of what it keeps.
    if !Path::current().in_file {
        (30..60).for_each(|number| drop(publish(ONE, number)));
        assert_ne!(publish(ONE, 0), first[0]);
    }
});

on_each_journal!(concurrent_retries_of_one_key_publish_once, {
    let hub = Hub::start(&[]);
    let headers = ["Idempotency-Key: same", "Content-Type: text/plain"];
    let answers: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..50).map(|_| scope.spawn(|| hub.send("POST", "/messages", &headers, b"x").body)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(hub.history("").len(), 1);
});

on_each_journal!(a_publisher_that_closes_its_side_after_the_request_is_answered_all_the_same, {
    let hub = Hub::start(&[]);
    let mut connection = hub.connect();
    connection.write_all(&post_text(hub.address, "x")).unwrap();
    connection.shutdown(Shutdown::Write).unwrap();
    assert_eq!(Response::read(&mut BufReader::new(connection), false).status, 201);
});

on_each_journal!(a_publish_is_logged_on_one_line_whatever_its_data, {
    let hub = Hub::start(&[]);
    let _subscriber = hub.watch("/events", &[]);
    let forged = "x\r\n2026-01-01T00:00:00Z  INFO message published\u{2028}\u{1b}[31m\u{7f}\u{85}";
    hub.publish(forged);
    let line = hub.wait_for_log(&["message published", "subscribers=1", "size="]);
    assert!(
        line.contains("id=") && line.contains("channel=\"main\"") && line.contains("event=\"message\""),
        "{line}"
    );
    assert!(
        line.contains(r#"data="x\r\n2026"#) && line.contains(r"\u{2028}\u001b[31m\u{7f}\u{85}"),
        "{line}"
    );

    hub.publish(&format!("long{}end", "ü".repeat(1_000)));
    let line = hub.wait_for_log(&["data=\"long"]);
    assert!(line.ends_with("ü…") && line.len() < 600, "{line}");
});

on_each_journal!(data_can_be_left_out_of_the_log, {
    let hub = Hub::start(&["--hide-data"]);
    hub.publish("secret");
    let line = hub.wait_for_log(&["message published"]);
    assert!(!line.contains("secret") && !line.contains("data="), "{line}");
});

on_each_journal!(a_key_is_its_subjects_wherever_that_asks_from, {
    let folder = Folder::new();
    let [(ada, ada_hash), (bob, bob_hash)] = [(); 2].map(|()| tabcast::auth::tokens::new().unwrap());
    let tokens = folder.file("tokens");
    std::fs::write(&tokens, format!("ada {ada_hash} all\nbob {bob_hash} all\n")).unwrap();
    let hub = Hub::start(&["--tokens", &tokens]);
    let publish = |token: &str, last: u8| {
        let bearer = format!("Authorization: Bearer {token}");
        let headers = [&*bearer, "Idempotency-Key: 1", "Content-Type: text/plain"];
        let bytes = request("POST /messages HTTP/1.1", hub.address, &headers, Some(b"x"));
        let mut connection = connect_from([127, 0, 0, last], hub.address).unwrap();
        connection.write_all(&bytes).unwrap();
        let response = Response::read(&mut BufReader::new(connection), false);
        assert_eq!(response.status, 201, "{response:?}");
        response.json()["id"].as_str().unwrap().to_owned()
    };
    let first = publish(&ada, 1);
    assert_eq!(publish(&ada, 2), first);
    assert_ne!(publish(&bob, 1), first);
});
