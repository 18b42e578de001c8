//! The programs in docs/examples, as their first lines say to run them, with people in a real browser.

mod browser;
mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use browser::{Browser, Tab};
use common::{Folder, Hub};

/// A program that serves a page. It ends when dropped.
struct Program {
    child: Child,
    origin: String,
}

impl Program {
    /// The example, which says at its start where it listens.
    fn start(command: &str, file: &str, keys: &str, hub: &str) -> Program {
        let file = format!("{}/docs/examples/{file}", env!("CARGO_MANIFEST_DIR"));
        let mut command = Command::new(command);
        let mut child = command.args([&file, keys, hub, "0"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Program { child, origin: line.trim().to_owned() }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A tab of somebody who has logged in.
fn log_in<'a>(browser: &'a Browser, program: &Program, user: &str) -> Tab<'a> {
    let tab = browser.open(&program.origin);
    tab.fill("[name=user]", user);
    tab.click("button");
    tab.wait_for("location.pathname === '/' && document.querySelector('#list')");
    tab
}

fn people_log_in_and_chat(command: &str, file: &str) {
    let folder = Folder::new();
    let keys = folder.file("keys.json");
    let made = Command::new(env!("CARGO_BIN_EXE_tabcast")).args(["token", "key", "--out", &keys]).status();
    assert!(made.unwrap().success());
    // The example's port is known only once it has started, and it has to know the hub's.
    let hub = Hub::start(&["--keys", &keys, "--allow-origin", "*"]);
    let program = Program::start(command, file, &keys, &format!("http://{}", hub.address));
    // A browser has one cookie of a name for a host: each of them has a browser of their own.
    let (first, second) = (Browser::start(), Browser::start());
    let (ada, bob) = (log_in(&first, &program, "ada"), log_in(&second, &program, "bob"));
    ada.fill("#text", "Hello Bob!\u{e007}");
    bob.wait_for("list.innerText.includes('Hello Bob!')");
    bob.fill("#text", "Hello Ada!\u{e007}");
    ada.wait_for("list.innerText === 'Hello Bob!\\nHello Ada!'");
    // Nobody chooses a name that would be a pattern, and without a login there is no token.
    let refused = hub.post("?channel=chat", "text/plain", "not logged in");
    assert_eq!(refused.status, 401, "{refused:?}");
    let stranger = Browser::start();
    let tab = stranger.open(&program.origin);
    tab.run("fetch('/token').then(({ status }) => { window.status_ = status; })");
    tab.wait_for("window.status_ === 401");
    tab.run(
        "fetch('/login', { method: 'POST', body: new URLSearchParams({ user: '>' }) })
        .then(({ status }) => { window.login = status; })",
    );
    tab.wait_for("window.login === 422");
}

#[test]
fn people_log_in_and_chat_by_the_example_in_python() {
    people_log_in_and_chat("python3", "login.py");
}

#[test]
fn people_log_in_and_chat_by_the_example_in_node() {
    people_log_in_and_chat("node", "login.mjs");
}
