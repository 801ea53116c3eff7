//! Every judgement with the facts that lead to it.

use super::*;
use crate::disk::Features;
use crate::host::mount::Mount;
use crate::host::{Cpu, Idle, Kernel, Memory};
use crate::peers::Peer;
use crate::report::Uring;
use crate::sample::Distribution;

fn latency(p50_us: f64, p99_us: f64) -> Distribution {
    let (min_us, p90_us, p999_us, max_us) = (p50_us, p50_us, p99_us, p99_us);
    Distribution { count: 9, min_us, p50_us, p90_us, p99_us, p999_us, max_us }
}

/// A host with nothing to complain about.
pub(crate) fn good_host() -> Report {
    let features = Features { defer_taskrun: true, operations: true, buffer_rings: true };
    Report {
        schema: 1,
        data_dir: "/data".into(),
        measured_dir: "/data".into(),
        write_bytes: 4096,
        cpu: Cpu {
            affinity: Some(8),
            quota_cores: None,
            model: None,
            governor: Some("performance".into()),
            idle: None,
            pressure_percent: Some(0.0),
        },
        memory: Memory {
            total_bytes: Some(8 << 30),
            cgroup_bytes: None,
            memlock_bytes: Some(8 << 20),
        },
        kernel: Kernel {
            release: Some("6.8.0".into()),
            clock_source: Some("tsc".into()),
            io_uring_disabled: Some(0),
            seccomp: Some(false),
            open_files: Some(65536),
        },
        io_uring: Uring { features: Some(features), error: None, errno: None },
        mount: Some(Mount {
            point: "/data".into(),
            kind: "ext4".into(),
            source: "/dev/nvme0n1".into(),
            options: "rw,noatime".into(),
            scheduler: Some("none".into()),
            rotational: Some(false),
            write_cache: None,
        }),
        disk: vec![Measured {
            method: Method::UringDsync,
            latency: Some(latency(140.0, 400.0)),
            after_pause: Some(latency(160.0, 450.0)),
            error: None,
            direct: true,
        }],
        peers: Vec::new(),
        findings: Vec::new(),
    }
}

/// The level and the text about `subject` in a host changed by `change`.
fn about(subject: &str, change: impl FnOnce(&mut Report)) -> (Level, String) {
    let mut report = good_host();
    change(&mut report);
    let found = findings(&report).into_iter().find(|finding| finding.subject == subject);
    let found = found.expect("a finding");
    assert_eq!(found.change.is_some(), found.level != Level::Good, "{found:?}");
    (found.level, format!("{} {}", found.text, found.change.unwrap_or_default()))
}

#[test]
fn a_good_host_has_only_good_findings() {
    let found = findings(&good_host());
    assert!(found.iter().all(|finding| finding.level == Level::Good), "{found:?}");
    assert!(found.len() >= 6);
}

#[test]
fn the_disk_is_judged_by_its_99th_percentile() {
    let with =
        |p50, p99| about("disk", |report| report.disk[0].latency = Some(latency(p50, p99))).0;
    assert_eq!(with(140.0, 1_900.0), Level::Good);
    assert_eq!(with(900.0, 4_000.0), Level::Improve);
    assert_eq!(with(4_000.0, 30_000.0), Level::Problem);
    assert_eq!(with(2.0, 3.0), Level::Problem, "too good to be true");
    let nothing = about("disk", |report| report.disk[0].latency = None);
    assert_eq!(nothing.0, Level::Problem);
}

#[test]
fn file_systems_that_forget_or_cross_a_network_are_problems() {
    let on = |kind: &str| {
        about("file-system", |report| {
            if let Some(mount) = &mut report.mount {
                kind.clone_into(&mut mount.kind);
            }
        })
    };
    assert_eq!(on("xfs").0, Level::Good);
    for kind in ["tmpfs", "overlay", "nfs4", "fuse.sshfs"] {
        assert_eq!(on(kind).0, Level::Problem, "{kind}");
    }
    assert_eq!(on("btrfs").0, Level::Improve);
}

#[test]
fn quotas_below_a_core_are_problems_and_others_are_told() {
    let with = |quota| about("cpu", |report| report.cpu.quota_cores = Some(quota)).0;
    assert_eq!(with(0.5), Level::Problem);
    assert_eq!(with(2.0), Level::Improve);
    assert_eq!(with(8.0), Level::Good);
    assert_eq!(about("cpu", |report| report.cpu.affinity = Some(1)).0, Level::Improve);
}

