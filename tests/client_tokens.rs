//! The browser client on a hub that asks who its callers are: tokens that a page gives, cookies that a
//! browser has, and what becomes of streams when these end. Pages sign their tokens themselves: see [`SIGN`].

mod browser;
mod common;

use std::net::SocketAddr;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use browser::{Browser, Tab};
use common::{Folder, Hub};
use serde_json::{Value, json};

/// The secret of the hub's key, as a page and a key's file have it.
const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";

/// `sign(subject, seconds, grants)` is a promise of a token that ends after so many seconds.
const SIGN: &str = "
    const encode = (text) => btoa(text).replace(/=/g, '').replace(/\\+/g, '-').replace(/\\//g, '_');
    const bytes = Uint8Array.from(atob(SECRET), (char) => char.charCodeAt(0));
    const key = crypto.subtle.importKey('raw', bytes, { name: 'HMAC', hash: 'SHA-256' }, false, ['sign']);
    const all = { subscribe: ['>'], publish: ['>'] };
    window.sign = async (sub, seconds = 3_600, tabcast = all) => {
      const iat = Date.now() / 1_000;
      const parts = [{ alg: 'HS256', kid: 'test' }, { sub, iat, exp: iat + seconds, tabcast }];
      const text = parts.map((part) => encode(JSON.stringify(part))).join('.');
      const signature = await crypto.subtle.sign('HMAC', await key, new TextEncoder().encode(text));
      return `${text}.${encode(String.fromCharCode(...new Uint8Array(signature)))}`;
    };";

/// A hub that takes the tokens of [`SIGN`], and lets whoever has none publish.
struct Guarded {
    hub: Hub,
    _keys: Folder,
}

impl Guarded {
    fn start(flags: &[&str]) -> Guarded {
        let keys = Folder::new();
        let key = json!({"kty": "oct", "alg": "HS256", "kid": "test", "k": SECRET});
        std::fs::write(keys.file("keys.json"), json!({"keys": [key]}).to_string()).unwrap();
        let usual = ["--keys", &keys.file("keys.json"), "--anonymous", "publish=>"];
        Guarded { hub: Hub::start(&[&usual[..], flags].concat()), _keys: keys }
    }

    /// A tab of the hub's origin, with the functions of [`SIGN`], and [`start`] of its page.
    fn open<'a>(&self, browser: &'a Browser, connect: &str) -> Tab<'a> {
        let tab = browser.open(&format!("http://{}/tabcast.js", self.address));
        start(&tab, self.address, connect);
        tab
    }

    /// The same, once messages arrive.
    fn open_connected<'a>(&self, browser: &'a Browser, connect: &str) -> Tab<'a> {
        let tab = self.open(browser, connect);
        tab.wait_for("window.hub?.connected");
        tab
    }
}

impl Deref for Guarded {
    type Target = Hub;

    fn deref(&self) -> &Hub {
        &self.hub
    }
}

/// Makes `hub`, a client of the hub at this address, by the expression `connect`. What it reports is in
/// `states`, and the data of each message in `seen`. `statuses` has the answers to renewals.
fn start(tab: &Tab, hub: SocketAddr, connect: &str) {
    tab.run(&format!("{};", SIGN.replace("SECRET", &format!("'{SECRET}'"))));
    tab.run(&format!(
        "window.seen = [], window.states = [], window.statuses = [], window.asked = 0;
         window.timer = setTimeout;
         const real = window.fetch;
         window.fetch = async (url, init) => {{
           const answer = await (window.instead?.(url, init) ?? real(url, init));
           if (/events\\/./.test(url)) statuses.push(answer.status);
           return answer;
         }};
         import('http://{hub}/tabcast.js').then(({{ connect }}) => {{
           window.hub = {connect};
           hub.on('tabcast:state', (now) => states.push(now));
           hub.onAny((event, data) => seen.push(data));
         }});"
    ));
}

/// Has each tab get a message after all others, and asserts that its page has seen this.
#[track_caller]
fn assert_seen(hub: &Hub, tabs: &[&Tab], expected: Value) {
    hub.publish("end");
    for tab in tabs {
        tab.wait_for("seen.at(-1) === 'end'");
        let mut seen = tab.get("seen");
        seen.as_array_mut().unwrap().pop();
        assert_eq!(seen, expected);
        tab.run("seen.length = 0;");
    }
}

