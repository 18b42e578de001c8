//! The inputs that the fuzz targets began with or found, one after the other: each check holds for them.
//! `CONTRIBUTING.md` says how to look for more.

#[path = "fuzz/checks.rs"]
mod checks;

use std::fs;
use std::path::Path;

/// Runs the check on each file of the corpus of this name.
fn replay(name: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 3, "{} has {} files", folder.display(), files.len());
    for file in files {
        println!("{}", file.display());
        check(&fs::read(file).unwrap());
    }
}

#[test]
fn any_bytes_are_answered_or_refused_and_the_hub_goes_on() {
    replay("request", checks::request);
}

#[test]
fn a_query_is_what_the_url_standard_says_or_is_refused() {
    replay("query", checks::query);
}

#[test]
fn a_form_is_what_the_url_standard_says_or_is_text_or_is_refused() {
    replay("form", checks::form);
}

#[test]
fn json_loses_its_white_space_and_nothing_else() {
    replay("json", checks::json);
}

#[test]
fn a_cursor_has_one_spelling() {
    replay("cursor", checks::cursor);
}

#[test]
fn a_damaged_journal_is_refused_or_keeps_what_it_acknowledges() {
    replay("journal", checks::journal);
}
