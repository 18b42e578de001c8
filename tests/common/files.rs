//! The journal's files: what is in them and beside them, and a hub that refuses them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// What a hub prints that can't start with this file.
pub fn refused(journal: &str) -> String {
    // If the hub starts all the same, timeout(1) ends it, and the exit code fails the test.
    let output = Command::new("timeout")
        .args(["30", env!("CARGO_BIN_EXE_tabcast"), "--listen", "127.0.0.1:0", "--journal", journal])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains(&format!("can't open the journal {journal}: ")) && stderr.contains("--journal"),
        "{stderr}"
    );
    stderr
}

/// What `sqlite3` answers to this.
pub fn sqlite3(file: &str, sql: &str) -> String {
    let output = Command::new("sqlite3").args([file, sql]).output().expect("tests/run installs sqlite3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The files beside this one and itself, by their names, with their modes and bytes.
pub fn folder_of(file: &str) -> BTreeMap<String, (u32, Vec<u8>)> {
    let files = fs::read_dir(Path::new(file).parent().unwrap()).unwrap().map(|entry| {
        let (name, path) = entry.map(|entry| (entry.file_name(), entry.path())).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        (name.into_string().unwrap(), (mode, fs::read(path).unwrap()))
    });
    files.collect()
}

/// Checks that a hub refuses to start with this file, gives this reason, and leaves the folder as it is.
pub fn assert_refused_and_unchanged(file: &str, reason: &str) {
    let before = folder_of(file);
    let stderr = refused(file);
    assert!(stderr.contains(reason), "{stderr}");
    let after = folder_of(file);
    assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    for (name, content) in before {
        assert!(after[&name] == content, "{name} is changed");
    }
}

/// A process that keeps the journal's file from being read, until it is dropped: it has the locks of all
/// readers, bytes 123 to 127 of the WAL's index (SQLite's file format, "WAL-index format").
pub struct Locks(Child);

impl Locks {
    pub fn take(journal: &str) -> Locks {
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
