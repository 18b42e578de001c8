//! The judge: opens the journal that a power cut has left, and finds each promise that is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tabcast::journal::{Append, Appended, Channels, Journal, Key, PageLimit, Place};
use tabcast::limits::{Budget, Network};
use tabcast::message::{ChannelName, Data, Draft, EventName, IdempotencyKey};

use crate::common::{Folder, Hub};
use crate::disk::Image;
use crate::scenario::{JOURNAL, Sighting, key, publish, text};

/// What was acknowledged or shown before the power was cut.
#[derive(Clone, Debug, Default)]
pub struct Known {
    pub messages: BTreeSet<String>,
    /// Positions to resume from.
    pub positions: BTreeSet<String>,
}

impl Known {
    pub fn add(&mut self, sighting: &Sighting) {
        match sighting {
            Sighting::Message { id, .. } => self.messages.insert(id.clone()),
            Sighting::Position { id } => self.positions.insert(id.clone()),
        };
    }
}

/// Who opens the journal.
#[derive(Clone, Copy, Debug)]
pub enum By {
    /// This process: fast.
    Library,
    /// A hub of its own.
    Binary,
}

/// What the journal says.
struct Answers {
    /// The id and the text of each message, in order.
    messages: Vec<(String, String)>,
    /// The id that each of the known messages with a key has got when it was published again.
    retried: Vec<String>,
    /// The id of a new message.
    new: String,
}

/// The kind of a broken promise, and what it is.
pub type Violation = (&'static str, String);

/// The mark of the message that the judge publishes.
const NEW: &str = "u0/9";

/// Each promise that the journal in this image breaks. `marks` are those of all messages.
pub fn judge(
    image: &Image,
    known: &Known,
    marks: &BTreeMap<String, String>,
    retention: usize,
    by: By,
) -> Vec<Violation> {
    let folder = fresh_folder();
    for (name, bytes) in image {
        std::fs::write(folder.path.join(name), bytes).unwrap();
    }
    let with_key = known.messages.iter().filter(|id| key(&marks[*id]).is_some());
    let with_key: Vec<(&String, &String)> = with_key.map(|id| (id, &marks[id])).collect();
    let retries: Vec<&String> = with_key.iter().map(|(_, mark)| *mark).collect();
    let journal = folder.file(JOURNAL);
    let answers = match by {
        By::Library => by_library(&journal, retention, &retries),
        By::Binary => by_binary(&journal, retention, &retries),
    };
    let mut violations = match answers {
        Ok(answers) => {
            let Answers { messages, retried, new } = answers;
            let mut violations = check_messages(&messages, known, marks, retention);
            for ((id, mark), retried) in with_key.into_iter().zip(retried) {
                if *id != retried {
                    violations.push(("key forgotten", format!("{mark} was {id}, its retry is {retried}")));
                }
            }
            violations.extend(check_new(&new, known));
            violations
        }
        Err(error) => vec![("refused", error)],
    };
    for entry in std::fs::read_dir(&folder.path).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !["", "-wal", "-shm"].iter().any(|suffix| name == format!("{JOURNAL}{suffix}")) {
            violations.push(("litter", name));
        }
    }
    let integrity = rusqlite::Connection::open(&journal)
        .and_then(|db| db.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)));
    if integrity != Ok("ok".to_owned()) {
        violations.push(("damaged", format!("{integrity:?}")));
    }
    violations
}

