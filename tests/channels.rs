//! Channels: the names they may have, the patterns by which they are asked for, the newest message of each,
//! and what was before a message.

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Hub, Site, Stream, on_each_journal, on_each_path, sqlite3};
use serde_json::{Value, json};

/// Names of all kinds. The last two look alike: only their bytes differ.
const NAMES: [&str; 14] = [
    "chat:42",
    "https://example.org/books/1?a=b&c=d#e",
    "a,b",
    "50%",
    "a+b",
    "\"quoted\"",
    "back\\slash",
    "<b",
    "-",
    "';DROP-TABLE-entries;--",
    "漢字.한글.🎉",
    "❤\u{fe0f}",
    "\u{e9}t\u{e9}",
    "e\u{301}te\u{301}",
];

/// Percent-encoded, as a query has it.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// The parameters that ask for these channels.
fn asked(channels: &[&str]) -> String {
    let all: Vec<_> = channels.iter().map(|channel| format!("channel={}", encoded(channel))).collect();
    all.join("&")
}

/// Publishes each text on its channel, and returns the ids.
fn publish(hub: &Hub, messages: &[(&str, &str)]) -> Vec<String> {
    messages.iter().map(|(channel, text)| hub.publish_to(&encoded(channel), text)).collect()
}

/// The texts of the history that this query asks for, in a row.
fn texts(hub: &Hub, query: &str) -> String {
    let data = hub.history_data(&format!("?{query}"));
    data.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>().join(" ")
}

/// The next so many texts of the stream, in a row.
fn streamed(stream: &mut Stream, count: usize) -> String {
    (0..count).map(|_| stream.data()).collect::<Vec<_>>().join(" ")
}

/// Publishes on more channels than a read looks at one by one, each with a message of its own.
fn flood(hub: &Hub) {
    std::thread::scope(|scope| {
        for part in 0..8 {
            scope.spawn(move || {
                for number in 0..150 {
                    hub.publish_to(&format!("flood.{part}.{number}"), "x");
                }
            });
        }
    });
}

fn assert_names_the_field(hub: &Hub, target: &str, field: &str) {
    let problem = hub.get(target).problem(422);
    assert_eq!(problem["field"], field, "{target}: {problem}");
}

on_each_journal!(a_name_of_any_kind_is_published_read_back_and_logged, {
    let hub = Hub::start(&[]);
    for name in NAMES {
        let query = asked(&[name]);
        let object = json!({ "data": "in an object", "channel": name }).to_string();
        let receipt = hub.post("", "application/json", object).json();
        assert_eq!(receipt["channel"], name);
        hub.post(&format!("?{query}"), "text/plain", "in the query");
        hub.post("", "application/x-www-form-urlencoded", format!("data=in+a+form&{query}"));
        assert_eq!(texts(&hub, &query), "in an object in the query in a form", "{name}");
        assert!(hub.history(&format!("?{query}")).iter().all(|message| message["channel"] == name));
        let mut stream = hub.watch(&format!("/events?format=message&last=1&{query}"), &[]);
        assert_eq!(stream.event().unwrap().json()["channel"], name);
        hub.publish_to(&encoded(name), "live");
        assert_eq!(stream.event().unwrap().json()["data"], "live");
    }
    for logged in [
        "channel=\"https://example.org/books/1?a=b&c=d#e\"",
        "channel=\"a,b\"",
        "channel=\"\\\"quoted\\\"\"",
        "channel=\"back\\\\slash\"",
        "channel=\"漢字.한글.🎉\"",
        "channel=\"❤\\u{fe0f}\"",
    ] {
        hub.wait_for_logs(&["message published", logged], 4);
    }
    // A space stands between two channels: no name has one.
    let _stream = hub.watch(&format!("/events?{}", asked(&["a,b", "c"])), &[]);
    hub.wait_for_log(&["subscriber connected", "channels=\"a,b c\""]);
});

#[test]
fn names_of_all_kinds_are_there_after_a_restart_and_in_files_of_each_version() {
    let site = Site::new(&[]);
    let hub = site.start();
    publish(&hub, &NAMES.map(|name| (name, name)));
    let hub = site.restart(hub, "KILL");
    for name in NAMES {
        assert_eq!(texts(&hub, &asked(&[name])), name);
        assert_eq!(texts(&hub, &format!("last=1&{}", asked(&[name]))), name);
    }
    assert_eq!(texts(&hub, &asked(&["*.*.*"])), "漢字.한글.🎉");

    for version in 1..=2 {
        let site = Site::new(&[]);
        let (table, text) = if version == 1 {
            let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/version-1.db");
            fs::copy(fixture, site.journal()).unwrap();
            fs::copy(format!("{fixture}-wal"), format!("{}-wal", site.journal())).unwrap();
            ("messages", "message 12")
        } else {
            let mut hub = site.start();
            publish(&hub, &[("main", "1"), ("main", "2")]);
            hub.end("TERM");
            ("entries", "2")
        };
        let newest = format!("sequence = (SELECT max(sequence) FROM {table})");
        sqlite3(&site.journal(), &format!("UPDATE {table} SET channel = 'chat:été/1' WHERE {newest}"));
        assert_eq!(texts(&site.start(), &asked(&["chat:été/1"])), text, "version {version}");
    }
}

