//! A real browser: headless Chromium, driven by chromedriver over HTTP and JSON (W3C WebDriver).
//!
//! With `TABCAST_BROWSER=firefox` it is headless Firefox, driven by geckodriver. That has no log of the
//! console and no DevTools: a test that needs them is for Chromium only, and says so.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]

pub mod page;

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, Write, stderr};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{PATIENCE, Response, request};

pub const ENTER: &str = "\u{e007}";
pub const TAB: &str = "\u{e004}";
/// Holds the Shift key down for the keys that follow, and lets it go the next time.
pub const SHIFT: &str = "\u{e008}";

/// A browser with a profile of its own. Ended and removed when dropped.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    /// Where the driver and the browser write all their files.
    folder: PathBuf,
    /// The tab that a browser has at its start, until it is used.
    spare: Cell<Option<String>>,
}

/// A tab of a browser.
pub struct Tab<'a> {
    browser: &'a Browser,
    window: String,
    /// The script that Firefox runs in every page.
    script: RefCell<String>,
}

impl Browser {
    pub fn start() -> Browser {
        Browser::launch(json!({}), &[])
    }

    /// A browser that runs no page's scripts.
    pub fn start_without_script() -> Browser {
        let preferences = match is_firefox() {
            true => json!({"javascript.enabled": false}),
            false => json!({"profile.managed_default_content_settings.javascript": 2}),
        };
        Browser::launch(preferences, &[])
    }

    /// A browser that takes these hosts for this machine. Unlike 127.0.0.1, they are no secure context.
    pub fn start_with_hosts(hosts: &[&str]) -> Browser {
        if is_firefox() {
            return Browser::launch(json!({"network.dns.localDomains": hosts.join(",")}), &[]);
        }
        let rules: Vec<_> = hosts.iter().map(|host| format!("MAP {host} 127.0.0.1")).collect();
        Browser::launch(json!({}), &[&format!("--host-resolver-rules={}", rules.join(","))])
    }

    fn launch(preferences: Value, arguments: &[&str]) -> Browser {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name =
            format!("tabcast-browser-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir(&folder).unwrap();
        // The driver ends if another process takes the port that it has found free.
        let (driver, port) = (0..5).find_map(|_| start_driver(&folder)).expect("the driver says its port");
        let address = SocketAddr::from(([127, 0, 0, 1], port));

        // Made before the browser starts, so that its drop ends the driver even if that fails.
        let mut browser = Browser { driver, address, session: String::new(), folder, spare: Cell::new(None) };
        let mut options = match is_firefox() {
            true => firefox(preferences),
            false => chromium(&browser.folder.join("profile"), &preferences, arguments),
        };
        // An alert is left open, for a test to see.
        options["unhandledPromptBehavior"] = json!("ignore");
        let capabilities = json!({"capabilities": {"alwaysMatch": options}});
        let session = browser.request("POST", "/session", Some(&capabilities)).expect("the browser starts");
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        browser.spare = Cell::new(Some(text(&browser.command("GET", "/window", None))));
        browser
    }

    /// A tab with this page, once that is loaded.
    pub fn open(&self, url: &str) -> Tab<'_> {
        let tab = self.blank();
        tab.go(url);
        tab
    }

    /// A tab without a page.
    pub fn blank(&self) -> Tab<'_> {
        let window = self.spare.take().unwrap_or_else(|| {
            let window = self.command("POST", "/window/new", Some(&json!({"type": "tab"})));
            text(&window["handle"])
        });
        Tab { browser: self, window, script: RefCell::default() }
    }

    /// The lines of the console since the last call: level, a space, text. None in Firefox.
    pub fn console(&self) -> Vec<String> {
        if is_firefox() {
            return Vec::new();
        }
        let entries = self.command("POST", "/se/log", Some(&json!({"type": "browser"})));
        let line = |entry: &Value| format!("{} {}", text(&entry["level"]), text(&entry["message"]));
        entries.as_array().unwrap().iter().map(line).collect()
    }

    fn command(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.request(method, &format!("{}{path}", self.session), body)
            .unwrap_or_else(|error| panic!("{method} {path} {}: {error}", body.unwrap_or(&Value::Null)))
    }

    /// The value that the driver answers, or the error.
    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = request(
            &format!("{method} {path} HTTP/1.1"),
            self.address,
            &["Content-Type: application/json"],
            Some(body.as_bytes()),
        );
        let mut connection = TcpStream::connect(self.address).map_err(|error| error.to_string())?;
        // Twice as long: a browser's start takes long on a busy machine.
        connection.set_read_timeout(Some(2 * PATIENCE)).unwrap();
        connection.write_all(&request).map_err(|error| error.to_string())?;
        // An error, and no panic, also if a page never loads while a test is failing.
        connection.peek(&mut [0]).map_err(|error| format!("no answer: {error}"))?;
        let response = Response::read(&mut BufReader::new(connection), false);
        if response.status == 0 {
            return Err("the driver is gone".to_owned());
        }
        let value = response.json()["value"].take();
        if response.status == 200 {
            Ok(value)
        } else {
            Err(format!("{}: {}", value["error"], value["message"]))
        }
    }
}

