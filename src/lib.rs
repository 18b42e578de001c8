//! tabcast: a live message hub. Whoever POSTs a message has every subscriber see it at once: in
//! order, once, and nothing that was acknowledged is ever lost.
//!
//! ```text
//! POST /messages → parse → hub.publish → journal.append (assigns the id) → live feed
//! GET /events    → parse → hub.subscribe(channels, start) → stream of frames → fan-out → sockets
//! ```
//!
//! # Layout
//! Each file one noun; each module uses only those below it.
//! - [`log`]: what the hub tells whoever runs it.
//! - [`config`]: every setting.
//! - `web`: HTTP: who answers which request, the connections, and the fan-out to those that have become
//!   streams.
//! - [`hub`]: publish, subscribe, and what a subscription is.
//! - [`journal`]: the record of published messages that everything reads from, in memory or a file.
//! - [`frame`]: a message's bytes on the wire.
//! - [`message`]: what a message is made of, parsed once, valid after.
//! - `seeded`: the hub wrong on purpose, for tests alone.

#![warn(clippy::unwrap_used)]

pub mod config;
pub mod frame;
pub mod hub;
pub mod journal;
pub mod log;
pub mod message;
mod seeded;
mod web;

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::net::TcpListener;

pub use config::Config;

/// Why the hub could not serve, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The journal can't be opened.
    #[error("can't open the journal {place}: {error}")]
    Open {
        /// Where it is.
        place: journal::Place,
        /// Why.
        error: journal::OpenError,
    },
    /// The journal failed while the hub served; the text tells how. Nothing was acknowledged that
    /// may not be kept.
    #[error("{0}")]
    Journal(String),
    /// The listener's address can't be told.
    #[error("can't tell the address: {0}")]
    Address(io::Error),
}

/// Serves the hub on `listener` until `shutdown` is ready; then ends every stream, finishes the
/// publishes in flight, and returns within two seconds.
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    listener: TcpListener,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let journal = journal::Journal::open(&config.journal, config.retention(), config.key_limits())
        .map_err(|error| ServeError::Open { place: config.journal.clone(), error })?;
    let hub = hub::Hub::new(journal, config.page_limit());
    let mut failure = None;
    let stop = async {
        tokio::select! {
            () = shutdown => {}
            what = hub.failure() => failure = Some(what),
        }
    };
    web::serve(listener, hub.clone(), config, stop).await.map_err(ServeError::Address)?;
    // It may have failed since, while publishes in flight were finished.
    let failure = match failure {
        None => tokio::time::timeout(Duration::ZERO, hub.failure()).await.ok(),
        some => some,
    };
    failure.map_or(Ok(()), |what| Err(ServeError::Journal(what)))
}
