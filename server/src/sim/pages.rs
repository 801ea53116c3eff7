//! One thread's way to the simulated page file: a page is there, or comes later.
//!
//! Pages stay in memory until there are many or the file was cut; a start finds none there.
//! Every read takes what the disk holds now and checks it: a page that was overwritten while
//! somebody may still read it is found, which a map would not do.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use etcore_engine::error::EngineError;
use etcore_engine::page::{Fetch, PagePtr, PageSource, Ticket};
use etcore_engine::testing::disk_pages::{DiskPages, Rot};
use etcore_engine::testing::mem_disk::MemDisk;

use super::effects::{Effect, Effects, Owner};
use crate::disk::pages::{PageFile, SimulatedPages};
use crate::driver::Waker;

type At = (u64, u32);

/// What reader and world share: pages that have come, and what is wrong with the device.
#[derive(Clone)]
pub(super) struct Arrivals {
    come: Arc<Mutex<Vec<At>>>,
    rot: Arc<Mutex<Option<Rot>>>,
    waker: Waker,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, Vec<At>> {
        self.come.lock().expect("nothing panics while it holds the list")
    }

    /// From now on reads meet this, or nothing.
    pub(super) fn set_rot(&self, rot: Option<Rot>) {
        *self.rot.lock().expect("nothing panics while it holds it") = rot;
    }

    /// A page has come.
    pub(super) fn put(&self, at: At) {
        self.lock().push(at);
        self.waker.wake();
    }
}

/// See the module text.
pub(super) struct SimPages {
    number: usize,
    disk: DiskPages,
    effects: Effects,
    arrivals: Arrivals,
    /// Nothing has to be waited for.
    warm: bool,
    /// Pages in memory, at most `room`. A read of a front that needs more at once never ends, here
    /// as in a running member, whose map keeps [`crate::limits::PAGE_WINDOW_BYTES`].
    kept: VecDeque<At>,
    room: usize,
    /// Pages that the evaluation under way may still have fetched before it reads in place.
    patience: Option<usize>,
    wanted: Vec<At>,
    under_way: Vec<At>,
    arrived: bool,
    /// Number and cuts of the file that is read.
    of: (u64, u64),
}

impl SimPages {
    /// Pages number `number` of a member; `warm` pages never have to be waited for.
    pub(super) fn new(
        number: usize,
        disk: &MemDisk,
        effects: Effects,
        waker: Waker,
        warm: bool,
        room: usize,
    ) -> (Self, Arrivals) {
        let arrivals = Arrivals { come: Arc::default(), rot: Arc::default(), waker };
        let pages = Self {
            number,
            disk: DiskPages::new(disk),
            effects,
            arrivals: arrivals.clone(),
            warm,
            kept: VecDeque::new(),
            room,
            patience: None,
            wanted: Vec::new(),
            under_way: Vec::new(),
            arrived: false,
            of: (0, 0),
        };
        (pages, arrivals)
    }
}

impl PageSource for SimPages {
    fn get(&mut self, ptr: PagePtr) -> Result<Fetch<&[u8]>, EngineError> {
        let at = (ptr.first_unit, ptr.crc);
        if !self.warm && self.patience != Some(0) && !self.kept.contains(&at) {
            if !self.under_way.contains(&at) && !self.wanted.contains(&at) {
                self.wanted.push(at);
            }
            return Ok(Fetch::Pending(Ticket(ptr.first_unit)));
        }
        self.disk.set_rot(*self.arrivals.rot.lock().expect("nothing panics while it holds it"));
        self.disk.get(ptr)
    }
}

impl SimulatedPages for SimPages {
    fn source(&mut self) -> &mut dyn PageSource {
        self
    }

    fn follow(&mut self, file: &PageFile) {
        self.disk.follow(file.file.as_ref());
        if self.of != (file.number, file.cuts) {
            self.of = (file.number, file.cuts);
            self.kept.clear();
        }
    }

    fn fetch_wanted(&mut self) {
        for at in self.wanted.drain(..) {
            self.under_way.push(at);
            let owner = Owner::Page { pages: self.number, at };
            self.effects.push(Effect::Disk { owner, op: None });
        }
    }

    fn take_finished(&mut self) {
        let come = std::mem::take(&mut *self.arrivals.lock());
        for at in come {
            self.under_way.retain(|waiting| *waiting != at);
            if self.kept.len() == self.room {
                self.kept.pop_front();
            }
            if let Some(left) = &mut self.patience {
                *left = left.saturating_sub(1);
            }
            self.kept.push_back(at);
            self.arrived = true;
        }
        self.fetch_wanted();
    }

    fn take_arrived(&mut self) -> bool {
        std::mem::take(&mut self.arrived)
    }

    fn has_finished(&self) -> bool {
        !self.arrivals.lock().is_empty()
    }

    fn begin_evaluation(&mut self) {
        self.patience.get_or_insert(self.room / 2);
    }

    fn end_evaluation(&mut self) {
        self.patience = None;
    }
}
