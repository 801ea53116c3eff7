//! Applying what is about the cluster itself: its members, its version, a downgrade of it.
//!
//! Called by apply. Rows are etcd's, byte for byte, so that its members and tools read them.

use bytes::Bytes;
use etcore_engine::bucket::Bucket;
use etcore_engine::seeded_bug::{SeededBug, is_on};
use etcore_engine::types::Term;
use etcore_proto::pb::membershippb;
use etcore_proto::raftpb;
use etcore_raftlog::types::{EntryKind, LogEntry};
use prost::Message;

use super::apply::Halt;
use super::authing::put_rows;
use super::{Replica, versions};
use crate::auth::Auth;
use crate::cluster::change::Change;
use crate::cluster::downgrade::{self, Downgrade};
use crate::cluster::member::Member;
use crate::cluster::version;

/// Key of the cluster version in its bucket (etcd `schema.ClusterClusterVersionKeyName`).
pub(super) const CLUSTER_VERSION_KEY: &[u8] = b"clusterVersion";
/// What stands in the row of a member that was removed (etcd `schema/membership.go`).
const REMOVED_ROW: &[u8] = b"removed";
/// The term of the entries that found a cluster.
const FOUNDING: Term = Term(1);

impl Replica {
    /// A change of the members: made by all members, or refused by all. The rows and raft's
    /// configuration change together, at this entry.
    pub(super) fn apply_conf_change(&mut self, entry: &LogEntry) -> Result<(), Halt> {
        let broken = |what: String| Halt::Broken(format!("configuration change: {what}"));
        if entry.kind == EntryKind::ConfChangeV2 {
            if self.changes_quorums_only(&entry.data).map_err(broken)? {
                return self.configure(entry, None);
            }
            self.store.skip(entry.index, entry.term);
            return Ok(());
        }
        let wire = raftpb::ConfChange::decode(entry.data.clone())
            .map_err(|error| broken(error.to_string()))?;
        let change = Change::of(&wire).map_err(broken)?;
        let learners_max = self.shared.config.learners_max;
        let verdict = change.validate(self.state.members(), self.state.removed(), learners_max);
        match verdict {
            Ok(()) => self.configure(entry, Some(&change))?,
            Err(error) => {
                tracing::error!(error = %error, "Validation on configuration change failed");
                self.store.skip(entry.index, entry.term);
            }
        }
        self.change_applied(wire.id.unwrap_or(0), &change, verdict);
        Ok(())
    }

    /// Gives raft its new configuration, and the buckets what it says.
    fn configure(&mut self, entry: &LogEntry, change: Option<&Change>) -> Result<(), Halt> {
        let broken = |what: String| Halt::Broken(format!("configuration change: {what}"));
        let removes = matches!(change, Some(Change::Remove(_)));
        let conf_state = if removes && is_on(SeededBug::QuorumOfOldMembers) {
            self.log.node.conf_state()
        } else {
            let changed = self.log.node.apply_conf_change(entry.kind, &entry.data);
            changed.map_err(|error| broken(error.to_string()))?
        };
        let known = change.and_then(|change| self.state.member(change.member_id()).cloned());
        let first_row = Auth::first_row(&self.store);
        let mut txn = self.store.begin(entry.index, entry.term);
        put_rows(&mut txn, first_row);
        let mut put = |member: &Member| {
            txn.bucket_put(Bucket::Members, &Member::bucket_key(member.id), &member.to_json());
        };
        match (change, known) {
            (Some(Change::Add(member)), _) => put(member),
            (Some(Change::Promote(_)), Some(known)) => put(&Member { is_learner: false, ..known }),
            (Some(Change::Update { peer_urls, .. }), Some(known)) => {
                put(&Member { peer_urls: peer_urls.clone(), ..known });
            }
            (Some(Change::Remove(id)), _) => {
                let key = Member::bucket_key(*id);
                txn.bucket_delete(Bucket::Members, &key);
                txn.bucket_put(Bucket::MembersRemoved, &key, REMOVED_ROW);
            }
            (Some(Change::Promote(_) | Change::Update { .. }) | None, _) => {}
        }
        if entry.term <= FOUNDING || !is_on(SeededBug::ConfStateOutdated) {
            txn.set_conf_state(&conf_state.encode_to_vec());
        }
        txn.commit();
        self.state.refresh_cluster(&self.store);
        if let Some(change) = change {
            self.tell_of_change(change);
            if let Change::Remove(id) = change {
                self.peer_queue.forget(*id);
            }
            // Whom a leader needs may be others now.
            self.refresh_connected();
            if *change == Change::Remove(self.shared.member_id) {
                self.note_removed();
            }
        }
        Ok(())
    }

    /// Asserts that raft's configuration is what the rows of the members say. Of a cluster that is
    /// being founded raft knows the members before they are applied.
    pub(super) fn check_members(&self) {
        let conf_state = self.log.node.conf_state();
        let is_between = self.snapshots.is_installing() || !conf_state.voters_outgoing.is_empty();
        if is_between || self.store.applied().1 <= FOUNDING {
            return;
        }
        let ids = |learners: bool| -> Vec<u64> {
            let own = self.state.members().iter().filter(|member| member.is_learner == learners);
            own.map(|member| member.id).collect()
        };
        let sorted = |mut list: Vec<u64>| {
            list.sort_unstable();
            list
        };
        assert_eq!(sorted(conf_state.voters), ids(false), "raft's voters are the members'");
        assert_eq!(sorted(conf_state.learners), ids(true), "raft's learners are the members'");
    }

