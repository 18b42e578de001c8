//! The browser client, `/tabcast.js`, in real browsers: what its functions promise, with a few tabs at a
//! time. Twenty tabs, and all that may happen to them, are in `tabs.rs`.

mod browser;
mod common;

use std::process::Command;

use browser::{Browser, Tab};
use common::{Folder, Hub, Site};
use serde_json::{Value, json};

/// A tab of the hub's origin in which `hub` is a connected client, made by the expression `connect`. Each
/// call of its listeners is in `seen`: an event of the client's own as its name and data, a message as its
/// event, data and id.
fn open<'a>(browser: &'a Browser, hub: &Hub, connect: &str) -> Tab<'a> {
    // This page has no client of its own and no Content-Security-Policy.
    let tab = browser.open(&format!("http://{}/messages?last=0", hub.address));
    start(&tab, connect);
    tab.wait_for("window.hub?.connected");
    tab
}

/// Three such tabs: two of them hold a stream, and the third shares one.
fn open_three<'a>(browser: &'a Browser, hub: &Hub, connect: &str) -> [Tab<'a>; 3] {
    [(); 3].map(|()| open(browser, hub, connect))
}

/// Makes the client of [`open`] in a tab that has a page of the hub's origin.
fn start(tab: &Tab, connect: &str) {
    tab.run(&format!(
        "window.seen = [];
         import('/tabcast.js').then(({{ connect }}) => {{
           window.hub = {connect};
           hub.on('connect', () => seen.push(['connect']));
           hub.on('disconnect', (why) => seen.push(['disconnect', why]));
           hub.on('tabcast:state', (now) => seen.push(['tabcast:state', now]));
           hub.on('tabcast:gap', (gap) => seen.push(['tabcast:gap', gap]));
           hub.onAny((event, data, message) => seen.push([event, data, message.id]));
         }});"
    ));
}

fn wait_for_message(tab: &Tab, last: &Value) {
    tab.wait_for(&format!(
        "JSON.stringify(seen.findLast(([,, id]) => id)?.[1]) === {}",
        json!(last.to_string())
    ));
}

/// The data of each message in `seen`, once the last of them is this.
fn messages_until(tab: &Tab, last: &Value) -> Value {
    wait_for_message(tab, last);
    tab.get("seen.filter(([,, id]) => id).map(([, data]) => data)")
}

/// The value of a promise, or the error it is rejected with.
fn settled(tab: &Tab, promise: &str) -> Value {
    tab.run("window.settled = undefined;");
    tab.run(&format!(
        "{promise}.then(
           (value) => {{ window.settled = [value]; }},
           ({{ message, name, status, detail, field, limit }}) => {{
             window.settled = [{{ message, name, status, detail, field, limit }}];
           }});"
    ));
    tab.wait_for("settled");
    tab.get("settled[0]")
}

/// The id of each message that the hub has.
fn history_ids(hub: &Hub) -> Value {
    hub.history("").iter().map(|message| message["id"].clone()).collect()
}

#[test]
fn what_one_tab_emits_every_tab_gets_in_order_and_the_promise_is_its_id() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tabs = open_three(&browser, &hub, "connect()");
    let ids = settled(&tabs[2], "Promise.all([1, 2, 3].map((n) => hub.emit('count', n)))");
    assert_eq!(ids, history_ids(&hub));
    for tab in &tabs {
        assert_eq!(messages_until(tab, &json!(3)), json!([1, 2, 3]));
        assert_eq!(tab.get("seen.findLast(([,, id]) => id)"), json!(["count", 3, ids[2]]));
        assert_eq!(tab.get("hub.position"), ids[2]);
    }
    assert_eq!(hub.count_log("subscriber connected"), 2);
}

#[test]
fn a_listener_is_called_as_it_was_asked_for() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    tab.run(
        "window.calls = [];
         const call = (name) => (...values) => calls.push([name, values.length, values[0]]);
         window.twice = call('twice');
         hub.on('a', twice).on('a', call('on')).once('a', call('once')).once('a', twice)
           .on('b', call('b')).onAny(call('any'));",
    );
    tab.run("hub.emit('a', 1); hub.emit('a', 2); hub.emit('b', 3);");
    messages_until(&tab, &json!(3));
    let expected = json!([
        ["any", 3, "a"],
        ["twice", 2, 1],
        ["on", 2, 1],
        ["once", 2, 1],
        ["twice", 2, 1],
        ["any", 3, "a"],
        // `once` is over for `twice`, `on` is not.
        ["twice", 2, 2],
        ["on", 2, 2],
        ["any", 3, "b"],
        ["b", 2, 3]
    ]);
    assert_eq!(tab.get("calls.splice(0)"), expected);

    tab.run("hub.off('a', twice); hub.emit('a', 4); hub.emit('b', 5);");
    messages_until(&tab, &json!(5));
    assert_eq!(tab.get("calls.splice(0).map(([name]) => name)"), json!(["any", "on", "any", "b"]));
    tab.run("hub.off('a'); hub.emit('a', 6); hub.emit('b', 7);");
    messages_until(&tab, &json!(7));
    assert_eq!(tab.get("calls.splice(0).map(([name]) => name)"), json!(["any", "any", "b"]));
    tab.run("hub.off(); hub.emit('b', 8);");
    messages_until(&tab, &json!(8));
    assert_eq!(tab.get("calls.splice(0).map(([name]) => name)"), json!(["any"]));
    tab.run("hub.offAny(); hub.on('b', (data) => { window.last = data; }); hub.emit('b', 9);");
    tab.wait_for("window.last === 9");
    assert_eq!(tab.get("calls"), json!([]));
}

