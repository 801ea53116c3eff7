//! Every bound of the server in one place, with what happens when it is reached.
//!
//! Read by the drivers, the shards, the api and the boot sequence. A bound that an operator may
//! change is a flag whose default stands here.

use std::time::Duration;

/// Receive buffers of one shard's driver; when all are in use, receiving waits until the shard has
/// handled some. A power of two.
pub const RECEIVE_BUFFERS: u16 = 64;
/// Bytes of one receive buffer: what one read may bring.
pub const RECEIVE_BUFFER_BYTES: usize = 32 << 10;
/// Full receive buffers that one wait hands over, one a socket; sockets with more waiting take
/// turns, so that nobody with little to say waits behind the megabytes of others.
pub const BULK_RECEIVES: usize = 4;
/// Connections that a front takes over in one turn; more wait for the next.
pub const ATTACHES_PER_TURN: usize = 64;
/// Connections that a front gives time to in one round; the others follow in the next.
pub const TICKS_PER_ROUND: usize = 64;
/// Submission entries of one io_uring; a full queue is submitted at once.
pub const URING_ENTRIES: u32 = 1024;
/// Readiness events taken from epoll at once; more wait for the next turn.
pub const EPOLL_EVENTS: usize = 256;
/// Durable writes waiting for the portable driver's log thread. The replica has one outstanding at
/// a time, so this is never reached; reaching it is a bug and stops the shard.
pub const LOG_WRITES: usize = 8;
/// Log writes up to this length may be made durable by one operation instead of two; longer ones
/// are those of a busy member.
pub const ONE_WRITE_BYTES: usize = 16 << 10;

