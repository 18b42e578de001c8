//! A hub that serves, as far as it follows new settings: those of access, requests and limits.

use std::fs;
use std::future::pending;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::api::{Api, Bodies, State};
use crate::auth::{Auth, InvalidFile};
use crate::hub::Hub;
use crate::limits::Shares;
use crate::options::Options;

/// The parts of a hub that follow its settings.
#[derive(Debug)]
pub(crate) struct Running {
    /// The settings in force.
    pub(crate) options: Options,
    pub(crate) auth: Arc<Auth>,
    pub(crate) api: Arc<Api>,
    pub(crate) hub: Hub,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) connections: Arc<Shares>,
    /// What the files of access were like before they were last read.
    pub(crate) files: Vec<File>,
}

/// A file as it was when it was looked at: another file, or other bytes, differ in one of these. `None` if it
/// can't be looked at.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct File(PathBuf, Option<(SystemTime, u64, u64)>);

impl File {
    fn look(path: &Path) -> Self {
        let found = fs::metadata(path).and_then(|file| Ok((file.modified()?, file.len(), file.ino())));
        File(path.to_owned(), found.ok())
    }

    /// Looks at each of the files that the settings of access name.
    pub(crate) fn look_at_all(options: &Options) -> Vec<Self> {
        options.auth.files().iter().map(|path| File::look(path)).collect()
    }
}

impl Running {
    /// Goes by these settings from now on, but for those that can't change while the hub serves, and by what
    /// their files say now.
    ///
    /// # Errors
    /// [`InvalidFile`]: all of the old settings stay.
    pub(crate) async fn change_to(&mut self, options: Options) -> Result<(), InvalidFile> {
        // The only step that can fail.
        self.read_files(&options).await?;
        let per_address = options.max_connections_per_address();
        self.hub.limit_to(&options.hub);
        if options.journal.rules != self.options.journal.rules {
            self.hub.set_rules(options.journal.rules.clone()).await;
        }
        self.bodies.limit_to(per_address);
        self.connections.limit_to(usize::MAX, per_address);
        self.api.change(|state| State {
            options: options.api.clone(),
            publishing: state.publishing.with(options.limits.publish_rate),
            connecting: state.connecting.with(options.limits.connect_rate),
            ..state
        });
        self.options = options;
        Ok(())
    }

    /// Waits until a file of access is another than was last read; for ever if there are none.
    pub(crate) async fn files_change(&self) {
        /// The time between two looks at the files. Higher: a new token is not known for longer. Lower: the
        /// disk is asked more often.
        const LOOK: Duration = Duration::from_secs(30);
        if self.files.is_empty() {
            pending::<()>().await;
        }
        loop {
            sleep(LOOK).await;
            let options = self.options.clone();
            let files = spawn_blocking(move || File::look_at_all(&options)).await;
            if files.is_ok_and(|files| files != self.files) {
                return;
            }
        }
    }

    /// Reads all of the files of access again, or says why not: what the old ones said then stays.
    pub(crate) async fn read_again(&mut self) {
        let options = self.options.clone();
        if let Err(error) = self.read_files(&options).await {
            tracing::error!(%error, "files not read again, the old ones stay in force");
        }
    }

    async fn read_files(&mut self, options: &Options) -> Result<(), InvalidFile> {
        let (auth, options) = (Arc::clone(&self.auth), options.clone());
        let read = spawn_blocking(move || {
            // Looked at first: a change from here on is found at the next look.
            let files = File::look_at_all(&options);
            (files, auth.reload(&options.auth))
        });
        let (files, result) = read.await.expect("reading files does not panic");
        self.files = files;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_written_replaced_or_removed_is_another() {
        let path = std::env::temp_dir().join(format!("tabcast-look-{}", std::process::id()));
        let (write, look) = (|text: &str| fs::write(&path, text).unwrap(), || File::look(&path));
        write("one");
        let first = look();
        assert_eq!(look(), first);
        let earlier = SystemTime::now() - Duration::from_secs(9);
        let touch = || fs::File::options().write(true).open(&path).unwrap().set_modified(earlier).unwrap();
        touch();
        let second = look();
        assert_ne!(second, first);
        write("three");
        touch();
        let third = look();
        assert_ne!(third, second);
        let other = path.with_extension("new");
        fs::write(&other, "seven").unwrap();
        fs::rename(&other, &path).unwrap();
        touch();
        assert_ne!(look(), third);
        fs::remove_file(&path).unwrap();
        assert_eq!(look().1, None);
    }
}
