//! A list of header fields kept compactly. Made by both sides for fields they have no use for
//! themselves; read by services.

use std::ops::Range;

/// Names and values in one buffer, in order of arrival.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    text: Vec<u8>,
    fields: Vec<(Range<u32>, Range<u32>)>,
}

impl Metadata {
    /// No fields.
    #[must_use]
    pub fn new() -> Self {
        Metadata::default()
    }

    /// Bytes that it takes.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.text.len() + self.fields.len() * size_of::<(Range<u32>, Range<u32>)>()
    }

    /// Appends a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        let start = self.text.len() as u32;
        self.text.extend_from_slice(name);
        let middle = self.text.len() as u32;
        self.text.extend_from_slice(value);
        self.fields.push((start..middle, middle..self.text.len() as u32));
    }

    /// The first value of this name, as it stood on the wire: values of `-bin` names are base64,
    /// see [`super::decode_base64`].
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.iter().map(|(name, value)| (self.slice(name), self.slice(value)))
    }

    /// Number of fields.
    #[must_use]
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// Whether there is no field.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Forgets all fields and keeps the memory.
    pub fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
    }

    fn slice(&self, range: &Range<u32>) -> &[u8] {
        &self.text[range.start as usize..range.end as usize]
    }
}
