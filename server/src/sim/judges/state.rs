//! The state after entry i is the same wherever and whenever entry i is applied.
//!
//! Two forms. What a member publishes beside an applied index (revision, compact revision,
//! members, alarms, cluster version) is the same for every member, and again after a restart. And
//! the changes of each revision hash to the same number wherever they are applied. Must never
//! compare what a compaction may have removed.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use etcore_engine::page::Fetch;
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::types::{LogIndex, Revision};

use crate::channel::MemberView;
use crate::sim::Violation;

/// The property of published states.
pub const EQUAL: &str = "the state at an applied index is the same on all members, always";
/// The property of changes.
pub const CHANGES: &str = "a revision holds the same changes on all members, always";
/// A running member goes forward.
pub const FORWARD: &str = "what a running member shows never goes back";

/// What was seen so far.
#[derive(Debug, Default)]
pub struct Known {
    /// Applied index to a hash of what stood beside it, with who showed it first.
    states: BTreeMap<LogIndex, (u64, String)>,
    /// Revision to a hash of its changes, with who showed it first.
    changes: BTreeMap<i64, (u64, usize)>,
    /// What each member has shown in this life.
    shown: Vec<Shown>,
}

#[derive(Debug, Clone, Copy)]
struct Shown {
    applied: LogIndex,
    revision: Revision,
    compacted: Revision,
}

impl Shown {
    /// Before anything was shown.
    const NOTHING: Self =
        Self { applied: LogIndex(0), revision: Revision(0), compacted: Revision(-1) };
}

impl Known {
    pub(super) fn new(members: usize) -> Self {
        Self { shown: vec![Shown::NOTHING; members], ..Self::default() }
    }

    pub(super) fn started(&mut self, member: usize) {
        self.shown[member] = Shown::NOTHING;
    }
}

/// Looks at what a member publishes.
///
/// # Errors
/// The property that does not hold.
pub(in crate::sim) fn look(
    judges: &mut super::Judges,
    member: usize,
    view: &MemberView,
    disk: &MemDisk,
) -> Result<(), Violation> {
    let known = &mut judges.state;
    let shown = known.shown[member];
    let store = &view.store;
    if store.applied == shown.applied && store.revision == shown.revision {
        return Ok(());
    }
    let back = store.applied < shown.applied
        || store.revision < shown.revision
        || store.compact_revision < shown.compacted;
    if back {
        let now = (store.applied, store.revision, store.compact_revision);
        let detail = format!("member {member} shows {now:?} after {shown:?}");
        return Err(Violation { property: FORWARD, detail });
    }
    let state = describe(view);
    let hash = hash_of(&state);
    match known.states.get(&store.applied) {
        Some((first, told)) if *first != hash => {
            let detail =
                format!("at {}: member {member} has {state}, seen before: {told}", store.applied.0);
            return Err(Violation { property: EQUAL, detail });
        }
        Some(_) => {}
        None => {
            known.states.insert(store.applied, (hash, format!("member {member}: {state}")));
        }
    }
    known.shown[member] = Shown {
        applied: store.applied,
        revision: store.revision,
        compacted: store.compact_revision,
    };
    changes(known, member, view, disk, shown.revision)
}

fn describe(view: &MemberView) -> String {
    let store = &view.store;
    format!(
        "term {}, revision {}, compacted {}, {} keys, members {:?} without {:?}, version {:?}, alarms {:?}",
        store.term.0,
        store.revision.0,
        store.compact_revision.0,
        store.key_count(),
        view.members,
        view.removed,
        view.cluster_version,
        view.alarms,
    )
}

/// Hashes the changes above `from`.
fn changes(
    known: &mut Known,
    member: usize,
    view: &MemberView,
    disk: &MemDisk,
    from: Revision,
) -> Result<(), Violation> {
    let store = &view.store;
    let mut pages = DiskPages::new(disk);
    pages.follow(view.page_file.file.as_ref());
    let from = from.max(store.compact_revision);
    let Ok(mut events) = store.events(from, store.revision, None) else { return Ok(()) };
    let mut current: Option<(i64, Fnv)> = None;
    loop {
        let event = match events.next(&mut pages) {
            Ok(Fetch::Ready(Some(event))) => event,
            Ok(Fetch::Ready(None)) => break,
            Ok(Fetch::Pending(_)) => continue,
            Err(error) => {
                let detail = format!("member {member}: {error}");
                return Err(Violation { property: CHANGES, detail });
            }
        };
        let revision = event.at.main.0;
        if current.as_ref().is_none_or(|(of, _)| *of != revision) {
            if let Some((of, hash)) = current.take() {
                compare(known, member, of, hash.finish())?;
            }
            current = Some((revision, Fnv::default()));
        }
        if let Some((_, hash)) = &mut current {
            (event.at.sub, event.tombstone, event.kv).hash(hash);
        }
    }
    match current {
        Some((of, hash)) => compare(known, member, of, hash.finish()),
        None => Ok(()),
    }
}

fn compare(known: &mut Known, member: usize, of: i64, hash: u64) -> Result<(), Violation> {
    let (first, by) = *known.changes.entry(of).or_insert((hash, member));
    if first == hash {
        return Ok(());
    }
    let detail = format!("revision {of} of member {member} differs from what member {by} showed");
    Err(Violation { property: CHANGES, detail })
}

fn hash_of(text: &str) -> u64 {
    let mut hash = Fnv::default();
    text.hash(&mut hash);
    hash.finish()
}

/// FNV-1a by words: the same on every machine.
pub(super) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let words = words.iter().map(|word| u64::from_le_bytes(*word));
        for word in words.chain(rest.iter().map(|byte| u64::from(*byte))) {
            self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
            self.0 ^= self.0 >> 32;
        }
    }
}
