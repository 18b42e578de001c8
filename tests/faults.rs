//! What the hub does with its disk, as strace(1) sees it; and what the hub does when the disk fails, for
//! which strace makes system calls fail.

#![cfg(target_os = "linux")]

mod bugs;
mod checker;
mod common;
mod traced;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use checker::{Load, Reading, Site, Workload, assert_kept, kill, run, seed};
use common::{Hub, PATIENCE};
use rusqlite::config::DbConfig;
use traced::{Call, Traced};

fn spawn(site: &Site, options: &[&str]) -> Traced {
    Traced::spawn(options, |prefix| site.command(prefix))
}

fn start(site: &Site, options: &[&str]) -> Traced {
    let mut traced = spawn(site, options);
    assert!(traced.hub.listens(), "{:?}", traced.hub.log());
    traced
}

/// A hub whose system calls on these files fail as `inject` says: see strace(1).
fn faulty(site: &Site, files: &[String], inject: &str) -> Traced {
    let inject = format!("inject={inject}");
    let mut options = vec!["-e", "trace=pread64,pwrite64,fsync,fdatasync", "-e", &inject];
    files.iter().for_each(|file| options.extend(["-P", file]));
    spawn(site, &options)
}

fn wal(site: &Site) -> String {
    format!("{}-wal", site.journal())
}

/// The journal's file and its WAL.
fn files(site: &Site) -> [String; 2] {
    [site.journal(), wal(site)]
}

const TRACE: &str = "trace=openat,linkat,unlink,rename,write,writev,sendto,sendmsg,\
    pwrite64,pwritev,ftruncate,fsync,fdatasync";

/// The options for a trace that has all bytes written.
const WITH_BYTES: [&str; 4] = ["-s", "1000000", "-e", TRACE];

/// A message as these tests publish it: its text, which no other has, and its id.
type Marked = (String, String);

