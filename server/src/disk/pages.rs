//! One thread's way to the page file: the map, and the blocking pool behind it.
//!
//! Owned by a front or by the replica. A read that meets a page which is not in memory leaves a
//! request here; [`Pages::fetch_wanted`] sends it to the pool, and when it is done whoever waits
//! reads again. Nothing here blocks. A simulated member reads from a simulated disk instead.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam_queue::ArrayQueue;
use etcore_engine::file::SharedFile;
use etcore_engine::map::{PageMap, PopulateRequest, Populated};
use etcore_engine::page::PageSource;

use crate::disk::pool::Pool;
use crate::driver::Waker;
use crate::limits;

/// Where the pages of a view are.
#[derive(Debug, Clone, Default)]
pub struct PageFile {
    /// Tells the files that a member has had in its life: a snapshot of the leader's brings a new
    /// one.
    pub number: u64,
    /// How often this one was cut: older mappings of it must not be used with the view.
    pub cuts: u64,
    /// The file.
    pub file: Option<SharedFile>,
}

/// Who reads through a [`Pages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageReader {
    /// A front, of the member's state.
    Front,
    /// A front, of the state of before a snapshot.
    Former,
    /// The replica.
    Replica,
}

/// See the module text.
pub struct Pages {
    source: Source,
    /// Number of the page file that is read.
    number: u64,
}

/// Where pages come from.
#[expect(clippy::large_enum_variant, reason = "one a thread, and the large one is the usual one")]
enum Source {
    Map(Mapped),
    Simulated(Box<dyn SimulatedPages + Send>),
}

/// The simulator's pages: the functions of [`Pages`], which see.
pub trait SimulatedPages {
    /// What evaluations read from.
    fn source(&mut self) -> &mut dyn PageSource;
    /// The file was cut, or is another one.
    fn follow(&mut self, file: &PageFile);
    /// Starts what reads have asked for.
    fn fetch_wanted(&mut self);
    /// Takes what has come.
    fn take_finished(&mut self);
    /// Something has come since the last call.
    fn take_arrived(&mut self) -> bool;
    /// Something waits to be taken.
    fn has_finished(&self) -> bool;
    /// An evaluation that must end has met a page that is not there.
    fn begin_evaluation(&mut self) {}
    /// It has ended.
    fn end_evaluation(&mut self) {}
}

/// The map, and what is on its way into it.
struct Mapped {
    map: PageMap,
    pool: Pool,
    finished: Arc<ArrayQueue<Populated>>,
    waker: Waker,
    arrived: bool,
    requests: Vec<PopulateRequest>,
    /// Not handed to the pool yet.
    waiting: VecDeque<PopulateRequest>,
    /// With the pool, or finished and not taken; at most [`limits::PAGE_FETCHES`], so that a
    /// finished one always finds room.
    in_flight: usize,
}

impl Pages {
    /// Pages of `map`, fetched by `pool`, which wakes this thread through `waker`.
    pub fn new(map: PageMap, pool: Pool, waker: Waker) -> Self {
        Self { source: Source::Map(Mapped::new(map, pool, waker)), number: 0 }
    }

    /// Pages of a simulated disk.
    pub fn simulated(pages: Box<dyn SimulatedPages + Send>) -> Self {
        Self { source: Source::Simulated(pages), number: 0 }
    }

    /// What evaluations read from.
    pub fn source(&mut self) -> &mut dyn PageSource {
        match &mut self.source {
            Source::Map(mapped) => &mut mapped.map,
            Source::Simulated(pages) => pages.source(),
        }
    }

    /// An evaluation that must end has met a page that is not there, and will start again: see
    /// [`PageMap::begin_evaluation`].
    pub fn begin_evaluation(&mut self) {
        match &mut self.source {
            Source::Map(mapped) => mapped.map.begin_evaluation(),
            Source::Simulated(pages) => pages.begin_evaluation(),
        }
    }

    /// It has ended.
    pub fn end_evaluation(&mut self) {
        match &mut self.source {
            Source::Map(mapped) => mapped.map.end_evaluation(),
            Source::Simulated(pages) => pages.end_evaluation(),
        }
    }

    /// Must be called with each newer view before it is read.
    pub fn follow(&mut self, page_file: &PageFile) {
        let is_new = std::mem::replace(&mut self.number, page_file.number) != page_file.number;
        match &mut self.source {
            Source::Map(mapped) => match &page_file.file {
                Some(SharedFile::Std(file)) if is_new => {
                    mapped.map.replace(file.clone(), page_file.cuts);
                }
                _ => mapped.map.forget(page_file.cuts),
            },
            Source::Simulated(pages) => pages.follow(page_file),
        }
    }

    /// Number of the page file that is read: see [`PageFile::number`].
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Sends the requests that reads have left to the pool.
    pub fn fetch_wanted(&mut self) {
        match &mut self.source {
            Source::Map(mapped) => mapped.fetch_wanted(),
            Source::Simulated(pages) => pages.fetch_wanted(),
        }
    }

    /// Takes what the pool has done.
    pub fn take_finished(&mut self) {
        match &mut self.source {
            Source::Map(mapped) => mapped.take_finished(),
            Source::Simulated(pages) => pages.take_finished(),
        }
    }

