//! The meta page: what one checkpoint made durable. There are two, written in turn.
//!
//! The checkpointer writes them, recovery chooses between them. A meta page must never be written
//! before everything it points to is synced.

use super::{PAGE_PTR_BYTES, PagePtr, UNIT_BYTES};
use crate::bucket::BUCKET_COUNT;
use crate::limits::CONF_STATE_BYTES_MAX;
use crate::types::{Identity, LogIndex, Revision, Term};

/// The newest format version that is understood.
pub(crate) const FORMAT_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"etcorePF";
const VERSION: usize = MAGIC.len();
const CHECKPOINT: usize = VERSION + 8;
const APPLIED: usize = CHECKPOINT + 8;
const TERM: usize = APPLIED + 8;
const REVISION: usize = TERM + 8;
const COMPACT_SCHEDULED: usize = REVISION + 8;
const COMPACT_FINISHED: usize = COMPACT_SCHEDULED + 8;
// 16 bytes reserved: a compaction starts over after a restart, as the whole tree is read anyway.
const END_UNIT: usize = COMPACT_FINISHED + 8 + 16;
const CLUSTER_AND_MEMBER: usize = END_UNIT + 8;
const LEASE_AND_AUTH: usize = CLUSTER_AND_MEMBER + 16;
const SPACE: usize = LEASE_AND_AUTH + 48;
const INDEX_CHECKPOINT: usize = SPACE + PAGE_PTR_BYTES;
const ROOTS: usize = INDEX_CHECKPOINT + PAGE_PTR_BYTES + 8;
const CONF_STATE_LEN: usize = ROOTS + 16 * PAGE_PTR_BYTES;
const CONF_STATE: usize = CONF_STATE_LEN + 4;
const CRC: usize = UNIT_BYTES - 4;

const _: () = assert!(CONF_STATE + CONF_STATE_BYTES_MAX <= CRC, "the meta page holds everything");
const _: () = assert!(BUCKET_COUNT <= 16, "there is room for 16 roots");

/// The content of a meta page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    /// Counts up by one; its parity is the page's place.
    pub(crate) checkpoint: u64,
    pub(crate) applied: LogIndex,
    pub(crate) term: Term,
    pub(crate) revision: Revision,
    pub(crate) compact_scheduled: Revision,
    /// The compaction that has removed all it can from the tree.
    pub(crate) compact_finished: Revision,
    /// No unit at or above it is in use.
    pub(crate) end_unit: u64,
    /// All zero until the member is known.
    pub(crate) identity: Identity,
    pub(crate) space: Option<PagePtr>,
    pub(crate) roots: [Option<PagePtr>; BUCKET_COUNT],
    pub(crate) conf_state: Vec<u8>,
}

/// Why a page is no meta page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetaError {
    /// Its checksum or structure is wrong: torn, or rotten.
    Damaged,
    /// It is sound, but of a later format.
    Version(u32),
}

impl Meta {
    /// The meta of a file without rows.
    pub(crate) fn empty(checkpoint: u64) -> Self {
        Self {
            checkpoint,
            applied: LogIndex(0),
            term: Term(0),
            revision: Revision(1),
            compact_scheduled: Revision(-1),
            compact_finished: Revision(-1),
            end_unit: 2,
            identity: Identity::default(),
            space: None,
            roots: [None; BUCKET_COUNT],
            conf_state: Vec::new(),
        }
    }

