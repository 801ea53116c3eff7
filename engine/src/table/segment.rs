//! One append-only piece of the memory tables, written by one thread and read by others.
//!
//! Only `table` calls it. This file holds unsafe code; its contract:
//!
//! * A [`Writer`] is the only value that writes to its segment, and there is one writer per segment
//!   for as long as the segment holds rows: it is made from a segment that nobody else holds yet,
//!   or that was reset through `&mut`, which proves the same.
//! * Rows and bytes below `published` are never written again. `published` grows by a release
//!   store after the writes, and readers load it with acquire before they read: so every read of
//!   another thread happens after the write it sees.
//! * The writer itself reads unpublished rows through `&self`, which excludes `&mut self` writes.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::limits::{SEGMENT_BYTES, SEGMENT_ROWS_MAX};
use crate::types::{RevKey, Revision};

/// The header of a row.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Row {
    main: i64,
    /// 0 if the key had no value before.
    previous_main: i64,
    sub: u32,
    previous_sub: u32,
    offset: u32,
    len_and_tombstone: u32,
}

const TOMBSTONE: u32 = 1 << 31;

impl Row {
    pub(super) fn new(at: RevKey, previous: Option<RevKey>, tombstone: bool) -> Self {
        let previous = previous.unwrap_or_default();
        Self {
            main: at.main.0,
            previous_main: previous.main.0,
            sub: at.sub,
            previous_sub: previous.sub,
            offset: 0,
            len_and_tombstone: if tombstone { TOMBSTONE } else { 0 },
        }
    }

    pub(crate) fn at(&self) -> RevKey {
        RevKey { main: Revision(self.main), sub: self.sub }
    }

    pub(crate) fn previous(&self) -> Option<RevKey> {
        (self.previous_main != 0)
            .then_some(RevKey { main: Revision(self.previous_main), sub: self.previous_sub })
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.len_and_tombstone & TOMBSTONE != 0
    }

    fn len_bytes(&self) -> usize {
        (self.len_and_tombstone & !TOMBSTONE) as usize
    }
}

/// Memory for up to [`SEGMENT_ROWS_MAX`] rows and their bytes.
#[derive(Debug)]
pub(super) struct Segment {
    rows: NonNull<[Row]>,
    bytes: NonNull<[u8]>,
    published: AtomicUsize,
}

// SAFETY: the memory is owned by the segment and not tied to a thread; concurrent access follows
// the contract of this file.
unsafe impl Send for Segment {}
// SAFETY: as above; shared access only reads below `published`.
unsafe impl Sync for Segment {}

impl Segment {
    /// A segment whose first row may have `len_bytes`.
    pub(super) fn new(len_bytes: usize) -> Self {
        let rows = vec![Row::default(); SEGMENT_ROWS_MAX].into_boxed_slice();
        let bytes = vec![0u8; len_bytes.max(SEGMENT_BYTES)].into_boxed_slice();
        Self {
            rows: NonNull::from(Box::leak(rows)),
            bytes: NonNull::from(Box::leak(bytes)),
            published: AtomicUsize::new(0),
        }
    }

    /// Forgets all rows.
    pub(super) fn reset(&mut self) {
        *self.published.get_mut() = 0;
    }

    /// True if it was made for a row that is larger than a usual segment.
    pub(super) fn is_large(&self) -> bool {
        self.bytes.len() > SEGMENT_BYTES
    }

    /// True if a segment for a first row of `len_bytes` may be this one: large ones are for large
    /// rows.
    pub(super) fn can_hold(&self, len_bytes: usize) -> bool {
        len_bytes <= self.bytes.len() && self.is_large() == (len_bytes > SEGMENT_BYTES)
    }

    /// Rows that may be read.
    pub(super) fn published(&self) -> usize {
        self.published.load(Ordering::Acquire)
    }

    pub(super) fn row(&self, index: usize) -> (Row, &[u8]) {
        assert!(index < self.published(), "row {index} is not published");
        // SAFETY: published rows are never written again.
        unsafe { self.row_unchecked(index) }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.rows.len() * size_of::<Row>()
    }