    /// In etcd's words.
    fn tell_of_change(&self, change: &Change) {
        let (kind, text) = match change {
            Change::Add(member) if member.is_learner => {
                ("ConfChangeAddLearnerNode", "added member")
            }
            Change::Add(_) => ("ConfChangeAddNode", "added member"),
            Change::Promote(_) => ("ConfChangeAddNode", "promote member"),
            Change::Remove(_) => ("ConfChangeRemoveNode", "removed member"),
            Change::Update { .. } => ("ConfChangeUpdateNode", "updated member"),
        };
        let peer_urls = match change {
            Change::Add(Member { peer_urls, .. }) | Change::Update { peer_urls, .. } => {
                peer_urls.join(",")
            }
            Change::Promote(_) | Change::Remove(_) => String::new(),
        };
        tracing::info!(
            cluster_id = %format_args!("{:x}", self.shared.cluster_id),
            local_member_id = %format_args!("{:x}", self.shared.member_id),
            raft_conf_change = kind,
            member_id = %format_args!("{:x}", change.member_id()),
            peer_urls,
            "{text}"
        );
    }

    /// Looks at a change of raft's second form. etcd reads such a one, never proposes it, and stops
    /// at it. What leaves the members as they are is raft's own matter: the beginning and the end
    /// of a configuration of two quorums. False if there is nothing in it at all. Who the members
    /// are must not be changed by one: it does not say where they are.
    fn changes_quorums_only(&self, data: &Bytes) -> Result<bool, String> {
        let change =
            raftpb::ConfChangeV2::decode(data.clone()).map_err(|error| error.to_string())?;
        if !change.changes.is_empty() {
            return Err("one of raft's second form changes members, which nobody of etcd's \
                        version 3.7 proposes, nor applies"
                .to_owned());
        }
        let ends = change.transition.unwrap_or(0) == 0;
        Ok(!ends || !self.log.node.conf_state().voters_outgoing.is_empty())
    }

    pub(super) fn apply_attributes(
        &mut self,
        entry: &LogEntry,
        request: &membershippb::ClusterMemberAttrSetRequest,
    ) -> Result<(), Halt> {
        let key = Member::bucket_key(request.member_id);
        let known = self.store.bucket_get(Bucket::Members, &key).map(Bytes::copy_from_slice);
        let first_row = Auth::first_row(&self.store);
        let mut txn = self.store.begin(entry.index, entry.term);
        put_rows(&mut txn, first_row);
        if let Some(json) = known {
            let mut member = Member::from_json(&json).map_err(Halt::Broken)?;
            let attributes = request.member_attributes.clone().unwrap_or_default();
            member.name = attributes.name;
            member.client_urls = attributes.client_urls;
            txn.bucket_put(Bucket::Members, &key, &member.to_json());
        }
        txn.commit();
        self.state.refresh_cluster(&self.store);
        Ok(())
    }

    /// Like etcd, a member does not go on in a cluster that has grown too new for it.
    pub(super) fn apply_cluster_version(
        &mut self,
        entry: &LogEntry,
        request: &membershippb::ClusterVersionSetRequest,
    ) -> Result<(), Halt> {
        let wanted = versions::parse(&request.ver)
            .ok_or_else(|| Halt::Broken(format!("cluster version {:?}", request.ver)))?;
        if versions::parse(version::ETCD).is_some_and(|own| own < wanted) {
            return Err(Halt::Broken(format!(
                "the cluster version becomes {}, which this version of {} does not serve; start \
                 one that does on this data directory",
                request.ver,
                version::ETCD
            )));
        }
        let known = self.state.cluster_version().cloned();
        let mut txn = self.store.begin(entry.index, entry.term);
        txn.bucket_put(Bucket::Cluster, CLUSTER_VERSION_KEY, request.ver.as_bytes());
        txn.commit();
        self.state.refresh_cluster(&self.store);
        let ver = &request.ver;
        match known {
            None => tracing::info!(cluster_version = %ver, "set initial cluster version"),
            Some(from) => tracing::info!(from = %from, to = %ver, "updated cluster version"),
        }
        Ok(())
    }

    /// Keeps what etcd keeps of a downgrade.
    pub(super) fn apply_downgrade(
        &mut self,
        entry: &LogEntry,
        request: &membershippb::DowngradeInfoSetRequest,
    ) {
        let target_version = if request.enabled { request.ver.clone() } else { String::new() };
        let info = Downgrade { target_version, enabled: request.enabled };
        let mut txn = self.store.begin(entry.index, entry.term);
        txn.bucket_put(Bucket::Cluster, downgrade::KEY, &info.to_json());
        txn.commit();
        self.state.refresh_cluster(&self.store);
        tracing::warn!(enabled = info.enabled, target = %info.target_version, "cluster downgrade");
    }
}
