//! While another program keeps the journal's file from being read, the hub waits for it, and says so to
//! those who can't wait.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use common::{Folder, Hub};

/// A process that has the locks of all readers, until it is dropped: bytes 123 to 127 of the WAL's index
/// (SQLite's file format, "WAL-index format").
struct Locks(Child);

impl Locks {
    fn take(journal: &str) -> Locks {
        let script = "import fcntl, sys\n\
                      file = open(sys.argv[1], 'r+b')\n\
                      fcntl.lockf(file, fcntl.LOCK_EX, 5, 123)\n\
                      print('locked', flush=True)\n\
                      sys.stdin.readline()\n";
        let mut child = Command::new("python3")
            .args(["-c", script, &format!("{journal}-shm")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n");
        Locks(child)
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        let _ = self.0.stdin.take().unwrap().write_all(b"\n");
        self.0.wait().unwrap();
    }
}

#[test]
fn while_the_file_cannot_be_read_history_is_503_a_stream_waits_and_the_hub_goes_on() {
    let folder = Folder::new();
    let journal = folder.file("tabcast.db");
    let mut hub = Hub::start(&["--journal", &journal]);
    let ids: Vec<_> = ["one", "two", "three"].iter().map(|text| hub.publish(text)).collect();
    hub.signal("TERM");
    hub.wait();
    // A hub that was just started has none of them in memory: it reads the file.
    let hub = Hub::start(&["--journal", &journal]);
    let mut stream = {
        let locks = Locks::take(&journal);
        let header = format!("Last-Event-ID: {}", ids[0]);
        let mut stream = hub.watch("/events", &[&header]);
        let history = hub.get("/messages?last=3");
        let problem = history.problem(503);
        assert!(problem["detail"].as_str().unwrap().contains("can't read its journal"), "{problem}");
        assert_eq!(history.header("retry-after"), Some("5"));
        hub.wait_for_log(&["ERROR another program keeps the journal from being read"]);
        assert_eq!(hub.post("", "text/plain", "not now").problem(503)["title"], "Service Unavailable");
        drop(locks);
        assert_eq!([stream.data(), stream.data()], ["two", "three"]);
        stream
    };
    let history = hub.get("/messages?last=3").json();
    assert_eq!(history["messages"].as_array().unwrap().len(), 3);
    hub.publish("four");
    assert_eq!(stream.data(), "four");
}
