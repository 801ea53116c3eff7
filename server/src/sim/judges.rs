//! What must be true of members whatever happens, though no client can see it: one property a file.
//!
//! Asked by the world after every step. What clients can see is judged by `etcore_history`.

pub mod held;
pub mod log;
pub mod state;

/// What the judges remember of a run.
#[derive(Debug, Default)]
pub struct Judges {
    /// The state of the judge in [`log`].
    pub(super) log: log::Known,
    /// The state of the judge in [`state`].
    pub(super) state: state::Known,
}

impl Judges {
    /// Judges of so many members.
    pub(super) fn new(members: usize) -> Self {
        Self { log: log::Known::default(), state: state::Known::new(members) }
    }

    /// A member has started: what it shows begins anew.
    pub(super) fn started(&mut self, member: usize) {
        self.state.started(member);
    }
}