#[test]
fn cores_that_wake_slowly_are_told_with_the_remedy_of_their_driver() {
    let with = |driver: &str, wake_us_max, poll_us| {
        let idle = Some(Idle { driver: driver.to_owned(), wake_us_max, poll_us });
        about("idle", |report| report.cpu.idle = idle)
    };
    let guest = with("haltpoll", Some(1), Some(0));
    assert!(guest.0 == Level::Improve && guest.1.contains("guest_halt_poll_ns"), "{guest:?}");
    assert_eq!(with("haltpoll", Some(1), Some(200)).0, Level::Good);
    let deep = with("intel_idle", Some(133), None);
    assert!(deep.0 == Level::Improve && deep.1.contains("133"), "{deep:?}");
    assert_eq!(with("intel_idle", Some(2), None).0, Level::Good);
    assert!(findings(&good_host()).iter().all(|finding| finding.subject != "idle"));
}

#[test]
fn each_cause_of_a_missing_io_uring_has_its_own_remedy() {
    let with = |errno, disabled, seccomp| {
        about("io_uring", |report| {
            let error = Some("denied".to_owned());
            report.io_uring = Uring { features: None, error, errno: Some(errno) };
            report.kernel.io_uring_disabled = disabled;
            report.kernel.seccomp = Some(seccomp);
        })
        .1
    };
    assert!(with(libc::EPERM, Some(2), true).contains("kernel.io_uring_disabled=0"));
    assert!(with(libc::EPERM, Some(1), false).contains("kernel.io_uring_group"));
    assert!(with(libc::EPERM, None, true).contains("seccomp profile"));
    assert!(with(libc::ENOSYS, None, false).contains("Linux 5.19"));
    assert!(with(libc::ENOMEM, Some(0), false).contains("LimitMEMLOCK"));
    assert!(with(libc::EIO, None, false).contains("denied"));
}

#[test]
fn small_limits_and_slow_clocks_are_told() {
    let lock = about("memory", |report| report.memory.memlock_bytes = Some(64 << 10));
    assert!(lock.1.contains("64 KiB") && lock.0 == Level::Improve);
    let clock = about("clock", |report| report.kernel.clock_source = Some("hpet".into()));
    assert_eq!(clock.0, Level::Improve);
    let files = about("limits", |report| report.kernel.open_files = Some(1024));
    assert!(files.1.contains("LimitNOFILE"));
}

#[test]
fn far_peers_get_a_heartbeat_and_dead_ones_are_problems() {
    let peer = |p99_us: Option<f64>| Peer {
        name: "b:2380".into(),
        addresses: Vec::new(),
        round_trip: p99_us.map(|p99_us| latency(p99_us / 2.0, p99_us)),
        listening: true,
        error: p99_us.is_none().then(|| "timed out".to_owned()),
    };
    let near = about("peers", |report| report.peers = vec![peer(Some(800.0))]);
    assert_eq!(near.0, Level::Good);
    let far = about("peers", |report| report.peers = vec![peer(Some(120_000.0))]);
    assert_eq!(far.0, Level::Problem);
    assert!(far.1.contains("--heartbeat-interval=180 --election-timeout=1800"), "{}", far.1);
    let dead = about("peers", |report| report.peers = vec![peer(None)]);
    assert!(dead.0 == Level::Problem && dead.1.contains("timed out"));
}

#[test]
fn the_text_report_has_every_finding_and_the_json_every_field() {
    let mut report = good_host();
    report.memory.memlock_bytes = Some(1024);
    report.findings = findings(&report);
    assert!(!report.has_problems());
    let text = report.to_string();
    for needle in ["p99.9", "140 us", "improve", "To do: LimitMEMLOCK", "8 cores", "ext4"] {
        assert!(text.contains(needle), "{needle} in {text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    let json = serde_json::to_value(&report).expect("a value");
    assert_eq!(json["schema"], 1);
    assert_eq!(json["disk"][0]["method"], "uring-dsync");
    assert_eq!(json["findings"][0]["level"], "improve");
}
