//! A model of a disk: what may be on it after a power cut, by the calls that were made before.
//!
//! - What was written to a file since its last fsync may be there or not: each write by itself, in any order,
//!   torn at sectors, or with a sector that is neither old nor new.
//! - An fsync makes a file's bytes and its size durable, but not its name. That of the folder makes names
//!   durable. Until then a name may be there, or gone, or not.
//! - A failed fsync makes nothing durable. The pages may be dropped although the processes go on to see them:
//!   no later fsync makes them durable, only a write of the same bytes and an fsync of those. Names that a
//!   failed fsync has left are made durable by the next that succeeds.

use std::collections::BTreeMap;

use fastrand::Rng;

use crate::trace::Call;

/// The files of the folder by their names.
pub type Image = BTreeMap<String, Vec<u8>>;

/// All that was done to the folder. Of two lines of the trace, the first was earlier.
#[derive(Debug)]
pub struct Disk {
    folder: String,
    /// The file of each name, as the processes see it at last.
    names: BTreeMap<String, usize>,
    /// How many files there ever were.
    files: usize,
    /// In the order in which it began.
    done: Vec<Done>,
}

#[derive(Debug)]
struct Done {
    change: Change,
    began: usize,
    /// Only an fsync that began later makes it durable.
    ended: usize,
    /// The line from which on it is durable.
    synced: usize,
    /// The line on which its fsync failed: no later one makes it durable.
    failed: usize,
}

#[derive(Debug)]
enum Change {
    Write { file: usize, offset: usize, bytes: Vec<u8> },
    Resize { file: usize, length: usize },
    Add { name: String, file: usize },
    Rename { from: String, to: String },
    Remove { name: String },
}

const NEVER: usize = usize::MAX;

/// What a power cut does to the changes that are not durable.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    None,
    All,
    AllButFailed,
    /// The earliest.
    Prefix,
    /// The latest: what was written later is there, what was written earlier is not.
    Suffix,
    Subset,
    /// Of each write some sectors.
    Torn,
    /// All, but a sector of one write is neither old nor new.
    Garbled,
}

/// What a power cut does to one change.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Kept,
    Lost,
    /// Sectors of this size are kept or lost, each by itself.
    Torn(usize),
    /// A sector of this size has other bytes.
    Garbled(usize),
}

const OF_BYTES: [Cut; 8] =
    [Cut::None, Cut::All, Cut::AllButFailed, Cut::Prefix, Cut::Suffix, Cut::Subset, Cut::Torn, Cut::Garbled];
const OF_NAMES: [Cut; 5] = [Cut::None, Cut::All, Cut::All, Cut::Prefix, Cut::Subset];
const SECTORS: [usize; 2] = [512, 4096];

