//! The KV service over real sockets, by a tonic client, on both drivers: every option of every
//! request, and etcd's errors with their exact codes and texts.

use etcore_proto::pb::etcdserverpb as pb;
use pb::compare::{CompareResult, CompareTarget, TargetUnion};
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request;
use pb::response_op::Response;
use tonic::{Code, Status};

use crate::harness::{Client, DRIVERS, Etcd, Setup, block_on, is_available, oracle};

fn each_driver<F: Future<Output = ()>>(test: impl Fn(Client) -> F) {
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let _member = setup.start();
        block_on(async { test(Client::connect(&setup).await).await });
    }
}

fn range(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn prefix(key: &str) -> pb::RangeRequest {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    pb::RangeRequest { range_end: end.into(), ..range(key) }
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..Default::default()
    }
}

fn delete(key: &str, end: &'static [u8]) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.to_owned().into(), range_end: end.into(), prev_kv: true }
}

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn compare(key: &str, result: CompareResult, union: TargetUnion) -> pb::Compare {
    let target = match union {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    pb::Compare {
        result: result as i32,
        target: target as i32,
        key: key.to_owned().into(),
        target_union: Some(union),
        ..Default::default()
    }
}

fn keys(response: &pb::RangeResponse) -> Vec<String> {
    response.kvs.iter().map(|kv| String::from_utf8(kv.key.to_vec()).unwrap()).collect()
}

fn values(response: &pb::RangeResponse) -> Vec<String> {
    response.kvs.iter().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap()).collect()
}

fn refused<T: std::fmt::Debug>(result: Result<T, Status>) -> (Code, String) {
    let status = result.unwrap_err();
    (status.code(), status.message().to_owned())
}

fn error(code: Code, text: &str) -> (Code, String) {
    (code, format!("etcdserver: {text}"))
}

#[test]
fn a_key_has_a_creation_a_modification_and_a_version() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        assert_eq!(client.put_kv("foo", "bar").await, 2);
        assert_eq!(client.put_kv("other", "x").await, 3);
        assert_eq!(client.put_kv("foo", "bar2").await, 4);
        let response = client.range(range("foo")).await.unwrap();
        let kv = &response.kvs[0];
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (2, 4, 2));
        assert_eq!((response.count, response.more), (1, false));
        let header = response.header.unwrap();
        assert_eq!((header.revision, header.raft_term), (4, 2));
        assert!(header.cluster_id != 0 && header.member_id != 0);
        client.delete_range(delete("foo", b"")).await.unwrap();
        assert_eq!(client.put_kv("foo", "again").await, 6);
        let kv = client.range(range("foo")).await.unwrap().kvs.remove(0);
        assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (6, 6, 1));
    });
}

#[test]
fn ranges_end_where_they_are_told_to() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        for (key, value) in [("a", "123"), ("b", "456"), ("foo", "1"), ("foo1", "2"), ("z", "789")]
        {
            client.put_kv(key, value).await;
        }
        let from_b = pb::RangeRequest { range_end: b"\0"[..].into(), ..range("b") };
        assert_eq!(keys(&client.range(from_b).await.unwrap()), ["b", "foo", "foo1", "z"]);
        let all = pb::RangeRequest { range_end: b"\0"[..].into(), ..range("\0") };
        assert_eq!(client.range(all.clone()).await.unwrap().count, 5);
        let half_open = pb::RangeRequest { range_end: b"foo1"[..].into(), ..range("foo") };
        assert_eq!(keys(&client.range(half_open).await.unwrap()), ["foo"]);
        let inverted = pb::RangeRequest { range_end: b"a"[..].into(), ..range("z") };
        let empty = client.range(inverted).await.unwrap();
        assert_eq!((empty.kvs.len(), empty.count), (0, 0));
        let limited = pb::RangeRequest { limit: 2, ..all.clone() };
        let limited = client.range(limited).await.unwrap();
        assert_eq!((keys(&limited).len(), limited.more, limited.count), (2, true, 5));
        let exact = client.range(pb::RangeRequest { limit: 5, ..all.clone() }).await.unwrap();
        assert!(!exact.more);
        let counted = pb::RangeRequest { count_only: true, ..all.clone() };
        let counted = client.range(counted).await.unwrap();
        assert_eq!((counted.kvs.len(), counted.count), (0, 5));
        let only_keys = pb::RangeRequest { keys_only: true, ..all };
        let only_keys = client.range(only_keys).await.unwrap();
        assert!(only_keys.kvs.iter().all(|kv| kv.value.is_empty() && kv.version == 1));
    });
}

