//! The limits of a journal: what puts messages on the disk, and does nothing else that the hub does.

use std::fs::File;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use tokio::sync::oneshot;

use crate::common::serving::{Publish, exit_with_stdin, serve_axum};

/// Serves until stdin ends, with bare axum: a POST is answered once its body is appended to the file and on
/// the disk. All bodies that wait share one write and one fdatasync.
pub(crate) fn serve_append_sync(address: SocketAddr, path: &Path) -> anyhow::Result<()> {
    exit_with_stdin();
    serve_axum(TcpListener::bind(address)?, append_sync(path)?)
}

/// A body to append, and where to send word once it is on the disk.
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

/// Appends all bodies that wait, then answers their POSTs. Ends at the first error: later POSTs are not
/// answered 201.
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

/// How many bodies of 100 bytes one thread puts on the disk per second, in groups of this size: by write and
/// fdatasync alone, without server or publishers.
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
