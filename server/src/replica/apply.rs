//! Applying committed entries, in order, each exactly once.
//!
//! An entry either changes the store as a whole or not at all. A large one, and one that needs a
//! page from the device, is applied over several turns ([`executing`](super::executing)); nothing
//! behind it starts meanwhile. A request this version does not know stops the member:
//! skipping it would make it diverge.

use bytes::Bytes;
use etcore_engine::bucket::Bucket;
use etcore_engine::types::{LeaseId, Revision};
use etcore_proto::error::EtcdError;
use etcore_proto::pb::{etcdserverpb as pb, membershippb};
use etcore_proto::raftpb;
use etcore_raftlog::types::{EntryKind, LogEntry};
use prost::Message;

use super::executing::Ending;
use super::messages::{Reply, ToFront};
use super::{Proposal, Replica, Slot};
use crate::api::execute::Execution;
use crate::api::plan::{Leases, Op};
use crate::api::reader::Stop;
use crate::limits;
use crate::member::Member;
use crate::wire::{self, PutRef};

/// Key of the cluster version in its bucket (etcd `schema.ClusterClusterVersionKeyName`).
pub(super) const CLUSTER_VERSION_KEY: &[u8] = b"clusterVersion";

/// Why an entry was not applied.
pub(super) enum Halt {
    /// There is more to do, or a page is on its way; it goes on in a later turn.
    Later,
    /// The member must stop.
    Broken(String),
}

/// What an entry takes of [`limits::APPLY_TURN_COST`], about: a put is 1.
fn cost(entry: &LogEntry) -> usize {
    if entry.kind == EntryKind::Normal {
        if wire::wrapped_put(&entry.data).is_some() {
            return 1 + entry.data.len() / limits::APPLY_PUT_BYTES;
        }
        if wire::wrapped_revoke(&entry.data).is_some() {
            return limits::APPLY_REVOKE_COST;
        }
    }
    limits::APPLY_OTHER_COST
}

impl Replica {
    /// True if the turn ended before everything was applied that could be.
    pub(super) fn may_apply_more(&self) -> bool {
        self.running.as_ref().is_some_and(|running| !running.at_page)
            || self.apply_room == 0 && !self.to_apply.is_empty()
    }

    /// Applies what is committed, as far as the turn has room; true if anything was.
    pub(super) fn apply_committed(&mut self) -> bool {
        let mut any = false;
        if self.has_backlog() && self.applying_since.is_none() {
            self.applying_since = Some(self.shared.clock.elapsed());
        }
        let mut count = 0u64;
        // Behind an entry that could not be applied none may be.
        while !self.stopped
            && self.apply_room > 0
            && let Some((entry, applied)) = self.apply_next()
        {
            match applied {
                Ok(reply) => {
                    any = true;
                    self.apply_room = self.apply_room.saturating_sub(cost(&entry));
                    count += 1;
                    let bytes = &mut self.space.proposed_bytes;
                    *bytes = bytes.saturating_sub(entry.data.len() as u64);
                    self.answer(&entry, reply);
                }
                Err(Halt::Later) => break,
                Err(Halt::Broken(reason)) => {
                    self.fail(format!("entry {}: {reason}", entry.index));
                    break;
                }
            }
        }
        self.unpublished |= any;
        if any {
            self.warn_of_slow_apply(count);
        }
        any
    }

    /// Entries of a turn are timed together: one of them alone may be the slow one, or a page it
    /// waited for.
    fn warn_of_slow_apply(&mut self, count: u64) {
        let now = self.shared.clock.elapsed();
        let again = self.has_backlog().then_some(now);
        let Some(since) = std::mem::replace(&mut self.applying_since, again) else { return };
        let took_ms = now.saturating_sub(since).as_millis();
        if took_ms <= u128::from(limits::SLOW_APPLY_MS) {
            return;
        }
        self.shared.metrics.slow_applies.inc();
        tracing::warn!(
            took = %format_args!("{took_ms}ms"),
            expected_duration = %format_args!("{}ms", limits::SLOW_APPLY_MS),
            entries = count,
            applied_index = self.store.applied().0.0,
            "apply request took too long"
        );
    }

    /// Answers whoever waits for the entry.
    fn answer(&mut self, entry: &LogEntry, reply: Option<Reply>) {
        let compaction = self.waits_for_compaction.take();
        let Some((front, slot)) = self.waits_for(entry) else { return };
        let reply = match reply {
            Some(reply) => reply,
            None => Reply::Refused(EtcdError::Stopped.into()),
        };
        let message = ToFront::Reply { slot, reply };
        match compaction {
            Some(revision) => self.physical_compactions.push((revision, front, message)),
            None => self.replies.push((front, message)),
        }
    }

