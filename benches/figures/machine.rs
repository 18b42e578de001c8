//! The machine the figures are of, and how busy others kept it.

use std::fs;
use std::thread;

use anyhow::Context;

/// CPU time spent so far, in ticks of the kernel's clock.
pub(crate) struct CpuTime {
    /// By whatever ran on this machine.
    busy: u64,
    /// On all its CPUs, idle or not.
    all: u64,
    /// By this process and the servers it has ended.
    own: u64,
}

impl CpuTime {
    pub(crate) fn now() -> anyhow::Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).context("/proc/stat has no cpu")?;
        let times: Vec<u64> = line.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>()?;
        // The fourth and fifth are idle time and waiting for disks (proc_stat(5)).
        let all: u64 = times.iter().sum();
        let idle: u64 = times.iter().skip(3).take(2).sum();
        // utime, stime, cutime and cstime.
        let own = process_times("self")?.iter().sum();
        Ok(CpuTime { busy: all - idle, all, own })
    }

    /// Of the machine's CPU time since then, the part that others took.
    pub(crate) fn others_share_since(&self, then: &CpuTime) -> f64 {
        let others = (self.busy - then.busy).saturating_sub(self.own - then.own);
        others as f64 / (self.all - then.all).max(1) as f64
    }
}

/// The CPU time of a process, in ticks: user, system, and the same two of its ended children.
pub(crate) fn process_times(process: &str) -> anyhow::Result<[u64; 4]> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is the name, in brackets, and may have anything in it. The times are fields
    // 14 to 17 (proc_pid_stat(5)).
    let (_, after_name) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let times: Vec<u64> = after_name.split_whitespace().skip(11).take(4).map(str::parse).collect::<Result<_, _>>()?;
    times.try_into().ok().context("/proc/PID/stat is too short")
}

/// How many CPUs, and which.
pub(crate) fn description() -> String {
    let cpus = thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("{cpus} CPUs, {}", model.map_or("of a model unknown", |(_, model)| model))
}
