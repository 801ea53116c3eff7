//! The keys of a long range: measured slice by slice, then written piece by piece.
//!
//! A part of an [`Answer`](super::answer::Answer). Between slices nothing is held but the next key
//! (and, for a sorted answer, references to its rows), so a range of any size costs little however
//! slowly it is read. What is read was pinned by the answer.

use bytes::Bytes;
use etcore_engine::page::PageSource;
use etcore_engine::pins::RevisionPin;
use etcore_engine::view::{Hit, KeyRange, RangeHits, ReadPoint, SliceBounds, View};
use etcore_proto::pb::etcdserverpb as pb;

use super::range;
use super::reader::{Pinned, Reader, Stop};
use super::select::{self, Row, Selection};
use crate::limits;
use crate::wire::{field_len, int_len, write_int64, write_len};

/// The form in which each key is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Values,
    KeysOnly,
    /// Nothing: the keys are only counted.
    Count,
}

/// What follows the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    None,
    /// `more` and `count` of a RangeResponse.
    Counted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Looking at keys up to the limit.
    Walk,
    /// Counting those behind it.
    Count,
    /// Adding up the rows that sorting has brought to the front.
    Cut,
    /// Measured: to be written.
    Write,
}

/// What looking at the keys needs: the state, its pages, and memory.
pub struct Look<'a> {
    /// The newest view.
    pub view: &'a View,
    /// The answer's pin.
    pub pin: &'a RevisionPin,
    /// Where values that are not in memory come from.
    pub pages: &'a mut dyn PageSource,
    /// Memory used again.
    pub hits: &'a mut RangeHits,
}

/// See the module text.
pub struct Keys {
    key: Bytes,
    end: Bytes,
    point: ReadPoint,
    /// The field of the message that they are in.
    field: u32,
    /// Keys looked at in key order, 0 for all.
    limit: usize,
    form: Form,
    tail: Tail,
    selection: Option<Box<Selection>>,
    stage: Stage,
    /// Where the walk goes on; `None` before it begins.
    next: Option<Vec<u8>>,
    /// Keys that will be written.
    found: u64,
    /// All of them, whatever the limit.
    count: u64,
    more: bool,
    /// Bytes of their elements.
    bytes: u64,
    /// Keys still to be written, and what was written of the next one's element, or of the tail.
    left: u64,
    part_bytes: usize,
}

impl Keys {
    /// What a RangeResponse holds behind its header.
    pub fn of_range(request: &pb::RangeRequest, point: ReadPoint) -> Self {
        let form = match (request.count_only, request.keys_only) {
            (true, _) => Form::Count,
            (false, true) => Form::KeysOnly,
            (false, false) => Form::Values,
        };
        let selection = (form != Form::Count && range::is_custom(request))
            .then(|| Box::new(Selection::new(request)));
        let limit = range::index_limit(request);
        let keys = Self::new(request.key.clone(), request.range_end.clone(), point);
        let stage = if form == Form::Count { Stage::Count } else { Stage::Walk };
        Self { limit, form, selection, stage, ..keys }
    }

    /// The KeyValues of a range as elements of the field `field`, and nothing else.
    pub fn previous_values(key: Bytes, end: Bytes, point: ReadPoint, field: u32) -> Self {
        Self { field, tail: Tail::None, ..Self::new(key, end, point) }
    }

    /// Some keys of a range, from `from` on, and nothing else: a part of a stream.
    pub fn part(request: &pb::RangeRequest, from: &[u8], point: ReadPoint, keys: usize) -> Self {
        let form = if request.keys_only { Form::KeysOnly } else { Form::Values };
        let part = Self::new(Bytes::copy_from_slice(from), request.range_end.clone(), point);
        Self { form, limit: keys, tail: Tail::None, ..part }
    }

