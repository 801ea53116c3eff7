//! What a read or a transaction sees: a published view, or the state inside a write transaction.
//!
//! Implemented for the engine's `View` and `Txn`, so that fronts and apply answer by the same code.

use etcore_engine::error::{EngineError, RangeError};
use etcore_engine::page::{Fetch, PagePtr, PageSource, Ticket};
use etcore_engine::pins::RevisionPin;
use etcore_engine::store::Txn;
use etcore_engine::types::{RevKey, Revision};
use etcore_engine::view::{Hit, KeyRange, RangeHits, ReadPoint, SliceBounds, View};
use etcore_proto::error::{EtcdError, Status};

/// Why an evaluation did not end with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The client gets this.
    Refused(Status),
    /// A page must come from the device first; evaluate again afterwards.
    NeedsPage(Ticket),
    /// Stored data is damaged or unreadable; this member must not answer.
    Broken(EngineError),
}

impl From<EtcdError> for Stop {
    fn from(error: EtcdError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<RangeError> for Stop {
    fn from(error: RangeError) -> Self {
        match error {
            RangeError::Compacted { .. } => EtcdError::Compacted.into(),
            RangeError::Future { .. } => EtcdError::FutureRev.into(),
        }
    }
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::Broken(error)
    }
}

/// One consistent state to read.
pub trait Reader {
    /// The newest revision in it, that of the running transaction included.
    fn revision(&self) -> Revision;
    /// Revisions below this one cannot be read.
    fn compact_revision(&self) -> Revision;
    /// As `View::range_within`.
    ///
    /// # Errors
    /// The revision is compacted or in the future.
    fn range_within(
        &self,
        range: KeyRange<'_>,
        at: Revision,
        limit: usize,
        bounds: SliceBounds,
        hits: &mut RangeHits,
    ) -> Result<bool, RangeError>;
    /// As `View::count_within`.
    ///
    /// # Errors
    /// The revision is compacted or in the future.
    fn count_within(
        &self,
        range: KeyRange<'_>,
        at: Revision,
        leaves_max: usize,
    ) -> Result<Option<u64>, RangeError>;
    /// Puts a slice of a range of the newest state into `hits`; `hits.next()` says where to go on.
    ///
    /// # Errors
    /// The state was kept for too long and is compacted.
    fn slice(
        &self,
        range: KeyRange<'_>,
        bounds: SliceBounds,
        hits: &mut RangeHits,
    ) -> Result<(), RangeError>;
    /// As `View::value`.
    ///
    /// # Errors
    /// Damaged or unreadable pages.
    fn value<'a>(
        &'a self,
        at: RevKey,
        pages: &'a mut dyn PageSource,
    ) -> Result<Fetch<&'a [u8]>, EngineError>;

    /// [`Reader::value`] with a pending page as a reason to stop.
    ///
    /// # Errors
    /// See [`Stop`].
    fn ready_value<'a>(
        &'a self,
        at: RevKey,
        pages: &'a mut dyn PageSource,
    ) -> Result<&'a [u8], Stop> {
        match self.value(at, pages)? {
            Fetch::Ready(value) => Ok(value),
            Fetch::Pending(ticket) => Err(Stop::NeedsPage(ticket)),
        }
    }

    /// The one key's newest value, if it exists.
    ///
    /// # Errors
    /// As [`Reader::slice`].
    fn find(&self, key: &[u8]) -> Result<Option<Hit>, RangeError> {
        let mut hits = RangeHits::default();
        let bounds = SliceBounds { keys: 1, leaves: 1 };
        self.slice(KeyRange { key, end: b"" }, bounds, &mut hits)?;
        Ok(hits.hits().first().copied())
    }
}

impl Reader for View {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn compact_revision(&self) -> Revision {
        self.compact_revision
    }

    fn range_within(
        &self,
        range: KeyRange<'_>,
        at: Revision,
        limit: usize,
        bounds: SliceBounds,
        hits: &mut RangeHits,
    ) -> Result<bool, RangeError> {
        Self::range_within(self, range, at, limit, bounds, hits)
    }

