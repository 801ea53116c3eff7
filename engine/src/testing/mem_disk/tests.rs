use super::*;
use crate::file::{AlignedBuf, FileId, FileOutput, OpenMode, run};

fn create(disk: &mut MemDisk, name: &str) -> FileId {
    let op = FileOp::Open { name: name.into(), mode: OpenMode::CreateNew, direct: false };
    match run(disk, op).unwrap() {
        FileOutput::Opened(file) => file,
        other => panic!("{other:?}"),
    }
}

fn write(disk: &mut MemDisk, file: FileId, offset_bytes: u64, data: &[u8], durable: bool) {
    let data = AlignedBuf::from(data);
    run(disk, FileOp::Write { file, offset_bytes, data, durable }).unwrap();
}

fn sync_root(disk: &mut MemDisk) {
    run(disk, FileOp::SyncDir { name: String::new() }).unwrap();
}

#[test]
fn a_file_survives_only_if_its_directory_was_synced() {
    let mut disk = MemDisk::new();
    let file = create(&mut disk, "a");
    write(&mut disk, file, 0, b"hello", true);
    assert_eq!(disk.crash(0).names(), Vec::<String>::new());
    assert_eq!(disk.crash(1).content("a").unwrap(), b"hello");
    sync_root(&mut disk);
    assert_eq!(disk.crash(0).content("a").unwrap(), b"hello");
}

#[test]
fn unsynced_sectors_are_lost_or_kept_one_by_one() {
    let mut disk = MemDisk::new();
    let file = create(&mut disk, "a");
    write(&mut disk, file, 0, &[1; 2048], false);
    run(&mut disk, FileOp::Sync { file }).unwrap();
    sync_root(&mut disk);
    write(&mut disk, file, 0, &[2; 2048], false);
    let mut patterns = std::collections::BTreeSet::new();
    for seed in 0..2000 {
        let content = disk.crash(seed).content("a").unwrap();
        assert_eq!(content.len(), 2048);
        for sector in content.chunks(SECTOR_BYTES) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is atomic");
        }
        patterns.insert(content.chunks(SECTOR_BYTES).map(|s| s[0]).collect::<Vec<_>>());
    }
    assert!(patterns.contains(&vec![1; 4]) && patterns.contains(&vec![2; 4]));
    assert_eq!(patterns.len(), 16, "2000 seeds meet every subset of four sectors");
}

#[test]
fn a_later_durable_write_is_not_undone_by_an_earlier_unsynced_one() {
    let mut disk = MemDisk::new();
    let file = create(&mut disk, "a");
    sync_root(&mut disk);
    write(&mut disk, file, 0, &[1; 512], false);
    write(&mut disk, file, 0, &[2; 512], true);
    for seed in 0..50 {
        assert_eq!(disk.crash(seed).content("a").unwrap(), [2; 512]);
    }
}

#[test]
fn a_sync_after_a_failed_sync_hardens_nothing_of_it() {
    let mut disk = MemDisk::new();
    let file = create(&mut disk, "a");
    sync_root(&mut disk);
    write(&mut disk, file, 0, &[1; 512], false);
    disk.fail_at(disk.change_count(), io::ErrorKind::Other);
    run(&mut disk, FileOp::Sync { file }).unwrap_err();
    run(&mut disk, FileOp::Sync { file }).unwrap();
    assert_eq!(disk.crash(0).content("a").unwrap(), b"");
}

#[test]
fn after_the_crash_point_everything_fails_and_the_cut_write_is_uncertain() {
    let mut disk = MemDisk::new();
    let file = create(&mut disk, "a");
    sync_root(&mut disk);
    disk.crash_at(disk.change_count());
    let data = AlignedBuf::from(&[7; 512][..]);
    run(&mut disk, FileOp::Write { file, offset_bytes: 0, data, durable: true }).unwrap_err();
    run(&mut disk, FileOp::Len { file }).unwrap_err();
    assert!(disk.has_crashed());
    assert_eq!(disk.crash(0).content("a").unwrap(), b"");
    assert_eq!(disk.crash(1).content("a").unwrap(), [7; 512]);
}

#[test]
fn a_rename_is_atomic_and_needs_the_directory_synced() {
    let mut disk = MemDisk::new();
    let old = create(&mut disk, "old");
    let new = create(&mut disk, "new");
    write(&mut disk, old, 0, b"old", true);
    write(&mut disk, new, 0, b"new", true);
    sync_root(&mut disk);
    run(&mut disk, FileOp::Rename { from: "new".into(), to: "old".into() }).unwrap();
    assert_eq!(disk.crash(0).names(), ["new", "old"]);
    assert_eq!(disk.crash(1).names(), ["old"]);
    assert_eq!(disk.crash(1).content("old").unwrap(), b"new");
}

#[test]
fn a_lost_directory_takes_its_files_with_it() {
    let mut disk = MemDisk::new();
    run(&mut disk, FileOp::CreateDir { name: "x/y".into() }).unwrap();
    create(&mut disk, "x/y/file");
    run(&mut disk, FileOp::SyncDir { name: "x/y".into() }).unwrap();
    assert_eq!(disk.crash(0).names(), Vec::<String>::new());
    run(&mut disk, FileOp::SyncDir { name: "x".into() }).unwrap();
    sync_root(&mut disk);
    assert_eq!(disk.crash(0).names(), ["x/y/file"]);
    let op = FileOp::List { name: "x".into() };
    assert!(matches!(run(&mut disk, op).unwrap(), FileOutput::Names(names) if names == ["y"]));
}

#[test]
fn manual_completion_delivers_every_operation_once_in_seeded_order() {
    let mut orders = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mut disk = MemDisk::new();
        let file = create(&mut disk, "a");
        disk.complete_in_seeded_order(seed);
        for token in 0..4 {
            disk.submit(Token(token), FileOp::Len { file });
        }
        let mut out = Vec::new();
        while out.len() < 4 {
            let before = out.len();
            disk.wait(&mut out);
            assert!(out.len() > before);
        }
        orders.insert(out.iter().map(|completion| completion.token).collect::<Vec<_>>());
    }
    assert!(orders.len() > 5);
}
