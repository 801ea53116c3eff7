//! `process_*` and `os_fd_*`: what the kernel knows of the process, read when a page is made.
//!
//! This is one of the few files with `unsafe` in it: two calls of the C library fill structs on the
//! stack.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};

use super::{Level, level};

type Seconds = Counter<f64, AtomicU64>;
type Real = Gauge<f64, AtomicU64>;

pub(super) struct Process {
    resident_bytes: Level,
    virtual_bytes: Level,
    virtual_bytes_max: Real,
    open_fds: [Level; 2],
    max_fds: [Level; 2],
    cpu_seconds: Seconds,
    received_bytes: Counter,
    sent_bytes: Counter,
}

impl Process {
    pub(super) fn register(r: &mut Registry) -> Self {
        let cpu_seconds = Seconds::default();
        let help = "Total user and system CPU time spent in seconds.";
        r.register("process_cpu_seconds", help, cpu_seconds.clone());
        let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = Real::default();
        started.set(start.as_secs_f64());
        let help = "Start time of the process since unix epoch in seconds.";
        r.register("process_start_time_seconds", help, started);
        let virtual_bytes_max = Real::default();
        let help = "Maximum amount of virtual memory available in bytes.";
        r.register("process_virtual_memory_max_bytes", help, virtual_bytes_max.clone());
        let mut counter = |name: &'static str, help: &'static str| {
            let counter = Counter::default();
            r.register(name, help, counter.clone());
            counter
        };
        let received_bytes = counter(
            "process_network_receive_bytes",
            "Number of bytes received by the process over the network.",
        );
        let sent_bytes = counter(
            "process_network_transmit_bytes",
            "Number of bytes sent by the process over the network.",
        );
        let open = "Number of open file descriptors.";
        let most = "Maximum number of open file descriptors.";
        Self {
            resident_bytes: level(
                r,
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
            ),
            virtual_bytes: level(
                r,
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
            ),
            virtual_bytes_max,
            open_fds: [
                level(r, "process_open_fds", open),
                level(r, "os_fd_used", "The number of used file descriptors."),
            ],
            max_fds: [
                level(r, "process_max_fds", most),
                level(r, "os_fd_limit", "The file descriptor limit."),
            ],
            cpu_seconds,
            received_bytes,
            sent_bytes,
        }
    }

    /// Values that cannot be read keep what they were.
    pub(super) fn read(&self) {
        if let Ok(statm) = std::fs::read_to_string("/proc/self/statm") {
            let mut pages = statm.split(' ').filter_map(|word| word.parse::<u64>().ok());
            self.virtual_bytes.set(pages.next().unwrap_or(0) * 4096);
            self.resident_bytes.set(pages.next().unwrap_or(0) * 4096);
        }
        if let Ok(fds) = std::fs::read_dir("/proc/self/fd") {
            let count = fds.count() as u64;
            for level in &self.open_fds {
                level.set(count);
            }
        }
        if let Some(most) = getrlimit(Resource::Nofile).current {
            for level in &self.max_fds {
                level.set(most);
            }
        }
        // "Unlimited" is the largest number, there as here.
        let most = getrlimit(Resource::As).current.unwrap_or(u64::MAX);
        self.virtual_bytes_max.set(most as f64);
        // Two that read at once must not add the same twice, nor take anything back.
        self.cpu_seconds.inner().fetch_max(cpu_seconds().to_bits(), Ordering::Relaxed);
        if let Some((received, sent)) = network_bytes() {
            self.received_bytes.inner().fetch_max(received, Ordering::Relaxed);
            self.sent_bytes.inner().fetch_max(sent, Ordering::Relaxed);
        }
    }
}

fn cpu_seconds() -> f64 {
    // SAFETY: an all-zero rusage is valid, and getrusage fills the struct it is given.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// All that the process' network namespace has received and sent (`InOctets` and `OutOctets`),
/// which is what Prometheus' clients take for the process'.
fn network_bytes() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/self/net/netstat").ok()?;
    let mut lines = text.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, values) = (lines.next()?.split(' '), lines.next()?.split(' '));
    let mut pairs = names.zip(values);
    let mut find = |name| pairs.find(|(found, _)| *found == name)?.1.parse().ok();
    Some((find("InOctets")?, find("OutOctets")?))
}
