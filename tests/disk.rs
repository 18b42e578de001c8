//! The disk: how much of it the journal's file and its write-ahead log take, whatever is published.

mod common;

use std::fs;
use std::io::{BufReader, Write};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use common::{Hub, PATIENCE, Response, Site, request};

const MIB: u64 = 1 << 20;

/// The bytes of the journal's file, and of its write-ahead log.
fn sizes(site: &Site) -> (u64, u64) {
    let bytes = |path: String| fs::metadata(path).map_or(0, |file| file.len());
    (bytes(site.journal()), bytes(format!("{}-wal", site.journal())))
}

/// The most that the file, its write-ahead log, and both together take while `work` is done.
fn greatest_sizes(site: &Site, work: impl FnOnce()) -> (u64, u64, u64) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut greatest = (0, 0, 0);
            while !done.load(Ordering::Relaxed) {
                let (file, wal) = sizes(site);
                greatest = (greatest.0.max(file), greatest.1.max(wal), greatest.2.max(file + wal));
                std::thread::yield_now();
            }
            greatest
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // The watch has to end if the work fails.
        done.store(true, Ordering::Relaxed);
        let greatest = watch.join().unwrap();
        worked.unwrap();
        greatest
    })
}

/// Publishes `count` large messages from each of 60 publishers at once.
fn publish_large(hub: &Hub, count: usize) {
    // As JSON, a control character is six.
    let texts = ["x".repeat(500_000), "x".repeat(1 << 20), "\u{1}".repeat(1 << 20), "x".repeat(800_000)];
    std::thread::scope(|scope| {
        for publisher in 0..60 {
            let texts = &texts;
            scope.spawn(move || (0..count).for_each(|n| drop(hub.publish(&texts[(publisher + n) % 4]))));
        }
    });
}

/// Waits until the file takes less than 2 MiB.
fn wait_until_small(site: &Site) {
    let deadline = Instant::now() + PATIENCE;
    while sizes(site).0 > 2 * MIB {
        assert!(Instant::now() < deadline, "it does not shrink: {:?}", sizes(site));
    }
}

#[test]
fn the_journal_stays_within_the_documented_size_whatever_is_published_and_shrinks_again() {
    let documented = "together take at most `--retention-bytes` and 64 MiB";
    let operations = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap();
    assert!(operations.split_whitespace().collect::<Vec<_>>().join(" ").contains(documented));

    let site = Site::new(&["--hide-data", "--retention-bytes", "16MiB", "--retention-messages", "50"]);
    let hub = site.start();
    let done = AtomicBool::new(false);
    let (file, wal, both) = greatest_sizes(&site, || {
        std::thread::scope(|scope| {
            // They read the file, and so keep the log from being started over.
            for _ in 0..4 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        assert_eq!(hub.get("/messages?last=5&channel=quiet").status, 200);
                    }
                });
            }
            let published = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| publish_large(&hub, 2)));
            // First of all: the readers have to end if a publish fails.
            done.store(true, Ordering::Relaxed);
            published.unwrap();
        });
    });
    let memory = hub.peak_resident_bytes() as u64;
    println!("file {file}, log {wal}, both {both}, memory {memory}");
    assert!(both <= (16 + 64) * MIB, "file {file}, log {wal}, both {both}");
    // The bodies of all publishers, as JSON, would take 195 MiB at once.
    assert!(memory <= 200 * MIB, "{memory}");

    (0..50).for_each(|_| drop(hub.publish("x")));
    wait_until_small(&site);
    assert_eq!(hub.history_data("?last=500"), ["x"; 50]);
}

#[test]
fn many_large_messages_that_are_deleted_at_once_do_not_make_the_log_long() {
    let site = Site::new(&["--hide-data", "--retention-bytes", "128MiB"]);
    let hub = site.start();
    let text = "\u{1}".repeat(1 << 20);
    let ids: Vec<_> = (0..20).map(|_| hub.publish(&text)).collect();
    let delete = |id: &String| {
        let mut connection = BufReader::new(hub.connect());
        let line = format!("DELETE /messages/{id} HTTP/1.1");
        connection.get_mut().write_all(&request(&line, hub.address, &[], None)).unwrap();
        connection
    };
    let (file, wal, both) = greatest_sizes(&site, || {
        let deleted: Vec<_> = ids.iter().map(delete).collect();
        // A publish meanwhile is not refused.
        hub.publish("x");
        for mut connection in deleted {
            assert_eq!(Response::read(&mut connection, false).status, 204);
        }
    });
    println!("file {file}, log {wal}, both {both}");
    assert!(both <= (128 + 64) * MIB, "file {file}, log {wal}, both {both}");
}

#[test]
fn a_file_that_was_made_without_auto_vacuum_is_used_as_it_is_and_shrinks_once_it_has_it() {
    let site = Site::new(&["--hide-data", "--retention-bytes", "16MiB", "--retention-messages", "50"]);
    site.start().publish("before");
    let sqlite3 = |sql: &str| {
        let command = Command::new("sqlite3").args([&site.journal(), sql]).status();
        assert!(command.expect("tests/run installs sqlite3").success());
    };
    sqlite3("PRAGMA auto_vacuum = 0; VACUUM");
    let mut hub = site.start();
    assert_eq!(hub.history_data(""), ["before"]);
    let (file, _, _) = greatest_sizes(&site, || publish_large(&hub, 1));
    assert!(file <= 32 * MIB, "{file}");
    (0..50).for_each(|_| drop(hub.publish("x")));
    assert_eq!(hub.history_data("?last=500"), ["x"; 50]);
    assert_eq!(hub.end("TERM").code(), Some(0));
    assert!(sizes(&site).0 > 8 * MIB, "{:?}", sizes(&site));

    sqlite3("PRAGMA auto_vacuum = 2; VACUUM");
    let hub = site.start();
    publish_large(&hub, 1);
    (0..50).for_each(|_| drop(hub.publish("x")));
    wait_until_small(&site);
    assert_eq!(hub.history_data("?last=500"), ["x"; 50]);
}

#[test]
fn retention_by_bytes_bounds_the_file_whose_space_is_used_again() {
    let site = Site::new(&["--retention-bytes", "4MiB", "--hide-data"]);
    let hub = site.start();
    let text = "x".repeat(100_000);
    // 40 MB in all.
    let (file, _, _) = greatest_sizes(&site, || (0..400).for_each(|_| drop(hub.publish(&text))));
    assert!(file < 7 * MIB, "{file}");
    let kept = hub.history_data("?last=500").len();
    assert!((20..80).contains(&kept), "{kept}");
}

#[test]
fn retention_by_bytes_drops_one_message_larger_than_what_is_over() {
    let site = Site::new(&["--retention-bytes", "1MiB", "--hide-data"]);
    let hub = site.start();
    hub.publish(&"x".repeat(1_000_000));
    hub.publish(&"y".repeat(100_000));
    // The first message is dropped although it is much larger than what is over. The hub looks 20 times a
    // second.
    let deadline = Instant::now() + PATIENCE;
    while hub.history_data("").len() > 1 {
        assert!(Instant::now() < deadline, "it stays");
    }
    assert!(hub.history_data("")[0].as_str().unwrap().starts_with('y'));
}
