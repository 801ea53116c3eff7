//! The framings of etcd's two peer streams: bytes to messages and back.
//!
//! `message` carries any message behind its length. `msgapp` (msgappv2) carries appends: one that
//! continues the stream's last one leaves out what both sides can predict, term and index. Called
//! by the connections of [`super::transport`]. Input is a peer's: it may be cut anywhere, and
//! nothing in it may cause a panic or an allocation that it has not paid for in bytes.

use bytes::Bytes;
use etcore_proto::raftpb::{Entry, Message, MessageType};
use prost::Message as _;

use super::StreamKind;
use crate::limits;

/// A link heartbeat of msgappv2.
const HEARTBEAT: u8 = 0;
/// Entries whose term and index follow from what came before.
const ENTRIES: u8 = 1;
/// A whole message.
const WHOLE: u8 = 2;

/// Why a stream's bytes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A frame is longer than [`limits::PEER_MESSAGE_BYTES_MAX`].
    #[error("a message of {0} bytes")]
    TooLong(u64),
    /// A message has more entries than [`limits::PEER_MESSAGE_ENTRIES_MAX`].
    #[error("a message of {0} entries")]
    TooManyEntries(u64),
    /// msgappv2 knows no such frame.
    #[error("failed to parse type {0} in msgappv2 stream")]
    Type(u8),
    /// Not a message.
    #[error("malformed message: {0}")]
    Message(#[from] prost::DecodeError),
}

/// What both ends of a msgappv2 stream know: the position behind its last append.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Position {
    term: u64,
    index: u64,
}

impl Position {
    fn behind(message: &Message) -> Self {
        let last = message.entries.last().map_or(message.index, |entry| entry.index);
        Self { term: message.term.unwrap_or(0), index: last.unwrap_or(0) }
    }

    /// True if the receiver can tell term and index of this append.
    fn predicts(self, message: &Message) -> bool {
        message.r#type == Some(MessageType::MsgApp as i32)
            && message.index.unwrap_or(0) == self.index
            && message.log_term.unwrap_or(0) == self.term
            && message.term.unwrap_or(0) == self.term
    }
}

/// The writing end of a stream.
#[derive(Debug, Clone)]
pub struct Encoder {
    kind: StreamKind,
    position: Position,
}

impl Encoder {
    /// The start of a stream.
    pub fn new(kind: StreamKind) -> Self {
        Self { kind, position: Position::default() }
    }

    /// Appends a message's frame to `out`.
    pub fn encode(&mut self, message: &Message, out: &mut Vec<u8>) {
        match self.kind {
            StreamKind::Message => put_whole(message, out),
            StreamKind::Append if self.position.predicts(message) => {
                out.push(ENTRIES);
                put_number(message.entries.len() as u64, out);
                for entry in &message.entries {
                    put_number(entry.encoded_len() as u64, out);
                    entry.encode_raw(out);
                }
                put_number(message.commit.unwrap_or(0), out);
                self.position.index += message.entries.len() as u64;
            }
            StreamKind::Append => {
                out.push(WHOLE);
                put_whole(message, out);
                self.position = Position::behind(message);
            }
        }
    }

    /// Appends a frame that only says that the sender is there.
    pub fn encode_heartbeat(&mut self, out: &mut Vec<u8>) {
        match self.kind {
            StreamKind::Message => put_whole(&link_heartbeat(), out),
            StreamKind::Append => out.push(HEARTBEAT),
        }
    }
}

