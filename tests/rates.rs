//! How often one caller may publish, connect and read: `--publish-rate` and `--connect-rate`.

mod common;

use std::io::{BufReader, Write};

use common::{Folder, Hub, Response, Stream, connect_from, parse_event, request};

/// The response to a request from this address of the loopback network.
fn send_from(hub: &Hub, last: u8, line: &str, headers: &[&str], body: Option<&[u8]>) -> Response {
    let mut connection = connect_from([127, 0, 0, last], hub.address).unwrap();
    connection.write_all(&request(line, hub.address, headers, body)).unwrap();
    Response::read(&mut BufReader::new(connection), false)
}

/// Checks that it is a refusal by a rate of so many, which says when to try again.
fn assert_refused(response: &Response, limit: u64, what: &str) {
    let problem = response.problem(429);
    assert_eq!(problem["limit"], limit, "{problem}");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(what) && detail.contains("try again in"), "{problem}");
    let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=3_600).contains(&seconds), "{seconds}");
}

const LINES: &str = "application/x-ndjson";

#[test]
fn an_address_publishes_at_its_rate_and_ten_times_as_much_at_once() {
    let hub = Hub::start(&["--publish-rate", "1/h"]);
    (0..10).for_each(|_| drop(hub.publish("x")));
    let refused = hub.post("", "text/plain", "too many");
    assert_refused(&refused, 1, "messages of one caller, 1/h,");
    assert_eq!(hub.history("").len(), 10);
    let headers = ["Content-Type: text/plain"];
    let other = send_from(&hub, 2, "POST /messages HTTP/1.1", &headers, Some(b"another's"));
    assert_eq!(other.status, 201);
    assert_eq!(hub.history_data("?last=1"), ["another's"]);
}

#[test]
fn a_subject_has_its_rate_wherever_it_asks_from_and_no_other_subject_has_it() {
    let folder = Folder::new();
    let [(ada, ada_hash), (bob, bob_hash)] = [(); 2].map(|()| tabcast::auth::tokens::new().unwrap());
    let tokens = folder.file("tokens");
    std::fs::write(&tokens, format!("ada {ada_hash} all\nbob {bob_hash} all\n")).unwrap();
    let hub = Hub::start(&["--tokens", &tokens, "--publish-rate", "1/h"]);
    let publish = |token: &str, last| {
        let headers = [&*format!("Authorization: Bearer {token}"), "Content-Type: text/plain"];
        send_from(&hub, last, "POST /messages HTTP/1.1", &headers, Some(b"x"))
    };
    for last in 1..=10 {
        assert_eq!(publish(&ada, last).status, 201);
    }
    assert_refused(&publish(&ada, 11), 1, "messages");
    assert_eq!(publish(&bob, 1).status, 201);
}

#[test]
fn a_batch_counts_its_messages_and_is_published_whole_or_not_at_all() {
    let hub = Hub::start(&["--publish-rate", "1/h"]);
    hub.publish("first");
    let line = "{\"data\": 1}\n";
    assert_refused(&hub.post("", LINES, line.repeat(10)), 1, "messages");
    assert_eq!(hub.history("").len(), 1);
    // The refused one counted as one message.
    assert_eq!(hub.post("", LINES, line.repeat(8)).status, 201);
    assert_refused(&hub.post("", LINES, line), 1, "messages");
}

#[test]
fn a_batch_of_more_than_may_come_at_once_counts_as_so_many() {
    let hub = Hub::start(&["--publish-rate", "1/h"]);
    assert_eq!(hub.post("", LINES, "{\"data\": 1}\n".repeat(30)).status, 201);
    assert_refused(&hub.post("", "text/plain", "x"), 1, "messages");
    assert_eq!(hub.history("").len(), 30);
}

