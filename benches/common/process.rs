//! A server under measurement: a process of its own, on a loopback port, ended when dropped.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::machine::process_times;

/// How long a server may take to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The process.
pub(crate) struct Process {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Process {
    /// The server that `command` starts, before it accepts connections at `address`.
    pub(crate) fn spawn(mut command: Command, address: SocketAddr) -> anyhow::Result<Self> {
        let child = command.stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("can't start {}", command.get_program().display()))?;
        Ok(Process { child, address })
    }

    /// The first connection it accepts.
    pub(crate) fn connect(&mut self) -> anyhow::Result<TcpStream> {
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

    /// Waits until it answers a request for this path, and takes the first bytes of the answer.
    pub(crate) fn await_answer(&mut self, path: &str) -> anyhow::Result<()> {
        let mut stream = self.connect()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.address)?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer)?;
        ensure!(answer == *b"HTTP/1.1 200", "the hub answers {:?}", String::from_utf8_lossy(&answer));
        Ok(())
    }

    /// The CPU time so far, user and system together, in µs.
    pub(crate) fn cpu_us(&self) -> anyhow::Result<f64> {
        let [user, system] = self.user_and_system_us()?;
        Ok(user + system)
    }

    pub(crate) fn user_and_system_us(&self) -> anyhow::Result<[f64; 2]> {
        let [user, system, ..] = process_times(&self.child.id().to_string())?;
        Ok([user, system])
    }

    /// Resident memory, summed over the mappings: `VmRSS` may be wrong by hundreds of KiB
    /// (proc_pid_status(5)).
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<f64> {
        self.kib("smaps_rollup", "Rss:")
    }

    /// The resident memory that is in no file.
    pub(crate) fn anonymous_bytes(&self) -> anyhow::Result<f64> {
        self.kib("smaps_rollup", "Anonymous:")
    }

    /// Starts [`peak_resident_bytes`](Self::peak_resident_bytes) anew (proc_pid_clear_refs(5)).
    pub(crate) fn forget_peak(&self) -> anyhow::Result<()> {
        fs::write(self.file("clear_refs"), "5").context("can't reset the peak of memory")
    }

    /// The most resident memory since the start, or since [`forget_peak`](Self::forget_peak).
    pub(crate) fn peak_resident_bytes(&self) -> anyhow::Result<f64> {
        self.kib("status", "VmHWM:")
    }

    /// How many descriptors are open.
    pub(crate) fn descriptors(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(self.file("fd"))?.count())
    }

    fn kib(&self, file: &str, name: &str) -> anyhow::Result<f64> {
        let text = fs::read_to_string(self.file(file))?;
        let line =
            text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024.0)
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A free address: of a port that it chooses itself, the hub speaks only in its log. It is below the ports
/// that the kernel gives out, which another process could get before the server takes it.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    const TRIES: usize = 100;
    let mut addresses =
        (0..TRIES).map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(20_000..32_000))));
    addresses.find(|address| TcpListener::bind(address).is_ok()).context("no port is free")
}
