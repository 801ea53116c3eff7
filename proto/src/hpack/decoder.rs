//! The HPACK decoder: header blocks in, fields out, in place.
//!
//! Called by `h2::Conn` with whole header blocks. Each table entry keeps the class of its field and
//! a tag chosen by the sink when the entry was made, so a block of indexed fields is decoded by
//! table look-ups alone. It must never allocate on that path, and never hold more than the
//! announced table size (twice that for the byte arena).

use std::collections::VecDeque;

use bytes::Bytes;

use super::static_table::{STATIC_COUNT, STATIC_TABLE};
use super::{HpackError, NameClass, huffman, integer, name};

/// Overhead that RFC 7541 §4.1 adds to each entry, in bytes.
pub(crate) const ENTRY_OVERHEAD: usize = 32;
/// Literals that an encoder keeps out of the table (`:path` above all) are remembered in their wire
/// form, so that repeating one costs a comparison instead of Huffman and classification.
const MEMO_COUNT: usize = 7;
/// Longest literal value remembered, in wire bytes.
const MEMO_VALUE_BYTES_MAX: usize = 256;

/// Capacity of the literals' buffer that is kept between blocks, in bytes.
const SCRATCH_BYTES_KEPT: usize = 16 << 10;

/// Receives the fields of header blocks.
pub trait FieldSink {
    /// A number for this field that [`Field::tag`] returns whenever the field comes again from a
    /// table. Called once per entry made, and once per field that is in no table.
    fn classify(&mut self, name: &[u8], value: &[u8]) -> u32;

    /// One field of the block, in order.
    fn field(&mut self, field: Field<'_>);
}

/// One decoded field, borrowed from the tables or from the block.
#[derive(Debug)]
pub struct Field<'a> {
    /// The name, in lower case unless [`NameClass::Invalid`].
    pub name: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// What HTTP/2 makes of it.
    pub class: NameClass,
    /// What the sink made of it.
    pub tag: u32,
    shared: Option<&'a mut Option<Bytes>>,
}

impl Field<'_> {
    /// The value as shared bytes: for a field of the dynamic table an allocation the first time
    /// only.
    #[must_use]
    pub fn shared_value(&mut self) -> Bytes {
        match &mut self.shared {
            Some(cached) => {
                cached.get_or_insert_with(|| Bytes::copy_from_slice(self.value)).clone()
            }
            None => Bytes::copy_from_slice(self.value),
        }
    }
}

#[derive(Debug)]
struct Entry {
    /// Position in the arena, counted from the beginning of the connection.
    start: u64,
    name_len: u32,
    value_len: u32,
    class: NameClass,
    tag: u32,
    shared: Option<Bytes>,
}

impl Entry {
    fn size(&self) -> usize {
        (self.name_len + self.value_len) as usize + ENTRY_OVERHEAD
    }
}

#[derive(Debug)]
struct Memo {
    /// Wire form of the value, its length prefix included; empty when the memo is unused.
    wire: Vec<u8>,
    /// 1-based static index of the name.
    name_index: usize,
    value: Vec<u8>,
    class: NameClass,
    tag: u32,
}

/// Decoder state of one connection.
///
/// Invariants: `size` is the sum of the entries' sizes and at most `size_max`; every entry lies in
/// `arena` at `start - arena_base`.
#[derive(Debug)]
pub struct Decoder {
    entries: VecDeque<Entry>,
    arena: Vec<u8>,
    arena_base: u64,
    size: usize,
    /// What the peer's encoder chose, at most `size_limit`.
    size_max: usize,
    /// What we announced.
    size_limit: usize,
    /// After we shrink the limit the next block must open with an update.
    update_due: bool,
    static_tags: Vec<(NameClass, u32)>,
    memos: [Option<Memo>; MEMO_COUNT],
    scratch: Vec<u8>,
}

impl Decoder {
    /// A decoder whose peer may use a table of `size_limit` bytes. `sink` classifies the static
    /// table.
    pub fn new(size_limit: usize, sink: &mut impl FieldSink) -> Self {
        let static_tags = STATIC_TABLE
            .iter()
            .map(|(name, value)| {
                let (name, value) = (name.as_bytes(), value.as_bytes());
                (name::classify(name, value), sink.classify(name, value))
            })
            .collect();
        Decoder {
            entries: VecDeque::new(),
            arena: Vec::new(),
            arena_base: 0,
            size: 0,
            size_max: size_limit,
            size_limit,
            update_due: false,
            static_tags,
            memos: [const { None }; MEMO_COUNT],
            scratch: Vec::new(),
        }
    }

    /// Lowers or raises the limit after the peer acknowledged our setting.
    pub fn set_size_limit(&mut self, size_limit: usize) {
        self.size_limit = size_limit;
        self.update_due = self.size_max > size_limit;
    }

