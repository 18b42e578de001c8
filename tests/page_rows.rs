//! The list of the hub's page: what a row shows, which rows there are, and what it says where there are none.

mod browser;
mod common;
mod proxy;

use browser::page::{
    messages, open, open_with, page, rows, rows_until, wait_for_state, wait_until_connected,
};
use browser::{Browser, Tab};
use common::{Hub, Site};
use proxy::{Mode, Proxy};
use serde_json::{Value, json};

/// Publishes the texts "number 1", "number 2", … as batches.
fn publish_numbers(hub: &Hub, numbers: std::ops::RangeInclusive<usize>) {
    let lines: Vec<_> =
        numbers.map(|number| json!({"data": format!("number {number}")}).to_string()).collect();
    for batch in lines.chunks(1_000) {
        assert_eq!(hub.post("", "application/x-ndjson", batch.join("\n")).status, 201);
    }
}

fn numbers(numbers: std::ops::RangeInclusive<usize>) -> Vec<Value> {
    numbers.map(|number| json!(format!("number {number}"))).collect()
}

/// Whether the list is at its end.
const AT_END: &str = "(log => Math.abs(log.scrollHeight - log.scrollTop - log.clientHeight) < 2)
    (document.getElementById('log'))";

const BUTTON_SHOWN: &str = "document.getElementById('newer').checkVisibility()";

/// The text of the first row whose top is in sight, and how far down that is.
fn in_sight(tab: &Tab) -> Value {
    tab.get(
        "(() => {
            const top = document.getElementById('log').getBoundingClientRect().top;
            const row = [...document.querySelectorAll('#messages .data')]
                .find(row => row.getBoundingClientRect().top >= top);
            return [row.textContent, Math.round(row.getBoundingClientRect().top)];
        })()",
    )
}

/// Asserts that the same row is in sight at the same place, but for what a pixel is rounded to.
#[track_caller]
fn assert_same_place(now: &Value, before: &Value) {
    let moved = now[1].as_i64().unwrap() - before[1].as_i64().unwrap();
    assert!(now[0] == before[0] && moved.abs() <= 1, "{now}, and before {before}");
}

/// Scrolls the list, and waits until the page has seen that.
fn scroll(tab: &Tab, to: &str) {
    tab.run(&format!("const log = document.getElementById('log'); log.scrollTop = {to};"));
    tab.wait_for("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))");
}

const FIRST: &str = "document.querySelector('#messages .data').textContent";
const LAST: &str = "[...document.querySelectorAll('#messages .data')].at(-1).textContent";

