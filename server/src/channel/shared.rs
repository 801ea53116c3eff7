//! What all shards of the member see: the configuration, its identity, the published view, the
//! status cell and the metrics.
//!
//! Written by the replica (view, status) and read by the fronts. It must hold nothing that needs a
//! lock on a request's path.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};

use arc_swap::ArcSwap;
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::view::View;

use super::Lifecycle;
use crate::auth::Auth;
use crate::auth::tokens::Tokens;
use crate::clock::Clock;
use crate::cluster::alarm::Alarms;
use crate::cluster::downgrade::Downgrade;
use crate::cluster::member::Member;
use crate::config::Config;
use crate::disk::pages::PageFile;
use crate::driver::Waker;
use crate::freer::{Freeing, Freer};
use crate::ids::RequestIds;
use crate::metrics::Metrics;
use crate::tls::Tls;
use crate::wire::Header;

/// See the module text.
pub struct Shared {
    /// What the operator asked for.
    pub config: Config,
    /// This member.
    pub member_id: u64,
    /// Its cluster.
    pub cluster_id: u64,
    /// Certificates, and who may connect.
    pub tls: Arc<Tls>,
    /// What clients who have logged in show.
    pub tokens: Tokens,
    /// The one clock.
    pub clock: Clock,
    /// Swapped whole by the replica; a front loads it once per turn.
    pub view: ArcSwap<MemberView>,
    /// Beside the view: what changes without an apply.
    pub status: StatusCell,
    /// Numbers for operators.
    pub metrics: Metrics,
    /// IDs of requests.
    pub ids: RequestIds,
    /// Open connections of each front, to hand new sockets to the least loaded.
    pub connections: Vec<AtomicUsize>,
    /// Fronts with watches: a new revision wakes them.
    pub watching: Vec<AtomicBool>,
    /// Whether it serves, hands over, stops.
    pub lifecycle: Lifecycle,
    /// A profile is being taken.
    pub profiling: AtomicBool,
    /// Wakes every shard; the fronts come first.
    pub wakers: std::sync::OnceLock<Vec<Waker>>,
    /// Wakes whoever waits for the member to serve or to end.
    pub waiter: std::sync::OnceLock<fn()>,
    /// Frees views for the threads that serve, where there is a thread for that.
    pub freer: std::sync::OnceLock<Freer>,
}

/// Everything a front reads, consistent in itself.
pub struct MemberView {
    /// Keys and values.
    pub store: Arc<View>,
    /// The members of the cluster, ascending by ID.
    pub members: Arc<Vec<Member>>,
    /// The IDs of those that were members once.
    pub removed: Arc<BTreeSet<u64>>,
    /// `None` until the leader has set it.
    pub cluster_version: Option<Arc<str>>,
    /// This member is a learner.
    pub is_learner: bool,
    /// Alarms that are on.
    pub alarms: Arc<Alarms>,
    /// Who may do what.
    pub auth: Arc<Auth>,
    /// Whether the cluster is being downgraded.
    pub downgrade: Arc<Downgrade>,
    /// Where its pages are.
    pub page_file: PageFile,
    /// Who frees it.
    pub freeing: Freeing,
}

impl Drop for MemberView {
    fn drop(&mut self) {
        self.freeing.let_go(&mut self.store);
    }
}

impl MemberView {
    /// Much of it is nobody else's: whoever lets go of it last does not free it himself.
    pub fn free_elsewhere(&self) {
        self.freeing.elsewhere();
    }

    /// A view of no data, for a front that has nobody to serve: it holds nothing in memory.
    pub fn nothing() -> Self {
        let store = Store::in_memory(EngineConfig::default()).publish();
        Self::of_keys(store, PageFile::default())
    }

