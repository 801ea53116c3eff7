//! The rules of RFC 9113 §8 for header lists, checked field by field while a block is decoded.
//!
//! Used by `h2::conn`, which wraps the handler's sink in a [`CheckedSink`]. Must never keep a
//! field.

use crate::hpack::{Field, FieldSink, NameClass};

/// What a header block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// The first block of a request.
    Request,
    /// The first final block of a response.
    Response,
    /// A 1xx block before the response.
    Interim,
    /// The block after the body.
    Trailers,
}

/// Passes fields on while they are well-formed and within the size limit.
pub(super) struct CheckedSink<'a, S> {
    sink: &'a mut S,
    check: BlockCheck,
}

/// What was seen of a block.
#[derive(Debug)]
pub(super) struct BlockCheck {
    expected: BlockKind,
    list_bytes: usize,
    list_bytes_max: usize,
    /// One bit for each pseudo field seen, by [`NameClass`].
    pseudo_seen: u16,
    regular_seen: bool,
    malformed: bool,
    method_is_connect: bool,
    path_is_empty: bool,
    pub(super) status: u16,
    pub(super) content_length: Option<u64>,
}

impl<'a, S: FieldSink> CheckedSink<'a, S> {
    pub(super) fn new(sink: &'a mut S, check: BlockCheck) -> Self {
        CheckedSink { sink, check }
    }

    pub(super) fn into_check(self) -> BlockCheck {
        self.check
    }
}

impl BlockCheck {
    pub(super) fn new(expected: BlockKind, list_bytes_max: usize) -> Self {
        BlockCheck {
            expected,
            list_bytes: 0,
            list_bytes_max,
            pseudo_seen: 0,
            regular_seen: false,
            malformed: false,
            method_is_connect: false,
            path_is_empty: false,
            status: 0,
            content_length: None,
        }
    }

    /// A field was too long to be looked at.
    pub(super) fn see_oversized(&mut self) {
        self.list_bytes = usize::MAX;
    }
}

impl<S: FieldSink> FieldSink for CheckedSink<'_, S> {
    fn classify(&mut self, name: &[u8], value: &[u8]) -> u32 {
        self.sink.classify(name, value)
    }

    #[inline]
    fn field(&mut self, field: Field<'_>) {
        self.check.see(&field);
        if !self.check.malformed && !self.check.is_oversized() {
            self.sink.field(field);
        }
    }
}

impl BlockCheck {
    #[inline]
    fn see(&mut self, field: &Field<'_>) {
        self.list_bytes = self.list_bytes.saturating_add(field.name.len() + field.value.len() + 32);
        match field.class {
            NameClass::Regular | NameClass::Host => self.regular_seen = true,
            NameClass::ContentLength => {
                self.regular_seen = true;
                self.see_content_length(field.value);
            }
            NameClass::Method
            | NameClass::Scheme
            | NameClass::Authority
            | NameClass::Path
            | NameClass::Status => self.see_pseudo(field),
            NameClass::UnknownPseudo | NameClass::ConnectionSpecific | NameClass::Invalid => {
                self.malformed = true;
            }
        }
    }

    fn see_pseudo(&mut self, field: &Field<'_>) {
        let bit = 1 << field.class as u16;
        let of_response = field.class == NameClass::Status;
        let fits = match self.expected {
            BlockKind::Request => !of_response,
            BlockKind::Response | BlockKind::Interim => of_response,
            BlockKind::Trailers => false,
        };
        if !fits || self.regular_seen || self.pseudo_seen & bit != 0 {
            self.malformed = true;
        }
        self.pseudo_seen |= bit;
        match field.class {
            NameClass::Method => self.method_is_connect = field.value == b"CONNECT",
            NameClass::Path => self.path_is_empty = field.value.is_empty(),
            NameClass::Status => match field.value {
                [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
                    let digit = |byte: &u8| u16::from(byte - b'0');
                    self.status = digit(a) * 100 + digit(b) * 10 + digit(c);
                }
                _ => self.malformed = true,
            },
            _ => {}
        }
    }

    fn see_content_length(&mut self, value: &[u8]) {
        let mut length = 0u64;
        for byte in value {
            let digit = byte.wrapping_sub(b'0');
            match length.checked_mul(10).and_then(|tens| tens.checked_add(u64::from(digit))) {
                Some(next) if digit < 10 => length = next,
                _ => self.malformed = true,
            }
        }
        if value.is_empty() || self.content_length.is_some_and(|earlier| earlier != length) {
            self.malformed = true;
        }
        self.content_length = Some(length);
    }

    /// The list is larger than allowed; its tail was not passed on.
    pub(super) fn is_oversized(&self) -> bool {
        self.list_bytes > self.list_bytes_max
    }

    /// Whether the whole list obeys the standard.
    pub(super) fn is_well_formed(&self) -> bool {
        let has = |class: NameClass| self.pseudo_seen & (1 << class as u16) != 0;
        let complete = match self.expected {
            BlockKind::Request if self.method_is_connect => {
                has(NameClass::Authority) && !has(NameClass::Scheme) && !has(NameClass::Path)
            }
            BlockKind::Request => {
                has(NameClass::Method)
                    && has(NameClass::Scheme)
                    && has(NameClass::Path)
                    && !self.path_is_empty
            }
            BlockKind::Response | BlockKind::Interim => has(NameClass::Status),
            BlockKind::Trailers => true,
        };
        complete && !self.malformed
    }
}
