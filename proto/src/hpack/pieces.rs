//! A header block that comes in pieces, decoded as they come.
//!
//! Used by `h2` for blocks with CONTINUATION frames. No more of the block is held than the field
//! that is not complete; one that is too long is passed over without being held, which keeps the
//! table in step since no table has room for it. Must never try the same bytes again and again.

use super::{Decoder, FieldSink, HpackError, integer};
use crate::limits;

/// See the module text.
///
/// Invariant: `held` begins with a field, unless one is being passed over.
#[derive(Debug, Default)]
pub struct Pieces {
    held: Vec<u8>,
    /// With fewer bytes held the field is not complete.
    needed: usize,
    /// A part of the block was decoded.
    begun: bool,
    passing: Option<Passing>,
    passed_over: bool,
}

/// A field that is too long to be held.
#[derive(Debug, Clone, Copy)]
struct Passing {
    /// Its encoder put it into the table, which is empty then.
    indexed: bool,
    /// Bytes of its name to come, and its value's length behind.
    name_left: Option<usize>,
    value_left: usize,
}

impl Pieces {
    /// Takes a piece. `admit` is asked before a field of so many bytes is held.
    ///
    /// # Errors
    /// As [`Decoder::decode`].
    pub fn push(
        &mut self,
        piece: &[u8],
        decoder: &mut Decoder,
        sink: &mut impl FieldSink,
        mut admit: impl FnMut(usize) -> bool,
    ) -> Result<(), HpackError> {
        self.held.extend_from_slice(piece);
        loop {
            if self.passing.is_some() {
                if !self.pass_over(decoder)? {
                    return Ok(());
                }
                continue;
            }
            if self.held.is_empty() || self.held.len() < self.needed {
                return Ok(());
            }
            let used = decoder.decode_some(&self.held, !self.begun, sink)?;
            self.begun |= used > 0;
            self.held.drain(..used);
            let Some(broken) = break_of(&self.held) else {
                self.needed = self.held.len() + 1;
                return Ok(());
            };
            self.needed = broken.end;
            let too_long = self.needed > limits::HEADER_FIELD_BYTES_MAX;
            let small = self.needed <= limits::FRAME_BYTES_MAX as usize;
            if !too_long && (small || admit(self.needed)) {
                return Ok(());
            }
            self.passed_over = true;
            self.passing = Some(Passing {
                indexed: broken.indexed,
                name_left: broken.is_name.then_some(self.needed),
                value_left: self.needed,
            });
        }
    }

