//! Safe by default: the hub listens on loopback, answers requests for its own hosts only, takes messages from
//! its own pages only, and sends nothing that a page or a program could take for more than data.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use common::{Hub, Response};
use serde_json::{Value, json};

#[test]
fn the_default_is_loopback() {
    let help = Command::new(env!("CARGO_BIN_EXE_tabcast"))
        .arg("--help")
        .env_remove("TABCAST_LISTEN")
        .output()
        .unwrap();
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    let listen = help.split("--listen").nth(1).unwrap().split("\n      --").next().unwrap();
    assert!(listen.contains("[default: 127.0.0.1:3000]"), "{listen}");
    assert_eq!(help.matches("0.0.0.0").count(), 0);
}

// Host: the page of a name that now points at this machine (DNS rebinding) sends that name.

#[test]
fn the_hub_answers_to_its_own_hosts() {
    let hub = Hub::start(&[]);
    let own = hub.address.to_string();
    let port = hub.address.port();
    for host in [
        &*own,
        "127.0.0.1",
        "127.0.0.1:1",
        "localhost",
        &format!("localhost:{port}"),
        "localhost:65535",
        "LocalHost:80",
        "[::1]",
        &format!("[::1]:{port}"),
        "127.0.0.2",
        "[::ffff:127.0.0.1]",
    ] {
        assert_eq!(hub.send("GET", "/messages", &[&format!("Host: {host}")], b"").status, 200, "{host}");
    }
}

#[test]
fn another_host_is_refused_whatever_it_asks_for() {
    let hub = Hub::start(&[]);
    for host in [
        "evil.example",
        "evil.example:3000",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "127.0.0.1evil.example",
        "0.0.0.0",
        "192.168.1.1",
        "10.0.0.1:3000",
        "[2001:db8::1]",
        "[::ffff:10.0.0.1]",
        "2130706433",
        "0x7f.1",
    ] {
        for (method, target) in [
            ("GET", "/"),
            ("GET", "/app.js"),
            ("GET", "/messages"),
            ("GET", "/events"),
            ("POST", "/messages"),
            ("PUT", "/nothing"),
            ("OPTIONS", "/messages"),
        ] {
            let refused = hub.send(method, target, &[&format!("Host: {host}")], b"x");
            assert_eq!(refused.problem(403)["field"], "Host", "{method} {target} {host}");
        }
        assert_eq!(hub.send("HEAD", "/events", &[&format!("Host: {host}")], b"").status, 403, "{host}");
    }
    assert!(hub.history("").is_empty());
}

#[test]
fn an_allowed_host_is_answered_in_upper_and_lower_case() {
    let hub = Hub::start(&["--allow-host", "hub.example,Other.Example", "--allow-host", "10.1.2.3"]);
    for host in
        ["hub.example", "HUB.Example", "hub.example:8443", "other.example", "OTHER.EXAMPLE:1", "localhost"]
    {
        assert_eq!(hub.send("GET", "/messages", &[&format!("Host: {host}")], b"").status, 200, "{host}");
    }
    for host in ["example", "x.hub.example", "hub.example.org", "hub.example,other.example", "*"] {
        assert!(
            [400, 403].contains(&hub.send("GET", "/messages", &[&format!("Host: {host}")], b"").status),
            "{host}"
        );
    }
    let origin = ["Host: hub.example", "Origin: https://hub.example", "Content-Type: text/plain"];
    assert_eq!(hub.send("POST", "/messages", &origin, b"from its page behind TLS").status, 201);
}

#[test]
fn an_address_can_be_allowed_as_a_host() {
    let hub = Hub::start(&["--allow-host", "10.1.2.3"]);
    assert_eq!(hub.send("GET", "/messages", &["Host: 10.1.2.3:3000"], b"").status, 200);
    hub.send("GET", "/messages", &["Host: 10.1.2.4:3000"], b"").problem(403);
}

#[test]
fn a_host_that_cannot_be_one_is_400() {
    let hub = Hub::start(&[]);
    for hosts in [
        "Host: localhost\r\nHost: localhost",
        "Host: localhost\r\nHost: evil.example",
        "Host: a b",
        "Host: a/b",
        "Host: user@localhost",
        "Host: localhost:80@evil.example",
        "Host: evil.example@localhost:80",
        "Host: ::1",
        "Host: ::1:80",
        "Host: localhost:80:80",
    ] {
        let refused = hub.raw(format!("GET /messages HTTP/1.1\r\n{hosts}\r\n\r\n"));
        assert_eq!(refused.problem(400)["field"], "Host", "{hosts}");
    }
}

#[test]
fn a_target_that_names_a_user_is_400() {
    let hub = Hub::start(&[]);
    for authority in ["user@localhost", "user:secret@127.0.0.1", "localhost:80@evil.example"] {
        let request = format!("GET http://{authority}/messages HTTP/1.1\r\nHost: localhost\r\n\r\n");
        hub.raw(request).problem(400);
    }
}

