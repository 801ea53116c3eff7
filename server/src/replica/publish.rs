//! Making applied entries visible: one swap of the whole view, then the replies.
//!
//! Part of the replica. What is applied is noted here; nothing of it is seen before the swap, and
//! no reply overtakes the view that it is about.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Replica;
use crate::channel::{MemberView, ToFront};
use crate::freer::Freeing;
use crate::limits;
use crate::work::Job;

/// See the module text.
pub(super) struct Publisher {
    /// The store, or what is published with it, has changed since the last view.
    unpublished: bool,
    /// Rows that large entries have changed since then.
    unpublished_rows: usize,
    /// What fronts are told once that is published.
    replies: Vec<(usize, ToFront)>,
}

impl Publisher {
    /// Nothing is published yet.
    pub(super) fn new() -> Self {
        Self { unpublished: true, unpublished_rows: 0, replies: Vec::new() }
    }

    /// There is something to publish.
    pub(super) fn note_change(&mut self) {
        self.unpublished = true;
    }

    /// A large entry has changed so many rows.
    pub(super) fn note_rows(&mut self, rows: usize) {
        self.unpublished_rows += rows;
    }

    /// Tells a front once what is applied is published.
    pub(super) fn reply(&mut self, front: usize, message: ToFront) {
        self.replies.push((front, message));
    }
}

impl Replica {
    /// Swaps the view and answers what it now shows.
    pub(super) fn publish(&mut self) {
        if std::mem::take(&mut self.publisher.unpublished) {
            self.publish_view();
        }
        self.submit_hashes();
        for (front, message) in self.publisher.replies.drain(..) {
            self.fronts.send(front, message);
        }
    }

    fn publish_view(&mut self) {
        self.turn.note(Job::Publication);
        let view = Arc::new(self.member_view());
        let (applied, _) = self.store.applied();
        self.count_live_bytes();
        let known = self.shared.view.load().store.revision;
        let is_newer = view.store.revision > known;
        let before = self.shared.view.swap(view);
        if std::mem::take(&mut self.publisher.unpublished_rows) > limits::VIEW_FREED_ROWS {
            before.free_elsewhere();
        }
        drop(before);
        // Applied entries are committed, and a reader must never see it the other way round.
        self.shared.status.committed.fetch_max(applied.0, Ordering::Release);
        self.shared.status.applied.store(applied.0, Ordering::Release);
        self.log.node.on_applied(applied);
        if is_newer {
            self.shared.wake_watching();
        }
        self.start_serving();
    }

    /// With every tick.
    pub(super) fn refresh_gauges(&mut self) {
        let node = self.log.node.status();
        let shared = &self.shared;
        shared.status.committed.fetch_max(node.commit.0, Ordering::Relaxed);
        shared.metrics.proposals_pending.set(self.proposals.len() as u64);
    }

    fn member_view(&mut self) -> MemberView {
        let own_id = self.shared.member_id;
        let members = self.state.members().clone();
        MemberView {
            store: self.store.publish(),
            is_learner: members.iter().any(|member| member.id == own_id && member.is_learner),
            members,
            removed: self.state.removed().clone(),
            cluster_version: self.state.cluster_version().cloned(),
            alarms: self.state.alarms().clone(),
            auth: self.state.auth().clone(),
            downgrade: self.state.downgrade().clone(),
            page_file: self.checkpoints.page_file().clone(),
            freeing: Freeing::by(self.shared.freer.get()),
        }
    }
}
