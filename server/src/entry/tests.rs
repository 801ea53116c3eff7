use super::*;

#[test]
fn a_wrapped_put_is_the_raft_request_prost_would_decode() {
    let put = pb::PutRequest {
        key: "k".into(),
        value: "v".into(),
        lease: -5,
        prev_kv: true,
        ignore_value: false,
        ignore_lease: true,
    };
    let message = put.encode_to_vec();
    let entry = wrap_request(4, &message, 7);
    let decoded = pb::InternalRaftRequest::decode(entry.as_slice()).unwrap();
    assert_eq!(decoded.header.unwrap().id, 7);
    assert_eq!(decoded.put.as_ref(), Some(&put));
    assert_eq!(wrapped_put(&entry), Some(message.as_slice()));
    let came = etcore_proto::grpc::Message::from(Bytes::from(message.clone()));
    assert_eq!(wrap_message(4, came, 7), entry);
    assert_eq!((request_id(&entry), request_id(&message)), (Some(7), None));
    let parsed = PutRef::parse(&message).unwrap();
    assert_eq!((parsed.key, parsed.value, parsed.lease), (&b"k"[..], &b"v"[..], -5));
    assert!(parsed.prev_kv && parsed.ignore_lease && !parsed.ignore_value);
    let other = wrap_request(5, &message, 7);
    assert_eq!(wrapped_put(&other), None);
}

#[test]
fn a_written_revoke_is_the_raft_request_prost_would_decode() {
    for id in [1, -1, i64::MAX, i64::MIN] {
        let mut entry = Vec::new();
        write_revoke(&mut entry, id, 7);
        let revoke = pb::LeaseRevokeRequest { id };
        assert_eq!(entry, wrap_request(field::LEASE_REVOKE, &revoke.encode_to_vec(), 7));
        let decoded = pb::InternalRaftRequest::decode(entry.as_slice()).unwrap();
        assert_eq!(decoded.lease_revoke, Some(revoke));
        let mut longest = Vec::new();
        write_revoke(&mut longest, id, u64::MAX);
        assert!(longest.len() <= REVOKE_BYTES_MAX, "{}", longest.len());
        assert_eq!((wrapped_revoke(&entry), wrapped_put(&entry)), (Some(id), None));
        entry.extend_from_slice(&wrap_request(field::PUT, b"", 7));
        assert_eq!(wrapped_revoke(&entry), None);
    }
    let unknown = [8, 1, 16, 1];
    assert_eq!(wrapped_revoke(&wrap_request(field::LEASE_REVOKE, &unknown, 7)), None);
}

#[test]
fn only_what_adds_keys_or_leases_grows() {
    let put = pb::PutRequest { key: "k".into(), ..Default::default() };
    let entry = |request: pb::InternalRaftRequest| Bytes::from(request.encode_to_vec());
    let none = pb::InternalRaftRequest::default;
    assert!(grows(&wrap_request(4, &put.encode_to_vec(), 1).into()));
    assert!(grows(&entry(pb::InternalRaftRequest { put: Some(put), ..none() })));
    let grant = Some(pb::LeaseGrantRequest::default());
    assert!(grows(&entry(pb::InternalRaftRequest { lease_grant: grant, ..none() })));
    let delete = Some(pb::DeleteRangeRequest::default());
    assert!(!grows(&entry(pb::InternalRaftRequest { delete_range: delete, ..none() })));
    let txn = Some(pb::TxnRequest::default());
    assert!(!grows(&entry(pb::InternalRaftRequest { txn, ..none() })));
    assert!(!grows(&Bytes::from_static(b"\xff")), "apply will tell what is wrong with it");
}