    fn new(key: Bytes, end: Bytes, point: ReadPoint) -> Self {
        Self {
            key,
            end,
            point,
            field: 2,
            limit: 0,
            form: Form::Values,
            tail: Tail::Counted,
            selection: None,
            stage: Stage::Walk,
            next: None,
            found: 0,
            count: 0,
            more: false,
            bytes: 0,
            left: 0,
            part_bytes: 0,
        }
    }

    /// What it reads.
    pub fn point(&self) -> ReadPoint {
        self.point
    }

    /// All keys of the range, once it is measured.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The key behind the last one written.
    pub fn into_next(self) -> Option<Vec<u8>> {
        self.next
    }

    /// Bytes held to sort.
    pub fn memory_bytes(&self) -> usize {
        self.selection.as_ref().map_or(0, |selection| selection.memory_bytes())
    }

    /// Bytes of everything, once it is measured.
    pub fn len_bytes(&self) -> u64 {
        self.bytes + self.tail_len() as u64
    }

    /// Looks at one slice; true once everything is measured.
    ///
    /// # Errors
    /// See [`Stop`]; after a page has come, the same call goes on.
    pub fn measure(&mut self, look: &mut Look<'_>) -> Result<bool, Stop> {
        match self.stage {
            Stage::Walk => self.walk(look)?,
            Stage::Count => self.count_on(look)?,
            Stage::Cut => self.cut(look)?,
            Stage::Write => {}
        }
        if self.stage == Stage::Write {
            self.begin_writing();
            return Ok(true);
        }
        Ok(false)
    }

