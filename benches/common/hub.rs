//! The hub under measurement: which binary, and the command that runs it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The settings it is run with. They are in its environment, so that the flags of `--hub` win.
const SETTINGS: [(&str, &str); 8] = [
    ("TABCAST_MAX_SUBSCRIBERS", "100000"),
    ("TABCAST_MAX_SUBSCRIBERS_PER_ADDRESS", "100000"),
    ("TABCAST_MAX_CONNECTIONS", "16000"),
    // No keep-alive is sent while ten thousand subscribers connect.
    ("TABCAST_KEEP_ALIVE", "10m"),
    // A publisher may wait long until all subscribers have its last message.
    ("TABCAST_HEADER_TIMEOUT", "10m"),
    // A message costs its line in the log, whatever their number.
    ("TABCAST_LOG_RATE", "0"),
    // All of the load is one caller's.
    ("TABCAST_PUBLISH_RATE", "0"),
    ("TABCAST_CONNECT_RATE", "0"),
];

/// Which hub, by the arguments.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Hub {
    /// More flags for the hub, separated by spaces
    #[arg(long = "hub", value_name = "FLAGS", allow_hyphen_values = true, default_value = "")]
    pub(crate) flags: String,
    /// Another hub
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_tabcast"))]
    pub(crate) binary: PathBuf,
}

/// Where a server keeps messages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    Memory,
    /// In this file.
    File(&'a Path),
    /// More messages than by default, in memory or in this file.
    LargeMemory,
    LargeFile(&'a Path),
}

impl Hub {
    /// The command that starts it. It logs as it does by default, but any number of lines.
    pub(crate) fn command(&self, address: SocketAddr, place: Place<'_>) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(["--listen", &address.to_string()])
            .args(self.flags.split_whitespace())
            .stdin(Stdio::null());
        command.envs(SETTINGS);
        match place {
            Place::Memory | Place::LargeMemory => command.env("TABCAST_JOURNAL", "memory"),
            Place::File(path) | Place::LargeFile(path) => command.env("TABCAST_JOURNAL", path),
        };
        if matches!(place, Place::LargeMemory | Place::LargeFile(_)) {
            command.envs([("TABCAST_RETENTION_MESSAGES", "2000000"), ("TABCAST_RETENTION_BYTES", "4GiB")]);
        }
        command
    }
}