/// The value of a promise, or the status and text of its error.
fn settled(tab: &Tab, promise: &str) -> Value {
    tab.run(&format!(
        "window.settled = undefined;
         {promise}.then((value) => {{ window.settled = [value]; }},
           ({{ status, message }}) => {{ window.settled = [{{ status, message }}]; }});"
    ));
    tab.wait_for("settled");
    tab.get("settled[0]")
}

/// Publishes numbers, one after the other, until `done` returns. Returns all that were published.
fn publish_during(hub: &Hub, done: impl FnOnce()) -> Vec<String> {
    let stopped = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let publish = |n: u64| {
            hub.publish(&n.to_string());
            std::thread::sleep(Duration::from_millis(10));
            n.to_string()
        };
        let load = scope
            .spawn(move || (1..).take_while(|_| !stopped.load(Ordering::Relaxed)).map(publish).collect());
        // Also if it panics, or the thread would never end.
        let result = catch_unwind(AssertUnwindSafe(done));
        stopped.store(true, Ordering::Relaxed);
        let all = load.join().unwrap();
        result.unwrap_or_else(|panic| resume_unwind(panic));
        all
    })
}

#[test]
fn streams_outlive_their_tokens_and_miss_nothing() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    // Of its renewals, each fourth is refused by whatever is between the page and the hub.
    let connect = "(window.instead = (url) => /events\\/./.test(url) && statuses.length % 4 === 3
           ? new Response('', { status: 404 }) : undefined,
         connect({ token: () => (asked += 1, sign('ada', 2)) }))";
    let holders = [hub.open_connected(&browser, connect), hub.open_connected(&browser, connect)];
    let sharer = hub.open_connected(&browser, "connect({ token: () => sign('ada', 2) })");
    sharer.wait_for("hub.state === 'shared'");
    let all = publish_during(&hub, || {
        for tab in &holders {
            assert_eq!(tab.get("hub.state"), "live");
            tab.wait_for("statuses.filter((status) => status === 204).length >= 10");
            tab.wait_for("statuses.filter((status) => status === 404).length >= 3");
        }
    });
    assert_seen(&hub, &[&holders[0], &holders[1], &sharer], json!(all));
    for tab in [&holders[0], &holders[1], &sharer] {
        assert_eq!(tab.get("states.filter(({ state }) => state === 'offline')"), json!([]));
    }
    // Each renewal has a token of its own.
    holders.iter().for_each(|tab| assert_eq!(tab.get("asked > statuses.length"), true));
    // A stream ends only because another was there in its place.
    let refused = |tab: &Tab| tab.get("statuses.filter((status) => status === 404).length").as_u64().unwrap();
    let replaced = holders.iter().map(refused).sum::<u64>() as usize;
    hub.wait_for_logs(&["subscriber connected"], 3 + replaced);
    assert_eq!(sharer.get("statuses"), json!([]));
}

#[test]
fn a_token_is_asked_for_once_until_it_ends_or_is_refused() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    let tab = hub.open(&browser, "connect({ token: async () => (asked += 1, sign('ada')) })");
    // These wait until the page is connected, and need the token all at once.
    let many = "Promise.all([1, 2, 3].map((n) => hub.emit('a', n)))";
    tab.wait_for("window.hub");
    settled(&tab, many);
    assert_eq!(tab.get("asked"), 1);

    // The hub refuses the token of two requests, the second one when there is another token.
    tab.run(
        "const held = window.held = [];
         window.instead = (url, { headers: { Authorization: token } }) => {
           window.old ??= token;
           if (token === old) return new Promise((resolve) => held.push(resolve));
         };
         window.emitted = hub.emit('a', 4);
         dispatchEvent(new Event('online'));",
    );
    tab.wait_for("held.length === 2");
    tab.run("held[0](new Response('', { status: 401 }));");
    tab.wait_for("asked === 2");
    tab.run("held[1](new Response('', { status: 401 }));");
    assert!(settled(&tab, "emitted").is_string());
    hub.wait_for_logs(&["subscriber connected"], 2);
    assert_eq!(tab.get("asked"), 2);

    // It refuses every token.
    tab.run(
        "window.instead = async () => Response.json({ detail: 'the token was revoked' }, { status: 401 });",
    );
    let refused = json!({"status": 401, "message": "the token was revoked"});
    assert_eq!(settled(&tab, "hub.emit('a', 5)"), refused);
    assert_eq!(tab.get("asked"), 3);

    // A page that comes back may have another login.
    tab.run("window.instead = undefined; hub.disconnect().connect();");
    tab.wait_for("hub.connected");
    assert_eq!(tab.get("asked"), 4);
    assert_seen(&hub, &[&tab], json!([1, 2, 3, 4]));
}

