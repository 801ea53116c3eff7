//! The HPACK encoder: fields in, header blocks out.
//!
//! Called by `h2::Conn`. Fields that repeat are registered once as slots: the first use of a slot
//! enters it into the peer's table, later uses are one or two bytes. Everything else is a literal
//! outside the table, so a request can never evict what the next one needs.

use std::collections::VecDeque;

use super::decoder::ENTRY_OVERHEAD;
use super::{huffman, integer, static_table};

/// A constant field registered with [`Encoder::register`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotId(u16);

/// One field to encode.
#[derive(Debug, Clone, Copy)]
pub enum HeaderItem<'a> {
    /// A registered constant.
    Slot(SlotId),
    /// A field that is not worth a table entry.
    Literal(&'a [u8], &'a [u8]),
    /// A secret: marked so that no intermediary puts it into a table.
    Sensitive(&'a [u8], &'a [u8]),
}

#[derive(Debug)]
struct Slot {
    name: Box<[u8]>,
    value: Box<[u8]>,
    /// Index of the identical static entry, 0 if there is none.
    static_index: u8,
    /// Index of a static entry of the same name, 0 if there is none.
    static_name: u8,
    /// Insertion number of the live table entry, counted from 1; 0 if there is none.
    inserted: u64,
}

/// Encoder state of one connection.
///
/// Invariants: `sizes` holds the live entries, oldest first, numbered `evicted + 1 ..= evicted +
/// sizes.len()`; their sum is `size`, at most `size_max`.
#[derive(Debug)]
pub struct Encoder {
    slots: Vec<Slot>,
    sizes: VecDeque<u32>,
    evicted: u64,
    size: usize,
    size_max: usize,
    /// Smallest and newest size the peer must be told before the next field.
    update: Option<(usize, usize)>,
    /// The size we want to use at most, whatever the peer allows.
    size_wanted: usize,
}

impl Encoder {
    /// An encoder that uses at most `size_wanted` bytes of the peer's table.
    #[must_use]
    pub fn new(size_wanted: usize) -> Self {
        let mut encoder = Encoder {
            slots: Vec::new(),
            sizes: VecDeque::new(),
            evicted: 0,
            size: 0,
            size_max: PROTOCOL_DEFAULT_SIZE,
            update: None,
            size_wanted,
        };
        encoder.peer_allows(PROTOCOL_DEFAULT_SIZE);
        encoder
    }

    /// Registers a constant field. Slots live as long as the encoder: register few.
    ///
    /// # Panics
    /// If more than 65,536 slots are registered, which no caller's constants approach.
    pub fn register(&mut self, name: &[u8], value: &[u8]) -> SlotId {
        let (static_name, static_index) = static_table::find(name, value);
        let id = u16::try_from(self.slots.len()).expect("constant fields are few");
        self.slots.push(Slot {
            name: name.into(),
            value: value.into(),
            static_index: static_index.unwrap_or(0) as u8,
            static_name: static_name.unwrap_or(0) as u8,
            inserted: 0,
        });
        SlotId(id)
    }

    /// The peer announced a table size.
    pub fn peer_allows(&mut self, size: usize) {
        let size = size.min(self.size_wanted);
        if size == self.size_max {
            return;
        }
        let smallest = self.update.map_or(size, |(smallest, _)| smallest.min(size));
        self.update = Some((smallest, size));
        self.size_max = smallest;
        self.evict(0);
        self.size_max = size;
    }

    /// Appends a whole block.
    pub fn encode(&mut self, items: &[HeaderItem<'_>], out: &mut Vec<u8>) {
        self.begin(out);
        for item in items {
            match *item {
                HeaderItem::Slot(id) => self.slot(id, out),
                HeaderItem::Literal(name, value) => literal(name, value, 0x00, out),
                HeaderItem::Sensitive(name, value) => literal(name, value, 0x10, out),
            }
        }
    }

    /// Appends what must open every block. Pairs with [`Encoder::slot`] for hand-made blocks.
    #[inline]
    fn begin(&mut self, out: &mut Vec<u8>) {
        if let Some((smallest, newest)) = self.update.take() {
            if smallest < newest {
                integer::encode(smallest, 5, 0x20, out);
            }
            integer::encode(newest, 5, 0x20, out);
        }
    }

    #[inline]
    fn slot(&mut self, id: SlotId, out: &mut Vec<u8>) {
        let slot = &self.slots[id.0 as usize];
        if slot.static_index != 0 {
            out.push(0x80 | slot.static_index);
        } else if slot.inserted > self.evicted {
            let newest = self.evicted + self.sizes.len() as u64;
            let index = static_table::STATIC_COUNT + 1 + (newest - slot.inserted) as usize;
            integer::encode(index, 7, 0x80, out);
        } else {
            self.insert_slot(id, out);
        }
    }

    fn insert_slot(&mut self, id: SlotId, out: &mut Vec<u8>) {
        let slot = &self.slots[id.0 as usize];
        let size = slot.name.len() + slot.value.len() + ENTRY_OVERHEAD;
        if size > self.size_max {
            return literal(&slot.name, &slot.value, 0x00, out);
        }
        if slot.static_name != 0 {
            integer::encode(slot.static_name as usize, 6, 0x40, out);
        } else {
            out.push(0x40);
            string(&slot.name, out);
        }
        string(&slot.value, out);
        self.evict(size);
        self.size += size;
        self.sizes.push_back(size as u32);
        self.slots[id.0 as usize].inserted = self.evicted + self.sizes.len() as u64;
    }

    fn evict(&mut self, room: usize) {
        while self.size + room > self.size_max {
            let Some(size) = self.sizes.pop_front() else { break };
            self.size -= size as usize;
            self.evicted += 1;
        }
    }
}

/// Appends a literal outside the table; `pattern` is 0x00, or 0x10 for "never indexed".
fn literal(name: &[u8], value: &[u8], pattern: u8, out: &mut Vec<u8>) {
    match static_table::find(name, value).0 {
        Some(index) => integer::encode(index, 4, pattern, out),
        None => {
            out.push(pattern);
            string(name, out);
        }
    }
    string(value, out);
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    let coded = huffman::encoded_len(text);
    if coded < text.len() {
        integer::encode(coded, 7, 0x80, out);
        huffman::encode(text, out);
    } else {
        integer::encode(text.len(), 7, 0x00, out);
        out.extend_from_slice(text);
    }
}

/// The table size in force before any SETTINGS, in bytes (RFC 9113 §6.5.2).
const PROTOCOL_DEFAULT_SIZE: usize = 4096;
