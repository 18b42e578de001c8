//! Strips the browser client, `assets/tabcast.js`, of what only its readers need. The hub serves both.

#[path = "assets/strip.rs"]
mod strip;

use std::path::Path;
use std::{env, fs};

const SOURCE: &str = "assets/tabcast.js";
const FIRST_LINE: &str = "// Stripped. The source: ./tabcast.src.js, the types: ./tabcast.d.ts";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-changed=assets/strip.rs");
    let source = fs::read_to_string(SOURCE).unwrap_or_else(|error| panic!("{SOURCE}: {error}"));
    let stripped = strip::strip(&source).unwrap_or_else(|reason| panic!("{SOURCE}: {reason}"));
    let folder = env::var_os("OUT_DIR").expect("cargo says where a build script writes");
    let served = Path::new(&folder).join("tabcast.js");
    fs::write(served, format!("{FIRST_LINE}\n{stripped}\n")).expect("the client can be written");
}
