//! What processes used, from `/proc`.
//!
//! Read before and after a run. CPU comes in clock ticks (10 ms as a rule), so runs should be long
//! against that. Must never fail a run for a server that ended meanwhile without saying which.

use std::fs;

/// Why a process cannot be watched.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("cannot read {path}: {cause}")]
    Read { path: String, cause: std::io::Error },
    #[error("cannot make sense of {path}")]
    Malformed { path: String },
}

/// What a process used since its start, and holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) rss_bytes: u64,
    pub(crate) rss_anon_bytes: u64,
    pub(crate) rss_file_bytes: u64,
}

impl Usage {
    pub(crate) fn cpu_us(&self) -> u64 {
        self.user_us + self.system_us
    }
}

/// CPU used in between, and memory at the end, of each process.
pub(crate) fn differences(pids: &[u32], before: &[Usage], after: &[Usage]) -> Vec<(u32, Usage)> {
    let pairs = pids.iter().zip(before.iter().zip(after));
    let difference = |(before, after): (&Usage, &Usage)| Usage {
        user_us: after.user_us.saturating_sub(before.user_us),
        system_us: after.system_us.saturating_sub(before.system_us),
        ..*after
    };
    pairs.map(|(pid, usages)| (*pid, difference(usages))).collect()
}

/// What the process with this id used and holds.
pub(crate) fn usage(pid: u32) -> Result<Usage, ProcessError> {
    usage_at(&format!("/proc/{pid}"))
}

/// Usage of this very process.
pub(crate) fn own_usage() -> Result<Usage, ProcessError> {
    usage_at("/proc/self")
}

fn usage_at(folder: &str) -> Result<Usage, ProcessError> {
    let stat = read(&format!("{folder}/stat"))?;
    let ticks_per_second = rustix::param::clock_ticks_per_second();
    let (user_us, system_us) = cpu_us(&stat, ticks_per_second)
        .ok_or_else(|| ProcessError::Malformed { path: format!("{folder}/stat") })?;
    let status = read(&format!("{folder}/status"))?;
    // Kernel threads and ended processes have no such lines.
    let memory = |name| field_bytes(&status, name).unwrap_or(0);
    Ok(Usage {
        user_us,
        system_us,
        rss_bytes: memory("VmRSS:"),
        rss_anon_bytes: memory("RssAnon:"),
        rss_file_bytes: memory("RssFile:"),
    })
}

fn read(path: &str) -> Result<String, ProcessError> {
    fs::read_to_string(path).map_err(|cause| ProcessError::Read { path: path.to_owned(), cause })
}

/// User and system time in microseconds. The second field, the name, may hold anything, so fields
/// are counted from its closing bracket.
fn cpu_us(stat: &str, ticks_per_second: u64) -> Option<(u64, u64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut next_us = || {
        let ticks: u64 = fields.next()?.parse().ok()?;
        ticks.checked_mul(1_000_000)?.checked_div(ticks_per_second)
    };
    Some((next_us()?, next_us()?))
}

fn field_bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_brackets_and_spaces_do_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 250 130 0 0 20";
        assert_eq!(cpu_us(stat, 100), Some((2_500_000, 1_300_000)));
        assert_eq!(cpu_us("7 (a) S 1", 100), None);
    }

    #[test]
    fn memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmRSS:\t  1024 kB\nRssAnon:\t     8 kB\n";
        assert_eq!(field_bytes(status, "VmRSS:"), Some(1 << 20));
        assert_eq!(field_bytes(status, "RssAnon:"), Some(8 << 10));
        assert_eq!(field_bytes(status, "RssFile:"), None);
    }

    #[test]
    fn this_process_can_be_watched_and_a_missing_one_is_named() {
        let usage = own_usage().unwrap();
        assert!(usage.rss_bytes > 0);
        let complaint = super::usage(u32::MAX).unwrap_err().to_string();
        assert!(complaint.contains("/proc/4294967295/stat"), "{complaint}");
    }
}
