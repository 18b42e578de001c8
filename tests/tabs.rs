//! Twenty tabs of one browser, and all that may happen to tabs, hubs and networks: each tab gets each message
//! once, in order, and the hub has two streams for all of them.
//!
//! In every [`scenario`] a thread publishes 50 messages a second as curl does, and the tabs answer them in
//! turn, until the harm is done and 600 messages are kept. `TABCAST_TAB_MESSAGES=5000` makes that 5,000, and
//! `--nocapture` shows the results:
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
use common::{Hub, PATIENCE, Response, Site, request};
use proxy::{Mode, Proxy};
use record::{Answer, Question, Status, Tally, assert_sent, kept};
use serde_json::json;

const TABS: u64 = 20;
/// The streams that a browser may have at the hub, however many tabs it has.
const STREAMS: usize = 2;

/// How many messages the hub keeps before a scenario ends, at least.
fn messages() -> u64 {
    std::env::var("TABCAST_TAB_MESSAGES")
        .map_or(600, |count| count.parse().expect("TABCAST_TAB_MESSAGES is a number"))
}

/// A lock that each test holds while it runs: twenty tabs take all of a machine.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many streams the hub had after each that it logged as opened or ended. Not those that a page gave up
/// as soon as they were there: Chromium keeps the connection of such a response for five seconds, to use it
/// again.
fn streams(hub: &Hub) -> Vec<usize> {
    let log = hub.log();
    let value = |line: &str, name: &str| -> Option<u64> {
        line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    let is_kept = |line: &&String| {
        value(line, "sent") == Some(0)
            && value(line, "duration_ms").is_some_and(|time| (5_000..5_100).contains(&time))
    };
    let kept: Vec<_> = log.iter().filter(is_kept).map(|line| value(line, "subscriber")).collect();
    let mut now = 0;
    let step = |line: &String| {
        let is_connect = line.contains("subscriber connected");
        if !is_connect && !line.contains("subscriber disconnected")
            || kept.contains(&value(line, "subscriber"))
        {
            return None;
        }
        if is_connect {
            now += 1
        } else {
            now -= 1
        }
        Some(now)
    };
    log.iter().filter_map(step).collect()
}

/// Checks that there were never more than two streams but in a hand-over. Each may then be there twice for a
/// moment: four at most, and no other opens before there are two again. Tabs that are `unresponsive` may keep
/// theirs besides.
fn check_streams(hub: &Hub, unresponsive: usize) {
    let most = STREAMS + unresponsive;
    let streams = streams(hub);
    for (place, step) in streams.windows(2).enumerate() {
        let was_ending = place > 0 && streams[place - 1] > step[0];
        let opens_meanwhile = was_ending && step[0] > most && step[1] > step[0];
        assert!(!opens_meanwhile && step[1] <= most + STREAMS, "more streams than {most}: {streams:?}");
    }
}

fn wait_for_streams(hub: &Hub, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while streams(hub).last().copied().unwrap_or(0) != count {
        assert!(Instant::now() < deadline, "the streams are never {count}: {:?}", streams(hub));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A thread that publishes a `ping` 50 times a second until it is stopped.
struct Load {
    thread: Option<JoinHandle<()>>,
    /// The number of the newest `ping` that was acknowledged.
    acknowledged: Arc<AtomicU64>,
    /// Whether tabs are not to answer.
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

    /// Sets whether tabs are to answer.
    fn asks(&self, asks: bool) {
        self.unasked.store(!asks, Ordering::Relaxed);
    }

    /// The number of the newest `ping` that was acknowledged.
    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    fn wait_until(&self, count: u64) {
        // The hub may be away for a while: the time that `count` takes is added.
        let deadline = Instant::now() + PATIENCE + Duration::from_millis(count * 1_000 / Load::PER_SECOND);
        while self.acknowledged() < count {
            assert!(Instant::now() < deadline, "{} of {count} are kept", self.acknowledged());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Stops the thread, and returns the number of the last `ping`.
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

/// Publishes as `curl --retry` does with an Idempotency-Key: on a connection of its own, again and again
/// until the hub has answered or `stopped` is set. True if the hub has answered.
fn publish(hub: SocketAddr, event: &str, n: u64, to: Option<u64>, stopped: &AtomicBool) -> bool {
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let body = json!({"event": event, "data": {"n": n, "to": to, "at": at}}).to_string();
    let headers = ["Content-Type: application/json", &format!("Idempotency-Key: {event}-{n}")];
    let request = request("POST /messages HTTP/1.1", hub, &headers, Some(body.as_bytes()));
    let attempt = || {
        let mut connection = TcpStream::connect(hub).ok()?;
        connection.set_read_timeout(Some(PATIENCE)).ok()?;
        connection.write_all(&request).ok()?;
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

/// The tabs of a browser, each with a page that writes its record.
struct Tabs<'a> {
    /// The tab in sight, with a page that writes no record: all others are out of sight.
    front: Tab<'a>,
    /// `None` for a tab that was closed or has crashed.
    tabs: Vec<Option<Tab<'a>>>,
    crashed: Vec<Tab<'a>>,
    /// The numbers of the tabs that were harmed, which can't be as quick as the others.
    harmed: Vec<usize>,
}

impl<'a> Tabs<'a> {
    fn open(browser: &'a Browser, host: &str) -> Tabs<'a> {
        // Any page of the hub's that does nothing itself: the record's script does all.
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

    /// The numbers of the tabs that are there.
    fn all(&self) -> Vec<usize> {
        (0..self.tabs.len()).filter(|number| self.tabs[*number].is_some()).collect()
    }

    fn all_but(&self, these: &[usize]) -> Vec<usize> {
        self.all().into_iter().filter(|number| !these.contains(number)).collect()
    }

    fn ask(&self, question: Question) -> Vec<Answer> {
        record::ask(&self.front, question, &self.all())
    }

    /// Waits until `is_so` of all these tabs; false if that never comes.
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

    /// Waits until each tab has every message that is acknowledged by now.
    fn wait_until_caught_up(&self, load: &Load) {
        self.wait_until_these_have_caught_up(&self.all(), load);
    }

    fn wait_until_these_have_caught_up(&self, these: &[usize], load: &Load) {
        // The first `ping` after whatever was done.
        let newest = load.acknowledged() + 1;
        load.wait_until(newest);
        self.wait_until(these, &format!("at {newest}"), |status| status.newest >= newest);
    }

    fn wait_until_all_are_offline(&self) {
        self.wait_until(&self.all(), "offline", |status| status.state == "offline");
    }

    /// Prints how long messages between tabs that were not harmed took at most since this was last printed.
    fn print_delays(&self, what: &str) {
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

    /// The numbers of the two tabs that have a stream of their own.
    fn holders(&self, hub: &Hub) -> [usize; 2] {
        wait_for_streams(hub, STREAMS);
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

    /// Has each tab send messages of its own, whatever the hub does. `n` is a number that no `ping` has.
    fn all_send(&self, n: u64) {
        self.ask(Question { send: vec![n, n + 1, n + 2], ..Question::default() });
    }

    /// A tab that is to be harmed.
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

    /// Waits until each tab has everything, checks what the tabs have got and sent, and closes them.
    fn finish(self, scenario: &str, load: Load, hub: &Hub) {
        load.asks(true);
        while sequence(hub.newest()["id"].as_str().unwrap()) < messages() {
            load.wait_until(load.acknowledged() + 10);
        }
        let last = load.stop();
        // If that never comes, the tally below says what is missing.
        self.become_so(&self.all(), |status| status.newest >= last && status.settled);
        assert!(publish(hub.address, "end", last + 1, None, &AtomicBool::new(true)));
        self.become_so(&self.all(), |status| status.ended);

        let kept = kept(hub);
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
        let most = *streams(hub).iter().max().unwrap();
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
        self.leave(hub);
    }

    /// Closes all tabs but one, which goes elsewhere; the browser may keep its page for the way back. Then
    /// the hub has no stream left.
    fn leave(self, hub: &Hub) {
        let mut tabs = self.tabs.into_iter().flatten().chain(self.crashed);
        tabs.next().unwrap().go("about:blank");
        tabs.for_each(Tab::close);
        wait_for_streams(hub, 0);
    }
}

/// The sequence in an id, which is also the number of messages up to that one.
fn sequence(id: &str) -> u64 {
    id.split_once('-').unwrap().1.parse().unwrap()
}

/// How the tabs of a scenario reach the hub.
enum Way {
    /// By its address.
    Direct,
    /// By the address of a proxy.
    Proxied,
    /// By this host name, which browsers do not trust as they trust an address of loopback.
    Named(&'static str),
}

/// A hub, twenty tabs and a load, to which a scenario does harm.
struct Scene<'a> {
    site: Site,
    hub: Hub,
    /// Only if the tabs' way is [`Way::Proxied`].
    proxy: Option<Proxy>,
    tabs: Tabs<'a>,
    load: Load,
    /// Tabs that were left unable to end their streams for a while.
    unresponsive: usize,
}

impl Scene<'_> {
    /// Waits until each tab has every message again, and prints how long that took.
    fn recover(&self, from: &str) {
        self.tabs.wait_until_caught_up(&self.load);
        self.tabs.print_delays(from);
    }

    fn holders(&self) -> [usize; 2] {
        self.tabs.holders(&self.hub)
    }

    fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().expect("the way is Way::Proxied")
    }

    fn kill_hub(&mut self) {
        check_streams(&self.hub, 0);
        self.hub.end("KILL");
    }

    fn start_hub(&mut self) {
        self.hub = self.site.start();
    }
}

/// Opens twenty tabs and publishes, does this harm, and checks that each tab has got each message once and in
/// order and that the hub has had no more streams than it should.
fn scenario(name: &str, flags: &[&str], way: Way, harm: impl FnOnce(&mut Scene<'_>)) {
    let _alone = alone();
    let site = Site::new(&[flags, &["--hide-data"]].concat());
    let hub = site.start();
    let (browser, proxy, host) = match way {
        Way::Direct => (Browser::start(), None, hub.address.to_string()),
        Way::Proxied => {
            let proxy = Proxy::start(hub.address, Mode::Pass);
            let host = proxy.address.to_string();
            (Browser::start(), Some(proxy), host)
        }
        Way::Named(name) => {
            (Browser::start_with_hosts(&[name]), None, format!("{name}:{}", hub.address.port()))
        }
    };
    let tabs = Tabs::open(&browser, &host);
    let load = Load::start(hub.address);
    tabs.wait_until_caught_up(&load);
    let mut scene = Scene { site, hub, proxy, tabs, load, unresponsive: 0 };
    harm(&mut scene);
    // `site` and `proxy` have to outlast the tabs.
    let Scene { site: _site, hub, proxy: _proxy, tabs, load, unresponsive } = scene;
    tabs.finish(name, load, &hub);
    check_streams(&hub, unresponsive);
}

#[test]
fn twenty_tabs_get_every_message_once_and_in_order_and_all_can_send() {
    scenario("nothing happens", &[], Way::Direct, |_| {});
}

fn close_and_reload_holders(scene: &mut Scene<'_>) {
    for number in scene.holders() {
        scene.tabs.close(number);
    }
    scene.recover("both holders closed");
    for number in scene.holders() {
        scene.tabs.reload(number);
    }
    scene.recover("both reloaded");
}

#[test]
fn it_is_so_while_those_that_hold_a_stream_are_closed_reloaded_crashed_and_hang() {
    scenario("closed, reloaded, crashed, hung", &[], Way::Direct, |scene| {
        close_and_reload_holders(scene);
        if browser::lacks("crash and hang, for tabs share a process") {
            return;
        }
        for number in scene.holders() {
            scene.tabs.crash(number);
        }
        scene.recover("both crashed");
        check_streams(&scene.hub, 0);
        let holders = scene.holders();
        for (hung, what) in
            [(&holders[..1], "one hung"), (&holders[1..], "the other hung"), (&holders, "both hung")]
        {
            let wake = format!("wake {what}=1");
            let hangs = |number: usize| format!("{number} is {what}=1");
            for number in hung {
                scene.tabs.get(*number).hang(Duration::from_secs(5), &hangs(*number), &wake);
            }
            let Scene { tabs, load, .. } = &*scene;
            for number in hung {
                tabs.front.wait_for(&format!("document.cookie.includes('{}')", hangs(*number)));
            }
            tabs.wait_until_these_have_caught_up(&tabs.all_but(hung), load);
            tabs.front.run(&format!("document.cookie = '{wake}';"));
            scene.recover(what);
        }
        scene.unresponsive = holders.len();
        wait_for_streams(&scene.hub, STREAMS);
    });
}

#[test]
fn it_is_so_while_those_that_hold_a_stream_are_frozen() {
    if browser::lacks("freeze") {
        return;
    }
    scenario("frozen", &[], Way::Direct, |scene| {
        let frozen = scene.holders();
        for number in frozen {
            scene.tabs.get(number).freeze();
        }
        scene.tabs.wait_until_these_have_caught_up(&scene.tabs.all_but(&frozen), &scene.load);
        for number in frozen {
            scene.tabs.get(number).thaw();
        }
        scene.recover("both frozen");
        wait_for_streams(&scene.hub, STREAMS);
    });
}

#[test]
fn it_is_so_while_the_hub_is_killed_and_started_again() {
    scenario("hub killed twice", &[], Way::Direct, |scene| {
        scene.kill_hub();
        scene.tabs.wait_until_all_are_offline();
        scene.tabs.all_send(1_000_000);
        scene.start_hub();
        scene.recover("hub killed, back later");
        // Before any tab notices.
        scene.kill_hub();
        scene.start_hub();
        scene.recover("hub killed, back at once");
        wait_for_streams(&scene.hub, STREAMS);
    });
}

/// tests/client_tokens.rs has fewer tabs, and callers who differ.
#[test]
#[ignore = "half a minute; docs/measurements.md has the command"]
fn it_is_so_on_a_hub_that_asks_who_its_callers_are() {
    scenario("callers", &["--anonymous", "all"], Way::Direct, |scene| {
        close_and_reload_holders(scene);
        // A tab that comes has a stream of its own until it knows its caller. Two tabs at a time can.
        check_streams(&scene.hub, STREAMS);
        scene.hub.end("KILL");
        scene.start_hub();
        scene.recover("hub killed, back at once");
        wait_for_streams(&scene.hub, STREAMS);
    });
}

#[test]
fn it_is_so_behind_a_proxy_that_cuts_and_refuses_connections() {
    scenario("cut, 502, 503", &[], Way::Proxied, |scene| {
        scene.proxy().cut();
        scene.recover("all connections cut");
        for status in [502, 503] {
            scene.proxy().set(Mode::Answer(status));
            scene.proxy().wait_until_answered("", 3 * STREAMS);
            // An EventSource alone gives up at the first: one of these is the client's own.
            scene.proxy().wait_until_answered("GET /events", STREAMS + 1);
            scene.tabs.wait_until_all_are_offline();
            scene.tabs.all_send(1_000 * u64::from(status));
            scene.proxy().set(Mode::Pass);
            scene.recover(&format!("{status} for a while"));
        }
        wait_for_streams(&scene.hub, STREAMS);
    });
}

#[test]
fn it_is_so_behind_a_proxy_that_goes_silent_and_leaves_connections_half_open() {
    scenario("half-open", &["--keep-alive", "1s"], Way::Proxied, |scene| {
        // First with requests on the browser's other connections. Then without: the browser takes one of
        // those connections, which are half-open too, for its first request to reconnect.
        for (asks, what) in [(true, "half-open"), (false, "half-open, nothing sent")] {
            let Scene { tabs, load, .. } = &*scene;
            load.asks(asks);
            tabs.wait_until_caught_up(load);
            tabs.wait_until(&tabs.all(), "without a request", |status| asks || status.settled);
            scene.proxy().set(Mode::Swallow);
            tabs.wait_until_all_are_offline();
            scene.proxy().set(Mode::Pass);
            scene.recover(what);
        }
        wait_for_streams(&scene.hub, STREAMS);
    });
}

#[test]
fn it_is_so_where_pages_have_no_locks_while_the_tab_that_made_the_worker_crashes() {
    scenario("insecure origin", &["--allow-host", "lan.test"], Way::Named("lan.test"), |scene| {
        assert_eq!(scene.tabs.front.get("isSecureContext || 'locks' in navigator"), false);
        if browser::lacks("crash; it is closed") {
            scene.tabs.close(0);
        } else {
            scene.tabs.crash(0);
        }
        scene.recover("worker's tab crashed");
        scene.tabs.close(1);
        scene.tabs.reload(2);
        scene.recover("others closed, reloaded");
        scene.kill_hub();
        scene.start_hub();
        scene.recover("hub killed, back at once");
    });
}

/// Texts that would call `ran()` if anything took them for more than text.
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

/// A tab with the hub's page, in which no policy keeps a script from running.
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
    let (hub, browser) = (Hub::start(&["--hide-data"]), Browser::start());
    let query = "%3Cscript%3Eran()%3C/script%3E%3Cimg%20src=x%20onerror=ran()%3E";
    // A channel's name has neither white space nor `>`.
    let channel = "%3Cimg/src=x/onerror=ran()//";
    let page = format!("http://{}/?channel=main&channel={channel}&x={query}#{query}", hub.address);
    // The third tab shares the stream of another.
    let tabs = [(); 3].map(|()| open_without_protection(&browser, &page));
    for tab in &tabs {
        tab.wait_for("['live', 'shared'].includes(document.getElementById('status').dataset.state)");
        // Besides its own, the page has the client as any other page uses it.
        let script = "
          window.payloads = $PAYLOADS;
          window.got = [];
          window.refused = [];
          import('/tabcast.js').then(({ connect }) => {
            window.hub = connect({ channel: 'payloads' });
            payloads.forEach((payload) => {
              hub.on(payload, (data, { event }) => got.push([payload, event, data]));
            });
          });";
        tab.run(&script.replace("$PAYLOADS", &json!(PAYLOADS).to_string()));
        tab.wait_for("window.hub?.connected");
    }

    let is_token = |token: &str| {
        !token.is_empty() && token.chars().all(|c| !c.is_whitespace() && !matches!(c, '*' | '>'))
    };
    let is_channel_name = |payload: &str| payload.split('.').all(is_token);
    for payload in PAYLOADS {
        for (body, status) in [
            (json!({"data": payload, "event": payload}), 201),
            (json!({"data": {payload: payload}, "event": payload}), 201),
            (json!({"data": payload, "channel": payload}), if is_channel_name(payload) { 201 } else { 422 }),
        ] {
            let answer = hub.post("", "application/json", body.to_string());
            assert_eq!(answer.status, status, "{body}: {answer:?}");
        }
    }
    hub.publish("end");
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
    texts.push("end".to_owned());
    for tab in &tabs {
        tab.wait_for("document.querySelector('#messages li:last-child .data')?.textContent === 'end'");
        let text = |class: &str| {
            tab.get(&format!("[...document.querySelectorAll('.{class}')].map(e => e.textContent.trim())"))
        };
        assert_eq!(text("event"), json!(events));
        assert_eq!(text("data"), json!(texts));
        tab.run("document.querySelectorAll('#messages details').forEach((fold) => { fold.open = true; });");
        tab.wait_for("[...document.querySelectorAll('#messages .whole')].every((cell) => cell.textContent)");
        assert_eq!(
            tab.get(
                "[...new Set([...document.querySelectorAll('#messages *')].map(e => e.localName))].sort()"
            ),
            json!(["details", "div", "li", "span", "summary", "time"])
        );
        tab.wait_for(&format!("got.length >= {}", got.len()));
        assert_eq!(tab.get("got"), json!(got));
    }
    tabs[2].wait_for("window.sent");
    let refused = PAYLOADS.iter().filter(|payload| !is_channel_name(payload)).count();
    let detail = &hub.post("?channel=a%20b", "text/plain", "x").problem(422)["detail"];
    assert_eq!(tabs[2].get("refused"), json!(vec![json!([422, detail]); refused]));
    // A page may also be made to listen to a payload as a channel.
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
    // A payload that is taken for markup does run here.
    tabs[0].run("document.getElementById('messages').innerHTML = payloads[3];");
    tabs[0].wait_for("window.hasRun");
}
