//! `--jwks-url`: tokens by the keys of a provider, which are fetched now and then.

mod common;

use std::io::{BufReader, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Certificate, Endpoint, Folder, Gate, Hub, PATIENCE, Response, connect, request, response};
use serde_json::{Value, json};

/// A key of the provider.
struct Key {
    id: String,
    pair: Ed25519KeyPair,
}

impl Key {
    fn new(id: &str) -> Key {
        Key { id: id.to_owned(), pair: Ed25519KeyPair::generate().unwrap() }
    }

    fn public(&self) -> Value {
        let x = URL_SAFE_NO_PAD.encode(self.pair.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.id, "x": x })
    }

    /// The header of a token for `main`, signed with this key.
    fn token(&self) -> String {
        let header = json!({ "alg": "EdDSA", "kid": self.id });
        token(&header, |text| self.pair.sign(text).as_ref().to_vec())
    }
}

fn token(header: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let grants = json!({ "subscribe": ["main"], "publish": ["main"] });
    let claims = json!({ "sub": "ada", "exp": 4_000_000_000_u64, "tabcast": grants });
    let signed = [header, &claims].map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("Authorization: Bearer {signed}.{signature}")
}

/// The answer of a provider with these keys.
fn set(keys: &[&Key]) -> Vec<u8> {
    let keys: Vec<_> = keys.iter().map(|key| key.public()).collect();
    response(200, &["Content-Type: application/json"], &json!({ "keys": keys }).to_string())
}

fn hub(provider: &Endpoint) -> Hub {
    Hub::start(&["--jwks-url", &provider.url("/keys")])
}

fn post(hub: &Hub, token: &str) -> Response {
    hub.send("POST", "/messages", &[token], b"x")
}

#[test]
fn tokens_by_the_providers_keys_are_taken_and_no_others() {
    let (a, b, other) = (Key::new("a"), Key::new("b"), Key::new("a"));
    let answer = set(&[&a, &b]);
    let provider = Endpoint::start(move |_| answer.clone());
    let hub = hub(&provider);
    for key in [&a, &b] {
        assert_eq!(post(&hub, &key.token()).status, 201);
        assert!(hub.watch("/events", &[&key.token()]).opening.contains("id: "));
    }
    post(&hub, &other.token()).problem(401);
    post(&hub, "Authorization: Bearer x").problem(401);
    assert_eq!(hub.send("POST", "/messages", &[], b"x").problem(401)["field"], "Authorization");
    assert_eq!(provider.count(), 1);
    assert_eq!(provider.asked()[0].line, "GET /keys HTTP/1.1");
    hub.wait_for_log(&["INFO", "keys fetched", "keys=2"]);
}

#[test]
fn a_new_key_is_fetched_at_once_and_made_up_ones_are_not() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let answer = Arc::new(Mutex::new(set(&[&old])));
    let given = Arc::clone(&answer);
    let provider = Endpoint::start(move |_| given.lock().unwrap().clone());
    let hub = hub(&provider);
    assert_eq!(post(&hub, &old.token()).status, 201);
    assert_eq!(provider.count(), 1);
    *answer.lock().unwrap() = set(&[&new]);
    assert_eq!(post(&hub, &new.token()).status, 201);
    assert_eq!(provider.count(), 2);
    for number in 0..200 {
        let response = post(&hub, &Key::new(&number.to_string()).token());
        assert!(response.problem(401)["detail"].as_str().unwrap().contains("`kid`"));
    }
    assert_eq!(provider.count(), 2);
    // A key that the provider has taken back is good for nothing new.
    let header = json!({ "alg": "EdDSA", "kid": "old", "typ": "JWT" });
    post(&hub, &token(&header, |text| old.pair.sign(text).as_ref().to_vec())).problem(401);
    assert_eq!(post(&hub, &new.token()).status, 201);
}

#[test]
fn all_who_have_a_new_key_at_once_wait_for_one_fetch() {
    let (old, new) = (Key::new("old"), Key::new("new"));
    let (first, then, count) = (set(&[&old]), set(&[&old, &new]), AtomicUsize::new(0));
    let gate = Arc::new(Gate::default());
    let held = Arc::clone(&gate);
    let provider = Endpoint::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0 => first.clone(),
        _ => {
            held.pass();
            then.clone()
        }
    });
    let hub = hub(&provider);
    assert_eq!(post(&hub, &old.token()).status, 201);
    let mut connections: Vec<_> = (0..100).map(|_| connect(hub.address).unwrap()).collect();
    let bytes = request("POST /messages HTTP/1.1", hub.address, &[&new.token()], Some(b"x"));
    for connection in &mut connections {
        connection.write_all(&bytes).unwrap();
    }
    provider.wait_for(2);
    // Others don't wait.
    assert_eq!(post(&hub, &old.token()).status, 201);
    gate.open();
    for connection in connections {
        assert_eq!(Response::read(&mut BufReader::new(connection), false).status, 201);
    }
    assert_eq!(provider.count(), 2);
}