/// Messages in the ring from one front to the replica; a full ring stops that front from reading
/// its sockets.
pub const RING_TO_REPLICA: usize = 16 << 10;
/// Messages in the ring from the replica to one front. Larger than the other direction, so a reply
/// always finds room: at most one is outstanding per message sent, plus notices.
pub const RING_TO_FRONT: usize = RING_TO_REPLICA + RING_LEASES + 1024;
/// Proposals of one front that the replica puts aside while it cannot take any, so that reads pass
/// them; past it the rest stays in the ring, reads included. As many as a front has outstanding.
pub const PROPOSALS_ASIDE: usize = PENDING_REQUESTS + ABANDONED_PROPOSALS;
/// Requests of one front that wait for the replica or for a page; more answer `too many requests`.
pub const PENDING_REQUESTS: usize = 64 << 10;
/// Bytes of proposals that one front may have outstanding; with more it reads no socket whose own
/// proposals exceed [`CONNECTION_PROPOSAL_BYTES`], with twice as many in small ones none at all.
/// Large ones of other sockets are bounded by [`PROCESS_RECEIVE_BYTES`].
pub const PENDING_PROPOSAL_BYTES: usize = 16 << 20;
/// What a connection may always have outstanding, so that clients with small requests do not wait
/// behind those with large ones.
pub const CONNECTION_PROPOSAL_BYTES: usize = 128 << 10;
/// Proposals of one front that timed out before the replica took them; from so many on, and above
/// [`PENDING_PROPOSAL_BYTES`] of them, further proposals answer `too many requests`.
pub const ABANDONED_PROPOSALS: usize = 4096;
/// Changes of the members that wait for their turn, or for being applied; more are answered
/// `too many requests`.
pub const MEMBER_CHANGES: usize = 64;
/// How long a member that was removed goes on, for what it still owes to others (etcd: the same).
pub const REMOVED_MS: u64 = 1000;
/// A member counts as connected once it has been so for this long, where a change of the members
/// depends on it (etcd: HealthInterval).
pub const HEALTHY_MS: u64 = 5000;
/// Connections of one front; more are closed at once.
pub const CONNECTIONS: usize = 64 << 10;
/// Requests of one connection of which is remembered whose pages may read their responses, where
/// `--cors` restricts that; the response to an older one tells browsers of nobody.
pub const CONNECTION_ORIGINS: usize = 256;
/// Descriptors kept for the member's own files: connections get what the process's limit leaves,
/// and more are closed at once (etcd: reservedInternalFDNum).
pub const RESERVED_DESCRIPTORS: usize = 150;
/// Bytes handed to a socket in one send; the rest waits in the connection.
pub const SEND_BYTES: usize = 256 << 10;
/// Largest send on a socket whose last send took longer than [`SLOW_SEND_MS`], in bytes.
pub const SLOW_SEND_BYTES: usize = 16 << 10;
/// See [`SLOW_SEND_BYTES`], in milliseconds.
pub const SLOW_SEND_MS: u64 = 1000;
/// Time for a socket to take one send, in milliseconds; past it the connection is closed. Only a
/// peer whose system takes nothing for so long, or less than 140 bytes a second, is meant: one that
/// does not open its HTTP/2 windows has nothing sent to it.
pub const WRITE_MS: u64 = 120_000;
/// What an HTTP/1.1 request's answer is thought to take, in bytes: a request for which the budgets
/// have less waits. The longest is a page of metrics with all histograms.
pub const HTTP1_ANSWER_BYTES: usize = 192 << 10;
/// Pages that are rendered anew in one tick of a front; whoever asks beyond gets the last one,
/// which is no older than a tick.
pub const PAGE_RENDERS_PER_TICK: u32 = 1;
/// Renders that may be saved up, so that who asks once and again sees what has changed.
pub const PAGE_RENDERS: u32 = 4;
/// What waits for a client within the process before no more is sent to it, in bytes.
pub const LOOPBACK_BYTES: usize = 256 << 10;
/// Bytes of emptied send buffers that a front keeps for the next ones.
pub const SPARE_SEND_BYTES: usize = 4 << 20;
/// Range answers above this many bytes are streamed as the peer's windows open, in chunks of about
/// this size, and not encoded at once.
pub const RANGE_CHUNK_BYTES: usize = 64 << 10;
/// Hits of a range looked at in one go while a long answer is measured or streamed; the shard
/// serves its other connections in between.
pub const RANGE_CHUNK_KEYS: usize = 2048;
/// Leaves of the index looked into in one go: many keys of a range may have been deleted.
pub const RANGE_CHUNK_LEAVES: usize = 64;
/// Keys that a compare of a transaction looks at in one go.
pub const COMPARE_SLICE_KEYS: usize = 256;
/// Bytes of values that are read in one go to sort by them.
pub const SORT_CHUNK_BYTES: u64 = 256 << 10;
/// Sorted answers with no more keys than this keep only the best ones seen so far.
pub const SORT_BEST_KEYS: usize = 2048;
/// Sorted runs after which such an answer keeps only its best keys.
pub const SORT_RUNS: usize = 32;
/// Bytes held by one front to sort long answers; one that needs more answers `too many requests`.
pub const SORT_BYTES: usize = 256 << 20;
/// Bytes of streamed answers that a shard writes in one round, about; other long answers wait for
/// the next one, and short ones never do.
pub const LIST_ROUND_BYTES: usize = 128 << 10;
/// What going on with a long answer costs of these, in bytes.
pub const LIST_STEP_COST: usize = 2 << 10;

/// What looking at a key costs of [`LIST_ROUND_BYTES`].
pub const LIST_KEY_COST: usize = 16;

