//! The memory tables: rows that are not in the page file yet, and the recent event log.
//!
//! The store owns [`Tables`] and appends; views hold [`TablesView`], the same segments to read
//! from. Rows ascend by revision. A row becomes readable for others when it is published and never
//! changes afterwards. Nothing here may look into a row beyond its header.

mod segment;

use std::sync::Arc;

pub(crate) use segment::Row;
use segment::{Segment, Writer};

use crate::limits::{
    LARGE_SEGMENTS_IDLE_CHECKPOINTS, LARGE_SEGMENTS_SPARE_MAX, SEGMENTS_SPARE_MAX,
    SPARE_SEGMENT_BYTES_MAX,
};
use crate::types::{RevKey, Revision};

/// The owner's side. Invariant: `writers` ascend by their first row, and all but the last
/// `writers.len() - published` of them are published to their end.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    writers: Vec<Writer>,
    shared: TablesView,
    published: usize,
    /// Segments dropped so far, so that marks stay right while older segments go.
    dropped: usize,
    /// Segments that a checkpoint under way writes.
    frozen: usize,
    /// The next row opens a new segment: those before it are frozen.
    sealed: bool,
    spare: Vec<Arc<Segment>>,
    /// Large spare segments that nobody took during the last `idle_checkpoints`.
    large_idle: usize,
    idle_checkpoints: u32,
}

/// The readers' side; a clone is one reference count.
#[derive(Debug, Clone)]
pub(crate) struct TablesView {
    slots: Arc<[Slot]>,
}

#[derive(Debug, Clone)]
struct Slot {
    first: RevKey,
    segment: Arc<Segment>,
}

/// A position to roll back to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    /// Segments made so far, dropped ones included.
    made: usize,
    rows: usize,
    bytes: usize,
    sealed: bool,
}

impl Tables {
    /// Appends a row of `len_bytes` that `fill` writes. `previous` is the revision of the same key
    /// before it, if that was a value.
    pub(crate) fn push(
        &mut self,
        at: RevKey,
        previous: Option<RevKey>,
        tombstone: bool,
        len_bytes: usize,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let row = Row::new(at, previous, tombstone);
        let fits = self.writers.last().is_some_and(|last| last.has_room(len_bytes));
        if self.sealed || !fits {
            self.open_segment(at, len_bytes);
        }
        let last = self.writers.last_mut().expect("a segment was opened above if there was none");
        last.push(row, len_bytes, fill);
    }

    pub(crate) fn mark(&self) -> Mark {
        let (rows, bytes) = self.writers.last().map_or((0, 0), Writer::len);
        Mark { made: self.dropped + self.writers.len(), rows, bytes, sealed: self.sealed }
    }

    /// Takes back all rows since `mark`, none of which is published.
    pub(crate) fn roll_back(&mut self, mark: Mark) {
        let kept = mark.made.saturating_sub(self.dropped);
        if self.writers.len() > kept {
            self.writers.truncate(kept);
            self.share();
        }
        if let Some(last) = self.writers.last_mut() {
            last.truncate(mark.rows, mark.bytes);
        }
        self.sealed = mark.sealed;
    }

    /// Makes the rows before `mark` readable through [`Tables::view`], and none behind it.
    pub(crate) fn publish_up_to(&mut self, mark: Mark) {
        let made = mark.made.saturating_sub(self.dropped);
        for index in self.published.saturating_sub(1)..made {
            if index + 1 < made {
                self.writers[index].publish();
            } else {
                self.writers[index].publish_rows(mark.rows);
            }
        }
        self.published = made;
    }

    /// Makes all rows so far readable through [`Tables::view`].
    pub(crate) fn publish(&mut self) {
        for writer in &mut self.writers[self.published.saturating_sub(1)..] {
            writer.publish();
        }
        self.published = self.writers.len();
        debug_assert!(self.writers.is_sorted_by(|a, b| a.first() < b.first()));
    }

    pub(crate) fn view(&self) -> &TablesView {
        &self.shared
    }

    /// Ends the segments so far at this entry boundary; returns how many there are.
    pub(crate) fn freeze(&mut self) -> usize {
        self.sealed = true;
        self.frozen = self.writers.len();
        self.frozen
    }

