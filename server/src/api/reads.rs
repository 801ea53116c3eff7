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
    /// The state of before a snapshot took its place, for long answers that began in it.
    former: Option<Former>,
    /// Its pages, while there is one.
    former_pages: Pages,
    pins: RevisionPins,
    scratch: Scratch,
    /// What sorting long answers may hold, in bytes.
    sorting: Budget,
    /// Room for one answer, used again.
    buffer: Vec<u8>,
}

/// A state that is not the member's any more. Nobody writes its page file, so nothing in it needs
/// to be pinned.
struct Former {
    store: Arc<View>,
    /// When those that still read it must do with the member's.
    until_ms: u64,
}

impl Reads {
    pub(super) fn new(
        shared: &Shared,
        pages: Pages,
        former_pages: Pages,
        pins: RevisionPins,
    ) -> Self {
        Self {
            view: shared.view.load_full(),
            idle_view: Arc::new(MemberView::nothing()),
            pages,
            former: None,
            former_pages,
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

    /// Takes the newest view. If a snapshot has brought it, the state of before is kept up to
    /// `former_until_ms`.
    pub(super) fn refresh(&mut self, shared: &Shared, former_until_ms: Option<u64>) {
        let newest = shared.view.load();
        if Arc::ptr_eq(&newest, &self.view) {
            return;
        }
        let before = std::mem::replace(&mut self.view, arc_swap::Guard::into_inner(newest));
        if self.pages.number() != self.view.page_file.number
            && let Some(until_ms) = former_until_ms
        {
            self.former = Some(Former { store: before.store.clone(), until_ms });
            std::mem::swap(&mut self.pages, &mut self.former_pages);
        }
        self.pages.follow(&self.view.page_file);
    }

    /// Lets go of the state of before a snapshot, if its time is over or nobody reads its file.
    pub(super) fn tick(&mut self, now_ms: u64, is_read: impl FnOnce(u64) -> bool) {
        let Some(former) = &self.former else { return };
        if now_ms >= former.until_ms || !is_read(self.former_pages.number()) {
            self.end_former();
        }
    }

    fn end_former(&mut self) {
        if self.former.take().is_some() {
            // So that nobody keeps its file open.
            self.former_pages.follow(&self.view.page_file);
        }
    }

    /// Number of the page file of the view: see [`Reads::store_of`].
    pub(super) fn page_file(&self) -> u64 {
        self.pages.number()
    }

    /// The state that a long answer reads which began in the page file of this number: the one of
    /// before a snapshot, while it is kept, and the view of the turn otherwise.
    pub(super) fn store_of(&self, page_file: u64) -> &Arc<View> {
        match &self.former {
            Some(former) if self.former_pages.number() == page_file => &former.store,
            _ => &self.view.store,
        }
    }

    /// Where the pages of [`Reads::store_of`] are read, and memory for an evaluation.
    pub(super) fn source_of(&mut self, page_file: u64) -> (&mut dyn PageSource, &mut RangeHits) {
        let is_former = self.former.is_some() && self.former_pages.number() == page_file;
        let pages = if is_former { &mut self.former_pages } else { &mut self.pages };
        (pages.source(), self.scratch.hits_mut())
    }

    /// Lets go of the view until the next [`Reads::refresh`]; nobody reads meanwhile.
    pub(super) fn rest(&mut self) {
        self.end_former();
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
        self.former_pages.fetch_wanted();
    }

    /// Takes the pages that have come.
    pub(super) fn take_finished(&mut self) {
        self.pages.take_finished();
        self.former_pages.take_finished();
    }

    /// True if pages have come since the last call.
    pub(super) fn take_arrived(&mut self) -> bool {
        self.pages.take_arrived() | self.former_pages.take_arrived()
    }

    /// True if pages wait to be taken.
    pub(super) fn has_finished(&self) -> bool {
        self.pages.has_finished() || self.former_pages.has_finished()
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
