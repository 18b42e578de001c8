//! Twenty tabs of one browser, and all that happens to tabs, hubs and networks: each tab is
//! delivered each message once, in order, and the hub holds two streams for all of them.
//!
//! In every test something publishes 50 messages a second as curl does, and the tabs answer each
//! in turn, until the harm is done and 600 messages are kept. `TABCAST_TAB_MESSAGES=5000` makes
//! that 5,000; `-- --nocapture` shows what came of it:
//!
//!     TABCAST_TAB_MESSAGES=5000 cargo test --release --test tabs -- --nocapture

mod browser;
mod common;
mod proxy;
mod record;

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use browser::{Browser, Tab};
use common::{Folder, Hub, PATIENCE, Response};
use proxy::{Mode, Proxy};
use record::{Answer, Question, Status, Tally, assert_sent, kept};
use serde_json::json;

const TABS: u64 = 20;
/// What a browser may hold at the hub, however many tabs it has.
const STREAMS: usize = 2;

/// How many messages are kept in the end, at least.
fn messages() -> u64 {
    std::env::var("TABCAST_TAB_MESSAGES")
        .map_or(600, |count| count.parse().expect("TABCAST_TAB_MESSAGES is a number"))
}

/// Held by a test while it runs: twenty tabs have use for all of a machine.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A hub with a journal that outlives it.
struct Site {
    hub: Hub,
    journal: Folder,
    flags: Vec<&'static str>,
}