#[test]
fn a_page_that_fails_to_give_a_token_is_asked_again_and_its_error_is_the_reason() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    // The longest time that the page may take is cut short.
    let connect = "(window.setTimeout = (act, ms) => timer(act, ms === 30_000 ? 500 : ms),
         connect({ token: () => {
           asked += 1;
           if (asked === 1) throw new Error('no login');
           if (asked === 2) return new Promise(() => {});
           if (asked === 3) return undefined;
           return sign('ada');
         } }))";
    let tab = hub.open(&browser, connect);
    tab.wait_for("states.length");
    let failed = json!({"state": "offline", "recovered": 0, "reason": "no login"});
    assert_eq!(tab.get("states[0]"), failed);
    // Not refused by the hub: what is emitted meanwhile is sent once there is a token.
    assert!(settled(&tab, "hub.emit('a', 1)").is_string());
    tab.wait_for("hub.connected");
    assert_eq!(tab.get("asked"), 4);
}

#[test]
fn a_hub_that_refuses_the_token_or_its_grants_is_the_reason() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    let refused = hub.send("GET", "/events", &["Authorization: Bearer no token"], b"").json();
    for (token, reason) in [
        ("'no token'", refused["detail"].as_str().unwrap()),
        ("async () => ''", "`token` gives no token"),
        ("() => sign('ada', 60, { subscribe: ['other'] })", "the token does not grant `subscribe`"),
    ] {
        let tab = hub.open(&browser, &format!("connect({{ token: {token} }})"));
        tab.wait_for("states.length");
        let state = tab.get("states[0]");
        assert_eq!(state["state"], "offline", "{state}");
        assert!(state["reason"].as_str().unwrap().starts_with(reason), "{state}");
    }
}

#[test]
fn tabs_of_two_subjects_never_share_a_stream() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    let open = |subject| {
        let connect = format!("connect({{ id: 'x', token: () => sign('{subject}') }})");
        hub.open_connected(&browser, &connect)
    };
    let [ada, bob] = ["ada", "bob"].map(|subject| [open(subject), open(subject), open(subject)]);
    for tabs in [&ada, &bob] {
        tabs[2].wait_for("hub.state === 'shared'");
        assert_eq!([tabs[0].get("hub.state"), tabs[1].get("hub.state")], ["live", "live"]);
    }
    // That of the third was there until it had found the others.
    hub.wait_for_logs(&["subscriber disconnected"], 2);
    assert_eq!(hub.count_log("subscriber connected"), 6);

    // An id is its subject's own.
    settled(&ada[2], "hub.broadcast.emit('a', 'to all but ada')");
    settled(&bob[0], "hub.broadcast.emit('a', 'to all but bob')");
    assert_seen(&hub, &[&ada[0], &ada[1], &ada[2]], json!(["to all but bob"]));
    assert_seen(&hub, &[&bob[0], &bob[1], &bob[2]], json!(["to all but ada", "end"]));
}

#[test]
fn a_tab_keeps_its_stream_while_those_that_hold_one_are_refused() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    let open = || hub.open_connected(&browser, "connect({ token: () => sign('ada') })");
    let refused = [open(), open()];
    let refuse =
        "window.instead = () => new Response('', { status: 401 }); dispatchEvent(new Event('online'));";
    refused.iter().for_each(|tab| drop(tab.run(refuse)));
    refused.iter().for_each(|tab| tab.wait_for("hub.state === 'offline'"));
    let tab = open();
    assert_seen(&hub, &[&tab], json!([]));
    assert_eq!(tab.get("hub.state"), "live");
}

