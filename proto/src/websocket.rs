//! WebSocket's frames (RFC 6455), a server's side, without I/O.
//!
//! Used by the server's JSON gateway on connections of HTTP/1.1 that were upgraded. What a client
//! sends is handed on as it comes, so that nothing is held but the head of a frame and the payload
//! of a control frame. Must never hand on what is not masked.

use std::fmt;

/// Longest payload of a control frame, in bytes (RFC 6455 §5.5).
const CONTROL_BYTES_MAX: usize = 125;
/// Longest head of a frame, its mask included.
const HEAD_BYTES_MAX: usize = 14;

/// Opcodes.
const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What a client has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item<'a> {
    /// A piece of a message.
    Data(&'a [u8]),
    /// The message is complete.
    End,
    /// To be answered with the same payload.
    Ping(&'a [u8]),
    /// It ends the connection, for a reason of this code.
    Close(Option<u16>),
}

/// The client breaks the protocol: the connection is to end with code 1002.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProtocolError;

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("malformed WebSocket frame")
    }
}

/// A frame whose head has come.
#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: u8,
    is_last: bool,
    mask: [u8; 4],
    /// Bytes of its payload that have come, and that are to come.
    at: u64,
    left: u64,
}

/// Reads what a client sends.
#[derive(Debug, Default)]
pub struct Reader {
    head: Vec<u8>,
    frame: Option<Frame>,
    /// The payload of a control frame.
    control: Vec<u8>,
    /// A message is not complete.
    in_message: bool,
    scratch: Vec<u8>,
}

impl Reader {
    /// Takes bytes, and gives `then` what they complete.
    ///
    /// # Errors
    /// [`ProtocolError`]: nothing more is to be read.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        then: &mut dyn FnMut(Item<'_>),
    ) -> Result<(), ProtocolError> {
        while !bytes.is_empty() {
            let Some(mut frame) = self.frame else {
                self.head.push(bytes[0]);
                bytes = &bytes[1..];
                self.frame = self.read_head()?;
                if let Some(frame) = self.frame.filter(|frame| frame.left == 0) {
                    self.end_frame(frame, then);
                }
                continue;
            };
            let count = usize::try_from(frame.left).map_or(bytes.len(), |l| l.min(bytes.len()));
            let (piece, rest) = bytes.split_at(count);
            bytes = rest;
            self.scratch.clear();
            let mask = (frame.at..).map(|at| frame.mask[(at % 4) as usize]);
            self.scratch.extend(piece.iter().zip(mask).map(|(byte, mask)| byte ^ mask));
            frame.at += count as u64;
            frame.left -= count as u64;
            self.frame = Some(frame);
            if frame.opcode >= CLOSE {
                self.control.extend_from_slice(&self.scratch);
            } else {
                then(Item::Data(&self.scratch));
            }
            if frame.left == 0 {
                self.end_frame(frame, then);
            }
        }
        Ok(())
    }

    /// The frame whose head is complete, if it is.
    fn read_head(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let head = &self.head[..];
        let &[first, second, ref rest @ ..] = head else { return Ok(None) };
        let (opcode, is_last) = (first & 0x0f, first & 0x80 != 0);
        let is_control = opcode >= CLOSE;
        let is_known = matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG);
        // A message is not begun within another, nor continued outside of one.
        let fits = is_control || (opcode == CONTINUATION) == self.in_message;
        let short = usize::from(second & 0x7f);
        let is_long_control = is_control && (short > CONTROL_BYTES_MAX || !is_last);
        if first & 0x70 != 0 || !is_known || !fits || is_long_control || second & 0x80 == 0 {
            return Err(ProtocolError);
        }
        let length_bytes = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if rest.len() < length_bytes + 4 {
            return Ok(None);
        }
        let long = rest[..length_bytes].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        let left = if length_bytes == 0 { short as u64 } else { long };
        if left >> 63 != 0 {
            return Err(ProtocolError);
        }
        let mut mask = [0; 4];
        mask.copy_from_slice(&rest[length_bytes..length_bytes + 4]);
        assert!(self.head.len() <= HEAD_BYTES_MAX, "a head has so many bytes at most");
        self.head.clear();
        if !is_control {
            self.in_message = !is_last;
        }
        Ok(Some(Frame { opcode, is_last, mask, at: 0, left }))
    }

    fn end_frame(&mut self, frame: Frame, then: &mut dyn FnMut(Item<'_>)) {
        self.frame = None;
        match frame.opcode {
            CLOSE => {
                let code = self.control.first_chunk().map(|code| u16::from_be_bytes(*code));
                then(Item::Close(code));
            }
            PING => then(Item::Ping(&self.control)),
            PONG => {}
            _ if frame.is_last => then(Item::End),
            _ => {}
        }
        self.control.clear();
    }
}

