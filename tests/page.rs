//! The page in a real browser: what its tabs show, whatever the hub does meanwhile.

mod browser;
mod common;
mod proxy;

use browser::page::{messages, open, page, pending, rows, rows_until, wait_for_state, wait_until_connected};
use browser::{Browser, ENTER, TAB, Tab};
use common::{Hub, Site};
use proxy::{Mode, Proxy};
use serde_json::{Value, json};

/// What is in the field.
fn value(tab: &Tab) -> Value {
    tab.get("document.getElementById('data').value")
}

/// The problem that the page shows, once it shows one.
fn problem(tab: &Tab) -> String {
    tab.wait_for("document.getElementById('problem').textContent");
    tab.get("document.getElementById('problem').innerText").as_str().unwrap().to_owned()
}

/// The problem that the page shows now; empty if none.
fn problem_now(tab: &Tab) -> Value {
    tab.get("document.getElementById('problem').textContent")
}

#[test]
fn a_press_of_the_button_shows_the_message_in_every_tab_once_and_in_order() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tabs = [open(&browser, &hub), open(&browser, &hub), open(&browser, &hub)];
    assert_eq!(value(&tabs[0]), "Hello World!");
    tabs[0].click("#send");
    for tab in &tabs {
        assert_eq!(rows_until(tab, "Hello World!"), json!(["Hello World!"]));
    }
    for (number, tab) in tabs.iter().enumerate() {
        tab.fill("#data", &format!("from tab {number}"));
        tab.click("#send");
        rows_until(tab, &format!("from tab {number}"));
    }
    hub.publish("end");
    for tab in &tabs {
        let expected = json!(["Hello World!", "from tab 0", "from tab 1", "from tab 2", "end"]);
        assert_eq!(rows_until(tab, "end"), expected);
    }
    // Two tabs hold a stream for all.
    assert_eq!(hub.count_log("subscriber connected"), 2);
    assert_eq!(hub.count_log("subscriber disconnected"), 0);
    assert_eq!(
        tabs[2].get("document.getElementById('status').textContent"),
        "Live · shared through another tab"
    );
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn a_tab_out_of_sight_shows_the_messages_too() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    tab.hide();
    tab.wait_for("document.visibilityState === 'hidden'");
    hub.publish("one");
    assert_eq!(rows_until(&tab, "one"), json!(["one"]));
    hub.publish("two");
    assert_eq!(rows_until(&tab, "two"), json!(["one", "two"]));
    assert_eq!(tab.get("document.visibilityState"), "hidden");
}

