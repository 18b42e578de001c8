//! Attacks: what a stranger with a laptop can do to a hub. Each is carried out from one address, against a
//! hub that may have 512 MiB of address space and ends where it asks for more. The hub lives, and answers a
//! good client at another address as if nothing were.

mod common;

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use common::{
    Hub, Locks, PATIENCE, Response, Site, Stream, has_data, on_each_journal, on_each_path, on_paths,
    post_text, request,
};
use socket2::{Domain, Socket, Type};

/// The address of the attacker, and that of the good client.
const ATTACKER: [u8; 4] = [127, 0, 0, 66];
const GOOD: [u8; 4] = [127, 0, 0, 77];

/// What a hub may have, in MiB.
const LIMIT: usize = 512;

/// A connection to the hub from this address of loopback.
fn connect(hub: &Hub, from: [u8; 4]) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&hub.address.into()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.set_write_timeout(Some(PATIENCE)).unwrap();
    socket.into()
}

/// A connection on which these bytes were sent. A hub that takes no more of them may close it before.
fn send(hub: &Hub, from: [u8; 4], bytes: impl AsRef<[u8]>) -> TcpStream {
    let mut connection = connect(hub, from);
    let _ = connection.write_all(bytes.as_ref());
    connection
}

fn answer(connection: TcpStream) -> Response {
    Response::read(&mut BufReader::new(connection), false)
}

fn get(hub: &Hub, from: [u8; 4], target: &str) -> TcpStream {
    let version = if target.starts_with("/events") { common::Path::current().http } else { "1.1" };
    send(hub, from, request(&format!("GET {target} HTTP/{version}"), hub.address, &[], None))
}

fn post(hub: &Hub, from: [u8; 4], query: &str, body: &[u8]) -> Response {
    let line = format!("POST /messages{query} HTTP/1.1");
    answer(send(hub, from, request(&line, hub.address, &["Content-Type: text/plain"], Some(body))))
}

/// The good client publishes, and reads what it has published, live and as history. Nothing of it is refused.
fn all_is_well(hub: &Hub) {
    let mut stream = Stream::read(get(hub, GOOD, "/events?channel=good"));
    for number in 0..10 {
        let text = format!("good {number}");
        assert_eq!(post(hub, GOOD, "?channel=good", text.as_bytes()).status, 201);
        assert_eq!(stream.data(), text);
        let history = answer(get(hub, GOOD, "/messages?channel=good&last=1")).json();
        assert_eq!(history["messages"][0]["data"], text);
    }
}

