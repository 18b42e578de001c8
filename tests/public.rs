//! `--public`: a folder of one's own at `/`. What of it is served and how, what never is, and what of the
//! hub's own goes before.

mod browser;
mod common;

use std::fs;
use std::io::{BufReader, Write};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, SystemTime};

use browser::{Browser, ENTER};
use common::{Folder, Hub, Response, request};
use serde_json::json;

/// A folder with these files, and a hub that serves it.
fn serve(files: &[(&str, &str)], flags: &[&str]) -> (Folder, Hub) {
    let folder = Folder::new();
    for (name, text) in files {
        let file = folder.path.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    let hub = Hub::start(&[&["--public", &folder.file("")], flags].concat());
    (folder, hub)
}

fn assert_nothing(hub: &Hub, path: &str) {
    let problem = hub.get(path).problem(404);
    assert_eq!(problem["detail"], "there is nothing at this path", "{path}");
}

#[test]
fn a_folders_files_are_served_with_their_types_for_a_browser_to_ask_for_changes() {
    let (_folder, hub) = serve(
        &[
            ("index.html", "<p>Hé</p>"),
            ("app.js", "1"),
            ("icon.svg", "<svg/>"),
            ("of mine/é+1.css", "a{}"),
            ("data", "x"),
        ],
        &[],
    );
    for (path, content_type, body) in [
        ("/", "text/html; charset=utf-8", "<p>Hé</p>"),
        ("/index.html?v=1", "text/html; charset=utf-8", "<p>Hé</p>"),
        ("/app.js", "text/javascript; charset=utf-8", "1"),
        ("/icon.svg", "image/svg+xml", "<svg/>"),
        ("/of%20mine/%C3%A9+1.css", "text/css; charset=utf-8", "a{}"),
        ("/data", "application/octet-stream", "x"),
    ] {
        let file = hub.get(path);
        assert_eq!((file.status, file.text()), (200, body), "{path}");
        assert_eq!(file.header("content-type"), Some(content_type));
        assert_eq!(file.header("cache-control"), Some("no-cache"));
        assert_eq!(file.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(file.header("content-length"), Some(&*body.len().to_string()));
        // Whoever writes a page says what it may do.
        assert_eq!(file.header("content-security-policy"), None);
        assert_eq!(file.header("x-frame-options"), None);
        let head = hub.send("HEAD", path, &[], b"");
        assert_eq!((head.status, head.body.len()), (200, 0));
        for name in ["content-type", "content-length", "etag", "last-modified", "cache-control"] {
            assert_eq!(head.header(name), file.header(name), "{name}");
            assert!(head.header(name).is_some(), "{name}");
        }
        for (name, condition) in [("etag", "If-None-Match"), ("last-modified", "If-Modified-Since")] {
            let known = format!("{condition}: {}", file.header(name).unwrap());
            let again = hub.send("GET", path, &[&known], b"");
            assert_eq!((again.status, again.body.len()), (304, 0), "{known}");
        }
    }
}

#[test]
fn a_part_of_a_file_is_served_to_whoever_asks_for_that() {
    let long: String = (0..50_000).map(|number| format!("{number:06}")).collect();
    let (_folder, hub) = serve(&[("long", &long)], &[]);
    assert!(hub.get("/long").text() == long);
    let old = hub.raw("GET /long HTTP/1.0\r\n\r\n");
    assert!(old.header("content-length") == Some("300000") && old.text() == long);
    let part = hub.send("GET", "/long", &["Range: bytes=60000-60011"], b"");
    assert_eq!((part.status, part.text()), (206, "010000010001"));
    assert_eq!(part.header("content-range"), Some("bytes 60000-60011/300000"));
    assert_eq!(hub.send("GET", "/long", &["Range: bytes=300000-"], b"").status, 416);
}

#[test]
fn a_compressed_file_is_sent_for_the_one_that_it_is_beside_unless_it_is_older() {
    let (folder, hub) =
        serve(&[("a.txt", "plain"), ("a.txt.gz", "zipped"), ("b.txt", "new"), ("b.txt.gz", "old")], &[]);
    let gzip = ["Accept-Encoding: gzip"];
    let old = SystemTime::now() - Duration::from_secs(60);
    fs::File::open(folder.path.join("b.txt.gz")).unwrap().set_modified(old).unwrap();
    let zipped = hub.send("GET", "/a.txt", &gzip, b"");
    assert_eq!((zipped.text(), zipped.header("content-encoding")), ("zipped", Some("gzip")));
    assert_eq!(zipped.header("content-type"), Some("text/plain; charset=utf-8"));
    let plain = hub.get("/a.txt");
    assert_eq!((plain.text(), plain.header("content-encoding")), ("plain", None));
    assert_eq!(
        (plain.header("vary"), zipped.header("vary")),
        (Some("accept-encoding"), plain.header("vary"))
    );
    let new = hub.send("GET", "/b.txt", &gzip, b"");
    assert_eq!((new.text(), new.header("content-encoding")), ("new", None));
}

#[test]
fn a_folder_is_its_index_and_is_led_to_by_a_relative_url_and_never_listed() {
    let (_folder, hub) = serve(&[("a b/c:d/index.html", "in"), ("empty/x", "")], &[]);
    assert_eq!(hub.get("/a%20b/c:d/").text(), "in");
    let response = hub.get("/a%20b/c:d?x=/y");
    assert_eq!((response.status, response.header("location")), (307, Some("./c:d/?x=/y")));
    for path in ["/", "/empty/", "/a%20b/", "/a%20b/c:d/index.html/", "/none/", "/none"] {
        assert_nothing(&hub, path);
    }
}

#[test]
fn what_is_hidden_or_outside_of_the_folder_is_not_there() {
    let outside = Folder::new();
    fs::write(outside.path.join("secret"), "outside").unwrap();
    let (folder, hub) = serve(
        &[(".env", "x"), (".git/config", "x"), ("a/b.txt", "in"), ("a/.x/y", "x"), ("c.txt", "plain")],
        &[],
    );
    let link = |to: &std::path::Path, name: &str| symlink(to, folder.path.join(name)).unwrap();
    link(&outside.path.join("secret"), "secret");
    link(&outside.path, "outside");
    link("..".as_ref(), "up");
    link(".env".as_ref(), "env");
    link(".git".as_ref(), "git");
    link("loop".as_ref(), "loop");
    link(&outside.path.join("secret"), "c.txt.gz");
    link("a/b.txt".as_ref(), "link");
    link("a".as_ref(), "folder");
    assert!(Command::new("mkfifo").arg(folder.path.join("pipe")).status().unwrap().success());
    let name = folder.path.file_name().unwrap().to_str().unwrap();
    for path in [
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/a/.x/y",
        "/a/../c.txt",
        "/a/%2e%2e/c.txt",
        "/a%2Fb.txt",
        "/a%2fb.txt",
        "/a//b.txt",
        "//a/b.txt",
        "/./c.txt",
        "/a/b.txt/",
        "/a\\b.txt",
        "/c.txt%00",
        "/secret",
        "/outside/secret",
        "/outside/",
        "/outside",
        "/up",
        &format!("/../{name}/c.txt"),
        &format!("/%2e%2e/{name}/c.txt"),
        "/env",
        "/git/config",
        "/loop",
        // Whoever reads a pipe waits for ever.
        "/pipe",
        &format!("/{}", "x".repeat(5_000)),
    ] {
        assert_nothing(&hub, path);
    }
    for path in ["/link", "/folder/b.txt", "/a/b%2Etxt"] {
        assert_eq!(hub.get(path).text(), "in", "{path}");
    }
    assert_eq!(hub.send("GET", "/c.txt", &["Accept-Encoding: gzip"], b"").text(), "plain");
}

#[test]
fn a_path_without_a_file_is_answered_with_the_folders_own_page_if_it_has_one() {
    let (folder, hub) = serve(&[("404.html", "<p>Gone</p>"), ("a", "")], &[]);
    let tag = hub.get("/404.html").header("etag").unwrap().to_owned();
    for headers in [vec![], vec![format!("If-None-Match: {tag}")], vec!["Range: bytes=0-1".to_owned()]] {
        let headers: Vec<_> = headers.iter().map(String::as_str).collect();
        let page = hub.send("GET", "/nothing", &headers, b"");
        assert_eq!((page.status, page.text()), (404, "<p>Gone</p>"));
        assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    }
    // For who reads, and not for who asks for something else.
    hub.send("PUT", "/nothing", &[], b"").problem(404);
    let refused = hub.send("PUT", "/a", &[], b"");
    refused.problem(405);
    assert_eq!(refused.header("allow"), Some("GET, HEAD"));
    fs::remove_file(folder.path.join("404.html")).unwrap();
    assert_nothing(&hub, "/nothing");
}

#[test]
fn what_is_the_hubs_own_goes_before_a_file_of_the_same_name() {
    let own = ["messages", "events", "tabcast.js", "tabcast.src.js", "tabcast.d.ts", "io.js", "hub/app.js"];
    let (_folder, hub) = serve(&own.map(|name| (name, "of the folder")), &[]);
    for path in own {
        let response = hub.send("HEAD", &format!("/{path}"), &[], b"");
        assert_eq!(response.status, 200);
        assert_ne!(response.header("content-length"), Some("13"), "{path}");
    }
    hub.post("/x", "text/plain", "x").problem(405);
}

#[test]
fn the_hubs_page_is_below_hub_with_all_that_it_needs_whether_or_not_there_is_a_folder() {
    let (_folder, with) = serve(&[("index.html", "mine")], &[]);
    let without = Hub::start(&[]);
    assert_eq!(with.get("/").text(), "mine");
    for path in ["/app.css", "/app.js", "/icon.svg"] {
        assert_nothing(&with, path);
    }
    for hub in [&with, &without] {
        for path in ["", "app.css", "app.js", "icon.svg", "tabcast.js", "messages?last=1"] {
            let below = hub.get(&format!("/hub/{path}"));
            assert_eq!((below.status, &below.body), (200, &without.get(&format!("/{path}")).body), "{path}");
        }
        for (path, location) in [("/hub", "./hub/"), ("/hub?x", "./hub/")] {
            assert_eq!(hub.get(path).header("location"), Some(location));
        }
        for path in ["/hub/nothing", "/hubs", "/hub/index.html", "/hub//"] {
            assert_nothing(hub, path);
        }
        assert_eq!(hub.send("PUT", "/hub/app.js", &[], b"").status, 405);
    }
}

#[test]
fn the_hubs_page_works_below_hub() {
    let (_folder, hub) = serve(&[("index.html", "mine")], &[]);
    let browser = Browser::start();
    let tab = browser.open(&format!("http://{}/hub/", hub.address));
    tab.wait_for("document.getElementById('status').dataset.state === 'live'");
    tab.fill("#data", "from the page");
    tab.press("#data", ENTER);
    tab.wait_for("document.querySelector('#messages .data')?.textContent === 'from the page'");
    assert_eq!(hub.newest()["data"], "from the page");
}

#[test]
fn everybody_may_have_the_files_also_where_nobody_may_do_anything() {
    let (_folder, hub) = serve(&[("index.html", "mine")], &["--anonymous", "publish=nobody"]);
    assert_eq!(hub.get("/").text(), "mine");
    hub.get("/messages").problem(401);
}

#[test]
fn a_folder_that_is_not_there_ends_the_start_with_the_reason() {
    let folder = Folder::new();
    fs::write(folder.path.join("file"), "").unwrap();
    for (name, reason) in [("none", "No such file"), ("file", "Not a directory")] {
        let path = folder.file(name);
        let output = Command::new("timeout")
            .args(["30", env!("CARGO_BIN_EXE_tabcast"), "--listen", "127.0.0.1:0", "--journal", "memory"])
            .args(["--public", &path])
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains(&format!("can't serve the folder {path}: {reason}")), "{error}");
    }
}

#[test]
fn who_takes_nothing_of_a_file_counts_as_a_reader_until_it_goes() {
    let folder = Folder::new();
    fs::write(folder.path.join("a"), "a").unwrap();
    fs::File::create(folder.path.join("long")).unwrap().set_len(1 << 30).unwrap();
    let hub = Hub::start(&["--public", &folder.file(""), "--max-readers-per-address", "1"]);
    let slow = hub.connect();
    (&slow).write_all(&request("GET /long HTTP/1.1", hub.address, &[], None)).unwrap();
    // Its head has come: it is being answered.
    slow.peek(&mut [0]).unwrap();
    let refused = hub.get("/a");
    assert_eq!(refused.problem(429)["limit"], 1);
    assert!(refused.header("retry-after").is_some());
    drop(slow);
    let is_served = |_: &u32| hub.get("/a").status == 200;
    assert!((0..1_000_000).find(is_served).is_some());
    // A connection that goes on is no reader between two requests.
    let mut kept = BufReader::new(hub.connect());
    for _ in 0..3 {
        kept.get_ref().write_all(&request("GET /a HTTP/1.1", hub.address, &[], None)).unwrap();
        assert_eq!(Response::read(&mut kept, false).text(), "a");
    }
    assert_eq!(json!(hub.get("/a").status), 200);
}

/// A hub that serves a folder with this file, and may have so many open files.
fn serve_within(files: usize, flags: &str) -> (Folder, Hub) {
    let folder = Folder::new();
    fs::write(folder.path.join("a"), "a").unwrap();
    let script = format!("ulimit -n {files}; exec \"$0\" \"$@\" {flags}");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_tabcast"), "--listen", "127.0.0.1:0"]);
    command.args(["--journal", "memory", "--public", &folder.file("")]);
    let hub = Hub::start_with(&mut command);
    (folder, hub)
}

#[test]
fn files_that_are_being_sent_take_no_descriptors_from_connections() {
    let (_folder, hub) = serve_within(700, "--max-readers 500");
    // Some are the journal's and the runtime's.
    hub.wait_for_log(&["as many connections as there may be open files", "max_connections=136"]);
}

#[test]
fn a_file_that_can_t_be_read_is_no_missing_one_and_the_cause_is_in_the_log() {
    let (folder, hub) = serve_within(200, "");
    let mut kept = BufReader::new(hub.connect());
    let mut ask = || {
        kept.get_ref().write_all(&request("GET /a HTTP/1.1", hub.address, &[], None)).unwrap();
        Response::read(&mut kept, false)
    };
    assert_eq!(ask().status, 200);
    let limit = |files: usize| {
        let (pid, files) = (hub.pid().to_string(), format!("--nofile={files}:200"));
        assert!(Command::new("prlimit").args(["--pid", &pid, &files]).status().unwrap().success());
    };
    // Those that it has stay, but there are no more.
    limit(3);
    let refused = ask();
    assert_eq!(refused.problem(503)["detail"], "the hub can't read the file at the moment");
    assert_eq!(refused.header("retry-after"), Some("1"));
    hub.wait_for_log(&["WARN", "file not read", &folder.file("a"), "Too many open files"]);
    limit(200);
    assert_eq!(ask().text(), "a");
}
