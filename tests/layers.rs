//! The order of the files in src: a file may use those below it, and no circle can come of it. The same
//! for the parts that only some may touch: hyper, axum, SQL, clap.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Every file of src, from the top down: each may use those that stand below it.
const ORDER: &[&str] = &[
    "main",
    "cli",
    "cli/check",
    "cli/serve",
    "cli/listen",
    "cli/files",
    "cli/token",
    "cli/allocator",
    "lib",
    "running",
    "options",
    "options/setting",
    "net",
    "net/listener",
    "net/http1",
    "net/io",
    "net/deadline",
    "net/handover",
    "net/pace",
    "api",
    "api/publish",
    "api/drafts",
    "api/multipart",
    "api/codings",
    "api/delete",
    "api/admin",
    "api/events",
    "api/renewal",
    "api/caller",
    "api/history",
    "api/page",
    "api/cors",
    "api/reply",
    "api/credentials",
    "api/origin",
    "api/body",
    "api/state",
    "api/public",
    "api/bodies",
    "api/headers",
    "api/media_type",
    "api/forwarded",
    "api/fields",
    "api/options",
    "api/problem",
    "delivery",
    "delivery/shard",
    "delivery/wheel",
    "delivery/group",
    "delivery/catch_up",
    "delivery/stream",
    "delivery/socket",
    "delivery/wire",
    "delivery/chunks",
    "hub",
    "hub/publish",
    "hub/subscriber",
    "hub/subscription",
    "hub/feed",
    "hub/core",
    "hub/passes",
    "hub/pass",
    "hub/reason",
    "hub/live",
    "hub/audience",
    "journal",
    "journal/memory",
    "journal/sqlite",
    "journal/sqlite/copy",
    "journal/sqlite/verify",
    "journal/sqlite/sweep",
    "journal/sqlite/writer",
    "journal/sqlite/reader",
    "journal/sqlite/row",
    "journal/sqlite/shared",
    "journal/sqlite/pages",
    "journal/sqlite/open",
    "journal/sqlite/check",
    "journal/sqlite/file",
    "journal/sqlite/place",
    "journal/sqlite/wal",
    "journal/sqlite/link",
    "journal/sqlite/schema",
    "journal/sqlite/ages",
    "journal/sqlite/fault",
    "journal/sqlite/gate",
    "journal/committed",
    "journal/recent",
    "journal/index",
    "journal/rules",
    "journal/page",
    "journal/entry",
    "journal/keys",
    "journal/epochs",
    "journal/passed",
    "journal/clock",
    "frame",
    "auth",
    "auth/forward",
    "auth/provider",
    "auth/cache",
    "auth/halves",
    "auth/jwt",
    "auth/rules",
    "auth/signer",
    "auth/keys",
    "auth/jws",
    "auth/json",
    "auth/revoked",
    "auth/tokens",
    "auth/caller",
    "auth/grants",
    "auth/refused",
    "fetch",
    "limits",
    "limits/budget",
    "limits/shares",
    "limits/turns",
    "limits/rates",
    "limits/owner",
    "limits/network",
    "limits/proxies",
    "limits/peer",
    "log",
    "log/kind",
    "log/value",
    "message",
    "message/data",
    "message/id",
    "message/pattern",
    "message/name",
    "value",
];

/// What only the files whose name begins so may name in their code.
const CONFINED: &[(&str, &[&str])] = &[
    ("hyper", &["net", "fetch"]),
    ("hyper_util", &["net", "fetch"]),
    ("hyper_rustls", &["fetch"]),
    ("rustls", &["fetch"]),
    ("axum", &["api"]),
    ("multer", &["api/multipart"]),
    ("flate2", &["api/codings"]),
    ("tower", &["api"]),
    ("tower_http", &["api"]),
    ("rusqlite", &["journal/sqlite"]),
    ("aws_lc_rs", &["auth", "fetch", "hub/pass"]),
    // A module derives its own settings by `clap::Args`; what else there is to a command line is not its.
    ("clap", &["options", "cli"]),
];

