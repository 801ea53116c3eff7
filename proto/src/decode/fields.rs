//! Walking the fields of one message, without knowing what they mean.
//!
//! Called by the decoders here and by the server's hand-written ones. Accepts exactly what Go's
//! protobuf does; unknown groups are skipped without recursion.

use std::ops::Range;

use super::DecodeError;
use crate::limits;

/// Largest number of a field.
const NUMBER_MAX: u64 = (1 << 29) - 1;
/// Largest number of a field within an unknown group: Go looks less closely there.
const NUMBER_IN_GROUP_MAX: u64 = i32::MAX as u64;

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Wire type 0.
    Varint(u64),
    /// Wire type 2: where the bytes stand in the message.
    Len(Range<usize>),
    /// Wire types 1, 3 and 5, which no message of etcd's uses: passed over.
    Other,
}

/// Walks the fields of a message.
pub struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Starts at the first field.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes of the message are behind it.
    pub fn position(&self) -> usize {
        self.at
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or(DecodeError::Wire)?;
            self.at += 1;
            if shift == 63 && byte > 1 {
                return Err(DecodeError::Wire);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Wire)
    }

    #[inline]
    fn skip(&mut self, bytes: usize) -> Result<Range<usize>, DecodeError> {
        let end = self.at.checked_add(bytes).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(DecodeError::Wire)?;
        Ok(std::mem::replace(&mut self.at, end)..end)
    }

    #[inline]
    fn len(&mut self) -> Result<Range<usize>, DecodeError> {
        let bytes = usize::try_from(self.varint()?).map_err(|_| DecodeError::Wire)?;
        self.skip(bytes)
    }

    /// The next field's number and value; `None` at the end.
    ///
    /// # Errors
    /// [`DecodeError::Wire`].
    #[inline]
    pub fn next_field(&mut self) -> Result<Option<(u32, Value)>, DecodeError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        if !(1..=NUMBER_MAX).contains(&(key >> 3)) {
            return Err(DecodeError::Wire);
        }
        let number = (key >> 3) as u32;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            2 => Value::Len(self.len()?),
            1 | 5 => {
                self.skip(if key & 7 == 1 { 8 } else { 4 })?;
                Value::Other
            }
            3 => {
                self.skip_group(key >> 3)?;
                Value::Other
            }
            _ => return Err(DecodeError::Wire),
        };
        Ok(Some((number, value)))
    }

    #[cold]
    fn skip_group(&mut self, number: u64) -> Result<(), DecodeError> {
        let mut open = vec![number];
        while let Some(&innermost) = open.last() {
            let key = self.varint()?;
            let number = key >> 3;
            if !(1..=NUMBER_IN_GROUP_MAX).contains(&number) {
                return Err(DecodeError::Wire);
            }
            match key & 7 {
                0 => {
                    self.varint()?;
                }
                1 => {
                    self.skip(8)?;
                }
                2 => {
                    self.len()?;
                }
                3 if open.len() < limits::DECODE_GROUPS => open.push(number),
                4 if number == innermost => {
                    open.pop();
                }
                5 => {
                    self.skip(4)?;
                }
                _ => return Err(DecodeError::Wire),
            }
        }
        Ok(())
    }
}
