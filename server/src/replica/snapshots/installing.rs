//! Going over to a copy that is complete: raft, the log, the name of the file, the store.
//!
//! Part of the replica. Each step is durable before the next begins, and a start goes on from
//! whichever it finds: without the mark in the log the copy is removed, with it the copy takes the
//! page file's place. Entries behind the snapshot are logged and acknowledged from the moment raft
//! has taken it, and applied after the last step. In between the member serves the state of before.

use std::sync::Arc;

use etcore_engine::file::SharedFile;
use etcore_engine::types::LogIndex;
use etcore_proto::error::EtcdError;
use etcore_raftlog::types::SnapshotMark;

use super::Replica;
use crate::auth::Auth;
use crate::background::{Leftovers, Loaded, Task};
use crate::cluster::alarm::Alarms;
use crate::cluster::version;
use crate::disk::pages::PageFile;
use crate::replica::compaction::HeldBack;
use crate::replica::versions;

/// How far it is.
///
/// Invariant: unless it is `Idle`, the copy that was received stays where it is.
#[derive(Default)]
pub(in crate::replica) enum Installing {
    #[default]
    Idle,
    /// raft was told in this turn, of a copy that ends there.
    Offered { index: LogIndex, loaded: Box<Loaded> },
    /// raft has restored it; the log does not have its mark yet.
    Logging { mark: SnapshotMark, loaded: Box<Loaded> },
    /// The log goes on from it, and the background puts it in place.
    Adopting { mark: SnapshotMark, loaded: Box<Loaded> },
}

impl Installing {
    /// What raft has taken and the store does not have yet.
    pub(super) fn mark(&self) -> Option<&SnapshotMark> {
        match self {
            Self::Idle | Self::Offered { .. } => None,
            Self::Logging { mark, .. } | Self::Adopting { mark, .. } => Some(mark),
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self, Self::Idle)
    }

    /// A copy is complete.
    pub(super) fn offer(&mut self, index: LogIndex, loaded: Box<Loaded>) {
        *self = Self::Offered { index, loaded };
    }
}

impl Replica {
    /// raft has restored a snapshot: what was committed before counts no more.
    pub(in crate::replica) fn begin_install(&mut self, mark: SnapshotMark) {
        self.to_apply.clear();
        self.running = None;
        self.shared.metrics.snapshots.applying.set(1);
        let loaded = match std::mem::take(&mut self.snapshots.installing) {
            Installing::Offered { loaded, .. } => loaded,
            _ => {
                return self.fail("raft has taken a snapshot of which there is no copy".to_owned());
            }
        };
        self.snapshots.installing = Installing::Logging { mark, loaded };
    }

    /// The end of a turn.
    pub(super) fn go_on_installing(&mut self) {
        match std::mem::take(&mut self.snapshots.installing) {
            Installing::Offered { index, .. } => {
                tracing::info!(snapshot_index = index.0, "a snapshot is not needed any more");
                let _ = self.background.offer(Task::DiscardSnapshot);
            }
            Installing::Logging { mark, loaded }
                if self.log.is_installed()
                    && self.background.submit(Task::AdoptSnapshot).is_ok() =>
            {
                self.snapshots.installing = Installing::Adopting { mark, loaded };
            }
            other => self.snapshots.installing = other,
        }
    }

    /// The copy is the page file: its store is this member's from now on.
    pub(in crate::replica) fn snapshot_adopted(&mut self, file: SharedFile) {
        let Installing::Adopting { mark, loaded } = std::mem::take(&mut self.snapshots.installing)
        else {
            return self.fail("a snapshot is in place that raft has not taken".to_owned());
        };
        let Loaded { mut store, lessor, spare_bytes, size_bytes } = *loaded;
        assert_eq!(store.applied().0, mark.index, "the copy that raft was told of");
        // Readers that are in the middle of something keep their pins, or learn that what they
        // read is compacted.
        store.share_pins(&self.store);
        self.take_over_auth(&store);
        let leftovers = Leftovers {
            store: std::mem::replace(&mut self.store, store),
            lessor: self.desk.go_over_to(lessor),
        };
        self.shared.view.load().freeing.elsewhere();
        if self.checkpoint_started_ms.take().is_some() {
            self.watchdog.checkpoint_ended();
        }
        self.log.went_over();
        self.space.spare_bytes = spare_bytes;
        (self.space.stalled, self.applying_since) = (false, None);
        self.held_back = HeldBack::default();
        let number = self.page_file.number + 1;
        self.page_file = PageFile { number, cuts: 0, file: Some(file) };
        self.pages.follow(&self.page_file);
        self.alarms = Arc::new(Alarms::load(&self.store));
        self.refresh_cluster();
        // Until a checkpoint says it.
        let (file_bytes, free_bytes) = size_bytes;
        self.shared.note_size(file_bytes, free_bytes);
        self.give_up_covered(mark.index);
        if !self.defragmenters.is_empty() {
            self.store.defragment();
        }
        self.shared.metrics.snapshots.applying.set(0);
        // The entry by which it publishes itself may be among those that it will never see.
        self.publish_again_ms = 0;
        self.unpublished = true;
        self.publish();
        tracing::info!(
            snapshot_index = mark.index.0,
            revision = self.store.revision().0,
            compact_revision = self.store.compact_revision().0,
            to_apply = self.to_apply.len(),
            "applied snapshot"
        );
        // If there is no room for it, it is freed here.
        let _ = self.background.offer(Task::Forget(Box::new(leftovers)));
        // So that nobody keeps the file of before open.
        self.shared.wake_all();
        self.refuse_newer_cluster();
    }

    fn take_over_auth(&mut self, store: &etcore_engine::store::Store) {
        match Auth::load(store) {
            Ok(auth) => self.auth = Arc::new(auth),
            Err(error) => self.fail(format!("page file: {error}")),
        }
    }

    /// Proposals of an earlier leadership whose place the snapshot covers: nobody can say any more
    /// what became of them.
    fn give_up_covered(&mut self, index: LogIndex) {
        while let Some(proposal) = self.proposals.pop_front_if(|known| known.index <= index) {
            if let Some(origin) = proposal.from {
                self.give_up((origin.front, origin.slot), EtcdError::Timeout);
            }
        }
    }

    /// Like a member that applies the entry, one that finds it in a snapshot does not go on in a
    /// cluster that has grown too new for it.
    fn refuse_newer_cluster(&mut self) {
        let wanted = self.cluster_version.as_deref().and_then(versions::parse);
        if wanted
            .is_some_and(|wanted| versions::parse(version::ETCD).is_some_and(|own| own < wanted))
        {
            self.fail(format!(
                "the cluster version is {}, which this version of {} does not serve; start one \
                 that does on this data directory",
                self.cluster_version.as_deref().unwrap_or_default(),
                version::ETCD
            ));
        }
    }
}
