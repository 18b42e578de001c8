//! What is done to the journal's files, and to the clock: a copy is restored, a file is moved or damaged, a
//! program locks it, the clock is wrong. The hub loses nothing in silence, and says what is the matter.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::process::Command;
use std::time::Instant;

use common::{Folder, Hub, PATIENCE, Site, assert_refused_and_unchanged, sqlite3};
use serde_json::{Value, json};

fn publish(hub: &Hub, texts: impl IntoIterator<Item = u32>) -> Vec<String> {
    texts.into_iter().map(|number| hub.publish(&number.to_string())).collect()
}

fn wal(file: &str) -> String {
    format!("{file}-wal")
}

/// Copies the file, and its WAL if there is one.
fn copy(from: &str, to: &str) {
    for suffix in ["", "-wal"] {
        let _ = fs::remove_file(format!("{to}{suffix}"));
        if fs::exists(format!("{from}{suffix}")).unwrap() {
            fs::copy(format!("{from}{suffix}"), format!("{to}{suffix}")).unwrap();
        }
    }
}

#[test]
fn a_restored_copy_loses_nothing_in_silence() {
    let site = Site::new(&[]);
    let (journal, backup) = (site.journal(), site.folder.file("backup.db"));
    let keyed = |hub: &Hub| {
        let headers = ["Idempotency-Key: k", "Content-Type: text/plain"];
        hub.send("POST", "/messages?channel=keyed", &headers, b"x")
    };
    let mut hub = site.start();
    let mut ids = publish(&hub, 1..=2);
    sqlite3(&journal, &format!("VACUUM INTO '{backup}'"));
    ids.extend(publish(&hub, 3..=5));
    let answer = keyed(&hub).body;
    hub.end("TERM");
    fs::rename(&backup, &journal).unwrap();

    let hub = site.start();
    let new = publish(&hub, 3..=6);
    assert!(new.iter().all(|id| !ids.contains(id)), "{new:?} after {ids:?}");
    for lost in &ids[2..] {
        let mut stream = hub.watch("/events", &[&format!("Last-Event-ID: {lost}")]);
        assert!(!stream.opening.contains("id:"), "{:?}", stream.opening);
        let gap = stream.event().unwrap();
        assert_eq!((&*gap.event, gap.json()), ("tabcast:gap", json!({"asked": lost, "earliest": ids[0]})));
        assert_eq!((1..=6).map(|_| stream.data()).collect::<String>(), "123456");
        let history = hub.get(&format!("/messages?after={lost}")).json();
        assert_eq!(history["gap"], gap.json());
        assert_eq!(history["messages"].as_array().unwrap().len(), 6);
    }
    for (number, known) in (1..).zip(&ids[..2]) {
        let history = hub.get(&format!("/messages?after={known}")).json();
        assert_eq!((history.get("gap"), history["messages"].as_array().unwrap().len()), (None, 6 - number));
    }
    // Only the lost history knew this key.
    assert_ne!(keyed(&hub).body, answer);
    assert_eq!(keyed(&hub).body, keyed(&hub).body);
    assert_eq!(hub.history("?channel=keyed").len(), 1);
}

#[test]
fn a_subscriber_that_waited_on_an_empty_journal_has_no_gap_after_a_restart() {
    let site = Site::new(&[]);
    let mut hub = site.start();
    for _ in 0..3 {
        let opening = hub.watch("/events", &[]).opening.clone();
        let id = opening.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
        hub = site.restart(hub, "KILL");
        let cursor = format!("Last-Event-ID: {id}");
        let resumed = hub.watch("/events", &[&cursor]).opening.clone();
        assert!(resumed.contains(&id), "{resumed:?} is a gap");
    }
}

