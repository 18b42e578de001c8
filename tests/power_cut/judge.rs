//! The judge: opens the journal that a power cut has left, and finds each promise that is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::process::Command;

use tabcast::journal::{Append, Appended, Channels, Journal, JournalError, Key, OpenError, PageLimit, Place};
use tabcast::limits::{Budget, Network};
use tabcast::message::{ChannelName, Data, Draft, EventName, IdempotencyKey, Pattern};

use crate::common::Hub;
use crate::scenario::{JOURNAL, Left, key, new_folder, publish, text};

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
    /// The known ids after which nobody can resume.
    gone: Vec<String>,
    /// The id that each of the known messages with a key has got when it was published again.
    retried: Vec<String>,
    /// The id of a new message.
    new: String,
}

/// The kind of a broken promise, and what it is.
pub type Violation = (&'static str, String);

/// The channels of all messages.
const CHANNELS: [&str; 3] = ["main", "c0", "c1"];

/// The mark of the message that the judge publishes.
const NEW: &str = "u0/9";

/// Each promise that is broken by what is left, where so many messages are to be kept.
pub fn judge(left: &Left, retention: usize, by: By) -> Vec<Violation> {
    let folder = new_folder();
    for (name, bytes) in &left.files {
        std::fs::write(folder.path.join(name), bytes).unwrap();
    }
    let journal = folder.file(JOURNAL);
    let answers = match by {
        By::Library => by_library(&journal, retention, left),
        By::Binary => by_binary(&journal, retention, left),
    };
    let mut violations = match answers {
        Ok(answers) => check(&answers, left, retention),
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

fn sequence(id: &str) -> usize {
    id.split_once('-').expect("an id has two parts").1.parse().unwrap()
}

/// The id and the mark of each known message that has a key.
fn with_key(left: &Left) -> impl Iterator<Item = (&String, &String)> {
    let messages = left.known.iter().filter_map(|id| left.marks.get_key_value(id));
    messages.filter(|(_, mark)| key(mark).is_some())
}

fn check(answers: &Answers, left: &Left, retention: usize) -> Vec<Violation> {
    let Answers { messages, gone, retried, new } = answers;
    let mut violations = Vec::new();
    if let Some(pair) = messages.windows(2).find(|pair| sequence(&pair[0].0) >= sequence(&pair[1].0)) {
        violations.push(("disordered", format!("{} before {}", pair[0].0, pair[1].0)));
    }
    let mut texts = BTreeSet::new();
    if let Some((id, text)) = messages.iter().find(|(_, text)| !texts.insert(text)) {
        violations.push(("doubled", format!("{id} {text:.20}")));
    }
    let head = messages.last().map_or(0, |(id, _)| sequence(id));
    let is_dropped = |id: &String| sequence(id) + retention <= head;
    let found: BTreeMap<_, _> = messages.iter().map(|(id, text)| (id, text)).collect();
    for id in &left.known {
        // It is a position if it has no mark.
        let Some(mark) = left.marks.get(id) else { continue };
        match found.get(id) {
            Some(found) if **found == text(mark) => {}
            Some(found) => violations.push(("altered", format!("{id} was {mark}, is {found:.20}"))),
            None if is_dropped(id) => {}
            None => violations.push(("lost", format!("{id} {mark}, the newest is {head}"))),
        }
    }
    for id in gone.iter().filter(|id| !is_dropped(id)) {
        violations.push(("not resumed from", format!("{id}, the newest is {head}")));
    }
    for ((id, mark), retried) in with_key(left).zip(retried).filter(|((id, _), retried)| id != retried) {
        violations.push(("key forgotten", format!("{mark} was {id}, its retry is {retried}")));
    }
    // Nor does it come before what was seen.
    if let Some(id) = left.known.iter().find(|id| sequence(id) >= sequence(new)) {
        violations.push(("id given again", format!("{id} was seen before {new}")));
    }
    violations
}

fn by_library(path: &str, retention: usize, left: &Left) -> Result<Answers, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut options = tabcast::Options::default().journal;
    options.journal = Place::File(path.into());
    options.retention_messages = retention;
    let open = || options.open(&Budget::unlimited());
    let mut opened = open();
    // A process that another thread starts has the descriptor of a lock until it is executed.
    while matches!(opened, Err(OpenError::InUse)) {
        opened = open();
    }
    let (journal, _committed) = opened.map_err(|error| error.to_string())?;
    let answers = runtime.block_on(ask(&journal, left));
    let failure = || journal.failure().borrow().as_ref().map(ToString::to_string);
    answers.map_err(|error| format!("{error}: {:?}", failure()))
}

async fn ask(journal: &Journal, left: &Left) -> Result<Answers, JournalError> {
    let is_gone = |id: &&String| journal.position(id.parse().expect("an id")).is_none();
    let gone = left.known.iter().filter(is_gone).cloned().collect();
    let limit = PageLimit { messages: 1_000, bytes: usize::MAX };
    let channels = Channels::new(CHANNELS.map(|channel| Pattern::parse(channel, 9).unwrap()));
    let (mut messages, mut position) = (Vec::new(), 0);
    loop {
        let page = journal.read(position, &channels, None, limit, None).await?;
        let messages_of_page = page.entries.iter().map(|entry| &entry.message);
        let text = |data: &Data| data.as_text().unwrap().into_owned();
        messages.extend(messages_of_page.map(|message| (message.id.to_string(), text(&message.data))));
        position = page.through;
        if page.through >= page.head {
            break;
        }
    }
    let append = |mark: &str| {
        let draft = Draft {
            channel: ChannelName::default(),
            event: EventName::default(),
            data: Data::text(&text(mark)),
            except: None,
            ttl: None,
        };
        let key = key(mark).map(|key| Key {
            owner: Network::from(IpAddr::from([127, 0, 0, 1])).into(),
            text: IdempotencyKey::parse(key).unwrap(),
        });
        Append::message(draft, key)
    };
    let marks = with_key(left).map(|(_, mark)| mark.as_str()).chain([NEW]);
    let appended = journal.append(marks.map(append).collect()).await?;
    let id = |appended| match appended {
        Appended::New(receipts) | Appended::Repeated(receipts) => receipts[0].id.to_string(),
        Appended::KeyReused | Appended::NotKept => "another message's".to_owned(),
    };
    let mut retried: Vec<_> = appended.into_iter().map(id).collect();
    let new = retried.pop().unwrap();
    Ok(Answers { messages, gone, retried, new })
}

fn by_binary(path: &str, retention: usize, left: &Left) -> Result<Answers, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tabcast"));
    command.args(["--listen", "127.0.0.1:0", "--hide-data", "--journal", path, "--retention-messages"]);
    let mut hub = Hub::spawn(command.arg(retention.to_string()));
    if !hub.listens() {
        return Err(hub.log().join("\n"));
    }
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let messages = hub.history(&format!("?channel={}", CHANNELS.join("&channel=")));
    let messages = messages.iter().map(|message| (text(&message["id"]), text(&message["data"]))).collect();
    let publish = |mark: &str| publish(hub.address, mark).ok_or_else(|| hub.log().join("\n"));
    let retried = with_key(left).map(|(_, mark)| publish(mark)).collect::<Result<_, _>>()?;
    let new = publish(NEW)?;
    hub.end("TERM");
    Ok(Answers { messages, gone: Vec::new(), retried, new })
}