    /// # Safety
    /// The row was written and nothing writes to it while the result lives.
    unsafe fn row_unchecked(&self, index: usize) -> (Row, &[u8]) {
        assert!(index < self.rows.len(), "row {index} is outside of the segment");
        // SAFETY: in bounds; no concurrent write, by the contract of this function.
        let row = unsafe { *self.rows.cast::<Row>().add(index).as_ptr() };
        let (offset, len) = (row.offset as usize, row.len_bytes());
        assert!(offset + len <= self.bytes.len(), "a row lies within its segment");
        // SAFETY: in bounds, initialised (the memory was zeroed), and no concurrent write to these
        // bytes, which belong to this row alone.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.bytes.cast::<u8>().add(offset).as_ptr(), len)
        };
        (row, bytes)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: both came from `Box::leak` in `new` and are freed here only.
        unsafe {
            drop(Box::from_raw(self.rows.as_ptr()));
            drop(Box::from_raw(self.bytes.as_ptr()));
        }
    }
}

/// The one value that appends to a segment. Not `Clone`.
#[derive(Debug)]
pub(super) struct Writer {
    segment: Arc<Segment>,
    first: RevKey,
    rows: usize,
    bytes: usize,
}

impl Writer {
    /// Takes over an empty segment.
    ///
    /// # Panics
    /// If someone else holds it.
    pub(super) fn new(mut segment: Arc<Segment>, first: RevKey) -> Self {
        let own = Arc::get_mut(&mut segment).expect("a fresh or reset segment has one holder");
        own.reset();
        Self { segment, first, rows: 0, bytes: 0 }
    }

    pub(super) fn has_room(&self, len_bytes: usize) -> bool {
        self.rows < SEGMENT_ROWS_MAX && self.segment.bytes.len() - self.bytes >= len_bytes
    }

    /// Appends a row; [`Writer::has_room`] said yes.
    pub(super) fn push(&mut self, mut row: Row, len_bytes: usize, fill: impl FnOnce(&mut [u8])) {
        assert!(self.has_room(len_bytes), "the caller checks for room");
        row.offset = u32::try_from(self.bytes).expect("segments are smaller than 2^31 bytes");
        let len = u32::try_from(len_bytes).expect("rows are smaller than 2^31 bytes");
        row.len_and_tombstone |= len;
        // SAFETY: in bounds by `has_room`; above everything published, so no reader looks at it,
        // and `&mut self` of the only writer excludes other references to it.
        unsafe {
            let start = self.segment.bytes.cast::<u8>().add(self.bytes).as_ptr();
            fill(std::slice::from_raw_parts_mut(start, len_bytes));
            *self.segment.rows.cast::<Row>().add(self.rows).as_ptr() = row;
        }
        self.rows += 1;
        self.bytes += len_bytes;
    }

    /// Goes back to an earlier [`Writer::len`], not below what is published.
    pub(super) fn truncate(&mut self, rows: usize, bytes: usize) {
        assert!(self.segment.published() <= rows && rows <= self.rows, "published rows stay");
        self.rows = rows;
        self.bytes = bytes;
    }

    pub(super) fn publish(&mut self) {
        self.publish_rows(self.rows);
    }

    /// Publishes the first `rows` rows, no fewer than before.
    pub(super) fn publish_rows(&mut self, rows: usize) {
        assert!(self.segment.published() <= rows && rows <= self.rows, "published rows stay");
        self.segment.published.store(rows, Ordering::Release);
    }

    /// Rows and bytes written.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.rows, self.bytes)
    }

    pub(super) fn first(&self) -> RevKey {
        self.first
    }

    pub(super) fn row(&self, index: usize) -> (Row, &[u8]) {
        assert!(index < self.rows, "row {index} is not written");
        // SAFETY: written, and `&self` keeps the only writer from writing.
        unsafe { self.segment.row_unchecked(index) }
    }

    pub(super) fn segment(&self) -> Arc<Segment> {
        self.segment.clone()
    }

    pub(super) fn into_segment(self) -> Arc<Segment> {
        self.segment
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.segment.memory_bytes()
    }
}
