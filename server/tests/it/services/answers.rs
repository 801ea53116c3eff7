//! Answers of any size over real sockets: whole whatever they are made of, in little memory, and
//! nobody else waits for them.

use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use etcore_proto::pb::mvccpb::KeyValue;
use pb::range_request::{SortOrder, SortTarget};
use pb::request_op::Request;
use pb::response_op::Response;
use tonic::Code;

use crate::harness::raw::Raw;
use crate::harness::{Client, Setup, block_on, on_each_driver, rss_anon_kib};

const VALUE_BYTES: usize = 10_000;

fn op(request: Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn everything() -> pb::RangeRequest {
    pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() }
}

/// Writes keys `k00000` and so on, the later the smaller by value.
async fn fill(client: &Client, keys: usize, value_bytes: usize) {
    let puts: Vec<pb::RequestOp> = (0..keys)
        .map(|number| {
            let mut value = vec![b'x'; value_bytes];
            value[..5].copy_from_slice(format!("{:05}", 99_999 - number % 100_000).as_bytes());
            op(Request::RequestPut(pb::PutRequest {
                key: format!("k{number:06}").into(),
                value: value.into(),
                ..Default::default()
            }))
        })
        .collect();
    let at_once = (1_200_000 / (value_bytes + 40)).clamp(1, 128);
    for some in puts.chunks(at_once) {
        let request = pb::TxnRequest { success: some.to_vec(), ..Default::default() };
        client.txn(request).await.unwrap();
    }
}

fn assert_whole(kvs: &[KeyValue], keys: usize) {
    assert_eq!(kvs.len(), keys);
    assert!(kvs.iter().all(|kv| kv.value.len() == VALUE_BYTES));
}

#[test]
fn large_answers_of_every_kind_arrive_whole() {
    let _turn = crate::harness::turn::of_file(module_path!());
    const KEYS: usize = 3_400;
    on_each_driver(|driver| {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            fill(&client, KEYS, VALUE_BYTES).await;
            let descending = pb::RangeRequest {
                sort_order: SortOrder::Descend as i32,
                sort_target: SortTarget::Value as i32,
                ..everything()
            };
            let sorted = client.range(descending.clone()).await.unwrap();
            assert_whole(&sorted.kvs, KEYS);
            assert!(sorted.kvs.is_sorted_by(|a, b| a.value >= b.value));
            let best = pb::RangeRequest { limit: 3, ..descending };
            let best = client.range(best).await.unwrap();
            assert!(best.kvs == sorted.kvs[..3] && best.more && best.count == KEYS as i64);
            let filtered = pb::RangeRequest { min_mod_revision: 3, ..everything() };
            let filtered = client.range(filtered).await.unwrap();
            assert!(filtered.kvs.len() > KEYS / 2 && filtered.kvs.len() < KEYS);

            let read = op(Request::RequestRange(everything()));
            let reads = pb::TxnRequest { success: vec![read.clone(); 2], ..Default::default() };
            let answered = client.txn(reads).await.unwrap();
            for response in answered.responses {
                let Some(Response::ResponseRange(range)) = response.response else { panic!() };
                assert_whole(&range.kvs, KEYS);
            }
            let first = pb::PutRequest {
                key: "k000000".into(),
                value: vec![b'y'; VALUE_BYTES].into(),
                prev_kv: true,
                ..Default::default()
            };
            let others = pb::DeleteRangeRequest {
                key: "k000001".into(),
                range_end: "k002".into(),
                prev_kv: true,
            };
            let success = vec![
                read.clone(),
                op(Request::RequestPut(first)),
                op(Request::RequestDeleteRange(others)),
                read,
            ];
            let writes = pb::TxnRequest { success, ..Default::default() };
            let answered = client.txn(writes).await.unwrap();
            let parts: Vec<Response> =
                answered.responses.into_iter().filter_map(|response| response.response).collect();
            let [
                Response::ResponseRange(before),
                Response::ResponsePut(put),
                Response::ResponseDeleteRange(deleted),
                Response::ResponseRange(after),
            ] = &parts[..]
            else {
                panic!("{} responses", parts.len());
            };
            assert_whole(&before.kvs, KEYS);
            assert!(put.prev_kv.as_ref() == Some(&before.kvs[0]));
            assert!(deleted.prev_kvs == before.kvs[1..2000] && deleted.deleted == 1999);
            assert_whole(&after.kvs, KEYS - 1999);
            assert!(after.kvs[0].value.iter().all(|byte| *byte == b'y'));

            let rest =
                pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: true };
            let deleted = client.delete_range(rest).await.unwrap();
            assert!(deleted.prev_kvs == after.kvs);
            let left = client.range(everything()).await.unwrap();
            assert_eq!((left.count, left.kvs.len()), (0, 0));
        });
        member.kill();
    });
}

