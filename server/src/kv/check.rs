//! What a KV request must satisfy before it is proposed or read (etcd
//! `server/etcdserver/api/v3rpc/key.go`): the order of the checks decides which error a client
//! sees.
//!
//! Called by the fronts. It never looks at stored data.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use pb::request_op::Request;

use crate::wire::PutRef;

/// Checks a Range.
///
/// # Errors
/// The error to answer with.
pub fn range(request: &pb::RangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if pb::range_request::SortOrder::try_from(request.sort_order).is_err()
        || pb::range_request::SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(EtcdError::InvalidSortOption);
    }
    Ok(())
}

/// Checks a RangeStream, which serves only key order without filters.
///
/// # Errors
/// The error to answer with.
pub fn range_stream(request: &pb::RangeRequest) -> Result<(), EtcdError> {
    range(request)?;
    if !has_default_order(request) {
        return Err(EtcdError::RangeStreamSortOrder);
    }
    if has_revision_filters(request) {
        return Err(EtcdError::RangeStreamRevisionFilters);
    }
    Ok(())
}

/// True if results leave in the order the index yields them.
pub fn has_default_order(request: &pb::RangeRequest) -> bool {
    use pb::range_request::{SortOrder, SortTarget};
    request.sort_order == SortOrder::None as i32
        || (request.sort_target == SortTarget::Key as i32
            && request.sort_order == SortOrder::Ascend as i32)
}

/// True if results are sorted by something else than the key although no order was given: etcd
/// sorts those ascending, but after it has applied the limit in key order.
pub fn sorts_after_limit(request: &pb::RangeRequest) -> bool {
    use pb::range_request::{SortOrder, SortTarget};
    request.sort_order == SortOrder::None as i32 && request.sort_target != SortTarget::Key as i32
}

/// True if any of the four revision bounds is set.
pub fn has_revision_filters(request: &pb::RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// Checks a Put.
///
/// # Errors
/// The error to answer with.
pub fn put(request: &PutRef<'_>) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(EtcdError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(EtcdError::LeaseProvided);
    }
    Ok(())
}

/// Borrows a decoded PutRequest.
pub fn put_ref(request: &pb::PutRequest) -> PutRef<'_> {
    PutRef {
        key: &request.key,
        value: &request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    }
}

/// Checks a DeleteRange.
///
/// # Errors
/// The error to answer with.
pub fn delete_range(request: &pb::DeleteRangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() { Err(EtcdError::EmptyKey) } else { Ok(()) }
}

/// Checks a Txn: sizes and operations first, then overlaps, so that a hostile request costs no more
/// than its allowed size.
///
/// # Errors
/// The error to answer with.
pub fn txn(request: &pb::TxnRequest, ops_max: usize) -> Result<(), EtcdError> {
    txn_ops(request, ops_max)?;
    intervals(&request.success)?;
    intervals(&request.failure)?;
    Ok(())
}

fn txn_ops(request: &pb::TxnRequest, ops_max: usize) -> Result<(), EtcdError> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(ops_left) = ops_max.checked_sub(ops) else {
        return Err(EtcdError::TooManyOps);
    };
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(EtcdError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(&put_ref(request))?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            Some(Request::RequestTxn(request)) => txn_ops(request, ops_left)?,
            None => return Err(EtcdError::KeyNotFound),
        }
    }
    Ok(())
}

/// True if the transaction only reads (a nested one counts as writing).
pub fn is_read_only(request: &pb::TxnRequest) -> bool {
    all_ranges(request, |_| true)
}

/// True if no read of the transaction asks for linearizability. One without operations counts.
pub fn is_serializable(request: &pb::TxnRequest) -> bool {
    all_ranges(request, |range| range.serializable)
}

fn all_ranges(request: &pb::TxnRequest, accept: impl Fn(&pb::RangeRequest) -> bool) -> bool {
    request
        .success
        .iter()
        .chain(&request.failure)
        .all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if accept(range)))
}

/// Keys put and ranges deleted by a list of operations.
#[derive(Default)]
struct Writes {
    puts: BTreeSet<Vec<u8>>,
    deletes: Intervals,
}

/// Disjoint, merged, half-open key intervals. An end of `\0`, which elsewhere means "from this key
/// on", is taken literally, so such a delete overlaps nothing: etcd's interval tree does the same,
/// and a client that relies on it must not be refused here.
#[derive(Default)]
struct Intervals {
    by_start: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Intervals {
    fn insert(&mut self, start: &[u8], end: Vec<u8>) {
        if end.as_slice() <= start {
            return;
        }
        let (mut from, mut to) = (start.to_vec(), end);
        // Walks back from the last interval that starts inside; disjoint intervals end in order
        // too.
        while let Some((other, other_end)) = self
            .by_start
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(to.as_slice())))
            .next_back()
            .filter(|(_, other_end)| **other_end >= from)
            .map(|(other, other_end)| (other.clone(), other_end.clone()))
        {
            self.by_start.remove(&other);
            from = from.min(other);
            to = to.max(other_end);
        }
        self.by_start.insert(from, to);
    }

    fn contains(&self, key: &[u8]) -> bool {
        self.by_start
            .range::<[u8], _>((Bound::Unbounded, Bound::Included(key)))
            .next_back()
            .is_some_and(|(_, end)| key < end.as_slice())
    }

    fn union(&mut self, other: Self) {
        for (start, end) in other.by_start {
            self.insert(&start, end);
        }
    }
}

