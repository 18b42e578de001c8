//! The verbs for the journal's file: verify, backup, restore.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Subcommand;
use tabcast::journal::{self, Place};

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Says what a journal's file is, and exits with 1 if it is damaged
    Verify {
        /// The file; if none is given, that of --journal
        file: Option<PathBuf>,
    },
    /// Copies the journal to a new file, also while a hub has it
    Backup {
        /// The new file
        file: PathBuf,
    },
    /// Makes a journal of a backup, in the place of --journal, where there must be none. Its hub begins a new
    /// epoch: whoever had messages that the backup has not gets a gap event
    Restore {
        /// The backup
        file: PathBuf,
    },
}

/// Runs the verb. `journal` is the hub's.
pub(super) fn run(verb: Verb, journal: &Place) -> ExitCode {
    match done(verb, journal) {
        Ok(exit_code) => exit_code,
        Err(error) => {
            eprintln!("tabcast: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn done(verb: Verb, journal: &Place) -> anyhow::Result<ExitCode> {
    let report = match verb {
        Verb::Verify { file } => {
            let file = file.map_or_else(|| path(journal).map(Path::to_owned), Ok)?;
            journal::verify(&file).with_context(|| file.display().to_string())?
        }
        Verb::Backup { file } => journal::copy(path(journal)?, &file)?,
        Verb::Restore { file } => journal::copy(&file, path(journal)?)?,
    };
    println!("{report}");
    Ok(if report.is_sound() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn path(journal: &Place) -> anyhow::Result<&Path> {
    match journal {
        Place::File(path) => Ok(path),
        Place::Memory => bail!("a journal in memory has no file: name one with --journal"),
    }
}
