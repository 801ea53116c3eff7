//! One record of the log: etcd's frame around a `walpb.Record`.
//!
//! Called by the writer (encode) and by the scanner and the inspector (decode). FORMAT.md draws the
//! bytes. Encoding must not allocate; decoding must not trust a length before the file has it.

use bytes::Bytes;
use etcore_engine::file::AlignedBuf;

/// Bytes of the length word in front of every record.
pub(crate) const FRAME_BYTES: usize = 8;

/// What a record's data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKind {
    /// `etcdserverpb.Metadata`, at the head of every segment.
    Metadata = 1,
    /// `raftpb.Entry`.
    Entry = 2,
    /// `raftpb.HardState`; ends every batch this crate writes.
    State = 3,
    /// The rolling checksum so far, first in every segment; has no data.
    Crc = 4,
    /// `walpb.Snapshot`.
    Snapshot = 5,
}

impl RecordKind {
    fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Metadata,
            2 => Self::Entry,
            3 => Self::State,
            4 => Self::Crc,
            5 => Self::Snapshot,
            _ => return None,
        })
    }
}

/// A decoded record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// What `data` is.
    pub kind: RecordKind,
    /// The checksum as stored.
    pub crc: u32,
    /// The message.
    pub data: Bytes,
}

/// The two numbers in a frame's length word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) record_bytes: u64,
    pub(crate) pad_bytes: u64,
}

impl Frame {
    pub(crate) fn for_record(record_bytes: u64) -> Self {
        Self { record_bytes, pad_bytes: record_bytes.wrapping_neg() % 8 }
    }

    pub(crate) fn from_word(word: u64) -> Self {
        let pad_bytes = if word >> 63 == 1 { word >> 56 & 7 } else { 0 };
        Self { record_bytes: word & (u64::MAX >> 8), pad_bytes }
    }

    pub(crate) fn word(self) -> u64 {
        match self.pad_bytes {
            0 => self.record_bytes,
            pad => self.record_bytes | (0x80 | pad) << 56,
        }
    }

    /// True if an encoder could have written `word`. Anything else is a damaged length.
    pub(crate) fn is_canonical(self, word: u64) -> bool {
        self.word() == word && self == Self::for_record(self.record_bytes)
    }

    /// The bytes behind the record.
    fn padding(self) -> &'static [u8] {
        &[0; 7][..self.pad_bytes as usize]
    }

    /// Length word, record and padding.
    pub(crate) fn total_bytes(self) -> u64 {
        FRAME_BYTES as u64 + self.record_bytes + self.pad_bytes
    }
}

/// Most bytes a record with `data_bytes` of data takes in the file.
pub(crate) fn framed_bytes_max(data_bytes: u64) -> u64 {
    const KIND: u64 = 2;
    const CRC: u64 = 6;
    const DATA_HEAD: u64 = 11;
    const PAD: u64 = 7;
    FRAME_BYTES as u64 + KIND + CRC + DATA_HEAD + data_bytes + PAD
}

/// Most bytes an entry with `data_bytes` of data takes in the file.
pub(crate) fn framed_entry_bytes_max(data_bytes: u64) -> u64 {
    framed_bytes_max(data_bytes + ENTRY_HEAD_BYTES as u64)
}

/// Type, term, index, and tag and length of the data: 2 + 11 + 11 + 11.
const ENTRY_HEAD_BYTES: usize = 35;

/// A payload is added to the checksum and copied in pieces of this size, so that the copy finds in
/// the core's cache what the checksum has read: megabytes otherwise come from memory twice.
const PIECE_BYTES: usize = 48 << 10;

/// Appends a record whose data is `head` followed by `payload`, and moves the rolling checksum on.
pub(crate) fn encode(
    out: &mut AlignedBuf,
    kind: RecordKind,
    crc: &mut u32,
    head: &[u8],
    payload: &[u8],
) {
    *crc = crc32c::crc32c_append(*crc, head);
    if payload.len() > PIECE_BYTES {
        return encode_large(out, kind, crc, head, payload);
    }
    *crc = crc32c::crc32c_append(*crc, payload);
    let prefix = prefix_of(kind, *crc, head.len() + payload.len());
    let frame = Frame::for_record((prefix.len + head.len() + payload.len()) as u64);
    let word = frame.word().to_le_bytes();
    out.extend_from_parts(&[&word, prefix.as_slice(), head, payload, frame.padding()]);
}

