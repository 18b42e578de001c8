//! A model of a disk: what may be on it after a power cut, by the calls that were made before.
//!
//! - What was written to a file since its last fsync may be there or not: each write by itself, in any order,
//!   torn at sectors, or with a sector that is neither old nor new. A sector that is written with the bytes
//!   that it has keeps them: the kernel writes whole pages, so each commit does that to the one before.
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
    Write {
        file: usize,
        at: usize,
        bytes: Vec<u8>,
    },
    Resize {
        file: usize,
        length: usize,
    },
    /// Gives a name to a file, or takes it away.
    Name {
        name: String,
        file: Option<usize>,
    },
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
    /// The latest: what was done later is there, what was done earlier is not.
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

const CUTS: [Cut; 8] = {
    use Cut::{All, AllButFailed, Garbled, None, Prefix, Subset, Suffix, Torn};
    [None, All, AllButFailed, Prefix, Suffix, Subset, Torn, Garbled]
};

/// A random cut of bytes, and of names.
pub fn cut(rng: &mut Rng) -> (Cut, Cut) {
    (CUTS[rng.usize(..CUTS.len())], CUTS[rng.usize(..CUTS.len())])
}

impl Disk {
    /// A disk whose folder had these files, and all that these calls have done.
    pub fn new<'a>(folder: &str, start: &Image, calls: impl IntoIterator<Item = &'a Call>) -> Disk {
        let mut disk = Disk { folder: folder.to_owned(), names: BTreeMap::new(), files: 0, done: Vec::new() };
        for (name, bytes) in start {
            let file = disk.create(name.clone(), (0, 0));
            disk.push(Change::Write { file, at: 0, bytes: bytes.clone() }, (0, 0));
        }
        disk.done.iter_mut().for_each(|done| done.synced = 0);
        calls.into_iter().for_each(|call| disk.apply(call));
        disk
    }

    fn apply(&mut self, call: &Call) {
        let lines = (call.began, call.ended);
        match &*call.name {
            "openat" if call.has_flag("O_CREAT") || call.has_flag("O_TRUNC") => {
                let name = self.name(&call.path(0));
                match self.names.get(&name) {
                    None => drop(self.create(name, lines)),
                    Some(file) if call.has_flag("O_TRUNC") => {
                        self.push(Change::Resize { file: *file, length: 0 }, lines);
                    }
                    Some(_) => {}
                }
            }
            "pwrite64" => {
                let (file, at, bytes) = (self.file(call), call.last_number(), call.bytes());
                self.push(Change::Write { file, at, bytes }, lines);
            }
            "ftruncate" => {
                let (file, length) = (self.file(call), call.last_number());
                self.push(Change::Resize { file, length }, lines);
            }
            "linkat" => {
                let file = self.file_at(&call.path(0));
                self.give_name(self.name(&call.path(1)), file, lines);
            }
            "unlink" => {
                let name = self.name(&call.path(0));
                self.names.remove(&name).expect("what is removed was there");
                self.push(Change::Name { name, file: None }, lines);
            }
            "fsync" | "fdatasync" => self.sync(call),
            _ => {}
        }
    }

    fn name(&self, path: &str) -> String {
        let name = path.strip_prefix(&self.folder).and_then(|rest| rest.strip_prefix('/'));
        name.expect("a path in the folder").to_owned()
    }

    fn file_at(&self, path: &str) -> usize {
        *self.names.get(&self.name(path)).unwrap_or_else(|| panic!("a file without a name: {path}"))
    }

    fn file(&self, call: &Call) -> usize {
        self.file_at(call.descriptor())
    }

    fn create(&mut self, name: String, lines: (usize, usize)) -> usize {
        self.files += 1;
        self.give_name(name, self.files - 1, lines);
        self.files - 1
    }

    fn give_name(&mut self, name: String, file: usize, lines: (usize, usize)) {
        self.names.insert(name.clone(), file);
        self.push(Change::Name { name, file: Some(file) }, lines);
    }

    fn push(&mut self, change: Change, (began, ended): (usize, usize)) {
        self.done.push(Done { change, began, ended, synced: NEVER, failed: NEVER });
    }

    fn sync(&mut self, call: &Call) {
        let file = (call.descriptor() != self.folder).then(|| self.file(call));
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
                (Change::Write { file, at, bytes }, fate) => write(&mut files[*file], *at, bytes, fate, rng),
                (Change::Resize { file, length }, _) => files[*file].resize(*length, 0),
                (Change::Name { name, file: Some(file) }, _) => drop(names.insert(name, *file)),
                (Change::Name { name, file: None }, _) => drop(names.remove(name)),
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
            let is_write = matches!(done[*at].change, Change::Write { .. });
            fates[*at] = match cut {
                Cut::Torn if is_write => Fate::Torn(sector(rng)),
                _ if is_kept => Fate::Kept,
                _ => Fate::Lost,
            };
        }
        if matches!(cut, Cut::Garbled) {
            // Often a file's first page, on which most depends.
            let is_first = |at: &usize| matches!(done[*at].change, Change::Write { at: 0, .. });
            let firsts: Vec<_> = open.iter().copied().filter(is_first).collect();
            let among = if rng.bool() && !firsts.is_empty() { firsts } else { open };
            if let Some(at) = rng.choice(among) {
                fates[at] = Fate::Garbled(sector(rng));
            }
        }
    }
    fates
}

fn sector(rng: &mut Rng) -> usize {
    if rng.bool() { 512 } else { 4096 }
}

impl Change {
    /// The file whose bytes or size it changes; `None` if it changes names.
    fn file(&self) -> Option<usize> {
        match self {
            Change::Write { file, .. } | Change::Resize { file, .. } => Some(*file),
            Change::Name { .. } => None,
        }
    }
}

fn write(file: &mut Vec<u8>, at: usize, bytes: &[u8], fate: Fate, rng: &mut Rng) {
    let end = at + bytes.len();
    let sector = match fate {
        Fate::Torn(sector) | Fate::Garbled(sector) => sector,
        Fate::Kept | Fate::Lost => end.max(1),
    };
    let sectors = at / sector..end.div_ceil(sector);
    let garbled = rng.choice(sectors.clone());
    for number in sectors {
        let start = (number * sector).max(at);
        let part = &bytes[start - at..((number + 1) * sector).min(end) - at];
        match fate {
            Fate::Torn(_) if rng.bool() => {}
            Fate::Garbled(_)
                if garbled == Some(number) && file.get(start..start + part.len()) != Some(part) =>
            {
                put(file, start, &part.iter().map(|_| rng.u8(..)).collect::<Vec<_>>());
            }
            _ => put(file, start, part),
        }
    }
    // The size may be there without the bytes.
    if matches!(fate, Fate::Torn(_)) && file.len() < end && rng.bool() {
        file.resize(end, 0);
    }
}

fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    file.resize(file.len().max(at + bytes.len()), 0);
    file[at..at + bytes.len()].copy_from_slice(bytes);
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
        let image = disk(&trace).image(100, (Cut::None, Cut::None), &mut Rng::with_seed(1));
        assert_eq!(image["a"], b"old");
    }
}
