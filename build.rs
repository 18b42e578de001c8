//! Strips the browser client, `assets/tabcast.js`, of what only its readers need, makes a classic script of it as
//! well, and compresses each file that the hub serves. The hub has every one in both forms.

#[path = "assets/strip.rs"]
mod strip;

use std::io::Write;
use std::path::Path;
use std::{env, fs};

use flate2::Compression;
use flate2::write::GzEncoder;

const SOURCE: &str = "assets/tabcast.js";
const SERVED: [&str; 6] = ["index.html", "app.css", "app.js", "icon.svg", "tabcast.js", "tabcast.d.ts"];
const FIRST_LINE: &str = "// Stripped. The source: ./tabcast.src.js, the types: ./tabcast.d.ts";

fn main() {
    SERVED.iter().for_each(|name| println!("cargo::rerun-if-changed=assets/{name}"));
    println!("cargo::rerun-if-changed=assets/strip.rs");
    let source = fs::read_to_string(SOURCE).unwrap_or_else(|error| panic!("{SOURCE}: {error}"));
    let stripped = strip::strip(&source).unwrap_or_else(|reason| panic!("{SOURCE}: {reason}"));
    let folder = env::var_os("OUT_DIR").expect("cargo says where a build script writes");
    let write = |name: &str, bytes: &[u8]| {
        fs::write(Path::new(&folder).join(name), bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    };
    let client = format!("{FIRST_LINE}\n{stripped}\n");
    write("tabcast.js", client.as_bytes());
    write("tabcast.js.gz", &compressed(client.as_bytes()));
    let classic = strip::classic(&stripped).unwrap_or_else(|reason| panic!("{SOURCE}: {reason}"));
    let classic = format!("{FIRST_LINE}\n{classic}\n");
    write("io.js", classic.as_bytes());
    write("io.js.gz", &compressed(classic.as_bytes()));
    for name in SERVED {
        let bytes =
            fs::read(Path::new("assets").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let name = if name == "tabcast.js" { "tabcast.src.js" } else { name };
        write(&format!("{name}.gz"), &compressed(&bytes));
    }
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory takes all")
}
