//! tabcast: a live message hub. A message that is POSTed is sent to every subscriber at once, in order and
//! once. No acknowledged message is ever lost.
//!
//! ```text
//! POST /messages → parse → hub.publish → journal.append (gives the id; acknowledged once stored)
//!                                        committed messages → live feeds → groups → sockets
//! GET /events    → parse → hub.subscribe(channels, start) → a subscriber → delivery
//! ```
//!
//! # Layout
//! Each file defines one noun. Each module uses only those below it, and `value`, which parses settings.
//! - [`options`]: every setting, and where its value is read from.
//! - `running`: a hub that serves, as far as it follows new settings.
//! - `net`: accepts and serves connections, and hands those that become streams to `delivery`.
//! - `api`: responds to requests.
//! - `delivery`: sends subscribers their streams.
//! - [`hub`]: publish, subscribe, history.
//! - [`journal`]: the record of published messages, in memory or in a file.
//! - [`frame`]: a message's bytes on the wire.
//! - [`message`]: a message and its parts, parsed once and valid from then on.
//! - [`auth`]: who asks, and what it may do.
//! - `fetch`: gets what a URL of the settings has.
//! - [`limits`]: how much there may be, in all and from one address.
//! - [`log`]: the log on stderr.
//!
//! `docs/architecture.md` has a sentence for each file, and the way of a message and of a subscriber.
//!
//! # Embedding
//! ```
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tabcast::{Options, Server, journal::Place};
//!
//! let mut options = Options::default();
//! options.journal.journal = Place::Memory;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! println!("http://{}", listener.local_addr()?);
//! let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
//! let serving = tokio::spawn(Server::new(options).serve([listener], async {
//!     let _ = stopped.await;
//! }));
//! // … until it is time to stop:
//! drop(stop);
//! serving.await??;
//! # Ok(())
//! # }
//! # tokio::runtime::Runtime::new().unwrap().block_on(example()).unwrap();
//! ```

#![warn(clippy::unwrap_used)]

mod api;
pub mod auth;
mod delivery;
mod fetch;
pub mod frame;
pub mod hub;
pub mod journal;
pub mod limits;
pub mod log;
pub mod message;
mod net;
pub mod options;
mod running;
mod value;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use running::{File, Running};

pub use net::Listener;
pub use options::Options;

/// A hub that serves HTTP.
#[derive(Debug)]
pub struct Server {
    options: Options,
    reloader: Reloader,
    reloads: mpsc::Receiver<Reload>,
}

/// Gives a hub new settings while it serves. Clones are for the same hub.
#[derive(Clone, Debug)]
pub struct Reloader(mpsc::Sender<Reload>);

/// New settings, and who is answered once they are in force.
type Reload = (Box<Options>, oneshot::Sender<Result<(), ServeError>>);

impl Reloader {
    /// Has the hub go by these settings from now on, and read the files that they name again. A setting that
    /// can't change while the hub serves is passed over: see [`options::can_change`].
    ///
    /// # Errors
    /// [`ServeError`]: all of the old settings stay.
    pub async fn reload(&self, options: Options) -> Result<(), ServeError> {
        let (answer, answered) = oneshot::channel();
        // Fails if the hub stops. The answer then is that it has.
        let _ = self.0.send((Box::new(options), answer)).await;
        answered.await.unwrap_or(Err(ServeError::Stopped))
    }
}

/// Why the hub could not serve, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The journal can't be opened.
    #[error("can't open the journal {place}: {error}")]
    Open {
        /// The journal's place.
        place: journal::Place,
        /// Why the journal can't be opened.
        error: journal::OpenError,
    },
    /// The journal failed while the hub served. Every acknowledged message is stored.
    #[error(transparent)]
    Journal(journal::Failure),
    /// A listener's address can't be read.
    #[error("can't tell the address: {0}")]
    Address(io::Error),
    /// A file of keys or tokens can't be used.
    #[error(transparent)]
    Auth(#[from] auth::InvalidFile),
    /// The folder of `--public` can't be read.
    #[error("can't serve the folder {}: {error}", folder.display())]
    Public {
        /// The folder.
        folder: std::path::PathBuf,
        /// Why it can't be read.
        error: io::Error,
    },
    /// Others than this machine could do everything.
    #[error(
        "{0} can be reached from other machines, and nothing says who may do what: give --keys, --tokens, \
         --jwks-url, --auth-url, or --anonymous with what everybody may do, as in --anonymous \
         'subscribe=public.>', or --anonymous all for everything"
    )]
    Unguarded(SocketAddr),
    /// New settings don't go together, or with those that can't change.
    #[error("{0}")]
    Settings(&'static str),
    /// The hub does not serve any more.
    #[error("the hub has stopped")]
    Stopped,
}

