//! Answers that may be of any size: measured first, then pulled piece by piece.
//!
//! The front's evaluations and the replica's apply put one together with a [`Draft`]: bytes that
//! are known, messages around them, and ranges of keys that are still to be read. A short one
//! becomes a message at once. A long one names what it reads by a pinned revision; the front
//! measures it (a gRPC message needs its length before its first byte) and writes it as the
//! client's window opens. Nothing here is larger than what the caller has room for.

use etcore_engine::page::PageSource;
use etcore_engine::pins::{PinsExhausted, RevisionPin, RevisionPins};
use etcore_engine::types::Revision;
use etcore_engine::view::{RangeHits, View};
use etcore_engine::wire::varint_len;

use super::keys::{Keys, Look};
use super::pieces::Pieces;
use super::reader::Stop;
use crate::limits;
use crate::wire::write_len;

/// A part of an answer.
enum Item {
    /// So many of the next bytes in the draft's buffer.
    Bytes(usize),
    /// A field that is a message begins. Its length, once that is known.
    Open { field: u32, len_bytes: u64 },
    /// It ends.
    Close,
    /// Keys that are read when they are sent.
    Keys(Box<Keys>),
    /// Bytes in pieces, given back as they are sent.
    Pieces(Pieces),
}

/// An answer being put together.
#[derive(Default)]
pub struct Draft {
    items: Vec<Item>,
    bytes: Vec<u8>,
    /// Bytes that are in an item.
    sealed: usize,
    /// The oldest revision that its keys need.
    oldest: Option<Revision>,
}

impl Draft {
    /// Bytes that come next are appended here.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What follows, up to [`Draft::close`], is a message in `field`.
    pub fn open(&mut self, field: u32) {
        self.seal();
        self.items.push(Item::Open { field, len_bytes: 0 });
    }

    /// Ends the message opened last.
    pub fn close(&mut self) {
        self.seal();
        self.items.push(Item::Close);
    }

    /// Keys that are read later.
    pub fn keys(&mut self, keys: Keys) {
        self.seal();
        let revision = keys.point().revision();
        self.oldest = Some(self.oldest.map_or(revision, |oldest| oldest.min(revision)));
        self.items.push(Item::Keys(Box::new(keys)));
    }

    /// Fields that were encoded elsewhere.
    pub fn pieces(&mut self, pieces: Pieces) {
        if pieces.len_bytes() <= limits::RANGE_CHUNK_BYTES as u64 {
            pieces.iter().for_each(|piece| self.bytes.extend_from_slice(piece));
        } else {
            self.seal();
            self.items.push(Item::Pieces(pieces));
        }
    }

    /// True if it is a message already.
    pub fn is_short(&self) -> bool {
        !self.items.iter().any(|item| matches!(item, Item::Keys(_) | Item::Pieces(_)))
    }

    /// The oldest revision that must be pinned for it.
    pub fn oldest(&self) -> Option<Revision> {
        self.oldest
    }

    /// Appends a short one, behind `head`, to `out`.
    ///
    /// # Panics
    /// If it is not short.
    pub fn write_short(mut self, head: &[u8], out: &mut Vec<u8>) {
        assert!(self.is_short(), "nothing is still to be read");
        self.seal();
        let total = set_lengths(&mut self.items, &[]);
        out.reserve(head.len() + usize::try_from(total).unwrap_or(0));
        out.extend_from_slice(head);
        let mut from = 0;
        for item in &self.items {
            match item {
                Item::Bytes(length) => {
                    out.extend_from_slice(&self.bytes[from..from + length]);
                    from += length;
                }
                Item::Open { field, len_bytes } => write_open(*field, *len_bytes, out),
                Item::Close | Item::Keys(_) | Item::Pieces(_) => {}
            }
        }
    }

    /// A long one that begins with `head`. `pins` keeps what it reads from now on.
    ///
    /// # Errors
    /// When too many revisions are pinned.
    pub fn into_answer(
        mut self,
        head: &[u8],
        pins: &RevisionPins,
    ) -> Result<Answer, PinsExhausted> {
        self.seal();
        let pin = pins.pin(self.oldest.unwrap_or(Revision(0)))?;
        Ok(Answer::new(self, head.to_vec(), Some(pin)))
    }

    /// Makes the answer under a pin that was taken before.
    pub fn pinned_by(mut self, head: &[u8], pin: RevisionPin) -> Answer {
        self.seal();
        Answer::new(self, head.to_vec(), Some(pin))
    }

    /// One that reads no keys.
    ///
    /// # Panics
    /// If it does.
    pub fn without_keys(mut self, head: &[u8]) -> Answer {
        assert!(self.oldest.is_none(), "keys are read under a pin");
        self.seal();
        Answer::new(self, head.to_vec(), None)
    }

    fn seal(&mut self) {
        let added = self.bytes.len() - self.sealed;
        if added > 0 {
            self.sealed += added;
            self.items.push(Item::Bytes(added));
        }
    }
}

/// See the module text.
pub struct Answer {
    head: Vec<u8>,
    items: Vec<Item>,
    bytes: Vec<u8>,
    /// There is one if there are keys.
    pin: Option<RevisionPin>,
    stage: Stage,
}

#[derive(Clone, Copy)]
enum Stage {
    /// Measuring the keys of the item.
    Measure { item: usize },
    /// Writing. `done` bytes of the item are written, and `from` is where its bytes begin.
    Write { item: usize, done: usize, from: usize },
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answer of {} items", self.items.len())
    }
}

