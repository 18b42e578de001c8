//! Where to listen: addresses and ports, and Unix sockets.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tabcast::Listener;
use tokio::net::{TcpSocket, UnixSocket};

/// The connections that the kernel holds until they are accepted. All tabs of a restarted hub reconnect
/// within seconds. Lower: a full backlog delays a tab by a second or more. Higher: Linux caps the backlog at
/// 4,096 by default.
const BACKLOG: u32 = 4096;

/// One place to listen.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    /// The address and port, unless it is a path.
    pub(super) fn inet(&self) -> Option<SocketAddr> {
        match self {
            Address::Tcp(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }
}

/// Parses an address and port, or `unix:` and a path.
pub(super) fn address(text: &str) -> Result<Address, String> {
    let text = text.trim();
    match text.strip_prefix("unix:") {
        Some("") => return Err("has no path; give it as in unix:/run/tabcast.sock".to_owned()),
        Some(path) => return Ok(Address::Unix(path.into())),
        None => {}
    }
    let mut addresses = text
        .to_socket_addrs()
        .map_err(|error| format!("{error}; give it as in 127.0.0.1:3000, or as in unix:/run/tabcast.sock"))?;
    addresses.next().map(Address::Tcp).ok_or_else(|| "has no address".to_owned())
}

/// Parses the permissions of a file, in octal.
pub(super) fn mode(text: &str) -> Result<u32, &'static str> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or("give it as in 0660, in octal")
}

/// A Unix socket's file, which is removed when this is dropped, unless another is in its place.
pub(super) struct SocketFile {
    path: PathBuf,
    /// The device and the number of the file.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Binds each of the addresses. The files of Unix sockets have this mode.
///
/// # Errors
/// Which address can't be listened on, and why.
pub(super) fn bind(addresses: &[Address], mode: u32) -> anyhow::Result<(Vec<Listener>, Vec<SocketFile>)> {
    let (mut listeners, mut files) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            Address::Tcp(address) => listeners.push(tcp(*address).with_context(|| {
                format!("can't listen on {address}; choose another address or port with --listen")
            })?),
            Address::Unix(path) => {
                let (listener, file) = unix(path, mode).with_context(|| {
                    format!("can't listen on unix:{}; choose another path with --listen", path.display())
                })?;
                listeners.push(listener);
                files.push(file);
            }
        }
    }
    Ok((listeners, files))
}

fn tcp(address: SocketAddr) -> io::Result<Listener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted hub can bind its port again while old connections linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG).map(Listener::from)
}

fn unix(path: &Path, mode: u32) -> io::Result<(Listener, SocketFile)> {
    remove_stale(path)?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let file = SocketFile { path: path.to_owned(), identity: identity(path)? };
    // Before `listen`: until then, nobody can connect.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok((socket.listen(BACKLOG)?.into(), file))
}

/// Removes the file of a Unix socket that nobody listens on any more.
///
/// # Errors
/// If the file is in use, or is no socket's.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(io::Error::other("there is a file that is no socket"));
        }
        file => file?,
    };
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(error) => Err(error),
        Ok(_) => Err(ErrorKind::AddrInUse.into()),
    }
}
