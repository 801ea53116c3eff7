//! Encoded parts of an answer, held in pieces of some tens of kilobytes: so that one of any size is
//! put together without being copied as it grows, shared by all who asked for it, and given back
//! piece by piece as it is sent.
//!
//! Made by the replica about leases, and sent by the fronts ([`answer`](super::answer)).

use std::collections::VecDeque;

use bytes::Bytes;

use crate::limits;

/// See the module text. Invariant: `len_bytes` is the length of `whole`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pieces {
    whole: VecDeque<Bytes>,
    open: Vec<u8>,
    len_bytes: u64,
}

impl Pieces {
    /// The next bytes are appended here, and followed by [`Pieces::end_record`].
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.open
    }

    /// A record is complete.
    pub fn end_record(&mut self) {
        if self.open.len() >= limits::RANGE_CHUNK_BYTES {
            self.seal();
            // The last record of a piece may go a little beyond.
            self.open.reserve(limits::RANGE_CHUNK_BYTES + 64);
        }
    }

    /// Nothing more comes.
    #[must_use]
    pub fn sealed(mut self) -> Self {
        self.seal();
        self
    }

    fn seal(&mut self) {
        let bytes = std::mem::take(&mut self.open);
        if !bytes.is_empty() {
            self.len_bytes += bytes.len() as u64;
            self.whole.push_back(bytes.into());
        }
    }

    /// Bytes of all pieces, once sealed.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The pieces.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.whole.iter()
    }

    /// Moves up to `room` bytes to the end of `out`; true if nothing is left.
    pub fn write(&mut self, room: usize, out: &mut Vec<u8>) -> bool {
        let end = out.len() + room;
        while out.len() < end
            && let Some(first) = self.whole.front_mut()
        {
            let part = first.split_to(first.len().min(end - out.len()));
            out.extend_from_slice(&part);
            self.len_bytes -= part.len() as u64;
            if first.is_empty() {
                self.whole.pop_front();
            }
        }
        self.whole.is_empty()
    }
}

/// What tests find in pieces.
#[cfg(test)]
pub(crate) mod reading {
    use etcore_proto::pb::etcdserverpb as pb;
    use prost::Message as _;

    use super::Pieces;

    /// The IDs in fields of a LeaseLeasesResponse.
    pub(crate) fn ids_of(pieces: &Pieces) -> Vec<i64> {
        let bytes: Vec<u8> = pieces.iter().flatten().copied().collect();
        let response = pb::LeaseLeasesResponse::decode(&bytes[..]);
        let response = response.expect("the replica has encoded its fields");
        response.leases.into_iter().map(|lease| lease.id).collect()
    }

    /// The keys in fields of a LeaseTimeToLiveResponse.
    pub(crate) fn keys_of(pieces: &Pieces) -> Vec<Vec<u8>> {
        let bytes: Vec<u8> = pieces.iter().flatten().copied().collect();
        let response = pb::LeaseTimeToLiveResponse::decode(&bytes[..]);
        let response = response.expect("the replica has encoded its fields");
        response.keys.into_iter().map(|key| key.to_vec()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_in_parts_is_what_was_put_in() {
        let mut pieces = Pieces::default();
        let mut expected = Vec::new();
        for number in 0..40_000_u32 {
            let record = number.to_be_bytes();
            pieces.bytes().extend_from_slice(&record);
            pieces.end_record();
            expected.extend_from_slice(&record);
        }
        let mut pieces = pieces.sealed();
        assert_eq!(pieces.len_bytes(), expected.len() as u64);
        assert!(pieces.iter().count() > 1);
        let mut out = Vec::new();
        for room in [0, 1, 70_000, 3] {
            assert!(!pieces.write(room, &mut out));
        }
        assert_eq!(out.len(), 70_004);
        assert!(pieces.write(usize::MAX / 2, &mut out));
        assert_eq!((out, pieces.len_bytes()), (expected, 0));
    }
}
