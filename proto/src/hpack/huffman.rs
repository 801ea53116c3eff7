//! The HPACK Huffman code (RFC 7541 appendix B). Used by the decoder and encoder of this folder.
//!
//! The code is canonical: code words are assigned in order of (length, symbol), so the lengths are
//! the whole definition and every table below is computed from them at compile time.

use super::HpackError;

/// Code length in bits of each byte value; the last entry is the end-of-string mark.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28,
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7,
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21,
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24,
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const LENGTH_MAX: usize = 30;
/// Codes of at most this many bits are found by one lookup; it covers every printable character
/// that headers commonly hold.
const FAST_BITS: u32 = 10;
const END_MARK: u16 = 256;

/// Symbols in code order, and for each length the first code and where its symbols start.
struct Canonical {
    symbols: [u16; 257],
    first_code: [u32; LENGTH_MAX + 2],
    first_rank: [u16; LENGTH_MAX + 2],
    codes: [u32; 257],
}

const fn canonical() -> Canonical {
    let mut table = Canonical {
        symbols: [0; 257],
        first_code: [0; LENGTH_MAX + 2],
        first_rank: [0; LENGTH_MAX + 2],
        codes: [0; 257],
    };
    let mut code = 0u32;
    let mut rank = 0u16;
    let mut length = 1;
    while length <= LENGTH_MAX {
        code <<= 1;
        table.first_code[length] = code;
        table.first_rank[length] = rank;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == length {
                table.symbols[rank as usize] = symbol as u16;
                table.codes[symbol] = code;
                code += 1;
                rank += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    table.first_rank[LENGTH_MAX + 1] = rank;
    table
}

static CANONICAL: Canonical = canonical();

/// Prefix of [`FAST_BITS`] bits → (symbol, length); length 0 means the code is longer.
static FAST: [(u8, u8); 1 << FAST_BITS] = fast();

const fn fast() -> [(u8, u8); 1 << FAST_BITS] {
    let canonical = canonical();
    let mut table = [(0u8, 0u8); 1 << FAST_BITS];
    let mut symbol = 0;
    while symbol < 256 {
        let length = LENGTHS[symbol] as u32;
        if length <= FAST_BITS {
            let start = canonical.codes[symbol] << (FAST_BITS - length);
            let mut offset = 0;
            while offset < 1 << (FAST_BITS - length) {
                table[(start + offset) as usize] = (symbol as u8, length as u8);
                offset += 1;
            }
        }
        symbol += 1;
    }
    table
}

/// Appends the decoded form of `input` to `out`: at most 8/5 of its length.
pub(super) fn decode(input: &[u8], out: &mut Vec<u8>) -> Result<(), HpackError> {
    out.reserve(input.len() * 8 / 5 + 1);
    // Bits are kept at the top of the word; `held` of them are valid, the rest are ones so that a
    // code running past the end can only match the (all ones) end mark or padding.
    let mut bits = 0u64;
    let mut held = 0u32;
    let mut rest = input;
    loop {
        while held <= 56 {
            let Some((&byte, tail)) = rest.split_first() else { break };
            bits |= u64::from(byte) << (56 - held);
            held += 8;
            rest = tail;
        }
        if held == 0 {
            return Ok(());
        }
        let window = if held < 64 { bits | (u64::MAX >> held) } else { bits };
        let (symbol, length) = FAST[(window >> (64 - FAST_BITS)) as usize];
        let length = if length != 0 && u32::from(length) <= held {
            out.push(symbol);
            u32::from(length)
        } else if rest.is_empty() && held < 8 {
            // What is left must be padding: fewer than eight ones.
            return if window == u64::MAX { Ok(()) } else { Err(HpackError::BadHuffman) };
        } else {
            let (symbol, length) = decode_long(window, held)?;
            out.push(symbol);
            length
        };
        bits <<= length;
        held -= length;
    }
}

/// Finds a code longer than [`FAST_BITS`] at the top of `window`, of which `held` bits are real.
fn decode_long(window: u64, held: u32) -> Result<(u8, u32), HpackError> {
    for length in FAST_BITS as usize + 1..=LENGTH_MAX {
        let code = (window >> (64 - length)) as u32;
        let count = CANONICAL.first_rank[length + 1] - CANONICAL.first_rank[length];
        let offset = code.wrapping_sub(CANONICAL.first_code[length]);
        if offset < u32::from(count) {
            let symbol = CANONICAL.symbols[CANONICAL.first_rank[length] as usize + offset as usize];
            if symbol == END_MARK || length as u32 > held {
                break;
            }
            return Ok((symbol as u8, length as u32));
        }
    }
    Err(HpackError::BadHuffman)
}

/// Length in bytes of `input` once encoded.
pub(super) fn encoded_len(input: &[u8]) -> usize {
    let bits: usize = input.iter().map(|&byte| LENGTHS[byte as usize] as usize).sum();
    bits.div_ceil(8)
}

/// Appends the encoded form of `input` to `out`.
pub(super) fn encode(input: &[u8], out: &mut Vec<u8>) {
    let mut bits = 0u64;
    let mut held = 0u32;
    for &byte in input {
        let length = u32::from(LENGTHS[byte as usize]);
        bits = (bits << length) | u64::from(CANONICAL.codes[byte as usize]);
        held += length;
        while held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    if held > 0 {
        out.push(((bits << (8 - held)) as u8) | (0xff >> held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_value_survives_a_round_trip_in_any_company() {
        for first in 0..=255u8 {
            for second in [0u8, b'a', b'%', 0xff, first] {
                let text = [first, second, first];
                let mut wire = Vec::new();
                encode(&text, &mut wire);
                assert_eq!(wire.len(), encoded_len(&text));
                let mut back = Vec::new();
                decode(&wire, &mut back).unwrap();
                assert_eq!(back, text);
            }
        }
    }

    #[test]
    fn the_examples_of_the_rfc_decode() {
        let wire = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        let mut out = Vec::new();
        decode(&wire, &mut out).unwrap();
        assert_eq!(out, b"www.example.com");
        out.clear();
        encode(b"www.example.com", &mut out);
        assert_eq!(out, wire);
    }

    #[test]
    fn wrong_padding_and_the_end_mark_are_refused() {
        let mut out = Vec::new();
        // 'a' is 00011; three zero bits are no padding.
        assert_eq!(decode(&[0b0001_1000], &mut out), Err(HpackError::BadHuffman));
        // Eight ones are a whole byte of padding.
        assert_eq!(decode(&[0b0001_1111, 0xff], &mut out), Err(HpackError::BadHuffman));
        assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff], &mut out), Err(HpackError::BadHuffman));
        out.clear();
        decode(&[0b0001_1111], &mut out).unwrap();
        assert_eq!(out, b"a");
    }
}
