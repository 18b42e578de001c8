//! `--auth-url`: an endpoint says who asks, and what it may do.

mod common;

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{
    Certificate, Endpoint, Folder, Gate, Hub, PATIENCE, Response, Stream, connect, request, response,
};
use tabcast::auth::tokens;

const COOKIE: &str = "Cookie: sid=ada";

/// A hub that asks this endpoint.
fn hub(endpoint: &Endpoint, flags: &[&str]) -> Hub {
    let url = endpoint.url("/may?x=1");
    Hub::start(&[&["--auth-url", &url], flags].concat())
}

/// An answer for this subject, which may publish and listen on `news`.
fn grants(subject: &str, headers: &[&str]) -> Vec<u8> {
    let headers = [&["Content-Type: application/json"], headers].concat();
    let body = format!(r#"{{"subject": "{subject}", "publish": ["news"], "subscribe": ["news"]}}"#);
    response(200, &headers, &body)
}

fn post(hub: &Hub, channel: &str, headers: &[&str]) -> Response {
    hub.send("POST", &format!("/messages?channel={channel}"), headers, b"x")
}

/// What a request gets that can't be decided.
fn assert_unavailable(hub: &Hub, headers: &[&str]) {
    let response = post(hub, "news", headers);
    response.problem(503);
    assert_eq!(response.header("retry-after"), Some("1"));
    // The stream ends, so that an EventSource comes back.
    let response = hub.send("GET", "/events?channel=news", headers, b"");
    assert_eq!((response.status, response.header("content-type")), (200, Some("text/event-stream")));
    let lines: Vec<_> = response.text().lines().collect();
    assert!(matches!(&lines[..], [_, retry, ""] if retry.starts_with("retry: ")), "{lines:?}");
}

#[test]
fn the_endpoint_says_who_asks_and_what_it_may_do() {
    let endpoint = Endpoint::start(|_| grants("ada", &[]));
    let hub = hub(&endpoint, &[]);
    assert_eq!(post(&hub, "news", &[COOKIE]).status, 201);
    post(&hub, "other", &[COOKIE]).problem(403);
    let mut stream = hub.watch("/events?channel=news&as=tab", &[COOKIE]);
    assert_eq!(post(&hub, "news&except=tab", &[COOKIE]).status, 201);
    assert_eq!(hub.send("POST", "/messages?channel=news", &[COOKIE], b"seen").status, 201);
    // The ids of subscribers are the subject's own.
    assert_eq!(stream.data(), "seen");
    assert_eq!(hub.send("GET", "/messages?channel=other", &[COOKIE], b"").status, 403);
    assert_eq!(hub.send("HEAD", "/events?channel=other", &[COOKIE], b"").status, 403);
}

#[test]
fn the_endpoint_gets_what_the_request_has() {
    let endpoint = Endpoint::start(|_| grants("ada", &["Cache-Control: no-store"]));
    let hub = hub(&endpoint, &["--token-in-query", "--trust-proxy", "127.0.0.1"]);
    let last = || endpoint.asked().pop().unwrap();
    let (target, uri) = ("/events?token=abc.def&channel=news&x=%20y", "/events?channel=news&x=%20y");
    hub.watch(target, &["Cookie: a=1", "Cookie: b=2", "X-Forwarded-For: 203.0.113.9"]);
    let asked = last();
    assert_eq!(asked.line, "GET /may?x=1 HTTP/1.1");
    assert_eq!(asked.header("host"), Some(&*endpoint.address.to_string()));
    assert_eq!(asked.header("authorization"), Some("Bearer abc.def"));
    assert_eq!(asked.header("cookie"), Some("a=1; b=2"));
    assert_eq!(asked.header("x-forwarded-for"), Some("203.0.113.9"));
    assert_eq!(asked.header("x-original-method"), Some("GET"));
    assert_eq!(asked.header("x-original-uri"), Some(uri));
    assert_eq!(asked.header("x-tabcast-channels"), Some("news"));

    hub.watch("/events?channel=news", &["Authorization: Basic YTpi"]);
    assert_eq!(last().header("authorization"), Some("Basic YTpi"));
    assert_eq!(last().header("cookie"), None);

    hub.send("HEAD", "/events?channel=n%2Cews&channel=%C3%A9.*", &[COOKIE], b"");
    assert_eq!(last().header("x-original-method"), Some("HEAD"));
    assert_eq!(last().header("x-tabcast-channels"), Some("n%2Cews,%C3%A9.*"));
    assert_eq!(last().header("x-forwarded-for"), Some("127.0.0.1"));

    hub.send("GET", "/messages", &[COOKIE], b"");
    assert_eq!(last().header("x-tabcast-channels"), Some("main"));
    assert_eq!(last().header("x-original-uri"), Some("/messages"));

    // The body of a publish is not read yet.
    hub.send("POST", "/messages", &[COOKIE, "Content-Type: application/json"], br#"{"data": 1}"#);
    assert_eq!(last().header("x-tabcast-channels"), None);
    post(&hub, "news", &[COOKIE]);
    assert_eq!(last().header("x-tabcast-channels"), Some("news"));

    // What is only said beside is left out where it is too long.
    hub.send("GET", &format!("/messages?channel=news&x={}", "y".repeat(9_000)), &[COOKIE], b"");
    assert_eq!(last().header("x-original-uri"), Some("/messages"));
}

#[test]
fn a_refusal_is_passed_on_with_its_reason() {
    let problem = "Content-Type: application/problem+json";
    let plain = "Content-Type: text/plain; charset=utf-8";
    let long = "x".repeat(513);
    for (status, header, body, detail) in [
        (401, problem, r#"{"detail": "log in first"}"#, "log in first"),
        (403, problem, r#"{"detail": "not today"}"#, "not today"),
        (401, plain, "log in first\n", "log in first"),
        (403, plain, &long, "the credentials are refused"),
        (401, problem, "{", "the credentials are refused"),
        (403, "Content-Type: text/html", "<p>No", "the credentials are refused"),
    ] {
        let answer = response(status, &[header], body);
        let endpoint = Endpoint::start(move |_| answer.clone());
        let hub = hub(&endpoint, &[]);
        for (method, target) in [("POST", "/messages"), ("GET", "/messages"), ("GET", "/events")] {
            let response = hub.send(method, target, &[COOKIE], b"x");
            assert_eq!(response.problem(status)["detail"], detail, "{header} {body}");
            assert!(response.header("www-authenticate").unwrap().starts_with("Bearer"));
        }
    }
    // A page for people, of any length, refuses as well.
    let endpoint = Endpoint::start(|_| response(401, &["Content-Type: text/html"], &"x".repeat(100_000)));
    post(&hub(&endpoint, &[]), "news", &[COOKIE]).problem(401);
}

#[test]
fn any_other_answer_is_a_passing_fault_and_the_log_says_why() {
    let to = |body: &str| response(200, &[], body);
    let elsewhere = Endpoint::start(|_| grants("ada", &[]));
    let redirect = response(302, &[&format!("Location: {}", elsewhere.url("/"))], "");
    for (answer, reason) in [
        (response(500, &[], "{}"), "the status 500"),
        (redirect, "the status 302"),
        (response(404, &[], "{}"), "the status 404"),
        (to(""), "EOF while parsing"),
        (to("[]"), "must be a JSON object"),
        (to(r#"{"publish": [], "publish": ["news"]}"#), "there twice"),
        (to(r#"{"publish": "news"}"#), "invalid type"),
        (to(r#"{"publsh": ["news"]}"#), "unknown field `publsh`"),
        (to(r#"{"publish": ["a*"]}"#), "`publish`: a pattern"),
        (to(r#"{"subject": 7}"#), "`subject` must be"),
        (to(r#"{"subject": ""}"#), "`subject` must be"),
        (to(r#"{"expires": "tomorrow"}"#), "`expires` must be"),
        (to(&format!(r#"{{"subject": "{}"}}"#, "x".repeat(16 << 10))), "longer than 16384 bytes"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\nConnection: close\r\n\r\n{}".to_vec(), ""),
        (b"SSH-2.0-OpenSSH\r\n\r\n".to_vec(), ""),
        (Vec::new(), ""),
    ] {
        // What breaks off has to end.
        let endpoint = Endpoint::start(move |asked| {
            let is_torn = answer.windows(17).any(|part| part == b"Connection: close");
            if is_torn && asked.header("x-original-method") == Some("POST") {
                Vec::new()
            } else {
                answer.clone()
            }
        });
        let hub = hub(&endpoint, &[]);
        assert_unavailable(&hub, &[COOKIE]);
        hub.wait_for_log(&["WARN", "no answer about a caller", reason, "/may"]);
        assert_eq!(hub.count_log("x=1"), 0, "the URL's query may be a secret");
    }
    assert_eq!(elsewhere.count(), 0, "no redirect is followed");
}

#[test]
fn an_endpoint_that_is_down_or_silent_is_waited_for_no_longer_than_a_second() {
    let endpoint = Endpoint::start(|_| Vec::new());
    let hub = hub(&endpoint, &[]);
    let address = endpoint.address;
    drop(endpoint);
    assert_unavailable(&hub, &[COOKIE]);
    // It holds every answer until the hub has given up.
    let gate = Arc::new(Gate::default());
    let held = Arc::clone(&gate);
    let _endpoint = Endpoint::start_at(address, None, move |_| {
        held.pass();
        grants("ada", &[])
    });
    assert_unavailable(&hub, &[COOKIE]);
    hub.wait_for_log(&["no answer about a caller", "in time"]);
    gate.open();
    assert_eq!(post(&hub, "news", &[COOKIE]).status, 201);
}

#[test]
fn an_answer_is_kept_for_whoever_presents_the_same() {
    let endpoint = Endpoint::start(|asked| match asked.header("cookie") {
        Some("sid=never") => grants("never", &["Cache-Control: no-store"]),
        Some(cookie) => grants(&cookie["sid=".len()..], &[]),
        None => response(200, &[], r#"{"publish": ["main"]}"#),
    });
    let hub = hub(&endpoint, &[]);
    let asked_by = |act: &dyn Fn() -> u16| {
        let before = endpoint.count();
        (act(), endpoint.count() - before)
    };
    let by = |cookie: &str| post(&hub, "news", &[&format!("Cookie: sid={cookie}")]).status;
    assert_eq!(asked_by(&|| by("ada")), (201, 1));
    assert_eq!(asked_by(&|| by("ada")), (201, 0));
    assert_eq!(asked_by(&|| hub.send("GET", "/messages?channel=news", &[COOKIE], b"").status), (200, 0));
    // Somebody else is not she, and the header is not the cookie.
    assert_eq!(asked_by(&|| by("bob")), (201, 1));
    assert_eq!(asked_by(&|| post(&hub, "news", &["Authorization: sid=ada"]).status), (403, 1));
    assert_eq!(asked_by(&|| post(&hub, "news", &[COOKIE, "Authorization: a"]).status), (201, 1));
    assert_eq!(asked_by(&|| by("never")), (201, 1));
    assert_eq!(asked_by(&|| by("never")), (201, 1));
    // Whoever presents nothing is one.
    assert_eq!(asked_by(&|| post(&hub, "main", &[]).status), (201, 1));
    assert_eq!(asked_by(&|| post(&hub, "main", &[]).status), (201, 0));
    assert_eq!(asked_by(&|| post(&hub, "news", &[]).status), (401, 0));
}

#[test]
fn a_refusal_is_soon_asked_about_again() {
    let is_known = Arc::new(AtomicBool::new(false));
    let known = Arc::clone(&is_known);
    let endpoint = Endpoint::start(move |_| {
        let kept = "Cache-Control: max-age=3600";
        if known.load(Ordering::SeqCst) { grants("ada", &[kept]) } else { response(403, &[kept], "") }
    });
    let hub = hub(&endpoint, &[]);
    post(&hub, "news", &[COOKIE]).problem(403);
    is_known.store(true, Ordering::SeqCst);
    let deadline = Instant::now() + PATIENCE;
    while post(&hub, "news", &[COOKIE]).status != 201 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(endpoint.count(), 2);
}

#[test]
fn two_hundred_reconnects_with_the_same_cookie_are_one_question() {
    let gate = Arc::new(Gate::default());
    let held = Arc::clone(&gate);
    let endpoint = Endpoint::start(move |_| {
        held.pass();
        grants("ada", &[])
    });
    let hub = hub(&endpoint, &[]);
    let line = "GET /events?channel=news HTTP/1.1";
    let mut connections: Vec<_> = (0..200).map(|_| connect(hub.address).unwrap()).collect();
    for connection in &mut connections {
        connection.write_all(&request(line, hub.address, &[COOKIE], None)).unwrap();
    }
    endpoint.wait_for(1);
    // Meanwhile the others come.
    assert_eq!(hub.get("/").status, 200);
    gate.open();
    let mut streams: Vec<_> = connections.into_iter().map(Stream::read).collect();
    for stream in &mut streams {
        assert!(stream.block().unwrap().contains("id: "));
    }
    assert_eq!(endpoint.count(), 1);
}

#[test]
fn there_are_no_more_than_64_questions_at_once() {
    let gate = Arc::new(Gate::default());
    let held = Arc::clone(&gate);
    let (present, most) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&most);
    let endpoint = Endpoint::start(move |_| {
        counted.fetch_max(present.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        held.pass();
        present.fetch_sub(1, Ordering::SeqCst);
        grants("ada", &[])
    });
    let hub = hub(&endpoint, &[]);
    let line = "POST /messages?channel=news HTTP/1.1";
    let mut connections: Vec<_> = (0..100).map(|_| connect(hub.address).unwrap()).collect();
    for (number, connection) in connections.iter_mut().enumerate() {
        let cookie = format!("Cookie: sid={number}");
        connection.write_all(&request(line, hub.address, &[&cookie], Some(b"x"))).unwrap();
    }
    // None of these is answered yet.
    endpoint.wait_for(64);
    assert_eq!(hub.get("/").status, 200);
    gate.open();
    for connection in connections {
        assert_eq!(Response::read(&mut BufReader::new(connection), false).status, 201);
    }
    let most = most.load(Ordering::SeqCst);
    assert!(most <= 64, "{most}");
    assert_eq!(endpoint.count(), 100);
}

#[test]
fn one_connection_serves_many_questions() {
    let endpoint = Endpoint::start(|_| grants("ada", &["Cache-Control: no-store"]));
    let hub = hub(&endpoint, &[]);
    for _ in 0..20 {
        assert_eq!(post(&hub, "news", &[COOKIE]).status, 201);
    }
    assert_eq!((endpoint.count(), endpoint.connections()), (20, 1));
}

#[test]
fn a_connection_that_the_endpoint_has_closed_meanwhile_is_no_fault() {
    let count = AtomicUsize::new(0);
    // Every second request is answered by the end of the connection.
    let endpoint = Endpoint::start(move |_| match count.fetch_add(1, Ordering::SeqCst) % 2 {
        0 => grants("ada", &["Cache-Control: no-store"]),
        _ => Vec::new(),
    });
    let hub = hub(&endpoint, &[]);
    for _ in 0..10 {
        assert_eq!(post(&hub, "news", &[COOKIE]).status, 201);
    }
}

#[test]
fn the_hubs_own_tokens_are_not_asked_about() {
    let endpoint = Endpoint::start(|_| response(401, &[], ""));
    let folder = Folder::new();
    let file = folder.file("tokens");
    let ((secret, hash), (old, old_hash)) = (tokens::new().unwrap(), tokens::new().unwrap());
    let lines = format!("ci {hash} publish=news\nold {old_hash} expires=2020-01-01T00:00:00Z");
    std::fs::write(&file, lines).unwrap();
    let hub = hub(&endpoint, &["--tokens", &file]);
    let by = |token: &str| post(&hub, "news", &[&format!("Authorization: Bearer {token}")]);
    assert_eq!(by(&secret).status, 201);
    assert_eq!(endpoint.count(), 0);
    assert_eq!(by(&old).problem(401)["detail"], "the token has expired");
    assert_eq!(endpoint.count(), 0);
    by(&secret[..50]).problem(401);
    assert_eq!(endpoint.count(), 1);
}

#[test]
fn whoever_presents_nothing_has_no_subject_and_is_not_asked_about_where_a_setting_says_all() {
    let endpoint = Endpoint::start(|_| grants("ada", &[]));
    let hub = hub(&endpoint, &[]);
    assert_unavailable(&hub, &[]);
    hub.wait_for_log(&["no answer about a caller", "`subject`, and the request had no credentials"]);
    let hub = self::hub(&endpoint, &["--anonymous", "publish=public"]);
    let before = endpoint.count();
    assert_eq!(post(&hub, "public", &[]).status, 201);
    post(&hub, "news", &[]).problem(401);
    assert_eq!(endpoint.count(), before);
    assert_eq!(post(&hub, "news", &[COOKIE]).status, 201);
}

#[test]
fn cookies_that_are_no_credentials_are_answered_without_a_subject() {
    let endpoint = Endpoint::start(|_| response(200, &[], r#"{"subscribe": ["public"]}"#));
    let hub = hub(&endpoint, &[]);
    assert!(hub.watch("/events?channel=public", &["Cookie: theme=dark"]).opening.contains("id: "));
    // A token is needed there. Whoever presents one and lacks the grant has no other.
    post(&hub, "public", &["Cookie: theme=dark"]).problem(401);
    post(&hub, "public", &["Authorization: Bearer x"]).problem(403);
}

#[test]
fn an_end_in_the_past_is_an_expired_token() {
    let endpoint = Endpoint::start(|asked| match asked.header("cookie") {
        Some("sid=past") => response(200, &[], r#"{"subject": "ada", "expires": 1600000000.5}"#),
        _ => response(200, &[], r#"{"subscribe": ["news"], "expires": "2999-01-01T00:00:00Z"}"#),
    });
    let hub = hub(&endpoint, &[]);
    let response = hub.send("GET", "/events?channel=news", &["Cookie: sid=past"], b"");
    assert_eq!(response.status, 200);
    assert!(response.text().contains("event: tabcast:expired\n"), "{}", response.text());
    post(&hub, "news", &["Cookie: sid=past"]).problem(401);
    assert!(hub.watch("/events?channel=news", &[COOKIE]).opening.contains("id: "));
}

#[test]
fn a_stream_ends_when_the_endpoint_says_and_is_asked_about_anew() {
    let endpoint = Endpoint::start(|_| {
        let soon = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 2;
        response(200, &[], &format!(r#"{{"subject": "ada", "subscribe": ["news"], "expires": {soon}}}"#))
    });
    let hub = hub(&endpoint, &[]);
    for count in 1..3 {
        let mut stream = hub.watch("/events?channel=news", &[COOKIE]);
        assert!(stream.opening.contains("id: "));
        assert_eq!(endpoint.count(), count);
        let events: Vec<_> = std::iter::from_fn(|| stream.event()).map(|event| event.event).collect();
        assert_eq!(events.last().map(String::as_str), Some("tabcast:expired"), "{events:?}");
    }
}

#[test]
fn whoever_connects_to_a_unix_socket_has_no_address() {
    let endpoint = Endpoint::start(|_| grants("ada", &[]));
    let folder = Folder::new();
    let path = folder.file("hub.sock");
    let hub = hub(&endpoint, &["--listen", &format!("unix:{path}")]);
    let mut connection = UnixStream::connect(&path).unwrap();
    let line = "POST /messages?channel=news HTTP/1.1";
    connection.write_all(&request(line, hub.address, &[COOKIE], Some(b"x"))).unwrap();
    assert_eq!(Response::read(&mut BufReader::new(connection), false).status, 201);
    assert_eq!(endpoint.asked()[0].header("x-forwarded-for"), None);
}

#[test]
fn a_page_of_any_origin_may_not_use_the_cookie() {
    let endpoint = Endpoint::start(|_| grants("ada", &[]));
    let hub = hub(&endpoint, &["--allow-origin", "*"]);
    let page = "Origin: https://evil.example";
    post(&hub, "news", &[page, COOKIE]).problem(401);
    assert_eq!(endpoint.count(), 0);
    assert_eq!(post(&hub, "news", &[page, COOKIE, "Authorization: Bearer x"]).status, 201);
    assert_eq!(endpoint.asked()[0].header("cookie"), None);
    let own = format!("Origin: http://{}", hub.address);
    assert_eq!(post(&hub, "news", &[&own, COOKIE]).status, 201);
}

#[test]
fn what_is_too_long_or_no_header_is_not_passed_on() {
    let endpoint = Endpoint::start(|_| grants("ada", &[]));
    let hub = hub(&endpoint, &["--token-in-query"]);
    for name in ["Cookie", "Authorization"] {
        let longest = format!("{name}: {}", "x".repeat(8_192));
        assert_eq!(post(&hub, "news", &[&longest]).status, 201);
        let problem = post(&hub, "news", &[&format!("{longest}x")]).problem(401);
        let detail = format!("the {name} header is longer than 8192 bytes, the limit");
        assert_eq!(problem["detail"], *detail);
    }
    post(&hub, "news&token=a%0D%0Ab", &[]).problem(401);
    assert_eq!(endpoint.count(), 2);
}

#[test]
fn an_endpoint_of_https_is_known_by_its_certificate() {
    let (known, unknown) = (Certificate::new(), Certificate::new());
    let any = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let endpoint = Endpoint::start_at(any, Some(&known), |_| grants("ada", &[]));
    let start = |certificate: &Certificate| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
        command.env("SSL_CERT_FILE", certificate.file()).env_remove("SSL_CERT_DIR");
        command.args(["--listen", "127.0.0.1:0", "--journal", "memory", "--auth-url", &endpoint.url("/")]);
        Hub::start_with(&mut command)
    };
    assert_eq!(post(&start(&known), "news", &[COOKIE]).status, 201);
    let hub = start(&unknown);
    assert_unavailable(&hub, &[COOKIE]);
    hub.wait_for_log(&["no answer about a caller", "certificate"]);
}

#[test]
fn an_url_that_can_not_be_asked_is_refused_at_the_start() {
    for bad in ["news", "ftp://127.0.0.1/", "http://ada:secret@127.0.0.1/"] {
        let output = Command::new("timeout")
            .args(["30", env!("CARGO_BIN_EXE_tabcast"), "--listen", "127.0.0.1:0", "--auth-url", bad])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{bad}");
    }
}

#[test]
fn the_endpoint_in_the_documents_does_what_they_say() {
    let operations = include_str!("../docs/operations.md");
    let (_, after) = operations.split_once("## Forward auth").unwrap();
    let program = after.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let address = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let program = program.replace("8000", &address.port().to_string());
    let mut python = Command::new("python3").args(["-c", &program]).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline && python.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let hub = Hub::start(&["--auth-url", &format!("http://{address}/may")]);
    let status = |channel: &str, cookie: &[&str]| {
        hub.send("GET", &format!("/messages?channel={channel}"), cookie, b"").status
    };
    let found = [
        status("news", &[]),
        status("user.ada", &[]),
        status("user.ada", &["Cookie: sid=7f3a"]),
        status("user.bob", &["Cookie: sid=7f3a"]),
        status("news", &["Cookie: sid=0000"]),
        status("news", &["Cookie: theme=dark"]),
    ];
    python.kill().unwrap();
    python.wait().unwrap();
    assert_eq!(found, [200, 401, 200, 403, 403, 200]);
}
