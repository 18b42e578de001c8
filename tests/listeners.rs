//! Where a hub listens: several addresses, and Unix sockets with their files.

mod common;

use std::fs;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use common::{Folder, Hub, PATIENCE, Response, on_each_journal, parse_event};

/// A hub that listens on a Unix socket at this path alone, with these flags.
fn start(path: &str, flags: &[&str]) -> Hub {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    command.args(["--listen", &format!("unix:{path}"), "--journal", "memory"]).args(flags);
    let hub = Hub::spawn(&mut command);
    hub.wait_for_log(&[&format!("listening on unix:{path}")]);
    hub
}

/// What a hub prints that can't start on this socket.
fn refused(path: &str) -> String {
    let output = Command::new("timeout")
        .args(["30", env!("CARGO_BIN_EXE_tabcast"), "--journal", "memory", "--listen"])
        .arg(format!("unix:{path}"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(path) && said.contains("--listen"), "{said}");
    said
}

fn send(path: &str, request: &str) -> BufReader<UnixStream> {
    let mut connection = UnixStream::connect(path).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    BufReader::new(connection)
}

fn post(path: &str, headers: &str, text: &str) -> Response {
    let head = format!("POST /messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n", text.len());
    Response::read(&mut send(path, &format!("{head}Content-Type: text/plain\r\n{headers}\r\n{text}")), false)
}

/// Reads a stream in HTTP/1.0 up to a block with this line, and returns the block.
fn read_until(stream: &mut BufReader<UnixStream>, line: &str) -> String {
    let mut block = String::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap();
        block.push(byte[0].into());
        if block.ends_with("\n\n") || block.ends_with("\r\n\r\n") {
            if block.lines().any(|known| known == line) {
                return block;
            }
            block.clear();
        }
    }
}

fn watch(path: &str, headers: &str) -> BufReader<UnixStream> {
    let mut stream = send(path, &format!("GET /events HTTP/1.0\r\nHost: localhost\r\n{headers}\r\n"));
    read_until(&mut stream, "content-type: text/event-stream");
    stream
}

on_each_journal!(a_hub_listens_at_each_address_and_on_each_socket, {
    let folder = Folder::new();
    let [first, second] = ["first.sock", "second.sock"].map(|name| folder.file(name));
    let sockets = format!("unix:{first},unix:{second}");
    let hub = Hub::start(&["--listen", &sockets, "--listen", "127.0.0.1:0"]);
    let logged = hub.wait_for_logs(&["listening on http://127.0.0.1:"], 2);
    hub.wait_for_log(&[&format!("listening on unix:{first}")]);
    hub.wait_for_log(&[&format!("listening on unix:{second}")]);
    let other = logged[1].split("http://").nth(1).unwrap().split_whitespace().next().unwrap();
    let other = other.parse().unwrap();
    assert_ne!(hub.address, other);
    let mut on_socket = watch(&first, "");
    let mut on_port = hub.watch("/events", &[]);
    assert_eq!(post(&second, "", "by socket").status, 201);
    assert_eq!(parse_event(&read_until(&mut on_socket, "data: by socket")).event, "message");
    assert_eq!(on_port.data(), "by socket");
    let mut connection = common::connect(other).unwrap();
    connection.write_all(&common::post_text(other, "by port")).unwrap();
    read_until(&mut on_socket, "data: by port");
    assert_eq!(on_port.data(), "by port");
});

#[test]
fn a_sockets_file_has_its_mode_and_is_removed_at_the_end() {
    let folder = Folder::new();
    let path = folder.file("hub.sock");
    for (flags, mode) in [(&[][..], 0o660), (&["--unix-mode", "0600"], 0o600)] {
        let mut hub = start(&path, flags);
        let file = fs::symlink_metadata(&path).unwrap();
        assert!(file.file_type().is_socket());
        assert_eq!(file.permissions().mode() & 0o777, mode);
        assert_eq!(hub.end("TERM").code(), Some(0));
        assert_eq!(fs::symlink_metadata(&path).unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn the_file_of_a_killed_hub_is_replaced_and_no_other() {
    let folder = Folder::new();
    let path = folder.file("hub.sock");
    start(&path, &[]).end("KILL");
    assert!(fs::symlink_metadata(&path).is_ok());
    let mut hub = start(&path, &[]);
    assert!(refused(&path).contains("in use"));
    assert_eq!(post(&path, "", "still here").status, 201);

    // What stands in its place at the end is not its own.
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    hub.end("TERM");
    assert!(fs::symlink_metadata(&path).is_ok());

    let file = folder.file("file");
    fs::write(&file, "kept").unwrap();
    assert!(refused(&file).contains("no socket"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn a_page_reaches_a_socket_by_the_hosts_that_are_allowed() {
    let folder = Folder::new();
    let path = folder.file("hub.sock");
    let _hub = start(&path, &["--allow-host", "chat.example.org"]);
    for (host, status) in [("localhost", 200), ("chat.example.org", 200), ("evil.example", 403)] {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(Response::read(&mut send(&path, &request), false).status, status, "{host}");
    }
    assert_eq!(post(&path, "Origin: https://evil.example\r\n", "x").status, 403);
    assert_eq!(post(&path, "Origin: http://localhost\r\n", "x").status, 201);
}

#[test]
fn all_on_a_socket_are_one_address_unless_they_are_proxies_that_are_trusted() {
    let folder = Folder::new();
    let path = folder.file("hub.sock");
    let limits = ["--max-subscribers-per-address", "1", "--max-connections-per-address", "3"];
    let [ada, bob] = ["X-Forwarded-For: 203.0.113.1\r\n", "X-Forwarded-For: 203.0.113.2\r\n"];
    let hub = start(&path, &[&limits[..], &["--trust-proxy", "private"]].concat());
    let _first = watch(&path, ada);
    hub.wait_for_log(&["subscriber connected", "address=unix "]);
    read_until(&mut watch(&path, bob), "event: tabcast:full");
    hub.wait_for_log(&["subscriber turned away", "address=unix "]);
    drop(hub);

    let hub = start(&path, &[&limits[..], &["--trust-proxy", "unix"]].concat());
    let _streams = [watch(&path, ada), watch(&path, bob)];
    hub.wait_for_log(&["subscriber connected", "address=203.0.113.1:0 "]);
    hub.wait_for_log(&["subscriber connected", "address=203.0.113.2:0 "]);
    read_until(&mut watch(&path, bob), "event: tabcast:full");
    // More connections than one address may have.
    assert_eq!(post(&path, ada, "x").status, 201);
}

#[test]
fn who_takes_nothing_on_a_socket_is_cut_off_and_others_are_not() {
    let folder = Folder::new();
    let path = folder.file("hub.sock");
    let hub = start(&path, &["--stall-timeout", "500ms", "--hide-data", "--log-level", "debug"]);
    let stalled = watch(&path, "");
    hub.wait_for_log(&["subscriber connected subscriber=1 "]);
    let mut reads = watch(&path, "");
    let text = "x".repeat(1 << 20);
    for _ in 0..4 {
        assert_eq!(post(&path, "", &text).status, 201);
        read_until(&mut reads, &format!("data: {text}"));
    }
    hub.wait_for_log(&["subscriber disconnected subscriber=1 ", "reason=\"timed out\""]);
    drop(stalled);

    // So is who reads no history.
    let _unread = send(&path, "GET /messages HTTP/1.1\r\nHost: localhost\r\n\r\n");
    hub.wait_for_log(&["connection failed", "address=unix "]);
    assert_eq!(post(&path, "", "last").status, 201);
    read_until(&mut reads, "data: last");
}
