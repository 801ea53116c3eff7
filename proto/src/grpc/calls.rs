//! Per-stream state of a connection's calls, indexed by the stream's slot.
//!
//! Used by both sides. Slots are reused, so every look-up compares the stream's name.

use super::StreamId;

/// A table from streams to their calls.
#[derive(Debug)]
pub(super) struct Calls<C> {
    slots: Vec<Option<(StreamId, C)>>,
}

impl<C> Calls<C> {
    pub(super) fn new() -> Self {
        Calls { slots: Vec::new() }
    }

    /// Adds a call; the slot's earlier one, if any, is over and was removed.
    #[inline]
    pub(super) fn insert(&mut self, stream: StreamId, call: C) {
        let slot = stream.slot();
        if slot >= self.slots.len() {
            self.slots.resize_with(slot + 1, || None);
        }
        self.slots[slot] = Some((stream, call));
    }

    #[inline]
    pub(super) fn get_mut(&mut self, stream: StreamId) -> Option<&mut C> {
        match self.slots.get_mut(stream.slot()) {
            Some(Some((name, call))) if *name == stream => Some(call),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn get(&self, stream: StreamId) -> Option<&C> {
        match self.slots.get(stream.slot()) {
            Some(Some((name, call))) if *name == stream => Some(call),
            _ => None,
        }
    }

    #[inline]
    pub(super) fn remove(&mut self, stream: StreamId) -> Option<C> {
        self.get(stream)?;
        self.slots[stream.slot()].take().map(|(_, call)| call)
    }

    /// All calls, in slot order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (StreamId, &C)> {
        self.slots.iter().flatten().map(|(name, call)| (*name, call))
    }

    /// All calls, in slot order, to be changed.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (StreamId, &mut C)> {
        self.slots.iter_mut().flatten().map(|(name, call)| (*name, call))
    }

    /// The streams of all calls, in slot order.
    pub(super) fn names(&self) -> Vec<StreamId> {
        self.slots.iter().flatten().map(|(name, _)| *name).collect()
    }
}
