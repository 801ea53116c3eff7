//! Which way to make a log write durable is the quicker one: a write and an fdatasync, or one write
//! with RWF_DSYNC.
//!
//! Owned by the io_uring driver, which tells it what each write took; it reads no clock itself. The
//! single write has fewer hops, and a device without a volatile cache needs nothing more; but where
//! one is flushed, a kernel worker of the device's core does that, and while something else keeps
//! that core the write waits: twenty times as long was seen. The chain ends on a thread that may go
//! to any core. So small writes, which are what a member writes that has little to do, take what
//! has been quicker lately, and now and then the other way, seldom enough that not one in a hundred
//! is late for it; large ones always take the chain. A single late write, which any device has now
//! and then, says nothing about its way.

use std::time::Duration;

use crate::limits;

/// A way to write durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// A write, and an fdatasync behind it.
    Chain,
    /// One write with RWF_DSYNC.
    OneWrite,
}

/// One small write in this many probes the method that seems slower.
const TRY_EVERY: u32 = 128;
/// Among the first writes already, and not the very first.
const TRY_AT: u32 = 16;
/// A way that is not taken must have been quicker by this part of what the other takes.
const BETTER_BY: u32 = 16;
/// What a write moves the mean of its way by: one of this many parts.
const MEMORY: u32 = 8;
/// EWMA weight for a method that is only probed: a sample moves the mean by one of this many parts.
const MEMORY_OF_TRIED: u32 = 4;
/// A write counts as so many times its way's mean at most: it takes several late ones to leave it.
const OUTLIER: u64 = 2;

/// See the module text. Means are in nanoseconds; 0 before the first write.
#[derive(Debug)]
pub(super) struct Methods {
    current: Method,
    /// By [`Method`].
    means_ns: [u64; 2],
    small_writes: u32,
    one_write_works: bool,
}

impl Default for Methods {
    fn default() -> Self {
        Self { current: Method::Chain, means_ns: [0; 2], small_writes: 0, one_write_works: true }
    }
}

impl Methods {
    /// The way that a write of this length takes.
    pub(super) fn choose(&mut self, len_bytes: usize) -> Method {
        if len_bytes > limits::ONE_WRITE_BYTES || !self.one_write_works {
            return Method::Chain;
        }
        self.small_writes = self.small_writes.wrapping_add(1);
        match self.small_writes % TRY_EVERY {
            TRY_AT => other(self.current),
            _ => self.current,
        }
    }

    /// A write took so long this way.
    pub(super) fn took(&mut self, method: Method, len_bytes: usize, took: Duration) {
        if len_bytes > limits::ONE_WRITE_BYTES {
            return;
        }
        let took_ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        let memory = if method == self.current { MEMORY } else { MEMORY_OF_TRIED };
        let mean_ns = &mut self.means_ns[method as usize];
        *mean_ns = match *mean_ns {
            0 => took_ns,
            mean_ns => {
                let counted_ns = took_ns.min(mean_ns * OUTLIER);
                mean_ns - mean_ns / u64::from(memory) + counted_ns / u64::from(memory)
            }
        };
        let current_ns = self.means_ns[self.current as usize];
        let other_ns = self.means_ns[other(self.current) as usize];
        if other_ns != 0 && other_ns < current_ns - current_ns / u64::from(BETTER_BY) {
            self.current = other(self.current);
        }
    }

    /// The kernel or the file system does not know the single write.
    pub(super) fn give_up_one_write(&mut self) {
        (self.one_write_works, self.current) = (false, Method::Chain);
    }
}

fn other(method: Method) -> Method {
    match method {
        Method::Chain => Method::OneWrite,
        Method::OneWrite => Method::Chain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: usize = 4096;

    /// So many small writes that take what `us` says of their way; how many went which way.
    fn write(methods: &mut Methods, count: u32, us: impl Fn(Method) -> u64) -> (u32, u32) {
        let (mut chains, mut one_writes) = (0, 0);
        for _ in 0..count {
            let method = methods.choose(SMALL);
            match method {
                Method::Chain => chains += 1,
                Method::OneWrite => one_writes += 1,
            }
            methods.took(method, SMALL, Duration::from_micros(us(method)));
        }
        (chains, one_writes)
    }

    fn takes(chain_us: u64, one_write_us: u64) -> impl Fn(Method) -> u64 {
        move |method| if method == Method::Chain { chain_us } else { one_write_us }
    }

    #[test]
    fn the_quicker_way_is_taken_and_the_other_tried_less_than_once_in_a_hundred() {
        let mut methods = Methods::default();
        write(&mut methods, 100, takes(120, 90));
        let (chains, one_writes) = write(&mut methods, 10_000, takes(120, 90));
        assert!(one_writes > 9_900, "{chains} {one_writes}");
        let mut methods = Methods::default();
        let (chains, one_writes) = write(&mut methods, 10_000, takes(120, 119));
        assert!(chains > 9_900, "hardly quicker is not quicker: {chains} {one_writes}");
    }

    #[test]
    fn a_way_that_has_become_slow_is_left_at_once_and_taken_again_when_it_is_not() {
        let mut methods = Methods::default();
        write(&mut methods, 1000, takes(120, 90));
        let (_, one_writes) = write(&mut methods, 1000, takes(150, 2000));
        assert!(one_writes <= 16, "{one_writes} of a thousand");
        let (_, one_writes) = write(&mut methods, 4000, takes(120, 90));
        assert!(one_writes > 1000, "{one_writes} of four thousand");
    }

    #[test]
    fn a_late_write_now_and_then_does_not_change_the_way() {
        let mut methods = Methods::default();
        write(&mut methods, 1000, takes(120, 90));
        for _ in 0..200 {
            methods.took(Method::OneWrite, SMALL, Duration::from_millis(5));
            let (chains, _) = write(&mut methods, 50, takes(120, 90));
            assert!(chains <= 1, "{chains} of fifty");
        }
    }

    #[test]
    fn large_writes_and_those_of_a_kernel_without_it_take_the_chain() {
        let mut methods = Methods::default();
        write(&mut methods, 1000, takes(120, 90));
        assert_eq!(methods.choose(limits::ONE_WRITE_BYTES + 1), Method::Chain);
        methods.give_up_one_write();
        assert_eq!(write(&mut methods, 1000, takes(120, 90)), (1000, 0));
    }
}
