//! Limits of rates over the caller's clock. Used by `h2::conn` against floods.

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

/// Counts what may come at a rate and says until when to take no more: for what is not forbidden,
/// only too much at once.
#[derive(Debug)]
pub(super) struct Pace {
    /// What came is worth all the time until then, in microseconds.
    worth_until_us: u64,
    each_us: u64,
    burst_us: u64,
}

impl Pace {
    pub(super) fn new((burst, per_second): (u32, u32)) -> Self {
        let each_us = 1_000_000 / u64::from(per_second);
        Pace { worth_until_us: 0, each_us, burst_us: each_us * u64::from(burst) }
    }

    pub(super) fn count(&mut self, now_ms: u64) {
        self.worth_until_us = self.worth_until_us.max(now_ms * 1_000) + self.each_us;
    }

    /// Something useful came in between: one less.
    #[inline]
    pub(super) fn forgive(&mut self) {
        self.worth_until_us = self.worth_until_us.saturating_sub(self.each_us);
    }

    /// Whether more came than the burst and the time since allow.
    pub(super) fn is_over(&self, now_ms: u64) -> bool {
        self.worth_until_us > now_ms * 1_000 + self.burst_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_lets_a_burst_pass_and_then_its_rate() {
        let mut pace = Pace::new((100, 1_000));
        let mut passed = 0;
        for now_ms in 5_000..6_000 {
            while !pace.is_over(now_ms) {
                pace.count(now_ms);
                passed += 1;
            }
        }
        assert!((1_090..=1_110).contains(&passed), "{passed}");
        (0..50).for_each(|_| pace.forgive());
        assert!(!pace.is_over(5_999), "what was forgiven may come again");
        assert!(!pace.is_over(7_000));
    }

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
