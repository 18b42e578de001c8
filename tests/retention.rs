//! What is kept of some channels and messages: rules for channels, messages with a ttl, deleted messages.
//! What they drop is no gap, and stays dropped, whatever becomes of the hub.

mod common;

use std::fs;
use std::process::Command;
use std::time::Instant;

use common::{Folder, Hub, PATIENCE, Response, Site, Stream, on_each_journal, sqlite3};
use serde_json::{Value, json};

/// A settings file with these rules, and its folder.
fn settings(rules: &str) -> (Folder, String) {
    let folder = Folder::new();
    let path = folder.file("tabcast.toml");
    fs::write(&path, rules).unwrap();
    (folder, path)
}

fn publish(hub: &Hub, channel: &str, numbers: std::ops::RangeInclusive<usize>) -> Vec<String> {
    numbers.map(|number| hub.publish_to(channel, &number.to_string())).collect()
}

fn resume(hub: &Hub, channels: &str, id: &str) -> Stream {
    hub.watch(&format!("/events?{channels}"), &[&format!("Last-Event-ID: {id}")])
}

fn data(stream: &mut Stream, count: usize) -> Vec<String> {
    (0..count).map(|_| stream.data()).collect()
}

fn delete(hub: &Hub, id: &str) -> Response {
    hub.send("DELETE", &format!("/messages/{id}"), &[], b"")
}

/// Waits until this is true.
fn wait_until(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "{what}");
    }
}

/// How many rows with data the file has.
fn rows(site: &Site) -> usize {
    sqlite3(&site.journal(), "SELECT count(*) FROM messages").trim().parse().unwrap()
}

const LATEST: &str = "[[channel]]\nmatch = 'cursor.>'\nmessages = 1\n";

on_each_journal!(a_rule_keeps_the_newest_of_each_channel_and_what_it_drops_is_no_gap, {
    let (_folder, path) = settings(LATEST);
    let hub = Hub::start(&["--config", &path]);
    let first = hub.publish_to("cursor.7", "first");
    hub.publish_to("cursor.8", "other");
    publish(&hub, "main", 1..=3);
    publish(&hub, "cursor.7", 1..=1_000);
    let mut stream = resume(&hub, "channel=cursor.7", &first);
    assert_eq!(stream.data(), "1000");
    let mut all = resume(&hub, "channel=%3E", &first);
    assert_eq!(data(&mut all, 5), ["other", "1", "2", "3", "1000"]);
    hub.publish_to("cursor.7", "live");
    assert_eq!(stream.data(), "live");
    assert_eq!(hub.history_data("?channel=cursor.7"), ["live"]);
    assert_eq!(hub.history_data("?channel=cursor.7&last=5"), ["live"]);
    assert_eq!(hub.history_data("?channel=cursor.8"), ["other"]);
    let after = hub.get(&format!("/messages?channel=cursor.7&after={first}")).json();
    assert_eq!((after.get("gap"), after["messages"].as_array().unwrap().len()), (None, 1));
});

on_each_journal!(the_first_rule_that_matches_counts, {
    let (_folder, path) = settings(
        "[[channel]]\nmatch = 'a.b'\nmessages = 3\n[[channel]]\nmatch = 'a.*'\nmessages = 1\n\
         [[channel]]\nmatch = '>'\nmessages = 2\n",
    );
    let hub = Hub::start(&["--config", &path]);
    for (channel, count) in [("a.b", 3), ("a.c", 1), ("a.b.c", 2), ("main", 2)] {
        publish(&hub, channel, 1..=5);
        assert_eq!(hub.history(&format!("?channel={channel}")).len(), count, "{channel}");
    }
});

