//! The journal in a file: what a restart must not change, what retention drops, and what the hub says if it
//! can't use the file.

mod common;

use std::fs;
use std::io::{BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Instant;

use common::{
    Folder, Hub, Locks, PATIENCE, Response, Site, assert_refused_and_unchanged, folder_of, refused, request,
    sqlite3,
};

#[test]
fn whoever_reconnects_after_a_restart_goes_on_where_they_were() {
    for signal in ["TERM", "KILL"] {
        let site = Site::new(&[]);
        let first = site.start();
        let ids: Vec<_> = (1..=5).map(|number| first.publish(&number.to_string())).collect();
        let second = site.restart(first, signal);
        let mut stream = second.watch("/events", &[&format!("Last-Event-ID: {}", ids[1])]);
        assert_eq!((3..=5).map(|_| stream.data()).collect::<String>(), "345");
        let mut newcomer = second.watch("/events?last=2", &[]);
        // Ids go on, in an epoch of the second hub's own: no two messages have the same.
        let id = second.publish("6");
        assert!(id.ends_with("-6") && id[..8] != ids[0][..8], "{id} after {}", ids[4]);
        let kept: Vec<_> = second.history("").into_iter().map(|message| message["id"].clone()).collect();
        assert_eq!(kept, [&ids[..], &[id]].concat());
        assert_eq!(stream.data(), "6");
        assert_eq!((4..=6).map(|_| newcomer.data()).collect::<String>(), "456");
    }
}

#[test]
fn a_message_is_the_same_after_a_restart() {
    let site = Site::new(&[]);
    let first = site.start();
    first.post(
        "?event=gr%C3%B6%C3%9Fe%20%F0%9F%8E%89&channel=a.b&except=me",
        "text/plain",
        "\0 \u{2028}\r\n\"ü\u{feff}",
    );
    first.post("?channel=a.b", "application/octet-stream", b"\x00\xff");
    first.post("", "application/json", r#"{"data":{"z":1.50,"a":[1.0,null]},"channel":"a.b"}"#);
    let before = first.get("/messages?channel=a.b").body;
    let second = site.restart(first, "KILL");
    assert_eq!(second.get("/messages?channel=a.b").body, before);
    let except = second.get("/messages?channel=a.b&as=me").json();
    assert_eq!(except["messages"].as_array().unwrap().len(), 2);
}

/// Publishes this text with a key, always the same.
fn send(hub: &Hub, text: &str) -> Response {
    hub.send("POST", "/messages", &["Idempotency-Key: k", "Content-Type: text/plain"], text.as_bytes())
}

#[test]
fn the_answer_to_a_key_outlives_a_restart() {
    let site = Site::new(&[]);
    let first = site.start();
    let answer = send(&first, "once");
    let second = site.restart(first, "KILL");
    assert_eq!(send(&second, "once").body, answer.body);
    send(&second, "other").problem(422);
    assert_eq!(second.history_data(""), ["once"]);
}

#[test]
fn a_key_stays_its_publishers_own_after_a_restart_and_the_file_does_not_name_the_publisher() {
    const ONE: [u8; 4] = [127, 0, 0, 66];
    const OTHER: [u8; 4] = [127, 0, 0, 77];
    let site = Site::new(&[]);
    let first = site.start();
    let answer = first.publish_from(ONE, "k", "once").body;
    let second = site.restart(first, "KILL");
    assert_eq!(second.publish_from(ONE, "k", "once").body, answer);
    assert_ne!(second.publish_from(OTHER, "k", "once").body, answer);
    let other = second.publish_from(OTHER, "k", "once").body;
    let keys = sqlite3(&site.journal(), "SELECT key FROM entries ORDER BY sequence");
    let keys: Vec<_> = keys.lines().map(|key| key.split_once(' ').unwrap()).collect();
    assert!(keys.iter().all(|(network, key)| network.len() == 16 && *key == "k"), "{keys:?}");
    assert_ne!(keys[0], keys[1]);

    // Older files have keys without publishers.
    sqlite3(&site.journal(), "UPDATE entries SET key = 'k' WHERE sequence = 1");
    assert_ne!(second.publish_from(ONE, "k", "once").body, answer);
    assert_eq!(second.publish_from(OTHER, "k", "once").body, other);
    assert_eq!(second.history_data(""), ["once"; 3]);
}

#[test]
fn a_flood_of_keys_leaves_the_keys_of_other_addresses_also_when_their_messages_are_no_longer_kept() {
    const ONE: [u8; 4] = [127, 0, 0, 66];
    const OTHER: [u8; 4] = [127, 0, 0, 77];
    let site = Site::new(&["--retention-messages", "5", "--idempotency-keys", "20"]);
    let mut hub = site.start();
    let publish = |hub: &Hub, source, number: u32| {
        hub.publish_from(source, &number.to_string(), "x").json()["id"].as_str().unwrap().to_owned()
    };
    let ones: Vec<_> = (0..5).map(|number| publish(&hub, ONE, number)).collect();
    for round in 0..2 {
        let numbers = round * 50..(round + 1) * 50;
        let others: Vec<_> = numbers.clone().map(|number| publish(&hub, OTHER, number)).collect();
        let count =
            || sqlite3(&site.journal(), "SELECT count(*) FROM messages").trim().parse::<u32>().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while count() > 25 {
            assert!(Instant::now() < deadline, "they are not forgotten");
        }
        assert_eq!((0..5).map(|number| publish(&hub, ONE, number)).collect::<Vec<_>>(), ones);
        assert_eq!(publish(&hub, OTHER, numbers.end - 10), others[40]);
        assert_ne!(publish(&hub, OTHER, numbers.start), others[0]);
        hub = site.restart(hub, "KILL");
    }
}

#[test]
fn a_thousand_concurrent_retries_of_one_key_publish_once() {
    let site = Site::new(&[]);
    let hub = site.start();
    let headers = ["Idempotency-Key: same", "Content-Type: text/plain"];
    let request = request("POST /messages HTTP/1.1", hub.address, &headers, Some(b"x"));
    let mut connections: Vec<_> = (0..1_000).map(|_| hub.connect()).collect();
    connections.iter_mut().for_each(|connection| connection.write_all(&request).unwrap());
    let answers: Vec<_> = connections
        .into_iter()
        .map(|connection| Response::read(&mut BufReader::new(connection), false).body)
        .collect();
    assert_eq!(answers.len(), 1_000);
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(hub.history_data(""), ["x"]);
}

#[test]
fn a_key_is_remembered_for_its_window_also_when_its_message_is_no_longer_kept() {
    let site = Site::new(&["--retention-messages", "2"]);
    let first = site.start();
    let answer = send(&first, "once").body;
    (0..9).for_each(|number| drop(first.publish(&number.to_string())));
    assert_eq!(send(&first, "once").body, answer);
    // The row of the dropped message stays for its key, without the data.
    let second = site.restart(first, "TERM");
    assert_eq!(send(&second, "once").body, answer);
    assert_eq!(second.history_data(""), ["7", "8"]);
    // The window is over: the same key makes another request.
    let third = site.restart_with(second, "TERM", &["--idempotency-window", "1ms"]);
    assert_eq!(send(&third, "anew").status, 201);
    assert_eq!(third.history_data(""), ["8", "anew"]);
}

#[test]
fn retention_by_count_holds_across_restarts_and_tells_of_the_gap() {
    let site = Site::new(&[]);
    let first = site.start();
    let ids: Vec<_> = (1..=9).map(|number| first.publish(&number.to_string())).collect();
    let second = site.restart_with(first, "TERM", &["--retention-messages", "3"]);
    assert_eq!(second.history_data("?last=500"), ["7", "8", "9"]);
    let mut stream = second.watch("/events", &[&format!("Last-Event-ID: {}", ids[2])]);
    let gap = stream.event().unwrap();
    assert_eq!((&*gap.event, gap.json()["earliest"].as_str()), ("tabcast:gap", Some(&*ids[6])));
    assert_eq!((7..=9).map(|_| stream.data()).collect::<String>(), "789");
}

#[test]
fn retention_by_age_drops_all_but_the_newest_message() {
    let site = Site::new(&[]);
    let first = site.start();
    (1..=5).for_each(|number| drop(first.publish(&number.to_string())));
    let second = site.restart_with(first, "TERM", &["--retention-age", "1ms"]);
    while second.history_data("").len() > 1 {}
    assert_eq!(second.history_data(""), ["5"]);
    assert!(second.publish("6").ends_with("-6"));
}

#[test]
fn a_quiet_channels_newest_are_found_far_back_and_replay_passes_over_the_rest() {
    let site = Site::new(&["--hide-data"]);
    let first = site.start();
    let id = first.publish_to("quiet", "far back");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..1_000).for_each(|_| drop(first.publish("loud"))));
        }
    });
    let second = site.restart(first, "TERM");
    assert_eq!(second.history_data("?channel=quiet&last=1"), ["far back"]);
    assert_eq!(second.watch("/events?channel=quiet&last=5", &[]).data(), "far back");
    let mut stream = second.watch("/events?channel=quiet", &[&format!("Last-Event-ID: {id}")]);
    second.publish_to("quiet", "near");
    assert_eq!(stream.data(), "near");
}