#[test]
fn a_burst_leaves_a_bounded_list_and_every_message_comes_back_by_scrolling() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    tab.run(
        "window.most = window.longTasks = 0;
         const list = document.getElementById('messages');
         new MutationObserver(() => { most = Math.max(most, list.childElementCount); })
           .observe(list, { childList: true });
         if (PerformanceObserver.supportedEntryTypes.includes('longtask')) {
           new PerformanceObserver((tasks) => { longTasks += tasks.getEntries().length; })
             .observe({ type: 'longtask' });
         }",
    );
    publish_numbers(&hub, 1..=3_000);
    rows_until(&tab, "number 3000");
    tab.wait_for(AT_END);
    assert_eq!(messages(&tab), numbers(2_501..=3_000));
    eprintln!("tasks of more than 50 ms: {}", tab.get("longTasks"));

    // Upwards, a step of rows at a time.
    let mut seen = messages(&tab);
    while tab.get(FIRST) != "number 1" {
        let first = tab.get(FIRST);
        scroll(&tab, "0");
        tab.wait_for(&format!("{FIRST} !== {first}"));
        let now = messages(&tab);
        let known = now.iter().position(|text| *text == seen[0]).expect("the rows follow each other");
        seen.splice(..0, now[..known].iter().cloned());
    }
    assert_eq!(seen, numbers(1..=3_000));
    assert_eq!(tab.get("document.getElementById('older').textContent"), "Nothing older is kept");
    // What is published now is below the rows that were given up for older ones.
    hub.publish("while away");
    tab.wait_for(BUTTON_SHOWN);
    assert_eq!(messages(&tab), numbers(1..=500));

    // Downwards again, to what arrives.
    while tab.get(LAST) != "while away" {
        let last = tab.get(LAST);
        scroll(&tab, "log.scrollHeight");
        tab.wait_for(&format!("{LAST} !== {last}"));
        let now = messages(&tab);
        let known = now.iter().position(|text| *text == last).expect("the rows follow each other");
        let place = seen.iter().position(|text| *text == last).unwrap();
        seen.truncate(place + 1);
        seen.extend(now[known + 1..].iter().cloned());
    }
    let mut expected = numbers(1..=3_000);
    expected.push(json!("while away"));
    assert_eq!(seen, expected);
    scroll(&tab, "log.scrollHeight");
    hub.publish("live");
    rows_until(&tab, "live");
    tab.wait_for(AT_END);
    assert!(tab.get("most").as_u64().unwrap() <= 600, "{}", tab.get("most"));
    assert_eq!(tab.get("document.querySelectorAll('#messages li').length"), 500);
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn whoever_has_scrolled_up_keeps_the_place_and_one_press_shows_the_newest() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    publish_numbers(&hub, 1..=400);
    let tab = open(&browser, &hub);
    rows_until(&tab, "number 400");
    tab.wait_for(AT_END);
    assert_eq!(tab.get(BUTTON_SHOWN), false);
    assert_eq!(messages(&tab), numbers(351..=400));

    // Older rows come above those in sight.
    scroll(&tab, "60");
    let read = in_sight(&tab);
    tab.wait_for(&format!("{FIRST} === 'number 251'"));
    assert_same_place(&in_sight(&tab), &read);
    // So do newer ones below them, as many as there may be, and then none.
    publish_numbers(&hub, 401..=900);
    tab.wait_for(BUTTON_SHOWN);
    hub.publish("newest");
    hub.publish("end");
    tab.click("#newer");
    rows_until(&tab, "end");
    tab.wait_for(AT_END);
    tab.wait_for(&format!("!{BUTTON_SHOWN}"));
    let shown = messages(&tab);
    let mut expected = numbers(802..=900);
    expected.extend(["newest", "end"].map(Value::from));
    assert!(shown.ends_with(&expected), "{shown:?}");

    scroll(&tab, "log.scrollHeight / 2");
    let read = in_sight(&tab);
    hub.publish("another");
    tab.wait_for(BUTTON_SHOWN);
    assert_same_place(&in_sight(&tab), &read);
    // Whoever sends wants to see that.
    tab.click("#send");
    rows_until(&tab, "Hello World!");
    tab.wait_for(AT_END);
    assert_eq!(tab.get(BUTTON_SHOWN), false);

    // A newcomer is shown the newest.
    tab.refresh();
    assert_eq!(rows_until(&tab, "Hello World!").as_array().unwrap().len(), 50);
    tab.wait_for(AT_END);
}

#[test]
fn what_is_deleted_meanwhile_does_not_come_back_with_older_rows() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    publish_numbers(&hub, 1..=100);
    let tab = open(&browser, &hub);
    rows_until(&tab, "number 100");
    for message in &hub.history("?last=51")[..2] {
        let path = format!("/messages/{}", message["id"].as_str().unwrap());
        assert_eq!(hub.send("DELETE", &path, &[], b"").status, 204);
    }
    tab.wait_for(&format!("{FIRST} === 'number 52'"));
    scroll(&tab, "0");
    tab.wait_for(&format!("{FIRST} === 'number 1'"));
    let mut expected = numbers(1..=100);
    expected.drain(49..51);
    assert_eq!(messages(&tab), expected);
}