#[test]
fn the_host_of_the_target_counts_and_not_that_of_the_header() {
    let hub = Hub::start(&[]);
    let get = |target: &str, host: &str| {
        hub.raw(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    };
    assert_eq!(get("http://localhost/messages", "localhost").status, 200);
    // RFC 9112 3.2.2: the header is ignored if the target has a host.
    assert_eq!(get(&format!("http://{}/messages", hub.address), "evil.example").status, 200);
    assert_eq!(get("http://evil.example/messages", "localhost").problem(403)["field"], "Host");
}

#[test]
fn http_1_0_needs_no_host() {
    let hub = Hub::start(&[]);
    assert_eq!(hub.raw("GET /messages HTTP/1.0\r\n\r\n").status, 200);
    let post = "POST /messages HTTP/1.0\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nold";
    assert_eq!(hub.raw(post).status, 201);
    hub.raw("GET /messages HTTP/1.0\r\nHost: evil.example\r\n\r\n").problem(403);
}

#[test]
fn every_answer_says_what_browsers_may_do_with_it() {
    let hub = Hub::start(&["--allow-origin", APP]);
    let policies = |answer: &Response| {
        let names = ["x-content-type-options", "cross-origin-resource-policy", "cross-origin-opener-policy"];
        names.map(|name| {
            let values = answer.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value);
            values.cloned().collect::<Vec<_>>().join(" twice ")
        })
    };
    for (method, target, header, status) in [
        ("GET", "/", "Accept: */*", 200),
        ("GET", "/icon.svg", "Accept: */*", 200),
        ("GET", "/messages", "Accept: */*", 200),
        ("HEAD", "/messages", "Accept: */*", 200),
        ("HEAD", "/events", "Accept: */*", 200),
        ("GET", "/messages?last=x", "Accept: */*", 422),
        ("POST", "/messages", "Content-Type: text/plain", 201),
        ("POST", "/messages", "Content-Type: none", 415),
        ("PUT", "/messages", "Accept: */*", 405),
        ("GET", "/nothing", "Accept: */*", 404),
        ("GET", "/", "Host: evil.example", 403),
        ("GET", "/", "Host: not a host", 400),
        ("POST", "/messages", "Origin: https://evil.example", 403),
        ("POST", "/messages", "Sec-Fetch-Site: cross-site", 403),
    ] {
        let answer = hub.send(method, target, &[header], b"");
        assert_eq!(answer.status, status, "{method} {target} {header}");
        // A receipt is for the publisher alone.
        let policy = if status == 201 { "" } else { "same-origin" };
        assert_eq!(policies(&answer), ["nosniff", policy, policy], "{method} {target} {header}");
    }
    let form = ["Content-Type: application/x-www-form-urlencoded", "Accept: text/html"];
    let answer = hub.send("POST", "/messages", &form, b"data=x");
    assert_eq!((answer.status, policies(&answer)), (303, ["nosniff", "", ""].map(str::to_owned)));
    // Any page may import the browser client.
    for path in ["/tabcast.js", "/tabcast.src.js", "/tabcast.d.ts"] {
        assert_eq!(policies(&hub.get(path)), ["nosniff", "cross-origin", "same-origin"], "{path}");
    }
}

// Origin: which pages may publish.

fn post_from(hub: &Hub, headers: &[&str]) -> Response {
    hub.send("POST", "/messages", &[headers, &["Content-Type: text/plain"]].concat(), b"x")
}

#[test]
fn the_hubs_own_page_and_programs_may_publish() {
    let hub = Hub::start(&[]);
    let (address, port) = (hub.address, hub.address.port());
    let own = format!("Origin: http://{address}");
    for headers in [
        &[][..],
        &[&*own],
        &[&*own, "Sec-Fetch-Site: same-origin"],
        &["Sec-Fetch-Site: same-origin"],
        &["Sec-Fetch-Site: none"],
        &[&*format!("Host: localhost:{port}"), &format!("Origin: http://localhost:{port}")],
        // Behind a proxy that ends TLS. On the default port both leave the port out.
        &["Host: localhost", "Origin: https://localhost"],
        &["Host: localhost", "Origin: https://localhost", "Sec-Fetch-Site: same-origin"],
    ] {
        assert_eq!(post_from(&hub, headers).status, 201, "{headers:?}");
    }
    assert_eq!(hub.history("").len(), 8);
}

#[test]
fn a_page_of_the_hubs_host_and_another_scheme_may_not_publish() {
    let hub = Hub::start(&["--allow-host", "hub.example"]);
    // The hub is at https://, behind a proxy that ends TLS. The page is at http://, from whoever is between.
    for site in ["cross-site", "same-site", "none", "", "same-origin, cross-site", "Same-Origin", "\u{ff}"] {
        let headers = ["Host: hub.example", "Origin: http://hub.example", &format!("Sec-Fetch-Site: {site}")];
        let refused = post_from(&hub, &headers);
        assert_eq!(refused.problem(403)["field"], "Sec-Fetch-Site", "{site}");
    }
    for scheme in ["ftp", "file", "ws", "chrome-extension", "httpx", "xhttp", "http:", "HTTP", ""] {
        let origin = format!("Origin: {scheme}://hub.example");
        for site in [&[][..], &["Sec-Fetch-Site: same-origin"]] {
            let refused = post_from(&hub, &[&["Host: hub.example", &origin], site].concat());
            assert_eq!(refused.problem(403)["field"], "Origin", "{scheme}");
        }
    }
    assert!(hub.history("").is_empty());
}

