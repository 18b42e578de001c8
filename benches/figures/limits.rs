//! The limits: servers that do less than the hub, to hold it against. What they leave out, the hub
//! pays for: they check nothing, lose messages where they are slow, and keep nothing that could be
//! read again.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use clap::ValueEnum;
use serde::Deserialize;
use tokio::sync::{broadcast, oneshot};
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Limit {
    /// An axum handler that reads and parses a JSON body and answers 201.
    BareAxum,
    /// The tutorial's hub: `Sse` over tokio's broadcast, an `Event` built for each subscriber.
    NaiveAxum,
    /// One thread that sends a ready frame to one socket after the other.
    OneSend,
    /// Bare axum that answers once the body is appended to a file and on the disk; all that wait
    /// share one write and one fdatasync.
    AppendSync,
}

impl Limit {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Limit::BareAxum => "bare axum",
            Limit::NaiveAxum => "naive axum",
            Limit::OneSend => "one send each",
            Limit::AppendSync => "append + fdatasync",
        }
    }

    /// Serves until stdin ends, and so no longer than the process that started it.
    pub(crate) fn serve(self, address: SocketAddr, file: Option<PathBuf>) -> anyhow::Result<()> {
        thread::spawn(|| {
            let _ = io::copy(&mut io::stdin(), &mut io::sink());
            std::process::exit(0);
        });
        let listener = TcpListener::bind(address)?;
        match self {
            Limit::BareAxum => serve_axum(listener, bare_axum()),
            Limit::NaiveAxum => serve_axum(listener, naive_axum()),
            Limit::OneSend => one_send(&listener),
            Limit::AppendSync => serve_axum(listener, append_sync(&file.context("it needs a file")?)?),
        }
    }
}

/// The body of a publish.
#[derive(Deserialize)]
struct Publish {
    data: String,
}

#[tokio::main]
async fn serve_axum(listener: TcpListener, router: Router) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await.context("can't serve")
}

fn bare_axum() -> Router {
    async fn publish(Json(publish): Json<Publish>) -> StatusCode {
        std::hint::black_box(publish.data);
        StatusCode::CREATED
    }
    Router::new().route("/messages", post(publish))
}

/// A body to append, and where to tell that it is on the disk.
type Append = (Bytes, oneshot::Sender<()>);

fn append_sync(path: &Path) -> anyhow::Result<Router> {
    async fn publish(State(appends): State<mpsc::Sender<Append>>, body: Bytes) -> StatusCode {
        let Ok(publish) = serde_json::from_slice::<Publish>(&body) else { return StatusCode::BAD_REQUEST };
        std::hint::black_box(publish.data);
        let (answer, answered) = oneshot::channel();
        let sent = appends.send((body, answer)).is_ok();
        if sent && answered.await.is_ok() { StatusCode::CREATED } else { StatusCode::INTERNAL_SERVER_ERROR }
    }

    let file = File::create_new(path)?;
    let (appends, waiting) = mpsc::channel();
    thread::spawn(move || append_all(file, &waiting));
    Ok(Router::new().route("/messages", post(publish)).with_state(appends))
}

/// Appends whatever waits, then answers it. Ends at the first error, and no POST is answered 201 after.
fn append_all(mut file: File, waiting: &mpsc::Receiver<Append>) -> io::Result<()> {
    let mut bytes = Vec::new();
    while let Ok(first) = waiting.recv() {
        let mut answers = Vec::new();
        for (body, answer) in std::iter::once(first).chain(waiting.try_iter()) {
            bytes.extend_from_slice(&body);
            bytes.push(b'\n');
            answers.push(answer);
        }
        file.write_all(&bytes)?;
        file.sync_data()?;
        bytes.clear();
        for answer in answers {
            let _ = answer.send(());
        }
    }
    Ok(())
}

/// Bodies of 100 bytes put on the disk per second by one thread that has a group of so many ready each
/// time: no server, no publishers, nothing but write and fdatasync.
pub(crate) fn file_alone(path: &Path, group: usize, time: Duration) -> anyhow::Result<f64> {
    let mut file = File::create_new(path)?;
    let bytes = vec![b'.'; 100 * group];
    let begun = Instant::now();
    let mut groups = 0;
    while begun.elapsed() < time {
        file.write_all(&bytes)?;
        file.sync_data()?;
        groups += 1;
    }
    Ok((groups * group) as f64 / begun.elapsed().as_secs_f64())
}

/// The naive hub: its live feed, and the number of the last message.
struct Naive {
    live: broadcast::Sender<(u64, String)>,
    last: Mutex<u64>,
}

fn naive_axum() -> Router {
    /// Far more than the tutorial's 100, with which it would lose messages here.
    const CAPACITY: usize = 1 << 16;

    async fn publish(State(hub): State<Arc<Naive>>, Json(publish): Json<Publish>) -> StatusCode {
        // Held while it is sent: the feed must be in the order of the numbers.
        let mut last = hub.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        let _ = hub.live.send((*last, publish.data));
        StatusCode::CREATED
    }

    async fn subscribe(State(hub): State<Arc<Naive>>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
        let opening = Event::default().comment("naive").id("naive-0");
        let events = BroadcastStream::new(hub.live.subscribe())
            // What is lost to a lag is missed by the subscriber, which counts.
            .filter_map(Result::ok)
            .map(|(number, data)| Event::default().id(format!("naive-{number}")).data(data));
        Sse::new(tokio_stream::once(opening).chain(events).map(Ok))
            .keep_alive(KeepAlive::new().interval(Duration::from_secs(600)))
    }

    let hub = Naive { live: broadcast::Sender::new(CAPACITY), last: Mutex::new(0) };
    Router::new().route("/messages", post(publish)).route("/events", get(subscribe)).with_state(Arc::new(hub))
}

/// Takes subscribers until the first POST comes; from then on serves that one connection.
fn one_send(listener: &TcpListener) -> anyhow::Result<()> {
    let mut subscribers = Vec::new();
    loop {
        let (mut stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer)?;
        match &buffer[..length] {
            // Somebody only wanted to see whether it listens.
            [] => {}
            [b'G', ..] => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")?;
                stream.write_all(&chunk(": one send\nid: send-0\n\n"))?;
                subscribers.push(stream);
            }
            first_post => return send_all(&mut stream, first_post, &subscribers),
        }
    }
}

/// Sends each message that is posted on `publisher`, of which `first` was read, to the subscribers.
fn send_all(publisher: &mut TcpStream, first: &[u8], subscribers: &[TcpStream]) -> anyhow::Result<()> {
    let mut buffer = [0; 1024];
    let mut post = first.to_vec();
    for number in 1.. {
        let (_, body) = std::str::from_utf8(&post)?.split_once("\r\n\r\n").context("a POST comes in one piece")?;
        let Publish { data } = serde_json::from_str(body)?;
        let frame = chunk(&format!("id: send-{number}\ndata: {data}\n\n"));
        for mut subscriber in subscribers {
            subscriber.write_all(&frame)?;
        }
        publisher.write_all(b"HTTP/1.1 201 Created\r\ncontent-length: 0\r\n\r\n")?;
        let length = publisher.read(&mut buffer)?;
        if length == 0 {
            break;
        }
        post = buffer[..length].to_vec();
    }
    Ok(())
}

/// One chunk of a chunked body (RFC 9112 7.1).
fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}
