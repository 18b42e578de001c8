//! A server under measurement: a process of its own, on a loopback port, ended when dropped.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;

use super::Args;
use super::limits::Limit;
use super::machine::process_times;

/// How long a server may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// The unit of the times in `/proc/PID/stat`: USER_HZ, 100 a second on every Linux of today.
const TICK_US: f64 = 10_000.0;

/// What the hub is run with. In its environment, so that the flags of `--hub` go before it.
const HUB_SETTINGS: [(&str, &str); 5] = [
    ("TABCAST_LOG_LEVEL", "warn"),
    ("TABCAST_MAX_SUBSCRIBERS", "100000"),
    ("TABCAST_MAX_SUBSCRIBERS_PER_ADDRESS", "100000"),
    ("TABCAST_MAX_CONNECTIONS", "100000"),
    // No comment comes in between while ten thousand subscribers connect.
    ("TABCAST_KEEP_ALIVE", "10m"),
];

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Hub,
    Limit(Limit),
    /// The hub, where it is measured with a file beside that.
    HubInMemory,
    /// No server, but what any would have to do: [`limits::file_alone`](super::limits::file_alone).
    FileAlone,
    /// The hub while it replays nothing.
    WithoutReplay,
}

/// Where the server keeps messages.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place<'a> {
    Memory,
    /// In this file.
    File(&'a Path),
    /// In this file, and more of them than by default.
    LargeFile(&'a Path),
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Hub => out.write_str("tabcast"),
            Target::Limit(limit) => out.write_str(limit.text()),
            Target::HubInMemory => out.write_str("tabcast, journal in memory"),
            Target::FileAlone => out.write_str("write + fdatasync alone"),
            Target::WithoutReplay => out.write_str("without one"),
        }
    }
}

/// The process.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// The server, once it accepts connections.
    pub(crate) fn start(target: Target, args: &Args, place: Place<'_>) -> anyhow::Result<Self> {
        let address = free_address()?;
        let mut server = Server::spawn(target, args, address, place)?;
        server.connect()?;
        Ok(server)
    }

    fn spawn(target: Target, args: &Args, address: SocketAddr, place: Place<'_>) -> anyhow::Result<Self> {
        let mut command = match target {
            Target::Hub | Target::HubInMemory | Target::WithoutReplay => hub(args, address, place),
            Target::FileAlone => bail!("there is no server"),
            Target::Limit(limit) => {
                let mut command = Command::new(std::env::current_exe()?);
                let value = limit.to_possible_value().context("every limit has a name")?;
                command.args(["--bench", "--serve", value.get_name(), "--listen", &address.to_string()]);
                if let Place::File(path) | Place::LargeFile(path) = place {
                    command.arg("--file").arg(path);
                }
                // Never written to: its end tells the limit that this process is gone.
                command.stdin(Stdio::piped());
                command
            }
        };
        Server::run(&mut command, address)
    }

    fn run(command: &mut Command, address: SocketAddr) -> anyhow::Result<Self> {
        let child = command.stdout(Stdio::null()).spawn().context("can't start the server")?;
        Ok(Server { child, address })
    }

    /// The first connection it accepts.
    fn connect(&mut self) -> anyhow::Result<TcpStream> {
        let begun = Instant::now();
        loop {
            if let Ok(stream) = TcpStream::connect(self.address) {
                return Ok(stream);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended: {status}");
            }
            ensure!(begun.elapsed() < PATIENCE, "the server does not listen after {PATIENCE:?}");
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// The CPU time it has taken, user and system, in µs.
    pub(crate) fn cpu_us(&self) -> anyhow::Result<f64> {
        let [user, system, ..] = process_times(&self.child.id().to_string())?;
        Ok((user + system) as f64 * TICK_US)
    }

    /// Its resident memory.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<f64> {
        self.status_bytes("VmRSS:")
    }

    /// From now on, [`peak_resident_bytes`](Self::peak_resident_bytes) is since now (proc_pid_clear_refs(5)).
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").context("can't reset the peak of memory")
    }

    /// The most that was resident.
    pub(crate) fn peak_resident_bytes(&self) -> anyhow::Result<f64> {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The hub's command.
fn hub(args: &Args, address: SocketAddr, place: Place<'_>) -> Command {
    let mut command = Command::new(&args.binary);
    command.args(["--listen", &address.to_string()]).args(args.hub.split_whitespace()).stdin(Stdio::null());
    command.envs(HUB_SETTINGS);
    match place {
        Place::Memory => command.env("TABCAST_JOURNAL", "memory"),
        Place::File(path) => command.env("TABCAST_JOURNAL", path),
        Place::LargeFile(path) => {
            let retention = [("TABCAST_RETENTION_MESSAGES", "2000000"), ("TABCAST_RETENTION_BYTES", "4GiB")];
            command.env("TABCAST_JOURNAL", path).envs(retention)
        }
    };
    command
}

/// From starting the hub's process to the first bytes of an answer, in ms. It logs as it usually does.
pub(crate) fn start_time_ms(args: &Args) -> anyhow::Result<f64> {
    let address = free_address()?;
    let mut command = hub(args, address, Place::Memory);
    command.env("TABCAST_LOG_LEVEL", "info").stderr(Stdio::null());
    let (_server, time) = first_answer(&mut command, address)?;
    Ok(time)
}

/// The hub on this file, and the ms from starting its process to the first bytes of an answer.
pub(crate) fn start_on(args: &Args, file: &Path) -> anyhow::Result<(Server, f64)> {
    let address = free_address()?;
    first_answer(&mut hub(args, address, Place::LargeFile(file)), address)
}

fn first_answer(command: &mut Command, address: SocketAddr) -> anyhow::Result<(Server, f64)> {
    let begun = Instant::now();
    let mut server = Server::run(command, address)?;
    let mut stream = server.connect()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /messages HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    let time = begun.elapsed();
    ensure!(answer == *b"HTTP/1.1 200", "the hub answers {:?}", String::from_utf8_lossy(&answer));
    Ok((server, time.as_secs_f64() * 1e3))
}

/// One that is free: the hub tells the port it chooses only in a log that is off here. Below the ports
/// that the kernel hands out, or another process would be given it before the server takes it.
fn free_address() -> anyhow::Result<SocketAddr> {
    const TRIES: usize = 100;
    let mut addresses = (0..TRIES).map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(20_000..32_000))));
    addresses.find(|address| TcpListener::bind(address).is_ok()).context("no port is free")
}
