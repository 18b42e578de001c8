//! Both journals against a plain list: after any appends, reads and reopenings in any order, they give
//! what the list gives.

mod common;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::Folder;
use proptest::prelude::*;
use tabcast::journal::{
    Append, Appended, Channels, Committed, Journal, Key, KeyLimits, PageLimit, Place, Retention,
};
use tabcast::limits::Budget;
use tabcast::message::{ChannelName, Data, Draft, EventName, IdempotencyKey, MessageId, SubscriberId};
use tokio::time::timeout;

#[derive(Clone, Debug)]
enum Step {
    /// A batch of messages, each a channel, the length of its data and perhaps a key.
    Append(Vec<(usize, usize, Option<usize>)>),
    /// Everything after this share of the head's sequence, on these channels, in pages of so many.
    Read(f64, Vec<usize>, usize),
    /// So many of the newest messages, on these channels.
    Newest(usize, Vec<usize>),
    Reopen,
    /// Keeps a copy of the file.
    Backup,
    /// Puts the last copy in the place of the file.
    Restore,
}

fn step() -> impl Strategy<Value = Step> {
    let channels = || prop::collection::vec(0..3usize, 1..3);
    let message = (0..3usize, 0..3_000usize, prop::option::weighted(0.3, 0..20usize));
    prop_oneof![
        4 => prop::collection::vec(message, 1..40).prop_map(Step::Append),
        3 => (0.0..1.0, channels(), 1..50usize)
            .prop_map(|(share, channels, page)| Step::Read(share, channels, page)),
        2 => (0..30usize, channels()).prop_map(|(count, channels)| Step::Newest(count, channels)),
        1 => prop_oneof![Just(Step::Reopen), Just(Step::Backup), Just(Step::Restore)],
    ]
}

/// What is kept of a message: sequence, channel, data.
type Kept = (u64, usize, String);

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

    fn after(&self, position: u64, channels: &[usize]) -> Vec<Kept> {
        let from = position.max(self.earliest() - 1);
        self.messages
            .iter()
            .filter(|(sequence, channel, _)| *sequence > from && channels.contains(channel))
            .cloned()
            .collect()
    }
}

fn channel(number: usize) -> ChannelName {
    ChannelName::parse(["a", "b", "c.d"][number], 9).unwrap()
}

fn open(path: Option<&Path>, retention: usize) -> (Journal, Committed) {
    let place = path.map_or(Place::Memory, |path| Place::File(path.to_owned()));
    let retention = Retention { messages: retention, bytes: usize::MAX >> 1, age: Duration::from_secs(3600) };
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

async fn read_all(journal: &Journal, position: u64, channels: &[usize], page: usize) -> Vec<Kept> {
    let names = Channels::new(channels.iter().map(|number| channel(*number).into()));
    let limit = PageLimit { messages: page, bytes: 20_000 };
    let (mut position, mut read) = (position, Vec::new());
    loop {
        let page = journal.read(position, &names, limit, None).await.unwrap();
        position = position.max(page.earliest - 1);
        if page.through < position {
            continue;
        }
        for entry in &page.entries {
            let number = (0..3).find(|number| channel(*number) == entry.message.channel).unwrap();
            read.push((
                entry.message.id.sequence,
                number,
                entry.message.data.as_text().unwrap().into_owned(),
            ));
        }
        position = page.through;
        if page.through >= page.head {
            return read;
        }
    }
}

async fn run(path: Option<&Path>, retention: usize, steps: Vec<Step>) {
    let (mut journal, mut committed) = open(path, retention);
    let mut model = Model { retention, ..Model::default() };
    let mut backup = None::<(Model, PathBuf)>;
    // The ids of messages that were lost when the copy was put back.
    let mut lost = Vec::<MessageId>::new();
    for step in steps {
        match step {
            Step::Append(batch) => {
                let mut appends = Vec::new();
                for (number, length, key) in &batch {
                    appends.push(Append {
                        draft: Draft {
                            channel: channel(*number),
                            event: EventName::default(),
                            data: Data::text(&"ü".repeat(*length)),
                            except: Some(SubscriberId::parse("x").unwrap()),
                        },
                        key: key.map(|key| Key {
                            // Of two networks, with the same keys.
                            network: IpAddr::from([10, 0, 0, (key % 2) as u8]).into(),
                            text: IdempotencyKey::parse(&(key / 2).to_string()).unwrap(),
                        }),
                    });
                }
                let answers = journal.append(appends).await.unwrap();
                assert_eq!(answers.len(), batch.len());
                let new = answers.iter().filter(|answer| matches!(answer, Appended::New(_))).count();
                assert_eq!(announced(&mut committed, new).await, model.next(new));
                for (answer, (number, length, key)) in answers.into_iter().zip(batch) {
                    let request = format!("{number} {length}");
                    let known = key.and_then(|key| model.keys.get(&key).cloned());
                    match (answer, known) {
                        (Appended::New(receipt), None) => {
                            let sequence = model.head() + 1;
                            assert_eq!(receipt.id.sequence, sequence);
                            assert!(!lost.contains(&receipt.id), "{} was another's", receipt.id);
                            model.ids.push(receipt.id);
                            model.messages.push((sequence, number, "ü".repeat(length)));
                            key.map(|key| model.keys.insert(key, (request, sequence)));
                        }
                        (Appended::Repeated(receipt), Some((first, sequence))) => {
                            assert_eq!((first, receipt.id.sequence), (request, sequence));
                            assert_eq!(receipt.id, model.ids[sequence as usize - 1]);
                        }
                        (Appended::KeyReused, Some((first, _))) => assert_ne!(first, request),
                        (answer, known) => panic!("{answer:?} where {known:?} is known"),
                    }
                }
                assert_eq!(journal.head(), model.head());
            }
            Step::Read(share, channels, page) => {
                let position = (share * (model.head() + 1) as f64) as u64;
                assert_eq!(
                    read_all(&journal, position, &channels, page).await,
                    model.after(position, &channels)
                );
            }
            Step::Newest(count, channels) => {
                let names = Channels::new(channels.iter().map(|number| channel(*number).into()));
                let position = journal.position_before_newest(count, &names, None).await.unwrap();
                let all = model.after(0, &channels);
                let newest = &all[all.len().saturating_sub(count)..];
                assert_eq!(read_all(&journal, position, &channels, 10).await, newest);
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
            assert_eq!((journal.id(sequence), journal.position(*id)), (*id, Some(sequence)));
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
        retention in 1..200usize,
        steps in prop::collection::vec(step(), 1..30),
    ) {
        block_on(run(None, retention, steps));
    }

    #[test]
    fn the_journal_in_a_file_is_the_same_list(
        retention in 1..200usize,
        steps in prop::collection::vec(step(), 1..30),
    ) {
        let folder = Folder::new();
        block_on(run(Some(&folder.path.join("tabcast.db")), retention, steps));
    }
}
