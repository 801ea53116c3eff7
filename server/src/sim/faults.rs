//! What goes wrong, drawn from the seed at the plan's rates.
//!
//! Called by the world. A fault never reaches beyond its model: a disk loses nothing that it said
//! was durable, a connection delivers nothing twice, a clock does not run ahead of its rate. The
//! clock of a process that stands still goes on, so that to the process it leaps, or stands still
//! too.

use std::sync::atomic::Ordering;

use etcore_engine::file::{FileOp, run};
use etcore_engine::testing::disk_pages::Rot;
use etcore_engine::testing::meta_pages::newest_of_two;

use super::finish::Stage;
use super::member::Member;
use super::world::{Death, Event, Pending, World, Writes};
use crate::boot::DB_FILE;

const MS: u64 = 1_000_000;
const S: u64 = 1_000_000_000;

impl Member {
    /// Nobody can reach it.
    pub(super) fn is_unreachable(&self) -> bool {
        self.life.is_none()
    }
}

impl World {
    /// One fault, and the time of the next.
    pub(super) fn fault(&mut self) {
        if self.stage != Stage::Trouble {
            return;
        }
        let rates = self.plan.rates.all();
        let total: u64 = rates.iter().sum();
        if total == 0 {
            return;
        }
        let gap = self.prng.below(2 * 10 * S / total);
        self.schedule(self.now + 1 + gap, Event::Fault);
        let mut draw = self.prng.below(total);
        let mut kind = 0;
        while draw >= rates[kind] {
            draw -= rates[kind];
            kind += 1;
        }
        let member = self.prng.index(self.members.len());
        self.trace.event(self.now, "fault", &[kind as u64, member as u64]);
        let until = |world: &mut World, most| world.now + world.prng.below(most);
        match kind {
            0 => self.doom(member, Death::Kill),
            1 => self.cut_power(member),
            2 => {
                if let Some(life) = &self.members[member].life {
                    life.shared.stop();
                    self.wake_all(member);
                }
            }
            3 => {
                let most = [50 * MS, 3 * S][self.prng.index(2)];
                self.troubles[member].paused_until = until(self, most);
            }
            4 => {
                if let Some(id) = self.some_connection() {
                    self.break_connection(id);
                }
            }
            5 => {
                let until = until(self, 2 * S);
                if let Some(id) = self.some_connection() {
                    self.stall_connection(id, until);
                }
            }
            6 => self.partition(),
            7 => {
                let most = [100 * MS, 4 * S][self.prng.index(2)];
                self.troubles[member].disk_stalled_until = until(self, most);
            }
            8 => self.troubles[member].disk_fails = self.members[member].life.is_some(),
            10 => self.rot(member),
            11 => self.stop_clock(member),
            12 => {
                let most: u64 = [2, 3600, 40_000_000][self.prng.index(3)];
                let ahead = self.prng.below(2 * most + 1).cast_signed();
                let to = 1_700_000_000 + ahead - most.cast_signed();
                self.members[member].wall_s.store(to, Ordering::Relaxed);
            }
            _ => {
                self.members[member].disk.set_full(true);
                let at = until(self, 4 * S);
                self.schedule(at, Event::DiskHasRoom { member });
            }
        }
    }

    /// Now, or while the log or a checkpoint is being written.
    fn cut_power(&mut self, member: usize) {
        if self.prng.below(100) >= self.plan.torn_percent {
            return self.doom(member, Death::PowerCut);
        }
        let writes = [Writes::Log, Writes::Log, Writes::PageSync][self.prng.index(3)];
        self.troubles[member].cut_in_write = Some((writes, self.prng.below(6)));
        // The next life is cut off likewise: it writes over what this one leaves.
        self.troubles[member].cut_again = self.prng.chance(1, 2);
    }

    /// The member's monotonic clock stands still. What it promised by it may last longer, never
    /// shorter.
    fn stop_clock(&mut self, member: usize) {
        let most = [500 * MS, 5 * S][self.prng.index(2)];
        let until = self.now + self.prng.below(most);
        let suspended = self.prng.chance(1, 2);
        let Some(life) = &mut self.members[member].life else { return };
        life.clock.stand_still(self.now, until);
        if suspended {
            self.troubles[member].paused_until = until;
        }
        self.wake_all(member);
    }

    /// Some pages come up wrong for a while.
    fn rot(&mut self, member: usize) {
        let which = self.prng.next_u64() >> 1;
        let rot = if self.prng.chance(1, 2) { Rot::Flipped(which) } else { Rot::Unreadable(which) };
        let Some(life) = &self.members[member].life else { return };
        life.arrivals.iter().for_each(|pages| pages.set_rot(Some(rot)));
        self.troubles[member].has_rotten = true;
        self.rotten_runs.insert(self.members[member].run_number());
        let at = self.now + self.prng.below(2 * S);
        self.schedule(at, Event::DiskIsSound { member });
    }

    /// The disk returns what was written to it.
    pub(super) fn disk_is_sound(&mut self, member: usize) {
        if let Some(life) = &self.members[member].life {
            life.arrivals.iter().for_each(|pages| pages.set_rot(None));
        }
    }

