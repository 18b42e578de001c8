//! The documents: the README is short, every line fits, every link leads somewhere, and one thing has
//! one word.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The folder of the package.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The text of a file, by its path below the root.
fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The paths of all documents below the root: of those that lie there, and of those in `docs`.
fn documents() -> Vec<PathBuf> {
    let mut documents = Vec::new();
    for folder in ["", "docs"] {
        for file in fs::read_dir(root().join(folder)).unwrap() {
            let path = Path::new(folder).join(file.unwrap().file_name());
            if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    assert!(documents.len() > 8, "{documents:?}");
    documents
}

/// Fails with every fault that `check` finds in a document, by the document's path.
fn assert_no_faults(check: impl Fn(&Path, &str) -> Vec<String>) {
    let mut faults = Vec::new();
    for path in documents() {
        let found = check(&path, &read(&path));
        faults.extend(found.iter().map(|fault| format!("{}: {fault}", path.display())));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The lines outside of blocks of code, each with its number.
fn text_lines(document: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    document.lines().enumerate().filter_map(move |(at, line)| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        (!in_code && !is_fence).then_some((at + 1, line))
    })
}

/// The line without its spans of code.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

// Length.

#[test]
fn the_readme_has_less_than_a_thousand_words() {
    let words = read("README.md").split_whitespace().count();
    assert!(words < 1_000, "{words} words");
}

/// Lines of more than so many columns.
fn long_lines(document: &str, most: usize) -> Vec<String> {
    let lines = document.lines().enumerate().map(|(at, line)| (at + 1, line.chars().count()));
    lines
        .filter(|(_, columns)| *columns > most)
        .map(|(number, columns)| format!("line {number} has {columns} columns"))
        .collect()
}

#[test]
fn no_line_of_a_document_has_more_than_160_columns() {
    assert_no_faults(|_, document| long_lines(document, 160));
}

#[test]
fn a_long_line_is_found() {
    let lines = [&"é".repeat(160), "", &"x".repeat(161)].join("\n");
    assert_eq!(long_lines(&lines, 160), ["line 3 has 161 columns"]);
}

// Links.

/// The targets of the document's links and pictures, each with its line's number.
fn links(document: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in text_lines(document) {
        let line = without_code(line);
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        links.extend(targets.map(|target| (number, target.to_owned())));
    }
    links
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(document: &str) -> HashSet<String> {
    let mut anchors = HashSet::new();
    for (_, line) in text_lines(document).filter(|(_, line)| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let mut number = 0;
        let mut own = anchor.clone();
        while !anchors.insert(own.clone()) {
            number += 1;
            own = format!("{anchor}-{number}");
        }
    }
    anchors
}

/// The links of the document at this path that lead to no file, or to no heading of it. Links to
/// other sites are passed over.
fn broken_links(path: &Path, document: &str) -> Vec<String> {
    let folder = path.parent().unwrap();
    let mut broken = Vec::new();
    for (number, link) in links(document) {
        if link.contains("://") {
            continue;
        }
        let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
        let target = if file.is_empty() { path.to_owned() } else { folder.join(file) };
        if !root().join(&target).exists() {
            broken.push(format!("line {number}: there is no {file}"));
        } else if !anchor.is_empty() && !anchors(&read(target)).contains(anchor) {
            broken.push(format!("line {number}: {link} is no heading"));
        }
    }
    broken
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_are_there() {
    assert_no_faults(broken_links);
}

#[test]
fn a_broken_link_is_found() {
    let readme = Path::new("README.md");
    let document = "[a](docs/delivery.md#gaps) `[b](nowhere.md)` [c](https://example.org/x.md)\n\
        ```sh\n[d](nowhere.md)\n```\n\
        ![e](nowhere.svg) and [`f`](docs/delivery.md#nowhere)";
    assert_eq!(
        broken_links(readme, document),
        ["line 5: there is no nowhere.svg", "line 5: docs/delivery.md#nowhere is no heading"]
    );
    // From where the document lies.
    assert_eq!(broken_links(Path::new("docs/a.md"), "[a](delivery.md) [b](../LICENSE)").len(), 0);
    assert_eq!(broken_links(Path::new("docs/a.md"), "[a](README.md)").len(), 1);
}

#[test]
fn an_anchor_is_its_heading_as_github_makes_it() {
    let headings = "# `POST /messages`: publish\n## Gaps\n```sh\n# no heading\n```\n### Gaps\n";
    let expected = ["post-messages-publish", "gaps", "gaps-1"].map(str::to_owned);
    assert_eq!(anchors(headings), HashSet::from(expected));
}

// Words.

const ARCHITECTURE: &str = "docs/architecture.md";

/// The heading under which the words are listed, and others' words beside them.
const WORDS: &str = "## Words";

/// What `docs/architecture.md` lists as words to avoid, but for those that have one good meaning.
fn words_to_avoid() -> Vec<String> {
    let document = read(ARCHITECTURE);
    let (_, list) = document.split_once("\nWords to avoid: ").expect("there is a list");
    let (list, _) = list.split_once('.').expect("the list ends");
    let words = list.split(',').filter(|word| !word.contains('(')).map(|word| word.trim().to_owned());
    words.collect()
}

/// Where one of these words, or its plural, stands in the document's text.
fn avoided_words(document: &str, words: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text_lines(document) {
        let line = without_code(line).to_lowercase();
        for word in line.split(|c: char| !c.is_alphanumeric()) {
            if words
                .iter()
                .any(|avoided| word.strip_prefix(&**avoided).is_some_and(|end| ["", "s"].contains(&end)))
            {
                found.push(format!("line {number} says {word}"));
            }
        }
    }
    found
}

#[test]
fn no_document_says_a_word_to_avoid() {
    let words = words_to_avoid();
    assert!(words.len() > 10 && words.iter().all(|word| word.chars().all(char::is_alphabetic)), "{words:?}");
    assert_no_faults(|path, document| {
        if path != Path::new(ARCHITECTURE) {
            return avoided_words(document, &words);
        }
        let (before, list) = document.split_once(WORDS).unwrap();
        let (_, after) = list.split_once("\n## ").unwrap();
        [avoided_words(before, &words), avoided_words(after, &words)].concat()
    });
}

/// Names that are others', with a word to avoid in them.
const NAMES_OF_OTHERS: &[&str] = &[
    "Visit",
    "visit_",
    "service_fn",
    "service::",
    "Service,",
    "services::ServeFile",
    "tower::Service",
    "SERVICE_UNAVAILABLE",
    "pragma_update",
    "hash.update",
    "UPDATE",
    "hyper_util",
    "tokio_util",
    "http_body_util",
];

#[test]
fn no_code_of_the_hub_says_a_word_to_avoid() {
    let words = words_to_avoid();
    let mut faults = Vec::new();
    for path in files("src", &["rs"]) {
        let code = NAMES_OF_OTHERS.iter().fold(read(&path), |code, name| code.replace(name, ""));
        for (line, number) in code.lines().zip(1..) {
            let found = line.split(|c: char| !c.is_alphanumeric()).find(|word| {
                let word = word.to_lowercase();
                words.iter().any(|avoided| word == *avoided || word == format!("{avoided}s"))
            });
            faults.extend(found.map(|word| format!("{path}: line {number} says {word}")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_word_to_avoid_is_found() {
    let words = ["room".to_owned()];
    let document = "A Room's\nmushroom\n`room`\n```text\nroom\n```\nand two rooms.";
    assert_eq!(avoided_words(document, &words), ["line 1 says room", "line 7 says rooms"]);
}

// Files.

/// The files below this folder of the root whose names have one of these extensions, by their paths
/// below the root.
fn files(folder: &str, extensions: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{folder}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files.extend(self::files(&path, extensions));
        } else if path.rsplit_once('.').is_some_and(|(_, extension)| extensions.contains(&extension)) {
            files.push(path);
        }
    }
    files
}

/// Where the architecture does not have each of these files of `src` in one row, with a sentence, or
/// has or draws one that is not among them.
fn faults_of_the_map(architecture: &str, files: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let is_file = |path: &str| files.iter().any(|file| file == path);
    let mut mapped = HashSet::new();
    let rows = architecture.lines().filter_map(|line| line.strip_prefix("| `")?.split_once(".rs` | "));
    for (path, sentence) in rows {
        let path = format!("src/{path}.rs");
        if !is_file(&path) {
            faults.push(format!("there is no {path}"));
        }
        if sentence.trim_end_matches(" |").len() < 10 {
            faults.push(format!("{path} has no sentence"));
        }
        if !mapped.insert(path.clone()) {
            faults.push(format!("{path} stands there twice"));
        }
    }
    faults
        .extend(files.iter().filter(|file| !mapped.contains(*file)).map(|file| format!("{file} is missing")));
    for drawing in architecture.split("```").skip(1).step_by(2) {
        let names = drawing.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '/'));
        for name in
            names.filter(|name| name.contains('/') && name.starts_with(|c: char| c.is_ascii_lowercase()))
        {
            if !is_file(&format!("src/{name}.rs")) {
                faults.push(format!("{name} is drawn, and there is no src/{name}.rs"));
            }
        }
    }
    faults
}

#[test]
fn the_architecture_has_a_sentence_for_each_file_of_src_and_no_other() {
    let faults = faults_of_the_map(&read(ARCHITECTURE), &files("src", &["rs"]));
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn a_fault_of_the_map_is_found() {
    let files = ["src/a.rs", "src/a/b.rs", "src/c.rs"].map(str::to_owned);
    let architecture = "```text\nGET /events in HTTP/1.1\na/b ──▶ a/drawn\n```\n\
        | `a.rs` | What it is, and why. |\n| `a.rs` | What it is, again. |\n| `gone.rs` | What it was. |\n\
        | `c.rs` |  |\n";
    assert_eq!(
        faults_of_the_map(architecture, &files),
        [
            "src/a.rs stands there twice",
            "there is no src/gone.rs",
            "src/c.rs has no sentence",
            "src/a/b.rs is missing",
            "a/drawn is drawn, and there is no src/a/drawn.rs",
        ]
    );
}

#[test]
fn the_notices_accept_the_licences_that_the_hub_may_have() {
    let list = |path: &str, keys: &[&str]| {
        let table: toml::Value = toml::from_str(&read(path)).unwrap();
        let list = keys.iter().fold(&table, |value, key| &value[*key]);
        let names = list.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
        names.collect::<HashSet<_>>()
    };
    assert_eq!(list("packaging/about.toml", &["accepted"]), list("deny.toml", &["licenses", "allow"]));
}

#[test]
fn no_line_of_code_has_more_than_110_columns() {
    let folders = ["src", "tests", "benches", "assets"];
    let code: Vec<_> = folders.iter().flat_map(|folder| files(folder, &["rs", "js", "mjs"])).collect();
    assert!(code.len() > 50, "{code:?}");
    let mut faults = Vec::new();
    for path in code {
        faults.extend(long_lines(&read(&path), 110).iter().map(|fault| format!("{path}: {fault}")));
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}
