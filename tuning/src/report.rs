//! Everything the probe found, as data, as JSON and as text.
//!
//! Called by the probe (fills it) and by `main` (prints it). The JSON's fields only ever grow;
//! `schema` counts up when one changes its meaning.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::advice::{Finding, Level};
use crate::disk::{Features, Measured};
use crate::host::mount::Mount;
use crate::host::{Cpu, Kernel, Memory};
use crate::peers::Peer;
use crate::sample::{Distribution, human};

/// A host, probed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Version of this form.
    pub schema: u32,
    /// The data directory as given.
    pub data_dir: PathBuf,
    /// The existing directory that was measured.
    pub measured_dir: PathBuf,
    /// Bytes per measured write.
    pub write_bytes: u32,
    /// CPU.
    pub cpu: Cpu,
    /// Memory.
    pub memory: Memory,
    /// Kernel and clock.
    pub kernel: Kernel,
    /// io_uring.
    pub io_uring: Uring,
    /// File system and device; absent if unknown.
    pub mount: Option<Mount>,
    /// Durable writes, one element per method.
    pub disk: Vec<Measured>,
    /// Round trips.
    pub peers: Vec<Peer>,
    /// What it means.
    pub findings: Vec<Finding>,
}

/// Whether io_uring can be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Uring {
    /// What it can do, if it works.
    pub features: Option<Features>,
    /// The system's answer, if it does not.
    pub error: Option<String>,
    /// Its number, to tell the causes apart.
    pub errno: Option<i32>,
}

impl Report {
    /// True if something should be changed before a member runs here.
    pub fn has_problems(&self) -> bool {
        self.findings.iter().any(|finding| finding.level == Level::Problem)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Host")?;
        for (name, value) in self.host_lines() {
            writeln!(f, "  {name:<12}{value}")?;
        }
        writeln!(
            f,
            "\nDurable writes of {} bytes in {}",
            self.write_bytes,
            self.measured_dir.display()
        )?;
        table_head(f)?;
        for one in &self.disk {
            match (&one.latency, &one.error) {
                (Some(latency), _) => table_row(f, one.method.label(), latency)?,
                (None, error) => {
                    let reason = error.as_deref().unwrap_or("no samples");
                    writeln!(f, "  {:<38}{reason}", one.method.label())?;
                }
            }
        }
        writeln!(f, "\nThe same, each after a pause, as one client's puts come")?;
        table_head(f)?;
        for one in &self.disk {
            if let Some(latency) = &one.after_pause {
                table_row(f, one.method.label(), latency)?;
            }
        }
        if !self.peers.is_empty() {
            writeln!(f, "\nRound trips to peers")?;
            table_head(f)?;
        }
        for peer in &self.peers {
            let name = match peer.addresses.first().map(SocketAddr::to_string) {
                Some(address) if address != peer.name => format!("{} ({address})", peer.name),
                _ => peer.name.clone(),
            };
            match &peer.round_trip {
                Some(trip) => table_row(f, &name, trip)?,
                None => {
                    writeln!(f, "  {name:<38}{}", peer.error.as_deref().unwrap_or("no answer"))?;
                }
            }
        }
        writeln!(f, "\nFindings")?;
        for finding in &self.findings {
            writeln!(f, "  {:<9}{}", finding.level.label(), wrapped(&finding.text))?;
            if let Some(change) = &finding.change {
                writeln!(f, "  {:<9}To do: {}", "", wrapped(change))?;
            }
        }
        Ok(())
    }
}

impl Report {
    fn host_lines(&self) -> Vec<(&'static str, String)> {
        let unknown = || "unknown".to_owned();
        let mut cpu = self.cpu.affinity.map_or_else(unknown, |cores| format!("{cores} cores"));
        if let Some(quota) = self.cpu.quota_cores {
            let _ = write!(cpu, ", quota {quota:.2} cores");
        }
        if let Some(model) = &self.cpu.model {
            let _ = write!(cpu, " ({model})");
        }
        let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1u32 << 30));
        let mut memory = self.memory.total_bytes.map_or_else(unknown, gib);
        if let Some(bytes) = self.memory.cgroup_bytes {
            let _ = write!(memory, ", limited to {}", gib(bytes));
        }
        let lock = self.memory.memlock_bytes;
        let lock = lock.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
        let _ = write!(memory, ", {lock} may be locked");
        let uring = match (&self.io_uring.features, &self.io_uring.error) {
            (Some(features), _) if features.defer_taskrun => "works, with deferred task work",
            (Some(_), _) => "works",
            (None, Some(error)) => error,
            (None, None) => "unknown",
        };
        let mount = self.mount.as_ref().map_or_else(unknown, |mount| {
            let scheduler = mount.scheduler.as_deref().unwrap_or("unknown");
            format!("{} on {}, scheduler {scheduler}", mount.kind, mount.source)
        });
        let kernel = self.kernel.release.clone().unwrap_or_else(unknown);
        let clock = self.kernel.clock_source.clone().unwrap_or_else(unknown);
        vec![
            ("CPU", cpu),
            ("memory", memory),
            ("kernel", format!("{kernel}, clock {clock}")),
            ("io_uring", uring.to_owned()),
            ("file system", mount),
        ]
    }
}

fn table_head(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(f, "  {:<38}{:>9}{:>9}{:>9}{:>9}", "", "p50", "p99", "p99.9", "max")
}

fn table_row(f: &mut fmt::Formatter<'_>, name: &str, of: &Distribution) -> fmt::Result {
    let (p50, p99) = (human(of.p50_us), human(of.p99_us));
    let (p999, max) = (human(of.p999_us), human(of.max_us));
    writeln!(f, "  {name:<38}{p50:>9}{p99:>9}{p999:>9}{max:>9}")
}

/// `text` with line breaks and the indentation of a finding.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 84;
    let mut out = String::new();
    let mut column = 0;
    for word in text.split(' ') {
        if column > 0 && column + word.len() >= WIDTH {
            out.push_str("\n           ");
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out
}
