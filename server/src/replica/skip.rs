//! The operator's way out when an entry can be applied by no member: skipping it on all of them.
//!
//! The entry is named so that no other one can be meant: by index, term and the checksum of its
//! data. A member that has another entry there stops, one that has applied it already does not
//! start. Called by apply, after checkpoints and at start; nothing else may leave out an entry.

use std::fmt;
use std::str::FromStr;

use etcore_engine::types::{LogIndex, Term};
use etcore_raftlog::types::LogEntry;

use super::Replica;
use super::apply::Halt;
use crate::entry::{self, Unapplicable};

/// `--unsafe-skip-entry`: INDEX:TERM:CHECKSUM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SkipEntry {
    /// Its place in the log.
    pub index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// [`entry::checksum`] of its data.
    pub checksum: u32,
}

impl SkipEntry {
    pub(super) fn of(entry: &LogEntry) -> Self {
        let (index, term) = (entry.index.0, entry.term.0);
        Self { index, term, checksum: entry::checksum(&entry.data) }
    }

    /// What the operator is told about an entry that no member can apply.
    pub(super) fn way_out(self, reason: &Unapplicable) -> String {
        format!(
            "entry {} of term {} cannot be applied: {reason}; every member stops at it. To go on \
             without what it asked for, start all members of the cluster with \
             --unsafe-skip-entry={self}; the README tells what that means",
            self.index, self.term
        )
    }

    /// Whether a member may start with this flag: `None`, or what is in the way.
    pub fn obstacle(
        self,
        applied: LogIndex,
        committed: LogIndex,
        term: impl FnOnce(LogIndex) -> Option<Term>,
    ) -> Option<String> {
        let place = LogIndex(self.index);
        if place <= applied {
            return Some(format!(
                "--unsafe-skip-entry={self}: this member has applied or skipped everything up to \
                 entry {applied} already; start it without the flag"
            ));
        }
        let known = term(place).filter(|_| place <= committed)?;
        (known.0 != self.term).then(|| {
            format!(
                "--unsafe-skip-entry={self}: entry {} of this member's log is of term {known}; \
                 nothing was changed",
                self.index
            )
        })
    }
}

impl fmt::Display for SkipEntry {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}:{:08x}", self.index, self.term, self.checksum)
    }
}

impl FromStr for SkipEntry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "an entry is named INDEX:TERM:CHECKSUM, as in the error it caused".to_owned();
        let parts: Vec<&str> = text.split(':').collect();
        let [index, term, checksum] = parts[..] else { return Err(wrong()) };
        let number = |text: &str| text.parse().ok().filter(|number| *number > 0);
        let checksum = u32::from_str_radix(checksum, 16).ok().filter(|_| checksum.len() == 8);
        match (number(index), number(term), checksum) {
            (Some(index), Some(term), Some(checksum)) => Ok(Self { index, term, checksum }),
            _ => Err(wrong()),
        }
    }
}

impl Replica {
    /// True if the operator wants this entry skipped, which is then done.
    pub(super) fn skips(&mut self, entry: &LogEntry) -> Result<bool, Halt> {
        let Some(wanted) = self.shared.config.unsafe_skip_entry else { return Ok(false) };
        if wanted.index != entry.index.0 {
            return Ok(false);
        }
        let found = SkipEntry::of(entry);
        if found != wanted {
            return Err(Halt::Broken(format!(
                "--unsafe-skip-entry={wanted} names another entry than this member has there, \
                 which is {found}; nothing was changed"
            )));
        }
        tracing::error!(
            index = found.index,
            term = found.term,
            checksum = %format_args!("{:08x}", found.checksum),
            bytes = entry.data.len(),
            "an entry is skipped, as --unsafe-skip-entry says: what it asked for is not done; all \
             members of the cluster must skip it"
        );
        self.store.skip(entry.index, entry.term);
        // A start without the flag would find it in the log again.
        self.checkpoints.note_skipped(entry.index);
        self.store.checkpoint_now();
        Ok(true)
    }

    /// After a checkpoint: says once that no start will find the skipped entry again.
    pub(super) fn follow_up_skipped(&mut self) {
        let Some(index) = self.checkpoints.skipped() else { return };
        if self.store.durable_applied() < index {
            return self.store.checkpoint_now();
        }
        self.checkpoints.forget_skipped();
        tracing::warn!(
            index = index.0,
            "the skipped entry is behind this member for good: start it without \
             --unsafe-skip-entry from now on"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_named_as_its_error_names_it() {
        let entry = SkipEntry { index: 17, term: 3, checksum: 0xab };
        assert_eq!(entry.to_string(), "17:3:000000ab");
        assert_eq!("17:3:000000ab".parse(), Ok(entry));
        assert!(
            entry.way_out(&Unapplicable::Unknown).contains("--unsafe-skip-entry=17:3:000000ab;")
        );
        for wrong in
            ["", "17", "17:3", "17:3:ab", "17:3:000000ag", "0:3:000000ab", "a:b:c", "1:2:3:4"]
        {
            assert!(wrong.parse::<SkipEntry>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_member_that_is_past_the_entry_or_has_another_one_does_not_start() {
        let wanted = SkipEntry { index: 17, term: 3, checksum: 0xab };
        let obstacle = |applied, committed, term: Option<u64>| {
            wanted.obstacle(LogIndex(applied), LogIndex(committed), |index| {
                assert_eq!(index, LogIndex(17));
                term.map(Term)
            })
        };
        assert_eq!(obstacle(16, 20, Some(3)), None);
        assert_eq!(obstacle(3, 5, None), None, "it has not got it yet");
        assert_eq!(obstacle(3, 5, Some(2)), None, "what is not committed may go away");
        assert!(obstacle(17, 20, Some(3)).unwrap().contains("without the flag"));
        assert!(obstacle(16, 20, Some(2)).unwrap().contains("is of term 2"));
    }
}