#[test]
fn history_reads_what_is_kept_by_steps_as_it_was_emitted() {
    let (hub, browser) = (Hub::start(&["--replay-page", "10"]), Browser::start());
    let tab = open(&browser, &hub, "connect({ channel: ['main', 'it\u{2019}s'] })");
    let texts = ["1", "2", "3", "4", "5"];
    let ids = texts.map(|text| hub.publish(text));
    hub.publish_to("elsewhere", "6");
    settled(&tab, "hub.broadcast.emit('picture', new Uint8Array([7]))");
    let data = |query: &str| {
        let data = "({ data }) => (data instanceof Uint8Array ? [...data] : data)";
        settled(&tab, &format!("hub.history({query}).then(({{ messages }}) => messages.map({data}))"))
    };
    assert_eq!(data("{ limit: 2 }"), json!(["5", [7]]));
    assert_eq!(data(""), json!(["1", "2", "3", "4", "5", [7]]));
    assert_eq!(data(&format!("{{ before: '{}', limit: 2 }}", ids[3])), json!(["2", "3"]));
    assert_eq!(data(&format!("{{ after: '{}', limit: 1 }}", ids[3])), json!(["5"]));
    assert_eq!(settled(&tab, "hub.history({ after: 'x-1' }).then(({ gap }) => gap.asked)"), "x-1");
    let refused = settled(&tab, "hub.history({ limit: 11 })");
    assert_eq!((&refused["name"], &refused["field"]), (&json!("Refusal"), &json!("limit")));
}

#[test]
fn history_is_asked_for_again_until_the_hub_is_back() {
    let (site, browser) = (Site::new(&[]), Browser::start());
    let hub = site.start();
    let tab = open(&browser, &hub, "connect()");
    hub.publish("kept");
    wait_for_message(&tab, &json!("kept"));
    drop(hub);
    tab.run("hub.history().then(({ messages }) => { window.read = messages.map(({ data }) => data); });");
    tab.wait_for("hub.state === 'offline'");
    let _hub = site.start();
    tab.wait_for("window.read");
    assert_eq!(tab.get("read"), json!(["kept"]));
}

#[test]
fn a_listener_that_throws_takes_nothing_from_the_others_and_is_reported() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = browser.open(&format!("http://{}/messages?last=0", hub.address));
    tab.run("window.reported = []; addEventListener('error', (event) => reported.push(event.message));");
    start(
        &tab,
        "connect().on('a', () => { throw new Error('mine'); }).onAny(() => { throw new Error('any'); })",
    );
    tab.wait_for("window.hub?.connected");
    tab.run("hub.on('a', (data) => { window.heard = data; }); hub.emit('a', 1); hub.emit('b', 2);");
    assert_eq!(messages_until(&tab, &json!(2)), json!([1, 2]));
    assert_eq!(tab.get("heard"), 1);
    // Their number alone: browsers hide what went wrong in a driver's script.
    assert_eq!(tab.get("reported.length"), 3);
}

#[test]
fn broadcast_reaches_everyone_but_the_page_it_comes_from_on_replay_too() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    // The third tab shares the stream of a tab that is to get the message.
    let connect = "connect({ id: 'me' + seen.length })";
    let others = [open(&browser, &hub, "connect()"), open(&browser, &hub, "connect()")];
    let tab = open(&browser, &hub, connect);
    assert_eq!(tab.get("hub.id"), "me0");
    assert_eq!(tab.get("[hub.connected, hub.disconnected]"), json!([true, false]));
    tab.run("hub.broadcast.emit('hi', 'to others'); hub.emit('hi', 'to all');");
    for other in &others {
        assert_eq!(messages_until(other, &json!("to all")), json!(["to others", "to all"]));
    }
    assert_eq!(messages_until(&tab, &json!("to all")), json!(["to all"]));
    let again = open(&browser, &hub, "connect({ id: 'me0', last: 9 })");
    assert_eq!(messages_until(&again, &json!("to all")), json!(["to all"]));
    // An id that the client makes itself is no other client's.
    assert!(others[0].get("hub.id").as_str().unwrap().len() == 32);
    assert_ne!(others[0].get("hub.id"), others[1].get("hub.id"));
}

#[test]
fn channels_are_listened_to_together_and_the_first_is_published_on() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect({ channel: ['b', 'a'] })");
    // The same channels in another order: this tab shares the stream.
    let same = open(&browser, &hub, "connect({ channel: ['a', 'b'] })");
    let other = open(&browser, &hub, "connect({ channel: 'c' })");
    tab.run("hub.on('x', (data, { channel }) => seen.push([channel]));");
    tab.run(
        "hub.emit('x', 1); hub.emit('x', 2, { channel: 'a' }); hub.broadcast.emit('x', 3, { channel: 'c' });",
    );
    hub.wait_for_logs(&["message published"], 3);
    hub.publish_to("main", "nobody listens");
    hub.publish_to("a", "end");
    assert_eq!(messages_until(&tab, &json!("end")), json!([1, 2, "end"]));
    assert_eq!(tab.get("seen.filter(({ length }) => length === 1)"), json!([["connect"], ["b"], ["a"]]));
    assert_eq!(messages_until(&same, &json!("end")), json!([1, 2, "end"]));
    assert_eq!(messages_until(&other, &json!(3)), json!([3]));
    hub.wait_for_logs(&["subscriber connected", "channels=\"a b\""], 2);
    hub.wait_for_logs(&["subscriber connected", "channels=\"c\""], 1);
}

