//! What all measurements and proofs have in common.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use crate::common::hub::Hub;
use crate::cores::Cores;
use crate::cpu::Accounting;

/// Why a server is missing whose binary the bench has to be given.
pub(crate) const NOT_GIVEN: &str = "its binary is not given";

/// Servers that nothing installs here.
#[derive(Debug, clap::Args)]
pub(crate) struct Given {
    /// Another hub of this project, to be compared with
    #[arg(long, value_name = "PATH")]
    pub(crate) against: Option<PathBuf>,
    /// Mercure, as `mercure` 0.24
    #[arg(long, value_name = "PATH")]
    pub(crate) mercure: Option<PathBuf>,
    /// Centrifugo, as `centrifugo` 6
    #[arg(long, value_name = "PATH")]
    pub(crate) centrifugo: Option<PathBuf>,
}

/// The hub under measurement, the machine, and the times.
pub(crate) struct Setting {
    pub(crate) hub: Hub,
    /// Other servers.
    pub(crate) given: Given,
    pub(crate) cores: Cores,
    pub(crate) accounting: Accounting,
    /// How long load is put on a server at a time.
    pub(crate) time: Duration,
    /// How long idle subscribers are held.
    pub(crate) hold: Duration,
}

impl Setting {
    /// The hub that this one is compared with, with the same flags.
    pub(crate) fn other_hub(&self) -> anyhow::Result<Hub> {
        let binary = self.given.against.clone().context(NOT_GIVEN)?;
        Ok(Hub { binary, ..self.hub.clone() })
    }
}
