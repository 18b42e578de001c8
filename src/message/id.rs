//! Message ids: a journal's epoch, and a message's sequence in that journal.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Identifies the run of a hub in which messages were appended to the journal: 8 characters of `[a-z0-9]`,
/// drawn at random.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Epoch([u8; Epoch::LENGTH]);

impl Epoch {
    /// 36^8 are 2.8e12 epochs: the chance that a new epoch equals one of 1,000 earlier ones is 1 in 2.8e9.
    /// Shorter: an id of a lost history could pass for one of the present. Longer: every id sent grows.
    const LENGTH: usize = 8;

    /// A random epoch.
    pub fn draw() -> Self {
        Epoch(std::array::from_fn(|_| {
            fastrand::choice(b"abcdefghijklmnopqrstuvwxyz0123456789").map_or(b'a', |c| *c)
        }))
    }
}

impl FromStr for Epoch {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let bytes: [u8; Epoch::LENGTH] = text.as_bytes().try_into().map_err(|_| InvalidId)?;
        let plain = bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if plain { Ok(Epoch(bytes)) } else { Err(InvalidId) }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(str::from_utf8(&self.0).expect("letters and digits are ASCII"))
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// `<epoch>-<sequence>`, at most 29 bytes of ASCII, opaque to users. Sequences begin at 1; sequence 0 is
/// the position before the first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageId {
    /// The epoch in which the message was appended.
    pub epoch: Epoch,
    /// The message's place in that journal.
    pub sequence: u64,
}

impl MessageId {
    /// The length of the id as text, in bytes.
    pub fn text_length(self) -> usize {
        let digits = self.sequence.checked_ilog10().map_or(1, |log| log as usize + 1);
        Epoch::LENGTH + "-".len() + digits
    }
}

impl FromStr for MessageId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let (epoch, sequence) = text.split_once('-').ok_or(InvalidId)?;
        // `u64` would also parse "+1" and "007", but each id has one spelling.
        let canonical = sequence == "0" || !sequence.starts_with(['0', '+']);
        if !canonical {
            return Err(InvalidId);
        }
        Ok(MessageId { epoch: epoch.parse()?, sequence: sequence.parse().map_err(|_| InvalidId)? })
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.epoch, out)?;
        out.write_str("-")?;
        out.write_str(itoa::Buffer::new().format(self.sequence))
    }
}

impl Serialize for MessageId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The text is no message id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message id")]
pub struct InvalidId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_as_it_was_written() {
        let id = MessageId { epoch: Epoch::draw(), sequence: 42 };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.to_string().ends_with("-42"));
        for sequence in [0, 1, 9, 10, 99, 100, u64::MAX] {
            let id = MessageId { sequence, ..id };
            assert_eq!(id.text_length(), id.to_string().len());
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        for text in [
            "",
            "-",
            "abcdefgh",
            "abcdefgh-",
            "abcdefgh-+1",
            "abcdefgh-01",
            "ABCDEFGH-1",
            "abcdefg-1",
            "abcdefgh-1 ",
            "abcdefgh--1",
        ] {
            assert_eq!(text.parse::<MessageId>(), Err(InvalidId), "{text:?}");
        }
        assert!("abcdefgh-0".parse::<MessageId>().is_ok());
    }
}
