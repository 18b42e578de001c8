//! A stream ends with its token, and goes on with a new one: nothing is missed, and nothing comes twice.

mod common;

use std::io::{BufReader, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Hub, Response, Stream, Tokens, bearer, has_data, now, on_each_path, parse_event, post_text};
use serde_json::{Value, json};

const FORMATS: [&str; 3] = ["bare", "message", "ndjson"];

/// A hub on which anyone may publish.
fn hub(tokens: &Tokens, flags: &[&str]) -> Hub {
    tokens.hub(&[&["--anonymous", "publish=>", "--hide-data", "--stall-timeout", "1h"], flags].concat())
}

fn all() -> Value {
    json!({"subscribe": [">"]})
}

/// A stream of one format.
struct Listener {
    stream: Stream,
    format: &'static str,
}

impl Listener {
    /// A listener to this channel, its opening read.
    fn new(hub: &Hub, format: &'static str, channel: &str, token: &str) -> Listener {
        let bearer = bearer(token);
        let stream = match format {
            "bare" => hub.watch(&format!("/events?channel={channel}"), &[&bearer]),
            "message" => hub.watch(&format!("/events?channel={channel}&format=message"), &[&bearer]),
            _ => {
                let headers = [&*bearer, "Accept: application/x-ndjson"];
                hub.open(&format!("/events?channel={channel}"), &headers)
            }
        };
        Listener { stream, format }
    }

    /// The next event, passing over keep-alives: its name, its data and its id. `None` at the end.
    fn next(&mut self) -> Option<(String, Value, String)> {
        loop {
            let (event, data, id) = match self.format {
                "ndjson" => {
                    let line = self.stream.line()?;
                    if line == "\n" {
                        continue;
                    }
                    let line: Value = serde_json::from_str(&line).unwrap();
                    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
                    (text("event"), line["data"].clone(), text("id"))
                }
                format => {
                    let block = self.stream.block()?;
                    if !has_data(&block) {
                        continue;
                    }
                    let event = parse_event(&block);
                    let is_own = event.event.starts_with("tabcast:");
                    let data = match format {
                        "bare" if !is_own => Value::String(event.data),
                        _ if is_own => event.json(),
                        _ => event.json()["data"].clone(),
                    };
                    (event.event, data, event.id)
                }
            };
            if event != "tabcast:keep-alive" {
                return Some((event, data, id));
            }
        }
    }

    /// The data of the next event, which must be a message.
    fn message(&mut self) -> Value {
        let (event, data, _) = self.next().expect("the stream goes on");
        assert_eq!(event, "message", "{data}");
        data
    }

    /// The data of the next event, which must be this one of the hub's own. It has no id.
    fn own(&mut self, name: &str) -> Value {
        let (event, data, id) = self.next().expect("the stream goes on");
        assert_eq!((&*event, &*id), (name, ""), "{data}");
        data
    }

    /// What its opening says.
    fn open(&self) -> Value {
        parse_event(&self.stream.opening).json()
    }

    /// The stream's id.
    fn id(&self) -> String {
        self.open()["stream"].as_str().unwrap().to_owned()
    }
}

fn renew(hub: &Hub, stream: &str, token: &str) -> Response {
    hub.send("POST", &format!("/events/{stream}"), &[&bearer(token)], b"")
}

/// The time as events have it.
fn time(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    humantime::format_rfc3339_millis(time).to_string()
}

