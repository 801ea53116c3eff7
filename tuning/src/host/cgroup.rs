//! CPU and memory limits of control groups, version 1 and 2.
//!
//! Called by `host`. A limit anywhere between the process's group and the root counts; the smallest
//! one wins. Inside a container the group's own path may not exist below /sys/fs/cgroup, whose root
//! is then the container's group.

use super::System;

/// Cores that the quota allows, or `None` without a quota.
pub fn quota_cores(system: &System) -> Option<f64> {
    let unified = groups(system, "").into_iter().filter_map(|dir| {
        let text = system.read(&format!("{dir}/cpu.max"))?;
        let (quota, period) = text.split_once(' ')?;
        ratio(quota, period)
    });
    let legacy = groups(system, "cpu").into_iter().filter_map(|dir| {
        let quota = system.read(&format!("{dir}/cpu.cfs_quota_us"))?;
        let period = system.read(&format!("{dir}/cpu.cfs_period_us"))?;
        ratio(&quota, &period)
    });
    unified.chain(legacy).min_by(f64::total_cmp)
}

/// Bytes that the group may use, or `None` without a limit.
pub fn memory_bytes(system: &System) -> Option<u64> {
    /// Version 1 writes "no limit" as a number near 2^63.
    const NO_LIMIT: u64 = 1 << 60;
    let read = |dir: String, file: &str| system.read(&format!("{dir}/{file}"))?.parse().ok();
    let unified = groups(system, "").into_iter().filter_map(|dir| read(dir, "memory.max"));
    let legacy = groups(system, "memory")
        .into_iter()
        .filter_map(|dir| read(dir, "memory.limit_in_bytes"))
        .filter(|bytes| *bytes < NO_LIMIT);
    unified.chain(legacy).min()
}

fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

/// The directories of this process's group and of all above it, for a version 1 controller, or for
/// version 2 if `controller` is empty.
fn groups(system: &System, controller: &str) -> Vec<String> {
    let text = system.read("/proc/self/cgroup").unwrap_or_default();
    let own = text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, names, path) = (parts.next()?, parts.next()?, parts.next()?);
        names.split(',').any(|name| name == controller).then(|| path.to_owned())
    });
    let bases: Vec<String> = match controller {
        "" => vec!["/sys/fs/cgroup".into(), "/sys/fs/cgroup/unified".into()],
        "cpu" => vec!["/sys/fs/cgroup/cpu".into(), "/sys/fs/cgroup/cpu,cpuacct".into()],
        other => vec![format!("/sys/fs/cgroup/{other}")],
    };
    let own = own.unwrap_or_default();
    let mut dirs = Vec::new();
    for base in bases {
        let mut path = own.trim_end_matches('/');
        loop {
            dirs.push(format!("{base}{path}"));
            match path.rsplit_once('/') {
                Some((above, _)) => path = above,
                None => break,
            }
        }
    }
    dirs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::system;

    #[test]
    fn the_tightest_quota_up_the_tree_counts_in_version_2() {
        let (_root, system) = system(&[
            ("/proc/self/cgroup", "0::/kubepods/pod7/etcd\n"),
            ("/sys/fs/cgroup/kubepods/pod7/etcd/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/kubepods/pod7/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/kubepods/cpu.max", "400000 100000\n"),
            ("/sys/fs/cgroup/kubepods/pod7/etcd/memory.max", "max\n"),
            ("/sys/fs/cgroup/kubepods/pod7/memory.max", "1073741824\n"),
        ]);
        assert_eq!(quota_cores(&system), Some(1.5));
        assert_eq!(memory_bytes(&system), Some(1 << 30));
    }

    #[test]
    fn version_1_is_read_too() {
        let (_root, system) = system(&[
            ("/proc/self/cgroup", "4:memory:/a\n3:cpu,cpuacct:/a/b\n0::/\n"),
            ("/sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu/a/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu/a/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(quota_cores(&system), Some(0.5));
        assert_eq!(memory_bytes(&system), None);
    }

    #[test]
    fn inside_a_container_the_root_is_the_group() {
        let (_root, system) = system(&[
            ("/proc/self/cgroup", "0::/not/visible/here\n"),
            ("/sys/fs/cgroup/cpu.max", "200000 100000\n"),
        ]);
        assert_eq!(quota_cores(&system), Some(2.0));
    }

    #[test]
    fn no_limits_are_no_limits() {
        let (_root, system) = system(&[]);
        assert_eq!(quota_cores(&system), None);
        assert_eq!(memory_bytes(&system), None);
    }
}
