//! Tokens that are revoked: they are refused from then on, whatever is restarted, and their streams end.

mod common;

use std::fs;
use std::io::Write;
use std::process::Command;

use common::{Folder, Hub, Locks, Response, Stream, Tokens, bearer, now, on_each_path, parse_event, request};
use serde_json::{Value, json};

fn all() -> Value {
    json!({"subscribe": [">"], "publish": [">"]})
}

/// The answer to this revocation by this token.
fn revoke(hub: &Hub, token: &str, what: &Value) -> Response {
    hub.send("POST", "/admin/revoke", &[&bearer(token)], what.to_string().as_bytes())
}

fn admin(tokens: &Tokens) -> String {
    tokens.of("root", &json!({"admin": true}))
}

/// The status of a request with this token.
fn status(hub: &Hub, token: &str) -> u16 {
    let answer = hub.send("GET", "/caller", &[&bearer(token)], b"");
    if answer.status == 401 {
        assert_eq!(answer.problem(401)["detail"], "the token was revoked");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer error=\"invalid_token\""));
    }
    answer.status
}

fn watch(hub: &Hub, channel: &str, token: &str) -> Stream {
    hub.watch(&format!("/events?channel={channel}"), &[&bearer(token)])
}

fn assert_ends(stream: &mut Stream) {
    let event = stream.event().expect("it is sent why it ends");
    assert_eq!((&*event.event, &*event.id), ("tabcast:expired", ""));
    assert_eq!(event.json(), json!({"reason": "the token was revoked"}));
    assert!(stream.block().is_none());
}

on_each_path!(all_streams_of_a_subject_end_when_it_is_revoked_and_no_other_does, {
    const STREAMS: usize = 1_000;
    let tokens = Tokens::new();
    let hub = tokens.hub(&["--anonymous", "publish=>", "--log", "info,tabcast::hub=warn"]);
    let (ada, bob) = (tokens.of("ada", &all()), tokens.of("bob", &all()));
    // Half of them in one group, half in one of their own.
    let channel =
        |number: usize| if number.is_multiple_of(2) { "main".to_owned() } else { format!("own.{number}") };
    let mut streams: Vec<_> = (0..STREAMS - 20).map(|number| watch(&hub, &channel(number), &ada)).collect();
    let mut others: Vec<_> = (0..10).map(|number| watch(&hub, &channel(number), &bob)).collect();
    let answer = revoke(&hub, &admin(&tokens), &json!({"subject": "ada"}));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json()["streams"], streams.len());
    streams.iter_mut().for_each(assert_ends);
    for (number, other) in others.iter_mut().enumerate() {
        hub.publish_to(&channel(number), "on");
        assert_eq!(other.data(), "on");
    }
    assert_eq!((status(&hub, &ada), status(&hub, &bob)), (401, 200));
    hub.send("GET", "/events", &[&bearer(&ada)], b"").problem(401);
    // Who logs in again is let in.
    let again = tokens.sign(&json!({"sub": "ada", "iat": now() + 2, "exp": now() + 99, "tabcast": all()}));
    assert_eq!(status(&hub, &again), 200);
    hub.wait_for_log(&["tokens revoked", "by=\"root\"", "subject=\"ada\"", "streams=980"]);
    assert!(!hub.log().iter().any(|line| line.contains(&ada)), "no token is logged");
});

#[test]
fn a_token_is_revoked_by_its_id_its_name_or_its_time() {
    let tokens = Tokens::new();
    let (ci, cd) = (tokens.add("ci", "publish=>"), tokens.add("cd", "publish=>"));
    let hub = tokens.hub(&[]);
    let of = |subject: &str, id: &str, issued: u64| {
        tokens.sign(&json!({"sub": subject, "jti": id, "iat": issued, "exp": now() + 99}))
    };
    let root = admin(&tokens);
    let (one, two, old) = (of("ada", "1", now()), of("ada", "2", now()), of("bob", "3", now() - 100));
    let revoked = |what: Value| {
        let answer = revoke(&hub, &root, &what);
        assert_eq!(answer.json(), json!({"streams": 0, "kept": false}), "its journal is in memory");
        [&one, &two, &old, &ci, &cd].map(|token| status(&hub, token))
    };
    assert_eq!(revoked(json!({"id": "1"})), [401, 200, 200, 200, 200]);
    // A static token is no user's.
    assert_eq!(revoked(json!({"subject": "ci"})), [401, 200, 200, 200, 200]);
    assert_eq!(revoked(json!({"token": "ci"})), [401, 200, 200, 401, 200]);
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(now() - 50);
    let before = humantime::format_rfc3339(time).to_string();
    assert_eq!(revoked(json!({"before": before})), [401, 200, 401, 401, 200]);
    assert_eq!(revoked(json!({"subject": "ada", "before": before})), [401, 200, 401, 401, 200]);
    assert_eq!(revoked(json!({"subject": "ada"})), [401, 401, 401, 401, 200]);
}

