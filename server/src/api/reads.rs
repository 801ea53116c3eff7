//! What reads need: the view of the turn, pages, pins of revisions, and memory to evaluate in.
//!
//! Owned by [`Services`](super::Services). The view is taken once a turn, so that whatever is
//! answered in it is consistent; it is let go while nobody is served, since it keeps pages, rows
//! and index nodes alive.

use std::sync::Arc;

use etcore_engine::page::PageSource;
use etcore_engine::pins::{RevisionPin, RevisionPins};
use etcore_engine::types::Revision;
use etcore_engine::view::{RangeHits, View};
use etcore_proto::error::EtcdError;
use etcore_proto::h2::{Budget, BudgetLease};

use super::call::Refusal;
use crate::channel::{MemberView, Shared};
use crate::disk::pages::Pages;
use crate::kv::range::Scratch;
use crate::kv::reader::Stop;
use crate::limits;

/// See the module text.
pub(super) struct Reads {
    view: Arc<MemberView>,
    /// In its place while nobody is served.
    idle_view: Arc<MemberView>,
    pages: Pages,
    pins: RevisionPins,
    scratch: Scratch,
    /// What sorting long answers may hold, in bytes.
    sorting: Budget,
    /// Room for one answer, used again.
    buffer: Vec<u8>,
}

impl Reads {
    pub(super) fn new(shared: &Shared, pages: Pages, pins: RevisionPins) -> Self {
        Self {
            view: shared.view.load_full(),
            idle_view: Arc::new(MemberView::nothing()),
            pages,
            pins,
            scratch: Scratch::default(),
            sorting: Budget::new(limits::SORT_BYTES, limits::SORT_BYTES),
            buffer: Vec::new(),
        }
    }

    /// The view of the turn.
    pub(super) fn view(&self) -> &Arc<MemberView> {
        &self.view
    }

    /// Its keys and values.
    pub(super) fn store(&self) -> &Arc<View> {
        &self.view.store
    }

    /// Takes the newest view.
    pub(super) fn refresh(&mut self, shared: &Shared) {
        let newest = shared.view.load();
        if !Arc::ptr_eq(&newest, &self.view) {
            self.view = arc_swap::Guard::into_inner(newest);
            self.pages.follow(&self.view.page_file);
        }
    }

    /// Lets go of the view until the next [`Reads::refresh`].
    pub(super) fn rest(&mut self) {
        self.view = self.idle_view.clone();
    }

    /// Where pages are read, and memory for an evaluation.
    pub(super) fn source(&mut self) -> (&mut dyn PageSource, &mut RangeHits) {
        (self.pages.source(), self.scratch.hits_mut())
    }

    /// The view, where its pages are read, and memory for an evaluation.
    pub(super) fn evaluation(&mut self) -> (&MemberView, &mut dyn PageSource, &mut Scratch) {
        (&self.view, self.pages.source(), &mut self.scratch)
    }

    /// Memory for an evaluation that reads no pages.
    pub(super) fn scratch(&mut self) -> &mut Scratch {
        &mut self.scratch
    }

    /// Pins `revision`, or an older one that is read as well. The pin came in time if a view
    /// loaded afterwards has not been compacted past it.
    pub(super) fn pin(&self, shared: &Shared, revision: Revision) -> Result<RevisionPin, Refusal> {
        let pin = self.pins.pin(revision).map_err(|_| EtcdError::TooManyRequests)?;
        let newest = shared.view.load_full();
        if revision < newest.store.compact_revision {
            return Err(EtcdError::Compacted.into());
        }
        Ok(pin)
    }

    pub(super) fn pins(&self) -> &RevisionPins {
        &self.pins
    }

    pub(super) fn sorting_lease(&self) -> BudgetLease {
        self.sorting.lease()
    }

    /// Sends for pages that evaluations lacked.
    pub(super) fn fetch_wanted(&mut self) {
        self.pages.fetch_wanted();
    }

    /// Takes the pages that have come.
    pub(super) fn take_finished(&mut self) {
        self.pages.take_finished();
    }

    /// True if pages have come since the last call.
    pub(super) fn take_arrived(&mut self) -> bool {
        self.pages.take_arrived()
    }

    /// True if pages wait to be taken.
    pub(super) fn has_finished(&self) -> bool {
        self.pages.has_finished()
    }

    /// The buffer, empty, for one answer; give it back by [`Reads::keep_buffer`].
    pub(super) fn take_buffer(&mut self) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer
    }

    pub(super) fn keep_buffer(&mut self, buffer: Vec<u8>) {
        if buffer.capacity() <= limits::ANSWER_BUFFER_BYTES {
            self.buffer = buffer;
        }
    }
}

/// What a client is told of an evaluation that cannot go on.
pub(super) fn refusal(stop: Stop) -> Refusal {
    match stop {
        Stop::Refused(status) => Refusal::Status(status),
        Stop::NeedsPage(_) => EtcdError::TooManyRequests.into(),
        Stop::Broken(error) => {
            // Never served, and loud: the page is damaged on this member's disk.
            tracing::error!(error = %error, "a read met damaged data");
            EtcdError::Corrupt.into()
        }
    }
}
