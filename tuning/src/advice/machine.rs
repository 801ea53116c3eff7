//! Judgements about the machine itself: file system, CPU, kernel, limits.
//!
//! Called by `advice::findings`. The same rules hold here.

use super::{Finding, PRESSURE_PERCENT};
use crate::report::Report;

/// Memory that glommio's executor locks for its rings.
const MEMLOCK_BYTES: u64 = 512 << 10;

/// Connections of a Kubernetes control plane, with some to spare.
const OPEN_FILES: u64 = 8192;

pub(super) fn mount(report: &Report, out: &mut Vec<Finding>) {
    const MOVE: &str = "put the data directory on ext4 or xfs on a local device";
    let Some(mount) = &report.mount else { return };
    let on = format!("the data directory is on {} ({})", mount.kind, mount.source);
    out.push(match mount.kind.as_str() {
        "ext4" | "xfs" => Finding::good("file-system", on),
        "tmpfs" | "ramfs" => {
            Finding::problem("file-system", format!("{on}: a restart loses it"), MOVE)
        }
        "overlay" | "aufs" => Finding::problem(
            "file-system",
            format!("{on}: it goes away with the container"),
            "mount a volume at the data directory",
        ),
        "btrfs" | "zfs" | "bcachefs" => Finding::improve(
            "file-system",
            format!("{on}: copy-on-write makes every log write allocate"),
            "ext4 or xfs give steadier times; on btrfs, `chattr +C` on the empty directory helps",
        ),
        kind if kind.starts_with("nfs") || kind.starts_with("fuse") || kind == "cifs" => {
            Finding::problem("file-system", format!("{on}: its syncs cross a network"), MOVE)
        }
        _ => Finding::improve("file-system", format!("{on}, which nobody has measured"), MOVE),
    });
    if mount.options.split(',').any(|option| matches!(option, "nobarrier" | "barrier=0")) {
        out.push(Finding::problem(
            "file-system",
            "it is mounted without barriers: a power cut can lose acknowledged writes",
            "remove nobarrier or barrier=0 from the mount options",
        ));
    }
    let spinning = mount.rotational == Some(true);
    if spinning && !mount.source.starts_with("/dev/vd") {
        out.push(Finding::improve(
            "disk",
            "the device calls itself a spinning disk",
            "use a solid state device; if it is one behind a controller, this can be ignored",
        ));
    }
    if let Some(name @ ("bfq" | "cfq")) = mount.scheduler.as_deref() {
        out.push(Finding::improve(
            "disk",
            format!("the I/O scheduler {name} delays small durable writes"),
            "echo none > /sys/block/<device>/queue/scheduler, and a udev rule to keep it",
        ));
    }
}

pub(super) fn cpu(report: &Report, out: &mut Vec<Finding>) {
    let cpu = &report.cpu;
    let cores = cpu.affinity.unwrap_or(1);
    match cpu.quota_cores {
        Some(quota) if quota < 1.0 => out.push(Finding::problem(
            "cpu",
            format!("a quota of {quota:.2} cores stops the process in every period of 100 ms"),
            "raise the CPU limit to at least two cores, or remove it and set a request instead",
        )),
        Some(quota) if quota < cores as f64 => out.push(Finding::improve(
            "cpu",
            format!(
                "a quota of {quota:.2} cores: threads are not pinned under a quota, and bursts \
                 are stopped for up to 100 ms"
            ),
            "give whole cores instead (in Kubernetes: the static CPU manager policy and equal \
             request and limit), or remove the limit",
        )),
        _ if cores < 2 => out.push(Finding::improve(
            "cpu",
            "one core: replication, clients and background work take turns on it",
            "two cores or more keep slow requests from delaying the log",
        )),
        _ => out.push(Finding::good("cpu", format!("{cores} cores without a quota"))),
    }
    if let Some(percent) = cpu.pressure_percent.filter(|percent| *percent > PRESSURE_PERCENT) {
        out.push(Finding::improve(
            "cpu",
            format!("something waited for a core {percent:.0} % of the last ten seconds"),
            "move other work away from this host, or pin it to other cores",
        ));
    }
    if let Some(governor) = &cpu.governor
        && !matches!(governor.as_str(), "performance" | "schedutil")
    {
        out.push(Finding::improve(
            "cpu",
            format!("the frequency governor is {governor}: cores slow down between requests"),
            "cpupower frequency-set -g performance",
        ));
    }
}

/// Wake-ups up to this are not what anybody waits for, in microseconds: a put has four to six.
const WAKE_US_GOOD: u64 = 20;

