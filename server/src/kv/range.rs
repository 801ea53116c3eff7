//! Range: from the request to the bytes of its response (etcd `server/etcdserver/txn/range.go`).
//!
//! Called by the fronts for Range and read-only transactions, and by apply for ranges inside
//! transactions. Keys are filtered and sorted by what the index knows; values are read only to be
//! written into the answer, or to sort by them.

use std::cmp::Ordering;

use bytes::Bytes;
use etcore_engine::page::PageSource;
use etcore_engine::types::Revision;
use etcore_engine::view::{Hit, KeyRange, RangeHits, SliceBounds};
use etcore_engine::wire::KvRef;
use etcore_proto::pb::etcdserverpb as pb;
use pb::range_request::{SortOrder, SortTarget};

use super::check;
use super::reader::{Reader, Stop};
use crate::limits;
use crate::wire::{Header, field_len, int_len, write_int64, write_len, write_uint64};

/// Field numbers of RangeResponse.
const KVS: u32 = 2;
const MORE: u32 = 3;
const COUNT: u32 = 4;

/// Memory that evaluations use again.
#[derive(Default)]
pub struct Scratch {
    hits: RangeHits,
}

impl Scratch {
    /// Hits to fill.
    pub fn hits_mut(&mut self) -> &mut RangeHits {
        &mut self.hits
    }
}

/// What an evaluation at once may take; longer ranges are answered in slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortBounds {
    /// Keys, and leaves of the index, looked at.
    pub slice: SliceBounds,
    /// Bytes of the KeyValues.
    pub bytes: u64,
    /// A single key may have a value of any size: it is the whole answer.
    pub one_of_any_size: bool,
}

/// What a front answers at once.
pub const SHORT: ShortBounds = ShortBounds {
    slice: SliceBounds { keys: limits::RANGE_CHUNK_KEYS, leaves: limits::RANGE_CHUNK_LEAVES },
    bytes: limits::RANGE_CHUNK_BYTES as u64,
    one_of_any_size: true,
};

/// Appends the RangeResponse to `out` if it is short; false, and `out` as before, if it would take
/// more than `short` allows. On an error, too, `out` is as before.
///
/// `header` gives the response's header for the revision of the state read; inside a transaction
/// only the revision is set.
///
/// # Errors
/// See [`Stop`].
pub fn respond_short(
    reader: &dyn Reader,
    request: &pb::RangeRequest,
    short: ShortBounds,
    context: (&mut dyn PageSource, &mut Scratch),
    header: impl Fn(Revision) -> Header,
    out: &mut Vec<u8>,
) -> Result<bool, Stop> {
    let (pages, scratch) = context;
    let at = Revision(request.revision.max(0));
    let range = key_range(request);
    let header = header(reader.revision());
    if request.count_only {
        let Some(count) = reader.count_within(range, at, short.slice.leaves)? else {
            return Ok(false);
        };
        header.write(out);
        write_uint64(out, COUNT, count);
        return Ok(true);
    }
    let hits = &mut scratch.hits;
    if !reader.range_within(range, at, index_limit(request), short.slice, hits)? {
        return Ok(false);
    }
    let by_value = request.sort_target == SortTarget::Value as i32;
    let may_be_large = short.one_of_any_size && hits.hits().len() == 1;
    if (!request.keys_only || by_value) && hits.len_bytes() > short.bytes && !may_be_large {
        return Ok(false);
    }
    let start = out.len();
    header.write(out);
    let result = if is_custom(request) {
        write_custom(reader, request, pages, hits, out)
    } else {
        let more = request.limit > 0 && hits.more();
        let written = if request.keys_only {
            hits.hits().iter().for_each(|hit| write_key_only(hits, hit, out));
            Ok(())
        } else {
            hits.hits().iter().try_for_each(|hit| write_value(reader, hit, pages, out))
        };
        written.map(|()| more)
    };
    match result {
        Ok(more) => {
            write_tail(more, hits.count(), out);
            Ok(true)
        }
        Err(stop) => {
            out.truncate(start);
            Err(stop)
        }
    }
}

/// The keys that a request names.
pub fn key_range(request: &pb::RangeRequest) -> KeyRange<'_> {
    KeyRange { key: &request.key, end: &request.range_end }
}

/// True if the keys have to be filtered or sorted before they are answered.
pub fn is_custom(request: &pb::RangeRequest) -> bool {
    needs_all(request) || check::sorts_after_limit(request)
}

/// True if every key of the range has to be looked at, whatever the limit.
pub fn needs_all(request: &pb::RangeRequest) -> bool {
    !check::has_default_order(request) || check::has_revision_filters(request)
}

/// How many keys, in key order, have to be looked at; 0 for all.
pub fn index_limit(request: &pb::RangeRequest) -> usize {
    match limit_of(request) {
        _ if needs_all(request) => 0,
        // etcd takes one key more than the limit, in key order, and sorts only those.
        limit if is_custom(request) && limit > 0 => limit + 1,
        limit => limit,
    }
}