impl Disk {
    /// A disk whose folder had these files, and all that these calls have done.
    pub fn new<'a>(folder: &str, start: &Image, calls: impl IntoIterator<Item = &'a Call>) -> Disk {
        let mut disk = Disk { folder: folder.to_owned(), names: BTreeMap::new(), files: 0, done: Vec::new() };
        for (name, bytes) in start {
            disk.add(name.clone(), (0, 0));
            let file = disk.names[name];
            disk.push(Change::Write { file, offset: 0, bytes: bytes.clone() }, (0, 0));
        }
        disk.done.iter_mut().for_each(|done| done.synced = 0);
        calls.into_iter().for_each(|call| disk.apply(call));
        disk
    }

    fn apply(&mut self, call: &Call) {
        let lines = (call.began, call.ended);
        match &*call.name {
            "openat" if call.has_flag("O_CREAT") || call.has_flag("O_TRUNC") => {
                let Some(name) = self.name(&call.paths()[0]) else { return };
                if !self.names.contains_key(&name) {
                    self.add(name, lines);
                } else if call.has_flag("O_TRUNC") {
                    self.push(Change::Resize { file: self.names[&name], length: 0 }, lines);
                }
            }
            "pwrite64" | "pwritev" => {
                let Some(file) = self.file(call) else { return };
                let (offset, bytes) = (call.last_number(), call.bytes());
                self.push(Change::Write { file, offset, bytes }, lines);
            }
            "ftruncate" => {
                let Some(file) = self.file(call) else { return };
                self.push(Change::Resize { file, length: call.last_number() }, lines);
            }
            "link" | "linkat" | "rename" | "renameat" | "renameat2" => {
                let [Some(from), Some(to)] = [0, 1].map(|at| self.name(&call.paths()[at])) else { return };
                let file = self.names[&from];
                self.names.insert(to.clone(), file);
                if call.name.starts_with("link") {
                    self.push(Change::Add { name: to, file }, lines);
                } else {
                    self.names.remove(&from);
                    self.push(Change::Rename { from, to }, lines);
                }
            }
            "unlink" | "unlinkat" => {
                let Some(name) = self.name(&call.paths()[0]) else { return };
                self.names.remove(&name).expect("what is removed was there");
                self.push(Change::Remove { name }, lines);
            }
            "fsync" | "fdatasync" => self.sync(call),
            _ => {}
        }
    }

    /// The name in the folder. `None` of the WAL's index: it is made anew after a crash.
    fn name(&self, path: &str) -> Option<String> {
        let name = path.strip_prefix(&self.folder).and_then(|rest| rest.strip_prefix('/'));
        let name = name.expect("a path in the folder");
        (!name.ends_with("-shm")).then(|| name.to_owned())
    }

    fn file(&self, call: &Call) -> Option<usize> {
        let name = self.name(call.descriptor())?;
        Some(*self.names.get(&name).unwrap_or_else(|| panic!("a file without a name: {}", call.summary())))
    }

    fn add(&mut self, name: String, lines: (usize, usize)) {
        self.names.insert(name.clone(), self.files);
        self.push(Change::Add { name, file: self.files }, lines);
        self.files += 1;
    }

    fn push(&mut self, change: Change, (began, ended): (usize, usize)) {
        self.done.push(Done { change, began, ended, synced: NEVER, failed: NEVER });
    }

    fn sync(&mut self, call: &Call) {
        let file = if call.descriptor() == self.folder { None } else { self.file(call) };
        let is_its = |done: &&mut Done| done.change.file() == file && done.ended < call.began;
        for done in self.done.iter_mut().filter(is_its) {
            if call.result != Some(0) && file.is_some() {
                done.failed = done.failed.min(call.ended);
            } else if call.result == Some(0) && done.failed == NEVER {
                done.synced = done.synced.min(call.ended);
            }
        }
    }

    /// Whether nothing can be lost if the power is cut after this line.
    pub fn is_clean(&self, line: usize) -> bool {
        !self.done.iter().any(|done| done.began <= line && line < done.synced)
    }

    /// What is on the disk if the power is cut after this line.
    pub fn image(&self, line: usize, cut: (Cut, Cut), rng: &mut Rng) -> Image {
        let done = &self.done[..self.done.partition_point(|done| done.began <= line)];
        let mut files = vec![Vec::new(); self.files];
        let mut names = BTreeMap::new();
        for (done, fate) in done.iter().zip(fates(done, line, cut, rng)) {
            match (&done.change, fate) {
                (_, Fate::Lost) => {}
                (Change::Write { file, offset, bytes }, fate) => {
                    write(&mut files[*file], *offset, bytes, fate, rng);
                }
                (Change::Resize { file, length }, _) => files[*file].resize(*length, 0),
                (Change::Add { name, file }, _) => drop(names.insert(name, *file)),
                (Change::Rename { from, to }, _) => {
                    if let Some(file) = names.remove(from) {
                        names.insert(to, file);
                    }
                }
                (Change::Remove { name }, _) => drop(names.remove(name)),
            }
        }
        names.into_iter().map(|(name, file)| (name.clone(), files[file].clone())).collect()
    }
}

/// The fate of each change if the power is cut after this line.
fn fates(done: &[Done], line: usize, (of_bytes, of_names): (Cut, Cut), rng: &mut Rng) -> Vec<Fate> {
    let mut fates = vec![Fate::Kept; done.len()];
    for (is_of_names, cut) in [(false, of_bytes), (true, of_names)] {
        let is_open = |done: &Done| line < done.synced && done.change.file().is_none() == is_of_names;
        let open: Vec<_> = (0..done.len()).filter(|at| is_open(&done[*at])).collect();
        let bound = rng.usize(0..=open.len());
        for (place, at) in open.iter().enumerate() {
            let is_kept = match cut {
                Cut::None => false,
                Cut::All | Cut::Garbled => true,
                Cut::AllButFailed => line < done[*at].failed,
                Cut::Prefix => place < bound,
                Cut::Suffix => place >= bound,
                Cut::Subset | Cut::Torn => rng.bool(),
            };
            fates[*at] = if is_kept { Fate::Kept } else { Fate::Lost };
            if matches!(cut, Cut::Torn) {
                fates[*at] = Fate::Torn(SECTORS[rng.usize(..2)]);
            }
        }
        if matches!(cut, Cut::Garbled) {
            // Often a file's first page, on which most depends.
            let is_first = |at: &&usize| matches!(done[**at].change, Change::Write { offset: 0, .. });
            let firsts: Vec<_> = open.iter().filter(is_first).copied().collect();
            let among = if rng.bool() && !firsts.is_empty() { firsts } else { open };
            if let Some(at) = rng.choice(among) {
                fates[at] = Fate::Garbled(SECTORS[rng.usize(..2)]);
            }
        }
    }
    fates
}

/// A random cut of bytes, and of names.
pub fn cut(rng: &mut Rng) -> (Cut, Cut) {
    (OF_BYTES[rng.usize(..OF_BYTES.len())], OF_NAMES[rng.usize(..OF_NAMES.len())])
}

impl Change {
    /// The file whose bytes or size it changes; `None` if it changes names.
    fn file(&self) -> Option<usize> {
        match self {
            Change::Write { file, .. } | Change::Resize { file, .. } => Some(*file),
            Change::Add { .. } | Change::Rename { .. } | Change::Remove { .. } => None,
        }
    }
}

