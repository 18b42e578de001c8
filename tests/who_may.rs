//! Who may do what: every way to carry a token, every request, and every way in which a token can fail.

mod common;

use std::collections::HashMap;

use common::{Hub, Response, Stream, Tokens, bearer, now, on_each_journal, request};
use serde_json::{Value, json};

/// Static tokens, by their names.
struct Named {
    tokens: Tokens,
    secrets: HashMap<String, String>,
}

impl Named {
    /// A token for each of these names, with these grants.
    fn new(lines: &[(&str, &str)]) -> Self {
        let tokens = Tokens::new();
        let secret = |(name, grants): &(&str, &str)| ((*name).to_owned(), tokens.add(name, grants));
        Named { secrets: lines.iter().map(secret).collect(), tokens }
    }

    fn secret(&self, name: &str) -> &str {
        &self.secrets[name]
    }

    fn bearer(&self, name: &str) -> String {
        bearer(self.secret(name))
    }
}

/// A hub that knows these tokens, at its most talkative.
fn guarded(named: &Named, flags: &[&str]) -> Hub {
    named.tokens.hub(&[&["--log-level", "trace"], flags].concat())
}

/// How a request carries its token.
#[derive(Clone, Copy, Debug)]
enum Carrier {
    Header,
    HostCookie,
    Cookie,
    Query,
}

impl Carrier {
    const ALL: [Carrier; 4] = [Carrier::Header, Carrier::HostCookie, Carrier::Cookie, Carrier::Query];

    /// The request's target and headers with this token.
    fn carry(self, target: &str, token: &str) -> (String, Vec<String>) {
        let header = match self {
            Carrier::Header => format!("Authorization: Bearer {token}"),
            Carrier::HostCookie => format!("Cookie: other=1; __Host-tabcast={token}"),
            Carrier::Cookie => format!("Cookie: tabcast={token}; other=1"),
            Carrier::Query => {
                let mark = if target.contains('?') { '&' } else { '?' };
                return (format!("{target}{mark}token={token}"), Vec::new());
            }
        };
        (target.to_owned(), vec![header])
    }
}

/// A request that needs a verb on the channel `a.b`.
struct Request {
    method: &'static str,
    target: String,
    verb: &'static str,
    good: u16,
}

fn requests(id: &str) -> Vec<Request> {
    let request =
        |method, target: &str, verb, good| Request { method, target: target.to_owned(), verb, good };
    vec![
        request("POST", "/messages?channel=a.b", "publish", 201),
        request("GET", "/messages?channel=a.b", "history", 200),
        request("HEAD", "/messages?channel=a.b", "history", 200),
        request("GET", "/events?channel=a.b", "subscribe", 200),
        request("HEAD", "/events/?channel=a.b", "subscribe", 200),
        request("GET", "/events?channel=a.b&last=1", "subscribe", 200),
        request("DELETE", &format!("/messages/{id}"), "delete", 204),
        request("POST", "/admin/revoke", "administration", 200),
        request("GET", "/caller", "", 200),
        request("HEAD", "/caller", "", 200),
    ]
}

