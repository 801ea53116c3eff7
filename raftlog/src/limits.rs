//! Every bound of this crate, with what happens at it.
//!
//! Called by all modules. No queue, batch or buffer of this crate may grow past a number that is
//! not in this file.

/// Default length of a segment file; every segment is preallocated and zero-filled to it.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Shortest segment accepted in a configuration: room for a head, one small batch, and tests.
pub const SEGMENT_BYTES_MIN: u64 = 64 << 10;

/// Longest segment file recovery reads; a longer one is refused. etcd cuts at 64 MiB but lets the
/// last batch run over.
pub const SEGMENT_FILE_BYTES_MAX: u64 = 1 << 30;

/// Bytes recovery reads at a time.
pub const READ_BYTES: u64 = 4 << 20;

/// Most bytes in one write, the rewritten part of the tail block included. Recovery relies on it:
/// a torn write never reaches further than this behind its start.
pub const BATCH_BYTES_MAX: u64 = 16 << 20;

/// Largest `Entry::data` the log takes; larger proposals are refused before they reach raft, larger
/// entries from peers are an error of that message.
pub const ENTRY_DATA_BYTES_MAX: u64 = BATCH_BYTES_MAX - BATCH_OVERHEAD_BYTES;

/// Room kept in every batch for what is not entry data: the tail block, a segment head and the
/// closing state record.
pub const BATCH_OVERHEAD_BYTES: u64 = 16 << 10;

/// Most bytes of an entry's record besides its data.
pub const ENTRY_OVERHEAD_BYTES: u64 = 96;

/// Longest metadata record.
pub const METADATA_BYTES_MAX: usize = 1 << 10;

/// Longest snapshot mark: a configuration of thousands of members.
pub const MARK_BYTES_MAX: usize = 8 << 10;

/// Bytes staged and not yet on disk at which the writer stops admitting proposals.
pub const STAGED_BYTES_MAX: u64 = 64 << 20;

/// Write buffers kept for reuse: one in flight, one being filled, one to spare.
pub const POOLED_BUFFERS_MAX: usize = 3;

/// A write buffer that grew larger than this is given back instead of kept.
pub const POOLED_BUFFER_BYTES_MAX: usize = 4 << 20;

/// Default bytes of entries kept in memory behind the applied index.
pub const WINDOW_BYTES: u64 = 8 << 20;

/// What an entry in memory costs besides its data: raft-rs' struct and the allocation.
pub const ENTRY_MEMORY_BYTES: u64 = 160;

/// Entries of released segments that leave memory with one eviction, besides those that do not fit
/// the window: a segment of small entries has a million, and freeing them would take a turn of 100
/// ms.
pub const RELEASED_PER_EVICTION: usize = 64;

/// Default bytes of proposed and uncommitted entries at which the leader drops proposals.
pub const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// Default bytes of committed entries handed out in one turn.
pub const COMMITTED_BYTES_PER_TURN: u64 = 4 << 20;

/// Messages held until a sync ends; more are dropped, as a lossy network would.
pub const HELD_MESSAGES_MAX: usize = 4096;

/// Read tickets waiting at once; more are refused.
pub const READ_TICKETS_MAX: usize = 1 << 16;

/// Read rounds in flight at once; further tickets wait for the next one.
pub const READ_ROUNDS_MAX: usize = 64;

/// Requests for older entries outstanding at once; raft asks again for those refused.
pub const FETCHES_MAX: usize = 64;

const _: () = assert!(SEGMENT_BYTES > BATCH_BYTES_MAX);
const _: () = assert!(SEGMENT_BYTES.is_multiple_of(4096));
const _: () = assert!(SEGMENT_FILE_BYTES_MAX < u32::MAX as u64);
const _: () = assert!(METADATA_BYTES_MAX + MARK_BYTES_MAX < BATCH_OVERHEAD_BYTES as usize);
const _: () = assert!(SEGMENT_BYTES_MIN > BATCH_OVERHEAD_BYTES + 4096);

/// Longest message between members, in bytes; a longer one ends its connection. Room for a batch of
/// forwarded proposals and for the largest single entry.
pub const PEER_MESSAGE_BYTES_MAX: u64 = 2 * BATCH_BYTES_MAX;

/// Most entries in one message; with more it ends its connection: an empty entry takes two bytes on
/// the wire and many more in memory.
pub const PEER_MESSAGE_ENTRIES_MAX: u64 = 1 << 18;

/// Messages waiting for one stream to a peer (etcd: streamBufSize); more are dropped and the peer
/// reported unreachable.
pub const PEER_QUEUE_MESSAGES: usize = 4096;

/// Bytes of messages waiting for one stream to a peer; more are dropped and the peer reported
/// unreachable. The entries are shared between peers and with the log's window.
pub const PEER_QUEUE_BYTES: usize = 32 << 20;

/// Messages waiting for a peer to which no stream leads (etcd: pipelineBufSize); more are dropped
/// and the peer reported unreachable.
pub const PEER_PIPELINE_MESSAGES: usize = 64;

/// Connections that carry single messages to one peer (etcd: connPerPipeline), and as many for
/// questions.
pub const PEER_PIPELINE_CONNECTIONS: usize = 4;

/// Connections for parts of snapshots from one peer: half a megabyte each in a round trip.
pub const PEER_SNAPSHOT_CONNECTIONS: usize = 8;

/// Connections for questions about leases to one peer; further ones wait for an answer. Members of
/// this make ask many leases' questions at once and need few; asked one by one (etcd: without a
/// bound), so many renewals are on their way during a round trip.
pub const PEER_LEASE_CONNECTIONS: usize = 1024;

/// Questions of one kind waiting for one peer; more are answered as overloaded.
pub const PEER_REQUESTS: usize = 2048;

/// Bytes encoded for one send on a stream; the rest waits for the next.
pub const PEER_SEND_BYTES: usize = 256 << 10;

/// Messages received and not taken; with more, nothing is read from peers.
pub const PEER_RECEIVED_MESSAGES: usize = 4096;

/// Bytes of messages received and not taken; with more, nothing is read from peers.
pub const PEER_RECEIVED_BYTES: usize = 32 << 20;

/// Connections accepted on the peer port: each member's streams, messages and questions, of which
/// etcd's members ask with a connection each. With more, the one without a stream that was silent
/// longest is closed.
pub const PEER_CONNECTIONS: usize = 2048;

/// Body of a request on the peer port that is not raft's; longer ones are refused.
pub const PEER_BODY_BYTES: usize = 1 << 20;

/// Body of a peer's answer; a longer one ends the exchange. The keys of a lease may be many.
pub const PEER_ANSWER_BYTES: usize = 64 << 20;

/// Senders that are no members yet and are answered all the same; more are not.
pub const PEER_REMOTES: usize = 16;

/// Events kept for the log; more are dropped.
pub const PEER_EVENTS: usize = 1024;
