//! What the benches' own servers have in common.

use std::net::TcpListener;
use std::{io, thread};

use anyhow::Context;
use axum::Router;
use axum::serve::ListenerExt;
use serde::Deserialize;

/// The body of a publish.
#[derive(Deserialize)]
pub(crate) struct Publish {
    pub(crate) data: String,
    /// `None` for the channel of all subscribers that name none.
    pub(crate) channel: Option<String>,
}

/// Ends this process when stdin ends, and so no later than the bench that started it.
pub(crate) fn exit_with_stdin() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
}

#[tokio::main]
pub(crate) async fn serve_axum(listener: TcpListener, router: Router) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, router).await.context("can't serve")
}

/// One chunk of a chunked body (RFC 9112 7.1).
pub(crate) fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}
