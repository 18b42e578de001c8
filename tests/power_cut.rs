//! A power cut at any moment: nothing that was acknowledged or shown is lost.
//!
//! A hub runs under strace, and all that it does to its folder is recorded, with all that it sends. Then a
//! model of a disk says what may be left in the folder if the power is cut after any of its calls. Each such
//! image is opened, and judged.

#![cfg(target_os = "linux")]
#![allow(unreachable_pub, reason = "each module is written as if it were a crate")]

mod bugs;
mod checker;
mod common;
#[path = "power_cut/disk.rs"]
mod disk;
#[path = "power_cut/judge.rs"]
mod judge;
#[path = "power_cut/scenario.rs"]
mod scenario;
#[path = "power_cut/trace.rs"]
mod trace;
mod traced;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use checker::seed;
use fastrand::Rng;
use judge::{By, judge};
use scenario::{JOURNAL, Left, Running, Scene};

/// How many power cuts there are in all.
fn cuts() -> usize {
    std::env::var("TABCAST_CUTS").map_or(300, |cuts| cuts.parse().expect("TABCAST_CUTS is a number"))
}

/// How many tests share them.
const SCENARIOS: usize = 9;

/// How many images are made of one record. Each record has its faults at other moments.
const PER_RECORD: usize = 17;

/// Every image of this number is opened by a hub of its own, all others by this process.
const BY_BINARY: usize = 10;

/// The bytes of a message of which a page holds two.
const SMALL: usize = 1_500;

/// Those of a message that takes pages of its own, which are free once it is deleted.
const PAGES: usize = 6_000;

/// Those of a message of which ten fill the WAL, so that it is copied to the file.
const LARGE: usize = 900_000;

/// What happens until the power is cut.
struct Scenario<'a> {
    name: &'a str,
    /// What is there at first.
    left: &'a dyn Fn(&mut Rng) -> Left,
    play: &'a dyn Fn(&mut Scene<'_>),
    per_record: usize,
}

/// How many images break a promise of this kind, and an example.
type Violations = BTreeMap<&'static str, (usize, String)>;

impl Scenario<'_> {
    /// A scenario in an empty folder.
    fn new<'a>(name: &'a str, play: &'a dyn Fn(&mut Scene<'_>)) -> Scenario<'a> {
        Scenario { name, left: &|_| Left::default(), play, per_record: PER_RECORD }
    }

    /// Plays it with hubs that run this program, and cuts the power so many times.
    fn violations(&self, hub: &Path, cuts: usize) -> Violations {
        let mut rng = Rng::with_seed(seed());
        let mut violations = Violations::new();
        let (mut images, mut kind) = (0, 0);
        for number in 0.. {
            let count = (cuts - images).min(self.per_record);
            if count == 0 {
                break;
            }
            let mut scene = Scene::new(hub, (self.left)(&mut rng), number, rng.fork());
            (self.play)(&mut scene);
            let (retention, record) = (scene.retention, scene.record());
            let end = images + count;
            while images < end {
                kind += 1;
                let Some((left, how)) = record.cut(kind, &mut rng) else { continue };
                images += 1;
                let by = if images.is_multiple_of(BY_BINARY) { By::Binary } else { By::Library };
                // An image counts once for each kind.
                for (kind, what) in judge(&left, retention, by).into_iter().collect::<BTreeMap<_, _>>() {
                    let example = || (0, format!("{what}\n  by {by:?} {how}"));
                    violations.entry(kind).or_insert_with(example).0 += 1;
                }
            }
        }
        println!("{}: {images} images", self.name);
        violations
    }

    /// Panics if a promise is broken in any image.
    fn assert_kept(&self) {
        let violations =
            self.violations(Path::new(env!("CARGO_BIN_EXE_tabcast")), cuts().div_ceil(SCENARIOS));
        let lines = violations.iter().map(|(kind, (count, example))| format!("{kind}: {count}; {example}"));
        assert!(violations.is_empty(), "{}:\n{}", self.name, lines.collect::<Vec<_>>().join("\n"));
    }
}

