//! How long a shard's thread is at work between two waits: the time that everybody on it waits for.
//!
//! Used by the shard's loop. A step begins with the first completion, or with the turn, and ends
//! when the shard is about to wait again. Long ones go into two histograms: by the clock, and by
//! the processor time that the thread got, which tells a step that had much to do from one that was
//! held up by others on the machine. Very long ones are told of with what was done in them, at most
//! once in some seconds.

use std::time::Duration;

use crate::clock::{self, Clock};
use crate::limits;
use crate::metrics::Metrics;
use crate::work::Work;

/// What a shard does in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Requests and messages of peers, up to the log.
    Requests,
    /// Committed entries.
    Apply,
    /// Answers, and the fronts' own work.
    Answers,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Apply => "apply",
            Self::Answers => "answers",
        }
    }
}

/// See the module text.
pub(super) struct StepTimer {
    clock: Clock,
    began: Option<Duration>,
    /// When the last part ended.
    last: Duration,
    longest: (Duration, Part),
    /// The thread's processor time, and when it was asked for: not with every step, since that
    /// takes most of a microsecond.
    cpu: Duration,
    cpu_at: Duration,
    told: Option<Duration>,
}

impl StepTimer {
    pub(super) fn new(clock: Clock) -> Self {
        let longest = (Duration::ZERO, Part::Requests);
        let zero = Duration::ZERO;
        Self { clock, began: None, last: zero, longest, cpu: zero, cpu_at: zero, told: None }
    }

    /// Something is to be done; only the first call of a step counts.
    pub(super) fn begin(&mut self) {
        if self.began.is_none() {
            let now = self.clock.elapsed();
            (self.began, self.last) = (Some(now), now);
            self.longest = (Duration::ZERO, Part::Requests);
            if now >= self.cpu_at + limits::STEP_CPU_REST {
                (self.cpu, self.cpu_at) = (clock::thread_time(), now);
            }
        }
    }

    /// A part has ended.
    pub(super) fn ended(&mut self, part: Part) {
        let now = self.clock.elapsed();
        let took = now.saturating_sub(std::mem::replace(&mut self.last, now));
        if took > self.longest.0 {
            self.longest = (took, part);
        }
    }

    /// The shard is about to wait; `work` tells what it has done, and is asked only if that took
    /// long.
    pub(super) fn end(&mut self, metrics: &Metrics, work: impl FnOnce() -> Work) {
        let Some(began) = self.began.take() else { return };
        let took = self.last.saturating_sub(began);
        if took < limits::STEP_OBSERVED {
            return;
        }
        // No more than the step's: what the thread may have done between the two is taken off.
        let cpu = clock::thread_time().saturating_sub(self.cpu);
        let cpu = cpu.saturating_sub(began.saturating_sub(self.cpu_at)).min(took);
        self.cpu_at = Duration::ZERO;
        metrics.shard_steps.observe(took.as_secs_f64());
        metrics.shard_cpu.observe(cpu.as_secs_f64());
        let told_lately = self.told.is_some_and(|told| self.last < told + limits::STEP_WARN_REST);
        if took >= limits::STEP_WARN && !told_lately {
            self.told = Some(self.last);
            let (part_took, part) = self.longest;
            tracing::warn!(
                took = %format_args!("{}ms", took.as_millis()),
                processor = %format_args!("{}ms", cpu.as_millis()),
                part = part.name(),
                part_took = %format_args!("{}ms", part_took.as_millis()),
                work = %work(),
                "a step of a shard took long: everybody on its thread has waited"
            );
        } else if took >= limits::STEP_TOLD {
            let (_, part) = self.longest;
            tracing::debug!(
                took = ?took,
                processor = ?cpu,
                part = part.name(),
                work = %work(),
                "a long step of a shard"
            );
        }
    }
}
