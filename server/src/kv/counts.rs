//! What etcd counts of a request in `etcd_mvcc_{range,put,delete,txn}_total`: not requests, but
//! what they do to the store, compares and previous values included.
//!
//! Called once a request is evaluated, with its plan.

use etcore_proto::pb::etcdserverpb as pb;

use super::plan::{Op, Plan};
use crate::metrics::Metrics;

/// Steps of one request.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Ranges before the first write: compares, and checks of puts.
    pub checks: u64,
    /// Ranges among the operations.
    pub ranges: u64,
    /// Puts.
    pub puts: u64,
    /// Bytes of the keys and values put.
    pub put_bytes: u64,
    /// Ranges deleted.
    pub deletes: u64,
}

impl Counts {
    /// Counts the steps of a plan whose path is chosen.
    pub fn of(plan: &Plan) -> Self {
        let mut counts = Self { checks: plan.compared(), ..Self::default() };
        let is_txn = matches!(plan.ops().first(), Some(Op::Begin { .. }));
        for op in plan.ops() {
            match op {
                Op::Range(_) => counts.ranges += 1,
                Op::Put(put) => {
                    let reads = u64::from(reads(put));
                    counts.checks += if is_txn { reads } else { 0 };
                    counts.ranges += reads;
                    counts.puts += 1;
                    counts.put_bytes += (put.key.len() + put.value.len()) as u64;
                }
                Op::Delete(request) => {
                    counts.ranges += u64::from(request.prev_kv);
                    counts.deletes += 1;
                }
                Op::Begin { .. } | Op::End | Op::Remove(_) => {}
            }
        }
        counts
    }

    /// Adds them up. What reads alone is one step of the store, what writes two.
    pub fn add_to(self, metrics: &Metrics) {
        let ranges = self.checks + self.ranges;
        metrics.ranges.inc_by(ranges);
        metrics.puts.inc_by(self.puts);
        metrics.storage.put_bytes.inc_by(self.put_bytes);
        metrics.deletes.inc_by(self.deletes);
        let writes = self.puts + self.deletes;
        let steps = match writes {
            0 => [ranges, 0],
            _ => [self.checks, self.ranges + writes],
        };
        metrics.txns.inc_by(steps.iter().filter(|step| **step > 1).count() as u64);
    }
}

/// True if the put asks for what was there before.
fn reads(put: &pb::PutRequest) -> bool {
    put.prev_kv || put.ignore_value || put.ignore_lease
}

#[cfg(test)]
mod tests {
    use etcore_engine::store::{EngineConfig, Store};
    use etcore_engine::testing::mem_disk::MemDisk;
    use etcore_engine::view::RangeHits;
    use pb::request_op::Request;

    use super::*;
    use crate::kv::reader::MemoryOnly;

    #[test]
    fn the_chosen_path_is_counted_with_its_compares_and_previous_values() {
        let op = |request| pb::RequestOp { request: Some(request) };
        let range = || op(Request::RequestRange(pb::RangeRequest::default()));
        let put = |ignore_value, prev_kv| {
            let put = pb::PutRequest { ignore_value, prev_kv, ..Default::default() };
            op(Request::RequestPut(put))
        };
        let delete = op(Request::RequestDeleteRange(pb::DeleteRangeRequest {
            prev_kv: true,
            ..Default::default()
        }));
        // A key that is not there has version 0.
        let compare = |version| pb::Compare {
            key: "k".into(),
            target_union: Some(pb::compare::TargetUnion::Version(version)),
            ..Default::default()
        };
        let nested = pb::TxnRequest {
            compare: vec![compare(1), compare(0)],
            failure: vec![range(), delete],
            ..Default::default()
        };
        let request = pb::TxnRequest {
            compare: vec![compare(0), compare(0)],
            success: vec![
                range(),
                op(Request::RequestTxn(Box::new(nested))),
                put(false, true),
                put(true, false),
            ],
            failure: vec![range()],
        };
        let (mut store, _) = Store::open(&mut MemDisk::new(), EngineConfig::default()).unwrap();
        let view = store.publish();
        let count = |mut plan: Plan| {
            let (mut hits, mut rows) = (RangeHits::default(), 1000);
            assert!(plan.step(&*view, &mut MemoryOnly, &mut hits, &mut rows).unwrap());
            Counts::of(&plan)
        };
        let counts = count(Plan::new(request));
        assert_eq!(counts, Counts { checks: 5, ranges: 5, puts: 2, put_bytes: 0, deletes: 1 });
        let alone =
            count(Plan::of(Op::Put(pb::PutRequest { prev_kv: true, ..Default::default() })));
        assert_eq!(alone, Counts { ranges: 1, puts: 1, ..Counts::default() });
        let metrics = Metrics::new(1, crate::metrics::Calls::default());
        counts.add_to(&metrics);
        alone.add_to(&metrics);
        Counts { ranges: 2, ..Counts::default() }.add_to(&metrics);
        Counts { puts: 1, ..Counts::default() }.add_to(&metrics);
        assert_eq!((metrics.ranges.get(), metrics.puts.get()), (10 + 1 + 2, 4));
        assert_eq!((metrics.deletes.get(), metrics.txns.get()), (1, 2 + 1 + 1));
    }
}