    /// A view of keys and values alone: the first of a member, before it has published one.
    pub fn of_keys(store: Arc<View>, page_file: PageFile) -> Self {
        Self {
            store,
            members: Arc::default(),
            removed: Arc::default(),
            cluster_version: None,
            is_learner: false,
            alarms: Arc::default(),
            auth: Arc::default(),
            downgrade: Arc::default(),
            page_file,
            freeing: Freeing::default(),
        }
    }
}

/// Single values that a front may read at any time.
#[derive(Debug, Default)]
pub struct StatusCell {
    /// Member ID of the leader; 0 if there is none.
    pub leader: AtomicU64,
    /// Since when there has been none, on the shards' clock. Means nothing while there is one.
    pub leaderless_since_ms: AtomicU64,
    /// When this member was last elected, on the shards' clock; 0 for never.
    pub elected_ms: AtomicU64,
    /// Since when it has been connected to those it needs: a leader to a quorum, others to their
    /// leader; `u64::MAX` if it is not.
    pub connected_since_ms: AtomicU64,
    /// raft's term.
    pub term: AtomicU64,
    /// raft's commit index.
    pub committed: AtomicU64,
    /// Index of the last applied entry.
    pub applied: AtomicU64,
    /// Bytes of the page file.
    pub db_size_bytes: AtomicU64,
    /// Bytes of the page file in use.
    pub db_in_use_bytes: AtomicU64,
    /// Work that the replica waits for and that stands still: a bit for each
    /// [`StalledWork`](super::StalledWork).
    pub stalled: AtomicU8,
    /// What the quota is compared with: bytes in use, and of rows not in the page file yet.
    pub live_bytes: AtomicU64,
}

impl Shared {
    /// The header of a response at `revision`.
    pub fn header(&self, revision: i64) -> Header {
        Header {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            revision,
            raft_term: self.status.term.load(Ordering::Relaxed),
        }
    }

    /// The page file has so many bytes, and so many of them are free.
    pub fn note_size(&self, file_bytes: u64, free_bytes: u64) {
        let in_use_bytes = file_bytes - free_bytes;
        self.status.db_size_bytes.store(file_bytes, Ordering::Relaxed);
        self.status.db_in_use_bytes.store(in_use_bytes, Ordering::Relaxed);
        self.metrics.db_size_bytes.set(file_bytes);
        self.metrics.db_in_use_bytes.set(in_use_bytes);
    }

    /// True if a leader is known.
    pub fn has_leader(&self) -> bool {
        self.status.leader.load(Ordering::Relaxed) != 0
    }

    /// Asks the replica to give its leadership away;
    /// [`Lifecycle::has_handed_over`] tells when it has.
    pub fn hand_over(&self) {
        self.lifecycle.begin_hand_over();
        self.wake_all();
    }

    /// Wakes the fronts that watch: the view has grown.
    pub fn wake_watching(&self) {
        // A front sets its flag, then looks at the view and sleeps; the view was swapped before.
        fence(Ordering::SeqCst);
        let Some(wakers) = self.wakers.get() else { return };
        for (watching, waker) in self.watching.iter().zip(wakers) {
            if watching.load(Ordering::Relaxed) {
                waker.wake();
            }
        }
    }

    /// Asks every shard to stop.
    pub fn stop(&self) {
        self.lifecycle.begin_stop();
        self.wake_all();
        self.wake_waiter();
    }

    /// Says that clients were let in.
    pub fn serve(&self) {
        self.lifecycle.begin_serving();
        self.wake_waiter();
    }

    fn wake_waiter(&self) {
        if let Some(wake) = self.waiter.get() {
            wake();
        }
    }

    /// Wakes every shard: what it keeps for its next turn may be of the past.
    pub fn wake_all(&self) {
        for waker in self.wakers.get().into_iter().flatten() {
            waker.wake();
        }
    }

    /// Stops the member because it can no longer be trusted; the process ends with status 1.
    pub fn fail(&self, reason: String) {
        tracing::error!(error = %reason, "the member stops: it cannot go on safely");
        self.lifecycle.note_failure(reason);
        self.stop();
    }
}
