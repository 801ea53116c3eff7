//! Where the records, pages and meta pages of a directory begin and end, read by code of its own
//! after the two FORMAT.md.
//!
//! The damage test patches at and around these places, and asks here what a loss may look like. It
//! must never use the production readers.

use std::collections::BTreeMap;

use etcore_proto::raftpb;
use prost::Message;

use super::image::{DB, Image};

pub const SECTOR: usize = 512;
pub const UNIT: usize = 4096;

/// A record of a segment.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    pub start: usize,
    /// Behind its padding.
    pub end: usize,
    pub kind: u8,
}

pub const KIND_ENTRY: u8 = 2;
pub const KIND_STATE: u8 = 3;

/// A segment.
#[derive(Debug, Clone)]
pub struct Segment {
    pub name: String,
    pub records: Vec<Record>,
    /// Where each batch begins and ends; the first one includes the head.
    pub batches: Vec<(usize, usize)>,
    pub used: usize,
}

/// What a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    Meta,
    Inner,
    Leaf,
    Space,
}

/// A page that a meta page leads to, or one of these.
#[derive(Debug, Clone)]
pub struct Page {
    pub start: usize,
    pub len: usize,
    pub units: usize,
    pub kind: PageKind,
    /// Reached from the newest meta page.
    pub newest: bool,
    /// Where its fields and cells begin.
    pub fields: Vec<usize>,
}

impl Page {
    pub fn end(&self) -> usize {
        self.start + self.units * UNIT
    }
}

/// An entry of the log: term, type and data.
pub type Entry = (u64, i32, Vec<u8>);

/// A whole directory.
#[derive(Debug, Clone)]
pub struct Layout {
    pub segments: Vec<Segment>,
    pub pages: Vec<Page>,
    pub entries: BTreeMap<u64, Entry>,
}

impl Layout {
    pub fn of(image: &Image) -> Self {
        let mut entries = BTreeMap::new();
        let segments =
            image.segments().into_iter().map(|name| segment(image, name, &mut entries)).collect();
        Self { segments, pages: pages(image), entries }
    }