on_each_path!(a_stream_ends_with_its_token_and_not_before_and_the_others_go_on, {
    let tokens = Tokens::new();
    let hub = hub(&tokens, &[]);
    let deadline = now() + 6;
    let (short, long) = (tokens.until(deadline, "ada", &all()), tokens.of("ada", &all()));
    let mut ending: Vec<_> = FORMATS
        .iter()
        .flat_map(|format| [*format, "main"].map(|channel| Listener::new(&hub, format, channel, &short)))
        .collect();
    let mut others = FORMATS.map(|format| Listener::new(&hub, format, "main", &long));
    for channel in ["main", "bare", "message", "ndjson"] {
        hub.publish_to(channel, "first");
    }
    for listener in &mut ending {
        assert_eq!(listener.message(), "first");
        assert_eq!(listener.own("tabcast:expiring"), json!({"expires": time(deadline)}));
    }
    for listener in &mut ending {
        assert_eq!(listener.own("tabcast:expired"), json!({"reason": "the token has expired"}));
        assert!(now() >= deadline && listener.next().is_none());
    }
    hub.wait_for_logs(&["subscriber disconnected", "reason=\"expired\""], ending.len());
    hub.publish("second");
    for listener in &mut others {
        assert_eq!((listener.message(), listener.message()), (json!("first"), json!("second")));
    }
});

/// Renews the stream while it reads numbered messages. Returns how many these were.
fn renew_again_and_again(hub: &Hub, tokens: &Tokens, listener: &mut Listener) -> usize {
    let (stream, mut count) = (listener.id(), 0);
    let renew = |token: String| assert_eq!(renew(hub, &stream, &token).status, 204);
    let mut is_next_a_message = |listener: &mut Listener| {
        let (event, data, _) = listener.next().unwrap();
        if event == "message" {
            assert_eq!(data, json!(count.to_string()));
            count += 1;
        } else {
            assert_eq!(event, "tabcast:expiring");
        }
        event == "message"
    };
    for _ in 0..50 {
        renew(tokens.of("ada", &all()));
        assert!(is_next_a_message(listener), "the token is good for an hour");
    }
    for _ in 0..2 {
        renew(tokens.until(now() + 6, "ada", &all()));
        while is_next_a_message(listener) {}
        renew(tokens.of("ada", &all()));
    }
    count
}

on_each_path!(a_stream_that_is_renewed_again_and_again_under_load_misses_nothing, {
    let tokens = Tokens::new();
    let hub = hub(&tokens, &[]);
    let (hub, tokens) = (&hub, &tokens);
    let (shared, own) = ("main", "main&channel=own");
    let mut listeners = [("message", shared), ("message", shared), ("message", own), ("message", "%3E")]
        .map(|(format, channel)| Listener::new(hub, format, channel, &tokens.of("ada", &all())));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut connection = BufReader::new(hub.connect());
            let mut post = |text: &str| {
                connection.get_mut().write_all(&post_text(hub.address, text)).unwrap();
                assert_eq!(Response::read(&mut connection, false).status, 201);
            };
            let mut count = 0;
            while !is_over.load(Ordering::Relaxed) {
                post(&count.to_string());
                count += 1;
            }
            post("end");
            count
        });
        let readers = listeners
            .iter_mut()
            .map(|listener| scope.spawn(move || (renew_again_and_again(hub, tokens, listener), listener)));
        let readers: Vec<_> = readers.collect();
        let readers: Vec<_> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        is_over.store(true, Ordering::Relaxed);
        let published = publisher.join().unwrap();
        for (count, listener) in readers {
            for number in count..published {
                assert_eq!(listener.message(), json!(number.to_string()));
            }
            assert_eq!(listener.message(), "end");
        }
    });
});

/// Publishes more than the sockets' buffers hold.
fn flood(hub: &Hub, channel: &str) -> Vec<Value> {
    let padding = "x".repeat(200 << 10);
    let texts: Vec<_> = (0..70).map(|number| format!("{number} {padding}")).collect();
    texts.iter().for_each(|text| drop(hub.publish_to(channel, text)));
    texts.into_iter().map(Value::String).collect()
}

/// Reads the messages of a slow reader, and renews it once its end is announced, between two of them.
fn read_late(hub: &Hub, token: &str, listener: &mut Listener, expected: &[Value]) {
    let stream = listener.id();
    let (mut messages, mut announced) = (Vec::new(), 0);
    while messages.len() < expected.len() {
        let (event, data, _) = listener.next().expect("the stream goes on");
        if event == "message" {
            messages.push(data);
            continue;
        }
        assert_eq!(event, "tabcast:expiring");
        announced += 1;
        assert_eq!(renew(hub, &stream, token).status, 204);
    }
    assert!(messages == expected && announced == 1);
    assert_eq!(listener.message(), "live");
}

