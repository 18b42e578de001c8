//! A record of what a tab was delivered, and the judgement of it against what the hub has kept.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]

use std::collections::{HashMap, HashSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::browser::Tab;
use crate::common::Hub;

/// What makes a tab write its record.
pub const SCRIPT: &str = include_str!("record.js");

/// A message, as the tests publish it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub id: String,
    pub event: String,
    /// The number of a `ping`, which the `pong` that answers it repeats.
    pub n: u64,
    /// The tab a `pong` is from.
    pub from: Option<u64>,
}

/// What one page of a tab has seen.
#[derive(Debug, Default, Deserialize)]
pub struct Record {
    /// The newest message that was kept when it was connected; empty if none was.
    pub since: Option<String>,
    /// Of each: id, event, number, sender, and how long it took in ms.
    pub delivered: Vec<(String, String, u64, Option<u64>, f64)>,
    /// How many it has tried to send.
    pub asked: usize,
    /// What it has sent: number and id.
    pub acknowledged: Vec<(u64, String)>,
    pub refused: Vec<String>,
}

/// How a page is, as it tells when asked.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// The client's: `connecting`, `live`, `shared` or `offline`.
    pub state: String,
    /// Whether it is since it was loaded, and has noted from where.
    pub connected: bool,
    /// The number of the newest `ping` it was delivered.
    pub newest: u64,
    /// Whether all it has sent is answered.
    pub settled: bool,
    /// Whether `end` was the last it was delivered.
    pub ended: bool,
}

/// A page's answer.
#[derive(Debug, Deserialize)]
pub struct Answer {
    pub number: usize,
    pub status: Status,
    /// The longest that a message took in ms, by its sender: `curl` or the number of a tab. Since
    /// it was last told to forget.
    pub slowest: HashMap<String, f64>,
    /// Where the whole was asked for.
    pub record: Option<Record>,
}

/// What is asked.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Question {
    /// To send a `pong` with each of these numbers.
    pub send: Vec<u64>,
    /// To tell the record.
    pub whole: bool,
    /// To forget what was slowest.
    pub forget: bool,
}

/// Asks these, from a tab of the same site that is no part of it. Those that have not answered in a
/// second, or in 20 where the whole is asked for, are left out.
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

/// All the hub has kept, oldest first.
pub fn kept(hub: &Hub) -> Vec<Kept> {
    let mut kept: Vec<Kept> = Vec::new();
    loop {
        // No journal has this epoch: all there is comes after it.
        let after = kept.last().map_or("aaaaaaaa-0", |message| message.id.as_str());
        let page = hub.get(&format!("/messages?after={after}")).json();
        let page = page["messages"].as_array().unwrap();
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

/// What became of the messages that tabs were to get.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub delivered: usize,
    /// Kept after the tab was connected, and not delivered to it.
    pub lost: usize,
    /// Delivered once more.
    pub doubled: usize,
    /// Delivered after a later one.
    pub disordered: usize,
    /// Delivered, but not as it was kept.
    pub altered: usize,
    pub worst_delay_ms: f64,
}

impl Tally {
    /// Of one page, which has been there until now.
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
        // What came before the tab knew that it is connected is right, but a hole in it is not.
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
            "delivered {delivered:>6}, lost {lost}, doubled {doubled}, out of order {disordered}, altered {altered}, \
             worst delay {worst_delay_ms:>5} ms"
        )
    }
}

/// Checks that what this page of a tab has sent is kept, in the order it was sent and where it was
/// told; and that nothing any page has sent is kept twice.
pub fn assert_sent(tab: u64, record: &Record, kept: &[Kept]) {
    assert_eq!(record.refused, [""; 0], "tab {tab}");
    assert_eq!(record.acknowledged.len(), record.asked, "tab {tab} has no answer to some");
    let mine = kept.iter().filter(|message| message.from == Some(tab));
    let mine: Vec<_> = mine.map(|message| (message.n, message.id.clone())).collect();
    // In front there may be what the page before a reload has sent.
    assert!(mine.ends_with(&record.acknowledged), "tab {tab}: {mine:?} but told {:?}", record.acknowledged);
    let different: HashSet<_> = mine.iter().map(|(n, _)| n).collect();
    assert_eq!(different.len(), mine.len(), "tab {tab}: {mine:?}");
}

#[test]
fn each_broken_promise_is_told() {
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