    pub fn last_index(&self) -> u64 {
        self.entries.last_key_value().map_or(0, |(index, _)| *index)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes")) as usize
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn segment(image: &Image, name: String, entries: &mut BTreeMap<u64, Entry>) -> Segment {
    let bytes = image.files[&name].all();
    let (mut at, mut records, mut batches) = (0, Vec::new(), Vec::new());
    let mut batch_start = 0;
    let mut states = 0;
    while at + 8 <= bytes.len() {
        let word = u64_at(&bytes, at);
        if word == 0 {
            break;
        }
        let len = usize::try_from(word & 0x00ff_ffff_ffff_ffff).expect("a length");
        let pad = usize::try_from(word >> 56 & 7).expect("three bits");
        let body = &bytes[at + 8..at + 8 + len];
        assert_eq!(body[0], 0x08, "{name} at {at}: a record's type comes first");
        let (kind, end) = (body[1], at + 8 + len + pad);
        if kind == KIND_ENTRY {
            let data = field(body, 3).expect("an entry has data");
            let entry = raftpb::Entry::decode(data).expect("an entry");
            let index = entry.index.unwrap_or(0);
            entries.split_off(&index);
            let data = entry.data.clone().unwrap_or_default().to_vec();
            let kind = entry.r#type.unwrap_or(0);
            entries.insert(index, (entry.term.unwrap_or(0), kind, data));
        }
        records.push(Record { start: at, end, kind });
        at = end;
        if kind == KIND_STATE {
            states += 1;
            // The head of a segment ends with a state record too; the first batch follows at once.
            if states > 1 || records.iter().any(|record| record.kind == KIND_ENTRY) {
                batches.push((batch_start, end));
                batch_start = end;
            }
        }
    }
    if batch_start < at {
        batches.push((batch_start, at));
    }
    Segment { name, records, batches, used: at }
}

/// The bytes of a length-delimited field of a message of varints and such fields.
fn field(mut body: &[u8], wanted: u8) -> Option<&[u8]> {
    fn varint(body: &mut &[u8]) -> usize {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = body[0];
            *body = &body[1..];
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    while !body.is_empty() {
        let tag = varint(&mut body);
        let number = varint(&mut body);
        if tag & 7 == 2 {
            if tag >> 3 == usize::from(wanted) {
                return Some(&body[..number]);
            }
            body = &body[number..];
        }
    }
    None
}

const META_FIELDS: [usize; 16] =
    [0, 8, 16, 24, 32, 40, 48, 56, 80, 88, 96, 152, 176, 208, 592, 4092];

fn pages(image: &Image) -> Vec<Page> {
    let content = &image.files[DB];
    let metas: Vec<Vec<u8>> = (0..2).map(|slot| content.read(slot * UNIT, UNIT)).collect();
    let newest = usize::from(u64_at(&metas[1], 16) > u64_at(&metas[0], 16));
    let mut pages: Vec<Page> = Vec::new();
    for slot in [newest, 1 - newest] {
        let is_newest = slot == newest;
        let meta = &metas[slot];
        pages.push(Page {
            start: slot * UNIT,
            len: UNIT,
            units: 1,
            kind: PageKind::Meta,
            newest: is_newest,
            fields: META_FIELDS.iter().map(|field| slot * UNIT + field).collect(),
        });
        let space = &meta[152..176];
        if space.iter().any(|byte| *byte != 0) {
            let (start, len, units) = pointer(space);
            let fields = (0..len / 32).map(|entry| start + entry * 32).collect();
            pages.push(Page {
                start,
                len,
                units,
                kind: PageKind::Space,
                newest: is_newest,
                fields,
            });
        }
        for root in 0..16 {
            let root = &meta[208 + root * 24..232 + root * 24];
            if root.iter().any(|byte| *byte != 0) {
                walk(image, root, is_newest, &mut pages);
            }
        }
    }
    pages
}

fn pointer(bytes: &[u8]) -> (usize, usize, usize) {
    let first = usize::try_from(u64_at(bytes, 0)).expect("a unit");
    (first * UNIT, u32_at(bytes, 12), u32_at(bytes, 8))
}

fn walk(image: &Image, ptr: &[u8], newest: bool, pages: &mut Vec<Page>) {
    let (start, len, units) = pointer(ptr);
    if pages.iter().any(|page| page.start == start && page.len == len) {
        return;
    }
    let bytes = image.files[DB].read(start, len);
    if crc32c::crc32c(&bytes) as usize != u32_at(ptr, 16) {
        // Of the older version: nothing keeps its pages once the next checkpoint has begun.
        assert!(!newest, "the page at {start} is damaged from the beginning");
        return;
    }
    let level = bytes[0];
    let count = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
    let cells: Vec<usize> = (0..count).map(|cell| u32_at(&bytes, 16 + 4 * cell)).collect();
    let kind = if level == 0 { PageKind::Leaf } else { PageKind::Inner };
    let mut fields = vec![start, start + 4, start + 8, start + 16];
    fields.extend(cells.iter().map(|cell| start + cell));
    pages.push(Page { start, len, units, kind, newest, fields });
    if level > 0 {
        for cell in cells {
            walk(image, &bytes[cell + 4..cell + 28], newest, pages);
        }
    }
}

/// True if `patched`, the last segment, may end where it does although acknowledged entries are
/// missing: from the first damaged record on it looks like a write that was torn, or like a log
/// that ends there, and no batch behind it is followed by another one. FORMAT.md, "Why a torn write
/// is recognised" and "What no rule can tell apart", in terms of the undamaged segment.
pub fn may_have_lost(segment: &Segment, original: &[u8], patched: &[u8]) -> bool {
    let len = original.len().max(patched.len());
    let at = |bytes: &[u8], at: usize| bytes.get(at).copied().unwrap_or(0);
    let zero = |from: usize, to: usize| (from..to).all(|byte| at(patched, byte) == 0);
    let Some(first) = (0..len).find(|byte| at(original, *byte) != at(patched, *byte)) else {
        return false;
    };
    let Some(number) = segment.records.iter().position(|record| record.end > first) else {
        return false;
    };
    let start = segment.records[number].start;
    if zero(start, len) {
        return true;
    }
    let sector_end = (start + 1).next_multiple_of(SECTOR);
    let begins_batch = segment.batches.iter().any(|(batch, _)| *batch == start);
    let word = (0..8).rev().fold(0, |word, byte| word << 8 | u64::from(at(patched, start + byte)));
    let torn = if word == 0 {
        zero(start, sector_end) && (begins_batch || start.is_multiple_of(SECTOR))
    } else {
        // The record reaches as far as its length word says.
        let bytes = usize::try_from(word & 0x00ff_ffff_ffff_ffff).expect("a 64-bit machine");
        let end = start + 8 + bytes + usize::try_from(word >> 56 & 7).expect("three bits");
        (sector_end..end.min(len)).step_by(SECTOR).any(|sector| zero(sector, sector + SECTOR))
    };
    let intact = |record: &Record| {
        (record.start..record.end).all(|byte| at(original, byte) == at(patched, byte))
    };
    let followed = |record: &&Record| !zero(record.end, record.end + 8);
    let mut states = segment.records[number..].iter().filter(|record| record.kind == KIND_STATE);
    torn && !states.any(|record| intact(record) && followed(&record))
}
