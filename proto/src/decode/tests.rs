use prost::Message;

use super::*;
use crate::pb::etcdserverpb as pb;
use crate::splitmix::SplitMix64;
use crate::varint::write as varint;
use pb::request_op::Request;

struct Random(SplitMix64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0.draw()
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn tag(out: &mut Vec<u8>, number: u32, wire: u32) {
    varint(out, u64::from(number << 3 | wire));
}

fn len(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    tag(out, number, 2);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// So many groups in one another.
fn groups(number: u32, depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    (0..depth).for_each(|_| tag(&mut out, number, 3));
    (0..depth).for_each(|_| tag(&mut out, number, 4));
    out
}

/// A transaction with so many levels, the innermost one a put.
fn txn(levels: usize) -> Vec<u8> {
    // From the inside out, back to front, so that it takes linear time.
    let mut reversed: Vec<u8> = Vec::new();
    let wrap = |reversed: &mut Vec<u8>, number: u32| {
        let mut head = Vec::new();
        tag(&mut head, number, 2);
        varint(&mut head, reversed.len() as u64);
        reversed.extend(head.iter().rev());
    };
    let put = pb::PutRequest { key: "k".into(), value: "v".into(), ..Default::default() };
    reversed.extend(put.encode_to_vec().iter().rev());
    wrap(&mut reversed, 2);
    wrap(&mut reversed, 2);
    for _ in 1..levels {
        wrap(&mut reversed, 4);
        wrap(&mut reversed, 2);
    }
    reversed.reverse();
    reversed
}

fn levels(txn: &pb::TxnRequest) -> usize {
    let inner = txn.success.iter().filter_map(|op| match &op.request {
        Some(Request::RequestTxn(txn)) => Some(levels(txn)),
        _ => None,
    });
    1 + inner.max().unwrap_or(0)
}

fn decode_txn(bytes: Vec<u8>) -> Result<pb::TxnRequest, DecodeError> {
    with_decoded(bytes.into(), limits::DECODE_DEPTH, |decoded| decoded)
}

#[test]
fn unknown_groups_are_skipped_as_deep_as_go_skips_them() {
    for (depth, fits) in [(1, true), (98, true), (100, true), (10_001, true), (10_002, false)] {
        let mut bytes = groups(15, depth);
        len(&mut bytes, 1, b"k");
        let wanted = pb::RangeRequest { key: "k".into(), ..Default::default() };
        let found = decode::<pb::RangeRequest>(bytes.into());
        assert_eq!(found, if fits { Ok(wanted) } else { Err(DecodeError::Wire) }, "{depth}");
    }
}

#[test]
fn transactions_nest_as_deep_as_go_lets_them() {
    for depth in [1, 2, 48, 49, 50, 51, 99, 128, 129, 1000, 4_999] {
        let found = with_decoded(txn(depth).into(), limits::DECODE_DEPTH, |txn| {
            txn.map(|txn| levels(&txn))
        });
        assert_eq!(found, Ok(depth));
    }
    // The put is a message too: 4,999 levels, their operations, and it make 9,999.
    let too_deep = txn(5_000);
    assert_eq!(decode_txn(too_deep), Err(DecodeError::Depth));
}

#[test]
fn an_entry_holds_what_was_decoded_with_the_depth_that_it_leaves() {
    for (depth, fits) in [(4_998, true), (4_999, true), (5_000, false)] {
        let bytes = txn(depth);
        let alone = with_decoded::<pb::TxnRequest, _>(
            bytes.clone().into(),
            limits::DECODE_DEPTH - 1,
            |txn| txn.map(|txn| levels(&txn)),
        );
        let mut entry = Vec::new();
        len(&mut entry, 6, &bytes);
        let applied = with_decoded::<pb::InternalRaftRequest, _>(
            entry.into(),
            limits::DECODE_DEPTH,
            |request| request.map(|request| request.txn.as_ref().map_or(0, levels)),
        );
        assert_eq!(alone, applied, "{depth}");
        assert_eq!(alone.is_ok(), fits, "{depth}");
    }
}

#[test]
fn a_known_field_of_another_wire_type_is_an_unknown_one() {
    let mut bytes = Vec::new();
    tag(&mut bytes, 1, 0);
    varint(&mut bytes, 7);
    tag(&mut bytes, 3, 5);
    bytes.extend([1, 2, 3, 4]);
    bytes.extend(groups(2, 3));
    len(&mut bytes, 4, b"x");
    len(&mut bytes, 1, b"k");
    let wanted = pb::RangeRequest { key: "k".into(), ..Default::default() };
    assert_eq!(decode(bytes.clone().into()), Ok(wanted.clone()));
    let mut op = Vec::new();
    tag(&mut op, 2, 0);
    varint(&mut op, 1);
    len(&mut op, 1, &bytes);
    let mut txn = Vec::new();
    tag(&mut txn, 2, 1);
    txn.extend([0; 8]);
    len(&mut txn, 3, &op);
    let request = Some(Request::RequestRange(wanted));
    let failure = vec![pb::RequestOp { request }];
    assert_eq!(decode_txn(txn), Ok(pb::TxnRequest { failure, ..Default::default() }));
}

#[test]
fn pieces_of_one_request_are_merged_and_another_one_takes_its_place() {
    let put = |key: &'static str, lease| {
        pb::PutRequest { key: key.into(), lease, ..Default::default() }.encode_to_vec()
    };
    let mut op = Vec::new();
    len(&mut op, 2, &put("a", 0));
    len(&mut op, 3, b"");
    len(&mut op, 2, &put("b", 0));
    len(&mut op, 2, &put("", 5));
    let mut nested = Vec::new();
    len(&mut nested, 2, &op);
    let mut outer = Vec::new();
    len(&mut outer, 4, &nested);
    len(&mut outer, 4, &nested);
    let mut bytes = groups(9, 1);
    len(&mut bytes, 2, &outer);
    let plain = pb::TxnRequest::decode(bytes.as_slice()).unwrap();
    let assembled = pb::TxnRequest::assemble(&bytes.into(), 100).unwrap();
    assert_eq!(assembled, plain);
    let Some(Request::RequestTxn(nested)) = &assembled.success[0].request else { panic!() };
    assert_eq!(nested.success.len(), 2);
    let wanted = pb::PutRequest { key: "b".into(), lease: 5, ..Default::default() };
    assert_eq!(nested.success[1].request, Some(Request::RequestPut(wanted)));
}

#[test]
fn filters_of_a_watch_come_packed_or_one_by_one_or_as_something_unknown() {
    let filters = |bytes: &[u8]| {
        let mut create = groups(12, 200);
        create.extend_from_slice(bytes);
        decode::<pb::WatchCreateRequest>(create.into()).map(|create| create.filters)
    };
    assert_eq!(filters(&[5 << 3 | 2, 2, 0, 1]), Ok(vec![0, 1]));
    assert_eq!(filters(&[5 << 3, 1, 5 << 3, 0]), Ok(vec![1, 0]));
    assert_eq!(filters(&[5 << 3 | 5, 0, 0, 0, 0]), Ok(vec![]));
    assert_eq!(filters(&[5 << 3 | 2, 2, 0, 0x80]), Err(DecodeError::Wire));
}

#[test]
fn texts_are_utf8_and_what_ends_too_early_is_refused() {
    let mut bytes = groups(9, 200);
    len(&mut bytes, 1, b"\xff");
    assert_eq!(decode::<pb::AuthRoleAddRequest>(bytes.into()), Err(DecodeError::Utf8));
    for bytes in [&[0x0a, 5, 1][..], &[0x80], &[0x00], &[0x0b], &[0x0c], &[0x0e], &[0x09, 1]] {
        let bytes = Bytes::copy_from_slice(bytes);
        assert_eq!(decode::<pb::RangeRequest>(bytes.clone()), Err(DecodeError::Wire), "{bytes:?}");
        assert_eq!(decode_txn(bytes.to_vec()), Err(DecodeError::Wire), "{bytes:?}");
    }
    // 2^29 is no field's number, but within a group nobody minds.
    let mut number = Vec::new();
    varint(&mut number, 1 << 32);
    let mut within = vec![0x7b];
    within.extend(&number);
    within.extend([0, 0x7c]);
    number.push(0);
    assert_eq!(decode::<pb::PutRequest>(number.into()), Err(DecodeError::Wire));
    assert_eq!(decode::<pb::PutRequest>(within.into()), Ok(pb::PutRequest::default()));
}

fn random_put(random: &mut Random) -> pb::PutRequest {
    pb::PutRequest {
        key: vec![b'k'; random.below(4) as usize].into(),
        value: vec![b'v'; random.below(200) as usize].into(),
        lease: random.next().cast_signed() >> random.below(64),
        prev_kv: random.below(2) == 1,
        ignore_value: random.below(4) == 0,
        ignore_lease: random.below(4) == 0,
    }
}

fn random_txn(random: &mut Random, depth: u32) -> pb::TxnRequest {
    let mut txn = pb::TxnRequest::default();
    for _ in 0..random.below(3) {
        let union = pb::compare::TargetUnion::Value("v".into());
        txn.compare.push(pb::Compare {
            result: random.below(5) as i32,
            target: random.below(6) as i32,
            key: "c".into(),
            target_union: (random.below(2) == 0).then_some(union),
            ..Default::default()
        });
    }
    for at in 0..random.below(5) {
        let request = match random.below(if depth == 0 { 4 } else { 6 }) {
            0 => None,
            1 => Some(Request::RequestRange(pb::RangeRequest {
                limit: random.next().cast_signed(),
                ..Default::default()
            })),
            2 => Some(Request::RequestDeleteRange(pb::DeleteRangeRequest::default())),
            3 => Some(Request::RequestPut(random_put(random))),
            _ => Some(Request::RequestTxn(Box::new(random_txn(random, depth - 1)))),
        };
        let branch = if at % 2 == 0 { &mut txn.success } else { &mut txn.failure };
        branch.push(pb::RequestOp { request });
    }
    txn
}

#[test]
fn valid_messages_come_out_as_prost_decodes_them_with_or_without_what_it_refuses() {
    let mut random = Random(SplitMix64::new(7));
    for _ in 0..3_000 {
        let txn = random_txn(&mut random, 5);
        let mut bytes = txn.encode_to_vec();
        assert_eq!(pb::TxnRequest::assemble(&bytes.clone().into(), 100), Ok(txn.clone()));
        bytes.extend(groups(1 + random.below(20) as u32, 101));
        assert_eq!(decode_txn(bytes.clone()), Ok(txn.clone()));
        let mut entry = groups(77, 101);
        len(&mut entry, 6, &bytes);
        let header = pb::RequestHeader { id: 7, username: "u".into(), auth_revision: 3 };
        len(&mut entry, 100, &header.encode_to_vec());
        let request =
            with_decoded::<pb::InternalRaftRequest, _>(entry.into(), 100, |request| request);
        let wanted =
            pb::InternalRaftRequest { header: Some(header), txn: Some(txn), ..Default::default() };
        assert_eq!(request, Ok(wanted));
        let put = random_put(&mut random);
        assert_eq!(plain::decode::<pb::PutRequest>(&put.encode_to_vec()), Ok(put));
    }
}

/// Whatever prost accepts, the slow way accepts with the same result; on anything else it says so.
#[test]
fn damaged_messages_are_refused_or_mean_the_same_to_both_ways() {
    let mut random = Random(SplitMix64::new(11));
    let (mut both, mut only_go) = (0, 0);
    for _ in 0..30_000 {
        let mut bytes = random_txn(&mut random, 3).encode_to_vec();
        if bytes.is_empty() {
            continue;
        }
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        let plain = pb::TxnRequest::decode(bytes.as_slice());
        let slow = pb::TxnRequest::assemble(&bytes.clone().into(), limits::DECODE_DEPTH);
        match (plain, slow) {
            (Ok(plain), slow) => {
                assert_eq!(slow, Ok(plain), "{bytes:?}");
                both += 1;
            }
            (Err(_), Ok(_)) => only_go += 1,
            (Err(_), Err(_)) => {}
        }
    }
    assert!(both > 1_000 && only_go > 100, "{both} {only_go}");
}