    fn range(&self) -> KeyRange<'_> {
        KeyRange { key: self.next.as_deref().unwrap_or(&self.key), end: &self.end }
    }

    fn look_at(&self, look: &mut Look<'_>, keys: usize) -> Result<(), Stop> {
        let bounds = SliceBounds { keys, leaves: limits::RANGE_CHUNK_LEAVES };
        Ok(look.view.slice(self.range(), (self.point, look.pin), bounds, look.hits)?)
    }

    /// Keys that one slice may find.
    fn slice_keys(&self, done: u64, most: usize) -> usize {
        let done = usize::try_from(done).unwrap_or(usize::MAX);
        if self.limit == 0 { most } else { most.min(self.limit - done) }
    }

    fn walk(&mut self, look: &mut Look<'_>) -> Result<(), Stop> {
        let wanted = self.slice_keys(self.count, limits::RANGE_CHUNK_KEYS);
        self.look_at(look, wanted)?;
        let mut next = look.hits.next().map(<[u8]>::to_vec);
        let mut taken = look.hits.hits();
        if let Some(selection) = &mut self.selection {
            taken = select::fitting(selection, look.hits);
            if let Some(hit) = look.hits.hits().get(taken.len()) {
                next = Some(look.hits.key(hit).to_vec());
            }
            let reader = Pinned {
                view: look.view,
                revision: self.point.revision(),
                compact_revision: look.view.compact_revision,
                pin: look.pin,
            };
            selection.add(&reader, (look.hits, taken), look.pages)?;
        } else {
            let sum: usize = taken.iter().map(|hit| self.element_len(look.hits, hit)).sum();
            self.bytes += sum as u64;
            self.found += taken.len() as u64;
        }
        self.count += taken.len() as u64;
        self.next = next;
        let at_limit = self.limit != 0 && self.count == self.limit as u64;
        self.stage = match (&self.next, at_limit, self.tail) {
            (Some(_), false, _) => Stage::Walk,
            (Some(_), true, Tail::Counted) => Stage::Count,
            _ => self.counted(),
        };
        Ok(())
    }

    fn count_on(&mut self, look: &mut Look<'_>) -> Result<(), Stop> {
        let leaves = limits::RANGE_CHUNK_LEAVES;
        let slice = look.view.count_slice(self.range(), (self.point, look.pin), leaves)?;
        self.count += slice.0;
        self.next = slice.1;
        if self.next.is_none() {
            self.stage = self.counted();
        }
        Ok(())
    }

    /// All keys are counted.
    fn counted(&mut self) -> Stage {
        let Some(selection) = &mut self.selection else {
            // A mere count is cut by no limit.
            self.more =
                self.form != Form::Count && self.limit != 0 && self.count > self.limit as u64;
            return Stage::Write;
        };
        selection.begin_merge();
        match selection.chosen_bytes() {
            Some(bytes) if selection.limit() == 0 => {
                (self.found, self.bytes) = (selection.chosen(), bytes);
                Stage::Write
            }
            _ => Stage::Cut,
        }
    }

    /// Adds up the rows in the order in which they will be sent, up to the limit.
    fn cut(&mut self, look: &mut Look<'_>) -> Result<(), Stop> {
        let Some(mut selection) = self.selection.take() else { return Ok(()) };
        let cut = self.cut_some(&mut selection, look);
        if matches!(cut, Ok(true)) {
            self.more = self.found < selection.chosen();
            selection.begin_merge();
            self.stage = Stage::Write;
        }
        self.selection = Some(selection);
        cut.map(|_| ())
    }

    fn cut_some(&mut self, selection: &mut Selection, look: &mut Look<'_>) -> Result<bool, Stop> {
        let limit = selection.limit();
        for _ in 0..limits::RANGE_CHUNK_KEYS {
            let at_limit = limit != 0 && self.found == limit as u64;
            if at_limit || !selection.load(look.view, look.pages)? {
                return Ok(true);
            }
            let Some(row) = selection.front() else { return Ok(true) };
            self.bytes += self.row_len(selection, row, look)? as u64;
            self.found += 1;
            selection.advance();
        }
        Ok(false)
    }

    fn begin_writing(&mut self) {
        self.left = self.found;
        self.part_bytes = 0;
        self.next = None;
    }

    /// Appends up to `room` bytes; true if the end is among them. Stops early at a page that is not
    /// there, if anything was appended.
    ///
    /// # Errors
    /// See [`Stop`]; after a page has come, the same call goes on.
    pub fn write(
        &mut self,
        look: &mut Look<'_>,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, Stop> {
        debug_assert_eq!(self.stage, Stage::Write, "it is measured");
        let end = out.len() + room;
        if self.left > 0 {
            let before = out.len();
            let written = match self.selection.take() {
                Some(mut selection) => {
                    let written = self.write_rows(&mut selection, look, end, out);
                    self.selection = Some(selection);
                    written
                }
                None => self.write_hits(look, end, out),
            };
            match written {
                Err(Stop::NeedsPage(_)) if out.len() > before => {}
                written => written?,
            }
        }
        Ok(self.left == 0 && self.write_tail(end, out))
    }

    fn write_hits(
        &mut self,
        look: &mut Look<'_>,
        end: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        self.look_at(look, left.min(limits::RANGE_PIECE_KEYS))?;
        for hit in look.hits.hits() {
            let whole = self.element_len(look.hits, hit);
            let from = self.part_bytes;
            let to = whole.min(from + (end - out.len()));
            match self.form {
                Form::Values if (from, to) == (0, whole) => {
                    write_value(self.field, look.view.ready_value(hit.modified, look.pages)?, out);
                }
                Form::Values => {
                    let value = look.view.ready_value(hit.modified, look.pages)?;
                    write_part(self.field, value, (from, to), out);
                }
                Form::KeysOnly | Form::Count => {
                    let mut element = Vec::new();
                    range::write_key_only(look.hits, hit, &mut element);
                    out.extend_from_slice(&element[from..to]);
                }
            }
            if to < whole {
                self.part_bytes = to;
                self.next = Some(look.hits.key(hit).to_vec());
                return Ok(());
            }
            self.part_bytes = 0;
            self.left -= 1;
            let mut next = look.hits.key(hit).to_vec();
            next.push(0);
            self.next = Some(next);
            if out.len() == end {
                return Ok(());
            }
        }
        // The slice may have ended in front of keys that have been deleted since.
        if self.left > 0
            && let Some(next) = look.hits.next()
        {
            self.next = Some(next.to_vec());
        }
        Ok(())
    }

    fn write_rows(
        &mut self,
        selection: &mut Selection,
        look: &mut Look<'_>,
        end: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), Stop> {
        for _ in 0..limits::RANGE_PIECE_KEYS {
            if self.left == 0 || !selection.load(look.view, look.pages)? {
                return Ok(());
            }
            let Some(row) = selection.front() else { return Ok(()) };
            let raw = look.view.ready_value(row.at(), look.pages)?;
            let stripped;
            let element = match self.form {
                Form::Values => raw,
                Form::KeysOnly | Form::Count => {
                    stripped = key_only(raw, selection.is_by_value())?;
                    &stripped
                }
            };
            let whole = field_len(self.field, element.len());
            let from = self.part_bytes;
            let to = whole.min(from + (end - out.len()));
            write_part(self.field, element, (from, to), out);
            if to < whole {
                self.part_bytes = to;
                return Ok(());
            }
            self.part_bytes = 0;
            self.left -= 1;
            selection.advance();
            if out.len() == end {
                return Ok(());
            }
        }
        Ok(())
    }

    fn write_tail(&mut self, end: usize, out: &mut Vec<u8>) -> bool {
        let mut tail = Vec::new();
        if self.tail == Tail::Counted {
            range::write_tail(self.more, self.count, &mut tail);
        }
        let from = self.part_bytes;
        let to = tail.len().min(from + (end - out.len()));
        out.extend_from_slice(&tail[from..to]);
        self.part_bytes = to;
        to == tail.len()
    }

    fn tail_len(&self) -> usize {
        match self.tail {
            Tail::None => 0,
            Tail::Counted => range::tail_len(self.more, self.count),
        }
    }

    fn element_len(&self, hits: &RangeHits, hit: &Hit) -> usize {
        let len_bytes = match self.form {
            Form::Values => hit.len_bytes as usize,
            Form::KeysOnly | Form::Count => range::key_only_len(hits, hit),
        };
        field_len(self.field, len_bytes)
    }

    fn row_len(&self, selection: &Selection, row: Row, look: &mut Look<'_>) -> Result<usize, Stop> {
        let len_bytes = if selection.knows_lengths() {
            row.len_bytes as usize
        } else {
            let raw = look.view.ready_value(row.at(), look.pages)?;
            key_only(raw, selection.is_by_value())?.len()
        };
        Ok(field_len(self.field, len_bytes))
    }
}

