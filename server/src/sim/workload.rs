//! What clients ask, drawn from the seed.
//!
//! Called by the clients for each request. What the requests are is the judges' matter, see
//! `etcore_history::testing::requests`; the plan says which of them.

use etcore_engine::testing::prng::Prng;
use etcore_history::testing::requests::{self, Mix};
use etcore_history::types::Request;

use super::plan::Plan;

/// What a request may refer to.
pub(super) struct Source<'a> {
    pub(super) plan: &'a Plan,
    pub(super) prng: &'a mut Prng,
    /// The highest revision told.
    pub(super) told: i64,
    /// Counts values.
    pub(super) values: &'a mut u64,
    /// Counts leases.
    pub(super) leases: &'a mut i64,
}

impl Source<'_> {
    /// The next request.
    pub(super) fn request(&mut self) -> Request {
        let Plan { keys, leases, more_leases, .. } = *self.plan;
        let mix = Mix { keys, leases, more_leases, compact_back: 1, compact_spread: 200 };
        requests::draw(&mix, self)
    }
}

impl requests::Source for Source<'_> {
    fn below(&mut self, bound: u64) -> u64 {
        self.prng.below(bound)
    }

    fn told(&self) -> i64 {
        self.told
    }

    fn next_value(&mut self) -> u64 {
        *self.values += 1;
        *self.values
    }

    fn value_bytes(&mut self) -> usize {
        usize::try_from(self.plan.value_bytes.draw(self.prng)).unwrap_or(0)
    }

    fn next_lease(&mut self) -> i64 {
        *self.leases += 1;
        *self.leases
    }

    fn last_lease(&self) -> i64 {
        *self.leases
    }
}