/// Waits until the hub's memory is at most so many bytes over `idle` again.
fn comes_back(hub: &Hub, idle: usize, slack: usize) {
    let deadline = Instant::now() + PATIENCE;
    while hub.resident_bytes() > idle + slack {
        assert!(Instant::now() < deadline, "{} bytes, {idle} when idle", hub.resident_bytes());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// A message of 6 MiB as JSON, of 1 MiB as text.
fn control_characters() -> Vec<u8> {
    vec![1; 1 << 20]
}

on_each_journal!(histories_that_nobody_reads, {
    let hub = Hub::start_within(LIMIT, &["--hide-data"]);
    assert_eq!(post(&hub, ATTACKER, "", &control_characters()).status, 201);
    // It is then not among the newest messages, which the journal in a file has in memory as well.
    for _ in 0..4 {
        assert_eq!(post(&hub, ATTACKER, "?channel=other", &control_characters()).status, 201);
    }
    all_is_well(&hub);
    let idle = hub.resident_bytes();
    let mut unread: Vec<_> = (0..250).map(|_| get(&hub, ATTACKER, "/messages?last=1")).collect();
    // The first bytes of each answer are there: the hub has read the message for it, or has refused.
    let mut head = [0; 16];
    let mut statuses: Vec<_> = unread
        .iter_mut()
        .map(|connection| {
            connection.read_exact(&mut head).unwrap();
            String::from_utf8_lossy(&head[9..12]).into_owned()
        })
        .collect();
    all_is_well(&hub);
    statuses.sort();
    assert_eq!(statuses, [vec!["200"; 100], vec!["429"; 150]].concat());
    let grown = hub.resident_bytes().saturating_sub(idle);
    println!("{grown} bytes for 100 unread histories");
    assert!(grown < 100 << 20, "{grown} bytes");

    // Whoever reads on gets the whole message. The others make room for it once the hub sees that they are
    // gone.
    drop(unread);
    let deadline = Instant::now() + PATIENCE;
    let history = loop {
        let history = answer(get(&hub, ATTACKER, "/messages?last=1"));
        if history.status == 200 {
            break history.json();
        }
        assert!(history.status == 429 && Instant::now() < deadline, "{history:?}");
    };
    assert_eq!(history["messages"][0]["data"].as_str().unwrap().len(), 1 << 20);
    comes_back(&hub, idle, 32 << 20);
});

on_each_path!(subscribers_that_take_a_part_of_a_message, {
    let hub = Hub::start_within(LIMIT, &["--hide-data", "--retention-bytes", "64MiB"]);
    let lines = vec![b'\n'; 1 << 20];
    // Of the whole frame: `data: ` for each of the lines.
    let frame = "data: \n".repeat((1 << 20) + 1);
    let idle = hub.resident_bytes();
    let mut stalled = Vec::new();
    for number in 0..100 {
        // Half of them have channels of their own, and so a group of their own.
        let target = match number % 2 {
            0 => format!("/events?as=a{number}"),
            _ => format!("/events?channel=main&channel=own-{number}"),
        };
        let mut stream = Stream::read(get(&hub, ATTACKER, &target));
        stream.block().unwrap();
        stalled.push(stream);
    }
    // Every message leaves somebody out, so that no two subscribers get quite the same.
    for number in 0..4 {
        assert_eq!(post(&hub, ATTACKER, &format!("?except=a{}", 2 * number), &lines).status, 201);
    }
    all_is_well(&hub);
    let grown = hub.resident_bytes().saturating_sub(idle);
    println!("{grown} bytes for 100 subscribers");
    assert!(grown < 200 << 20, "{grown} bytes for 100 subscribers");

    // Whoever reads on has missed nothing, though the hub has kept no bytes for it.
    for (index, messages) in [(0, 3), (1, 4), (2, 3), (98, 4)] {
        for _ in 0..messages {
            let mut blocks = std::iter::from_fn(|| stalled[index].block());
            let block = blocks.find(|block| has_data(block)).unwrap();
            assert!(block.ends_with(&format!("{frame}\n")), "{} bytes", block.len());
        }
    }
    drop(stalled);
    // What was read again is not counted again.
    hub.wait_for_log(&["subscriber disconnected subscriber=2 ", " sent=4 "]);
    all_is_well(&hub);
});

on_each_journal!(bodies_that_are_never_finished, {
    let hub = Hub::start_within(LIMIT, &["--hide-data"]);
    let idle = hub.resident_bytes();
    let body = post_text(hub.address, &"x".repeat((1 << 20) - 1));
    // All of the memory for bodies and more. The attacker's own bodies give way to nobody.
    let mut held = Vec::new();
    for _ in 0..80 {
        let mut connection = connect(&hub, ATTACKER);
        let _ = connection.write_all(&body[..body.len() - 1]);
        held.push(connection);
    }
    for number in 0..50 {
        let body = vec![b'x'; if number % 5 == 0 { 1 << 20 } else { 5 }];
        assert_eq!(post(&hub, GOOD, "", &body).status, 201, "the publish {number}");
    }
    all_is_well(&hub);
    drop(held);
    comes_back(&hub, idle, 64 << 20);
});

on_each_journal!(bodies_that_bring_next_to_nothing, {
    let hub = Hub::start_within(LIMIT, &["--min-body-rate", "1KiB", "--body-timeout", "1h"]);
    let body = post_text(hub.address, "never whole");
    let problem = answer(send(&hub, ATTACKER, &body[..body.len() - 1])).problem(408);
    assert!(problem["detail"].as_str().unwrap().contains("1024 bytes a second"), "{problem}");
});

on_each_journal!(connections_without_a_request, {
    let flags =
        ["--max-connections", "300", "--max-connections-per-address", "200", "--header-timeout", "1h"];
    let hub = Hub::start_within(LIMIT, &flags);
    let idle: Vec<_> = (0..300).map(|_| send(&hub, ATTACKER, "GET / HTTP/1.1\r\nX: ")).collect();
    all_is_well(&hub);
    hub.wait_for_logs(&["connection closed", "127.0.0.66", "200"], 100);
    // They are closed, and the others are not.
    let is_closed = |mut connection: &TcpStream| {
        connection.set_nonblocking(true).unwrap();
        !matches!(connection.read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    };
    assert_eq!(idle.iter().filter(|connection| is_closed(connection)).count(), 100);
});

on_each_journal!(bodies_behind_a_proxy_that_are_never_finished, {
    let flags = ["--max-connections", "300", "--trust-proxy", "127.0.0.66", "--body-timeout", "1h"];
    let hub = Hub::start_within(LIMIT, &[&flags[..], &["--min-body-rate", "0"]].concat());
    // The proxy has all connections, most of them for one address.
    let headers = ["Content-Type: text/plain", "X-Forwarded-For: 203.0.113.5"];
    let body = request("POST /messages HTTP/1.1", hub.address, &headers, Some(b"never whole"));
    let held: Vec<_> = (0..300).map(|_| send(&hub, ATTACKER, &body[..body.len() - 1])).collect();
    // A quarter of all is left for others: bodies have given way.
    all_is_well(&hub);
    let is_answered = |connection: &&TcpStream| {
        connection.set_nonblocking(true).unwrap();
        connection.peek(&mut [0]).is_ok()
    };
    let (answered, waiting): (Vec<_>, Vec<_>) = held.iter().partition(is_answered);
    assert_eq!((answered.len(), waiting.len()), (75, 225));
    for connection in answered {
        connection.set_nonblocking(false).unwrap();
        answer(connection.try_clone().unwrap()).problem(503);
    }
});

on_each_journal!(heads_that_never_end, {
    let hub = Hub::start_within(LIMIT, &["--max-connections-per-address", "2000", "--header-timeout", "1h"]);
    all_is_well(&hub);
    let idle = hub.resident_bytes();
    let head = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(60_000));
    let held: Vec<_> = (0..2_000).map(|_| send(&hub, ATTACKER, &head)).collect();
    all_is_well(&hub);
    let grown = hub.resident_bytes().saturating_sub(idle);
    println!("{grown} bytes for {} heads", held.len());
    assert!(grown < 100 << 20, "{grown} bytes for {} heads", held.len());
    drop(held);
    comes_back(&hub, idle, 32 << 20);
});

on_each_journal!(many_long_reads, {
    let hub = Hub::start_within(LIMIT, &["--hide-data", "--max-readers", "1000"]);
    let first = hub.publish("x");
    let mut publisher = BufReader::new(connect(&hub, ATTACKER));
    let batch: Vec<u8> = (0..500).flat_map(|_| post_text(hub.address, "x")).collect();
    for _ in 0..20 {
        publisher.get_mut().write_all(&batch).unwrap();
        for _ in 0..500 {
            assert_eq!(Response::read(&mut publisher, false).status, 201);
        }
    }
    // Of a channel without messages, at which the index has nothing to read.
    let quiet: Vec<_> = (0..400).map(|_| get(&hub, ATTACKER, "/events?channel=quiet&last=100000")).collect();
    // Each a whole page, of messages that only the file has.
    let target = format!("/messages?after={first}&limit=500");
    let reads: Vec<_> = (0..1_000).map(|_| get(&hub, ATTACKER, &target)).collect();
    let answered = answer(get(&hub, GOOD, &target));
    assert_eq!(answered.json()["messages"].as_array().unwrap().len(), 500);
    all_is_well(&hub);
    drop((quiet, reads));
});

on_each_journal!(readers_have_a_limit_in_all_and_head_reads_nothing, {
    let hub = Hub::start(&["--max-readers", "0"]);
    let problem = hub.get("/messages").problem(503);
    assert_eq!(problem["limit"], 0);
    let head = hub.send("HEAD", "/messages?last=500", &[], b"");
    assert_eq!((head.status, head.header("content-type")), (200, Some("application/json")));
    hub.send("HEAD", "/messages?last=501", &[], b"");
    assert_eq!(hub.send("HEAD", "/messages?last=501", &[], b"").status, 422);
});

on_each_journal!(publishers_that_never_stop, {
    let hub = Hub::start_within(LIMIT, &["--hide-data", "--retention-bytes", "192MiB"]);
    let stop = Arc::new(AtomicBool::new(false));
    let flood = |body: Vec<u8>| {
        let (stop, mut connection) = (Arc::clone(&stop), BufReader::new(connect(&hub, ATTACKER)));
        let line = "POST /messages?channel=flood HTTP/1.1";
        let request = request(line, hub.address, &["Content-Type: text/plain"], Some(&body));
        std::thread::spawn(move || {
            let mut statuses = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                connection.get_mut().write_all(&request).unwrap();
                statuses.push(Response::read(&mut connection, false).status);
            }
            statuses
        })
    };
    // Large messages, six times as large as JSON, and small ones.
    let floods: Vec<_> =
        (0..60).map(|number| flood(if number % 2 == 0 { vec![1; 100_000] } else { vec![b'x'] })).collect();
    all_is_well(&hub);
    stop.store(true, Ordering::Relaxed);
    // Of the attacker's own, some may be refused for want of memory. None breaks.
    for flood in floods {
        assert!(flood.join().unwrap().iter().all(|status| [201, 503].contains(status)));
    }
    all_is_well(&hub);
});

on_each_journal!(unread_answers_at_the_end, {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let flags = ["--max-readers", "3100", "--max-readers-per-address", "3000"];
    let more = ["--max-connections-per-address", "4000", "--hide-data"];
    let mut hub = Hub::start_within(LIMIT, &[&flags[..], &more].concat());
    assert_eq!(post(&hub, ATTACKER, "", &vec![b'x'; 1 << 20]).status, 201);
    let mut unread: Vec<_> = (0..3_000).map(|_| get(&hub, ATTACKER, "/messages?last=1")).collect();
    unread.iter_mut().for_each(|connection| connection.read_exact(&mut [0; 16]).unwrap());
    all_is_well(&hub);
    assert_eq!(hub.end("TERM").code(), Some(0));
});

on_each_journal!(keys_of_one_publisher, {
    let hub = Hub::start_within(LIMIT, &["--hide-data", "--retention-messages", "20000"]);
    let keyed = |key: &str| {
        let headers = ["Content-Type: text/plain", &format!("Idempotency-Key: {key}")];
        request("POST /messages HTTP/1.1", hub.address, &headers, Some(b"once"))
    };
    let publish = || answer(send(&hub, GOOD, keyed("good"))).json()["id"].clone();
    let id = publish();
    let mut flood = BufReader::new(connect(&hub, ATTACKER));
    for batch in 0..26 {
        let requests: Vec<u8> = (0..400).flat_map(|number| keyed(&format!("{batch}-{number}"))).collect();
        flood.get_mut().write_all(&requests).unwrap();
        for _ in 0..400 {
            assert_eq!(Response::read(&mut flood, false).status, 201);
        }
    }
    assert_eq!(publish(), id);
    all_is_well(&hub);
});

on_each_journal!(lines_in_the_log, {
    const COUNT: usize = 3_000;
    let hub = Hub::start_within(LIMIT, &["--max-subscribers-per-address", "1"]);
    // Of each connect, the channels' names alone are 2 kB.
    let names: Vec<_> = (10..26).map(|number| format!("channel={number}{}", "x".repeat(120))).collect();
    let _only = Stream::read(get(&hub, ATTACKER, &format!("/events?{}", names.join("&"))));
    let target = format!("/events?{}", names.join("&"));
    for _ in 0..COUNT {
        let mut stream = Stream::read(get(&hub, ATTACKER, &target));
        assert_eq!(stream.event().unwrap().event, "tabcast:full");
    }
    all_is_well(&hub);
    // Every one of them is counted, though not every one has a line.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let log = hub.log();
        assert!(log.iter().all(|line| line.len() <= 2048));
        let summaries = log.iter().filter_map(|line| line.split("subscriber turned away count=").nth(1));
        let left_out: usize = summaries.map(|count| count.parse::<usize>().unwrap()).sum();
        let lines = log.iter().filter(|line| line.contains("WARN subscriber turned away")).count();
        if lines + left_out == COUNT {
            break;
        }
        assert!(Instant::now() < deadline, "{lines} lines, {left_out} left out");
    }
});