#[test]
fn what_is_revoked_is_so_after_a_restart() {
    let (tokens, folder) = (Tokens::new(), Folder::new());
    let journal = folder.file("tabcast.db");
    let hub = tokens.hub(&["--journal", &journal]);
    let (ada, id) = (tokens.of("ada", &all()), tokens.sign(&json!({"jti": "7", "exp": now() + 99})));
    for what in [json!({"subject": "ada"}), json!({"id": "7"}), json!({"subject": "ada"})] {
        assert_eq!(revoke(&hub, &admin(&tokens), &what).json(), json!({"streams": 0, "kept": true}));
    }
    let mut hub = hub;
    // It is not stopped: what was answered is on the disk.
    hub.end("KILL");
    let files = common::folder_of(&journal);
    let (mode, bytes) = &files["tabcast.db-revoked"];
    assert_eq!((mode & 0o777, bytes.split(|byte| *byte == b'\n').count()), (0o600, 3));
    assert!(!files.contains_key("tabcast.db-revoked.new"));
    let mut hub = tokens.hub(&["--journal", &journal]);
    assert_eq!([&ada, &id].map(|token| status(&hub, token)), [401, 401]);
    hub.end("TERM");
    let file = folder.file("tabcast.db-revoked");
    fs::write(&file, "{\"id\":\"7\"}\n{\"jti\":\"7\"}\n").unwrap();
    let mut refused = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    let mut refused = Hub::spawn(refused.args(["--listen", "127.0.0.1:0", "--journal", &journal]));
    assert_eq!(refused.wait().code(), Some(1));
    refused.wait_for_log(&[&format!("{file}: line 2: ")]);
}

#[test]
fn who_is_revoked_while_it_subscribes_has_no_stream() {
    let (tokens, folder) = (Tokens::new(), Folder::new());
    let flags = ["--journal", &folder.file("tabcast.db"), "--anonymous", "publish=>"];
    let mut hub = tokens.hub(&flags);
    hub.publish("one");
    hub.end("TERM");
    // A hub that was just started has no message in memory: it reads the file.
    let hub = tokens.hub(&flags);
    let locks = Locks::take(&folder.file("tabcast.db"));
    let (root, ada) = (admin(&tokens), tokens.of("ada", &all()));
    let mut connection = hub.connect();
    let headers = [&*bearer(&ada)];
    connection.write_all(&request("GET /events?last=1 HTTP/1.1", hub.address, &headers, None)).unwrap();
    // Its token is found right meanwhile.
    (0..20).for_each(|_| assert_eq!(status(&hub, &ada), 200));
    assert_eq!(revoke(&hub, &root, &json!({"subject": "ada"})).status, 200);
    drop(locks);
    let mut stream = Stream::try_read(connection).unwrap();
    // On a slow machine, the journal was not waited for: such a stream ends.
    assert!(stream.status == 401 || stream.event().is_none());
}