    /// Drops the `count` oldest segments, which are in the page file now.
    pub(crate) fn drop_oldest(&mut self, count: usize) {
        self.published -= count.min(self.published);
        self.dropped += count;
        self.frozen -= count.min(self.frozen);
        self.free_idle();
        let mut large = self.large_spare();
        let mut usual = self.spare.len() - large;
        for writer in self.writers.drain(..count) {
            let segment = writer.into_segment();
            let (kept, most) = match segment.is_large() {
                true => (&mut large, LARGE_SEGMENTS_SPARE_MAX),
                false => (&mut usual, SEGMENTS_SPARE_MAX),
            };
            if *kept < most && segment.memory_bytes() <= SPARE_SEGMENT_BYTES_MAX {
                *kept += 1;
                self.spare.push(segment);
            }
        }
        self.share();
    }

    /// Called once a checkpoint.
    fn free_idle(&mut self) {
        self.idle_checkpoints += 1;
        if self.idle_checkpoints < LARGE_SEGMENTS_IDLE_CHECKPOINTS {
            return;
        }
        self.idle_checkpoints = 0;
        // One at most: to give back megabytes takes a while too.
        let oldest = self.spare.iter().position(|segment| segment.is_large());
        if let Some(index) = oldest.filter(|_| self.large_idle > 0) {
            self.spare.remove(index);
        }
        self.large_idle = self.large_spare();
    }

    fn large_spare(&self) -> usize {
        self.spare.iter().filter(|segment| segment.is_large()).count()
    }

    /// The row at exactly `at`, unpublished ones included.
    pub(crate) fn find(&self, at: RevKey) -> Option<(Row, &[u8])> {
        let index = self.writers.partition_point(|writer| writer.first() <= at).checked_sub(1)?;
        let writer = &self.writers[index];
        find_row(at, writer.len().0, |row| writer.row(row)).map(|row| writer.row(row))
    }

    /// The rows from `mark` on, ascending.
    pub(crate) fn rows_since(
        &self,
        mark: Mark,
    ) -> impl DoubleEndedIterator<Item = (Row, &[u8])> + use<'_> {
        let made = mark.made.saturating_sub(self.dropped);
        let writers = self.writers.iter().enumerate().skip(made.saturating_sub(1));
        writers.flat_map(move |(index, writer)| {
            let start = if index + 1 == made { mark.rows } else { 0 };
            (start..writer.len().0).map(|row| writer.row(row))
        })
    }

    /// Bytes allocated for segments.
    pub(crate) fn memory_bytes(&self) -> usize {
        let spare: usize = self.spare.iter().map(|segment| segment.memory_bytes()).sum();
        spare + self.writers.iter().map(Writer::memory_bytes).sum::<usize>()
    }

    /// Bytes of all rows.
    pub(crate) fn row_bytes(&self) -> usize {
        self.writers.iter().map(|writer| writer.len().1).sum()
    }

    /// Bytes of rows that no freeze has covered.
    pub(crate) fn open_bytes(&self) -> usize {
        self.writers[self.frozen..].iter().map(|writer| writer.len().1).sum()
    }

    fn open_segment(&mut self, first: RevKey, len_bytes: usize) {
        let mut spare = None;
        for index in 0..self.spare.len() {
            // Free for reuse once no view reads it any more.
            if let Some(segment) = Arc::get_mut(&mut self.spare[index])
                && segment.can_hold(len_bytes)
            {
                segment.reset();
                spare = Some(self.spare.swap_remove(index));
                break;
            }
        }
        self.large_idle = self.large_idle.min(self.large_spare());
        let segment = spare.unwrap_or_else(|| Arc::new(Segment::new(len_bytes)));
        assert!(
            self.writers.last().is_none_or(|last| last.first() < first),
            "segments ascend by their first row"
        );
        self.writers.push(Writer::new(segment, first));
        self.sealed = false;
        self.share();
    }

    fn share(&mut self) {
        let slot = |writer: &Writer| Slot { first: writer.first(), segment: writer.segment() };
        self.shared = TablesView { slots: self.writers.iter().map(slot).collect() };
    }
}

impl TablesView {
    /// The published row at exactly `at`.
    pub(crate) fn find(&self, at: RevKey) -> Option<(Row, &[u8])> {
        let index = self.slots.partition_point(|slot| slot.first <= at).checked_sub(1)?;
        let segment = &self.slots[index].segment;
        find_row(at, segment.published(), |row| segment.row(row)).map(|row| segment.row(row))
    }