on_each_journal!(patterns_that_no_other_subscriber_has, {
    let hub = Hub::start_within(LIMIT, &[]);
    all_is_well(&hub);
    let idle = hub.resident_bytes();
    let target = |number: usize, more: &str| {
        let pattern = |nth| format!("channel={number}.{nth}{more}.%2A");
        format!("/events?{}", (0..16).map(pattern).collect::<Vec<_>>().join("&"))
    };
    // 61 tokens each would take half a megabyte.
    let long = target(0, &".x".repeat(58)).replace("/events", "/messages");
    let refused = answer(get(&hub, ATTACKER, &long)).problem(422);
    assert_eq!((&refused["field"], &refused["limit"]), (&"channel".into(), &64.into()));
    let held: Vec<_> =
        (0..1_000).map(|number| Stream::read(get(&hub, ATTACKER, &target(number, ".x")))).collect();
    all_is_well(&hub);
    let grown = hub.resident_bytes().saturating_sub(idle);
    println!("{grown} bytes for the patterns of {}", held.len());
    assert!(grown < 40 << 20, "{grown} bytes");
});

on_each_journal!(refusals_of_what_is_long, {
    let hub = Hub::start_within(LIMIT, &[]);
    let (long, quotes) = ("x".repeat(60_000), "\"".repeat(60_000));
    for (line, header, status) in [
        ("POST /messages", format!("Origin: {quotes}"), 403),
        ("GET /messages", format!("Host: {long}"), 403),
        (&*format!("{long} /messages"), "Accept: */*".to_owned(), 405),
        (&*format!("GET /messages?{long}"), "Accept: */*".to_owned(), 422),
    ] {
        let head = request(&format!("{line} HTTP/1.1"), hub.address, &[&header], None);
        let refused = answer(send(&hub, ATTACKER, head));
        assert_eq!(refused.status, status, "{refused:?}");
        // Whoever reads none of it makes the hub keep it.
        assert!(refused.body.len() < 4 << 10, "{} bytes", refused.body.len());
    }
    all_is_well(&hub);
});