/// The limit as the index takes it: 0 for none.
pub fn limit_of(request: &pb::RangeRequest) -> usize {
    usize::try_from(request.limit.max(0)).unwrap_or(usize::MAX)
}

/// Appends one KeyValue as an element of `kvs`.
///
/// # Errors
/// See [`Stop`].
pub fn write_value(
    reader: &dyn Reader,
    hit: &Hit,
    pages: &mut dyn PageSource,
    out: &mut Vec<u8>,
) -> Result<(), Stop> {
    let value = reader.ready_value(hit.modified, pages)?;
    write_len(out, KVS, value.len());
    out.extend_from_slice(value);
    Ok(())
}

/// Appends a KeyValue without value and lease, from the index alone.
pub fn write_key_only(hits: &RangeHits, hit: &Hit, out: &mut Vec<u8>) {
    write_len(out, KVS, key_only_len(hits, hit));
    write_key_fields(hits.key(hit), hit, out);
}

/// Bytes of the KeyValue of [`write_key_only`].
pub fn key_only_len(hits: &RangeHits, hit: &Hit) -> usize {
    field_len(1, hits.key(hit).len())
        + int_len(2, hit.create.0 as u64)
        + int_len(3, hit.modified.main.0 as u64)
        + int_len(4, hit.version)
}

/// Appends `more` and `count`.
pub fn write_tail(more: bool, count: u64, out: &mut Vec<u8>) {
    write_uint64(out, MORE, u64::from(more));
    write_uint64(out, COUNT, count);
}

/// Bytes of [`write_tail`].
pub fn tail_len(more: bool, count: u64) -> usize {
    int_len(MORE, u64::from(more)) + int_len(COUNT, count)
}

fn write_key_fields(key: &[u8], hit: &Hit, out: &mut Vec<u8>) {
    write_len(out, 1, key.len());
    out.extend_from_slice(key);
    write_int64(out, 2, hit.create.0);
    write_int64(out, 3, hit.modified.main.0);
    write_uint64(out, 4, hit.version);
}

/// Filters, sorts, then cuts. Returns whether the limit left something out.
fn write_custom(
    reader: &dyn Reader,
    request: &pb::RangeRequest,
    pages: &mut dyn PageSource,
    hits: &RangeHits,
    out: &mut Vec<u8>,
) -> Result<bool, Stop> {
    let mut chosen: Vec<&Hit> =
        hits.hits().iter().filter(|hit| passes_filters(request, hit)).collect();
    let descending = request.sort_order == SortOrder::Descend as i32;
    let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
    // By value: each is read once, before sorting.
    let mut values: Vec<(Bytes, &Hit)> = Vec::new();
    if target == SortTarget::Value {
        for hit in &chosen {
            let raw = reader.ready_value(hit.modified, pages)?;
            values.push((Bytes::copy_from_slice(parse(raw)?.value), hit));
        }
        values.sort_by(|(a, _), (b, _)| directed(a.cmp(b), descending));
        chosen.clear();
        chosen.extend(values.iter().map(|(_, hit)| *hit));
    } else {
        chosen.sort_by(|a, b| directed(compare(hits, target, a, b), descending));
    }
    let limit = limit_of(request);
    let more = limit > 0 && chosen.len() > limit;
    if more {
        chosen.truncate(limit);
    }
    for hit in chosen {
        match (request.keys_only, target) {
            (false, _) => write_value(reader, hit, pages, out)?,
            (true, SortTarget::Value) => {
                // The value was read for sorting, so the lease is known and stays.
                let lease = parse(reader.ready_value(hit.modified, pages)?)?.lease.0;
                let len_bytes = key_only_len(hits, hit) + int_len(6, lease as u64);
                write_len(out, KVS, len_bytes);
                write_key_fields(hits.key(hit), hit, out);
                write_int64(out, 6, lease);
            }
            (true, _) => write_key_only(hits, hit, out),
        }
    }
    Ok(more)
}

/// Stored KeyValues were checked when their page was; one that does not parse was written wrong.
pub(super) fn parse(raw: &[u8]) -> Result<KvRef<'_>, Stop> {
    KvRef::parse(raw).map_err(|_| {
        Stop::Refused(etcore_proto::error::Status::new(
            etcore_proto::error::Code::DataLoss,
            "etcdserver: corrupt cluster",
        ))
    })
}

pub(super) fn directed(order: Ordering, descending: bool) -> Ordering {
    if descending { order.reverse() } else { order }
}

fn compare(hits: &RangeHits, target: SortTarget, a: &Hit, b: &Hit) -> Ordering {
    match target {
        SortTarget::Key | SortTarget::Value => hits.key(a).cmp(hits.key(b)),
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create.cmp(&b.create),
        SortTarget::Mod => a.modified.main.cmp(&b.modified.main),
    }
}

pub(super) fn passes_filters(request: &pb::RangeRequest, hit: &Hit) -> bool {
    let within =
        |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(hit.modified.main.0, request.min_mod_revision, request.max_mod_revision)
        && within(hit.create.0, request.min_create_revision, request.max_create_revision)
}
