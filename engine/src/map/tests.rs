use tempfile::TempDir;

use super::*;
use crate::checkpoint::Checkpointer;
use crate::file::StdDisk;
use crate::store::{EngineConfig, Store};
use crate::testing::model::{Entry, Model, Op, apply, random_entry};
use crate::testing::prng::Prng;
use crate::types::{LeaseId, LogIndex, RevKey, Revision, Term};
use crate::view::View;

/// A map whose requests are run as soon as they are made, but after `Pending` was answered.
struct Eager(PageMap, u64);

impl PageSource for Eager {
    fn get(&mut self, ptr: PagePtr) -> Result<Fetch<&[u8]>, EngineError> {
        let mut requests = Vec::new();
        self.0.take_requests(&mut requests);
        for request in requests {
            self.0.on_populated(request.run());
            self.1 += 1;
        }
        self.0.get(ptr)
    }
}

/// A store in a directory of its own.
struct Home {
    disk: StdDisk,
    store: Store,
    checkpointer: Checkpointer,
    _dir: TempDir,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = StdDisk::new(dir.path());
        let (store, checkpointer) = Store::open(&mut disk, EngineConfig::default()).unwrap();
        Self { disk, store, checkpointer, _dir: dir }
    }

    /// Puts a key by an entry of its own; where its row is.
    fn put(&mut self, key: &[u8], value: &[u8]) -> RevKey {
        let index = LogIndex(self.store.applied().0.0 + 1);
        let mut txn = self.store.begin(index, Term(1));
        let at = txn.put(key, value, LeaseId(0)).at;
        txn.commit();
        at
    }

    /// Values of 700 kB, by keys from 1 on.
    fn put_large(&mut self, count: u8) -> Vec<RevKey> {
        (1..=count).map(|index| self.put(&[index], &vec![index; 700_000])).collect()
    }

    fn checkpoint(&mut self) -> Arc<View> {
        self.store.publish();
        self.checkpointer.start(self.store.freeze(0).unwrap());
        let output = self.checkpointer.run(&mut self.disk).unwrap().unwrap();
        self.store.on_checkpoint(&output);
        self.store.publish()
    }

    /// So small that windows are dropped whenever it is allowed.
    fn pages(&self) -> Eager {
        Eager(PageMap::new(self.file(), WINDOW_BYTES), 0)
    }

    fn file(&self) -> Arc<File> {
        self.disk.handle(self.checkpointer.file()).unwrap()
    }
}

#[test]
fn views_read_the_file_through_windows_while_checkpoints_go_on() {
    let mut home = Home::new();
    let mut pages = home.pages();
    let (mut prng, mut model) = (Prng::new(8), Model::default());
    for round in 0..40u64 {
        for step in 0..150u64 {
            let large = Op::Put {
                key: (round * 1_000 + step).to_be_bytes().to_vec(),
                value: vec![1; 8_000],
                lease: LeaseId(0),
            };
            let entry = match step % 10 {
                0 => Entry::Txn(vec![large]),
                _ => random_entry(&mut prng, &model),
            };
            apply(&mut home.store, &entry);
            model.apply(&entry);
        }
        let view = home.checkpoint();
        model.assert_view(&view, &mut pages, &mut prng);
    }
}

#[test]
fn a_file_larger_than_the_budget_is_read_within_the_budget() {
    let mut home = Home::new();
    let rows = home.put_large(40);
    let view = home.checkpoint();
    let mut pages = home.pages();
    for (row, index) in rows.iter().zip(1..) {
        let value = loop {
            match view.value(*row, &mut pages).unwrap() {
                Fetch::Ready(bytes) => break crate::wire::KvRef::parse(bytes).unwrap().value[7],
                Fetch::Pending(_) => {}
            }
        };
        assert_eq!(value, index);
        assert!(pages.0.windows.len() <= WINDOWS_MIN);
    }
    assert!(pages.1 > 20, "populated {} times", pages.1);
}