pub fn is_firefox() -> bool {
    std::env::var("TABCAST_BROWSER").as_deref() == Ok("firefox")
}

/// Whether the browser lacks this because it is not Chromium. Then the test prints that, even if it passes.
pub fn lacks(what: &str) -> bool {
    if is_firefox() {
        let test = std::thread::current();
        let line = format!("not in Firefox: {}: {what}\n", test.name().unwrap_or_default());
        // Not by `eprintln!`, which the harness captures.
        stderr().write_all(line.as_bytes()).unwrap();
    }
    is_firefox()
}

/// What Chromium is started with.
fn chromium(profile: &Path, preferences: &Value, arguments: &[&str]) -> Value {
    let usual = [
        "--headless=new",
        // The browser then ends with its driver, however that ends.
        "--remote-debugging-pipe",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-default-apps",
        // Only loopback, whatever the environment says.
        "--no-proxy-server",
        "--window-size=1280,800",
        &format!("--user-data-dir={}", profile.display()),
    ];
    let arguments = [&usual, arguments].concat();
    json!({
        "browserName": "chrome",
        "goog:chromeOptions": {"args": arguments, "prefs": preferences},
        "goog:loggingPrefs": {"browser": "ALL"},
    })
}

/// What Firefox is started with.
fn firefox(mut preferences: Value) -> Value {
    // Only loopback, whatever the environment says.
    preferences["network.proxy.type"] = json!(0);
    // Firefox would show JSON in a page of its own, which is not of the hub's origin.
    preferences["devtools.jsonview.enabled"] = json!(false);
    json!({
        "browserName": "firefox",
        "moz:firefoxOptions": {"args": ["-headless", "--width=1280", "--height=800"], "prefs": preferences},
    })
}