#[test]
fn history_reads_what_was_then_and_compaction_takes_it_away() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        client.put_kv("foo", "bar").await;
        client.put_kv("foo1", "bar1").await;
        client.put_kv("foo", "bar_new").await;
        client.put_kv("foo1", "bar1_new").await;
        let at = |revision| {
            let client = client.clone();
            async move { client.range(pb::RangeRequest { revision, ..prefix("foo") }).await }
        };
        assert_eq!(values(&at(0).await.unwrap()), ["bar_new", "bar1_new"]);
        assert_eq!(values(&at(4).await.unwrap()), ["bar_new", "bar1"]);
        assert_eq!(values(&at(3).await.unwrap()), ["bar", "bar1"]);
        assert_eq!(values(&at(2).await.unwrap()), ["bar"]);
        assert_eq!(at(2).await.unwrap().header.unwrap().revision, 5);
        assert!(at(1).await.unwrap().kvs.is_empty());
        let future = "mvcc: required revision is a future revision";
        let compacted = "mvcc: required revision has been compacted";
        assert_eq!(refused(at(9).await), error(Code::OutOfRange, future));
        let compact =
            |revision, physical| client.compact(pb::CompactionRequest { revision, physical });
        assert_eq!(refused(compact(6, false).await), error(Code::OutOfRange, future));
        assert_eq!(compact(4, true).await.unwrap().header.unwrap().revision, 5);
        assert_eq!(refused(compact(4, false).await), error(Code::OutOfRange, compacted));
        assert_eq!(refused(at(3).await), error(Code::OutOfRange, compacted));
        assert_eq!(values(&at(4).await.unwrap()), ["bar_new", "bar1"]);
        compact(5, false).await.unwrap();
        assert_eq!(refused(at(4).await), error(Code::OutOfRange, compacted));
    });
}

#[test]
fn results_are_filtered_then_sorted_then_cut() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        client.put_kv("a", "3").await;
        client.put_kv("b", "1").await;
        client.put_kv("c", "2").await;
        client.put_kv("a", "3").await;
        let all = pb::RangeRequest { range_end: b"\0"[..].into(), ..range("a") };
        let sorted = |order: SortOrder, target: SortTarget, limit| {
            let request = pb::RangeRequest {
                sort_order: order as i32,
                sort_target: target as i32,
                limit,
                ..all.clone()
            };
            let client = client.clone();
            async move {
                let response = client.range(request).await.unwrap();
                (keys(&response).concat(), response.more, response.count)
            }
        };
        let (up, down, none) = (SortOrder::Ascend, SortOrder::Descend, SortOrder::None);
        assert_eq!(sorted(down, SortTarget::Key, 0).await, ("cba".to_owned(), false, 3));
        assert_eq!(sorted(up, SortTarget::Value, 0).await.0, "bca");
        assert_eq!(sorted(none, SortTarget::Mod, 2).await, ("bc".to_owned(), true, 3));
        assert_eq!(sorted(down, SortTarget::Create, 1).await, ("c".to_owned(), true, 3));
        assert_eq!(sorted(down, SortTarget::Version, 1).await.0, "a");
        let filtered =
            pb::RangeRequest { min_mod_revision: 4, max_create_revision: 3, ..all.clone() };
        let response = client.range(filtered).await.unwrap();
        assert_eq!((keys(&response).concat(), response.count), ("a".to_owned(), 3));
        let filtered = pb::RangeRequest { max_mod_revision: 3, limit: 1, ..all };
        let response = client.range(filtered).await.unwrap();
        assert_eq!((keys(&response).concat(), response.more), ("b".to_owned(), false));
    });
}

