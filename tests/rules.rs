//! Both journals against a plain model of what is kept: rules for channels, messages that expire, messages
//! that are erased, and the limits of the journal as a whole.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::{Folder, PATIENCE};
use proptest::prelude::*;
use tabcast::journal::{
    Append, Appended, Channels, Journal, JournalError, KeyLimits, PageLimit, Place, Retention, Rule, Rules,
};
use tabcast::limits::Budget;
use tabcast::message::{ChannelName, Data, Draft, EventName, MessageId, Pattern};

/// The channels, and the sets of rules: each a pattern and the most messages.
const CHANNELS: [&str; 4] = ["a", "b", "c.d", "c.e"];
const RULES: [&[(&str, usize)]; 4] =
    [&[], &[("b", 2)], &[("c.d", 1), ("c.>", 3), ("b", 1)], &[("*", 4), ("c.d", 2)]];

/// A ttl that is over before anything else is done.
const BRIEF: Duration = Duration::from_millis(1);

#[derive(Clone, Debug)]
enum Step {
    /// A batch of messages, each a channel and whether it expires at once.
    Append(Vec<(usize, bool)>),
    /// Erases the messages at these shares of the head's sequence.
    Erase(Vec<f64>),
    /// Everything after this share of the head's sequence, on these channels, in pages of so many.
    Read(f64, Vec<usize>, usize),
    /// So many of the newest messages, on these channels.
    Newest(usize, Vec<usize>),
    /// With these rules. A journal in memory is not opened anew.
    Reopen(usize),
    /// These rules from now on.
    Change(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let channels = || prop::collection::vec(0..CHANNELS.len(), 1..3);
    let message = (0..CHANNELS.len(), prop::bool::weighted(0.2));
    prop_oneof![
        4 => prop::collection::vec(message, 1..20).prop_map(Step::Append),
        2 => prop::collection::vec(0.0..1.0, 1..4).prop_map(Step::Erase),
        4 => (0.0..1.0, channels(), 1..20usize)
            .prop_map(|(share, channels, page)| Step::Read(share, channels, page)),
        2 => (0..9usize, channels()).prop_map(|(count, channels)| Step::Newest(count, channels)),
        1 => (0..RULES.len()).prop_map(Step::Reopen),
        2 => (0..RULES.len()).prop_map(Step::Change),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Kept {
    sequence: u64,
    channel: usize,
    text: String,
}

struct Model {
    in_file: bool,
    retention: usize,
    rules: usize,
    kept: Vec<Kept>,
    ids: Vec<MessageId>,
    /// Before which sequences there is a gap: on other channels, and on those with a share of their own.
    earliest: (u64, u64),
}

impl Model {
    /// The most messages of this channel by its rule.
    fn share(&self, channel: usize) -> Option<usize> {
        let name = ChannelName::parse(CHANNELS[channel], 9).unwrap();
        let is_its = |(text, _): &&(&str, usize)| Pattern::parse(text, 9).unwrap().matches(&name);
        RULES[self.rules].iter().find(is_its).map(|(_, most)| *most)
    }

    fn push(&mut self, id: MessageId, channel: usize, text: String) {
        self.ids.push(id);
        self.kept.push(Kept { sequence: id.sequence, channel, text });
        self.apply_rules();
        // A file is looked at after the batch.
        if !self.in_file {
            self.limit();
        }
    }

    fn apply_rules(&mut self) {
        for channel in 0..CHANNELS.len() {
            let Some(most) = self.share(channel) else { continue };
            let own = self.kept.iter().filter(|kept| kept.channel == channel).count();
            let mut over = own.saturating_sub(most);
            self.kept.retain(|kept| {
                let is_over = kept.channel == channel && over > 0;
                over -= usize::from(is_over);
                !is_over
            });
        }
    }

    fn limit(&mut self) {
        while self.kept.len() > self.retention {
            let head = self.ids.len() as u64;
            let is_other = |kept: &Kept| self.share(kept.channel).is_none() && kept.sequence < head;
            let at = self.kept.iter().position(is_other).unwrap_or(0);
            let dropped = self.kept.remove(at);
            self.earliest.0 = self.earliest.0.max(dropped.sequence + 1);
            if self.share(dropped.channel).is_some() {
                self.earliest.1 = self.earliest.1.max(dropped.sequence + 1);
            }
        }
    }

    fn earliest(&self, channels: &[usize]) -> u64 {
        let is_own = channels.iter().all(|channel| self.share(*channel).is_some());
        if is_own { self.earliest.1 } else { self.earliest.0 }
    }

    fn after(&self, position: u64, channels: &[usize]) -> Vec<Kept> {
        let is_asked = |kept: &&Kept| kept.sequence > position && channels.contains(&kept.channel);
        self.kept.iter().filter(is_asked).cloned().collect()
    }
}

fn rules(number: usize) -> Rules {
    Rules::new(RULES[number].iter().map(|(text, most)| Rule {
        channels: Pattern::parse(text, 9).unwrap(),
        messages: Some(*most),
        age: None,
    }))
}

fn open(path: Option<&Path>, retention: usize, number: usize) -> Journal {
    let place = path.map_or(Place::Memory, |path| Place::File(path.to_owned()));
    let (age, rules) = (Duration::from_secs(3600), rules(number));
    let retention = Retention { messages: retention, bytes: usize::MAX >> 1, age, rules };
    let keys = KeyLimits { count: 0, window: Duration::ZERO };
    Journal::open(&place, retention, keys, &Budget::unlimited()).unwrap().0
}

fn channels(numbers: &[usize]) -> Channels {
    Channels::new(numbers.iter().map(|number| Pattern::parse(CHANNELS[*number], 9).unwrap()))
}

fn ok<T>(journal: &Journal, result: Result<T, JournalError>) -> T {
    result.unwrap_or_else(|error| panic!("{error}: {:?}", journal.failure().borrow()))
}

/// The messages after `position`, and before which sequence there is a gap.
async fn read_all(journal: &Journal, position: u64, numbers: &[usize], page: usize) -> (Vec<Kept>, u64) {
    let limit = PageLimit { messages: page, bytes: 20_000 };
    let (mut position, mut read, names) = (position, Vec::new(), channels(numbers));
    loop {
        let page = ok(journal, journal.read(position, &names, None, limit, None).await);
        for entry in &page.entries {
            let message = &entry.message;
            assert!(message.id.sequence > position && names.contains(&message.channel));
            position = message.id.sequence;
            let channel = CHANNELS.iter().position(|name| *name == message.channel.as_str()).unwrap();
            let text = message.data.as_json().to_owned();
            read.push(Kept { sequence: position, channel, text });
        }
        assert!(page.through >= position);
        position = page.through;
        if position >= page.head {
            return (read, page.earliest);
        }
    }
}

fn draft(channel: usize, text: &str, is_brief: bool) -> Draft {
    Draft {
        channel: ChannelName::parse(CHANNELS[channel], 9).unwrap(),
        event: EventName::default(),
        data: Data::text(text),
        except: None,
        ttl: is_brief.then_some(BRIEF),
    }
}

async fn run(path: Option<&Path>, retention: usize, first: usize, steps: Vec<Step>) {
    let mut journal = open(path, retention, first);
    let (in_file, earliest) = (path.is_some(), (1, 1));
    let mut model = Model { in_file, retention, rules: first, kept: Vec::new(), ids: Vec::new(), earliest };
    for step in steps {
        match step {
            Step::Append(batch) => {
                // Which is dropped first, and which expires first, would be a matter of time.
                let batch: Vec<_> =
                    batch.into_iter().map(|(channel, brief)| (channel, brief && retention > 1_000)).collect();
                let text = |nth: usize| (model.ids.len() + nth + 1).to_string();
                let texts: Vec<_> = (0..batch.len()).map(text).collect();
                let append = |((channel, brief), text): (&(usize, bool), &String)| {
                    Append::message(draft(*channel, text, *brief), None)
                };
                let appends = batch.iter().zip(&texts).map(append).collect();
                let receipts = ok(&journal, journal.append(appends).await);
                let mut brief = Vec::new();
                for ((appended, (channel, is_brief)), text) in receipts.into_iter().zip(batch).zip(texts) {
                    let Appended::New(receipts) = appended else { panic!("{appended:?}") };
                    let receipt = &receipts[0];
                    assert_eq!(receipt.expires.is_some(), is_brief);
                    if is_brief {
                        brief.push(receipt.id.sequence);
                    }
                    model.push(receipt.id, channel, format!("{text:?}"));
                }
                if !brief.is_empty() {
                    tokio::time::sleep(2 * BRIEF).await;
                }
                model.kept.retain(|kept| !brief.contains(&kept.sequence));
            }
            Step::Erase(shares) => {
                let head = model.ids.len() as f64;
                let ids: Vec<_> = shares
                    .iter()
                    .filter_map(|share| model.ids.get((share * head) as usize).copied())
                    .collect();
                let erases = ids.iter().copied().map(Append::Erase).collect();
                let appended = ok(&journal, journal.append(erases).await);
                for (appended, id) in appended.into_iter().zip(ids) {
                    match (appended, model.kept.iter().position(|kept| kept.sequence == id.sequence)) {
                        (Appended::New(receipts), Some(at)) => {
                            let receipt = &receipts[0];
                            let channel = model.kept.remove(at).channel;
                            assert_eq!(receipt.event.as_str(), "tabcast:deleted");
                            model.push(receipt.id, channel, format!("{{\"id\":\"{id}\"}}"));
                        }
                        (Appended::NotKept, None) => {}
                        (appended, kept) => panic!("{appended:?} where {kept:?} is kept of {id}"),
                    }
                }
            }
            Step::Read(share, numbers, page) => {
                let position = (share * (model.ids.len() + 1) as f64) as u64;
                let expected = (model.after(position, &numbers), model.earliest(&numbers));
                assert_eq!(read_all(&journal, position, &numbers, page).await, expected);
            }
            Step::Newest(count, numbers) => {
                let newest =
                    journal.position_before_newest(count, journal.head(), &channels(&numbers), None).await;
                let position = ok(&journal, newest);
                let all = model.after(0, &numbers);
                let newest = &all[all.len().saturating_sub(count)..];
                let read = read_all(&journal, position, &numbers, 10).await.0;
                assert!(read.ends_with(newest) && read.len() <= count, "{read:?} for {newest:?}");
            }
            Step::Reopen(number) | Step::Change(number) => {
                match step {
                    Step::Change(_) => journal.set_rules(rules(number)).await,
                    _ if in_file => {
                        drop(journal);
                        journal = open(path, retention, number);
                    }
                    _ => continue,
                }
                let patterns = |number: usize| RULES[number].iter().map(|(text, _)| text);
                if patterns(model.rules).ne(patterns(number)) {
                    model.earliest.1 = model.earliest.0;
                }
                model.rules = number;
                model.apply_rules();
                model.limit();
                // After a start, the rules and the limits apply soon.
                let (all, deadline) = ([0, 1, 2, 3], Instant::now() + PATIENCE);
                loop {
                    let (kept, _) = read_all(&journal, 0, &all, 100).await;
                    if kept == model.kept {
                        break;
                    }
                    assert!(Instant::now() < deadline, "{kept:?} are kept, and not {:?}", model.kept);
                }
            }
        }
        if in_file {
            model.limit();
        }
        assert_eq!(journal.head(), model.ids.len() as u64);
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

fn retention() -> impl Strategy<Value = usize> {
    prop_oneof![Just(10_000), 1..30usize]
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn the_journal_in_memory_keeps_what_the_model_keeps(
        retention in retention(),
        rules in 0..RULES.len(),
        steps in prop::collection::vec(step(), 1..30),
    ) {
        block_on(run(None, retention, rules, steps));
    }

    #[test]
    fn the_journal_in_a_file_keeps_the_same(
        retention in retention(),
        rules in 0..RULES.len(),
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let folder = Folder::new();
        block_on(run(Some(&folder.path.join("tabcast.db")), retention, rules, steps));
    }
}