/// Keys written into one piece of a streamed answer.
pub const RANGE_PIECE_KEYS: usize = 512;
/// The buffer in which answers are built is given back when it grew larger than this.
pub const ANSWER_BUFFER_BYTES: usize = 1 << 20;
/// Calls of Lock and Election that one front lets wait; more are refused (`too many requests`).
pub const WAITING_CALLS: usize = 64 << 10;
/// Keys below the name of a lock that calls wait for; those of a name with more are refused.
pub const LINE_KEYS: i64 = 256 << 10;
/// Body of a request that is JSON: base64 takes four letters for three bytes, and the rest is for
/// names, blanks and escapes; past it 413. Other endpoints need no body.
pub const fn json_body_bytes(max_request_bytes: usize) -> usize {
    2 * (max_request_bytes + GRPC_OVERHEAD_BYTES)
}
/// Time for a connection's first bytes and for each HTTP/1.1 request to come in whole, in
/// milliseconds; past it the connection is closed. HTTP/2 has its own limit of the same length
/// (`etcore_proto::limits::HANDSHAKE_MS_MAX`). Clients that wait between requests are not meant.
pub const REQUEST_MS: u64 = 120_000;
/// Time for the answers to a client that has ended its side, in milliseconds: longer than a health
/// check may wait. Past it the connection is closed.
pub const HALF_CLOSED_MS: u64 = 15_000;
/// Bytes received and not yet handled, of all connections together, proposals that are not answered
/// included; large requests wait for room, and are refused after some seconds.
pub const PROCESS_RECEIVE_BYTES: usize = 256 << 20;
/// Bytes received on one connection and not handled yet.
pub const CONNECTION_RECEIVE_BYTES: usize = 32 << 20;
/// Sockets waiting to be taken over by a front; more are closed.
pub const HANDOFFS: usize = 4096;
/// Bytes of the page file mapped by one thread.
pub const PAGE_WINDOW_BYTES: u64 = 256 << 20;
/// How long the state of before a snapshot is kept for long answers that began in it. Such a state
/// holds its index in memory and its page file on the device; a client that reads slower than this
/// is cut off, unless what it reads is in the snapshot as well.
pub const FORMER_STATE_MS: u64 = 30_000;
/// Page reads of one thread that are under way.
pub const PAGE_FETCHES: usize = 256;

/// Entries proposed in one raft step; more wait for the next turn, which follows at once.
pub const PROPOSE_ENTRIES: usize = 1024;
/// Bytes proposed in one raft step, or taken from a leader's messages; more wait for the next turn.
/// To copy and to sum them up takes about a millisecond.
pub const PROPOSE_BYTES: usize = 2 << 20;

/// A proposal of more bytes than this is large: it waits in a queue of its own, behind small ones.
/// A request above this many bytes is large: a front takes one a round, and more wait.
pub const LARGE_PROPOSAL_BYTES: usize = 32 << 10;
/// Bytes of the log's next write from which on no large proposal joins it, so that small ones wait
/// for a short write only.
pub const LARGE_BATCH_BYTES: u64 = 1 << 20;
/// Spare bytes of the page file that large proposals leave to small ones.
pub const SMALL_PROPOSALS_SPARE_BYTES: u64 = 8 << 20;

/// Messages in the ring that carries one front's questions about leases; a full ring leaves them
/// with the front.
pub const RING_LEASES: usize = 8 << 10;
/// Renewals that one front has taken and not answered, those that a slow reader keeps it from
/// sending included; one more ends its stream with `too many requests`.
pub const KEEP_ALIVES: usize = 64 << 10;
/// Renewals outstanding on one stream; above it the stream's receive window stays shut.
pub const KEEP_ALIVES_PER_STREAM: usize = 1024;
/// Leases found to have expired in one turn; more wait for the next.
pub const LEASE_EXPIRIES_PER_TURN: usize = 128;
/// Leases looked at in a millisecond, most of which turn out to live on; more wait for the next.
pub const LEASE_LOOKS_PER_MS: usize = 512;
/// Leases that have expired and wait for their revocation to be proposed; more stay unnoticed. What
/// the highest rate of revocations works off within two seconds.
pub const LEASES_OVERDUE: usize = 2 * LEASE_REVOKES_PER_SECOND_MAX as usize;
/// Leases, or keys of a lease, that a list of them looks at in one turn.
pub const LEASE_WALK_STEP: usize = 1024;
/// Bytes of keys after which such a step ends.
pub const LEASE_WALK_BYTES: usize = 256 << 10;
/// What a leader counts on when it spreads the ends of leases after an election (etcd: 1000).
pub const LEASE_REVOKES_PER_SECOND: u64 = 50_000;
/// Revocations proposed in a second at most, however many leases have expired.
pub const LEASE_REVOKES_PER_SECOND_MAX: u64 = 200_000;
/// Revocations proposed and not applied; more leases wait, though expired (etcd: 16).
pub const LEASE_REVOKES_IN_FLIGHT: usize = 8192;
/// An expired lease that still exists so long after its revocation was proposed is proposed again,
/// in milliseconds (etcd: the same).
pub const LEASE_REVOKE_RETRY_MS: u64 = 3000;
/// Log bytes that the revocations and checkpoints of one turn may take.
pub const LEASE_TURN_BYTES: usize = 2 << 20;
/// Leases in one checkpoint entry (etcd: 1000): so many are applied in a fraction of a millisecond.
pub const LEASE_CHECKPOINT_LEASES: usize = 256;
/// Between two checkpoint entries, in milliseconds.
pub const LEASE_CHECKPOINT_MS: u64 = 8;