#[test]
fn puts_return_and_reuse_what_was_there() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        let response = client.put(pb::PutRequest { prev_kv: true, ..put("a", "1") }).await.unwrap();
        assert!(response.prev_kv.is_none());
        let response = client.put(pb::PutRequest { prev_kv: true, ..put("a", "2") }).await.unwrap();
        assert_eq!(response.prev_kv.unwrap().value.as_ref(), b"1");
        let same = pb::PutRequest { ignore_value: true, ..put("a", "") };
        client.put(same).await.unwrap();
        assert_eq!(client.get("a").await.as_deref(), Some("2"));
        let same = pb::PutRequest { ignore_lease: true, ..put("a", "3") };
        client.put(same).await.unwrap();
        assert_eq!(client.get("a").await.as_deref(), Some("3"));
    });
}

#[test]
fn deletes_count_and_return_and_make_no_revision_for_nothing() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        for key in ["zoo", "zoo1", "zoo2"] {
            client.put_kv(key, "val").await;
        }
        let response = client.delete_range(delete("zoo", b"")).await.unwrap();
        assert_eq!((response.deleted, response.prev_kvs.len()), (1, 1));
        assert_eq!(response.prev_kvs[0].value.as_ref(), b"val");
        assert_eq!(response.header.unwrap().revision, 5);
        let nothing = client.delete_range(delete("zoo", b"")).await.unwrap();
        assert_eq!((nothing.deleted, nothing.header.unwrap().revision), (0, 5));
        let rest = client.delete_range(delete("zoo", b"zop")).await.unwrap();
        assert_eq!((rest.deleted, rest.header.unwrap().revision), (2, 6));
    });
}

#[test]
fn a_txn_takes_the_branch_its_compares_choose_in_one_revision() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        client.put_kv("a", "1").await;
        let cases = [
            (CompareResult::Equal, TargetUnion::Version(1), true),
            (CompareResult::Greater, TargetUnion::Version(1), false),
            (CompareResult::Less, TargetUnion::CreateRevision(3), true),
            (CompareResult::NotEqual, TargetUnion::ModRevision(2), false),
            (CompareResult::Equal, TargetUnion::Value("1".into()), true),
            (CompareResult::Greater, TargetUnion::Value("0".into()), true),
            (CompareResult::Equal, TargetUnion::Lease(0), true),
        ];
        for (result, union, expected) in cases {
            let request =
                pb::TxnRequest { compare: vec![compare("a", result, union)], ..Default::default() };
            assert_eq!(client.txn(request).await.unwrap().succeeded, expected, "{result:?}");
        }
        let missing = compare("none", CompareResult::Equal, TargetUnion::Version(0));
        let missing_value =
            compare("none", CompareResult::NotEqual, TargetUnion::Value("x".into()));
        let request = pb::TxnRequest {
            compare: vec![missing],
            success: vec![
                op(Request::RequestPut(put("b", "2"))),
                op(Request::RequestRange(range("b"))),
                op(Request::RequestDeleteRange(delete("a", b""))),
                op(Request::RequestRange(range("a"))),
            ],
            failure: vec![],
        };
        let response = client.txn(request).await.unwrap();
        assert_eq!(response.header.unwrap().revision, 3);
        let Some(Response::ResponseRange(seen)) = &response.responses[1].response else { panic!() };
        assert_eq!((values(seen).concat(), seen.kvs[0].mod_revision), ("2".to_owned(), 3));
        let Some(Response::ResponseDeleteRange(gone)) = &response.responses[2].response else {
            panic!()
        };
        assert_eq!((gone.deleted, gone.prev_kvs.len()), (1, 1));
        let Some(Response::ResponseRange(seen)) = &response.responses[3].response else { panic!() };
        assert!(seen.kvs.is_empty());
        let request = pb::TxnRequest { compare: vec![missing_value], ..Default::default() };
        assert!(!client.txn(request).await.unwrap().succeeded, "a missing key has no value");
    });
}

