//! The table of open streams: a slab, and a small hash map from wire ids.
//!
//! Used by `h2::conn` only. Stream ids count upwards, so a multiplicative hash spreads them well; a
//! hostile peer cannot choose them freely. Must never shrink a live entry's slot from under its id.

use super::ErrorCode;
use crate::hpack::{HeaderItem, SlotId};
use crate::limits;

/// Names a stream: the wire id, and where its state lies. A stale name is recognised, never
/// confused with the slot's next stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    id: u32,
    slot: u32,
}

impl StreamId {
    /// None comes before it.
    pub const MIN: Self = Self { id: 0, slot: 0 };
    /// None comes behind it.
    pub const MAX: Self = Self { id: u32::MAX, slot: u32::MAX };

    /// A name that no stream has: the connection's owner may give it to something else of the
    /// connection, by a number of its own.
    #[must_use]
    pub fn of_no_stream(number: u64) -> Self {
        // Neither its id nor its slot is a stream's.
        Self { id: NO_STREAM | (number >> 31) as u32, slot: NO_STREAM | number as u32 }
    }

    /// Whether it was made by [`StreamId::of_no_stream`].
    #[must_use]
    pub fn is_no_stream(self) -> bool {
        self.id & NO_STREAM != 0
    }

    /// The id on the wire.
    #[must_use]
    pub fn id(self) -> u32 {
        self.id
    }

    /// A small number unique among the open streams of the connection: an index for the caller's
    /// own table. Used again after the stream ended.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// Streams have ids of 31 bits.
const NO_STREAM: u32 = 1 << 31;

pub(super) const RECV_ENDED: u8 = 1;
pub(super) const SEND_ENDED: u8 = 2;
pub(super) const HEAD_RECEIVED: u8 = 4;
/// The owner waits for capacity.
pub(super) const BLOCKED: u8 = 8;
/// In the queue of streams that can be told they are writable.
pub(super) const IN_BLOCKED_QUEUE: u8 = 16;
/// In the queue of streams with unsent data and an open window.
pub(super) const IN_READY_QUEUE: u8 = 32;
/// It is among the connection's deadlines.
pub(super) const HAS_DEADLINE: u8 = 64;
/// We sent its headers.
pub(super) const ANSWERED: u8 = 128;
pub(super) const ENDED: u8 = RECV_ENDED | SEND_ENDED;

/// A stream's state. Windows are kept as what they are above the initial window of their side, so
/// that SETTINGS shift them all at once; a window may be below zero after that.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// 0 for a free slot.
    id: u32,
    pub(super) flags: u8,
    /// The low bits of the time at which it was opened, in milliseconds.
    pub(super) opened_ms: u32,
    /// What we may still send, above the peer's initial window, in bytes.
    pub(super) send_extra: i32,
    /// What the peer may still send, above our initial window, in bytes.
    pub(super) recv_extra: i32,
    /// Consumed and not yet given back to the peer, in bytes.
    pub(super) recv_consumed: u32,
    /// Body bytes that `content-length` still promises.
    pub(super) content_left: Option<u64>,
    pub(super) pending: Option<Box<Pending>>,
}

impl Stream {
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Data that did not fit the windows, and what follows it.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) data: Vec<u8>,
    pub(super) sent: usize,
    pub(super) end_stream: bool,
    pub(super) trailers: Option<Vec<OwnedItem>>,
}

impl Pending {
    pub(super) fn left(&self) -> usize {
        self.data.len() - self.sent
    }
}

/// A [`HeaderItem`] that waits.
#[derive(Debug)]
pub(super) enum OwnedItem {
    Slot(SlotId),
    Literal(Box<[u8]>, Box<[u8]>),
    Sensitive(Box<[u8]>, Box<[u8]>),
}

impl OwnedItem {
    pub(super) fn new(item: &HeaderItem<'_>) -> Self {
        match *item {
            HeaderItem::Slot(slot) => OwnedItem::Slot(slot),
            HeaderItem::Literal(name, value) => OwnedItem::Literal(name.into(), value.into()),
            HeaderItem::Sensitive(name, value) => OwnedItem::Sensitive(name.into(), value.into()),
        }
    }

    pub(super) fn borrow(&self) -> HeaderItem<'_> {
        match self {
            OwnedItem::Slot(slot) => HeaderItem::Slot(*slot),
            OwnedItem::Literal(name, value) => HeaderItem::Literal(name, value),
            OwnedItem::Sensitive(name, value) => HeaderItem::Sensitive(name, value),
        }
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// Both sides sent END_STREAM.
    Ended,
    /// The peer sent RST_STREAM.
    ByPeer,
    /// We sent RST_STREAM: what comes late is ignored.
    ByUs(ErrorCode),
}

/// All open streams of a connection, and how the last ones closed.
#[derive(Debug)]
pub(super) struct Streams {
    slab: Vec<Stream>,
    free: Vec<u32>,
    open: usize,
    /// Open-addressed: (id, slot), id 0 for an empty place; at most half full.
    map: Vec<(u32, u32)>,
    closed: [(u32, Closed); limits::CLOSED_STREAMS_REMEMBERED],
    closed_next: usize,
}

