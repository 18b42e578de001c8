//! Hubs with a bug on purpose, for tests to show that they would notice it: each patch beside this file is
//! one bug, and is applied to a copy of the source. The product's source has none of them.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is copied, if it is there: all that the binary is built from, and the benches, which the manifest
/// names.
const SOURCE: [&str; 6] = ["Cargo.toml", "Cargo.lock", "build.rs", "src", "assets", "benches"];

/// The path of a hub's binary with the bug of `tests/bugs/{bug}.patch`. It is built if the source or the
/// patch has changed since it was last built.
pub(crate) fn hub(bug: &str) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let patch = package.join(format!("tests/bugs/{bug}.patch"));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bugs");
    fs::create_dir_all(&folder).unwrap();
    // All threads and processes build in the same copy, one after the other: until `lock` is dropped.
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();

    let source = read(package);
    let state = state(&source, &fs::read(&patch).unwrap());
    let (hub, built) = (folder.join(bug), folder.join(format!("{bug}.state")));
    if fs::read_to_string(&built).is_ok_and(|built| built == state) {
        return hub;
    }
    let copy = folder.join("copy");
    write(&copy, &source);
    apply(&patch, &copy);
    let binary = build(&copy, &folder.join("target"));
    let _ = fs::remove_file(&built);
    // `cp` writes, not this process: a hub that another thread starts meanwhile would inherit the descriptor,
    // and a binary that is open for writing can't be executed (ETXTBSY).
    let new = folder.join(format!("{bug}.new"));
    run(Command::new("cp").arg(binary).arg(&new), "cp");
    // A hub may still run the old binary, which can't be written to then, but replaced.
    fs::rename(new, &hub).unwrap();
    fs::write(built, state).unwrap();
    hub
}

/// A file's path in the package, and its bytes.
type Source = Vec<(PathBuf, Vec<u8>)>;

/// All files of the copy, in order of their paths.
fn read(package: &Path) -> Source {
    let mut source = Source::new();
    let mut paths: Vec<PathBuf> = SOURCE.map(PathBuf::from).into();
    while let Some(path) = paths.pop() {
        let place = package.join(&path);
        if place.is_dir() {
            paths.extend(fs::read_dir(place).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        } else if place.exists() {
            source.push((path, fs::read(place).unwrap()));
        }
    }
    source.sort();
    source
}

/// Differs if the source or the patch does.
fn state(source: &Source, patch: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    (source, patch).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Makes the copy anew, whatever was there.
fn write(copy: &Path, source: &Source) {
    let _ = fs::remove_dir_all(copy);
    for (path, bytes) in source {
        let path = copy.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn apply(patch: &Path, copy: &Path) {
    let mut git = Command::new("git");
    git.args(["apply", "--whitespace=nowarn"]).arg(patch).current_dir(copy);
    // In the repository around the copy, git would look for the files below its root, and pass over those
    // that are not there without an error.
    git.env("GIT_CEILING_DIRECTORIES", copy.parent().unwrap())
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE");
    run(&mut git, &format!("the source has changed: mend {}", patch.display()));
}

/// Builds the binary of the copy and returns its path.
fn build(copy: &Path, target: &Path) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args([
        "build",
        "--offline",
        "--locked",
        "--bin=tabcast",
        "--message-format=json-render-diagnostics",
    ]);
    // Never into the folders of this test's own build: cargo gives the copy the same hash as the package, and
    // would put the bug into the hub that all other tests run.
    cargo.arg("--target-dir").arg(target).env("CARGO_BUILD_BUILD_DIR", target);
    // Nobody debugs these hubs: without debug information they are a fifth as large.
    cargo.env("CARGO_PROFILE_DEV_DEBUG", "0").current_dir(copy);
    let messages = run(&mut cargo, "the copy does not build");
    let executable = |message: &str| {
        let message: serde_json::Value = serde_json::from_str(message).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    };
    messages.lines().find_map(executable).expect("cargo says where it has put the binary")
}

/// What the command writes to its stdout; panics with its stderr and `failure` if it fails.
fn run(command: &mut Command, failure: &str) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{}\n{failure}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