#[test]
fn the_date_stands_where_the_day_changes_and_the_full_time_at_each_row() {
    let (site, browser) = (Site::new(&[]), Browser::start());
    let library = std::fs::read_dir("/usr/lib")
        .unwrap()
        .map(|entry| entry.unwrap().path().join("faketime/libfaketimeMT.so.1"))
        .find(|library| library.exists())
        .expect("tests/run installs faketime");
    for (days, texts) in [("-3d", ["a", "b"]), ("-2d", ["c", "d"]), ("+0d", ["e", "f"])] {
        let mut command = site.command(&[]);
        command.env("LD_PRELOAD", &library).env("FAKETIME", days);
        let hub = Hub::start_with(command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1"));
        texts.iter().for_each(|text| drop(hub.publish(text)));
    }
    let hub = site.start();
    let tab = open(&browser, &hub);
    assert_eq!(rows_until(&tab, "f"), json!(["a", "b", "c", "d", "e", "f"]));
    let shown = tab.get(
        "[...document.querySelectorAll('#messages li')].map(row => {
           const date = new Intl.DateTimeFormat(undefined, { dateStyle: 'full' });
           const day = row.querySelector('.day')?.textContent;
           return day ? day === date.format(new Date(row.querySelector('time').dateTime)) : null;
         })",
    );
    assert_eq!(shown, json!([true, null, true, null, true, null]));
    let title = tab.get("document.querySelector('time').title");
    assert!(title.as_str().unwrap().contains("2026") || title.as_str().unwrap().contains(':'), "{title}");
    // A first row of today has no date above it, and gets none from the rows above.
    hub.post("?channel=today", "text/plain", "x");
    let tab = open_with(&browser, &hub, "?channel=today");
    rows_until(&tab, "x");
    assert_eq!(tab.get("document.querySelector('.day')"), Value::Null);
}

#[test]
fn pictures_are_shown_and_other_data_can_be_downloaded() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    let picture = br#"<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"></svg>"#;
    assert_eq!(hub.post("", "image/svg+xml", picture).status, 201);
    // As the text of a URL that is not base64.
    let url = "data:image/svg+xml;charset=utf-8,\
        %3Csvg%20xmlns='http://www.w3.org/2000/svg'%20width='30'%20height='9'/%3E";
    hub.post("", "application/json", json!({"data": url}).to_string());
    hub.post("", "image/png", b"no picture");
    hub.post("", "application/pdf", [0; 3_000]);
    hub.post("", "application/json", json!({"data": "data:image/png,%"}).to_string());
    hub.publish("end");
    let expected = json!([
        "image/svg+xml, 69 bytes",
        "image/svg+xml, 63 bytes",
        "image/png, 10 bytes",
        "application/pdf, 3 kB",
        "data:image/png,%",
        "end"
    ]);
    assert_eq!(rows_until(&tab, "end"), expected);
    let widths = "[...document.querySelectorAll('.data img')].map(({ naturalWidth }) => naturalWidth)";
    tab.wait_for(&format!("String({widths}) === '40,30'"));
    // A picture takes the height that it has.
    tab.wait_for("document.querySelector('.data img').offsetHeight === 20");
    assert_eq!(tab.role_and_name(".data img"), ("image".to_owned(), "Picture".to_owned()));
    let links = tab.get(
        "[...document.querySelectorAll('.data a')]
           .map(({ href, download }) => [href.split(':')[0], download])",
    );
    let expected = ["svg", "svg", "png", "pdf"].map(|form| json!(["blob", format!("message.{form}")]));
    assert_eq!(links, json!(expected));
    assert_eq!(browser.console(), [""; 0]);
    // In older history too.
    tab.refresh();
    tab.wait_for(&format!("String({widths}) === '40,30'"));
}

#[test]
fn a_picture_that_leaves_the_list_leaves_memory() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    tab.run(
        "window.held = new Set();
         const { createObjectURL, revokeObjectURL } = URL;
         URL.createObjectURL = (blob) => {
           const url = createObjectURL(blob);
           held.add(url);
           return url;
         };
         URL.revokeObjectURL = (url) => { held.delete(url); revokeObjectURL(url); };",
    );
    let id = hub.post("", "image/png", b"one").json()["id"].clone();
    hub.post("", "image/png", b"two");
    tab.wait_for("held.size === 2");
    let path = format!("/messages/{}", id.as_str().unwrap());
    assert_eq!(hub.send("DELETE", &path, &[], b"").status, 204);
    tab.wait_for("held.size === 1");
    publish_numbers(&hub, 1..=600);
    rows_until(&tab, "number 600");
    assert_eq!(tab.get("held.size"), 0);
}

