//! One thread's way to the page file: the map, and the blocking pool behind it.
//!
//! Owned by a front or by the replica. A read that meets a page which is not in memory leaves a
//! request here; [`Pages::fetch_wanted`] sends it to the pool, and when it is done whoever waits
//! reads again. Nothing here blocks.

use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use etcore_engine::map::{PageMap, PopulateRequest, Populated};
use etcore_engine::page::PageSource;

use crate::driver::Waker;
use crate::limits;
use crate::pool::Pool;

/// See the module text.
pub struct Pages {
    map: PageMap,
    pool: Pool,
    finished: Arc<ArrayQueue<Populated>>,
    waker: Waker,
    arrived: bool,
    requests: Vec<PopulateRequest>,
}

impl Pages {
    /// Pages of `map`, fetched by `pool`, which wakes this thread through `waker`.
    pub fn new(map: PageMap, pool: Pool, waker: Waker) -> Self {
        let finished = Arc::new(ArrayQueue::new(limits::PAGE_FETCHES));
        Self { map, pool, finished, waker, arrived: false, requests: Vec::new() }
    }

    /// What evaluations read from.
    pub fn source(&mut self) -> &mut dyn PageSource {
        &mut self.map
    }

    /// Sends the requests that reads have left to the pool.
    pub fn fetch_wanted(&mut self) {
        self.map.take_requests(&mut self.requests);
        for request in self.requests.drain(..) {
            let (finished, waker) = (self.finished.clone(), self.waker.clone());
            let job = Box::new(move || {
                let mut done = request.run();
                while let Err(again) = finished.push(done) {
                    // The reader is behind by hundreds of pages: let it catch up.
                    waker.wake();
                    std::thread::yield_now();
                    done = again;
                }
                waker.wake();
            });
            if let Err(job) = self.pool.run(job) {
                // The pool is full of other page reads; one more in place is better than a reader
                // that waits for nothing.
                job();
            }
        }
    }

    /// Takes what the pool has done.
    pub fn take_finished(&mut self) {
        while let Some(done) = self.finished.pop() {
            self.map.on_populated(done);
            self.arrived = true;
        }
    }

    /// True if pages have arrived since the last call.
    pub fn take_arrived(&mut self) -> bool {
        std::mem::take(&mut self.arrived)
    }

    /// True if [`Pages::take_finished`] would take something.
    pub fn has_finished(&self) -> bool {
        !self.finished.is_empty()
    }
}