fn write(file: &mut Vec<u8>, offset: usize, bytes: &[u8], fate: Fate, rng: &mut Rng) {
    let sector = match fate {
        Fate::Torn(sector) | Fate::Garbled(sector) => sector,
        Fate::Kept | Fate::Lost => usize::MAX,
    };
    let end = offset + bytes.len();
    let mut start = offset;
    let garbled = rng.usize(offset / sector..=end.saturating_sub(1).max(offset) / sector);
    while start < end {
        let stop = (start / sector).saturating_add(1).saturating_mul(sector).min(end);
        let part = &bytes[start - offset..stop - offset];
        match fate {
            Fate::Torn(_) if rng.bool() => {}
            Fate::Garbled(_) if start / sector == garbled => {
                let garbage: Vec<u8> = part.iter().map(|_| rng.u8(..)).collect();
                put(file, start, &garbage);
            }
            _ => put(file, start, part),
        }
        start = stop;
    }
    // The size may be there without the bytes.
    if matches!(fate, Fate::Torn(_)) && file.len() < end && rng.bool() {
        file.resize(end, 0);
    }
}

fn put(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if file.len() < offset {
        file.resize(offset, 0);
    }
    let within = bytes.len().min(file.len() - offset);
    file[offset..offset + within].copy_from_slice(&bytes[..within]);
    file.extend_from_slice(&bytes[within..]);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::trace::parse;

    fn disk(trace: &str) -> Disk {
        let start = Image::from([("a".to_owned(), b"old".to_vec())]);
        Disk::new("/f", &start, &parse(trace, 1, "/f"))
    }

    /// The contents of `a` and `b` in many images after these calls, `-` for a file that is not there.
    fn images(calls: &[&str]) -> BTreeSet<String> {
        let trace = calls.iter().map(|call| format!("7 {call}\n")).collect::<String>();
        let disk = disk(&trace);
        let mut rng = Rng::with_seed(1);
        let mut image = || {
            let cut = cut(&mut rng);
            // What a garbled sector has depends on chance.
            let image = (!matches!(cut.0, Cut::Garbled)).then(|| disk.image(100, cut, &mut rng))?;
            let content = |name| image.get(name).map_or("-".into(), |bytes| String::from_utf8_lossy(bytes));
            Some(format!("{} {}", content("a"), content("b")).replace('\0', "0"))
        };
        (0..2_000).filter_map(|_| image()).collect()
    }

    fn set(images: &[&str]) -> BTreeSet<String> {
        images.iter().map(|image| (*image).to_owned()).collect()
    }

    const WRITE: &str = "pwrite64(3</f/a>, \"new\", 3, 0) = 3";
    const MORE: &str = "pwrite64(3</f/a>, \"++\", 2, 3) = 2";
    const SYNC: &str = "fsync(3</f/a>) = 0";
    const FAILED: &str = "fsync(3</f/a>) = -1 EIO (Input/output error)";
    const CREATE: &str = "openat(AT_FDCWD</>, \"/f/b\", O_RDWR|O_CREAT, 0600) = 4</f/b>";
    const FOLDER: &str = "fsync(5</f>) = 0";

    #[test]
    fn what_is_written_is_durable_after_an_fsync_and_a_name_after_that_of_the_folder() {
        assert_eq!(images(&[WRITE]), set(&["old -", "new -"]));
        assert_eq!(images(&[WRITE, SYNC]), set(&["new -"]));
        let any = ["old -", "new -", "old++ -", "new++ -", "old00 -", "new00 -"];
        assert_eq!(images(&[WRITE, MORE]), set(&any));
        assert_eq!(images(&[WRITE, SYNC, MORE]), set(&["new -", "new++ -", "new00 -"]));
        assert_eq!(images(&[CREATE, "fsync(4</f/b>) = 0"]), set(&["old -", "old "]));
        assert_eq!(images(&[CREATE, FOLDER]), set(&["old "]));
        let link = "linkat(AT_FDCWD, \"/f/a\", AT_FDCWD, \"/f/b\", 0) = 0";
        assert_eq!(images(&[link, "unlink(\"/f/a\") = 0"]), set(&["old -", "old old", "- -", "- old"]));
        assert_eq!(images(&["rename(\"/f/a\", \"/f/b\") = 0"]), set(&["old -", "- old"]));
        assert_eq!(images(&["ftruncate(3</f/a>, 1) = 0"]), set(&["old -", "o -"]));
    }

    #[test]
    fn what_an_fsync_failed_on_is_durable_only_if_it_is_written_again() {
        assert_eq!(images(&[WRITE, FAILED, SYNC]), set(&["old -", "new -"]));
        assert_eq!(images(&[WRITE, FAILED, WRITE, SYNC]), set(&["new -"]));
    }

    #[test]
    fn an_fsync_covers_what_had_ended_before_it_began() {
        let begins = "pwrite64(3</f/a>, \"new\", 3, 0 <unfinished ...>";
        let trace = format!("7 {begins}\n8 {SYNC}\n7 <... pwrite64 resumed>) = 3\n");
        let disk = disk(&trace);
        let image = disk.image(100, (Cut::None, Cut::None), &mut Rng::with_seed(1));
        assert_eq!(image["a"], b"old");
    }
}