#[test]
fn a_hub_whose_file_is_deleted_moved_or_replaced_acknowledges_nothing_more_and_ends() {
    type Harm = fn(&str, &str);
    let harms: [Harm; 5] = [
        |file, _| fs::remove_file(file).unwrap(),
        |file, aside| fs::rename(file, aside).unwrap(),
        |file, aside| {
            fs::copy(file, aside).unwrap();
            fs::rename(aside, file).unwrap();
        },
        |file, _| fs::remove_file(wal(file)).unwrap(),
        |file, aside| {
            fs::copy(wal(file), aside).unwrap();
            fs::rename(aside, wal(file)).unwrap();
        },
    ];
    for (number, harm) in harms.into_iter().enumerate() {
        for is_idle in [true, false] {
            let site = Site::new(&[]);
            let aside = site.folder.file("aside.db");
            let mut hub = site.start();
            let ids = publish(&hub, 1..=9);
            harm(&site.journal(), &aside);
            if !is_idle {
                let headers = ["Content-Type: text/plain"];
                assert_eq!(hub.send("POST", "/messages", &headers, b"x").status, 503, "{number}");
            }
            assert_eq!(hub.wait().code(), Some(1), "{number}");
            hub.wait_for_log(&["tabcast: can't go on with the journal", "deleted, moved or replaced"]);
            if number == 1 {
                // A file that was moved has all that was acknowledged.
                let _ = fs::remove_file(wal(&site.journal()));
                let moved = Hub::start(&["--journal", &aside]);
                let kept = moved.history("?limit=20");
                assert!(kept.iter().zip(&ids).all(|(message, id)| message["id"] == **id), "{kept:?}");
                assert!(kept.len() >= ids.len());
            }
        }
    }
}

#[test]
fn a_file_beside_the_wal_of_another_is_refused_and_left_as_it_is() {
    const REASON: &str = "-wal does not belong to it";
    let other = Site::new(&[]);
    let mut hub = other.start();
    publish(&hub, 1..=3);
    hub.end("TERM");

    let site = Site::new(&[]);
    let journal = site.journal();
    let at_first = site.folder.file("at-first.db");
    let mut hub = site.start();
    publish(&hub, 1..=3);
    hub.end("TERM");
    fs::copy(&journal, &at_first).unwrap();

    let mut hub = site.start();
    // So much that the WAL is copied to the file, and begins anew.
    let publish_large = |hub: &Hub| (0..250).for_each(|_| drop(hub.publish(&"x".repeat(100_000))));
    publish_large(&hub);
    let before = site.folder.file("before.db");
    sqlite3(&journal, &format!("VACUUM INTO '{before}'"));
    publish_large(&hub);
    let last = hub.publish("last");
    let just_now = site.folder.file("just-now.db");
    sqlite3(&journal, &format!("VACUUM INTO '{just_now}'"));
    publish(&hub, 4..=400);
    hub.end("KILL");
    assert!(fs::metadata(wal(&journal)).unwrap().len() > 0);

    let stand_in = Folder::new();
    let file = stand_in.file("tabcast.db");
    for replacement in [&other.journal(), &at_first, &before] {
        copy(&journal, &file);
        fs::copy(replacement, &file).unwrap();
        assert_refused_and_unchanged(&file, REASON);
    }
    copy(&journal, &file);
    fs::remove_file(&file).unwrap();
    assert_refused_and_unchanged(&file, REASON);
    // A copy with the messages that the file had when its WAL began is judged by what comes of it.
    copy(&journal, &file);
    fs::copy(&just_now, &file).unwrap();
    assert_refused_and_unchanged(&file, REASON);

    // The two that belong together, wherever they are.
    copy(&journal, &file);
    let hub = Hub::start(&["--journal", &file]);
    assert_eq!(hub.newest()["data"], "400");
    assert_eq!(hub.history(&format!("?after={last}&limit=500")).len(), 397);
}

#[test]
fn a_first_page_that_a_cut_tore_is_taken_from_the_wal() {
    let site = Site::new(&[]);
    let mut hub = site.start();
    // So large that the file grows with each, which its first page says.
    (0..20).for_each(|_| drop(hub.publish(&"x".repeat(5_000))));
    hub.end("KILL");
    let mut bytes = fs::read(site.journal()).unwrap();
    let wal_bytes = fs::read(wal(&site.journal())).unwrap();
    bytes[..4096].fill(0xa5);
    fs::write(site.journal(), &bytes).unwrap();
    let hub = site.start();
    assert_eq!(hub.history("?limit=20").len(), 20);

    // What is not a journal's is left as it is, as is its WAL.
    let folder = Folder::new();
    let file = folder.file("other.db");
    fs::write(&file, &bytes).unwrap();
    assert_refused_and_unchanged(&file, "not a tabcast journal");
    fs::write(wal(&file), [&wal_bytes[..32], &[0; 5_000]].concat()).unwrap();
    assert_refused_and_unchanged(&file, "not a tabcast journal");
    let other = rusqlite::Connection::open(folder.file("db")).unwrap();
    other.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (1)").unwrap();
    fs::copy(wal(&folder.file("db")), wal(&file)).unwrap();
    assert_refused_and_unchanged(&file, "not a tabcast journal");
}

