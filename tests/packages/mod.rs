//! The packages of `package.json`, which `tests/run` installs.

#![allow(unreachable_pub, reason = "each test file uses it as if it were a crate")]

use std::path::{Path, PathBuf};

/// The folder of the packages.
pub fn installed() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("packages");
    let present = std::fs::read_to_string(folder.join("installed")).unwrap_or_default();
    let wanted = include_str!("package.json");
    assert!(present == wanted, "the packages are not there, or other versions; tests/run installs them");
    folder.join("node_modules")
}
