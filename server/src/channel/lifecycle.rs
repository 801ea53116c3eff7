//! Where a member is between its start and its end: whether it serves, hands over, stops, and why.
//!
//! Part of [`Shared`](super::Shared), which sets what must wake threads as well; everybody reads
//! it. Every step is taken once and none is taken back. It must never block, nor wake anybody
//! itself.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// See the module text.
///
/// Invariants: leadership is handed over only when that was asked for; a member that has failed
/// stops; no more fronts drain than there are.
#[derive(Debug)]
pub struct Lifecycle {
    serving: AtomicBool,
    handing_over: AtomicBool,
    handed_over: AtomicBool,
    stopping: AtomicBool,
    /// Fronts that have not finished draining yet.
    fronts_running: AtomicUsize,
    failure: OnceLock<String>,
}

impl Lifecycle {
    /// The life of a member with so many fronts, before it serves.
    pub fn new(fronts: usize) -> Self {
        Self {
            serving: AtomicBool::new(false),
            handing_over: AtomicBool::new(false),
            handed_over: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            fronts_running: AtomicUsize::new(fronts),
            failure: OnceLock::new(),
        }
    }

    /// True once clients were let in.
    pub fn is_serving(&self) -> bool {
        self.serving.load(Ordering::Acquire)
    }

    /// True once this member is to give its leadership away.
    pub fn is_handing_over(&self) -> bool {
        self.handing_over.load(Ordering::Acquire)
    }

    /// True once its leadership was transferred, or there was none to transfer.
    pub fn has_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Acquire)
    }

    /// True once the member is to stop: in good order, or after a failure.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// True once every front has drained.
    pub fn fronts_have_drained(&self) -> bool {
        self.fronts_running.load(Ordering::Acquire) == 0
    }

    /// The first fatal error, if there was one.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// The replica has transferred its leadership, or had none to transfer. Only after
    /// [`Shared::hand_over`](super::Shared::hand_over).
    pub fn note_handed_over(&self) {
        assert!(self.is_handing_over(), "nobody asked for the leadership to be handed over");
        self.handed_over.store(true, Ordering::Release);
    }

    /// A front has finished draining; each says so once.
    pub fn note_front_drained(&self) {
        let before = self.fronts_running.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "more fronts have drained than there are");
    }

    pub(super) fn begin_serving(&self) {
        self.serving.store(true, Ordering::Release);
    }

    pub(super) fn begin_hand_over(&self) {
        self.handing_over.store(true, Ordering::Release);
    }

    pub(super) fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Keeps the first reason, which is the cause; later ones follow from it.
    pub(super) fn note_failure(&self, reason: String) {
        let _ = self.failure.set(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_the_one_that_is_told() {
        let life = Lifecycle::new(1);
        assert_eq!(life.failure(), None);
        life.note_failure("the disk".to_owned());
        life.note_failure("what followed".to_owned());
        assert_eq!(life.failure(), Some("the disk"));
    }

    #[test]
    fn the_fronts_have_drained_when_the_last_one_has() {
        let life = Lifecycle::new(2);
        life.note_front_drained();
        assert!(!life.fronts_have_drained());
        life.note_front_drained();
        assert!(life.fronts_have_drained());
    }

    #[test]
    #[should_panic(expected = "nobody asked")]
    fn leadership_is_not_handed_over_unasked() {
        Lifecycle::new(1).note_handed_over();
    }
}
