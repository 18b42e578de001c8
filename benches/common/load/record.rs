//! The record: what every subscriber has to get after its opening, byte for byte.
//!
//! Whoever gets a byte first writes it there, and each message in it is parsed; what any other
//! subscriber gets is compared with it. So a server may encode messages as it likes, but must send
//! all subscribers the same.

use anyhow::{Context, bail, ensure};

use super::dialect::Dialect;
use super::text::number_in;

pub(super) struct Record {
    dialect: Dialect,
    /// How long each message's text is.
    length: usize,
    bytes: Vec<u8>,
    /// Where each message ends in `bytes`.
    ends: Vec<usize>,
    /// Each message's number.
    numbers: Vec<usize>,
    /// By number, which of them are in it.
    seen: Vec<bool>,
    /// The number of the first message.
    pub(super) first: usize,
    /// Those below this may come.
    pub(super) published: usize,
    /// Whether they have to come in the order of their numbers: where there is one publisher.
    pub(super) in_order: bool,
}

impl Record {
    pub(super) fn new(dialect: Dialect, length: usize, first: usize) -> Self {
        Record {
            dialect,
            length,
            bytes: Vec::new(),
            ends: Vec::new(),
            numbers: Vec::new(),
            seen: Vec::new(),
            first,
            published: first,
            in_order: true,
        }
    }

    /// The messages in it.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Where so many messages end.
    pub(super) fn end(&self, messages: usize) -> usize {
        if messages == 0 { 0 } else { self.ends[messages - 1] }
    }

    /// The number of the message at that place.
    pub(super) fn number(&self, place: usize) -> usize {
        self.numbers[place]
    }

    /// The event ID of the message at that place.
    pub(super) fn id(&self, place: usize) -> anyhow::Result<&str> {
        let message = std::str::from_utf8(&self.bytes[self.end(place)..self.ends[place]])?;
        message.lines().find_map(|line| line.strip_prefix("id: ")).context("a message has no id")
    }

    /// Takes what a subscriber got that has had the bytes before `position`.
    ///
    /// # Errors
    /// If that is not what others got, or no message that was published, or one that it has already.
    pub(super) fn take(&mut self, position: usize, bytes: &[u8]) -> anyhow::Result<()> {
        let known = bytes.len().min(self.bytes.len() - position);
        if self.bytes[position..position + known] != bytes[..known] {
            let came = String::from_utf8_lossy(&bytes[..bytes.len().min(256)]);
            bail!("a subscriber gets {came:?}, which is not what others got");
        }
        self.bytes.extend_from_slice(&bytes[known..]);
        if known < bytes.len() { self.parse() } else { Ok(()) }
    }

    fn parse(&mut self) -> anyhow::Result<()> {
        let mut start = self.end(self.len());
        while let Some(length) = self.dialect.message_end(&self.bytes[start..]) {
            let message = &self.bytes[start..start + length];
            let what =
                || format!("after {} messages comes {:?}", self.ends.len(), String::from_utf8_lossy(message));
            let number = number_in(message, self.length).with_context(what)?;
            ensure!(number < self.published, "{}, which was not published", what());
            ensure!(!self.in_order || number == self.first + self.ends.len(), "{}, out of order", what());
            if self.seen.len() <= number {
                self.seen.resize(number + 1, false);
            }
            ensure!(!self.seen[number], "{}, for the second time", what());
            self.seen[number] = true;
            start += length;
            self.ends.push(start);
            self.numbers.push(number);
        }
        Ok(())
    }
}
