//! Starts the hub: flags, logging, signals.

#![warn(clippy::unwrap_used)]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use tabcast::{Config, ServeError, log};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let config = Config::from_process();
    let log = match log::to_stderr(config.log_level) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("tabcast: can't log: {error}");
            return ExitCode::FAILURE;
        }
    };
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.say(&format!("tabcast: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Descriptors that are no connections: the journal's, the runtime's, the standard streams.
const OTHER_DESCRIPTORS: u64 = 64;

#[tokio::main]
async fn run(mut config: Config) -> anyhow::Result<()> {
    // A subscriber is a descriptor; the usual soft limit of 1,024 is there for select(2).
    let descriptors =
        rlimit::increase_nofile_limit(u64::MAX).context("can't tell the limit of open files")?;
    let most = usize::try_from(descriptors.saturating_sub(OTHER_DESCRIPTORS)).unwrap_or(usize::MAX).max(1);
    if config.max_connections > most {
        tracing::warn!(max_connections = most, "as many connections as there may be open files (ulimit -Hn)");
        config.max_connections = most;
    }
    let shutdown = stopped().context("can't listen for signals")?;
    let listener = listen(config.listen)?;
    tabcast::serve(listener, config, shutdown).await.map_err(|error| match error {
        ServeError::Open { .. } => {
            anyhow!("{error}; choose another with --journal, or none with --journal memory")
        }
        error => error.into(),
    })
}

fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    /// Connections the kernel holds until they are accepted: all tabs of a hub that restarts come
    /// back within seconds, and a full backlog costs each of them a second or more.
    const BACKLOG: u32 = 4096;
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A hub that restarts takes its port back while its old connections linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().with_context(|| format!("can't listen on {address}; choose another address or port with --listen"))
}

/// Ready at the first SIGINT or SIGTERM. A second one ends the process at once.
fn stopped() -> io::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut next = async move || {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
        }
    };
    Ok(async move {
        // Not inside the macro, which does not even wait if the level is off.
        let signal = next().await;
        tracing::info!(signal, "stopping");
        tokio::spawn(async move {
            next().await;
            std::process::exit(1);
        });
    })
}
