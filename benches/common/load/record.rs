//! The record: what every subscriber has to get after its opening, byte for byte.
//!
//! The subscriber that gets a byte first writes it to the record, where each message is parsed. What any
//! other subscriber gets is compared with the record. So a server may encode messages as it likes, but has to
//! send all subscribers the same bytes.

use anyhow::{Context, bail, ensure};

use super::dialect::Dialect;
use super::taker::Taker;
use super::text::number_in;

pub(super) struct Record {
    dialect: Dialect,
    /// The length of each message's text.
    length: usize,
    bytes: Vec<u8>,
    /// Where each message ends in `bytes`.
    ends: Vec<usize>,
    /// Each message's number.
    numbers: Vec<usize>,
    /// By number, whether a message is in the record.
    seen: Vec<bool>,
    /// The number of the first message.
    pub(super) first: usize,
    /// Messages with numbers below this may come.
    pub(super) published: usize,
    /// Whether messages have to come in the order of their numbers, as they do from one publisher.
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

    /// How many messages are in the record.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Where the first `messages` end.
    pub(super) fn end(&self, messages: usize) -> usize {
        if messages == 0 { 0 } else { self.ends[messages - 1] }
    }

    /// The number of the message at that place.
    pub(super) fn number(&self, place: usize) -> usize {
        self.numbers[place]
    }

    /// What the message at that place is to its dialect's requests: the last one received.
    pub(super) fn last(&self, place: usize) -> anyhow::Result<String> {
        self.dialect.last(&[], &self.bytes[self.end(place)..self.ends[place]])
    }

    /// Takes bytes that a subscriber got, after those before `position`.
    ///
    /// # Errors If others got other bytes; or if they are a message that was not published, or one that was
    /// there before.
    fn take(&mut self, position: usize, bytes: &[u8]) -> anyhow::Result<()> {
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

/// How far a subscriber has got in the record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// How many bytes it has received.
    position: usize,
    /// How many messages it has received whole.
    pub(super) received: usize,
}

impl Place {
    /// After so many messages.
    pub(super) fn after(received: usize, record: &Record) -> Self {
        Place { position: record.end(received), received }
    }
}

/// A subscriber's place, and the record it is in.
pub(super) struct Reader<'a> {
    pub(super) place: &'a mut Place,
    pub(super) record: &'a mut Record,
}

impl Taker for Reader<'_> {
    fn open(&mut self, _opening: &[u8]) -> anyhow::Result<()> {
        Ok(())
    }

    fn is_between(&self) -> bool {
        self.place.position == self.record.end(self.place.received)
    }

    fn take(&mut self, data: &[u8]) -> anyhow::Result<()> {
        let Place { position, received } = &mut *self.place;
        self.record.take(*position, data)?;
        *position += data.len();
        while *received < self.record.len() && self.record.end(*received + 1) <= *position {
            *received += 1;
        }
        Ok(())
    }
}
