//! The small buckets of the store, decoded: members, cluster version, alarms, auth, downgrade.
//!
//! Part of the replica. Read when the member starts, after an entry that changes one of them, and
//! when a snapshot takes the store's place; published with each view. It must always say what the
//! store says.

use std::collections::BTreeSet;
use std::sync::Arc;

use etcore_engine::bucket::Bucket;
use etcore_engine::store::Store;

use super::membership::CLUSTER_VERSION_KEY;
use crate::auth::Auth;
use crate::cluster::alarm::Alarms;
use crate::cluster::downgrade::Downgrade;
use crate::cluster::member::Member;

/// See the module text. Invariant: members ascend by ID.
pub(super) struct State {
    members: Arc<Vec<Member>>,
    removed: Arc<BTreeSet<u64>>,
    cluster_version: Option<Arc<str>>,
    alarms: Arc<Alarms>,
    auth: Arc<Auth>,
    downgrade: Arc<Downgrade>,
}

impl State {
    /// Decodes all of it. What is wrong with the auth buckets, if anything is, comes with it.
    pub(super) fn load(store: &Store) -> (Self, Result<(), String>) {
        let (auth, outcome) = match Auth::load(store) {
            Ok(auth) => (auth, Ok(())),
            Err(error) => (Auth::default(), Err(error)),
        };
        let state = Self {
            members: Arc::new(Member::all_in(store)),
            removed: removed(store),
            cluster_version: cluster_version(store),
            alarms: Arc::new(Alarms::load(store)),
            auth: Arc::new(auth),
            downgrade: Arc::new(Downgrade::load(store)),
        };
        (state, outcome)
    }

    pub(super) fn members(&self) -> &Arc<Vec<Member>> {
        &self.members
    }

    /// The member of this ID.
    pub(super) fn member(&self, id: u64) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// Who was a member once.
    pub(super) fn removed(&self) -> &Arc<BTreeSet<u64>> {
        &self.removed
    }

    pub(super) fn cluster_version(&self) -> Option<&Arc<str>> {
        self.cluster_version.as_ref()
    }

    pub(super) fn alarms(&self) -> &Arc<Alarms> {
        &self.alarms
    }

    pub(super) fn auth(&self) -> &Arc<Auth> {
        &self.auth
    }

    pub(super) fn downgrade(&self) -> &Arc<Downgrade> {
        &self.downgrade
    }

    /// Decodes what is about the cluster again.
    pub(super) fn refresh_cluster(&mut self, store: &Store) {
        self.members = Arc::new(Member::all_in(store));
        self.removed = removed(store);
        self.cluster_version = cluster_version(store);
        self.downgrade = Arc::new(Downgrade::load(store));
    }

    /// Decodes the alarms again; returns those of before if they have changed.
    pub(super) fn refresh_alarms(&mut self, store: &Store) -> Option<Arc<Alarms>> {
        let alarms = Alarms::load(store);
        (alarms != *self.alarms).then(|| std::mem::replace(&mut self.alarms, Arc::new(alarms)))
    }

    /// Decodes the auth buckets again; returns what was there before.
    ///
    /// # Errors
    /// What is wrong with what the store holds; nothing has changed then.
    pub(super) fn refresh_auth(&mut self, store: &Store) -> Result<Arc<Auth>, String> {
        let auth = Arc::new(Auth::load(store)?);
        Ok(std::mem::replace(&mut self.auth, auth))
    }
}

/// The IDs in the bucket of removed members.
fn removed(store: &Store) -> Arc<BTreeSet<u64>> {
    let ids = store.bucket_iter(Bucket::MembersRemoved, b"").filter_map(|(key, _)| {
        let text = std::str::from_utf8(key).ok()?;
        u64::from_str_radix(text, 16).ok()
    });
    Arc::new(ids.collect())
}

/// The cluster version, if the leader has set it.
fn cluster_version(store: &Store) -> Option<Arc<str>> {
    let version = store.bucket_get(Bucket::Cluster, CLUSTER_VERSION_KEY)?;
    std::str::from_utf8(version).ok().map(Arc::from)
}
