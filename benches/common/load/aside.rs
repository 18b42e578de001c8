//! A publisher aside: it publishes on a channel that nobody listens to, one message after the other, while
//! its thread is busy with something else.
//!
//! That thread has to look often whether the answer is there: a time is too long by up to the time between
//! two looks. The longest is noted.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use mio::net::TcpStream;

use super::dialect::Dialect;
use super::publisher::Exchange;
use super::text::{LENGTH, text};

/// Between an answer and the next POST, so that those are no load of their own.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

/// The name of its channel.
pub(crate) const CHANNEL: &str = "aside";

pub(crate) struct Aside {
    stream: TcpStream,
    exchange: Exchange,
    post: Vec<u8>,
    next: Instant,
    looked: Instant,
    /// The longest time between two looks while an answer was to come.
    pub(crate) longest_look: Duration,
    /// From each POST to its answer.
    pub(crate) times: Vec<Duration>,
}

impl Aside {
    pub(crate) fn connect(address: SocketAddr, dialect: Dialect) -> anyhow::Result<Self> {
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let now = Instant::now();
        Ok(Aside {
            stream: TcpStream::from_std(stream),
            exchange: Exchange::new(),
            post: dialect.post(address, Some(CHANNEL), &text(0, LENGTH)),
            next: now,
            looked: now,
            longest_look: Duration::ZERO,
            times: Vec::new(),
        })
    }

    /// Publishes once, which is not counted.
    pub(crate) fn warm_up(&mut self) -> anyhow::Result<()> {
        while self.times.is_empty() {
            self.look()?;
        }
        self.times.clear();
        self.longest_look = Duration::ZERO;
        Ok(())
    }

    pub(super) fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// How long there is nothing to do but to wait for an answer.
    pub(super) fn wait(&self) -> Duration {
        let due = self.next.saturating_duration_since(Instant::now());
        if self.exchange.is_idle() { due } else { Duration::MAX }
    }

    /// Notes that the thread waited until now: an answer would have ended that.
    pub(super) fn wake(&mut self) {
        self.looked = Instant::now();
    }

    /// Takes the answer if it is there, and sends the next POST if that is due.
    pub(super) fn look(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        if self.exchange.is_idle() {
            if self.next <= now {
                self.exchange.begin(None);
                self.stream.write_all(&self.post)?;
            }
        } else {
            self.longest_look = self.longest_look.max(now - self.looked);
            let mut buffer = [0; 1024];
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => bail!("can't read: {error}"),
                Ok(length) => {
                    ensure!(length > 0, "the server closed a connection");
                    self.times.extend(self.exchange.take(&buffer[..length])?);
                    self.next = now + PAUSE;
                }
            }
        }
        self.looked = now;
        Ok(())
    }
}
