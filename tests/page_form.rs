//! The hub's page beside its list: its channels, its form, its commands; and whether everyone can use it.

mod browser;
mod common;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use browser::page::{messages, open, open_with, page, pending, rows_until, wait_for_state};
use browser::{Browser, ENTER, SHIFT, Tab};
use common::{Folder, Hub};
use serde_json::{Value, json};

fn value(tab: &Tab, id: &str) -> Value {
    tab.get(&format!("document.getElementById('{id}').value"))
}

fn text(tab: &Tab, id: &str) -> String {
    tab.get(&format!("document.getElementById('{id}').textContent")).as_str().unwrap().to_owned()
}

fn open_options(tab: &Tab) {
    tab.click("#options summary");
    tab.wait_for("document.getElementById('options').open");
}

#[test]
fn the_page_shows_the_channels_of_its_url_and_sends_to_the_first() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open_with(&browser, &hub, "?channel=docs&channel=build.*");
    assert_eq!(value(&tab, "names"), "docs build.*");
    assert_eq!(tab.get("document.title"), "docs build.* · tabcast");
    assert_eq!(tab.role_and_name("#data").1, "Message to docs");
    hub.publish("elsewhere");
    hub.publish_to("build.7", "built");
    tab.click("#send");
    rows_until(&tab, "Hello World!");
    assert_eq!(messages(&tab), ["built", "Hello World!"]);
    let names = tab.get("[...document.querySelectorAll('.channel')].map(name => name.textContent)");
    assert_eq!(names, json!(["build.7", "docs"]));
    assert_eq!(pending(&tab), json!([]));

    // The field changes them, and the browser's way back leads back.
    assert_eq!(tab.get("document.getElementById('show').checkVisibility()"), false);
    tab.fill("#names", "  build.>  it's ");
    tab.click("#show");
    tab.wait_for("document.getElementById('names')?.value === \"build.> it's\"");
    assert_eq!(tab.url(), format!("{}?channel=build.%3E&channel=it%27s", page(&hub)));
    tab.wait_for("document.querySelector('#messages .data')?.textContent === 'built'");
    tab.fill("#names", "main");
    tab.press("#names", ENTER);
    tab.wait_for("document.getElementById('names')?.value === 'main'");
    assert_eq!(tab.url(), page(&hub));
    rows_until(&tab, "elsewhere");
    // One channel needs no names.
    assert_eq!(tab.get("document.querySelector('.channel')"), Value::Null);
    tab.back();
    tab.wait_for("document.getElementById('names')?.value === \"build.> it's\"");
}

#[test]
fn a_pattern_can_not_be_sent_to_and_the_hub_says_so() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open_with(&browser, &hub, "?channel=build.*");
    tab.click("#send");
    tab.wait_for("document.getElementById('problem').textContent.startsWith('`channel` must be')");
    open_options(&tab);
    tab.fill("#channel", "build.1");
    tab.click("#send");
    rows_until(&tab, "Hello World!");
    assert_eq!(hub.history("?channel=build.1")[0]["data"], "Hello World!");
}

#[test]
fn the_form_sets_event_and_channel_and_sends_json_once_that_is_right() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    open_options(&tab);
    tab.fill("#event", "chat message");
    tab.click("#json");
    tab.fill("#data", "{\"a\": [1, }");
    tab.press("#data", ENTER);
    tab.wait_for("document.getElementById('problem').textContent.startsWith('This is no JSON: ')");
    assert_eq!(hub.history(""), [Value::Null; 0]);
    tab.fill("#data", "{\"a\": [1, null]}");
    tab.press("#data", ENTER);
    rows_until(&tab, "{\"a\":[1,null]}");
    assert_eq!(text(&tab, "problem"), "");
    let newest = hub.newest();
    assert_eq!((&newest["event"], &newest["data"]), (&json!("chat message"), &json!({"a": [1, null]})));
    assert_eq!(tab.get("document.querySelector('.event').textContent"), "chat message");
    assert_eq!(pending(&tab), json!([]));

    // To a channel that the page does not show.
    tab.fill("#channel", "other");
    assert_eq!(tab.role_and_name("#data").1, "Message to other");
    tab.press("#data", ENTER);
    tab.wait_for("document.querySelector('#pending small')?.textContent.startsWith('Sent to other')");
    assert_eq!(hub.history("?channel=other").len(), 1);
    tab.fill("#event", "tabcast:x");
    tab.press("#data", ENTER);
    tab.wait_for("document.getElementById('problem').textContent.includes('tabcast:x')");
    assert_eq!(pending(&tab), json!([]));
}