/// Each file's name without its ending, and its code without comments and unit tests.
fn files(root: &str) -> BTreeMap<String, String> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(root);
    let mut found = Vec::new();
    collect(&root, &mut found);
    let name =
        |path: &Path| path.strip_prefix(&root).unwrap().with_extension("").to_str().unwrap().to_owned();
    found.iter().map(|path| (name(path), code(&fs::read_to_string(path).unwrap()))).collect()
}

fn code(text: &str) -> String {
    // Another file's unit tests may use these.
    let text = text.replace("pub(super) mod tests {", "mod tests {");
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.fold(String::new(), |code, line| code + line + "\n")
}

/// Every path from `crate`, `tabcast`, `super` or `self` that the code names, a `use` tree one by one:
/// `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for root in ["crate::", "tabcast::", "super::", "self::"] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                expand(&code[at..], &mut Vec::new(), &mut paths);
            }
        }
    }
    paths
}

/// The modules that the code declares: whoever declares one uses it.
fn children(code: &str) -> impl Iterator<Item = &str> {
    let declared = |line: &str| line.trim_start().starts_with("mod ") || line.contains("pub mod ");
    code.lines()
        .filter(move |line| declared(line))
        .filter_map(|line| line.trim_end().strip_suffix(';').and_then(|line| line.rsplit(' ').next()))
}

/// Adds each path of the tree that `text` begins with, below `prefix`. Returns what is left of the text.
fn expand<'a>(text: &'a str, prefix: &mut Vec<String>, paths: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = expand(rest, prefix, paths).trim_start();
            match rest.strip_prefix(',') {
                Some(next) if next.trim_start().starts_with('}') => rest = next.trim_start(),
                Some(next) => rest = next,
                None => {}
            }
            if let Some(rest) = rest.strip_prefix('}') {
                return rest;
            }
            if rest.is_empty() {
                return rest;
            }
        }
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '*')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    prefix.push(name.to_owned());
    let rest = match rest.strip_prefix("::") {
        Some(below) if !name.is_empty() => expand(below, prefix, paths),
        _ => {
            paths.push(prefix.clone());
            rest.trim_start()
                .strip_prefix("as ")
                .map_or(rest, |rest| rest.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
        }
    };
    prefix.pop();
    rest
}

/// The files that this one uses. A name of the crate itself is in `lib`, or in `main` where there is no
/// library.
fn uses(file: &str, code: &str, all: &BTreeSet<&str>) -> BTreeSet<String> {
    let root = if all.contains("lib") { "lib" } else { "main" };
    let own: Vec<&str> = if matches!(file, "lib" | "main") { Vec::new() } else { file.split('/').collect() };
    let mut found: BTreeSet<String> =
        children(code).map(|child| [&own[..], &[child]].concat().join("/")).collect();
    // For a bench, `tabcast` is another crate.
    let is_here = |path: &Vec<String>| path[0] != "tabcast" || root == "lib";
    for path in paths(code).into_iter().filter(is_here) {
        let mut rest: Vec<&str> = path.iter().map(String::as_str).collect();
        let mut module = match rest.remove(0) {
            "super" => own[..own.len().saturating_sub(1)].to_vec(),
            "self" => own.clone(),
            _ => Vec::new(),
        };
        while rest.first() == Some(&"super") {
            module.pop();
            rest.remove(0);
        }
        // The longest path that is a file; what is left of it is a name in that file.
        module.extend(rest);
        while !module.is_empty() && !all.contains(module.join("/").as_str()) {
            module.pop();
        }
        found.insert(if module.is_empty() { root.to_owned() } else { module.join("/") });
    }
    found.remove(file);
    found
}

/// Where a file uses one that does not stand below it.
fn against_the_order(order: &[&str], files: &BTreeMap<String, String>) -> Vec<String> {
    let place = |name: &str| order.iter().position(|known| *known == name);
    let all: BTreeSet<&str> = files.keys().map(String::as_str).collect();
    let mut found = Vec::new();
    for (file, code) in files {
        let Some(own) = place(file) else {
            found.push(format!("{file} has no place in the order"));
            continue;
        };
        for used in uses(file, code, &all) {
            if place(&used).is_none_or(|place| place <= own) {
                found.push(format!("{file} uses {used}, which is above it"));
            }
        }
    }
    found.extend(order.iter().filter(|name| !all.contains(*name)).map(|name| format!("{name} is no file")));
    found
}

