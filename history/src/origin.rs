//! Where pairs come from: each was put by something that was not refused, once.
//!
//! Used by [`super::linear`] before it searches: what fails here fails whatever is chosen. Must
//! never look at the state of the store: that takes an order of writes.

use std::collections::BTreeMap;

use super::Violation;
use super::data::Data;
use super::evidence::Evidence;
use super::linear::{EXPLAINED, ONCE, REFUSED};
use super::realtime::tell;
use super::types::{History, Operation, Outcome};

/// What asked for a pair.
#[derive(Default)]
struct Source<'a> {
    /// With an unknown outcome, each for one revision at most.
    unknown: usize,
    /// The revisions that such a pair was shown with and nobody claims.
    shown: usize,
    other: Option<&'a Operation>,
}

/// Judges all pairs that were shown of revisions for which `is_claimed` is false.
pub(crate) fn judge(
    history: &History,
    evidence: &Evidence,
    is_claimed: impl Fn(i64) -> bool,
) -> Result<(), Violation> {
    let mut sources: BTreeMap<(&Data, &Data), Source<'_>> = BTreeMap::new();
    for operation in &history.operations {
        operation.request.each_put(&mut |put| {
            let source = sources.entry((&put.key, &put.value)).or_default();
            if operation.outcome == Outcome::Unknown {
                source.unknown += 1;
            } else {
                source.other = Some(operation);
            }
        });
    }
    for (revision, seen) in evidence.all_written() {
        if revision <= history.start.revision || seen.keys_only || is_claimed(revision) {
            continue;
        }
        let kv = &seen.kv;
        let Some(source) = sources.get_mut(&(&kv.key, &kv.value)) else {
            return Err(Violation::new(EXPLAINED, format!("nobody wrote {kv:?}")));
        };
        source.shown += 1;
        if source.shown <= source.unknown {
            continue;
        }
        let property = match source.other {
            Some(other) if other.is_refused() => REFUSED,
            _ => ONCE,
        };
        let other = source.other.map_or_else(String::new, tell);
        return Err(Violation::new(property, format!("{kv:?} was shown; {other}")));
    }
    Ok(())
}