/// After every [`etcore_engine::limits::ZERO_CHUNK_BYTES`] of a spare segment the thread that fills
/// it rests: the log's own writes come first. Several hundred megabytes a second remain, more than
/// the log is written with.
pub const SPARE_PAUSE: Duration = Duration::from_micros(200);

/// Threads that read pages from the device. All that each shard may have under way
/// ([`PAGE_FETCHES`]) finds room with them, so that no shard ever reads by itself.
pub const PAGE_THREADS: usize = 2;
/// Operations of the log that a batch waits for: a segment's rename, and the sync of the directory.
/// One thread has nothing else to do; one of them is under way at a time.
pub const LOG_COMMIT_JOBS: usize = 2;
/// Threads for the rest of the log's work, which takes long: spare segments and removals, of which
/// one is under way at a time, and entries read back for peers.
pub const LOG_SIDE_THREADS: usize = 2;
/// Jobs waiting for those: all that there may be.
pub const LOG_SIDE_JOBS: usize = etcore_raftlog::limits::FETCHES_MAX + LOG_COMMIT_JOBS;
/// Threads that look up the names of peers, which may take many seconds.
pub const NAME_THREADS: usize = 2;
/// Threads that hash passwords at most, and no more than cores: they give way to the shards.
pub const PASSWORD_THREADS: usize = 4;
/// Passwords of one front that wait to be hashed or compared, or are; more answer `too many
/// requests`. By the usual cost that is some seconds of a thread.
pub const PASSWORDS: usize = 64;
/// Calls of one front that wait for the entry by which their token was given out; a token that
/// would wait beyond is invalid.
pub const TOKEN_WAITERS: usize = 1024;
/// Bytes of their requests.
pub const TOKEN_WAITERS_BYTES: usize = 4 << 20;

/// Hashes waiting for the hasher's thread; more answer `too many requests`, and a compaction's is
/// left out.
pub const HASH_JOBS: usize = 64;
/// Finished hashes waiting for one front: what it may have asked for since it looked.
pub const HASH_ANSWERS: usize = 2 * HASH_JOBS + 2;
/// Hashes that peers wait for.
pub const HASHES_FOR_PEERS: usize = 16;
/// Rows hashed on one view: about a millisecond.
pub const HASH_STEP_ROWS: usize = 1024;
/// Hashes of compactions that are remembered (etcd: hashStorageMaxSize).
pub const COMPACTION_HASHES: usize = 10;
/// The largest entry that is kept beside its call, for the line about a slow one.
pub const TOLD_REQUEST_BYTES: usize = 16 << 10;
/// Entries between two lines about checkpoints (etcd: DefaultSnapshotCount).
pub const SNAPSHOT_TOLD_ENTRIES: u64 = 10_000;
/// Seconds of a profile that does not say how many, as in Go.
pub const PROFILE_SECONDS: u64 = 30;
/// Seconds of a profile at most: nobody else can have one meanwhile.
pub const PROFILE_SECONDS_MAX: u64 = 300;
/// Compactions under way whose end is told of.
pub const COMPACTIONS_TOLD: usize = 64;

/// Log lines waiting for standard error; more are dropped and counted, so that a blocked pipe never
/// stops a request.
pub const LOG_LINES: usize = 8192;

/// A gRPC request may be this much larger than `--max-request-bytes` before the transport refuses
/// it (etcd: grpcOverheadBytes).
pub const GRPC_OVERHEAD_BYTES: usize = 512 << 10;

