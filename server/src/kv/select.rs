//! Sorting and filtering of ranges that are too long to be sorted at once.
//!
//! Used by [`Keys`](super::keys::Keys). An external merge sort over references to rows: each slice
//! of the range becomes a sorted run, and the runs are merged while the answer is written, so that
//! no step takes longer than a slice. A key costs 24 bytes; values are read anew when they are
//! compared or sent. Keys of equal rank stay in key order.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use etcore_engine::page::PageSource;
use etcore_engine::types::{RevKey, Revision};
use etcore_engine::view::{Hit, RangeHits};
use etcore_proto::pb::etcdserverpb as pb;
use pb::range_request::{SortOrder, SortTarget};

use super::range;
use super::reader::{Reader, Stop};
use crate::limits;
use crate::wire::field_len;

/// Field of a RangeResponse.
const KVS: u32 = 2;

/// A row of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    main: i64,
    sub: u32,
    /// Length of what is told of it, in wire form.
    pub len_bytes: u32,
}

impl Row {
    fn new(hit: &Hit, len_bytes: u32) -> Self {
        let RevKey { main, sub } = hit.modified;
        Self { main: main.0, sub, len_bytes }
    }

    /// What to ask `value` for.
    pub fn at(self) -> RevKey {
        RevKey { main: Revision(self.main), sub: self.sub }
    }
}

/// A row and its place by a number.
#[derive(Debug, Clone, Copy)]
struct Ranked {
    rank: i64,
    row: Row,
}

/// The next row of a run, in the merge.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    rank: i64,
    /// Empty unless sorted by value.
    value: Vec<u8>,
    run: usize,
    descending: bool,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_value = range::directed(self.value.cmp(&other.value), self.descending);
        self.rank.cmp(&other.rank).then(by_value).then(self.run.cmp(&other.run))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// See the module text.
///
/// Invariants: each run is sorted, and holds no more rows than the limit; rows before `taken[run]`
/// have left it; a run with rows left has its head in the heap, or is still to be loaded.
pub struct Selection {
    request: pb::RangeRequest,
    target: SortTarget,
    descending: bool,
    limit: usize,
    /// Rows that passed the filters, and the length of all of them as elements of `kvs`.
    chosen: u64,
    chosen_bytes: u64,
    seen: i64,
    runs: Vec<Vec<Ranked>>,
    taken: Vec<usize>,
    /// Runs whose next row is not in the heap.
    to_load: Vec<usize>,
    heap: BinaryHeap<Reverse<Head>>,
    head_bytes: usize,
}

impl Selection {
    /// For a Range that filters or sorts.
    pub fn new(request: &pb::RangeRequest) -> Self {
        let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
        let request = pb::RangeRequest {
            key: bytes::Bytes::new(),
            range_end: bytes::Bytes::new(),
            ..request.clone()
        };
        Self {
            target,
            descending: request.sort_order == SortOrder::Descend as i32,
            limit: range::limit_of(&request),
            request,
            chosen: 0,
            chosen_bytes: 0,
            seen: 0,
            runs: Vec::new(),
            taken: Vec::new(),
            to_load: Vec::new(),
            heap: BinaryHeap::new(),
            head_bytes: 0,
        }
    }

    /// True if the values decide.
    pub fn is_by_value(&self) -> bool {
        self.target == SortTarget::Value
    }

    /// How many of them are wanted, 0 for all.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Rows that passed the filters, whatever the limit.
    pub fn chosen(&self) -> u64 {
        self.chosen
    }

    /// Their bytes as elements of `kvs`, if that is known without reading them.
    pub fn chosen_bytes(&self) -> Option<u64> {
        self.knows_lengths().then_some(self.chosen_bytes)
    }

    /// True if a row's `len_bytes` is right: without its value, a row that was read to be sorted
    /// keeps its lease, of which the index knows nothing.
    pub fn knows_lengths(&self) -> bool {
        !(self.request.keys_only && self.is_by_value())
    }

    /// Bytes held.
    pub fn memory_bytes(&self) -> usize {
        let rows: usize = self.runs.iter().map(Vec::len).sum();
        rows * size_of::<Ranked>() + self.head_bytes
    }

