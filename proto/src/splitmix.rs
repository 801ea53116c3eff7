//! SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014): numbers
//! that look random, out of ones that do not.
//!
//! Used where something must be spread or differ, such as lease IDs and turns of candidates. It
//! must never serve a secret. The engine, which depends on nothing, has its tests' generator for
//! itself.

/// The odd number that is nearest to 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator that visits each 64-bit number once before it begins again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator started from `seed`; every value is a good seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[must_use]
    pub fn draw(&mut self) -> u64 {
        let drawn = mix(self.0);
        self.0 = self.0.wrapping_add(GAMMA);
        drawn
    }
}

/// The first number of the generator that is started from `value`.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(GAMMA);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The `position`th number, from 0, of the generator that is started from 0.
#[must_use]
pub fn at(position: u64) -> u64 {
    mix(position.wrapping_mul(GAMMA))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        let mut generator = SplitMix64::new(1_234_567);
        let drawn: Vec<u64> = (0..3).map(|_| generator.draw()).collect();
        // Vigna's splitmix64.c with the same seed.
        let published = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973];
        assert_eq!(drawn[..2], published);
        let mut from_zero = SplitMix64::new(0);
        assert!((0..100).all(|position| at(position) == from_zero.draw()));
    }
}
