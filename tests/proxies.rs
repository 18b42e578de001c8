//! The proxies of docs/operations.md, configured as it says there: over TLS and HTTP/2, a stream's events
//! come at once, a stream that was cut goes on after its last event, and the hub knows who asks.
//!
//! `tests/run` installs the proxies. Each runs in a folder of its own, and its configuration is the
//! document's but for the ports and the paths of the certificate.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Folder, Hub, PATIENCE, Site};

/// The name of the site in the document.
const NAME: &str = "chat.example.org";

/// From where curl asks: not the address that the proxy asks the hub from.
const CALLER: &str = "127.0.0.77";

/// A hub's flags, as the document has them. No keep-alive is to push out an event that waits somewhere.
const FLAGS: [&str; 6] = ["--allow-host", NAME, "--trust-proxy", "127.0.0.1", "--keep-alive", "10m"];

#[test]
fn nginx_passes_streams_on_as_the_document_has_it() {
    let [site, under_a_path] = &configurations("nginx")[..] else { panic!("two for nginx") };
    // The second is a location of the server in the first.
    let end = site.rfind('}').unwrap();
    let site = [&site[..end], under_a_path, "}\n"].concat();
    let around = "user root;\npid PID;\nerror_log stderr;\nevents {}\nhttp {\naccess_log off;\n";
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path FOLDER;\n"));
    let configuration =
        [around, &paths.concat(), &site, "}\n"].concat().replace("listen 443", "listen ADDRESS");
    let arguments = ["-g", "daemon off;", "-p", "FOLDER", "-c", "FILE"];
    let proxy = Proxy::start("nginx", &configuration, &arguments);
    proxy.try_all("");
    proxy.try_all("/hub");

    // Without these lines, which many leave out, nginx asks in HTTP/1.0.
    let is_left_out = |line: &&str| line.contains("proxy_http_version") || line.contains("Connection");
    let lines = configuration.lines().filter(|line| !is_left_out(line)).map(|line| format!("{line}\n"));
    Proxy::start("nginx", &lines.collect::<String>(), &arguments).try_all("");
}

#[test]
fn caddy_passes_streams_on_as_the_document_has_it() {
    let [site] = &configurations("caddyfile")[..] else { panic!("one for Caddy") };
    // Its certificates are of an authority of its own: no other is asked for one.
    let around = "{\nadmin off\nhttps_port PORT\nauto_https disable_redirects\nlocal_certs\n\
                  skip_install_trust\ndefault_bind 127.0.0.1\nstorage file_system FOLDER\n}\n";
    let configuration = [around, site].concat();
    let proxy = Proxy::start("caddy", &configuration, &["run", "--adapter", "caddyfile", "--config", "FILE"]);
    proxy.try_all("");
}

#[test]
fn haproxy_passes_streams_on_as_the_document_has_it() {
    let [site] = &configurations("haproxy")[..] else { panic!("one for HAProxy") };
    let configuration = site.replace("bind :443", "bind ADDRESS");
    let proxy = Proxy::start("haproxy", &configuration, &["-db", "-q", "-f", "FILE"]);
    proxy.try_all("");
}

#[test]
fn apache_passes_streams_on_as_the_document_has_it() {
    let [site] = &configurations("apache")[..] else { panic!("one for Apache") };
    let modules = ["mpm_event", "authz_core", "ssl", "http2", "proxy", "proxy_http"];
    let modules =
        modules.map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"));
    let around = "ServerName localhost\nUser www-data\nGroup www-data\nPidFile PID\nErrorLog /dev/stderr\n\
                  DefaultRuntimeDir FOLDER\nListen ADDRESS\n";
    let configuration = [&modules.concat(), around, site].concat().replace("*:443", "ADDRESS");
    let proxy = Proxy::start("apache2", &configuration, &["-DFOREGROUND", "-f", "FILE"]);
    proxy.try_all("");
}

