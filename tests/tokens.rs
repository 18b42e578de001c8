//! Keys and tokens: the commands that make them, and what a hub makes of a token, good or forged.

mod common;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Folder, Hub, Response};
use serde_json::{Value, json};
use tabcast::auth::signer::Signer;

/// Exit code, stdout and stderr of `tabcast token` with these arguments and this on stdin.
fn tabcast_token(arguments: &[&str], stdin: &str) -> (Option<i32>, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tabcast"))
        .arg("token")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads no stdin may end before all of it is written.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let [stdout, stderr] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code(), stdout, stderr)
}

/// What it prints, where it does what it is asked.
fn printed(arguments: &[&str]) -> String {
    let (code, stdout, stderr) = tabcast_token(arguments, "");
    assert_eq!(code, Some(0), "{arguments:?}: {stderr}");
    stdout.trim_end().to_owned()
}

/// A new file of keys, and what is in it.
fn keys_in(folder: &Folder, algorithm: &str) -> (String, String) {
    let path = folder.file(&format!("{algorithm}.json"));
    assert_eq!(printed(&["key", "--alg", algorithm, "--out", &path]), "");
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A token with these claims, signed by the key of this set.
fn signed(set: &str, claims: &Value) -> String {
    Signer::parse(set, None).unwrap().sign(claims).unwrap()
}

/// Publishes with this token.
fn publish(hub: &Hub, token: &str, channel: &str) -> Response {
    let headers = ["Content-Type: text/plain", &*format!("Authorization: Bearer {token}")];
    hub.send("POST", &format!("/messages?channel={channel}"), &headers, b"x")
}

/// Why the hub does not accept this token.
fn refused(hub: &Hub, token: &str) -> String {
    let response = publish(hub, token, "a");
    let problem = response.problem(401);
    assert_eq!(response.header("www-authenticate"), Some("Bearer error=\"invalid_token\""), "{problem}");
    problem["detail"].as_str().unwrap().to_owned()
}

#[test]
fn a_token_that_is_signed_may_do_what_it_says_and_is_never_in_the_log() {
    let folder = Folder::new();
    for algorithm in ["HS256", "ES256", "EdDSA"] {
        let (keys, text) = keys_in(&folder, algorithm);
        let public = folder.file("public.json");
        // The hub of a key that has a public half needs no other.
        let at_hub = if algorithm == "HS256" { keys.clone() } else { public.clone() };
        if algorithm != "HS256" {
            fs::write(&public, printed(&["key", "--public", &keys])).unwrap();
        }
        let hub = Hub::start(&["--keys", &at_hub, "--log-level", "trace"]);
        let grants = ["--subscribe", "chat.42, user.ada.>", "--publish", "chat.42"];
        let arguments = [&["sign", "--keys", &keys, "--sub", "ada", "--expires", "1h"], &grants[..]].concat();
        let token = printed(&arguments);
        let bearer = format!("Authorization: Bearer {token}");
        let mut stream = hub.watch("/events?channel=chat.42&channel=user.ada.*", &[&bearer]);
        assert_eq!(publish(&hub, &token, "chat.42").status, 201);
        assert_eq!(stream.data(), "x");
        assert_eq!(hub.send("GET", "/messages?channel=chat.42", &[&bearer], b"").status, 200);
        let problem = publish(&hub, &token, "user.ada.x").problem(403);
        assert!(problem["detail"].as_str().unwrap().contains("`publish` on the channel user.ada.x"));
        hub.send("GET", "/messages?channel=user.%3E", &[&bearer], b"").problem(403);
        hub.get("/messages?channel=chat.42").problem(401);
        // Another key of the same kind is not the hub's.
        fs::remove_file(&keys).unwrap();
        let (_, other) = keys_in(&folder, algorithm);
        let forged = signed(&other, &json!({"exp": now() + 60, "tabcast": {"publish": [">"]}}));
        assert!(refused(&hub, &forged).contains("no key has the token's `kid`"));
        hub.wait_for_log(&["no key has the token's"]);
        let secret = serde_json::from_str::<Value>(&text).unwrap()["keys"][0]["k"].clone();
        for secret in [token.split('.').next_back(), forged.split('.').next_back(), secret.as_str()] {
            let is_logged = secret.is_some_and(|secret| hub.log().iter().any(|line| line.contains(secret)));
            assert!(!is_logged, "{:?}", hub.log());
        }
        fs::remove_file(&keys).unwrap();
    }
}

/// The header and the claims, signed with a shared secret whatever the header says.
fn by_hand(header: &str, claims: &str, secret: &[u8]) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn a_forged_token_is_refused_whatever_is_forged() {
    let folder = Folder::new();
    let (keys, text) = keys_in(&folder, "HS256");
    let key = serde_json::from_str::<Value>(&text).unwrap()["keys"][0].clone();
    let (secret, id) = (URL_SAFE_NO_PAD.decode(key["k"].as_str().unwrap()).unwrap(), &key["kid"]);
    let hub = Hub::start(&["--keys", &keys]);
    let header = json!({"alg": "HS256", "kid": id}).to_string();
    let claims = json!({"sub": "ada", "exp": now() + 60, "tabcast": {"publish": ["a"]}});
    let text = claims.to_string();
    let good = by_hand(&header, &text, &secret);
    assert_eq!(publish(&hub, &good, "a").status, 201);
    let parts: Vec<_> = good.split('.').collect();
    let with = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        by_hand(&header, &claims.to_string(), &secret)
    };
    let twice = |text: &str, member: &str| format!("{},{member}}}", text.strip_suffix('}').unwrap());
    let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none"}).to_string());
    let long = with("x", "x".repeat(8 << 10).into());
    for (token, why) in [
        ("x".to_owned(), "three parts between dots, not 1"),
        (parts[..2].join("."), "not 2"),
        (format!("{good}.{}", parts[2]), "not 4"),
        (json!({"payload": parts[1], "signatures": []}).to_string(), "not 1"),
        (format!("{}.{}.", parts[0], parts[1]), "signature is wrong"),
        (format!("{good}=="), "signature is no base64url"),
        (format!("{}=.{}.{}", parts[0], parts[1], parts[2]), "header is no base64url"),
        (format!("{none}.{}.", parts[1]), "the token's `alg` is \"none\""),
        (format!("{none}.{}.{}", parts[1], parts[2]), "the token's `alg` is \"none\""),
        (by_hand(r#"{"alg":"NONE"}"#, &text, &secret), "the token's `alg` is \"NONE\""),
        (by_hand(r#"{"alg":"HS512"}"#, &text, &secret), "the token's `alg` is \"HS512\""),
        (by_hand(r#"{"alg":"RS256"}"#, &text, &secret), "and the keys are for HS256"),
        (by_hand(&header, &text, b""), "signature is wrong"),
        (by_hand(&header, &text, id.as_str().unwrap().as_bytes()), "signature is wrong"),
        (by_hand(r#"{"alg":"HS256","kid":"../../dev/null"}"#, &text, b""), "no key has the token's `kid`"),
        (by_hand(r#"{"alg":"HS256","kid":"x"}"#, &text, &secret), "no key has the token's `kid`"),
        (by_hand(r#"{"alg":"HS256","kid":["x"]}"#, &text, &secret), "`kid` must be a string"),
        (by_hand(&twice(&header, r#""alg":"HS256""#), &text, &secret), "\"alg\" is there twice"),
        (by_hand(&twice(&header, r#""crit":["x"],"x":1"#), &text, &secret), "has `crit`"),
        (by_hand(&header, &twice(&text, r#""sub":"bob""#), &secret), "\"sub\" is there twice"),
        (by_hand(&header, "foo", &secret), "claims"),
        (by_hand(&header, "{}", &secret), "has no `exp`"),
        (with("exp", (now() + 60).to_string().into()), "`exp` must be a number"),
        (with("exp", (now() - 31).into()), "the token has expired"),
        (with("nbf", (now() + 99).into()), "not good yet"),
        (with("sub", json!(["ada"])), "`sub` must be a string"),
        (with("tabcast", json!({"publish": ["a"], "all": true})), "unknown field `all`"),
        (long, "longer than 8192 bytes, the limit"),
    ] {
        let found = refused(&hub, &token);
        assert!(found.contains(why), "{token}: {found}");
    }
    for aud in [json!("anyone"), json!(["a", "b"])] {
        assert_eq!(publish(&hub, &with("aud", aud), "a").status, 201);
    }
    assert_eq!(publish(&hub, &with("exp", json!(now() as f64 + 9.5)), "a").status, 201);
}

/// The keys of the RFCs that have a public half, by their kinds.
fn keys_of_the_rfcs() -> Vec<(String, Value)> {
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rfc-signatures.json");
    let vectors: Vec<Value> = serde_json::from_slice(&fs::read(vectors).unwrap()).unwrap();
    let keys = vectors.iter().filter(|vector| vector["taken"] == true && vector["key"]["kty"] != "oct");
    keys.map(|vector| (vector["key"]["kty"].as_str().unwrap().to_owned(), vector["key"].clone())).collect()
}

#[test]
fn what_is_public_of_a_key_signs_nothing() {
    let folder = Folder::new();
    let keys = keys_of_the_rfcs();
    assert_eq!(keys.len(), 3);
    for (kind, key) in keys {
        let set = json!({"keys": [key]}).to_string();
        let (private, public) = (folder.file("private.json"), folder.file("public.json"));
        fs::write(&private, &set).unwrap();
        let half = printed(&["key", "--public", &private]);
        fs::write(&public, &half).unwrap();
        let hub = Hub::start(&["--keys", &public]);
        let claims = json!({"exp": now() + 60, "tabcast": {"publish": ["a"]}});
        assert_eq!(publish(&hub, &signed(&set, &claims), "a").status, 201);
        let numbers = [&key["n"], &key["x"]].map(|number| number.as_str().unwrap_or_default());
        let decoded = numbers.map(|number| URL_SAFE_NO_PAD.decode(number).unwrap());
        let texts = [half.as_bytes(), numbers[0].as_bytes(), numbers[1].as_bytes()];
        for secret in texts.into_iter().chain(decoded.iter().map(|number| &**number)) {
            for header in
                [r#"{"alg":"HS256"}"#, r#"{"alg":"RS256"}"#, r#"{"alg":"ES256"}"#, r#"{"alg":"EdDSA"}"#]
            {
                let found = refused(&hub, &by_hand(header, &claims.to_string(), secret));
                let is_forged =
                    found.contains("signature is wrong") || found.contains("the token's `alg` is");
                assert!(is_forged, "{kind}: {found}");
            }
        }
        // Nor does a key that the token itself brings.
        let (_, own) = (printed(&["key", "--alg", "ES256"]), json!({"alg": "ES256", "jwk": key}));
        assert!(!refused(&hub, &by_hand(&own.to_string(), &claims.to_string(), b"x")).is_empty());
    }
}

#[test]
fn audience_and_issuer_are_checked_where_the_hub_has_them() {
    let folder = Folder::new();
    let (keys, text) = keys_in(&folder, "HS256");
    let flags = ["--keys", &*keys, "--token-audience", "hub", "--token-issuer", "https://a.example"];
    let hub = Hub::start(&flags);
    let grants = json!({"publish": ["a"]});
    let claims =
        |aud: Value, iss: &str| json!({"exp": now() + 60, "aud": aud, "iss": iss, "tabcast": grants});
    for aud in [json!("hub"), json!(["other", "hub"])] {
        assert_eq!(publish(&hub, &signed(&text, &claims(aud, "https://a.example")), "a").status, 201);
    }
    let found = refused(&hub, &signed(&text, &claims(json!(["other"]), "https://a.example")));
    assert!(found.contains("`aud` does not have \"hub\""), "{found}");
    let found = refused(&hub, &signed(&text, &claims(json!("hub"), "https://b.example")));
    assert!(found.contains("`iss` is not \"https://a.example\""), "{found}");
    let sign = ["sign", "--keys", &keys, "--expires", "1m", "--publish", "a", "--audience", "hub"];
    let token = printed(&[&sign[..], &["--issuer", "https://a.example", "--id", "7"]].concat());
    assert_eq!(publish(&hub, &token, "a").status, 201);
    let check = ["check", "--keys", &*keys, "--audience", "hub", "--issuer", "https://b.example"];
    assert!(tabcast_token(&check, &token).2.contains("`iss` is not \"https://b.example\""));
}

/// Exit code and stderr of a hub with these flags that does not start.
fn not_started(flags: &[&str]) -> (Option<i32>, String) {
    // If the hub starts all the same, timeout(1) ends it, and the exit code fails the test.
    let output = Command::new("timeout")
        .args(["30", env!("CARGO_BIN_EXE_tabcast"), "--listen", "127.0.0.1:0", "--journal", "memory"])
        .args(flags)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn rules_of_the_settings_file_grant_by_other_claims() {
    let folder = Folder::new();
    let (keys, text) = keys_in(&folder, "ES256");
    let file = format!(
        "keys = '{keys}'\n[[grant]]\nwhen = {{iss = 'https://a.example', role = 'staff'}}\n\
         publish = ['user.{{sub}}.>', 'staff']\n[[grant]]\nwhen = {{role = 'ops'}}\n\
         admin = true\npublish = ['ops']\n"
    );
    let path = folder.file("tabcast.toml");
    fs::write(&path, file).unwrap();
    let hub = Hub::start(&["--config", &path]);
    let token = |sub: &str, role: Value| {
        let claims = json!({"exp": now() + 60, "iss": "https://a.example", "sub": sub, "role": role,
                            "tabcast": {"publish": ["own"]}});
        signed(&text, &claims)
    };
    let may = |token: &str, channel: &str| match publish(&hub, token, channel).status {
        201 => true,
        403 => false,
        status => panic!("{status}"),
    };
    let ada = token("ada", json!(["user", "staff"]));
    for (channel, is_granted) in
        [("user.ada.x", true), ("staff", true), ("own", true), ("user.bob.x", false), ("ops", false)]
    {
        assert_eq!(may(&ada, channel), is_granted, "{channel}");
    }
    assert!(may(&token("ada", json!("ops")), "ops") && !may(&token("ada", json!("user")), "staff"));
    // What is no plain token of a channel's name makes the rule void.
    for sub in ["*", ">", "a.b", "auth0|1"] {
        let token = token(sub, json!("staff"));
        assert!(!may(&token, "staff") && !may(&token, "user.bob.x") && may(&token, "own"), "{sub}");
    }
    // The command knows the rules too.
    let (code, stdout, _) = tabcast_token(&["check", "--config", &path], &ada);
    assert!(code == Some(0) && stdout.contains("publish    own, user.ada.>, staff\n"), "{stdout}");
}

#[test]
fn a_table_that_is_wrong_is_named_and_the_hub_does_not_start() {
    let folder = Folder::new();
    let path = folder.file("tabcast.toml");
    for (table, what) in [
        ("publsh = ['a']", "`publsh` is unknown: the keys are when, publish,"),
        ("publish = ['a*']", "`publish`: a pattern must be"),
        ("publish = ['{sub']", "a brace is not closed"),
        ("when = {role = 'x'}", "it grants nothing"),
        ("admin = true\nwhen = 1", "`when` must be a table"),
    ] {
        fs::write(&path, format!("[[grant]]\nadmin = true\n[[grant]]\n{table}\n")).unwrap();
        let (code, stderr) = not_started(&["--config", &path]);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains("[[grant]] number 2: ") && stderr.contains(what), "{table}: {stderr}");
    }
    fs::write(&path, "[[grant]]\nadmin = true\n".repeat(1_001)).unwrap();
    let (_, stderr) = not_started(&["--config", &path]);
    assert!(stderr.contains("1001 tables [[grant]], the limit is 1000"), "{stderr}");
}

#[test]
fn keys_that_others_may_read_are_warned_of_and_wrong_ones_are_named() {
    let folder = Folder::new();
    let (keys, _) = keys_in(&folder, "ES256");
    let public = folder.file("public.json");
    fs::write(&public, printed(&["key", "--public", &keys])).unwrap();
    let warning = "others may read the keys";
    for path in [&keys, &public] {
        let hub = Hub::start(&["--keys", path]);
        assert_eq!((hub.count_log("keys read keys=1"), hub.count_log(warning)), (1, 0), "{:?}", hub.log());
    }
    for mode in [0o640, 0o604] {
        fs::set_permissions(&keys, Permissions::from_mode(mode)).unwrap();
        let hub = Hub::start(&["--keys", &keys]);
        let line = hub.wait_for_log(&[warning, &keys]);
        assert!(line.contains(&format!("mode={mode:o}")), "{line}");
    }
    let (_, text) = keys_in(&folder, "EdDSA");
    let mut set: Value = serde_json::from_str(&text).unwrap();
    set["keys"].as_array_mut().unwrap().push(json!({"kty": "AKP"}));
    fs::write(&public, set.to_string()).unwrap();
    Hub::start(&["--keys", &public]).wait_for_log(&["WARN", "a key is passed over", "key 2", "AKP"]);
    for (text, what) in [
        ("", "EOF"),
        (r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#, "its secret has 6 bytes, the least is 32"),
        (r#"{"keys": []}"#, "no key for signatures"),
    ] {
        fs::write(&public, text).unwrap();
        let (code, stderr) = not_started(&["--keys", &public]);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(stderr.contains(&format!("--keys {public}: ")) && stderr.contains(what), "{stderr}");
    }
}

#[test]
fn a_key_is_made_for_its_owner_alone_and_never_over_another() {
    let folder = Folder::new();
    let (path, text) = keys_in(&folder, "HS256");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, _, stderr) = tabcast_token(&["key", "--out", &path], "");
    assert!(code == Some(1) && stderr.contains(&path) && stderr.contains("exists"), "{stderr}");
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    let key = |text: &str| serde_json::from_str::<Value>(text).unwrap()["keys"][0].clone();
    let (first, second) = (key(&printed(&["key"])), key(&printed(&["key"])));
    assert!(first["kty"] == "oct" && first["alg"] == "HS256" && first["kid"].is_string(), "{first}");
    assert!(first["k"] != second["k"] && first["kid"] != second["kid"]);
    let (code, stdout, stderr) = tabcast_token(&["key", "--public", &path], "");
    assert!(code == Some(1) && stdout.is_empty() && stderr.contains("no public half"), "{stderr}");
    let (private, _) = keys_in(&folder, "EdDSA");
    let public = key(&printed(&["key", "--public", &private]));
    let members: Vec<_> = public.as_object().unwrap().keys().cloned().collect();
    assert_eq!(members, ["alg", "crv", "kid", "kty", "use", "x"]);
    assert_eq!(tabcast_token(&["key", "--alg", "none"], "").0, Some(2));
}

#[test]
fn what_no_hub_would_take_is_not_signed() {
    let folder = Folder::new();
    let (keys, _) = keys_in(&folder, "ES256");
    let public = folder.file("public.json");
    fs::write(&public, printed(&["key", "--public", &keys])).unwrap();
    let many = vec!["a"; 1_001].join(",");
    for (arguments, what) in [
        (&["--keys", &*keys, "--publish", "a*"][..], "`publish`: a pattern must be"),
        (&["--keys", &keys, "--publish", &many], "limit is 1000"),
        (&["--keys", &keys, "--kid", "x"], "no key has the id \"x\""),
        (&["--keys", &public], "no key has a secret half"),
        (&["--keys", "nowhere.json"], "nowhere.json: No such file"),
        (&[], "name the file of keys with --keys"),
    ] {
        let (code, stdout, stderr) = tabcast_token(&[&["sign", "--expires", "1h"], arguments].concat(), "");
        assert!(code == Some(1) && stdout.is_empty() && stderr.contains(what), "{arguments:?}: {stderr}");
    }
    assert_eq!(tabcast_token(&["sign", "--keys", &keys], "").0, Some(2));
    let long = "x".repeat(9_000);
    let (_, _, stderr) = tabcast_token(&["sign", "--keys", &keys, "--expires", "1h", "--sub", &long], "");
    assert!(stderr.contains("longer than 8192 bytes, the limit"), "{stderr}");
}

#[test]
fn check_says_what_a_token_holds_or_why_it_is_refused() {
    let folder = Folder::new();
    let (keys, text) = keys_in(&folder, "ES256");
    let id = serde_json::from_str::<Value>(&text).unwrap()["keys"][0]["kid"].as_str().unwrap().to_owned();
    let check = |token: &str| tabcast_token(&["check", "--keys", &keys], token);
    let claims = json!({
        "sub": "a\u{1b}da", "jti": "7", "iat": 1_000_000_000, "exp": 32_503_680_000u64,
        "tabcast": {"subscribe": ["chat.42", "user.>"], "presence": [], "admin": true},
    });
    let (code, stdout, stderr) = check(&format!("{}\n", signed(&text, &claims)));
    assert_eq!((code, &*stderr), (Some(0), ""));
    for line in [
        "The token is good.",
        "algorithm  ES256",
        &format!("key        {id}"),
        "subject    a\\u{1b}da",
        "id         7",
        "issued     2001-09-09T01:46:40Z (",
        "expires    3000-01-01T00:00:00Z (in ",
        "subscribe  chat.42, user.>",
        "history    chat.42, user.>",
        "presence   nothing",
        "publish    nothing",
        "admin      yes",
    ] {
        assert!(stdout.lines().any(|printed| printed.starts_with(line)), "{line} in\n{stdout}");
    }
    let (_, other) = keys_in(&folder, "EdDSA");
    let expired = json!({"exp": 1_000_000_000, "sub": "ada"});
    let same_id = other.replace(&other[other.find("kid").unwrap() + 7..][..16], &id);
    for (token, why) in [
        (signed(&text, &expired), vec!["the token has expired at 2001-09-09T01:46:40Z (", " ago)"]),
        (signed(&other, &expired), vec!["no key has the token's `kid`", "alg \"EdDSA\"", "\"sub\":\"ada\""]),
        (signed(&same_id, &expired), vec!["`alg` is \"EdDSA\", and its key's is ES256"]),
        (signed(&text, &json!({"exp": "1"})), vec!["`exp` must be a number", "{\"exp\":\"1\"}"]),
        ("a.b".to_owned(), vec!["three parts between dots, not 2"]),
        ("x".repeat(9_000), vec!["longer than 8192 bytes, the limit"]),
        (" \n".to_owned(), vec!["there is no token on stdin"]),
    ] {
        let (code, stdout, stderr) = check(&token);
        assert!(code == Some(1) && stdout.is_empty(), "{stdout}");
        assert!(why.iter().all(|part| stderr.contains(part)), "{why:?} in {stderr}");
    }
    assert!(tabcast_token(&["check"], "x").2.contains("with --keys, or that of static tokens with --tokens"));
}

#[test]
fn a_static_token_is_made_kept_used_and_checked() {
    let folder = Folder::new();
    let new = |arguments: &[&str]| {
        let (code, line, stderr) = tabcast_token(&[&["new"], arguments].concat(), "");
        assert_eq!(code, Some(0), "{stderr}");
        (stderr.lines().last().unwrap().to_owned(), line)
    };
    let (secret, line) =
        new(&["--name", "ci", "--publish", "build.>", "--history", "", "--expires", "30days"]);
    assert!(secret.starts_with("tct_") && !line.contains(&secret), "{line}");
    assert!(line.starts_with("ci ") && line.contains(" publish=build.> history= expires=20"), "{line}");
    let tokens = folder.file("tokens");
    fs::write(&tokens, line).unwrap();
    let hub = Hub::start(&["--tokens", &tokens]);
    assert_eq!(publish(&hub, &secret, "build.1").status, 201);
    publish(&hub, &secret, "a").problem(403);
    let check = |token: &str| tabcast_token(&["check", "--tokens", &tokens], token);
    let (code, stdout, _) = check(&secret);
    assert!(code == Some(0) && stdout.contains("name       ci\n") && stdout.contains("publish    build.>\n"));
    assert!(stdout.contains("(in 29days ") || stdout.contains("(in 30days)"), "{stdout}");
    let (code, stdout, stderr) = check(&secret[..50]);
    assert!(code == Some(1) && stdout.is_empty() && stderr.contains("cut or mistyped"), "{stderr}");
    let (other, line) = new(&["--name", "x", "--admin"]);
    assert!(check(&other).2.contains("the hub has no such token") && line.ends_with(" admin\n"), "{line}");
    for (arguments, what) in [
        (["--name", "#x", "--publish", "a"], "can't be a name"),
        (["--name", "a b", "--publish", "a"], "can't be a name"),
        (["--name", "a", "--publish", "a*"], "`publish`: a pattern"),
    ] {
        let (code, stdout, stderr) = tabcast_token(&[&["new"], &arguments[..]].concat(), "");
        assert!(code == Some(1) && stdout.is_empty() && stderr.contains(what), "{arguments:?}: {stderr}");
    }
}
