//! What clients with large requests and answers leave to the others.

use etcore_engine::types::{LeaseId, LogIndex, Term};

use super::*;

/// Two puts of a megabyte that the replica does not answer, or as far as the front reads them.
fn crowd(rig: &mut Rig) -> Caller {
    let mut caller = rig.client();
    let value = vec![0; 1 << 20];
    for user in 0..2 {
        caller.start_put(user, &value);
    }
    caller.exchange(rig);
    caller
}

#[test]
fn a_small_request_is_read_however_many_large_ones_of_others_wait() {
    let mut rig = Rig::new();
    let mut small = rig.client();
    let mut crowded: Vec<Caller> = Vec::new();
    // Each connection is read until it has something outstanding.
    while rig.front.services.proposal_bytes().1 < 4 * limits::PENDING_PROPOSAL_BYTES {
        let before = rig.front.services.proposal_bytes().1;
        crowded.push(crowd(&mut rig));
        assert!(rig.front.services.proposal_bytes().1 > before, "{} crowds", crowded.len());
    }
    rig.turn();
    assert!(crowded.iter().all(|one| rig.driver.paused[one.socket.slot as usize]));
    assert!(!rig.driver.paused[small.socket.slot as usize]);
    small.start_put(1000, b"small");
    small.exchange(&mut rig);
    let mut smallest = usize::MAX;
    while let Some(message) = rig.replica.pop() {
        if let ToReplica::Propose { data, .. } = message {
            smallest = smallest.min(data.len());
        }
    }
    assert!(smallest < 100, "the smallest of the replica's has {smallest} bytes");
}

#[test]
fn proposals_that_wait_leave_less_room_for_further_large_ones() {
    let mut rig = Rig::new();
    let mut crowded = Vec::new();
    let most = limits::PROCESS_RECEIVE_BYTES;
    for _ in 0..most >> 20 {
        crowded.push(crowd(&mut rig));
    }
    let held = rig.front.services.held_bytes();
    assert!(held > most / 4 && held <= most, "{held} bytes");
    assert!(rig.front.wire.settings().budget.used() <= most + (most >> 3));
}

/// Keys `a` to `d` with values of these many bytes.
fn filled(rig: &mut Rig, sizes: [usize; 4]) {
    let (mut store, _) = Store::open(&mut MemDisk::new(), EngineConfig::default()).unwrap();
    for ((index, key), size) in (1..).zip([b"a", b"b", b"c", b"d"]).zip(sizes) {
        let mut txn = store.begin(LogIndex(index), Term(1));
        txn.put(key, &vec![key[0]; size], LeaseId(0));
        txn.commit();
    }
    rig.publish(&mut store);
}

fn list(caller: &mut Caller, keys_only: bool) {
    let range = caller.client.method("/etcdserverpb.KV/Range");
    let request = pb::RangeRequest {
        key: "a".into(),
        range_end: "z".into(),
        serializable: true,
        keys_only,
        ..Default::default()
    };
    caller.client.start_unary(range, &CallOptions::default(), &request.encode_to_vec()).unwrap();
}

fn listed_sizes(response: &[u8]) -> Vec<usize> {
    let response = pb::RangeResponse::decode(response).unwrap();
    assert_eq!((response.count, response.more), (4, false));
    for kv in &response.kvs {
        assert!(kv.value.iter().all(|byte| *byte == kv.key[0]), "{:?}", kv.key);
    }
    response.kvs.iter().map(|kv| kv.value.len()).collect()
}

#[test]
fn long_answers_come_whole_through_windows_of_any_size() {
    for sizes in [[1_400_000, 0, 100_000, 3], [70_000, 70_000, 1, 65_600]] {
        for window_bytes in [1, 7, 1000, 65_535, 1 << 20] {
            let mut rig = Rig::new();
            filled(&mut rig, sizes);
            let mut config = ClientConfig::default();
            config.h2.stream_window_bytes = window_bytes;
            let mut caller = rig.client_with(config);
            let few_bytes = window_bytes < 1000;
            if few_bytes {
                filled(&mut rig, sizes.map(|size| size.min(40_000)));
            }
            list(&mut caller, false);
            caller.exchange(&mut rig);
            assert_eq!(caller.responses.len(), 1, "a window of {window_bytes}");
            let expected = sizes.map(|size| if few_bytes { size.min(40_000) } else { size });
            assert_eq!(listed_sizes(&caller.responses[0]), expected);
        }
    }
}