/// A stored KeyValue without its value, and without its lease unless it was read to be sorted.
fn key_only(raw: &[u8], keep_lease: bool) -> Result<Vec<u8>, Stop> {
    let row = range::parse(raw)?;
    let mut out = Vec::with_capacity(field_len(1, row.key.len()) + 3 * 11 + int_len(6, u64::MAX));
    write_len(&mut out, 1, row.key.len());
    out.extend_from_slice(row.key);
    write_int64(&mut out, 2, row.create_revision.0);
    write_int64(&mut out, 3, row.mod_revision.0);
    write_int64(&mut out, 4, row.version);
    if keep_lease {
        write_int64(&mut out, 6, row.lease.0);
    }
    Ok(out)
}

fn write_value(field: u32, value: &[u8], out: &mut Vec<u8>) {
    write_len(out, field, value.len());
    out.extend_from_slice(value);
}

/// Appends the bytes `from` up to `to` of what [`write_value`] would.
fn write_part(field: u32, value: &[u8], (from, to): (usize, usize), out: &mut Vec<u8>) {
    let mut head = Vec::new();
    write_len(&mut head, field, value.len());
    let behind = |at: usize| at.saturating_sub(head.len());
    out.extend_from_slice(&head[from.min(head.len())..to.min(head.len())]);
    out.extend_from_slice(&value[behind(from)..behind(to)]);
}
