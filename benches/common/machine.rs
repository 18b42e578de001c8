//! The machine that the figures are of, and what its kernel counts.

use std::fs;
use std::process::Command;

use anyhow::Context;

/// The unit of times in `/proc`: USER_HZ, 100 a second on every Linux of today.
const TICK_US: f64 = 10_000.0;

/// CPU time spent so far, in µs.
pub(crate) struct CpuTime {
    /// By all processes and the kernel.
    busy: f64,
    /// On all its CPUs, idle or not.
    all: f64,
    /// By this process and the servers that it has ended.
    own: f64,
}

impl CpuTime {
    pub(crate) fn now() -> anyhow::Result<Self> {
        let times = cpu_times("cpu")?;
        // The fourth and fifth are idle time and waiting for disks (proc_stat(5)).
        let all: f64 = times.iter().sum();
        let idle = times[3] + times[4];
        // utime, stime, cutime and cstime.
        let own = process_times("self")?.iter().sum();
        Ok(CpuTime { busy: all - idle, all, own })
    }

    /// The share of the machine's CPU time since then that other processes took.
    pub(crate) fn others_share_since(&self, then: &CpuTime) -> f64 {
        let others = (self.busy - then.busy) - (self.own - then.own);
        (others / (self.all - then.all)).max(0.0)
    }
}

/// The times so far of a CPU, as in `cpu0`, or of all, `cpu`, in µs: user, nice, system, idle, iowait, irq,
/// softirq, steal (proc_stat(5)).
fn cpu_times(cpu: &str) -> anyhow::Result<[f64; 8]> {
    let stat = fs::read_to_string("/proc/stat")?;
    let mut lines = stat.lines().map(str::split_whitespace);
    let times = lines.find_map(|mut fields| (fields.next() == Some(cpu)).then_some(fields));
    let times: Vec<f64> = times
        .with_context(|| format!("/proc/stat has no {cpu}"))?
        .take(8)
        .map(|ticks| Ok(ticks.parse::<f64>()? * TICK_US))
        .collect::<anyhow::Result<_>>()?;
    times.try_into().ok().context("/proc/stat is too short")
}

/// The time a CPU has spent in softirqs, in µs. On loopback, a sender's CPU does the receiver's work there.
pub(crate) fn softirq_us(cpu: usize) -> anyhow::Result<f64> {
    Ok(cpu_times(&format!("cpu{cpu}"))?[6])
}

/// The CPU time of a process, in µs: user, system, and the same two of its ended children.
pub(crate) fn process_times(process: &str) -> anyhow::Result<[f64; 4]> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is the name, in brackets, and may have anything in it. The times are fields
    // 14 to 17 (proc_pid_stat(5)).
    let (_, after_name) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
    let times: Vec<f64> = after_name
        .split_whitespace()
        .skip(11)
        .take(4)
        .map(|ticks| Ok(ticks.parse::<f64>()? * TICK_US))
        .collect::<anyhow::Result<_>>()?;
    times.try_into().ok().context("/proc/PID/stat is too short")
}

/// How many CPUs, and which.
pub(crate) fn description() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // All CPUs, not those to which a bench has restricted this process.
    let cpus = info.lines().filter(|line| line.starts_with("processor\t")).count();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    format!("{cpus} CPUs, {}", model.map_or("of a model unknown", |(_, model)| model))
}

/// As in `6.1.0-18-amd64`.
pub(crate) fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The first line that a program prints for this flag; `None` if there is no such program.
pub(crate) fn version(program: &str, flag: &str) -> Option<String> {
    let output = Command::new(program).arg(flag).output().ok()?;
    // nginx answers on stderr.
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Some(String::from_utf8_lossy(&text).lines().next()?.trim().to_owned())
}

/// Today, as in `2026-01-31`, in UTC.
pub(crate) fn today() -> String {
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    now[..10].to_owned()
}