#[test]
fn a_channel_may_have_any_name_and_is_emitted_on_by_its_name() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let name = "été:42/b?c&d#e,f.\"g\"";
    let tab = open(&browser, &hub, &format!("connect({{ channel: '{name}' }})"));
    let same = open(&browser, &hub, &format!("connect({{ channel: ['{name}'] }})"));
    tab.run("hub.emit('x', 1); hub.emit('x', new Uint8Array([2])); hub.emit('x', 3);");
    for tab in [&tab, &same] {
        messages_until(tab, &json!(3));
        assert_eq!(tab.get("seen.filter(([,, id]) => id).length"), json!(3));
    }
    let patterns = open(&browser, &hub, "connect({ channel: ['*.*', 'a.>', 'main'], last: 9 })");
    assert_eq!(messages_until(&patterns, &json!(3)), json!([1, [2], 3]));
    for emit in ["hub.emit('x', 1)", "hub.broadcast.emit('x', 1, { channel: 'a.>' })"] {
        assert_eq!(settled(&patterns, emit)["field"], "channel");
    }
    settled(&patterns, "hub.emit('x', 4, { channel: 'main' })");
    assert_eq!(hub.newest()["data"], 4);
}

#[test]
fn patterns_are_listened_to_by_tabs_that_share_a_stream() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tabs = open_three(&browser, &hub, "connect({ channel: ['a.*', '*.b', 'a.>'] })");
    for channel in ["a.b", "a", "a.b.c", "x.b", "x.y", "a.end"] {
        hub.publish_to(channel, channel);
    }
    for tab in &tabs {
        assert_eq!(messages_until(tab, &json!("a.end")), json!(["a.b", "a.b.c", "x.b", "a.end"]));
    }
}

#[test]
fn a_newcomer_gets_the_newest_messages_first_whether_it_holds_a_stream_or_shares_one() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    for number in 0..5 {
        hub.publish(&format!("{number}"));
    }
    for _ in 0..3 {
        let tab = open(&browser, &hub, "connect({ last: 2 })");
        assert_eq!(messages_until(&tab, &json!("4")), json!(["3", "4"]));
        // Its first messages do not count as recovered.
        let recovered =
            "seen.filter(([name]) => name === 'tabcast:state').map(([, { recovered }]) => recovered)";
        assert_eq!(tab.get(&format!("{recovered}.every((count) => count === 0)")), true);
        let tab = open(&browser, &hub, "connect()");
        hub.publish("now");
        assert_eq!(messages_until(&tab, &json!("now")), json!(["now"]));
        hub.publish("3");
        hub.publish("4");
    }
}

#[test]
fn names_of_the_clients_own_events_can_t_be_emitted_and_do_not_pass_for_its_own() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    for name in ["connect", "disconnect", "tabcast:state", "tabcast:x"] {
        let error = settled(&tab, &format!("hub.emit('{name}', 1)"));
        assert_eq!(error["message"], format!("\"{name}\" is an event of the client's own"));
    }
    tab.run("seen.length = 0;");
    assert_eq!(hub.post("?event=connect", "text/plain", "forged").status, 201);
    hub.publish("end");
    messages_until(&tab, &json!("end"));
    // By `onAny` alone, which gets every message and nothing else.
    assert_eq!(
        tab.get("seen.map(([name, data]) => [name, data])"),
        json!([["connect", "forged"], ["message", "end"]])
    );
}

