//! Pages of an origin of their own, which is no hub's: files that a browser is served, and lines that a page
//! prints.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part, as if it were a crate")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

/// A server of files, which also takes what pages print. It lasts as long as the test's process.
pub struct Pages {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    folders: Vec<PathBuf>,
    /// Who is sent what is POSTed to a path.
    printers: Mutex<HashMap<String, Sender<String>>>,
}

impl Pages {
    /// Serves the files of these folders, each at its path within its folder.
    pub fn start(folders: &[&Path]) -> Pages {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let folders = folders.iter().map(|folder| folder.to_path_buf()).collect();
        let shared = Arc::new(Shared { folders, printers: Mutex::default() });
        std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for connection in listener.incoming().map_while(Result::ok) {
                    let shared = Arc::clone(&shared);
                    std::thread::spawn(move || shared.serve(connection));
                }
            }
        });
        Pages { address, shared }
    }

    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A new path, and the bodies that pages POST there.
    pub fn printer(&self) -> (String, Receiver<String>) {
        let mut printers = self.shared.printers.lock().unwrap();
        let (sender, lines) = mpsc::channel();
        let path = format!("/printed/{}", printers.len());
        printers.insert(path.clone(), sender);
        (path, lines)
    }
}

impl Shared {
    /// Answers one request.
    fn serve(&self, mut connection: TcpStream) {
        let mut reader = BufReader::new(&connection);
        let mut lines = reader.by_ref().lines().map_while(Result::ok);
        let Some(request) = lines.next() else { return };
        let headers = lines.take_while(|line| !line.is_empty());
        let length = headers
            .filter_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.last().unwrap_or(0)];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let path = request.split([' ', '?']).nth(1).unwrap_or_default();
        let found = match self.printers.lock().unwrap().get(path) {
            Some(printer) => {
                // Fails once the test has ended.
                let _ = printer.send(String::from_utf8(body).unwrap());
                Some(Vec::new())
            }
            None => {
                let files = self.folders.iter().map(|folder| folder.join(path.trim_start_matches('/')));
                files.filter_map(|file| std::fs::read(file).ok()).next()
            }
        };
        let kind = match path.rsplit_once('.').map(|(_, extension)| extension) {
            Some("html") => "text/html",
            Some("js") => "text/javascript",
            _ => "text/plain",
        };
        let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
        let found = found.unwrap_or_default();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            found.len()
        );
        let _ = connection.write_all(&[head.as_bytes(), &found].concat());
    }
}
