//! Pages of another origin than the hub's, in a real browser: what an allowed one may do by each way that a
//! browser has, and what the client says to one that is refused.

mod browser;
mod common;
mod proxy;

use std::path::Path;

use browser::{Browser, Tab, lacks};
use common::{Hub, Site};
use proxy::{Mode, Proxy};
use serde_json::json;

/// A hub whose pages are of another origin, and that origin.
fn other_origin() -> (Hub, String) {
    let other = Hub::start(&[]);
    let origin = format!("http://{}", other.address);
    (other, origin)
}

/// A tab with a page of this origin, which has no Content-Security-Policy.
fn open<'a>(browser: &'a Browser, origin: &str) -> Tab<'a> {
    browser.open(&format!("{origin}/messages?last=0"))
}

/// Makes `hub` a client of this hub, of its own file, with these options. `states` has its states and
/// reasons.
fn connect(tab: &Tab, address: std::net::SocketAddr, options: &str) {
    tab.run(&format!(
        "window.states = [];
         import('http://{address}/tabcast.js').then(({{ connect }}) => {{
           window.hub = connect({options});
           hub.on('tabcast:state', ({{ state, reason }}) => states.push([state, reason]));
           hub.onAny((event, data) => {{ window.last = data; }});
         }});"
    ));
    tab.wait_for("window.hub");
}

/// Keeps in `settled` how the promise ends: its value, or the status and message of its error.
fn settle(tab: &Tab, promise: &str) {
    tab.run(&format!(
        "window.settled = undefined;
         {promise}.then((value) => {{ window.settled = [value]; }},
           ({{ name, status, message }}) => {{ window.settled = [name, status, message]; }});"
    ));
}

#[test]
fn an_allowed_page_listens_with_credentials_by_an_eventsource() {
    let (browser, (_other, origin)) = (Browser::start(), other_origin());
    let hub = Hub::start(&["--allow-origin", &origin]);
    let tab = open(&browser, &origin);
    tab.run(&format!(
        "window.heard = [];
         const source = new EventSource('http://{}/events?_=1', {{ withCredentials: true }});
         source.onmessage = ({{ data }}) => heard.push(data);
         source.onopen = () => {{ window.isOpen = true; }};",
        hub.address
    ));
    tab.wait_for("window.isOpen");
    hub.publish("with credentials");
    tab.wait_for("heard[0] === 'with credentials'");
}

/// Runs a file of an npm package, which `tests/run` installs, in the page.
fn run_package(tab: &Tab, file: &str) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("interop").join("node_modules");
    let code = std::fs::read_to_string(folder.join(file))
        .unwrap_or_else(|error| panic!("{file}: {error}; tests/run installs it"));
    tab.run_until_done(
        "const [code, done] = arguments;
         const script = document.createElement('script');
         script.textContent = code;
         document.head.append(script);
         done(true);",
        json!(code),
    );
}

#[test]
fn htmx_of_an_allowed_page_gets_its_events_and_posts_its_forms() {
    let (browser, (_other, origin)) = (Browser::start(), other_origin());
    let hub = Hub::start(&["--allow-origin", &origin]);
    let tab = open(&browser, &origin);
    run_package(&tab, "htmx.org/dist/htmx.js");
    run_package(&tab, "htmx-ext-sse/dist/sse.js");
    // htmx asks only its own origin unless it is configured not to.
    tab.run(&format!(
        "htmx.config.selfRequestsOnly = false;
         document.body.innerHTML = `
           <div hx-ext='sse' sse-connect='http://{0}/events?channel=news'>
             <ul id='news' sse-swap='message' hx-swap='beforeend'></ul>
           </div>
           <form hx-post='http://{0}/messages?channel=news' hx-swap='none'>
             <input name='data' value='&lt;li&gt;posted&lt;/li&gt;'><button id='send'></button>
           </form>`;
         htmx.process(document.body);",
        hub.address
    ));
    hub.wait_for_log(&["subscriber connected", "channels=\"news\""]);
    hub.publish_to("news", "<li>streamed</li>");
    tab.wait_for("document.querySelector('#news').textContent === 'streamed'");
    tab.click("#send");
    tab.wait_for("document.querySelector('#news').textContent === 'streamedposted'");
}