#[test]
fn txns_nest_and_read_their_own_writes() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        let inner = pb::TxnRequest {
            compare: vec![compare("a", CompareResult::Equal, TargetUnion::Version(0))],
            success: vec![op(Request::RequestPut(put("inner", "then")))],
            failure: vec![op(Request::RequestPut(put("inner", "else")))],
        };
        let outer = pb::TxnRequest {
            compare: vec![],
            success: vec![
                op(Request::RequestPut(put("a", "1"))),
                op(Request::RequestTxn(inner.into())),
                op(Request::RequestRange(range("inner"))),
            ],
            failure: vec![],
        };
        let response = client.txn(outer).await.unwrap();
        let Some(Response::ResponseTxn(nested)) = &response.responses[1].response else { panic!() };
        // Compares look at the state before the whole transaction.
        assert!(nested.succeeded);
        let Some(Response::ResponseRange(seen)) = &response.responses[2].response else { panic!() };
        assert_eq!(values(seen).concat(), "then");
    });
}

#[test]
fn a_txn_that_must_fail_changes_nothing() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        client.put_kv("a", "1").await;
        let future = pb::RangeRequest { revision: 99, ..range("a") };
        let request = pb::TxnRequest {
            success: vec![
                op(Request::RequestPut(put("a", "2"))),
                op(Request::RequestRange(future)),
            ],
            ..Default::default()
        };
        let text = "mvcc: required revision is a future revision";
        assert_eq!(refused(client.txn(request).await), error(Code::OutOfRange, text));
        assert_eq!(client.get("a").await.as_deref(), Some("1"));
        assert_eq!(client.put_kv("b", "").await, 3, "no revision was used up");
    });
}

#[test]
fn wrong_requests_get_etcds_codes_and_texts() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        let invalid = |text| error(Code::InvalidArgument, text);
        assert_eq!(refused(client.range(range("")).await), invalid("key is not provided"));
        assert_eq!(refused(client.put(put("", "x")).await), invalid("key is not provided"));
        assert_eq!(
            refused(client.delete_range(delete("", b"")).await),
            invalid("key is not provided")
        );
        let unsorted = pb::RangeRequest { sort_order: 7, ..range("a") };
        assert_eq!(refused(client.range(unsorted).await), invalid("invalid sort option"));
        let both = pb::PutRequest { ignore_value: true, ..put("a", "x") };
        assert_eq!(refused(client.put(both).await), invalid("value is provided"));
        let both = pb::PutRequest { ignore_lease: true, lease: 5, ..put("a", "x") };
        assert_eq!(refused(client.put(both).await), invalid("lease is provided"));
        let missing = pb::PutRequest { ignore_value: true, ..put("none", "") };
        assert_eq!(refused(client.put(missing).await), invalid("key not found"));
        let leased = pb::PutRequest { lease: 5, ..put("a", "x") };
        let text = "requested lease not found";
        assert_eq!(refused(client.put(leased).await), error(Code::NotFound, text));
        let twice = pb::TxnRequest {
            success: vec![op(Request::RequestPut(put("a", ""))); 2],
            ..Default::default()
        };
        let text = "duplicate key given in txn request";
        assert_eq!(refused(client.txn(twice).await), invalid(text));
        let many = pb::TxnRequest {
            success: vec![op(Request::RequestRange(range("a"))); 129],
            ..Default::default()
        };
        let text = "too many operations in txn request";
        assert_eq!(refused(client.txn(many).await), invalid(text));
        let large = put("a", &"x".repeat(1_572_864));
        assert_eq!(refused(client.put(large).await), invalid("request is too large"));
        let (code, text) = refused(client.put(put("a", &"x".repeat(3 << 20))).await);
        assert_eq!(code, Code::ResourceExhausted);
        assert!(text.starts_with("grpc: received message larger than max ("), "{text}");
    });
}