on_each_journal!(names_are_compared_byte_by_byte, {
    let hub = Hub::start(&[]);
    let [.., composed, decomposed] = NAMES;
    publish(&hub, &[(composed, "composed"), (decomposed, "decomposed"), ("Main", "in capitals")]);
    assert_eq!(texts(&hub, &asked(&[composed])), "composed");
    assert_eq!(texts(&hub, &asked(&[decomposed])), "decomposed");
    assert_eq!((texts(&hub, ""), texts(&hub, "channel=Main")), (String::new(), "in capitals".to_owned()));
});

on_each_path!(patterns_find_the_channels_that_match_and_each_message_once, {
    let hub = Hub::start(&["--replay-page", "3"]);
    let channels = ["build.1", "build.2", "build", "build.1.log", "built.1", "build.1"];
    let messages: Vec<_> = channels.into_iter().zip(["a", "b", "c", "d", "e", "f"]).collect();
    let ids = publish(&hub, &messages);
    for (patterns, expected) in [
        (&["build.*"][..], "a b f"),
        (&["build.>"], "a b d f"),
        (&["*.1"], "a e f"),
        (&["*"], "c"),
        (&[">"], "a b c d e f"),
        (&["build.1", "build.*", "*.1", "build.>"], "a b d e f"),
        (&["*.*.log", "built.1", "nobody.>"], "d e"),
    ] {
        let count = expected.split(' ').count();
        let query = asked(patterns);
        let newest: Vec<_> = expected.split(' ').skip(count.saturating_sub(3)).collect();
        assert_eq!(texts(&hub, &query), newest.join(" "), "{patterns:?}");
        assert_eq!(texts(&hub, &format!("{query}&last=1")), newest[newest.len() - 1]);
        let mut all = hub.watch(&format!("/events?{query}&last=9"), &[]);
        assert_eq!(streamed(&mut all, count), expected);
        // Another page, after a reconnect.
        let rest: Vec<_> = expected.split(' ').filter(|text| *text > "b").collect();
        let mut again = hub.watch(&format!("/events?{query}"), &[&format!("Last-Event-ID: {}", ids[1])]);
        assert_eq!(streamed(&mut again, rest.len()), rest.join(" "));
    }
    assert_eq!(texts(&hub, "channel=nobody.*"), "");
});

on_each_journal!(a_pattern_of_very_many_channels_is_read_in_order_and_by_pages, {
    let hub = Hub::start(&[]);
    let first = publish(&hub, &[("quiet.a", "1"), ("flood", "2"), ("quiet.a.b", "3")]);
    flood(&hub);
    publish(&hub, &[("quiet.b", "4")]);
    for (pattern, expected) in
        [("*.a.>", "3"), ("*.a", "1"), ("*", "2"), ("*.*", "1 4"), ("quiet.>", "1 3 4")]
    {
        let query = asked(&[pattern]);
        assert_eq!(texts(&hub, &query), expected, "{pattern}");
        assert_eq!(texts(&hub, &format!("{query}&latest=1")), expected, "{pattern}");
        let mut stream = hub.watch(&format!("/events?{query}&last=9"), &[]);
        assert_eq!(streamed(&mut stream, expected.split(' ').count()), expected);
    }
    let (mut after, mut count) = (first[0].clone(), 0);
    loop {
        let page = hub.history(&format!("?channel=flood.%3E&after={after}&limit=400"));
        count += page.len();
        let Some(last) = page.last() else { break };
        after = last["id"].as_str().unwrap().to_owned();
    }
    assert_eq!(count, 1_200);
    let before = format!("?channel=flood.%3E&limit=5&before={after}");
    let all = hub.history("?channel=flood.%3E&last=6");
    assert_eq!(hub.history(&before), all[..5]);
});