#[test]
fn a_page_without_an_origin_publishes_only_if_it_is_the_hubs_own() {
    let sites = ["cross-site", "same-site", "", "unheard-of", "same-origin, same-site", "NONE"];
    let hub = Hub::start(&["--allow-origin", APP]);
    for site in sites {
        let refused = post_from(&hub, &[&format!("Sec-Fetch-Site: {site}")]);
        assert_eq!(refused.problem(403)["field"], "Sec-Fetch-Site", "{site}");
    }
    assert!(hub.history("").is_empty());
    let open = Hub::start(&["--allow-origin", "*"]);
    for site in sites {
        assert_eq!(post_from(&open, &[&format!("Sec-Fetch-Site: {site}")]).status, 201, "{site}");
    }
}

#[test]
fn a_second_origin_or_sec_fetch_site_is_400() {
    for flags in [&[][..], &["--allow-origin", "*"], &["--allow-origin", APP]] {
        let hub = Hub::start(flags);
        let host = hub.address;
        let [own, other] = [format!("Origin: http://{host}"), "Origin: https://evil.example".to_owned()];
        let app = format!("Origin: {APP}");
        let [same, cross] = ["Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: cross-site"];
        for (headers, field) in [
            ([&*own, &*own], "Origin"),
            ([&*own, &*other], "Origin"),
            ([&*other, &*own], "Origin"),
            ([&*app, &*other], "Origin"),
            ([same, cross], "Sec-Fetch-Site"),
            ([cross, same], "Sec-Fetch-Site"),
            ([same, same], "Sec-Fetch-Site"),
        ] {
            let head = headers.join("\r\n");
            let post = format!(
                "POST /messages HTTP/1.1\r\nHost: {host}\r\n{head}\r\nContent-Type: text/plain\r\n\
                 Content-Length: 1\r\n\r\nx"
            );
            assert_eq!(hub.raw(post).problem(400)["field"], field, "{headers:?}");
            let get = format!("GET /messages HTTP/1.1\r\nHost: {host}\r\n{head}\r\n\r\n");
            assert_eq!(hub.raw(get).problem(400)["field"], field, "{headers:?}");
        }
        assert!(hub.history("").is_empty());
    }
}

#[test]
fn a_page_of_another_origin_may_not_publish() {
    let hub = Hub::start(&[]);
    let (address, port) = (hub.address, hub.address.port());
    for origin in [
        "https://evil.example",
        "null",
        "",
        "file://",
        &format!("http://evil.example/{address}"),
        &format!("http://{address}.evil.example"),
        &format!("http://evil.example@{address}"),
        &format!("http://localhost:{port}"),
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        &address.to_string(),
        "\u{ff}",
    ] {
        let refused = post_from(&hub, &[&format!("Origin: {origin}")]);
        assert_eq!(refused.problem(403)["field"], "Origin", "{origin:?}");
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
    let refused = post_from(&hub, &["Sec-Fetch-Site: cross-site"]);
    assert_eq!(refused.problem(403)["field"], "Sec-Fetch-Site");
    // All content types that a browser sends without a preflight.
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
    {
        let headers = ["Origin: https://evil.example", &format!("Content-Type: {content_type}")];
        hub.send("POST", "/messages", &headers, b"data=x").problem(403);
    }
    assert!(hub.history("").is_empty());
}

#[test]
fn a_page_of_another_origin_may_not_read_and_gets_no_cors_header() {
    let hub = Hub::start(&[]);
    hub.publish("secret");
    let headers = ["Origin: https://evil.example", "Access-Control-Request-Method: POST"];
    for (method, target) in
        [("GET", "/messages"), ("GET", "/"), ("OPTIONS", "/messages"), ("HEAD", "/events")]
    {
        let answer = hub.send(method, target, &headers, b"");
        let cors = answer.headers.iter().find(|(name, _)| name.starts_with("access-control-"));
        assert_eq!(cors, None, "{method} {target}");
    }
    let stream = hub.watch("/events", &headers);
    assert_eq!(stream.header("access-control-allow-origin"), None);
}

const APP: &str = "https://app.example";

#[test]
fn an_allowed_origin_may_publish_and_read_every_answer() {
    let hub =
        Hub::start(&["--allow-origin", "https://App.Example,http://localhost:8080", "--max-body", "64"]);
    let origin = format!("Origin: {APP}");
    let readable = |answer: &Response, status: u16| {
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("access-control-allow-origin"), Some(APP), "{answer:?}");
        // Without `Vary`, a cache would give this answer to another origin.
        let vary = answer
            .headers
            .iter()
            .filter(|(name, _)| name == "vary")
            .map(|(_, value)| value.to_ascii_lowercase());
        assert!(
            vary.flat_map(|value| value.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>())
                .any(|name| name == "origin"),
            "{answer:?}"
        );
        // Scripts such as htmx-ext-sse send all their requests with credentials.
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    };
    let send = |method: &str, target: &str, content_type: &str, body: &[u8]| {
        let headers = [&*origin, "Sec-Fetch-Site: cross-site", &format!("Content-Type: {content_type}")];
        hub.send(method, target, &headers, body)
    };
    let mut stream = hub.watch("/events", &[&origin]);
    assert_eq!(stream.header("access-control-allow-origin"), Some(APP));
    assert_eq!(stream.header("access-control-allow-credentials"), Some("true"));
    readable(&send("POST", "/messages", "text/plain", b"hello"), 201);
    assert_eq!(stream.data(), "hello");
    readable(&send("POST", "/messages", "application/json", b"{"), 400);
    readable(&send("POST", "/messages", "application/json", b"{}"), 422);
    readable(&send("POST", "/messages", "text/plain", &[b'x'; 65]), 413);
    readable(&send("POST", "/messages", "multipart/form-data", b"x"), 415);
    readable(&send("PUT", "/messages", "text/plain", b"x"), 405);
    readable(&send("GET", "/nothing", "text/plain", b""), 404);
    readable(&send("GET", "/messages?last=1", "text/plain", b""), 200);
    readable(&send("GET", "/events?format=xml", "text/plain", b""), 422);
    readable(&hub.send("GET", "/messages", &[&origin, "Host: evil.example"], b""), 403);
    let other = hub.send("GET", "/messages", &["Origin: http://localhost:8080"], b"");
    assert_eq!(other.header("access-control-allow-origin"), Some("http://localhost:8080"));
}