#[test]
fn a_refused_message_rejects_with_the_problem_and_the_next_one_is_sent() {
    let (hub, browser) = (Hub::start(&["--max-body", "99"]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    let error = settled(&tab, "(window.next = hub.emit('a', 'x'.repeat(200)), hub.emit('a', 'fits'), next)");
    let problem = hub.post("", "text/plain", "x".repeat(200)).problem(413);
    assert_eq!(error["name"], "Refusal");
    assert_eq!(error["message"], problem["detail"]);
    for field in ["status", "detail", "field", "limit"] {
        assert_eq!(error[field], problem[field], "{field}");
    }
    assert_eq!(messages_until(&tab, &json!("fits")), json!(["fits"]));
    assert_eq!(settled(&tab, "hub.emit('a\\n', 1)")["field"], "event");
    assert_eq!(settled(&tab, "hub.emit('a', 1, { channel: 'no channel' })")["field"], "channel");
}

#[test]
fn what_is_emitted_while_the_hub_is_away_is_kept_once_and_in_order_when_it_is_back() {
    let (site, browser) = (Site::new(&[]), Browser::start());
    let hub = site.start();
    let tab = open(&browser, &hub, "connect()");
    // The hub keeps the first message, but its answer does not arrive.
    tab.run(
        "const real = fetch;
         window.requests = [];
         window.inFlight = window.mostInFlight = 0;
         window.fetch = async (url, init) => {
           if (init.method !== 'POST') return real(url, init);
           requests.push(init.headers['Idempotency-Key']);
           mostInFlight = Math.max(mostInFlight, ++inFlight);
           const answer = await real(url, init).finally(() => { inFlight -= 1; });
           if (requests.length === 1) throw new TypeError('lost');
           return answer;
         };
         window.ids = Promise.all(Array.from({ length: 100 }, (_, n) => hub.emit('n', n)));",
    );
    hub.wait_for_log(&["message published"]);
    drop(hub);
    tab.wait_for("hub.state === 'offline' && requests.length > 1");

    let hub = site.start();
    let ids = settled(&tab, "ids");
    let expected: Vec<_> = (0..100).collect();
    assert_eq!(messages_until(&tab, &json!(99)), json!(expected));
    assert_eq!(ids, history_ids(&hub));
    assert_eq!(tab.get("[mostInFlight, new Set(requests).size]"), json!([1, 100]));
    assert!(tab.get("requests.length").as_u64().unwrap() > 101, "some were sent again");
}

#[test]
fn a_message_is_sent_again_after_a_passing_refusal_and_no_sooner_than_that_says() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    tab.run(
        "const real = fetch;
         const answers = [[429, 1], [503], [408], [500], [502], [200]];
         window.times = [];
         window.fetch = async (url, init) => {
           if (init.method !== 'POST') return real(url, init);
           times.push(performance.now());
           const [status, after] = answers.shift() ?? [];
           if (!status) return real(url, init);
           // An event that makes the client try again at once.
           setTimeout(() => dispatchEvent(new Event('online')), 50);
           const headers = after ? { 'Retry-After': after } : {};
           return new Response('<!doctype html><title>a proxy</title>', { status, headers });
         };",
    );
    assert!(settled(&tab, "hub.emit('a', 'through')").is_string());
    assert_eq!(messages_until(&tab, &json!("through")), json!(["through"]));
    assert_eq!(tab.get("times.length"), 7);
    assert!(tab.get("times[1] - times[0]").as_f64().unwrap() >= 1_000.0);
    // The other waits were cut short.
    assert!(tab.get("times[6] - times[1]").as_f64().unwrap() < 5.0 * 500.0);
}

#[test]
fn messages_beyond_what_may_wait_are_refused_at_once() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    drop(hub);
    tab.wait_for("hub.state === 'offline'");
    tab.run("for (let n = 0; n < 1_000; n++) hub.emit('n', n);");
    let error = settled(&tab, "hub.emit('n', 1_000)");
    assert_eq!(error["name"], "RangeError");
    assert!(error["message"].as_str().unwrap().starts_with("too much is waiting: 1000 messages"), "{error}");

    let hub = Hub::start(&[]);
    let tab = open(&browser, &hub, "connect()");
    drop(hub);
    tab.wait_for("hub.state === 'offline'");
    tab.run("hub.emit('n', new Uint8Array(32 << 20));");
    assert_eq!(settled(&tab, "hub.emit('n', 'x')")["name"], "RangeError");
}

#[test]
fn what_emit_was_given_is_what_on_gets() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tabs = open_three(&browser, &hub, "connect()");
    let values = r#"
        const bytes = Uint8Array.from({ length: 256 }, (_, n) => n);
        const file = (type) => new Blob([bytes], { type });
        const values = [
          null, true, false, 0, -0.5, 1e300, 2 ** 53,
          '', ' ', 'text', '0', 'null', '"quoted"', '{"a":1}', '[]',
          'line\r\nbreak\rand\u2028 more\0', 'Größe 日本語 👩‍👩‍👧‍👦 🎉', '\ufeffmark',
          [], {}, [[]], { a: { b: [1, 'x', null, { c: '' }] } },
          { '': 1, __proto: 2, 'data:': 'data:text/plain;base64,AAAA', half: '\ud800' },
          'data:', 'data:,x', 'data:text/plain,x', 'data:text/plain;base64,AAAA', 'data:image/png;base64,',
          'data:a/b;base64,%', 'data:application/octet-stream;as=uint8array;base64,AQID',
          'data:text/plain;charset=utf-8;base64,w7w=',
          bytes, new Uint8Array(), bytes.subarray(7, 9),
          file('image/png'), file('application/octet-stream'), file('text/plain'),
          file('text/plain;charset=utf-8'), file('text/html'), file('application/json'),
          file('application/x-ndjson'), file('a#b/c^d'),
          file('application/x-www-form-urlencoded'), file('multipart/form-data; boundary=x'),
          file('audio/webm; codecs="opus, vp8"'), file('video/mp4;codecs=avc1.42E01E'),
          file('application/octet-stream;as=uint8array'), file('no type at all'), file('a/b;as=string'),
          new Blob([], { type: 'image/gif' }),
        ];
    "#;
    // Distinct for a string and a Blob of the same text, for -0.5 and "-0.5", and for each type.
    let described = "
        window.described = async (value) => {
          if (value instanceof Blob) {
            return ['Blob', value.type, new Uint8Array(await value.arrayBuffer()).join()];
          }
          if (value instanceof Uint8Array) return ['Uint8Array', value.join()];
          return [typeof value, JSON.stringify(value)];
        };";
    tabs[2].run(described);
    tabs[2].run(&format!("{values} window.given = Promise.all(values.map(described));"));
    let given = settled(&tabs[2], "given");
    tabs[2].run(&format!(
        "{values} for (const value of values) hub.emit('value', value); hub.emit('end', 'end');"
    ));
    for tab in &tabs {
        wait_for_message(tab, &json!("end"));
        tab.run(described);
        let got = settled(
            tab,
            "Promise.all(seen.filter(([name]) => name === 'value').map(([, data]) => described(data)))",
        );
        let (given, got) = (given.as_array().unwrap(), got.as_array().unwrap());
        for (given, got) in given.iter().zip(got) {
            assert_eq!(got, given);
        }
        assert_eq!(got.len(), given.len());
    }
}

