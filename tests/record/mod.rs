//! The record of the messages that a tab got and sent, and its check against the hub's history.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::browser::Tab;
use crate::common::Hub;

/// The script with which a page writes its record.
pub const SCRIPT: &str = include_str!("record.js");

/// A message of the hub's history, as the tests publish it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub id: String,
    pub event: String,
    /// The number of a `ping`, which the `pong` that answers it repeats.
    pub n: u64,
    /// The number of the tab that sent a `pong`.
    pub from: Option<u64>,
}

/// What one page of a tab got and sent.
#[derive(Debug, Default, Deserialize)]
pub struct Record {
    /// The id of the newest message that the hub had when the page was connected; empty if it had none.
    pub since: Option<String>,
    /// Of each message: id, event, number, sender, and the ms from its sender to this page.
    pub delivered: Vec<(String, String, u64, Option<u64>, f64)>,
    /// How many messages the page has tried to send.
    pub asked: usize,
    /// The number and the id of each message it has sent.
    pub acknowledged: Vec<(u64, String)>,
    /// Why others were refused.
    pub refused: Vec<String>,
}

/// A page's state when it was asked.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The client's state: `connecting`, `live`, `shared` or `offline`.
    pub state: String,
    /// Whether [`Record::since`] is there.
    pub connected: bool,
    /// The number of the newest `ping` it got.
    pub newest: u64,
    /// Whether each message it has sent is answered.
    pub settled: bool,
    /// Whether the last event it got is `end`.
    pub ended: bool,
}

/// A page's answer.
#[derive(Debug, Deserialize)]
pub struct Answer {
    pub number: usize,
    pub status: Status,
    /// The most ms that a message took, by its sender: `curl` or the number of a tab. Counted since the last
    /// question with [`Question::forget`].
    pub slowest: HashMap<String, f64>,
    /// `None` but for a question with [`Question::whole`].
    pub record: Option<Record>,
}

/// What pages are asked.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Question {
    /// To send a `pong` with each of these numbers.
    pub send: Vec<u64>,
    /// To answer with the whole record.
    pub whole: bool,
    /// To forget which message was slowest.
    pub forget: bool,
}

/// Asks the pages of `these` numbers, from another tab of the same origin. Pages that do not answer within a
/// second, or within 20 to [`Question::whole`], are left out.
pub fn ask(tab: &Tab, question: Question, these: &[usize]) -> Vec<Answer> {
    let script = "
      const [{ question, these }, done] = arguments;
      const wire = new BroadcastChannel('record');
      const id = Math.random();
      const answers = [];
      const end = () => { wire.close(); done(answers); };
      wire.onmessage = ({ data }) => {
        if (data.question !== id || !these.includes(data.number)) return;
        if (answers.push(data) === these.length) end();
      };
      setTimeout(end, question.whole ? 20_000 : 1_000);
      wire.postMessage({ ...question, id });";
    serde_json::from_value(tab.run_until_done(script, json!({"question": question, "these": these}))).unwrap()
}

/// The hub's whole history, oldest first.
pub fn kept(hub: &Hub) -> Vec<Kept> {
    let mut kept: Vec<Kept> = Vec::new();
    loop {
        // No journal has this epoch: every message comes after it.
        let after = kept.last().map_or("aaaaaaaa-0", |message| message.id.as_str());
        let page = hub.history(&format!("?after={after}"));
        if page.is_empty() {
            return kept;
        }
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        kept.extend(page.iter().map(|message| Kept {
            id: text(&message["id"]),
            event: text(&message["event"]),
            n: message["data"]["n"].as_u64().unwrap(),
            from: message["data"]["from"].as_u64(),
        }));
    }
}

/// How many of the messages that tabs were to get came, and how many came wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub delivered: usize,
    /// Published after the tab was connected, and not delivered to it.
    pub lost: usize,
    /// Delivered a second time.
    pub doubled: usize,
    /// Delivered after a later message.
    pub disordered: usize,
    /// Delivered, but not as the history has it.
    pub altered: usize,
    pub worst_delay_ms: f64,
}