    /// Decodes one whole block.
    ///
    /// # Errors
    /// Any [`HpackError`]; the connection cannot go on after one.
    pub fn decode(&mut self, block: &[u8], sink: &mut impl FieldSink) -> Result<(), HpackError> {
        let mut position = 0;
        self.size_updates(block, &mut position)?;
        while let Some(&first) = block.get(position) {
            self.decode_field(first, block, &mut position, sink)?;
        }
        if self.scratch.capacity() > SCRATCH_BYTES_KEPT {
            self.scratch = Vec::new();
        }
        Ok(())
    }

    #[inline]
    fn decode_field(
        &mut self,
        first: u8,
        block: &[u8],
        position: &mut usize,
        sink: &mut impl FieldSink,
    ) -> Result<(), HpackError> {
        if first & 0x80 != 0 {
            let index = integer::decode(block, position, 7)?;
            self.emit_indexed(index, sink)
        } else if first & 0xc0 == 0x40 {
            self.literal_indexed(block, position, sink)
        } else if first & 0xe0 == 0x20 {
            Err(HpackError::MisplacedSizeUpdate)
        } else {
            self.literal_plain(block, position, sink)
        }
    }

    /// Decodes the fields that are complete; returns how many bytes they are. The rest is to come
    /// again with what follows it.
    #[cold]
    pub(super) fn decode_some(
        &mut self,
        block: &[u8],
        is_start: bool,
        sink: &mut impl FieldSink,
    ) -> Result<usize, HpackError> {
        let mut position = 0;
        if is_start {
            match self.size_updates(block, &mut position) {
                Ok(()) => {}
                // Headers that were seen are seen again, with the same result.
                Err(HpackError::Truncated) => return Ok(0),
                Err(error) => return Err(error),
            }
        }
        let mut complete = position;
        while let Some(&first) = block.get(position) {
            match self.decode_field(first, block, &mut position, sink) {
                Ok(()) => complete = position,
                Err(HpackError::Truncated) => break,
                Err(error) => return Err(error),
            }
        }
        if self.scratch.capacity() > SCRATCH_BYTES_KEPT {
            self.scratch = Vec::new();
        }
        Ok(complete)
    }

    /// An entry came that no table has room for (RFC 7541 §4.4).
    pub(super) fn empty_table(&mut self) {
        self.evict(self.size_max);
    }