#[test]
fn what_curl_sends_is_shown_as_text_and_never_as_markup_or_script() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    let elements = "[...document.querySelectorAll('body *')].map(element => element.localName).sort().join()";
    let before = tab.get(elements);

    let payloads = [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "</p></li></ol><h1 onmouseover=alert(1)>x</h1><style>body{display:none}</style>",
        "<svg/onload=alert(1)><iframe srcdoc='<script>parent.alert(1)</script>'></iframe>",
        "&lt;b&gt; &amp; <b>bold</b> javascript:alert(1) ${alert(1)} {{alert(1)}}",
        "\u{202e}evil\u{0}\u{feff} \"'`><!--",
    ];
    for payload in payloads {
        hub.publish(payload);
    }
    let response = hub.post("", "application/json", r#"{"data": {"<b>": "</script>"}, "event": "<i>x</i>"}"#);
    assert_eq!(response.status, 201);
    hub.publish("end");

    let mut expected = payloads.to_vec();
    expected.extend([r#"{"<b>":"</script>"}"#, "end"]);
    assert_eq!(rows_until(&tab, "end"), json!(expected));
    assert_eq!(tab.get("document.querySelector('li:nth-child(7) .event').textContent"), "<i>x</i>");
    // The page has only the elements of its rows besides.
    let mut expected: Vec<_> = before.as_str().unwrap().split(',').collect();
    for _ in 0..payloads.len() + 2 {
        expected.extend(["li", "time", "div"]);
    }
    expected.push("span");
    expected.sort_unstable();
    assert_eq!(tab.get(elements), expected.join(","));
    assert_eq!(tab.alert(), None);
    assert_eq!(browser.console(), [""; 0]);
}

#[test]
fn a_message_that_is_deleted_leaves_the_page() {
    let hub = Hub::start(&[]);
    let browser = Browser::start();
    let tab = open(&browser, &hub);
    let ids = ["first", "secret", "third"].map(|text| hub.publish(text));
    rows_until(&tab, "third");
    assert_eq!(hub.send("DELETE", &format!("/messages/{}", ids[1]), &[], b"").status, 204);
    hub.publish("last");
    assert_eq!(rows_until(&tab, "last"), json!(["first", "third", "last"]));
    // Another tab reads of the deletion in the history.
    assert_eq!(rows_until(&open(&browser, &hub), "last"), json!(["first", "third", "last"]));
}

#[test]
fn a_script_that_gets_into_the_page_is_not_run() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    tab.run(
        "window.refused = [];
        addEventListener('securitypolicyviolation', event => refused.push(event.effectiveDirective));",
    );
    tab.run("document.getElementById('messages').innerHTML = '<img src=/icon.svg onload=alert(1)>';");
    tab.run(
        "document.body.append(Object.assign(document.createElement('script'), { textContent: 'alert(2)' }));",
    );
    tab.run("document.body.append(Object.assign(new Image(), { src: 'http://127.0.0.2:9/' }));");
    tab.wait_for("refused.length === 3 && document.querySelector('[onload]').complete");
    assert_eq!(tab.get("refused.sort()"), json!(["img-src", "script-src-attr", "script-src-elem"]));
    assert_eq!(tab.alert(), None);
}

#[test]
fn a_refresh_is_a_disconnect_and_a_connect_and_brings_the_history_back_once() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    hub.publish("one");
    hub.publish("two");
    let tab = open(&browser, &hub);
    hub.publish("three");
    assert_eq!(rows_until(&tab, "three"), json!(["one", "two", "three"]));
    tab.refresh();
    hub.wait_for_log(&["subscriber disconnected", "subscriber=1", "sent=1"]);
    hub.wait_for_log(&["subscriber connected", "subscriber=2"]);
    wait_for_state(&tab, "live");
    hub.publish("four");
    assert_eq!(rows_until(&tab, "four"), json!(["one", "two", "three", "four"]));
}

#[test]
fn leaving_the_page_and_coming_back_to_it_makes_it_live_again_with_what_was_missed() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    hub.publish("one");
    rows_until(&tab, "one");
    tab.go(&format!("{}messages?last=1", page(&hub)));
    hub.wait_for_log(&["subscriber disconnected"]);
    hub.publish("two");
    tab.back();
    wait_for_state(&tab, "live");
    hub.publish("three");
    // The browser may have kept the page, which then says what it missed; or it has loaded the page anew.
    rows_until(&tab, "three");
    assert_eq!(messages(&tab), [json!("one"), json!("two"), json!("three")]);
}

#[test]
fn closing_a_tab_is_logged_with_how_long_it_stayed_what_it_was_sent_and_why_it_left() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let (_stays, goes) = (open(&browser, &hub), open(&browser, &hub));
    hub.publish("one");
    hub.publish("two");
    rows_until(&goes, "two");
    goes.close();
    let line = hub.wait_for_log(&["subscriber disconnected", "subscriber=2", "sent=2", "reason="]);
    let duration = line.split("duration_ms=").nth(1).unwrap().split(' ').next().unwrap();
    assert!((1..30_000).contains(&duration.parse::<u64>().unwrap()), "{line}");
    assert_eq!(hub.count_log("subscriber disconnected"), 1);
}

/// The flags of a hub whose messages are gone when it ends. EventSources reconnect soon.
const FORGETFUL: [&str; 6] = ["--journal", "memory", "--retry-min", "500ms", "--retry-max", "500ms"];

/// Publishes "before", ends the hub once each tab shows that, and waits until each tab is offline.
fn end_after_a_message(hub: Hub, tabs: &[Tab]) {
    hub.publish("before");
    for tab in tabs {
        rows_until(tab, "before");
    }
    drop(hub);
    for tab in tabs {
        wait_for_state(tab, "offline");
    }
}