impl Server {
    /// Checks that with these settings, and such listeners, no other machine can do everything, unless that
    /// was said.
    ///
    /// # Errors
    /// [`ServeError::Unguarded`].
    pub fn check_access(options: &auth::Options, listening: &[SocketAddr]) -> Result<(), ServeError> {
        let is_beyond = |address: &&SocketAddr| !address.ip().to_canonical().is_loopback();
        match listening.iter().find(is_beyond).filter(|_| options.is_open()) {
            Some(address) => Err(ServeError::Unguarded(*address)),
            None => Ok(()),
        }
    }

    /// A server with these settings, which must have passed [`Options::check`].
    pub fn new(options: Options) -> Self {
        let (sender, reloads) = mpsc::channel(1);
        Server { options, reloader: Reloader(sender), reloads }
    }

    /// What gives the hub new settings once it serves.
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Serves on `listeners`, of TCP and Unix sockets, until `shutdown` is ready. Then ends every stream,
    /// finishes the publishes in flight, closes the journal, and returns, all within two seconds.
    ///
    /// # Errors
    /// [`ServeError`] if the journal can't be opened or fails, or a listener's address can't be read.
    pub async fn serve(
        self,
        listeners: impl IntoIterator<Item = impl Into<Listener>>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let Server { options: given, reloader: _, mut reloads } = self;
        let per_address = given.max_connections_per_address();
        let Options { auth, journal, api, hub, delivery, limits, net } = given.clone();
        // Looked at before they are read: a change from here on is found.
        let files = File::look_at_all(&given);
        let auth = auth::Auth::new(&auth)?;
        let auth = Arc::new(match journal.journal.beside("-revoked") {
            Some(path) => auth.with_revoked(path)?,
            None => auth,
        });
        let public = api.public.as_deref().map(|folder| {
            api::Public::open(folder).map_err(|error| ServeError::Public { folder: folder.to_owned(), error })
        });
        let public = public.transpose()?.map(Arc::new);
        let (heads, bodies, reads) = limits.shares();
        let bodies = Arc::new(api::Bodies::new(bodies, per_address));
        let listeners: Vec<Listener> = listeners.into_iter().map(Into::into).collect();
        let listening = listeners.iter().filter_map(|listener| listener.address().transpose());
        let listening: io::Result<Arc<[SocketAddr]>> = listening.collect();
        let listening = listening.map_err(ServeError::Address)?;
        Server::check_access(&given.auth, &listening)?;
        let opened = journal.open(&reads);
        let (journal, committed) =
            opened.map_err(|error| ServeError::Open { place: journal.journal.clone(), error })?;
        let [publish_rates, connect_rates] = limits.rates();
        let (replay_page, keep_alive) = (hub.replay_page, delivery.keep_alive);
        let (hub, appending) = hub::Hub::new(journal, committed, &hub, reads);
        let (mut failure, feeds) = (hub.failure(), hub.feeds());
        for listener in &listeners {
            tracing::info!(version = env!("CARGO_PKG_VERSION"), "listening on {listener}");
        }
        auth.begin();
        let api = Arc::new(api::Api::new(api::State {
            options: api,
            streams: delivery,
            replay_page,
            auth: Arc::clone(&auth),
            hub: hub.clone(),
            listening: Arc::clone(&listening),
            bodies: Arc::clone(&bodies),
            trusted: limits.trust_proxy.clone(),
            public,
            publishing: publish_rates,
            connecting: connect_rates,
        }));
        let connections = Arc::new(limits::Shares::new("connections", usize::MAX, per_address));
        let limits = net::Limits { shares: Arc::clone(&connections), trusted: limits.trust_proxy, heads };
        let running =
            Running { options: given, auth, api: Arc::clone(&api), hub, bodies, connections, files };
        let stop = async {
            tokio::select! {
                () = shutdown => {}
                _ = failure.wait_for(Option::is_some) => {}
            }
        };
        tokio::select! {
            () = net::serve(listeners, api, feeds, keep_alive, net, limits, stop) => {}
            () = follow(running, &mut reloads, &listening) => {}
        }
        // The end of the hub's task closes the journal. A panic of the task was reported when it happened.
        let _ = appending.await;
        // The journal may have failed since `stop`, while publishes in flight were finished.
        let failure = failure.borrow().clone();
        failure.map_or(Ok(()), |failure| Err(ServeError::Journal(failure)))
    }
}

/// Has the hub go by new settings, and by its files where these change. Never returns.
async fn follow(mut running: Running, reloads: &mut mpsc::Receiver<Reload>, listening: &[SocketAddr]) {
    loop {
        tokio::select! {
            Some((options, answer)) = reloads.recv() => {
                let _ = answer.send(change(&mut running, &options, listening).await);
            }
            () = running.files_change() => running.read_again().await,
        }
    }
}

async fn change(running: &mut Running, new: &Options, listening: &[SocketAddr]) -> Result<(), ServeError> {
    let options = running.options.changed_to(new);
    options.check().map_err(ServeError::Settings)?;
    Server::check_access(&options.auth, listening)?;
    Ok(running.change_to(options).await?)
}
