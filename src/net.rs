//! The net: accepts connections on every listener, within one limit, and ends them all at shutdown. A
//! connection that sends no request, or reads no response, is cut off.

mod deadline;
mod handover;
mod http1;
mod io;
mod listener;
mod pace;

use std::future::Future;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::Api;
use crate::delivery::{Groups, Place, Socket, Wire};
use crate::hub::Feed;
use crate::limits::{Budget, Full, Network, Peer, Proxies, Share, Shares};
use crate::value::{at_least_one, duration};
use io::Times;

pub use listener::Listener;

/// The settings of every connection.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Options {
    /// The most connections; further ones wait to be accepted
    #[arg(long, value_name = "COUNT", default_value_t = 15_000, value_parser = at_least_one)]
    pub max_connections: usize,

    /// The most connections from one address (of IPv6, one /64); further ones are closed. By default half as
    /// many again as --max-subscribers-per-address, at least 100, and at most three quarters of
    /// --max-connections
    #[arg(long, value_name = "COUNT", value_parser = at_least_one)]
    pub max_connections_per_address: Option<usize>,

    /// How long a request's head may take, from its first byte or from connecting
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub header_timeout: Duration,

    /// How long a connection may stay open between an answer and the next request
    #[arg(long, value_name = "DURATION", default_value = "75s", value_parser = duration)]
    pub idle_timeout: Duration,

    /// How long the other side may take none of what it is sent before it is cut off
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub stall_timeout: Duration,
}

/// The limits of connections, beside [`Options`].
pub(crate) struct Limits {
    /// The connections there may be from one address.
    pub(crate) shares: Arc<Shares>,
    /// Proxies that may have any number of connections: these are of many addresses.
    pub(crate) trusted: Vec<Proxies>,
    /// The memory for long request heads.
    pub(crate) heads: Budget,
}

/// How long connections may take to end at shutdown, before they are cut. Higher: a shutdown may exceed the
/// two seconds promised. Lower: more subscribers are cut in the middle of a message.
const GRACE: Duration = Duration::from_millis(1_500);

/// Accepts connections on all listeners until `shutdown` is ready, then ends all connections. Subscribers
/// hear on `feeds`, and are sent a keep-alive after such a time.
pub(crate) async fn serve(
    listeners: Vec<Listener>,
    api: Arc<Api>,
    feeds: Vec<Feed>,
    keep_alive: Duration,
    options: Options,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let permits = Arc::new(Semaphore::new(options.max_connections.min(Semaphore::MAX_PERMITS)));
    let (open, stopping, overdue) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    let times = (keep_alive, options.stall_timeout);
    let groups = Groups::new(feeds, times, open.clone(), stopping.clone(), overdue.clone());
    let Limits { shares, trusted, heads } = limits;
    let net = Net { api, options, permits, shares, trusted, heads, groups, open, stopping, overdue };
    let net = Arc::new(net);
    let accepting = TaskTracker::new();
    let closing = CancellationToken::new();
    for listener in listeners {
        let (net, closing) = (Arc::clone(&net), closing.clone());
        accepting.spawn(async move {
            tokio::select! {
                biased;
                () = closing.cancelled() => {}
                () = net.accept_all(&listener) => {}
            }
        });
    }
    shutdown.await;
    closing.cancel();
    accepting.close();
    accepting.wait().await;
    net.api.end_streams();
    net.stopping.cancel();
    net.open.close();
    if timeout(GRACE, net.open.wait()).await.is_err() {
        net.overdue.cancel();
        net.open.wait().await;
    }
}

/// The state that all connections share.
struct Net {
    api: Arc<Api>,
    options: Options,
    /// A permit for each connection that `--max-connections` allows.
    permits: Arc<Semaphore>,
    /// The connections there may be from one address.
    shares: Arc<Shares>,
    /// Proxies that may have any number of connections: these are of many addresses.
    trusted: Vec<Proxies>,
    /// The memory for long request heads.
    heads: Budget,
    groups: Arc<Groups>,
    /// The tasks of connections, and of their groups.
    open: TaskTracker,
    /// Cancelled when the hub stops.
    stopping: CancellationToken,
    /// Cancelled when connections have had [`GRACE`] to end since.
    overdue: CancellationToken,
}

impl Net {
    /// Accepts connections, for ever.
    async fn accept_all(self: &Arc<Self>, listener: &Listener) {
        /// The connections that are accepted before other tasks have their turn, of some 50 µs each with
        /// their first request. Higher: where thousands come at once, a publisher waits for all of them.
        /// Lower: connections are accepted more slowly.
        const TURN: usize = 16;
        for accepted in 1_usize.. {
            if accepted.is_multiple_of(TURN) {
                yield_now().await;
            }
            let permit = Arc::clone(&self.permits).acquire_owned().await;
            let permit = permit.expect("the semaphore is never closed");
            let (wire, address) = accept(listener).await;
            let share = match self.share(address) {
                Ok(share) => share,
                // An EventSource that is answered with an error never comes back, but one whose connection
                // is closed does.
                Err(full) => {
                    tracing::warn!(%address, reason = %full, "connection closed");
                    continue;
                }
            };
            if let Err(error) = self.prepare(&wire) {
                tracing::debug!(%address, %error, "connection can't be set up");
                continue;
            }
            self.open.spawn(Arc::clone(self).connection(wire, address, (share, permit)));
        }
    }

    /// The share of a connection from this peer; a trusted proxy needs none.
    fn share(&self, peer: Peer) -> Result<Option<Share>, Full> {
        let is_trusted = self.trusted.iter().any(|proxies| proxies.contains(peer));
        (!is_trusted).then(|| self.shares.take(Network::from(peer))).transpose()
    }

    fn prepare(&self, wire: &Wire) -> std::io::Result<()> {
        let Wire::Tcp(stream) = wire else { return Ok(()) };
        stream.set_nodelay(true)?;
        // Cuts the connection if the network fails, or the other side stops reading: bytes then stay
        // unacknowledged, or unsent.
        #[cfg(target_os = "linux")]
        socket2::SockRef::from(stream).set_tcp_user_timeout(Some(self.options.stall_timeout))?;
        Ok(())
    }

    async fn connection(self: Arc<Self>, wire: Wire, address: Peer, place: Place) {
        let Net { api, options, heads, stopping, overdue, .. } = &*self;
        let times =
            Times { head: options.header_timeout, idle: options.idle_timeout, stall: options.stall_timeout };
        let handed_over = http1::serve(wire, address, api, times, heads, stopping, overdue).await;
        let Some((wire, (delivery, framing))) = handed_over else { return };
        match Socket::new(wire, framing, place) {
            Ok(socket) => self.groups.deliver(socket, *delivery),
            Err(error) => tracing::error!(%address, %error, "a subscriber is lost"),
        }
    }
}

/// Waits for the next connection, and returns its peer as well.
async fn accept(listener: &Listener) -> (Wire, Peer) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // The other side was gone before its connection was accepted.
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                tracing::error!(%error, "can't accept a connection");
                // Most likely out of descriptors. The connection stays in the backlog: without a pause, this
                // loop would spin.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