#[test]
fn tabs_outlive_the_hub_and_are_live_again_by_themselves_when_it_is_back() {
    let (site, browser) = (Site::new(&FORGETFUL), Browser::start());
    let hub = site.start();
    let tabs = [open(&browser, &hub), open(&browser, &hub)];
    end_after_a_message(hub, &tabs);
    let hub = site.start();
    for tab in &tabs {
        // Each by a stream of its own.
        wait_for_state(tab, "live");
    }
    hub.publish("after");
    for tab in &tabs {
        // The journal in memory has ended with the hub, and the page says so.
        let lost = "Some messages were no longer kept";
        assert_eq!(rows_until(tab, "after"), json!(["before", lost, "after"]));
    }
    assert_eq!(hub.count_log("subscriber connected"), 2);
}

#[test]
fn what_is_sent_while_the_hub_is_away_waits_in_sight_and_then_takes_its_place_once() {
    let (site, browser) = (Site::new(&[]), Browser::start());
    let hub = site.start();
    let tab = open(&browser, &hub);
    end_after_a_message(hub, std::slice::from_ref(&tab));

    for text in ["first", "second"] {
        tab.fill("#data", text);
        tab.press("#data", ENTER);
        // A second press sends nothing: the message is on its way.
        tab.press("#data", ENTER);
    }
    let waiting = "Waiting to be sent";
    assert_eq!(pending(&tab), json!([["first", waiting], ["second", waiting]]));
    assert_eq!(rows(&tab), json!(["before"]));
    assert_eq!(problem_now(&tab), "");

    let hub = site.start();
    hub.publish("sent by others meanwhile");
    rows_until(&tab, "second");
    assert_eq!(pending(&tab), json!([]));
    hub.publish("end");
    rows_until(&tab, "end");
    // The order is the hub's, whichever publisher was first.
    let history = hub.history_data("");
    assert_eq!(history.len(), 5);
    assert_eq!(messages(&tab), history);
}

#[test]
fn what_was_missed_in_an_outage_is_shown_and_counted() {
    let (site, browser) = (Site::new(&[]), Browser::start());
    let hub = site.start();
    let tabs = [open(&browser, &hub), open(&browser, &hub), open(&browser, &hub)];
    end_after_a_message(hub, &tabs);
    // On another port, to which no tab connects.
    let elsewhere = Hub::start(&["--journal", &site.journal()]);
    for text in ["one", "two", "three"] {
        elsewhere.publish(text);
    }
    drop(elsewhere);
    let hub = site.start();
    for tab in &tabs {
        wait_until_connected(tab);
    }
    hub.publish("after");
    for tab in &tabs {
        let expected = json!(["before", "one", "two", "three", "3 messages recovered", "after"]);
        assert_eq!(rows_until(tab, "after"), expected);
    }
}

#[test]
fn what_was_typed_is_there_again_after_a_reload() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    tab.fill("#data", "half a thought");
    tab.refresh();
    assert_eq!(value(&tab), "half a thought");
    // In that tab alone.
    assert_eq!(value(&open(&browser, &hub)), "Hello World!");
}

#[test]
fn a_page_reconnects_after_a_bad_gateway_has_closed_its_eventsource_for_good() {
    let (site, browser) = (Site::new(&FORGETFUL), Browser::start());
    let hub = site.start();
    let tab = open(&browser, &hub);
    // Beside the client's, an EventSource that nobody makes anew.
    tab.run("window.plain = new EventSource('/events');");
    tab.wait_for("plain.readyState === EventSource.OPEN");
    hub.publish("before");
    rows_until(&tab, "before");
    drop(hub);
    // In the hub's place, as a proxy answers whose hub is gone.
    let gateway = Proxy::start_at(site.address, site.address, Mode::Answer(502));
    wait_for_state(&tab, "offline");
    tab.wait_for("plain.readyState === EventSource.CLOSED");
    // One request of each EventSource, and a third that only the client can have made.
    gateway.wait_until_answered("GET /events", 3);
    drop(gateway);

    let hub = site.start();
    wait_for_state(&tab, "live");
    hub.publish("after");
    assert_eq!(rows_until(&tab, "after"), json!(["before", "Some messages were no longer kept", "after"]));
    assert_eq!(hub.count_log("subscriber connected"), 1);
}