#[test]
fn long_cursors_of_subscribers_that_wait_for_the_journal() {
    let site = Site::new(&[]);
    site.start().publish("x");
    let hub = site.start();
    let idle = hub.resident_bytes();
    let locks = Locks::take(&site.journal());
    let cursor = format!("Last-Event-ID: {}", "x".repeat(60_000));
    let head = request("GET /events HTTP/1.1", hub.address, &[&cursor], None);
    let mut held: Vec<_> = (0..900).map(|_| Stream::read(send(&hub, ATTACKER, &head))).collect();
    held.iter_mut().for_each(|stream| drop(stream.block()));
    let grown = hub.resident_bytes().saturating_sub(idle);
    println!("{grown} bytes for the cursors of {}", held.len());
    assert!(grown < 30 << 20, "{grown} bytes");
    drop(locks);
    let gap = held[899].event().unwrap();
    assert_eq!((&*gap.event, gap.json()["asked"].as_str()), ("tabcast:gap", Some(&*"x".repeat(64))));
}

on_paths!([file], large_messages_on_the_disk, {
    let hub = Hub::start_within(LIMIT, &["--hide-data", "--retention-bytes", "16MiB"]);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let status = post(&hub, ATTACKER, "", &control_characters()).status;
                    assert!([201, 503].contains(&status), "{status}");
                    let bytes = hub.journal_bytes();
                    assert!(bytes <= (16 + 64) << 20, "{bytes} bytes");
                }
            });
        }
    });
    all_is_well(&hub);
});

