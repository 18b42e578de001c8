//! The cores: one for the server, another for the load. Neither takes the other's time, and the server's core
//! does all the work that the server causes.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Which core is whose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cores {
    pub(crate) server: usize,
    pub(crate) load: usize,
}

impl Cores {
    /// The first and the last core this process may run on, of which there have to be two.
    pub(crate) fn choose() -> io::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
        match (cores.next(), cores.next_back()) {
            (Some(load), Some(server)) => Ok(Cores { server, load }),
            _ => Err(io::Error::other("the load needs a core of its own, and there is only one")),
        }
    }

    /// Puts the thread that calls on the load's core.
    pub(crate) fn take_load(self) -> io::Result<()> {
        pin(self.load)
    }

    /// Runs `start` on the server's core. Processes that it starts stay on that core.
    pub(crate) fn on_server<T>(self, start: impl FnOnce() -> T) -> io::Result<T> {
        pin(self.server)?;
        let started = start();
        pin(self.load)?;
        Ok(started)
    }
}

/// The calling thread, and what it starts from now on, runs on that core only.
fn pin(core: usize) -> io::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}