#[test]
fn a_tab_beyond_the_limit_of_subscribers_says_so() {
    let (hub, browser) = (Hub::start(&["--max-subscribers", "1"]), Browser::start());
    let only = hub.watch("/events", &[]);
    let tab = browser.open(&page(&hub));
    wait_for_state(&tab, "offline");
    let said = "Offline: the limit of subscribers, 1, is reached. Trying again…";
    tab.wait_for(&format!("document.getElementById('status').textContent === {}", json!(said)));
    hub.wait_for_log(&["subscriber turned away"]);
    // It can send all the same.
    tab.click("#send");
    hub.wait_for_log(&["message published"]);
    // It has the stream once that is free, and shares it.
    drop(only);
    wait_for_state(&tab, "live");
    assert_eq!(rows_until(&tab, "Hello World!"), json!(["Hello World!"]));
    wait_for_state(&browser.open(&page(&hub)), "shared");
}

#[test]
fn enter_sends_what_was_typed_exactly() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    for text in [
        "  spaces  kept  ",
        "naïve Größe 日本語 עברית",
        "id: 1",
        "{\"data\": 1}",
        "a=b&c=%20+d",
        "\\n \\u0000",
    ] {
        tab.fill("#data", text);
        tab.press("#data", ENTER);
        rows_until(&tab, text);
        assert_eq!(hub.newest()["data"], text);
    }
    // Inserted as an emoji picker does: chromedriver presses no keys beyond the basic multilingual plane.
    let emoji = "👩‍👩‍👧‍👦 🏳️‍🌈 𝒳 🎉";
    tab.run(&format!(
        "document.execCommand('selectAll'); document.execCommand('insertText', false, '{emoji}');"
    ));
    tab.press("#data", ENTER);
    rows_until(&tab, emoji);
    assert_eq!(hub.newest()["data"], emoji);
    // The text stays and is selected: Enter sends it again, typing replaces it.
    assert_eq!(value(&tab), emoji);
    tab.press("#data", "next");
    assert_eq!(value(&tab), "next");
}

#[test]
fn an_empty_text_is_not_sent_and_one_press_too_many_sends_once() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    tab.fill("#data", "   ");
    tab.press("#data", ENTER);
    tab.fill("#data", "");
    tab.press("#data", ENTER);
    tab.fill("#data", "twice");
    tab.run("for (const press of [1, 2]) document.getElementById('form').requestSubmit();");
    rows_until(&tab, "twice");
    hub.publish("end");
    assert_eq!(rows_until(&tab, "end"), json!(["twice", "end"]));
}

#[test]
fn a_message_whose_answer_was_lost_is_sent_again_and_not_doubled() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    tab.run(
        "const real = fetch;
        window.tries = 0;
        window.fetch = async (url, init) => {
          const answer = await real(url, init);
          if (init.method === 'POST' && window.tries++ === 0) throw new TypeError();
          return answer;
        };",
    );
    tab.fill("#data", "once");
    tab.press("#data", ENTER);
    rows_until(&tab, "once");
    tab.wait_for("tries === 2");
    // Sent again on purpose, the same text is another message.
    tab.press("#data", ENTER);
    hub.wait_for_logs(&["message published"], 2);
    hub.publish("end");
    assert_eq!(rows_until(&tab, "end"), json!(["once", "once", "end"]));
    assert_eq!(pending(&tab), json!([]));
}

#[test]
fn a_refused_message_stays_in_the_field_with_the_reason() {
    let (hub, browser) = (Hub::start(&["--max-body", "64"]), Browser::start());
    let tab = open(&browser, &hub);
    let long = "x".repeat(100);
    tab.fill("#data", &long);
    tab.click("#send");
    let shown = problem(&tab);
    let detail =
        hub.post("", "application/json", json!({"data": long}).to_string()).problem(413)["detail"].clone();
    assert_eq!(detail, shown.as_str());
    assert!(shown.contains("64"), "{shown}");
    assert_eq!(tab.role_and_name("#problem").0, "alert");
    assert_eq!(value(&tab), long);
    assert_eq!((rows(&tab), pending(&tab)), (json!([]), json!([])));

    tab.fill("#data", "short");
    tab.press("#data", ENTER);
    assert_eq!(rows_until(&tab, "short"), json!(["short"]));
    assert_eq!(problem_now(&tab), "");
}