#[test]
fn an_allowed_origins_preflight_is_answered() {
    let hub = Hub::start(&["--allow-origin", APP]);
    // Whatever headers a page asks for.
    let asked = "authorization,cache-control,content-type,hx-request-type,idempotency-key,x-requested-with";
    let preflight = |origin: &str, method: &str| {
        let headers = [
            &*format!("Origin: {origin}"),
            &format!("Access-Control-Request-Method: {method}"),
            &format!("Access-Control-Request-Headers: {asked}"),
        ];
        hub.send("OPTIONS", "/messages", &headers, b"")
    };
    let answer = preflight(APP, "POST");
    assert!((200..300).contains(&answer.status), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), Some(APP));
    assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    assert_eq!(answer.header("access-control-allow-headers"), Some(asked));
    assert_eq!(answer.header("access-control-max-age"), Some("7200"));
    assert!(answer.header("vary").unwrap().contains("origin"), "{answer:?}");
    // With credentials, a `*` would be a method of that name.
    for method in ["GET", "HEAD", "POST", "DELETE"] {
        let methods = preflight(APP, method).header("access-control-allow-methods").unwrap().to_owned();
        assert!(methods.split(',').any(|allowed| allowed == method), "{methods}");
    }

    let answer = preflight("https://evil.example", "POST");
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(answer.header("access-control-allow-credentials"), None);
}

#[test]
fn an_origin_that_is_not_allowed_is_refused_where_another_is_allowed() {
    let hub = Hub::start(&["--allow-origin", APP]);
    for origin in [
        "https://evil.example",
        "http://app.example",
        "https://app.example:8443",
        "https://x.app.example",
        "null",
    ] {
        let origin = format!("Origin: {origin}");
        let refused = post_from(&hub, &[&origin]);
        refused.problem(403);
        assert_eq!(refused.header("access-control-allow-origin"), None, "{origin}");
        assert_eq!(hub.send("GET", "/messages", &[&origin], b"").header("access-control-allow-origin"), None);
        assert_eq!(hub.watch("/events", &[&origin]).header("access-control-allow-origin"), None);
    }
    assert!(hub.history("").is_empty());
}

#[test]
fn a_star_allows_every_origin_but_no_other_host() {
    let hub = Hub::start(&["--allow-origin", "*"]);
    for origin in ["https://evil.example", "null"] {
        let answer = post_from(&hub, &[&format!("Origin: {origin}"), "Sec-Fetch-Site: cross-site"]);
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (201, Some("*")));
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
    // Beside a star, an origin that is named may still send credentials.
    let both = Hub::start(&["--allow-origin", "*,https://app.example"]);
    for (origin, allowed, credentials) in
        [(APP, APP, Some("true")), ("https://evil.example", "*", None), ("null", "*", None)]
    {
        let answer = both.send("GET", "/messages", &[&format!("Origin: {origin}")], b"");
        assert_eq!(answer.header("access-control-allow-origin"), Some(allowed));
        assert_eq!(answer.header("access-control-allow-credentials"), credentials);
        assert!(answer.header("vary").unwrap().contains("origin"), "{answer:?}");
    }
    post_from(&hub, &["Host: evil.example", "Origin: https://evil.example"]).problem(403);
}