/// Writes messages, in one frame or in several.
#[derive(Debug, Default)]
pub struct Writer {
    in_message: bool,
}

impl Writer {
    /// Appends a piece of a text message; `is_last` if it completes it.
    pub fn text(&mut self, piece: &[u8], is_last: bool, out: &mut Vec<u8>) {
        let opcode = if self.in_message { CONTINUATION } else { TEXT };
        self.in_message = !is_last;
        put_frame(opcode, is_last, piece, out);
    }
}

/// Appends the answer to a ping.
pub fn put_pong(payload: &[u8], out: &mut Vec<u8>) {
    put_frame(PONG, true, payload, out);
}

/// Appends the end of the connection; no code says nothing of the reason.
pub fn put_close(code: Option<u16>, out: &mut Vec<u8>) {
    let payload = code.map(u16::to_be_bytes);
    put_frame(CLOSE, true, payload.as_ref().map_or(&[], |code| &code[..]), out);
}

fn put_frame(opcode: u8, is_last: bool, payload: &[u8], out: &mut Vec<u8>) {
    out.push(opcode | if is_last { 0x80 } else { 0 });
    match payload.len() {
        short @ ..=125 => out.push(short as u8),
        middle @ ..=0xffff => {
            out.push(126);
            out.extend((middle as u16).to_be_bytes());
        }
        long => {
            out.push(127);
            out.extend((long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::*;

    /// A client's frame.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        put_frame(first & 0x0f, first & 0x80 != 0, payload, &mut frame);
        let at = frame.len() - payload.len();
        frame[1] |= 0x80;
        let mask = [1, 2, 3, 250];
        let hidden = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
        let hidden: Vec<u8> = hidden.collect();
        frame.truncate(at);
        [frame, mask.to_vec(), hidden].concat()
    }

    /// What comes of bytes: messages, pings and the close in one list of texts.
    fn read(bytes: &[u8], cut: usize) -> Result<Vec<String>, ProtocolError> {
        let mut reader = Reader::default();
        let (mut items, mut message) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(cut) {
            reader.push(piece, &mut |item| match item {
                Item::Data(data) => message.extend_from_slice(data),
                Item::End => items.push(hex(&std::mem::take(&mut message))),
                Item::Ping(payload) => items.push(format!("ping {}", hex(payload))),
                Item::Close(code) => items.push(format!("close {code:?}")),
            })?;
        }
        Ok(items)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn messages_come_whole_or_in_frames_with_control_frames_between() {
        let bytes = [
            masked(0x81, b"a"),
            masked(0x01, b"bc"),
            masked(0x89, b"d"),
            masked(0x00, b""),
            masked(0x80, b"e"),
            masked(0x8a, b"nothing"),
            masked(0x88, &1000u16.to_be_bytes()),
        ]
        .concat();
        for cut in [1, 2, 3, 1000] {
            let items = read(&bytes, cut).unwrap();
            assert_eq!(items, ["61", "ping 64", "626365", "close Some(1000)"]);
        }
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        let mut unmasked = Vec::new();
        put_frame(TEXT, true, b"x", &mut unmasked);
        let cases = [
            unmasked,
            masked(0x80, b"continues nothing"),
            [masked(0x01, b"a"), masked(0x81, b"b")].concat(),
            masked(0x83, b"unknown"),
            masked(0x09, b"a ping in parts"),
            masked(0x89, &[0; 126]),
            vec![0xc1, 0x80],
            vec![0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        ];
        for case in cases {
            assert_eq!(read(&case, 7), Err(ProtocolError), "{case:?}");
        }
    }

    proptest! {
        #[test]
        fn any_message_arrives_whatever_its_pieces(
            payload in prop::collection::vec(any::<u8>(), 0..70_000), cut in 1usize..5_000,
        ) {
            prop_assert_eq!(read(&masked(0x82, &payload), cut), Ok(vec![hex(&payload)]));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = read(&bytes, 3);
        }
    }
}