#[test]
fn a_list_of_large_values_needs_nothing_of_a_budget_that_others_have_used_up() {
    let mut rig = Rig::new();
    filled(&mut rig, [1_400_000; 4]);
    let mut caller = rig.client();
    let mut others = rig.front.wire.settings().budget.account();
    others.set(limits::PROCESS_RECEIVE_BYTES * 7 / 8);
    list(&mut caller, false);
    caller.exchange(&mut rig);
    assert_eq!(caller.responses.len(), 1, "{:?}", caller.answers);
    assert_eq!(listed_sizes(&caller.responses[0]), [1_400_000; 4]);
}

#[test]
fn long_answers_take_turns_so_that_no_turn_is_long() {
    let mut rig = Rig::new();
    filled(&mut rig, [1_000_000; 4]);
    let mut config = ClientConfig::default();
    config.h2.stream_window_bytes = 8 << 20;
    config.h2.connection_window_bytes = 8 << 20;
    let mut callers: Vec<Caller> = (0..20).map(|_| rig.client_with(config.clone())).collect();
    let mut bytes = Vec::new();
    for caller in &mut callers {
        list(caller, false);
        bytes.clear();
        while caller.client.poll_transmit(&mut bytes, 32 << 10) {}
        rig.front.received(caller.socket, &bytes);
    }
    for _ in 0..1000 {
        rig.turn();
        let sends = std::mem::take(&mut rig.driver.sends);
        let sent: usize = sends.iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(sent < limits::LIST_ROUND_BYTES + (128 << 10), "{sent} bytes in a turn");
        for (socket, bytes) in sends {
            rig.front.sent(socket, Vec::new(), Ok(()));
            let caller = callers.iter_mut().find(|caller| caller.socket == socket).unwrap();
            caller.client.receive(&bytes, rig.now_ms).unwrap();
        }
    }
    for caller in &mut callers {
        caller.exchange(&mut rig);
        assert_eq!(listed_sizes(&caller.responses[0]), [1_000_000; 4]);
    }
}

#[test]
fn large_writes_reach_the_replica_as_their_clients_sent_them() {
    let mut rig = Rig::new();
    let mut caller = rig.client();
    let txn = caller.client.method("/etcdserverpb.KV/Txn");
    for size in [10, 16_000, 17_000, 40_000, 1_000_000] {
        let put = pb::PutRequest {
            key: "k".into(),
            value: vec![size as u8; size].into(),
            ..Default::default()
        };
        let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put.clone())) };
        let request = pb::TxnRequest { success: vec![op], ..Default::default() };
        caller
            .client
            .start_unary(caller.put, &CallOptions::default(), &put.encode_to_vec())
            .unwrap();
        caller.client.start_unary(txn, &CallOptions::default(), &request.encode_to_vec()).unwrap();
        caller.exchange(&mut rig);
        let mut proposed = Vec::new();
        while let Some(message) = rig.replica.pop() {
            let ToReplica::Propose { id, data, .. } = message else { continue };
            let request = pb::InternalRaftRequest::decode(data.clone()).unwrap();
            assert_eq!(request.header.as_ref().unwrap().id, id);
            if request.put.is_some() {
                let canonical = crate::entry::wrap_request(4, &put.encode_to_vec(), id);
                assert_eq!(data, canonical);
            }
            proposed.push((request.put, request.txn));
        }
        proposed.sort_by_key(|(put, _)| put.is_none());
        assert_eq!(proposed, [(Some(put), None), (None, Some(request))], "{size} bytes");
    }
}
