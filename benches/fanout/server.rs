//! Which servers are measured, and how each is started.

use std::fmt;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use clap::ValueEnum;

use crate::axums;
use crate::common::files::Folder;
use crate::common::hub::Place;
use crate::common::load::Dialect;
use crate::common::machine::version;
use crate::common::process::{Process, free_address};
use crate::common::serving::{exit_with_stdin, serve_axum};
use crate::limits::{self, Sends};
use crate::setting::{Given, NOT_GIVEN, Setting};

/// In the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Server {
    /// One send of a ready frame for each subscriber and message
    Limit,
    /// The same, but one send for all messages that wait
    Coalescing,
    /// The same, but it waits until a burst is whole
    Whole,
    /// The hub, its journal in memory
    Tabcast,
    /// The hub, its journal in a file
    TabcastFile,
    /// The hub, its journal in memory, its streams in HTTP/1.0: those have no chunks
    TabcastOld,
    /// The hub of --against, its journal in memory
    Against,
    /// The hub of --against, its journal in a file
    AgainstFile,
    /// The tutorial's axum: Sse over tokio's broadcast
    Naive,
    /// An axum handler that only parses a POST
    Bare,
    /// nginx with nchan
    Nchan,
    /// Server-sent events on Node.js alone
    Node,
    /// Socket.IO over WebSocket
    #[value(name = "socket.io")]
    SocketIo,
    /// Mercure, of --mercure
    Mercure,
    /// Centrifugo, of --centrifugo
    Centrifugo,
}

/// nchan, where Debian's package puts it.
const NCHAN: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

/// The script that installs the servers that are missing.
pub(crate) const SETUP: &str = "benches/fanout/peers/setup";

impl fmt::Display for Server {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Server::Limit => "limit: one send each",
            Server::Coalescing => "limit, coalescing",
            Server::Whole => "limit, whole bursts",
            Server::Tabcast => "tabcast",
            Server::TabcastFile => "tabcast, in a file",
            Server::TabcastOld => "tabcast, HTTP/1.0",
            Server::Against => "the other tabcast",
            Server::AgainstFile => "the other, in a file",
            Server::Naive => "naive axum",
            Server::Bare => "bare axum",
            Server::Nchan => "nchan",
            Server::Node => "Node.js SSE",
            Server::SocketIo => "Socket.IO",
            Server::Mercure => "Mercure",
            Server::Centrifugo => "Centrifugo",
        })
    }
}

/// A server that runs, and the folder it needs.
pub(crate) struct Running {
    pub(crate) process: Process,
    _folder: Option<Folder>,
}

impl Server {
    pub(crate) fn dialect(self) -> Dialect {
        match self {
            Server::Nchan => Dialect::Nchan,
            Server::SocketIo => Dialect::SocketIo,
            Server::TabcastOld => Dialect::OldEvents,
            Server::Mercure => Dialect::Mercure,
            Server::Centrifugo => Dialect::Centrifugo,
            _ => Dialect::Events,
        }
    }

    /// Whether it is a hub of this project.
    pub(crate) fn is_hub(self) -> bool {
        matches!(self, Server::Tabcast | Server::TabcastFile | Server::Against | Server::AgainstFile)
    }

    /// Whether it is another server whose subscribers can have different channels.
    pub(crate) fn has_channels(self) -> bool {
        matches!(self, Server::Limit | Server::Mercure | Server::Centrifugo)
    }