const _: () = assert!(2 * BULK_RECEIVES <= RECEIVE_BUFFERS as usize);
const _: () = assert!(RING_TO_FRONT > RING_TO_REPLICA + RING_LEASES);
const _: () = assert!(KEEP_ALIVES <= PENDING_REQUESTS);
const _: () = assert!(PROPOSE_ENTRIES <= RING_TO_REPLICA);

/// Spare bytes of the page file kept for what a checkpoint writes besides rows: nodes
/// above them, pages being moved, the list of free extents. Proposals wait before they are touched.
pub const CHECKPOINT_SLACK_BYTES: u64 = 6 << 20;

/// Messages from peers that the replica has not stepped; above it the peers are not read.
pub const PEER_INBOX_MESSAGES: usize = 16 << 10;
/// Bytes of these; a single message may go past it.
pub const PEER_INBOX_BYTES: usize = 64 << 20;
/// Committed entries that were not applied; above it a follower takes no appends.
pub const APPLY_BACKLOG: usize = 64 << 10;
/// Bytes of these, with the same effect.
pub const APPLY_BACKLOG_BYTES: usize = 64 << 20;
/// What a turn applies at most, in puts of a few hundred bytes; the rest waits until the fronts
/// have had their turn, so that no answer waits for all that was committed with it.
pub const APPLY_TURN_COST: usize = 1024;
/// Cost bound of a turn that begins with more entries than [`APPLY_TURN_ENTRIES`]: throughput
/// counts then, but heartbeats and reads come in between all the same.
pub const APPLY_LONG_TURN_COST: usize = 2048;
/// Nor does a turn apply for longer than this, whatever the entries are.
pub const APPLY_TURN_TIME: Duration = Duration::from_micros(750);
/// How often a turn looks at the clock while it applies, in what entries cost.
pub const APPLY_LOOK_COST: usize = 64;
/// So many bytes of an entry count as a further put.
pub const APPLY_PUT_BYTES: usize = 1024;
/// What the end of a lease counts as: most have a key or two.
pub const APPLY_REVOKE_COST: usize = 16;
/// What any other entry counts as.
pub const APPLY_OTHER_COST: usize = 32;
/// Rows that an entry writes, or looks at, in one turn; a larger one goes on in the next, and
/// nothing of it is visible before its end.
pub const APPLY_SLICE_ROWS: usize = 512;
/// What apply puts into an answer itself, from memory: so many keys, leaves of the index looked
/// into, and bytes. Fronts read the rest when they send it.
pub const APPLY_ANSWER_KEYS: usize = 64;
/// See [`APPLY_ANSWER_KEYS`].
pub const APPLY_ANSWER_LEAVES: usize = 8;
/// See [`APPLY_ANSWER_KEYS`].
pub const APPLY_ANSWER_BYTES: u64 = 16 << 10;
/// Committed entries that were not applied: with more of them a leader's further proposals wait in
/// the rings, and no client is told that there are too many.
pub const APPLY_TURN_ENTRIES: usize = 2048;
/// Bytes of these, with the same effect.
pub const APPLY_TURN_BYTES: usize = 16 << 20;
/// Entries committed and not applied above which new proposals answer `too many requests` (etcd:
/// maxGapBetweenApplyAndCommitIndex).
pub const APPLY_GAP: u64 = 5000;

const _: () = assert!(((APPLY_TURN_ENTRIES + PROPOSE_ENTRIES) as u64) < APPLY_GAP);
/// Bytes of proposals that a follower forwards in one message; more go in further ones.
pub const FORWARD_BYTES: usize = 1 << 20;
/// Questions about leases that were asked of the leader one by one and have no answer; more wait
/// their turn.
pub const LEASE_FORWARDS: usize = 1024;
/// Questions about leases in one batch, some 35 KiB; more go in the next one.
pub const LEASE_BATCH_QUESTIONS: usize = 2048;
/// Batches of them on their way to the leader; more gather until one is answered.
pub const LEASE_BATCHES: usize = 8;
/// How long a leader waits for what it must apply before it answers a batch, in milliseconds; what
/// it cannot answer then it is asked again.
pub const LEASE_BATCH_HOLD_MS: u64 = 50;
/// How long a leader may take to answer a batch, in milliseconds; then it is asked again.
pub const LEASE_BATCH_MS: u64 = 1000;
/// How long a leader waits for a member's version, in milliseconds.
pub const VERSION_MS: u64 = 2000;
/// How long after its start a member's election clock may be put forward, in milliseconds (etcd:
/// the same).
pub const ELECTION_ADVANCE_MS: u64 = 5000;