impl Streams {
    pub(super) fn new() -> Self {
        Streams {
            slab: Vec::new(),
            free: Vec::new(),
            open: 0,
            map: vec![(0, 0); 16],
            closed: [(0, Closed::Ended); limits::CLOSED_STREAMS_REMEMBERED],
            closed_next: 0,
        }
    }

    pub(super) fn open_count(&self) -> usize {
        self.open
    }

    pub(super) fn insert(&mut self, id: u32, now_ms: u64) -> StreamId {
        assert!(id != 0, "stream 0 is the connection");
        let stream = Stream { id, opened_ms: now_ms as u32, ..Stream::default() };
        let slot = if let Some(slot) = self.free.pop() {
            self.slab[slot as usize] = stream;
            slot
        } else {
            self.slab.push(stream);
            (self.slab.len() - 1) as u32
        };
        self.open += 1;
        if self.open * 2 > self.map.len() {
            self.grow();
        }
        self.place(id, slot);
        StreamId { id, slot }
    }

    /// The open stream with this wire id.
    #[inline]
    pub(super) fn find(&self, id: u32) -> Option<StreamId> {
        let mask = self.map.len() - 1;
        let mut position = hash(id) & mask;
        loop {
            match self.map[position] {
                (0, _) => return None,
                (found, slot) if found == id => return Some(StreamId { id, slot }),
                _ => position = (position + 1) & mask,
            }
        }
    }

    #[inline]
    pub(super) fn get(&self, name: StreamId) -> Option<&Stream> {
        self.slab.get(name.slot as usize).filter(|stream| stream.id == name.id)
    }

    #[inline]
    pub(super) fn get_mut(&mut self, name: StreamId) -> Option<&mut Stream> {
        self.slab.get_mut(name.slot as usize).filter(|stream| stream.id == name.id)
    }

    /// Forgets an open stream and remembers how it closed; returns its flags and what it had not
    /// sent.
    pub(super) fn remove(
        &mut self,
        name: StreamId,
        how: Closed,
    ) -> Option<(u8, Option<Box<Pending>>)> {
        let stream = self.get_mut(name)?;
        stream.id = 0;
        let (flags, pending) = (stream.flags, stream.pending.take());
        self.free.push(name.slot);
        self.open -= 1;
        self.unplace(name.id);
        self.closed[self.closed_next] = (name.id, how);
        self.closed_next = (self.closed_next + 1) % self.closed.len();
        Some((flags, pending))
    }

    /// How a recent stream closed.
    pub(super) fn how_closed(&self, id: u32) -> Option<Closed> {
        self.closed.iter().find(|(closed, _)| *closed == id).map(|(_, how)| *how)
    }

    /// The open streams in slot order.
    pub(super) fn names(&self) -> impl Iterator<Item = StreamId> + '_ {
        (0u32..)
            .zip(&self.slab)
            .filter(|(_, stream)| stream.id != 0)
            .map(|(slot, stream)| StreamId { id: stream.id, slot })
    }

    fn place(&mut self, id: u32, slot: u32) {
        let mask = self.map.len() - 1;
        let mut position = hash(id) & mask;
        while self.map[position].0 != 0 {
            position = (position + 1) & mask;
        }
        self.map[position] = (id, slot);
    }

    /// Removes by shifting back, so that no tombstones gather.
    fn unplace(&mut self, id: u32) {
        let mask = self.map.len() - 1;
        let mut hole = hash(id) & mask;
        while self.map[hole].0 != id {
            hole = (hole + 1) & mask;
        }
        let mut next = (hole + 1) & mask;
        while self.map[next].0 != 0 {
            let home = hash(self.map[next].0) & mask;
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.map[hole] = self.map[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.map[hole] = (0, 0);
    }

    fn grow(&mut self) {
        let larger = vec![(0, 0); self.map.len() * 2];
        let old = std::mem::replace(&mut self.map, larger);
        for (id, slot) in old {
            if id != 0 {
                self.place(id, slot);
            }
        }
    }
}

/// Fibonacci hashing; ids of one side differ by two.
#[inline]
fn hash(id: u32) -> usize {
    (id.wrapping_mul(0x9e37_79b1) >> 7) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_found_while_others_come_and_go() {
        let mut streams = Streams::new();
        let mut live = Vec::new();
        let mut state = 1u32;
        for round in 0..20_000u32 {
            live.push(streams.insert(round * 2 + 1, 1));
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            while live.len() > (state >> 24) as usize {
                let gone = live.swap_remove((state >> 8) as usize % live.len());
                streams.remove(gone, Closed::Ended);
                assert_eq!(streams.find(gone.id()), None);
                assert!(streams.get(gone).is_none());
            }
            for name in &live {
                assert_eq!(streams.find(name.id()), Some(*name));
            }
            assert_eq!(streams.open_count(), live.len());
        }
    }

    #[test]
    fn a_stale_name_does_not_reach_the_next_stream_of_its_slot() {
        let mut streams = Streams::new();
        let old = streams.insert(1, 0);
        streams.remove(old, Closed::ByPeer);
        let new = streams.insert(3, 0);
        assert_eq!(old.slot(), new.slot());
        assert!(streams.get_mut(old).is_none());
        assert!(streams.remove(old, Closed::Ended).is_none());
        assert!(streams.get(new).is_some());
        assert_eq!(streams.how_closed(1), Some(Closed::ByPeer));
    }
}
