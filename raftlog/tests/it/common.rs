//! What the tests of a single member's log share. Nothing here may depend on a kind of disk.

use bytes::Bytes;
use etcore_engine::file::Disk;
use etcore_proto::raftpb;
use etcore_raftlog::bootstrap::{Peer, bootstrap};
use etcore_raftlog::log::{Applied, Log, OpenError};
use etcore_raftlog::node::NodeConfig;
use etcore_raftlog::wal::{self, NewLog, WalError, WriterConfig};

pub(crate) use etcore_raftlog::testing::settle;

pub(crate) const DIR: &str = "member/wal";
pub(crate) const ID: u64 = 0x8e9e_05c5_2164_694d;
pub(crate) const CLUSTER: u64 = 0xcdf8_1818_e3a1_9cd7;
pub(crate) const SMALL_SEGMENT_BYTES: u64 = 64 << 10;

/// A new log of one member.
pub(crate) fn create(disk: &mut dyn Disk, segment_bytes: u64) -> Result<(), WalError> {
    let metadata = raftpb::Metadata { node_id: Some(ID), cluster_id: Some(CLUSTER) };
    let (entries, hard_state) = bootstrap(&[Peer { id: ID, context: Bytes::from_static(b"{}") }]);
    wal::create(disk, DIR, NewLog { metadata, entries: &entries, hard_state, segment_bytes })
}

pub(crate) fn open(disk: &mut dyn Disk, segment_bytes: u64) -> Result<Log, OpenError> {
    let config = WriterConfig { segment_bytes, catchup_entries: 10 };
    let node = NodeConfig::new(ID, 1, 2);
    Log::open(disk, DIR, node, config, Applied::default()).map(|(log, _)| log)
}

/// True if the larger size of a long test is wanted.
pub(crate) fn long() -> bool {
    std::env::var_os("ETCORE_LONG").is_some()
}
