//! A hub's calls as strace(1) sees them: those that change its folder, and those that send.

use std::collections::HashMap;

use memchr::{memchr, memchr2, memmem};

/// A system call that changes the folder, syncs a part of it, or sends bytes to a socket.
#[derive(Debug)]
pub struct Call {
    pub name: String,
    arguments: String,
    /// What it returned, -1 if it failed; `None` if the process ended first.
    pub result: Option<i64>,
    /// The numbers of the lines in the trace on which it began and ended. strace stops a thread at both: of
    /// two lines, also of different threads, the first was earlier.
    pub began: usize,
    /// `usize::MAX` if the process ended first.
    pub ended: usize,
}

/// The calls that the model of the disk knows.
const CHANGES: &str = "openat pwrite64 ftruncate linkat unlink fsync fdatasync";

const SENDS: &str = "write writev sendto sendmsg";

/// The calls that change neither names nor bytes.
const HARMLESS: &str = "execve statx newfstatat readlink access lseek fcntl flock fchmod fchown close \
    getdents64 read pread64 ioctl";

/// The calls after which a trace might not show what is done to the folder.
const BLINDING: &str = "io_uring_setup io_submit chdir fchdir open_by_handle_at process_vm_writev";

fn is_among(name: &str, calls: &str) -> bool {
    calls.split(' ').any(|call| call == name)
}

/// What strace is to trace, so that it is fast. With `accept4`, which a test delays.
pub fn filter() -> String {
    format!("trace={CHANGES} {SENDS} accept4").replace(' ', ",")
}

impl Call {
    pub fn is_sync(&self) -> bool {
        matches!(&*self.name, "fsync" | "fdatasync")
    }

    pub fn is_send(&self) -> bool {
        is_among(&self.name, SENDS)
    }

    pub fn has_flag(&self, flag: &str) -> bool {
        self.arguments.contains(flag)
    }

    /// The path of the descriptor that is its first argument.
    pub fn descriptor(&self) -> &str {
        let path = self.arguments.split_once('<').and_then(|(_, rest)| rest.split_once('>'));
        path.expect("strace -y gives a descriptor its path").0
    }

    /// Its last argument.
    pub fn last_number(&self) -> usize {
        self.arguments.rsplit(", ").next().unwrap().parse().expect("the last argument is a number")
    }

    /// Its strings, unescaped.
    fn strings(&self) -> Vec<Vec<u8>> {
        let (mut strings, mut rest) = (Vec::new(), self.arguments.as_bytes());
        while let Some(start) = memchr(b'"', rest) {
            let mut string = Vec::new();
            rest = unescape(&rest[start + 1..], &mut string);
            strings.push(string);
        }
        strings
    }

    /// Its string of this number, a path.
    pub fn path(&self, number: usize) -> String {
        String::from_utf8(self.strings().remove(number)).unwrap()
    }

    /// The bytes that it wrote, or was to write if it did not return.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.strings().concat();
        bytes.truncate(self.result.map_or(usize::MAX, |count| usize::try_from(count).unwrap()));
        bytes
    }

    /// The call without the bytes that it wrote.
    pub fn summary(&self) -> String {
        format!("{}({:.90} = {:?}", self.name, self.arguments, self.result)
    }
}

/// Adds what `text` has up to the quote that ends it. Returns what comes after that.
fn unescape<'a>(mut text: &'a [u8], string: &mut Vec<u8>) -> &'a [u8] {
    loop {
        let end = memchr2(b'"', b'\\', text).expect("strace writes strings whole");
        string.extend_from_slice(&text[..end]);
        if text[end] == b'"' {
            return &text[end + 1..];
        }
        text = &text[end + 1..];
        let octal = text.iter().take(3).take_while(|digit| (b'0'..b'8').contains(digit)).count();
        let (byte, length) = match text[0] {
            _ if octal > 0 => (text[..octal].iter().fold(0, |byte, digit| byte << 3 | (digit - b'0')), octal),
            b'n' => (b'\n', 1),
            b'r' => (b'\r', 1),
            b't' => (b'\t', 1),
            b'v' => (0x0b, 1),
            b'f' => (0x0c, 1),
            other => (other, 1),
        };
        string.push(byte);
        text = &text[length..];
    }
}