on_each_path!(what_is_due_to_a_slow_reader_comes_between_its_messages, {
    let tokens = Tokens::new();
    let hub = hub(&tokens, &[]);
    let long = tokens.of("ada", &all());
    let mut slow: Vec<_> = (0..3).map(|_| Listener::new(&hub, "message", "main", &long)).collect();
    let mut signal = Listener::new(&hub, "message", "quiet", &long);
    let expected = flood(&hub, "main");
    let short = tokens.until(now() + 16, "ada", &all());
    for listener in slow.iter().chain([&signal]) {
        assert_eq!(renew(&hub, &listener.id(), &short).status, 204);
    }
    // The others' ends are announced by then.
    signal.own("tabcast:expiring");
    hub.publish("live");
    std::thread::scope(|scope| {
        for listener in &mut slow {
            scope.spawn(|| read_late(&hub, &long, listener, &expected));
        }
    });
});

on_each_path!(a_stream_whose_socket_is_full_at_the_deadline_is_cut, {
    let tokens = Tokens::new();
    let hub = hub(&tokens, &[]);
    let mut full = Listener::new(&hub, "message", "main", &tokens.of("ada", &all()));
    flood(&hub, "main");
    let deadline = now() + 2;
    assert_eq!(renew(&hub, &full.id(), &tokens.until(deadline, "ada", &all())).status, 204);
    hub.wait_for_log(&["subscriber disconnected", "reason=\"expired\""]);
    assert!(now() >= deadline);
    let mut blocks = std::iter::from_fn(|| full.stream.try_block().transpose());
    assert!(blocks.any(|block| block.is_err()), "it breaks off in the midst of a message");
});

on_each_path!(a_token_that_ends_sooner_ends_the_stream_sooner, {
    let tokens = Tokens::new();
    let hub = hub(&tokens, &[]);
    let mut listener = Listener::new(&hub, "message", "main", &tokens.of("ada", &all()));
    let deadline = now() + 3;
    assert_eq!(renew(&hub, &listener.id(), &tokens.until(deadline, "ada", &all())).status, 204);
    assert_eq!(listener.own("tabcast:expiring"), json!({"expires": time(deadline)}));
    listener.own("tabcast:expired");
    assert!(now() >= deadline && listener.next().is_none());
    hub.wait_for_log(&["subscriber disconnected"]);
    renew(&hub, &listener.id(), &tokens.of("ada", &all())).problem(404);
});

#[test]
fn only_the_same_subject_renews_a_stream_and_only_with_all_of_its_channels() {
    let tokens = Tokens::new();
    let ci = tokens.add("ada", "subscribe=>");
    let hub = hub(&tokens, &[]);
    let mut listener = Listener::new(&hub, "message", "a&channel=b.*", &tokens.of("ada", &all()));
    let id = listener.id();
    let refused = |token: &str, status| renew(&hub, &id, token).problem(status);
    for other in [tokens.of("bob", &all()), tokens.sign(&json!({"exp": now() + 9, "tabcast": all()})), ci] {
        assert_eq!(refused(&other, 403)["detail"], "the stream is of another subject than the token");
    }
    let less = refused(&tokens.of("ada", &json!({"subscribe": ["a", "b.c"]})), 403);
    assert_eq!(less["detail"], "the token does not grant `subscribe` on the channel b.*");
    refused("x", 401);
    refused(&tokens.until(now() - 60, "ada", &all()), 401);
    let path = format!("/events/{id}");
    let none = hub.send("POST", &path, &[], b"");
    none.problem(401);
    assert_eq!(none.header("www-authenticate"), Some("Bearer"));
    let good = bearer(&tokens.of("ada", &all()));
    hub.send("POST", &path, &[&good, "Origin: http://elsewhere.example"], b"").problem(403);
    for other in ["A".repeat(22), "x".to_owned(), format!("{id}A"), "%00".to_owned()] {
        renew(&hub, &other, &tokens.of("ada", &all())).problem(404);
    }
    let get = hub.send("GET", &path, &[&good], b"");
    get.problem(405);
    assert_eq!(get.header("allow"), Some("POST"));
    // The body says nothing, and another request can follow it.
    assert_eq!(hub.send("POST", &path, &[&good], &[b'x'; 100_000]).status, 204);
    let cookie = format!("Cookie: tabcast={}", tokens.of("ada", &json!({"subscribe": ["a", "b.>"]})));
    assert_eq!(hub.send("POST", &path, &[&cookie], b"").status, 204);
    hub.publish_to("b.c", "on");
    assert_eq!(listener.message(), "on");
}

