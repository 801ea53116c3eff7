//! Prefixed integers (RFC 7541 §5.1). Used by the decoder and the encoder of this folder; must
//! never accept a value whose arithmetic could overflow.

use super::HpackError;

/// Longest value accepted, in bits: far above every length we allow, far below overflow.
const VALUE_BITS_MAX: u32 = 28;

/// Decodes an integer whose first byte at `position` carries `prefix_bits` low bits of it.
#[inline]
pub(super) fn decode(
    block: &[u8],
    position: &mut usize,
    prefix_bits: u32,
) -> Result<usize, HpackError> {
    let mask = (1u32 << prefix_bits) - 1;
    let first = u32::from(*block.get(*position).ok_or(HpackError::Truncated)?) & mask;
    *position += 1;
    if first < mask { Ok(first as usize) } else { decode_rest(block, position, mask) }
}

#[cold]
fn decode_rest(block: &[u8], position: &mut usize, start: u32) -> Result<usize, HpackError> {
    let mut value = u64::from(start);
    let mut shift = 0;
    loop {
        let byte = *block.get(*position).ok_or(HpackError::Truncated)?;
        *position += 1;
        value += u64::from(byte & 0x7f) << shift;
        shift += 7;
        if value >= 1 << VALUE_BITS_MAX || shift > VALUE_BITS_MAX {
            return Err(HpackError::IntegerTooLarge);
        }
        if byte & 0x80 == 0 {
            return Ok(value as usize);
        }
    }
}

/// Appends `value` with `prefix_bits` bits in the first byte, whose high bits are `pattern`.
#[inline]
pub(super) fn encode(value: usize, prefix_bits: u32, pattern: u8, out: &mut Vec<u8>) {
    let mask = (1usize << prefix_bits) - 1;
    if value < mask {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    out.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_survive_a_round_trip_at_every_prefix() {
        for prefix in 4..=7 {
            for value in (0..2000).chain([65_535, 1 << 20, (1 << 27) + 3]) {
                let mut out = Vec::new();
                encode(value, prefix, 0, &mut out);
                let mut position = 0;
                assert_eq!(decode(&out, &mut position, prefix), Ok(value));
                assert_eq!(position, out.len());
            }
        }
    }

    #[test]
    fn an_endless_integer_is_refused() {
        let mut position = 0;
        let endless = [0xff; 32];
        assert_eq!(decode(&endless, &mut position, 7), Err(HpackError::IntegerTooLarge));
        // Zero continuation bytes never grow the value: the length itself must be limited.
        let mut zeros = vec![0x7f];
        zeros.extend([0x80; 32]);
        position = 0;
        assert_eq!(decode(&zeros, &mut position, 7), Err(HpackError::IntegerTooLarge));
    }

    #[test]
    fn a_cut_integer_is_truncated() {
        let mut position = 0;
        assert_eq!(decode(&[0xff, 0x80], &mut position, 7), Err(HpackError::Truncated));
        position = 0;
        assert_eq!(decode(&[], &mut position, 7), Err(HpackError::Truncated));
    }
}