/// Never confused with raft's: those have a sender and a receiver.
fn link_heartbeat() -> Message {
    Message { r#type: Some(MessageType::MsgHeartbeat as i32), ..Message::default() }
}

fn is_link_heartbeat(message: &Message) -> bool {
    message.r#type == Some(MessageType::MsgHeartbeat as i32)
        && message.from.unwrap_or(0) == 0
        && message.to.unwrap_or(0) == 0
}

fn put_number(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_whole(message: &Message, out: &mut Vec<u8>) {
    put_number(message.encoded_len() as u64, out);
    message.encode_raw(out);
}

/// The reading end of a stream.
#[derive(Debug, Clone)]
pub struct Decoder {
    kind: StreamKind,
    local: u64,
    remote: u64,
    position: Position,
    /// The beginning of a frame whose rest has not come.
    partial: Vec<u8>,
    scan: Scan,
}

/// How far the frame at hand is understood.
#[derive(Debug, Clone, Copy, Default)]
struct Scan {
    /// Bytes of it that must be there for the next step.
    need: usize,
    /// In a frame of entries: where the next length stands, and how many follow.
    entries: Option<(usize, u64)>,
}

impl Decoder {
    /// The start of a stream from `remote` to `local`.
    pub fn new(kind: StreamKind, local: u64, remote: u64) -> Self {
        Self {
            kind,
            local,
            remote,
            position: Position::default(),
            partial: Vec::new(),
            scan: Scan::default(),
        }
    }

    /// Bytes held for a frame that is not complete.
    pub fn held_bytes(&self) -> usize {
        self.partial.len()
    }

    /// Takes what came and hands over the messages that are complete, link heartbeats left out.
    ///
    /// # Errors
    /// [`DecodeError`]; the stream is of no more use.
    pub fn receive(
        &mut self,
        mut piece: &[u8],
        deliver: &mut dyn FnMut(Message),
    ) -> Result<(), DecodeError> {
        while !piece.is_empty() {
            if self.partial.is_empty() {
                match frame_length(self.kind, &mut self.scan, piece)? {
                    Some(length) => {
                        let frame = Bytes::copy_from_slice(&piece[..length]);
                        piece = &piece[length..];
                        self.take(frame, deliver)?;
                    }
                    None => {
                        self.partial.extend_from_slice(piece);
                        return Ok(());
                    }
                }
            } else {
                let missing = self.scan.need - self.partial.len();
                let (now, later) = piece.split_at(missing.min(piece.len()));
                self.partial.extend_from_slice(now);
                piece = later;
                if now.len() == missing
                    && frame_length(self.kind, &mut self.scan, &self.partial)?.is_some()
                {
                    let frame = Bytes::from(std::mem::take(&mut self.partial));
                    self.take(frame, deliver)?;
                }
            }
        }
        Ok(())
    }

    /// Reads a whole frame. Entries share its memory.
    fn take(&mut self, frame: Bytes, deliver: &mut dyn FnMut(Message)) -> Result<(), DecodeError> {
        self.scan = Scan::default();
        let whole = match self.kind {
            StreamKind::Message => 8,
            StreamKind::Append => match frame[0] {
                HEARTBEAT => return Ok(()),
                ENTRIES => {
                    deliver(self.take_entries(&frame)?);
                    return Ok(());
                }
                _ => 9,
            },
        };
        let message = decode_message(frame.slice(whole..))?;
        if self.kind == StreamKind::Append {
            self.position = Position::behind(&message);
        }
        if !is_link_heartbeat(&message) {
            deliver(message);
        }
        Ok(())
    }

    fn take_entries(&mut self, frame: &Bytes) -> Result<Message, DecodeError> {
        let count = number_at(frame, 1);
        let Position { term, index } = self.position;
        let mut message = Message {
            r#type: Some(MessageType::MsgApp as i32),
            to: Some(self.local),
            from: Some(self.remote),
            term: Some(term),
            log_term: Some(term),
            index: Some(index),
            entries: Vec::with_capacity(usize::try_from(count).unwrap_or(0)),
            ..Message::default()
        };
        let mut at = 9;
        for _ in 0..count {
            let start = at + 8;
            at = start + usize::try_from(number_at(frame, at)).unwrap_or(0);
            message.entries.push(Entry::decode(frame.slice(start..at))?);
        }
        message.commit = Some(number_at(frame, at));
        self.position.index = index.wrapping_add(count);
        Ok(message)
    }
}

/// The length of the frame at the start of `input`, or `None` if it is not complete; `scan.need`
/// then says how much of it must be there.
fn frame_length(
    kind: StreamKind,
    scan: &mut Scan,
    input: &[u8],
) -> Result<Option<usize>, DecodeError> {
    let whole = match kind {
        StreamKind::Message => 0,
        StreamKind::Append => match input.first() {
            Some(&HEARTBEAT) => return Ok(Some(1)),
            Some(&ENTRIES) => return entries_length(scan, input),
            Some(&WHOLE) => 1,
            Some(&other) => return Err(DecodeError::Type(other)),
            None => {
                scan.need = 1;
                return Ok(None);
            }
        },
    };
    scan.need = whole + 8;
    if input.len() < scan.need {
        return Ok(None);
    }
    scan.need += checked(number_at(input, whole))?;
    Ok((input.len() >= scan.need).then_some(scan.need))
}

fn entries_length(scan: &mut Scan, input: &[u8]) -> Result<Option<usize>, DecodeError> {
    scan.need = scan.need.max(9);
    if input.len() < 9 {
        return Ok(None);
    }
    let (mut at, mut left) = match scan.entries {
        Some(place) => place,
        None => {
            let count = number_at(input, 1);
            if count > limits::PEER_MESSAGE_ENTRIES_MAX {
                return Err(DecodeError::TooManyEntries(count));
            }
            (9, count)
        }
    };
    while left > 0 {
        scan.need = at + 8;
        scan.entries = Some((at, left));
        if input.len() < scan.need {
            return Ok(None);
        }
        let end = scan.need + checked(number_at(input, at))?;
        checked(end as u64)?;
        scan.need = end;
        if input.len() < end {
            return Ok(None);
        }
        at = end;
        left -= 1;
    }
    scan.entries = Some((at, 0));
    scan.need = at + 8;
    Ok((input.len() >= scan.need).then_some(scan.need))
}

fn checked(length: u64) -> Result<usize, DecodeError> {
    match usize::try_from(length) {
        Ok(bytes) if length <= limits::PEER_MESSAGE_BYTES_MAX => Ok(bytes),
        _ => Err(DecodeError::TooLong(length)),
    }
}

/// The eight bytes at `at`, which must be there.
fn number_at(input: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&input[at..at + 8]);
    u64::from_be_bytes(bytes)
}

/// Reads a message whose entries' data and contexts share `bytes`.
///
/// # Errors
/// [`DecodeError::Message`] and [`DecodeError::TooManyEntries`].
pub fn decode_message(bytes: Bytes) -> Result<Message, DecodeError> {
    let entries = count_entries(&bytes);
    if entries > limits::PEER_MESSAGE_ENTRIES_MAX {
        return Err(DecodeError::TooManyEntries(entries));
    }
    Ok(Message::decode(bytes)?)
}

/// Field 7 (entries) as a length-delimited key.
const ENTRIES_KEY: u64 = 7 << 3 | 2;

/// How often the field of entries stands in an encoded message, or could behind a group, which no
/// peer sends; stops where it cannot be read. An empty entry takes two bytes there and a hundred in
/// memory.
fn count_entries(mut rest: &[u8]) -> u64 {
    let mut count = 0;
    while let Some(key) = varint(&mut rest) {
        let skip = match key & 7 {
            0 => {
                if varint(&mut rest).is_none() {
                    return count;
                }
                0
            }
            1 => 8,
            2 => match varint(&mut rest) {
                Some(length) => length,
                None => return count,
            },
            5 => 4,
            _ => return count + rest.len() as u64 / 2,
        };
        count += u64::from(key == ENTRIES_KEY);
        match usize::try_from(skip).ok().and_then(|skip| rest.get(skip..)) {
            Some(tail) => rest = tail,
            None => return count,
        }
    }
    count
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in 0..10 {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << (7 * shift);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
