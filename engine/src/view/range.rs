//! Ranges over the revision index.
//!
//! Views and transactions fill [`RangeHits`] through it. It must never read a value.

use std::ops::ControlFlow;

use crate::error::RangeError;
use crate::index::{Bounds, Index, State};
use crate::types::{RevKey, Revision};

/// A key that exists at the revision asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hit {
    /// The change that wrote its value: what to ask `value` for.
    pub modified: RevKey,
    /// The revision that created it.
    pub create: Revision,
    /// Changes since then, this one included.
    pub version: u64,
    /// Length of its KeyValue in wire form.
    pub len_bytes: u32,
    key_start: usize,
    key_end: usize,
}

/// The result of a range; can be filled again and keeps its memory.
#[derive(Debug, Clone, Default)]
pub struct RangeHits {
    hits: Vec<Hit>,
    keys: Vec<u8>,
    count: u64,
}

impl RangeHits {
    /// The keys found, in order, up to the limit.
    pub fn hits(&self) -> &[Hit] {
        &self.hits
    }

    /// The key of one of [`RangeHits::hits`].
    pub fn key(&self, hit: &Hit) -> &[u8] {
        &self.keys[hit.key_start..hit.key_end]
    }

    /// How many keys there are without the limit.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True if the limit left keys out.
    pub fn more(&self) -> bool {
        self.count > self.hits.len() as u64
    }

    /// Sum of the lengths of the hits' KeyValues.
    pub fn len_bytes(&self) -> u64 {
        self.hits.iter().map(|hit| u64::from(hit.len_bytes)).sum()
    }

    pub(crate) fn fill(
        &mut self,
        index: &Index,
        bounds: Option<Bounds<'_>>,
        key: &[u8],
        at: Revision,
        limit: usize,
    ) {
        self.hits.clear();
        self.keys.clear();
        let Some(bounds) = bounds else {
            if let Some(state) = index.get(key, at) {
                self.keys.extend_from_slice(key);
                self.push(0, state);
            }
            self.count = self.hits.len() as u64;
            return;
        };
        let mut more = false;
        index.visit(bounds, at, &mut |leaf, slot, state| {
            if limit != 0 && self.hits.len() == limit {
                more = true;
                return ControlFlow::Break(());
            }
            let start = self.keys.len();
            leaf.key_into(slot, &mut self.keys);
            self.push(start, state);
            ControlFlow::Continue(())
        });
        self.count = if more { index.count(bounds, at) } else { self.hits.len() as u64 };
    }

    fn push(&mut self, key_start: usize, state: State) {
        self.hits.push(Hit {
            modified: state.at(),
            create: state.create(),
            version: state.version(),
            len_bytes: state.len_bytes(),
            key_start,
            key_end: self.keys.len(),
        });
    }
}

pub(crate) fn count(index: &Index, bounds: Option<Bounds<'_>>, key: &[u8], at: Revision) -> u64 {
    match bounds {
        Some(bounds) => index.count(bounds, at),
        None => u64::from(index.get(key, at).is_some()),
    }
}

/// etcd's range ends; `None` for the single key.
pub(crate) fn bounds_of<'a>(key: &'a [u8], end: &'a [u8]) -> Option<Bounds<'a>> {
    match end {
        [] => None,
        [0] => Some(Bounds { start: key, end: None }),
        // A range that ends before it starts is empty.
        _ => Some(Bounds { start: key, end: Some(end.max(key)) }),
    }
}

/// The revision to read for the one asked for, if it can be read.
pub(crate) fn check_revision(
    requested: Revision,
    current: Revision,
    compacted: Revision,
) -> Result<Revision, RangeError> {
    let at = if requested.0 <= 0 { current } else { requested };
    if at > current {
        return Err(RangeError::Future { requested, current });
    }
    if at < compacted {
        return Err(RangeError::Compacted { requested, compacted });
    }
    Ok(at)
}
