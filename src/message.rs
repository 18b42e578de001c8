//! A message: an id, a channel, an event name, data and a time.
//!
//! Raw input is parsed once into the types of this module; a value of these types is always valid. The
//! bytes of a message on the wire are made in [`frame`](crate::frame).

mod data;
mod id;
mod name;
mod pattern;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

pub use data::{Data, InvalidData};
pub use id::{Epoch, InvalidId, MessageId};
pub(crate) use name::is_printable;
pub use name::{
    ChannelName, DEFAULT_CHANNEL, DEFAULT_EVENT, EventName, IdempotencyKey, InvalidName, RESERVED_PREFIX,
    SubscriberId,
};
pub use pattern::{Pattern, Token};

/// One published message.
#[derive(Debug)]
pub struct Message {
    /// The message's place in the journal, from which a subscriber can resume.
    pub id: MessageId,
    /// The channel the message was published to.
    pub channel: ChannelName,
    /// The event name, [`DEFAULT_EVENT`] if the publisher gave none.
    pub event: EventName,
    /// The published JSON value.
    pub data: Data,
    /// The subscriber that does not get the message, neither live nor on replay.
    pub except: Option<SubscriberId>,
    /// When the message was appended to the journal.
    pub time: Time,
    /// When the message is no longer kept, if its publisher said so.
    pub expires: Option<Time>,
}

impl Message {
    /// Whether a subscriber that chose this id gets the message.
    pub fn is_for(&self, subscriber: Option<&SubscriberId>) -> bool {
        self.except.is_none() || self.except.as_ref() != subscriber
    }
}

/// A message before it is appended: the journal gives the id and the time.
#[derive(Debug)]
pub struct Draft {
    /// The channel to publish to.
    pub channel: ChannelName,
    /// The event name.
    pub event: EventName,
    /// The JSON value to publish.
    pub data: Data,
    /// The subscriber that will not get the message.
    pub except: Option<SubscriberId>,
    /// How long the message is kept at most.
    pub ttl: Option<Duration>,
}

impl Draft {
    /// The hub's own event on this channel: the message with this id was deleted.
    pub fn deleted(id: MessageId, channel: ChannelName) -> Self {
        let data = Data::stored(format!("{{\"id\":\"{id}\"}}")).expect("an id needs no escape");
        Draft { channel, event: EventName::deleted(), data, except: None, ttl: None }
    }

    /// The draft's message, with this id and time. `now` is when its `ttl` begins.
    pub fn into_message(self, id: MessageId, time: Time, now: impl FnOnce() -> Time) -> Message {
        let Draft { channel, event, data, except, ttl } = self;
        let expires = ttl.map(|ttl| now().after(ttl));
        Message { id, channel, event, data, except, time, expires }
    }

    /// The memory that the draft takes, in bytes, but for what all drafts take.
    pub fn weight(&self) -> usize {
        self.channel.as_str().len() + self.event.as_str().len() + self.data.as_json().len()
    }

    /// SHA-256 over every field of each of these drafts, which one request publishes. Those with equal
    /// fingerprints are the same request.
    pub fn fingerprint_of(drafts: &[Draft]) -> Fingerprint {
        match drafts {
            [draft] => draft.fingerprint(),
            drafts => {
                let mut hash = Sha256::new();
                drafts.iter().for_each(|draft| hash.update(draft.fingerprint().0));
                Fingerprint(hash.finalize().into())
            }
        }
    }

    /// SHA-256 over every field.
    fn fingerprint(&self) -> Fingerprint {
        let except = self.except.as_ref().map_or("", |id| id.as_str());
        let mut hash = Sha256::new();
        for field in [self.channel.as_str(), self.event.as_str(), self.data.as_json(), except] {
            // Each field follows its length, so that ("ab", "c") and ("a", "bc") hash differently.
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field);
        }
        // Only if there is one, so that requests which were kept before are still recognised.
        if let Some(ttl) = self.ttl {
            hash.update(ttl.as_millis().to_be_bytes());
        }
        Fingerprint(hash.finalize().into())
    }
}

/// The drafts of one publish, in the order of the messages. Most publishes have one.
pub type Drafts = SmallVec<[Draft; 1]>;

/// The receipts of one publish, in the same order.
pub type Receipts = SmallVec<[Receipt; 1]>;

/// The answer to a publish of one message, once it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The message's id.
    pub id: MessageId,
    /// The message's channel.
    pub channel: ChannelName,
    /// The message's event name.
    pub event: EventName,
    /// When the message was appended to the journal.
    pub time: Time,
    /// When the message is no longer kept, if its publisher said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<Time>,
}

impl Receipt {
    /// Which message of a publish has the receipt of which those of the others can be made: the first that
    /// expires, else the first.
    pub fn key_of(drafts: &[Draft]) -> usize {
        drafts.iter().position(|draft| draft.ttl.is_some()).unwrap_or(0)
    }

    /// The receipts of a publish of these drafts, of which this is the one at [`key_of`](Self::key_of). Its
    /// messages were appended at once.
    pub fn expand(self, drafts: Drafts) -> Receipts {
        let key = Self::key_of(&drafts);
        let ttl_ms = drafts[key].ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
        let began = self.expires.map(|expires| Time(expires.0.saturating_sub(ttl_ms)));
        let first = self.id.sequence - key as u64;
        let receipt = |(sequence, draft): (u64, Draft)| Receipt {
            id: MessageId { sequence, ..self.id },
            channel: draft.channel,
            event: draft.event,
            time: self.time,
            expires: draft.ttl.and_then(|ttl| Some(began?.after(ttl))),
        };
        (first..).zip(drafts).map(receipt).collect()
    }
}

impl From<&Message> for Receipt {
    fn from(message: &Message) -> Self {
        Receipt {
            id: message.id,
            channel: message.channel.clone(),
            event: message.event.clone(),
            time: message.time,
            expires: message.expires,
        }
    }
}

/// The SHA-256 hash of the fields of a publish's drafts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

/// A point in time, in milliseconds since 1970 UTC. Displayed as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// The system clock's time.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// The time that many milliseconds after 1970 UTC.
    pub fn from_ms(ms: u64) -> Self {
        Time(ms)
    }

    /// Milliseconds since 1970 UTC.
    pub fn as_ms(self) -> u64 {
        self.0
    }

    /// Whole seconds since 1970 UTC.
    pub fn as_seconds(self) -> u64 {
        self.0 / 1_000
    }

    /// The time so much later.
    pub fn after(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Whether `now` is at least `duration` after this time.
    pub fn has_passed(self, duration: Duration, now: Time) -> bool {
        u128::from(now.0.saturating_sub(self.0)) >= duration.as_millis()
    }
}

impl fmt::Display for Time {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(self.0)).fmt(out)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_whose_fields_join_to_the_same_text_have_different_fingerprints() {
        let draft = |event: &str, data: &str| Draft {
            channel: ChannelName::default(),
            event: EventName::parse(event, 32).unwrap(),
            data: Data::text(data),
            except: None,
            ttl: None,
        };
        let brief = Draft { ttl: Some(Duration::from_secs(1)), ..draft("a", "b") };
        assert_ne!(brief.fingerprint(), draft("a", "b").fingerprint());
        assert_eq!(draft("a", "b").fingerprint(), draft("a", "b").fingerprint());
        assert_ne!(draft("ab", "c").fingerprint(), draft("a", "bc").fingerprint());
    }
}
