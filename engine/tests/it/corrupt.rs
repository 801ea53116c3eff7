//! Damaged files: every answer is right or an error that names file and offset; nothing panics,
//! hangs, or reads what it should not.

use etcore_engine::checkpoint::Checkpointer;
use etcore_engine::error::{Corruption, EngineError};
use etcore_engine::page::UNIT_BYTES;
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::testing::model::{Model, apply, random_entry};
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::Revision;

const DB: &str = "etcore.db";

fn open(disk: &MemDisk) -> Result<(Store, Checkpointer), EngineError> {
    Store::open(&mut disk.clone(), EngineConfig::default())
}

fn checkpoint(disk: &MemDisk, store: &mut Store, checkpointer: &mut Checkpointer, now: u64) {
    store.publish();
    checkpointer.start(store.freeze(now).unwrap());
    let output = checkpointer.run(&mut disk.clone()).unwrap().unwrap();
    store.on_checkpoint(&output);
}

/// A disk after `count` checkpoints, and the models at each.
fn history(seed: u64, count: u64, each: impl Fn(&MemDisk, &[Model])) -> (MemDisk, Vec<Model>) {
    let disk = MemDisk::new();
    let (mut store, mut checkpointer) = open(&disk).unwrap();
    let mut prng = Prng::new(seed);
    let mut models = vec![Model::default()];
    let mut model = Model::default();
    for now in 0..count {
        for _ in 0..60 {
            let entry = random_entry(&mut prng, &model);
            apply(&mut store, &entry);
            model.apply(&entry);
        }
        checkpoint(&disk, &mut store, &mut checkpointer, now);
        models.push(model.clone());
        each(&disk, &models);
    }
    (disk, models)
}

#[test]
fn with_the_newest_meta_damaged_the_checkpoint_before_is_found_whole() {
    history(3, 40, |disk, models| {
        let newest = models.len() as u64 % 2;
        let image = disk.crash(0);
        image.patch(DB, newest * UNIT_BYTES as u64 + 100, &[0xff; 16]);
        let (mut store, mut checkpointer) = open(&image).unwrap();
        let model = &models[models.len() - 2];
        let mut prng = Prng::new(1);
        model.assert_store(&mut store, &mut DiskPages::new(&image), &mut prng);
        checkpoint(&image, &mut store, &mut checkpointer, 1_000);
        let mut store = open(&image).unwrap().0;
        model.assert_store(&mut store, &mut DiskPages::new(&image), &mut prng);
    });
}

#[test]
fn a_checkpoint_under_way_spares_the_pages_of_both_metas() {
    let (disk, models) = history(13, 21, |_, _| {});
    let (newest, older) = (models.len() - 1, models.len() - 2);
    let mut change = 0;
    loop {
        let image = disk.crash(1);
        let (mut store, mut checkpointer) = open(&image).unwrap();
        image.crash_at(image.change_count() + change);
        let mut prng = Prng::new(2);
        for _ in 0..60 {
            apply(&mut store, &random_entry(&mut prng, &models[newest]));
        }
        store.publish();
        checkpointer.start(store.freeze(0).unwrap());
        let finished = checkpointer.run(&mut image.clone()).is_ok();
        if finished {
            break;
        }
        let image = image.crash(1);
        // Until the new meta page takes its place, the older one is there to fall back to.
        if meta_number(&image, older as u64 + 1) == Some(older as u64 + 1) {
            let slot = (newest as u64 + 1) % 2;
            image.patch(DB, slot * UNIT_BYTES as u64 + 100, &[0xff; 16]);
            let (mut store, _) = open(&image).unwrap();
            models[older].assert_store(&mut store, &mut DiskPages::new(&image), &mut prng);
        }
        change += 1;
    }
    assert!(change >= 4, "{change} changes make a checkpoint");
}

/// The number in the meta page where `checkpoint` belongs.
fn meta_number(disk: &MemDisk, checkpoint: u64) -> Option<u64> {
    let bytes = disk.read_at(DB, checkpoint % 2 * UNIT_BYTES as u64 + 16, 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[test]
fn with_both_metas_damaged_the_file_is_refused() {
    let (disk, _) = history(3, 2, |_, _| {});
    disk.patch(DB, 60, &[0xff; 8]);
    disk.patch(DB, 60 + UNIT_BYTES as u64, &[0xff; 8]);
    let error = open(&disk).unwrap_err();
    let what = Corruption::BothMetas;
    assert_eq!(error, EngineError::Corrupt { file: DB.to_owned(), offset_bytes: 0, what });
}

#[test]
fn a_cut_file_is_refused() {
    let (disk, _) = history(5, 12, |_, _| {});
    for units in 0..6 {
        let image = disk.crash(0);
        image.truncate(DB, units * UNIT_BYTES as u64 + 77);
        assert!(matches!(open(&image), Err(EngineError::Corrupt { .. })), "{units} units");
    }
}

#[test]
fn a_flipped_byte_anywhere_is_harmless_or_named() {
    let (disk, models) = history(7, 15, |_, _| {});
    let model = models.last().unwrap();
    let len = disk.content(DB).unwrap().len() as u64;
    let used = len.min(80 * UNIT_BYTES as u64);
    let mut prng = Prng::new(9);
    let (mut harmless, mut named) = (0, 0);
    for _ in 0..400 {
        let image = disk.crash(0);
        let offset = 2 * UNIT_BYTES as u64 + prng.below(used - 2 * UNIT_BYTES as u64);
        let byte = image.read_at(DB, offset, 1).unwrap()[0];
        image.patch(DB, offset, &[byte ^ (1 << prng.below(8))]);
        match open(&image) {
            Ok((mut store, _)) => {
                model.assert_store(&mut store, &mut DiskPages::new(&image), &mut prng);
                harmless += 1;
            }
            Err(EngineError::Corrupt { offset_bytes, what, .. }) => {
                assert!(matches!(what, Corruption::Checksum { .. }), "{what}");
                assert!((offset_bytes..offset_bytes + 16_384).contains(&offset));
                named += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(harmless > 20 && named > 20, "{harmless} harmless, {named} named");
}

#[test]
fn a_page_that_rots_under_a_running_store_is_an_error_at_the_read_and_at_the_checkpoint() {
    let (disk, models) = history(11, 10, |_, _| {});
    let (mut store, mut checkpointer) = open(&disk).unwrap();
    let len = disk.content(DB).unwrap().len();
    for unit in 2..len / UNIT_BYTES {
        disk.patch(DB, (unit * UNIT_BYTES) as u64 + 30, &[0xaa; 64]);
    }
    let view = store.publish();
    let hits = view.range(b"\0", b"\0", Revision(0), 0).unwrap();
    assert!(!hits.hits().is_empty());
    for hit in hits.hits() {
        let mut pages = DiskPages::new(&disk);
        let result = view.value(hit.modified, &mut pages);
        assert!(matches!(result, Err(EngineError::Corrupt { .. })));
    }
    let model = models.last().unwrap();
    let mut prng = Prng::new(1);
    for _ in 0..20 {
        apply(&mut store, &random_entry(&mut prng, model));
    }
    store.publish();
    checkpointer.start(store.freeze(0).unwrap());
    let error = checkpointer.run(&mut disk.clone()).unwrap_err();
    assert!(matches!(error, EngineError::Corrupt { .. }));
}
