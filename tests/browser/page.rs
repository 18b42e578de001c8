//! The hub's page in a tab: its state, and the rows of its list.

use serde_json::{Value, json};

use super::{Browser, Tab};
use crate::common::Hub;

pub fn page(hub: &Hub) -> String {
    format!("http://{}/", hub.address)
}

pub fn wait_for_state(tab: &Tab, state: &str) {
    tab.wait_for(&format!("document.getElementById('status').dataset.state === '{state}'"));
}

/// Waits until the tab has a stream of its own or shares another tab's.
pub fn wait_until_connected(tab: &Tab) {
    tab.wait_for("['live', 'shared'].includes(document.getElementById('status').dataset.state)");
}

/// A tab with the page, once it is connected.
pub fn open<'a>(browser: &'a Browser, hub: &Hub) -> Tab<'a> {
    open_with(browser, hub, "")
}

/// The same with this query.
pub fn open_with<'a>(browser: &'a Browser, hub: &Hub, query: &str) -> Tab<'a> {
    let tab = browser.open(&format!("{}{query}", page(hub)));
    wait_until_connected(&tab);
    tab
}

/// The text of each row, messages and the notes between them.
pub fn rows(tab: &Tab) -> Value {
    tab.get(
        "[...document.querySelectorAll('#messages li')]
           .map(row => (row.querySelector('.data') ?? row).textContent)",
    )
}

/// The text of each message.
pub fn messages(tab: &Tab) -> Vec<Value> {
    let texts = tab.get("[...document.querySelectorAll('#messages .data')].map(data => data.textContent)");
    texts.as_array().unwrap().clone()
}

/// The text of each row once this is the last message. All messages before it have then arrived, doubles too.
pub fn rows_until(tab: &Tab, last: &str) -> Value {
    tab.wait_for(&format!(
        "[...document.querySelectorAll('#messages .data')].at(-1)?.textContent === {}",
        json!(last)
    ));
    rows(tab)
}

/// The text of each message that has no answer yet, and what the page says of it.
pub fn pending(tab: &Tab) -> Value {
    tab.get(
        "[...document.querySelectorAll('#pending li')]
           .map(row => [row.querySelector('.data').textContent, row.lastElementChild.textContent])",
    )
}