on_each_journal!(a_flood_leaves_what_rules_keep_of_other_channels, {
    let (_folder, path) = settings("[[channel]]\nmatch = 'state.>'\nmessages = 2\n");
    let hub = Hub::start(&["--config", &path, "--retention-messages", "6"]);
    let start = hub.publish_to("state.a", "0");
    publish(&hub, "state.a", 1..=2);
    publish(&hub, "state.b", 3..=3);
    let flood = publish(&hub, "main", 1..=30);
    assert_eq!(hub.history_data("?channel=state.a"), ["1", "2"]);
    assert_eq!(hub.history_data("?channel=main"), ["28", "29", "30"]);
    // No gap for those who have a share; one for the others, once, and nothing that is kept is left out.
    assert_eq!(data(&mut resume(&hub, "channel=state.*", &start), 3), ["1", "2", "3"]);
    let mut main = resume(&hub, "", &flood[0]);
    assert_eq!(main.event().unwrap().json(), json!({ "asked": flood[0], "earliest": flood[27] }));
    assert_eq!(data(&mut main, 3), ["28", "29", "30"]);
    for cursor in [&start, "nowhere"] {
        let mut both = resume(&hub, "channel=state.a&channel=main", cursor);
        let gap = both.event().unwrap();
        assert_eq!(
            (&*gap.event, gap.json()),
            ("tabcast:gap", json!({"asked": cursor, "earliest": flood[27]}))
        );
        assert_eq!(data(&mut both, 5), ["1", "2", "28", "29", "30"]);
        // Whoever is cut off after the gap goes on without a loss.
        let mut again = resume(&hub, "channel=state.a&channel=main", &gap.id);
        assert_eq!(again.event().unwrap().event, "tabcast:gap");
        assert_eq!(data(&mut again, 5), ["1", "2", "28", "29", "30"]);
    }
    let history = hub.get(&format!("/messages?channel=state.a&channel=main&after={start}")).json();
    assert_eq!(history["gap"], json!({ "asked": start, "earliest": flood[27] }));
    assert_eq!(history["messages"].as_array().unwrap().len(), 5);
    assert!(flood.iter().all(|id| resume(&hub, "channel=state.b", id).opening.contains(id)));
});

on_each_journal!(all_shares_together_stay_within_the_limits_of_the_journal, {
    let (_folder, path) = settings(LATEST);
    let hub = Hub::start(&["--config", &path, "--retention-messages", "10"]);
    let ids: Vec<_> = (1..=30).map(|number| hub.publish_to(&format!("cursor.{number}"), "x")).collect();
    assert_eq!(hub.history("?channel=cursor.%3E").len(), 10);
    let mut stream = resume(&hub, "channel=cursor.%3E", &ids[0]);
    assert_eq!(stream.event().unwrap().json(), json!({ "asked": ids[0], "earliest": ids[20] }));
    let mut stream = resume(&hub, "channel=cursor.%3E", &ids[19]);
    assert_eq!(stream.event().unwrap().id, ids[20]);
});

on_each_journal!(a_message_is_dropped_once_it_has_the_age_of_its_rule, {
    let (_folder, path) = settings("[[channel]]\nmatch = 'brief'\nage = '200ms'\n");
    let hub = Hub::start(&["--config", &path]);
    let ids = publish(&hub, "brief", 1..=5);
    hub.publish("stays");
    wait_until("they are kept", || hub.history("?channel=brief").is_empty());
    let mut stream = resume(&hub, "channel=brief&channel=main", &ids[0]);
    assert_eq!(stream.data(), "stays");
    assert_eq!(hub.history_data(""), ["stays"]);
});

