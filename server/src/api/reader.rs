//! What a read or a transaction sees: a published view, or the state inside a write transaction.
//!
//! Implemented for the engine's `View` and `Txn`, so that fronts and apply answer by the same code.

use etcore_engine::error::{EngineError, RangeError};
use etcore_engine::page::{Fetch, PageSource, Ticket};
use etcore_engine::store::Txn;
use etcore_engine::types::{RevKey, Revision};
use etcore_engine::view::{RangeHits, View};
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
    /// As `View::range_into`.
    ///
    /// # Errors
    /// The revision is compacted or in the future.
    fn range_into(
        &self,
        key: &[u8],
        end: &[u8],
        at: Revision,
        limit: usize,
        hits: &mut RangeHits,
    ) -> Result<(), RangeError>;
    /// As `View::count`.
    ///
    /// # Errors
    /// The revision is compacted or in the future.
    fn count(&self, key: &[u8], end: &[u8], at: Revision) -> Result<u64, RangeError>;
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
}

impl Reader for View {
    fn revision(&self) -> Revision {
        self.revision
    }

    fn compact_revision(&self) -> Revision {
        self.compact_revision
    }

    fn range_into(
        &self,
        key: &[u8],
        end: &[u8],
        at: Revision,
        limit: usize,
        hits: &mut RangeHits,
    ) -> Result<(), RangeError> {
        Self::range_into(self, key, end, at, limit, hits)
    }

    fn count(&self, key: &[u8], end: &[u8], at: Revision) -> Result<u64, RangeError> {
        Self::count(self, key, end, at)
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

    fn range_into(
        &self,
        key: &[u8],
        end: &[u8],
        at: Revision,
        limit: usize,
        hits: &mut RangeHits,
    ) -> Result<(), RangeError> {
        *hits = Self::range(self, key, end, at, limit)?;
        Ok(())
    }

    fn count(&self, key: &[u8], end: &[u8], at: Revision) -> Result<u64, RangeError> {
        Self::count(self, key, end, at)
    }

    fn value<'a>(
        &'a self,
        at: RevKey,
        pages: &'a mut dyn PageSource,
    ) -> Result<Fetch<&'a [u8]>, EngineError> {
        Self::value(self, at, pages)
    }
}
