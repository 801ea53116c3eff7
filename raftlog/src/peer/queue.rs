//! What waits to be sent on one stream: two lanes, so that a heartbeat or a vote never waits behind
//! forwarded proposals or entries.
//!
//! Owned by a peer's link. Bounded by `limits`; what does not fit is the caller's to drop. Raft
//! takes messages in any order, so lanes may overtake each other.

use std::collections::VecDeque;

use etcore_proto::raftpb::{Message, MessageType};

use crate::limits;

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Queue {
    urgent: VecDeque<Message>,
    bulk: VecDeque<Message>,
    bytes: usize,
}

/// What one message counts for: its entries' data, and something for the rest.
pub(super) fn weight(message: &Message) -> usize {
    let entry = |data: usize| data + 32;
    let entries = message.entries.iter().map(|e| entry(e.data.as_ref().map_or(0, |d| d.len())));
    64 + message.context.as_ref().map_or(0, |context| context.len()) + entries.sum::<usize>()
}

/// Entries and proposals: there are many, they are large, and raft sends entries again.
pub(super) fn is_bulk(message: &Message) -> bool {
    let kind = message.r#type.unwrap_or(0);
    kind == MessageType::MsgApp as i32 || kind == MessageType::MsgProp as i32
}

impl Queue {
    /// False if it is full, and the message is not taken.
    pub(super) fn push(&mut self, message: Message) -> bool {
        let weight = weight(&message);
        let count = self.urgent.len() + self.bulk.len();
        if count >= limits::PEER_QUEUE_MESSAGES
            || (count > 0 && self.bytes + weight > limits::PEER_QUEUE_BYTES)
        {
            return false;
        }
        self.bytes += weight;
        if is_bulk(&message) {
            self.bulk.push_back(message);
        } else {
            self.urgent.push_back(message);
        }
        true
    }

    /// What goes next.
    pub(super) fn pop(&mut self) -> Option<Message> {
        let message = self.urgent.pop_front().or_else(|| self.bulk.pop_front())?;
        self.bytes -= weight(&message);
        Some(message)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.bulk.is_empty()
    }

    /// Drops everything; true if there was anything.
    pub(super) fn clear(&mut self) -> bool {
        let had = !self.is_empty();
        *self = Self::default();
        had
    }
}
