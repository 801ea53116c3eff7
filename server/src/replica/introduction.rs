//! How a member that has started gets known: it publishes itself through raft, then lets clients
//! in.
//!
//! Part of the replica. As every etcd member does, it proposes its name and client URLs until that
//! is applied. Once it is in the view that it publishes, so is everything that was committed before
//! the restart: clients are let in then, and not before.

use etcore_proto::pb::{etcdserverpb as pb, membershippb};
use etcore_raftlog::node::Destination;
use prost::Message;

use super::Replica;
use crate::channel::ToFront;
use crate::cluster::version;

/// See the module text. Invariant: clients are let in only once the member is published.
#[derive(Debug, Default)]
pub(super) struct Introduction {
    /// IDs of the entries by which this member publishes itself, in this life.
    proposed: Vec<u64>,
    /// It is proposed again then.
    again_ms: u64,
    published: bool,
    serving: bool,
}

impl Introduction {
    /// An entry of this ID that publishes a member was applied.
    pub(super) fn note_applied(&mut self, id: u64) {
        self.published |= self.proposed.contains(&id);
    }

    /// The entry may be among those that this member will never see: it is proposed again.
    pub(super) fn hurry(&mut self) {
        self.again_ms = 0;
    }

    /// True once, when clients are to be let in.
    fn begins_serving(&mut self) -> bool {
        self.published && !std::mem::replace(&mut self.serving, self.published)
    }
}

impl Replica {
    /// Proposes this member's name and client URLs until that is applied. A member alone sets the
    /// cluster version with it.
    pub(super) fn propose_member(&mut self) {
        let now_ms = self.turn.now_ms();
        if self.introduction.published
            || now_ms < self.introduction.again_ms
            || self.log.node.destination() == Destination::Nowhere
        {
            return;
        }
        self.introduction.again_ms = now_ms + self.request_timeout_ms;
        let config = &self.shared.config;
        let attributes = membershippb::Attributes {
            name: config.name.clone(),
            client_urls: config.advertise_client_urls.clone(),
        };
        let publish = pb::InternalRaftRequest {
            cluster_member_attr_set: Some(membershippb::ClusterMemberAttrSetRequest {
                member_id: self.shared.member_id,
                member_attributes: Some(attributes),
            }),
            ..Default::default()
        };
        let cluster_version = pb::InternalRaftRequest {
            cluster_version_set: Some(membershippb::ClusterVersionSetRequest {
                ver: version::CLUSTER.to_owned(),
            }),
            ..Default::default()
        };
        let alone = self.is_leader() && self.log.node.conf_state().voters.len() == 1;
        let sets_version = alone && self.state.cluster_version().is_none();
        let requests = [sets_version.then_some(cluster_version)];
        let mut batch = Vec::new();
        for mut request in requests.into_iter().flatten().chain([publish]) {
            let id = self.new_request_id();
            if request.cluster_member_attr_set.is_some() {
                self.introduction.proposed.push(id);
            }
            request.header = Some(pb::RequestHeader { id, ..Default::default() });
            batch.push(request.encode_to_vec().into());
        }
        let origins = vec![None; batch.len()];
        self.propose(batch, origins);
    }

    /// Lets clients in, once this member is in the view it has published.
    pub(super) fn start_serving(&mut self) {
        if !self.introduction.begins_serving() {
            return;
        }
        tracing::info!(
            local_member_id = %format_args!("{:x}", self.shared.member_id),
            local_member_attributes = %self.shared.config.name,
            cluster_id = %format_args!("{:x}", self.shared.cluster_id),
            "published local member to cluster through raft"
        );
        for front in 0..self.fronts.len() {
            self.fronts.send(front, ToFront::Serve);
        }
        self.shared.serve();
        tracing::info!("ready to serve client requests");
        let config = &self.shared.config;
        let http_urls = &config.observe.listen_client_http_urls;
        let traffic = if http_urls.is_empty() { "grpc+http" } else { "grpc" };
        let urls = config.listen_client_urls.iter().map(|url| (traffic, url));
        for (traffic, url) in urls.chain(http_urls.iter().map(|url| ("http", url))) {
            let text = if url.is_tls() {
                "serving client traffic securely"
            } else {
                "serving client traffic insecurely; this is strongly discouraged!"
            };
            tracing::info!(traffic, address = %url, "{text}");
        }
        for url in &config.observe.listen_metrics_urls {
            tracing::info!(address = %url, "serving metrics");
        }
    }

    /// An ID for an entry of this member's own.
    pub(super) fn new_request_id(&mut self) -> u64 {
        self.ids.next(&self.shared.ids)
    }
}