    /// Bytes the table holds, by the standard's count.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        self.size
    }

    fn size_updates(&mut self, block: &[u8], position: &mut usize) -> Result<(), HpackError> {
        let mut count = 0;
        while block.get(*position).is_some_and(|first| first & 0xe0 == 0x20) {
            let asked = integer::decode(block, position, 5)?;
            if asked > self.size_limit {
                return Err(HpackError::TableSizeTooLarge { asked, limit: self.size_limit });
            }
            count += 1;
            if count > 2 {
                return Err(HpackError::MisplacedSizeUpdate);
            }
            self.size_max = asked;
            self.update_due = false;
            self.evict(0);
        }
        if self.update_due { Err(HpackError::MissingSizeUpdate) } else { Ok(()) }
    }

    #[inline]
    fn emit_indexed(&mut self, index: usize, sink: &mut impl FieldSink) -> Result<(), HpackError> {
        if index == 0 {
            return Err(HpackError::BadIndex(0));
        }
        if index <= STATIC_COUNT {
            let (name, value) = STATIC_TABLE[index - 1];
            let (class, tag) = self.static_tags[index - 1];
            let (name, value) = (name.as_bytes(), value.as_bytes());
            sink.field(Field { name, value, class, tag, shared: None });
            return Ok(());
        }
        let Some(entry) = self.entries.get_mut(index - STATIC_COUNT - 1) else {
            return Err(HpackError::BadIndex(index));
        };
        let start = (entry.start - self.arena_base) as usize;
        let text = &self.arena[start..start + (entry.name_len + entry.value_len) as usize];
        let (name, value) = text.split_at(entry.name_len as usize);
        let (class, tag) = (entry.class, entry.tag);
        sink.field(Field { name, value, class, tag, shared: Some(&mut entry.shared) });
        Ok(())
    }

    /// A literal that enters the table.
    fn literal_indexed(
        &mut self,
        block: &[u8],
        position: &mut usize,
        sink: &mut impl FieldSink,
    ) -> Result<(), HpackError> {
        let index = integer::decode(block, position, 6)?;
        let name_len = self.read_pair(block, position, index)?;
        let (name, value) = self.scratch.split_at(name_len);
        let class = name::classify(name, value);
        let tag = sink.classify(name, value);
        if self.scratch.len() + ENTRY_OVERHEAD > self.size_max {
            // RFC 7541 §4.4: too large an entry empties the table and is not kept.
            self.evict(self.size_max);
            let (name, value) = self.scratch.split_at(name_len);
            sink.field(Field { name, value, class, tag, shared: None });
            return Ok(());
        }
        self.evict(self.scratch.len() + ENTRY_OVERHEAD);
        self.insert(name_len, class, tag);
        self.emit_indexed(STATIC_COUNT + 1, sink)
    }

    /// A literal that stays out of the table.
    fn literal_plain(
        &mut self,
        block: &[u8],
        position: &mut usize,
        sink: &mut impl FieldSink,
    ) -> Result<(), HpackError> {
        let index = integer::decode(block, position, 4)?;
        let memo_slot =
            if (1..=STATIC_COUNT).contains(&index) { Some(index % MEMO_COUNT) } else { None };
        if let Some(memo) = memo_slot.and_then(|slot| self.memos[slot].as_ref())
            && memo.name_index == index
            && block[*position..].starts_with(&memo.wire)
        {
            *position += memo.wire.len();
            let name = STATIC_TABLE[index - 1].0.as_bytes();
            let (value, class, tag) = (memo.value.as_slice(), memo.class, memo.tag);
            sink.field(Field { name, value, class, tag, shared: None });
            return Ok(());
        }
        let wire_start = *position;
        let name_len = self.read_pair(block, position, index)?;
        let (name, value) = self.scratch.split_at(name_len);
        let class = name::classify(name, value);
        let tag = sink.classify(name, value);
        let wire = &block[wire_start..*position];
        if let Some(slot) = memo_slot
            && wire.len() <= MEMO_VALUE_BYTES_MAX
        {
            let memo = self.memos[slot].get_or_insert_with(|| Memo {
                wire: Vec::new(),
                name_index: 0,
                value: Vec::new(),
                class,
                tag,
            });
            memo.wire.clear();
            memo.wire.extend_from_slice(wire);
            memo.value.clear();
            memo.value.extend_from_slice(value);
            (memo.name_index, memo.class, memo.tag) = (index, class, tag);
        }
        sink.field(Field { name, value, class, tag, shared: None });
        Ok(())
    }

    /// Puts name and value of a literal into the scratch; returns the name's length.
    fn read_pair(
        &mut self,
        block: &[u8],
        position: &mut usize,
        name_index: usize,
    ) -> Result<usize, HpackError> {
        self.scratch.clear();
        if name_index == 0 {
            read_string(block, position, &mut self.scratch)?;
        } else if name_index <= STATIC_COUNT {
            self.scratch.extend_from_slice(STATIC_TABLE[name_index - 1].0.as_bytes());
        } else {
            let entry = self
                .entries
                .get(name_index - STATIC_COUNT - 1)
                .ok_or(HpackError::BadIndex(name_index))?;
            let start = (entry.start - self.arena_base) as usize;
            self.scratch.extend_from_slice(&self.arena[start..start + entry.name_len as usize]);
        }
        let name_len = self.scratch.len();
        read_string(block, position, &mut self.scratch)?;
        Ok(name_len)
    }

    /// Drops the oldest entries until `room` more bytes fit.
    fn evict(&mut self, room: usize) {
        while self.size + room > self.size_max {
            let Some(entry) = self.entries.pop_back() else { break };
            self.size -= entry.size();
        }
    }

    /// Moves the scratch into the table; the caller made room.
    fn insert(&mut self, name_len: usize, class: NameClass, tag: u32) {
        if self.arena.len() + self.scratch.len() > self.size_limit * 2 {
            self.compact();
        }
        let entry = Entry {
            start: self.arena_base + self.arena.len() as u64,
            name_len: name_len as u32,
            value_len: (self.scratch.len() - name_len) as u32,
            class,
            tag,
            shared: None,
        };
        self.arena.extend_from_slice(&self.scratch);
        self.size += entry.size();
        self.entries.push_front(entry);
    }

    /// Forgets the bytes of evicted entries. Half the arena at least is dead when this is called,
    /// so the move costs a constant per inserted byte.
    fn compact(&mut self) {
        let live = self.entries.back().map_or(self.arena.len(), |oldest| {
            // An entry lies inside the arena, so the difference fits.
            (oldest.start - self.arena_base) as usize
        });
        self.arena.drain(..live);
        self.arena_base += live as u64;
    }
}

fn read_string(block: &[u8], position: &mut usize, out: &mut Vec<u8>) -> Result<(), HpackError> {
    let huffman_coded = block.get(*position).ok_or(HpackError::Truncated)? & 0x80 != 0;
    let length = integer::decode(block, position, 7)?;
    let end = position.checked_add(length).ok_or(HpackError::Truncated)?;
    let text = block.get(*position..end).ok_or(HpackError::Truncated)?;
    *position = end;
    if huffman_coded {
        huffman::decode(text, out)
    } else {
        out.extend_from_slice(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