/// A folder in memory, where there is one: no test depends on what the disk does with it.
fn fresh_folder() -> Folder {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let memory = std::path::Path::new("/dev/shm");
    if !memory.is_dir() {
        return Folder::new();
    }
    let name = format!("tabcast-cut-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let path = memory.join(name);
    std::fs::create_dir(&path).unwrap();
    Folder { path }
}

/// An id's epoch and sequence.
fn parts(id: &str) -> (&str, usize) {
    let (epoch, sequence) = id.split_once('-').expect("an id has two parts");
    (epoch, sequence.parse().unwrap())
}

fn check_messages(
    messages: &[(String, String)],
    known: &Known,
    marks: &BTreeMap<String, String>,
    retention: usize,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    for pair in messages.windows(2) {
        if parts(&pair[0].0).1 >= parts(&pair[1].0).1 {
            violations.push(("disordered", format!("{} before {}", pair[0].0, pair[1].0)));
        }
    }
    let mut texts = BTreeSet::new();
    for (id, text) in messages {
        if !texts.insert(text) {
            violations.push(("doubled", format!("{id} {text:.20}")));
        }
    }
    let head = messages.last().map_or(0, |(id, _)| parts(id).1);
    let found: BTreeMap<_, _> = messages.iter().map(|(id, text)| (id, text)).collect();
    for id in &known.messages {
        match found.get(id) {
            Some(found) if **found == text(&marks[id]) => {}
            Some(found) => violations.push(("altered", format!("{id} was {}, is {found:.20}", marks[id]))),
            None if parts(id).1 + retention <= head => {}
            None => violations.push(("lost", format!("{id} {}, the newest is {head}", marks[id]))),
        }
    }
    violations
}

/// The id of a new message is none that was seen before, nor one that comes before one of those.
fn check_new(new: &str, known: &Known) -> Vec<Violation> {
    let (epoch, sequence) = parts(new);
    let taken = known.messages.iter().chain(&known.positions);
    let taken = taken.filter(|id| parts(id).0 == epoch && parts(id).1 >= sequence);
    taken.map(|id| ("id given again", format!("{id} was seen before {new}"))).collect()
}

fn by_library(path: &str, retention: usize, retries: &[&String]) -> Result<Answers, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut options = tabcast::Options::default().journal;
    options.journal = Place::File(path.into());
    options.retention_messages = retention;
    let (journal, _committed) = options.open(&Budget::unlimited()).map_err(|error| error.to_string())?;
    let answers = runtime.block_on(ask(&journal, retries));
    let failure = || journal.failure().borrow().as_ref().map(ToString::to_string);
    answers.map_err(|error| format!("{error}: {:?}", failure()))
}

async fn ask(journal: &Journal, retries: &[&String]) -> Result<Answers, tabcast::journal::JournalError> {
    let limit = PageLimit { messages: 1_000, bytes: usize::MAX };
    let (mut messages, mut position) = (Vec::new(), 0);
    loop {
        let page = journal.read(position, &Channels::new([]), limit, None).await?;
        let message = |entry: &tabcast::journal::Entry| {
            (entry.message.id.to_string(), entry.message.data.as_text().unwrap().into_owned())
        };
        messages.extend(page.entries.iter().map(|entry| message(entry)));
        position = page.through;
        if page.through >= page.head {
            break;
        }
    }
    let append = |mark: &str| Append {
        draft: Draft {
            channel: ChannelName::default(),
            event: EventName::default(),
            data: Data::text(&text(mark)),
            except: None,
        },
        key: key(mark).map(|key| Key {
            network: Network::from(IpAddr::from([127, 0, 0, 1])),
            text: IdempotencyKey::parse(key).unwrap(),
        }),
    };
    let marks = retries.iter().map(|mark| mark.as_str()).chain([NEW]);
    let appended = journal.append(marks.map(append).collect()).await?;
    let mut ids: Vec<_> = appended
        .into_iter()
        .map(|appended| match appended {
            Appended::New(receipt) | Appended::Repeated(receipt) => receipt.id.to_string(),
            Appended::KeyReused => "another message's".to_owned(),
        })
        .collect();
    let new = ids.pop().unwrap();
    Ok(Answers { messages, retried: ids, new })
}

fn by_binary(path: &str, retention: usize, retries: &[&String]) -> Result<Answers, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    command.args(["--listen", "127.0.0.1:0", "--hide-data", "--journal", path, "--retention-messages"]);
    let mut hub = Hub::spawn(command.arg(retention.to_string()));
    if !hub.listens() {
        return Err(hub.log().join("\n"));
    }
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let messages = hub.history("");
    let messages = messages.iter().map(|message| (text(&message["id"]), text(&message["data"]))).collect();
    let publish = |mark: &str| publish(hub.address, mark).ok_or_else(|| hub.log().join("\n"));
    let retried = retries.iter().map(|mark| publish(mark)).collect::<Result<Vec<_>, _>>()?;
    let new = publish(NEW)?;
    hub.end("TERM");
    Ok(Answers { messages, retried, new })
}
