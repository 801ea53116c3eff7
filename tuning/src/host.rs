//! What the host is: CPU, limits, clock, kernel, io_uring, file system.
//!
//! Called by the probe. Everything is read from /proc and /sys below a root that tests replace; a
//! file that is missing makes a value absent, never an error. It must not change anything.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::limits::SYSTEM_FILE_BYTES_MAX;

pub mod cgroup;
pub mod mount;

/// Where /proc, /sys are found.
#[derive(Debug, Clone)]
pub struct System {
    root: PathBuf,
}

impl System {
    /// The running system.
    pub fn live() -> Self {
        Self { root: PathBuf::from("/") }
    }

    /// A copy of some of its files.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The file `path` (absolute) as text, trimmed.
    pub fn read(&self, path: &str) -> Option<String> {
        let file = std::fs::File::open(self.path(path)).ok()?;
        let mut bytes = Vec::new();
        file.take(SYSTEM_FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// `path` (absolute) below the root.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// CPU and its limits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cpu {
    /// Cores this process may run on.
    pub affinity: Option<usize>,
    /// Cores the cgroup's quota allows; absent without a quota.
    pub quota_cores: Option<f64>,
    /// Model, for the record.
    pub model: Option<String>,
    /// Frequency governor of the first core; absent in most virtual machines.
    pub governor: Option<String>,
    /// What idle cores do, and how long waking one takes; absent where the kernel does not say.
    pub idle: Option<Idle>,
    /// Share of the last ten seconds, in percent, in which something waited for a core.
    pub pressure_percent: Option<f64>,
}

/// How the cores' idle time is managed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Idle {
    /// The driver: `intel_idle`, `acpi_idle`, `haltpoll` in a guest, `none`.
    pub driver: String,
    /// The longest wake-up that the first core's enabled states announce, in microseconds.
    pub wake_us_max: Option<u64>,
    /// How long the `haltpoll` driver looks for work before it gives the core back to the host, in
    /// microseconds.
    pub poll_us: Option<u64>,
}

/// Limits on memory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Memory {
    /// Memory of the host, in bytes.
    pub total_bytes: Option<u64>,
    /// The cgroup's limit, in bytes; absent without one.
    pub cgroup_bytes: Option<u64>,
    /// Bytes this process may lock; absent if unlimited or unknown.
    pub memlock_bytes: Option<u64>,
}

/// Kernel and clock.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kernel {
    /// As uname tells it.
    pub release: Option<String>,
    /// `tsc` and the like.
    pub clock_source: Option<String>,
    /// `kernel.io_uring_disabled`; absent before Linux 6.6.
    pub io_uring_disabled: Option<u32>,
    /// True if a seccomp filter is active.
    pub seccomp: Option<bool>,
    /// Open files this process may have.
    pub open_files: Option<u64>,
}

/// Reads CPU facts.
pub fn cpu(system: &System) -> Cpu {
    let status = system.read("/proc/self/status").unwrap_or_default();
    let model = system.read("/proc/cpuinfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let pressure = system.read("/proc/pressure/cpu").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("some"))?;
        line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
    });
    Cpu {
        affinity: field(&status, "Cpus_allowed_list:").and_then(count_list),
        quota_cores: cgroup::quota_cores(system),
        model,
        governor: system.read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        idle: idle(system),
        pressure_percent: pressure,
    }
}

fn idle(system: &System) -> Option<Idle> {
    /// More states than any driver has.
    const STATES_MAX: usize = 16;
    let number = |path: &str| system.read(path)?.parse::<u64>().ok();
    let driver = system.read("/sys/devices/system/cpu/cpuidle/current_driver")?;
    let states =
        (0..STATES_MAX).map(|at| format!("/sys/devices/system/cpu/cpu0/cpuidle/state{at}"));
    let enabled = states.filter(|state| number(&format!("{state}/disable")) != Some(1));
    Some(Idle {
        driver,
        wake_us_max: enabled.filter_map(|state| number(&format!("{state}/latency"))).max(),
        poll_us: number("/sys/module/haltpoll/parameters/guest_halt_poll_ns").map(|ns| ns / 1000),
    })
}

/// Reads memory facts.
pub fn memory(system: &System) -> Memory {
    let kib = |text: &str| text.split_whitespace().next()?.parse::<u64>().ok();
    let total = system.read("/proc/meminfo").and_then(|text| kib(field(&text, "MemTotal:")?));
    Memory {
        total_bytes: total.map(|kib| kib * 1024),
        cgroup_bytes: cgroup::memory_bytes(system),
        memlock_bytes: limit(system, "Max locked memory"),
    }
}