#[test]
fn a_stream_without_an_end_has_one_with_a_token_that_has() {
    let tokens = Tokens::new();
    let ci = tokens.add("ci", "subscribe=>");
    let hub = hub(&tokens, &[]);
    let listener = Listener::new(&hub, "message", "main", &ci);
    let open = listener.open();
    assert!(open["expires"].is_null() && open["caller"].as_str().unwrap().len() == 12, "{open}");
    assert_eq!(renew(&hub, &listener.id(), &ci).status, 204);
}

#[test]
fn an_opening_says_whose_the_stream_is_if_the_hub_asks() {
    let tokens = Tokens::new();
    let guarded = tokens.hub(&["--anonymous", "subscribe=>"]);
    let deadline = now() + 3600;
    let open = Listener::new(&guarded, "message", "main", &tokens.until(deadline, "ada", &all())).open();
    let mark = open["caller"].as_str().unwrap();
    assert!(
        mark.starts_with('~') && mark.len() == 12 && open["stream"].as_str().unwrap().len() == 22,
        "{open}"
    );
    assert_eq!(open["expires"], json!(time(deadline)));
    let anonymous = guarded.watch("/events?format=message", &[]);
    assert!(anonymous.opening.ends_with("data: {\"keep_alive_ms\":15000,\"caller\":\"~\"}\n\n"));
    let open = Hub::start(&[]).watch("/events?format=message", &[]).opening;
    assert!(open.ends_with("event: tabcast:open\ndata: {\"keep_alive_ms\":15000}\n\n"), "{open}");
    assert!(
        !Listener::new(&guarded, "bare", "main", &tokens.of("ada", &all()))
            .stream
            .opening
            .contains("tabcast:")
    );
}

#[test]
fn a_caller_is_answered_who_it_is_and_what_it_may_do() {
    let tokens = Tokens::new();
    let hub = tokens.hub(&["--anonymous", "subscribe=news history="]);
    let deadline = now() + 3600;
    let grants = json!({"publish": ["a", "b.*"], "subscribe": ["c"], "admin": true});
    let token = bearer(&tokens.until(deadline, "ada", &grants));
    let answer = hub.send("GET", "/caller", &[&token], b"");
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let mark = answer.json()["caller"].clone();
    assert_eq!(
        answer.json(),
        json!({"caller": mark, "subject": "ada", "expires": time(deadline), "publish": ["a", "b.*"],
            "subscribe": ["c"], "history": ["c"], "presence": [], "delete": [], "admin": true})
    );
    assert_eq!(
        hub.get("/caller").json(),
        json!({"caller": "~", "publish": [], "subscribe": ["news"], "history": [], "presence": [],
            "delete": [], "admin": false})
    );
    hub.send("GET", "/caller", &["Authorization: Bearer x"], b"").problem(401);
    let head = hub.send("HEAD", "/caller", &[&token], b"");
    assert_eq!((head.status, head.header("content-length")), (200, answer.header("content-length")));
    let post = hub.send("POST", "/caller", &[&token], b"");
    post.problem(405);
    assert_eq!(post.header("allow"), Some("GET, HEAD"));
    let open = Hub::start(&[]).get("/caller").json();
    assert_eq!(
        (&open["caller"], &open["delete"], &open["admin"]),
        (&Value::Null, &json!([">"]), &json!(false))
    );
}