/// Starts a hub with these faults. Publishes until it ends, and kills it if it goes on. Returns the marks of
/// what was not acknowledged.
fn publish_until_it_ends(scene: &mut Scene<'_>, faults: &[&str], size: usize) -> Vec<String> {
    let Some(hub) = scene.start_with(faults) else { return Vec::new() };
    let refused = scene.publish(&hub, 3, 20, size);
    if refused.is_empty() {
        scene.end(hub, "KILL");
    } else {
        scene.ended(hub);
    }
    refused
}

/// The hub is killed when a thread of it makes the fsync of this number.
fn kill_at(number: usize) -> String {
    format!("fsync,fdatasync:signal=KILL:when={number}")
}

/// The fsync of this number of a thread fails.
fn fail_at(number: usize) -> String {
    format!("fsync,fdatasync:error=EIO:when={number}")
}

/// Starts a hub that shows what the one before has left, and takes retries of what that did not acknowledge.
fn go_on(scene: &mut Scene<'_>, refused: Vec<String>) {
    let hub = scene.start();
    scene.wait_until_shown(&hub);
    scene.retry(&hub, refused);
    publish(scene, &hub, 2, 5, SMALL);
    scene.end(hub, "TERM");
}

/// Publishes all of this, and waits until it is shown.
fn publish(scene: &mut Scene<'_>, hub: &Running, publishers: usize, count: usize, size: usize) {
    assert_eq!(scene.publish(hub, publishers, count, size), [""; 0]);
    scene.wait_until_shown(hub);
}

/// A hub that starts, takes a few messages, and ends.
fn few(scene: &mut Scene<'_>) {
    let hub = scene.start();
    publish(scene, &hub, 2, 3, 100);
    scene.end(hub, "TERM");
}

/// Makes the file, which other tests are about.
fn make(scene: &mut Scene<'_>) {
    few(scene);
    scene.cuts_from_here();
}

fn first_start(scene: &mut Scene<'_>) {
    // A hub before may have been killed while it made the file.
    if scene.rng.bool() {
        let number = scene.rng.usize(1..16);
        publish_until_it_ends(scene, &[&kill_at(number)], SMALL);
    }
    few(scene);
}

fn load(scene: &mut Scene<'_>) {
    make(scene);
    for _ in 0..2 {
        let hub = scene.start();
        publish(scene, &hub, 3, 10, SMALL);
        publish(scene, &hub, 1, 5, 10);
        scene.end(hub, "TERM");
    }
}

fn checkpoint(scene: &mut Scene<'_>) {
    // Few: the images are opened the faster.
    scene.retention = 8;
    make(scene);
    let hub = scene.start();
    publish(scene, &hub, 3, 5, SMALL);
    publish(scene, &hub, 1, 10, LARGE);
    publish(scene, &hub, 3, 5, SMALL);
    scene.end(hub, "TERM");
}

fn sweep(scene: &mut Scene<'_>) {
    scene.retention = 20;
    make(scene);
    for _ in 0..2 {
        let hub = scene.start();
        publish(scene, &hub, 3, 30, SMALL);
        scene.end(hub, "TERM");
    }
}

fn killed(scene: &mut Scene<'_>) {
    let hub = scene.start();
    publish(scene, &hub, 3, 5, SMALL);
    scene.end(hub, "KILL");
    let number = scene.rng.usize(5..20);
    let refused = publish_until_it_ends(scene, &[&kill_at(number)], SMALL);
    scene.cuts_from_here();
    go_on(scene, refused);
}

fn failed_fsync(scene: &mut Scene<'_>) {
    scene.retention = 20;
    let hub = scene.start();
    publish(scene, &hub, 3, 10, PAGES);
    // The next hub's WAL is then empty: it deletes rows of pages that are in the file only.
    scene.end(hub, "TERM");
    scene.cuts_from_here();
    let number = scene.rng.usize(3..9);
    // So slow that there is time to delete old messages after each.
    let faults = [&*fail_at(number), "accept4:delay_exit=60000"];
    let refused = publish_until_it_ends(scene, &faults, PAGES);
    go_on(scene, refused);
}