#[test]
fn a_tab_whose_tokens_become_another_subjects_leaves_the_others() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    let of_ada = hub.open_connected(&browser, "connect({ token: () => sign('ada') })");
    // The hub renews no stream for another subject: another stream takes its place, at the second attempt.
    let connect = "(window.instead = (url) => /events\\?/.test(url) && statuses.length && !window.failed
           ? (window.failed = true, new Response('', { status: 503 })) : undefined,
         connect({ id: 'x', token: () => asked++ ? sign('bob') : sign('ada', 12) }))";
    let becomes_bob = hub.open_connected(&browser, connect);
    let all = publish_during(&hub, || {
        hub.wait_for_log(&["subscriber disconnected", "subscriber=2"]);
    });
    assert_eq!(becomes_bob.get("[statuses, failed]"), json!([[403], true]));
    let log = hub.log();
    let place = |parts: [&str; 2]| log.iter().position(|line| parts.iter().all(|part| line.contains(part)));
    let opened = place(["subscriber connected", "subscriber=3"]);
    assert!(opened.is_some() && opened < place(["subscriber disconnected", "subscriber=2"]));
    let of_bob = hub.open_connected(&browser, "connect({ id: 'x', token: () => sign('bob') })");
    settled(&of_bob, "hub.broadcast.emit('a', 'to all but bob')");
    assert_seen(&hub, &[&becomes_bob], json!(all));
    assert_seen(&hub, &[&of_bob], json!(["end"]));
    assert_eq!(becomes_bob.get("states.filter(({ state }) => state === 'offline')"), json!([]));
    let state = of_ada.get("hub.state");
    assert_eq!(state, "live");
}

/// Sets the cookie to a token that ends after so many seconds.
fn log_in(tab: &Tab, subject: &str, seconds: u64) {
    let cookie =
        format!("sign('{subject}', {seconds}).then((token) => document.cookie = 'tabcast=' + token)");
    settled(tab, &cookie);
}

/// A tab whose page may set the cookie, and has no client.
fn open_login<'a>(hub: &Guarded, browser: &'a Browser) -> Tab<'a> {
    let tab = hub.open(browser, "{ on() {}, onAny() {} }");
    tab.wait_for("window.hub");
    tab
}

#[test]
fn tabs_with_the_cookie_of_one_subject_share_and_others_do_not() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    let login = open_login(&hub, &browser);
    let open = |subject| {
        log_in(&login, subject, 60);
        [(); 3].map(|()| hub.open_connected(&browser, "connect({ id: 'x' })"))
    };
    let [ada, bob] = ["ada", "bob"].map(open);
    for tabs in [&ada, &bob] {
        tabs[2].wait_for("hub.state === 'shared'");
        assert_eq!([tabs[0].get("hub.state"), tabs[1].get("hub.state")], ["live", "live"]);
    }
    hub.wait_for_logs(&["subscriber disconnected"], 2);
    settled(&bob[2], "hub.broadcast.emit('a', 'to all but bob')");
    assert_seen(&hub, &[&ada[0], &ada[1], &ada[2]], json!(["to all but bob"]));
    assert_seen(&hub, &[&bob[0], &bob[1], &bob[2]], json!(["end"]));
}

#[test]
fn a_page_renews_its_cookie_before_its_stream_ends_or_after() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    let login = open_login(&hub, &browser);
    log_in(&login, "ada", 3);
    let connect = "connect().on('tabcast:expiring', async () => {
           asked += 1;
           const life = window.isAway ? -60 : 3;
           document.cookie = `tabcast=${await sign('ada', life)}`;
         })";
    let tab = hub.open_connected(&browser, connect);
    let mut all = publish_during(&hub, || {
        tab.wait_for("statuses.filter((status) => status === 204).length >= 5");
    });
    assert_eq!(tab.get("states.filter(({ state }) => state === 'offline')"), json!([]));
    assert_eq!(hub.count_log("subscriber connected"), 1);

    // The hub says that the cookie has expired, as long as it has.
    all.extend(publish_during(&hub, || {
        tab.run("window.isAway = true;");
        tab.wait_for("hub.state === 'offline'");
        let reason = "states.at(-1).reason";
        assert_eq!(tab.get(reason), "the token has expired");
        tab.run("window.isAway = false;");
        tab.wait_for("hub.connected");
    }));
    assert_seen(&hub, &[&tab], json!(all));
}

