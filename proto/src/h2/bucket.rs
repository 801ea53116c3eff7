//! A token bucket over the caller's clock. Used by `h2::conn` against floods.

/// Allows a burst, then a steady rate.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: u32,
    burst: u32,
    per_second: u32,
    refilled_ms: u64,
}

impl Bucket {
    pub(super) fn new((burst, per_second): (u32, u32)) -> Self {
        Bucket { tokens: burst, burst, per_second, refilled_ms: 0 }
    }

    /// Takes a token; false when there is none.
    pub(super) fn take(&mut self, now_ms: u64) -> bool {
        if self.tokens == 0 {
            let elapsed = now_ms.saturating_sub(self.refilled_ms);
            let gained = elapsed.saturating_mul(u64::from(self.per_second)) / 1_000;
            // The burst is 32 bits wide, so the minimum is too.
            self.tokens = gained.min(u64::from(self.burst)) as u32;
            if self.tokens == 0 {
                return false;
            }
            self.refilled_ms = now_ms;
        } else if self.tokens == self.burst {
            self.refilled_ms = now_ms;
        }
        self.tokens -= 1;
        true
    }

    /// Gives tokens back, up to the burst.
    #[inline]
    pub(super) fn give(&mut self, tokens: u32) {
        self.tokens = self.tokens.saturating_add(tokens).min(self.burst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let mut bucket = Bucket::new((10, 100));
        let passed = (0..100).filter(|_| bucket.take(1_000)).count();
        assert_eq!(passed, 10);
        let passed = (0..1_000).filter(|step| bucket.take(1_000 + step)).count();
        assert!((90..=110).contains(&passed), "{passed}");
    }

    #[test]
    fn what_is_given_back_may_be_taken_again_up_to_the_burst() {
        let mut bucket = Bucket::new((10, 100));
        assert_eq!((0..100).filter(|_| bucket.take(0)).count(), 10);
        bucket.give(3);
        assert_eq!((0..100).filter(|_| bucket.take(0)).count(), 3);
        bucket.give(u32::MAX);
        bucket.give(u32::MAX);
        assert_eq!((0..100).filter(|_| bucket.take(0)).count(), 10);
    }
}
