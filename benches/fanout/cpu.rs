//! A server's CPU time: its own in user and system mode, and what its core spends in softirqs for it.
//!
//! On loopback, whoever sends also does the receiving half, in a softirq on the same core. Kernels
//! built with `CONFIG_IRQ_TIME_ACCOUNTING` count that time for the core only, and it has to be added to
//! the process's; others count it as the process's system time too, and it only has to be told apart.

use std::fs;
use std::ops::Sub;
use std::process::Command;

use crate::common::machine::{kernel_release, softirq_us};
use crate::common::process::Process;

/// In µs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cpu {
    pub(crate) user: f64,
    /// Without softirqs.
    pub(crate) system: f64,
    pub(crate) softirq: f64,
}

impl Cpu {
    /// What a server has taken so far, which is alone on that core.
    pub(crate) fn of(process: &Process, core: usize, accounting: Accounting) -> anyhow::Result<Self> {
        let [user, system] = process.user_and_system_us()?;
        let softirq = softirq_us(core)?;
        let system = match accounting {
            Accounting::Apart => system,
            Accounting::InSystem => system - softirq,
        };
        Ok(Cpu { user, system, softirq })
    }

    pub(crate) fn total(&self) -> f64 {
        self.user + self.system + self.softirq
    }
}

impl Sub for Cpu {
    type Output = Cpu;

    fn sub(self, other: Cpu) -> Cpu {
        let kernel = (self.system + self.softirq) - (other.system + other.softirq);
        // Softirqs that others caused on that core may be more than there is to tell apart.
        let system = (self.system - other.system).max(0.0);
        Cpu { user: self.user - other.user, system, softirq: kernel - system }
    }
}

/// Whose time the kernel counts softirqs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accounting {
    /// The core's only.
    Apart,
    /// The core's, and the process's that they interrupt: its system time.
    InSystem,
}

impl Accounting {
    /// As the kernel's configuration says; if there is none to be read, in the system time, so that
    /// nothing is counted twice.
    pub(crate) fn of_kernel() -> Self {
        let apart = |config: String| config.lines().any(|line| line == "CONFIG_IRQ_TIME_ACCOUNTING=y");
        let packed =
            || Command::new("zcat").arg("/proc/config.gz").output().ok().filter(|zcat| zcat.status.success());
        let config = fs::read_to_string(format!("/boot/config-{}", kernel_release()))
            .ok()
            .or_else(|| packed().map(|zcat| String::from_utf8_lossy(&zcat.stdout).into_owned()));
        if config.is_some_and(apart) { Accounting::Apart } else { Accounting::InSystem }
    }
}
