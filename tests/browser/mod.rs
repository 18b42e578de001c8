//! A real browser: headless Chromium, driven by chromedriver over its plain HTTP and JSON
//! (W3C WebDriver). What a test does here is what a user's browser does.
//!
//! With `TABCAST_BROWSER=firefox` it is headless Firefox, driven by geckodriver. That tells nothing of the console,
//! and has no DevTools: what needs those is for Chromium only, and says so.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, Write, stderr};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::common::{PATIENCE, Response};

pub const ENTER: &str = "\u{e007}";
pub const TAB: &str = "\u{e004}";

/// A browser with a profile of its own. Ended and removed when dropped.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    /// Holds all that the driver and the browser write.
    folder: PathBuf,
    /// The tab a browser begins with, until it is used.
    spare: Cell<Option<String>>,
}

/// One of its tabs.
pub struct Tab<'a> {
    browser: &'a Browser,
    window: String,
    /// What Firefox runs in every page.
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

    /// A browser for which these hosts are this machine: in none of them is a page trusted as one
    /// of 127.0.0.1 is.
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
        // The port it has found free may be another's by the time it listens; then it ends.
        let (driver, port) = (0..5).find_map(|_| start_driver(&folder)).expect("the driver says its port");
        let address = SocketAddr::from(([127, 0, 0, 1], port));

        // Made before the browser starts, so that the driver is ended even if that fails.
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

    /// A tab with this page, once that has loaded.
    pub fn open(&self, url: &str) -> Tab<'_> {
        let tab = self.blank();
        tab.go(url);
        tab
    }

    /// A tab with no page yet.
    pub fn blank(&self) -> Tab<'_> {
        let window = self.spare.take().unwrap_or_else(|| {
            let window = self.command("POST", "/window/new", Some(&json!({"type": "tab"})));
            text(&window["handle"])
        });
        Tab { browser: self, window, script: RefCell::default() }
    }

    /// What the console says since this was last asked: level, a space, text. Of Firefox's it is not known.
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

    /// The answer's value, or the error it tells.
    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, String> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        let mut connection = TcpStream::connect(self.address).map_err(|error| error.to_string())?;
        // Starting a browser on a busy machine is the longest it does.
        connection.set_read_timeout(Some(2 * PATIENCE)).unwrap();
        connection.write_all(format!("{head}{body}").as_bytes()).map_err(|error| error.to_string())?;
        // A page that never loads is an error like others, also while a test fails.
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

/// Whether a test has to do without this, for the browser is not Chromium. Then it says so, even if it passes.
pub fn lacks(what: &str) -> bool {
    if is_firefox() {
        let line = format!("not in Firefox: {}: {what}\n", std::thread::current().name().unwrap_or_default());
        stderr().write_all(line.as_bytes()).unwrap();
    }
    is_firefox()
}

/// What Chromium is started with.
fn chromium(profile: &Path, preferences: &Value, arguments: &[&str]) -> Value {
    let usual = [
        "--headless=new",
        // Its driver's end is then its own, however that comes.
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
    // It would show JSON in a page of its own, which is no page of the hub's.
    preferences["devtools.jsonview.enabled"] = json!(false);
    json!({
        "browserName": "firefox",
        "moz:firefoxOptions": {"args": ["-headless", "--width=1280", "--height=800"], "prefs": preferences},
    })
}

/// A driver that keeps its files in this folder, and its port; `None` if it ended before it listened.
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
    // A full pipe would stop it.
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
        // Waits for the browser's end, after which nothing writes to the folder.
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

    /// Hides it, and every other tab of its window.
    pub fn hide(&self) {
        self.command("POST", "/window/minimize", Some(&json!({})));
    }

    pub fn close(self) {
        self.command("DELETE", "/window", None);
    }

    /// Runs a script in every page this tab goes to, before any of the page's own; in Firefox after them.
    pub fn run_in_every_page(&self, script: &str) {
        if is_firefox() {
            self.script.replace(script.to_owned());
            return;
        }
        self.devtools("Page.addScriptToEvaluateOnNewDocument", json!({"source": script})).unwrap();
    }

    /// Lets its pages do what their Content-Security-Policy forbids.
    pub fn without_content_security_policy(&self) {
        self.devtools("Page.setBypassCSP", json!({"enabled": true})).unwrap();
    }

    /// Ends the process its page runs in, and with it every other page that process has. All that
    /// can be done with the tab after it is to close it.
    pub fn crash(&self) {
        let crashed = self.devtools("Page.crash", json!({}));
        assert!(crashed.as_ref().is_err_and(|error| error.contains("tab crashed")), "{crashed:?}");
    }

    /// Keeps its main thread busy, as a script does that never comes to an end, for so long and
    /// until its site has the cookie `wake`. It has the cookie `hung` from the beginning. Other tabs
    /// can set the one and wait for the other; this one answers nothing meanwhile.
    pub fn hang(&self, at_least: Duration, hung: &str, wake: &str) {
        // Later than the driver's look at the page after a script, which would wait for the end.
        self.run(&format!(
            "setTimeout(() => {{
               document.cookie = '{hung}';
               const end = Date.now() + {};
               while (Date.now() < end || !document.cookie.includes('{wake}'));
             }}, 200);",
            at_least.as_millis()
        ));
    }

    /// Stops its timers and tasks, as a browser does with tabs that are long out of sight.
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

    /// What a script gives to the function that is its last argument, whenever it does.
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
            // The page has no way to tell; the browser is left time to get there.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Clicks in the middle of the element, as a mouse does.
    pub fn click(&self, selector: &str) {
        self.element_command("POST", selector, "/click", Some(&json!({})));
    }

    /// Presses keys, in the element.
    pub fn press(&self, selector: &str, keys: &str) {
        self.element_command("POST", selector, "/value", Some(&json!({"text": keys})));
    }

    /// Empties a field and types into it.
    pub fn fill(&self, selector: &str, keys: &str) {
        self.element_command("POST", selector, "/clear", Some(&json!({})));
        self.press(selector, keys);
    }

    /// Its role and name for assistive technology, as the browser computes them.
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

/// Firefox runs a driver's script beside the page, with an `Array`, modules and all else of its own: `eval` brings it
/// into the page, where Chromium runs it. The policy of the hub's page forbids that, and there is left beside it.
fn in_page(script: &str) -> String {
    let function = format!("(() => {{ {script}\n}})()");
    format!("return location.pathname === '/' ? {function} : window.eval({});", json!(function))
}
