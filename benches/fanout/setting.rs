//! What all measurements and proofs have in common.

use std::time::Duration;

use crate::common::hub::Hub;
use crate::cores::Cores;
use crate::cpu::Accounting;

/// The hub under measurement, the machine, and the times.
pub(crate) struct Setting {
    pub(crate) hub: Hub,
    pub(crate) cores: Cores,
    pub(crate) accounting: Accounting,
    /// How long load is put on a server at a time.
    pub(crate) time: Duration,
    /// How long idle subscribers are held.
    pub(crate) hold: Duration,
}
