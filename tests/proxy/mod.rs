//! What may stand between a browser and a hub: a proxy that passes bytes on, until it is told to
//! treat them worse. It knows no HTTP but how to refuse a request.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::common::PATIENCE;

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Its bytes are passed on, both ways.
    Pass,
    /// One that is open is cut. On a new one, requests are answered with this status.
    Answer(u16),
    /// It stays open, a new one too, but nothing passes any more: half-open. For one that is open
    /// that is for good, whatever mode comes next.
    Swallow,
}

/// A proxy on a port of its own. Ended when dropped, its connections cut.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    hub: SocketAddr,
    state: Mutex<State>,
    met: Condvar,
}

struct State {
    mode: Mode,
    open: Vec<Weak<Pair>>,
    /// New connections that were answered or swallowed in this mode.
    met: usize,
    stopped: bool,
}

/// A browser's connection, and the one to the hub for it.
struct Pair {
    browser: TcpStream,
    hub: TcpStream,
    swallowed: AtomicBool,
}

impl Proxy {
    /// A proxy to the hub at this address, passing.
    pub fn start(hub: SocketAddr) -> Proxy {
        let listener = TcpListener::bind((hub.ip(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { mode: Mode::Pass, open: Vec::new(), met: 0, stopped: false };
        let shared = Arc::new(Shared { hub, state: Mutex::new(state), met: Condvar::new() });
        let accept = {
            let shared = Arc::clone(&shared);
            move || {
                for browser in listener.incoming().map_while(Result::ok) {
                    if shared.state.lock().unwrap().stopped {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || shared.serve(browser));
                }
            }
        };
        Proxy { address, shared, thread: Some(std::thread::spawn(accept)) }
    }

    pub fn set(&self, mode: Mode) {
        let mut state = self.shared.state.lock().unwrap();
        (state.mode, state.met) = (mode, 0);
        for pair in state.open.iter().filter_map(Weak::upgrade) {
            match mode {
                Mode::Pass => {}
                Mode::Answer(_) => pair.cut(),
                Mode::Swallow => pair.swallowed.store(true, Ordering::Relaxed),
            }
        }
    }

    /// Ends every connection that is open.
    pub fn cut(&self) {
        self.shared.state.lock().unwrap().open.iter().filter_map(Weak::upgrade).for_each(|pair| pair.cut());
    }

    /// Waits until so many new connections were not passed, in this mode.
    pub fn wait_until_met(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.state.lock().unwrap();
        while state.met < count {
            let left = deadline.saturating_duration_since(Instant::now());
            let (met, mode) = (state.met, state.mode);
            if left.is_zero() {
                drop(state);
                panic!("{met} of {count} connections met {mode:?}");
            }
            state = self.shared.met.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.state.lock().unwrap().stopped = true;
        let _ = TcpStream::connect(self.address);
        self.thread.take().map(JoinHandle::join);
        self.cut();
    }
}

impl Shared {
    fn serve(&self, browser: TcpStream) {
        // Of the moment it is first used: browsers open connections they have no use for yet.
        let Ok(1..) = browser.peek(&mut [0]) else { return };
        let Some(pair) = self.admit(browser) else { return };
        std::thread::scope(|both| {
            both.spawn(|| pair.answers());
            pair.requests();
        });
    }

    /// The pair of a connection that is to pass. One that is not is dealt with.
    fn admit(&self, mut browser: TcpStream) -> Option<Arc<Pair>> {
        let mut state = self.state.lock().unwrap();
        if state.mode == Mode::Pass {
            // With the lock held: a pair made in one mode is seen by the next.
            let hub = TcpStream::connect(self.hub).ok()?;
            hub.set_nodelay(true).unwrap();
            browser.set_nodelay(true).unwrap();
            let pair = Arc::new(Pair { browser, hub, swallowed: AtomicBool::new(false) });
            state.open.retain(|pair| pair.strong_count() > 0);
            state.open.push(Arc::downgrade(&pair));
            return Some(pair);
        }
        let mode = state.mode;
        state.met += 1;
        drop(state);
        self.met.notify_all();
        match mode {
            Mode::Answer(status) => {
                BufReader::new(&browser).lines().map_while(Result::ok).find(String::is_empty);
                let head =
                    format!("HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = browser.write_all(head.as_bytes());
            }
            _ => while browser.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {},
        }
        None
    }
}

impl Pair {
    fn requests(&self) {
        self.copy(&self.browser, &self.hub);
        // Told even when nothing else is: the hub is not to hold what the browser has let go of.
        let _ = self.hub.shutdown(Shutdown::Both);
    }

    fn answers(&self) {
        self.copy(&self.hub, &self.browser);
        if !self.swallowed.load(Ordering::Relaxed) {
            let _ = self.browser.shutdown(Shutdown::Both);
        }
    }

    fn copy(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut bytes = [0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if !self.swallowed.load(Ordering::Relaxed) && to.write_all(&bytes[..count]).is_err() {
                return;
            }
        }
    }

    fn cut(&self) {
        let _ = self.browser.shutdown(Shutdown::Both);
        let _ = self.hub.shutdown(Shutdown::Both);
    }
}