#[test]
fn shift_and_enter_break_the_line_and_enter_sends() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    let height = "document.getElementById('data').offsetHeight";
    let low = tab.get(height);
    tab.fill("#data", &format!("one{SHIFT}{ENTER}{SHIFT}two"));
    assert_eq!(value(&tab, "data"), "one\ntwo");
    if !browser::is_firefox() {
        assert!(tab.get(height).as_f64() > low.as_f64());
    }
    tab.press("#data", ENTER);
    rows_until(&tab, "one\ntwo");
    assert_eq!(hub.newest()["data"], "one\ntwo");
    // While an input method composes, Enter is its own.
    tab.run(
        "document.getElementById('data').dispatchEvent(
           new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true }));",
    );
    hub.publish("end");
    rows_until(&tab, "end");
    assert_eq!(messages(&tab), ["one\ntwo", "end"]);
}

#[test]
fn files_are_pasted_dropped_or_chosen_and_sent_in_place_of_the_text() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    let transfer = "const data = new DataTransfer();
        const picture = '<svg xmlns=\"http://www.w3.org/2000/svg\"/>';
        data.items.add(new File([picture], 'a.svg', { type: 'image/svg+xml' }));
        const how = { bubbles: true, cancelable: true };
        const field = document.getElementById('data');";
    tab.run(&format!(
        "{transfer}
         const paste = new ClipboardEvent('paste', {{ clipboardData: data, ...how }});
         window.kept = field.dispatchEvent(paste);"
    ));
    assert_eq!(tab.get("kept"), false);
    assert_eq!(text(&tab, "send"), "Send file");
    assert_eq!(tab.get("document.getElementById('options').open"), true);
    tab.click("#send");
    rows_until(&tab, "image/svg+xml, 41 bytes");
    assert_eq!(text(&tab, "send"), "Send");
    assert!(hub.newest()["data"].as_str().unwrap().starts_with("data:image/svg+xml;base64,"));

    tab.run(&format!(
        "{transfer} data.items.add(new File(['x'], 'b'));
         const event = (kind) => new DragEvent(kind, {{ dataTransfer: data, ...how }});
         window.kept = ['dragover', 'drop'].map((kind) => document.body.dispatchEvent(event(kind)));"
    ));
    assert_eq!(tab.get("kept"), json!([false, false]));
    assert_eq!(text(&tab, "send"), "Send 2 files");
    tab.click("#detach");
    assert_eq!(text(&tab, "send"), "Send");
    assert_eq!(tab.get("document.getElementById('detach').checkVisibility()"), false);
    // Pasted text is the browser's.
    tab.run(
        "const data = new DataTransfer();
         data.setData('text/plain', 'text');
         window.kept = document.getElementById('data').dispatchEvent(
           new ClipboardEvent('paste', { clipboardData: data, bubbles: true, cancelable: true }));",
    );
    assert_eq!(tab.get("kept"), true);

    let folder = Folder::new();
    let file = folder.file("c.bin");
    std::fs::write(&file, [0, 255, 10]).unwrap();
    tab.press("#files", &file);
    assert_eq!(text(&tab, "send"), "Send file");
    tab.click("#send");
    rows_until(&tab, "application/octet-stream, 3 bytes");
    assert_eq!(hub.newest()["data"], "data:application/octet-stream;base64,AP8K");
    tab.click("#send");
    rows_until(&tab, "Hello World!");
    assert_eq!(pending(&tab), json!([]));
}

