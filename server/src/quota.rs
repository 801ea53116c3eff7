//! The backend quota: what a request may cost, and whether it fits.
//!
//! Asked by the fronts before they propose, never in apply: members hold different numbers of bytes
//! and must not decide differently (unlike etcd's, which is also asked while applying). It counts
//! live bytes, those of the page file in use plus the rows that are not in it yet, because space
//! that compaction has freed is used again by itself.

use etcore_proto::pb::etcdserverpb as pb;
use pb::request_op::Request;

/// Quota if the flag is 0 (etcd: DefaultQuotaBytes).
pub const DEFAULT_BYTES: i64 = 2 << 30;
/// A larger quota is told about at start, as by etcd; nothing breaks above it.
pub const SUGGESTED_BYTES_MAX: i64 = 8 << 30;

/// Estimate for a lease (etcd: leaseOverhead).
pub const LEASE_COST_BYTES: u64 = 64;
/// Estimate for what is kept beside a key and its value (etcd: kvOverhead).
const KEY_COST_BYTES: u64 = 256;

/// The alarm goes off by itself below this share of the quota, in percent ...
pub const CLEAR_PERCENT: u64 = 90;
/// ... once it has been there for so long.
pub const CLEAR_AFTER_MS: u64 = 10_000;

/// The configured quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// `None` if it is switched off.
    limit_bytes: Option<u64>,
}

impl Quota {
    /// From `--quota-backend-bytes`: 0 is the default, a negative one switches the quota off.
    pub fn new(flag: i64) -> Self {
        let bytes = if flag == 0 { DEFAULT_BYTES } else { flag };
        Self { limit_bytes: u64::try_from(bytes).ok() }
    }

    /// True if a request of this cost may be proposed; one that costs nothing always may.
    pub fn admits(self, live_bytes: u64, cost_bytes: u64) -> bool {
        cost_bytes == 0
            || self.limit_bytes.is_none_or(|limit| live_bytes.saturating_add(cost_bytes) < limit)
    }

    /// True if so little is used that the alarm may go off.
    pub fn is_relaxed(self, live_bytes: u64) -> bool {
        self.limit_bytes.is_none_or(|limit| live_bytes < limit / 100 * CLEAR_PERCENT)
    }

    /// What `etcd_server_quota_backend_bytes` shows.
    pub fn limit_bytes(self) -> Option<u64> {
        self.limit_bytes
    }
}

/// What a put of these lengths costs.
pub fn put_cost_bytes(key_bytes: usize, value_bytes: usize) -> u64 {
    KEY_COST_BYTES + key_bytes as u64 + value_bytes as u64
}

/// What a transaction costs: the dearer of its branches, nested ones included.
pub fn txn_cost_bytes(request: &pb::TxnRequest) -> u64 {
    let branch = |ops: &[pb::RequestOp]| ops.iter().map(op_cost_bytes).sum::<u64>();
    branch(&request.success).max(branch(&request.failure))
}

fn op_cost_bytes(op: &pb::RequestOp) -> u64 {
    match &op.request {
        Some(Request::RequestPut(put)) => put_cost_bytes(put.key.len(), put.value.len()),
        Some(Request::RequestTxn(nested)) => txn_cost_bytes(nested),
        Some(Request::RequestRange(_) | Request::RequestDeleteRange(_)) | None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transaction_costs_what_its_dearer_branch_puts() {
        let put = |len: usize| pb::RequestOp {
            request: Some(Request::RequestPut(pb::PutRequest {
                key: "k".into(),
                value: vec![0; len].into(),
                ..Default::default()
            })),
        };
        let nested = pb::TxnRequest { success: vec![put(1000)], ..Default::default() };
        let nested = pb::RequestOp { request: Some(Request::RequestTxn(Box::new(nested))) };
        let request = pb::TxnRequest {
            success: vec![put(10), put(20)],
            failure: vec![nested, put(1)],
            ..Default::default()
        };
        assert_eq!(txn_cost_bytes(&request), 2 * 257 + 1001);
        assert_eq!(txn_cost_bytes(&pb::TxnRequest::default()), 0);
    }

    #[test]
    fn the_flag_means_what_it_means_to_etcd() {
        assert_eq!(Quota::new(0).limit_bytes(), Some(2 << 30));
        assert!(Quota::new(-1).admits(u64::MAX, u64::MAX) && Quota::new(-1).is_relaxed(u64::MAX));
        let quota = Quota::new(1000);
        assert!(quota.admits(899, 100) && !quota.admits(900, 100), "the limit itself is too much");
        assert!(quota.admits(5000, 0), "what costs nothing is let through");
        assert!(quota.is_relaxed(899) && !quota.is_relaxed(900));
    }
}