#[test]
fn a_page_larger_than_a_window_is_read_whole() {
    let mut home = Home::new();
    let mut value = vec![0; 3 << 20];
    Prng::new(1).fill(&mut value);
    let at = home.put(b"big", &value);
    let view = home.checkpoint();
    let mut pages = home.pages();
    for _ in 0..4 {
        if let Fetch::Ready(bytes) = view.value(at, &mut pages).unwrap() {
            assert_eq!(crate::wire::KvRef::parse(bytes).unwrap().value, value);
            return;
        }
    }
    panic!("still pending");
}

#[test]
fn a_rotten_page_and_a_pointer_beyond_the_end_are_errors() {
    let mut home = Home::new();
    let at = home.put(b"key", b"value");
    let view = home.checkpoint();
    let root = view.tree.root.unwrap();
    home.file().write_all_at(b"rot", root.offset_bytes() + 20).unwrap();
    let mut pages = home.pages();
    assert!(matches!(view.value(at, &mut pages), Ok(Fetch::Pending(_))));
    let error = view.value(at, &mut pages).unwrap_err();
    assert!(matches!(error, EngineError::Corrupt { what: Corruption::Checksum { .. }, .. }));
    let beyond = PagePtr { first_unit: 1 << 30, ..root };
    assert!(matches!(pages.get(beyond), Err(EngineError::Corrupt { .. })));
    assert_eq!(view.revision, Revision(2));
}

#[test]
fn an_evaluation_of_more_windows_than_are_kept_ends() {
    let mut home = Home::new();
    let rows = home.put_large(60);
    let view = home.checkpoint();
    let mut pages = home.pages();
    // Reads all rows, from the first one on after each page that is not there.
    let evaluate = |pages: &mut Eager| {
        rows.iter().all(|row| matches!(view.value(*row, pages).unwrap(), Fetch::Ready(_)))
    };
    assert!((0..200).all(|_| !evaluate(&mut pages)), "it needs more than is kept");
    pages.0.begin_evaluation();
    let (mut tries, before) = (0, pages.1);
    while !evaluate(&mut pages) {
        pages.0.begin_evaluation();
        tries += 1;
        assert!(tries < 40, "still pending");
    }
    assert!(pages.1 > before, "first it waits");
    assert!(pages.0.windows.len() <= WINDOWS_MIN);
    pages.0.end_evaluation();
    assert!(!evaluate(&mut pages), "others wait again");
}

#[test]
fn a_window_that_was_cut_while_it_was_read_is_read_again() {
    let file = Arc::new(tempfile::tempfile().unwrap());
    let left_bytes = WINDOW_BYTES / 2;
    file.set_len(left_bytes).unwrap();
    let span = Span { first: 0, count: 1 };
    let request = PopulateRequest { ticket: Ticket(1), span, file: file.clone(), cuts: 0 };
    // What the length was before the cut.
    let raced = request.populate(WINDOW_BYTES);
    assert!(raced.is_err(), "nothing is behind the end");
    let populated = request.finish(raced);
    assert_eq!(populated.result.unwrap().len() as u64, left_bytes);
    file.set_len(0).unwrap();
    let request = PopulateRequest { ticket: Ticket(2), span, file, cuts: 0 };
    assert!(request.run().result.is_err(), "once");
}

#[test]
fn nothing_of_a_file_that_was_replaced_is_read_any_more() {
    let (mut before, mut after) = (Home::new(), Home::new());
    // Same place, other value: only the file tells them apart.
    let (old_row, new_row) = (before.put(b"key", b"old"), after.put(b"key", b"new"));
    let (old, new) = (before.checkpoint(), after.checkpoint());
    let mut map = PageMap::new(before.file(), WINDOW_BYTES);
    assert!(matches!(old.value(old_row, &mut map), Ok(Fetch::Pending(_))));
    let mut under_way = Vec::new();
    map.take_requests(&mut under_way);
    map.replace(after.file(), 0);
    for request in under_way {
        map.on_populated(request.run());
    }
    assert_eq!(map.mapped_bytes(), 0, "what was under way is of the file before");
    let mut pages = Eager(map, 0);
    loop {
        if let Fetch::Ready(bytes) = new.value(new_row, &mut pages).unwrap() {
            assert_eq!(crate::wire::KvRef::parse(bytes).unwrap().value, b"new");
            break;
        }
    }
    assert!(pages.1 > 0);
}