#[test]
fn a_hub_starts_while_its_provider_is_down_and_takes_tokens_once_it_is_back() {
    let (key, count) = (Key::new("a"), AtomicUsize::new(0));
    let answer = set(&[&key]);
    let provider = Endpoint::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
        0..3 => response(500, &[], ""),
        _ => answer.clone(),
    });
    let hub = hub(&provider);
    hub.wait_for_log(&["WARN", "keys can't be fetched", "status 500", "has_keys=false"]);
    let response = post(&hub, &key.token());
    response.problem(503);
    assert_eq!(response.header("retry-after"), Some("1"));
    let response = hub.send("GET", "/events", &[&key.token()], b"");
    assert_eq!((response.status, response.header("content-type")), (200, Some("text/event-stream")));
    assert!(response.text().contains("\nretry: ") && !response.text().contains("id: "));
    let deadline = Instant::now() + PATIENCE;
    while post(&hub, &key.token()).status != 201 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(provider.count(), 4);
    // Each change is a line, and no more.
    assert_eq!(hub.count_log("keys can't be fetched"), 1);
    hub.wait_for_log(&["INFO", "keys fetched"]);
}

#[test]
fn the_keys_that_there_were_are_good_while_the_provider_is_down() {
    let (key, unknown) = (Key::new("a"), Key::new("b"));
    let answer = set(&[&key]);
    let provider = Endpoint::start(move |_| answer.clone());
    let hub = hub(&provider);
    assert_eq!(post(&hub, &key.token()).status, 201);
    drop(provider);
    post(&hub, &unknown.token()).problem(401);
    hub.wait_for_log(&["WARN", "keys can't be fetched", "has_keys=true"]);
    let header = json!({ "alg": "EdDSA", "kid": "a", "typ": "JWT" });
    let other = token(&header, |text| key.pair.sign(text).as_ref().to_vec());
    assert_eq!(post(&hub, &other).status, 201);
}

#[test]
fn what_is_no_set_of_public_keys_is_not_taken_and_the_log_says_why() {
    let key = Key::new("a");
    let elsewhere = Endpoint::start(|_| response(200, &[], "{}"));
    let to = format!("Location: {}", elsewhere.url("/"));
    let secret = json!({ "keys": [{ "kty": "oct", "k": URL_SAFE_NO_PAD.encode([7; 32]) }] }).to_string();
    let long = format!("{}{}", json!({ "keys": [key.public()] }), " ".repeat(256 << 10));
    for (answer, reason) in [
        (response(404, &[], ""), "the status 404"),
        (response(302, &[&to], ""), "the status 302"),
        (response(200, &[], "<p>Log in"), "expected value"),
        (response(200, &[], r#"{"keys": []}"#), "no key"),
        (response(200, &[], &secret), "secrets"),
        (response(200, &[], &long), "longer than 262144 bytes"),
        (Vec::new(), "connection closed"),
    ] {
        let provider = Endpoint::start(move |_| answer.clone());
        let hub = hub(&provider);
        hub.wait_for_log(&["keys can't be fetched", reason]);
        post(&hub, &key.token()).problem(503);
    }
    assert_eq!(elsewhere.count(), 0, "no redirect is followed");
}

#[test]
fn a_provider_of_https_is_known_by_its_certificate_and_plain_http_is_for_this_machine() {
    let (key, known, unknown) = (Key::new("a"), Certificate::new(), Certificate::new());
    let answer = set(&[&key]);
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let provider = Endpoint::start_at(any, Some(&known), move |_| answer.clone());
    let start = |certificate: &Certificate| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
        command.env("SSL_CERT_FILE", certificate.file()).env_remove("SSL_CERT_DIR");
        command.args(["--listen", "127.0.0.1:0", "--journal", "memory", "--jwks-url", &provider.url("/")]);
        Hub::start_with(&mut command)
    };
    assert_eq!(post(&start(&known), &key.token()).status, 201);
    let hub = start(&unknown);
    post(&hub, &key.token()).problem(503);
    hub.wait_for_log(&["keys can't be fetched", "certificate"]);
    let output = Command::new("timeout")
        .args(["30", env!("CARGO_BIN_EXE_tabcast"), "--listen", "127.0.0.1:0"])
        .args(["--jwks-url", "http://login.example.org/keys"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("must be https"));
}

#[test]
fn keys_of_a_file_and_of_a_provider_go_together() {
    let key = Key::new("a");
    let answer = set(&[&key]);
    let provider = Endpoint::start(move |_| answer.clone());
    let (folder, secret) = (Folder::new(), [7; 32]);
    let keys = folder.file("keys.json");
    let file = json!({ "keys": [{ "kty": "oct", "k": URL_SAFE_NO_PAD.encode(secret) }] });
    std::fs::write(&keys, file.to_string()).unwrap();
    let hub = Hub::start(&["--jwks-url", &provider.url("/"), "--keys", &keys]);
    let shared = hmac::Key::new(hmac::HMAC_SHA256, &secret);
    let own = token(&json!({ "alg": "HS256" }), |text| hmac::sign(&shared, text).as_ref().to_vec());
    for token in [&own, &key.token()] {
        assert_eq!(post(&hub, token).status, 201);
    }
    // What is public is no secret.
    let public = hmac::Key::new(hmac::HMAC_SHA256, key.pair.public_key().as_ref());
    for header in [json!({ "alg": "HS256", "kid": "a" }), json!({ "alg": "HS256" })] {
        let forged = token(&header, |text| hmac::sign(&public, text).as_ref().to_vec());
        post(&hub, &forged).problem(401);
    }
}