/// What [`encode`] does for a large payload; `crc` covers `head` already.
fn encode_large(
    out: &mut AlignedBuf,
    kind: RecordKind,
    crc: &mut u32,
    head: &[u8],
    payload: &[u8],
) {
    let data_bytes = head.len() + payload.len();
    // How long the prefix is depends on the checksum, which is known only when the payload is where
    // it goes: nearly always five bytes.
    let guessed = FRAME_BYTES + prefix_of(kind, u32::MAX, data_bytes).len + head.len();
    let record = out.extend_unset(guessed + payload.len());
    let pieces = record[guessed..].chunks_mut(PIECE_BYTES).zip(payload.chunks(PIECE_BYTES));
    for (here, piece) in pieces {
        *crc = crc32c::crc32c_append(*crc, piece);
        here.copy_from_slice(piece);
    }
    let prefix = prefix_of(kind, *crc, data_bytes);
    let frame = Frame::for_record((prefix.len + data_bytes) as u64);
    let start = FRAME_BYTES + prefix.len + head.len();
    if start < guessed {
        record.copy_within(guessed.., start);
    }
    let word = frame.word().to_le_bytes();
    let mut rest = &mut record[..start];
    for part in [&word[..], prefix.as_slice(), head] {
        let (here, behind) = rest.split_at_mut(part.len());
        here.copy_from_slice(part);
        rest = behind;
    }
    out.resize(out.len() - (guessed - start));
    out.extend_from_slice(frame.padding());
}

/// The fields before a record's data.
fn prefix_of(kind: RecordKind, crc: u32, data_bytes: usize) -> Small<24> {
    let mut prefix = Small::new();
    prefix.byte(0x08);
    prefix.byte(kind as u8);
    prefix.byte(0x10);
    prefix.varint(u64::from(crc));
    if kind != RecordKind::Crc {
        prefix.byte(0x1a);
        prefix.varint(data_bytes as u64);
    }
    prefix
}

/// Appends a `raftpb.Entry`.
pub(crate) fn encode_entry(
    out: &mut AlignedBuf,
    crc: &mut u32,
    entry_type: u8,
    term: u64,
    index: u64,
    data: &[u8],
) {
    let mut head = Small::<ENTRY_HEAD_BYTES>::new();
    head.byte(0x08);
    head.byte(entry_type);
    head.byte(0x10);
    head.varint(term);
    head.byte(0x18);
    head.varint(index);
    if !data.is_empty() {
        head.byte(0x22);
        head.varint(data.len() as u64);
    }
    encode(out, RecordKind::Entry, crc, head.as_slice(), data);
}

/// Appends a `raftpb.HardState`.
pub(crate) fn encode_state(out: &mut AlignedBuf, crc: &mut u32, term: u64, vote: u64, commit: u64) {
    let mut head = Small::<33>::new();
    for (tag, value) in [(0x08, term), (0x10, vote), (0x18, commit)] {
        head.byte(tag);
        head.varint(value);
    }
    encode(out, RecordKind::State, crc, head.as_slice(), &[]);
}

/// Appends a checksum record, which is what a segment begins with.
pub(crate) fn encode_crc(out: &mut AlignedBuf, crc: &mut u32) {
    encode(out, RecordKind::Crc, crc, &[], &[]);
}

/// Decodes the bytes of one record, without frame and padding. `None` if they are not a record in
/// the one spelling that etcd and this crate write: type, checksum and data in this order, shortest
/// lengths. The checksum covers only the data, so any other spelling is damage.
pub(crate) fn decode(bytes: &[u8]) -> Option<Record> {
    let [0x08, kind, 0x10, rest @ ..] = bytes else { return None };
    let kind = RecordKind::from_wire(*kind)?;
    let (crc, rest) = take_varint(rest)?;
    let data = match rest {
        [] => &[],
        [0x1a, rest @ ..] => {
            let (data_bytes, data) = take_varint(rest)?;
            (data_bytes == data.len() as u64).then_some(data)?
        }
        _ => return None,
    };
    Some(Record { kind, crc: u32::try_from(crc).ok()?, data: Bytes::copy_from_slice(data) })
}

/// True if `start`, the first bytes of a damaged record that reached the device, could be those of
/// a record of `record_bytes`: they name the data's length, and a torn write loses whole sectors
/// but changes no byte. `start` may end anywhere.
pub(crate) fn head_agrees(start: &[u8], record_bytes: u64) -> bool {
    let [0x08, kind, 0x10, rest @ ..] = start else { return start.len() < 3 };
    if RecordKind::from_wire(*kind).is_none() {
        return false;
    }
    let Some((crc, rest)) = take_varint(rest) else { return rest.len() < 5 };
    if u32::try_from(crc).is_err() {
        return false;
    }
    let data = match rest {
        [] => return true,
        [0x1a, data @ ..] => data,
        _ => return false,
    };
    let Some((data_bytes, behind)) = take_varint(data) else { return data.len() < 10 };
    let head_bytes = (start.len() - behind.len()) as u64;
    head_bytes.checked_add(data_bytes) == Some(record_bytes)
}

/// A number in its shortest form, and what follows it.
fn take_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        value |= bits << (7 * at);
        if byte & 0x80 == 0 {
            let shortest = at == 0 || *byte != 0;
            let fits = at < 9 || *byte <= 1;
            return (shortest && fits).then_some((value, &bytes[at + 1..]));
        }
    }
    None
}