on_each_journal!(a_bad_pattern_is_422_and_nobody_publishes_on_a_pattern, {
    let hub = Hub::start(&[]);
    for bad in ["a*", "*a", ">.a", "a.>.b", "**", ">>", "a..*", ".*", "*.", "a b.*", "\u{200b}.*", ""] {
        for path in ["/events", "/messages"] {
            assert_names_the_field(&hub, &format!("{path}?channel=fine.*&{}", asked(&[bad])), "channel");
        }
    }
    for pattern in ["*", ">", "a.*", "a.>"] {
        let in_query = hub.post(&format!("?{}", asked(&[pattern])), "text/plain", "x").problem(422);
        let object = json!({ "data": 1, "channel": pattern }).to_string();
        let in_object = hub.post("", "application/json", object).problem(422);
        assert_eq!((&in_query["field"], &in_object["field"]), (&json!("channel"), &json!("channel")));
    }
    assert!(hub.history("?channel=%3E").is_empty());
});

on_each_path!(the_newest_message_of_each_channel_comes_first_in_the_order_of_the_journal, {
    let hub = Hub::start(&["--replay-page", "2"]);
    let messages =
        [("s.b", "b1"), ("s.a", "a1"), ("s.a", "a2"), ("other", "x"), ("s.c", "c1"), ("s.c", "c2")];
    let ids = publish(&hub, &messages);
    assert_eq!(texts(&hub, "channel=s.*&latest=1"), "b1 a2", "a page");
    assert_eq!(texts(&hub, &format!("channel=s.*&latest=1&after={}", ids[2])), "c2", "the next page");
    assert_eq!(texts(&hub, "channel=s.*&latest=1&limit=1"), "b1");
    assert_eq!(texts(&hub, "channel=s.*&latest=0"), "c1 c2");
    assert_eq!(texts(&hub, "channel=nobody&latest=1"), "");

    let target = "/events?latest=1&channel=s.a&channel=s.b&channel=s.c";
    let mut stream = hub.watch(target, &[]);
    assert!(!stream.opening.contains("id:"), "who is cut off here begins anew: {}", stream.opening);
    assert_eq!(streamed(&mut stream, 3), "b1 a2 c2");
    publish(&hub, &[("s.a", "a3"), ("s.a", "a4")]);
    assert_eq!(streamed(&mut stream, 2), "a3 a4");
    // Who was cut off after the first has everything that follows it.
    let mut again = hub.watch(target, &[&format!("Last-Event-ID: {}", ids[0])]);
    assert_eq!(streamed(&mut again, 6), "a1 a2 c1 c2 a3 a4");
    assert_eq!(streamed(&mut hub.watch("/events?latest=1&channel=%3E", &[]), 4), "b1 x c2 a4");
});

on_each_path!(the_newest_message_of_a_channel_may_be_for_others_only_or_gone, {
    let hub = Hub::start(&["--retention-messages", "3"]);
    publish(&hub, &[("s.a", "a1"), ("s.b", "b1")]);
    hub.post("?channel=s.b&except=me", "text/plain", "b2");
    assert_eq!(texts(&hub, "channel=s.*&latest=1"), "a1 b2");
    assert_eq!(texts(&hub, "channel=s.*&latest=1&as=me"), "a1");
    publish(&hub, &[("s.c", "c1")]);
    // What retention has dropped is no gap.
    let answer = hub.get("/messages?channel=s.*&latest=1").json();
    assert_eq!((answer["messages"].as_array().unwrap().len(), answer.get("gap")), (2, None));
    let mut stream = hub.watch("/events?channel=s.b&channel=s.c&latest=1&as=me", &[]);
    assert_eq!(stream.data(), "c1");
});

on_each_path!(what_retention_drops_meanwhile_is_no_gap_among_the_newest_of_each_channel, {
    let hub = Hub::start(&["--retention-messages", "40"]);
    publish(&hub, &[("s.a", "x"); 40]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for channel in ["s.a", "s.b", "s.c", "s.d"] {
            let (hub, done) = (&hub, &done);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    hub.publish_to(channel, "x");
                }
            });
        }
        let mut gaps = 0;
        for _ in 0..300 {
            let answer = hub.get("/messages?channel=s.*&latest=1");
            gaps += usize::from(answer.text().contains("gap"));
            let mut stream = hub.watch("/events?channel=s.a&latest=1", &[]);
            gaps += usize::from(stream.event().unwrap().event == "tabcast:gap");
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(gaps, 0, "of 600 reads");
    });
});

on_each_journal!(latest_is_1_or_0_and_does_not_go_with_last, {
    let hub = Hub::start(&[]);
    for path in ["/events", "/messages"] {
        for bad in ["latest=2", "latest=", "latest=true", "latest=1&latest=1", "latest=1&last=2"] {
            assert_names_the_field(&hub, &format!("{path}?{bad}"), "latest");
        }
    }
    assert_eq!(hub.get("/messages?latest=0&last=2").status, 200);
});

