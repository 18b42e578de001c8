//! Both journals against a plain list: after any appends, reads and reopenings in any order, they give
//! what the list gives.

mod common;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::Folder;
use proptest::prelude::*;
use tabcast::journal::{
    Append, Appended, Channels, Committed, Journal, Key, KeyLimits, PageLimit, Place, Retention, Rules,
};
use tabcast::limits::{Budget, Network};
use tabcast::message::{
    ChannelName, Data, Draft, EventName, IdempotencyKey, MessageId, Pattern, SubscriberId,
};
use tokio::time::timeout;

/// The channels there are, beside those of [`Step::Flood`].
const NAMES: [&str; 6] = ["a", "b", "c.d", "c.e", "c.d.f", "\u{e9}t\u{e9}"];

/// What reads ask for: names, and patterns that overlap. All that match a flood's channels are wide.
const PATTERNS: [&str; 13] = [
    "a",
    "b",
    "c.d",
    "c.*",
    "c.>",
    "c.*.f",
    "*.d",
    "*",
    ">",
    "\u{e9}t\u{e9}",
    "e\u{301}.*",
    "flood.>",
    "flood.7",
];

#[derive(Clone, Debug)]
enum Step {
    /// A batch of messages, each a channel, the length of its data and perhaps a key.
    Append(Vec<(usize, usize, Option<usize>)>),
    /// A message on each of so many channels of their own that a read can't look at each.
    Flood,
    /// Everything after this share of the head's sequence, for these patterns, in pages of so many; perhaps
    /// only the newest of each channel up to another share.
    Read(f64, Option<f64>, Vec<usize>, usize),
    /// So many of the newest messages up to this share of the head's sequence, for these patterns.
    Newest(usize, f64, Vec<usize>),
    Reopen,
    /// Keeps a copy of the file.
    Backup,
    /// Puts the last copy in the place of the file.
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    let patterns = || prop::collection::vec(0..PATTERNS.len(), 1..4);
    let message = (0..NAMES.len(), 0..3_000usize, prop::option::weighted(0.3, 0..20usize));
    let share = || 0.0..1.0;
    prop_oneof![
        8 => prop::collection::vec(message, 1..40).prop_map(Step::Append),
        2 => Just(Step::Flood),
        8 => (share(), prop::option::of(share()), patterns(), 1..50usize)
            .prop_map(|(share, latest, patterns, page)| Step::Read(share, latest, patterns, page)),
        6 => (0..30usize, prop_oneof![Just(1.0), share()], patterns())
            .prop_map(|(count, share, patterns)| Step::Newest(count, share, patterns)),
        4 => prop_oneof![Just(Step::Reopen), Just(Step::Backup), Just(Step::Restore)],
    ]
}

/// What is kept of a message: sequence, channel, data.
type Kept = (u64, String, String);

#[derive(Clone, Default)]
struct Model {
    messages: Vec<Kept>,
    /// The id of each message.
    ids: Vec<MessageId>,
    keys: std::collections::HashMap<usize, (String, u64)>,
    retention: usize,
}

impl Model {
    fn head(&self) -> u64 {
        self.messages.len() as u64
    }

    /// The sequences that the next `count` messages get.
    fn next(&self, count: usize) -> Vec<u64> {
        (self.head() + 1..).take(count).collect()
    }

    fn earliest(&self) -> u64 {
        self.head().saturating_sub(self.retention as u64) + 1
    }

    /// What is kept after `position`; up to `latest`, only the newest of each channel.
    fn after(&self, position: u64, latest: u64, patterns: &[usize]) -> Vec<Kept> {
        let from = position.max(self.earliest() - 1);
        let is_asked_for = |(sequence, channel, _): &Kept| {
            let is_newest = || {
                let later = &self.messages[*sequence as usize..(latest as usize).max(*sequence as usize)];
                !later.iter().any(|(_, other, _)| other == channel)
            };
            *sequence > from
                && patterns.iter().any(|number| matches(PATTERNS[*number], channel))
                && (*sequence > latest || is_newest())
        };
        self.messages.iter().filter(|message| is_asked_for(message)).cloned().collect()
    }
}

/// Whether the pattern is the name, token by token.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), name.split('.').collect());
    match pattern[..] {
        [ref wanted @ .., ">"] => name.len() > wanted.len() && equal(wanted, &name[..wanted.len()]),
        ref wanted => name.len() == wanted.len() && equal(wanted, &name),
    }
}