    /// Why it can't be measured here; `None` if it can.
    pub(crate) fn missing(self, given: &Given) -> Option<&'static str> {
        match self {
            Server::Against | Server::AgainstFile => given.against.is_none().then_some(NOT_GIVEN),
            Server::Mercure => given.mercure.is_none().then_some(NOT_GIVEN),
            Server::Centrifugo => given.centrifugo.is_none().then_some(NOT_GIVEN),
            Server::Nchan if version("nginx", "-v").is_none() => Some("there is no nginx"),
            Server::Nchan if !Path::new(NCHAN).exists() => Some("nginx has no nchan"),
            Server::Node | Server::SocketIo if version("node", "--version").is_none() => {
                Some("there is no Node.js")
            }
            Server::SocketIo if !peers().join("node_modules/socket.io").exists() => {
                Some("it is not installed")
            }
            _ => None,
        }
    }

    /// The program and its version; `None` if this build brings the server.
    pub(crate) fn version(self, given: &Given) -> Option<String> {
        let of = |path: &Option<PathBuf>, flag| {
            let line = version(path.as_ref()?.to_str()?, flag)?;
            Some(line.split([' ', '=']).find(|word| word.starts_with('v'))?.to_owned())
        };
        let (program, version) = match self {
            Server::Mercure => ("Mercure", of(&given.mercure, "version")?),
            Server::Centrifugo => ("Centrifugo", of(&given.centrifugo, "version")?),
            Server::Nchan => ("nginx", version("nginx", "-v")?.rsplit('/').next()?.to_owned()),
            Server::Node => ("Node.js", version("node", "--version")?.trim_start_matches('v').to_owned()),
            Server::SocketIo => {
                let package = fs::read(peers().join("node_modules/socket.io/package.json")).ok()?;
                let package: serde_json::Value = serde_json::from_slice(&package).ok()?;
                ("Socket.IO", package["version"].as_str()?.to_owned())
            }
            _ => return None,
        };
        Some(format!("{program} {version}"))
    }

    /// The server on its core, once it accepts connections. Its log goes to `/dev/null`.
    pub(crate) fn start(self, setting: &Setting) -> anyhow::Result<Running> {
        let address = free_address()?;
        let needs_folder =
            [Server::TabcastFile, Server::AgainstFile, Server::Nchan, Server::Mercure, Server::Centrifugo];
        let folder = needs_folder.contains(&self).then(Folder::new).transpose()?;
        let mut command = self.command(setting, address, folder.as_ref())?;
        command.stderr(Stdio::null());
        let mut process = setting.cores.on_server(|| Process::spawn(command, address))??;
        process.connect()?;
        Ok(Running { process, _folder: folder })
    }

    fn command(
        self,
        setting: &Setting,
        address: SocketAddr,
        folder: Option<&Folder>,
    ) -> anyhow::Result<Command> {
        let mut command = match (self, folder) {
            (Server::Tabcast | Server::TabcastOld, _) => {
                return Ok(setting.hub.command(address, Place::Memory));
            }
            (Server::TabcastFile, Some(folder)) => {
                return Ok(setting.hub.command(address, Place::File(&folder.journal())));
            }
            (Server::Against, _) => return Ok(setting.other_hub()?.command(address, Place::Memory)),
            (Server::AgainstFile, Some(folder)) => {
                return Ok(setting.other_hub()?.command(address, Place::File(&folder.journal())));
            }
            (Server::Nchan, Some(folder)) => {
                let config = configure(folder, "nginx.conf", include_str!("peers/nchan.conf"), address)?;
                let mut command = Command::new("nginx");
                command.args(["-e", "stderr", "-p"]).arg(folder.path()).arg("-c").arg(config);
                command
            }
            (Server::Mercure, Some(folder)) => {
                let text = include_str!("peers/mercure.Caddyfile");
                let config = configure(folder, "Caddyfile", text, address)?;
                let mut command = Command::new(setting.given.mercure.as_ref().context(NOT_GIVEN)?);
                command.args(["run", "--adapter", "caddyfile", "--config"]).arg(config);
                command.env("XDG_DATA_HOME", folder.path()).env("XDG_CONFIG_HOME", folder.path());
                command
            }
            (Server::Centrifugo, Some(folder)) => {
                let text = include_str!("peers/centrifugo.json");
                let config = configure(folder, "centrifugo.json", text, address)?;
                let mut command = Command::new(setting.given.centrifugo.as_ref().context(NOT_GIVEN)?);
                command.arg("--config").arg(config);
                command
            }
            (Server::Node, _) => node("node.js", address),
            (Server::SocketIo, _) => node("socket.io.js", address),
            _ => {
                let mut command = Command::new(std::env::current_exe()?);
                let value = self.to_possible_value().context("every server has a name")?;
                command.args(["--bench", "--serve", value.get_name(), "--listen", &address.to_string()]);
                // Nothing is written to it. Its end, with this process's, ends the server.
                command.stdin(Stdio::piped());
                return Ok(command);
            }
        };
        command.stdin(Stdio::null());
        Ok(command)
    }

    /// Serves as this server until stdin ends.
    pub(crate) fn serve(self, address: SocketAddr) -> anyhow::Result<()> {
        let serve_axum = |router| {
            exit_with_stdin();
            serve_axum(TcpListener::bind(address)?, router)
        };
        match self {
            Server::Limit => limits::serve(address, Sends::OnePerMessage),
            Server::Coalescing => limits::serve(address, Sends::Coalesced),
            Server::Whole => limits::serve(address, Sends::Whole),
            Server::Naive => serve_axum(axums::naive()),
            Server::Bare => serve_axum(axums::bare()),
            _ => bail!("{self} is another program"),
        }
    }
}

/// Writes a server's configuration, with its folder and address filled in, and returns the path.
fn configure(folder: &Folder, name: &str, text: &str, address: SocketAddr) -> anyhow::Result<PathBuf> {
    let path = folder.path().to_str().context("the build's folder is not UTF-8")?;
    let text = text.replace("FOLDER", path).replace("LISTEN", &address.to_string());
    let config = folder.path().join(name);
    fs::write(&config, text.replace("PORT", &address.port().to_string()))?;
    Ok(config)
}

fn node(program: &str, address: SocketAddr) -> Command {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/fanout/peers").join(program);
    let mut command = Command::new("node");
    command.arg(program).arg(address.ip().to_string()).arg(address.port().to_string());
    command.env("NODE_PATH", peers().join("node_modules"));
    command
}

/// Where [`SETUP`] puts what is not a package of the system.
fn peers() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("../peers")
}
