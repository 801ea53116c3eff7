//! The numbers everything else is counted in.
//!
//! Used by every crate above. It must never gain behaviour beyond conversion and ordering.

use std::fmt;

/// The number of a change of the key space: the main part of etcd's revisions. A fresh store is at
/// revision 1; the first change makes revision 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Revision(pub i64);

/// One change within a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct RevKey {
    /// The revision.
    pub main: Revision,
    /// 0 for its first change, 1 for the next, and so on.
    pub sub: u32,
}

/// Position of an entry in the raft log; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LogIndex(pub u64);

/// A raft term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Term(pub u64);

/// Which member of which cluster something belongs to; 0 and 0 if nobody has said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// The cluster.
    pub cluster_id: u64,
    /// The member.
    pub member_id: u64,
}

/// A lease; 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LeaseId(pub i64);

/// Bytes of a [`RevKey`] as a key of the page file.
pub const REV_KEY_BYTES: usize = 17;

/// The mark that etcd appends to the row key of a deletion.
pub const TOMBSTONE_MARK: u8 = b't';

impl RevKey {
    /// The first change of `main`.
    pub const fn first(main: Revision) -> Self {
        Self { main, sub: 0 }
    }

    /// The last possible change of `main`.
    pub const fn last(main: Revision) -> Self {
        Self { main, sub: u32::MAX }
    }

    /// etcd's row key: main part big-endian, `_`, sub part big-endian. Sorts like the number.
    pub fn to_row_key(self) -> [u8; REV_KEY_BYTES] {
        let mut bytes = [b'_'; REV_KEY_BYTES];
        bytes[..8].copy_from_slice(&self.main.0.to_be_bytes());
        bytes[9..].copy_from_slice(&u64::from(self.sub).to_be_bytes());
        bytes
    }

    /// Reads a row key; the flag tells a deletion. `None` if it is none of ours.
    pub fn from_row_key(bytes: &[u8]) -> Option<(Self, bool)> {
        let tombstone = match bytes.len() {
            REV_KEY_BYTES => false,
            len if len == REV_KEY_BYTES + 1 && bytes[REV_KEY_BYTES] == TOMBSTONE_MARK => true,
            _ => return None,
        };
        let main = i64::from_be_bytes(bytes[..8].try_into().ok()?);
        let sub = u64::from_be_bytes(bytes[9..REV_KEY_BYTES].try_into().ok()?);
        if bytes[8] != b'_' || main < 0 {
            return None;
        }
        Some((Self { main: Revision(main), sub: u32::try_from(sub).ok()? }, tombstone))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for RevKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.main, self.sub)
    }
}

impl fmt::Display for LogIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_keys_sort_like_revisions_and_come_back() {
        let low = RevKey { main: Revision(255), sub: 70_000 };
        let high = RevKey::first(Revision(256));
        assert!(low < high && low.to_row_key() < high.to_row_key());
        assert_eq!(RevKey::from_row_key(&low.to_row_key()), Some((low, false)));
        let mut marked = low.to_row_key().to_vec();
        marked.push(TOMBSTONE_MARK);
        assert_eq!(RevKey::from_row_key(&marked), Some((low, true)));
        marked[8] = b'-';
        assert_eq!(RevKey::from_row_key(&marked), None);
        assert_eq!(RevKey::from_row_key(b"short"), None);
    }
}
