//! Damaged bytes: a log is either refused with file and offset or read back whole. Acknowledged
//! entries are never silently cut.

use crate::common::{DIR, SMALL_SEGMENT_BYTES, create, long, open, settle};
use bytes::Bytes;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_raftlog::types::{LogEntry, LogIndex};
use etcore_raftlog::wal::{RecoverOptions, Recovered, WalError, recover};

/// Two segments and a clean end.
fn written(rounds: usize, size: usize) -> (MemDisk, Vec<LogEntry>) {
    let mut disk = MemDisk::new();
    create(&mut disk, SMALL_SEGMENT_BYTES).expect("created");
    let mut log = open(&mut disk, SMALL_SEGMENT_BYTES).expect("opened");
    let mut applied = Vec::new();
    settle(&mut log, &mut disk, &mut applied).expect("settled");
    for round in 0..rounds {
        let batch = (0..2).map(|n| Bytes::from(vec![(round * 2 + n) as u8 | 1; size]));
        log.node.propose(batch).expect("proposed");
        settle(&mut log, &mut disk, &mut applied).expect("settled");
    }
    (disk, applied)
}

fn look(disk: &MemDisk) -> Result<Recovered, WalError> {
    let options = RecoverOptions { applied: LogIndex(0), window_bytes: 1 << 20, repair: false };
    recover(&mut disk.crash(1), DIR, options)
}

fn segments(disk: &MemDisk) -> Vec<String> {
    let names = disk.names().into_iter();
    names.filter(|name| name.starts_with(DIR) && name.ends_with(".wal")).collect()
}

fn used_bytes(content: &[u8]) -> usize {
    content.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)
}

#[test]
fn no_flipped_bit_loses_an_acknowledged_entry() {
    let (disk, applied) = written(4, 150);
    let intact = look(&disk).expect("intact");
    assert_eq!(intact.last_index.0, applied.len() as u64);
    let mut refused = 0;
    for name in segments(&disk) {
        let content = disk.content(&name).expect("there");
        // Behind the last record too: a stray bit in the zeros is no reason to lose anything.
        for at in 0..used_bytes(&content) + 600 {
            for bit in 0..8 {
                let damaged = disk.crash(1);
                damaged.patch(&name, at as u64, &[content[at] ^ 1 << bit]);
                match look(&damaged) {
                    Err(WalError::Refused { file, .. }) => {
                        assert_eq!(file, name);
                        refused += 1;
                    }
                    Err(other) => panic!("{name} byte {at} bit {bit}: {other}"),
                    Ok(found) => {
                        let near = &content[at - 16..at + 8];
                        assert!(
                            at >= used_bytes(&content),
                            "{name} byte {at} bit {bit}: {near:x?} {:?}",
                            found.cut
                        );
                        assert_eq!(found.last_index, intact.last_index);
                        assert_eq!(found.hard_state, intact.hard_state);
                    }
                }
            }
        }
    }
    assert!(refused > 8 * 1000);
}

#[test]
fn a_lost_sector_in_an_acknowledged_batch_is_refused_if_a_later_batch_exists() {
    let (disk, _) = written(12, 900);
    let name = segments(&disk).pop().expect("a segment");
    let content = disk.content(&name).expect("there");
    let used = used_bytes(&content);
    // The last batch alone could be torn; it has two entries of 900 bytes.
    let before_last = used - 2 * 1100;
    for sector in 0..before_last / 512 {
        let damaged = disk.crash(1);
        damaged.patch(&name, sector as u64 * 512, &[0; 512]);
        let error = look(&damaged).expect_err("refused");
        assert!(matches!(error, WalError::Refused { .. }), "sector {sector}: {error}");
    }
}

#[test]
fn a_missing_segment_is_named() {
    let (disk, _) = written(30, 3000);
    let names = segments(&disk);
    assert!(names.len() >= 3, "{names:?}");
    let mut without = disk.crash(1);
    let op = etcore_engine::file::FileOp::Remove { name: names[1].clone() };
    etcore_engine::file::run(&mut without, op).expect("removed");
    let error = look(&without).expect_err("refused");
    assert_eq!(error, WalError::MissingSegment { dir: DIR.to_owned(), missing: 1 });
}

#[test]
fn a_segment_cut_short_is_refused_or_whole() {
    let (disk, applied) = written(4, 150);
    let name = segments(&disk).pop().expect("a segment");
    let used = used_bytes(&disk.content(&name).expect("there"));
    let step = if long() { 1 } else { 7 };
    for len_bytes in (0..used + 64).step_by(step) {
        let damaged = disk.crash(1);
        damaged.truncate(&name, len_bytes as u64);
        if let Ok(found) = look(&damaged) {
            // Only a cut at a record's end goes unnoticed by the file itself; the page file's
            // applied index is what notices it.
            let options = RecoverOptions {
                applied: LogIndex(applied.len() as u64),
                window_bytes: 0,
                repair: false,
            };
            let whole = found.last_index.0 == applied.len() as u64;
            let checked = recover(&mut damaged.crash(1), DIR, options);
            assert_eq!(checked.is_ok(), whole, "{len_bytes} bytes");
        }
    }
}

#[test]
fn garbage_is_refused_without_a_panic() {
    let (disk, _) = written(2, 100);
    let name = segments(&disk).pop().expect("a segment");
    let mut prng = etcore_engine::testing::prng::Prng::new(7);
    for _ in 0..if long() { 20_000 } else { 500 } {
        let damaged = disk.crash(1);
        let mut noise = vec![0; prng.index(600) + 1];
        prng.fill(&mut noise);
        damaged.patch(&name, prng.below(900) & !7, &noise);
        if let Ok(found) = look(&damaged) {
            assert!(found.last_index.0 >= 1);
        }
    }
}
