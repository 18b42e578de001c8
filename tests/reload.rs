//! New settings for a hub that serves: SIGHUP has it read them again, and files of tokens are followed.

mod common;

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use common::{Folder, Hub};

/// A hub with a settings file, and no other settings than are in it.
struct Site {
    folder: Folder,
    hub: Hub,
    reloads: usize,
}

const ANYWHERE: &str = "listen = '127.0.0.1:0'\njournal = 'memory'\n";

impl Site {
    /// A hub whose file has these settings, and where it listens and keeps messages.
    fn new(settings: &str) -> Site {
        let folder = Folder::new();
        Site::with(folder, ANYWHERE, settings)
    }

    fn with(folder: Folder, anywhere: &str, settings: &str) -> Site {
        let path = folder.file("tabcast.toml");
        fs::write(&path, format!("{anywhere}{settings}")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
        // An empty variable counts as not set.
        command.envs([("TABCAST_PUBLISH_RATE", ""), ("TABCAST_CONNECT_RATE", "")]);
        let hub = Hub::start_with(command.args(["--config", &path]));
        Site { folder, hub, reloads: 0 }
    }

    /// Writes these settings into the file, and has the hub read it.
    fn hang_up(&mut self, anywhere: &str, settings: &str) {
        fs::write(self.folder.file("tabcast.toml"), format!("{anywhere}{settings}")).unwrap();
        self.reloads += 1;
        self.hub.signal("HUP");
        self.hub.wait_for_logs(&["reading the settings again"], self.reloads);
    }

    /// The same, once they are in force.
    fn change(&mut self, settings: &str) {
        let before = self.hub.count_log("settings are in force");
        self.hang_up(ANYWHERE, settings);
        self.hub.wait_for_logs(&["settings are in force"], before + 1);
    }

    /// The same with settings that are refused for this reason.
    fn fail(&mut self, settings: &str, reason: &str) {
        self.fail_anywhere(ANYWHERE, settings, reason);
    }

    fn fail_anywhere(&mut self, anywhere: &str, settings: &str, reason: &str) {
        const REFUSED: &str = "settings not changed, all of the old stay in force";
        let (before, refused) = (self.hub.count_log("settings are in force"), self.hub.count_log(REFUSED));
        self.hang_up(anywhere, settings);
        let lines = self.hub.wait_for_logs(&["ERROR", REFUSED], refused + 1);
        assert!(lines[refused].contains(reason), "{}", lines[refused]);
        assert_eq!(self.hub.count_log("settings are in force"), before);
    }

    fn max_body(&self) -> u64 {
        self.hub.post("", "text/plain", vec![b'x'; 9_000]).problem(413)["limit"].as_u64().unwrap()
    }
}

/// A token, and the line that grants it everything.
fn token(name: &str) -> (String, String) {
    let (secret, hash) = tabcast::auth::tokens::new().unwrap();
    (secret, format!("{name} {hash} all\n"))
}

/// The status of a publish with this token.
fn publishes(hub: &Hub, token: &str) -> u16 {
    let headers = [&*format!("Authorization: Bearer {token}"), "Content-Type: text/plain"];
    hub.send("POST", "/messages", &headers, b"x").status
}

#[test]
fn limits_of_requests_follow_and_streams_go_on() {
    let mut site = Site::new("max-body = '1KiB'");
    let mut stream = site.hub.watch("/events", &[]);
    assert_eq!(site.max_body(), 1024);
    let origin = ["Origin: https://a.example", "Content-Type: text/plain"];
    assert_eq!(site.hub.send("POST", "/messages", &origin, b"x").status, 403);
    assert_eq!(site.hub.send("GET", "/", &["Host: a.example"], b"").status, 403);

    site.change("max-body = '2KiB'\nallow-origin = 'https://a.example'\nallow-host = 'a.example'");
    site.hub.wait_for_log(&["INFO", "setting changed", "name=\"max-body\"", "value=\"2KiB\"", "file "]);
    site.hub.wait_for_log(&["setting changed", "name=\"allow-origin\""]);
    assert_eq!(site.hub.count_log("setting changed"), 3);
    assert_eq!(site.max_body(), 2048);
    let allowed = site.hub.send("POST", "/messages", &origin, b"from the page");
    assert_eq!(allowed.status, 201);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(site.hub.send("GET", "/", &["Host: a.example"], b"").status, 200);
    assert_eq!(stream.data(), "from the page");

    site.change("");
    site.hub.wait_for_log(&["setting changed", "name=\"allow-host\"", "value=\"not set\"", "default"]);
    assert_eq!(site.hub.send("GET", "/", &["Host: a.example"], b"").status, 403);
    site.change("");
    assert_eq!(site.hub.count_log("setting changed"), 6);
}

#[test]
fn limits_of_subscribers_readers_and_connections_follow_and_those_who_are_there_stay() {
    let mut site = Site::new("max-subscribers = 1\nmax-readers = 0");
    let mut first = site.hub.watch("/events", &[]);
    assert!(site.hub.get("/events").text().contains("tabcast:full"));
    site.hub.get("/messages").problem(503);
    site.change("max-subscribers-per-address = 2\nmax-readers-per-address = 0");
    let mut second = site.hub.watch("/events", &[]);
    assert!(site.hub.get("/events").text().contains("the limit of subscribers from one address, 2,"));
    site.hub.get("/messages").problem(429);
    site.change("max-connections-per-address = 1");
    site.hub.publish_from([127, 0, 0, 9], "k", "for both");
    assert_eq!([first.data(), second.data()], ["for both", "for both"]);
    assert_eq!(site.hub.raw("GET /messages HTTP/1.1\r\nHost: localhost\r\n\r\n").status, 0);
    site.hub.wait_for_log(&["connection closed", "the limit of connections from one address, 1,"]);
}

#[test]
fn rates_follow_and_what_is_used_up_of_one_that_stays_is_not_forgotten() {
    let mut site = Site::new("publish-rate = '1/h'\nconnect-rate = '1/h'");
    (0..10).for_each(|_| drop(site.hub.publish("x")));
    (0..10).for_each(|_| drop(site.hub.history("")));
    site.change("publish-rate = '2/h'\nconnect-rate = '1/h'");
    (0..20).for_each(|_| drop(site.hub.publish("x")));
    assert_eq!(site.hub.post("", "text/plain", "x").problem(429)["limit"], 2);
    site.hub.get("/messages").problem(429);
    site.change("publish-rate = '2/h'");
    site.hub.post("", "text/plain", "x").problem(429);
    assert_eq!(site.hub.history("").len(), 30);
}

#[test]
fn tokens_follow_and_so_does_what_is_granted_without_one() {
    let folder = Folder::new();
    let tokens = folder.file("tokens");
    let ((ada, ada_line), (bob, bob_line)) = (token("ada"), token("bob"));
    fs::write(&tokens, &ada_line).unwrap();
    let settings = format!("tokens = '{tokens}'\n");
    let mut site = Site::with(folder, ANYWHERE, &settings);
    assert_eq!((publishes(&site.hub, &ada), publishes(&site.hub, &bob)), (201, 401));
    assert_eq!(site.hub.get("/messages").status, 401);
    fs::write(&tokens, &bob_line).unwrap();
    site.change(&format!("{settings}anonymous = 'subscribe=>'"));
    assert_eq!((publishes(&site.hub, &ada), publishes(&site.hub, &bob)), (401, 201));
    assert_eq!(site.hub.get("/messages").status, 200);
    assert_eq!(site.hub.post("", "text/plain", "x").status, 401);
}

/// What `tabcast token` prints with these arguments.
fn tabcast_token(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_tabcast")).arg("token").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn keys_and_what_is_granted_by_other_claims_follow() {
    let folder = Folder::new();
    let keys = folder.file("keys.json");
    fs::write(&keys, tabcast_token(&["key"])).unwrap();
    let sign = || tabcast_token(&["sign", "--keys", &keys, "--sub", "ada", "--expires", "1h"]);
    let first = sign();
    let settings = format!("keys = '{keys}'\n");
    let mut site = Site::with(folder, ANYWHERE, &settings);
    assert_eq!(publishes(&site.hub, first.trim()), 403);
    let granted = format!("{settings}[[grant]]\nwhen = {{ sub = 'ada' }}\npublish = ['main']");
    site.change(&granted);
    site.hub.wait_for_log(&["INFO", "setting changed", "name=\"[[grant]]\"", "ada"]);
    assert_eq!(publishes(&site.hub, first.trim()), 201);
    site.fail(&format!("{settings}[[grant]]\nwhen = {{ sub = 'ada' }}"), "[[grant]] number 1");
    assert_eq!(publishes(&site.hub, first.trim()), 201);
    fs::write(&keys, tabcast_token(&["key"])).unwrap();
    let second = sign();
    site.change(&granted);
    assert_eq!((publishes(&site.hub, first.trim()), publishes(&site.hub, second.trim())), (401, 201));
    assert_eq!((site.hub.count_log("setting changed"), site.hub.count_log("needs a restart")), (1, 0));
}

#[test]
fn on_an_error_all_of_the_old_stays() {
    let folder = Folder::new();
    let tokens = folder.file("tokens");
    let (ada, line) = token("ada");
    fs::write(&tokens, &line).unwrap();
    let settings = format!("tokens = '{tokens}'\nanonymous = 'all'\n");
    let mut site = Site::with(folder, ANYWHERE, &format!("{settings}max-body = '1KiB'"));
    site.fail("max-body = 'much'", "'much' for '--max-body <SIZE>'");
    site.fail("max-bdy = '2KiB'", "`max-bdy` is unknown");
    site.fail("[[channel]]\nmatch = 7", "number 1");
    site.fail("max-body = '1GiB'", "--max-memory must be at least 20 times --max-body");
    // The new memory is not in force, and the old is too little.
    site.fail("max-body = '1GiB'\nmax-memory = '30GiB'", "--max-memory must be at least 20 times --max-body");
    site.fail("retry-min = '9s'", "--retry-min must not be more than --retry-max");
    fs::write(&tokens, "ada 12").unwrap();
    site.fail(&format!("{settings}max-body = '2KiB'"), "line 1");
    fs::remove_file(&tokens).unwrap();
    site.fail(&format!("{settings}max-body = '2KiB'"), "No such file");
    assert_eq!(site.max_body(), 1024);
    assert_eq!(publishes(&site.hub, &ada), 201);
}

#[test]
fn rules_for_channels_count_at_once_in_both_journals() {
    for in_file in [false, true] {
        let folder = Folder::new();
        let place = if in_file { folder.file("tabcast.db") } else { "memory".to_owned() };
        let anywhere = format!("listen = '127.0.0.1:0'\njournal = '{place}'\n");
        let mut site = Site::with(folder, &anywhere, "");
        for number in 0..5 {
            site.hub.publish_to("a", &number.to_string());
            site.hub.publish_to("b", &number.to_string());
        }
        site.hang_up(&anywhere, "[[channel]]\nmatch = 'a'\nmessages = 2");
        site.hub.wait_for_log(&["INFO", "setting changed", "name=\"[[channel]]\""]);
        site.hub.wait_for_logs(&["settings are in force"], 1);
        let kept = |site: &Site, channel: &str| site.hub.history_data(&format!("?channel={channel}"));
        // A file is looked at by its own thread.
        let deadline = Instant::now() + common::PATIENCE;
        while kept(&site, "a") != ["3", "4"] {
            assert!(Instant::now() < deadline, "{:?}", kept(&site, "a"));
        }
        assert_eq!(kept(&site, "b").len(), 5);
        site.hub.publish_to("a", "5");
        assert_eq!(kept(&site, "a"), ["4", "5"]);
        site.hang_up(&anywhere, "[[channel]]\nmatch = 'b'\nage = '1s'");
        site.hub.wait_for_logs(&["settings are in force"], 2);
        site.hub.publish_to("a", "6");
        let deadline = Instant::now() + common::PATIENCE;
        while !kept(&site, "b").is_empty() {
            assert!(Instant::now() < deadline, "{:?}", kept(&site, "b"));
        }
        assert_eq!(kept(&site, "a"), ["4", "5", "6"]);
    }
}

#[test]
fn what_can_not_change_is_named_and_the_old_value_stays() {
    let mut site = Site::new("keep-alive = '1h'\nidle-timeout = '10m'\nreplay-page = 3");
    site.change(
        "jwks-url = 'https://127.0.0.1:1/jwks.json'\nkeep-alive = '2h'\nidle-timeout = '10m'\n\
         replay-page = 4\nmax-connections = 9",
    );
    for name in ["jwks-url", "keep-alive", "replay-page", "max-connections"] {
        site.hub.wait_for_log(&["WARN", "setting needs a restart", &format!("name=\"{name}\"")]);
    }
    assert_eq!((site.hub.count_log("needs a restart"), site.hub.count_log("setting changed")), (4, 0));
    assert_eq!(site.hub.get("/messages?limit=4").problem(422)["limit"], 3);
    // They are named as long as the file has them.
    site.change("idle-timeout = '10m'\nkeep-alive = '1h'\nreplay-page = 4");
    assert_eq!(site.hub.count_log("needs a restart"), 5);
}

#[test]
fn a_hub_that_others_reach_does_not_become_open() {
    let anywhere = "listen = '0.0.0.0:0'\njournal = 'memory'\n";
    let mut site = Site::with(Folder::new(), anywhere, "anonymous = 'subscribe=>'\nmax-body = '1KiB'");
    site.hub.address = SocketAddr::from(([127, 0, 0, 1], site.hub.address.port()));
    site.fail_anywhere(anywhere, "max-body = '2KiB'", "--anonymous all");
    assert_eq!(site.hub.post("", "text/plain", "x").status, 401);
    assert_eq!(site.hub.get("/messages").status, 200);
}

#[test]
fn the_logs_level_and_filter_follow() {
    let mut site = Site::new("");
    site.hub.post("", "application/json", "{").problem(400);
    site.change("log-level = 'debug'");
    site.hub.post("", "application/json", "{").problem(400);
    site.hub.wait_for_log(&["DEBUG request refused"]);
    assert_eq!(site.hub.count_log("request refused"), 1);
    site.change("log = 'info,tabcast::api=off'");
    site.hub.publish("not in the log");
    let _stream = site.hub.watch("/events", &[]);
    site.hub.wait_for_log(&["subscriber connected"]);
    assert_eq!(site.hub.count_log("message published"), 0);
}

/// Waits for a line of the log with this part, for longer than the hub takes to look at its files.
fn wait_for_a_look(hub: &Hub, part: &str, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(90);
    while hub.count_log(part) < count {
        assert!(Instant::now() < deadline, "no {part}");
        sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_changed_file_of_tokens_is_read_without_a_signal_and_a_broken_one_changes_nothing() {
    let ((ada, ada_line), (bob, bob_line)) = (token("ada"), token("bob"));
    let hub = |folder: &Folder| {
        fs::write(folder.file("tokens"), &ada_line).unwrap();
        Hub::start(&["--tokens", &folder.file("tokens")])
    };
    let (folder, broken) = (Folder::new(), Folder::new());
    let (changed_hub, broken_hub) = (hub(&folder), hub(&broken));
    fs::write(folder.file("new"), &bob_line).unwrap();
    fs::rename(folder.file("new"), folder.file("tokens")).unwrap();
    fs::write(broken.file("tokens"), "ada 12").unwrap();
    wait_for_a_look(&changed_hub, "static tokens read", 2);
    // The line comes just before the tokens are in force.
    let deadline = Instant::now() + Duration::from_secs(30);
    while publishes(&changed_hub, &bob) != 201 {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(publishes(&changed_hub, &ada), 401);
    wait_for_a_look(&broken_hub, "files not read again, the old ones stay in force", 1);
    assert_eq!(publishes(&broken_hub, &ada), 201);
}