fn failed_fsync_of_the_folder(scene: &mut Scene<'_>) {
    make(scene);
    // The folder's is one of the first, and the second in most cases.
    let number = [2, 1, 3, 4][scene.number % 4];
    let refused = publish_until_it_ends(scene, &[&fail_at(number)], SMALL);
    go_on(scene, refused);
}

#[test]
fn while_the_file_is_made_for_the_first_time() {
    Scenario::new("first start", &first_start).assert_kept();
}

#[test]
fn while_messages_are_published() {
    Scenario::new("load", &load).assert_kept();
}

#[test]
fn while_the_wal_is_copied_to_the_file_and_started_over() {
    // A record takes seconds.
    Scenario { per_record: 4 * PER_RECORD, ..Scenario::new("checkpoint", &checkpoint) }.assert_kept();
}

#[test]
fn while_old_messages_are_dropped() {
    Scenario::new("sweep", &sweep).assert_kept();
}

#[test]
fn after_a_hub_was_killed_and_another_has_shown_what_it_left() {
    Scenario::new("killed", &killed).assert_kept();
}

#[test]
fn after_an_fsync_has_failed_and_another_hub_has_started() {
    Scenario::new("failed fsync", &failed_fsync).assert_kept();
}

#[test]
fn after_an_fsync_of_the_folder_has_failed() {
    Scenario::new("failed fsync of the folder", &failed_fsync_of_the_folder).assert_kept();
}

#[test]
fn after_another_power_cut() {
    let hub = Path::new(env!("CARGO_BIN_EXE_tabcast"));
    let left = |rng: &mut Rng| {
        let mut scene = Scene::new(hub, Left::default(), 0, rng.fork());
        load(&mut scene);
        let record = scene.record();
        (0..).find_map(|_| record.cut(rng.usize(..), rng)).unwrap().0
    };
    Scenario { left: &left, ..Scenario::new("two cuts", &few) }.assert_kept();
}

#[test]
fn while_a_file_of_version_1_is_migrated_with_what_its_hub_left_in_the_wal() {
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/version-1.db");
    let file = |suffix| (format!("{JOURNAL}{suffix}"), std::fs::read(format!("{fixture}{suffix}")).unwrap());
    let marks = (3..=12).map(|number| (format!("nri7xzbz-{number}"), format!("message {number}")));
    let marks: BTreeMap<_, _> = marks.collect();
    let known: BTreeSet<_> = marks.keys().cloned().collect();
    let left = Left { files: ["", "-wal"].map(file).into(), marks, known };
    Scenario { left: &|_| left.clone(), ..Scenario::new("migration", &few) }.assert_kept();
}

#[test]
fn no_call_on_the_folder_is_left_out_of_the_record() {
    let hub = Path::new(env!("CARGO_BIN_EXE_tabcast"));
    let mut scene = Scene::new(hub, Left::default(), 0, Rng::with_seed(seed()));
    // What is traced is parsed, and the parser knows each call on the folder.
    scene.filter = "trace=all".to_owned();
    checkpoint(&mut scene);
    let refused = publish_until_it_ends(&mut scene, &[&fail_at(3)], SMALL);
    go_on(&mut scene, refused);
    scene.record();
}

/// In a few images of this scenario, it shows that a hub has the bug.
fn assert_noticed(bug: &str, scenario: &Scenario<'_>) {
    let hub = bugs::hub(bug);
    let is_noticed = |_| {
        let violations = scenario.violations(&hub, 20);
        let counts: Vec<_> = violations.iter().map(|(kind, (count, _))| format!("{kind}: {count}")).collect();
        println!("{bug}: {}", counts.join(", "));
        violations.contains_key("lost")
    };
    assert!((0..20).any(is_noticed), "{bug} is not noticed");
}

#[test]
fn it_is_noticed_if_nothing_is_put_on_the_disk() {
    assert_noticed("no-fsync", &Scenario::new("load", &load));
}

#[test]
fn it_is_noticed_if_names_are_not_put_on_the_disk() {
    assert_noticed("name-not-synced", &Scenario::new("folder", &failed_fsync_of_the_folder));
}

#[test]
fn it_is_noticed_if_a_start_does_not_make_last_what_it_finds() {
    assert_noticed("settle-left-out", &Scenario::new("killed", &killed));
}
