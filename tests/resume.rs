//! Resuming: a subscriber that reconnects goes on at its position, and gets a gap event for what is no longer
//! kept. History: the same messages by `GET /messages`.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{Hub, Site, Stream, on_each_journal, on_each_path, on_paths};

fn publish(hub: &Hub, numbers: std::ops::RangeInclusive<usize>) -> Vec<String> {
    numbers.map(|number| hub.publish(&number.to_string())).collect()
}

fn data(stream: &mut Stream, count: usize) -> Vec<String> {
    (0..count).map(|_| stream.data()).collect()
}

fn resume(hub: &Hub, id: &str) -> Stream {
    hub.watch("/events", &[&format!("Last-Event-ID: {id}")])
}

on_each_path!(a_subscriber_resumes_after_its_last_event_id, {
    let hub = Hub::start(&[]);
    let ids = publish(&hub, 1..=5);
    let mut stream = resume(&hub, &ids[1]);
    assert_eq!(data(&mut stream, 3), ["3", "4", "5"]);
    publish(&hub, 6..=6);
    assert_eq!(stream.data(), "6");
});

on_each_path!(the_cursor_may_stand_in_the_query_but_the_header_wins, {
    let hub = Hub::start(&[]);
    let ids = publish(&hub, 1..=4);
    let in_query = format!("/events?last=3&last_event_id={}", ids[2]);
    assert_eq!(hub.watch(&in_query, &[]).data(), "4");
    let mut both = hub.watch(&in_query, &[&format!("last-event-id: {}", ids[0])]);
    assert_eq!(data(&mut both, 3), ["2", "3", "4"]);
    // An empty cursor is no cursor.
    assert_eq!(data(&mut hub.watch("/events?last=2&last_event_id=", &["Last-Event-ID:"]), 2), ["3", "4"]);
    assert_eq!(hub.watch(&in_query, &["Last-Event-ID:"]).data(), "4");
});

on_each_path!(the_cursor_is_taken_under_the_names_that_polyfills_give_it, {
    let hub = Hub::start(&[]);
    let ids = publish(&hub, 1..=4);
    for name in ["last_event_id", "lastEventId", "lastEventID", "Last-Event-ID"] {
        let target = format!("/events?{name}={}", ids[2]);
        assert_eq!(hub.watch(&target, &[]).data(), "4", "{name}");
        let mut both = hub.watch(&target, &[&format!("Last-Event-ID: {}", ids[1])]);
        assert_eq!(data(&mut both, 2), ["3", "4"], "{name}: the header wins");
        // What reconnects appends its id to the page's URL.
        let appended = format!("/events?last_event_id={}&{name}={}&{name}=", ids[0], ids[2]);
        assert_eq!(hub.watch(&appended, &[]).data(), "4", "{name}");
    }
});

on_each_journal!(an_empty_cursor_of_a_history_is_no_cursor, {
    let hub = Hub::start(&[]);
    publish(&hub, 1..=3);
    for query in ["?after=", "?before=", "?after=&before=", "?before=&last=3", "?after=&last=3&limit=3"] {
        let answer = hub.get(&format!("/messages{query}")).json();
        assert_eq!(answer["messages"].as_array().unwrap().len(), 3, "{query}");
        assert!(answer.get("gap").is_none(), "{query}: {answer}");
    }
    assert_eq!(hub.get("/messages?before=&latest=1").json()["messages"][0]["data"], "3");
});

on_each_path!(a_subscriber_cut_off_before_its_first_message_misses_nothing, {
    let hub = Hub::start(&[]);
    publish(&hub, 1..=2);
    let stream = hub.watch("/events", &[]);
    let id = stream.opening.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    drop(stream);
    publish(&hub, 3..=4);
    assert_eq!(data(&mut resume(&hub, &id), 2), ["3", "4"]);
});

on_each_path!(a_cursor_older_than_retention_gets_a_gap_event_and_what_is_kept, {
    let hub = Hub::start(&["--retention-messages", "3"]);
    let ids = publish(&hub, 1..=9);
    let mut stream = resume(&hub, &ids[3]);
    let gap = stream.event().unwrap();
    assert_eq!(gap.event, "tabcast:gap");
    assert_eq!(gap.json(), serde_json::json!({ "asked": ids[3], "earliest": ids[6] }));
    assert_eq!(data(&mut stream, 3), ["7", "8", "9"]);
    // The gap event's id is the new position: who resumes from it gets no second gap event.
    let mut again = resume(&hub, &gap.id);
    assert_eq!(data(&mut again, 3), ["7", "8", "9"]);
    // The id just before the earliest kept message is no gap.
    assert_eq!(data(&mut resume(&hub, &ids[5]), 3), ["7", "8", "9"]);
});

