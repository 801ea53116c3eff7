//! Reading DER, as far as certificates and revocation lists need it.
//!
//! Used by [`super::x509`]. Any bytes may come in: what is malformed is `None`, and nothing is
//! copied.

/// ASN.1's tags that are looked for.
pub(super) mod tag {
    pub(in crate::tls) const BOOLEAN: u8 = 0x01;
    pub(in crate::tls) const INTEGER: u8 = 0x02;
    pub(in crate::tls) const OCTET_STRING: u8 = 0x04;
    pub(in crate::tls) const OID: u8 = 0x06;
    pub(in crate::tls) const UTC_TIME: u8 = 0x17;
    pub(in crate::tls) const GENERALIZED_TIME: u8 = 0x18;
    pub(in crate::tls) const BMP_STRING: u8 = 0x1e;
    pub(in crate::tls) const SEQUENCE: u8 = 0x30;
    pub(in crate::tls) const SET: u8 = 0x31;
}

/// The rest of a row of elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct Der<'a>(pub(super) &'a [u8]);

impl<'a> Der<'a> {
    /// The tag of the next element.
    pub(super) fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    /// The next element: its tag and what it holds.
    pub(super) fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&[tag, first], mut rest) = self.0.split_first_chunk()?;
        let length = match first {
            0..=0x7f => usize::from(first),
            // More than four bytes of length would be more than any file has.
            0x81..=0x84 => {
                let (digits, after) = rest.split_at_checked(usize::from(first & 0x7f))?;
                rest = after;
                digits.iter().try_fold(0usize, |length, digit| {
                    length.checked_mul(256).map(|length| length | usize::from(*digit))
                })?
            }
            _ => return None,
        };
        let (content, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((tag, content))
    }

    /// What the next element holds, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, content) = self.next()?;
        (found == tag).then_some(content)
    }

    /// The elements in the next one, which must have this tag.
    pub(super) fn enter(&mut self, tag: u8) -> Option<Der<'a>> {
        self.expect(tag).map(Der)
    }

    /// Passes over the next element if it has this tag.
    pub(super) fn skip_if(&mut self, tag: u8) -> Option<()> {
        if self.peek() == Some(tag) {
            self.next()?;
        }
        Some(())
    }

    /// True if nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A number's bytes without zeros in front.
pub(super) fn magnitude(integer: &[u8]) -> &[u8] {
    let zeros = integer.iter().take_while(|byte| **byte == 0).count();
    &integer[zeros..]
}