#[test]
fn a_row_in_the_place_of_another_is_noticed_where_it_is_read() {
    let site = Site::new(&[]);
    let mut hub = site.start();
    let ids = publish(&hub, 1..=600);
    hub.end("TERM");
    let whole = fs::read(site.journal()).unwrap();
    // Of the row with this text, the number before the text: of 7 bits a byte, the first with a mark.
    let text = b"\"460\"";
    let text = whole.windows(text.len()).position(|bytes| bytes == text).unwrap();
    let number = |number: usize| [0x80 | (number >> 7) as u8, number as u8 & 0x7f];
    let at = (text - 60..text).rev().find(|at| whole[*at..at + 2] == number(460)).unwrap();
    for other in [230, 500, 461, 15_000] {
        let mut damaged = whole.clone();
        damaged[at..at + 2].copy_from_slice(&number(other));
        fs::write(site.journal(), damaged).unwrap();
        let mut hub = Hub::start(&["--journal", &site.journal()]);
        let mut stream = hub.open("/events", &[&format!("Last-Event-ID: {}", ids[400])]);
        let mut seen = Vec::new();
        while let Some(event) = stream.event() {
            seen.push(event.data.parse::<u32>().unwrap());
        }
        assert!(seen.len() < 60 && seen.iter().copied().eq((402..).take(seen.len())), "{other}: {seen:?}");
        assert_eq!(hub.wait().code(), Some(1));
        hub.wait_for_log(&["tabcast: can't read the journal: it is damaged"]);
    }
}

#[test]
fn a_gap_tells_the_earliest_kept_message_however_fast_messages_come_in() {
    let site = Site::new(&["--retention-messages", "2"]);
    let hub = site.start();
    let first = hub.publish("x");
    publish(&hub, 1..=5);
    std::thread::scope(|scope| {
        let flood = || (0..400).for_each(|_| drop(hub.publish("x")));
        let floods: Vec<_> = (0..4).map(|_| scope.spawn(flood)).collect();
        while floods.iter().any(|flood| !flood.is_finished()) {
            let gap = hub.watch("/events", &[&format!("Last-Event-ID: {first}")]).event().unwrap();
            assert!(gap.json()["earliest"].is_string(), "{gap:?}");
        }
    });
}

