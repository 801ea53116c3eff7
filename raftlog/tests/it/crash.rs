//! Power cuts: whatever subset of the unsynced sectors reaches the device, recovery finds every
//! acknowledged entry, and a log that was recovered goes on working.

use crate::common::{DIR, SMALL_SEGMENT_BYTES, create, long, open, settle};
use bytes::Bytes;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_raftlog::types::{LogEntry, SnapshotMark};
use etcore_raftlog::wal::{self, RecoverOptions, WalError};

/// A short history with small and large batches and several segments; stops at the first error.
/// `applied` receives what was acknowledged.
fn history(disk: &mut MemDisk, applied: &mut Vec<LogEntry>) -> Result<(), WalError> {
    create(disk, SMALL_SEGMENT_BYTES)?;
    let mut log = match open(disk, SMALL_SEGMENT_BYTES) {
        Ok(log) => log,
        Err(_) => return Ok(()),
    };
    settle(&mut log, disk, applied)?;
    for (round, size) in [3, 700, 9000, 100, 20_000, 1, 30_000, 600].into_iter().enumerate() {
        let batch = (0..3).map(|n| payload(round * 3 + n, size));
        log.node.propose(batch).expect("the only member leads");
        settle(&mut log, disk, applied)?;
    }
    Ok(())
}

fn payload(seed: usize, size: usize) -> Bytes {
    (0..size).map(|at| ((at * 7 + seed * 13) % 255 + 1) as u8).collect::<Vec<u8>>().into()
}

/// Opens the image, checks that nothing acknowledged is missing, and writes on.
fn check(mut disk: MemDisk, acknowledged: &[LogEntry], label: &str) -> MemDisk {
    let mut log = match open(&mut disk, SMALL_SEGMENT_BYTES) {
        Ok(log) => log,
        Err(error) => {
            assert!(acknowledged.is_empty(), "{label}: {error}");
            assert!(error.to_string().contains("holds no log"), "{label}: {error}");
            return disk;
        }
    };
    let mut applied = Vec::new();
    settle(&mut log, &mut disk, &mut applied).expect("settled");
    assert!(applied.len() > acknowledged.len(), "{label}: {} entries", applied.len());
    for (found, expected) in applied.iter().zip(acknowledged) {
        assert_eq!(found.index, expected.index, "{label}");
        assert_eq!(found.data, expected.data, "{label}: entry {}", found.index);
        assert_eq!(found.term, expected.term, "{label}");
    }
    log.node.propose([payload(99, 5000)].into_iter()).expect("proposed");
    settle(&mut log, &mut disk, &mut applied).expect("settled");
    drop(log);
    let mut again = Vec::new();
    let mut log = open(&mut disk, SMALL_SEGMENT_BYTES).expect(label);
    settle(&mut log, &mut disk, &mut again).expect("settled");
    assert_eq!(again[..applied.len()], applied[..], "{label}");
    disk
}

#[test]
fn a_power_cut_at_any_change_forgets_nothing_acknowledged() {
    let mut whole = MemDisk::new();
    let mut applied = Vec::new();
    history(&mut whole, &mut applied).expect("no crash");
    assert_eq!(applied.len(), 2 + 8 * 3);
    let changes = whole.change_count();
    let seeds = if long() { 200 } else { 12 };
    for change in 0..changes {
        let mut disk = MemDisk::new();
        disk.crash_at(change);
        let mut acknowledged = Vec::new();
        // The error is the crash.
        let _ = history(&mut disk, &mut acknowledged);
        assert!(disk.has_crashed());
        for seed in 0..seeds {
            check(disk.crash(seed), &acknowledged, &format!("change {change} seed {seed}"));
        }
    }
}

#[test]
fn a_second_power_cut_while_recovering_forgets_nothing_either() {
    let mut cuts = 0;
    let seeds = if long() { 100 } else { 8 };
    let mut whole = MemDisk::new();
    history(&mut whole, &mut Vec::new()).expect("no crash");
    for change in (0..whole.change_count()).step_by(if long() { 1 } else { 3 }) {
        let mut disk = MemDisk::new();
        disk.crash_at(change);
        let mut acknowledged = Vec::new();
        let _ = history(&mut disk, &mut acknowledged);
        for seed in 2..2 + seeds {
            let mut image = disk.crash(seed);
            let start = image.change_count();
            image.crash_at(start + seed % 3);
            let _ = open(&mut image, SMALL_SEGMENT_BYTES);
            cuts += u64::from(image.has_crashed());
            for second in [seed, seed + 1000] {
                let label = format!("change {change} seeds {seed} {second}");
                check(image.crash(second), &acknowledged, &label);
            }
        }
    }
    assert!(cuts > 20, "{cuts} recoveries were cut off");
}