#[test]
fn a_hub_stops_cleanly_to_one_file_that_sqlite3_reads_as_documented() {
    let site = Site::new(&[]);
    let mut hub = site.start();
    let receipt = hub.post("?event=e", "text/plain", "Hello World!").json();
    assert_eq!(hub.end("TERM").code(), Some(0));
    let files: Vec<_> =
        fs::read_dir(&site.folder.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["tabcast.db"]);
    let query = "SELECT id, channel, event, data, time FROM messages";
    assert!(operations().contains(query));
    let row = sqlite3(&site.journal(), query);
    let (id, time) = (receipt["id"].as_str().unwrap(), receipt["time"].as_str().unwrap());
    assert_eq!(row.trim_end(), format!("{id}|main|e|\"Hello World!\"|{time}"));
    assert_eq!(sqlite3(&site.journal(), "PRAGMA integrity_check").trim_end(), "ok");
}

#[test]
fn the_documented_backup_command_copies_a_journal_in_use() {
    let site = Site::new(&[]);
    let hub = site.start();
    let id = hub.publish("kept");
    let (command, restore) = ("tabcast backup backup.db", "tabcast restore backup.db");
    assert!(operations().contains(command) && operations().contains(restore));
    let mut shell = Command::new("sh");
    let words = command.strip_prefix("tabcast").unwrap();
    shell.args(["-c", &format!("\"$0\" {words}"), env!("CARGO_BIN_EXE_tabcast")]);
    assert!(shell.current_dir(&site.folder.path).status().unwrap().success());
    hub.publish("after the backup");
    let copy = Hub::start(&["--journal", &site.folder.file("backup.db")]);
    assert_eq!(copy.history_data(""), ["kept"]);
    assert_ne!(copy.publish("goes on").split_once('-').unwrap().0, id.split_once('-').unwrap().0);
}