fn equal(wanted: &[&str], tokens: &[&str]) -> bool {
    wanted.iter().zip(tokens).all(|(wanted, token)| *wanted == "*" || wanted == token)
}

fn draft(channel: &str, data: &str) -> Draft {
    Draft {
        channel: ChannelName::parse(channel, 19).unwrap(),
        event: EventName::default(),
        data: Data::text(data),
        except: Some(SubscriberId::parse("x").unwrap()),
        ttl: None,
    }
}

fn asked(patterns: &[usize]) -> Channels {
    Channels::new(patterns.iter().map(|number| Pattern::parse(PATTERNS[*number], 19).unwrap()))
}

fn open(path: Option<&Path>, retention: usize) -> (Journal, Committed) {
    let place = path.map_or(Place::Memory, |path| Place::File(path.to_owned()));
    let age = Duration::from_secs(3600);
    let rules = Rules::default();
    let retention = Retention { messages: retention, bytes: usize::MAX >> 1, age, rules };
    let keys = KeyLimits { count: 1_000, window: Duration::from_secs(3600) };
    Journal::open(&place, retention, keys, &Budget::unlimited()).unwrap()
}

/// The sequences of the next `count` messages that the journal has committed, and of no more.
async fn announced(committed: &mut Committed, count: usize) -> Vec<u64> {
    let mut sequences = Vec::new();
    while sequences.len() < count {
        sequences.extend(committed.next().await.iter().map(|entry| entry.message.id.sequence));
    }
    assert!(timeout(Duration::ZERO, committed.next()).await.is_err(), "more than was appended");
    sequences
}

/// The kept messages after `position` and up to `until`; up to `latest`, only the newest of each channel.
async fn read_all(
    journal: &Journal,
    position: u64,
    until: u64,
    latest: u64,
    patterns: &[usize],
    page: usize,
) -> Vec<Kept> {
    let channels = asked(patterns);
    let limit = PageLimit { messages: page, bytes: 20_000 };
    let (mut position, mut read) = (position, Vec::new());
    while position < until {
        let latest = Some(latest).filter(|latest| position < *latest);
        let page = journal.read(position, &channels, latest, limit, None).await.unwrap();
        position = position.max(page.earliest - 1);
        if page.through < position {
            continue;
        }
        for entry in &page.entries {
            let message = &entry.message;
            let data = message.data.as_text().unwrap().into_owned();
            read.push((message.id.sequence, message.channel.as_str().to_owned(), data));
        }
        position = page.through;
        if page.through >= page.head {
            break;
        }
    }
    read.retain(|(sequence, ..)| *sequence <= until);
    read
}

