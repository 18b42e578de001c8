//! A listener: where connections are accepted.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, UnixListener};

use crate::delivery::Wire;
use crate::limits::Peer;

/// A bound socket on which the hub is to serve.
#[derive(Debug)]
pub enum Listener {
    /// An address and a port.
    Tcp(TcpListener),
    /// A Unix socket. Its file is left where it is.
    Unix(UnixListener),
}

impl Listener {
    /// The address it listens at. `None` for a Unix socket.
    pub(crate) fn address(&self) -> io::Result<Option<SocketAddr>> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().map(Some),
            Listener::Unix(_) => Ok(None),
        }
    }

    /// Waits for the next connection.
    pub(super) async fn accept(&self) -> io::Result<(Wire, Peer)> {
        Ok(match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                (Wire::Tcp(stream), address.into())
            }
            Listener::Unix(listener) => (Wire::Unix(listener.accept().await?.0), Peer::Unix),
        })
    }
}

/// As it is logged: a URL, or `unix:` and the path of its file.
impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listener::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "http://{address}"),
                Err(error) => error.fmt(f),
            },
            Listener::Unix(listener) => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                write!(f, "unix:{}", path.unwrap_or("?".as_ref()).display())
            }
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Listener::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Listener::Unix(listener)
    }
}