/// What an operator is advised to do.
fn operations() -> String {
    fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")).unwrap()
}

#[test]
fn a_second_hub_on_the_same_file_refuses_to_start() {
    let site = Site::new(&[]);
    let first = site.start();
    first.publish("in the WAL");
    assert_refused_and_unchanged(&site.journal(), "in use by another hub");
    first.publish("the first goes on");
    // A hub that was killed leaves no lock behind.
    site.restart(first, "KILL").publish("so does its successor");
}

/// The path of the journal that a hub leaves behind after `count` messages of 1,000 bytes.
fn left_behind(site: &Site, count: usize) -> String {
    let mut hub = site.start();
    (0..count).for_each(|_| drop(hub.publish(&"x".repeat(1_000))));
    hub.end("TERM");
    site.journal()
}

#[test]
fn a_file_that_is_no_journal_is_refused_and_left_as_it_is() {
    let folder = Folder::new();
    let file = folder.file("other");
    for content in [&b""[..], b"not a database", &[0; 8192]] {
        fs::write(&file, content).unwrap();
        assert_refused_and_unchanged(&file, "not a tabcast journal");
    }
    fs::remove_file(&file).unwrap();
    sqlite3(&file, "PRAGMA journal_mode = WAL; CREATE TABLE messages (id)");
    assert_refused_and_unchanged(&file, "not a tabcast journal");
    // What a crash of its program has left beside it is of no interest either.
    for suffix in ["-wal", "-shm", "-journal"] {
        fs::write(format!("{file}{suffix}"), "something").unwrap();
    }
    assert_refused_and_unchanged(&file, "not a tabcast journal");
}

/// Makes a database of an SQLite mode, with the header of a journal, and another schema.
const LIKE_A_JOURNAL: &str = "PRAGMA application_id = 0x74616263; PRAGMA user_version = 1;
    CREATE TABLE messages (id, text); INSERT INTO messages VALUES (1, 'x');";

#[test]
fn a_file_with_another_schema_is_refused_and_left_as_it_is() {
    for mode in ["WAL", "DELETE"] {
        let folder = Folder::new();
        let file = folder.file("other");
        sqlite3(&file, &format!("PRAGMA journal_mode = {mode}; {LIKE_A_JOURNAL}"));
        assert_refused_and_unchanged(&file, "not a tabcast journal");
        // While another program has it open.
        let other = rusqlite::Connection::open(&file).unwrap();
        other.execute_batch("INSERT INTO messages VALUES (2, 'y')").unwrap();
        assert_refused_and_unchanged(&file, "not a tabcast journal");
    }
}

