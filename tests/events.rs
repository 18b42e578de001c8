//! `GET /events`: the bytes a subscriber is sent in each format, and what the log says of it.

mod common;

use std::cell::RefCell;

use common::{Hub, Path, on_each_journal, on_each_path};

#[test]
fn a_claim_is_tested_on_the_path_it_is_made_for() {
    let is_in_file = |hub: &Hub| {
        let mut open = std::fs::read_dir(format!("/proc/{}/fd", hub.pid())).unwrap();
        open.any(|link| {
            std::fs::read_link(link.unwrap().path()).is_ok_and(|path| path.ends_with("tabcast.db"))
        })
    };
    // A hub keeps its path on other threads than the one that started it.
    let is_chunked = |hub: &Hub| {
        let watch = || hub.watch("/events", &[]).header("transfer-encoding").is_some();
        std::thread::scope(|scope| scope.spawn(watch).join().unwrap())
    };
    let found = RefCell::new(Vec::new());
    let look = || {
        let hub = Hub::start(&[]);
        found.borrow_mut().push((is_in_file(&hub), is_chunked(&hub)));
    };
    [Path::memory(), Path::file(), Path::http_1_0()].into_iter().for_each(|path| path.test(look));
    look();
    assert_eq!(*found.borrow(), [(false, true), (true, true), (false, false), (false, true)]);
}

on_each_path!(a_stream_begins_with_a_comment_a_retry_and_the_id_of_its_position, {
    let hub = Hub::start(&[]);
    let id = hub.publish("before");
    let stream = hub.watch("/events", &[]);
    let mut lines = stream.opening.lines();
    assert!(lines.next().unwrap().starts_with(": "));
    let retry: u64 = lines.next().unwrap().strip_prefix("retry: ").unwrap().parse().unwrap();
    assert!((1_000..=4_000).contains(&retry), "{retry}");
    assert_eq!(lines.next(), Some(&*format!("id: {id}")));
    assert_eq!(lines.next(), Some(""));
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    assert_eq!(stream.header("cache-control"), Some("no-store, no-transform"));
    assert_eq!(stream.header("x-accel-buffering"), Some("no"));
});

on_each_path!(the_default_format_is_the_bare_data, {
    let hub = Hub::start(&[]);
    let mut stream = hub.watch("/events", &[]);
    let id = hub.publish("Hello World!");
    assert_eq!(stream.block().unwrap(), format!("id: {id}\ndata: Hello World!\n\n"));
    // `event:` is there for every name but `message`. CR, LF and CRLF each end a line. A leading space stays.
    hub.post("?event=chat%20message", "text/plain", " a\nb\r\nc\rd\n");
    let block = stream.block().unwrap();
    let (_, rest) = block.split_once('\n').unwrap();
    assert_eq!(rest, "event: chat message\ndata:  a\ndata: b\ndata: c\ndata: d\ndata: \n\n");
    // A JSON string is sent as its text, all other JSON as compact JSON.
    hub.post("", "application/json", "{\"data\": {\"a\": [1, \"x\\ny\"]}}");
    assert_eq!(stream.data(), "{\"a\":[1,\"x\\ny\"]}");
    hub.post("", "application/json", "{\"data\": \"x\\ny\"}");
    assert_eq!(stream.data(), "x\ny");
    hub.post("", "text/plain", "");
    assert!(stream.block().unwrap().ends_with("\ndata: \n\n"));
});