#[test]
fn what_has_no_form_of_its_own_arrives_as_documented_or_is_refused() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    let got = |given: &str, as_text: &str| {
        tab.run(&format!("seen.length = 0; hub.emit('a', {given});"));
        tab.wait_for("seen.length");
        assert_eq!(tab.get(&format!("(([, data]) => {as_text})(seen[0])")), json!(true), "{given}");
    };
    got("undefined", "data === null");
    got("NaN", "data === null");
    got("new Date(0)", "data === '1970-01-01T00:00:00.000Z'");
    got("{ a: undefined, b: 1 }", "JSON.stringify(data) === '{\"b\":1}'");
    got("new Uint8Array([1, 2]).buffer", "data instanceof Uint8Array && data.join() === '1,2'");
    got("new Uint16Array([258])", "data instanceof Uint8Array && data.join() === '2,1'");
    got("new Blob(['x'])", "data instanceof Blob && data.type === 'application/octet-stream'");
    got(
        "new File(['x'], 'name', { type: 'image/png' })",
        "!(data instanceof File) && data.type === 'image/png'",
    );
    for (given, message) in [
        ("{ a: new Blob() }", "binary data is emitted by itself, not in an object"),
        ("[new Uint8Array(1)]", "binary data is emitted by itself, not in an object"),
        // Half a surrogate pair is not text.
        ("'\\ud800'", "`data` is a string with half a surrogate pair"),
    ] {
        assert_eq!(settled(&tab, &format!("hub.emit('a', {given})"))["message"], message, "{given}");
    }
    assert_eq!(settled(&tab, "hub.emit('a', 1n)")["name"], "TypeError");
}

#[test]
fn what_others_send_arrives_as_what_it_is() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    hub.post("", "image/png", b"\x89PNG");
    hub.post("", "Text/HTML; charset=UTF-8", "<b>x</b>");
    hub.post("", "Audio/WebM; codecs=\"a, b\"", "12345678");
    hub.post("", "application/json", r#"{"data": {"n": 1234567890123456789012345}}"#);
    for text in [
        "data:image/png;base64,####",
        "data:;base64,AAAA",
        "data:image/png;base64",
        "data:image/png;base64,A",
    ] {
        hub.publish(text);
    }
    hub.publish("end");
    messages_until(&tab, &json!("end"));
    let got = tab.get(
        "seen.filter(([,, id]) => id)
           .map(([, data]) => data instanceof Blob ? [data.type, data.size] : data)",
    );
    assert_eq!(
        got,
        json!([
            ["image/png", 4],
            "<b>x</b>",
            ["audio/webm;codecs=a%2c%20b", 8],
            {"n": 1234567890123456789012345_f64},
            "data:image/png;base64,####",
            "data:;base64,AAAA",
            "data:image/png;base64",
            "data:image/png;base64,A",
            "end"
        ])
    );
}

#[test]
fn disconnect_stops_listening_and_connect_goes_on_from_there() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    hub.publish("one");
    messages_until(&tab, &json!("one"));
    tab.run("hub.emit('message', 'sent all the same'); hub.disconnect().disconnect();");
    hub.wait_for_log(&["subscriber disconnected"]);
    hub.wait_for_logs(&["message published"], 2);
    assert_eq!(tab.get("[hub.connected, hub.state]"), json!([false, "offline"]));
    tab.run("hub.emit('message', 'and this');");
    hub.wait_for_logs(&["message published"], 3);
    tab.run("hub.connect().connect();");
    tab.wait_for("hub.connected");
    hub.publish("end");
    assert_eq!(messages_until(&tab, &json!("end")), json!(["one", "sent all the same", "and this", "end"]));
    let state =
        |state: &str, recovered: u32| json!(["tabcast:state", {"state": state, "recovered": recovered}]);
    assert_eq!(
        tab.get("seen.filter(([,, id]) => !id)"),
        json!([
            state("live", 0),
            ["connect"],
            ["tabcast:state", {"state": "offline", "recovered": 0, "reason": "disconnect"}],
            ["disconnect", "disconnect"],
            state("connecting", 0),
            state("live", 2),
            ["connect"]
        ])
    );
    assert_eq!(hub.count_log("subscriber connected"), 2);
}

#[test]
fn when_the_journal_is_another_each_tab_gets_one_gap_event() {
    let (site, browser) = (Site::new(&["--journal", "memory"]), Browser::start());
    let hub = site.start();
    let tabs = open_three(&browser, &hub, "connect()");
    let last = hub.publish("before");
    for tab in &tabs {
        messages_until(tab, &json!("before"));
    }
    drop(hub);
    for tab in &tabs {
        tab.wait_for("hub.state === 'offline'");
    }
    let hub = site.start();
    let first = hub.publish("kept before they are back");
    for tab in &tabs {
        tab.wait_for("hub.connected");
    }
    hub.publish("after");
    for tab in &tabs {
        assert_eq!(
            messages_until(tab, &json!("after")),
            json!(["before", "kept before they are back", "after"])
        );
        let gaps = tab.get("seen.filter(([name]) => name === 'tabcast:gap').map(([, gap]) => gap)");
        assert_eq!(gaps, json!([{"asked": last, "earliest": first}]));
    }
}

