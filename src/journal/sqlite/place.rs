//! The place of the journal's files: whether they are still where they were opened.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The paths of files, and which file each led to.
#[derive(Debug)]
pub(super) struct Place(Vec<(PathBuf, Identity)>);

/// A file, whatever its path: its device, and its number there.
type Identity = (u64, u64);

impl Place {
    /// The files that these paths lead to now.
    pub(super) fn of(paths: impl IntoIterator<Item = PathBuf>) -> io::Result<Self> {
        let file = |path: PathBuf| identity(&path).map(|identity| (path, identity));
        paths.into_iter().map(file).collect::<io::Result<_>>().map(Place)
    }

    /// The first path that no longer leads to its file: the file was deleted, moved or replaced.
    pub(super) fn lost(&self) -> Option<&Path> {
        // What can't be looked at for another reason is not known to be lost.
        let is_lost = |(path, file): &&(PathBuf, Identity)| match identity(path) {
            Ok(found) => found != *file,
            Err(error) => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        };
        self.0.iter().find(is_lost).map(|(path, _)| &**path)
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}
