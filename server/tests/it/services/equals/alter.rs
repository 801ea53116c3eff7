//! What may be wrong or odd about the bytes of a message: unknown fields, known ones of other wire
//! types, numbers in more bytes than they need, fields twice or in another order, bytes cut off or
//! changed, at any depth.
//!
//! Drawn by the generator and carried out when a request is made; the same seed gives the same
//! bytes. It never looks at what a message means.

use std::ops::Range;

use etcore_engine::testing::prng::Prng;

/// One change of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alter {
    pub(crate) kind: Kind,
    pub(crate) seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A field that nobody knows.
    Unknown,
    /// A known number with some wire type.
    Number,
    /// A field once more, somewhere.
    Double,
    /// Two fields change places.
    Swap,
    /// A number in more bytes than it needs.
    Long,
    /// Another number in place of one.
    Value,
    /// The end is missing.
    Cut,
    /// One bit is wrong.
    Flip,
    /// Some bytes too many.
    Noise,
    /// A tag that is none.
    BadTag,
    /// Something of these in a field that may be a message or text.
    Inside,
}

pub(crate) const KINDS: [Kind; 11] = [
    Kind::Unknown,
    Kind::Number,
    Kind::Double,
    Kind::Swap,
    Kind::Long,
    Kind::Value,
    Kind::Cut,
    Kind::Flip,
    Kind::Noise,
    Kind::BadTag,
    Kind::Inside,
];

/// A field as it stands in the bytes.
struct Field {
    whole: Range<usize>,
    /// Where its tag ends.
    tag_end: usize,
    wire: u64,
    /// What it holds: a varint's bytes, or what is behind the length.
    content: Range<usize>,
}

impl Alter {
    pub(crate) fn carry_out(self, bytes: &mut Vec<u8>) {
        alter(self.kind, bytes, &mut Prng::new(self.seed), 4);
    }
}

fn alter(kind: Kind, bytes: &mut Vec<u8>, prng: &mut Prng, depth: u32) {
    let fields = fields(bytes);
    let place = |prng: &mut Prng| {
        let at = prng.index(fields.len() + 1);
        fields.get(at).map_or(bytes.len(), |field| field.whole.start)
    };
    match kind {
        Kind::Unknown => {
            let number = match prng.below(4) {
                0 => 900,
                1 => 100 + prng.below(100_000),
                2 => (1 << 29) - 1,
                _ => 14 + prng.below(10),
            };
            let at = place(prng);
            insert(bytes, at, &any_field(prng, number));
        }
        Kind::Number => {
            let number = 1 + prng.below(13);
            let at = place(prng);
            insert(bytes, at, &any_field(prng, number));
        }
        Kind::Double if !fields.is_empty() => {
            let field = bytes[fields[prng.index(fields.len())].whole.clone()].to_vec();
            let at = place(prng);
            insert(bytes, at, &field);
        }
        Kind::Swap if fields.len() > 1 => {
            let at = prng.index(fields.len() - 1);
            let (first, second) = (&fields[at].whole, &fields[at + 1].whole);
            let swapped = [&bytes[second.clone()], &bytes[first.clone()]].concat();
            bytes[first.start..second.end].copy_from_slice(&swapped);
        }
        Kind::Long if !fields.is_empty() => {
            let field = &fields[prng.index(fields.len())];
            let end = if field.wire == 0 && prng.chance(1, 2) {
                field.content.end
            } else if field.wire == 2 && prng.chance(1, 2) {
                field.content.start
            } else {
                field.tag_end
            };
            bytes[end - 1] |= 0x80;
            let more = [0, 0, 1, 3, 4, 5, 7, 8, 9][prng.index(9)];
            let last = if prng.chance(1, 8) { 1 } else { 0 };
            let mut padding = vec![0x80; more];
            padding.push(last);
            insert(bytes, end, &padding);
        }
        Kind::Value if fields.iter().any(|field| field.wire == 0) => {
            let numbers: Vec<&Field> = fields.iter().filter(|field| field.wire == 0).collect();
            let field = numbers[prng.index(numbers.len())];
            let mut number = Vec::new();
            varint(&mut number, odd_number(prng));
            bytes.splice(field.content.clone(), number);
        }
        Kind::Cut => bytes.truncate(prng.index(bytes.len().max(1))),
        Kind::Flip if !bytes.is_empty() => {
            let at = prng.index(bytes.len());
            bytes[at] ^= 1 << prng.index(8);
        }
        Kind::Noise => {
            let mut noise = vec![0; 1 + prng.index(12)];
            prng.fill(&mut noise);
            let at = if prng.chance(1, 2) { bytes.len() } else { place(prng) };
            insert(bytes, at, &noise);
        }
        Kind::BadTag => {
            let number = 1 + prng.below(13);
            let mut bad = Vec::new();
            match prng.below(7) {
                // Wire types that do not exist, number zero, numbers too large, the end of nothing.
                0 => varint(&mut bad, number << 3 | 6),
                1 => varint(&mut bad, number << 3 | 7),
                2 => varint(&mut bad, prng.below(6)),
                3 => varint(&mut bad, 1 << 32),
                4 => varint(&mut bad, u64::MAX),
                5 => varint(&mut bad, number << 3 | 4),
                // A group that another one ends.
                _ => {
                    varint(&mut bad, number << 3 | 3);
                    varint(&mut bad, (number + 1) << 3 | 4);
                }
            }
            bad.push(0);
            let at = place(prng);
            insert(bytes, at, &bad);
        }
        Kind::Inside if depth > 0 && fields.iter().any(|field| field.wire == 2) => {
            let nested: Vec<&Field> = fields.iter().filter(|field| field.wire == 2).collect();
            let field = nested[prng.index(nested.len())];
            let mut inner = bytes[field.content.clone()].to_vec();
            let kind = KINDS[prng.index(KINDS.len())];
            alter(kind, &mut inner, prng, depth - 1);
            let mut changed = bytes[field.whole.start..field.tag_end].to_vec();
            varint(&mut changed, inner.len() as u64);
            changed.extend(inner);
            bytes.splice(field.whole.clone(), changed);
        }
        // There is nothing of the kind.
        _ => {}
    }
}

