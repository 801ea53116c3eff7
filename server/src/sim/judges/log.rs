//! Committed logs agree: an entry that one member's log calls committed is the same in every log
//! that does, for ever.
//!
//! Looks into the files of the log, after each start and in the end. Must never judge what the log
//! holds beyond its own commit index: that may be replaced.

use std::collections::BTreeMap;

use etcore_engine::testing::mem_disk::MemDisk;
use etcore_proto::raftpb;
use etcore_raftlog::wal::{Finding, RecordKind, inspect};
use prost::Message;

use crate::sim::Violation;

/// The property.
pub const AGREE: &str = "what one log calls committed, every log that has it holds the same";

/// What was seen so far: index to term and data, with who had it first.
#[derive(Debug, Default)]
pub struct Known {
    entries: BTreeMap<u64, (u64, Vec<u8>, usize)>,
}

/// Reads a member's log.
///
/// # Errors
/// The property, and where it does not hold.
pub(in crate::sim) fn look(
    judges: &mut super::Judges,
    member: usize,
    disk: &MemDisk,
) -> Result<(), Violation> {
    let mut own: BTreeMap<u64, (u64, Vec<u8>)> = BTreeMap::new();
    let mut commit = 0;
    let read = inspect(&mut disk.clone(), "wal", |finding| {
        let Finding::Record { record, .. } = finding else { return true };
        match record.kind {
            RecordKind::Entry => {
                if let Ok(entry) = raftpb::Entry::decode(record.data) {
                    let index = entry.index.unwrap_or(0);
                    // It replaces what was written there and behind.
                    own.split_off(&index);
                    let data = entry.data.map(Vec::from).unwrap_or_default();
                    own.insert(index, (entry.term.unwrap_or(0), data));
                }
            }
            RecordKind::State => {
                let state = raftpb::HardState::decode(record.data).unwrap_or_default();
                commit = commit.max(state.commit.unwrap_or(0));
            }
            RecordKind::Snapshot => {
                // A snapshot from the leader takes the place of all that came before.
                let mark = raftpb::WalSnapshot::decode(record.data).unwrap_or_default();
                let (index, term) = (mark.index.unwrap_or(0), mark.term.unwrap_or(0));
                if own.get(&index).is_none_or(|(known, _)| *known != term) {
                    own.clear();
                }
            }
            _ => {}
        }
        true
    });
    if read.is_err() {
        // There is no log yet.
        return Ok(());
    }
    let known = &mut judges.log.entries;
    for (index, (term, data)) in own.range(..=commit) {
        match known.get(index) {
            None => {
                known.insert(*index, (*term, data.clone(), member));
            }
            Some((first_term, first, by)) if first_term != term || first != data => {
                let detail = format!(
                    "entry {index}: member {member} has term {term}, {} bytes; member {by} has \
                     term {first_term}, {} bytes",
                    data.len(),
                    first.len()
                );
                return Err(Violation { property: AGREE, detail });
            }
            Some(_) => {}
        }
    }
    Ok(())
}