on_each_path!(format_message_is_the_whole_message_as_json_of_type_message, {
    let hub = Hub::start(&[]);
    let mut stream = hub.watch("/events?format=message&channel=a.b", &[]);
    let receipt = hub.post("?channel=a.b&event=x", "text/plain", "1\n2").json();
    let (id, time) = (receipt["id"].as_str().unwrap(), receipt["time"].as_str().unwrap());
    let object = format!(r#"{{"id":"{id}","channel":"a.b","event":"x","data":"1\n2","time":"{time}"}}"#);
    assert_eq!(stream.block().unwrap(), format!("id: {id}\ndata: {object}\n\n"));

    let mut lines = hub.open("/events?channel=a.b&last=1", &["Accept: application/x-ndjson"]);
    assert_eq!(lines.header("content-type"), Some("application/x-ndjson"));
    assert_eq!(lines.line().unwrap(), format!("{object}\n"));
});

on_each_path!(a_subscriber_gets_the_channels_it_asked_for_in_the_order_of_publishing, {
    let hub = Hub::start(&[]);
    let mut both = hub.watch("/events?channel=a&channel=b&channel=a", &[]);
    let mut main = hub.watch("/events", &[]);
    for number in 0..50 {
        hub.publish_to(["a", "b", "c", "main"][number % 4], &number.to_string());
    }
    let expected: Vec<_> = (0..50).filter(|number| number % 4 < 2).map(|number| number.to_string()).collect();
    assert_eq!(expected.iter().map(|_| both.data()).collect::<Vec<_>>(), expected);
    assert_eq!(main.data(), "3");
});

on_each_path!(no_message_overtakes_one_of_another_channel_when_many_publish_at_once, {
    let hub = Hub::start(&[]);
    let names: Vec<_> = (0..8).map(|number| format!("c{number}")).collect();
    let target = format!("/events?channel={}", names.join("&channel="));
    let mut streams: Vec<_> = (0..4).map(|_| hub.watch(&target, &[])).collect();
    std::thread::scope(|scope| {
        for name in &names {
            let hub = &hub;
            scope.spawn(move || (0..100).for_each(|number| drop(hub.publish_to(name, &number.to_string()))));
        }
        for stream in &mut streams {
            for expected in 1..=800 {
                assert!(stream.event().unwrap().id.ends_with(&format!("-{expected}")));
            }
        }
    });
});

on_each_path!(last_replays_the_newest_kept_messages_and_then_goes_on_live, {
    let hub = Hub::start(&[]);
    (1..=5).for_each(|number| drop(hub.publish(&number.to_string())));
    hub.publish_to("other", "x");
    let mut stream = hub.watch("/events?last=2", &[]);
    assert_eq!((stream.data(), stream.data()), ("4".to_owned(), "5".to_owned()));
    hub.publish("6");
    assert_eq!(stream.data(), "6");
    let mut all = hub.watch("/events?last=1000000", &[]);
    assert_eq!((1..=6).map(|_| all.data()).collect::<String>(), "123456");
    hub.publish("7");
    let mut none = hub.watch("/events?last=0", &[]);
    hub.publish("8");
    assert_eq!(none.data(), "8");
});

on_each_path!(a_replay_is_written_at_once, {
    let hub = Hub::start(&[]);
    let ids: Vec<_> = (0..100).map(|_| hub.publish("x")).collect();
    let expected: String = ids.iter().map(|id| format!("id: {id}\ndata: x\n\n")).collect();
    if let Some(chunk) = hub.watch("/events?last=100", &[]).chunk() {
        assert_eq!(chunk, expected);
    }
});

on_each_path!(a_message_except_one_subscriber_is_not_sent_to_it_live_or_on_replay, {
    let hub = Hub::start(&[]);
    let (mut me, mut you) = (hub.watch("/events?as=me", &[]), hub.watch("/events?as=you", &[]));
    let id = hub.publish("to all");
    hub.post("", "application/json", r#"{"data": "not to me", "except": "me"}"#);
    hub.post("?except=you", "text/plain", "not to you");
    assert_eq!([me.data(), me.data()], ["to all", "not to you"]);
    assert_eq!([you.data(), you.data()], ["to all", "not to me"]);
    let mut me = hub.watch("/events?as=me", &[&format!("Last-Event-ID: {id}")]);
    assert_eq!(me.data(), "not to you");
    assert_eq!((hub.history("?as=me").len(), hub.history("").len()), (2, 3));
});

on_each_path!(an_idle_stream_is_kept_alive_by_comments_and_ndjson_by_empty_lines, {
    let hub = Hub::start(&["--keep-alive", "20ms"]);
    let mut stream = hub.watch("/events", &[]);
    assert_eq!(stream.block().unwrap(), ":\n\n");
    assert_eq!(stream.block().unwrap(), ":\n\n");
    hub.publish("x");
    assert_eq!(stream.data(), "x");
    assert_eq!(
        hub.open("/events", &["Accept: text/plain, application/x-ndjson;q=0.9"]).line().unwrap(),
        "\n"
    );
});

on_each_path!(with_format_message_the_opening_and_every_keep_alive_are_events_that_a_script_can_see, {
    let hub = Hub::start(&["--keep-alive", "20ms"]);
    let id = hub.publish("before");
    let mut stream = hub.watch("/events?format=message", &[]);
    let opened: Vec<_> = stream.opening.lines().skip(2).collect();
    assert_eq!(opened, [&*format!("id: {id}"), "event: tabcast:open", "data: {\"keep_alive_ms\":20}", ""]);
    assert_eq!(stream.block().unwrap(), "event: tabcast:keep-alive\ndata: {}\n\n");
    let mut quiet = hub.watch("/events?format=message&channel=quiet", &[]);
    let id = hub.publish("x");
    let moved = format!("id: {id}\nevent: tabcast:keep-alive\ndata: {{}}\n\n");
    while quiet.block().unwrap() != moved {}
});

on_each_path!(with_format_message_a_subscriber_sees_whom_a_message_is_not_for, {
    let hub = Hub::start(&[]);
    let mut stream = hub.watch("/events?format=message", &[]);
    let mut lines = hub.open("/events", &["Accept: application/x-ndjson"]);
    hub.post("?except=me", "text/plain", "x");
    hub.post("", "text/plain", "y");
    let event = |stream: &mut common::Stream| stream.event().unwrap().json();
    assert_eq!(event(&mut stream)["except"], "me");
    assert_eq!(event(&mut stream).get("except"), None);
    let line = |stream: &mut common::Stream| -> serde_json::Value {
        serde_json::from_str(&stream.line().unwrap()).unwrap()
    };
    assert_eq!(line(&mut lines)["except"], "me");
    assert_eq!(line(&mut lines).get("except"), None);
    assert_eq!(hub.history("?last=2")[0]["except"], "me");
});

on_each_path!(a_quiet_channels_subscriber_is_sent_newer_ids_so_that_it_stays_within_retention, {
    let hub = Hub::start(&["--keep-alive", "50ms", "--retention-messages", "3"]);
    let mut quiet = hub.watch("/events?channel=quiet&channel=silent", &[]);
    let loud: Vec<_> = (0..9).map(|_| hub.publish("loud")).collect();
    let newest = loud.last().unwrap();
    let checkpoint = loop {
        let block = quiet.block().unwrap();
        if block.contains(newest) {
            break block;
        }
    };
    // An EventSource remembers an id without data, and dispatches nothing.
    assert_eq!(checkpoint, format!("id: {newest}\n\n"));
    let mut again = hub.watch("/events?channel=quiet", &[&format!("Last-Event-ID: {newest}")]);
    hub.publish_to("quiet", "at last");
    assert_eq!(again.event().unwrap().event, "message");
    assert_eq!(quiet.data(), "at last");
});

on_each_path!(head_answers_the_headers_and_is_no_subscriber, {
    let hub = Hub::start(&["--max-subscribers", "1"]);
    let response = hub.send("HEAD", "/events", &[], b"");
    assert_eq!((response.status, response.header("content-type")), (200, Some("text/event-stream")));
    let _stream = hub.watch("/events", &[]);
    assert!(hub.log().iter().all(|line| !line.contains("subscriber=2")));
    hub.wait_for_log(&["subscriber connected", "subscriber=1"]);
});

on_each_journal!(http_1_0_gets_a_stream_that_ends_with_the_connection, {
    use std::io::{BufRead, BufReader, Write};
    let hub = Hub::start(&[]);
    let mut connection = hub.connect();
    connection.write_all(b"GET /events HTTP/1.0\r\n\r\n").unwrap();
    let mut lines = BufReader::new(connection).lines().map(Result::unwrap);
    let head: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
    assert!(head[0].ends_with("200 OK"), "{head:?}");
    assert!(!head.iter().any(|line| line.to_ascii_lowercase().starts_with("transfer-encoding")), "{head:?}");
    hub.wait_for_log(&["subscriber connected"]);
    hub.publish("old but good");
    assert!(lines.any(|line| line == "data: old but good"));
});

on_each_path!(connect_and_disconnect_are_logged_with_how_long_how_many_and_why, {
    let hub = Hub::start(&[]);
    let mut closed = hub.watch("/events?channel=a&channel=b", &[]);
    let line = hub.wait_for_log(&["subscriber connected", "subscriber=1"]);
    assert!(line.contains("address=127.0.0.1:") && line.contains("channels=\"a b\""), "{line}");
    hub.publish_to("b", "x");
    closed.data();
    drop(closed);
    let line = hub.wait_for_log(&["subscriber disconnected", "subscriber=1"]);
    assert!(
        line.contains("sent=1 ") && line.contains("duration_ms=") && line.contains("reason=\"closed\""),
        "{line}"
    );

    // The kernel resets a connection that is closed with data left unread.
    let reset = hub.watch_without_reading("/events");
    hub.wait_for_log(&["subscriber connected", "subscriber=2"]);
    reset.peek(&mut [0]).unwrap();
    drop(reset);
    hub.wait_for_log(&["subscriber disconnected", "subscriber=2", "reason=\"reset\""]);
});

on_each_path!(the_log_says_how_many_subscribers_a_message_reached, {
    let hub = Hub::start(&[]);
    let _streams: Vec<_> = (0..3).map(|_| hub.watch("/events?channel=a", &[])).collect();
    hub.publish_to("a", "x");
    hub.publish_to("b", "y");
    hub.wait_for_log(&["message published", "channel=\"a\"", "subscribers=3"]);
    hub.wait_for_log(&["message published", "channel=\"b\"", "subscribers=0"]);
});

on_each_path!(a_parameter_that_nobody_knows_is_passed_over_and_named_without_its_value, {
    let hub = Hub::start(&["--log-level", "debug"]);
    // A cache buster, a proxy's token, Datastar's state, a misspelt name; some twice, one with no UTF-8.
    let query = "token=s3cret&_=1&_=2&chanel=a&datastar=%7B%7D&after=x&s3cret%ff=1&x=%ff";
    let mut stream = hub.watch(&format!("/events?channel=b&{query}"), &[]);
    let first = stream.opening.lines().next().unwrap();
    let names = "[\"token\", \"_\", \"chanel\", \"datastar\", \"after\", \"\u{fffd}\", \"x\"]";
    assert!(first.starts_with(": tabcast ") && first.ends_with(names), "{first}");
    hub.publish_to("b", "arrives");
    assert_eq!(stream.data(), "arrives");
    let line = hub.wait_for_log(&["unknown parameters passed over", "address=127.0.0.1:", "chanel"]);
    assert!(line.contains("DEBUG") && !line.contains("s3cret"), "{line}");
    assert_eq!(hub.count_log("s3cret"), 0);
    assert_eq!(hub.send("HEAD", "/events?chanel=x", &[], b"").status, 200);
    let lines = hub.open("/events?_=1", &["Accept: application/x-ndjson"]);
    assert_eq!(lines.header("content-type"), Some("application/x-ndjson"));
    hub.wait_for_logs(&["unknown parameters passed over"], 2);
});

on_each_path!(no_name_of_a_parameter_ends_the_opening_s_comment_or_makes_it_long, {
    let hub = Hub::start(&[]);
    for name in ["a%0Adata:%20x", "a%0D%0A%0Adata:x", "%0D", "%E2%80%A8data:x", "%00%1b%5b31m", "%22%5C"] {
        let mut stream = hub.watch(&format!("/events?{name}=1"), &[]);
        let lines: Vec<_> = stream.opening.split(['\r', '\n', '\u{2028}']).collect();
        let begins = lines.iter().map(|line| line.split([':', ' ']).next().unwrap()).collect::<Vec<_>>();
        assert_eq!(begins, ["", "retry", "id", "", ""], "{lines:?}");
        assert!(!lines[0].chars().any(char::is_control), "{lines:?}");
        hub.publish(name);
        assert_eq!(stream.data(), name);
    }
    let long = ["%01".repeat(100), "n".repeat(100), "%c3%a9".repeat(100)].concat();
    let many: String = (0..40).map(|number| format!("&{number}{long}")).collect();
    let stream = hub.watch(&format!("/events?{many}"), &[]);
    assert!(stream.opening.len() < 2_000, "{}", stream.opening);
});

on_each_journal!(a_known_parameter_that_makes_no_sense_is_still_refused, {
    let hub = Hub::start(&[]);
    for (query, status, field) in [
        ("channel=a%20b", 422, "channel"),
        ("channel=", 422, "channel"),
        ("channel=%ff", 400, "channel"),
        ("last=x", 422, "last"),
        ("latest=yes", 422, "latest"),
        ("as=%20", 422, "as"),
        ("format=xml", 422, "format"),
        ("lastEventId=%ff", 400, "lastEventId"),
    ] {
        let refused = hub.get(&format!("/events?_=1&{query}"));
        assert_eq!(refused.problem(status)["field"], field, "{query}");
    }
});