#[test]
fn when_the_journal_is_restored_from_a_backup_each_tab_gets_one_gap_event() {
    let (site, browser) = (Site::new(&[]), Browser::start());
    let (journal, backup) = (site.journal(), site.folder.file("backup.db"));
    let mut hub = site.start();
    hub.publish("in the backup");
    hub.end("TERM");
    std::fs::copy(&journal, &backup).unwrap();

    let mut hub = site.start();
    let tabs = open_three(&browser, &hub, "connect()");
    for text in ["one", "two", "three"] {
        hub.publish(text);
    }
    for tab in &tabs {
        messages_until(tab, &json!("three"));
    }
    hub.end("TERM");
    std::fs::rename(&backup, &journal).unwrap();
    let hub = site.start();
    hub.publish("with an id that was another's");
    for tab in &tabs {
        let expected = json!(["one", "two", "three", "in the backup", "with an id that was another's"]);
        assert_eq!(messages_until(tab, &json!("with an id that was another's")), expected);
        assert_eq!(tab.get("seen.filter(([name]) => name === 'tabcast:gap').length"), 1);
    }
}

#[test]
fn nothing_is_lost_while_missed_messages_can_t_be_fetched() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    tab.run(
        "hub.disconnect();
         const real = fetch;
         window.refused = 0;
         window.fetch = async (url) => {
           if (refused === 4) return real(url);
           setTimeout(() => dispatchEvent(new Event('online')), 50);
           return new Response('', { status: [404, 502, 401, 200][refused++] });
         };",
    );
    hub.publish("missed");
    tab.run("hub.connect();");
    hub.wait_for_logs(&["subscriber connected"], 2);
    hub.publish("on the stream");
    assert_eq!(messages_until(&tab, &json!("on the stream")), json!(["missed", "on the stream"]));
    assert_eq!(tab.get("refused"), 4);
}

#[test]
fn a_tab_whose_network_changes_makes_its_stream_anew_at_once() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    tab.run("dispatchEvent(new Event('online'));");
    hub.wait_for_log(&["subscriber disconnected", "subscriber=1"]);
    hub.wait_for_log(&["subscriber connected", "subscriber=2"]);
    hub.publish("end");
    assert_eq!(messages_until(&tab, &json!("end")), json!(["end"]));
    assert_eq!(tab.get("seen.filter(([name]) => name === 'disconnect').length"), 0);
}

#[test]
fn over_http_2_each_tab_holds_a_stream_of_its_own() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    // The entry that a browser has for a hub behind a proxy with HTTP/2.
    let connect = "(performance.getEntriesByType =
        () => [{ name: location.origin + '/tabcast.js', nextHopProtocol: 'h2' }], connect())";
    for _ in 0..3 {
        assert_eq!(open(&browser, &hub, connect).get("hub.state"), "live");
    }
    assert_eq!(hub.count_log("subscriber connected"), 3);
    assert_eq!(hub.count_log("subscriber disconnected"), 0);
}

const NO_LOCKS: &str = "Object.defineProperty(navigator, 'locks', { value: undefined })";

#[test]
fn without_web_locks_a_shared_worker_holds_the_stream_as_long_as_a_tab_needs_it() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let connect = format!("({NO_LOCKS}, connect())");
    let tabs = open_three(&browser, &hub, &connect);
    settled(&tabs[0], "hub.emit('a', 1)");
    for tab in &tabs {
        assert_eq!(messages_until(tab, &json!(1)), json!([1]));
        assert_eq!(tab.get("hub.state"), "shared");
    }
    assert_eq!(hub.count_log("subscriber connected"), 1);
    // Whenever a tab leaves, the worker ends its stream and opens another for the tabs that are left.
    tabs[0].run("hub.disconnect();");
    hub.wait_for_logs(&["subscriber connected"], 2);
    tabs[1].run("hub.disconnect();");
    hub.wait_for_logs(&["subscriber connected"], 3);
    settled(&tabs[0], "hub.emit('a', 2)");
    assert_eq!(messages_until(&tabs[2], &json!(2)), json!([1, 2]));
    assert_eq!(tabs[2].get("seen.filter(([name]) => name === 'disconnect')"), json!([]));
    tabs[2].run("hub.disconnect();");
    hub.wait_for_logs(&["subscriber disconnected"], 3);
    // A tab that comes back has a stream again.
    tabs[1].run("hub.connect();");
    assert_eq!(messages_until(&tabs[1], &json!(2)), json!([1, 2]));
    hub.wait_for_logs(&["subscriber connected"], 4);
}

#[test]
fn a_tab_that_disconnects_before_it_has_a_shared_worker_makes_none() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = browser.open(&format!("http://{}/messages?last=0", hub.address));
    let counted = "window.made = [], window.SharedWorker = class { constructor(...all) { made.push(all); } }";
    start(&tab, &format!("({NO_LOCKS}, {counted}, connect().disconnect())"));
    tab.wait_for("window.hub");
    // Timers end in the order of their times, and the client's is shorter.
    let made = "new Promise((resolve) => setTimeout(() => resolve(made.length), 500))";
    assert_eq!(settled(&tab, made), 0);
    tab.run("hub.connect();");
    tab.wait_for("made.length === 1");
}