#[test]
fn a_file_that_the_hub_refuses_says_why() {
    let (hub, browser) = (Hub::start(&["--max-body", "64"]), Browser::start());
    let tab = open(&browser, &hub);
    let folder = Folder::new();
    let file = folder.file("a.bin");
    std::fs::write(&file, [0; 100]).unwrap();
    tab.press("#files", &file);
    tab.click("#send");
    tab.wait_for("document.querySelector('#pending .refused small')?.textContent.includes('64')");
}

/// The text of each command.
fn commands(tab: &Tab) -> Vec<String> {
    ["watch", "publish", "snippet"].map(|id| text(tab, id)).into()
}

#[test]
fn the_commands_are_this_hubs_with_the_channels_shown_and_do_what_they_say() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    let here = page(&hub);
    let expected = [
        format!("curl -N {here}events"),
        format!("curl -d 'Hello World!' {here}messages"),
        format!(
            "import {{ connect }} from \"{here}tabcast.js\";\n\
             connect().on(\"message\", (data) => console.log(data));"
        ),
    ];
    assert_eq!(commands(&tab), expected);

    let tab = open_with(&browser, &hub, "?channel=it's&channel=build.>");
    let [watch, publish, snippet] = commands(&tab).try_into().unwrap();
    // They are copied as they are.
    tab.run("window.copied = []; navigator.clipboard.writeText = async (text) => { copied.push(text); };");
    for id in ["watch", "publish", "snippet"] {
        tab.click(&format!("[data-copies={id}]"));
        tab.wait_for(&format!("document.querySelector('[data-copies={id}]').textContent === 'Copied'"));
    }
    assert_eq!(tab.get("copied"), json!([watch, publish, snippet]));

    let shell = |command: &str| {
        let mut child = Command::new("sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(command.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    // On a page of one's own, a script without a policy; and a watcher, which ends after the first message.
    let own = browser.open(&format!("{here}messages?last=0"));
    own.run(&format!(
        "window.logged = [];
         console.log = (data) => logged.push(data);
         const url = URL.createObjectURL(new Blob([{}], {{ type: 'text/javascript' }}));
         import(url).then(() => {{ window.imported = true; }});",
        json!(snippet)
    ));
    own.wait_for("window.imported");
    hub.wait_for_logs(&["subscriber connected"], 3);
    let receipt: Value = serde_json::from_str(&shell(&publish)).unwrap();
    assert_eq!(receipt["channel"], "it's");
    own.wait_for("logged.length");
    assert_eq!(own.get("logged"), json!(["Hello World!"]));
    let watched = shell(&format!("{} | grep -m 1 data:", watch.replacen("channel=", "last=1&channel=", 1)));
    assert_eq!(watched, "data: Hello World!\n");
}

#[test]
fn without_script_the_commands_can_be_selected_and_the_form_names_event_and_channel() {
    let hub = Hub::start(&[]);
    let browser = Browser::start_without_script();
    let tab = browser.open(&page(&hub));
    for id in ["watch", "publish", "snippet"] {
        let shown = tab.get(&format!(
            "(({{ userSelect, display }}) => [userSelect, display !== 'none'])
               (getComputedStyle(document.getElementById('{id}')))"
        ));
        assert_eq!(shown, json!(["all", true]), "{id}");
    }
    // What needs a script is not there.
    for selector in ["#channels", "#status", ".copy", ".scripted", "#detach", "#empty"] {
        assert_eq!(tab.get(&format!("document.querySelector('{selector}').checkVisibility()")), false);
    }
    tab.click("#options summary");
    tab.fill("#channel", "docs");
    tab.fill("#event", "note");
    tab.click("#send");
    hub.wait_for_log(&["message published"]);
    let message = &hub.history("?channel=docs")[0];
    assert_eq!((&message["event"], &message["data"]), (&json!("note"), &json!("Hello World!")));
}

#[test]
fn without_script_the_commands_and_the_form_are_for_the_channels_of_the_url() {
    let hub = Hub::start(&[]);
    let browser = Browser::start_without_script();
    // A channel's name may have what HTML and a shell have a meaning for.
    let odd = r#"a<b>"c'&d"#.replace('>', "");
    let encoded: String = odd.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let tab = browser.open(&format!("{}?channel={encoded}&channel=docs.*", page(&hub)));
    let text = |id: &str| tab.get(&format!("document.getElementById('{id}').textContent"));
    let run = |command: &str| {
        let run =
            std::process::Command::new("sh").args(["-c", &format!("{command} -sS --max-time 20")]).output();
        String::from_utf8(run.unwrap().stdout).unwrap()
    };
    let sent = run(text("publish").as_str().unwrap());
    assert!(sent.contains("\"id\""), "{sent}");
    let watch = text("watch").as_str().unwrap().replace("/events?", "/messages?").replace("curl -N", "curl");
    assert!(run(&watch).contains("Hello World!"), "{watch}");
    let url = format!("http://{}/", hub.address);
    let argument = json!([odd, "docs.*"]);
    let snippet = format!(
        "import {{ connect }} from \"{url}tabcast.js\";\n\
         connect({{ channel: {argument} }}).on(\"message\", (data) => console.log(data));"
    );
    assert_eq!(text("snippet"), snippet);
    tab.click("#send");
    hub.wait_for_logs(&["message published"], 2);
    assert_eq!(hub.history(&format!("?channel={encoded}")).len(), 2);
    let raw = hub.get("/?channel=docs");
    assert!(raw.header("etag").is_none() && raw.header("content-encoding").is_none());
}

#[test]
fn the_commands_stay_folded_or_unfolded() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    let is_open = "document.getElementById('commands').open";
    assert_eq!(tab.get(is_open), true);
    tab.click("#commands summary");
    tab.wait_for(&format!("!{is_open} && localStorage.commands === 'false'"));
    tab.refresh();
    assert_eq!(tab.get(is_open), false);
    tab.click("#commands summary");
    tab.wait_for(&format!("{is_open} && localStorage.commands === 'true'"));
    if browser::lacks("DevTools") {
        return;
    }
    // On a phone they are folded at first, which says nothing about a wider window.
    tab.run("localStorage.clear();");
    for (width, is_wide) in [(390, false), (1280, true)] {
        tab.resize(width, 800);
        tab.refresh();
        assert_eq!(tab.get(is_open), is_wide);
    }
}