#[test]
fn a_stream_that_ends_with_its_cookie_is_there_again_with_the_next() {
    let (hub, browser) = (Guarded::start(&["--keep-alive", "1min"]), Browser::start());
    let login = open_login(&hub, &browser);
    // The first page's renewals never reach the hub. The second page never has a cookie ready.
    let connects = [
        "(window.instead = (url) => /events\\/./.test(url) ? new Response(null, { status: 204 }) : undefined,
          connect())",
        "connect().on('tabcast:expiring', () => new Promise(() => {}))",
    ];
    for (connect, offline) in connects.iter().zip([0, 1]) {
        log_in(&login, "ada", 3);
        let tab = hub.open_connected(&browser, connect);
        let all = publish_during(&hub, || {
            // The cookie is renewed elsewhere.
            log_in(&login, "ada", 60);
            hub.wait_for_log(&["subscriber connected", &format!("subscriber={}", 2 * (offline + 1))]);
        });
        assert_seen(&hub, &[&tab], json!(all));
        assert_eq!(tab.get("states.filter(({ state }) => state === 'offline').length"), offline);
        tab.run("hub.disconnect();");
        hub.wait_for_logs(&["subscriber disconnected"], 2 * (offline + 1));
    }
}

const NO_LOCKS: &str = "Object.defineProperty(navigator, 'locks', { value: undefined })";

#[test]
fn without_web_locks_a_shared_worker_holds_the_stream_of_one_cookie() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    let login = open_login(&hub, &browser);
    let connect =
        format!("({NO_LOCKS}, connect({{ id: 'x' }}).on('tabcast:expiring', () => {{ asked += 1; }}))");
    let open = |(subject, seconds)| {
        log_in(&login, subject, seconds);
        [(); 2].map(|()| hub.open_connected(&browser, &connect))
    };
    let [ada, bob] = [("ada", 60), ("bob", 4)].map(open);
    log_in(&login, "bob", 60);
    for tab in ada.iter().chain(&bob) {
        assert_eq!(tab.get("hub.state"), "shared");
    }
    // The worker asks the pages for a cookie.
    bob.iter().for_each(|tab| tab.wait_for("asked"));
    assert_eq!(ada[0].get("asked"), 0);
    settled(&bob[0], "hub.broadcast.emit('a', 'to all but bob')");
    assert_seen(&hub, &[&ada[0], &ada[1]], json!(["to all but bob"]));
    assert_seen(&hub, &[&bob[0], &bob[1]], json!(["end"]));
}

#[test]
fn without_web_locks_a_tab_with_a_token_is_by_itself() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    let connect = format!("({NO_LOCKS}, connect({{ token: () => sign('ada') }}))");
    for _ in 0..3 {
        assert_eq!(hub.open_connected(&browser, &connect).get("hub.state"), "live");
    }
    assert_eq!(hub.count_log("subscriber disconnected"), 0);
}

#[test]
fn a_page_of_another_origin_has_a_token_or_the_hubs_cookie() {
    let (other, browser) = (Hub::start(&[]), Browser::start());
    let origin = format!("http://{}", other.address);
    let hub = Guarded::start(&["--allow-origin", &origin]);
    // A cookie is of a host, whatever the port.
    log_in(&open_login(&hub, &browser), "ada", 4);
    let url = format!("'http://{}'", hub.address);
    let tabs = [
        (hub.address, "connect({ token: () => sign('bob', 4) })".to_owned()),
        (hub.address, "connect({ credentials: true })".to_owned()),
        // A shared worker is of the page's own origin.
        (other.address, format!("({NO_LOCKS}, connect({url}, {{ credentials: true }}))")),
    ];
    let tabs = tabs.map(|(script, connect)| {
        let tab = browser.open(&format!("{origin}/messages?last=0"));
        start(&tab, script, &connect);
        tab.wait_for("window.hub?.connected");
        tab
    });
    assert_eq!(tabs[2].get("hub.state"), "shared");
    let all =
        publish_during(&hub, || tabs[..2].iter().for_each(|tab| tab.wait_for("statuses.includes(204)")));
    assert_seen(&hub, &[&tabs[0], &tabs[1], &tabs[2]], json!(all));
}

#[test]
fn a_stream_with_a_token_brings_what_an_event_source_would() {
    let (hub, browser) = (Guarded::start(&[]), Browser::start());
    let tab = hub.open_connected(&browser, "connect({ token: () => sign('ada') })");
    // Line ends within JSON, and more than a chunk of a body; characters of several bytes lie between chunks.
    let texts = json!(["a: b\n\nid: c", "\u{2028}\u{2029}", "\r\n", "", "\u{feff}é🦀".repeat(50_000)]);
    settled(&tab, &format!("Promise.all({texts}.map((text) => hub.emit('a', text)))"));
    assert_seen(&hub, &[&tab], texts);
    assert_eq!(hub.count_log("subscriber connected"), 1);
}
