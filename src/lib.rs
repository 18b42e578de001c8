//! tabcast: a live message hub. Whoever POSTs a message has every subscriber see it at once: in
//! order, once, and nothing that was acknowledged is ever lost.
//!
//! ```text
//! POST /messages → parse → hub.publish → journal.append (assigns the id) → live feed
//! GET /events    → parse → hub.subscribe(channels, start) → stream of frames → socket
//! ```
//!
//! # Layout
//! Each file one noun; each module uses only those below it.
//! - [`config`]: every setting.
//! - `web`: HTTP: the router, its handlers and the connections.
//! - [`hub`]: publish, subscribe, and what a subscription is.
//! - [`journal`]: the record of published messages that everything reads from.
//! - [`frame`]: a message's bytes on the wire.
//! - [`message`]: what a message is made of, parsed once, valid after.

#![warn(clippy::unwrap_used)]

pub mod config;
pub mod frame;
pub mod hub;
pub mod journal;
pub mod message;
mod web;

use std::future::Future;
use std::io;

use tokio::net::TcpListener;

pub use config::Config;

/// Serves the hub on `listener` until `shutdown` is ready; then ends every stream, finishes the
/// publishes in flight, and returns within two seconds.
///
/// # Errors
/// If the listener's address can't be told.
pub async fn serve(listener: TcpListener, config: Config, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let journal = journal::Journal::new(config.retention(), config.key_limits());
    let hub = hub::Hub::new(journal, config.page_limit());
    web::serve(listener, hub, config, shutdown).await
}