on_each_journal!(a_ttl_is_taken_in_each_form_and_told_in_the_receipt_and_the_message, {
    let hub = Hub::start(&[]);
    let mut stream = hub.watch("/events?format=message", &[]);
    let answers = [
        hub.post("", "application/json", r#"{"data": 1, "ttl": "1h"}"#),
        hub.post("?ttl=1h", "text/plain", "1"),
        hub.post("", "application/x-www-form-urlencoded", "data=1&ttl=1h"),
        hub.post("?ttl=1h", "application/x-www-form-urlencoded", "data=1"),
        hub.post("?ttl=1h", "image/png", "1"),
    ];
    for answer in answers {
        assert_eq!(answer.status, 201, "{answer:?}");
        while stream.event().map(|event| event.json()["expires"].clone())
            != Some(answer.json()["expires"].clone())
        {}
        assert!(answer.json()["expires"].as_str().unwrap() > answer.json()["time"].as_str().unwrap());
    }
    assert_eq!(hub.post("", "text/plain", "x").json().get("expires"), None);
    assert_eq!(hub.history("").len(), 6);
    for bad in ["0s", "-1s", "30", "soon", "", "3651days", "11y", "1ns"] {
        let problem = hub.post(&format!("?ttl={bad}"), "text/plain", "x").problem(422);
        assert_eq!(problem["field"], "ttl");
        assert_eq!(problem.get("limit").is_some(), bad == "3651days" || bad == "11y", "{problem}");
    }
    hub.post("", "application/json", r#"{"data": 1, "ttl": 30}"#).problem(422);
    assert_eq!(hub.post("?ttl=3650days", "text/plain", "x").status, 201);
});

on_each_journal!(an_expired_message_is_left_out_and_is_no_gap, {
    let hub = Hub::start(&[]);
    let first = hub.publish("first");
    let mut live = hub.watch("/events", &[]);
    hub.post("?ttl=100ms", "text/plain", "brief");
    hub.post("?ttl=1h", "text/plain", "long");
    assert_eq!(data(&mut live, 2), ["brief", "long"]);
    wait_until("it is kept", || hub.history("").len() == 2);
    assert_eq!(hub.history_data("?last=2"), ["first", "long"]);
    assert_eq!(resume(&hub, "", &first).data(), "long");
    assert_eq!(hub.watch("/events?last=1", &[]).data(), "long");
});

on_each_journal!(the_ttl_is_a_part_of_the_request_that_a_key_stands_for, {
    let hub = Hub::start(&[]);
    let post = |query: &str| {
        let headers = ["Content-Type: text/plain", "Idempotency-Key: k"];
        hub.send("POST", &format!("/messages{query}"), &headers, b"x")
    };
    let answer = post("?ttl=100ms");
    wait_until("it is kept", || hub.history("").is_empty());
    assert_eq!(post("?ttl=100ms").body, answer.body);
    post("").problem(422);
    post("?ttl=2h").problem(422);
    assert!(hub.history("").is_empty());
});

on_each_journal!(a_deleted_message_is_gone_and_its_channel_is_told, {
    let hub = Hub::start(&[]);
    let mut live = hub.watch("/events?channel=a&format=message", &[]);
    let ids = publish(&hub, "a", 1..=3);
    data(&mut live, 4);
    let answer = delete(&hub, &ids[1]);
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    let event = live.event().unwrap().json();
    assert_eq!((&event["event"], &event["channel"]), (&json!("tabcast:deleted"), &json!("a")));
    assert_eq!(event["data"], json!({ "id": ids[1] }));
    let kept: Vec<_> = hub.history("?channel=a").into_iter().map(|message| message["id"].clone()).collect();
    assert_eq!(kept, [json!(ids[0]), json!(ids[2]), event["id"].clone()]);
    // Whoever had it, whoever had not, and whoever resumes in bare: no gap.
    let mut bare = resume(&hub, "channel=a", &ids[1]);
    assert_eq!(bare.data(), "3");
    let deleted = bare.event().unwrap();
    assert_eq!((&*deleted.event, deleted.json()), ("tabcast:deleted", json!({ "id": ids[1] })));
    assert_eq!(data(&mut resume(&hub, "channel=a", &ids[0]), 1), ["3"]);
    // Once only, and never what is not there.
    delete(&hub, &ids[1]).problem(404);
    assert_eq!(delete(&hub, event["id"].as_str().unwrap()).status, 204);
    let epoch = ids[0].split_once('-').unwrap().0;
    for unknown in ["0", "99", "18446744073709551615"].map(|sequence| format!("{epoch}-{sequence}")) {
        delete(&hub, &unknown).problem(404);
    }
    delete(&hub, "zzzzzzzz-1").problem(404);
    for bad in ["x", "a-1", "abcdefgh-01", "%00"] {
        delete(&hub, bad).problem(400);
    }
    assert_eq!(hub.send("DELETE", &format!("/messages/{}?x=1", ids[0]), &[], b"").problem(422)["field"], "x");
    assert_eq!(delete(&hub, &ids[0]).status, 204);
});

on_each_journal!(a_delete_is_a_write_as_a_publish_is, {
    let hub = Hub::start(&["--allow-origin", "https://a.example"]);
    let id = hub.publish("x");
    let target = format!("/messages/{id}");
    for header in ["Origin: https://b.example", "Sec-Fetch-Site: cross-site"] {
        hub.send("DELETE", &target, &[header], b"").problem(403);
    }
    let asked = ["Origin: https://a.example", "Access-Control-Request-Method: DELETE"];
    let preflight = hub.send("OPTIONS", &target, &asked, b"");
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("DELETE"), "{preflight:?}");
    for method in ["GET", "HEAD", "POST", "PUT"] {
        let refused = hub.send(method, &target, &[], b"");
        assert_eq!((refused.status, refused.header("allow")), (405, Some("DELETE")));
    }
    hub.send("DELETE", "/messages", &[], b"").problem(405);
    hub.send("DELETE", "/messages/", &[], b"").problem(405);
    assert_eq!(hub.send("DELETE", &target, &["Origin: https://a.example"], b"").status, 204);
});

on_each_journal!(of_many_who_delete_a_message_at_once_one_does, {
    let hub = Hub::start(&[]);
    let ids = publish(&hub, "main", 1..=40);
    let deleted = std::thread::scope(|scope| {
        let all = || ids.iter().map(|id| u16::from(delete(&hub, id).status == 204)).sum::<u16>();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(all)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u16>()
    });
    assert_eq!((deleted, hub.history("").len()), (40, 40));
    assert!(hub.history("").iter().all(|message| message["event"] == "tabcast:deleted"));
});

/// Whether one of the journal's files has these bytes.
fn is_in_files(site: &Site, text: &str) -> bool {
    let has =
        |path: String| memchr::memmem::find(&fs::read(path).unwrap_or_default(), text.as_bytes()).is_some();
    has(site.journal()) || has(format!("{}-wal", site.journal()))
}

#[test]
fn the_bytes_of_a_deleted_message_are_in_no_file_and_its_key_is_remembered() {
    let site = Site::new(&["--hide-data"]);
    let mut hub = site.start();
    let headers = ["Idempotency-Key: k", "Content-Type: text/plain"];
    for (number, length) in [10, 3_000, 50_000].into_iter().enumerate() {
        let secret = format!("secret {number} ");
        let text = secret.repeat(length / secret.len());
        publish(&hub, "main", 1..=20);
        let plain = hub.publish(&text);
        let key = format!("Idempotency-Key: {number}");
        let send = |hub: &Hub| hub.send("POST", "/messages", &[&key, headers[1]], text.as_bytes());
        let answer = send(&hub);
        let keyed = answer.json()["id"].as_str().unwrap().to_owned();
        publish(&hub, "main", 1..=20);
        assert!(is_in_files(&site, &secret));
        assert_eq!(delete(&hub, &plain).status, 204);
        assert_eq!(delete(&hub, &keyed).status, 204);
        assert!(!is_in_files(&site, &secret), "of {length} bytes");
        assert_eq!(send(&hub).body, answer.body);
        hub = site.restart(hub, "KILL");
        assert_eq!(send(&hub).body, answer.body);
        delete(&hub, &plain).problem(404);
        delete(&hub, &keyed).problem(404);
        assert!(!is_in_files(&site, &secret), "of {length} bytes after a restart");
    }
}

#[test]
fn a_restart_changes_nothing_of_what_was_dropped_has_expired_or_was_deleted() {
    let (_folder, path) = settings(LATEST);
    let site = Site::new(&["--config", &path]);
    let mut hub = site.start();
    let first = hub.publish("first");
    for signal in ["TERM", "KILL"] {
        publish(&hub, "cursor.7", 1..=200);
        let deleted = hub.publish("deleted");
        hub.post("?ttl=50ms", "text/plain", "brief");
        let last = hub.publish(signal);
        assert_eq!(delete(&hub, &deleted).status, 204);
        wait_until("it is kept", || !hub.history_data("").contains(&json!("brief")));
        let before = hub.history("?channel=%3E");
        hub = site.restart(hub, signal);
        assert_eq!(hub.history("?channel=%3E"), before);
        assert_eq!(hub.history_data("?channel=cursor.7"), ["200"]);
        let mut stream = resume(&hub, "channel=%3E", &first);
        assert_eq!(stream.event().unwrap().id, before[1]["id"].as_str().unwrap());
        assert_eq!(resume(&hub, "", &last).event().unwrap().event, "tabcast:deleted");
        delete(&hub, &deleted).problem(404);
    }
    // And their rows are deleted soon: 2 of the signals, 2 of deletions, the first, and the cursor.
    wait_until("rows are left", || rows(&site) == 6);
    let verified =
        Command::new(env!("CARGO_BIN_EXE_tabcast")).args(["verify", &site.journal()]).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
}

#[test]
fn a_cursor_is_none_of_another_history_although_nothing_is_left_of_its_run() {
    let (_folder, path) = settings(LATEST);
    let site = Site::new(&["--config", &path]);
    let mut hub = site.start();
    let mut cursors = Vec::new();
    for number in 1..=4 {
        cursors.extend(publish(&hub, "cursor.1", 1..=number).into_iter().take(1));
        hub = site.restart(hub, "TERM");
    }
    hub.publish_to("cursor.1", "last");
    for cursor in cursors {
        assert_eq!(resume(&hub, "channel=cursor.1", &cursor).data(), "last");
    }
}

#[test]
fn a_message_that_expires_while_no_hub_runs_is_not_kept_by_the_next() {
    let site = Site::new(&[]);
    let hub = site.start();
    hub.post("?ttl=1s", "text/plain", "brief");
    let receipt = hub.post("", "text/plain", "last").json();
    let mut hub = site.restart(hub, "KILL");
    wait_until("it is kept", || hub.history_data("") == ["last"]);
    wait_until("its row is left", || rows(&site) == 1);
    // The last message of all may expire too: no sequence is given again.
    hub.post("?ttl=1ms", "text/plain", "brief");
    wait_until("its row is left", || rows(&site) == 1);
    hub = site.restart(hub, "TERM");
    assert!(hub.publish("next").ends_with("-4"));
    assert_eq!(resume(&hub, "", receipt["id"].as_str().unwrap()).data(), "next");
}

#[test]
fn other_rules_count_for_what_is_in_the_file_and_what_others_dropped_before_is_a_gap() {
    let (_folder, path) = settings("[[channel]]\nmatch = 'a'\nmessages = 2\n");
    let site = Site::new(&["--config", &path, "--retention-messages", "8"]);
    let mut hub = site.start();
    let start = publish(&hub, "b", 1..=1).remove(0);
    publish(&hub, "a", 1..=9);
    publish(&hub, "b", 2..=9);
    assert_eq!(hub.history_data("?channel=a"), ["8", "9"]);
    assert_eq!(hub.history_data("?channel=b"), ["4", "5", "6", "7", "8", "9"]);
    fs::write(&path, "[[channel]]\nmatch = 'b'\nmessages = 3\n").unwrap();
    hub = site.restart(hub, "TERM");
    assert_eq!(hub.history_data("?channel=b"), ["7", "8", "9"]);
    assert_eq!(hub.history_data("?channel=a"), ["8", "9"]);
    assert_eq!(resume(&hub, "channel=b", &start).event().unwrap().event, "tabcast:gap");
    // What a rule has dropped is back if the hub is killed before it is deleted, and no rule drops it then.
    wait_until("rows are left", || rows(&site) == 5);
    fs::write(&path, "").unwrap();
    hub = site.restart(hub, "KILL");
    assert_eq!(hub.history_data("?channel=b"), ["7", "8", "9"]);
    publish(&hub, "b", 10..=17);
    assert_eq!(hub.history("?channel=%3E").len(), 8);
}

#[test]
fn a_file_of_before_gets_what_it_lacks_and_a_copy_of_one_with_holes_is_sound() {
    let (_folder, path) = settings(LATEST);
    let site = Site::new(&["--config", &path]);
    let mut hub = site.start();
    publish(&hub, "cursor.1", 1..=2);
    publish(&hub, "main", 1..=3);
    wait_until("a row is left", || rows(&site) == 4);
    hub.end("TERM");
    let before = "DROP INDEX expiring; DROP INDEX bare; DROP TABLE retention;
                  ALTER TABLE entries DROP COLUMN expires_ms; DELETE FROM entries WHERE sequence = 1;";
    sqlite3(&site.journal(), before);
    let tabcast = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_tabcast")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    tabcast(&["verify", &site.journal()]);
    let hub = site.start();
    hub.post("?ttl=1ms", "text/plain", "brief");
    let ids = publish(&hub, "main", 4..=5);
    assert_eq!(delete(&hub, &ids[0]).status, 204);
    let history = hub.history("?channel=%3E");
    let backup = site.folder.file("backup.db");
    tabcast(&["backup", &backup, "--journal", &site.journal()]);
    tabcast(&["verify", &backup]);
    let copy = Hub::start(&["--journal", &backup, "--config", &path]);
    wait_until("it is another journal", || copy.history("?channel=%3E") == history);
}

#[test]
fn a_bad_rule_is_named_by_its_table_and_key_and_the_hub_does_not_start() {
    let many = "[[channel]]\nmatch = 'a'\nmessages = 1\n".repeat(1_001);
    for (rules, parts) in [
        ("channel = 1", "must be tables"),
        ("[[channel]]\nmessages = 1", "number 1: `match` is missing"),
        ("[[channel]]\nmatch = 'a'", "number 1: `messages` and `age` are missing"),
        (
            "[[channel]]\nmatch = 'a'\nage = '1m'\n[[channel]]\nmatch = 'a..b'\nage = '1m'",
            "number 2: `match` must",
        ),
        ("[[channel]]\nmatch = 'a'\nmessages = 0", "number 1: `messages` must be at least 1"),
        ("[[channel]]\nmatch = 'a'\nmessages = '1'", "number 1: `messages` must be a whole number"),
        ("[[channel]]\nmatch = 'a'\nage = '0s'", "number 1: `age` must be more than 0"),
        ("[[channel]]\nmatch = 'a'\nage = 'long'", "number 1: `age` "),
        ("[[channel]]\nmatch = 'a'\nmesages = 1", "number 1: `mesages` is unknown"),
        (&many, "there are 1001 tables [[channel]], the limit is 1000"),
    ] {
        let (_folder, path) = settings(rules);
        let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
        let output = command.args(["--config", &path, "--journal", "memory"]).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(&path) && stderr.contains(parts), "{stderr}");
    }
}

#[test]
fn a_value_of_each_of_many_channels_is_kept_beside_a_flood_of_bytes() {
    let (_folder, path) = settings(LATEST);
    let site = Site::new(&["--config", &path, "--retention-bytes", "1MiB", "--hide-data"]);
    let hub = site.start();
    let values: Vec<Value> = (0..50).map(|number| json!(number.to_string())).collect();
    for (number, value) in values.iter().enumerate() {
        hub.publish_to(&format!("cursor.{number}"), value.as_str().unwrap());
    }
    (0..100).for_each(|_| drop(hub.publish(&"x".repeat(100_000))));
    assert_eq!(hub.history_data("?channel=cursor.%3E"), values);
    assert!(hub.history("?channel=main").len() < 40);
    let hub = site.restart(hub, "KILL");
    assert_eq!(hub.history_data("?channel=cursor.%3E"), values);
}