pub(super) fn idle(report: &Report, out: &mut Vec<Finding>) {
    const SUBJECT: &str = "idle";
    let Some(idle) = &report.cpu.idle else { return };
    if idle.driver == "haltpoll" && idle.poll_us.is_some_and(|poll_us| poll_us < WAKE_US_GOOD) {
        return out.push(Finding::improve(
            SUBJECT,
            "the cores of this virtual machine stop as soon as they are idle, and waking one takes \
             tens of microseconds: a single client's put waits for several",
            "let them look for work first: echo 200000 > \
             /sys/module/haltpoll/parameters/guest_halt_poll_ns (one client's puts took three \
             fifths of the time and its reads a quarter where this was measured; idle cores cost \
             the host more)",
        ));
    }
    out.push(match idle.wake_us_max {
        Some(wake_us) if wake_us > WAKE_US_GOOD => Finding::improve(
            SUBJECT,
            format!("idle cores sleep so deeply that waking one takes up to {wake_us} us"),
            "keep them from it: tuned-adm profile latency-performance, or cpupower idle-set -D 20",
        ),
        _ => Finding::good(SUBJECT, format!("idle cores wake quickly ({})", idle.driver)),
    });
}

pub(super) fn io_uring(report: &Report, out: &mut Vec<Finding>) {
    const SUBJECT: &str = "io_uring";
    let uring = &report.io_uring;
    if let Some(features) = uring.features {
        out.push(if features.defer_taskrun && features.operations && features.buffer_rings {
            Finding::good(SUBJECT, "io_uring works, with everything the server uses")
        } else {
            Finding::improve(
                SUBJECT,
                "io_uring works, but lacks something that newer kernels have",
                "Linux 6.1 or later saves interruptions",
            )
        });
        return;
    }
    let kernel = &report.kernel;
    let (reason, change) = match (uring.errno, kernel.io_uring_disabled) {
        (_, Some(2)) => (
            "kernel.io_uring_disabled is 2".to_owned(),
            "sysctl -w kernel.io_uring_disabled=0, and a file in /etc/sysctl.d to keep it",
        ),
        (Some(libc::EPERM), Some(1)) => (
            "kernel.io_uring_disabled is 1: only a group may use it".to_owned(),
            "add the server's user to the group in kernel.io_uring_group, or set \
             kernel.io_uring_disabled to 0",
        ),
        (Some(libc::EPERM | libc::EACCES), _) if kernel.seccomp == Some(true) => (
            "a seccomp filter forbids it, as container runtimes do by default".to_owned(),
            "run with a seccomp profile that allows io_uring_setup, io_uring_enter and \
             io_uring_register",
        ),
        (Some(libc::ENOSYS), _) => {
            ("the kernel has none".to_owned(), "Linux 5.19 or later, better 6.1 or later")
        }
        (Some(libc::ENOMEM), _) => (
            "too little memory may be locked".to_owned(),
            "raise the limit: LimitMEMLOCK=infinity for systemd, --ulimit memlock=-1 for Docker",
        ),
        _ => (
            uring.error.clone().unwrap_or_else(|| "for an unknown reason".to_owned()),
            "ask whoever runs this host why io_uring is not allowed",
        ),
    };
    let text = format!("io_uring cannot be used: {reason}. The portable driver is used instead");
    out.push(Finding::improve(SUBJECT, text, change));
}

pub(super) fn memory(report: &Report, out: &mut Vec<Finding>) {
    let memory = &report.memory;
    match memory.memlock_bytes {
        Some(bytes) if bytes < MEMLOCK_BYTES => out.push(Finding::improve(
            "memory",
            format!(
                "only {} KiB may be locked, the io_uring driver needs 512: the portable driver \
                 is used instead",
                bytes / 1024
            ),
            "LimitMEMLOCK=infinity for systemd, --ulimit memlock=-1 for Docker, ulimit -l for a \
             shell",
        )),
        _ => out.push(Finding::good("memory", "enough memory may be locked")),
    }
    let bytes = memory.cgroup_bytes.or(memory.total_bytes);
    if let Some(bytes) = bytes.filter(|bytes| *bytes < 512 << 20) {
        out.push(Finding::improve(
            "memory",
            format!("{} MiB of memory hold only small clusters", bytes >> 20),
            "one gigabyte is enough for most, eight for the largest",
        ));
    }
}

pub(super) fn kernel(report: &Report, out: &mut Vec<Finding>) {
    let kernel = &report.kernel;
    if let Some(source @ ("hpet" | "acpi_pm" | "jiffies")) = kernel.clock_source.as_deref() {
        out.push(Finding::improve(
            "clock",
            format!("the clock source {source} makes every look at the clock a slow one"),
            "find out in the kernel log why tsc was given up; in a virtual machine, have the \
             hypervisor offer an invariant TSC or kvm-clock",
        ));
    } else if let Some(source) = &kernel.clock_source {
        out.push(Finding::good("clock", format!("the clock source is {source}")));
    }
    if let Some(files) = kernel.open_files.filter(|files| *files < OPEN_FILES) {
        out.push(Finding::improve(
            "limits",
            format!("only {files} files may be open, and every client connection is one"),
            "LimitNOFILE=65536 for systemd, --ulimit nofile=65536 for Docker",
        ));
    }
}