/// A page with rows of every kind, one of them pending.
fn full_page<'a>(browser: &'a Browser, hub: &Hub) -> Tab<'a> {
    hub.publish(
        "A text with https://example.org/a/link and a longer line than there is room for on a phone.",
    );
    hub.post("", "application/json", json!({"data": {"a": "x".repeat(300)}, "event": "build"}).to_string());
    hub.post("", "image/svg+xml", br#"<svg xmlns="http://www.w3.org/2000/svg" width="900" height="90"/>"#);
    hub.post("", "application/pdf", b"pdf");
    hub.publish(&"unbroken".repeat(300));
    hub.publish("end");
    let tab = open_with(browser, hub, "?channel=main&channel=build.*");
    rows_until(&tab, "end");
    open_options(&tab);
    tab.run("document.querySelectorAll('#messages details').forEach((details) => { details.open = true; });");
    tab.wait_for("document.querySelector('.whole').textContent");
    // The hub does not answer a message any more.
    tab.run("const { fetch } = window; window.fetch = () => new Promise(() => {});");
    tab.click("#send");
    tab.wait_for("document.querySelector('.pending')");
    tab
}

#[test]
fn axe_finds_no_violation_in_light_and_in_dark() {
    if browser::lacks("DevTools") {
        return;
    }
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let axe = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("types/node_modules/axe-core/axe.min.js");
    let axe = std::fs::read_to_string(axe).expect("tests/run installs axe-core");
    let tab = full_page(&browser, &hub);
    tab.run(&axe);
    for scheme in ["light", "dark"] {
        tab.prefer("prefers-color-scheme", scheme);
        tab.wait_for(&format!("matchMedia('(prefers-color-scheme: {scheme})').matches"));
        // Colours change at once.
        tab.run("document.getAnimations().forEach((animation) => animation.finish());");
        let found = tab.run_until_done(
            "const [, done] = arguments;
             axe.run().then(({ violations, passes }) => done([passes.length > 20,
               ...violations.map(({ id, nodes }) => [id, ...nodes.map(({ html }) => html)])]));",
            json!(null),
        );
        assert_eq!(found, json!([true]), "{scheme}");
    }
}