    /// The first published row at or above `at`.
    pub(crate) fn first_from(&self, at: RevKey) -> Option<(Row, &[u8])> {
        let index = self.slots.partition_point(|slot| slot.first <= at).saturating_sub(1);
        for slot in &self.slots[index..] {
            let count = slot.segment.published();
            let row = lower_bound(at, count, |row| slot.segment.row(row));
            if row < count {
                return Some(slot.segment.row(row));
            }
        }
        None
    }

    /// Revision of the oldest row; rows below it, if any, are in the page file.
    pub(crate) fn first_revision(&self) -> Option<Revision> {
        self.slots.first().map(|slot| slot.first.main)
    }

    /// All published rows of the `count` oldest segments.
    pub(crate) fn rows(&self, count: usize) -> impl Iterator<Item = (Row, &[u8])> {
        self.slots[..count]
            .iter()
            .flat_map(|slot| (0..slot.segment.published()).map(|row| slot.segment.row(row)))
    }
}

impl Default for TablesView {
    fn default() -> Self {
        Self { slots: Arc::from([]) }
    }
}

fn find_row<'a>(at: RevKey, count: usize, row: impl Fn(usize) -> (Row, &'a [u8])) -> Option<usize> {
    let index = lower_bound(at, count, &row);
    (index < count && row(index).0.at() == at).then_some(index)
}

