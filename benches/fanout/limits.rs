//! The limits: one thread with epoll that does nothing but fan out, to compare the hub with.
//!
//! It leaves out what costs the hub time: it checks nothing, keeps no message, takes a request only in one
//! piece, and ends if a subscriber is slow.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use crate::common::serving::{Publish, chunk, exit_with_stdin};

/// Messages published at once in a burst, for which [`Sends::Whole`] waits.
pub(crate) const BURST: usize = 32;

/// When messages are sent to subscribers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sends {
    /// Each at once: one send for each subscriber and message.
    OnePerMessage,
    /// When all POSTs that wait are read: one send for each subscriber.
    Coalesced,
    /// When a [`BURST`] waits, or no more comes: as few sends as possible.
    Whole,
}

/// How long [`Sends::Whole`] waits for more.
const WAIT: Duration = Duration::from_millis(5);

const LISTENER: Token = Token(usize::MAX);

/// One connection.
struct Peer {
    stream: TcpStream,
    /// Whether it subscribed without naming a channel.
    subscribed: bool,
}

/// Serves until stdin ends.
pub(crate) fn serve(address: SocketAddr, sends: Sends) -> anyhow::Result<()> {
    exit_with_stdin();
    let mut listener = listen(address)?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    // By token. A connection that is closed leaves its place empty.
    let mut peers: Vec<Option<Peer>> = Vec::new();
    // By channel, the tokens of those that named it.
    let mut listeners: HashMap<String, Vec<usize>> = HashMap::new();
    let mut pending = Vec::new();
    let mut number = 0;
    let mut sent = 0;
    let mut buffer = [0; 4096];
    loop {
        let waits = sends == Sends::Whole && !pending.is_empty();
        poll.poll(&mut events, waits.then_some(WAIT))?;
        for event in &events {
            let Token(token) = event.token();
            if event.token() == LISTENER {
                accept_all(&listener, &poll, &mut peers)?;
                continue;
            }
            let Some(peer) = &mut peers[token] else { continue };
            let length = match peer.stream.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Ok(0) | Err(_) => {
                    peers[token] = None;
                    continue;
                }
                Ok(length) => length,
            };
            let request = std::str::from_utf8(&buffer[..length])?;
            if request.starts_with("GET ") {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                    transfer-encoding: chunked\r\n\r\n";
                peer.stream.write_all(&[head.as_bytes(), &chunk(": limit\n\n")].concat())?;
                let path = request.split(' ').nth(1).context("a request has a path")?;
                let channels = path.split(['?', '&']).filter_map(|part| part.strip_prefix("channel="));
                peer.subscribed = true;
                for channel in channels {
                    peer.subscribed = false;
                    listeners.entry(channel.to_owned()).or_default().push(token);
                }
                continue;
            }
            let (_, body) = request.split_once("\r\n\r\n").context("a POST comes in one piece")?;
            let Publish { data, channel } = serde_json::from_str(body)?;
            peer.stream.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")?;
            let tokens =
                channel.as_ref().map(|channel| listeners.get(channel).map_or(&[][..], Vec::as_slice));
            if tokens.is_some_and(<[usize]>::is_empty) {
                continue;
            }
            number += 1;
            let frame = chunk(&format!("id: limit-{number}\ndata: {data}\n\n"));
            if let Some(tokens) = tokens {
                for token in tokens {
                    peers[*token].as_mut().map_or(Ok(()), |peer| send(&frame, peer))?;
                }
                continue;
            }
            pending.extend_from_slice(&frame);
            if sends == Sends::OnePerMessage {
                send_all(&mut pending, &mut peers)?;
            }
        }
        let is_whole = sends != Sends::Whole || number - sent >= BURST || events.is_empty();
        if !pending.is_empty() && is_whole {
            send_all(&mut pending, &mut peers)?;
            sent = number;
        }
    }
}

fn send_all(pending: &mut Vec<u8>, peers: &mut [Option<Peer>]) -> anyhow::Result<()> {
    for peer in peers.iter_mut().flatten().filter(|peer| peer.subscribed) {
        send(pending, peer)?;
    }
    pending.clear();
    Ok(())
}

fn send(bytes: &[u8], peer: &mut Peer) -> anyhow::Result<()> {
    match peer.stream.write(bytes) {
        Ok(length) if length == bytes.len() => Ok(()),
        // The event loop notices the end of the connection when it reads.
        Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(()),
        result => bail!("a subscriber is slow: {result:?}"),
    }
}

fn accept_all(listener: &TcpListener, poll: &Poll, peers: &mut Vec<Option<Peer>>) -> anyhow::Result<()> {
    loop {
        let mut stream = match listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            accepted => accepted?.0,
        };
        stream.set_nodelay(true)?;
        poll.registry().register(&mut stream, Token(peers.len()), Interest::READABLE)?;
        peers.push(Some(Peer { stream, subscribed: false }));
    }
}

/// A listener with the hub's backlog.
fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}
