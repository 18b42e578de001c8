//! Strips the browser client, `assets/tabcast.js`, of what only its readers need, and so the page's script and
//! styles; makes a classic script of the client as well, and compresses each file that the hub serves. The hub
//! has every one in both forms.

#[path = "assets/strip.rs"]
mod strip;

use std::io::Write;
use std::path::Path;
use std::{env, fs};

use flate2::Compression;
use flate2::write::GzEncoder;

const CLIENT: &str = "tabcast.js";
const PAGE: &str = "app.js";
const STYLES: &str = "app.css";
const SERVED: [&str; 6] = ["index.html", "app.css", "app.js", "icon.svg", "tabcast.js", "tabcast.d.ts"];
const FIRST_LINE: &str = "// Stripped. The source: ./tabcast.src.js, the types: ./tabcast.d.ts";

fn main() {
    SERVED.iter().for_each(|name| println!("cargo::rerun-if-changed=assets/{name}"));
    println!("cargo::rerun-if-changed=assets/strip.rs");
    let read = |name: &str| {
        fs::read_to_string(Path::new("assets").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let stripped = |name| strip::strip(&read(name)).unwrap_or_else(|reason| panic!("{name}: {reason}"));
    let folder = env::var_os("OUT_DIR").expect("cargo says where a build script writes");
    let write = |name: &str, bytes: &[u8]| {
        fs::write(Path::new(&folder).join(name), bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    };
    let client = stripped(CLIENT);
    let classic = strip::classic(&client).unwrap_or_else(|reason| panic!("{CLIENT}: {reason}"));
    for (name, text) in [
        (CLIENT, format!("{FIRST_LINE}\n{client}\n")),
        ("io.js", format!("{FIRST_LINE}\n{classic}\n")),
        (PAGE, stripped(PAGE)),
        (STYLES, trimmed(&read(STYLES))),
    ] {
        write(name, text.as_bytes());
        write(&format!("{name}.gz"), &compressed(text.as_bytes()));
    }
    for name in SERVED.into_iter().filter(|name| ![PAGE, STYLES].contains(name)) {
        let bytes = read(name).into_bytes();
        let name = if name == CLIENT { "tabcast.src.js" } else { name };
        write(&format!("{name}.gz"), &compressed(&bytes));
    }
}

/// A style sheet without its comments and its indentation.
fn trimmed(source: &str) -> String {
    let mut parts = source.split("/*");
    let mut kept = parts.next().unwrap_or_default().to_owned();
    kept.extend(parts.map(|part| part.split_once("*/").expect("a comment ends").1));
    kept.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all")
}