/// What a front makes of a message: the request's bytes in prost's form.
fn front(field: u32, message: &Bytes) -> Result<Vec<u8>, DecodeError> {
    fn plain<M: Flat>(message: &Bytes) -> Result<Vec<u8>, DecodeError> {
        request::<M>(message.clone()).map(|request| request.encode_to_vec())
    }
    match field {
        field::PUT => {
            let put = PutRef::parse(message)?;
            Ok(pb::PutRequest {
                key: put.key.to_vec().into(),
                value: put.value.to_vec().into(),
                lease: put.lease,
                prev_kv: put.prev_kv,
                ignore_value: put.ignore_value,
                ignore_lease: put.ignore_lease,
            }
            .encode_to_vec())
        }
        field::DELETE_RANGE => plain::<pb::DeleteRangeRequest>(message),
        field::TXN => with_txn(message.clone(), |txn| txn.map(|txn| txn.encode_to_vec())),
        field::COMPACTION => plain::<pb::CompactionRequest>(message),
        field::LEASE_GRANT => plain::<pb::LeaseGrantRequest>(message),
        field::LEASE_REVOKE => plain::<pb::LeaseRevokeRequest>(message),
        _ => plain::<pb::AlarmRequest>(message),
    }
}

/// What apply makes of the entry around it.
fn apply(entry: &Bytes) -> Result<Vec<u8>, Unapplicable> {
    with_entry(entry, |request| {
        request.map(|request| match Request::of(&request) {
            Some(Request::Put(put)) => put.encode_to_vec(),
            Some(Request::DeleteRange(delete)) => delete.encode_to_vec(),
            Some(Request::Txn(txn)) => txn.encode_to_vec(),
            Some(Request::Compaction(compaction)) => compaction.encode_to_vec(),
            Some(Request::LeaseGrant(grant)) => grant.encode_to_vec(),
            Some(Request::LeaseRevoke(revoke)) => revoke.encode_to_vec(),
            Some(Request::Alarm(alarm)) => alarm.encode_to_vec(),
            other => panic!("{other:?}"),
        })
    })
}

fn key(out: &mut Vec<u8>, number: u32, wire: u32) {
    crate::wire::write_varint(out, u64::from(number << 3 | wire));
}

fn groups(number: u32, depth: usize) -> Vec<u8> {
    let mut out = Vec::new();
    (0..depth).for_each(|_| key(&mut out, number, 3));
    (0..depth).for_each(|_| key(&mut out, number, 4));
    out
}

/// A field of every wire type, groups of many depths, and what is no field.
fn odd_fields(number: u32) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut add = |wire: u32, value: &[u8]| {
        let mut out = Vec::new();
        key(&mut out, number, wire);
        out.extend_from_slice(value);
        all.push(out);
    };
    add(0, &[7]);
    add(0, &[0xff; 9]);
    add(1, &[1; 8]);
    add(2, &[0]);
    add(2, &[2, 0xff, 0xff]);
    add(2, &[9, 1]);
    add(4, &[]);
    add(5, &[1; 4]);
    add(5, &[1; 3]);
    add(6, &[]);
    add(7, &[]);
    for depth in [1, 48, 49, 50, 97, 98, 99, 100, 101, 1_000, 10_000, 10_001, 10_002] {
        all.push(groups(number, depth));
    }
    all
}

#[test]
fn what_a_front_accepts_apply_decodes_to_the_same() {
    let requests: [(u32, Vec<u8>); 7] = [
        (field::PUT, pb::PutRequest { key: "k".into(), ..Default::default() }.encode_to_vec()),
        (field::DELETE_RANGE, b"\x0a\x01k".to_vec()),
        (field::TXN, b"\x12\x07\x12\x05\x0a\x01k\x12\x00".to_vec()),
        (field::COMPACTION, vec![0x08, 3]),
        (field::LEASE_GRANT, vec![0x08, 3, 0x10, 5]),
        (field::LEASE_REVOKE, vec![0x08, 3]),
        (field::ALARM, vec![0x08, 1, 0x18, 1]),
    ];
    let (mut accepted, mut refused) = (0, 0);
    for (field, request) in &requests {
        for number in (1..=7).chain([99, 1 << 20]) {
            for odd in odd_fields(number) {
                for message in [[&odd[..], request].concat(), [request, &odd[..]].concat()] {
                    let message = Bytes::from(message);
                    let entry = Bytes::from(wrap_request(*field, &message, 7));
                    let wanted = front(*field, &message);
                    let found = apply(&entry);
                    assert_eq!(found.ok(), wanted.clone().ok(), "{field} {odd:?}");
                    assert_eq!(check(&entry).is_ok(), wanted.is_ok(), "{field} {odd:?}");
                    assert_eq!(request_id(&entry), Some(7));
                    accepted += usize::from(wanted.is_ok());
                    refused += usize::from(wanted.is_err());
                }
            }
        }
    }
    assert!(accepted > 1_000 && refused > 500, "{accepted} {refused}");
}