#[test]
fn a_deleted_message_counts_as_one_that_is_published() {
    let hub = Hub::start(&["--publish-rate", "1/h"]);
    let ids: Vec<_> = (0..6).map(|_| hub.publish("x")).collect();
    let delete = |id: &String| hub.send("DELETE", &format!("/messages/{id}"), &[], b"");
    assert!(ids[..4].iter().all(|id| delete(id).status == 204));
    assert_refused(&delete(&ids[4]), 1, "messages");
    // Another address finds it still there.
    let line = format!("DELETE /messages/{} HTTP/1.1", ids[4]);
    assert_eq!(send_from(&hub, 2, &line, &[], None).status, 204);
}

#[test]
fn a_publish_beyond_the_rate_is_refused_before_its_body_is_asked_for() {
    let hub = Hub::start(&["--publish-rate", "1/h"]);
    (0..10).for_each(|_| drop(hub.publish("x")));
    let headers = ["Content-Type: text/plain", "Content-Length: 5", "Expect: 100-continue"];
    // With a body to come, a response other than `100 Continue` is the first.
    assert_refused(&hub.raw(request("POST /messages HTTP/1.1", hub.address, &headers, None)), 1, "messages");
}

#[test]
fn streams_and_histories_have_one_rate_and_a_stream_beyond_it_comes_back_later() {
    let hub = Hub::start(&["--connect-rate", "1/h"]);
    let _streams: Vec<_> = (0..5).map(|_| hub.watch("/events", &[])).collect();
    (0..5).for_each(|_| assert!(hub.history("").is_empty()));
    assert_refused(&hub.get("/messages"), 1, "streams and histories of one caller, 1/h,");
    for target in ["/events", "/events?format=message"] {
        let full = hub.get(target);
        assert_eq!(full.status, 200);
        let (opening, event) = full.text().split_once("\n\n").unwrap();
        let retry = opening.lines().find_map(|line| line.strip_prefix("retry: ")).unwrap();
        // The next is let in an hour after the first, of which some of the test's time has passed.
        assert!(retry.parse::<u64>().unwrap() > 3_000_000, "{opening}");
        let event = parse_event(event);
        assert_eq!(event.event, "tabcast:full");
        assert!(event.data.contains("streams and histories of one caller, 1/h,"), "{event:?}");
    }
    hub.wait_for_log(&["WARN", "subscriber turned away", "streams and histories"]);
    let mut connection = connect_from([127, 0, 0, 2], hub.address).unwrap();
    connection.write_all(&request("GET /events HTTP/1.1", hub.address, &[], None)).unwrap();
    let mut other = Stream::read(connection);
    other.block();
    hub.publish("for those who are there");
    assert_eq!(other.data(), "for those who are there");
    // Neither a publish nor a HEAD counts.
    assert_eq!(hub.send("HEAD", "/events", &[], b"").status, 200);
}

#[test]
fn a_renewal_of_a_stream_counts_as_a_stream() {
    let folder = Folder::new();
    let (secret, hash) = tabcast::auth::tokens::new().unwrap();
    let tokens = folder.file("tokens");
    std::fs::write(&tokens, format!("ada {hash} all\n")).unwrap();
    let hub = Hub::start(&["--tokens", &tokens, "--connect-rate", "1/h"]);
    let bearer = format!("Authorization: Bearer {secret}");
    let renew = || hub.send("POST", "/events/none", &[&bearer], b"");
    (0..10).for_each(|_| drop(renew().problem(404)));
    assert_refused(&renew(), 1, "streams and histories");
    // Without a token there is nothing to count.
    hub.send("POST", "/events/none", &[], b"").problem(401);
}

#[test]
fn zero_is_no_limit() {
    let hub = Hub::start(&["--publish-rate", "0", "--connect-rate", "0"]);
    assert_eq!(hub.post("?channel=a", LINES, "{\"data\": 1}\n".repeat(30)).status, 201);
    let bad =
        Hub::spawn(std::process::Command::new(env!("CARGO_BIN_EXE_tabcast")).args(["--publish-rate", "5/d"]))
            .wait();
    assert_eq!(bad.code(), Some(2));
}
