//! What readers see: an immutable picture of the store, swapped as a whole.
//!
//! Made by [`Store::publish`](crate::store::Store::publish), read by any thread. Nothing in a view
//! disagrees with anything else in it. A view holds memory and pages: it must never be kept across
//! a turn; long reads pin a revision and look at the newest view for each chunk. The small buckets
//! are not in it: only the store's owner reads them, and sharing each of their states would make
//! every change of a lease copy what it changes.

mod events;
mod range;

use std::sync::Arc;

pub use events::{Event, Events};
pub use range::{Hit, KeyRange, RangeHits, ReadPoint, SliceBounds};
pub(crate) use range::{bounds_of, check_revision, count, count_within};

use crate::error::{EngineError, RangeError};
use crate::index::Index;
use crate::page::{Fetch, PagePtr, PageSource};
use crate::pins::{RevisionPin, VersionPin};
use crate::table::TablesView;
use crate::tree;
use crate::types::{LogIndex, RevKey, Revision, Term};

/// One consistent state.
#[derive(Debug)]
pub struct View {
    /// The newest revision in it.
    pub revision: Revision,
    /// Revisions below this one cannot be read; -1 before the first compaction.
    pub compact_revision: Revision,
    /// The last raft entry whose effect is in it.
    pub applied: LogIndex,
    /// That entry's term.
    pub term: Term,
    /// Compaction has removed nothing above it.
    pub(crate) removed: Revision,
    pub(crate) index: Index,
    pub(crate) tables: TablesView,
    pub(crate) tree: Arc<TreeVersion>,
}

/// A version of the page file; its pages stay until this is dropped.
#[derive(Debug)]
pub(crate) struct TreeVersion {
    /// Root of the key bucket, if it has rows.
    pub(crate) root: Option<PagePtr>,
    /// Held, not read: dropping it lets the pages be reused.
    pub(crate) _pin: VersionPin,
}

impl View {
    /// The keys from `key` to `end` at revision `at` (0: the newest), at most `limit` (0: all) of
    /// them, and how many there are in all. `end` is as in etcd: empty for the one key, `\0` for
    /// everything from `key` on.
    pub fn range(
        &self,
        key: &[u8],
        end: &[u8],
        at: Revision,
        limit: usize,
    ) -> Result<RangeHits, RangeError> {
        let mut hits = RangeHits::default();
        self.range_into(key, end, at, limit, &mut hits)?;
        Ok(hits)
    }

    /// Like [`View::range`], into memory that is used again.
    pub fn range_into(
        &self,
        key: &[u8],
        end: &[u8],
        at: Revision,
        limit: usize,
        hits: &mut RangeHits,
    ) -> Result<(), RangeError> {
        let at = check_revision(at, self.revision, self.compact_revision)?;
        hits.fill(&self.index, bounds_of(key, end), key, at, limit);
        Ok(())
    }

    /// Like [`View::range`] at a pinned revision, which stays readable while the pin lives, even
    /// below the compact revision; compacted if the pin came too late ([`View::has_all_of`]).
    pub fn range_pinned(
        &self,
        key: &[u8],
        end: &[u8],
        pin: &RevisionPin,
        limit: usize,
    ) -> Result<RangeHits, RangeError> {
        let at = check_revision(pin.revision(), self.revision, Revision(-1))?;
        if !self.has_all_of(pin) {
            let compacted = self.compact_revision;
            return Err(RangeError::Compacted { requested: at, compacted });
        }
        let mut hits = RangeHits::default();
        hits.fill(&self.index, bounds_of(key, end), key, at, limit);
        Ok(hits)
    }

    /// True if the pin came before any compaction removed what it was to keep. Whoever pins a
    /// revision asks each view that is read under it: a compaction may have begun, unseen, while
    /// the pin was taken.
    pub fn has_all_of(&self, pin: &RevisionPin) -> bool {
        self.removed <= pin.revision()
    }

    /// How many keys [`View::range`] would find without a limit.
    pub fn count(&self, key: &[u8], end: &[u8], at: Revision) -> Result<u64, RangeError> {
        let at = check_revision(at, self.revision, self.compact_revision)?;
        Ok(count(&self.index, bounds_of(key, end), key, at))
    }

    /// The KeyValue of a revision that a range of this view returned, in wire form. The value in
    /// memory needs no page, so `pages` is asked only for older ones.
    pub fn value<'a>(
        &'a self,
        at: RevKey,
        pages: &'a mut dyn PageSource,
    ) -> Result<Fetch<&'a [u8]>, EngineError> {
        if let Some((_, bytes)) = self.tables.find(at) {
            return Ok(Fetch::Ready(bytes));
        }
        value_in_pages(self.tree.root, at, pages)
    }

    /// The revision that `key` had just before the change `before`, if it had a value then and
    /// compaction has left it.
    pub fn previous(&self, key: &[u8], before: RevKey) -> Option<RevKey> {
        let at = self.index.previous(key, before)?.at();
        self.is_left(key, at).then_some(at)
    }

    /// True if compaction has left the row `at` of `key`. The index and the page file forget what
    /// is compacted at different times; only what neither may have forgotten counts.
    fn is_left(&self, key: &[u8], at: RevKey) -> bool {
        at.main > self.removed || self.index.keeps(key, at, self.removed)
    }

    /// The changes of the revisions above `from` up to `to`, in order; `to` is capped by the
    /// view's revision. An error if `from` is below the compact revision minus one: then events
    /// are missing, unless `pin` keeps them.
    pub fn events(
        &self,
        from: Revision,
        to: Revision,
        pin: Option<&RevisionPin>,
    ) -> Result<Events<'_>, RangeError> {
        let pinned = pin.is_some_and(|pin| pin.revision() <= from);
        if from.0 + 1 < self.compact_revision.0 && !pinned {
            let requested = Revision(from.0 + 1);
            return Err(RangeError::Compacted { requested, compacted: self.compact_revision });
        }
        let next = RevKey::first(Revision(from.0 + 1));
        Ok(Events::new(self, next, to.min(self.revision)))
    }

    /// The changes from `next` on, up to the revision `to`, in order; `to` is capped by the view's
    /// revision. Compacted ones are there for as long as pins keep them: it is an error if some
    /// may be missing.
    pub fn events_since(&self, next: RevKey, to: Revision) -> Result<Events<'_>, RangeError> {
        if next.main < self.compact_revision && next.main < self.removed {
            let compacted = self.compact_revision;
            return Err(RangeError::Compacted { requested: next.main, compacted });
        }
        Ok(Events::new(self, next, to.min(self.revision)))
    }

    /// Keys that exist now.
    pub fn key_count(&self) -> u64 {
        count(&self.index, bounds_of(b"\0", b"\0"), b"\0", self.revision)
    }
}

/// A row known to the index but not in memory.
pub(crate) fn value_in_pages(
    root: Option<PagePtr>,
    at: RevKey,
    pages: &mut dyn PageSource,
) -> Result<Fetch<&[u8]>, EngineError> {
    let row_key = at.to_row_key();
    let missing = || {
        let what = crate::error::Corruption::Structure("a row that the index knows is missing");
        let offset = root.map_or(0, |root| root.offset_bytes());
        EngineError::corrupt(crate::page::node::DB_FILE, offset, what)
    };
    let Some(root) = root else { return Err(missing()) };
    match tree::get(root, &row_key, pages)? {
        Fetch::Ready(Some(value)) => Ok(Fetch::Ready(value)),
        Fetch::Ready(None) => Err(missing()),
        Fetch::Pending(ticket) => Ok(Fetch::Pending(ticket)),
    }
}