#[test]
fn a_message_refused_after_another_was_typed_is_not_lost_and_says_why() {
    let (site, browser) = (Site::new(&["--max-body", "64"]), Browser::start());
    let hub = site.start();
    let tab = open(&browser, &hub);
    drop(hub);
    wait_for_state(&tab, "offline");
    let long = "x".repeat(100);
    for text in [long.as_str(), "short"] {
        tab.fill("#data", text);
        tab.press("#data", ENTER);
    }
    let _hub = site.start();
    rows_until(&tab, "short");
    let why = "Not sent: the body is longer than 64 bytes, the limit";
    assert_eq!(pending(&tab), json!([[long, why]]));
    assert_eq!(problem_now(&tab), "");
}

#[test]
fn a_text_that_is_slow_to_search_does_not_freeze_the_page() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    // Nearly the beginning of a `data:` URL: a search of the whole text would take minutes.
    hub.publish(&format!("data:{}", "a".repeat(1_000_000)));
    hub.publish("after it");
    assert_eq!(rows_until(&tab, "after it").as_array().unwrap().len(), 2);
}

#[test]
fn without_script_the_form_sends_and_comes_back_to_the_page() {
    let hub = Hub::start(&[]);
    let browser = Browser::start_without_script();
    let tab = browser.open(&page(&hub));
    assert_eq!(tab.get("document.querySelector('noscript a').checkVisibility()"), true);
    assert_eq!(tab.get("document.getElementById('status').checkVisibility()"), false);
    tab.fill("#data", "ünscripted & plain");
    tab.click("#send");
    hub.wait_for_log(&["message published"]);
    // Only a page that was loaded anew has its first text in the field again.
    tab.wait_for(
        "document.readyState === 'complete' && document.getElementById('data')?.value === 'Hello World!'",
    );
    assert_eq!(tab.url(), page(&hub));
    assert_eq!(hub.newest()["data"], "ünscripted & plain");
    assert_eq!(hub.count_log("subscriber connected"), 0);
}

/// Random text that is hard on a line-based stream, on JSON and on UTF-8.
fn random_text(random: &mut fastrand::Rng) -> String {
    const PIECES: [&str; 24] = [
        "\r",
        "\n",
        "\r\n",
        "\n\n",
        " ",
        "  ",
        ":",
        "data: ",
        "id: 7",
        "event: evil",
        "retry: 1",
        "\u{feff}",
        "\0",
        "🎉",
        "👩‍👩‍👧‍👦",
        "é",
        "e\u{301}",
        "\u{2028}",
        "\u{85}",
        "\u{b}",
        "\"",
        "\\u000a",
        "</script>",
        "plain",
    ];
    (0..random.usize(0..12)).map(|_| PIECES[random.usize(..PIECES.len())]).collect()
}

#[test]
fn any_text_arrives_through_a_browsers_eventsource() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = browser.open(&page(&hub));
    tab.run(
        "window.bare = []; window.whole = [];
        window.streams = ['/events', '/events?format=message'].map(url => new EventSource(url));
        streams[0].onmessage = event => bare.push([event.lastEventId, event.data]);
        streams[1].onmessage = event => whole.push([event.lastEventId, event.data]);
        streams.forEach(stream => stream.addEventListener('evil', () => bare.push('evil')));",
    );
    tab.wait_for("streams.every(stream => stream.readyState === EventSource.OPEN)");

    // Always the same seed, so that a failure can be repeated.
    let mut random = fastrand::Rng::with_seed(7);
    let mut texts: Vec<_> = (0..300).map(|_| random_text(&mut random)).collect();
    texts.extend(["", "\n", "\r", "\u{feff}", " ", ":", "\0", "end"].map(str::to_owned));
    let ids: Vec<_> = texts.iter().map(|text| hub.publish(text)).collect();

    tab.wait_for("bare.at(-1)?.[1] === 'end' && whole.length && JSON.parse(whole.at(-1)[1]).data === 'end'");
    let (bare, whole) = (tab.get("bare"), tab.get("whole"));
    assert_eq!((bare.as_array().unwrap().len(), whole.as_array().unwrap().len()), (texts.len(), texts.len()));
    for (place, (id, text)) in ids.iter().zip(&texts).enumerate() {
        // WHATWG HTML 9.2.6: CR, LF and CRLF all become a line feed for the script.
        let mut lines = text.replace("\r\n", "\n").replace('\r', "\n");
        if browser::is_firefox() {
            // Firefox leaves NUL out, which 9.2.6 does not say.
            lines.retain(|char| char != '\0');
        }
        assert_eq!(bare[place], json!([id, lines]), "{text:?}");
        assert_eq!(whole[place][0], id.as_str());
        let message: Value = serde_json::from_str(whole[place][1].as_str().unwrap()).unwrap();
        assert_eq!((&message["id"], &message["data"]), (&json!(id), &json!(text)));
    }
}

