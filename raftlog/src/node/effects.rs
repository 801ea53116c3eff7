//! What the node wants done, one struct per turn.
//!
//! Filled by the node, consumed by the replica. Plain data: it must hold nothing that only raft-rs
//! understands.

use etcore_proto::raftpb;

use crate::types::{BatchNumber, HardState, LogEntry, LogIndex, SnapshotMark, Term};

/// What a turn asks for. Reused from turn to turn.
#[derive(Debug, Default)]
pub struct Effects {
    /// To be handed to the writer.
    pub log: Option<LogWrite>,
    /// To be sent now. What must wait for a sync is held back inside the node.
    pub messages: Vec<raftpb::Message>,
    /// To be applied, in this order. Every index appears once.
    pub committed: Vec<LogEntry>,
    /// Read tickets that may be served once the index is applied.
    pub reads: Vec<ReadReady>,
    /// Leader, role or term changed.
    pub soft_state: Option<SoftState>,
    /// A snapshot that was received and must be installed before anything else is applied; its mark
    /// is in `log`.
    pub snapshot: Option<SnapshotMark>,
    /// Older entries to be read from the files and given to `Node::on_fetched`.
    pub fetches: Vec<Fetch>,
    /// This member needs a snapshot: answer with `Node::provide_snapshot`.
    pub snapshot_wanted: Option<u64>,
}

impl Effects {
    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.log = None;
        self.messages.clear();
        self.committed.clear();
        self.reads.clear();
        self.soft_state = None;
        self.snapshot = None;
        self.fetches.clear();
        self.snapshot_wanted = None;
    }

    /// True if there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.log.is_none()
            && self.messages.is_empty()
            && self.committed.is_empty()
            && self.reads.is_empty()
            && self.soft_state.is_none()
            && self.snapshot.is_none()
            && self.fetches.is_empty()
            && self.snapshot_wanted.is_none()
    }
}

/// A turn's log write. The entries are in the node's window: `Node::entries_of`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogWrite {
    /// Give this to `Node::on_persisted` once it is on disk.
    pub number: BatchNumber,
    /// First entry; meaningless if `count` is 0.
    pub first: LogIndex,
    /// How many entries.
    pub count: u64,
    /// The hard state, if it changed.
    pub hard_state: Option<HardState>,
    /// Must come before the entries.
    pub mark: Option<SnapshotMark>,
    /// False if only the commit index changed: it may be written with a later batch, and nothing
    /// waits for it.
    pub must_sync: bool,
}

/// A read that may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadReady {
    /// As given to `Node::read_index`.
    pub ticket: u64,
    /// The state machine must have applied this much.
    pub index: LogIndex,
}

/// What a member is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows the leader, or waits for one.
    Follower,
    /// Asks whether it would be elected.
    PreCandidate,
    /// Asks to be elected.
    Candidate,
    /// Leads.
    Leader,
}

/// Who leads, as far as this member knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SoftState {
    /// 0 if unknown.
    pub leader: u64,
    /// This member's role.
    pub role: Role,
    /// Newest term seen.
    pub term: Term,
}

/// Entries wanted from the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// Names the request.
    pub id: u64,
    /// First entry.
    pub low: LogIndex,
    /// Behind the last entry.
    pub high: LogIndex,
    /// Fewer entries are fine once this many bytes of data are read; at least one is needed.
    pub bytes_max: u64,
}

/// Where proposals would go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// No leader is known, or leadership is being handed over.
    Nowhere,
    /// This member leads.
    Here,
    /// To another member.
    Leader,
}

/// Where proposals went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposed {
    /// This member leads: they are entries `first..first + count` of `term`, unless a later leader
    /// overwrites them.
    Appended {
        /// Index of the first one.
        first: LogIndex,
        /// Their term.
        term: Term,
        /// How many.
        count: u64,
    },
    /// Sent to the leader; it may drop them.
    Forwarded {
        /// To whom.
        leader: u64,
        /// How many.
        count: u64,
    },
}

/// A view of the node for metrics and the Status RPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: u64,
    /// Leader, role, term.
    pub soft_state: SoftState,
    /// Highest committed index known.
    pub commit: LogIndex,
    /// Highest index the state machine reported.
    pub applied: LogIndex,
    /// Highest index on this member's disk.
    pub persisted: LogIndex,
    /// Last entry of the log.
    pub last_index: LogIndex,
    /// Index before the first entry that can still be sent.
    pub base: LogIndex,
    /// True if this member does not vote.
    pub is_learner: bool,
    /// To whom leadership is being handed; 0 for nobody.
    pub transferee: u64,
    /// Bytes of entries in memory.
    pub window_used_bytes: u64,
    /// Read tickets not yet answered.
    pub reads_waiting: usize,
    /// Messages dropped because too many waited for a sync.
    pub messages_dropped: u64,
}