/// What may be put where a number is.
fn odd_number(prng: &mut Prng) -> u64 {
    match prng.below(12) {
        0 => u64::MAX,
        1 => 1 << 63,
        2 => (1 << 63) - 1,
        3 => 1 << 31,
        4 => (1 << 31) - 1,
        // Numbers of enums have 32 bits, and the rest is lost.
        5 => (1 << 32) + prng.below(6),
        6 => 0,
        _ => prng.below(12),
    }
}

fn any_field(prng: &mut Prng, number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    match prng.below(5) {
        0 => {
            varint(&mut out, number << 3);
            varint(&mut out, odd_number(prng));
        }
        1 => {
            varint(&mut out, number << 3 | 1);
            out.extend(prng.next_u64().to_le_bytes());
        }
        2 => {
            varint(&mut out, number << 3 | 2);
            let length = [0, 1, 2, 3, 8, 200][prng.index(6)];
            varint(&mut out, length as u64);
            let mut content = vec![0; length];
            prng.fill(&mut content);
            out.extend(content);
        }
        3 => {
            let depth = [1, 1, 2, 50, 98, 99, 100, 101, 3_000, 9_997, 9_999, 10_001];
            let depth = depth[prng.index(depth.len())];
            (0..depth).for_each(|_| varint(&mut out, number << 3 | 3));
            (0..depth).for_each(|_| varint(&mut out, number << 3 | 4));
        }
        _ => {
            varint(&mut out, number << 3 | 5);
            out.extend(prng.next_u64().to_le_bytes()[..4].iter());
        }
    }
    out
}

fn insert(bytes: &mut Vec<u8>, at: usize, what: &[u8]) {
    bytes.splice(at..at, what.iter().copied());
}

/// The fields of a message, as far as it is one.
fn fields(bytes: &[u8]) -> Vec<Field> {
    let mut fields = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some((tag, tag_end)) = read_varint(bytes, at) else { return fields };
        let wire = tag & 7;
        let content = match wire {
            0 => read_varint(bytes, tag_end).map(|(_, end)| tag_end..end),
            1 => Some(tag_end..tag_end + 8),
            5 => Some(tag_end..tag_end + 4),
            2 => read_varint(bytes, tag_end).and_then(|(length, start)| {
                Some(start..start.checked_add(usize::try_from(length).ok()?)?)
            }),
            _ => None,
        };
        let Some(content) = content.filter(|content| content.end <= bytes.len()) else {
            return fields;
        };
        fields.push(Field { whole: at..content.end, tag_end, wire, content: content.clone() });
        at = content.end;
    }
    fields
}

fn read_varint(bytes: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (number, byte) in bytes.get(at..)?.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * number);
        if byte & 0x80 == 0 {
            return Some((value, at + number + 1));
        }
    }
    None
}

pub(crate) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).expect("seven bits") | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).expect("seven bits"));
}
