use super::*;
use crate::page::{Fetch, NoPages};
use crate::types::{LeaseId, RevKey};
use crate::wire::KvRef;

fn store() -> Store {
    Store::in_memory(EngineConfig::default())
}

fn put(store: &mut Store, key: &str, value: &str) -> Revision {
    let index = LogIndex(store.applied().0.0 + 1);
    let mut txn = store.begin(index, Term(1));
    txn.put(key.as_bytes(), value.as_bytes(), LeaseId(0));
    txn.commit()
}

fn value_of(view: &View, at: RevKey) -> Vec<u8> {
    match view.value(at, &mut NoPages).unwrap() {
        Fetch::Ready(bytes) => KvRef::parse(bytes).unwrap().value.to_vec(),
        Fetch::Pending(_) => panic!("nothing is on disk"),
    }
}

#[test]
fn the_first_put_makes_revision_two_and_is_visible_after_publish_only() {
    let mut store = store();
    let before = store.publish();
    assert_eq!(put(&mut store, "a", "1"), Revision(2));
    let after = store.publish();
    assert_eq!(before.range(b"a", b"", Revision(0), 0).unwrap().count(), 0);
    let hits = after.range(b"a", b"", Revision(0), 0).unwrap();
    let hit = hits.hits()[0];
    assert_eq!(
        (hit.modified, hit.create, hit.version),
        (RevKey::first(Revision(2)), Revision(2), 1)
    );
    assert_eq!(value_of(&after, hit.modified), b"1");
    assert_eq!(after.applied, LogIndex(1));
}

#[test]
fn a_dropped_transaction_leaves_nothing_behind() {
    let mut store = store();
    put(&mut store, "a", "1");
    put(&mut store, "b", "1");
    let mut txn = store.begin(LogIndex(3), Term(1));
    for round in 0..40 {
        txn.put(b"a", format!("{round}").as_bytes(), LeaseId(0));
    }
    txn.delete(b"b");
    txn.put(b"b", b"again", LeaseId(0));
    txn.put(b"c", b"new", LeaseId(0));
    txn.bucket_put(Bucket::Lease, b"7", b"ttl");
    assert_eq!((txn.changes(), txn.revision()), (43, Revision(4)));
    assert_eq!(txn.count(b"\0", b"\0", Revision(0)), Ok(3));
    drop(txn);
    let view = store.publish();
    assert_eq!((view.revision, view.applied), (Revision(3), LogIndex(2)));
    assert_eq!(store.bucket_get(Bucket::Lease, b"7"), None);
    let hits = view.range(b"\0", b"\0", Revision(0), 0).unwrap();
    assert_eq!(hits.count(), 2);
    for hit in hits.hits() {
        assert_eq!((value_of(&view, hit.modified), hit.version), (b"1".to_vec(), 1));
    }
    assert_eq!(put(&mut store, "c", "2"), Revision(4));
}

#[test]
fn deletions_end_a_generation_and_a_later_put_starts_at_version_one() {
    let mut store = store();
    put(&mut store, "a", "1");
    put(&mut store, "a", "2");
    let mut txn = store.begin(LogIndex(3), Term(1));
    assert_eq!(txn.delete_range(b"a", b"b").count(), 1);
    assert_eq!(txn.delete(b"a"), None);
    assert_eq!(txn.commit(), Revision(4));
    let outcome = store.begin(LogIndex(4), Term(1)).put(b"a", b"3", LeaseId(0));
    assert_eq!((outcome.prev, outcome.create, outcome.version), (None, Revision(5), 1));
    let view = store.publish();
    assert_eq!(view.count(b"a", b"", Revision(0)), Ok(0));
    assert_eq!(view.range(b"a", b"", Revision(3), 0).unwrap().hits()[0].version, 2);
}

#[test]
fn compaction_bounds_reads_and_pins_keep_what_they_name() {
    let mut store = store();
    for value in ["1", "2", "3"] {
        put(&mut store, "a", value);
    }
    let pin = store.revision_pins().pin(Revision(2)).unwrap();
    let future = RangeError::Future { requested: Revision(5), current: Revision(4) };
    assert_eq!(store.compact(Revision(5)), Err(future));
    store.compact(Revision(3)).unwrap();
    store.compact(Revision(3)).unwrap_err();
    while store.maintain() {}
    let view = store.publish();
    assert!(view.range(b"a", b"", Revision(2), 0).is_err());
    assert_eq!(view.range(b"a", b"", Revision(3), 0).unwrap().count(), 1);
    let hits = view.range_pinned(b"a", b"", &pin, 0).unwrap();
    assert_eq!(value_of(&view, hits.hits()[0].modified), b"1");
    drop(pin);
    while store.maintain() {}
    let view = store.publish();
    assert_eq!(view.previous(b"a", RevKey::first(Revision(3))), None);
    assert!(view.previous(b"a", RevKey::first(Revision(4))).is_some());
}

