//! A server under measurement: a process of its own, on a loopback port, ended when dropped.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
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

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Hub,
    Limit(Limit),
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Hub => out.write_str("tabcast"),
            Target::Limit(limit) => out.write_str(limit.text()),
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
    pub(crate) fn start(target: Target, args: &Args) -> anyhow::Result<Self> {
        let address = free_address()?;
        let mut server = Server::spawn(target, args, address)?;
        server.connect()?;
        Ok(server)
    }

    fn spawn(target: Target, args: &Args, address: SocketAddr) -> anyhow::Result<Self> {
        let mut command = match target {
            Target::Hub => hub(args, address),
            Target::Limit(limit) => {
                let mut command = Command::new(std::env::current_exe()?);
                let value = limit.to_possible_value().context("every limit has a name")?;
                command.args(["--bench", "--serve", value.get_name(), "--listen", &address.to_string()]);
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
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
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
fn hub(args: &Args, address: SocketAddr) -> Command {
    let mut command = Command::new(&args.binary);
    command.args(["--listen", &address.to_string()]).args(args.hub.split_whitespace()).stdin(Stdio::null());
    command.envs(HUB_SETTINGS);
    command
}

/// From starting the hub's process to the first bytes of an answer, in ms. It logs as it usually does.
pub(crate) fn start_time_ms(args: &Args) -> anyhow::Result<f64> {
    let address = free_address()?;
    let begun = Instant::now();
    let mut command = hub(args, address);
    command.env("TABCAST_LOG_LEVEL", "info").stderr(Stdio::null());
    let mut server = Server::run(&mut command, address)?;
    let mut stream = server.connect()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET /messages HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    let time = begun.elapsed();
    ensure!(answer == *b"HTTP/1.1 200", "the hub answers {:?}", String::from_utf8_lossy(&answer));
    Ok(time.as_secs_f64() * 1e3)
}

/// One that is free: the hub tells the port it chooses only in a log that is off here. Below the ports
/// that the kernel hands out, or another process would be given it before the server takes it.
fn free_address() -> anyhow::Result<SocketAddr> {
    const TRIES: usize = 100;
    let mut addresses = (0..TRIES).map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(20_000..32_000))));
    addresses.find(|address| TcpListener::bind(address).is_ok()).context("no port is free")
}