    /// Goes on with passing over; false if more bytes must come.
    fn pass_over(&mut self, decoder: &mut Decoder) -> Result<bool, HpackError> {
        let Some(passing) = &mut self.passing else { return Ok(true) };
        if let Some(left) = &mut passing.name_left {
            let count = self.held.len().min(*left);
            self.held.drain(..count);
            *left -= count;
            if *left > 0 {
                return Ok(false);
            }
            let mut position = 0;
            match string_end(&self.held, &mut position) {
                Ok(end) => (passing.name_left, passing.value_left) = (None, end),
                Err(HpackError::Truncated) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let count = self.held.len().min(passing.value_left);
        self.held.drain(..count);
        passing.value_left -= count;
        if passing.value_left > 0 {
            return Ok(false);
        }
        if passing.indexed {
            decoder.empty_table();
        }
        (self.passing, self.needed, self.begun) = (None, 0, true);
        Ok(true)
    }

    /// The block is complete. True if a field of it was passed over.
    ///
    /// # Errors
    /// [`HpackError::Truncated`] if its last field is not complete.
    pub fn finish(&self) -> Result<bool, HpackError> {
        if self.held.is_empty() && self.passing.is_none() {
            Ok(self.passed_over)
        } else {
            Err(HpackError::Truncated)
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.len()
    }
}

/// Where a field breaks off.
struct Break {
    indexed: bool,
    /// In its name; else in its value.
    is_name: bool,
    /// Where what breaks off would end.
    end: usize,
}

/// The string in which a field breaks off; `None` while not even its length is known.
fn break_of(field: &[u8]) -> Option<Break> {
    let first = *field.first()?;
    let indexed = first & 0xc0 == 0x40;
    let prefix_bits = match first {
        _ if indexed => 6,
        0x00..=0x1f => 4,
        // An index, or a new size of the table: an integer alone.
        _ => return None,
    };
    let mut position = 0;
    let name_index = integer::decode(field, &mut position, prefix_bits).ok()?;
    if name_index == 0 {
        let end = string_end(field, &mut position).ok()?;
        if end > field.len() {
            return Some(Break { indexed, is_name: true, end });
        }
        position = end;
    }
    let end = string_end(field, &mut position).ok()?;
    Some(Break { indexed, is_name: false, end })
}

/// Reads a string's length at `position`; returns where the string ends.
fn string_end(bytes: &[u8], position: &mut usize) -> Result<usize, HpackError> {
    let length = integer::decode(bytes, position, 7)?;
    position.checked_add(length).ok_or(HpackError::IntegerTooLarge)
}

/// A string of so many bytes or more on the wire is longer than any table that we announce: no
/// Huffman code has more than 30 bits.
const _: () = {
    let least = limits::FRAME_BYTES_MAX as usize * 8 / 30;
    assert!(least > limits::HEADER_TABLE_BYTES as usize);
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hpack::{Encoder, Field, HeaderItem};

    #[derive(Default, PartialEq, Eq, Debug)]
    struct Fields(Vec<(Vec<u8>, Vec<u8>)>);

    impl FieldSink for Fields {
        fn classify(&mut self, _name: &[u8], _value: &[u8]) -> u32 {
            0
        }

        fn field(&mut self, field: Field<'_>) {
            self.0.push((field.name.to_vec(), field.value.to_vec()));
        }
    }

    fn decoder() -> Decoder {
        Decoder::new(limits::HEADER_TABLE_BYTES as usize, &mut Fields::default())
    }

    #[test]
    fn a_block_means_the_same_however_it_is_cut() {
        let mut encoder = Encoder::new(4_096);
        encoder.peer_allows(1_000);
        let slot = encoder.register(b"known", b"value");
        let blocks: Vec<Vec<u8>> = (0..3u8)
            .map(|number| {
                let large = vec![number; 40_000];
                let items = [
                    HeaderItem::Literal(b":path", b"/a/path"),
                    HeaderItem::Slot(slot),
                    HeaderItem::Sensitive(b"secret", &large),
                    HeaderItem::Literal(b"x-text", b"some text that Huffman makes shorter"),
                ];
                let mut block = Vec::new();
                encoder.encode(&items, &mut block);
                block
            })
            .collect();
        let mut whole = (decoder(), Fields::default());
        for block in &blocks {
            whole.0.decode(block, &mut whole.1).unwrap();
        }
        for cut in [1, 2, 3, 7, 100, 16_384] {
            let (mut decoder, mut fields) = (decoder(), Fields::default());
            for block in &blocks {
                let mut pieces = Pieces::default();
                for piece in block.chunks(cut) {
                    pieces.push(piece, &mut decoder, &mut fields, |_| true).unwrap();
                }
                assert_eq!(pieces.finish(), Ok(false));
            }
            assert_eq!(fields, whole.1, "in cuts of {cut}");
            assert_eq!(decoder.table_bytes(), whole.0.table_bytes());
        }
    }

    /// A literal of lengths that are not Huffman-coded.
    fn literal(first: u8, name: &[u8], value: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        for text in [name, value] {
            integer::encode(text.len(), 7, 0, &mut out);
            out.extend_from_slice(text);
        }
        out
    }

    #[test]
    fn a_field_that_is_too_long_is_passed_over_and_the_table_stays_in_step() {
        let long = vec![b'v'; limits::HEADER_FIELD_BYTES_MAX + 100_000];
        for (first, name, value) in [
            (0x40, &b"n"[..], &long[..]),
            (0x00, b"n", &long),
            (0x40, &long, b"v"),
            (0x00, &long, &long),
        ] {
            let mut block = literal(0x40, b"a", b"1");
            block.extend(literal(first, name, value));
            block.extend(literal(0x40, b"b", b"2"));
            // The newest entry once more.
            block.push(0x80 | 62);
            for cut in [977, 16_384] {
                let (mut decoder, mut fields) = (decoder(), Fields::default());
                let mut pieces = Pieces::default();
                for piece in block.chunks(cut) {
                    pieces.push(piece, &mut decoder, &mut fields, |_| true).unwrap();
                    assert!(pieces.held_bytes() < limits::HEADER_FIELD_BYTES_MAX + 16_384);
                }
                assert_eq!(pieces.finish(), Ok(true));
                let names: Vec<_> = fields.0.iter().map(|(name, _)| &name[..]).collect();
                assert_eq!(names, [b"a", b"b", b"b"]);
                let entries = if first == 0x40 { 1 } else { 2 };
                assert_eq!(decoder.table_bytes(), entries * 34);
            }
        }
    }

    #[test]
    fn what_may_not_be_held_is_passed_over() {
        let block = literal(0x40, b"n", &[b'v'; 100_000]);
        let (mut decoder, mut fields) = (decoder(), Fields::default());
        let mut pieces = Pieces::default();
        for piece in block.chunks(16_384) {
            pieces.push(piece, &mut decoder, &mut fields, |_| false).unwrap();
            assert!(pieces.held_bytes() <= 16_384);
        }
        assert_eq!((pieces.finish(), fields.0.len()), (Ok(true), 0));
    }

    #[test]
    fn a_block_that_breaks_off_is_an_error_and_so_is_nonsense() {
        let (mut decoder, mut fields) = (decoder(), Fields::default());
        let mut pieces = Pieces::default();
        pieces.push(b"\x40\x05na", &mut decoder, &mut fields, |_| true).unwrap();
        assert_eq!(pieces.finish(), Err(HpackError::Truncated));
        let mut pieces = Pieces::default();
        let error = pieces.push(&[0x82, 0x3f], &mut decoder, &mut fields, |_| true);
        assert_eq!(error, Err(HpackError::MisplacedSizeUpdate));
    }
}
