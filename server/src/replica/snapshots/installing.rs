//! Going over to a copy that is complete: raft, the log, the name of the file, the store.
//!
//! Part of the replica. Each step is durable before the next begins, and a start goes on from
//! whichever it finds: without the mark in the log the copy is removed, with it the copy takes the
//! page file's place. Entries behind the snapshot are logged and acknowledged from the moment raft
//! has taken it, and applied after the last step. In between the member serves the state of before.

use etcore_engine::file::SharedFile;
use etcore_engine::types::LogIndex;
use etcore_raftlog::types::SnapshotMark;

use super::Replica;
use crate::background::{Leftovers, Loaded, Task};
use crate::cluster::version;
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
        self.applier.clear();
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
        if let Err(error) = self.state.refresh_auth(&store) {
            self.fail(format!("page file: {error}"));
        }
        self.forget_tokens();
        let leftovers = Leftovers {
            store: std::mem::replace(&mut self.store, store),
            lessor: self.leases.go_over_to(lessor),
        };
        self.shared.view.load().freeing.elsewhere();
        if self.checkpoints.forget() {
            self.watchdog.checkpoint_ended();
        }
        self.log.went_over();
        self.space.file_replaced(spare_bytes);
        self.applier.forget_since();
        self.compactions.forget_held();
        self.checkpoints.replace_file(file);
        self.pages.follow(self.checkpoints.page_file());
        self.state.refresh_alarms(&self.store);
        self.state.refresh_cluster(&self.store);
        // These hold until a checkpoint says better.
        let (file_bytes, free_bytes) = size_bytes;
        self.shared.note_size(file_bytes, free_bytes);
        self.give_up_covered(mark.index);
        if self.checkpoints.is_defragmenting() {
            self.store.defragment();
        }
        self.shared.metrics.snapshots.applying.set(0);
        // The entry by which it publishes itself may be among those that it will never see.
        self.introduction.hurry();
        self.publisher.note_change();
        self.publish();
        tracing::info!(
            snapshot_index = mark.index.0,
            revision = self.store.revision().0,
            compact_revision = self.store.compact_revision().0,
            to_apply = self.applier.backlog().len(),
            "applied snapshot"
        );
        // If there is no room for it, it is freed here.
        let _ = self.background.offer(Task::Forget(Box::new(leftovers)));
        // So that nobody keeps the file of before open.
        self.shared.wake_all();
        self.refuse_newer_cluster();
    }

    /// Like a member that applies the entry, one that finds it in a snapshot does not go on in a
    /// cluster that has grown too new for it.
    fn refuse_newer_cluster(&mut self) {
        let wanted = self.state.cluster_version().and_then(|version| versions::parse(version));
        if wanted
            .is_some_and(|wanted| versions::parse(version::ETCD).is_some_and(|own| own < wanted))
        {
            self.fail(format!(
                "the cluster version is {}, which this version of {} does not serve; start one \
                 that does on this data directory",
                self.state.cluster_version().map_or("", |version| version),
                version::ETCD
            ));
        }
    }
}