    /// Its place in the file.
    pub(crate) fn offset_bytes(&self) -> u64 {
        self.checkpoint % 2 * UNIT_BYTES as u64
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; UNIT_BYTES];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(VERSION, &FORMAT_VERSION.to_le_bytes());
        put(CHECKPOINT, &self.checkpoint.to_le_bytes());
        put(APPLIED, &self.applied.0.to_le_bytes());
        put(TERM, &self.term.0.to_le_bytes());
        put(REVISION, &self.revision.0.to_le_bytes());
        put(COMPACT_SCHEDULED, &self.compact_scheduled.0.to_le_bytes());
        put(COMPACT_FINISHED, &self.compact_finished.0.to_le_bytes());
        put(END_UNIT, &self.end_unit.to_le_bytes());
        put(CLUSTER_AND_MEMBER, &self.identity.cluster_id.to_le_bytes());
        put(CLUSTER_AND_MEMBER + 8, &self.identity.member_id.to_le_bytes());
        let mut put_ptr = |at: usize, ptr: Option<PagePtr>| {
            let mut bytes = Vec::with_capacity(PAGE_PTR_BYTES);
            if let Some(ptr) = ptr {
                ptr.write_to(&mut bytes);
                put(at, &bytes);
            }
        };
        put_ptr(SPACE, self.space);
        for (index, root) in self.roots.iter().enumerate() {
            put_ptr(ROOTS + index * PAGE_PTR_BYTES, *root);
        }
        let len = u32::try_from(self.conf_state.len()).expect("at most CONF_STATE_BYTES_MAX");
        put(CONF_STATE_LEN, &len.to_le_bytes());
        put(CONF_STATE, &self.conf_state);
        let crc = crc32c::crc32c(&page[..CRC]);
        page[CRC..].copy_from_slice(&crc.to_le_bytes());
        page
    }

    /// Reads the page at place `slot` (0 or 1).
    pub(crate) fn decode(page: &[u8], slot: u64) -> Result<Self, MetaError> {
        if page.len() != UNIT_BYTES || page[..MAGIC.len()] != MAGIC {
            return Err(MetaError::Damaged);
        }
        let word =
            |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if crc32c::crc32c(&page[..CRC]) != word(CRC) {
            return Err(MetaError::Damaged);
        }
        if word(VERSION) != FORMAT_VERSION {
            return Err(MetaError::Version(word(VERSION)));
        }
        let ptr = |at: usize| {
            let bytes = &page[at..at + PAGE_PTR_BYTES];
            if bytes.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            PagePtr::read_from(bytes).map(Some).ok_or(MetaError::Damaged)
        };
        let mut roots = [None; BUCKET_COUNT];
        for (index, root) in roots.iter_mut().enumerate() {
            *root = ptr(ROOTS + index * PAGE_PTR_BYTES)?;
        }
        let conf_len = word(CONF_STATE_LEN) as usize;
        if conf_len > CONF_STATE_BYTES_MAX || long(CHECKPOINT) % 2 != slot {
            return Err(MetaError::Damaged);
        }
        let revision = |at: usize| Revision(long(at).cast_signed());
        Ok(Self {
            checkpoint: long(CHECKPOINT),
            applied: LogIndex(long(APPLIED)),
            term: Term(long(TERM)),
            revision: revision(REVISION),
            compact_scheduled: revision(COMPACT_SCHEDULED),
            compact_finished: revision(COMPACT_FINISHED),
            end_unit: long(END_UNIT),
            identity: Identity {
                cluster_id: long(CLUSTER_AND_MEMBER),
                member_id: long(CLUSTER_AND_MEMBER + 8),
            },
            space: ptr(SPACE)?,
            roots,
            conf_state: page[CONF_STATE..CONF_STATE + conf_len].to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meta_page_comes_back_and_every_flipped_bit_is_noticed() {
        let mut meta = Meta::empty(7);
        meta.conf_state = vec![1, 2, 3];
        meta.identity = Identity { cluster_id: u64::MAX, member_id: 3 };
        meta.roots[3] =
            Some(PagePtr { first_unit: 5, units: 1, len_bytes: 100, crc: 9, codec: 0, level: 2 });
        let page = meta.encode();
        assert_eq!(Meta::decode(&page, 1), Ok(meta));
        assert_eq!(Meta::decode(&page, 0), Err(MetaError::Damaged));
        for bit in (0..UNIT_BYTES * 8).step_by(13) {
            let mut bad = page.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Meta::decode(&bad, 1), Err(MetaError::Damaged), "bit {bit}");
        }
    }
}