/// Tasks waiting for the background thread, and answers of it: checkpoints, and about copies of the
/// page file. Those about copies are put off while fewer than [`BACKGROUND_TASKS_KEPT`] fit.
pub const BACKGROUND_TASKS: usize = 64;
/// Room for a checkpoint, its retries, and a stop.
pub const BACKGROUND_TASKS_KEPT: usize = 4;
/// Bytes of applied log entries kept in memory for peers that lag.
pub const LOG_WINDOW_BYTES: u64 = 4 << 20;

/// After a checkpoint the next one waits this many times as long as the last one took ...
pub const CHECKPOINT_REST_TIMES: u64 = 20;
/// ... but no longer than this, in milliseconds ...
pub const CHECKPOINT_REST_MS_MAX: u64 = 500;
/// ... and not once so many bytes of rows wait for it. Each rewrites the leaves that it touches,
/// and the log's writes have to share the device with it.
pub const CHECKPOINT_REST_BYTES: usize = 2 << 20;

/// A step of a shard's thread that takes so long is counted in a histogram ...
pub const STEP_OBSERVED: Duration = Duration::from_millis(1);
/// ... from this on it is told of at the level of debugging ...
pub const STEP_TOLD: Duration = Duration::from_millis(2);
/// ... and from this on in any case ...
pub const STEP_WARN: Duration = Duration::from_millis(10);
/// ... but not again for so long.
pub const STEP_WARN_REST: Duration = Duration::from_secs(10);
/// How often a thread's processor time is asked for at most.
pub const STEP_CPU_REST: Duration = Duration::from_micros(500);

/// Elections asked for when the leader's peer port refuses connections; then the usual timeout
/// decides.
pub const FAILOVER_TRIES: u64 = 5;
/// Before the second of them, in milliseconds; longer before each further one.
pub const FAILOVER_REST_MS: u64 = 100;
/// Between the turns of two members, in milliseconds: longer than an election between them takes.
pub const FAILOVER_STEP_MS: u64 = 40;

/// A leader that was heard of although its peer port refuses connections is not doubted again for
/// so long, in milliseconds: to ask for an election costs a member its leader for a moment.
pub const FAILOVER_QUIET_MS: u64 = 60_000;

/// Whoever is heard of so long after the link to it was lost lives, and is sent proposals again, in
/// milliseconds.
pub const LOST_MS: u64 = 50;

/// For so long after the first entry of a new leader was applied, what the one before it may have
/// passed on to it is waited for, in milliseconds.
pub const PASSED_ON_MS: u64 = 100;

/// Rows that an entry changes above which the view before it is freed by a thread of its own: what
/// only that view holds of the index may be most of it.
pub const VIEW_FREED_ROWS: usize = 4096;
/// Views that wait for that thread; one more is freed by whoever lets go of it.
pub const VIEWS_FREED: usize = 16;

/// Work that the replica waits for and that has not gone on for so long is told of, counted, and
/// fails the health checks, in milliseconds.
pub const STALL_MS: u64 = 10_000;

/// How long a physical compaction waits for readers that keep what it would remove, in
/// milliseconds: for the member's own hash of it, but not for a slow client.
pub const PIN_WAITED_FOR_MS: u64 = 2000;
/// How long readers of compacted revisions may keep what compaction would remove, in milliseconds;
/// past it they are told that their revision is compacted.
pub const PIN_HELD_MS: u64 = 600_000;
/// A pin is also held no longer than the page file grows by so many bytes meanwhile ...
pub const PIN_HELD_BYTES: u64 = 256 << 20;
/// ... and no more than one in so many of the quota, so that no reader uses it up.
pub const PIN_QUOTA: u64 = 8;