on_each_path!(a_cursor_of_another_journal_or_of_none_gets_a_gap_event_in_the_stream, {
    let hub = Hub::start(&[]);
    let long = "x".repeat(500);
    for (number, cursor) in ["zzzzzzzz-1", "garbage", "-", "\u{fc}", &*long].iter().enumerate() {
        let mut stream = resume(&hub, cursor);
        assert!(!stream.opening.contains("id:"), "a reconnect would pass for resumed");
        let gap = stream.event().unwrap();
        assert_eq!(gap.event, "tabcast:gap");
        assert_eq!(gap.json()["asked"].as_str().unwrap(), &cursor[..cursor.len().min(64)]);
        assert_eq!(gap.json()["earliest"].is_null(), number == 0, "{gap:?}");
        (0..number).for_each(|_| drop(stream.data()));
        hub.publish("next");
        assert_eq!(stream.data(), "next");
    }
});

on_each_path!(an_id_that_no_message_has_yet_is_a_gap, {
    let hub = Hub::start(&[]);
    let ids = publish(&hub, 1..=1);
    let ahead = ids[0].replace("-1", "-7");
    let mut stream = resume(&hub, &ahead);
    assert_eq!(stream.event().unwrap().event, "tabcast:gap");
    assert_eq!(stream.data(), "1");
});

on_paths!([memory, http_1_0], a_restarted_hub_has_another_epoch_and_sends_a_gap_event, {
    let site = Site::new(&["--journal", "memory"]);
    let hub = site.start();
    let ids = publish(&hub, 1..=3);
    let hub = site.restart(hub, "KILL");
    let mut stream = resume(&hub, &ids[2]);
    let gap = stream.event().unwrap();
    assert_eq!((&*gap.event, gap.json()["asked"].as_str()), ("tabcast:gap", Some(&*ids[2])));
    publish(&hub, 4..=4);
    assert_eq!(stream.data(), "4");
});

on_each_path!(in_ndjson_a_gap_event_is_a_line_of_its_own, {
    let hub = Hub::start(&[]);
    let mut stream = hub.open("/events", &["Accept: application/x-ndjson", "Last-Event-ID: garbage"]);
    let expected = "{\"event\":\"tabcast:gap\",\"data\":{\"asked\":\"garbage\",\"earliest\":null}}\n";
    assert_eq!(stream.line().unwrap(), expected);
});

on_each_path!(reconnecting_at_every_message_while_many_publish_loses_and_doubles_nothing, {
    let hub = Hub::start(&[]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..100).for_each(|_| drop(hub.publish("x"))));
        }
        let first = hub.watch("/events?last=1000000", &[]);
        let mut id = first.opening.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
        let mut seen = 0;
        while seen < 400 {
            let mut stream = resume(&hub, &id);
            for _ in 0..(seen % 3).min(399 - seen) + 1 {
                seen += 1;
                id = stream.event().unwrap().id;
                assert!(id.ends_with(&format!("-{seen}")), "{id} is not the message after {}", seen - 1);
            }
        }
    });
});

on_each_path!(history_has_as_many_of_the_newest_as_asked_while_many_publish, {
    let hub = Hub::start(&[]);
    publish(&hub, 1..=3);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    hub.publish("x");
                }
            });
        }
        let read = || (0..500).map(|_| hub.history("?last=3").len()).filter(|count| *count != 3).count();
        let readers: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
        let short: usize = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        done.store(true, Ordering::Relaxed);
        assert_eq!(short, 0, "of 4,000 histories");
    });
});

on_each_path!(history_is_newest_last_and_pages_by_after, {
    let hub = Hub::start(&["--replay-page", "4"]);
    let ids = publish(&hub, 1..=10);
    hub.publish_to("other", "x");
    let texts = |query: &str| {
        let data = hub.history_data(query);
        data.iter().map(|text| text.as_str().unwrap()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(texts(""), "7 8 9 10");
    assert_eq!(texts("?last=2"), "9 10");
    assert_eq!(texts("?limit=2"), "9 10");
    assert_eq!(texts("?last=0"), "");
    assert_eq!(texts(&format!("?after={}", ids[1])), "3 4 5 6");
    assert_eq!(texts(&format!("?after={}&limit=2", ids[1])), "3 4");
    assert_eq!(texts(&format!("?after={}", ids[9])), "");
    assert_eq!(texts(&format!("?channel=other&channel=main&after={}", ids[8])), "10 x");
    assert_eq!(hub.get("/messages?channel=nobody").text(), "{\"messages\":[]}");
    assert_eq!(hub.get("/messages").header("content-type"), Some("application/json"));
});

on_each_path!(history_has_the_gap_beside_the_messages, {
    let hub = Hub::start(&["--retention-messages", "2"]);
    let ids = publish(&hub, 1..=5);
    let json = hub.get(&format!("/messages?after={}&limit=1", ids[0])).json();
    assert_eq!(json["gap"], serde_json::json!({ "asked": ids[0], "earliest": ids[3] }));
    assert_eq!(json["messages"][0]["data"], "4");
    assert_eq!(json["messages"].as_array().unwrap().len(), 1);
    assert!(hub.get(&format!("/messages?after={}", ids[2])).json().get("gap").is_none());
});
