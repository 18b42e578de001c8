//! The browser client as TypeScript sees it: its own types, those that it gives a page, and what the hub
//! serves of it. `tests/run` installs TypeScript.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Folder, Hub};
use serde_json::Value;

const SOURCE: &str = "assets/tabcast.js";
const DECLARATIONS: &str = "assets/tabcast.d.ts";

/// The folder with TypeScript, if it is the version that is asked for.
fn typescript() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("types");
    let installed = std::fs::read_to_string(folder.join("installed")).unwrap_or_default();
    let wanted = include_str!("types/package.json");
    assert!(installed == wanted, "TypeScript is not there, or another version; tests/run installs it");
    folder.join("node_modules/typescript")
}

/// Runs `node`, which must succeed, and returns what it prints.
#[track_caller]
fn node(arguments: &[&Path]) -> String {
    let folder = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("node").current_dir(folder).args(arguments).output().expect("node runs");
    let [printed, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{arguments:?}: {printed}{errors}");
    printed
}

#[track_caller]
fn tsc(arguments: &[&str]) {
    let compiler = typescript().join("bin/tsc");
    let arguments: Vec<&Path> = arguments.iter().map(Path::new).collect();
    node(&[&[compiler.as_path()], &arguments[..]].concat());
}

/// The text of a file of the repository.
fn text(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[test]
fn the_client_has_no_type_error() {
    let target = ["--target", "esnext", "--module", "esnext", "--skipLibCheck"];
    tsc(&[&["--allowJs", "--checkJs", "--noEmit"], &target[..], &[SOURCE]].concat());
}

#[test]
fn the_hub_serves_the_declarations_that_tsc_makes_of_the_client() {
    let folder = Folder::new();
    // Strict but for variables without a type. An error in the client is an error here, too.
    tsc(&["--project", "tests/types/client.json", "--outDir", &folder.file("")]);
    let made = std::fs::read_to_string(folder.file("tabcast.d.ts")).unwrap();
    let renew = "target/types/node_modules/.bin/tsc --project tests/types/client.json --outDir assets";
    assert!(
        made == text(DECLARATIONS),
        "{DECLARATIONS} is another than tsc makes of {SOURCE}; to renew it: {renew}"
    );
    let served = Hub::start(&[]).get("/tabcast.d.ts");
    assert_eq!(String::from_utf8(served.body).unwrap(), made);
}

#[test]
fn a_page_with_right_types_compiles_and_each_mistake_is_an_error() {
    tsc(&["--project", "tests/types"]);
}

#[test]
fn the_hub_serves_the_client_without_comments_and_its_source_with_them() {
    let (folder, hub) = (Folder::new(), Hub::start(&[]));
    let typescript = typescript();
    let parse = |path: &str| -> Value {
        let file = folder.file(&path.replace('/', ""));
        std::fs::write(&file, hub.get(path).body).unwrap();
        let program = Path::new("tests/types/parse.mjs");
        serde_json::from_str(&node(&[program, &typescript, Path::new(&file)])).unwrap()
    };
    let [served, source] = ["/tabcast.js", "/tabcast.src.js"].map(parse);
    let first = "// Stripped. The source: ./tabcast.src.js, the types: ./tabcast.d.ts";
    assert_eq!(served["comments"], serde_json::json!([first]));
    assert!(source["comments"].as_array().unwrap().len() > 100);
    for parsed in [&served, &source] {
        assert_eq!(parsed["errors"], serde_json::json!([]));
        assert!(parsed["nodes"].as_array().unwrap().len() > 5_000);
    }
    // Not `assert_eq`, which would print both.
    assert!(
        served["nodes"] == source["nodes"],
        "the client is stripped of more than comments and white space"
    );
    assert_eq!(String::from_utf8(hub.get("/tabcast.src.js").body).unwrap(), text(SOURCE));
}

#[test]
fn the_hub_serves_the_pages_script_without_comments() {
    let (folder, hub) = (Folder::new(), Hub::start(&[]));
    let parse = |text: &[u8]| -> Value {
        let file = folder.file("app.js");
        std::fs::write(&file, text).unwrap();
        let program = Path::new("tests/types/parse.mjs");
        serde_json::from_str(&node(&[program, &typescript(), Path::new(&file)])).unwrap()
    };
    let served = parse(&hub.get("/app.js").body);
    assert_eq!((&served["comments"], &served["errors"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert!(served["nodes"] == parse(text("assets/app.js").as_bytes())["nodes"], "the page's script differs");
}
