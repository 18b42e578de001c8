//! What outlasts a hub's process: the journal, the address and the flags.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Hub;

/// A new folder, removed when dropped.
pub struct Folder {
    pub path: PathBuf,
}

impl Folder {
    pub fn new() -> Folder {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("tabcast-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        Folder { path }
    }

    /// The path of a file in it, as a flag takes it.
    pub fn file(&self, name: &str) -> String {
        self.path.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// Where one hub is started after another, each on the same address and with the same flags.
pub struct Site {
    pub folder: Folder,
    pub address: SocketAddr,
    /// The program that its hubs run.
    pub binary: PathBuf,
    flags: Vec<String>,
}

impl Site {
    /// A site whose hubs store messages in one file, unless the flags name a journal.
    pub fn new(flags: &[&str]) -> Site {
        // Below the ports that the kernel gives to outgoing connections: one of those, retried while
        // no hub listens, could take the hub's port, or even connect to itself. Above 10080, the last port
        // that browsers block.
        let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let port = std::iter::repeat_with(|| fastrand::u16(10_081..32_768)).find(is_free).unwrap();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Site { folder: Folder::new(), address, binary: env!("CARGO_BIN_EXE_tabcast").into(), flags }
    }

    /// The path of the file in which its hubs store messages.
    pub fn journal(&self) -> String {
        self.folder.file("tabcast.db")
    }

    /// The command that runs its hub, behind the words of `prefix`.
    pub fn command(&self, prefix: &[&str]) -> Command {
        let mut words = prefix.iter().copied().chain([self.binary.to_str().unwrap()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).args(["--listen", &self.address.to_string()]).args(&self.flags);
        if !self.flags.iter().any(|flag| flag == "--journal") {
            command.args(["--journal", &self.journal()]);
        }
        command
    }

    /// Its next hub, once that listens.
    pub fn start(&self) -> Hub {
        self.start_with(&[])
    }

    /// The same with these flags besides.
    pub fn start_with(&self, flags: &[&str]) -> Hub {
        Hub::start_with(self.command(&[]).args(flags))
    }

    /// Ends its hub by this signal, and starts the next.
    pub fn restart(&self, hub: Hub, signal: &str) -> Hub {
        self.restart_with(hub, signal, &[])
    }

    /// The same, the next one with these flags besides.
    pub fn restart_with(&self, mut hub: Hub, signal: &str, flags: &[&str]) -> Hub {
        hub.end(signal);
        self.start_with(flags)
    }
}