/// Publishes `count` messages from each of several publishers at once, and returns them.
fn publish(hub: &Hub, publishers: usize, count: usize) -> Vec<Marked> {
    let publisher = |publisher: usize| {
        (0..count).map(move |number| format!("<marker {publisher}.{number}>")).map(|text| {
            let id = hub.publish(&text);
            (text, id)
        })
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..publishers)
            .map(|number| scope.spawn(move || publisher(number).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// The call that wrote the 201 with this id to its publisher's socket.
fn answer<'a>(calls: &'a [Call], id: &str) -> &'a Call {
    let id = format!(r#"\"id\":\"{id}\""#);
    let is_answer = |call: &&Call| {
        let sends = ["write", "writev", "sendto", "sendmsg"].contains(&&*call.name);
        sends && call.arguments.contains("HTTP/1.1 201 Created") && call.arguments.contains(&id)
    };
    calls.iter().find(is_answer).unwrap_or_else(|| panic!("no write of {id} in {} calls", calls.len()))
}

/// The texts of the messages that were acknowledged before they were in the WAL and the WAL was on the disk.
fn acknowledged_too_early(calls: &[Call], wal: &str, published: &[Marked]) -> Vec<String> {
    let is_kept = |(text, id): &&Marked| {
        let answer = answer(calls, id);
        let write = calls
            .iter()
            .find(|call| call.is_on(&["pwrite64", "pwritev"], wal) && call.arguments.contains(text));
        write.is_some_and(|write| calls.iter().any(|call| call.syncs(wal) && call.is_between(write, answer)))
    };
    published.iter().filter(|marked| !is_kept(marked)).map(|(text, _)| text.clone()).collect()
}

/// Publishes under strace, kills the hub, and returns the messages and the hub's calls.
fn published_and_traced(site: &Site, publishers: usize, count: usize) -> (Vec<Marked>, Vec<Call>) {
    let mut traced = start(site, &WITH_BYTES);
    let published = publish(&traced.hub, publishers, count);
    assert_eq!(published.len(), publishers * count);
    traced.kill();
    (published, traced.calls())
}

#[test]
fn each_message_is_on_the_disk_before_it_is_acknowledged() {
    let site = Site::new();
    let (published, calls) = published_and_traced(&site, 8, 10);
    assert_eq!(acknowledged_too_early(&calls, &wal(&site), &published), [""; 0]);
}

#[test]
fn it_is_so_while_old_messages_are_dropped_too() {
    let mut site = Site::new();
    site.retention = 20;
    let (published, calls) = published_and_traced(&site, 8, 30);
    assert_eq!(acknowledged_too_early(&calls, &wal(&site), &published), [""; 0]);
    let db = rusqlite::Connection::open(site.journal()).unwrap();
    let rows: usize = db.query_row("SELECT count(*) FROM messages", [], |row| row.get(0)).unwrap();
    assert!((20..240).contains(&rows), "{rows} rows: nothing was dropped while it published");
}

#[test]
fn nothing_at_all_is_unsynced_when_the_only_message_in_flight_is_acknowledged() {
    let site = Site::new();
    let (published, calls) = published_and_traced(&site, 1, 20);
    let wal = wal(&site);
    for (text, id) in &published {
        let answer = answer(&calls, id);
        let changes = |call: &&Call| {
            call.is_on(&["pwrite64", "pwritev", "ftruncate"], &wal) && call.began < answer.began
        };
        let last = calls.iter().rfind(changes).expect("the WAL was written");
        assert!(
            calls.iter().any(|call| call.syncs(&wal) && call.is_between(last, answer)),
            "{text}: {last:?}"
        );
    }
}

#[test]
fn a_new_file_is_in_its_folder_on_the_disk_before_anything_is_acknowledged() {
    let site = Site::new();
    let (journal, wal, folder) = (site.journal(), wal(&site), site.folder.path.to_str().unwrap().to_owned());
    // The second hub, after an orderly end of the first, makes a WAL only.
    for number in 0..2 {
        let mut traced = start(&site, &WITH_BYTES);
        let id = traced.hub.publish("x");
        traced.hub.signal("TERM");
        assert!(traced.hub.wait().success());
        assert!(!Path::new(&wal).exists(), "an orderly end leaves one file");
        let calls = traced.calls();
        let answer = answer(&calls, &id);
        let done =
            |made: &Call| calls.iter().any(|call| call.syncs(&folder) && call.is_between(made, answer));

        let made = calls
            .iter()
            .find(|call| call.name == "linkat" && call.arguments.contains(&format!("\"{journal}\"")));
        assert_eq!(made.is_some(), number == 0);
        if let Some(made) = made {
            assert!(made.result == "0" && done(made), "{made:?}");
            let new = format!("{journal}.new");
            let whole = |call: &&Call| call.syncs(&new) && call.ended < made.began;
            let synced = calls.iter().rfind(whole).expect("it is on the disk before it has its name");
            let written = |call: &Call| call.is_on(&["pwrite64"], &new) && synced.began < call.ended;
            assert!(!calls.iter().any(written));
        }
        let makes_wal = |call: &&Call| {
            call.name == "openat"
                && call.arguments.contains(&format!("\"{wal}\""))
                && call.arguments.contains("O_CREAT")
        };
        let made = calls.iter().find(makes_wal).expect("there is a WAL");
        assert!(done(made), "{made:?}");
    }
}

fn workload(padding: usize) -> Workload {
    Workload { publishers: 4, subscribers: vec![Reading::Steady, Reading::HangsUp], padding, seed: seed() }
}

/// The bytes of a small message's data, of which a page holds a few.
const SMALL: usize = 1_500;

/// The bytes of a large message's data. After some 80 of them the WAL is copied to the file.
const LARGE: usize = 100_000;

/// Waits until `count` more messages are acknowledged.
fn goes_on(load: &Load<'_>, count: usize) {
    let count = load.acknowledged() + count;
    assert!(load.wait_until(|evidence| evidence.acknowledged.len() >= count), "publishing does not go on");
}

/// Under load, has the calls of these numbers on these files fail with EIO, each in a hub of its own. Returns
/// how many publishes were answered with 503: it is not known whether their message is kept.
fn stops_on_eio(
    site: &Site,
    files: &[String],
    padding: usize,
    calls: &str,
    numbers: impl Iterator<Item = usize>,
) -> usize {
    let evidence = run(site, site.start(), &workload(padding), |mut hub, load| {
        for number in numbers {
            goes_on(load, 5);
            kill(hub);
            let mut faulty = faulty(site, files, &format!("{calls}:error=EIO:when={number}"));
            let before = load.count(&[0, 503]);
            let listened = faulty.hub.listens();
            let status = faulty.hub.wait();
            assert!(faulty.is_injected(), "{number}: {:?}", faulty.hub.log());
            assert!(status.code().is_some_and(|code| code != 0), "{number}: {status}");
            // What failed is left open: SQLite reports a failed read as a malformed file.
            faulty.hub.wait_for_log(&["tabcast: can't ", " the journal"]);
            if listened {
                assert!(
                    load.wait_until(|evidence| evidence.count(&[0, 503]) > before),
                    "{number}: no publisher noticed"
                );
            }
            hub = site.start();
        }
        goes_on(load, 20);
        hub
    });
    assert_kept(&evidence);
    println!("{calls}: {:?}", evidence.answers);
    evidence.count(&[503])
}

#[test]
fn after_a_failed_sync_the_hub_stops_and_nothing_acknowledged_is_lost() {
    let site = Site::new();
    assert!(stops_on_eio(&site, &files(&site), SMALL, "fsync,fdatasync", 1..=12) > 0);
}

#[test]
fn after_a_failed_write_the_hub_stops_and_nothing_acknowledged_is_lost() {
    let site = Site::new();
    assert!(stops_on_eio(&site, &files(&site), SMALL, "pwrite64", (1..=16).chain([23, 30, 47])) > 0);
}

#[test]
fn after_a_failed_read_the_hub_stops_and_nothing_acknowledged_is_lost() {
    let site = Site::new();
    // Read 24 is while the hub serves: it reads little at its start. Reads 1 to 12 are at its start.
    stops_on_eio(&site, &files(&site), SMALL, "pread64", [24].into_iter().chain(1..=12));
}

#[test]
fn after_a_failed_copy_of_the_wal_the_hub_stops_and_nothing_acknowledged_is_lost() {
    for (calls, numbers) in [("pwrite64", vec![1, 2, 100]), ("fsync,fdatasync", vec![1])] {
        let site = Site::new();
        stops_on_eio(&site, &[site.journal()], LARGE, calls, numbers.into_iter());
    }
}

#[test]
fn without_space_to_copy_the_wal_to_all_goes_on() {
    let site = Site::new();
    let evidence = run(&site, site.start(), &workload(LARGE), |hub, load| {
        kill(hub);
        let mut faulty = faulty(&site, &[site.journal()], "pwrite64:error=ENOSPC:when=1..3");
        assert!(faulty.hub.listens(), "{:?}", faulty.hub.log());
        goes_on(load, 300);
        assert!(faulty.is_injected());
        faulty.kill();
        site.start()
    });
    assert_kept(&evidence);
    assert_eq!(evidence.count(&[507]), 0);
}

#[test]
fn a_hub_that_cannot_make_its_journal_says_so_and_leaves_nothing_half_made() {
    for calls in ["pwrite64", "fsync,fdatasync", "linkat"] {
        // Until the hub makes no call of that number.
        for number in 1.. {
            let site = Site::new();
            let inject = format!("inject={calls}:error=EIO:when={number}");
            let mut traced = spawn(&site, &["-e", &format!("trace={calls}"), "-e", &inject]);
            let listens = traced.hub.listens();
            let injected = traced.is_injected();
            if listens {
                traced.kill();
            } else {
                let status = traced.hub.wait();
                assert!(status.code().is_some_and(|code| code != 0), "{calls} {number}: {status}");
                let log = traced.hub.log();
                let says = |line: &String| line.starts_with("tabcast: can't open the journal");
                assert!(log.iter().any(says), "{calls} {number}: {log:?}");
            }
            let files = std::fs::read_dir(&site.folder.path).unwrap();
            let names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
            let known = ["tabcast.db", "tabcast.db-wal", "tabcast.db-shm", "tabcast.db-journal"];
            assert!(names.iter().all(|name| known.contains(&&**name)), "{calls} {number}: {names:?}");
            // Whatever that hub has left, the next one starts.
            let hub = site.start();
            let id = hub.publish("x");
            kill(hub);
            assert_eq!(site.start().newest()["id"], id, "{calls} {number}");
            if !injected {
                assert!(listens && number > 1, "{calls} {number}");
                break;
            }
        }
    }
}

#[test]
fn without_space_publishers_are_told_so_and_all_goes_on_when_there_is_some() {
    let site = Site::new();
    let (mut hubs, mut served) = (1, 0);
    let evidence = run(&site, site.start(), &workload(SMALL), |mut hub, load| {
        for number in [1, 2, 4, 8, 20, 31, 40, 50, 60, 70, 80] {
            goes_on(load, 5);
            kill(hub);
            let until = number + number % 5 * 3;
            let mut faulty =
                faulty(&site, &files(&site), &format!("pwrite64:error=ENOSPC:when={number}..{until}"));
            let before = load.count(&[507]);
            if !faulty.hub.listens() {
                // Not even what the last hub left could be written once more.
                faulty.hub.wait_for_log(&["can't open the journal", "No space left on device"]);
                hub = site.start();
                hubs += 1;
                continue;
            }
            served += 1;
            assert!(
                load.wait_until(|evidence| evidence.count(&[507]) > before),
                "{number}: no publisher was refused"
            );
            goes_on(load, 20);
            faulty.hub.wait_for_log(&["no space for the journal"]);
            // The same process goes on, and each subscriber has the stream it began with.
            faulty.kill();
            hub = site.start();
            hubs += 2;
        }
        goes_on(load, 20);
        hub
    });
    assert_kept(&evidence);
    println!("ENOSPC: {:?}", evidence.answers);
    assert!(served > 3, "{served} hubs served without space");
    // The hub that `run` starts after the load.
    hubs += 1;
    assert!(
        evidence.subscribers[0].streams <= hubs,
        "{} streams of {hubs} hubs",
        evidence.subscribers[0].streams
    );
}

#[test]
fn after_a_failed_sync_the_hub_leaves_its_files_alone() {
    const CHANGES: [&str; 6] = ["pwrite64", "pwritev", "ftruncate", "unlink", "rename", "fallocate"];
    let trace = format!("trace=fsync,fdatasync,{}", CHANGES.join(","));
    for number in 1..=12 {
        let site = Site::new();
        let hub = site.start();
        (0..5).for_each(|_| drop(hub.publish("x")));
        kill(hub);
        let inject = format!("inject=fsync,fdatasync:error=EIO:when={number}");
        let names = ["", "-wal", "-shm", "-journal", ".new"].map(|name| format!("{}{name}", site.journal()));
        let mut options = vec!["-e", &trace, "-e", &inject];
        names.iter().for_each(|name| options.extend(["-P", name]));
        let mut traced = spawn(&site, &options);
        if traced.hub.listens() {
            let publish = || traced.hub.post("", "text/plain", "x").status;
            let unknown = (0..20).map(|_| publish()).find(|status| *status != 201);
            assert_eq!(unknown, Some(503), "{number}");
        }
        assert_eq!(traced.hub.wait().code(), Some(1), "{number}");
        traced.hub.wait_for_log(&["tabcast: can't ", "Input/output error"]);
        let calls = traced.calls();
        let failed = calls.iter().find(|call| call.result.contains("(INJECTED)")).unwrap();
        let changes = |call: &&Call| CHANGES.contains(&&*call.name) && call.ended > failed.ended;
        let changed: Vec<_> = calls.iter().filter(changes).collect();
        assert!(changed.is_empty(), "{number}: {changed:?}");
    }
}

#[test]
fn what_could_not_be_copied_at_a_start_still_belongs_to_its_file() {
    let site = Site::new();
    let hub = site.start();
    hub.publish("1");
    kill(hub);
    for number in 2..5 {
        let mut faulty = faulty(&site, &[site.journal()], "pwrite64:error=ENOSPC:when=1+");
        assert!(faulty.hub.listens(), "{:?}", faulty.hub.log());
        faulty.hub.publish(&number.to_string());
        faulty.kill();
    }
    assert_eq!(site.start().history_data(""), ["1", "2", "3", "4"]);
}

#[test]
fn what_was_refused_as_the_index_could_not_grow_is_not_there_after_a_kill() {
    for error in ["ENOSPC", "EDQUOT"] {
        let site = Site::new();
        let hub = site.start();
        hub.publish("x");
        // Until a program that reads an old state is done, the WAL is not started over.
        let reader = rusqlite::Connection::open(site.journal()).unwrap();
        reader.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        reader.execute_batch("BEGIN; SELECT * FROM messages").unwrap();
        // The index grows after some 4,000 pages.
        let (shm, inject) =
            (format!("{}-shm", site.journal()), format!("inject=pwrite64:error={error}:when=1"));
        let options = ["-P", &shm, "-e", "trace=pwrite64", "-e", &inject];
        let mut traced = Traced::attach(hub, &options).expect("strace may attach to a hub");
        let publish = |_| traced.hub.post("", "text/plain", "y".repeat(1_000_000)).status;
        let answers: Vec<_> = (0..20).map(publish).take_while(|status| *status == 201).collect();
        assert!(answers.len() < 20 && traced.is_injected(), "{error}");
        traced.hub.wait_for_log(&["no space for the journal"]);
        traced.kill();
        drop(reader);
        assert_eq!(site.start().history("?limit=100").len(), 1 + answers.len());
    }
}

#[test]
fn a_file_that_still_has_its_first_name_too_is_not_emptied() {
    let site = Site::new();
    let mut hub = site.start();
    hub.publish("1");
    hub.end("TERM");
    let journal = site.journal();
    // As if the first name could not be removed, and another program had begun to write.
    std::fs::hard_link(&journal, format!("{journal}.new")).unwrap();
    std::fs::write(format!("{journal}-journal"), "x").unwrap();
    assert_eq!(site.start().history_data(""), ["1"]);
}

#[test]
fn a_lock_that_could_not_be_released_keeps_nobody_out_for_good() {
    let mut refused = 0;
    for number in 1..=12 {
        let site = Site::new();
        let shm = format!("{}-shm", site.journal());
        let inject = format!("inject=fcntl:error=EIO:when={number}");
        let options = ["-P", &shm, "-e", "trace=fcntl", "-e", &inject];
        let traced = Traced::attach(site.start(), &options).expect("strace may attach to a hub");
        let deadline = Instant::now() + PATIENCE;
        let mut acknowledged = 0;
        while acknowledged < 4 {
            let answer = traced.hub.post("", "text/plain", "x");
            match answer.status {
                201 => acknowledged += 1,
                503 if answer.header("retry-after").is_some() => refused += 1,
                _ => panic!("{answer:?}"),
            }
            assert!(Instant::now() < deadline, "{number}: {:?}", traced.hub.log());
        }
        assert_eq!(traced.hub.history("").len(), 4, "{number}");
    }
    assert!(refused > 0, "no lock was left taken");
}

#[test]
fn a_migration_that_is_killed_at_any_call_is_done_by_the_next_start() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/version-1.db");
    for call in ["pwrite64", "fsync,fdatasync", "ftruncate"] {
        for number in 1.. {
            let site = Site::new();
            for suffix in ["", "-wal"] {
                std::fs::copy(format!("{fixture}{suffix}"), format!("{}{suffix}", site.journal())).unwrap();
            }
            let inject = format!("inject={call}:signal=KILL:when={number}");
            let trace = format!("trace={call}");
            let mut traced = spawn(&site, &["-e", &trace, "-e", &inject]);
            let listens = traced.hub.listens();
            traced.kill();
            let hub = site.start();
            let all = hub.history("?channel=c0&channel=c1&channel=main");
            let found = all.iter().map(|message| (message["id"].clone(), message["data"].clone()));
            let expected = (3..=12)
                .map(|number| (format!("nri7xzbz-{number}").into(), format!("message {number}").into()));
            assert!(found.eq(expected), "{call} {number}: {all:?}");
            let id = hub.publish("13");
            kill(hub);
            assert_eq!(site.start().newest()["id"], id, "{call} {number}");
            if listens {
                assert!(number > 1, "{call}");
                break;
            }
        }
    }
}

/// A small file system mounted over a folder, unmounted when dropped.
struct Small<'a>(&'a Path);