on_each_journal!(long_heads_on_connections_that_want_to_stay_open, {
    let hub = Hub::start_within(LIMIT, &["--hide-data", "--idle-timeout", "1h"]);
    all_is_well(&hub);
    let idle = hub.resident_bytes();
    let cookies = format!("Cookie: {}", "x".repeat(60_000));
    let long = request("GET /messages HTTP/1.1", hub.address, &[&cookies], None);
    // Together these heads are longer than there is memory for. Each connection ends with its response.
    for _ in 0..400 {
        let mut connection = BufReader::new(send(&hub, ATTACKER, &long));
        let response = Response::read(&mut connection, false);
        assert_eq!((response.status, response.header("connection")), (200, Some("close")));
        assert_eq!(connection.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(answer(send(&hub, GOOD, &long)).status, 200);
    comes_back(&hub, idle, 32 << 20);
});

on_each_journal!(requests_whose_answers_nobody_reads, {
    let hub = Hub::start_within(LIMIT, &["--hide-data", "--idle-timeout", "1h", "--stall-timeout", "1h"]);
    assert_eq!(hub.post("", "text/plain", "x".repeat(1 << 20)).status, 201);
    all_is_well(&hub);
    let idle = hub.resident_bytes();
    let short = request("GET /messages?last=2 HTTP/1.1", hub.address, &[], None);
    let cookies = format!("Cookie: {}", "x".repeat(60_000));
    let long = request("GET /messages?last=2 HTTP/1.1", hub.address, &[&cookies], None);
    // Behind a request lie others, of 60 kB together: behind a short head, and behind a long one.
    let others = short.repeat(60_000 / short.len());
    let held: Vec<_> =
        [short, long].iter().flat_map(|first| vec![[&first[..], &others].concat(); 400]).collect();
    let held: Vec<_> = held.iter().map(|requests| send(&hub, ATTACKER, requests)).collect();
    all_is_well(&hub);
    let grown = hub.resident_bytes().saturating_sub(idle);
    println!("{grown} bytes for {} connections", held.len());
    assert!(grown < 64 << 20, "{grown} bytes for {} connections", held.len());
});
