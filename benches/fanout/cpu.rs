//! A server's CPU time: its own in user and system mode, and its core's in softirqs.
//!
//! On loopback the sender's core also does the receiver's half, in a softirq. Kernels with
//! `CONFIG_IRQ_TIME_ACCOUNTING` count that time for the core only: it has to be added to the process's. Other
//! kernels count it as the process's system time too: it only has to be separated.

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
    /// The time so far of a server that is alone on that core.
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
        // Softirqs that other processes caused on that core may be more than the process's system time.
        let system = (self.system - other.system).max(0.0);
        Cpu { user: self.user - other.user, system, softirq: kernel - system }
    }
}

/// Whose time the kernel counts softirqs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accounting {
    /// The core's only.
    Apart,
    /// The core's, and the system time of the process that they interrupt.
    InSystem,
}

impl Accounting {
    /// As the kernel's configuration says. If that can't be read, `InSystem`: then nothing is counted twice.
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
