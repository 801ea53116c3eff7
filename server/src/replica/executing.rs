//! Entries that read and write the key space: done in slices, so that one of any size keeps neither
//! heartbeats nor other requests waiting.
//!
//! Part of apply. Between two slices the store holds the entry's changes and shows them to nobody;
//! no other entry begins, and no checkpoint does. What has to come from a page is waited for in the
//! same way.

use etcore_engine::bucket::Bucket;
use etcore_engine::pins::RevisionPins;
use etcore_engine::store::SuspendedTxn;
use etcore_engine::types::Revision;
use etcore_proto::error::EtcdError;
use etcore_raftlog::types::LogEntry;

use super::Replica;
use super::apply::Halt;
use crate::channel::Reply;
use crate::kv::execute::{Context, Execution};
use crate::kv::reader::Stop;
use crate::lease;
use crate::limits;
use crate::work::Job;

/// An entry between two slices.
pub(super) struct Running {
    entry: LogEntry,
    txn: SuspendedTxn,
    execution: Execution,
    ending: Ending,
    /// It waits for a page.
    at_page: bool,
}

impl Running {
    /// True if it goes on once a page has come, which wakes the shard.
    pub(super) fn waits_for_page(&self) -> bool {
        self.at_page
    }
}

/// What is left to do when all keys are written.
pub(super) enum Ending {
    /// Answer.
    Answer,
    /// Remove the lease whose keys these were.
    Revoke { lease: i64, had_expired: bool },
}

/// The allocator keeps small pieces that were freed apart, and joins all of them when something of
/// a kilobyte or more is asked for. After the keys of a lease with a million of them that kept the
/// thread busy for a tenth of a second: so it is asked for in between.
fn join_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(4 << 10)));
}

impl Replica {
    /// Begins an entry; an answer if one slice is enough.
    pub(super) fn execute(
        &mut self,
        entry: &LogEntry,
        execution: Execution,
        ending: Ending,
    ) -> Result<Reply, Halt> {
        self.run_slice(entry, None, execution, ending)
    }

    /// Goes on with the entry that is between two slices.
    pub(super) fn execute_on(&mut self, running: Running) -> (LogEntry, Result<Reply, Halt>) {
        let Running { entry, txn, execution, ending, .. } = running;
        join_freed_memory();
        let result = self.run_slice(&entry, Some(txn), execution, ending);
        (entry, result)
    }

    fn run_slice(
        &mut self,
        entry: &LogEntry,
        suspended: Option<SuspendedTxn>,
        mut execution: Execution,
        ending: Ending,
    ) -> Result<Reply, Halt> {
        self.turn.note(Job::Slice);
        let mut txn = match suspended {
            Some(suspended) => self.store.resume(suspended),
            None => self.store.begin(entry.index, entry.term),
        };
        let mut rows = limits::APPLY_SLICE_ROWS;
        let mut context = Context {
            pages: self.pages.source(),
            leases: self.leases.lessor(),
            scratch: self.applier.scratch(),
        };
        let stepped = execution.step(&mut txn, &mut context, &mut rows);
        if !matches!(stepped, Err(Stop::NeedsPage(_))) {
            self.pages.end_evaluation();
        }
        let stepped = stepped.map(|done| {
            let lessor = self.leases.lessor_mut();
            let knows_all = lessor.is_empty() && matches!(ending, Ending::Answer);
            done && (knows_all
                || execution.attach(&txn, &mut rows, |key, lease| lessor.set_item(key, lease)))
        });
        self.applier.take_room(limits::APPLY_SLICE_ROWS - rows);
        self.publisher.note_rows(limits::APPLY_SLICE_ROWS - rows);
        let at_page = matches!(stepped, Err(Stop::NeedsPage(_)));
        match stepped {
            Ok(true) => {}
            Ok(false) | Err(Stop::NeedsPage(_)) => {
                let (txn, entry) = (txn.suspend(), entry.clone());
                if at_page {
                    // However many it needs, it ends.
                    self.pages.begin_evaluation();
                    self.pages.fetch_wanted();
                }
                self.applier.suspend(Running { entry, txn, execution, ending, at_page });
                return Err(Halt::Later);
            }
            Err(Stop::Refused(status)) => {
                drop(txn);
                self.store.skip(entry.index, entry.term);
                return Ok(Reply::Refused(status));
            }
            Err(Stop::Broken(error)) => return Err(Halt::Broken(error.to_string())),
        }
        let pins = txn.revision_pins().clone();
        let mut counts = execution.counts();
        if let Ending::Revoke { .. } = ending {
            // etcd deletes the keys one by one.
            counts.deletes = txn.changes() as u64;
        }
        counts.add_to(&self.shared.metrics);
        if let Ending::Revoke { lease, .. } = ending {
            txn.bucket_delete(Bucket::Lease, &lease::row_key(lease));
        }
        let revision = txn.commit();
        if let Ending::Revoke { lease, had_expired } = ending {
            return Ok(self.lease_revoked(lease, had_expired, revision.0));
        }
        Ok(self.answer_of(execution, revision, &pins))
    }

    /// The answer of an entry that is applied and asks for one.
    fn answer_of(&self, execution: Execution, revision: Revision, pins: &RevisionPins) -> Reply {
        let mut head = Vec::new();
        self.shared.header(revision.0).write(&mut head);
        let draft = execution.into_draft();
        if draft.is_short() {
            let mut out = Vec::new();
            draft.write_short(&head, &mut out);
            return Reply::Message(out);
        }
        // What it refers to is there: no compaction is applied before the pin is taken.
        match draft.into_answer(&head, pins) {
            Ok(answer) => Reply::Long(Box::new(answer)),
            Err(_) => Reply::Refused(EtcdError::TooManyRequests.into()),
        }
    }

    /// The lease exists and its end is applied by slices if it has many keys.
    pub(super) fn revoke_in_slices(&mut self, entry: &LogEntry, id: i64) -> Result<Reply, Halt> {
        let Some(revoked) = self.leases.lessor_mut().revoke_lazily(id) else {
            self.store.skip(entry.index, entry.term);
            return Ok(Reply::Refused(EtcdError::LeaseNotFound.into()));
        };
        let ending = Ending::Revoke { lease: id, had_expired: revoked.had_expired };
        self.execute(entry, Execution::remove(revoked.into_keys()), ending)
    }

    pub(super) fn lease_revoked(&mut self, lease: i64, had_expired: bool, revision: i64) -> Reply {
        self.shared.metrics.lease_revoked.inc();
        if had_expired {
            self.shared.metrics.lease_expired.inc();
        }
        self.leases.unpark(lease);
        Reply::Header { revision }
    }
}
