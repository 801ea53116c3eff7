//! Leases that would end together after an election are moved apart, so that no second ends more of
//! them than three quarters of what can be revoked in it (etcd's `Promote`).
//!
//! Part of the lessor, which asks about each lease when it first looks at it. It must never make a
//! lease end earlier.

use std::collections::BTreeMap;

use crate::limits;

/// Seconds that are counted; leases that end in so many different ones need not be moved apart.
const SECONDS: usize = 1 << 16;
/// Leases that may end in a second.
const TARGET: u64 = limits::LEASE_REVOKES_PER_SECOND * 3 / 4;

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    seconds: BTreeMap<u64, Second>,
}

#[derive(Debug)]
struct Second {
    ends: u64,
    /// Where to look for room once this one is full. All in between are full.
    next: u64,
}

impl Crowd {
    /// When a lease may end that may not before `deadline_ms`.
    pub(super) fn place(&mut self, deadline_ms: u64) -> u64 {
        let wanted = deadline_ms / 1000;
        let mut second = wanted;
        while let Some(found) = self.seconds.get(&second)
            && found.ends >= TARGET
        {
            second = found.next;
        }
        if second != wanted
            && let Some(found) = self.seconds.get_mut(&wanted)
        {
            found.next = second;
        }
        if self.seconds.len() >= SECONDS && !self.seconds.contains_key(&second) {
            return deadline_ms;
        }
        let found = self.seconds.entry(second).or_insert(Second { ends: 0, next: second + 1 });
        found.ends += 1;
        if second == wanted {
            return deadline_ms;
        }
        second * 1000 + (found.ends - 1) * 1000 / TARGET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_gets_more_than_its_share_and_no_lease_ends_early() {
        let mut crowd = Crowd::default();
        let mut ends = BTreeMap::<u64, u64>::new();
        for number in 0..10 * TARGET {
            let deadline_ms = 11_500 + number % 3 * 1000;
            let placed_ms = crowd.place(deadline_ms);
            assert!(placed_ms >= deadline_ms);
            *ends.entry(placed_ms / 1000).or_default() += 1;
        }
        assert!(ends.values().all(|count| *count <= TARGET), "{ends:?}");
        assert_eq!(ends.len(), 10, "{ends:?}");
        assert_eq!(crowd.place(60_001), 60_001, "where there is room, nothing changes");
    }
}
