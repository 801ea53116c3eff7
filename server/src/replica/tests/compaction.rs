//! Compactions beside readers that keep what they would remove.

use etcore_engine::hash::{HashKind, KvHasher};
use etcore_engine::types::Revision;

use super::*;
use crate::background::hasher::{Hasher, Job};
use crate::limits;

const RAFT_COMPACTION: u32 = 7;
const RAFT_DELETE_RANGE: u32 = 5;

fn compact(cluster: &mut Cluster, revision: i64) -> Slot {
    let request = pb::CompactionRequest { revision, physical: true };
    cluster.propose(0, RAFT_COMPACTION, &request.encode_to_vec())
}

#[test]
fn a_physical_compaction_waits_for_no_reader_and_a_reader_keeps_nothing_for_ever() {
    let mut cluster = Cluster::new(1, 31);
    cluster.ready();
    for number in 0..50 {
        let slot = cluster.put(0, "k", &number.to_string());
        assert_eq!(cluster.reply(0, slot), Ok(()));
    }
    let pins = cluster.members[0].replica.store.revision_pins().clone();
    let read = Revision(cluster.members[0].revision() - 20);
    let pin = pins.pin(read).unwrap();
    let target = cluster.members[0].revision() - 1;
    let slot = compact(&mut cluster, target);
    assert_eq!(cluster.reply(0, slot), Ok(()), "although a reader keeps older revisions");
    let store = |cluster: &Cluster| cluster.members[0].replica.store.removable();
    assert_eq!(store(&cluster), read);
    cluster.run_ms(limits::PIN_HELD_MS / 2);
    assert!(!pin.is_expired() && store(&cluster) == read);
    cluster.run_ms(limits::PIN_HELD_MS / 2 + 1000);
    assert!(pin.is_expired());
    assert_eq!(store(&cluster), Revision(target), "what the reader kept may go");
    let newer = pins.pin(Revision(target)).unwrap();
    assert!(!newer.is_expired());
}

#[test]
fn hashes_of_compactions_that_come_faster_than_they_are_taken_hold_back_only_the_newest() {
    let mut cluster = Cluster::new(1, 33);
    cluster.ready();
    for number in 0..20 {
        let slot = cluster.put(0, "k", &number.to_string());
        assert_eq!(cluster.reply(0, slot), Ok(()));
    }
    let member = &cluster.members[0];
    let pins = member.replica.store.revision_pins().clone();
    let pages = DiskPages::new(&MemDisk::new());
    let (hasher, mut worker) = Hasher::with(member.shared.clone(), pages, pins.clone());
    for revision in 5..10 {
        let pin = pins.pin(Revision(revision)).unwrap();
        let (to, compacted) = (Revision(revision + 1), Revision(revision));
        let hash = Box::new(KvHasher::new(HashKind::ByCompaction, to, compacted, pin));
        assert!(hasher.submit(Job::Compaction(hash)).is_ok());
    }
    assert_eq!(pins.oldest(), Some(Revision(9)), "the earlier ones are let go");
    while worker.has_work() {
        worker.step();
    }
    assert_eq!(pins.oldest(), None);
}

#[test]
fn a_large_deletion_is_applied_over_many_turns_and_other_requests_go_on() {
    let mut cluster = Cluster::new(3, 32);
    let leader = cluster.ready();
    const KEYS: usize = 20 * limits::APPLY_SLICE_ROWS;
    for first in (0..KEYS).step_by(128) {
        let success = (first..first + 128)
            .map(|number| pb::RequestOp {
                request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                    key: format!("d{number:06}").into(),
                    ..Default::default()
                })),
            })
            .collect();
        let txn = pb::TxnRequest { success, ..Default::default() };
        let slot = cluster.propose(leader, 6, &txn.encode_to_vec());
        assert_eq!(cluster.reply(leader, slot), Ok(()));
    }
    let before = cluster.members[leader].revision();
    let delete = pb::DeleteRangeRequest { key: "d".into(), range_end: "e".into(), prev_kv: true };
    let slot = cluster.propose(leader, RAFT_DELETE_RANGE, &delete.encode_to_vec());
    let mut slices = 0;
    let term = cluster.members[leader].shared.status.term.load(Ordering::Relaxed);
    while !cluster.members[leader].replies.contains_key(&slot) {
        cluster.step();
        if cluster.members[leader].replica.applier.is_between_slices() {
            slices += 1;
            assert_eq!(cluster.members[leader].revision(), before, "nothing of it is seen");
            assert!(cluster.members[leader].get("d000000").is_some());
        }
        assert!(slices < 10_000, "it ends");
    }
    assert!(slices > 10, "{slices} slices");
    let Reply::Long(answer) = &cluster.members[leader].replies[&slot][0] else {
        panic!("previous values are read by the front")
    };
    assert!(format!("{answer:?}").contains("items"));
    assert_eq!(cluster.members[leader].get("d000000"), None);
    let put = cluster.put(leader, "after", "v");
    assert_eq!(cluster.reply(leader, put), Ok(()));
    cluster.agree(&["after".to_owned(), "d000000".to_owned()]);
    assert_eq!(cluster.members[leader].shared.status.term.load(Ordering::Relaxed), term);
}

#[test]
fn the_leader_compacts_by_itself_and_the_next_one_goes_on() {
    let mut cluster = Cluster::with_flags(3, 35, &["--auto-compaction-retention=2s"]);
    let leader = cluster.ready();
    // Five revisions a second, at least.
    let write = |cluster: &mut Cluster, at: usize| {
        for number in 0..40 {
            let slot = cluster.put(at, "k", &number.to_string());
            assert_eq!(cluster.reply(at, slot), Ok(()));
            cluster.run_ms(190);
        }
    };
    let compacted =
        |cluster: &Cluster, at: usize| cluster.members[at].replica.store.compact_revision().0;
    write(&mut cluster, leader);
    cluster.run_ms(300);
    let (revision, before) = (cluster.members[leader].revision(), compacted(&cluster, leader));
    assert!(before > 1 && before <= revision - 10, "two seconds are kept: {before} of {revision}");
    let others = cluster.others(leader);
    for at in &others {
        assert_eq!(compacted(&cluster, *at), before, "member {at}");
    }
    cluster.crash(leader);
    let next = cluster.leader_among(&others);
    write(&mut cluster, next);
    cluster.run_ms(300);
    let (revision, after) = (cluster.members[next].revision(), compacted(&cluster, next));
    assert!(after > before && after <= revision - 10, "{before}, {after} of {revision}");
    // Nothing is written: what is old is compacted once more, and then there is nothing to do.
    cluster.run_ms(6000);
    let (last, newest) = (compacted(&cluster, next), cluster.members[next].revision());
    assert_eq!(last, newest, "all that is older than two seconds");
    cluster.run_ms(6000);
    assert_eq!((compacted(&cluster, next), cluster.members[next].revision()), (last, newest));
}
