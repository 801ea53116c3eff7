//! Who still needs what: explicit registries of pinned revisions and pinned page-file versions.
//!
//! Long reads and watch cursors pin a revision, so that compaction does not remove it physically;
//! views pin the version of the page file they read, so that its pages are not overwritten. A pin
//! must never be held by something that can be forgotten: dropping the value releases it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::limits::REVISION_PINS_MAX;
use crate::types::Revision;

/// The pinned revisions of a store; clones share it.
#[derive(Debug, Clone, Default)]
pub struct RevisionPins {
    counts: Arc<Counts>,
}

/// Keeps one revision readable until it is dropped.
#[derive(Debug)]
pub struct RevisionPin {
    counts: Arc<Counts>,
    revision: Revision,
}

/// All pins of the registry are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {REVISION_PINS_MAX} revision pins are taken")]
pub struct PinsExhausted;

impl RevisionPins {
    /// Pins `revision`. The caller checks in a view taken *after* this call that it is not below
    /// the compact revision: only then has the pin come in time.
    pub fn pin(&self, revision: Revision) -> Result<RevisionPin, PinsExhausted> {
        let key = revision.0.cast_unsigned();
        if !self.counts.add(key, REVISION_PINS_MAX) {
            return Err(PinsExhausted);
        }
        Ok(RevisionPin { counts: self.counts.clone(), revision })
    }

    /// How many pins there are.
    pub fn count(&self) -> usize {
        self.counts.lock().values().sum()
    }

    /// The oldest pinned revision that has not expired.
    pub fn oldest(&self) -> Option<Revision> {
        self.counts.first().map(|key| Revision(key.cast_signed()))
    }

    /// Pins of revisions below `revision` keep nothing any more: their holders have held up
    /// compaction for too long, and are told that their revision is compacted.
    pub fn expire_below(&self, revision: Revision) {
        let floor = revision.0.max(0).cast_unsigned();
        self.counts.expired_below.fetch_max(floor, Ordering::AcqRel);
    }
}

impl RevisionPin {
    /// What is pinned.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// True if it keeps nothing any more; see [`RevisionPins::expire_below`].
    pub fn is_expired(&self) -> bool {
        let floor = self.counts.expired_below.load(Ordering::Acquire);
        self.revision.0.cast_unsigned() < floor
    }
}

impl Drop for RevisionPin {
    fn drop(&mut self) {
        self.counts.remove(self.revision.0.cast_unsigned());
    }
}

/// The versions of the page file that views read.
#[derive(Debug, Clone, Default)]
pub(crate) struct VersionPins {
    counts: Arc<Counts>,
}

/// Keeps the pages of one version from being overwritten until it is dropped.
#[derive(Debug)]
pub(crate) struct VersionPin {
    counts: Arc<Counts>,
    version: u64,
}

impl VersionPins {
    pub(crate) fn pin(&self, version: u64) -> VersionPin {
        // One per distinct view: bounded by the views that readers hold, not by a count here.
        self.counts.add(version, usize::MAX);
        VersionPin { counts: self.counts.clone(), version }
    }

    /// The pinned versions, ascending.
    pub(crate) fn versions(&self) -> Vec<u64> {
        self.counts.lock().keys().copied().collect()
    }
}

impl Drop for VersionPin {
    fn drop(&mut self) {
        self.counts.remove(self.version);
    }
}

#[derive(Debug, Default)]
struct Counts {
    // Locked for a few instructions per checkpoint or long read, never while serving a request.
    by_number: Mutex<BTreeMap<u64, usize>>,
    /// Numbers below this count no more; it only grows.
    expired_below: AtomicU64,
}

impl Counts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, usize>> {
        self.by_number.lock().expect("nothing panics while holding it")
    }

    fn add(&self, number: u64, max: usize) -> bool {
        let mut counts = self.lock();
        if max < usize::MAX && counts.values().sum::<usize>() >= max {
            return false;
        }
        *counts.entry(number).or_default() += 1;
        true
    }

    fn remove(&self, number: u64) {
        let mut counts = self.lock();
        if let Some(count) = counts.get_mut(&number) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&number);
            }
        }
    }

    fn first(&self) -> Option<u64> {
        let floor = self.expired_below.load(Ordering::Acquire);
        self.lock().range(floor..).next().map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_pin_counts_until_its_last_holder_is_gone() {
        let pins = RevisionPins::default();
        let (a, b) = (pins.pin(Revision(5)).unwrap(), pins.pin(Revision(5)).unwrap());
        let c = pins.pin(Revision(9)).unwrap();
        drop(a);
        assert_eq!(pins.oldest(), Some(Revision(5)));
        drop(b);
        assert_eq!(pins.oldest(), Some(c.revision()));
        drop(c);
        assert_eq!(pins.oldest(), None);
    }

    #[test]
    fn pins_that_have_expired_keep_nothing_and_know_it() {
        let pins = RevisionPins::default();
        let (old, new) = (pins.pin(Revision(5)).unwrap(), pins.pin(Revision(9)).unwrap());
        pins.expire_below(Revision(9));
        assert_eq!(pins.oldest(), Some(Revision(9)));
        assert!(old.is_expired() && !new.is_expired());
        pins.expire_below(Revision(3));
        assert!(old.is_expired(), "what has expired stays so");
        drop((old, new));
        assert_eq!(pins.oldest(), None);
    }

    #[test]
    fn pins_are_refused_above_the_cap() {
        let pins = RevisionPins::default();
        let held: Vec<_> = (0..10_000).map(|_| pins.pin(Revision(1)).unwrap()).collect();
        assert_eq!(pins.pin(Revision(1)).unwrap_err(), PinsExhausted);
        drop(held);
        pins.pin(Revision(1)).unwrap();
    }
}
