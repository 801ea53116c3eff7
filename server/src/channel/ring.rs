//! The bounded rings between fronts and the replica: one pair per front, batches drained once per
//! turn, one wake-up per batch.
//!
//! Used by the shard loop, the fronts and the replica. A ring carries requests and replies, never
//! events or data that must not be lost: when it is full the producer keeps its message and tries
//! again in its next turn.

use std::collections::VecDeque;
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

/// A producing end that loses nothing: what finds the ring full waits here, in order, and what is
/// new never overtakes it. Its owner bounds what may wait.
pub struct Outgoing<T> {
    producer: Producer<T>,
    waiting: VecDeque<T>,
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

impl<T> Outgoing<T> {
    /// Sends through this end.
    pub fn new(producer: Producer<T>) -> Self {
        Self { producer, waiting: VecDeque::new() }
    }

    /// Puts a message in at once if there is room and nothing waits; it waits otherwise.
    pub fn push(&mut self, message: T) {
        if self.waiting.is_empty() {
            if let Err(message) = self.producer.push(message) {
                self.waiting.push_back(message);
            }
        } else {
            self.waiting.push_back(message);
        }
    }

    /// Puts a message in with the next [`Outgoing::flush`], should it still be wanted then.
    pub fn push_later(&mut self, message: T) {
        self.waiting.push_back(message);
    }

    /// True if something waits.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// True if something waits that has room now.
    pub fn can_flush(&self) -> bool {
        self.is_waiting() && self.producer.room() > 0
    }

    /// Passes on what waits, as far as there is room, without what is not `wanted` any more, and
    /// wakes the consumer. Once per turn.
    pub fn flush(&mut self, mut wanted: impl FnMut(&T) -> bool) {
        while let Some(message) = self.waiting.pop_front() {
            if !wanted(&message) {
                continue;
            }
            if let Err(message) = self.producer.push(message) {
                self.waiting.push_front(message);
                break;
            }
        }
        self.producer.flush();
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
    fn what_finds_the_ring_full_waits_in_order_and_is_left_out_when_nobody_wants_it() {
        let (producer, mut consumer) = ring(2, None);
        let mut outgoing = Outgoing::new(producer);
        outgoing.push_later(1);
        assert!(consumer.is_empty() && outgoing.can_flush());
        (2..=5).for_each(|message| outgoing.push(message));
        outgoing.flush(|_| true);
        assert!(outgoing.is_waiting() && !outgoing.can_flush());
        assert_eq!((consumer.pop(), consumer.pop()), (Some(1), Some(2)));
        outgoing.flush(|message| *message != 4);
        assert_eq!((consumer.pop(), consumer.pop(), consumer.pop()), (Some(3), Some(5), None));
        assert!(!outgoing.is_waiting());
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