/// Begins a transaction with these statements, and makes a folder as its program would leave it in a crash
/// now: the file, and the rollback journal by which SQLite undoes the transaction.
fn crashed(file: &str, sql: &str) -> Folder {
    let other = rusqlite::Connection::open(file).unwrap();
    // With so small a cache the file is written before the transaction ends.
    let begin = format!("PRAGMA journal_mode = DELETE; PRAGMA cache_size = 1; BEGIN; {sql}");
    sqlite3_batch(&other, &begin);
    let folder = Folder::new();
    for suffix in ["", "-journal"] {
        fs::copy(format!("{file}{suffix}"), folder.file(&format!("tabcast.db{suffix}"))).unwrap();
    }
    let changed = fs::read(folder.file("tabcast.db")).unwrap();
    drop(other);
    assert!(fs::read(file).unwrap() != changed, "the file was not written");
    folder
}

fn sqlite3_batch(db: &rusqlite::Connection, sql: &str) {
    for statement in sql.split_inclusive(';') {
        let mut statement = db.prepare(statement).unwrap();
        let mut rows = statement.query([]).unwrap();
        while rows.next().unwrap().is_some() {}
    }
}

#[test]
fn a_transaction_of_another_program_that_crashed_is_rolled_back_but_not_in_a_file_that_is_refused() {
    let site = Site::new(&[]);
    let file = left_behind(&site, 100);
    let folder = crashed(&file, "UPDATE entries SET data = '1'; DELETE FROM entries;");
    let hub = Hub::start(&["--journal", &folder.file("tabcast.db")]);
    assert_eq!(hub.history_data("?last=500"), vec!["x".repeat(1_000); 100]);

    let text = "x".repeat(1_000);
    let many = format!("INSERT INTO messages SELECT id + 1, '{text}' FROM messages;").repeat(8);
    sqlite3(&folder.file("other"), &format!("{LIKE_A_JOURNAL} {many}"));
    let folder = crashed(&folder.file("other"), "UPDATE messages SET text = 'y'; DELETE FROM messages;");
    assert_refused_and_unchanged(&folder.file("tabcast.db"), "not a tabcast journal");
}

#[test]
fn a_journal_of_a_newer_version_is_refused_and_left_as_it_is() {
    let site = Site::new(&[]);
    let file = left_behind(&site, 0);
    sqlite3(&file, "PRAGMA user_version = 3");
    assert_refused_and_unchanged(&file, "made by a newer tabcast");
    let other = rusqlite::Connection::open(&file).unwrap();
    other.execute_batch("CREATE TABLE is_in_the_wal (id)").unwrap();
    assert_refused_and_unchanged(&file, "made by a newer tabcast");
}

#[test]
fn a_damaged_journal_is_refused_and_left_as_it_is() {
    let site = Site::new(&[]);
    let file = left_behind(&site, 100);
    let whole = fs::read(&file).unwrap();
    let mut scrambled = whole.clone();
    // The third page is the first of the messages. The second one says where the others belong.
    scrambled[2 * 4096..3 * 4096].fill(0xa5);
    for damaged in [scrambled, whole[..5_000].to_vec(), whole[..whole.len() / 2].to_vec()] {
        fs::write(&file, &damaged).unwrap();
        assert_refused_and_unchanged(&file, "damaged");
    }
}

#[test]
fn a_damaged_journal_is_left_as_it_is_with_what_a_crash_left_beside_it() {
    let site = Site::new(&[]);
    let file = left_behind(&site, 100);
    let mut hub = site.start();
    hub.publish("in the WAL");
    hub.end("KILL");
    let mut damaged = fs::read(&file).unwrap();
    damaged[4096..].fill(0xa5);
    fs::write(&file, &damaged).unwrap();
    assert_eq!(
        folder_of(&file).keys().collect::<Vec<_>>(),
        ["tabcast.db", "tabcast.db-shm", "tabcast.db-wal"]
    );
    assert_refused_and_unchanged(&file, "damaged");
    // So it is where the index of the WAL was not copied.
    fs::remove_file(format!("{file}-shm")).unwrap();
    assert_refused_and_unchanged(&file, "damaged");
}

#[test]
fn a_new_journal_is_its_users_alone_whatever_the_umask_and_an_older_one_keeps_its_mode() {
    let modes = |file: &str| -> Vec<_> {
        folder_of(file).into_values().map(|(mode, _)| format!("{:o}", mode & 0o777)).collect()
    };
    for umask in ["000", "022", "277"] {
        let site = Site::new(&[]);
        let shell = format!("umask {umask} && exec \"$0\" \"$@\"");
        let mut hub = Hub::start_with(&mut site.command(&["sh", "-c", &shell]));
        hub.publish("x");
        assert_eq!(modes(&site.journal()), ["600"; 3]);
        hub.end("TERM");
        fs::set_permissions(site.journal(), fs::Permissions::from_mode(0o640)).unwrap();
        let hub = Hub::start_with(&mut site.command(&["sh", "-c", &shell]));
        hub.publish("x");
        assert_eq!(modes(&site.journal()), ["640"; 3]);
    }
}

