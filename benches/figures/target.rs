//! What is measured, and how it is started.

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::bail;

use crate::common::hub::{Hub, Place};
use crate::common::process::{Process, free_address};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// With its journal in a file.
    Hub,
    /// Its limit, `limits::serve_append_sync`.
    AppendSync,
    HubInMemory,
    /// No server, but what each has to do: `limits::file_alone`.
    FileAlone,
    /// The hub while it replays nothing.
    WithoutReplay,
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Target::Hub => "tabcast",
            Target::AppendSync => "append + fdatasync",
            Target::HubInMemory => "tabcast, journal in memory",
            Target::FileAlone => "write + fdatasync alone",
            Target::WithoutReplay => "without one",
        })
    }
}

impl Target {
    /// The server with this file as its journal, once it accepts connections. The hub logs warnings only.
    pub(crate) fn start(self, hub: &Hub, journal: &Path) -> anyhow::Result<Process> {
        let address = free_address()?;
        let mut command = match self {
            Target::Hub | Target::WithoutReplay => hub.command(address, Place::File(journal)),
            Target::HubInMemory => hub.command(address, Place::Memory),
            Target::FileAlone => bail!("there is no server"),
            Target::AppendSync => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["--bench", "--serve", &address.to_string(), "--file"]).arg(journal);
                // Nothing is written to it. Its end, with this process's, ends the limit.
                command.stdin(Stdio::piped());
                command
            }
        };
        command.env("TABCAST_LOG_LEVEL", "warn");
        let mut server = Process::spawn(command, address)?;
        server.connect()?;
        Ok(server)
    }
}

/// From starting the hub's process to the first bytes of an answer, in ms.
pub(crate) fn start_time_ms(hub: &Hub) -> anyhow::Result<f64> {
    let (_server, time) = first_answer(hub, Place::Memory)?;
    Ok(time)
}

/// The hub on this file, and the ms from starting its process to the first bytes of an answer.
pub(crate) fn start_on(hub: &Hub, file: &Path) -> anyhow::Result<(Process, f64)> {
    first_answer(hub, Place::LargeFile(file))
}

fn first_answer(hub: &Hub, place: Place<'_>) -> anyhow::Result<(Process, f64)> {
    let address = free_address()?;
    let mut command = hub.command(address, place);
    // The hub logs its lines, at its default level.
    command.stderr(Stdio::null());
    let begun = Instant::now();
    let mut server = Process::spawn(command, address)?;
    server.await_answer("/messages")?;
    Ok((server, begun.elapsed().as_secs_f64() * 1e3))
}
