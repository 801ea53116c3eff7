//! A node's settings, and what raft-rs makes of them.
//!
//! Called by the server (fills them from its flags) and by the node. Election timeouts are a
//! function of the seed here and nowhere random.

use crate::limits;
use crate::types::LogIndex;

/// How a node behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeConfig {
    /// This member; not 0.
    pub id: u64,
    /// Seeds the choice of election timeouts. Members may share it.
    pub seed: u64,
    /// Different at every start: keeps answers to an earlier life's reads apart.
    pub boot_nonce: u64,
    /// Ticks without a leader before an election; the actual timeout is up to twice that.
    pub election_ticks: usize,
    /// Ticks between heartbeats; below `election_ticks`.
    pub heartbeat_ticks: usize,
    /// Ticks before an unanswered ReadIndex round is repeated (etcd: 500 ms).
    pub read_retry_ticks: usize,
    /// Bytes of entries in one message.
    pub max_size_per_msg: u64,
    /// Messages under way to one peer.
    pub max_inflight: usize,
    /// Ask before campaigning.
    pub pre_vote: bool,
    /// Bytes of applied entries kept in memory for slow peers.
    pub window_bytes: u64,
    /// Bytes of uncommitted proposals before further ones are dropped.
    pub uncommitted_bytes_max: u64,
    /// Bytes of committed entries handed out in one turn.
    pub committed_bytes_per_turn: u64,
    /// Largest proposal: `Writer::entry_data_bytes_max`.
    pub entry_data_bytes_max: u64,
}

impl NodeConfig {
    /// etcd's defaults: 100 ms ticks, election after 1 s.
    pub fn new(id: u64, seed: u64, boot_nonce: u64) -> Self {
        Self {
            id,
            seed,
            boot_nonce,
            election_ticks: 10,
            heartbeat_ticks: 1,
            read_retry_ticks: 5,
            max_size_per_msg: 512 << 10,
            max_inflight: 512,
            pre_vote: true,
            window_bytes: limits::WINDOW_BYTES,
            uncommitted_bytes_max: limits::UNCOMMITTED_BYTES_MAX,
            committed_bytes_per_turn: limits::COMMITTED_BYTES_PER_TURN,
            entry_data_bytes_max: limits::ENTRY_DATA_BYTES_MAX,
        }
    }
}

/// The settings as raft-rs has them.
pub(super) fn raft_config(config: &NodeConfig, applied: LogIndex) -> raft::Config {
    raft::Config {
        id: config.id,
        election_tick: config.election_ticks,
        heartbeat_tick: config.heartbeat_ticks,
        applied: applied.0,
        max_size_per_msg: config.max_size_per_msg,
        max_inflight_msgs: config.max_inflight,
        check_quorum: true,
        pre_vote: config.pre_vote,
        max_uncommitted_size: config.uncommitted_bytes_max.max(config.max_size_per_msg),
        max_committed_size_per_ready: config.committed_bytes_per_turn,
        ..raft::Config::default()
    }
}