#[test]
fn an_event_of_the_hubs_own_in_a_row_is_a_message_like_any_other() {
    let folder = Folder::new();
    let file = folder.file("tabcast.db");
    let mut first = Hub::start(&["--journal", &file]);
    let id = first.publish("before");
    first.signal("TERM");
    assert!(first.wait().success());
    sqlite3(
        &file,
        "INSERT INTO entries (channel, event, data, time_ms)
         VALUES ('main', 'tabcast:join', '\"x\"', 1764000000000)",
    );

    let second = Hub::start(&["--journal", &file]);
    let history = second.get("/messages?last=10");
    assert_eq!(history.status, 200);
    let messages = history.json()["messages"].clone();
    let expected = [("message", "before"), ("tabcast:join", "x")];
    assert_eq!(messages.as_array().unwrap().len(), expected.len(), "{messages}");
    for (at, (event, data)) in expected.into_iter().enumerate() {
        assert_eq!(
            (&messages[at]["event"], &messages[at]["data"]),
            (&event.into(), &data.into()),
            "{messages}"
        );
    }

    let mut stream = second.watch("/events?last=1", &[]);
    let replayed = stream.event().unwrap();
    assert_eq!((&*replayed.event, &*replayed.data), ("tabcast:join", "x"));
    assert_eq!(replayed.id, id.replace("-1", "-2"));
    assert!(second.publish("after").ends_with("-3"));
    assert_eq!(stream.data(), "after");
}

#[test]
fn while_the_file_cannot_be_read_history_is_503_a_stream_waits_and_the_hub_goes_on() {
    let site = Site::new(&[]);
    let hub = site.start();
    let ids: Vec<_> = ["one", "two", "three"].iter().map(|text| hub.publish(text)).collect();
    // A hub that was just started has none of them in memory: it reads the file.
    let hub = site.restart(hub, "TERM");
    let mut stream = {
        let locks = Locks::take(&site.journal());
        let header = format!("Last-Event-ID: {}", ids[0]);
        let mut stream = hub.watch("/events", &[&header]);
        let history = hub.get("/messages?last=3");
        let problem = history.problem(503);
        assert!(problem["detail"].as_str().unwrap().contains("can't read its journal"), "{problem}");
        assert_eq!(history.header("retry-after"), Some("5"));
        hub.wait_for_log(&["ERROR another program keeps the journal from being read"]);
        assert_eq!(hub.post("", "text/plain", "not now").problem(503)["title"], "Service Unavailable");
        drop(locks);
        assert_eq!([stream.data(), stream.data()], ["two", "three"]);
        stream
    };
    let history = hub.get("/messages?last=3").json();
    assert_eq!(history["messages"].as_array().unwrap().len(), 3);
    hub.publish("four");
    assert_eq!(stream.data(), "four");
}

#[test]
fn while_another_program_writes_a_publish_is_503_and_the_hub_goes_on() {
    let site = Site::new(&[]);
    let hub = site.start();
    let mut stream = hub.watch("/events", &[]);
    let other = rusqlite::Connection::open(site.journal()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let busy = hub.post("", "text/plain", "too early");
    busy.problem(503);
    assert!(busy.header("retry-after").is_some());
    other.execute_batch("ROLLBACK").unwrap();
    hub.publish("in time");
    assert_eq!(stream.data(), "in time");
}

#[test]
fn a_folder_that_is_missing_or_not_writable_is_a_clear_error() {
    let folder = Folder::new();
    assert!(refused(&folder.file("missing/tabcast.db")).contains("No such file or directory"));
    // Not even root can write there.
    refused("/proc/tabcast.db");
    assert!(refused(folder.path.to_str().unwrap()).contains("directory"));
}

#[test]
fn without_a_journal_nothing_is_written() {
    let folder = Folder::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    command.args(["--listen", "127.0.0.1:0", "--journal", "memory"]).current_dir(&folder.path);
    let hub = Hub::start_with(&mut command);
    hub.publish("x");
    assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 0);
}

#[test]
fn by_default_the_journal_is_tabcast_db_beside_where_the_hub_runs() {
    let folder = Folder::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    command.args(["--listen", "127.0.0.1:0"]).current_dir(&folder.path);
    Hub::start_with(&mut command).publish("x");
    assert!(folder.path.join("tabcast.db").exists());
}
