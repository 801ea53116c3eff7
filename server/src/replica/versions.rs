//! The cluster version: the lowest of its members', kept by the leader.
//!
//! By etcd's rule: a cluster without one gets the lowest server version once all members have told
//! theirs, or etcd's oldest if one cannot be asked; later it only rises. Members of other makes may
//! be older than this one.

use std::collections::BTreeMap;

use etcore_proto::pb::{etcdserverpb as pb, membershippb};

use super::Replica;
use crate::cluster::version;

/// How often the leader looks (etcd: monitorVersionInterval).
const LOOK_MS: u64 = 4000;
/// The version of a cluster with members that cannot be asked (etcd: MinClusterVersion).
const OLDEST: Version = (3, 0);

/// Major and minor.
pub(super) type Version = (u64, u64);

/// See the module text.
#[derive(Default)]
pub(super) struct Versions {
    next_look_ms: u64,
    /// Members that were asked, and what they said; `None` while they have not answered.
    asked: BTreeMap<u64, Option<Option<Version>>>,
}

impl Versions {
    /// A member's answer to `/version`, or `None` if there was none.
    pub(super) fn learned(&mut self, member: u64, body: Option<&[u8]>) {
        if let Some(place) = self.asked.get_mut(&member) {
            *place = Some(body.and_then(server_version));
        }
    }

    /// Once all have answered: the lowest version, or `None` if one is unknown.
    fn outcome(&mut self) -> Option<Option<Version>> {
        if self.asked.is_empty() || self.asked.values().any(Option::is_none) {
            return None;
        }
        let all: Option<Vec<Version>> = self.asked.values().map(|found| found.flatten()).collect();
        self.asked.clear();
        Some(all.and_then(|all| all.into_iter().min()))
    }
}

impl Replica {
    /// Asks, or proposes what was found out. For a leader that has applied its first entry.
    pub(super) fn monitor_version(&mut self) {
        if !self.is_leader() || !self.leases.is_primary() {
            self.versions = Versions::default();
            return;
        }
        // A downgrade, which a member of etcd leads, would be undone.
        if self.state.downgrade().enabled {
            return;
        }
        let known = self.state.cluster_version().map(|version| &**version).and_then(parse);
        let own = parse(version::ETCD);
        if let Some(lowest) = self.versions.outcome() {
            let lowest = lowest.min(own);
            let wanted = match (known, lowest) {
                (None, found) => Some(found.unwrap_or(OLDEST)),
                (Some(known), Some(found)) if known.0 == found.0 && known < found => Some(found),
                _ => None,
            };
            if let Some(wanted) = wanted {
                self.propose_cluster_version(wanted);
            }
            return;
        }
        if known >= own || self.turn.now_ms() < self.versions.next_look_ms {
            return;
        }
        self.versions.next_look_ms = self.turn.now_ms() + LOOK_MS;
        let own_id = self.shared.member_id;
        let others = self.others();
        self.versions.asked = others.iter().map(|id| (*id, None)).collect();
        self.versions.asked.insert(own_id, Some(own));
        others.into_iter().for_each(|id| self.ask_version(id));
    }

    fn propose_cluster_version(&mut self, (major, minor): Version) {
        let ver = format!("{major}.{minor}.0");
        match self.state.cluster_version() {
            None => tracing::info!(cluster_version = %ver, "setting up initial cluster version"),
            Some(from) => tracing::info!(from = %from, to = %ver, "updating cluster version"),
        }
        self.propose_own(pb::InternalRaftRequest {
            cluster_version_set: Some(membershippb::ClusterVersionSetRequest { ver }),
            ..Default::default()
        });
    }
}

pub(super) fn parse(text: &str) -> Option<Version> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// The `etcdserver` field of a peer's `/version`.
fn server_version(body: &[u8]) -> Option<Version> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    parse(value.get("etcdserver")?.as_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_counts_once_everybody_has_answered() {
        let mut versions = Versions::default();
        assert_eq!(versions.outcome(), None, "nobody was asked");
        versions.asked = [(1, Some(Some((3, 7)))), (2, None), (3, None)].into();
        versions.learned(2, Some(br#"{"etcdserver":"3.6.4","etcdcluster":"3.6.0"}"#));
        versions.learned(9, Some(br#"{"etcdserver":"2.0.0"}"#));
        assert_eq!(versions.outcome(), None, "3 has not answered");
        versions.learned(3, Some(br#"{"etcdserver":"3.7.1"}"#));
        assert_eq!(versions.outcome(), Some(Some((3, 6))));
        versions.asked = [(1, Some(Some((3, 7)))), (2, None)].into();
        versions.learned(2, None);
        assert_eq!(versions.outcome(), Some(None), "2 cannot be asked");
    }
}