#[test]
fn every_control_has_a_role_and_a_name_and_the_keyboard_reaches_it() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    hub.publish("one");
    let tab = open(&browser, &hub);
    rows_until(&tab, "one");
    assert_eq!(tab.get("document.documentElement.lang"), "en");
    assert_eq!(tab.get("document.querySelectorAll('h1').length"), 1);
    for (selector, role, name) in [
        ("h1", "heading", "tabcast"),
        ("#status", "status", ""),
        ("#log", "log", "Messages"),
        ("#messages", "list", ""),
        ("#names", "textbox", "Channels"),
        ("#data", "textbox", "Message to main"),
        ("#send", "button", "Send"),
    ] {
        assert_eq!(tab.role_and_name(selector), (role.to_owned(), name.to_owned()), "{selector}");
    }
    // Its role alone: Firefox also gives it a name, its text.
    assert_eq!(tab.role_and_name("#messages li").0, "listitem");
    assert_eq!(tab.get("document.getElementById('status').textContent"), "Live");

    let focus =
        "(({ id, ariaLabel, textContent }) => id || ariaLabel || textContent)(document.activeElement)";
    let mut reached = Vec::new();
    tab.run("document.activeElement.blur();");
    for _ in 0..9 {
        tab.press(":focus, body:not(:has(:focus))", TAB);
        reached.push(tab.get(focus));
    }
    let expected = [
        "names",
        "From a terminal, or a page of yours",
        "Copy the watch command",
        "Copy the send command",
        "Copy the script",
        "log",
        "Options",
        "data",
        "send",
    ];
    assert_eq!(json!(reached), json!(expected));
}

#[test]
fn the_page_works_below_a_path_of_a_proxy_without_a_setting() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let proxy = Proxy::start_below("/hub", hub.address);
    let page = format!("http://{}/hub/", proxy.address);
    // The third shares the stream of another.
    let tabs = [(); 3].map(|()| browser.open(&page));
    for (tab, text) in tabs.iter().zip(["first", "second", "third"]) {
        wait_until_connected(tab);
        tab.fill("#data", text);
        tab.press("#data", ENTER);
        tabs.iter().for_each(|tab| drop(rows_until(tab, text)));
    }
    assert_eq!(rows(&tabs[0]), json!(["first", "second", "third"]));
    assert_eq!(hub.count_log("subscriber connected"), 2);
    let shown = tabs[0].get("['watch', 'publish'].map(id => document.getElementById(id).textContent)");
    let commands = ["curl -N {}events", "curl -d 'Hello World!' {}messages"];
    assert_eq!(shown, json!(commands.map(|command| command.replace("{}", &page))));
    // Its styles, its pictures, and where its form goes without a script.
    tabs[0].wait_for("document.querySelector('header img').naturalWidth > 0");
    assert!(tabs[0].get("document.styleSheets[0].cssRules.length").as_u64().unwrap() > 10);
    assert_eq!(tabs[0].get("document.getElementById('form').action"), format!("{page}messages"));
    let asked =
        "performance.getEntriesByType('resource').every(({ name }) => name.startsWith(location.href))";
    assert_eq!(tabs[0].get(asked), true);
}

#[test]
fn the_client_works_below_a_path_of_a_proxy_where_a_shared_worker_holds_the_stream() {
    let (hub, browser) =
        (Hub::start(&["--allow-host", "hub.example"]), Browser::start_with_hosts(&["hub.example"]));
    let proxy = Proxy::start_below("/a/b", hub.address);
    let page = format!("http://hub.example:{}/a/b/", proxy.address.port());
    let tabs = [(); 2].map(|()| browser.open(&page));
    tabs.iter().for_each(wait_until_connected);
    hub.publish("through the worker");
    tabs.iter().for_each(|tab| drop(rows_until(tab, "through the worker")));
    assert_eq!(hub.count_log("subscriber connected"), 1);
}