impl Answer {
    fn new(draft: Draft, head: Vec<u8>, pin: Option<RevisionPin>) -> Self {
        let Draft { items, bytes, .. } = draft;
        Self { head, items, bytes, pin, stage: Stage::Measure { item: 0 } }
    }

    /// Bytes held to sort, and in pieces.
    pub fn memory_bytes(&self) -> usize {
        let of = |item: &Item| match item {
            Item::Keys(keys) => keys.memory_bytes(),
            Item::Pieces(pieces) => usize::try_from(pieces.len_bytes()).unwrap_or(usize::MAX),
            _ => 0,
        };
        self.items.iter().map(of).sum()
    }

    /// Looks at one slice of keys; the length of the whole answer once it is known.
    ///
    /// # Errors
    /// See [`Stop`]; after a page has come, the same call goes on.
    pub fn measure(
        &mut self,
        view: &View,
        pages: &mut dyn PageSource,
        hits: &mut RangeHits,
    ) -> Result<Option<u64>, Stop> {
        let Stage::Measure { item } = &mut self.stage else { return Ok(None) };
        while *item < self.items.len() {
            if let Item::Keys(keys) = &mut self.items[*item] {
                let pin = self.pin.as_ref().expect("keys are read under a pin");
                let mut look = Look { view, pin, pages, hits };
                if keys.measure(&mut look)? {
                    *item += 1;
                }
                if *item < self.items.len() {
                    return Ok(None);
                }
            } else {
                *item += 1;
            }
        }
        let total = set_lengths(&mut self.items, &self.head);
        self.stage = Stage::Write { item: 0, done: 0, from: 0 };
        Ok(Some(total))
    }

    /// Appends up to `room` bytes; true if the end is among them. Stops early at a page that is
    /// not there, if anything was appended.
    ///
    /// # Errors
    /// See [`Stop`]; after a page has come, the same call goes on.
    pub fn write(
        &mut self,
        view: &View,
        pages: &mut dyn PageSource,
        hits: &mut RangeHits,
        room: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, Stop> {
        let Stage::Write { item, done, from } = &mut self.stage else { return Ok(false) };
        let start = out.len();
        let end = start + room;
        if !self.head.is_empty() {
            let taken = room.min(self.head.len());
            out.extend(self.head.drain(..taken));
        }
        while self.head.is_empty() && *item < self.items.len() {
            let over = match &mut self.items[*item] {
                Item::Bytes(length) => {
                    let over = copy(&self.bytes[*from..*from + *length], done, end, out);
                    if over {
                        *from += *length;
                    }
                    over
                }
                Item::Open { field, len_bytes } => {
                    let mut head = Vec::new();
                    write_open(*field, *len_bytes, &mut head);
                    copy(&head, done, end, out)
                }
                Item::Close => true,
                Item::Pieces(pieces) => pieces.write(end - out.len(), out),
                Item::Keys(keys) => {
                    if out.len() == end && keys.len_bytes() > 0 {
                        return Ok(false);
                    }
                    let before = out.len();
                    let pin = self.pin.as_ref().expect("keys are read under a pin");
                    let mut look = Look { view, pin, pages: &mut *pages, hits };
                    match keys.write(&mut look, end - before, out) {
                        Ok(over) if over || out.len() == end => over,
                        // One slice of it is enough for one call.
                        Ok(_) => return Ok(false),
                        Err(Stop::NeedsPage(_)) if out.len() > start => return Ok(false),
                        Err(stop) => return Err(stop),
                    }
                }
            };
            if !over {
                return Ok(false);
            }
            (*item, *done) = (*item + 1, 0);
        }
        Ok(*item == self.items.len() && self.head.is_empty())
    }

    /// The first keys, and the pin.
    pub fn into_parts(self) -> (Option<Keys>, Option<RevisionPin>) {
        let keys = self.items.into_iter().find_map(|item| match item {
            Item::Keys(keys) => Some(*keys),
            _ => None,
        });
        (keys, self.pin)
    }
}

/// Copies what is left of `bytes` up to `end`; true if that is all.
fn copy(bytes: &[u8], done: &mut usize, end: usize, out: &mut Vec<u8>) -> bool {
    let to = bytes.len().min(*done + (end - out.len()));
    out.extend_from_slice(&bytes[*done..to]);
    *done = to;
    to == bytes.len()
}

/// Sets the lengths of all messages; returns that of everything.
fn set_lengths(items: &mut [Item], head: &[u8]) -> u64 {
    // What is behind the messages being looked at, the innermost last: a message's end comes
    // first.
    let mut behind: Vec<u64> = Vec::new();
    let mut length = 0;
    for item in items.iter_mut().rev() {
        match item {
            Item::Bytes(bytes) => length += *bytes as u64,
            Item::Keys(keys) => length += keys.len_bytes(),
            Item::Pieces(pieces) => length += pieces.len_bytes(),
            Item::Close => behind.push(std::mem::replace(&mut length, 0)),
            Item::Open { field, len_bytes } => {
                *len_bytes = length;
                let tag = varint_len(u64::from(*field) << 3) + varint_len(length);
                length += tag as u64 + behind.pop().unwrap_or(0);
            }
        }
    }
    debug_assert!(behind.is_empty(), "every message that ends has begun");
    length + head.len() as u64
}

fn write_open(field: u32, len_bytes: u64, out: &mut Vec<u8>) {
    write_len(out, field, usize::try_from(len_bytes).unwrap_or(usize::MAX));
}