#[test]
fn what_a_refusal_advises_is_what_the_flags_take() {
    let hub = Hub::start(&[]);
    let advice = |refused: &Response, flag: &str| {
        let detail = refused.problem(403)["detail"].as_str().unwrap().to_owned();
        let (_, value) = detail.split_once(&format!("{flag} ")).unwrap_or_else(|| panic!("{detail}"));
        value.to_owned()
    };
    for origin in [
        "https://other.example",
        "https://other.example:8443",
        "http://[::1]:5173",
        "null",
        "file://",
        "app://.",
        "capacitor://localhost",
        "tauri://localhost",
        "chrome-extension://mhjfbmdgcfjbbpaeojofohoefgiehjai",
        "moz-extension://2c127fa4-62c7-7e4f-90e5-472b45eecfdc",
    ] {
        let header = format!("Origin: {origin}");
        let advised = advice(&post_from(&hub, &[&header]), "--allow-origin");
        let taught = Hub::start(&["--allow-origin", &advised]);
        let answer = post_from(&taught, &[&header, "Sec-Fetch-Site: cross-site"]);
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (201, Some(origin)));
        post_from(&taught, &["Origin: https://evil.example"]).problem(403);
    }
    for host in ["chat.example", "CHAT.example:8080", "10.1.2.3", "[2001:db8::1]:80", "a_b"] {
        let header = format!("Host: {host}");
        let refused = hub.send("GET", "/messages", &[&header], b"");
        let advised = advice(&refused, "--allow-host");
        assert!(refused.text().contains("a proxy in front of it has to set the Host header"));
        let taught = Hub::start(&["--allow-host", &advised]);
        assert_eq!(taught.send("GET", "/messages", &[&header], b"").status, 200, "{host}");
    }
    // Nothing is advised that would not be taken.
    for origin in
        ["", "*", "https://*.example", "https://a/b", "https://a@b", "a b", "http://a,null", "\u{ff}"]
    {
        let refused = post_from(&hub, &[&format!("Origin: {origin}")]);
        assert_eq!(refused.problem(403)["field"], "Origin", "{origin}");
        assert!(!refused.text().contains("--allow-origin"), "{origin}: {}", refused.text());
    }
    let refused = hub.send("GET", "/messages", &["Host: a~b"], b"");
    assert!(!refused.problem(403)["detail"].as_str().unwrap().contains("--allow-host"));
}

#[test]
fn a_pattern_allows_subdomains_alone() {
    let hub = Hub::start(&["--allow-origin", "https://*.example.org,http://*.local:8080"]);
    for origin in ["https://a.example.org", "https://a.b.example.org", "http://x.local:8080"] {
        let answer = post_from(&hub, &[&format!("Origin: {origin}")]);
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (201, Some(origin)));
        assert_eq!(answer.header("access-control-allow-credentials"), Some("true"));
    }
    for origin in [
        "https://example.org",
        "https://evil-example.org",
        "https://.example.org",
        "http://a.example.org",
        "https://a.example.org:8443",
        "https://a.example.org.evil.example",
        "https://evil.example/a.example.org",
        "https://a@b.example.org",
        "http://x.local",
        "null",
    ] {
        let refused = post_from(&hub, &[&format!("Origin: {origin}")]);
        assert_eq!(refused.problem(403)["field"], "Origin", "{origin}");
        assert_eq!(refused.header("access-control-allow-origin"), None);
    }
}

#[test]
fn the_port_of_a_scheme_may_be_named_or_left_out_in_host_and_origin() {
    let hub = Hub::start(&["--allow-host", "chat"]);
    for (host, origin, status) in [
        ("chat:443", "https://chat", 201),
        ("chat", "https://chat:443", 201),
        ("chat:80", "http://chat", 201),
        ("CHAT", "http://chat:80", 201),
        ("[::1]:443", "https://[::1]", 201),
        ("chat:443", "http://chat", 403),
        ("chat:80", "https://chat", 403),
        ("chat:8443", "https://chat", 403),
        ("chat", "https://chat:8443", 403),
        ("chat:443", "https://chat:80", 403),
        ("chat:443", "chrome-extension://chat", 403),
    ] {
        let (host_header, origin_header) = (format!("Host: {host}"), format!("Origin: {origin}"));
        for site in [&[][..], &["Sec-Fetch-Site: same-origin"]] {
            let answer = post_from(&hub, &[&[&*host_header, &origin_header], site].concat());
            assert_eq!(answer.status, status, "{host} {origin}");
        }
    }
}

#[test]
fn the_hubs_own_page_may_hide_its_origin_and_no_other_page_may() {
    let hub = Hub::start(&[]);
    let null = "Origin: null";
    assert_eq!(post_from(&hub, &[null, "Sec-Fetch-Site: same-origin"]).status, 201);
    for site in [&[][..], &["Sec-Fetch-Site: cross-site"], &["Sec-Fetch-Site: same-site"]] {
        let refused = post_from(&hub, &[&[null], site].concat());
        assert_eq!(refused.problem(403)["field"], "Origin");
    }
    for site in ["none", "", "Same-Origin", "same-origin, cross-site"] {
        post_from(&hub, &[null, &format!("Sec-Fetch-Site: {site}")]).problem(403);
    }
    post_from(&hub, &[null, "Sec-Fetch-Site: same-origin", "Host: evil.example"]).problem(403);
    assert_eq!(hub.history("").len(), 1);
}

#[test]
fn http_1_1_needs_a_host() {
    let hub = Hub::start(&[]);
    for target in ["/messages".to_owned(), format!("http://{}/messages", hub.address), "/nothing".to_owned()]
    {
        let refused = hub.raw(format!("GET {target} HTTP/1.1\r\nAccept: */*\r\n\r\n"));
        assert_eq!(refused.problem(400)["field"], "Host", "{target}");
    }
    hub.raw("POST /messages HTTP/1.1\r\nContent-Length: 1\r\n\r\nx").problem(400);
    assert!(hub.history("").is_empty());
}

