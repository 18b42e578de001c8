//! A proxy in front of a hub, which passes bytes on until a test has it do worse. Of HTTP it knows only how
//! to answer a request with an error, and how to take a prefix from a path.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::common::PATIENCE;

/// What becomes of a new connection, and of those that are open when the mode is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Its bytes are passed on, both ways.
    Pass,
    /// A request on a new connection is answered with this status. Open connections are cut.
    Answer(u16),
    /// No more bytes are passed on, as on a half-open connection. For open connections that is for good,
    /// whatever mode comes next.
    Swallow,
    /// A new connection is left to the test, which takes it by [`Proxy::accept`].
    Leave,
}

/// A proxy on a port of its own. Ended when dropped, its connections cut.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    hub: SocketAddr,
    /// What the path of each request begins with, before it is passed on without. Empty for most proxies.
    prefix: &'static str,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    mode: Mode,
    open: Vec<Weak<Pair>>,
    /// The first line of each request that was answered in this mode.
    answered: Vec<String>,
    /// Connections that are left to the test.
    left: VecDeque<TcpStream>,
    stopped: bool,
}

/// A connection to the proxy, and the proxy's own to the hub for it.
struct Pair {
    browser: TcpStream,
    hub: TcpStream,
    swallowed: AtomicBool,
}

impl Proxy {
    /// A proxy to the hub at this address.
    pub fn start(hub: SocketAddr, mode: Mode) -> Proxy {
        Proxy::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), hub, mode)
    }

    /// The same on this address.
    pub fn start_at(address: SocketAddr, hub: SocketAddr, mode: Mode) -> Proxy {
        Proxy::start_with(address, hub, mode, "")
    }

    /// A proxy that has the hub below this path, as in "/hub".
    pub fn start_below(prefix: &'static str, hub: SocketAddr) -> Proxy {
        Proxy::start_with(SocketAddr::from(([127, 0, 0, 1], 0)), hub, Mode::Pass, prefix)
    }

    fn start_with(address: SocketAddr, hub: SocketAddr, mode: Mode, prefix: &'static str) -> Proxy {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { mode, open: vec![], answered: vec![], left: VecDeque::new(), stopped: false };
        let shared = Arc::new(Shared { hub, prefix, state: Mutex::new(state), changed: Condvar::new() });
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
        state.mode = mode;
        state.answered.clear();
        for pair in state.open.iter().filter_map(Weak::upgrade) {
            match mode {
                Mode::Pass | Mode::Leave => {}
                Mode::Answer(_) => pair.cut(),
                Mode::Swallow => pair.swallowed.store(true, Ordering::Relaxed),
            }
        }
    }

    /// Ends every connection that is open.
    pub fn cut(&self) {
        self.shared.state.lock().unwrap().open.iter().filter_map(Weak::upgrade).for_each(|pair| pair.cut());
    }

    /// Waits until so many requests that begin like this were answered in this mode.
    pub fn wait_until_answered(&self, beginning: &str, count: usize) {
        self.wait_for(&format!("{count} answers to {beginning}"), |state| {
            let answered = state.answered.iter().filter(|line| line.starts_with(beginning));
            (answered.count() >= count).then_some(())
        });
    }

    /// The next connection that is left to the test, from `whom`.
    pub fn accept(&self, whom: &str) -> TcpStream {
        let connection = self.wait_for(&format!("connection from {whom}"), |state| state.left.pop_front());
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.set_write_timeout(Some(PATIENCE)).unwrap();
        connection.set_nodelay(true).unwrap();
        connection
    }

    fn wait_for<T>(&self, what: &str, mut found: impl FnMut(&mut State) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.state.lock().unwrap();
        loop {
            if let Some(found) = found(&mut state) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let (mode, answered) = (state.mode, state.answered.len());
            if left.is_zero() {
                // Panicking with the lock held would poison it for the threads that serve.
                drop(state);
                panic!("no {what}; {mode:?}, {answered} answers");
            }
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
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
        // The mode at the first byte counts: browsers open connections before they have a use for them.
        let Ok(1..) = browser.peek(&mut [0]) else { return };
        let Some(pair) = self.admit(browser) else { return };
        std::thread::scope(|both| {
            both.spawn(|| pair.answers());
            pair.requests(self.prefix);
        });
    }

    /// The pair of a connection whose bytes are to be passed on. Every other connection is dealt with here.
    fn admit(&self, mut browser: TcpStream) -> Option<Arc<Pair>> {
        let mut state = self.state.lock().unwrap();
        match state.mode {
            Mode::Pass => {
                // With the lock held: `set` then finds each pair made in the mode before.
                let hub = TcpStream::connect(self.hub).ok()?;
                hub.set_nodelay(true).unwrap();
                browser.set_nodelay(true).unwrap();
                let pair = Arc::new(Pair { browser, hub, swallowed: AtomicBool::new(false) });
                state.open.retain(|pair| pair.strong_count() > 0);
                state.open.push(Arc::downgrade(&pair));
                return Some(pair);
            }
            Mode::Leave => {
                state.left.push_back(browser);
                self.changed.notify_all();
            }
            Mode::Answer(status) => {
                drop(state);
                self.answer(&browser, status);
            }
            Mode::Swallow => {
                drop(state);
                while browser.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
            }
        }
        None
    }

    fn answer(&self, mut browser: &TcpStream, status: u16) {
        let mut lines = BufReader::new(browser).lines().map_while(Result::ok);
        let Some(request) = lines.next() else { return };
        lines.find(String::is_empty);
        let head = format!("HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let _ = browser.write_all(head.as_bytes());
        self.state.lock().unwrap().answered.push(request);
        self.changed.notify_all();
    }
}

impl Pair {
    fn requests(&self, prefix: &str) {
        if prefix.is_empty() || self.request_without(prefix).is_ok() {
            self.copy(&self.browser, &self.hub);
        }
        // Even when nothing is passed on any more: the hub is not to hold a connection the browser has
        // closed.
        let _ = self.hub.shutdown(Shutdown::Both);
    }

    /// Passes on a request's head and what came with it. The next request comes on another connection.
    fn request_without(&self, prefix: &str) -> io::Result<()> {
        let mut reader = BufReader::new(&self.browser);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let mut head = match line.split_once(prefix) {
            Some((method, rest)) if rest.starts_with('/') => format!("{method}{rest}"),
            _ => "GET /not-below-the-prefix HTTP/1.1\r\n".to_owned(),
        };
        while !["\r\n", ""].contains(&&*line) {
            line.clear();
            reader.read_line(&mut line)?;
            match line.to_ascii_lowercase().starts_with("connection:") {
                true => head += "Connection: close\r\n",
                false => head += &line,
            }
        }
        (&self.hub).write_all(&[head.as_bytes(), reader.buffer()].concat())
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