#[test]
fn requests_are_too_large_from_the_same_byte_on_as_in_etcd() {
    let _turn = crate::harness::turn::light();
    use prost::Message;
    const MAX: usize = 1_572_864;
    let Some(etcd) = oracle("etcd") else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let setups = dirs.each_ref().map(|dir| Setup::new(dir.path(), "portable"));
    let (_member, _etcd) = (setups[0].start(), Etcd::start(&etcd, &setups[1]));
    let put = |value: usize| put("a", &"v".repeat(value));
    let txn = |value: usize| pb::TxnRequest {
        success: vec![op(Request::RequestRange(range("a"))), op(Request::RequestPut(put(value)))],
        ..Default::default()
    };
    // Both are bounded by the entry: a tag and length, and the ID, which begins with the member's.
    let largest = |len_of: &dyn Fn(usize) -> usize, member_id: u64| {
        let id = (member_id << 48) | 0xffff_ffff_ffff;
        let around = 1 + 3 + 4 + prost::encoding::encoded_len_varint(id);
        (0..MAX).rev().find(|value| len_of(*value) + around <= MAX).unwrap()
    };
    for setup in &setups {
        block_on(async {
            let client = Client::connect(setup).await;
            let member_id = client.put(put(1)).await.unwrap().header.unwrap().member_id;
            let text = "etcdserver: request is too large".to_owned();
            let too_large = (Code::InvalidArgument, text);
            let value = largest(&|value| put(value).encoded_len(), member_id);
            assert!(client.put(put(value)).await.is_ok(), "{value}");
            assert_eq!(refused(client.put(put(value + 1)).await), too_large, "{value}");
            let value = largest(&|value| txn(value).encoded_len(), member_id);
            assert!(client.txn(txn(value)).await.is_ok(), "{value}");
            assert_eq!(refused(client.txn(txn(value + 1)).await), too_large, "{value}");
            // And by the message before that.
            let value = MAX + (512 << 10) - put(MAX).encoded_len() + MAX;
            assert_eq!(refused(client.put(put(value)).await), too_large, "{value}");
            let text = "grpc: received message larger than max (2097153 vs. 2097152)";
            let exhausted = (Code::ResourceExhausted, text.to_owned());
            assert_eq!(refused(client.put(put(value + 1)).await), exhausted);
        });
    }
}

#[test]
fn a_long_answer_arrives_whole_by_every_way_to_ask() {
    let _turn = crate::harness::turn::light();
    each_driver(|client| async move {
        let value = "v".repeat(1000);
        for number in 0..3000 {
            client.put_kv(&format!("k{number:05}"), &value).await;
        }
        for serializable in [false, true] {
            let all = pb::RangeRequest { serializable, ..prefix("k") };
            let whole = client.range(all.clone()).await.unwrap();
            assert_eq!((whole.kvs.len(), whole.count, whole.more), (3000, 3000, false));
            assert!(keys(&whole).is_sorted());
            assert!(whole.kvs.iter().all(|kv| kv.value.len() == 1000));
            let some = pb::RangeRequest { limit: 2500, ..all.clone() };
            let some = client.range(some).await.unwrap();
            assert_eq!((some.kvs.len(), some.count, some.more), (2500, 3000, true));
            assert_eq!(some.kvs[..], whole.kvs[..2500]);
            let only_keys = pb::RangeRequest { keys_only: true, ..all.clone() };
            assert_eq!(client.range(only_keys).await.unwrap().kvs.len(), 3000);
            let chunks = client.range_stream(all).await.unwrap();
            assert!(chunks.len() > 1);
            assert_eq!(chunks[0].kvs.len(), 10);
            assert!(chunks[..chunks.len() - 1].iter().all(|chunk| chunk.header.is_none()));
            let last = chunks.last().unwrap();
            assert_eq!(last.header, whole.header);
            assert_eq!((last.count, last.more), (3000, false));
            let streamed: Vec<_> = chunks.into_iter().flat_map(|chunk| chunk.kvs).collect();
            assert_eq!(streamed, whole.kvs);
        }
        let sorted = pb::RangeRequest { sort_order: SortOrder::Descend as i32, ..prefix("k") };
        let (code, text) = refused(client.range_stream(sorted).await);
        assert_eq!(code, Code::Unimplemented);
        assert_eq!(text, "RangeStream does not support custom sort orders");
    });
}
