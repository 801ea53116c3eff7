//! The bounded rings between fronts and the replica: one pair per front, batches drained once per
//! turn, one wake-up per batch.
//!
//! Used by the shard loop, the fronts and the replica. A ring carries requests and replies, never
//! events or data that must not be lost: when it is full the producer keeps its message and tries
//! again in its next turn.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;

use crate::driver::Waker;

/// The producing end.
pub struct Producer<T> {
    queue: Arc<ArrayQueue<T>>,
    /// `None` when both ends live on one thread: its loop looks at the ring anyway.
    waker: Option<Waker>,
    /// Whether something was pushed since the last wake-up.
    dirty: bool,
}

/// The consuming end.
pub struct Consumer<T> {
    queue: Arc<ArrayQueue<T>>,
}

/// Makes a ring for `capacity` messages whose consumer is woken through `waker`.
pub fn ring<T>(capacity: usize, waker: Option<Waker>) -> (Producer<T>, Consumer<T>) {
    let queue = Arc::new(ArrayQueue::new(capacity));
    (Producer { queue: queue.clone(), waker, dirty: false }, Consumer { queue })
}

impl<T> Producer<T> {
    /// Puts a message in, or hands it back when the ring is full.
    ///
    /// # Errors
    /// The message itself.
    pub fn push(&mut self, message: T) -> Result<(), T> {
        self.queue.push(message)?;
        self.dirty = true;
        Ok(())
    }

    /// Wakes the consumer if anything was pushed since the last call. Once per turn.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.dirty)
            && let Some(waker) = &self.waker
        {
            waker.wake();
        }
    }

    /// How many more messages fit.
    pub fn room(&self) -> usize {
        self.queue.capacity() - self.queue.len()
    }
}

impl<T> Consumer<T> {
    /// The next message.
    pub fn pop(&mut self) -> Option<T> {
        self.queue.pop()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_of_the_real_size_keeps_order_when_its_producer_has_to_wait() {
        let (mut producer, mut consumer) = ring(crate::limits::RING_TO_REPLICA, None);
        let total = crate::limits::RING_TO_REPLICA * 2 + 7;
        let (mut next, mut taken) = (0, 0);
        while taken < total {
            while next < total && producer.push(next).is_ok() {
                next += 1;
            }
            assert!(producer.room() == 0 || next == total);
            for _ in 0..1000 {
                let Some(number) = consumer.pop() else { break };
                assert_eq!(number, taken);
                taken += 1;
            }
        }
    }

    #[test]
    fn a_full_ring_hands_the_message_back() {
        let (mut producer, mut consumer) = ring(2, None);
        assert!(producer.push(1).is_ok() && producer.push(2).is_ok());
        assert_eq!(producer.push(3), Err(3));
        assert_eq!(consumer.pop(), Some(1));
        assert!(producer.push(3).is_ok());
        assert_eq!((consumer.pop(), consumer.pop(), consumer.pop()), (Some(2), Some(3), None));
    }
}
