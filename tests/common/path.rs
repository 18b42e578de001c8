//! The paths a message takes through a hub. What is true of one has to be true of each.

use std::cell::Cell;

/// Where a hub stores messages, and how it sends a stream.
#[derive(Clone, Copy, Debug)]
pub struct Path {
    /// Whether a hub started without `--journal` stores messages in a file of its own, or in memory.
    pub in_file: bool,
    /// The HTTP version in which streams are asked for. A stream in HTTP/1.1 is sent in chunks; one in
    /// HTTP/1.0 ends with its connection.
    pub http: &'static str,
}

thread_local! {
    /// The path of the test that runs on this thread.
    static CURRENT: Cell<Path> = const { Cell::new(Path::memory()) };
}

impl Path {
    pub const fn memory() -> Path {
        Path { in_file: false, http: "1.1" }
    }

    pub const fn file() -> Path {
        Path { in_file: true, ..Path::memory() }
    }

    pub const fn http_1_0() -> Path {
        Path { http: "1.0", ..Path::memory() }
    }

    pub fn current() -> Path {
        CURRENT.get()
    }

    /// Tests the claim on this path: every hub started on this thread takes it.
    pub fn test(self, claim: impl FnOnce()) {
        /// Also when the claim fails: with `--test-threads=1` the next test runs on the same thread.
        struct Reset(Path);
        impl Drop for Reset {
            fn drop(&mut self) {
                CURRENT.set(self.0);
            }
        }
        let _reset = Reset(CURRENT.replace(self));
        claim();
    }
}

/// Makes of a claim a module of that name, in which each of these paths is a test: `claim::memory`.
macro_rules! on_paths {
    ([$($path:ident),*], $claim:ident, $body:block) => {
        fn $claim() $body

        mod $claim {
            $(
                #[test]
                fn $path() {
                    crate::common::Path::$path().test(super::$claim);
                }
            )*
        }
    };
}

/// The claim for a journal in memory and for one in a file: see [`on_paths`].
macro_rules! on_each_journal {
    ($claim:ident, $body:block) => {
        $crate::common::on_paths!([memory, file], $claim, $body);
    };
}

/// The claim for each journal, and for streams in HTTP/1.0: see [`on_paths`].
macro_rules! on_each_path {
    ($claim:ident, $body:block) => {
        $crate::common::on_paths!([memory, file, http_1_0], $claim, $body);
    };
}

pub(crate) use {on_each_journal, on_each_path, on_paths};