#[test]
fn a_read_beyond_what_grpc_carries_is_refused_and_held_in_no_memory() {
    let _turn = crate::harness::turn::of_file(module_path!());
    const KEYS: usize = 3_400;
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let member = setup.start();
    block_on(async {
        let client = Client::connect(&setup).await;
        fill(&client, KEYS, VALUE_BYTES).await;
        let before = rss_anon_kib(member.pid());
        for (ranges, text) in [
            (128, "grpc: message too large (4361"),
            (64, "grpc: trying to send message larger than max (2180"),
        ] {
            let read = op(Request::RequestRange(everything()));
            let request = pb::TxnRequest { success: vec![read; ranges], ..Default::default() };
            let refused = client.txn(request).await.unwrap_err();
            assert_eq!(refused.code(), Code::ResourceExhausted);
            assert!(refused.message().starts_with(text), "{}", refused.message());
        }
        let grown = rss_anon_kib(member.pid()).saturating_sub(before);
        assert!(grown < 20 << 10, "{grown} KiB more");
        assert_eq!(client.get("k000000").await.map(|value| value.len()), Some(VALUE_BYTES));
    });
}

#[test]
fn streams_of_one_connection_share_it_and_none_is_reset() {
    let _turn = crate::harness::turn::of_file(module_path!());
    const KEYS: usize = 1_500;
    const STREAMS: usize = 25;
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable");
    let _member = setup.start();
    block_on(async {
        let client = Client::connect(&setup).await;
        fill(&client, KEYS, VALUE_BYTES).await;
        let streams: Vec<_> = (0..STREAMS)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.range_stream(everything()).await })
            })
            .collect();
        for stream in streams {
            let chunks = stream.await.unwrap().unwrap();
            let kvs: Vec<KeyValue> = chunks.into_iter().flat_map(|chunk| chunk.kvs).collect();
            assert_whole(&kvs, KEYS);
        }
    });
}

/// How long reads beside `work` took, the longest last.
fn reads_beside(setup: &Setup, work: impl FnOnce() + Send) -> Vec<Duration> {
    let mut bystander = Raw::connect(setup.client_port, 1 << 20);
    std::thread::scope(|scope| {
        let work = scope.spawn(work);
        let mut took = Vec::new();
        while !work.is_finished() {
            took.push(bystander.get_once("bystander"));
        }
        work.join().unwrap();
        took.sort_unstable();
        took
    })
}

/// What no request keeps another waiting for; far above what a quiet machine needs, and far below
/// what it takes to do all of the work at once.
const NOT_LONG: Duration = Duration::from_millis(400);

#[test]
fn counting_sorting_and_deleting_many_keys_keeps_nobody_waiting() {
    let _turn = crate::harness::turn::of_file(module_path!());
    // ETCORE_LONG=1: as many as the figures in the notes are of.
    let keys = if std::env::var_os("ETCORE_LONG").is_some() { 3_000_000 } else { 200_000 };
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable").with_long_segments();
    let _member = setup.start();
    let call = |request: Call| {
        let client_port = &setup;
        move || {
            block_on(async {
                let client = Client::connect(client_port).await;
                match request {
                    Call::Range(request) => drop(client.range(request).await.unwrap()),
                    Call::Delete(request) => {
                        let deleted = client.delete_range(request).await.unwrap().deleted;
                        assert_eq!(deleted, keys);
                    }
                }
            });
        }
    };
    block_on(async {
        let client = Client::connect(&setup).await;
        fill(&client, keys as usize, 16).await;
    });
    let revision = 3;
    let sorted = pb::RangeRequest {
        sort_order: SortOrder::Descend as i32,
        sort_target: SortTarget::Mod as i32,
        keys_only: true,
        ..everything()
    };
    let old = pb::RangeRequest { revision, count_only: true, ..everything() };
    let delete = pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), prev_kv: false };
    for request in
        [Call::Range(sorted.clone()), Call::Range(old), Call::Delete(delete), Call::Range(sorted)]
    {
        let name = format!("{request:?}");
        let began = Instant::now();
        let took = reads_beside(&setup, call(request));
        let (p99, longest) = (took[took.len() * 99 / 100], took[took.len() - 1]);
        eprintln!("reads p99 {p99:?}, longest {longest:?}, {:?} of {name}", began.elapsed());
        assert!(longest < NOT_LONG, "{longest:?} beside {name}");
    }
}

#[derive(Debug, Clone)]
enum Call {
    Range(pb::RangeRequest),
    Delete(pb::DeleteRangeRequest),
}