    /// Who proposed the entry through this member and waits for it.
    fn waits_for(&mut self, entry: &LogEntry) -> Option<(usize, Slot)> {
        while let Some(Proposal { index, term, from, .. }) =
            self.proposals.pop_front_if(|proposal| proposal.index <= entry.index)
        {
            if index == entry.index && term == entry.term {
                return from.map(|origin| (origin.front, origin.slot));
            }
            // Another leader's entry took its place, for good.
            if let Some(origin) = from {
                let reply = Reply::Refused(EtcdError::LeaderChanged.into());
                self.replies.push((origin.front, ToFront::Reply { slot: origin.slot, reply }));
            }
        }
        self.waiting.take(&entry.data)
    }

    /// Applies the next entry, or the next slice of the one that was begun.
    fn apply_next(&mut self) -> Option<(LogEntry, Result<Option<Reply>, Halt>)> {
        if let Some(running) = self.running.take() {
            let (entry, result) = self.execute_on(*running);
            return Some((entry, result.map(Some)));
        }
        let entry = self.to_apply.pop_front()?;
        let result = self.apply_entry(&entry);
        Some((entry, result))
    }

    fn apply_entry(&mut self, entry: &LogEntry) -> Result<Option<Reply>, Halt> {
        match entry.kind {
            EntryKind::ConfChange | EntryKind::ConfChangeV2 => {
                self.apply_conf_change(entry)?;
                Ok(None)
            }
            EntryKind::Normal if entry.data.is_empty() => {
                self.store.skip(entry.index, entry.term);
                self.begin_term(entry.term);
                Ok(None)
            }
            EntryKind::Normal => {
                if let Some(put) = wire::wrapped_put(&entry.data) {
                    let put = PutRef::parse(put)
                        .map_err(|error| Halt::Broken(format!("put request: {error}")))?;
                    return self.apply_put(entry, &put).map(Some);
                }
                if let Some(lease) = wire::wrapped_revoke(&entry.data) {
                    return self.apply_lease_revoke(entry, lease).map(Some);
                }
                let request = pb::InternalRaftRequest::decode(entry.data.clone())
                    .map_err(|error| Halt::Broken(format!("raft request: {error}")))?;
                self.apply_request(entry, request)
            }
        }
    }

    fn apply_request(
        &mut self,
        entry: &LogEntry,
        request: pb::InternalRaftRequest,
    ) -> Result<Option<Reply>, Halt> {
        if let Err(error) = self.alarms.admit(&request) {
            self.store.skip(entry.index, entry.term);
            return Ok(Some(Reply::Refused(error.into())));
        }
        if let Some(alarm) = &request.alarm {
            return Ok(Some(self.apply_alarm(entry, alarm)));
        }
        if let Some(put) = &request.put {
            return self.apply_put(entry, &crate::api::check::put_ref(put)).map(Some);
        }
        if let Some(delete) = request.delete_range {
            let execution = Execution::of(Op::Delete(delete));
            return self.execute(entry, execution, Ending::Answer).map(Some);
        }
        if let Some(request) = request.txn {
            return self.execute(entry, Execution::txn(request), Ending::Answer).map(Some);
        }
        if let Some(compaction) = &request.compaction {
            return Ok(Some(self.apply_compaction(entry, compaction)));
        }
        if let Some(grant) = &request.lease_grant {
            return Ok(Some(self.apply_lease_grant(entry, grant)));
        }
        if let Some(revoke) = &request.lease_revoke {
            return self.apply_lease_revoke(entry, revoke.id).map(Some);
        }
        if let Some(checkpoint) = &request.lease_checkpoint {
            self.apply_lease_checkpoint(entry, checkpoint);
            return Ok(None);
        }
        if let Some(attributes) = request.cluster_member_attr_set {
            let id = request.header.map_or(0, |header| header.id);
            self.published_self |= self.publishing.contains(&id);
            self.apply_attributes(entry, attributes)?;
            return Ok(None);
        }
        if let Some(version) = request.cluster_version_set {
            let known = self.cluster_version.clone();
            let mut txn = self.store.begin(entry.index, entry.term);
            txn.bucket_put(Bucket::Cluster, CLUSTER_VERSION_KEY, version.ver.as_bytes());
            txn.commit();
            self.refresh_cluster();
            match known {
                None => {
                    tracing::info!(cluster_version = %version.ver, "set initial cluster version");
                }
                Some(from) => {
                    tracing::info!(from = %from, to = %version.ver, "updated cluster version");
                }
            }
            return Ok(None);
        }
        Err(Halt::Broken(
            "a request that this version does not serve; start the version that wrote it".into(),
        ))
    }