    /// True if pages have arrived since the last call.
    pub fn take_arrived(&mut self) -> bool {
        match &mut self.source {
            Source::Map(mapped) => std::mem::take(&mut mapped.arrived),
            Source::Simulated(pages) => pages.take_arrived(),
        }
    }

    /// True if [`Pages::take_finished`] would take something.
    pub fn has_finished(&self) -> bool {
        match &self.source {
            Source::Map(mapped) => !mapped.finished.is_empty(),
            Source::Simulated(pages) => pages.has_finished(),
        }
    }
}

impl Mapped {
    fn new(map: PageMap, pool: Pool, waker: Waker) -> Self {
        let finished = Arc::new(ArrayQueue::new(limits::PAGE_FETCHES));
        Self {
            map,
            pool,
            finished,
            waker,
            arrived: false,
            requests: Vec::new(),
            waiting: VecDeque::new(),
            in_flight: 0,
        }
    }

    fn fetch_wanted(&mut self) {
        self.map.take_requests(&mut self.requests);
        self.waiting.extend(self.requests.drain(..));
        while self.in_flight < limits::PAGE_FETCHES {
            let Some(request) = self.waiting.pop_front() else { return };
            self.in_flight += 1;
            let (finished, waker) = (self.finished.clone(), self.waker.clone());
            let job = Box::new(move || {
                // Never full: see `in_flight`.
                let _ = finished.push(request.run());
                waker.wake();
            });
            if let Err(job) = self.pool.run(job) {
                // Never in a member, whose pool has room for what all threads may have in flight.
                // One more in place is better than a reader that waits for nothing.
                job();
                return;
            }
        }
    }

    fn take_finished(&mut self) {
        while let Some(done) = self.finished.pop() {
            self.map.on_populated(done);
            self.in_flight -= 1;
            self.arrived = true;
        }
        self.fetch_wanted();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use etcore_engine::page::{Fetch, PagePtr};

    use super::*;
    use crate::disk::pool::{PoolThreads, Size};

    /// A page in a window of its own, so that each is a fetch of its own.
    fn page(at: u64) -> PagePtr {
        PagePtr {
            first_unit: at * WINDOW_UNITS,
            units: 1,
            len_bytes: 16,
            crc: 0,
            codec: 0,
            level: 0,
        }
    }

    const WINDOW_UNITS: u64 = 256;
    const SIZE: Size = Size { threads: 2, jobs: limits::PAGE_FETCHES };

    #[test]
    fn more_missing_pages_than_may_be_fetched_at_once_all_arrive() {
        const WANTED: u64 = 3 * limits::PAGE_FETCHES as u64;
        let file = tempfile::tempfile().unwrap();
        file.set_len(WANTED * (WINDOW_UNITS * 4096)).unwrap();
        let map = PageMap::new(Arc::new(file), limits::PAGE_WINDOW_BYTES);
        let mut threads = PoolThreads::default();
        let pool = Pool::start("test", SIZE, &mut threads).unwrap();
        let mut pages = Mapped::new(map, pool, Waker::new().unwrap());
        for at in 0..WANTED {
            assert!(matches!(pages.map.get(page(at)), Ok(Fetch::Pending(_))));
        }
        pages.fetch_wanted();
        let deadline = Instant::now() + Duration::from_secs(60);
        while pages.in_flight > 0 || !pages.waiting.is_empty() {
            assert!(pages.in_flight <= limits::PAGE_FETCHES);
            assert!(Instant::now() < deadline, "{} fetches never ended", pages.waiting.len());
            if pages.finished.is_empty() {
                std::thread::yield_now();
            }
            pages.take_finished();
        }
        assert!(pages.arrived);
        drop(pages);
        threads.join();
    }

    #[test]
    fn a_full_pool_neither_loses_a_fetch_nor_hangs_its_thread() {
        const WANTED: u64 = 2 * limits::PAGE_FETCHES as u64;
        let file = tempfile::tempfile().unwrap();
        file.set_len(WANTED * (WINDOW_UNITS * 4096)).unwrap();
        let map = PageMap::new(Arc::new(file), limits::PAGE_WINDOW_BYTES);
        let mut threads = PoolThreads::default();
        let pool = Pool::start("test", SIZE, &mut threads).unwrap();
        let (release, gate) = crossbeam_channel::bounded::<()>(0);
        loop {
            let gate = gate.clone();
            if pool.run(Box::new(move || gate.recv().unwrap_or(()))).is_err() {
                break;
            }
        }
        let mut pages = Mapped::new(map, pool, Waker::new().unwrap());
        for at in 0..WANTED {
            assert!(matches!(pages.map.get(page(at)), Ok(Fetch::Pending(_))));
        }
        pages.fetch_wanted();
        while !pages.finished.is_empty() {
            pages.take_finished();
        }
        // A thread that took its first job late has left room for one of ours.
        assert!(pages.waiting.is_empty(), "served in place, one by one");
        assert!(pages.in_flight <= SIZE.threads);
        drop((release, gate, pages));
        threads.join();
    }
}