#[test]
fn a_list_of_large_messages_holds_fewer_of_them() {
    let (hub, browser) = (Hub::start(&["--max-body", "4MB"]), Browser::start());
    let tab = open(&browser, &hub);
    for number in 0..12 {
        hub.publish(&format!("{number}{}", "x".repeat(3_900_000)));
    }
    tab.wait_for("[...document.querySelectorAll('.data')].at(-1)?.textContent.startsWith('11x')");
    let first = tab.get("document.querySelector('.data').textContent[0]");
    assert_eq!(tab.get("document.querySelectorAll('#messages li').length"), 8);
    assert_eq!(first, "4");
}

#[test]
fn json_and_long_text_are_folded_and_all_of_them_can_be_seen() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    let data = json!({"service": "api", "hosts": ["a", "b"], "note": "x".repeat(2_000), "deep": [[[[1]]]]});
    hub.post("", "application/json", json!({"data": data}).to_string());
    hub.post("", "application/json", r#"{"data": {"short": [true, null, 1.5]}}"#);
    let long = format!("{}😀 and the end", "word ".repeat(400));
    hub.publish(&long);
    let tall = "line\n".repeat(100);
    hub.publish(&tall);
    hub.publish("end");
    rows_until(&tab, "end");
    assert_eq!(
        tab.get("document.querySelectorAll('#messages li')[1].querySelector('.data').textContent"),
        r#"{"short":[true,null,1.5]}"#
    );
    assert_eq!(tab.get("document.querySelectorAll('#messages summary').length"), 3);
    // Each takes little room,
    let heights = "[...document.querySelectorAll('#messages li')].map(({ offsetHeight }) => offsetHeight)";
    let folded = tab.get(heights);
    assert!(folded.as_array().unwrap().iter().all(|height| height.as_u64().unwrap() < 400), "{folded}");
    // and a press shows all of it.
    let whole = |place: usize| {
        let row = format!("#messages li:nth-child({place})");
        tab.click(&format!("{row} summary"));
        let text = format!("document.querySelector('{row} .whole').textContent");
        tab.wait_for(&text);
        tab.get(&text)
    };
    assert_eq!(whole(1), serde_json::to_string_pretty(&data).unwrap());
    assert_eq!(whole(3), long);
    assert_eq!(whole(4), tall);
    assert_eq!(tab.get("document.querySelector('li:nth-child(3) .start').checkVisibility()"), false);
    tab.click("#messages li:nth-child(3) summary");
    tab.wait_for("document.querySelector('li:nth-child(3) .start').checkVisibility()");
}

#[test]
fn links_are_http_and_https_only_and_lead_where_they_say() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    hub.publish("See https://example.org/a?b=1#c, (http://example.org/x_(y)). And https://é.example!");
    hub.publish(
        "javascript:alert(1) data:text/html,x ftp://example.org file:///etc xhttps://example.org http://",
    );
    hub.publish("https://example.org/\u{202e}moc.live https://example.org/<b>");
    // What is cut is no link to somewhere else.
    hub.publish(&format!("{}https://example.org/long", "x ".repeat(490)));
    hub.publish("end");
    rows_until(&tab, "end");
    let links = "[...document.querySelectorAll('#messages a')]";
    let expected = json!([
        "https://example.org/a?b=1#c",
        "http://example.org/x_(y)",
        "https://é.example",
        "https://example.org/",
        "https://example.org/"
    ]);
    assert_eq!(tab.get(&format!("{links}.map(({{ textContent }}) => textContent)")), expected);
    let opens =
        format!("{links}.every(link => link.rel === 'noopener noreferrer' && link.target === '_blank')");
    assert_eq!(tab.get(&opens), true);
    assert_eq!(
        tab.get(&format!("{links}.every(link => link.href === new URL(link.textContent).href)")),
        true
    );
    tab.click("#messages li:nth-child(4) summary");
    tab.wait_for(&format!("{links}.at(-1).href === 'https://example.org/long'"));
}