#[test]
fn nothing_is_out_of_reach_on_a_phone_at_400_percent_or_from_right_to_left() {
    if browser::lacks("DevTools") {
        return;
    }
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = full_page(&browser, &hub);
    for direction in ["ltr", "rtl"] {
        tab.run(&format!("document.documentElement.dir = '{direction}';"));
        // A desktop, a phone, and a window of 1280 by 1024 pixels at 400 %.
        for (width, height) in [(1280, 800), (390, 844), (320, 256)] {
            tab.resize(width, height);
            tab.wait_for(&format!("innerWidth === {width}"));
            let wide = tab.get(
                "[document.documentElement, document.getElementById('log')]
                   .map(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth)",
            );
            assert_eq!(wide, json!([0, 0]), "{direction} {width}");
            // What has the focus is in sight.
            let hidden = tab.get(
                "[...document.querySelectorAll('input, textarea, button, summary, a')]
                   .filter((control) => control.checkVisibility())
                   .filter((control) => {
                     control.scrollIntoView({ block: 'nearest' });
                     const { left, right, top, bottom } = control.getBoundingClientRect();
                     const isBelow = bottom > innerHeight + 1 && top > 1;
                     return left < 0 || right > innerWidth || top < -1 || isBelow;
                   })
                   .map(({ outerHTML }) => outerHTML)",
            );
            assert_eq!(hidden, json!([]), "{direction} {width}");
        }
    }
}

#[test]
fn with_forced_colours_every_control_and_panel_has_an_edge() {
    if browser::lacks("DevTools") {
        return;
    }
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = full_page(&browser, &hub);
    tab.prefer("forced-colors", "active");
    tab.wait_for("matchMedia('(forced-colors: active)').matches");
    let without = tab.get(
        "[...document.querySelectorAll('button, input:not(#files, #json), textarea')]
           .concat(...document.querySelectorAll('#log, #commands, .whole, .name'))
           .filter((control) => control.checkVisibility())
           .filter((control) => parseFloat(getComputedStyle(control).borderTopWidth) < 1)
           .map(({ outerHTML }) => outerHTML)",
    );
    assert_eq!(without, json!([]));
}

#[test]
fn the_page_is_small() {
    let hub = Hub::start(&[]);
    let bytes = |headers: &[&str]| -> usize {
        let files = ["/", "/app.css", "/app.js", "/tabcast.js", "/icon.svg"];
        files.map(|path| hub.send("GET", path, headers, b"").body.len()).iter().sum()
    };
    let (plain, zipped) = (bytes(&[]), bytes(&["Accept-Encoding: gzip"]));
    assert!(plain < 60_000 && zipped < 20_000, "{plain} bytes, {zipped} on the wire");
}

#[test]
fn the_hub_serves_the_pages_styles_without_comments() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = open(&browser, &hub);
    assert!(!String::from_utf8(hub.get("/app.css").body).unwrap().contains("/*"));
    let source = include_str!("../assets/app.css");
    let same = tab.run(&format!(
        "const source = new CSSStyleSheet();
         source.replaceSync({});
         const [one, other] = [source, document.styleSheets[0]]
           .map(({{ cssRules }}) => [...cssRules].map(({{ cssText }}) => cssText).join());
         return one.length > 5000 && one === other;",
        json!(source)
    ));
    assert_eq!(same, true);
}

#[test]
fn a_page_whose_first_stream_is_refused_takes_its_channels_from_the_field_again() {
    let (hub, browser) = (Hub::start(&[]), Browser::start());
    let tab = browser.open(&format!("{}?channel=a..b", page(&hub)));
    wait_for_state(&tab, "offline");
    tab.fill("#names", "a.b");
    tab.press("#names", ENTER);
    wait_for_state(&tab, "live");
}