    fn apply_put(&mut self, entry: &LogEntry, put: &PutRef<'_>) -> Result<Reply, Halt> {
        if let Err(error) = self.alarms.admit_growth() {
            self.store.skip(entry.index, entry.term);
            return Ok(Reply::Refused(error.into()));
        }
        if put.prev_kv || put.ignore_value || put.ignore_lease {
            let put = pb::PutRequest {
                key: Bytes::copy_from_slice(put.key),
                value: Bytes::copy_from_slice(put.value),
                lease: put.lease,
                prev_kv: put.prev_kv,
                ignore_value: put.ignore_value,
                ignore_lease: put.ignore_lease,
            };
            return self.execute(entry, Execution::of(Op::Put(put)), Ending::Answer);
        }
        let lease = LeaseId(put.lease);
        if lease.0 != 0 && !self.desk.lessor.exists(lease) {
            self.store.skip(entry.index, entry.term);
            return Ok(Reply::Refused(EtcdError::LeaseNotFound.into()));
        }
        self.shared.metrics.puts.inc();
        let mut txn = self.store.begin(entry.index, entry.term);
        txn.put(put.key, put.value, lease);
        let revision = txn.commit().0;
        self.desk.lessor.set_item(put.key, lease.0);
        Ok(Reply::Header { revision })
    }

    fn apply_compaction(&mut self, entry: &LogEntry, request: &pb::CompactionRequest) -> Reply {
        self.store.skip(entry.index, entry.term);
        let hash = self.compaction_hash(Revision(request.revision));
        match self.store.compact(Revision(request.revision)) {
            Ok(()) => {
                if let Some(hasher) = hash {
                    self.hashes.begin_compaction(hasher);
                }
                // etcd asks for the revision by a range, and counts it.
                self.shared.metrics.ranges.inc();
                let mut out = Vec::new();
                self.shared.header(self.store.revision().0).write(&mut out);
                if request.physical {
                    self.waits_for_compaction = Some(request.revision);
                }
                Reply::Message(out)
            }
            Err(error) => match Stop::from(error) {
                Stop::Refused(status) => Reply::Refused(status),
                Stop::NeedsPage(_) | Stop::Broken(_) => Reply::Refused(EtcdError::Corrupt.into()),
            },
        }
    }

    fn apply_conf_change(&mut self, entry: &LogEntry) -> Result<(), Halt> {
        let broken = |what: String| Halt::Broken(format!("configuration change: {what}"));
        let conf_state = self
            .log
            .node
            .apply_conf_change(entry.kind, &entry.data)
            .map_err(|error| broken(error.to_string()))?;
        let change = raftpb::ConfChange::decode(entry.data.clone())
            .map_err(|error| broken(error.to_string()))?;
        let mut txn = self.store.begin(entry.index, entry.term);
        let context = change.context.unwrap_or_default();
        if !context.is_empty() {
            let member = Member::from_json(&context).map_err(broken)?;
            txn.bucket_put(Bucket::Members, &Member::bucket_key(member.id), &member.to_json());
        }
        txn.set_conf_state(&conf_state.encode_to_vec());
        txn.commit();
        self.refresh_cluster();
        Ok(())
    }

    fn apply_attributes(
        &mut self,
        entry: &LogEntry,
        request: membershippb::ClusterMemberAttrSetRequest,
    ) -> Result<(), Halt> {
        let key = Member::bucket_key(request.member_id);
        let known = self.store.bucket_get(Bucket::Members, &key).map(Bytes::copy_from_slice);
        let mut txn = self.store.begin(entry.index, entry.term);
        if let Some(json) = known {
            let mut member = Member::from_json(&json).map_err(Halt::Broken)?;
            let attributes = request.member_attributes.unwrap_or_default();
            member.name = attributes.name;
            member.client_urls = attributes.client_urls;
            txn.bucket_put(Bucket::Members, &key, &member.to_json());
        }
        txn.commit();
        self.refresh_cluster();
        Ok(())
    }
}