    /// Takes in the next hits of the range. On an error nothing was taken in.
    ///
    /// # Errors
    /// See [`Stop`].
    pub fn add(
        &mut self,
        reader: &dyn Reader,
        (hits, taken): (&RangeHits, &[Hit]),
        pages: &mut dyn PageSource,
    ) -> Result<(), Stop> {
        let passing = taken.iter().filter(|hit| range::passes_filters(&self.request, hit));
        let row = |hit: &Hit| {
            let len_bytes = match self.request.keys_only {
                true => u32::try_from(range::key_only_len(hits, hit)).unwrap_or(u32::MAX),
                false => hit.len_bytes,
            };
            Row::new(hit, len_bytes)
        };
        let mut run: Vec<Ranked> = if self.is_by_value() {
            let mut valued = Vec::new();
            for hit in passing {
                let raw = reader.ready_value(hit.modified, pages)?;
                let value = range::parse(raw)?.value.to_vec();
                valued.push((value, Ranked { rank: 0, row: row(hit) }));
            }
            valued.sort_by(|(a, _), (b, _)| range::directed(a.cmp(b), self.descending));
            valued.into_iter().map(|(_, ranked)| ranked).collect()
        } else {
            let first = self.seen;
            let mut run: Vec<Ranked> = passing
                .zip(first..)
                .map(|(hit, place)| Ranked { rank: self.rank(hit, place), row: row(hit) })
                .collect();
            run.sort_by_key(|ranked| ranked.rank);
            run
        };
        let bytes = |ranked: &Ranked| field_len(KVS, ranked.row.len_bytes as usize) as u64;
        let bytes: u64 = run.iter().map(bytes).sum();
        self.seen += taken.len() as i64;
        self.chosen += run.len() as u64;
        self.chosen_bytes += bytes;
        if self.limit > 0 {
            run.truncate(self.limit);
        }
        run.shrink_to_fit();
        if !run.is_empty() {
            self.runs.push(run);
        }
        if self.runs.len() >= limits::SORT_RUNS
            && (1..=limits::SORT_BEST_KEYS).contains(&self.limit)
            && !self.is_by_value()
        {
            let mut best = std::mem::take(&mut self.runs).concat();
            // Stable, and runs are in key order: so are equals.
            best.sort_by_key(|ranked| ranked.rank);
            best.truncate(self.limit);
            self.runs.push(best);
        }
        Ok(())
    }

    /// Everything was taken in, or is to be merged once more from the start.
    pub fn begin_merge(&mut self) {
        self.heap.clear();
        self.head_bytes = 0;
        self.taken = vec![0; self.runs.len()];
        self.to_load = (0..self.runs.len()).collect();
    }

    /// Brings the next row to the front; false at the end. May be called again after an error.
    ///
    /// # Errors
    /// See [`Stop`].
    pub fn load(&mut self, reader: &dyn Reader, pages: &mut dyn PageSource) -> Result<bool, Stop> {
        while let Some(&run) = self.to_load.last() {
            if let Some(ranked) = self.runs[run].get(self.taken[run]) {
                let value = if self.is_by_value() {
                    range::parse(reader.ready_value(ranked.row.at(), pages)?)?.value.to_vec()
                } else {
                    Vec::new()
                };
                self.head_bytes += value.len();
                let (rank, descending) = (ranked.rank, self.descending);
                self.heap.push(Reverse(Head { rank, value, run, descending }));
            }
            self.to_load.pop();
        }
        Ok(!self.heap.is_empty())
    }

    /// The row that [`Selection::load`] has brought to the front.
    pub fn front(&self) -> Option<Row> {
        let Reverse(head) = self.heap.peek()?;
        Some(self.runs[head.run][self.taken[head.run]].row)
    }

    /// Goes on to the next one.
    pub fn advance(&mut self) {
        let Some(Reverse(head)) = self.heap.pop() else { return };
        self.head_bytes -= head.value.len();
        self.taken[head.run] += 1;
        self.to_load.push(head.run);
    }

    fn rank(&self, hit: &Hit, place: i64) -> i64 {
        let number = match self.target {
            SortTarget::Key | SortTarget::Value => place,
            SortTarget::Version => i64::try_from(hit.version).unwrap_or(i64::MAX),
            SortTarget::Create => hit.create.0,
            SortTarget::Mod => hit.modified.main.0,
        };
        // The complement turns the order around, the smallest number included.
        if self.descending { !number } else { number }
    }
}

/// The hits of a slice that may be taken in at once: to sort by values, those are read.
pub fn fitting<'a>(selection: &Selection, hits: &'a RangeHits) -> &'a [Hit] {
    let hits = hits.hits();
    if !selection.is_by_value() {
        return hits;
    }
    let mut bytes = 0;
    let fits = |hit: &&Hit| {
        bytes += u64::from(hit.len_bytes);
        bytes <= limits::SORT_CHUNK_BYTES
    };
    let count = hits.iter().take_while(fits).count().max(1);
    &hits[..count.min(hits.len())]
}
