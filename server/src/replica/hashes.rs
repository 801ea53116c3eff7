//! The hashes that the replica begins: of every compaction, and of everything.
//!
//! A hash begins where an entry stands, so that its pin comes before any later compaction; it is
//! given to the hasher's thread only once what it reads is published.

use etcore_engine::hash::{HashKind, KvHash, KvHasher};
use etcore_engine::types::Revision;
use etcore_proto::error::EtcdError;

use super::Replica;
use crate::background::hasher::{Hasher, Job};
use crate::channel::HashRequester;

/// See the module text.
pub(super) struct Hashes {
    hasher: Hasher,
    /// Begun since the last publication, each with the front that may be refused.
    begun: Vec<(Option<usize>, Job)>,
}

impl Hashes {
    pub(super) fn new(hasher: Hasher) -> Self {
        Self { hasher, begun: Vec::new() }
    }

    /// Hashes of the last compactions, ascending by revision.
    pub(super) fn compactions(&self) -> Vec<KvHash> {
        self.hasher.compactions()
    }

    /// Queues a job that reads what is published; false if too many wait.
    pub(super) fn submit(&self, job: Job) -> bool {
        self.hasher.submit(job).is_ok()
    }

    pub(super) fn begin_compaction(&mut self, hasher: KvHasher) {
        self.begun.push((None, Job::Compaction(Box::new(hasher))));
    }
}

impl Replica {
    /// The hash to be taken over what the compaction is about to remove; its pin comes before the
    /// compaction.
    pub(super) fn compaction_hash(&self, to: Revision) -> Option<KvHasher> {
        let compacted = self.store.compact_revision();
        let pin = self.store.revision_pins().pin(compacted.max(Revision(0))).ok()?;
        Some(KvHasher::new(HashKind::ByCompaction, to, compacted, pin))
    }

    pub(super) fn begin_hash(&mut self, front: usize, reply: HashRequester) {
        match self.store.hasher_of_everything() {
            Ok(hasher) => {
                let job = Job::Everything { hasher: Box::new(hasher), reply };
                self.hashes.begun.push((Some(front), job));
            }
            Err(_) => self.refuse_hash(front, &reply),
        }
    }

    /// What is applied is published.
    pub(super) fn submit_hashes(&mut self) {
        for (front, job) in std::mem::take(&mut self.hashes.begun) {
            // Without room for it the hash of a compaction is not remembered.
            if let (Err(Job::Everything { reply, .. }), Some(front)) =
                (self.hashes.hasher.submit(job), front)
            {
                self.refuse_hash(front, &reply);
            }
        }
    }

    fn refuse_hash(&mut self, front: usize, reply: &HashRequester) {
        self.fronts.refuse(front, reply.slot, EtcdError::TooManyRequests);
    }
}