impl Tally {
    /// The tally of one page, which is still there.
    pub fn of(record: &Record, kept: &[Kept]) -> Tally {
        let place: HashMap<_, _> =
            kept.iter().enumerate().map(|(place, message)| (&message.id[..], place)).collect();
        let since = match record.since.as_deref() {
            None => panic!("the tab was never connected"),
            Some("") => 0,
            Some(id) => place[id] + 1,
        };
        let mut tally = Tally::default();
        let mut seen = HashSet::new();
        let mut last = None;
        for (id, event, n, from, delay_ms) in &record.delivered {
            tally.worst_delay_ms = tally.worst_delay_ms.max(*delay_ms);
            let Some(&this) = place.get(&id[..]) else {
                tally.altered += 1;
                continue;
            };
            tally.altered +=
                usize::from((event, n, from) != (&kept[this].event, &kept[this].n, &kept[this].from));
            if !seen.insert(this) {
                tally.doubled += 1;
            } else if last > Some(this) {
                tally.disordered += 1;
            }
            last = last.max(Some(this));
        }
        tally.delivered = seen.len();
        // Messages may come before `record.since` is noted, but without a hole among them.
        let first = seen.iter().min().map_or(since, |first| since.min(*first));
        tally.lost = (first..kept.len()).filter(|place| !seen.contains(place)).count();
        tally
    }

    pub fn is_exact(&self) -> bool {
        (self.lost, self.doubled, self.disordered, self.altered) == (0, 0, 0, 0)
    }
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.delivered += other.delivered;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.disordered += other.disordered;
        self.altered += other.altered;
        self.worst_delay_ms = self.worst_delay_ms.max(other.worst_delay_ms);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { delivered, lost, doubled, disordered, altered, worst_delay_ms } = self;
        write!(
            f,
            "delivered {delivered:>6}, lost {lost}, doubled {doubled}, out of order {disordered}, \
             altered {altered}, worst delay {worst_delay_ms:>5} ms"
        )
    }
}

/// Checks that the history has what this page of a tab has sent, in the order of sending and under the ids
/// that the page was answered; and that it has nothing twice.
pub fn assert_sent(tab: u64, record: &Record, kept: &[Kept]) {
    assert_eq!(record.refused, [""; 0], "tab {tab}");
    assert_eq!(record.acknowledged.len(), record.asked, "tab {tab} has no answer to some");
    let mine = kept.iter().filter(|message| message.from == Some(tab));
    let mine: Vec<_> = mine.map(|message| (message.n, message.id.clone())).collect();
    // Before it there may be what the tab's page before a reload has sent.
    assert!(mine.ends_with(&record.acknowledged), "tab {tab}: {mine:?}, answered {:?}", record.acknowledged);
    let different: HashSet<_> = mine.iter().map(|(n, _)| n).collect();
    assert_eq!(different.len(), mine.len(), "tab {tab}: {mine:?}");
}

#[test]
fn each_broken_promise_is_counted() {
    let id = |n: u64| format!("abcdefgh-{n}");
    let kept: Vec<_> = (1..=4).map(|n| Kept { id: id(n), event: "ping".to_owned(), n, from: None }).collect();
    let tally = |since: &str, numbers: &[u64]| {
        let delivered = numbers.iter().map(|n| (id(*n), "ping".to_owned(), *n, None, 1.0)).collect();
        let tally =
            Tally::of(&Record { since: Some(since.to_owned()), delivered, ..Record::default() }, &kept);
        [tally.delivered, tally.lost, tally.doubled, tally.disordered, tally.altered]
    };
    assert_eq!(tally("", &[1, 2, 3, 4]), [4, 0, 0, 0, 0]);
    assert_eq!(tally(&id(2), &[3, 4]), [2, 0, 0, 0, 0]);
    assert_eq!(tally(&id(2), &[2, 3, 4]), [3, 0, 0, 0, 0]);
    assert_eq!(tally(&id(2), &[4]), [1, 1, 0, 0, 0]);
    assert_eq!(tally(&id(2), &[1, 3, 4]), [3, 1, 0, 0, 0]);
    assert_eq!(tally("", &[]), [0, 4, 0, 0, 0]);
    assert_eq!(tally("", &[1, 2, 3]), [3, 1, 0, 0, 0]);
    assert_eq!(tally("", &[1, 2, 2, 3, 4, 1]), [4, 0, 2, 0, 0]);
    assert_eq!(tally("", &[2, 1, 3, 4]), [4, 0, 0, 1, 0]);
    assert_eq!(tally("", &[1, 2, 3, 4, 5]), [4, 0, 0, 0, 1]);
}
