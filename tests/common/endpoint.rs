//! An HTTP server of the test's own, which a hub asks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::{Folder, PATIENCE};

/// A request as it came: its first line, and its headers with their names in lower case.
#[derive(Clone, Debug)]
pub struct Asked {
    pub line: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

/// Answers every request by a function, until it is dropped.
pub struct Endpoint {
    pub address: SocketAddr,
    state: Arc<State>,
}

type Answer = dyn Fn(&Asked) -> Vec<u8> + Send + Sync;

struct State {
    answer: Box<Answer>,
    tls: Option<Arc<ServerConfig>>,
    asked: Mutex<Vec<Asked>>,
    grown: Condvar,
    connections: AtomicUsize,
    is_over: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Endpoint {
    /// An endpoint that answers so. An empty answer closes the connection.
    pub fn start(answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> Endpoint {
        Endpoint::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), None, answer)
    }

    /// The same at this address, and with TLS if there is a certificate.
    pub fn start_at(
        address: SocketAddr,
        certificate: Option<&Certificate>,
        answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static,
    ) -> Endpoint {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            answer: Box::new(answer),
            tls: certificate.map(Certificate::config),
            asked: Mutex::default(),
            grown: Condvar::new(),
            connections: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let accepting = Arc::clone(&state);
        std::thread::spawn(move || {
            for connection in listener.incoming().map_while(Result::ok) {
                if accepting.is_over.load(Ordering::SeqCst) {
                    break;
                }
                accepting.connections.fetch_add(1, Ordering::SeqCst);
                accepting.open.lock().unwrap().push(connection.try_clone().unwrap());
                let state = Arc::clone(&accepting);
                std::thread::spawn(move || state.serve_connection(connection));
            }
        });
        Endpoint { address, state }
    }

    /// Its address as an URL, with this path.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.state.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.address)
    }

    /// The requests so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// How many requests there were so far.
    pub fn count(&self) -> usize {
        self.state.asked.lock().unwrap().len()
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Waits until there were so many requests.
    pub fn wait_for(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        let mut asked = self.state.asked.lock().unwrap();
        while asked.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} requests", asked.len());
            asked = self.state.grown.wait_timeout(asked, left).unwrap().0;
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::SeqCst);
        // The thread that accepts goes, and its listener with it.
        let _ = TcpStream::connect(self.address).map(|mut last| last.read(&mut [0]));
        for connection in &*self.state.open.lock().unwrap() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl State {
    fn serve_connection(&self, connection: TcpStream) {
        let end = connection.try_clone().unwrap();
        match &self.tls {
            None => self.serve(connection),
            Some(tls) => {
                let tls = ServerConnection::new(Arc::clone(tls)).unwrap();
                self.serve(StreamOwned::new(tls, connection));
            }
        }
        let _ = end.shutdown(Shutdown::Both);
    }

    fn serve(&self, stream: impl Read + Write) {
        let mut reader = BufReader::new(stream);
        while let Some(asked) = read_head(&mut reader) {
            self.asked.lock().unwrap().push(asked.clone());
            self.grown.notify_all();
            let answer = (self.answer)(&asked);
            if answer.is_empty() || reader.get_mut().write_all(&answer).is_err() {
                break;
            }
            let _ = reader.get_mut().flush();
        }
    }
}

fn read_head(reader: &mut impl BufRead) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.strip_suffix("\r\n")? {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let headers = lines[1..].iter().map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Some(Asked { line: lines.remove(0), headers })
}

/// The bytes of a response with these headers, each as in "Name: value".
pub fn response(status: u16, headers: &[&str], body: &str) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} Status\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|header| head += &format!("{header}\r\n"));
    format!("{head}\r\n{body}").into_bytes()
}

/// A gate that is closed until it is opened.
#[derive(Default)]
pub struct Gate(Mutex<bool>, Condvar);

impl Gate {
    pub fn open(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    /// Waits until it is open.
    pub fn pass(&self) {
        let is_open = self.0.lock().unwrap();
        drop(self.1.wait_timeout_while(is_open, PATIENCE, |is_open| !*is_open).unwrap());
    }
}

/// A certificate for 127.0.0.1 that vouches for itself.
pub struct Certificate {
    folder: Folder,
}

impl Certificate {
    pub fn new() -> Certificate {
        let certificate = Certificate { folder: Folder::new() };
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args(["-days", "1", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", &certificate.folder.file("key.pem"), "-out", &certificate.file()])
            .output()
            .expect("openssl makes the certificate");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        certificate
    }

    /// The path of its file, by which others can know it.
    pub fn file(&self) -> String {
        self.folder.file("certificate.pem")
    }

    fn config(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = vec![CertificateDer::from_pem_file(self.file()).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.folder.file("key.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Arc::new(config.unwrap().with_no_client_auth().with_single_cert(chain, key).unwrap())
    }
}
