//! A turn of the replica: its stages in order, and what is known of the turn that is under way.
//!
//! The shard begins a turn, then runs one stage after another until there is none. Which stage
//! follows which is decided here and nowhere else. A stage that is the shard's own work
//! ([`Stage::SendBeforeLog`] and its like) stands between two of the replica's so that clients and
//! the disk do not wait for what the next stage takes long for. Nothing here does I/O.

use super::{DurableWrite, Replica};
use crate::work::{Job, Work};

/// The stages of a turn, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Takes what fronts, peers and background threads have sent, and proposes it.
    Receive,
    /// Only before a large entry is logged: the shard sends what is answered already.
    SendBeforeLog,
    /// Says what the log writes next. The shard gives peers their messages, then starts the write.
    Log,
    /// Only before a large entry is applied: the shard sends what is answered already.
    SendBeforeApply,
    /// The shard submits what it has for its driver, so that the disk works during the next stage.
    Submit,
    /// Applies committed entries as far as the turn has room, publishes and answers.
    Apply,
    /// Answers requests about leases, and goes on with transfers of leadership.
    Answer,
    /// Goes on with snapshots and checkpoints.
    Save,
    /// Sends what fronts are to be told, and ends a member that stops. As after
    /// [`Stage::Log`], the shard gives peers their messages and starts the write, if there is one.
    Finish,
}

impl Stage {
    /// True if the stage leaves messages for peers, and perhaps a durable write.
    pub fn passes_on(self) -> bool {
        matches!(self, Self::Log | Self::Finish)
    }
}

/// What decides which stage follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outlook {
    /// The replica does nothing any more.
    stopped: bool,
    /// Large proposals went to the log in this turn.
    logs_large: bool,
    /// The entry to be applied first is large, and is not put off.
    applies_large: bool,
    /// The disk has a write to do, and there are entries to apply meanwhile.
    overlaps: bool,
}

/// The stage after this one; `None` at the end of the turn.
fn after(stage: Stage, outlook: Outlook) -> Option<Stage> {
    Some(match stage {
        Stage::Receive if outlook.logs_large && !outlook.stopped => Stage::SendBeforeLog,
        Stage::Receive | Stage::SendBeforeLog => Stage::Log,
        // What was sent to peers and disks before the failure still leaves.
        Stage::Log if outlook.stopped => Stage::Finish,
        Stage::Log if outlook.applies_large => Stage::SendBeforeApply,
        Stage::Log if outlook.overlaps => Stage::Submit,
        Stage::Log => Stage::Apply,
        Stage::SendBeforeApply => Stage::Submit,
        Stage::Submit => Stage::Apply,
        Stage::Apply => Stage::Answer,
        Stage::Answer => Stage::Save,
        Stage::Save => Stage::Finish,
        Stage::Finish => return None,
    })
}

/// See the module text.
///
/// Invariants: time does not go back; stages follow each other as [`after`] says; a turn hands out
/// at most one durable write a [`Stage::passes_on`].
#[derive(Default)]
pub(super) struct Turn {
    /// The stage that is run next.
    next: Option<Stage>,
    now_ms: u64,
    /// When the first turn began.
    started_ms: Option<u64>,
    work: Work,
    ticked: bool,
    next_tick_ms: u64,
    last_tick_ms: u64,
    took_large: bool,
    /// Large entries were not applied in the last turn, because large ones were logged in it.
    put_off_large: bool,
    /// The disk works on what the log stage returned.
    wrote: bool,
    /// Entries were applied, or could have been: the stages behind that run, come what may.
    applies: bool,
    /// What is to be written at the end of the turn.
    write: Option<DurableWrite>,
}

impl Turn {
    fn begin(&mut self, now_ms: u64) {
        assert!(now_ms >= self.now_ms, "time goes back: {} to {now_ms}", self.now_ms);
        self.now_ms = now_ms;
        self.work = Work::default();
        self.wrote = false;
    }

    /// The turn's time, on the shards' clock.
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// When the first turn with a tick began.
    pub(super) fn started_ms(&self) -> u64 {
        self.started_ms.unwrap_or(0)
    }

    /// When the next tick is due.
    pub(super) fn next_tick_ms(&self) -> u64 {
        self.next_tick_ms
    }

    /// Notes work that may take long.
    pub(super) fn note(&mut self, job: Job) {
        self.work.note(job);
    }

    /// Large proposals went to the log.
    pub(super) fn note_large(&mut self) {
        self.took_large = true;
    }

    /// If a tick is due: how long ago the last one was.
    pub(super) fn tick(&mut self, tick_ms: u64) -> Option<u64> {
        let now_ms = self.now_ms;
        self.ticked = false;
        if self.started_ms.is_none() {
            (self.next_tick_ms, self.started_ms) = (now_ms, Some(now_ms));
        }
        if self.next_tick_ms > now_ms {
            return None;
        }
        // A member that was paused does not make up for lost ticks: that would start elections.
        self.next_tick_ms = (self.next_tick_ms + tick_ms).max(now_ms.saturating_sub(tick_ms) + 1);
        self.ticked = true;
        self.note(Job::Tick);
        Some(now_ms - std::mem::replace(&mut self.last_tick_ms, now_ms))
    }

    /// True once in a turn that had a tick.
    pub(super) fn take_ticked(&mut self) -> bool {
        std::mem::take(&mut self.ticked)
    }

