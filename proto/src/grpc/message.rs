//! A request's message, and the room around a large one.
//!
//! Made by the server for its owner, who may have to put a large message into an envelope of its
//! own: what stands before and behind it is then written where it is, instead of copying megabytes.

use std::ops::Deref;

use bytes::Bytes;

use super::MESSAGE_PREFIX_BYTES;

/// Bytes before a large message: what its prefix took on the wire.
pub(super) const ROOM_BEFORE_BYTES: usize = MESSAGE_PREFIX_BYTES;
/// Bytes behind it.
pub(super) const ROOM_BEHIND_BYTES: usize = 32;

/// See the module text. Invariant: `start <= whole.len()`.
#[derive(Debug, Clone)]
pub struct Message {
    whole: Bytes,
    start: usize,
}

impl Message {
    /// A message that begins behind `start` bytes of room, in a buffer with room behind it.
    pub(super) fn with_room(whole: Vec<u8>, start: usize) -> Self {
        assert!(start <= whole.len(), "the room is in the buffer");
        Self { whole: Bytes::from(whole), start }
    }

    /// True if [`Message::wrap`] needs no copy, unless somebody else holds a part of it.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.start > 0
    }

    /// The message alone.
    #[must_use]
    pub fn into_bytes(mut self) -> Bytes {
        self.whole.split_off(self.start)
    }

    /// The message between `before` and `behind`, in place if there is room and nobody else holds
    /// a part of it, else copied.
    #[must_use]
    pub fn wrap(self, before: &[u8], behind: &[u8]) -> Bytes {
        let copied = |message: &[u8]| [before, message, behind].concat().into();
        let Some(start) = self.start.checked_sub(before.len()).filter(|_| self.has_room()) else {
            return copied(&self);
        };
        match self.whole.try_into_mut() {
            Ok(mut whole) => {
                whole[start..self.start].copy_from_slice(before);
                // Takes memory only if the room is too small.
                whole.extend_from_slice(behind);
                whole.freeze().split_off(start)
            }
            Err(whole) => copied(&whole[self.start..]),
        }
    }
}

impl From<Bytes> for Message {
    fn from(whole: Bytes) -> Self {
        Self { whole, start: 0 }
    }
}

impl Deref for Message {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.whole[self.start..]
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Message {}

#[cfg(test)]
mod tests {
    use super::*;

    fn large() -> (Vec<u8>, *const u8) {
        let mut whole = Vec::with_capacity(ROOM_BEFORE_BYTES + 100_000 + ROOM_BEHIND_BYTES);
        whole.extend([0; ROOM_BEFORE_BYTES]);
        whole.extend([7; 100_000]);
        let at = whole.as_ptr();
        (whole, at)
    }

    #[test]
    fn a_large_message_is_wrapped_where_it_is() {
        let (whole, at) = large();
        let message = Message::with_room(whole, ROOM_BEFORE_BYTES);
        assert_eq!(message.len(), 100_000);
        let wrapped = message.wrap(b"abcd", &[9; ROOM_BEHIND_BYTES]);
        assert_eq!(wrapped.as_ptr(), at.wrapping_add(1));
        assert_eq!(wrapped.len(), 4 + 100_000 + ROOM_BEHIND_BYTES);
        assert!(wrapped.starts_with(b"abcd\x07"));
        assert_eq!(wrapped[4 + 99_999..][..2], [7, 9]);
    }

    #[test]
    fn what_somebody_else_holds_is_copied_and_stays_as_it_is() {
        let (whole, _) = large();
        let message = Message::with_room(whole, ROOM_BEFORE_BYTES);
        let held = message.clone();
        let wrapped = message.wrap(b"abcde", b"f");
        assert!(held.iter().all(|byte| *byte == 7));
        assert_eq!((&wrapped[..6], wrapped.last()), (&b"abcde\x07"[..], Some(&b'f')));
        assert_eq!(wrapped.len(), 100_006);
    }

    #[test]
    fn small_messages_and_large_envelopes_are_copied() {
        let message = Message::from(Bytes::from_static(b"small"));
        assert_eq!(message.wrap(b"<", b">"), "<small>");
        let (whole, _) = large();
        let wrapped = Message::with_room(whole, ROOM_BEFORE_BYTES).wrap(b"too long", b"");
        assert_eq!((&wrapped[..9], wrapped.len()), (&b"too long\x07"[..], 100_008));
        let (whole, _) = large();
        assert_eq!(Message::with_room(whole, ROOM_BEFORE_BYTES).into_bytes().len(), 100_000);
    }
}
