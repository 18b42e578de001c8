//! A publisher: one connection that POSTs one message after the other.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use mio::net::TcpStream;

use super::dialect::end_of;

pub(super) struct Publisher {
    pub(super) stream: TcpStream,
    pub(super) exchange: Exchange,
}

/// The POSTs on one connection, each after the answer to the last.
pub(crate) struct Exchange {
    state: State,
    /// The bytes of the answer so far.
    answer: Vec<u8>,
}

#[derive(Clone, Copy)]
enum State {
    /// No POST waits for its answer, since then.
    Idle(Instant),
    /// A POST that was sent then waits for its answer.
    Waiting(Instant),
}

impl Exchange {
    pub(crate) fn new() -> Self {
        Exchange { state: State::Idle(Instant::now()), answer: Vec::new() }
    }

    pub(crate) fn is_idle(&self) -> bool {
        matches!(self.state, State::Idle(_))
    }

    /// Notes that a POST is sent now, and returns when it counts as sent: when it was `due`, if the last
    /// answer was still to come then.
    pub(crate) fn begin(&mut self, due: Option<Instant>) -> Instant {
        let late = due.filter(|due| matches!(self.state, State::Idle(since) if *due < since));
        let sent = late.unwrap_or_else(Instant::now);
        self.state = State::Waiting(sent);
        sent
    }

    /// Takes bytes from the connection. Returns the time that the answer took, once all of it is there.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> anyhow::Result<Option<Duration>> {
        self.answer.extend_from_slice(bytes);
        if !is_whole(&self.answer)? {
            return Ok(None);
        }
        self.answer.clear();
        let State::Waiting(sent) = self.state else { bail!("an answer to nothing") };
        let now = Instant::now();
        self.state = State::Idle(now);
        Ok(Some(now - sent))
    }
}

/// Whether this is an answer to a POST, or the beginning of one.
///
/// # Errors
/// If there are more bytes than that, or if the message was not taken.
fn is_whole(answer: &[u8]) -> anyhow::Result<bool> {
    const LENGTH: &[u8] = b"content-length: ";
    let Some(head) = end_of(b"\r\n\r\n", answer) else { return Ok(false) };
    let text = || String::from_utf8_lossy(answer);
    // nchan answers 202 if there is no subscriber, Mercure and Centrifugo answer 200.
    let starts: [&[u8]; 3] = [b"HTTP/1.1 200 ", b"HTTP/1.1 201 ", b"HTTP/1.1 202 "];
    let taken =
        starts.iter().any(|start| answer.starts_with(start)) && !answer[head..].starts_with(b"{\"error");
    ensure!(taken, "a POST is answered with {:?}", text());
    let mut headers = answer[..head].split(|byte| *byte == b'\n');
    let length =
        headers.find(|line| line.get(..LENGTH.len()).is_some_and(|name| name.eq_ignore_ascii_case(LENGTH)));
    let length = &length.context("an answer has no length")?[LENGTH.len()..];
    let length: usize = std::str::from_utf8(length)?.trim_end().parse()?;
    ensure!(answer.len() <= head + length, "more than an answer: {:?}", text());
    Ok(answer.len() == head + length)
}