/// Cursors of one front's watch hub: the live one and those that catch up. Watchers that are behind
/// and too far from every cursor wait until one is free.
pub const WATCH_CURSORS: usize = 8;
/// Watchers of one front; more are refused with `too many requests`.
pub const WATCHERS: usize = 4 << 20;
/// Watchers of one stream; more are refused with `too many requests`.
pub const STREAM_WATCHERS: usize = 1 << 20;
/// Bytes of the keys and range ends that one front's watchers look at; more are refused with `too
/// many requests`.
pub const WATCH_KEY_BYTES: usize = 512 << 20;
/// Event bytes that a cursor gathers in one slice before it delivers; more come in the next.
pub const WATCH_SLICE_BYTES: usize = 256 << 10;
/// Rows that a cursor looks at in one slice.
pub const WATCH_SLICE_ROWS: usize = 4096;
/// Watchers that are told of events in one turn; more follow in the next.
pub const WATCH_TURN_DELIVERIES: usize = 2048;
/// Deliveries of one slice; more come in the next.
pub const WATCH_SLICE_HITS: usize = 64 << 10;
/// Event bytes of one revision that a slice may hold; the watchers of a larger one read it for
/// themselves, piece by piece as their windows open.
pub const WATCH_REVISION_BYTES: usize = 1 << 20;
/// Deliveries of one revision in a slice; beyond, the same.
pub const WATCH_REVISION_HITS: usize = 1 << 20;
/// A revision's events for one watcher that may be buffered beyond its window; more are read again
/// piece by piece as the window opens.
pub const WATCH_BUFFERED_BYTES: usize = 64 << 10;
/// Slices of the live cursor in one turn; the shard serves its other connections in between.
pub const WATCH_LIVE_SLICES: usize = 4;
/// Slices of all catch-up cursors together in one turn.
pub const WATCH_CATCH_UP_SLICES: usize = 4;
/// Pieces of large revisions in one turn.
pub const WATCH_PIECES: usize = 8;
/// A watcher that is behind joins a catch-up cursor that is at most so many revisions before it.
pub const WATCH_JOIN_REVISIONS: i64 = 1024;
/// Watchers of one stream that go on in one turn after its window opened; more follow in the next.
pub const WATCH_UNPARK: usize = 64;
/// Events after one whose previous value must come from a page, whose previous values are asked
/// for at the same time.
pub const WATCH_ROWS_AHEAD: usize = 64;
/// Answers to requests on a stream that is in the middle of a large revision; with more its receive
/// window stays shut until they have been sent.
pub const WATCH_HELD_ANSWERS: usize = 1024;
/// What a client may have sent before that takes effect: requests of a window of 64 KiB, seven
/// bytes each at least. Beyond, the stream is ended.
pub const WATCH_HELD_ANSWERS_MAX: usize = 16 << 10;
/// The hub's pin follows its oldest cursor at this distance at most, in revisions.
pub const WATCH_PIN_LAG: i64 = 1024;
/// How long compacted revisions are kept for watchers that are behind; then they are cancelled, as
/// etcd does at once.
pub const WATCH_PIN_MS: u64 = 60_000;

const _: () = assert!(WATCH_SLICE_BYTES < GRPC_OVERHEAD_BYTES, "no batch is ever fragmented");
const _: () = assert!(WATCH_BUFFERED_BYTES <= WATCH_REVISION_BYTES);
const _: () = assert!(WATCH_CURSORS <= u8::MAX as usize);

/// Time for a connection to a peer to come about, besides one election, in milliseconds (etcd:
/// PeerDialTimeout).
pub const PEER_DIAL_MS: u64 = 1000;
/// Connections accepted on the peer port in one wait; more are closed.
pub const PEER_ACCEPTED: usize = 1024;
/// Peers' names being resolved: each member's streams and exchanges, with room to spare.
pub const PEER_NAMES: usize = 2048;

