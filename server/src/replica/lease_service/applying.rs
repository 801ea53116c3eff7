//! What log entries do to leases: grants, revocations and checkpoints.
//!
//! Called by apply, in the order of the log. Every member does the same with the same entry; what
//! time has to do with it is the leader's business elsewhere.

use etcore_engine::bucket::Bucket;
use etcore_proto::error::EtcdError;
use etcore_proto::pb::etcdserverpb as pb;
use etcore_raftlog::types::LogEntry;

use crate::channel::Reply;
use crate::kv::counts::Counts;
use crate::replica::Replica;
use crate::replica::apply::Halt;
use crate::{lease, limits, wire};

impl Replica {
    pub(in crate::replica) fn apply_lease_grant(
        &mut self,
        entry: &LogEntry,
        request: &pb::LeaseGrantRequest,
    ) -> Reply {
        let lessor = &mut self.leases.lessor;
        let ttl_s = match lessor.check_grant(request.id, request.ttl) {
            Ok(ttl_s) => ttl_s,
            Err(error) => {
                self.store.skip(entry.index, entry.term);
                return Reply::Refused(error.into());
            }
        };
        lessor.grant(request.id, ttl_s, self.turn.now_ms());
        let mut txn = self.store.begin(entry.index, entry.term);
        if let Some(row) = lessor.row(request.id) {
            txn.bucket_put(Bucket::Lease, &lease::row_key(request.id), &row);
        }
        let revision = txn.commit();
        self.shared.metrics.lease_granted.inc();
        self.shared.metrics.lease_ttl.observe(ttl_s as f64);
        let mut out = Vec::new();
        self.shared.header(revision.0).write(&mut out);
        wire::write_int64(&mut out, 2, request.id);
        wire::write_int64(&mut out, 3, ttl_s);
        Reply::Message(out)
    }

    /// Deletes the lease and its keys, in order and as one revision.
    pub(in crate::replica) fn apply_lease_revoke(
        &mut self,
        entry: &LogEntry,
        id: i64,
    ) -> Result<Reply, Halt> {
        self.leases.forget_ending(id, entry.index);
        if let Err(error) = self.state.alarms().admit_change() {
            self.store.skip(entry.index, entry.term);
            return Ok(Reply::Refused(error.into()));
        }
        if self.leases.lessor.key_count(id) > limits::APPLY_ANSWER_KEYS {
            return self.revoke_in_slices(entry, id);
        }
        let Some(revoked) = self.leases.lessor.revoke(id) else {
            self.store.skip(entry.index, entry.term);
            return Ok(Reply::Refused(EtcdError::LeaseNotFound.into()));
        };
        let mut txn = self.store.begin(entry.index, entry.term);
        for key in revoked.keys() {
            txn.delete(key);
        }
        txn.bucket_delete(Bucket::Lease, &lease::row_key(id));
        // etcd deletes the keys one by one.
        let counts = Counts { deletes: txn.changes() as u64, ..Counts::default() };
        counts.add_to(&self.shared.metrics);
        let revision = txn.commit();
        Ok(self.lease_revoked(id, revoked.had_expired, revision.0))
    }

    /// Takes over what is left of leases. Always kept on disk, as etcd does from cluster version
    /// 3.6 on, whatever its gate LeaseCheckpointPersist says.
    pub(in crate::replica) fn apply_lease_checkpoint(
        &mut self,
        entry: &LogEntry,
        request: &pb::LeaseCheckpointRequest,
    ) {
        let mut txn = self.store.begin(entry.index, entry.term);
        for checkpoint in &request.checkpoints {
            let (id, left_s) = (checkpoint.id, checkpoint.remaining_ttl);
            if self.leases.lessor.checkpoint(id, left_s, self.turn.now_ms())
                && let Some(row) = self.leases.lessor.row(id)
            {
                txn.bucket_put(Bucket::Lease, &lease::row_key(id), &row);
            }
            self.leases.unpark(id);
        }
        txn.commit();
    }
}
