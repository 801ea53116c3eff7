//! Members hold the same: equal sums over equal revisions.
//!
//! Used by [`super::judge`]. Must never compare sums over different spans.

use std::collections::BTreeMap;

use super::Violation;
use super::types::{Hash, History};

/// The property.
pub const EQUAL: &str = "members hold the same data at the same revision";

/// Asks it.
///
/// # Errors
///
/// Two sums over the same revisions that differ.
pub fn judge(history: &History) -> Result<(), Violation> {
    let mut first: BTreeMap<(i64, i64), &Hash> = BTreeMap::new();
    for hash in &history.hashes {
        let other = first.entry((hash.compacted, hash.revision)).or_insert(hash);
        if other.hash != hash.hash {
            return Err(Violation::new(EQUAL, format!("{other:?}, {hash:?}")));
        }
    }
    Ok(())
}
