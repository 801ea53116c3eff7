//! Work that a member waits for and that does not go on: noticed, told, and not led with.
//!
//! Part of the replica, looked at with every tick. A disk that hangs, or a thread that is not
//! woken, shows itself only by what does not come: so each thing that the replica waits for has a
//! clock. A clock counts the time of this process's ticks, so a process that was stopped blames
//! nobody. What stands still for long is logged, counted, and shown by the health checks; a leader
//! whose log does not go on gives its leadership to a peer, and if none takes it, falls silent so
//! that the others elect one: writes must not wait for one member's disk.

use std::sync::atomic::Ordering;

use etcore_engine::seeded_bug::{SeededBug, is_on};

use super::Replica;
use crate::channel::StalledWork;
use crate::clock::millis;
use crate::limits;

/// The clock of one of them.
#[derive(Debug, Clone, Copy, Default)]
struct Clock {
    /// Names what is waited for; `None` if nothing is.
    step: Option<u64>,
    waited_ms: u64,
    reported: bool,
}

/// See the module text.
#[derive(Debug, Default)]
pub(super) struct Watchdog {
    clocks: [Clock; StalledWork::ALL.len()],
    /// Durable writes, and other operations of the log's main lane, that were started and ended.
    writes: (u64, u64),
    file_ops: (u64, u64),
    checkpoints: u64,
    last_tick_ms: u64,
    /// This member leads and sends nothing, so that others elect another.
    silent: bool,
}

impl Watchdog {
    pub(super) fn write_started(&mut self) {
        self.writes.0 += 1;
    }

    pub(super) fn write_ended(&mut self) {
        self.writes.1 += 1;
    }

    pub(super) fn file_op_started(&mut self) {
        self.file_ops.0 += 1;
    }

    pub(super) fn file_op_ended(&mut self) {
        self.file_ops.1 += 1;
    }

    pub(super) fn checkpoint_ended(&mut self) {
        self.checkpoints += 1;
    }

    /// How long the log has not gone on, in milliseconds.
    pub(super) fn log_waited_ms(&self) -> u64 {
        let waited = |work: StalledWork| self.clocks[work as usize].waited_ms;
        waited(StalledWork::LogWrite).max(waited(StalledWork::LogFile))
    }

    /// True if nothing may be sent to peers.
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    fn step_of(&self, work: StalledWork, checkpoint_is_out: bool) -> Option<u64> {
        match work {
            StalledWork::LogWrite => (self.writes.0 > self.writes.1).then_some(self.writes.1),
            StalledWork::LogFile => (self.file_ops.0 > self.file_ops.1).then_some(self.file_ops.1),
            StalledWork::Checkpoint => checkpoint_is_out.then_some(self.checkpoints),
        }
    }
}

impl Replica {
    /// With every tick: asks again for what is waited for, and looks at the clocks.
    pub(super) fn watch_work(&mut self) {
        let now_ms = self.turn.now_ms();
        let tick_ms = now_ms - std::mem::replace(&mut self.watchdog.last_tick_ms, now_ms);
        // More is the machine's doing.
        let passed_ms = tick_ms.min(2 * millis(self.shared.config.heartbeat));
        // A checkpoint that waits for room is told of elsewhere.
        let checkpoint_is_out = self.checkpoints.is_under_way() && !self.space.is_stalled();
        if checkpoint_is_out || self.snapshots.is_busy() {
            self.background.nudge();
        }
        let mut stalled = 0;
        for work in StalledWork::ALL {
            let step = self.watchdog.step_of(work, checkpoint_is_out);
            let clock = &mut self.watchdog.clocks[work as usize];
            if clock.step != step || step.is_none() {
                if clock.reported {
                    let waited_ms = clock.waited_ms;
                    tracing::info!(work = work.name(), waited_ms, "stalled work goes on");
                }
                *clock = Clock { step, ..Clock::default() };
                continue;
            }
            clock.waited_ms += passed_ms;
            if clock.waited_ms < limits::STALL_MS {
                continue;
            }
            stalled |= 1 << work as u8;
            if !std::mem::replace(&mut clock.reported, true) {
                self.shared.metrics.stalls(work.name()).inc();
                tracing::error!(
                    work = work.name(),
                    waited_ms = clock.waited_ms,
                    data_dir = %self.shared.config.data_dir,
                    "work stands still: the disk may hang; health checks fail until it goes on"
                );
            }
        }
        self.shared.status.stalled.store(stalled, Ordering::Relaxed);
        self.leave_leadership();
    }

    /// A leader whose log stands still is none: it hands over, which raft does without the disk.
    fn leave_leadership(&mut self) {
        let election_ms = millis(self.shared.config.election);
        let waited_ms = self.watchdog.log_waited_ms();
        let is_alone = self.log.node.conf_state().voters.len() <= 1;
        if !self.is_leader()
            || is_alone
            || waited_ms < election_ms
            || is_on(SeededBug::HungLeaderLeadsOn)
        {
            self.watchdog.silent = false;
            return;
        }
        if waited_ms >= 2 * election_ms {
            if !std::mem::replace(&mut self.watchdog.silent, true) {
                tracing::error!(
                    waited_ms,
                    "no peer took the leadership of a member whose log stands still: it is silent \
                     until they elect another"
                );
            }
            return;
        }
        if self.log.node.status().transferee == 0
            && let Some(transferee) = self.best_transferee()
        {
            tracing::error!(
                waited_ms,
                transferee_member_id = %format_args!("{transferee:x}"),
                "the log stands still: handing leadership over"
            );
            self.log.node.transfer_leader(transferee);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_name_what_stands_still() {
        let of = |bits| StalledWork::of_bits(bits).map(StalledWork::name).collect::<Vec<_>>();
        assert_eq!(of(0), Vec::<&str>::new());
        assert_eq!(of(0b101), ["log write", "checkpoint"]);
    }
}