#[test]
fn the_title_counts_what_comes_while_the_page_is_hidden() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    hub.publish("before");
    let tab = open(&browser, &hub);
    rows_until(&tab, "before");
    hub.publish("seen");
    rows_until(&tab, "seen");
    assert_eq!(tab.get("document.title"), "tabcast");
    tab.hide();
    tab.wait_for("document.hidden");
    for text in ["one", "two", "three"] {
        hub.publish(text);
    }
    tab.wait_for("document.title === '(3) tabcast'");
    tab.unhide();
    tab.wait_for("document.title === 'tabcast'");
}

/// What the page says in place of messages.
fn empty(tab: &Tab) -> Value {
    tab.get(
        "document.getElementById('empty').checkVisibility() && document.getElementById('empty').innerText",
    )
}

#[test]
fn a_list_without_messages_says_why() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    // Nothing is known until the hub answers.
    let tab = browser.blank();
    tab.run_in_every_page("window.EventSource = class extends EventTarget { close() {} };");
    if !browser::is_firefox() {
        tab.go(&page(&hub));
        assert_eq!(empty(&tab), "Loading messages…");
    }
    let tab = open(&browser, &hub);
    assert_eq!(empty(&tab), "No messages yet.\nSend one, and every open tab and terminal sees it at once.");
    // There was one, and there may have been more.
    let id = hub.publish("secret");
    rows_until(&tab, "secret");
    assert_eq!(empty(&tab), false);
    assert_eq!(hub.send("DELETE", &format!("/messages/{id}"), &[], b"").status, 204);
    tab.wait_for("document.getElementById('empty').innerText.startsWith('No messages are kept.')");
    drop(hub);
    wait_for_state(&tab, "offline");
    assert_eq!(empty(&tab), "The hub can’t be reached.\nMessages show here once it is back.");
}

#[test]
fn a_page_that_may_not_listen_says_what_the_hub_says() {
    let browser = Browser::start();
    let full = Hub::start(&["--max-subscribers", "1"]);
    let _only = full.watch("/events", &[]);
    let hub = Hub::start(&[]);
    let site = Site::new(&[]);
    let tokens = site.folder.file("tokens");
    std::fs::write(&tokens, "").unwrap();
    let guarded = Hub::start(&["--tokens", &tokens]);
    for (hub, query) in [(&full, ""), (&hub, "?channel=a..b"), (&guarded, "")] {
        let tab = browser.open(&format!("{}{query}", page(hub)));
        wait_for_state(&tab, "offline");
        tab.wait_for("document.getElementById('status').textContent.startsWith('Offline: ')");
        let shown = empty(&tab);
        let (title, why) = shown.as_str().unwrap().split_once('\n').unwrap();
        assert_eq!(title, "These messages can’t be shown now.");
        let answer = hub.get(&format!("/events{query}"));
        let said = match answer.status {
            200 => "the limit of subscribers, 1, is reached".to_owned(),
            _ => answer.json()["detail"].as_str().unwrap().to_owned(),
        };
        assert_eq!(why, said);
        assert_eq!(
            tab.get("document.getElementById('status').textContent"),
            format!("Offline: {said}. Trying again…")
        );
    }
}

#[test]
fn older_messages_that_can_not_be_read_say_why() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    publish_numbers(&hub, 1..=100);
    let tab = open(&browser, &hub);
    rows_until(&tab, "number 100");
    tab.run(
        "const real = fetch;
         window.fetch = (url, init) => real(url.replace('before=', 'befor='), init);",
    );
    scroll(&tab, "0");
    tab.wait_for("document.getElementById('older').textContent.includes('can’t be read: ')");
    assert_eq!(messages(&tab), numbers(51..=100));
}

#[test]
fn rows_that_an_outage_cut_off_are_read_on_after_it() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let proxy = Proxy::start(hub.address, Mode::Pass);
    publish_numbers(&hub, 1..=100);
    let tab = browser.open(&format!("http://{}/", proxy.address));
    wait_until_connected(&tab);
    rows_until(&tab, "number 100");
    proxy.set(Mode::Answer(503));
    scroll(&tab, "0");
    wait_for_state(&tab, "offline");
    proxy.set(Mode::Pass);
    wait_until_connected(&tab);
    tab.wait_for(&format!("{FIRST} === 'number 1'"));
    let shown = rows(&tab);
    assert_eq!(shown.as_array().unwrap().len(), 100);
}
