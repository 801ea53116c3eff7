//! Making applied entries visible: one swap of the whole view, then the replies.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use etcore_engine::bucket::Bucket;
use etcore_engine::store::Store;

use super::Replica;
use crate::channel::MemberView;
use crate::channel::ToFront;
use crate::cluster::downgrade::Downgrade;
use crate::cluster::member::Member;
use crate::freer::Freeing;
use crate::limits;
use crate::work::Job;

impl Replica {
    /// Swaps the view and answers what it now shows. Replies never overtake the view.
    pub(super) fn publish(&mut self) {
        if self.unpublished {
            self.unpublished = false;
            self.work.note(Job::Publication);
            let view = Arc::new(self.member_view());
            let (applied, _) = self.store.applied();
            self.count_live_bytes();
            let grew = view.store.revision > self.shared.view.load().store.revision;
            let before = self.shared.view.swap(view);
            if std::mem::take(&mut self.unpublished_rows) > limits::VIEW_FREED_ROWS {
                before.free_elsewhere();
            }
            drop(before);
            // What is applied is committed, and a reader must never see it the other way round.
            self.shared.status.committed.fetch_max(applied.0, Ordering::Release);
            self.shared.status.applied.store(applied.0, Ordering::Release);
            self.log.node.on_applied(applied);
            if grew {
                self.shared.wake_watching();
            }
            self.start_serving();
        }
        self.submit_hashes();
        for (front, message) in self.replies.drain(..) {
            self.fronts[front].send(message);
        }
    }

    /// With every tick.
    pub(super) fn refresh_gauges(&mut self) {
        let node = self.log.node.status();
        let shared = &self.shared;
        shared.status.committed.fetch_max(node.commit.0, Ordering::Relaxed);
        let metrics = &shared.metrics;
        metrics.proposals_pending.set((self.proposals.len() + self.waiting.len()) as u64);
    }

    /// Clients are let in once this member is in the view it publishes: then everything that was
    /// committed before the restart is in it too.
    fn start_serving(&mut self) {
        if self.serving || !self.published_self {
            return;
        }
        self.serving = true;
        tracing::info!(
            local_member_id = %format_args!("{:x}", self.shared.member_id),
            local_member_attributes = %self.shared.config.name,
            cluster_id = %format_args!("{:x}", self.shared.cluster_id),
            "published local member to cluster through raft"
        );
        for front in &mut self.fronts {
            front.send(ToFront::Serve);
        }
        self.shared.serve();
        tracing::info!("ready to serve client requests");
        for url in &self.shared.config.listen_client_urls {
            tracing::info!(
                traffic = "grpc+http",
                address = %url,
                "serving client traffic insecurely; this is strongly discouraged!"
            );
        }
    }

    fn member_view(&mut self) -> MemberView {
        let own_id = self.shared.member_id;
        MemberView {
            store: self.store.publish(),
            is_learner: self.members.iter().any(|member| member.id == own_id && member.is_learner),
            members: self.members.clone(),
            cluster_version: self.cluster_version.clone(),
            alarms: self.alarms.clone(),
            auth: self.auth.clone(),
            downgrade: self.downgrade.clone(),
            page_file: self.page_file.clone(),
            freeing: Freeing::by(self.shared.freer.get()),
        }
    }

    /// Decodes the small buckets again: when opened, and after an entry that changed them.
    pub(super) fn refresh_cluster(&mut self) {
        self.members = members(&self.store);
        self.cluster_version = cluster_version(&self.store);
        self.downgrade = Arc::new(Downgrade::load(&self.store));
    }
}

/// The members bucket, decoded.
pub(super) fn members(store: &Store) -> Arc<Vec<Member>> {
    let mut members: Vec<Member> = store
        .bucket_iter(Bucket::Members, b"")
        .filter_map(|(_, json)| Member::from_json(json).ok())
        .collect();
    members.sort_by_key(|member| member.id);
    Arc::new(members)
}

/// The cluster version, if the leader has set it.
pub(super) fn cluster_version(store: &Store) -> Option<Arc<str>> {
    let version = store.bucket_get(Bucket::Cluster, super::membership::CLUSTER_VERSION_KEY)?;
    std::str::from_utf8(version).ok().map(Arc::from)
}
