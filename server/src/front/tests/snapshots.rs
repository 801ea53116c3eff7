//! What clients notice when a snapshot takes the place of the member's state.

use etcore_engine::types::{LeaseId, LogIndex, Revision, Term};

use super::*;

/// Keys `a` to `d` with large values of this byte, written from `index` on.
fn store_of(index: u64, byte: u8) -> Store {
    let (mut store, _) = Store::open(&mut MemDisk::new(), EngineConfig::default()).unwrap();
    for (index, key) in (index..).zip([b"a", b"b", b"c", b"d"]) {
        let mut txn = store.begin(LogIndex(index), Term(1));
        txn.put(key, &[byte; 300_000], LeaseId(0));
        txn.commit();
    }
    store
}

/// A list of all keys is begun, and its client has read nothing of it, when a snapshot comes that
/// has compacted what it reads.
fn with_list_under_way() -> (Rig, Caller) {
    let mut rig = Rig::new();
    rig.publish(&mut store_of(1, b'1'));
    let mut caller = rig.client();
    let range = caller.client.method("/etcdserverpb.KV/Range");
    let request = pb::RangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        serializable: true,
        ..Default::default()
    };
    caller.client.start_unary(range, &CallOptions::default(), &request.encode_to_vec()).unwrap();
    let mut bytes = Vec::new();
    while caller.client.poll_transmit(&mut bytes, 32 << 10) {}
    rig.front.received(caller.socket, &bytes);
    for _ in 0..10 {
        rig.turn();
    }
    assert!(!rig.driver.sends.is_empty(), "the message is begun");
    let mut snapshot = store_of(100, b'2');
    let mut txn = snapshot.begin(LogIndex(200), Term(1));
    txn.put(b"e", b"", LeaseId(0));
    txn.commit();
    let newest = snapshot.revision();
    assert!(newest > Revision(5));
    snapshot.compact(newest).unwrap();
    rig.publish_from(&mut snapshot, PageFile { number: 1, ..PageFile::default() });
    (rig, caller)
}

#[test]
fn a_long_answer_is_completed_from_the_state_in_which_it_began() {
    let (mut rig, mut caller) = with_list_under_way();
    caller.exchange(&mut rig);
    assert_eq!(caller.answers, [(0, String::new())]);
    let response = pb::RangeResponse::decode(caller.responses[0].as_slice()).unwrap();
    assert_eq!((response.count, response.kvs.len()), (4, 4));
    assert!(response.kvs.iter().all(|kv| kv.value == vec![b'1'; 300_000]));
}

#[test]
fn a_client_that_reads_too_slowly_does_not_keep_the_state_of_before() {
    let (mut rig, mut caller) = with_list_under_way();
    rig.turn();
    rig.now_ms += limits::FORMER_STATE_MS;
    rig.turn();
    caller.exchange(&mut rig);
    assert!(caller.responses.is_empty());
    assert!(caller.answers[0].1.contains("INTERNAL_ERROR"), "{:?}", caller.answers);
}
