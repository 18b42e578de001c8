//! The verb that serves the hub: binds, raises the limit of open files, logs, stops at a signal.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Args;
use tabcast::log::{self, Log};
use tabcast::options::{self, Options, Setting, SettingsFile};
use tabcast::{Reloader, ServeError, Server};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;

use super::listen;

/// The settings of the verb.
#[derive(Debug, Args)]
pub(super) struct Settings {
    /// Where to listen; unix:PATH is a Unix socket; repeat it, or separate several by commas. Anything but
    /// loopback lets others in: see --allow-host
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        default_value = "127.0.0.1:3000",
        value_delimiter = ',',
        value_parser = listen::address
    )]
    listen: Vec<listen::Address>,

    /// Who may connect to a Unix socket: the permissions of its file, in octal
    #[arg(long, value_name = "MODE", default_value = "0660", value_parser = listen::mode)]
    unix_mode: u32,

    #[command(flatten)]
    file: SettingsFile,

    #[command(flatten)]
    pub(super) options: Options,

    #[command(flatten, next_help_heading = "Log")]
    log: log::Options,
}

impl Settings {
    /// The addresses to listen at, of those that are no paths.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.listen.iter().filter_map(listen::Address::inet).collect()
    }
}

/// Reads the settings again.
type Reread = fn() -> Result<(Settings, Vec<Setting>), clap::Error>;

/// Serves until a signal comes, or the journal fails.
pub(super) fn run(settings: Settings, all: Vec<Setting>, reread: Reread) -> ExitCode {
    let log = match log::to_stderr(&settings.log) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("tabcast: can't log: {error}");
            return ExitCode::FAILURE;
        }
    };
    /// The threads that read the journal's file, as many as read it at once, and the files of `--public`.
    /// Higher: threads that wait, and each has memory of its own. Lower: reads wait for each other.
    const BLOCKING_THREADS: usize = 4;
    let runtime = Builder::new_multi_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build();
    let served = runtime.context("can't start the threads").and_then(|runtime| {
        let served = runtime.block_on(serve(settings, all, reread, &log));
        // A query of the file may still wait for another program.
        runtime.shutdown_background();
        served
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log.say(&format!("tabcast: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The descriptors that connections can't have: the journal, the runtime and the standard streams need them.
/// Lower: with all connections open, the journal could run out of descriptors. Higher: fewer connections.
const OTHER_DESCRIPTORS: u64 = 64;

async fn serve(settings: Settings, all: Vec<Setting>, reread: Reread, log: &Log) -> anyhow::Result<()> {
    let Settings { listen, unix_mode, mut options, .. } = settings;
    // Each connection needs a descriptor. The usual soft limit of 1,024 is for programs with select(2).
    let descriptors =
        rlimit::increase_nofile_limit(u64::MAX).context("can't tell the limit of open files")?;
    let files = options.api.public.as_ref().map_or(0, |_| options.hub.max_readers as u64);
    let others = OTHER_DESCRIPTORS.saturating_add(files);
    let most = usize::try_from(descriptors.saturating_sub(others)).unwrap_or(usize::MAX).max(1);
    if options.net.max_connections > most {
        tracing::warn!(max_connections = most, "as many connections as there may be open files (ulimit -Hn)");
        options.net.max_connections = most;
    }
    let shutdown = stopped().context("can't listen for signals")?;
    let hangup = signal(SignalKind::hangup()).context("can't listen for signals")?;
    let (listeners, _files) = listen::bind(&listen, unix_mode)?;
    let server = Server::new(options);
    let reloader = server.reloader();
    let served = tokio::select! {
        served = server.serve(listeners, shutdown) => served,
        never = reload_at(hangup, all, reread, reloader, log) => match never {},
    };
    served.map_err(|error| match error {
        ServeError::Open { .. } => {
            anyhow!("{error}; choose another with --journal, or none with --journal memory")
        }
        error => error.into(),
    })
}

/// Reads the settings again at each of these signals, and goes by them: all at once, or not at all. `all` are
/// those in force.
async fn reload_at(
    mut hangup: Signal,
    mut all: Vec<Setting>,
    reread: Reread,
    reloader: Reloader,
    log: &Log,
) -> Infallible {
    loop {
        hangup.recv().await;
        tracing::info!(signal = "SIGHUP", "reading the settings again");
        match reload(reread, &reloader, log).await {
            Ok(new) => all = changed(all, new),
            Err(error) => tracing::error!(%error, "settings not changed, all of the old stay in force"),
        }
    }
}

/// Goes by the settings as they are read now, and returns them.
async fn reload(reread: Reread, reloader: &Reloader, log: &Log) -> anyhow::Result<Vec<Setting>> {
    let (settings, all) = spawn_blocking(reread).await?.map_err(|error| {
        let text = error.to_string();
        anyhow!("{}", text.trim_start_matches("error: ").lines().next().unwrap_or_default())
    })?;
    reloader.reload(settings.options).await?;
    log.filter_by(&settings.log);
    Ok(all)
}

/// Logs how the settings differ, and returns those in force: the old ones where they can't change.
fn changed(old: Vec<Setting>, new: Vec<Setting>) -> Vec<Setting> {
    let pick = |(old, new): (Setting, Setting)| {
        let (name, source) = (&*new.name, &new.source);
        let value = new.value.as_deref().unwrap_or("not set");
        let can_change = options::can_change(name);
        match (old.is_same(&new), can_change) {
            (true, _) => {}
            (false, true) => tracing::info!(name, value, %source, "setting changed"),
            (false, false) => {
                tracing::warn!(name, value, %source, "setting needs a restart, the old value stays");
            }
        }
        if can_change { new } else { old }
    };
    // Both are all the settings that there are, in the same order.
    let all = old.into_iter().zip(new).map(pick).collect();
    tracing::info!("settings are in force");
    all
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
        // Not inside `info!`, which does not evaluate its fields if the level is off.
        let signal = next().await;
        tracing::info!(signal, "stopping");
        tokio::spawn(async move {
            next().await;
            std::process::exit(1);
        });
    })
}