/// The configurations in this language that are in docs/operations.md.
fn configurations(language: &str) -> Vec<String> {
    let document = include_str!("../docs/operations.md");
    let fence = format!("```{language}\n");
    let blocks = document.split(&fence).skip(1);
    blocks.map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

/// A proxy in front of a hub. Both end when it is dropped.
struct Proxy {
    hub: Hub,
    child: Child,
    address: SocketAddr,
    /// Whether it notices that nobody reads a stream any more before it has an event to pass on.
    notices_the_end: bool,
    folder: Folder,
}

impl Proxy {
    /// Starts this program with these arguments, once it listens. In the configuration, and in the arguments,
    /// some words stand for what is known only now.
    fn start(program: &str, configuration: &str, arguments: &[&str]) -> Proxy {
        let hub = Hub::start(&FLAGS);
        let folder = Folder::new();
        // A free port, below those that the kernel gives to outgoing connections.
        let address = Site::new(&[]).address;
        let [file, certificate, key] =
            ["configuration", "certificate.pem", "certificate.key"].map(|name| folder.file(name));
        make_certificate(&certificate, &key);
        let port = address.port().to_string();
        let words = [
            ("127.0.0.1:3000", &*hub.address.to_string()),
            ("/etc/ssl/chat.example.org.pem", &certificate),
            ("/etc/ssl/chat.example.org.key", &key),
            ("ADDRESS", &address.to_string()),
            ("PORT", &port),
            ("PID", &folder.file("pid")),
            ("FOLDER", folder.path.to_str().unwrap()),
            ("FILE", &file),
        ];
        let put =
            |text: &str| words.iter().fold(text.to_owned(), |text, (word, value)| text.replace(word, value));
        std::fs::write(&file, put(configuration)).unwrap();
        // Debian has servers where only root's PATH looks.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$0\" \"$@\"", program])
            .args(arguments.iter().map(|argument| put(argument)));
        command.env("PATH", path).env("HOME", &folder.path).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(folder.file("log")).unwrap());
        // A group of its own: a proxy's workers end with it.
        let child = command.process_group(0).spawn().unwrap();
        let mut proxy = Proxy { hub, child, address, notices_the_end: program != "apache2", folder };
        proxy.wait_until_it_listens(program);
        proxy
    }

    fn wait_until_it_listens(&mut self, program: &str) {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(self.folder.file("log")).unwrap();
            assert!(ended.is_none(), "{program}: {ended:?}; tests/run installs it\n{}", log());
            assert!(Instant::now() < deadline, "{program} does not listen\n{}", log());
            // Nothing tells when it does.
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Tries the hub at this path, by curl.
    fn try_all(&self, path: &str) {
        for format in ["", "Accept: application/x-ndjson", "Accept-Encoding: gzip"] {
            self.try_stream(path, format);
        }
        let page = self.curl(path, "/", &["--write-out", "%{http_version}"]);
        assert!(page.contains("<title>tabcast</title>") && page.ends_with("</html>\n2"), "{page}");
        // As the page publishes, which is of the site's own origin.
        let origin = format!("Origin: https://{NAME}:{}", self.address.port());
        for _ in 0..20 {
            let arguments =
                ["--header", &*origin, "--header", "Sec-Fetch-Site: same-origin", "--data", "from the page"];
            let receipt = self.curl(path, "/messages", &arguments);
            assert!(receipt.contains("\"id\""), "{receipt}");
        }
        let refused =
            self.curl(path, "/messages", &["--header", "Origin: https://example.net", "--data", "x"]);
        assert!(refused.contains("https://example.net may not publish here"), "{refused}");
    }

    fn try_stream(&self, path: &str, header: &str) {
        let connects = self.hub.count_log("subscriber connected");
        let mut stream = self.watch(path, &["--header", header]);
        let connected = self.hub.wait_for_logs(&["subscriber connected"], connects + 1).pop().unwrap();
        assert!(connected.contains(&format!("address={CALLER}")), "{connected}");
        for text in ["first", "second"] {
            let receipt = self.curl(path, "/messages", &["--data", text]);
            assert!(receipt.contains("\"id\""), "{receipt}");
            // It is there although nothing comes after it.
            stream.wait_for(text);
        }
        let last = self.hub.newest()["id"].as_str().unwrap().to_owned();
        drop(stream);
        self.hub.publish("missed");
        self.wait_for_ends(connects + 1);
        let mut stream =
            self.watch(path, &["--header", header, "--header", &format!("Last-Event-ID: {last}")]);
        let between = stream.wait_for("missed");
        assert!(!between.contains("second"), "{between}");
        drop(stream);
        self.wait_for_ends(connects + 2);
    }

    /// Waits until the hub knows that so many streams have ended.
    fn wait_for_ends(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while !self.notices_the_end
            && self.hub.count_log("subscriber disconnected") < count
            && Instant::now() < deadline
        {
            self.hub.publish("for nobody");
        }
        self.hub.wait_for_logs(&["subscriber disconnected"], count);
    }

    /// A stream, through the proxy.
    fn watch(&self, path: &str, arguments: &[&str]) -> Watch {
        let mut command = self.command(path, "/events");
        let mut child = command.arg("--no-buffer").args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Watch { child, lines }
    }

    /// What curl writes.
    fn curl(&self, path: &str, target: &str, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(path, target).args(arguments).output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    fn command(&self, path: &str, target: &str) -> Command {
        let mut command = Command::new("curl");
        let (ip, port) = (Ipv4Addr::LOCALHOST, self.address.port());
        // The proxy is not to believe a caller that names another address.
        let forged = "X-Forwarded-For: 203.0.113.9";
        command.args([
            "--silent",
            "--show-error",
            "--insecure",
            "--http2",
            "--noproxy",
            "*",
            "--max-time",
            "60",
        ]);
        command.args([
            "--interface",
            CALLER,
            "--header",
            forged,
            "--resolve",
            &format!("{NAME}:{port}:{ip}"),
        ]);
        command.arg(format!("https://{NAME}:{port}{path}{target}"));
        command
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // All of its group, which only this test has.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
        let _ = self.child.wait();
    }
}

/// A curl that watches, ended when dropped.
struct Watch {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Watch {
    /// Reads until there is a line with this text, and returns all lines up to it. curl ends after a minute.
    fn wait_for(&mut self, text: &str) -> String {
        let mut read = String::new();
        while !read.lines().any(|line| line.contains(text)) {
            let count = self.lines.read_line(&mut read).unwrap();
            assert!(count > 0, "the stream ended without {text}: {read}");
        }
        read
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.lines.read_to_end(&mut Vec::new());
    }
}

/// Makes a certificate for the site, which nobody has signed. The first file has its key as well.
fn make_certificate(certificate: &str, key: &str) {
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-subj", &format!("/CN={NAME}"), "-keyout", key, "-out", certificate]);
    let made = openssl.output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let both = [certificate, key].map(|file| std::fs::read(file).unwrap()).concat();
    std::fs::write(certificate, both).unwrap();
}