#[test]
fn a_page_in_the_back_forward_cache_keeps_no_stream_of_a_shared_worker() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    // This file, as a browser does not cache a page with `no-store` for the way back.
    let [kept, last] = [(); 2].map(|()| browser.open(&format!("http://{}/tabcast.js", hub.address)));
    for tab in [&kept, &last] {
        start(tab, &format!("({NO_LOCKS}, connect())"));
        tab.wait_for("window.hub?.connected");
    }
    kept.go("about:blank");
    hub.wait_for_logs(&["subscriber connected"], 2);
    last.close();
    hub.wait_for_logs(&["subscriber disconnected"], 2);
}

#[test]
fn without_a_shared_worker_either_each_tab_holds_its_own_and_the_console_says_so() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let watched = "window.warned = [], console.warn = (text) => warned.push(text)";
    let connect = format!("({NO_LOCKS}, delete window.SharedWorker, {watched}, connect())");
    let tabs = [open(&browser, &hub, &connect), open(&browser, &hub, &connect)];
    settled(&tabs[0], "hub.emit('a', 1)");
    for tab in &tabs {
        assert_eq!(messages_until(tab, &json!(1)), json!([1]));
        assert_eq!(tab.get("hub.state"), "live");
        let warned = tab.get("warned");
        assert!(
            warned[0].as_str().unwrap().starts_with("tabcast: each tab needs a connection of its own"),
            "{warned}"
        );
        assert_eq!(warned.as_array().unwrap().len(), 1, "{warned}");
    }
    assert_eq!(hub.count_log("subscriber connected"), 2);
}

#[test]
fn a_page_of_another_origin_imports_the_client_and_uses_it_if_the_hub_allows_the_origin() {
    let (other, browser) = (Hub::start(&[]), Browser::start());
    let origin = format!("http://{}", other.address);
    let hub = Hub::start(&["--allow-origin", &origin]);
    let tab = browser.open(&format!("{origin}/messages?last=0"));
    tab.run(&format!(
        "window.seen = [];
         import('http://{}/tabcast.js').then(({{ connect }}) => {{
           window.hub = connect({{ last: 1 }}).onAny((...all) => seen.push(all));
         }});",
        hub.address
    ));
    tab.wait_for("window.hub?.connected");
    assert!(settled(&tab, "hub.emit('a', new Uint8Array([7]))").is_string());
    tab.wait_for("seen[0]?.[1]?.[0] === 7");
    // The hub of the page's origin has no part in it.
    assert_eq!(other.get("/messages").json(), json!({"messages": []}));
    assert_eq!(other.count_log("subscriber connected"), 0);
}

#[test]
fn the_client_is_served_to_any_page_once_and_anew_when_it_changed() {
    let allowed = "https://example.org";
    let javascript = "text/javascript; charset=utf-8";
    let files = [
        ("/tabcast.js", javascript),
        ("/tabcast.src.js", javascript),
        ("/tabcast.d.ts", "application/typescript; charset=utf-8"),
        ("/io.js", "text/javascript; charset=utf-8"),
    ];
    for flags in [&[][..], &["--allow-origin", allowed]] {
        let hub = Hub::start(flags);
        for (path, origin, content_type) in files
            .iter()
            .flat_map(|(path, kind)| [allowed, "https://example.net"].map(|origin| (path, origin, kind)))
        {
            let response = hub.send("GET", path, &[&format!("Origin: {origin}")], b"");
            assert_eq!(response.status, 200, "{path}");
            let expected = if flags.len() == 2 && origin == allowed { allowed } else { "*" };
            let allow: Vec<_> =
                response.headers.iter().filter(|(name, _)| name == "access-control-allow-origin").collect();
            assert_eq!(allow, [&("access-control-allow-origin".to_owned(), expected.to_owned())]);
            assert_eq!(response.header("cross-origin-resource-policy"), Some("cross-origin"));
            assert_eq!(response.header("content-type"), Some(*content_type));
            assert_eq!(response.header("cache-control"), Some("no-cache"));
            let tag = format!("If-None-Match: {}", response.header("etag").unwrap());
            assert_eq!(hub.send("GET", path, &[&tag], b"").status, 304);
        }
        // The page's other files are for its own origin alone.
        let page = hub.send("GET", "/app.js", &["Origin: https://example.net"], b"");
        assert_eq!(page.header("cross-origin-resource-policy"), Some("same-origin"));
        assert_eq!(page.header("access-control-allow-origin"), None);
    }
}

#[test]
fn the_client_is_small_and_its_first_line_leads_to_its_source_and_its_types() {
    let (hub, folder) = (Hub::start(&[]), Folder::new());
    let client = String::from_utf8(hub.get("/tabcast.js").body).unwrap();
    let (first, rest) = client.split_once('\n').unwrap();
    assert!(first.starts_with("// ") && !rest.contains("// "), "{first}");
    let words = first.split([' ', ',']);
    let links: Vec<_> = words.filter_map(|word| word.strip_prefix('.')).collect();
    assert_eq!(links, ["/tabcast.src.js", "/tabcast.d.ts"]);
    let [source, _types] = [links[0], links[1]].map(|link| hub.get(link).body);
    let [client, source] =
        [("client.mjs", client.as_bytes()), ("source.mjs", &source)].map(|(name, code)| {
            let file = folder.file(name);
            std::fs::write(&file, code).unwrap();
            assert!(Command::new("node").args(["--check", &file]).status().unwrap().success(), "{name}");
            let zipped = Command::new("gzip").args(["-9", "--stdout", &file]).output().unwrap();
            assert!(zipped.status.success());
            zipped.stdout.len()
        });
    // 8.4 kB, as the documents have it.
    assert!(client < 8_450 && client < source, "{client} bytes of {source}");
}