#[test]
fn turbo_of_an_allowed_page_gets_its_streams() {
    let (browser, (_other, origin)) = (Browser::start(), other_origin());
    let hub = Hub::start(&["--allow-origin", &origin]);
    let tab = open(&browser, &origin);
    run_package(&tab, "@hotwired/turbo/dist/turbo.es2017-umd.js");
    tab.run(&format!(
        "document.body.innerHTML = `<ul id='list'></ul>
           <turbo-stream-source src='http://{}/events'></turbo-stream-source>`;",
        hub.address
    ));
    hub.wait_for_log(&["subscriber connected"]);
    let item = "<template>\n<li>streamed</li></template>";
    hub.publish(&format!("<turbo-stream action='append' target='list'>{item}</turbo-stream>"));
    tab.wait_for("document.querySelector('#list li')?.textContent === 'streamed'");
}

#[test]
fn an_allowed_page_sends_a_beacon_of_json_and_any_header() {
    let (browser, (_other, origin)) = (Browser::start(), other_origin());
    let hub = Hub::start(&["--allow-origin", &origin]);
    let tab = open(&browser, &origin);
    tab.run(&format!(
        "const json = new Blob(['{{\"data\": \"beacon\"}}'], {{ type: 'application/json' }});
         window.isQueued = navigator.sendBeacon('http://{}/messages', json);",
        hub.address
    ));
    assert_eq!(tab.get("isQueued"), true);
    hub.wait_for_log(&["message published", "beacon"]);
    assert_eq!(hub.newest()["data"], "beacon");
    let fetched = tab.run_until_done(
        "const [url, done] = arguments;
         const headers = { Authorization: 'Bearer x', 'X-Requested-With': 'x', 'HX-Request': 'true' };
         fetch(url, { method: 'POST', credentials: 'include', headers, body: 'fetched' })
           .then((answer) => done(answer.status), (error) => done(error.message));",
        json!(format!("http://{}/messages", hub.address)),
    );
    assert_eq!((fetched, &hub.newest()["data"]), (json!(201), &json!("fetched")));
    // A refusal can be read.
    let problem = tab.run_until_done(
        "const [url, done] = arguments;
         fetch(url, { credentials: 'include' })
           .then((answer) => answer.json())
           .then((problem) => done(problem.field), (error) => done(error.message));",
        json!(format!("http://{}/messages?lasst=1", hub.address)),
    );
    assert_eq!(problem, "lasst");
}

#[test]
fn a_refused_page_is_told_why_and_comes_back_once_the_advice_is_followed() {
    let (browser, (_other, origin)) = (Browser::start(), other_origin());
    let site = Site::new(&[]);
    let hub = site.start();
    let tab = open(&browser, &origin);
    connect(&tab, site.address, "");
    settle(&tab, "hub.emit('a', 'waits while the page connects')");
    tab.wait_for("window.settled");
    let reason = tab.get("states.at(-1)[1]").as_str().unwrap().to_owned();
    assert_eq!(tab.get("states"), json!([["offline", reason]]));
    assert_eq!(tab.get("settled"), json!(["Refusal", 0, reason]));
    settle(&tab, "hub.emit('a', 'comes later')");
    tab.wait_for("window.settled");
    assert_eq!(tab.get("settled"), json!(["Refusal", 0, reason]));
    if !browser::is_firefox() {
        let console = browser.console();
        let lines = console.iter().filter(|line| line.contains("tabcast: ")).count();
        assert_eq!(lines, 1, "{console:#?}");
    }
    assert_eq!(hub.history("").len(), 0);
    let advice = reason.split_once("start the hub with ").unwrap().1;
    assert_eq!(advice, format!("--allow-origin {origin}"));
    let hub = site.restart_with(hub, "TERM", &advice.split(' ').collect::<Vec<_>>());
    tab.wait_for("hub.connected");
    settle(&tab, "hub.emit('a', 'let in')");
    tab.wait_for("window.last === 'let in'");
    assert_eq!(hub.newest()["data"], "let in");
}

#[test]
fn a_refused_channel_is_told_with_the_hubs_words_in_every_tab() {
    let (browser, hub) = (Browser::start(), Hub::start(&[]));
    let expected = hub.get("/events?channel=room%201").problem(422)["detail"].clone();
    let of_emit = hub.post("?channel=room%201", "text/plain", "x").problem(422)["detail"].clone();
    let tabs = [(); 3].map(|()| open(&browser, &format!("http://{}", hub.address)));
    for tab in &tabs {
        connect(tab, hub.address, "{ channel: 'room 1' }");
        tab.wait_for("states.length");
        assert_eq!(tab.get("states"), json!([["offline", expected]]));
        settle(tab, "hub.emit('a', 1)");
        tab.wait_for("window.settled");
        assert_eq!(tab.get("settled"), json!(["Refusal", 422, of_emit]));
    }
    // What can be sent is sent.
    settle(&tabs[0], "hub.emit('a', 'elsewhere', { channel: 'main' })");
    tabs[0].wait_for("window.settled?.length === 1");
    assert_eq!(hub.newest()["data"], "elsewhere");
    assert_eq!(hub.count_log("subscriber connected"), 0);
}

#[test]
fn an_outage_that_an_allowed_page_can_not_read_is_no_refusal() {
    let (browser, (_other, origin)) = (Browser::start(), other_origin());
    let site = Site::new(&["--allow-origin", &origin]);
    let hub = site.start();
    let tab = open(&browser, &origin);
    connect(&tab, site.address, "");
    tab.wait_for("hub.connected");
    drop(hub);
    // As a proxy answers whose hub is gone: without the headers by which the page could read it.
    let gateway = Proxy::start_at(site.address, site.address, Mode::Answer(502));
    settle(&tab, "hub.emit('a', 'after the outage')");
    gateway.wait_until_answered("GET /events", 2);
    gateway.wait_until_answered("HEAD /tabcast.js", 1);
    tab.wait_for("hub.state === 'offline'");
    assert_eq!(tab.get("[window.settled ?? null, states.at(-1)]"), json!([null, ["offline", null]]));
    drop(gateway);
    let hub = site.start();
    tab.wait_for("window.last === 'after the outage'");
    assert_eq!(hub.history("").len(), 1);
    if !lacks("a log of the console") {
        assert!(!browser.console().iter().any(|line| line.contains("--allow-origin")));
    }
}