#[test]
fn a_file_uses_only_those_below_it() {
    assert_eq!(against_the_order(ORDER, &files("src")), [] as [String; 0]);
}

#[test]
fn a_planted_use_of_a_file_above_is_found() {
    let mut files = files("src");
    let mut plant = |file: &str, line: &str| {
        let clean = files[file].clone();
        files.insert(file.to_owned(), format!("{line}\n{clean}"));
        let found = against_the_order(ORDER, &files);
        files.insert(file.to_owned(), clean);
        found
    };
    for (file, line, used) in [
        ("message/id", "use crate::frame::Format;", "frame"),
        ("hub/live", "use super::{publish::Publish, core::Core};", "hub/core"),
        ("hub/live", "use super::Hub;", "hub"),
        ("journal/keys", "fn x() { crate::journal::Journal::open() }", "journal"),
        ("journal/sqlite/row", "use super::super::memory::Memory as M;", "journal/memory"),
        ("value", "use crate::{\n    message::{id::MessageId},\n};", "message/id"),
        ("delivery/socket", "use crate::Server;", "lib"),
    ] {
        let expected = format!("{file} uses {used}, which is above it");
        assert!(plant(file, line).contains(&expected), "{line} in {file}: {:?}", plant(file, line));
    }
}

/// Files that name a crate which is not theirs to use.
fn out_of_place(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (file, code) in files {
        let code = code.replace("clap::Args", "");
        let words: BTreeSet<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
        for (name, homes) in CONFINED {
            if words.contains(name) && !homes.iter().any(|home| file.starts_with(home)) {
                found.push(format!("{file} names {name}"));
            }
        }
    }
    found
}

#[test]
fn hyper_axum_sql_and_the_command_line_stay_where_they_belong() {
    let mut files = files("src");
    assert_eq!(out_of_place(&files), [] as [String; 0]);
    files.insert("hub".to_owned(), "use axum::http::HeaderMap;\n#[derive(clap::Args)]\n".to_owned());
    files.insert("net".to_owned(), "let command = clap::Command::new(name);\n".to_owned());
    assert_eq!(out_of_place(&files), ["hub names axum", "net names clap"]);
}

/// Circles among files, each once: found by walking from every file along those it uses.
fn circles(files: &BTreeMap<String, String>) -> BTreeSet<Vec<String>> {
    fn walk(
        file: &str,
        uses: &BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
        found: &mut BTreeSet<Vec<String>>,
    ) {
        if let Some(at) = way.iter().position(|passed| passed == file) {
            found.insert(way[at..].to_vec());
            return;
        }
        if done.contains(file) {
            return;
        }
        way.push(file.to_owned());
        for used in uses.get(file).into_iter().flatten() {
            walk(used, uses, way, done, found);
        }
        way.pop();
        done.insert(file.to_owned());
    }
    let all: BTreeSet<&str> = files.keys().map(String::as_str).collect();
    let uses = files.iter().map(|(file, code)| (file.clone(), uses(file, code, &all))).collect();
    let (mut done, mut found) = (BTreeSet::new(), BTreeSet::new());
    for file in files.keys() {
        walk(file, &uses, &mut Vec::new(), &mut done, &mut found);
    }
    found
}

/// A bench's files, and those that benches share.
fn bench(name: &str) -> BTreeMap<String, String> {
    let shared = files("benches/common").into_iter().map(|(file, code)| match &*file {
        "mod" => ("common".to_owned(), code),
        file => (format!("common/{file}"), code),
    });
    files(&format!("benches/{name}")).into_iter().chain(shared).collect()
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    for files in [files("src"), bench("fanout"), bench("figures")] {
        assert_eq!(circles(&files), BTreeSet::new());
    }
    let mut planted = bench("fanout");
    planted.get_mut("limits").unwrap().push_str("use crate::workload::Workload;\n");
    let circle = ["limits", "workload", "server"].map(str::to_owned);
    let is_it = |found: &Vec<String>| circle.iter().all(|file| found.contains(file));
    assert!(circles(&planted).iter().any(is_it), "{:?}", circles(&planted));
}