/// What an expression throws, as its name and message.
fn thrown(tab: &Tab, expression: &str) -> String {
    let error = tab.run(&format!("try {{ {expression}; }} catch (error) {{ return `${{error}}`; }}"));
    error.as_str().unwrap_or_else(|| panic!("{expression} throws nothing")).to_owned()
}

#[test]
fn several_values_or_an_unknown_option_are_refused_with_what_is_taken_instead() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "(window.connect = connect, connect())");
    let refused = "`emit` sends one value, as an array or object, and has one option, `channel`";
    for more in
        ["2", "'b'", "''", "null", "[]", "[2]", "new Date()", "{ chanel: 'a' }", "{}, 3", "2, () => {}"]
    {
        for emit in ["emit", "broadcast.emit"] {
            let error = settled(&tab, &format!("hub.{emit}('a', 1, {more})"));
            assert_eq!((&error["name"], &error["message"]), (&json!("TypeError"), &json!(refused)), "{more}");
        }
    }
    for (options, name) in [("{ chanel: 'a' }", "chanel"), ("{ last: 1, transports: [] }", "transports")] {
        let error = thrown(&tab, &format!("connect({options})"));
        let expected = format!(
            "TypeError: no option `{name}`: there are channel, last, id, token, credentials, EventSource"
        );
        assert_eq!(error, expected);
        assert_eq!(thrown(&tab, &format!("connect(location.origin, {options})")), expected);
    }
    let error = "TypeError: no `volatile` and no `timeout`: `emit` sends until the hub keeps the message";
    assert_eq!(thrown(&tab, "hub.volatile.emit('a', 1)"), error);
    assert_eq!(thrown(&tab, "hub.timeout(5000).emit('a', 1, () => {})"), error);
    // None of these was sent.
    settled(&tab, "hub.emit('a', 'end')");
    assert_eq!(hub.history_data(""), ["end"]);
}

#[test]
fn an_acknowledgement_is_called_with_the_id_once_the_hub_keeps_the_message() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub, "connect()");
    tab.run(
        "window.acknowledged = [];
         const note = (...values) => acknowledged.push(values);
         hub.emit('a', 1, note);
         hub.emit('a', 2, { channel: 'c' }, note);
         hub.emit('a', note);
         hub.broadcast.emit('a', 4, undefined, note);",
    );
    tab.wait_for("acknowledged.length === 4");
    let ids = |query| hub.history(query).iter().map(|message| message["id"].clone()).collect::<Vec<_>>();
    let (main, other) = (ids(""), ids("?channel=c"));
    assert_eq!(tab.get("acknowledged.map(([id]) => id)"), json!([main[0], other[0], main[1], main[2]]));
    assert_eq!(tab.get("acknowledged.every(({ length }) => length === 1)"), true);
    // It is not called for a message that is refused, which is the promise's to tell; and what it throws is
    // not the message's failure.
    let long = "x".repeat(200);
    let refused = settled(&tab, &format!("hub.emit('{long}', 1, () => acknowledged.push('never'))"));
    assert_eq!(refused["status"], 422);
    let id = settled(&tab, "hub.emit('a', 5, () => { throw new Error('mine'); })");
    assert_eq!(id, hub.newest()["id"]);
    assert_eq!(tab.get("acknowledged.length"), 4);
}

#[test]
fn a_copy_of_the_client_needs_a_url_and_finds_the_hubs_worker() {
    let folder = Folder::new();
    std::fs::copy("assets/tabcast.js", folder.path.join("bundle-1a2b.js")).unwrap();
    std::fs::write(folder.path.join("index.html"), "").unwrap();
    let hub = Hub::start(&["--public", &folder.file(""), "--allow-host", "hub.example"]);
    let browser = Browser::start_with_hosts(&["hub.example"]);
    let tabs = [(); 2].map(|()| browser.open(&format!("http://hub.example:{}/", hub.address.port())));
    for tab in &tabs {
        tab.run("import('/bundle-1a2b.js').then(({ connect }) => { window.connect = connect; });");
        tab.wait_for("window.connect");
        let error = "TypeError: a copy of this script needs the URL of a hub";
        assert_eq!(thrown(tab, "connect({ last: 1 })"), error);
        // No Web Locks here: a shared worker holds the stream for both.
        tab.run("window.hub = connect('/'); hub.on('x', (data) => { window.heard = data; });");
    }
    tabs.iter().for_each(|tab| tab.wait_for("hub.state === 'shared'"));
    hub.post("?event=x", "text/plain", "y");
    tabs.iter().for_each(|tab| tab.wait_for("window.heard === 'y'"));
    assert_eq!(hub.count_log("subscriber connected"), 1);
}

#[test]
fn streams_of_a_class_that_the_page_gives_are_its_own() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let connect = "connect({ EventSource: class extends EventSource {} })";
    let tabs = open_three(&browser, &hub, connect);
    tabs.iter().for_each(|tab| assert_eq!(tab.get("hub.state"), "live"));
    hub.publish("to each");
    tabs.iter().for_each(|tab| wait_for_message(tab, &json!("to each")));
    assert_eq!(hub.count_log("subscriber connected"), 3);
    let none = thrown(&tabs[0], "hub.constructor && new hub.constructor('/', { EventSource: null })");
    assert_eq!(none, "TypeError: no EventSource: give one by the option `EventSource`");
}