/// Refuses a put that overlaps another put or a delete of the same list, nested ones included. The
/// two branches of one nested transaction exclude each other and may share keys.
fn intervals(ops: &[pb::RequestOp]) -> Result<Writes, EtcdError> {
    let mut writes = Writes::default();
    for op in ops {
        let Some(Request::RequestDeleteRange(request)) = &op.request else { continue };
        let end = match request.range_end.as_ref() {
            [] => {
                let mut next = request.key.to_vec();
                next.push(0);
                next
            }
            end => end.to_vec(),
        };
        writes.deletes.insert(&request.key, end);
    }
    for op in ops {
        let Some(Request::RequestTxn(request)) = &op.request else { continue };
        let then = intervals(&request.success)?;
        let otherwise = intervals(&request.failure)?;
        for key in &then.puts {
            if writes.puts.contains(key) || writes.deletes.contains(key) {
                return Err(EtcdError::DuplicateKey);
            }
        }
        for key in &otherwise.puts {
            if writes.puts.contains(key) || writes.deletes.contains(key) {
                return Err(EtcdError::DuplicateKey);
            }
        }
        writes.puts.extend(then.puts);
        writes.puts.extend(otherwise.puts);
        writes.deletes.union(then.deletes);
        writes.deletes.union(otherwise.deletes);
    }
    for op in ops {
        let Some(Request::RequestPut(request)) = &op.request else { continue };
        if writes.deletes.contains(&request.key) || !writes.puts.insert(request.key.to_vec()) {
            return Err(EtcdError::DuplicateKey);
        }
    }
    Ok(writes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_op(key: &str) -> pb::RequestOp {
        let put = pb::PutRequest { key: key.to_owned().into(), ..Default::default() };
        pb::RequestOp { request: Some(Request::RequestPut(put)) }
    }

    fn delete_op(key: &str, end: &'static [u8]) -> pb::RequestOp {
        let delete = pb::DeleteRangeRequest {
            key: key.to_owned().into(),
            range_end: end.into(),
            prev_kv: false,
        };
        pb::RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
    }

    fn nested(success: Vec<pb::RequestOp>, failure: Vec<pb::RequestOp>) -> pb::RequestOp {
        let txn = pb::TxnRequest { compare: vec![], success, failure };
        pb::RequestOp { request: Some(Request::RequestTxn(txn.into())) }
    }

    fn check(success: Vec<pb::RequestOp>) -> Result<(), EtcdError> {
        txn(&pb::TxnRequest { compare: vec![], success, failure: vec![] }, 128)
    }

    #[test]
    fn a_key_may_be_put_once_and_not_also_deleted() {
        let duplicate = Err(EtcdError::DuplicateKey);
        assert_eq!(check(vec![put_op("a"), put_op("b")]), Ok(()));
        assert_eq!(check(vec![put_op("a"), put_op("a")]), duplicate);
        assert_eq!(check(vec![put_op("a"), delete_op("a", b"")]), duplicate);
        assert_eq!(check(vec![put_op("b"), delete_op("a", b"c")]), duplicate);
        assert_eq!(check(vec![put_op("c"), delete_op("a", b"c")]), Ok(()));
        assert_eq!(check(vec![put_op("z"), delete_op("a", b"\0")]), Ok(()), "as etcd has it");
        assert_eq!(check(vec![delete_op("a", b"c"), delete_op("b", b"d")]), Ok(()));
        assert_eq!(check(vec![put_op("b"), delete_op("c", b"a")]), Ok(()), "an empty range");
    }

    #[test]
    fn branches_of_a_nested_txn_may_share_keys_but_not_with_their_parent() {
        let both = || nested(vec![put_op("a")], vec![put_op("a")]);
        assert_eq!(check(vec![both()]), Ok(()));
        assert_eq!(check(vec![both(), both()]), Err(EtcdError::DuplicateKey));
        assert_eq!(check(vec![both(), put_op("a")]), Err(EtcdError::DuplicateKey));
        let deletes = nested(vec![delete_op("a", b"c")], vec![]);
        assert_eq!(check(vec![deletes, put_op("b")]), Err(EtcdError::DuplicateKey));
    }

    #[test]
    fn nested_txns_share_the_budget_of_operations() {
        let chain = |depth: usize| {
            let mut op = put_op("a");
            for _ in 0..depth {
                op = nested(vec![op], vec![]);
            }
            txn(&pb::TxnRequest { success: vec![op], ..Default::default() }, 4)
        };
        assert_eq!(chain(3), Ok(()));
        assert_eq!(chain(4), Err(EtcdError::TooManyOps));
    }

    #[test]
    fn an_empty_operation_is_key_not_found_and_an_empty_compare_key_is_empty_key() {
        assert_eq!(check(vec![pb::RequestOp { request: None }]), Err(EtcdError::KeyNotFound));
        let compare =
            pb::TxnRequest { compare: vec![pb::Compare::default()], ..Default::default() };
        assert_eq!(txn(&compare, 128), Err(EtcdError::EmptyKey));
    }

    #[test]
    fn a_txn_without_operations_is_read_only_and_serializable() {
        let empty = pb::TxnRequest::default();
        assert!(is_read_only(&empty) && is_serializable(&empty));
    }

    #[test]
    fn unknown_sort_options_are_refused() {
        let request = pb::RangeRequest { key: "a".into(), sort_order: 3, ..Default::default() };
        assert_eq!(range(&request), Err(EtcdError::InvalidSortOption));
    }
}
