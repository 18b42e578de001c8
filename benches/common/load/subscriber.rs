//! A subscriber: one stream, and what part of it comes next.

use anyhow::ensure;
use mio::net::TcpStream;

use super::chunks::Chunks;
use super::dialect::{Dialect, end_of};
use super::record::Place;
use super::taker::Taker;

pub(super) struct Subscriber {
    pub(super) stream: TcpStream,
    pub(super) progress: Progress,
    /// Where it is in the record. (A subscriber of channels of its own has what is due to it instead.)
    pub(super) place: Place,
}

pub(super) struct Progress {
    dialect: Dialect,
    stage: Stage,
    chunks: Chunks,
    /// The answer it has to give to the opening, and whether that was sent.
    answer: Option<&'static [u8]>,
    answered: bool,
    /// How many keep-alives it has received whole.
    pub(super) keep_alives: usize,
}

/// The part of a stream that comes next, with the bytes of it so far.
enum Stage {
    Head(Vec<u8>),
    Opening(Vec<u8>),
    Messages,
    /// A comment between messages.
    KeepAlive(Vec<u8>),
}

impl Progress {
    /// A stream before its head.
    pub(super) fn new(dialect: Dialect) -> Self {
        Progress {
            dialect,
            stage: Stage::Head(Vec::new()),
            chunks: Chunks::None,
            answer: None,
            answered: false,
            keep_alives: 0,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Messages | Stage::KeepAlive(_))
    }

    /// Takes bytes from the connection.
    pub(super) fn take(&mut self, bytes: &[u8], taker: &mut impl Taker) -> anyhow::Result<()> {
        let Stage::Head(head) = &mut self.stage else { return self.take_body(bytes, taker) };
        head.extend_from_slice(bytes);
        let Some(end) = end_of(b"\r\n\r\n", head) else { return Ok(()) };
        let body = head.split_off(end);
        let head = String::from_utf8_lossy(head).to_ascii_lowercase();
        ensure!(self.dialect.opens(&head), "a subscriber is answered with {head:?}");
        if head.contains("transfer-encoding: chunked") {
            self.chunks = Chunks::new();
        }
        self.stage = Stage::Opening(Vec::new());
        self.take_body(&body, taker)
    }

    /// The answer that has to be sent now.
    pub(super) fn take_answer(&mut self) -> Option<&'static [u8]> {
        self.answer.take()
    }

    fn take_body(&mut self, mut bytes: &[u8], taker: &mut impl Taker) -> anyhow::Result<()> {
        while let Some(mut data) = self.chunks.next(&mut bytes)? {
            while !data.is_empty() {
                data = self.take_data(data, taker)?;
            }
        }
        Ok(())
    }

    /// Takes some of the data, and returns the rest.
    fn take_data<'a>(&mut self, data: &'a [u8], taker: &mut impl Taker) -> anyhow::Result<&'a [u8]> {
        match &mut self.stage {
            // After a message, a colon begins a comment (WHATWG HTML 9.2.5).
            Stage::Messages if data[0] == b':' && taker.is_between() => {
                self.stage = Stage::KeepAlive(Vec::new());
                Ok(data)
            }
            Stage::Messages => {
                taker.take(data)?;
                Ok(&[])
            }
            Stage::Head(_) => unreachable!("the head is no data"),
            Stage::Opening(so_far) => {
                so_far.extend_from_slice(data);
                if !self.answered {
                    self.answer = self.dialect.answer(so_far);
                    self.answered = self.answer.is_some();
                }
                let end = self.dialect.opening_end(so_far);
                if let Some(end) = end {
                    taker.open(&so_far[..end])?;
                }
                Ok(self.follow(end, data))
            }
            Stage::KeepAlive(so_far) => {
                so_far.extend_from_slice(data);
                let end = end_of(b"\n\n", so_far);
                self.keep_alives += usize::from(end.is_some());
                Ok(self.follow(end, data))
            }
        }
    }

    /// If this stage ends at `end`, messages are next. Returns what is left of `data`.
    fn follow<'a>(&mut self, end: Option<usize>, data: &'a [u8]) -> &'a [u8] {
        let (Some(end), Stage::Opening(so_far) | Stage::KeepAlive(so_far)) = (end, &self.stage) else {
            return &[];
        };
        let left = so_far.len() - end;
        self.stage = Stage::Messages;
        &data[data.len() - left..]
    }
}
