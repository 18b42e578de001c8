//! A message: what is published and kept. It has an id, a channel, an event name, data and a time.
//!
//! Raw input is parsed once into the types of this module; what is inside them is valid. How a
//! message looks on the wire is not here but in [`frame`](crate::frame).

mod data;
mod id;
mod name;

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

pub use data::{Data, InvalidData};
pub use id::{Epoch, InvalidId, MessageId};
pub(crate) use name::is_printable;
pub use name::{
    ChannelName, DEFAULT_CHANNEL, DEFAULT_EVENT, EventName, IdempotencyKey, InvalidName, RESERVED_PREFIX,
    SubscriberId,
};

/// One published message.
#[derive(Debug)]
pub struct Message {
    /// Its place in the journal, and what a subscriber resumes from.
    pub id: MessageId,
    /// The fan-out scope it was published to.
    pub channel: ChannelName,
    /// The name it carries.
    pub event: EventName,
    /// What was published.
    pub data: Data,
    /// The subscriber that is not to get it, on replay neither.
    pub except: Option<SubscriberId>,
    /// When the journal took it.
    pub time: Time,
}

impl Message {
    /// Whether the message is for a subscriber with this id of its own.
    pub fn is_for(&self, subscriber: Option<&SubscriberId>) -> bool {
        self.except.is_none() || self.except.as_ref() != subscriber
    }
}

/// A message before it is published: it has no id and no time yet.
#[derive(Debug)]
pub struct Draft {
    /// The fan-out scope it goes to.
    pub channel: ChannelName,
    /// The name it carries.
    pub event: EventName,
    /// What is published.
    pub data: Data,
    /// The subscriber that is not to get it.
    pub except: Option<SubscriberId>,
}

impl Draft {
    /// Becomes the message with this id and time.
    pub fn into_message(self, id: MessageId, time: Time) -> Message {
        let Draft { channel, event, data, except } = self;
        Message { id, channel, event, data, except, time }
    }

    /// SHA-256 over every field: two drafts with the same one are the same request.
    pub fn fingerprint(&self) -> Fingerprint {
        let except = self.except.as_ref().map_or("", |id| id.as_str());
        let mut hash = Sha256::new();
        for field in [self.channel.as_str(), self.event.as_str(), self.data.as_json(), except] {
            // The length goes in front, so that no two lists of fields run together to the same bytes.
            hash.update((field.len() as u64).to_be_bytes());
            hash.update(field);
        }
        Fingerprint(hash.finalize().into())
    }
}

/// What a publisher is told of its message once the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    /// The message's id.
    pub id: MessageId,
    /// The channel it went to.
    pub channel: ChannelName,
    /// The name it carries.
    pub event: EventName,
    /// When the journal took it.
    pub time: Time,
}

impl From<&Message> for Receipt {
    fn from(message: &Message) -> Self {
        Receipt {
            id: message.id,
            channel: message.channel.clone(),
            event: message.event.clone(),
            time: message.time,
        }
    }
}

/// Identifies the content of a [`Draft`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub [u8; 32]);

/// A point in time, to the millisecond: milliseconds since 1970 UTC. Shown as RFC 3339.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(u64);

impl Time {
    /// The system clock's time.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Time(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// This many milliseconds since 1970 UTC.
    pub fn from_ms(ms: u64) -> Self {
        Time(ms)
    }

    /// Milliseconds since 1970 UTC.
    pub fn as_ms(self) -> u64 {
        self.0
    }

    /// Whether so much time has gone by since then, at `now`.
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
    fn the_fingerprint_tells_where_a_field_ends() {
        let draft = |event: &str, data: &str| Draft {
            channel: ChannelName::default(),
            event: EventName::parse(event, 32).unwrap(),
            data: Data::text(data),
            except: None,
        };
        assert_eq!(draft("a", "b").fingerprint(), draft("a", "b").fingerprint());
        assert_ne!(draft("ab", "c").fingerprint(), draft("a", "bc").fingerprint());
    }
}