    /// Decides whether large entries are put off: one is first in line, and large ones were copied
    /// in this turn already, so the fronts have their turn in between. Not twice in a row.
    pub(super) fn puts_off_large(&mut self, is_large_next: bool) -> bool {
        let took_large = std::mem::take(&mut self.took_large);
        self.put_off_large = took_large && !self.put_off_large && is_large_next;
        self.put_off_large
    }

    /// Keeps a write for the end of the turn.
    pub(super) fn keep_write(&mut self, write: Option<DurableWrite>) {
        if write.is_some() {
            assert!(self.write.is_none(), "two durable writes at once");
            self.write = write;
        }
    }

    /// True if a write waits for the end of the turn.
    pub(super) fn has_write(&self) -> bool {
        self.write.is_some()
    }

    pub(super) fn take_write(&mut self) -> Option<DurableWrite> {
        self.write.take()
    }
}

impl Replica {
    /// Begins a turn; [`Replica::next_stage`] says what is to be done in it.
    pub fn begin_turn(&mut self, now_ms: u64) {
        debug_assert!(self.turn.next.is_none(), "the last turn is not over");
        if !self.is_stopped() {
            self.turn.begin(now_ms);
        }
        self.turn.applies = false;
        self.turn.next = Some(Stage::Receive);
    }

    /// The next stage of the turn, to be given to [`Replica::run`], also when it is the shard's
    /// own; `None` at the end of the turn.
    pub fn next_stage(&self) -> Option<Stage> {
        self.turn.next
    }

    /// Runs a stage. A returned write must be carried out and reported to [`Replica::written`].
    pub fn run(&mut self, stage: Stage) -> Option<DurableWrite> {
        assert_eq!(self.turn.next, Some(stage), "stages have an order");
        self.turn.applies |= stage == Stage::Apply;
        // What fails while it applies still answers for what it did before.
        let idle = self.is_stopped() && !self.turn.applies;
        let write = if idle { None } else { self.run_stage(stage) };
        if stage == Stage::Log {
            self.turn.wrote = write.is_some();
        }
        self.turn.next = after(stage, self.outlook());
        write
    }

    fn run_stage(&mut self, stage: Stage) -> Option<DurableWrite> {
        match stage {
            Stage::SendBeforeLog | Stage::SendBeforeApply | Stage::Submit => {}
            Stage::Receive => self.receive(),
            Stage::Log => return self.log_stage(),
            Stage::Apply => self.apply_stage(),
            Stage::Answer => self.answer_stage(),
            Stage::Save => self.save_stage(),
            Stage::Finish => return self.finish_stage(),
        }
        None
    }

    fn outlook(&self) -> Outlook {
        let Turn { took_large, put_off_large, wrote, .. } = self.turn;
        Outlook {
            stopped: self.is_stopped(),
            logs_large: took_large,
            applies_large: self.is_large_next() && (put_off_large || !took_large),
            overlaps: wrote && self.has_backlog(),
        }
    }

    /// What was done in the last turn.
    pub fn work(&self) -> Work {
        self.turn.work
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Outlook =
        Outlook { stopped: false, logs_large: false, applies_large: false, overlaps: false };

    fn stages(outlook: Outlook) -> Vec<Stage> {
        std::iter::successors(Some(Stage::Receive), |stage| after(*stage, outlook)).collect()
    }

    #[test]
    fn the_shard_sends_before_what_takes_long_and_only_then() {
        use Stage::{Answer, Apply, Finish, Log, Receive, Save, SendBeforeApply, SendBeforeLog};
        assert_eq!(stages(QUIET), [Receive, Log, Apply, Answer, Save, Finish]);
        let overlaps = Outlook { overlaps: true, ..QUIET };
        assert_eq!(stages(overlaps), [Receive, Log, Stage::Submit, Apply, Answer, Save, Finish]);
        let large = Outlook { logs_large: true, applies_large: true, ..QUIET };
        let all = [
            Receive,
            SendBeforeLog,
            Log,
            SendBeforeApply,
            Stage::Submit,
            Apply,
            Answer,
            Save,
            Finish,
        ];
        assert_eq!(stages(large), all);
    }

    #[test]
    fn a_stopped_replica_still_lets_messages_leave() {
        let stopped = Outlook { stopped: true, logs_large: true, applies_large: true, ..QUIET };
        assert_eq!(stages(stopped), [Stage::Receive, Stage::Log, Stage::Finish]);
    }

    #[test]
    fn ticks_that_a_pause_has_cost_are_not_made_up_for() {
        let mut turn = Turn::default();
        turn.begin(1000);
        assert_eq!(turn.tick(100), Some(1000), "the first turn ticks");
        turn.begin(1050);
        assert_eq!(turn.tick(100), None);
        turn.begin(9000);
        assert_eq!(turn.tick(100), Some(8000));
        turn.begin(9001);
        assert_eq!(turn.tick(100), Some(1), "the one that is due by the old steps");
        turn.begin(9050);
        assert_eq!(turn.tick(100), Some(49), "it is back in its steps");
        turn.begin(9100);
        assert_eq!(turn.tick(100), None);
    }

    #[test]
    fn a_large_entry_is_put_off_once() {
        let mut turn = Turn::default();
        turn.note_large();
        assert!(turn.puts_off_large(true));
        turn.note_large();
        assert!(!turn.puts_off_large(true), "not twice in a row");
        turn.note_large();
        assert!(!turn.puts_off_large(false), "a small one is not put off");
    }
}
