//! A hub's start and end: signals, exit codes, and what the hub prints at its start.

mod common;

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Command;

use common::{Hub, Locks, Response, Site, on_each_path, request};

fn tabcast(flags: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tabcast")).args(flags).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

on_each_path!(sigterm_and_sigint_end_every_stream_cleanly_and_the_process_with_0, {
    for signal in ["TERM", "INT"] {
        let mut hub = Hub::start(&[]);
        let mut streams: Vec<_> = ["/events", "/events?format=message", "/events?channel=a&channel=b"]
            .iter()
            .map(|target| hub.watch(target, &[]))
            .collect();
        let mut lines = hub.open("/events", &["Accept: application/x-ndjson"]);
        hub.publish("x");
        streams[0].data();
        hub.signal(signal);
        streams[1].data();
        // `None` stands for the last chunk of a whole response. A connection that is cut fails the test.
        assert!(streams.iter_mut().all(|stream| stream.event().is_none()));
        while lines.line().is_some() {}
        assert_eq!(hub.wait().code(), Some(0));
        hub.wait_for_logs(&["subscriber disconnected", "reason=\"shutdown\""], 4);
        hub.wait_for_log(&["stopping", signal]);
    }
});

on_each_path!(a_thousand_streams_are_ended_and_a_stalled_one_is_cut, {
    let mut hub = Hub::start(&["--max-subscribers-per-address", "2000", "--log-rate", "0"]);
    let mut streams: Vec<_> = (0..1_000).map(|_| hub.watch("/events", &[])).collect();
    let _stalled = hub.watch_without_reading("/events");
    hub.wait_for_logs(&["subscriber connected"], 1_001);
    let large = "x".repeat(1 << 20);
    (0..12).for_each(|_| drop(hub.publish_to("other", &large)));
    hub.signal("TERM");
    assert!(streams.iter_mut().all(|stream| stream.event().is_none()));
    assert_eq!(hub.wait().code(), Some(0));
    hub.wait_for_logs(&["subscriber disconnected"], 1_001);
});

#[test]
fn streams_that_wait_to_read_the_journal_end_with_their_last_chunk() {
    let site = Site::new(&[]);
    let hub = site.start();
    let [first, _] = ["one", "two"].map(|text| hub.publish(text));
    // A hub that was just started has none of them in memory: it reads the file.
    let mut hub = site.restart(hub, "TERM");
    let locks = Locks::take(&site.journal());
    let header = format!("Last-Event-ID: {first}");
    let mut streams: Vec<_> = std::iter::repeat_with(|| hub.connect()).take(50).collect();
    for stream in &mut streams {
        stream.write_all(&request("GET /events HTTP/1.1", hub.address, &[&header], None)).unwrap();
    }
    hub.wait_for_logs(&["subscriber connected"], streams.len());
    hub.signal("TERM");
    for mut stream in streams {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert!(bytes.ends_with(b"\n\n\r\n0\r\n\r\n"), "{:?}", String::from_utf8_lossy(&bytes));
    }
    drop(locks);
    assert_eq!(hub.wait().code(), Some(0));
    hub.wait_for_logs(&["subscriber disconnected", "reason=\"shutdown\""], 50);
}

/// A connection with a publish of four bytes, which the hub has asked for and none of which is sent yet.
fn publish_in_flight(hub: &Hub) -> BufReader<TcpStream> {
    let mut connection = hub.connect();
    let headers = ["Content-Type: text/plain", "Expect: 100-continue", "Content-Length: 4"];
    connection.write_all(&request("POST /messages HTTP/1.1", hub.address, &headers, None)).unwrap();
    let mut reader = BufReader::new(connection);
    assert_eq!(Response::read_interim(&mut reader), 100);
    reader
}

on_each_path!(a_publish_in_flight_is_finished, {
    let mut hub = Hub::start(&[]);
    let mut stream = hub.watch("/events", &[]);
    let mut publish = publish_in_flight(&hub);
    hub.signal("TERM");
    hub.wait_for_log(&["stopping"]);
    assert!(stream.event().is_none(), "the stream ends, and does not wait for the publish");
    publish.get_mut().write_all(b"late").unwrap();
    assert_eq!(Response::read(&mut publish, false).status, 201);
    assert_eq!(hub.wait().code(), Some(0));
    hub.wait_for_log(&["message published", "late"]);
});

on_each_path!(a_publish_that_does_not_finish_in_time_is_cut, {
    let mut hub = Hub::start(&[]);
    let _publish = publish_in_flight(&hub);
    hub.signal("TERM");
    assert_eq!(hub.wait().code(), Some(0));
    hub.wait_for_log(&["connection cut"]);
});

on_each_path!(a_second_signal_ends_the_process_at_once, {
    let mut hub = Hub::start(&[]);
    let _publish = publish_in_flight(&hub);
    hub.signal("INT");
    hub.wait_for_log(&["stopping"]);
    hub.signal("INT");
    assert_eq!(hub.wait().code(), Some(1));
});

#[test]
fn a_hub_that_logs_nothing_serves() {
    let address = Hub::start(&[]).address;
    let mut hub = Command::new(env!("CARGO_BIN_EXE_tabcast"))
        .args(["--listen", &address.to_string(), "--log-level", "off", "--journal", "memory"])
        .spawn()
        .unwrap();
    // Without a log there is no event for its start: connect until it accepts, or has ended.
    let answers = loop {
        if TcpStream::connect(address).is_ok() {
            break true;
        }
        if hub.try_wait().unwrap().is_some() {
            break false;
        }
    };
    assert!(answers && hub.try_wait().unwrap().is_none(), "it ended by itself");
    hub.kill().unwrap();
    hub.wait().unwrap();
}

#[test]
fn a_taken_port_is_a_clear_error_that_names_the_flag() {
    let hub = Hub::start(&[]);
    let (code, _, stderr) = tabcast(&["--listen", &hub.address.to_string()]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains(&format!("can't listen on {}", hub.address)) && stderr.contains("--listen"),
        "{stderr}"
    );
}

#[test]
fn version_and_help_are_enough_to_run_it() {
    let (code, stdout, _) = tabcast(&["--version"]);
    assert_eq!((code, &*stdout), (Some(0), concat!("tabcast ", env!("CARGO_PKG_VERSION"), "\n")));
    let (code, stdout, _) = tabcast(&["--help"]);
    assert_eq!(code, Some(0));
    for part in [
        "curl -N http://127.0.0.1:3000/events",
        "curl -d 'Hello World!'",
        "--listen <ADDRESS:PORT>",
        "[default: 127.0.0.1:3000]",
    ] {
        assert!(stdout.contains(part), "{part} in\n{stdout}");
    }
}

/// Every setting stands in a table of docs/configuration.md with its flag, variable and default, as
/// `--help` has it; and no other does.
#[test]
fn the_documents_have_every_setting() {
    let (_, help, _) = tabcast(&["--help"]);
    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut settings = Vec::new();
    for option in help.split("\n      --").skip(1) {
        let option = one_line(option);
        let name = option.split(' ').next().unwrap();
        let Some(variable) = option.split("[env: ").nth(1).map(|rest| rest.split(['=', ']']).next().unwrap())
        else {
            continue;
        };
        let default = option.split("[default: ").nth(1).map_or("", |rest| rest.split(']').next().unwrap());
        settings.push((format!("--{name}"), variable.to_owned(), default.to_owned()));
    }
    assert!(settings.len() > 20, "{help}");
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md");
    let document = std::fs::read_to_string(document).unwrap();
    let rows: Vec<Vec<_>> = document
        .lines()
        .filter(|line| line.starts_with("| `--"))
        .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect())
        .collect();
    for (flag, variable, default) in &settings {
        let row = rows
            .iter()
            .find(|row| row[1].split(' ').next() == Some(flag))
            .unwrap_or_else(|| panic!("{flag} is missing in docs/configuration.md"));
        assert_eq!((&row[2], &row[3]), (variable, default), "{flag}");
    }
    assert_eq!(rows.len(), settings.len());
}