/// A few bytes on the stack.
struct Small<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Small<N> {
    fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    fn byte(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.byte(value as u8 | 0x80);
            value >>= 7;
        }
        self.byte(value as u8);
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_has_the_bytes_etcd_writes() {
        let mut out = AlignedBuf::default();
        let mut crc = 0;
        encode_crc(&mut out, &mut crc);
        // Length 4 and 4 bytes of padding; type 4, crc 0.
        assert_eq!(out[..], [4, 0, 0, 0, 0, 0, 0, 0x84, 8, 4, 0x10, 0, 0, 0, 0, 0]);
        out.clear();
        encode_entry(&mut out, &mut crc, 0, 2, 3, b"hi");
        let data = [8, 0, 0x10, 2, 0x18, 3, 0x22, 2, b'h', b'i'];
        assert_eq!(crc, crc32c::crc32c(&data));
        let record = decode(&out[FRAME_BYTES..FRAME_BYTES + out[0] as usize]).expect("a record");
        assert_eq!(record, Record { kind: RecordKind::Entry, crc, data: data.to_vec().into() });
        assert_eq!(out.len() % 8, 0);
    }

    #[test]
    fn records_and_messages_are_spelled_as_by_prost() {
        use etcore_proto::raftpb;
        use prost::Message as _;

        for (term, index, len) in [(1, 1, 0), (127, 128, 1), (300, 70_000, 127), (1, 9, 70_000)] {
            let data = Bytes::from(vec![7; len]);
            let (mut out, mut crc) = (AlignedBuf::default(), 5);
            encode_entry(&mut out, &mut crc, 1, term, index, &data);
            let entry = raftpb::Entry {
                r#type: Some(1),
                term: Some(term),
                index: Some(index),
                data: (!data.is_empty()).then_some(data),
            };
            let data = Some(Bytes::from(entry.encode_to_vec()));
            let record = raftpb::WalRecord { r#type: Some(2), crc: Some(crc), data };
            let bytes = record.encode_to_vec();
            assert_eq!(out[FRAME_BYTES..FRAME_BYTES + bytes.len()], bytes);
            let (mut out, mut crc) = (AlignedBuf::default(), crc);
            encode_state(&mut out, &mut crc, term, u64::MAX, index);
            let state =
                raftpb::HardState { term: Some(term), vote: Some(u64::MAX), commit: Some(index) };
            let data = Some(Bytes::from(state.encode_to_vec()));
            let record = raftpb::WalRecord { r#type: Some(3), crc: Some(crc), data };
            let bytes = record.encode_to_vec();
            assert_eq!(out[FRAME_BYTES..FRAME_BYTES + bytes.len()], bytes);
        }
    }

    #[test]
    fn large_payloads_are_spelled_like_small_ones_whatever_their_checksum() {
        use etcore_proto::raftpb;
        use prost::Message as _;

        let mut out = AlignedBuf::from(&[0xff; 4 * PIECE_BYTES][..]);
        let mut lengths = [0; 6];
        for round in 0..300u32 {
            out.clear();
            out.extend_from_slice(b"the block");
            let start = out.len();
            let payload = vec![round as u8; 2 * PIECE_BYTES - 150 + round as usize];
            let mut crc = round;
            encode(&mut out, RecordKind::Entry, &mut crc, b"head", &payload);
            let data = [b"head", &payload[..]].concat();
            assert_eq!(crc, crc32c::crc32c_append(round, &data));
            lengths[prost::encoding::encoded_len_varint(crc.into())] += 1;
            let record =
                raftpb::WalRecord { r#type: Some(2), crc: Some(crc), data: Some(data.into()) };
            let bytes = record.encode_to_vec();
            let frame = Frame::for_record(bytes.len() as u64);
            let mut wanted = b"the block".to_vec();
            wanted.extend(frame.word().to_le_bytes());
            wanted.extend(bytes);
            wanted.resize(start + frame.total_bytes() as usize, 0);
            assert!(out[..] == wanted[..], "round {round}");
        }
        assert!(lengths[4] > 0 && lengths[5] > 0, "{lengths:?}");
    }

    #[test]
    fn every_length_survives_the_length_word() {
        for record_bytes in 0..4096 {
            let frame = Frame::for_record(record_bytes);
            assert_eq!(frame.total_bytes() % 8, 0);
            assert_eq!(Frame::from_word(frame.word()), frame);
            assert!(frame.is_canonical(frame.word()));
            for bit in 0..64 {
                let word = frame.word() ^ 1 << bit;
                let flipped = Frame::from_word(word);
                assert!(!flipped.is_canonical(word) || flipped.record_bytes != record_bytes);
            }
        }
    }

    #[test]
    fn the_longest_head_fits() {
        let mut out = AlignedBuf::default();
        let mut crc = 1;
        encode_entry(&mut out, &mut crc, 2, u64::MAX, u64::MAX, &[7; 300]);
        assert!(out.len() as u64 <= framed_entry_bytes_max(300));
        encode_state(&mut out, &mut crc, u64::MAX, u64::MAX, u64::MAX);
    }
}
