//! Every bound of the crate, with what happens at it.
//!
//! Read by the modules that enforce them; nothing here may depend on run-time configuration.

/// Entries of an index leaf; a fuller one is split.
pub const INDEX_LEAF_ENTRIES_MAX: usize = 64;

/// Key bytes of an index leaf; a leaf of several entries above it is split.
pub const INDEX_LEAF_KEY_BYTES_MAX: usize = 16 << 10;

/// Children of an inner index node; a fuller one is split.
pub const INDEX_FANOUT_MAX: usize = 64;

/// Older revisions of one key kept beside its leaf; more are moved to a run of their own.
pub const INDEX_RECENT_MAX: usize = 8;

/// Rows of one memory segment; the next row opens another one.
pub const SEGMENT_ROWS_MAX: usize = 1024;

/// Row bytes of one memory segment, unless a single row is larger.
pub const SEGMENT_BYTES: usize = 256 << 10;

/// Segments kept for reuse; more are freed.
pub const SEGMENTS_SPARE_MAX: usize = 8;
/// Spare segments kept that were made for a single large row each: fresh memory of megabytes takes
/// longer to touch than the row takes to copy, so a checkpoint's worth of large rows is kept.
pub const LARGE_SEGMENTS_SPARE_MAX: usize = 24;
/// One of these that nobody took during so many checkpoints is freed, and then the next.
pub const LARGE_SEGMENTS_IDLE_CHECKPOINTS: u32 = 10;
/// None larger than this is kept, in bytes.
pub const SPARE_SEGMENT_BYTES_MAX: usize = 2 << 20;

/// Rows of one chunk of a bucket in memory; a fuller one is split.
pub const BUCKET_CHUNK_ROWS_MAX: usize = 128;

/// Bytes of one chunk of a bucket in memory; one of several rows above it is split.
pub const BUCKET_CHUNK_BYTES_MAX: usize = 16 << 10;

/// Chunks of one group of a bucket in memory; a fuller one is split.
pub const BUCKET_GROUP_CHUNKS_MAX: usize = 128;

/// Revision pins; further long reads are refused.
pub const REVISION_PINS_MAX: usize = 10_000;

/// A single stored key plus value, in wire form. etcd's request limit is 1.5 MiB by default and
/// can be raised by a flag; a page length is a `u32`.
pub const ROW_BYTES_MAX: usize = 1 << 30;

/// Index leaves looked at for compaction with every publish: a few microseconds.
pub const INDEX_COMPACT_LEAVES_PER_PUBLISH: usize = 2;

/// Index leaves looked at for compaction in a turn with time to spare: some 100 microseconds.
pub const INDEX_COMPACT_LEAVES_PER_TURN: usize = 64;

/// Free extents looked at for one that is large enough; then the file grows.
pub const SPACE_SEARCH_MAX: usize = 1024;

/// Bytes of raft's configuration in a meta page: hundreds of members.
pub const CONF_STATE_BYTES_MAX: usize = 2048;

/// While a compaction is unfinished a checkpoint is due this often, in milliseconds: each takes it
/// a step further.
pub const COMPACTION_CHECKPOINT_MS: u64 = 100;

/// Leaves that one checkpoint looks at on behalf of a compaction.
pub const COMPACTION_LEAVES_PER_CHECKPOINT: usize = 512;

/// Bytes of leaves that one checkpoint looks at on behalf of a compaction.
pub const COMPACTION_BYTES_PER_CHECKPOINT: usize = 4 << 20;

/// Pages that one checkpoint moves towards the start of the file.
pub const RELOCATE_PAGES_PER_CHECKPOINT: usize = 512;

/// Inner nodes that one checkpoint looks at for pages to move.
pub const RELOCATE_NODES_PER_CHECKPOINT: usize = 256;

/// Free units, besides a third of the file, from which on pages are moved without being asked for.
pub const RELOCATE_WASTE_UNITS_MIN: u64 = 4096;

/// Walks over the tree in one defragmentation.
pub const DEFRAGMENT_PASSES_MAX: u32 = 3;

/// Bytes of one write of a checkpoint, unless a single page is larger.
pub const CHECKPOINT_WRITE_BYTES: usize = 256 << 10;

/// Writes and reads of a checkpoint under way at a time.
pub const CHECKPOINT_DEPTH: usize = 8;

/// Pages kept by a reader that walks the tree with plain calls.
pub const READ_PAGES_KEPT: usize = 32;

/// The page file grows by multiples of this.
pub const FILE_GROWTH_BYTES: u64 = 1 << 20;

/// Bytes taken from the file system beyond what the page file uses, so that deletions can still be
/// saved when it is full; a quarter of them may be used before more are asked for.
pub const FILE_RESERVE_BYTES: u64 = 32 << 20;

/// Zeros written at a time into a segment that is being prepared.
pub const ZERO_CHUNK_BYTES: usize = 128 << 10;

/// Units of a part of a copy, at most: half a megabyte.
pub const SNAPSHOT_PART_UNITS: u64 = 128;

/// Free units in a row that a copy leaves out; fewer are sent along.
pub const SNAPSHOT_SKIP_UNITS: u64 = 16;

/// Bytes of a copy that are written before it is synced: all of it at the end would keep the log's
/// writes waiting.
pub const SNAPSHOT_SYNC_BYTES: usize = 16 << 20;

/// Bytes of a copy that are read at once when it is checked, unless a single page is larger.
pub const SNAPSHOT_CHECK_BYTES: usize = 512 << 10;

const _: () = assert!(INDEX_LEAF_ENTRIES_MAX >= 4 && INDEX_FANOUT_MAX >= 4);
const _: () = assert!(ROW_BYTES_MAX < (1 << 31), "a length shares its word with a flag");