impl Site {
    fn start(flags: &[&'static str]) -> Site {
        let journal = Folder::new();
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Site { hub: start(any_port, &journal, flags), journal, flags: flags.to_vec() }
    }

    fn kill(&mut self) {
        self.check_streams(0);
        self.hub.signal("KILL");
        self.hub.wait();
    }

    fn start_again(&mut self) {
        self.hub = start(self.hub.address, &self.journal, &self.flags);
    }

    /// How many messages the hub has kept.
    fn kept(&self) -> u64 {
        let newest = &self.hub.get("/messages?last=1").json()["messages"][0]["id"];
        newest.as_str().map_or(0, |id| id.split_once('-').unwrap().1.parse().unwrap())
    }

    /// The hub's log of its streams, as how many there were after each that came or went.
    fn streams(&self) -> Vec<usize> {
        let mut now = 0;
        let step = |line: &String| {
            if line.contains("subscriber connected") {
                now += 1;
            } else if line.contains("subscriber disconnected") {
                now -= 1;
            } else {
                return None;
            }
            Some(now)
        };
        self.hub.log().iter().filter_map(step).collect()
    }

    /// Checks that there were never more streams than two but in a hand-over, in which each may be
    /// there twice for a moment: four at most, and nothing more comes before it is two again. Tabs
    /// that can't react to anything may keep theirs beside these.
    fn check_streams(&self, unresponsive: usize) {
        let most = STREAMS + unresponsive;
        let streams = self.streams();
        for (place, step) in streams.windows(2).enumerate() {
            let goes = place > 0 && streams[place - 1] > step[0];
            let comes_meanwhile = goes && step[0] > most && step[1] > step[0];
            assert!(!comes_meanwhile && step[1] <= most + STREAMS, "more streams than {most}: {streams:?}");
        }
    }

    fn wait_for_streams(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.streams().last().copied().unwrap_or(0) != count {
            assert!(Instant::now() < deadline, "the streams are never {count}: {:?}", self.streams());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn start(address: SocketAddr, journal: &Folder, flags: &[&str]) -> Hub {
    Hub::start_at(address, &[&["--journal", &journal.file("tabcast.db"), "--hide-data"], flags].concat())
}

/// Publishes a `ping` 50 times a second, until it is told to stop.
struct Load {
    thread: Option<JoinHandle<()>>,
    acknowledged: Arc<AtomicU64>,
    unasked: Arc<AtomicBool>,
    stopped: Arc<AtomicBool>,
}

impl Load {
    const PER_SECOND: u64 = 50;

    fn start(hub: SocketAddr) -> Load {
        let (acknowledged, unasked, stopped) =
            <(Arc<AtomicU64>, Arc<AtomicBool>, Arc<AtomicBool>)>::default();
        let thread = std::thread::spawn({
            let (acknowledged, unasked, stopped) =
                (Arc::clone(&acknowledged), Arc::clone(&unasked), Arc::clone(&stopped));
            move || {
                let begun = Instant::now();
                for n in 1.. {
                    let due = begun + Duration::from_millis(n * 1_000 / Load::PER_SECOND);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    let to = (!unasked.load(Ordering::Relaxed)).then_some(n % TABS);
                    if stopped.load(Ordering::Relaxed) || !publish(hub, "ping", n, to, &stopped) {
                        return;
                    }
                    acknowledged.store(n, Ordering::Relaxed);
                }
            }
        });
        Load { thread: Some(thread), acknowledged, unasked, stopped }
    }

    /// Whether tabs are to answer.
    fn asks(&self, asks: bool) {
        self.unasked.store(!asks, Ordering::Relaxed);
    }

    /// The newest that is kept.
    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn wait_until(&self, count: u64) {
        // The hub may be away for a while, and then it takes as long as it takes.
        let deadline = Instant::now() + PATIENCE + Duration::from_millis(count * 1_000 / Load::PER_SECOND);
        while self.acknowledged() < count {
            assert!(Instant::now() < deadline, "{} of {count} are kept", self.acknowledged());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The number of the last.
    fn stop(mut self) -> u64 {
        self.stopped.store(true, Ordering::Relaxed);
        self.thread.take().map(JoinHandle::join);
        self.acknowledged()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
    }
}

/// Publishes as `curl --retry` does with an Idempotency-Key: on a connection of its own, again and
/// again until the hub has answered or nobody waits for it any more. True if it has.
fn publish(hub: SocketAddr, event: &str, n: u64, to: Option<u64>, stopped: &AtomicBool) -> bool {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let body = json!({"event": event, "data": {"n": n, "to": to, "at": at}}).to_string();
    let request = format!(
        "POST /messages HTTP/1.1\r\nHost: {hub}\r\nContent-Type: application/json\r\nIdempotency-Key: {event}-{n}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let attempt = || {
        let mut connection = TcpStream::connect(hub).ok()?;
        connection.set_read_timeout(Some(PATIENCE)).ok()?;
        connection.write_all(request.as_bytes()).ok()?;
        Some(Response::read(&mut BufReader::new(connection), false)).filter(|response| response.status > 0)
    };
    loop {
        match attempt() {
            Some(response) => {
                assert_eq!(response.status, 201, "{response:?}");
                return true;
            }
            None if stopped.load(Ordering::Relaxed) => return false,
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// The tabs of a browser, each with a page that writes its record. One that is closed or crashed is
/// there no more. All are out of sight: before them is one that has no part in it.
struct Tabs<'a> {
    front: Tab<'a>,
    tabs: Vec<Option<Tab<'a>>>,
    crashed: Vec<Tab<'a>>,
    /// Those that were harmed: they can't be as quick as the others.
    harmed: Vec<usize>,
}

impl<'a> Tabs<'a> {
    fn open(browser: &'a Browser, host: &str) -> Tabs<'a> {
        // Any page of the hub's that does nothing itself will do: the script is the page.
        let page = format!("http://{host}/tabcast.js");
        let front = browser.open(&page);
        let open = |number| {
            let tab = browser.blank();
            tab.run_in_every_page(&format!("window.number = {number};\n{}", record::SCRIPT));
            tab.go(&page);
            Some(tab)
        };
        let tabs =
            Tabs { front, tabs: (0..TABS).map(open).collect(), crashed: Vec::new(), harmed: Vec::new() };
        tabs.wait_until(&tabs.all(), "connected", |status| status.connected);
        tabs
    }

    /// The numbers of those that are there.
    fn all(&self) -> Vec<usize> {
        (0..self.tabs.len()).filter(|number| self.tabs[*number].is_some()).collect()
    }

    fn all_but(&self, these: &[usize]) -> Vec<usize> {
        self.all().into_iter().filter(|number| !these.contains(number)).collect()
    }

    fn ask(&self, question: Question) -> Vec<Answer> {
        record::ask(&self.front, question, &self.all())
    }

    /// Whether all these come to be so.
    fn become_so(&self, these: &[usize], is_so: impl Fn(&Status) -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        let mut left = these.to_vec();
        loop {
            let answers = record::ask(&self.front, Question::default(), these);
            left.retain(|number| {
                !answers.iter().any(|answer| answer.number == *number && is_so(&answer.status))
            });
            if left.is_empty() || Instant::now() > deadline {
                return left.is_empty();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_until(&self, these: &[usize], what: &str, is_so: impl Fn(&Status) -> bool) {
        if !self.become_so(these, is_so) {
            let answers = self.ask(Question::default());
            let now: Vec<_> = answers.iter().map(|answer| (answer.number, &answer.status)).collect();
            panic!("not all of {these:?} are ever {what}: {now:?}");
        }
    }

    /// Waits until each has what is kept by now.
    fn wait_until_caught_up(&self, load: &Load) {
        self.wait_until_these_have_caught_up(&self.all(), load);
    }

    fn wait_until_these_have_caught_up(&self, these: &[usize], load: &Load) {
        // One that is published after whatever was done.
        let newest = load.acknowledged() + 1;
        load.wait_until(newest);
        self.wait_until(these, &format!("at {newest}"), |status| status.newest >= newest);
    }

    fn wait_until_all_are_offline(&self) {
        self.wait_until(&self.all(), "offline", |status| status.state == "offline");
    }

    /// Says how long messages took since this was last said, between those that were not harmed.
    fn say_delays(&self, what: &str) {
        let (mut from_curl, mut from_tab) = (0.0_f64, 0.0_f64);
        for answer in self.ask(Question { forget: true, ..Question::default() }) {
            if self.harmed.contains(&answer.number) {
                continue;
            }
            for (from, delay_ms) in answer.slowest {
                match from.parse() {
                    Ok(from) if self.harmed.contains(&from) => {}
                    Ok(_) => from_tab = from_tab.max(delay_ms),
                    Err(_) => from_curl = from_curl.max(delay_ms),
                }
            }
        }
        println!("  {what:<26} worst delay from curl {from_curl:>6} ms, from a tab {from_tab:>6} ms");
    }

    /// The numbers of the two that hold a stream of their own.
    fn holders(&self, site: &Site) -> [usize; 2] {
        site.wait_for_streams(STREAMS);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut answers = self.ask(Question::default());
            answers.retain(|answer| answer.status.state == "live");
            match answers[..] {
                [ref one, ref other] => return [one.number, other.number],
                _ => assert!(Instant::now() < deadline, "the holders are {answers:?}"),
            }
        }
    }

    /// Each sends something of its own, whatever the hub does. `n` is no number of a `ping`.
    fn all_send(&self, n: u64) {
        self.ask(Question { send: vec![n, n + 1, n + 2], ..Question::default() });
    }

    /// One that is to be harmed.
    fn get(&mut self, number: usize) -> &Tab<'a> {
        self.harmed.push(number);
        self.tabs[number].as_ref().unwrap()
    }

    fn reload(&mut self, number: usize) {
        self.get(number).refresh();
        self.wait_until(&[number], "connected", |status| status.connected);
    }

    fn close(&mut self, number: usize) {
        self.tabs[number].take().unwrap().close();
    }

    fn crash(&mut self, number: usize) {
        let tab = self.tabs[number].take().unwrap();
        tab.crash();
        self.crashed.push(tab);
    }

    /// Waits until each has all there is, checks what they have seen and sent, and closes them.
    fn finish(self, scenario: &str, load: Load, site: &Site) {
        load.asks(true);
        while site.kept() < messages() {
            load.wait_until(load.acknowledged() + 10);
        }
        let last = load.stop();
        // Without a word if it doesn't come to that: the tally says what is missing.
        self.become_so(&self.all(), |status| status.newest >= last && status.settled);
        assert!(publish(site.hub.address, "end", last + 1, None, &AtomicBool::new(true)));
        self.become_so(&self.all(), |status| status.ended);

        let kept = kept(&site.hub);
        let answers = self.ask(Question { whole: true, ..Question::default() });
        let records: Vec<_> =
            answers.into_iter().map(|answer| (answer.number, answer.record.unwrap())).collect();
        let mut all = Tally::default();
        for (number, record) in &records {
            let tally = Tally::of(record, &kept);
            if !tally.is_exact() {
                eprintln!("tab {number}: {tally}");
            }
            all += tally;
        }
        let most = *site.streams().iter().max().unwrap();
        println!(
            "{scenario:<31} {:>2} tabs, kept {:>5}, {all}, most streams {most}",
            records.len(),
            kept.len()
        );
        assert_eq!(records.len(), self.all().len(), "a tab does not answer");
        assert!(all.is_exact());
        for (number, record) in &records {
            assert_sent(*number as u64, record, &kept);
        }
        self.leave(site);
    }

    /// Closes all but one, which goes elsewhere; its page may be kept for its return. After that
    /// the hub holds nothing for them.
    fn leave(self, site: &Site) {
        let mut tabs = self.tabs.into_iter().flatten().chain(self.crashed);
        tabs.next().unwrap().go("about:blank");
        tabs.for_each(Tab::close);
        site.wait_for_streams(0);
    }
}

#[test]
fn twenty_tabs_are_delivered_every_message_once_and_in_order_and_all_can_send() {
    let _alone = alone();
    let (site, browser) = (Site::start(&[]), Browser::start());
    let tabs = Tabs::open(&browser, &site.hub.address.to_string());
    let load = Load::start(site.hub.address);
    tabs.finish("nothing happens", load, &site);
    site.check_streams(0);
}

#[test]
fn it_is_so_while_those_that_hold_a_stream_are_closed_reloaded_crashed_and_hang() {
    let _alone = alone();
    let (site, browser) = (Site::start(&[]), Browser::start());
    let mut tabs = Tabs::open(&browser, &site.hub.address.to_string());
    let load = Load::start(site.hub.address);
    tabs.wait_until_caught_up(&load);
    for number in tabs.holders(&site) {
        tabs.close(number);
    }
    tabs.wait_until_caught_up(&load);
    tabs.say_delays("both holders closed");
    for number in tabs.holders(&site) {
        tabs.reload(number);
    }
    tabs.wait_until_caught_up(&load);
    tabs.say_delays("both reloaded");
    if browser::lacks("crash and hang, for tabs share a process") {
        return tabs.finish("closed, reloaded", load, &site);
    }
    for number in tabs.holders(&site) {
        tabs.crash(number);
    }
    tabs.wait_until_caught_up(&load);
    tabs.say_delays("both crashed");
    site.check_streams(0);
    let holders = tabs.holders(&site);
    for (hung, what) in
        [(&holders[..1], "one hung"), (&holders[1..], "the other hung"), (&holders, "both hung")]
    {
        let wake = format!("wake {what}=1");
        let hangs = |number: usize| format!("{number} is {what}=1");
        for number in hung {
            tabs.get(*number).hang(Duration::from_secs(5), &hangs(*number), &wake);
        }
        for number in hung {
            tabs.front.wait_for(&format!("document.cookie.includes('{}')", hangs(*number)));
        }
        tabs.wait_until_these_have_caught_up(&tabs.all_but(hung), &load);
        tabs.front.run(&format!("document.cookie = '{wake}';"));
        tabs.wait_until_caught_up(&load);
        tabs.say_delays(what);
    }
    site.wait_for_streams(STREAMS);
    tabs.finish("closed, reloaded, crashed, hung", load, &site);
    site.check_streams(2);
}

#[test]
fn it_is_so_while_those_that_hold_a_stream_are_frozen() {
    if browser::lacks("freeze") {
        return;
    }
    let _alone = alone();
    let (site, browser) = (Site::start(&[]), Browser::start());
    let mut tabs = Tabs::open(&browser, &site.hub.address.to_string());
    let load = Load::start(site.hub.address);
    tabs.wait_until_caught_up(&load);
    let frozen = tabs.holders(&site);
    for number in frozen {
        tabs.get(number).freeze();
    }
    tabs.wait_until_these_have_caught_up(&tabs.all_but(&frozen), &load);
    for number in frozen {
        tabs.get(number).thaw();
    }
    tabs.wait_until_caught_up(&load);
    tabs.say_delays("both frozen");
    site.wait_for_streams(STREAMS);
    tabs.finish("frozen", load, &site);
    site.check_streams(0);
}

#[test]
fn it_is_so_while_the_hub_is_killed_and_started_again() {
    let _alone = alone();
    let (mut site, browser) = (Site::start(&[]), Browser::start());
    let tabs = Tabs::open(&browser, &site.hub.address.to_string());
    let load = Load::start(site.hub.address);
    tabs.wait_until_caught_up(&load);
    site.kill();
    tabs.wait_until_all_are_offline();
    tabs.all_send(1_000_000);
    site.start_again();
    tabs.wait_until_caught_up(&load);
    tabs.say_delays("hub killed, back later");
    // Before anybody notices.
    site.kill();
    site.start_again();
    tabs.wait_until_caught_up(&load);
    tabs.say_delays("hub killed, back at once");
    site.wait_for_streams(STREAMS);
    tabs.finish("hub killed twice", load, &site);
    site.check_streams(0);
}

#[test]
fn it_is_so_behind_a_proxy_that_cuts_and_refuses_connections() {
    let _alone = alone();
    let (site, browser) = (Site::start(&[]), Browser::start());
    let proxy = Proxy::start(site.hub.address);
    let tabs = Tabs::open(&browser, &proxy.address.to_string());
    let load = Load::start(site.hub.address);
    tabs.wait_until_caught_up(&load);
    proxy.cut();
    tabs.wait_until_caught_up(&load);
    tabs.say_delays("all connections cut");
    for status in [502, 503] {
        proxy.set(Mode::Answer(status));
        // An EventSource alone gives up at the first.
        proxy.wait_until_met(3 * STREAMS);
        tabs.wait_until_all_are_offline();
        tabs.all_send(1_000 * u64::from(status));
        proxy.set(Mode::Pass);
        tabs.wait_until_caught_up(&load);
        tabs.say_delays(&format!("{status} for a while"));
    }
    site.wait_for_streams(STREAMS);
    tabs.finish("cut, 502, 503", load, &site);
    site.check_streams(0);
}

#[test]
fn it_is_so_behind_a_proxy_that_goes_silent_and_leaves_connections_half_open() {
    let _alone = alone();
    let (site, browser) = (Site::start(&["--keep-alive", "1s"]), Browser::start());
    let proxy = Proxy::start(site.hub.address);
    let tabs = Tabs::open(&browser, &proxy.address.to_string());
    let load = Load::start(site.hub.address);
    tabs.wait_until_caught_up(&load);
    // With requests on the browser's other connections, and with none: it then takes these, which
    // are as dead, for the first it makes to come back.
    for (asks, what) in [(true, "half-open"), (false, "half-open, nothing sent")] {
        load.asks(asks);
        tabs.wait_until_caught_up(&load);
        tabs.wait_until(&tabs.all(), "without a request", |status| asks || status.settled);
        proxy.set(Mode::Swallow);
        tabs.wait_until_all_are_offline();
        proxy.set(Mode::Pass);
        tabs.wait_until_caught_up(&load);
        tabs.say_delays(what);
    }
    site.wait_for_streams(STREAMS);
    tabs.finish("half-open", load, &site);
    site.check_streams(0);
}

#[test]
fn it_is_so_where_pages_have_no_locks_while_the_tab_that_made_the_worker_crashes() {
    let _alone = alone();
    let (mut site, browser) =
        (Site::start(&["--allow-host", "lan.test"]), Browser::start_with_hosts(&["lan.test"]));
    let mut tabs = Tabs::open(&browser, &format!("lan.test:{}", site.hub.address.port()));
    assert_eq!(tabs.front.get("isSecureContext || 'locks' in navigator"), false);
    let load = Load::start(site.hub.address);
    tabs.wait_until_caught_up(&load);
    if browser::lacks("crash; it is closed") {
        tabs.close(0);
    } else {
        tabs.crash(0);
    }
    tabs.wait_until_caught_up(&load);
    tabs.say_delays("worker's tab crashed");
    tabs.close(1);
    tabs.reload(2);
    tabs.wait_until_caught_up(&load);
    tabs.say_delays("others closed, reloaded");
    site.kill();
    site.start_again();
    tabs.wait_until_caught_up(&load);
    tabs.say_delays("hub killed, back at once");
    tabs.finish("insecure origin", load, &site);
    site.check_streams(0);
}

/// What would run if anything took it for more than text. `ran()` tells.
const PAYLOADS: [&str; 21] = [
    "<script>ran()</script>",
    "</script><script>ran()</script>",
    "<script src=//127.0.0.1:9/x.js></script>",
    "<img src=x onerror=ran()>",
    "<svg/onload=ran()>",
    "<svg><script>ran()</script></svg>",
    "<iframe srcdoc='<script>parent.ran()</script>'>",
    "<iframe src=javascript:parent.ran()>",
    "<a href=javascript:ran() autofocus onfocus=ran()>x",
    "<input autofocus onfocus=ran()>",
    "<details open ontoggle=ran()>x",
    "<style onload=ran()>*{display:none}</style>",
    "<math><mtext><style><img src=x onerror=ran()>",
    "<!--><img src=x onerror=ran()>-->",
    "\"'><img src=x onerror=ran()>",
    "';ran();//\";ran();//`;ran();//",
    "${ran()}{{constructor.constructor('ran()')()}}",
    "javascript:ran()",
    "data:text/html,<script>parent.ran()</script>",
    "__proto__",
    "constructor",
];

/// A tab with the hub's page, in which nothing keeps a script from running that got there.
fn open_without_protection<'a>(browser: &'a Browser, url: &str) -> Tab<'a> {
    let tab = browser.blank();
    tab.without_content_security_policy();
    tab.run_in_every_page("window.ran = () => { window.hasRun = true; };");
    tab.go(url);
    tab
}

#[test]
fn nothing_runs_of_what_is_sent_as_data_event_or_channel() {
    if browser::lacks("a page without its policy") {
        return;
    }
    let _alone = alone();
    let (site, browser) = (Site::start(&[]), Browser::start());
    let query = "%3Cscript%3Eran()%3C/script%3E%3Cimg%20src=x%20onerror=ran()%3E";
    let page = format!("http://{}/?channel={query}#{query}", site.hub.address);
    // The third is told by another what there is.
    let tabs = [(); 3].map(|()| open_without_protection(&browser, &page));
    for tab in &tabs {
        tab.wait_for("['live', 'shared'].includes(document.getElementById('status').dataset.state)");
        // As somebody's own page uses the client.
        let script = "
          window.payloads = $PAYLOADS;
          window.got = [];
          window.refused = [];
          import('/tabcast.js').then(({ connect }) => {
            window.hub = connect({ channel: 'payloads' });
            payloads.forEach((payload) => hub.on(payload, (data, { event }) => got.push([payload, event, data])));
          });";
        tab.run(&script.replace("$PAYLOADS", &json!(PAYLOADS).to_string()));
        tab.wait_for("window.hub?.connected");
    }

    let is_channel_name =
        |payload: &str| payload.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    for payload in PAYLOADS {
        for (body, status) in [
            (json!({"data": payload, "event": payload}), 201),
            (json!({"data": {payload: payload}, "event": payload}), 201),
            (json!({"data": payload, "channel": payload}), if is_channel_name(payload) { 201 } else { 422 }),
        ] {
            let answer = site.hub.post("", "application/json", body.to_string());
            assert_eq!(answer.status, status, "{body}: {answer:?}");
        }
    }
    site.hub.publish("end");
    tabs[2].run("payloads.forEach((payload) => hub.emit(payload, payload));");
    tabs[2].run(
        "payloads.forEach((channel) => hub.emit('x', channel, { channel })
           .catch(({ status, message }) => refused.push([status, message])));",
    );
    tabs[2].run("hub.emit('end', 'end').then(() => { window.sent = true; });");

    let (mut events, mut texts, mut got) = (Vec::new(), Vec::new(), Vec::new());
    for payload in PAYLOADS {
        events.extend([payload, payload]);
        texts.extend([payload.to_owned(), json!({payload: payload}).to_string()]);
        got.push([payload; 3]);
    }
    events.push("");
    texts.push("end".to_owned());
    for tab in &tabs {
        tab.wait_for("document.querySelector('#messages li:last-child .data')?.textContent === 'end'");
        let text = |class: &str| {
            tab.get(&format!("[...document.querySelectorAll('.{class}')].map(e => e.textContent)"))
        };
        assert_eq!(text("event"), json!(events));
        assert_eq!(text("data"), json!(texts));
        assert_eq!(
            tab.get(
                "[...new Set([...document.querySelectorAll('#messages *')].map(e => e.localName))].sort()"
            ),
            json!(["li", "p", "span", "time"])
        );
        tab.wait_for(&format!("got.length >= {}", got.len()));
        assert_eq!(tab.get("got"), json!(got));
    }
    tabs[2].wait_for("window.sent");
    let refused = PAYLOADS.iter().filter(|payload| !is_channel_name(payload)).count();
    assert_eq!(tabs[2].get("refused"), json!(vec![json!([422, "Unprocessable Entity"]); refused]));
    // A page may also be asked to listen to one.
    tabs[2].run(
        "import('/tabcast.js').then(({ connect }) => {
           window.other = connect({ channel: payloads[0] });
           other.emit('x').catch(({ status }) => { window.refusal = status; });
         });",
    );
    tabs[2].wait_for("window.other?.state === 'offline' && window.refusal === 422");
    for tab in &tabs {
        assert_eq!(tab.get("window.hasRun ?? false"), false);
        assert_eq!(tab.alert(), None);
    }
    // They could have: nothing else keeps a script from running here.
    tabs[0].run("document.getElementById('messages').innerHTML = payloads[3];");
    tabs[0].wait_for("window.hasRun");
}