async fn run(path: Option<&Path>, retention: usize, steps: Vec<Step>) {
    let (mut journal, mut committed) = open(path, retention);
    let mut model = Model { retention, ..Model::default() };
    let mut backup = None::<(Model, PathBuf)>;
    // The ids of messages that were lost when the copy was put back.
    let mut lost = Vec::<MessageId>::new();
    // Half of all runs have more channels than a read looks at one by one.
    let begin = (retention > 1_000).then_some(Step::Flood);
    for step in begin.into_iter().chain(steps) {
        match step {
            Step::Append(batch) => {
                let mut appends = Vec::new();
                for (number, length, key) in &batch {
                    let key = key.map(|key| Key {
                        // Of two networks, with the same keys.
                        owner: Network::from(IpAddr::from([10, 0, 0, (key % 2) as u8])).into(),
                        text: IdempotencyKey::parse(&(key / 2).to_string()).unwrap(),
                    });
                    appends.push(Append::message(draft(NAMES[*number], &"ü".repeat(*length)), key));
                }
                let answers = journal.append(appends).await.unwrap();
                assert_eq!(answers.len(), batch.len());
                let new = answers.iter().filter(|answer| matches!(answer, Appended::New(_))).count();
                assert_eq!(announced(&mut committed, new).await, model.next(new));
                for (answer, (number, length, key)) in answers.into_iter().zip(batch) {
                    let request = format!("{number} {length}");
                    let known = key.and_then(|key| model.keys.get(&key).cloned());
                    match (answer, known) {
                        (Appended::New(receipts), None) => {
                            let receipt = &receipts[0];
                            let sequence = model.head() + 1;
                            assert_eq!(receipt.id.sequence, sequence);
                            assert!(!lost.contains(&receipt.id), "{} was another's", receipt.id);
                            model.ids.push(receipt.id);
                            model.messages.push((sequence, NAMES[number].to_owned(), "ü".repeat(length)));
                            key.map(|key| model.keys.insert(key, (request, sequence)));
                        }
                        (Appended::Repeated(receipts), Some((first, sequence))) => {
                            let receipt = &receipts[0];
                            assert_eq!((first, receipt.id.sequence), (request, sequence));
                            assert_eq!(receipt.id, model.ids[sequence as usize - 1]);
                        }
                        (Appended::KeyReused, Some((first, _))) => assert_ne!(first, request),
                        (answer, known) => panic!("{answer:?} where {known:?} is known"),
                    }
                }
                assert_eq!(journal.head(), model.head());
            }
            Step::Flood => {
                let names: Vec<_> = (0..1_100).map(|number| format!("flood.{number}")).collect();
                let batch = names.iter().map(|name| Append::message(draft(name, "x"), None));
                let answers = journal.append(batch.collect()).await.unwrap();
                assert_eq!(announced(&mut committed, 1_100).await, model.next(1_100));
                for (answer, name) in answers.into_iter().zip(names) {
                    let Appended::New(receipts) = answer else { panic!("it had no key") };
                    model.ids.push(receipts[0].id);
                    model.messages.push((receipts[0].id.sequence, name, "x".to_owned()));
                }
            }
            Step::Read(share, latest, patterns, page) => {
                let of_head = |share| (share * (model.head() + 1) as f64) as u64;
                let (position, latest) = (of_head(share), latest.map_or(0, of_head));
                assert_eq!(
                    read_all(&journal, position, model.head(), latest, &patterns, page).await,
                    model.after(position, latest, &patterns)
                );
            }
            Step::Newest(count, share, patterns) => {
                let until = (share * model.head() as f64) as u64;
                let position =
                    journal.position_before_newest(count, until, &asked(&patterns), None).await.unwrap();
                let mut all = model.after(0, 0, &patterns);
                all.retain(|(sequence, ..)| *sequence <= until);
                let newest = &all[all.len().saturating_sub(count)..];
                assert_eq!(read_all(&journal, position, until, 0, &patterns, 10).await, newest);
                // Retention passes such a position only with the first of these messages.
                assert_eq!(position, newest.first().map_or(until, |(first, ..)| first - 1));
            }
            Step::Reopen | Step::Backup | Step::Restore => {
                let Some(path) = path else { continue };
                drop(journal);
                let copy = path.with_extension("copy");
                match (step, &backup) {
                    (Step::Backup, _) => {
                        std::fs::copy(path, &copy).unwrap();
                        backup = Some((model.clone(), copy));
                    }
                    (Step::Restore, Some((earlier, copy))) => {
                        std::fs::copy(copy, path).unwrap();
                        lost.extend(&model.ids[earlier.ids.len()..]);
                        model = earlier.clone();
                    }
                    _ => {}
                }
                (journal, committed) = open(Some(path), retention);
                assert_eq!(journal.head(), model.head());
            }
        }
        for (sequence, id) in (1..).zip(&model.ids) {
            let position = journal.position(*id);
            // An epoch of which nothing is kept may be forgotten.
            let is_forgotten = sequence < model.earliest() && position.is_none();
            assert!(is_forgotten || (journal.id(sequence), position) == (*id, Some(sequence)), "{id}");
        }
        assert_eq!(journal.position(journal.id(0)), Some(0));
        assert!(lost.iter().all(|id| journal.position(*id).is_none()), "a lost message's id");
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn the_journal_in_memory_is_a_list(
        retention in prop_oneof![1..200usize, 1_200..3_000usize],
        steps in prop::collection::vec(step(), 1..30),
    ) {
        block_on(run(None, retention, steps));
    }

    #[test]
    fn the_journal_in_a_file_is_the_same_list(
        retention in prop_oneof![1..200usize, 1_200..3_000usize],
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let folder = Folder::new();
        block_on(run(Some(&folder.path.join("tabcast.db")), retention, steps));
    }
}
