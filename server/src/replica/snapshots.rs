//! Snapshots between members: what a leader holds for members that lag behind its log, and what
//! such a member does with it.
//!
//! raft decides who needs a snapshot and sends a message that only names it. The receiver asks
//! for its pages part by part, several at a time, each a question of its own on a lane of its
//! own, so that a broken connection costs the parts that were under way ([`receiving`]). The
//! background writes them beside the page file, checks them, and makes a store of them, while
//! this member goes on serving what it has. When the copy is durable and loaded, raft is told,
//! the log takes the mark and the commit index in one synced batch, the copy is renamed over the
//! page file, and the replica goes over to its store in one step ([`installing`]): no client
//! loses its connection, and watches go on from where they are, or are told that what they want
//! next is compacted. A start does the same with what it finds (`boot::copies`).
//!
//! The leader keeps its log from the snapshot on until the receiver follows, within a bound of
//! bytes ([`sending`]): else the snapshot would be obsolete when it is in use. raft-rs sends no
//! entries while a snapshot is on its way to a member, and this member acknowledges none before
//! it has the state below them: who counts in a quorum must be able to take over. So the entries
//! come right after, as fast as messages go, out of the log that was held.
//!
//! A transfer goes on with the leader that began it, also when that one is elected again. With
//! another leader it begins anew: the same state has other pages in every member's file, and the
//! new leader has not kept its log from the old snapshot on, so that one would likely be of no
//! use when it is complete.

use super::Replica;

mod installing;
mod receiving;
mod sending;

use installing::Installing;
pub(super) use receiving::PartAsked;
use receiving::Receiving;
use sending::Sending;

/// Asked for a part: `?index=I&from=U&until=V&member=M`, hexadecimal. With nothing between U and V
/// the receiver only says that it is still at it.
pub const PART_PATH: &str = "/raft/snapshot/part";

/// Both sides of snapshots.
#[derive(Default)]
pub(super) struct Snapshots {
    sending: Sending,
    receiving: Option<Receiving>,
    /// Number of the newest copy received.
    transfers: u64,
    installing: Installing,
}

impl Snapshots {
    /// How many copies were begun in this life.
    #[cfg(test)]
    pub(super) fn transfers(&self) -> u64 {
        self.transfers
    }

    /// Keeps less of the log for receivers than [`limits::SNAPSHOT_LOG_BYTES`].
    ///
    /// [`limits::SNAPSHOT_LOG_BYTES`]: crate::limits::SNAPSHOT_LOG_BYTES
    #[cfg(test)]
    pub(super) fn keep_log_bytes(&mut self, bytes: u64) {
        self.sending.log_bytes_max = bytes;
    }

    /// When there is something to be done that nothing wakes the shard for.
    pub(super) fn deadline_ms(&self) -> u64 {
        let receiving = self.receiving.as_ref().map_or(u64::MAX, Receiving::deadline_ms);
        self.sending.deadline_ms().min(receiving)
    }

    /// The background works for it, or may have to.
    pub(super) fn is_busy(&self) -> bool {
        self.sending.is_busy() || self.receiving.is_some() || self.installing.is_under_way()
    }

    /// raft has taken a snapshot, and the store is still the one of before.
    pub(super) fn is_installing(&self) -> bool {
        self.installing.mark().is_some()
    }
}

impl Replica {
    /// The end of a turn: parts for others, parts from others, and what is done with them.
    pub(super) fn move_snapshots(&mut self) {
        self.read_parts();
        self.ask_for_parts();
        self.go_on_installing();
    }

    /// Every tick: gives up what nobody asks for any more.
    pub(super) fn tick_snapshots(&mut self) {
        self.tick_sending();
        self.tick_receiving();
    }
}