#[test]
fn nothing_is_revoked_that_can_not_be_written_down() {
    let (tokens, folder) = (Tokens::new(), Folder::new());
    let hub = tokens.hub(&["--journal", &folder.file("tabcast.db")]);
    let ada = tokens.of("ada", &all());
    let mut stream = watch(&hub, "main", &ada);
    // The file that it would be written to can't be made.
    fs::create_dir(folder.file("tabcast.db-revoked.new")).unwrap();
    let refused = revoke(&hub, &admin(&tokens), &json!({"subject": "ada"}));
    assert_eq!(
        refused.problem(503)["detail"],
        "the hub can't write down what is revoked; nothing was revoked"
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    hub.wait_for_log(&["ERROR", "can't write down what is revoked"]);
    assert_eq!(status(&hub, &ada), 200);
    fs::remove_dir(folder.file("tabcast.db-revoked.new")).unwrap();
    // A hub that was cut off has left one.
    fs::write(folder.file("tabcast.db-revoked.new"), "x").unwrap();
    assert_eq!(revoke(&hub, &admin(&tokens), &json!({"subject": "ada"})).json()["streams"], 1);
    assert_ends(&mut stream);
}

#[test]
fn only_who_is_granted_it_revokes_and_only_what_makes_sense() {
    let tokens = Tokens::new();
    let hub = tokens.hub(&["--anonymous", "all"]);
    let (root, ada) = (admin(&tokens), tokens.of("ada", &all()));
    let what = json!({"subject": "ada"});
    let refused = revoke(&hub, &ada, &what);
    assert!(refused.problem(403)["detail"].as_str().unwrap().contains("`admin`"));
    assert_eq!(refused.header("www-authenticate"), Some("Bearer error=\"insufficient_scope\""));
    hub.send("POST", "/admin/revoke", &[], what.to_string().as_bytes()).problem(401);
    let origin = [&*bearer(&root), "Origin: http://elsewhere.example"];
    hub.send("POST", "/admin/revoke", &origin, what.to_string().as_bytes()).problem(403);
    Hub::start(&[]).send("POST", "/admin/revoke", &[], what.to_string().as_bytes()).problem(401);
    let get = hub.send("GET", "/admin/revoke", &[&bearer(&root)], b"");
    get.problem(405);
    assert_eq!(get.header("allow"), Some("POST"));
    hub.send("POST", "/admin/revoke?x=1", &[&bearer(&root)], what.to_string().as_bytes()).problem(422);
    for (what, field) in [
        (json!({}), Value::Null),
        (json!({"subject": "ada", "id": "1"}), Value::Null),
        (json!({"id": "1", "before": "2026-01-01T00:00:00Z"}), Value::Null),
        (json!({"subject": "ada", "before": "yesterday"}), json!("before")),
        (json!({"subject": ""}), json!("subject")),
        (json!({"subject": 7}), json!("subject")),
        (json!({"jti": "7"}), json!("jti")),
    ] {
        let problem = revoke(&hub, &root, &what).problem(422);
        assert_eq!(problem.get("field").unwrap_or(&Value::Null), &field, "{problem}");
    }
    let long = revoke(&hub, &root, &json!({"id": "x".repeat(1_025)})).problem(422);
    assert_eq!((&long["field"], &long["limit"]), (&json!("id"), &json!(1_024)));
    hub.send("POST", "/admin/revoke", &[&bearer(&root)], b"{").problem(400);
    assert_eq!(status(&hub, &ada), 200);
}

#[test]
fn a_stream_is_not_renewed_with_a_revoked_token() {
    let tokens = Tokens::new();
    let hub = tokens.hub(&[]);
    let of = |id: &str| tokens.sign(&json!({"sub": "ada", "jti": id, "exp": now() + 99, "tabcast": all()}));
    let mut stream = hub.watch("/events?format=message", &[&bearer(&of("1"))]);
    let id = parse_event(&stream.opening).json()["stream"].as_str().unwrap().to_owned();
    let renew = |token: &str| hub.send("POST", &format!("/events/{id}"), &[&bearer(token)], b"");
    assert_eq!(revoke(&hub, &admin(&tokens), &json!({"id": "2"})).json()["streams"], 0);
    renew(&of("2")).problem(401);
    // With the token that it has now, and not with the one that it began with.
    assert_eq!(renew(&of("3")).status, 204);
    assert_eq!(revoke(&hub, &admin(&tokens), &json!({"id": "1"})).json()["streams"], 0);
    assert_eq!(revoke(&hub, &admin(&tokens), &json!({"id": "3"})).json()["streams"], 1);
    assert_ends(&mut stream);
    renew(&of("4")).problem(404);
}
