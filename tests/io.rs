//! `/io.js`, the browser client as a classic script: the page of Socket.IO's tutorial runs, with one line
//! changed. `tests/run` installs jQuery.

mod browser;
mod common;
mod packages;
mod pages;
mod proxy;

use std::fs;

use browser::{Browser, Tab};
use common::{Folder, Hub};
use packages::installed;
use pages::Pages;
use proxy::Proxy;
use serde_json::json;

/// The tutorial's page. Only where its script comes from is another.
const TUTORIAL: &str = r#"<!doctype html>
<html>
  <head>
    <title>Socket.IO chat</title>
  </head>
  <body>
    <ul id="messages"></ul>
    <button onclick="myFunction()">Send</button>
    <script src="/io.js"></script>
    <script src="/jquery.js"></script>
    <script>
      var socket = io();
      function myFunction() {
        socket.emit('chat message', 'Hello World!');
        socket.broadcast.emit('hi');
      }
      socket.on('chat message', function (msg) {
        $('#messages').append($('<li>').text(msg));
      });
      socket.on('hi', function () {
        document.title = 'hi';
      });
    </script>
  </body>
</html>
"#;

fn shown(tab: &Tab) -> serde_json::Value {
    tab.get("[...document.querySelectorAll('#messages li')].map((item) => item.textContent)")
}

fn wait_until_shown(tab: &Tab, count: usize) {
    tab.wait_for(&format!("document.querySelectorAll('#messages li').length === {count}"));
}

#[test]
fn the_tutorials_page_runs_with_its_one_script_line_changed() {
    let (folder, browser) = (Folder::new(), Browser::start());
    fs::write(folder.path.join("index.html"), TUTORIAL).unwrap();
    fs::copy(installed().join("jquery/dist/jquery.js"), folder.path.join("jquery.js")).unwrap();
    let hub = Hub::start(&["--public", &folder.file("")]);
    let page = format!("http://{}/", hub.address);
    let tabs = [browser.open(&page), browser.open(&page)];
    tabs.iter().for_each(|tab| tab.wait_for("socket.connected"));
    tabs[0].click("button");
    tabs.iter().for_each(|tab| wait_until_shown(tab, 1));
    tabs[1].click("button");
    for tab in &tabs {
        wait_until_shown(tab, 2);
        assert_eq!(shown(tab), json!(["Hello World!", "Hello World!"]));
        tab.wait_for("document.title === 'hi'");
    }
    let [connected, disconnected] = ["subscriber connected", "subscriber disconnected"];
    assert_eq!((hub.count_log(connected), hub.count_log(disconnected)), (2, 0));
    tabs[0].refresh();
    hub.wait_for_log(&[disconnected]);
    hub.wait_for_logs(&[connected], 3);
    tabs[0].wait_for("socket.connected");
    tabs[1].click("button");
    wait_until_shown(&tabs[0], 1);
    wait_until_shown(&tabs[1], 3);
}

/// A tab with a page of this origin, which has loaded this script.
fn open<'a>(browser: &'a Browser, pages: &Pages, script: &str) -> Tab<'a> {
    let tab = browser.open(&format!("{}/blank.html", pages.origin()));
    tab.run_until_done(
        "const [url, done] = arguments;
         const script = Object.assign(document.createElement('script'), { src: url, onload: () => done() });
         document.head.append(script);",
        json!(script),
    );
    tab
}

#[test]
fn the_hub_is_the_one_that_the_script_comes_from_unless_a_url_names_another() {
    let (folder, browser) = (Folder::new(), Browser::start());
    fs::write(folder.path.join("blank.html"), "").unwrap();
    let pages = Pages::start(&[&folder.path]);
    let flags = ["--allow-origin", &*pages.origin()];
    let [own, other] = [Hub::start(&flags), Hub::start(&flags)];
    let proxy = Proxy::start_below("/a/b", own.address);
    let (from, to) = (format!("http://{}", own.address), format!("http://{}", other.address));
    let tab = open(&browser, &pages, &format!("{from}/io.js?v=/2"));
    tab.run(&format!(
        "window.seen = [];
         window.sockets = [io(), io('{to}'), io('{to}/', {{ channel: 'c' }}), io.connect({{ channel: 'd' }})];
         sockets.forEach((socket, n) => socket.on('x', (data) => seen.push([n, data])));"
    ));
    tab.wait_for("sockets.every((socket) => socket.connected && !socket.disconnected)");
    own.post("?event=x", "text/plain", "main of own");
    own.post("?event=x&channel=d", "text/plain", "d of own");
    other.post("?event=x", "text/plain", "main of other");
    other.post("?event=x&channel=c", "text/plain", "c of other");
    tab.wait_for("seen.length === 4");
    let expected = json!([[0, "main of own"], [1, "main of other"], [2, "c of other"], [3, "d of own"]]);
    assert_eq!(tab.get("seen.sort()"), expected);
    let below = open(&browser, &pages, &format!("http://{}/a/b/io.js", proxy.address));
    below.run("window.socket = io(); socket.on('x', (data) => { window.heard = data; });");
    below.wait_for("socket.connected");
    own.post("?event=x", "text/plain", "below");
    below.wait_for("window.heard === 'below'");
}

#[test]
fn a_classic_script_shares_a_shared_worker_with_the_module() {
    let (hub, browser) =
        (Hub::start(&["--allow-host", "hub.example"]), Browser::start_with_hosts(&["hub.example"]));
    let page = format!("http://hub.example:{}/messages?last=0", hub.address.port());
    let [module, classic] = [browser.open(&page), browser.open(&page)];
    module.run("import('/tabcast.js').then(({ connect }) => { window.socket = connect(); });");
    classic.run(
        "const script = Object.assign(document.createElement('script'), { src: '/io.js' });
         script.onload = () => { window.socket = io(); };
         document.body.append(script);",
    );
    for tab in [&module, &classic] {
        tab.wait_for("window.socket?.state === 'shared'");
    }
    assert_eq!(hub.count_log("subscriber connected"), 1);
}

#[test]
fn a_script_that_does_not_know_where_it_is_asks_for_a_url() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = browser.open(&format!("http://{}/messages?last=0", hub.address));
    tab.run(
        "fetch('/io.js').then((answer) => answer.text()).then((text) => {
           (0, eval)(text);
           try { io(); } catch (error) { window.error = `${error}`; }
           window.socket = io(location.origin);
         });",
    );
    tab.wait_for("window.socket?.connected");
    assert_eq!(tab.get("error"), "TypeError: a copy of this script needs the URL of a hub");
}

/// The rows of the document's tables: what Socket.IO has, and what is here.
fn rows() -> Vec<(&'static str, &'static str)> {
    let lines = include_str!("../docs/from-socketio.md").lines();
    lines.filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")).collect()
}

#[test]
fn the_document_says_of_each_name_whether_it_is_there() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = browser.open(&format!("http://{}/messages?last=0", hub.address));
    tab.run("import('/tabcast.js').then(({ connect }) => { window.socket = connect(); });");
    tab.wait_for("window.socket");
    let mut names = 0;
    for (theirs, here) in rows().iter().filter(|(theirs, _)| theirs.starts_with("`socket.")) {
        for code in theirs.split('`').skip(1).step_by(2) {
            let code = code.strip_prefix("socket.").unwrap_or(code);
            let name = code.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap();
            let is_there = tab.get(&format!("'{name}' in socket"));
            assert_eq!(is_there, !here.starts_with("not there"), "{name}: {here}");
            names += 1;
        }
    }
    assert!(names > 30, "{names}");
}