#[test]
fn events_above_a_pin_and_their_previous_values_survive_compaction() {
    let mut store = store();
    for value in ["1", "2", "3", "4"] {
        put(&mut store, "a", value);
    }
    let pin = store.revision_pins().pin(Revision(3)).unwrap();
    store.compact(Revision(5)).unwrap();
    while store.maintain() {}
    let view = store.publish();
    let mut events = view.events_since(RevKey::first(Revision(4)), Revision(9)).unwrap();
    let mut seen = Vec::new();
    while let Fetch::Ready(Some(event)) = events.next(&mut NoPages).unwrap() {
        let previous = event.previous.expect("kept");
        seen.push((event.at.main.0, value_of(&view, previous)));
    }
    assert_eq!(seen, [(4, b"2".to_vec()), (5, b"3".to_vec())]);
    drop(pin);
    while store.maintain() {}
    let view = store.publish();
    let compacted = RangeError::Compacted { requested: Revision(4), compacted: Revision(5) };
    let lost = view.events_since(RevKey::first(Revision(4)), Revision(9));
    assert_eq!(lost.map(drop).unwrap_err(), compacted);
    let mut events = view.events_since(RevKey::first(Revision(5)), Revision(9)).unwrap();
    let mut pages = NoPages;
    let Fetch::Ready(Some(event)) = events.next(&mut pages).unwrap() else { panic!("an event") };
    assert_eq!((event.at.main, event.previous), (Revision(5), None));
}

#[test]
fn events_come_in_order_with_the_previous_revision_of_their_key() {
    let mut store = store();
    put(&mut store, "a", "1");
    put(&mut store, "b", "1");
    let mut txn = store.begin(LogIndex(3), Term(1));
    txn.put(b"a", b"2", LeaseId(0));
    txn.delete(b"b");
    txn.commit();
    put(&mut store, "c", "1");
    let view = store.publish();
    let mut events = view.events(Revision(2), Revision(4), None).unwrap();
    let mut seen = Vec::new();
    while let Fetch::Ready(Some(event)) = events.next(&mut NoPages).unwrap() {
        let key = KvRef::parse(event.kv).unwrap().key.to_vec();
        let previous = event.previous.map(|at| at.main.0);
        seen.push((event.at.main.0, event.at.sub, key, event.tombstone, previous));
    }
    let expected = vec![
        (3, 0, b"b".to_vec(), false, None),
        (4, 0, b"a".to_vec(), false, Some(2)),
        (4, 1, b"b".to_vec(), true, Some(3)),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn what_a_transaction_wrote_itself_is_no_previous_value() {
    let mut store = store();
    put(&mut store, "old", "1");
    let mut txn = store.begin(LogIndex(2), Term(1));
    txn.put(b"old", b"2", LeaseId(0));
    txn.put(b"new", b"1", LeaseId(0));
    txn.delete(b"old");
    txn.delete(b"new");
    txn.put(b"old", b"3", LeaseId(0));
    txn.commit();
    let view = store.publish();
    let mut events = view.events(Revision(2), Revision(3), None).unwrap();
    let mut seen = Vec::new();
    while let Fetch::Ready(Some(event)) = events.next(&mut NoPages).unwrap() {
        let key = KvRef::parse(event.kv).unwrap().key.to_vec();
        seen.push((key, event.tombstone, event.previous.map(|at| at.main.0)));
    }
    let expected = vec![
        (b"old".to_vec(), false, Some(2)),
        (b"new".to_vec(), false, None),
        (b"old".to_vec(), true, Some(2)),
        (b"new".to_vec(), true, None),
        (b"old".to_vec(), false, None),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn a_key_deleted_and_put_in_one_transaction_survives_a_compaction_at_its_revision() {
    let mut store = store();
    put(&mut store, "k", "1");
    let mut txn = store.begin(LogIndex(2), Term(1));
    txn.delete(b"k");
    txn.put(b"k", b"2", LeaseId(0));
    txn.commit();
    let before = store.publish();
    store.compact(Revision(3)).unwrap();
    while store.maintain() {}
    let view = store.publish();
    for at in [0, 3] {
        let hits = view.range(b"k", b"", Revision(at), 0).unwrap();
        assert_eq!(value_of(&view, hits.hits()[0].modified), b"2");
    }
    drop(before);
}

#[test]
fn a_pin_that_comes_too_late_is_told_by_the_view() {
    let mut store = Store::in_memory(EngineConfig::default());
    for index in 1..=3 {
        let mut txn = store.begin(LogIndex(index), Term(1));
        txn.put(b"a", &[u8::try_from(index).unwrap()], LeaseId(0));
        txn.commit();
    }
    let before = store.publish();
    // Applied and begun, and not to be seen by anybody yet.
    store.compact(Revision(4)).unwrap();
    while store.maintain() {}
    let pin = store.revision_pins().pin(Revision(2)).unwrap();
    assert!(before.has_all_of(&pin), "the older view has everything still");
    let view = store.publish();
    assert!(!view.has_all_of(&pin));
    assert!(matches!(view.range_pinned(b"a", b"", &pin, 0), Err(RangeError::Compacted { .. })));
    let pin = store.revision_pins().pin(Revision(4)).unwrap();
    assert!(view.has_all_of(&pin));
}
