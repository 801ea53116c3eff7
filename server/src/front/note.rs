//! What a front notes of a call with the transport that carries it: when it came, and what it is
//! counted as in the end.
//!
//! Made and read by `wire`; a number, since the transport keeps it and knows nothing of it.

use std::time::Duration;

/// What is noted of a call with the transport, in one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Note {
    /// When it came.
    pub(super) began: Duration,
    /// It is a transaction that only reads.
    pub(super) reads_only: bool,
}

impl Note {
    /// Never 0, which notes nothing.
    pub(super) fn number(self) -> u64 {
        let us = u64::try_from(self.began.as_micros()).unwrap_or(u64::MAX >> 2);
        (us + 1) << 1 | u64::from(self.reads_only)
    }

    pub(super) fn of(number: u64) -> Option<Self> {
        let us = (number >> 1).checked_sub(1)?;
        Some(Self { began: Duration::from_micros(us), reads_only: number & 1 == 1 })
    }
}