#[test]
fn transactions_of_any_depth_are_accepted_by_both_or_by_neither() {
    for levels in [1, 49, 50, 51, 98, 99, 100, 128, 129, 1_000, 4_998, 4_999, 5_000] {
        for innermost in [groups(50, 100), groups(1, 10_001)] {
            let mut reversed: Vec<u8> = innermost.into_iter().rev().collect();
            for level in 0..levels {
                for number in [4, 2].into_iter().skip(usize::from(level == 0)) {
                    let mut head = Vec::new();
                    write_len(&mut head, number, reversed.len());
                    reversed.extend(head.iter().rev());
                }
            }
            reversed.reverse();
            let message = Bytes::from(reversed);
            let accepted = with_txn(message.clone(), |txn| {
                txn.map(|txn| (quota::txn_cost_bytes(&txn), format!("{txn:?}").len()))
            });
            let entry = Bytes::from(wrap_request(field::TXN, &message, 7));
            let applied = with_entry(&entry, |request| {
                request.map(|request| {
                    let txn = request.txn.as_ref().unwrap();
                    (quota::txn_cost_bytes(txn), format!("{txn:?}").len())
                })
            });
            // An operation and a transaction each, and the entry around them.
            assert_eq!(accepted.is_ok(), levels * 2 < 10_000, "{levels}");
            assert_eq!(applied.ok(), accepted.ok(), "{levels}");
            assert_eq!(check(&entry).is_ok(), levels * 2 < 10_000, "{levels}");
        }
    }
}

#[test]
fn an_entry_that_holds_several_requests_is_the_one_that_etcd_takes() {
    let put = Some(pb::PutRequest::default());
    let both = pb::InternalRaftRequest {
        alarm: Some(pb::AlarmRequest::default()),
        cluster_version_set: Some(Default::default()),
        put,
        ..Default::default()
    };
    assert!(matches!(Request::of(&both), Some(Request::ClusterVersionSet(_))));
    let put_first = pb::InternalRaftRequest { cluster_version_set: None, ..both };
    assert!(matches!(Request::of(&put_first), Some(Request::Put(_))));
    let entry = Bytes::from_static(b"\xa2\x06\x02\x08\x07");
    with_entry(&entry, |request| assert_eq!(request.err(), Some(Unapplicable::Unknown)));
    // A version to come sends it.
    let future = Bytes::from(wrap_request(1400, b"", 7));
    assert_eq!(check(&future), Err(Unapplicable::Unknown));
    assert_eq!(check(&Bytes::from_static(b"\xff")), Err(DecodeError::Wire.into()));
    assert_eq!(check(&Bytes::new()), Ok(()));
}

#[test]
fn the_id_of_a_request_is_the_one_that_etcd_reads() {
    let mut entry = wrap_request(field::PUT, b"", 7);
    assert_eq!(request_id(&entry), Some(7));
    write_len(&mut entry, field::HEADER, 2);
    entry.extend([0x08, 9]);
    assert_eq!(request_id(&entry), Some(9));
    entry.extend([0x08, 5]);
    assert_eq!(request_id(&entry), Some(5));
    assert_eq!(request_id(b"\xff"), None);
}