fn lower_bound<'a>(at: RevKey, count: usize, row: impl Fn(usize) -> (Row, &'a [u8])) -> usize {
    if count == 0 {
        return 0;
    }
    // Revisions have no gaps, so the row lies at least this far in, and exactly there if no
    // revision before it has several changes.
    let guess = usize::try_from(at.main.0 - row(0).0.at().main.0).unwrap_or(0).min(count);
    let (mut low, mut high) = (guess, count);
    if guess < count && row(guess).0.at() >= at {
        (low, high) =
            if guess == 0 || row(guess - 1).0.at() < at { (guess, guess) } else { (0, guess) };
    }
    while low < high {
        let middle = low.midpoint(high);
        if row(middle).0.at() < at {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(tables: &mut Tables, main: i64, sub: u32, len_bytes: usize) {
        let at = RevKey { main: Revision(main), sub };
        tables.push(at, None, false, len_bytes, |bytes| bytes.fill(main.to_le_bytes()[0]));
    }

    #[test]
    fn rows_are_found_by_revision_and_unpublished_ones_by_their_owner_only() {
        let mut tables = Tables::default();
        for main in 2..5_000 {
            push(&mut tables, main, 0, 100);
            if main % 3 == 0 {
                push(&mut tables, main, 1, 7);
            }
        }
        assert!(tables.view().find(RevKey::first(Revision(2))).is_none());
        tables.publish();
        push(&mut tables, 5_000, 0, 1);
        assert!(tables.view().find(RevKey::first(Revision(5_000))).is_none());
        assert!(tables.find(RevKey::first(Revision(5_000))).is_some());
        for main in 2..5_000 {
            let (row, bytes) = tables.view().find(RevKey::first(Revision(main))).unwrap();
            assert_eq!((row.at().main.0, bytes), (main, &[main.to_le_bytes()[0]; 100][..]));
            let second = RevKey { main: Revision(main), sub: 1 };
            assert_eq!(tables.view().find(second).is_some(), main % 3 == 0);
            let Some((next, _)) = tables.view().first_from(second) else { continue };
            assert!(next.at() >= second);
        }
    }

    #[test]
    fn a_rollback_takes_back_rows_and_the_segments_they_opened() {
        let mut tables = Tables::default();
        push(&mut tables, 2, 0, 10);
        let mark = tables.mark();
        for main in 3..3_000 {
            push(&mut tables, main, 0, 300);
        }
        assert_eq!(tables.rows_since(mark).count(), 2_997);
        tables.roll_back(mark);
        assert!(tables.find(RevKey::first(Revision(3))).is_none());
        push(&mut tables, 3, 0, 300);
        tables.publish();
        assert_eq!(tables.view().rows(1).count(), 2);
    }

    #[test]
    fn a_mark_stays_right_while_a_checkpoint_ends_and_what_is_before_it_is_published() {
        let mut tables = Tables::default();
        push(&mut tables, 2, 0, 10);
        let frozen = tables.freeze();
        push(&mut tables, 3, 0, 10);
        push(&mut tables, 4, 0, 10);
        let mark = tables.mark();
        for sub in 0..3_000 {
            push(&mut tables, 5, sub, 300);
        }
        tables.publish_up_to(mark);
        tables.drop_oldest(frozen);
        tables.publish_up_to(mark);
        let at = |main, sub| RevKey { main: Revision(main), sub };
        assert!(tables.view().find(at(4, 0)).is_some());
        assert!(tables.view().find(at(5, 0)).is_none() && tables.find(at(5, 2_999)).is_some());
        assert_eq!(tables.rows_since(mark).count(), 3_000);
        tables.roll_back(mark);
        assert!(tables.find(at(4, 0)).is_some() && tables.find(at(5, 0)).is_none());
        push(&mut tables, 5, 0, 7);
        tables.publish();
        assert_eq!(tables.view().find(at(5, 0)).unwrap().1.len(), 7);
    }

    #[test]
    fn dropped_segments_stay_readable_for_older_views_and_are_reused_after() {
        let mut tables = Tables::default();
        push(&mut tables, 2, 0, 10);
        tables.publish();
        let old = tables.view().clone();
        let frozen = tables.freeze();
        push(&mut tables, 3, 0, 10);
        tables.publish();
        tables.drop_oldest(frozen);
        assert!(tables.view().find(RevKey::first(Revision(2))).is_none());
        assert_eq!(tables.view().first_revision(), Some(Revision(3)));
        tables.freeze();
        push(&mut tables, 4, 0, 10);
        assert_eq!(old.find(RevKey::first(Revision(2))).unwrap().1, [2; 10]);
        let bytes = tables.memory_bytes();
        drop(old);
        tables.freeze();
        push(&mut tables, 5, 0, 10);
        assert_eq!(tables.memory_bytes(), bytes, "the spare segment was taken");
    }

    #[test]
    fn segments_of_large_rows_are_reused_for_such_and_take_the_place_of_no_other() {
        let mut tables = Tables::default();
        let mut most = 0;
        for main in 2..400 {
            let len_bytes = if main % 2 == 0 { 1_400_000 } else { 100_000 };
            push(&mut tables, 2 * main, 0, len_bytes);
            tables.publish();
            let at = RevKey::first(Revision(2 * main));
            let found = tables.view().find(at).unwrap().1;
            let byte = (2 * main).to_le_bytes()[0];
            assert!(found.len() == len_bytes && found.iter().all(|found| *found == byte));
            let frozen = tables.freeze();
            push(&mut tables, 2 * main + 1, 0, 1);
            tables.publish();
            tables.drop_oldest(frozen);
            if main == 50 {
                most = tables.memory_bytes();
            }
            assert!(main < 50 || tables.memory_bytes() <= most, "revision {main}");
        }
        let large = tables.large_spare();
        assert!(large > 0 && large < tables.spare.len(), "both kinds are kept");
        push(&mut tables, 5_000, 0, 3_000_000);
        let frozen = tables.freeze();
        push(&mut tables, 5_001, 0, 1);
        tables.publish();
        tables.drop_oldest(frozen);
        assert!(tables.memory_bytes() <= most, "one that is very large is given back");
        for main in 0..(large as i64 + 2) * i64::from(LARGE_SEGMENTS_IDLE_CHECKPOINTS) {
            let frozen = tables.freeze();
            push(&mut tables, 5_002 + main, 0, 1);
            tables.publish();
            tables.drop_oldest(frozen);
        }
        assert_eq!(tables.large_spare(), 0, "what nobody takes is given back, one at a time");
    }

    #[test]
    fn a_checkpoint_of_large_rows_leaves_room_for_the_next() {
        let mut tables = Tables::default();
        let mut most = 0;
        for main in 2..400 {
            push(&mut tables, main, 0, 1_400_000);
            tables.publish();
            if main % 20 == 0 {
                // The rows since the last one are written while the next ones come.
                tables.drop_oldest(tables.frozen);
                tables.freeze();
            }
            if main == 100 {
                most = tables.memory_bytes();
            }
            assert!(main < 100 || tables.memory_bytes() <= most, "revision {main}");
        }
    }
}
