//! What raft has last said of this member and its leader.
//!
//! Part of the replica, which changes it with raft's effects; everybody else reads it. It must hold
//! nothing that raft has not said.

use etcore_engine::types::Term;
use etcore_raftlog::node::{Role, SoftState};

/// See the module text.
pub(super) struct Standing(SoftState);

impl Standing {
    pub(super) fn new(soft_state: SoftState) -> Self {
        Self(soft_state)
    }

    /// The leader's member ID; 0 if there is none.
    pub(super) fn leader(&self) -> u64 {
        self.0.leader
    }

    pub(super) fn term(&self) -> Term {
        self.0.term
    }

    pub(super) fn role(&self) -> Role {
        self.0.role
    }

    pub(super) fn is_leader(&self) -> bool {
        self.0.role == Role::Leader
    }

    /// raft has said something new; returns what it said before.
    pub(super) fn change(&mut self, soft_state: SoftState) -> SoftState {
        assert!(soft_state.term >= self.0.term, "a term has gone back");
        std::mem::replace(&mut self.0, soft_state)
    }
}
