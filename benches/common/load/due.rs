//! What is due to a subscriber of channels of its own: which messages it has still to get.

use std::collections::VecDeque;
use std::mem;

use anyhow::{Context, ensure};

use super::dialect::Dialect;
use super::taker::Taker;
use super::text::{has_number, number_in};

pub(super) struct Due {
    dialect: Dialect,
    /// The length of each message's text.
    length: usize,
    /// The numbers of the messages that it has still to get, in the order of their POSTs.
    numbers: VecDeque<usize>,
    /// Whether messages have to come in that order, as they do from one publisher.
    pub(super) in_order: bool,
    /// The messages that came and are not taken yet.
    came: Vec<usize>,
    /// The beginning of a message.
    part: Vec<u8>,
    /// The opening of the stream, of a server that says there what a reconnect needs.
    opening: Vec<u8>,
    /// The last message.
    last: Vec<u8>,
}

impl Due {
    pub(super) fn new(dialect: Dialect, length: usize) -> Self {
        Due {
            dialect,
            length,
            numbers: VecDeque::new(),
            in_order: true,
            came: Vec::new(),
            part: Vec::new(),
            opening: Vec::new(),
            last: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, number: usize) {
        self.numbers.push_back(number);
    }

    /// The numbers of the messages that came since the last call.
    pub(super) fn take_came(&mut self) -> Vec<usize> {
        mem::take(&mut self.came)
    }

    /// The last message, as a reconnect names it.
    pub(super) fn last(&self) -> anyhow::Result<String> {
        ensure!(!self.last.is_empty(), "who has had no message has no last event ID");
        self.dialect.last(&self.opening, &self.last)
    }

    fn check(&mut self, message: &[u8]) -> anyhow::Result<()> {
        let what = || format!("a subscriber gets {:?}", String::from_utf8_lossy(message));
        let number = number_in(message, self.length).with_context(what)?;
        let place = self.numbers.iter().position(|due| *due == number);
        let place = place.with_context(|| format!("{}, which is not due to it", what()))?;
        ensure!(!self.in_order || place == 0, "{}, out of order", what());
        self.numbers.remove(place);
        self.came.push(number);
        self.last.clear();
        self.last.extend_from_slice(message);
        Ok(())
    }
}

impl Taker for Due {
    fn open(&mut self, opening: &[u8]) -> anyhow::Result<()> {
        self.part.clear();
        if self.dialect == Dialect::Centrifugo {
            self.opening = opening.to_vec();
            // Centrifugo's answer has the message that was missed.
            if has_number(opening) {
                return self.check(opening);
            }
        }
        Ok(())
    }

    fn is_between(&self) -> bool {
        self.part.is_empty()
    }

    fn take(&mut self, data: &[u8]) -> anyhow::Result<()> {
        let mut part = mem::take(&mut self.part);
        part.extend_from_slice(data);
        let mut start = 0;
        while let Some(length) = self.dialect.message_end(&part[start..]) {
            self.check(&part[start..start + length])?;
            start += length;
        }
        part.drain(..start);
        self.part = part;
        Ok(())
    }
}