/// The calls of a trace, in the order in which they began, their lines numbered from `first`. A line is
/// `PID name(arguments) = result`; or `PID name(arguments <unfinished ...>`, with a later
/// `PID <... name resumed>) = result`. The WAL's index is passed over: it is made anew after a crash.
///
/// Panics if a call names the folder, or a descriptor in it, that is neither known to the model nor harmless.
pub fn parse(trace: &str, first: usize, folder: &str) -> Vec<Call> {
    let [in_descriptor, in_string] = [format!("<{folder}"), format!("\"{folder}")];
    let on_folder = [&in_descriptor, &in_string].map(memmem::Finder::new);
    let on_index = ["-shm>", "-shm\""].map(memmem::Finder::new);
    let mut calls = Vec::new();
    let mut unfinished = HashMap::new();
    for (number, line) in (first..).zip(trace.lines()) {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let (before, result) = rest.rsplit_once(" = ").unwrap_or((rest, ""));
        let result = result.split(|c: char| c != '-' && !c.is_ascii_digit()).next().unwrap().parse().ok();
        if rest.starts_with("<... ") {
            if let Some(call) = unfinished.remove(pid) {
                let call: &mut Call = &mut calls[call];
                (call.ended, call.result) = (number, result);
            }
            continue;
        }
        let Some((name, arguments)) = before.split_once('(') else { continue };
        let has =
            |texts: &[memmem::Finder<'_>]| texts.iter().any(|text| text.find(line.as_bytes()).is_some());
        let is_on_folder = has(&on_folder) && !has(&on_index);
        let is_send = is_among(name, SENDS) && arguments.split(',').next().unwrap().contains("<socket:");
        let is_known = is_among(name, CHANGES) || is_among(name, HARMLESS);
        assert!(
            !is_among(name, BLINDING) && (is_known || !is_on_folder),
            "a call that the model of the disk does not know: {line:.300}"
        );
        if is_send || is_on_folder && is_among(name, CHANGES) {
            let (arguments, ended) = match arguments.strip_suffix(" <unfinished ...>") {
                Some(arguments) => {
                    unfinished.insert(pid, calls.len());
                    (arguments, usize::MAX)
                }
                None => (arguments.trim_end().trim_end_matches(')'), number),
            };
            let (name, arguments) = (name.to_owned(), arguments.to_owned());
            calls.push(Call { name, arguments, result, began: number, ended });
        }
    }
    // A call that failed has changed nothing. Of one that did not return, nobody knows.
    let unclear = calls.iter().find(|call| call.result.is_none() && !call.is_sync() && !call.is_send());
    assert!(unclear.is_none(), "{unclear:?}");
    calls.retain(|call| match call.result {
        None => call.is_send(),
        Some(result) => call.is_send() || call.is_sync() || result != -1,
    });
    calls
}

#[test]
fn a_trace_is_parsed() {
    let trace = "\
7  openat(AT_FDCWD</>, \"/f/a\", O_RDWR|O_CREAT|O_EXCL, 0600 <unfinished ...>
8  sendto(9<socket:[1]>, \"a = \\\"b\\\"\\n\", 8, 0, NULL, 0) = 8
7  <... openat resumed>) = 3</f/a>
7  pwrite64(3</f/a>, \"\\0\\1771\\\\x\", 5, 40) = 4
7  unlink(\"/f/b\") = -1 ENOENT (No such file or directory)
7  fsync(3</f/a>)      = -1 EIO (Input/output error) (INJECTED)
7  write(2<pipe:[5]>, \"can't open /f/a\", 15) = 15
7  pwrite64(4</elsewhere>, \"x\", 1, 0) = 1
7  pwrite64(5</f/a-shm>, \"x\", 1, 0) = 1
7  fsync(3</f/a> <unfinished ...>
7  +++ killed by SIGKILL +++
";
    let calls = parse(trace, 10, "/f");
    let shape = calls.iter().map(|call| (&*call.name, call.result, call.began, call.ended));
    let expected = [("openat", Some(3), 10, 12), ("sendto", Some(8), 11, 11), ("pwrite64", Some(4), 13, 13)];
    assert_eq!(shape.collect::<Vec<_>>(), [&expected[..], &[("fsync", Some(-1), 15, 15)]].concat());
    assert_eq!((calls[0].path(0), calls[1].bytes()), ("/f/a".to_owned(), b"a = \"b\"\n".to_vec()));
    let write = &calls[2];
    assert_eq!((write.bytes(), write.last_number(), write.descriptor()), (b"\0\x7f1\\".to_vec(), 40, "/f/a"));
}

#[test]
#[should_panic(expected = "a call that the model of the disk does not know: 7 copy_file_range")]
fn a_call_that_the_model_does_not_know_is_named() {
    parse("7 copy_file_range(3</f/a>, NULL, 4</f/b>, NULL, 9, 0) = 9\n", 0, "/f");
}
