//! The package of `packaging/npm`: packed, and installed into a project of Vite and TypeScript, and into one
//! of Node.js. `tests/run` installs Vite and TypeScript.

mod browser;
mod common;
mod packages;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use browser::Browser;
use common::{Folder, Hub};
use packages::installed;
use serde_json::{Value, json};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// What a command prints, which must succeed.
#[track_caller]
fn printed(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).current_dir(folder).args(arguments).output().unwrap();
    let [printed, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{program} {arguments:?}: {printed}{errors}");
    printed
}

/// Packs the package in a copy of its folder and of what goes into it. Returns what npm says of it.
fn pack(folder: &Folder) -> (PathBuf, Value) {
    let copy = |name: &str| {
        let to = folder.path.join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(Path::new(ROOT).join(name), to).unwrap();
    };
    ["assets/tabcast.js", "assets/tabcast.d.ts", "LICENSE"].iter().for_each(|name| copy(name));
    ["packaging/npm/package.json", "packaging/npm/README.md"].iter().for_each(|name| copy(name));
    let package = folder.path.join("packaging/npm");
    // The scripts print something, too, before and after the JSON.
    printed(&package, "npm", &["pack", "--silent", "--pack-destination", &folder.file("")]);
    let said = printed(&package, "npm", &["pack", "--dry-run", "--json", "--silent"]);
    let said: Value = serde_json::from_str(&said[said.find("[\n").unwrap()..]).unwrap();
    let left: Vec<_> = fs::read_dir(&package).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "what was packed is not left in the repository: {left:?}");
    (folder.path.join(said[0]["filename"].as_str().unwrap()), said[0].clone())
}

/// A project that has the package, with these files.
fn project(files: &[(&str, &str)]) -> Folder {
    let folder = Folder::new();
    let (package, _) = pack(&folder);
    for (name, text) in files {
        fs::write(folder.path.join(name), text).unwrap();
    }
    fs::write(folder.path.join("package.json"), r#"{ "private": true, "type": "module" }"#).unwrap();
    let install = ["install", "--offline", "--no-audit", "--no-fund", package.to_str().unwrap()];
    printed(&folder.path, "npm", &install);
    folder
}

#[test]
fn the_package_is_the_client_its_types_and_the_licence_in_the_hubs_version() {
    let folder = Folder::new();
    let (_, said) = pack(&folder);
    let files: Vec<_> = said["files"].as_array().unwrap().iter().map(|file| &file["path"]).collect();
    assert_eq!(json!(files), json!(["LICENSE", "README.md", "index.d.ts", "index.js", "package.json"]));
    assert_eq!((&said["name"], &said["version"]), (&json!("tabcast"), &json!(env!("CARGO_PKG_VERSION"))));
    let project = project(&[]);
    for (name, asset) in [("index.js", "tabcast.js"), ("index.d.ts", "tabcast.d.ts")] {
        let file = fs::read(project.path.join("node_modules/tabcast").join(name)).unwrap();
        assert!(file == fs::read(Path::new(ROOT).join("assets").join(asset)).unwrap(), "{name}");
    }
}

#[test]
fn a_page_that_vite_builds_of_typescript_uses_the_package_with_the_hubs_url() {
    let project = project(&[
        (
            "index.html",
            "<ul id=messages></ul><button>Send</button><script type=module src=/main.ts></script>",
        ),
        (
            "main.ts",
            "import { connect, type Message } from 'tabcast';
             try { connect(); } catch (error) { document.title = String(error); }
             const hub = connect<{ 'chat message': string }>(location.origin);
             hub.on('connect', () => document.body.classList.add('connected'));
             hub.on('chat message', (text, { id }: Message) => {
               const item = document.createElement('li');
               item.append(text.trim(), id && '!');
               document.getElementById('messages')!.append(item);
             });
             // @ts-expect-error: its data is a string.
             export const wrong = () => hub.emit('chat message', 1);
             document.querySelector('button')!.onclick = () => hub.emit('chat message', 'Hello');",
        ),
        (
            "tsconfig.json",
            r#"{ "compilerOptions": { "target": "esnext", "module": "esnext", "moduleResolution": "bundler",
                 "strict": true, "noEmit": true, "types": [] }, "files": ["main.ts"] }"#,
        ),
    ]);
    let types =
        Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("types/node_modules/typescript/bin/tsc");
    printed(&project.path, "node", &[types.to_str().unwrap()]);
    let vite = installed().join("vite/bin/vite.js");
    printed(&project.path, "node", &[vite.to_str().unwrap(), "build"]);
    let (hub, browser) = (Hub::start(&["--public", &project.file("dist")]), Browser::start());
    let tabs = [(); 2].map(|()| browser.open(&format!("http://{}/", hub.address)));
    tabs.iter().for_each(|tab| tab.wait_for("document.body.className === 'connected'"));
    tabs[0].click("button");
    for tab in &tabs {
        tab.wait_for("document.getElementById('messages').textContent === 'Hello!'");
        assert_eq!(tab.get("document.title"), "TypeError: a copy of this script needs the URL of a hub");
    }
}

#[test]
fn in_node_the_package_needs_an_eventsource_and_says_so_and_works_with_one() {
    let project = project(&[(
        "main.js",
        "import { connect } from 'tabcast';
         const [, , url, eventsource] = process.argv;
         delete globalThis.EventSource;
         const { EventSource } = await import(eventsource);
         const thrown = (...values) => { try { connect(...values); } catch (error) { return `${error}`; } };
         console.log(JSON.stringify([thrown({ EventSource }), thrown(url)]));
         const hub = connect(url, { EventSource });
         hub.on('connect', () => hub.emit('greeting', { from: 'Node.js' }, (id) => console.log(id)));
         hub.on('greeting', (data, { id }) => {
           console.log(JSON.stringify([data, hub.state, id]));
           hub.off('greeting').on('last', process.exit).emit('last', 0);
           // A listener's error ends nothing, here as in a browser.
           throw new Error('mine');
         });",
    )]);
    let hub = Hub::start(&[]);
    let eventsource = installed().join("eventsource/dist/index.js");
    let url = format!("http://{}", hub.address);
    let printed =
        printed(&project.path, "timeout", &["30", "node", "main.js", &url, eventsource.to_str().unwrap()]);
    let mut lines: Vec<_> = printed.lines().map(str::to_owned).collect();
    let id = hub.history("")[0]["id"].clone();
    let refused = json!([
        "TypeError: a copy of this script needs the URL of a hub",
        "TypeError: no EventSource: give one by the option `EventSource`"
    ]);
    assert_eq!(lines.remove(0), refused.to_string());
    lines.sort_unstable();
    let mut expected =
        [json!([{ "from": "Node.js" }, "live", id]).to_string(), id.as_str().unwrap().to_owned()];
    expected.sort_unstable();
    assert_eq!(lines, expected);
}