    fn count_within(
        &self,
        range: KeyRange<'_>,
        at: Revision,
        leaves_max: usize,
    ) -> Result<Option<u64>, RangeError> {
        Self::count_within(self, range, at, leaves_max)
    }

    fn slice(
        &self,
        range: KeyRange<'_>,
        bounds: SliceBounds,
        hits: &mut RangeHits,
    ) -> Result<(), RangeError> {
        self.slice_newest(range, bounds, hits);
        Ok(())
    }

    fn value<'a>(
        &'a self,
        at: RevKey,
        pages: &'a mut dyn PageSource,
    ) -> Result<Fetch<&'a [u8]>, EngineError> {
        Self::value(self, at, pages)
    }
}

impl Reader for Txn<'_> {
    fn revision(&self) -> Revision {
        Self::revision(self)
    }

    fn compact_revision(&self) -> Revision {
        Self::compact_revision(self)
    }

    fn range_within(
        &self,
        range: KeyRange<'_>,
        at: Revision,
        limit: usize,
        bounds: SliceBounds,
        hits: &mut RangeHits,
    ) -> Result<bool, RangeError> {
        Self::range_within(self, range, at, limit, bounds, hits)
    }

    fn count_within(
        &self,
        range: KeyRange<'_>,
        at: Revision,
        leaves_max: usize,
    ) -> Result<Option<u64>, RangeError> {
        Self::count_within(self, range, at, leaves_max)
    }

    fn slice(
        &self,
        range: KeyRange<'_>,
        bounds: SliceBounds,
        hits: &mut RangeHits,
    ) -> Result<(), RangeError> {
        Self::slice(self, range, bounds, hits);
        Ok(())
    }

    fn value<'a>(
        &'a self,
        at: RevKey,
        pages: &'a mut dyn PageSource,
    ) -> Result<Fetch<&'a [u8]>, EngineError> {
        Self::value(self, at, pages)
    }
}

/// The state at a pinned revision, read over several turns, in the newest view of each.
#[derive(Clone, Copy)]
pub struct Pinned<'a> {
    /// The newest view.
    pub view: &'a View,
    /// The revision that is read.
    pub revision: Revision,
    /// What could not be read any more when the pin was taken.
    pub compact_revision: Revision,
    /// Keeps it.
    pub pin: &'a RevisionPin,
}

impl Pinned<'_> {
    fn point(&self) -> ReadPoint {
        ReadPoint::at(self.revision)
    }
}

impl Reader for Pinned<'_> {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn compact_revision(&self) -> Revision {
        self.compact_revision
    }

    /// Long answers look at ranges in slices.
    fn range_within(
        &self,
        _: KeyRange<'_>,
        _: Revision,
        _: usize,
        _: SliceBounds,
        _: &mut RangeHits,
    ) -> Result<bool, RangeError> {
        Ok(false)
    }

    /// Counts keys, as `View::count_within` does.
    fn count_within(
        &self,
        _: KeyRange<'_>,
        _: Revision,
        _: usize,
    ) -> Result<Option<u64>, RangeError> {
        Ok(None)
    }

    fn slice(
        &self,
        range: KeyRange<'_>,
        bounds: SliceBounds,
        hits: &mut RangeHits,
    ) -> Result<(), RangeError> {
        self.view.slice(range, (self.point(), self.pin), bounds, hits)
    }

    fn value<'a>(
        &'a self,
        at: RevKey,
        pages: &'a mut dyn PageSource,
    ) -> Result<Fetch<&'a [u8]>, EngineError> {
        self.view.value(at, pages)
    }
}

/// For evaluations that take only what is in memory, and leave the rest to others: any page counts
/// as one that is on its way.
pub struct MemoryOnly;

impl PageSource for MemoryOnly {
    fn get(&mut self, _: PagePtr) -> Result<Fetch<&[u8]>, EngineError> {
        Ok(Fetch::Pending(Ticket(0)))
    }
}