/// What is answered: a stream is read up to its first event, or its opening.
fn ask(hub: &Hub, method: &str, target: &str, headers: &[&str]) -> Response {
    if method == "GET" && target.starts_with("/events") {
        let mut connection = hub.connect();
        let bytes = request(&format!("GET {target} HTTP/1.1"), hub.address, headers, None);
        std::io::Write::write_all(&mut connection, &bytes).unwrap();
        let mut stream = Stream::try_read(connection).unwrap();
        if stream.status != 200 {
            return stream.into_response();
        }
        let mut body = stream.block().unwrap();
        // Only a stream that ends opens without an id, and says why it ends.
        if !body.contains("\nid: ") {
            body += &stream.block().unwrap();
        }
        return Response { status: 200, headers: stream.headers, body: body.into_bytes() };
    }
    hub.send(method, target, headers, br#"{"id": "of nobody"}"#)
}

/// The tokens of one kind, each named by how it fares.
fn kinds(tokens: &Tokens, is_signed: bool) -> Vec<(&'static str, Option<String>)> {
    let good = json!({
        "publish": ["a.>"], "subscribe": ["a.*"], "history": ["a.b"], "delete": ["a.b"], "admin": true,
    });
    let other = json!({"publish": ["b"], "subscribe": ["a"], "history": ["a"], "delete": ["b.>"]});
    let line = |grants: &Value| {
        let verbs = grants.as_object().unwrap().iter().map(|(verb, patterns)| match patterns.as_array() {
            Some(patterns) => format!("{verb}={}", patterns[0].as_str().unwrap()),
            None => verb.clone(),
        });
        verbs.collect::<Vec<_>>().join(" ")
    };
    let make = |name: &str, grants: &Value, expires: Option<u64>| {
        let expires = expires.unwrap_or(now() + 3600);
        if is_signed {
            let claims =
                json!({"sub": name, "jti": name, "iat": now() - 100, "exp": expires, "tabcast": grants});
            return tokens.sign(&claims);
        }
        let end = std::time::UNIX_EPOCH + std::time::Duration::from_secs(expires);
        let end = humantime::format_rfc3339_seconds(end);
        tokens.add(name, &format!("{} expires={end}", line(grants)))
    };
    let (good_token, stranger) = (make("good", &good, None), Tokens::new());
    let unknown = match is_signed {
        true => stranger.of("good", &good),
        false => stranger.add("good", &line(&good)),
    };
    let cut = good_token[..good_token.len() - 1].to_owned();
    vec![
        ("none", None),
        ("wrong", Some(unknown)),
        ("cut", Some(cut)),
        ("no token", Some("x".to_owned())),
        ("empty", Some(String::new())),
        ("expired", Some(make("expired", &good, Some(now() - 100)))),
        ("revoked", Some(make("revoked", &good, None))),
        ("not granted", Some(make("other", &other, None))),
        ("good", Some(good_token)),
    ]
}

/// Every way to carry a token × every request × every way in which a token of this kind can fare.
fn every_token_of_a_kind(is_signed: bool) {
    let tokens = Tokens::new();
    let kinds = kinds(&tokens, is_signed);
    let hub = tokens.hub(&["--token-in-query", "--log-level", "trace"]);
    let good = bearer(kinds.last().unwrap().1.as_ref().unwrap());
    let what = if is_signed { r#"{"id": "revoked"}"# } else { r#"{"token": "revoked"}"# };
    assert_eq!(hub.send("POST", "/admin/revoke", &[&good], what.as_bytes()).status, 200);
    let publish = || {
        let response = hub.send("POST", "/messages?channel=a.b", &[&good], b"x");
        response.json()["id"].as_str().unwrap().to_owned()
    };
    for carrier in Carrier::ALL {
        for Request { method, target, verb, good } in requests(&publish()) {
            let (is_events, is_caller) = (target.starts_with("/events"), target == "/caller");
            let is_head = method == "HEAD";
            for (kind, token) in &kinds {
                let (target, headers) = match token {
                    Some(token) => carrier.carry(&target, token),
                    None => (target.clone(), Vec::new()),
                };
                let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
                let response = ask(&hub, method, &target, &headers);
                let context = format!("{carrier:?} {method} {target} {kind}: {response:?}");
                let challenge = response.header("www-authenticate");
                match *kind {
                    "good" => assert_eq!(response.status, good, "{context}"),
                    "none" | "not granted" if is_caller => assert_eq!(response.status, 200, "{context}"),
                    "expired" if is_events => {
                        assert_eq!((response.status, challenge), (200, None), "{context}");
                        if !is_head {
                            assert!(response.text().contains("event: tabcast:expired\n"), "{context}");
                        }
                    }
                    "not granted" => {
                        assert_eq!(response.status, 403, "{context}");
                        assert_eq!(challenge, Some("Bearer error=\"insufficient_scope\""), "{context}");
                        if !is_head {
                            let detail = response.problem(403)["detail"].as_str().unwrap().to_owned();
                            let names_channel = verb == "administration" || detail.contains("a.b");
                            assert!(detail.contains(verb) && names_channel, "{context}");
                        }
                    }
                    _ => {
                        let invalid = "Bearer error=\"invalid_token\"";
                        let expected = if token.is_none() { "Bearer" } else { invalid };
                        assert_eq!((response.status, challenge), (401, Some(expected)), "{context}");
                        if !is_head {
                            assert_eq!(response.problem(401)["field"], "Authorization", "{context}");
                        }
                    }
                }
            }
        }
    }
    let log = hub.log();
    assert!(log.iter().any(|line| line.contains("request refused")));
    for (kind, secret) in kinds.iter().filter_map(|(kind, token)| Some((kind, token.as_ref()?))) {
        // Of a signed token, all begin the same; its end is the signature.
        let telling = &secret[secret.len().saturating_sub(20)..];
        assert!(telling.len() < 20 || !log.iter().any(|line| line.contains(telling)), "{kind}");
    }
}

on_each_journal!(every_carrier_and_every_request_with_every_static_token, {
    every_token_of_a_kind(false);
});

on_each_journal!(every_carrier_and_every_request_with_every_signed_token, {
    every_token_of_a_kind(true);
});

#[test]
fn all_of_a_request_is_granted_or_nothing() {
    let tokens = Named::new(&[("one", "publish=a subscribe=a.*,b"), ("rest", "subscribe=a.>")]);
    let hub = guarded(&tokens, &[]);
    let status = |name: &str, query: &str| {
        ask(&hub, "GET", &format!("/events?{query}"), &[&tokens.bearer(name)]).status
    };
    for (name, query, expected) in [
        ("one", "channel=a.x", 200),
        ("one", "channel=a.*&channel=b", 200),
        ("one", "channel=a.x&channel=c", 403),
        ("one", "channel=a.%3E", 403),
        ("one", "channel=*.x", 403),
        ("one", "channel=%3E", 403),
        ("one", "", 403),
        ("rest", "channel=a.*", 200),
        ("rest", "channel=a.*.%3E", 200),
        ("rest", "channel=a", 403),
        ("rest", "channel=*.%3E", 403),
    ] {
        assert_eq!(status(name, query), expected, "{name} {query}");
    }
    // Of a batch too, and nothing of it is kept.
    let lines = b"{\"data\":1,\"channel\":\"a\"}\n{\"data\":2,\"channel\":\"b\"}\n";
    let headers = [&*tokens.bearer("one"), "Content-Type: application/x-ndjson"];
    let problem = hub.send("POST", "/messages", &headers, lines).problem(403);
    assert!(problem["detail"].as_str().unwrap().contains("`publish` on the channel b"), "{problem}");
    assert_eq!(hub.count_log("message published"), 0);
}

#[test]
fn anonymous_callers_have_grants_and_no_wrong_token_counts_as_none() {
    let tokens = Named::new(&[("ci", "publish=build.>")]);
    let hub = guarded(&tokens, &["--anonymous", "subscribe=public.> publish=public.chat"]);
    assert_eq!(hub.post("?channel=public.chat", "text/plain", "hello").status, 201);
    assert_eq!(hub.post("?channel=public.news", "text/plain", "hello").status, 401);
    assert_eq!(hub.history("?channel=public.*").len(), 1);
    let watch = ask(&hub, "GET", "/events?channel=public.%3E", &[]);
    assert_eq!(watch.status, 200);
    let wrong = [
        "Authorization: Bearer x",
        "Authorization: Bearer ",
        "Authorization: Bearer",
        "Authorization: Basic YTpi",
        "Authorization: x",
        "Cookie: tabcast=",
        "Cookie: __Host-tabcast=x",
    ];
    for header in wrong {
        for target in ["/messages?channel=public.chat", "/events?channel=public.chat"] {
            let response = ask(&hub, "GET", target, &[header]);
            assert_eq!(response.status, 401, "{header} {target}");
            let challenge = response.header("www-authenticate");
            assert_eq!(challenge, Some("Bearer error=\"invalid_token\""), "{header}");
        }
    }
    // A token that is not granted what everybody may do is not granted it.
    assert_eq!(ask(&hub, "GET", "/events?channel=public.chat", &[&tokens.bearer("ci")]).status, 403);
    // The page and its script are everybody's, whatever cookie the browser has.
    for target in ["/", "/tabcast.js", "/app.css"] {
        assert_eq!(hub.send("GET", target, &["Cookie: tabcast=x"], b"").status, 200, "{target}");
    }
    // Without `--token-in-query`, a token there is no credential, and its value is nowhere named.
    let secret = tokens.secret("ci");
    let problem =
        hub.send("POST", &format!("/messages?channel=build.1&token={secret}"), &[], b"x").problem(422);
    assert_eq!(problem["field"], "token");
    let opening = ask(&hub, "GET", &format!("/events?channel=public.a&token={secret}"), &[]);
    assert!(opening.status == 200 && !opening.text().contains(&secret[..12]), "{opening:?}");
    assert!(!hub.log().iter().any(|line| line.contains(&secret[..12])));
}

#[test]
fn of_several_carriers_the_header_wins_and_two_different_cookies_are_refused() {
    let tokens = Named::new(&[("a", "subscribe=a"), ("b", "subscribe=b")]);
    let hub = guarded(&tokens, &["--token-in-query"]);
    let (a, b) = (tokens.secret("a"), tokens.secret("b"));
    let status = |channel: &str, query: &str, headers: &[String]| {
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        ask(&hub, "GET", &format!("/events?channel={channel}{query}"), &headers).status
    };
    let bearer = |token: &str| format!("Authorization: bearer {token}");
    let cookie = |text: String| format!("Cookie: {text}");
    for (channel, query, headers, expected) in [
        ("a", String::new(), vec![bearer(a), cookie(format!("tabcast={b}"))], 200),
        ("b", String::new(), vec![bearer(a), cookie(format!("tabcast={b}"))], 403),
        ("a", format!("&token={a}"), vec![cookie(format!("tabcast={b}"))], 200),
        ("a", format!("&token={b}"), vec![bearer(a)], 200),
        ("a", String::new(), vec![bearer("x"), cookie(format!("tabcast={a}"))], 401),
        ("a", format!("&token={a}&token={a}"), vec![], 401),
        ("a", String::new(), vec![bearer(a), bearer(a)], 401),
        // A page of another host of the site can set a cookie for all of it, but not one of this name.
        ("a", String::new(), vec![cookie(format!("tabcast={b}; __Host-tabcast={a}"))], 200),
        ("a", String::new(), vec![cookie(format!("tabcast={a}; tabcast={b}"))], 401),
        ("a", String::new(), vec![cookie(format!("tabcast={a}")), cookie(format!("tabcast={a}"))], 200),
        ("a", String::new(), vec![cookie(format!("tabcast=\"{a}\""))], 200),
    ] {
        assert_eq!(status(channel, &query, &headers), expected, "{channel} {query} {headers:?}");
    }
}

#[test]
fn a_cookie_publishes_only_for_pages_of_known_origins() {
    let tokens = Named::new(&[("ada", "publish=main delete=main")]);
    let cookie = format!("Cookie: tabcast={}", tokens.secret("ada"));
    let bearer = tokens.bearer("ada");
    let other = "Origin: https://evil.example";
    let closed = guarded(&tokens, &[]);
    let listed = "Origin: https://good.example";
    let any = guarded(&tokens, &["--allow-origin", "*", "--allow-origin", "https://good.example"]);
    let own = format!("Origin: http://{}", any.address);
    for (hub, headers, expected) in [
        (&closed, vec![&*cookie], 201),
        (&closed, vec![&*cookie, other], 403),
        (&closed, vec![&*bearer, other], 403),
        (&closed, vec![&*cookie, "Sec-Fetch-Site: cross-site"], 403),
        (&any, vec![&*cookie, listed], 201),
        (&any, vec![&*cookie, &*own], 201),
        (&any, vec![&*cookie], 201),
        (&any, vec![&*bearer, other], 201),
        // Any page can have a browser send this: the browser adds the cookie by itself.
        (&any, vec![&*cookie, other], 401),
        (&any, vec![&*cookie, "Sec-Fetch-Site: cross-site"], 401),
        (&any, vec![&*cookie, "Origin: null"], 401),
    ] {
        let response = hub.send("POST", "/messages", &headers, b"x");
        assert_eq!(response.status, expected, "{headers:?} {response:?}");
        if expected != 201 {
            let delete = hub.send("DELETE", "/messages/aaaaaaaa-1", &headers, b"");
            assert_eq!(delete.status, expected, "{headers:?}");
        }
    }
}

#[test]
fn an_id_of_a_subscriber_is_its_subjects_own() {
    let everything = "publish=main subscribe=main";
    let tokens = Named::new(&[("ada", everything), ("bob", everything)]);
    let hub = guarded(&tokens, &["--anonymous", everything]);
    let watch = |token: Option<&str>, id: &str| {
        let headers = token.map(|name| tokens.bearer(name));
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        hub.watch(&format!("/events?as={id}"), &headers)
    };
    let publish = |token: Option<&str>, except: &str, text: &str| {
        let headers = token.map(|name| tokens.bearer(name));
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let response = hub.send("POST", &format!("/messages?except={except}"), &headers, text.as_bytes());
        assert_eq!(response.status, 201, "{response:?}");
    };
    let (mut ada, mut bob, mut nobody) = (watch(Some("ada"), "x"), watch(Some("bob"), "x"), watch(None, "x"));
    publish(Some("ada"), "x", "by ada");
    let messages: Vec<Value> = hub.history("?last=1");
    let marked = messages[0]["except"].as_str().unwrap().to_owned();
    assert!(marked.starts_with("x~") && marked.len() == "x~".len() + 11, "{marked}");
    publish(Some("bob"), "x", "by bob");
    publish(None, "x", "by nobody");
    // Whoever has no subject can't be taken for one by what it calls itself.
    publish(None, &marked, "by an impostor");
    publish(Some("bob"), &marked, "by another");
    let heard = |stream: &mut Stream, count| (0..count).map(|_| stream.data()).collect::<Vec<_>>();
    assert_eq!(heard(&mut ada, 4), ["by bob", "by nobody", "by an impostor", "by another"]);
    assert_eq!(heard(&mut bob, 4), ["by ada", "by nobody", "by an impostor", "by another"]);
    assert_eq!(heard(&mut nobody, 4), ["by ada", "by bob", "by an impostor", "by another"]);
    // On replay too.
    let replayed = hub.send("GET", "/messages?as=x&last=9", &[&tokens.bearer("ada")], b"").json();
    assert_eq!(replayed["messages"].as_array().unwrap().len(), 4);
    let problem = hub.send("POST", &format!("/messages?except={}", "x".repeat(65)), &[], b"").problem(422);
    assert_eq!((&problem["field"], &problem["limit"]), (&"except".into(), &64.into()));
}

on_each_journal!(without_history_nothing_is_read_that_was_before, {
    let tokens = Named::new(&[("all", "publish=a subscribe=a"), ("live", "subscribe=a history=")]);
    let hub = guarded(&tokens, &[]);
    let publish = |text: &str| {
        let response = hub.send("POST", "/messages?channel=a", &[&tokens.bearer("all")], text.as_bytes());
        response.json()["id"].as_str().unwrap().to_owned()
    };
    let (first, live) = (publish("before"), tokens.bearer("live"));
    publish("secret");
    for query in ["last=1", "latest=1"] {
        let problem = ask(&hub, "GET", &format!("/events?channel=a&{query}"), &[&live]).problem(403);
        assert!(problem["detail"].as_str().unwrap().contains("`history`"), "{problem}");
    }
    assert_eq!(hub.send("GET", "/messages?channel=a", &[&live], b"").status, 403);
    // Who comes back is told of a gap, and goes on live.
    let mut stream = hub.watch("/events?channel=a", &[&live, &format!("Last-Event-ID: {first}")]);
    let gap = stream.event().unwrap();
    assert_eq!((&*gap.event, &gap.json()["asked"]), ("tabcast:gap", &first.as_str().into()));
    publish("after");
    assert_eq!(stream.data(), "after");
});

#[test]
fn an_event_source_whose_cookie_has_expired_comes_back_and_no_other_request_does() {
    let tokens = Named::new(&[("ada", "subscribe=a")]);
    let hub = guarded(&tokens, &[]);
    // The browser has dropped the cookie: the request has none, but the subscriber was admitted once.
    let headers = ["Accept: text/event-stream", "Last-Event-ID: aaaaaaaa-1"];
    let response = ask(&hub, "GET", "/events?channel=a", &headers);
    assert_eq!(response.status, 200);
    let text = response.text();
    assert!(
        text.contains("event: tabcast:expired\ndata: {\"reason\":\"the token has expired\"}\n\n"),
        "{text}"
    );
    let retry: u32 = text.split("retry: ").nth(1).unwrap().split('\n').next().unwrap().parse().unwrap();
    assert!((22_500..=37_500).contains(&retry), "{retry}");
    for headers in [&headers[..1], &headers[1..], &["Accept: text/event-stream", "Authorization: Bearer x"]] {
        assert_eq!(ask(&hub, "GET", "/events?channel=a", headers).status, 401, "{headers:?}");
    }
}

#[test]
fn beyond_loopback_a_hub_without_grants_does_not_start() {
    let start = |flags: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tabcast"));
        command.args(["--journal", "memory", "--listen", "0.0.0.0:0"]).args(flags);
        Hub::spawn(&mut command)
    };
    let mut refused = start(&[]);
    assert!(!refused.listens() && refused.wait().code() == Some(1));
    let line = refused.log().pop().unwrap();
    for part in ["0.0.0.0", "--tokens", "--anonymous all"] {
        assert!(line.contains(part), "{line}");
    }
    let tokens = Named::new(&[("ci", "all")]);
    for flags in [&["--anonymous", "all"][..], &["--anonymous", ""], &["--tokens", &tokens.tokens.file()]] {
        assert!(start(flags).listens(), "{flags:?}");
    }
    let mut broken = start(&["--tokens", "/nowhere/tokens"]);
    assert!(!broken.listens() && broken.wait().code() == Some(1));
    assert!(broken.log().pop().unwrap().contains("--tokens /nowhere/tokens"));
}