/// Reads kernel facts.
pub fn kernel(system: &System) -> Kernel {
    const CLOCK: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let status = system.read("/proc/self/status").unwrap_or_default();
    Kernel {
        release: system.read("/proc/sys/kernel/osrelease"),
        clock_source: system.read(CLOCK),
        io_uring_disabled: system
            .read("/proc/sys/kernel/io_uring_disabled")
            .and_then(|text| text.parse().ok()),
        seccomp: field(&status, "Seccomp:").map(|mode| mode != "0"),
        open_files: limit(system, "Max open files"),
    }
}

/// The soft limit in the line of /proc/self/limits that starts with `name`.
fn limit(system: &System, name: &str) -> Option<u64> {
    let text = system.read("/proc/self/limits")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// How many numbers a list like `0-3,8` names.
fn count_list(list: &str) -> Option<usize> {
    list.split(',').try_fold(0, |count, part| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (usize, usize) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        Some(count + high.checked_sub(low)? + 1)
    })
}

/// The nearest existing directory at or above `path`.
pub fn existing_ancestor(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    absolute.ancestors().find(|dir| dir.is_dir()).map(Path::to_owned)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A system of the given files.
    pub(crate) fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let root = tempfile::tempdir().expect("a directory");
        for (path, text) in files {
            let path = root.path().join(path.trim_start_matches('/'));
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, text).expect("written");
        }
        let system = System::at(root.path());
        (root, system)
    }

    #[test]
    fn facts_are_read_from_proc_and_sys() {
        let limits = "Limit   Soft Limit  Hard Limit  Units\n\
                      Max locked memory         65536      65536      bytes\n\
                      Max open files            1024       4096       files\n";
        let (_root, system) = system(&[
            ("/proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-3,8\nSeccomp:\t2\n"),
            ("/proc/self/limits", limits),
            ("/proc/cpuinfo", "processor : 0\nmodel name : Fast CPU\n"),
            ("/proc/meminfo", "MemTotal:  1024 kB\n"),
            ("/proc/pressure/cpu", "some avg10=3.25 avg60=0.00 avg300=0.00 total=1\n"),
            ("/proc/sys/kernel/osrelease", "6.8.0\n"),
            ("/proc/sys/kernel/io_uring_disabled", "2\n"),
            ("/sys/devices/system/clocksource/clocksource0/current_clocksource", "hpet\n"),
            ("/sys/devices/system/cpu/cpuidle/current_driver", "intel_idle\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state0/latency", "0\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state1/latency", "2\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state1/disable", "0\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state2/latency", "133\n"),
            ("/sys/devices/system/cpu/cpu0/cpuidle/state2/disable", "1\n"),
        ]);
        let cpu = cpu(&system);
        assert_eq!((cpu.affinity, cpu.quota_cores), (Some(5), None));
        assert_eq!(cpu.model.as_deref(), Some("Fast CPU"));
        assert_eq!(cpu.pressure_percent, Some(3.25));
        let idle = Idle { driver: "intel_idle".into(), wake_us_max: Some(2), poll_us: None };
        assert_eq!(cpu.idle, Some(idle));
        let memory = memory(&system);
        assert_eq!((memory.total_bytes, memory.memlock_bytes), (Some(1 << 20), Some(65536)));
        let kernel = kernel(&system);
        assert_eq!((kernel.io_uring_disabled, kernel.seccomp), (Some(2), Some(true)));
        assert_eq!((kernel.clock_source.as_deref(), kernel.open_files), (Some("hpet"), Some(1024)));
    }

    #[test]
    fn an_empty_system_has_no_facts_and_no_errors() {
        let (_root, system) = system(&[]);
        assert_eq!(cpu(&system).affinity, None);
        assert_eq!(memory(&system).memlock_bytes, None);
        assert_eq!(kernel(&system).release, None);
    }

    #[test]
    fn the_live_system_answers() {
        let system = System::live();
        assert!(cpu(&system).affinity.is_some_and(|cores| cores > 0));
        assert!(memory(&system).total_bytes.is_some());
        assert!(kernel(&system).release.is_some());
    }

    #[test]
    fn lists_are_counted_and_nonsense_is_not() {
        assert_eq!(count_list("0"), Some(1));
        assert_eq!(count_list("0-63,128-191"), Some(128));
        assert_eq!(count_list("3-1"), None);
        assert_eq!(count_list("x"), None);
    }
}