on_each_path!(history_before_a_message_is_the_newest_of_it, {
    let hub = Hub::start(&["--replay-page", "4", "--retention-messages", "9"]);
    let numbers: Vec<_> = (1..=10).map(|number| number.to_string()).collect();
    let mut ids = Vec::new();
    for number in &numbers {
        ids.extend(publish(&hub, &[("main", number)]));
    }
    ids.extend(publish(&hub, &[("other", "x")]));
    let before = |id: &str, more: &str| texts(&hub, &format!("before={id}{more}"));
    assert_eq!(before(&ids[9], ""), "6 7 8 9");
    assert_eq!(before(&ids[5], "&limit=2"), "4 5");
    assert_eq!(before(&ids[10], "&limit=1"), "10", "of another channel");
    assert_eq!(before(&ids[10], "&limit=2&channel=*"), "9 10");
    assert_eq!(before(&ids[10], "&channel=other"), "");
    assert_eq!(before(&ids[4], "&limit=4"), "3 4", "there are fewer");
    assert_eq!(before(&ids[5], "&limit=0"), "");
    // At the earliest kept message, and before it.
    for id in &ids[..=2] {
        assert_eq!(hub.get(&format!("/messages?before={id}")).text(), "{\"messages\":[]}");
    }
    for unknown in ["zzzzzzzz-3", "garbage", &ids[10].replace("-11", "-12")] {
        let answer = hub.get(&format!("/messages?before={unknown}")).json();
        assert_eq!(answer, json!({"gap": {"asked": unknown, "earliest": ids[2]}, "messages": []}));
    }
    for other in [format!("after={}", ids[2]), "last=2".to_owned(), "latest=1".to_owned()] {
        assert_names_the_field(&hub, &format!("/messages?before={}&{other}", ids[5]), "before");
    }
});

on_each_journal!(history_is_read_backwards_page_by_page, {
    let hub = Hub::start(&[]);
    let numbers: Vec<_> = (0..25).map(|number| number.to_string()).collect();
    for number in &numbers {
        publish(&hub, &[(if number.len() == 1 { "a.x" } else { "a.y" }, number), ("b", "not this")]);
    }
    let mut pages: Vec<Vec<Value>> = vec![hub.history("?channel=a.*&last=7")];
    while !pages[0].is_empty() {
        let first = pages[0][0]["id"].as_str().unwrap();
        let page = hub.history(&format!("?channel=a.*&limit=7&before={first}"));
        pages.insert(0, page);
    }
    let all: Vec<_> = pages.iter().flatten().map(|message| message["data"].as_str().unwrap()).collect();
    assert_eq!(all, numbers);
});

on_each_path!(a_pattern_is_listened_to_and_each_message_comes_once, {
    let hub = Hub::start(&[]);
    publish(&hub, &[("build.1", "before")]);
    let patterns = asked(&["build.*", "build.1", "*.1", "build.>"]);
    let mut stream = hub.watch(&format!("/events?{patterns}&last=1"), &[]);
    let mut all = hub.watch(&format!("/events?{}", asked(&[">"])), &[]);
    assert_eq!(stream.data(), "before");
    // Channels that nobody has published on before.
    let channels = ["build.1", "build", "built.1", "build.1.log", "built.2", "build.2"];
    publish(&hub, &channels.map(|channel| (channel, channel)));
    assert_eq!(streamed(&mut stream, 4), "build.1 built.1 build.1.log build.2");
    assert_eq!(streamed(&mut all, 6), channels.join(" "));
});

on_each_path!(a_pattern_is_listened_to_after_the_newest_of_each_channel_and_after_a_reconnect, {
    let hub = Hub::start(&[]);
    let ids = publish(&hub, &[("s.a", "a1"), ("s.a", "a2"), ("s.b", "b1")]);
    let target = "/events?channel=s.*&latest=1";
    let mut stream = hub.watch(target, &[]);
    assert_eq!(streamed(&mut stream, 2), "a2 b1");
    let mut again = hub.watch(target, &[&format!("Last-Event-ID: {}", ids[0])]);
    assert_eq!(streamed(&mut again, 2), "a2 b1");
    publish(&hub, &[("s.c", "c1"), ("t.a", "not this"), ("s.a", "a3")]);
    for stream in [&mut stream, &mut again] {
        assert_eq!(streamed(stream, 2), "c1 a3");
    }
});

on_each_path!(a_message_on_a_pattern_leaves_out_the_subscriber_it_is_not_for, {
    let hub = Hub::start(&[]);
    let mut me = hub.watch("/events?channel=s.*&as=me", &[]);
    let mut other = hub.watch("/events?channel=s.*", &[]);
    hub.post("?channel=s.a&except=me", "text/plain", "for others");
    publish(&hub, &[("s.b", "for all")]);
    assert_eq!((me.data(), streamed(&mut other, 2)), ("for all".into(), "for others for all".to_owned()));
});