/// Parts of a snapshot that wait to be read for other members; more are refused.
pub const SNAPSHOT_PARTS_WAITING: usize = 64;
/// Parts being read at once.
pub const SNAPSHOT_READS: usize = 8;
/// Bytes of snapshots that a member sends in a second, so that its clients hardly notice.
pub const SNAPSHOT_BYTES_PER_SECOND: u64 = 128 << 20;
/// Parts of half a megabyte that a receiver has asked for at once; fewer while answers do not come
/// in time. Over a round trip of 20 ms that is 200 MB/s.
pub const SNAPSHOT_PARTS_ASKED: usize = etcore_raftlog::limits::PEER_SNAPSHOT_CONNECTIONS;
/// Parts asked for or waiting to be written; no more are asked for meanwhile.
pub const SNAPSHOT_PARTS_HELD: usize = 2 * SNAPSHOT_PARTS_ASKED;
/// How long a part may take before it is asked for again, in milliseconds.
pub const SNAPSHOT_PART_MS: u64 = 10_000;
/// How long after a failure, in milliseconds.
pub const SNAPSHOT_RETRY_MS: u64 = 100;
/// How often a receiver says that it is still at it, in milliseconds: it asks for nothing while it
/// checks and loads what it has.
pub const SNAPSHOT_CALL_MS: u64 = 1000;
/// A receiver of which the sender has heard nothing for so long has probably started again and is
/// to get the snapshot anew, in milliseconds.
pub const SNAPSHOT_LOST_MS: u64 = 6000;
/// A sender of which the receiver has heard nothing for so long is given up, and so is a receiver
/// that takes no entries after its snapshot, in milliseconds.
pub const SNAPSHOT_IDLE_MS: u64 = 15_000;
/// A receiver that has within so many milliseconds what the log had before them follows it.
pub const SNAPSHOT_FOLLOW_MS: u64 = 1000;
/// Bytes of the log that are kept for members that receive a snapshot, until they follow; past that
/// a later snapshot takes its place. Five minutes of 12 MB/s.
pub const SNAPSHOT_LOG_BYTES: u64 = 4 << 30;
/// Log bytes kept while the disk is full: two segments of the usual length, so that a member can
/// receive from one that takes no writes.
pub const SNAPSHOT_LOG_BYTES_SCARCE: u64 = 128 << 20;
/// How long a snapshot that nobody needs is held for the next one who does, in milliseconds.
pub const SNAPSHOT_HOLD_MS: u64 = 10_000;

const _: () = assert!(
    SNAPSHOT_READS + SNAPSHOT_PARTS_HELD + 8 + BACKGROUND_TASKS_KEPT <= BACKGROUND_TASKS,
    "what may be under way at once finds room"
);
const _: () = assert!(SNAPSHOT_LOST_MS > 3 * SNAPSHOT_CALL_MS);
const _: () = assert!(SNAPSHOT_IDLE_MS > SNAPSHOT_PART_MS);

/// How long a leader waits for a write that can tell a follower what is committed, in milliseconds.
pub const COMMIT_HOLD_MS: u64 = 2;
/// A follower that forwarded proposals within so many milliseconds is not kept waiting.
pub const FORWARDER_MS: u64 = 1000;

/// TLS handshakes under way on one front; for one more, the one that has waited for its client for
/// the longest time is given up.
pub const TLS_HANDSHAKES: usize = 8192;
/// How long a TLS handshake may take, in milliseconds (etcd: tlsHandshakeTimeout).
pub const TLS_HANDSHAKE_MS: u64 = 10_000;
/// Bytes of a handshake that wait for their turn; past it the connection is not read.
pub const TLS_WAITING_BYTES: usize = 32 << 10;
/// Steps of TLS handshakes in a round of a shard, each up to a signature and the check of a
/// chain; more follow in the next round, behind everybody else's requests.
pub const TLS_STEPS_PER_ROUND: usize = 8;
/// Nor does a round begin a further step after so long.
pub const TLS_ROUND_TIME: Duration = Duration::from_micros(500);
/// Log lines in a second about connections that were refused; more are counted.
pub const TLS_REJECTED_LINES: u32 = 10;
