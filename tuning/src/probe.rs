//! The probe: looks up, measures, judges.
//!
//! Called by `main`. It changes nothing but the one file that it makes and removes.

use std::io;
use std::time::Duration;

use crate::cli::ProbeArgs;
use crate::host::{self, System, mount};
use crate::report::{Report, Uring};
use crate::{advice, disk, limits, peers};

/// Carries the probe out. `progress` hears what is being done and how far it is, in percent.
///
/// Errors: the data directory cannot be measured, or the flags contradict each other.
pub fn run(args: &ProbeArgs, progress: &mut dyn FnMut(&str, u32)) -> io::Result<Report> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text);
    if args.peers.len() > limits::PEERS_MAX {
        return Err(invalid("more than 64 peers"));
    }
    let write_bytes = args.write_bytes.next_multiple_of(disk::BLOCK_BYTES as u32);
    let file_bytes = u64::from(args.file_mib) << 20;
    if u64::from(write_bytes) > file_bytes {
        return Err(invalid("--write-bytes does not fit into --file-mib"));
    }
    let measured_dir = host::existing_ancestor(&args.data_dir)
        .ok_or_else(|| invalid("the data directory has no parent that exists"))?;
    let plan = disk::Plan {
        dir: measured_dir.clone(),
        writes: args.writes,
        write_bytes,
        file_bytes,
        at_most: Duration::from_secs(u64::from(args.seconds)),
    };
    let measured = disk::measure(&plan, progress).map_err(|error| {
        let dir = measured_dir.display();
        io::Error::new(error.kind(), format!("cannot measure writes in {dir}: {error}"))
    })?;
    let mut timed = Vec::new();
    for name in &args.peers {
        progress(name, 0);
        timed.push(peers::time(name));
    }
    let system = System::live();
    let io_uring = match disk::uring_works() {
        Ok(features) => Uring { features: Some(features), error: None, errno: None },
        Err(error) => {
            Uring { features: None, errno: error.raw_os_error(), error: Some(error.to_string()) }
        }
    };
    let real_dir = measured_dir.canonicalize().unwrap_or_else(|_| measured_dir.clone());
    let mut report = Report {
        schema: 1,
        data_dir: args.data_dir.clone(),
        measured_dir,
        write_bytes,
        cpu: host::cpu(&system),
        memory: host::memory(&system),
        kernel: host::kernel(&system),
        io_uring,
        mount: mount::of(&system, &real_dir),
        disk: measured,
        peers: timed,
        findings: Vec::new(),
    };
    report.findings = advice::findings(&report);
    Ok(report)
}
