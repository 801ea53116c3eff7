//! What a thread was busy with in a step: kept to be named should the step take long.
//!
//! A replica and a front note what may be long as they do it, which costs nothing; the shard asks
//! for it only after a long step. It must never decide anything.

use std::fmt;

/// Something that may take long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Job {
    /// Messages of peers were given to raft.
    Messages,
    /// Proposals of clients were given to raft.
    Proposals,
    /// Committed entries were applied.
    Entries,
    /// A slice of a large entry was.
    Slice,
    /// Leases were looked at.
    Leases,
    /// A list of leases, or of a lease's keys, went on.
    LeaseList,
    /// A checkpoint began.
    CheckpointBegins,
    /// A checkpoint ended.
    CheckpointEnds,
    /// The index was rid of compacted revisions.
    IndexCompaction,
    /// The view was published.
    Publication,
    /// Tasks of a front went on.
    Requests,
    /// Long answers were measured or sent.
    LongAnswers,
    /// Watches were served.
    Watches,
    /// A page for monitoring was made.
    Page,
    /// It was time for what is done at intervals.
    Tick,
}

const ALL: [(Job, &str); 15] = [
    (Job::Messages, "messages"),
    (Job::Proposals, "proposals"),
    (Job::Entries, "entries"),
    (Job::Slice, "slice of an entry"),
    (Job::Leases, "leases"),
    (Job::LeaseList, "list of leases"),
    (Job::CheckpointBegins, "checkpoint begins"),
    (Job::CheckpointEnds, "checkpoint ends"),
    (Job::IndexCompaction, "index compaction"),
    (Job::Publication, "publication"),
    (Job::Requests, "requests"),
    (Job::LongAnswers, "long answers"),
    (Job::Watches, "watches"),
    (Job::Page, "page"),
    (Job::Tick, "tick"),
];

/// See the module text: a set of [`Job`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work(u32);

impl Work {
    /// That was done.
    pub fn note(&mut self, job: Job) {
        self.0 |= 1 << job as u32;
    }

    /// All of the other's too.
    pub fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = ALL.into_iter().filter(|(job, _)| self.0 & 1 << *job as u32 != 0);
        for (at, (_, name)) in done.enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_named_once_and_in_order() {
        let (mut work, mut other) = (Work::default(), Work::default());
        assert_eq!(work.to_string(), "");
        other.note(Job::Tick);
        work.note(Job::Slice);
        work.note(Job::Slice);
        work.add(other);
        assert_eq!(work.to_string(), "slice of an entry, tick");
        assert!(ALL.into_iter().enumerate().all(|(at, (job, _))| job as usize == at));
    }
}