    /// True if the member dies instead of carrying out an operation; what comes of that is drawn.
    pub(super) fn is_cut_off(
        &mut self,
        member: usize,
        writes: Option<Writes>,
        is_copy: bool,
    ) -> bool {
        if self.stage != Stage::Trouble || self.members[member].life.is_none() {
            return false;
        }
        if is_copy && self.prng.below(1000) < self.plan.copy_cuts {
            return true;
        }
        match &mut self.troubles[member].cut_in_write {
            Some((of, 0)) if writes == Some(*of) => {
                self.troubles[member].cut_in_write = None;
                true
            }
            Some((of, left)) if writes == Some(*of) => {
                *left -= 1;
                false
            }
            _ => false,
        }
    }

    /// Draws who cannot reach whom, and for how long.
    fn partition(&mut self) {
        let until = self.now + self.prng.below([500 * MS, 6 * S][self.prng.clone().index(2)]);
        let count = self.members.len();
        let lonely = self.prng.index(count);
        let both_ways = self.prng.chance(2, 3);
        let single_pair = self.prng.chance(1, 3);
        let other = (lonely + 1 + self.prng.index(count - 1)) % count;
        let sides = self.prng.next_u64();
        let groups = self.prng.chance(1, 4);
        for from in 0..count {
            for to in 0..count {
                let cut = if groups {
                    sides >> from & 1 != sides >> to & 1
                } else if single_pair {
                    (from, to) == (lonely, other) || both_ways && (to, from) == (lonely, other)
                } else {
                    from != to && (from == lonely || both_ways && to == lonely)
                };
                if cut {
                    self.blocked.insert((from, to), until);
                }
            }
        }
    }

    fn some_connection(&mut self) -> Option<u64> {
        let index = self.prng.index(self.connections.len());
        self.connections.keys().nth(index).copied()
    }

    fn doom(&mut self, member: usize, death: Death) {
        if self.members[member].life.is_none() {
            return;
        }
        // Half of them among the effects of the next step, the others between two steps.
        if self.prng.chance(1, 2) {
            self.troubles[member].doomed = Some(death);
        } else {
            self.die(member, death);
        }
    }

    pub(super) fn wake_all(&mut self, member: usize) {
        let threads = self.members[member].life.as_ref().map_or(0, |life| life.threads.len());
        for thread in 0..threads {
            self.wake(member, thread);
        }
    }

    /// The process ends here and now. It is started again later.
    pub(super) fn die(&mut self, member: usize, death: Death) {
        let lies = std::mem::take(&mut self.troubles[member].cache_lies);
        let death = if lies { Death::PowerCut } else { death };
        self.trace.event(self.now, "die", &[member as u64, death as u64]);
        let Some(life) = self.members[member].life.take() else { return };
        self.disconnect_member(member, death == Death::PowerCut);
        // Parts of a dead process write nothing any more.
        drop(life);
        let own: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.member == member)
            .map(|(id, _)| *id)
            .collect();
        for id in own {
            let Some(Pending { op: Some(op), .. }) = self.pending.remove(&id) else { continue };
            self.interrupt(member, op, death);
        }
        if death == Death::PowerCut {
            self.lose_power(member);
        }
        let until = self.now + 1 + self.plan.down.draw(&mut self.prng);
        if self.prng.below(1000) < self.plan.start_crashes && self.stage == Stage::Trouble {
            self.troubles[member].start_crash = Some(self.prng.below(12));
        }
        self.troubles[member].doomed = None;
        self.troubles[member].paused_until = 0;
        self.troubles[member].disk_fails = false;
        self.troubles[member].has_rotten = false;
        self.held_views.remove(&member);
        if std::mem::take(&mut self.troubles[member].cut_again) && self.stage == Stage::Trouble {
            self.troubles[member].cut_in_write = Some((Writes::Log, self.prng.below(4)));
        }
        self.schedule(until, Event::Start { member });
    }

    /// An operation whose process died: done, half done, or not at all.
    fn interrupt(&mut self, member: usize, op: FileOp, death: Death) {
        let disk = &mut self.members[member].disk;
        let op = match (self.prng.below(3), op) {
            (0, _) => return,
            // What the cut leaves of its writes is drawn with the others.
            (_, FileOp::Sync { .. }) if death == Death::PowerCut => return,
            (1, FileOp::Write { file, offset_bytes, data, .. }) => {
                FileOp::Write { file, offset_bytes, data, durable: false }
            }
            (_, op) => op,
        };
        // Nobody is left to hear of it.
        let _ = run(disk, op);
    }

    /// The machine loses power: what a start will find is drawn.
    pub(super) fn lose_power(&mut self, member: usize) {
        let seed = match self.prng.below(4) {
            0 => 0,
            1 if self.prng.chance(1, 2) => 1,
            _ => 2 + self.prng.below(u64::MAX - 2),
        };
        let disk = self.members[member].disk.crash(seed);
        self.members[member].disk = disk;
        if self.stage == Stage::Trouble && self.prng.below(100) < self.plan.meta_rot_percent {
            self.damage_newest_meta(member);
        }
    }

    /// If both meta pages are sound: the member must get on with the older one.
    fn damage_newest_meta(&mut self, member: usize) {
        let disk = &self.members[member].disk;
        if let Some(offset_bytes) = newest_of_two(disk) {
            let at = offset_bytes + 8 + self.prng.below(400);
            let byte = disk.read_at(DB_FILE, at, 1).unwrap_or_default();
            if let [byte] = byte[..] {
                disk.patch(DB_FILE, at, &[byte ^ 1 << self.prng.below(8)]);
                self.trace.event(self.now, "meta rots", &[member as u64, at]);
            }
        }
    }
}