#[test]
fn a_path_may_have_a_slash_at_its_end() {
    let hub = Hub::start(&["--allow-origin", APP]);
    let mut stream = hub.watch("/events/?last=1", &[]);
    let answer = hub.send("POST", "/messages/?event=x", &["Content-Type: text/plain"], b"slashed");
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(stream.data(), "slashed");
    assert_eq!(hub.history("/?last=1"), hub.history("?last=1"));
    for (method, target, status) in [
        ("HEAD", "/events/", 200),
        ("HEAD", "/messages/", 200),
        ("PUT", "/messages/", 405),
        ("DELETE", "/messages/", 405),
        ("POST", "/events/", 405),
        ("GET", "/events//", 404),
        ("GET", "/events/x", 405),
    ] {
        assert_eq!(hub.send(method, target, &[], b"").status, status, "{method} {target}");
    }
    let preflight = [&*format!("Origin: {APP}"), "Access-Control-Request-Method: POST"];
    assert_eq!(hub.send("OPTIONS", "/messages/", &preflight, b"").status, 200);
}

// The page.

#[test]
fn the_page_and_its_files_may_do_only_what_they_need() {
    let hub = Hub::start(&[]);
    for (path, content_type) in [
        ("/", "text/html; charset=utf-8"),
        ("/app.css", "text/css; charset=utf-8"),
        ("/app.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
    ] {
        let file = hub.get(path);
        assert_eq!((file.status, file.header("content-type")), (200, Some(content_type)), "{path}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            // With `no-referrer` the page's form would be sent with the origin `null`, which is refused.
            ("referrer-policy", "same-origin"),
            ("cross-origin-opener-policy", "same-origin"),
            ("cross-origin-resource-policy", "same-origin"),
        ] {
            assert_eq!(file.header(name), Some(value), "{path}");
        }
        let policy = file.header("content-security-policy").unwrap();
        let directives: Vec<_> = policy.split(';').map(str::trim).collect();
        for directive in
            ["default-src 'none'", "base-uri 'none'", "frame-ancestors 'none'", "form-action 'self'"]
        {
            assert!(directives.contains(&directive), "{policy}");
        }
        // From the hub alone, and nothing inline; but for pictures, which the page's script has received.
        let sources = directives
            .iter()
            .filter(|directive| **directive != "img-src 'self' blob:")
            .flat_map(|directive| directive.split_whitespace().skip(1));
        assert!(sources.into_iter().all(|source| ["'self'", "'none'"].contains(&source)), "{policy}");
    }
}

#[test]
fn a_file_that_the_browser_has_is_not_sent_again() {
    let hub = Hub::start(&[]);
    let mut tags = Vec::new();
    for path in ["/", "/app.css", "/app.js", "/icon.svg"] {
        let file = hub.get(path);
        let tag = file.header("etag").unwrap().to_owned();
        assert!(tag.len() > 2 && tag.starts_with('"') && tag.ends_with('"'), "{tag}");
        for known in [&*tag, &format!("W/{tag}"), &format!("\"other\", {tag}"), "*"] {
            let again = hub.send("GET", path, &[&format!("If-None-Match: {known}")], b"");
            assert_eq!((again.status, again.body.len()), (304, 0), "{path} {known}");
            assert_eq!(again.header("etag"), Some(&*tag));
            assert_eq!(again.header("content-security-policy"), file.header("content-security-policy"));
        }
        for unknown in ["\"other\"", "", &tag[1..]] {
            let again = hub.send("GET", path, &[&format!("If-None-Match: {unknown}")], b"");
            assert_eq!((again.status, &again.body), (200, &file.body), "{path} {unknown}");
        }
        tags.push(tag);
    }
    tags.sort_unstable();
    tags.dedup();
    assert_eq!(tags.len(), 4);
}

#[test]
fn a_file_is_sent_compressed_to_whoever_accepts_that() {
    let hub = Hub::start(&[]);
    let client = ["/tabcast.js", "/tabcast.src.js", "/tabcast.d.ts", "/io.js"];
    for path in ["/", "/app.css", "/app.js", "/icon.svg"].into_iter().chain(client) {
        let get = |headers: &[&str]| hub.send("GET", path, headers, b"");
        let plain = get(&[]);
        let plain_tag = plain.header("etag").unwrap();
        let zipped = get(&["Accept-Encoding: gzip, deflate, br, zstd"]);
        let zipped_tag = zipped.header("etag").unwrap();
        assert_eq!(zipped.header("content-encoding"), Some("gzip"));
        assert_eq!(zipped.header("content-length"), Some(&*zipped.body.len().to_string()));
        assert_eq!(zipped.header("content-type"), plain.header("content-type"));
        assert!(zipped.body.len() < plain.body.len(), "{path}");
        assert_eq!(unzipped(&zipped.body), plain.body);
        assert_ne!(zipped_tag, plain_tag);
        for accepted in
            ["x-gzip", "GZIP;q=0.5", "*", "br, *;q=0.1", "gzip;q=0.8, identity;q=0.5", "*;q=0, gzip"]
        {
            let response = get(&[&format!("Accept-Encoding: {accepted}")]);
            assert_eq!(response.header("etag"), Some(zipped_tag), "{accepted}");
        }
        for accepted in [
            "",
            "br",
            "identity",
            "gzip;q=0",
            "gzip; q=0.000",
            "gzip;q=0, *",
            "*;q=0",
            "gzip;q=0.1, identity",
        ] {
            let response = get(&[&format!("Accept-Encoding: {accepted}")]);
            assert_eq!(
                (response.header("etag"), &response.body),
                (Some(plain_tag), &plain.body),
                "{accepted}"
            );
            assert_eq!(response.header("content-encoding"), None);
        }
        // Each form is known by its own tag alone.
        for (tag, accepted, status) in [
            (zipped_tag, "gzip", 304),
            (plain_tag, "identity", 304),
            (plain_tag, "gzip", 200),
            (zipped_tag, "identity", 200),
        ] {
            let headers = [format!("If-None-Match: {tag}"), format!("Accept-Encoding: {accepted}")];
            let response = get(&[&headers[0], &headers[1]]);
            assert_eq!((response.status, response.header("vary")), (status, Some("accept-encoding")));
        }
        let head = hub.send("HEAD", path, &["Accept-Encoding: gzip"], b"");
        assert_eq!(head.header("content-length"), zipped.header("content-length"));
    }
}

fn unzipped(bytes: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("gzip").arg("-dc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // Shorter than a pipe's buffer, so that all of it can be written first.
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// The text between the brackets of each tag in a page.
fn tags(page: &str) -> impl Iterator<Item = &str> {
    page.split('<').skip(1).filter_map(|rest| rest.split('>').next())
}

#[test]
fn the_page_has_no_inline_code_and_asks_for_nothing_from_elsewhere() {
    let hub = Hub::start(&[]);
    let answer = hub.get("/");
    let page = answer.text().to_ascii_lowercase();
    assert!(tags(&page).any(|tag| tag.starts_with("script")));
    for tag in tags(&page) {
        let name = tag.split_whitespace().next().unwrap_or_default();
        assert!(name != "style" && name != "base", "{tag}");
        assert!(name != "script" || tag.contains("src=\""), "{tag}");
        for attribute in tag.split_whitespace().skip(1) {
            let Some((attribute, _)) = attribute.split_once('=') else { continue };
            assert!(!attribute.starts_with("on") && attribute != "style", "{tag}");
        }
        assert!(!tag.contains("javascript:"), "{tag}");
        for kind in ["src=\"", "href=\"", "action=\""] {
            let Some(target) = tag.split(kind).nth(1).and_then(|rest| rest.split('"').next()) else {
                continue;
            };
            // Relative, so that the page can be below any path of a proxy.
            assert!(!target.starts_with('/') && !target.contains(':'), "{tag}");
            assert_eq!(hub.get(&format!("/{target}")).status, 200, "{tag}");
        }
    }
    for script in page.split("<script").skip(1) {
        let content = script.split_once('>').unwrap().1.split_once("</script>").unwrap().0;
        assert_eq!(content.trim(), "");
    }
}

// Streams.

#[test]
fn a_streams_headers_are_exact() {
    let hub = Hub::start(&[]);
    for (target, accept, content_type) in [
        ("/events", "Accept: text/event-stream", "text/event-stream"),
        ("/events?format=message", "Accept: */*", "text/event-stream"),
        ("/events", "Accept: application/x-ndjson", "application/x-ndjson"),
    ] {
        let expected = [
            ("content-type", content_type),
            ("cache-control", "no-store, no-transform"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cross-origin-opener-policy", "same-origin"),
        ];
        // A proxy could hold back a stream that has a content encoding.
        let check = |headers: &[(String, String)]| {
            for (name, value) in expected {
                let values: Vec<_> =
                    headers.iter().filter(|(known, _)| known == name).map(|(_, value)| &**value).collect();
                assert_eq!(values, [value], "{name} {target}");
            }
            assert!(headers.iter().all(|(name, _)| name != "content-encoding" && name != "content-length"));
        };
        check(&hub.open(target, &[accept, "Accept-Encoding: gzip, br"]).headers);
        check(&hub.send("HEAD", target, &[accept], b"").headers);
    }
}

/// Each character that some parser takes for the end of a line, with the text of a field or an event behind
/// it.
const HOSTILE: &str = "a\revent: evil\ndata: x\r\n\r\nid: 9\0\n\
    retry: 1\u{2028}event: evil\u{2029}id: 8\u{85}\u{b}\u{c}: no\n\n\r";

/// [`HOSTILE`] as `data:` lines: split on CR, LF and CRLF and on nothing else.
const HOSTILE_LINES: &str = "data: a\ndata: event: evil\ndata: data: x\ndata: \ndata: id: 9\0\n\
    data: retry: 1\u{2028}event: evil\u{2029}id: 8\u{85}\u{b}\u{c}: no\ndata: \ndata: \ndata: \n";

#[test]
fn data_can_not_become_a_field_or_an_event() {
    let hub = Hub::start(&[]);
    let mut bare = hub.watch("/events", &[]);
    let mut message = hub.watch("/events?format=message", &[]);
    let mut lines = hub.open("/events", &["Accept: application/x-ndjson"]);
    for content_type in ["text/plain", "application/json", "application/x-www-form-urlencoded"] {
        let body = match content_type {
            "text/plain" => HOSTILE.to_owned(),
            "application/json" => json!({ "data": HOSTILE }).to_string(),
            _ => format!("data={}", HOSTILE.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>()),
        };
        let receipt = hub.post("", content_type, body).json();
        let id = receipt["id"].as_str().unwrap();
        assert_eq!(bare.block().unwrap(), format!("id: {id}\n{HOSTILE_LINES}\n"));

        let block = message.block().unwrap();
        let json = block.strip_prefix(&format!("id: {id}\ndata: ")).unwrap().strip_suffix("\n\n").unwrap();
        assert!(!json.contains(['\r', '\n', '\0']), "{json:?}");
        assert_eq!(serde_json::from_str::<Value>(json).unwrap()["data"], HOSTILE);
        assert_eq!(lines.line().unwrap(), format!("{json}\n"));
    }
    // The next event is the next message.
    let id = hub.publish("after");
    assert_eq!(bare.block().unwrap(), format!("id: {id}\ndata: after\n\n"));
    assert!(message.block().unwrap().starts_with(&format!("id: {id}\ndata: {{")));
    assert_eq!(serde_json::from_str::<Value>(&lines.line().unwrap()).unwrap()["data"], "after");
}

#[test]
fn json_data_goes_out_on_one_line() {
    let hub = Hub::start(&[]);
    let mut bare = hub.watch("/events", &[]);
    let data = json!({ HOSTILE: [HOSTILE, { "b": HOSTILE }] });
    // White space between tokens may be line breaks. None of it is sent.
    let pretty = serde_json::to_string_pretty(&data).unwrap().replace('\n', "\r\n");
    let receipt = hub.post("", "application/json", format!("{{\"data\":\r{pretty}}}")).json();
    let id = receipt["id"].as_str().unwrap();
    assert_eq!(bare.block().unwrap(), format!("id: {id}\ndata: {data}\n\n"));
}

#[test]
fn a_gap_event_has_the_cursor_that_was_asked_for_as_data() {
    let hub = Hub::start(&[]);
    let asked: String =
        "x\r\nevent: evil\n\nid: 9\0\u{2028}".bytes().map(|byte| format!("%{byte:02X}")).collect();
    let target = format!("/events?last_event_id={asked}");
    let gap = hub.watch(&target, &[]).block().unwrap();
    let fields: Vec<_> = gap.trim_end().lines().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(fields, ["id", "event", "data"], "{gap:?}");
    assert!(!gap.contains(['\r', '\0']), "{gap:?}");
    assert_eq!(common::parse_event(&gap).json()["asked"], "x\r\nevent: evil\n\nid: 9\0\u{2028}");

    let line = hub.open(&target, &["Accept: application/x-ndjson"]).line().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&line).unwrap()["data"]["asked"],
        "x\r\nevent: evil\n\nid: 9\0\u{2028}"
    );
    // A header can have no line break, but bytes that are not text.
    let head = b"GET /events HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: \xff\xfe\t\r\n\r\n";
    let mut connection = hub.connect();
    connection.write_all(head).unwrap();
    let mut lines = BufReader::new(connection).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "event: tabcast:gap"));
    assert!(lines.next().unwrap().starts_with("data: {\"asked\":\""));
}