/// A driver that writes its files to this folder, and its port; `None` if it ended before it listened.
fn start_driver(folder: &Path) -> Option<(Child, u16)> {
    let (program, ready) = match is_firefox() {
        true => ("geckodriver", "Listening on 127.0.0.1:"),
        false => ("chromedriver", "started successfully on port "),
    };
    let mut driver = Command::new(program)
        .arg("--port=0")
        .envs(["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"].map(|name| (name, folder)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs chromedriver"));
    let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines().map_while(Result::ok);
    let port = lines.find_map(|line| line.split_once(ready)?.1.trim_end_matches('.').parse().ok());
    let Some(port) = port else {
        let _ = driver.wait();
        return None;
    };
    // The driver would wait on a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    Some((driver, port))
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() && !is_firefox() {
            let log =
                self.request("POST", &format!("{}/se/log", self.session), Some(&json!({"type": "browser"})));
            eprintln!("the browser's console: {log:#?}");
        }
        // The answer comes after the browser's end: then nothing writes to the folder any more.
        let _ = self.request("DELETE", &self.session, None);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Tab<'_> {
    pub fn go(&self, url: &str) {
        self.load("/url", &json!({"url": url}));
    }

    pub fn url(&self) -> String {
        text(&self.command("GET", "/url", None))
    }

    pub fn refresh(&self) {
        self.load("/refresh", &json!({}));
    }

    pub fn back(&self) {
        self.load("/back", &json!({}));
    }

    fn load(&self, path: &str, body: &Value) {
        self.command("POST", path, Some(body));
        let script = self.script.borrow();
        if !script.is_empty() {
            self.run(&script);
        }
    }

    /// Hides the tab and every other tab of its window.
    pub fn hide(&self) {
        self.command("POST", "/window/minimize", Some(&json!({})));
    }

    /// Shows the tab's window again.
    pub fn unhide(&self) {
        self.command("POST", "/window/rect", Some(&json!({"width": 1280, "height": 800})));
    }

    /// Gives the page this size, in CSS pixels, whatever the window's is.
    pub fn resize(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", size).unwrap();
    }

    /// Sets a media feature, as in `prefers-color-scheme`.
    pub fn prefer(&self, feature: &str, value: &str) {
        let features = json!({"features": [{"name": feature, "value": value}]});
        self.devtools("Emulation.setEmulatedMedia", features).unwrap();
    }

    pub fn close(self) {
        self.command("DELETE", "/window", None);
    }

    /// Runs a script in every page of this tab from now on, before the page's own scripts; in Firefox after
    /// them.
    pub fn run_in_every_page(&self, script: &str) {
        if is_firefox() {
            self.script.replace(script.to_owned());
            return;
        }
        self.devtools("Page.addScriptToEvaluateOnNewDocument", json!({"source": script})).unwrap();
    }

    /// Lets the tab's pages do what their Content-Security-Policy forbids.
    pub fn without_content_security_policy(&self) {
        self.devtools("Page.setBypassCSP", json!({"enabled": true})).unwrap();
    }

    /// Ends the process that runs the tab's page, and with it every other page of that process. Afterwards
    /// the tab can only be closed.
    pub fn crash(&self) {
        let crashed = self.devtools("Page.crash", json!({}));
        assert!(crashed.as_ref().is_err_and(|error| error.contains("tab crashed")), "{crashed:?}");
    }

    /// Keeps the page's main thread busy, as a script that never ends does, for at least this long and until
    /// its host has the cookie `wake`. Meanwhile this tab answers nothing: another tab sees the cookie
    /// `hung`, which is set at the beginning, and sets `wake`.
    pub fn hang(&self, at_least: Duration, hung: &str, wake: &str) {
        // After a delay: the driver looks at the page after each script, and would wait for the loop's end.
        self.run(&format!(
            "setTimeout(() => {{
               document.cookie = '{hung}';
               const end = Date.now() + {};
               while (Date.now() < end || !document.cookie.includes('{wake}'));
             }}, 200);",
            at_least.as_millis()
        ));
    }

    /// Stops the page's timers and tasks, as browsers do in tabs that are long out of sight.
    pub fn freeze(&self) {
        self.devtools("Page.setWebLifecycleState", json!({"state": "frozen"})).unwrap();
    }

    pub fn thaw(&self) {
        self.devtools("Page.setWebLifecycleState", json!({"state": "active"})).unwrap();
    }

    /// A command of the Chrome DevTools protocol.
    fn devtools(&self, command: &str, parameters: Value) -> Result<Value, String> {
        self.browser.command("POST", "/window", Some(&json!({"handle": self.window})));
        let path = format!("{}/goog/cdp/execute", self.browser.session);
        self.browser.request("POST", &path, Some(&json!({"cmd": command, "params": parameters})))
    }

    /// The value of an expression, as JSON has it.
    pub fn get(&self, expression: &str) -> Value {
        self.run(&format!("return {expression};"))
    }

    /// What a script returns.
    pub fn run(&self, script: &str) -> Value {
        let script = if is_firefox() { in_page(script) } else { script.to_owned() };
        self.command("POST", "/execute/sync", Some(&json!({"script": script, "args": []})))
    }

    /// What a script passes to the function that is its last argument, once it does.
    pub fn run_until_done(&self, script: &str, argument: Value) -> Value {
        self.command("POST", "/execute/async", Some(&json!({"script": script, "args": [argument]})))
    }

    /// Waits until an expression is true.
    pub fn wait_for(&self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.get(&format!("Boolean({expression})")) != json!(true) {
            if Instant::now() > deadline {
                panic!("never: {expression}\nin a page that reads {}", self.get("document.body.innerText"));
            }
            // The page has no event for it. The pause leaves the browser time.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Clicks in the middle of an element, as a mouse does.
    pub fn click(&self, selector: &str) {
        self.element_command("POST", selector, "/click", Some(&json!({})));
    }

    /// Presses keys in an element.
    pub fn press(&self, selector: &str, keys: &str) {
        self.element_command("POST", selector, "/value", Some(&json!({"text": keys})));
    }

    /// Empties a field and types into it.
    pub fn fill(&self, selector: &str, keys: &str) {
        self.element_command("POST", selector, "/clear", Some(&json!({})));
        self.press(selector, keys);
    }

    /// An element's role and name for assistive technology, as the browser computes them.
    pub fn role_and_name(&self, selector: &str) -> (String, String) {
        let [role, name] = ["/computedrole", "/computedlabel"]
            .map(|property| text(&self.element_command("GET", selector, property, None)));
        (role, name)
    }

    /// The text of an open alert, if there is one.
    pub fn alert(&self) -> Option<String> {
        let path = format!("{}/alert/text", self.browser.session);
        match self.browser.request("GET", &path, None) {
            Ok(alert) => Some(text(&alert)),
            Err(error) if error.contains("no such alert") => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn element_command(&self, method: &str, selector: &str, path: &str, body: Option<&Value>) -> Value {
        /// The key of an element's reference: WebDriver 12, "web element identifier".
        const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
        let found =
            self.command("POST", "/element", Some(&json!({"using": "css selector", "value": selector})));
        self.command(method, &format!("/element/{}{path}", text(&found[ELEMENT])), body)
    }

    fn command(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        self.browser.command("POST", "/window", Some(&json!({"handle": self.window})));
        self.browser.command(method, path, body)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is a string")).to_owned()
}

/// The script as Firefox runs it within the page by `eval`, where Chromium runs it. Else Firefox runs a
/// driver's script beside the page, with an `Array` and modules of its own. The hub's page forbids `eval`:
/// there the script stays beside the page.
fn in_page(script: &str) -> String {
    let function = format!("(() => {{ {script}\n}})()");
    format!("return location.pathname.endsWith('/') ? {function} : window.eval({});", json!(function))
}