#[test]
fn a_lock_of_another_program_holds_up_neither_publishers_for_long_nor_a_stop() {
    let site = Site::new(&[]);
    let mut hub = site.start();
    publish(&hub, 1..=3);
    let other = rusqlite::Connection::open(site.journal()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let begun = Instant::now();
    let publisher = |_: u32| {
        let mut answers = (0..20).map(|_| hub.post("", "text/plain", "x"));
        assert!(answers.all(|answer| answer.status == 503 && answer.header("retry-after").is_some()));
    };
    std::thread::scope(|scope| {
        (0..8).for_each(|number| drop(scope.spawn(move || publisher(number))));
    });
    // Each waiting for as long as the first, they would be at it for more than two minutes.
    assert!(begun.elapsed() < PATIENCE, "160 publishes took {:?}", begun.elapsed());
    assert_eq!(hub.history_data(""), ["1", "2", "3"]);
    hub.signal("TERM");
    assert_eq!(hub.wait().code(), Some(0));
    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    let hub = site.start();
    publish(&hub, 4..=4);
    assert_eq!(hub.history_data(""), ["1", "2", "3", "4"]);
}

#[test]
fn a_file_of_version_1_is_migrated_with_what_its_hub_left_in_the_wal() {
    let site = Site::new(&[]);
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/version-1.db");
    copy(fixture, &site.journal());
    let hub = site.start();
    let all = hub.get("/messages?channel=c0&channel=c1&channel=main").json()["messages"].clone();
    let all = all.as_array().unwrap();
    let id = |number: u32| format!("nri7xzbz-{number}");
    let expected: Vec<_> = (3..=12).map(|number| json!([id(number), format!("message {number}")])).collect();
    let found: Vec<_> = all.iter().map(|message| json!([message["id"], message["data"]])).collect();
    assert_eq!(found, expected);
    assert_eq!(all[0]["time"], "2026-11-26T01:40:32.559Z");
    assert_eq!((&all[0]["event"], &all[9]["except"]), (&json!("e3"), &json!("me")));

    let mut stream = hub.watch("/events", &[&format!("Last-Event-ID: {}", id(10))]);
    assert_eq!((stream.data(), stream.data()), ("message 11".into(), "message 12".into()));
    let new = hub.publish("13");
    assert!(new.ends_with("-13") && !new.starts_with("nri7xzbz"), "{new}");
    let mut gone = hub.watch("/events?channel=c0&channel=c1", &[&format!("Last-Event-ID: {}", id(1))]);
    assert_eq!(gone.event().unwrap().json(), json!({"asked": id(1), "earliest": id(3)}));
    let again = site.restart(hub, "TERM");
    assert_eq!(again.newest()["id"], Value::from(new));
    assert_eq!(sqlite3(&site.journal(), "PRAGMA integrity_check").trim(), "ok");
    assert_eq!(sqlite3(&site.journal(), "SELECT id FROM messages WHERE sequence = 4").trim(), id(4));
}

#[test]
fn a_file_that_another_build_of_the_same_version_has_added_to_is_used() {
    let site = Site::new(&[]);
    let mut hub = site.start();
    publish(&hub, 1..=3);
    hub.end("TERM");
    sqlite3(
        &site.journal(),
        "ALTER TABLE entries ADD COLUMN more TEXT; CREATE TABLE more (x); CREATE INDEX i ON entries (event)",
    );
    let hub = site.start();
    publish(&hub, 4..=4);
    assert_eq!(site.restart(hub, "KILL").history_data(""), ["1", "2", "3", "4"]);
}

/// A hub whose clock a file sets, by libfaketime.
struct Clock {
    file: String,
}

impl Clock {
    fn at(site: &Site) -> Clock {
        let clock = Clock { file: site.folder.file("clock") };
        clock.set("+0");
        clock
    }

    /// Sets the clock by so much from the right time, as in `+8d`.
    fn set(&self, by: &str) {
        let new = format!("{}.new", self.file);
        fs::write(&new, by).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    fn start(&self, site: &Site) -> Hub {
        let library = fs::read_dir("/usr/lib")
            .unwrap()
            .map(|entry| entry.unwrap().path().join("faketime/libfaketimeMT.so.1"))
            .find(|library| library.exists())
            .expect("tests/run installs faketime");
        let mut command: Command = site.command(&[]);
        command.env("LD_PRELOAD", library).env("FAKETIME_TIMESTAMP_FILE", &self.file);
        command.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        Hub::start_with(&mut command)
    }
}

#[test]
fn a_clock_that_is_wrong_for_a_while_drops_nothing_and_no_time_goes_back() {
    let site = Site::new(&["--idempotency-window", "1h"]);
    let clock = Clock::at(&site);
    let keyed = |hub: &Hub| {
        let headers = ["Idempotency-Key: k", "Content-Type: text/plain"];
        hub.send("POST", "/messages?channel=keyed", &headers, b"x").body
    };
    let mut hub = clock.start(&site);
    let answer = keyed(&hub);
    let mut count = 0;
    // The time of day itself shows that the clock is set.
    let today =
        hub.post("?channel=probe", "text/plain", "x").json()["time"].as_str().unwrap()[..10].to_owned();
    for by in ["+8d", "-20d", "+30d", "+0"] {
        clock.set(by);
        // So long that the hub looks for old messages.
        let begun = Instant::now();
        while begun.elapsed().as_millis() < 300 {
            hub.publish("x");
            count += 1;
        }
        assert_eq!(keyed(&hub), answer);
        clock.set("+8d");
        hub = {
            hub.end("KILL");
            clock.start(&site)
        };
        assert_eq!(keyed(&hub), answer);
    }
    let kept = hub.history(&format!("?limit={}", count.min(500)));
    assert_eq!(kept.len(), count.min(500));
    let rows = sqlite3(&site.journal(), "SELECT count(*) FROM messages WHERE channel = 'main'");
    assert_eq!(rows.trim(), count.to_string());
    let times = sqlite3(&site.journal(), "SELECT time FROM messages ORDER BY sequence");
    assert!(times.lines().is_sorted(), "{times}");
    assert!(times.lines().last().unwrap()[..10] > *today, "the clock was never set");
}

/// Runs a verb on this site's journal. Returns the exit code, stdout and stderr.
fn verb(site: &Site, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    let output = command.args(["--journal", &site.journal()]).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The names of the files in the site's folder.
fn names(site: &Site) -> Vec<String> {
    let names = fs::read_dir(&site.folder.path).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_backup_of_a_hub_that_runs_is_restored_to_a_journal_that_goes_on_in_a_new_epoch() {
    let site = Site::new(&[]);
    let mut hub = site.start();
    let ids = publish(&hub, 1..=3);
    let backup = site.folder.file("backup.db");
    let (code, report, stderr) = verb(&site, &["backup", &backup]);
    assert_eq!((code, &*stderr), (Some(0), ""));
    assert!(report.contains(&format!("{backup}: a journal of version 2, sound")), "{report}");
    assert!(report.contains(&format!("3 kept, 9 B of data, from {} to {}", ids[0], ids[2])), "{report}");
    assert_eq!(sqlite3(&backup, "SELECT count(*) FROM messages").trim(), "3");
    let lost = hub.publish("lost");
    let (code, _, stderr) = verb(&site, &["backup", &backup]);
    assert_eq!(
        (code, stderr),
        (Some(1), format!("tabcast: {backup} is there already: move it away first\n"))
    );

    hub.end("KILL");
    // Neither the file nor what a hub left beside it is overwritten.
    for there in [site.journal(), wal(&site.journal())] {
        let (code, _, stderr) = verb(&site, &["restore", &backup]);
        let expected = format!("tabcast: {there} is there already: move it away first\n");
        assert_eq!((code, stderr), (Some(1), expected));
        fs::rename(&there, format!("{there}.old")).unwrap();
    }
    assert_eq!(verb(&site, &["restore", &backup]).0, Some(0));
    let hub = site.start();
    let mut stream = hub.watch("/events", &[&format!("Last-Event-ID: {lost}")]);
    assert_eq!(stream.event().unwrap().event, "tabcast:gap");
    assert_eq!((1..=3).map(|_| stream.data()).collect::<String>(), "123");
    assert_ne!(hub.publish("4"), lost);
    let mut stream = hub.watch("/events", &[&format!("Last-Event-ID: {}", ids[2])]);
    assert_eq!(stream.data(), "4");
    drop(hub);

    // The log of the old file is none of the restored one's.
    fs::remove_file(site.journal()).unwrap();
    let _ = fs::remove_file(wal(&site.journal()));
    fs::copy(&backup, site.journal()).unwrap();
    fs::rename(format!("{}.old", wal(&site.journal())), wal(&site.journal())).unwrap();
    assert_refused_and_unchanged(&site.journal(), "-wal does not belong to it");
}

#[test]
fn verify_says_what_a_file_is_and_leaves_all_as_it_is() {
    let site = Site::new(&[]);
    assert_eq!(verb(&site, &["verify"]).0, Some(1));
    let mut hub = site.start();
    let ids = publish(&hub, 1..=700);
    let sound = |expected: &[&str]| {
        let before = names(&site);
        let (code, report, stderr) = verb(&site, &["verify"]);
        assert_eq!((code, &*stderr), (Some(0), ""), "{report}");
        assert!(expected.iter().all(|expected| report.contains(expected)), "{report}");
        assert_eq!(names(&site), before);
    };
    let kept = format!("700 kept, 3.3 KiB of data, from {} to {}", ids[0], ids[699]);
    sound(&["version 2, sound", &kept, "0 remembered", "tabcast.db-wal"]);
    hub.end("KILL");
    sound(&["version 2, sound", &kept, "tabcast.db-wal"]);
    let mut hub = site.start();
    hub.end("TERM");
    assert_eq!(names(&site), ["tabcast.db"]);
    sound(&["version 2, sound", &kept]);

    let whole = fs::read(site.journal()).unwrap();
    let text = whole.windows(5).position(|bytes| bytes == b"\"460\"").unwrap();
    let mut damaged = whole.clone();
    damaged[text] = b'x';
    fs::write(site.journal(), &damaged).unwrap();
    let (code, report, _) = verb(&site, &["verify"]);
    assert_eq!(code, Some(1));
    assert!(report.contains("version 2, damaged") && report.contains("damage    message 460"), "{report}");
    // A damaged journal is no backup.
    let backup = site.folder.file("backup.db");
    let (code, stdout, stderr) = verb(&site, &["backup", &backup]);
    assert_eq!((code, &*stdout), (Some(1), ""));
    assert!(stderr.contains("damage    message 460") && !fs::exists(&backup).unwrap(), "{stderr}");

    let page = whole.len() / 4096 / 2 * 4096;
    damaged[page..page + 4096].fill(0xa5);
    fs::write(site.journal(), &damaged).unwrap();
    let (code, stdout, stderr) = verb(&site, &["verify"]);
    assert!(code == Some(1) && (stdout + &stderr).contains("damage"), "{stderr}");
    fs::write(site.journal(), "something else").unwrap();
    let (code, _, stderr) = verb(&site, &["verify"]);
    assert!(code == Some(1) && stderr.contains("not a tabcast journal"), "{stderr}");
    assert_eq!(names(&site), ["tabcast.db"]);
}