#[test]
fn a_failing_write_latches_and_acknowledges_nothing_more() {
    let mut whole = MemDisk::new();
    history(&mut whole, &mut Vec::new()).expect("no crash");
    for change in 0..whole.change_count() {
        let mut disk = MemDisk::new();
        disk.fail_at(change, std::io::ErrorKind::Other);
        let mut acknowledged = Vec::new();
        // A failure of the spare's preparation is not an error of the log.
        let _ = history(&mut disk, &mut acknowledged);
        for seed in 0..4 {
            let label = format!("failure {change} seed {seed}");
            check(disk.crash(seed), &acknowledged, &label);
        }
    }
}

/// Several segments that go at once. Returns how many segments and changes there were before.
fn release_several(
    disk: &mut MemDisk,
    applied: &mut Vec<LogEntry>,
) -> Result<(usize, u64), Box<dyn std::error::Error>> {
    create(disk, SMALL_SEGMENT_BYTES)?;
    let mut log = open(disk, SMALL_SEGMENT_BYTES)?;
    for round in 0..6 {
        settle(&mut log, disk, applied)?;
        log.node.propose((0..3).map(|n| payload(round * 3 + n, 17_000)))?;
    }
    settle(&mut log, disk, applied)?;
    let last = applied.last().expect("applied");
    let (index, term) = (last.index, last.term);
    log.mark(&SnapshotMark { index, term, conf_state: Some(log.node.conf_state()) })?;
    log.drive(disk)?;
    let before = (segments(disk), disk.change_count());
    log.release(index);
    log.drive(disk)?;
    Ok(before)
}

fn segments(disk: &MemDisk) -> usize {
    disk.names().iter().filter(|name| name.ends_with(".wal")).count()
}

#[test]
fn however_a_power_cut_or_an_error_hits_released_segments_the_log_has_no_hole() {
    let mut whole = MemDisk::new();
    let mut applied = Vec::new();
    let (before, start) = release_several(&mut whole, &mut applied).expect("no crash");
    assert!(before - segments(&whole) >= 2, "{before} segments, then {}", segments(&whole));
    let last = applied.last().expect("applied");
    for change in start..whole.change_count() {
        for fails in [false, true] {
            let mut disk = MemDisk::new();
            if fails {
                disk.fail_at(change, std::io::ErrorKind::Other);
            } else {
                disk.crash_at(change);
            }
            let _ = release_several(&mut disk, &mut Vec::new());
            for seed in 0..if long() { 200 } else { 20 } {
                let label = format!("change {change} fails {fails} seed {seed}");
                let options =
                    RecoverOptions { applied: last.index, window_bytes: 1 << 20, repair: true };
                let found = wal::recover(&mut disk.crash(seed), DIR, options).expect(&label);
                assert!(found.last_index >= last.index, "{label}");
            }
        }
    }
}

#[test]
fn what_a_killed_process_left_unsynced_is_not_built_upon() {
    let mut whole = MemDisk::new();
    history(&mut whole, &mut Vec::new()).expect("no crash");
    let mut new = MemDisk::new();
    create(&mut new, SMALL_SEGMENT_BYTES).expect("no crash");
    let mut went_on = 0;
    for change in new.change_count()..whole.change_count() {
        // The write can be read, but its sync has failed: no later one makes it durable.
        let mut disk = MemDisk::new();
        disk.fail_at(change, std::io::ErrorKind::Other);
        let mut acknowledged = Vec::new();
        if history(&mut disk, &mut acknowledged).is_ok() {
            continue;
        }
        let Ok(mut log) = open(&mut disk, SMALL_SEGMENT_BYTES) else { continue };
        let mut applied = Vec::new();
        settle(&mut log, &mut disk, &mut applied).expect("settled");
        log.node.propose([payload(98, 3000)].into_iter()).expect("proposed");
        settle(&mut log, &mut disk, &mut applied).expect("settled");
        drop(log);
        went_on += 1;
        for seed in 0..if long() { 60 } else { 6 } {
            check(disk.crash(seed), &applied, &format!("change {change} seed {seed}"));
        }
    }
    assert!(went_on > 10, "{went_on} lives went on from what a failure left");
}