#[test]
fn a_problem_has_what_was_sent_as_data() {
    let hub = Hub::start(&[]);
    let name: String =
        "x\r\nSet-Cookie: a=b\r\n\r\n<script>\u{2028}".bytes().map(|byte| format!("%{byte:02X}")).collect();
    let answer = hub.get(&format!("/messages?{name}=1"));
    assert_eq!(answer.problem(422)["field"], "x\r\nSet-Cookie: a=b\r\n\r\n<script>\u{2028}");
    assert_eq!(answer.header("set-cookie"), None);
}

// The log.

#[test]
fn what_nobody_sees_is_escaped_in_the_log_and_sent_as_it_is() {
    let hub = Hub::start(&[]);
    let mut stream = hub.watch("/events", &[]);
    for unseen in
        "\u{ad}\u{34f}\u{115f}\u{1160}\u{180b}\u{180f}\u{200b}\u{202e}\u{2800}\u{3164}\u{fe00}\u{fe0f}\
        \u{feff}\u{ffa0}\u{e0001}\u{e0100}\u{e01ef}\u{13441}"
            .chars()
    {
        let number = format!("{:x}", u32::from(unseen));
        hub.publish(&format!("<{number} {unseen}>"));
        assert_eq!(stream.data(), format!("<{number} {unseen}>"));
        let line = hub.wait_for_log(&["message published", &format!("data=\"<{number} ")]);
        assert!(line.ends_with(&format!("data=\"<{number} \\u{{{number}}}>\"")), "{line}");
    }
    // An event name may be an emoji with its variation selector.
    let heart = "%E2%9D%A4%EF%B8%8F";
    assert_eq!(hub.post(&format!("?event={heart}"), "text/plain", "x").status, 201);
    assert_eq!(stream.event().unwrap().event, "❤\u{fe0f}");
    hub.wait_for_log(&["event=\"❤\\u{fe0f}\" size=3"]);
}