impl Small<'_> {
    /// `None` where this process may not mount.
    fn mount(folder: &Path) -> Option<Small<'_>> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then_some(Small(folder))
    }

    fn enlarge(&self) {
        let mut mount = Command::new("mount");
        assert!(mount.args(["-o", "remount,size=256m"]).arg(self.0).status().unwrap().success());
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // Lazily: if the test fails, its hub may still have files there.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn on_a_full_disk_streams_stay_open_and_publishing_goes_on_when_space_is_made() {
    let site = Site::new();
    let Some(small) = Small::mount(&site.folder.path) else {
        println!("skipped: this process may not mount a file system to fill");
        return;
    };
    let ballast = site.folder.file("ballast");
    std::fs::write(&ballast, vec![1; 300 << 10]).unwrap();
    let evidence = run(&site, site.start(), &workload(SMALL), |hub, load| {
        let is_full = |load: &Load<'_>| {
            let before = load.count(&[507]);
            assert!(load.wait_until(|evidence| evidence.count(&[507]) > before + 20), "it is never full");
        };
        is_full(load);
        std::fs::remove_file(&ballast).unwrap();
        goes_on(load, 5);
        is_full(load);
        // A hub that is killed on a full disk loses nothing, and the next one starts.
        kill(hub);
        let hub = site.start();
        is_full(load);
        small.enlarge();
        goes_on(load, 50);
        hub
    });
    assert_kept(&evidence);
    println!("full: {:?}", evidence.answers);
    assert!(evidence.subscribers[0].streams <= 3, "{} streams of 3 hubs", evidence.subscribers[0].streams);
}

/// The trace shows it if messages are acknowledged too early.
#[test]
fn acknowledging_before_the_commit_is_seen_in_the_trace() {
    let site = Site::of(bugs::hub("acknowledge-before-commit"));
    let mut traced = start(&site, &WITH_BYTES);
    let published = publish(&traced.hub, 1, 20);
    traced.kill();
    let early = acknowledged_too_early(&traced.calls(), &wal(&site), &published);
    assert_eq!(early.len(), published.len());
}
