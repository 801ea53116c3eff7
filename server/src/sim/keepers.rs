//! Clients that keep a lease: they renew it for as long as it lives, and take a new one when it is
//! gone.
//!
//! Their leases and keys are their own: nobody else renews, revokes or overwrites them, so that one
//! that ends before its time is a fault of the members. They must never give a lease up.

use etcore_engine::testing::prng::Prng;
use etcore_history::types::{Answer, Outcome, Put, Request};

/// Leases of keepers have higher ids than all others.
const FIRST_LEASE: i64 = 1_000_000;
const MS: u64 = 1_000_000;

/// What a keeper knows.
#[derive(Debug, Default)]
pub(super) struct Keeping {
    /// Leases it has asked for.
    asked: i64,
    /// The one that it has; 0 if none.
    lease: i64,
    /// Its key was attached.
    attached: bool,
}

impl Keeping {
    /// The next request of client `client`; `values` counts values.
    pub(super) fn request(&mut self, client: u64, prng: &mut Prng, values: &mut u64) -> Request {
        if self.lease == 0 {
            self.asked += 1;
            let id = (client.cast_signed() + 1) * FIRST_LEASE + self.asked;
            return Request::Grant { id, ttl: 1 + prng.below(4).cast_signed() };
        }
        if self.attached && !prng.chance(1, 8) {
            return Request::KeepAlive { id: self.lease };
        }
        *values += 1;
        Request::Put(Put {
            key: format!("kept{client}").into(),
            value: format!("value{values}").into(),
            lease: self.lease,
            prev_kv: false,
        })
    }

    /// What came of it.
    pub(super) fn told(&mut self, request: &Request, outcome: &Outcome) {
        match (request, outcome) {
            (Request::Grant { id, .. }, Outcome::Known(_)) => self.lease = *id,
            (Request::Put(_), Outcome::Known(_)) => self.attached = true,
            (Request::KeepAlive { .. }, Outcome::Known(Answer::KeepAlive { ttl, .. }))
                if *ttl > 0 => {}
            (_, Outcome::Unknown) => {}
            _ => (self.lease, self.attached) = (0, false),
        }
    }

    /// Draws the time until the next request, in nanoseconds: less than any lease has.
    pub(super) fn pause(prng: &mut Prng) -> u64 {
        prng.below(900 * MS)
    }
}
