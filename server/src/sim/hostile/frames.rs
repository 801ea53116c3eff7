//! Frames of HTTP/2 written without its rules, and what a hostile client understands of those that
//! come: enough to keep to windows when it wants to, and to answer.
//!
//! Used by the generator. It must never fail on what comes.

use std::collections::BTreeMap;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITY_FLAG: u8 = 0x20;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A frame's head.
const HEAD_BYTES: usize = 9;
/// Only so much of a frame is looked at.
const LOOKED_AT_BYTES: usize = 64;
const WINDOW: i64 = 65_535;

/// One frame.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame").to_be_bytes();
    let head = [length[1], length[2], length[3], kind, flags];
    [&head[..], &stream.to_be_bytes(), payload].concat()
}

/// One setting.
pub(super) fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// What was understood of the frames that came.
pub(super) struct Heard {
    /// The frame that is coming: its head and the beginning of its payload.
    begun: Vec<u8>,
    /// Bytes of it that have come.
    come: usize,
    /// What it may send on the connection, and on streams beyond their first window.
    pub(super) window: i64,
    streams: BTreeMap<u32, i64>,
    /// First window of streams.
    first_window: i64,
    /// Payload to answer a ping with.
    pub(super) pings: Vec<[u8; 8]>,
    pub(super) settings: u32,
    /// Data that came, by stream; what it has not given credit for.
    pub(super) data: BTreeMap<u32, u32>,
    /// No more streams are taken.
    pub(super) is_over: bool,
}

impl Heard {
    pub(super) fn new() -> Self {
        Self {
            begun: Vec::new(),
            come: 0,
            window: WINDOW,
            streams: BTreeMap::new(),
            first_window: WINDOW,
            pings: Vec::new(),
            settings: 0,
            data: BTreeMap::new(),
            is_over: false,
        }
    }

    /// What may be sent on a stream now.
    pub(super) fn room(&self, stream: u32) -> usize {
        let own = self.first_window + self.streams.get(&stream).copied().unwrap_or(0);
        usize::try_from(own.min(self.window)).unwrap_or(0)
    }

    /// It was sent.
    pub(super) fn sent(&mut self, stream: u32, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.window -= count;
        *self.streams.entry(stream).or_default() -= count;
    }

    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let length = match self.begun.first_chunk::<3>() {
                Some([a, b, c]) if self.come >= HEAD_BYTES => {
                    HEAD_BYTES + (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c))
                }
                _ => HEAD_BYTES,
            };
            let count = bytes.len().min(length - self.come);
            let kept = count.min((HEAD_BYTES + LOOKED_AT_BYTES).saturating_sub(self.begun.len()));
            self.begun.extend_from_slice(&bytes[..kept]);
            self.come += count;
            bytes = &bytes[count..];
            let is_head = self.come == HEAD_BYTES && length == HEAD_BYTES;
            let has_payload = self.begun.get(..3).is_some_and(|length| length != [0, 0, 0]);
            if self.come == length && !(is_head && has_payload) {
                self.look();
                self.begun.clear();
                self.come = 0;
            }
        }
    }

    fn look(&mut self) {
        let Some((head, payload)) = self.begun.split_first_chunk::<HEAD_BYTES>() else { return };
        let [_, _, _, kind, flags, stream @ ..] = *head;
        let stream = u32::from_be_bytes(stream);
        let length = u32::try_from(self.come - HEAD_BYTES).unwrap_or(u32::MAX);
        match (kind, payload) {
            (DATA, _) => *self.data.entry(stream).or_default() += length,
            (WINDOW_UPDATE, [a, b, c, d]) => {
                let more = i64::from(u32::from_be_bytes([*a, *b, *c, *d]));
                if stream == 0 {
                    self.window += more;
                } else {
                    *self.streams.entry(stream).or_default() += more;
                }
            }
            (SETTINGS, settings) if flags & ACK == 0 => {
                self.settings += 1;
                for setting in settings.chunks_exact(6) {
                    if setting[..2] == [0, 4] {
                        let value = [setting[2], setting[3], setting[4], setting[5]];
                        self.first_window = i64::from(u32::from_be_bytes(value));
                    }
                }
            }
            (PING, _) if flags & ACK == 0 => {
                self.pings.extend(payload.first_chunk::<8>());
            }
            (GOAWAY, _) => self.is_over = true,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_understood_however_they_are_cut() {
        let bytes = [
            frame(SETTINGS, 0, 0, &setting(4, 100_000)),
            frame(WINDOW_UPDATE, 0, 0, &1_000u32.to_be_bytes()),
            frame(DATA, 0, 1, &[0; 500]),
            frame(DATA, END_STREAM, 1, &[]),
            frame(PING, 0, 0, b"12345678"),
            frame(WINDOW_UPDATE, 0, 3, &7u32.to_be_bytes()),
        ]
        .concat();
        for piece in [1, 2, 9, 10, 100, 1_000] {
            let mut heard = Heard::new();
            bytes.chunks(piece).for_each(|some| heard.take(some));
            assert_eq!((heard.settings, heard.window), (1, WINDOW + 1_000));
            assert_eq!(heard.data, BTreeMap::from([(1, 500)]));
            assert_eq!(heard.pings, [*b"12345678"]);
            assert_eq!(heard.streams, BTreeMap::from([(3, 7)]));
            assert_eq!(heard.room(1), 66_535, "the connection's is smaller");
        }
    }
}
