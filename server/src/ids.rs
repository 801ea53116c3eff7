//! IDs of requests: what pairs an applied entry with whoever waits for it.
//!
//! Made by fronts and the replica, in etcd's form: the low 16 bits of the member's ID, then the
//! time of its start, then a count, which runs over into the time. Members and starts never share
//! one as long as a member takes fewer than a million a second for as long as it runs. Nothing may
//! be read out of an ID but whether it is the same.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bits below the member's.
const SUFFIX_BITS: u32 = 48;
/// IDs taken at a time: fronts meet here once in so many requests.
const BLOCK: u64 = 256;
/// A nanosecond clock counts about a million of these in a second.
const NANOS_SHIFT: u32 = 10;

/// Where the whole member takes its IDs from.
#[derive(Debug)]
pub struct RequestIds {
    prefix: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// For a member that started so many nanoseconds after 1970.
    pub fn new(member_id: u64, started_ns: u64) -> Self {
        let next = AtomicU64::new(started_ns >> NANOS_SHIFT);
        Self { prefix: member_id << SUFFIX_BITS, next }
    }

    /// An ID as long as any that is given, and as long as all unless the member's part begins with
    /// zeros.
    pub fn longest(&self) -> u64 {
        self.prefix | (u64::MAX >> (64 - SUFFIX_BITS))
    }
}

/// The IDs that one thread has taken.
#[derive(Debug, Default)]
pub struct IdBlock {
    next: u64,
    left: u64,
}

impl IdBlock {
    /// An ID that nobody else gets.
    pub fn next(&mut self, ids: &RequestIds) -> u64 {
        if self.left == 0 {
            self.next = ids.next.fetch_add(BLOCK, Ordering::Relaxed);
            self.left = BLOCK;
        }
        self.left -= 1;
        self.next = self.next.wrapping_add(1);
        ids.prefix | (self.next & (u64::MAX >> (64 - SUFFIX_BITS)))
    }
}

/// The most bytes that an ID takes as a varint.
pub const VARINT_BYTES_MAX: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_threads_members_or_starts_share_an_id() {
        let hour_ns = 3_600_000_000_000;
        let lives = [(0xaa01, 0), (0xaa02, 0), (0xaa01, hour_ns)];
        let mut seen = std::collections::BTreeSet::new();
        for (member, started_ns) in lives {
            let ids = RequestIds::new(member, 1_700_000_000_000_000_000 + started_ns);
            let mut blocks = [IdBlock::default(), IdBlock::default()];
            for turn in 0..3 * BLOCK {
                let id = blocks[(turn % 2) as usize].next(&ids);
                assert_eq!(id >> SUFFIX_BITS, member & 0xffff);
                assert_eq!(id.leading_zeros(), ids.longest().leading_zeros());
                assert!(seen.insert(id), "{id:x} was given twice");
            }
        }
    }
}
