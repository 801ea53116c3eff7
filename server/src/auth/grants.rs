//! What the roles of a user allow, merged: intervals of keys to read and to write.
//!
//! Called by `auth`. In these intervals, as in etcd's, an empty end is behind every key.

use std::cmp::Ordering;

use etcore_proto::pb::authpb;

use super::Access;

/// A permission or what is asked for: from a key on, up to an end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Interval {
    begin: Vec<u8>,
    end: Vec<u8>,
}

/// An end of one zero byte means "to the last key".
fn is_open(end: &[u8]) -> bool {
    end == [0]
}

/// An empty bound is the largest.
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    match (a.is_empty(), b.is_empty()) {
        (true, true) => Ordering::Equal,
        (true, false) => Ordering::Greater,
        (false, true) => Ordering::Less,
        (false, false) => a.cmp(b),
    }
}

impl Interval {
    fn new(key: &[u8], end: &[u8]) -> Self {
        let end = match end {
            [] => [key, &[0]].concat(),
            end if is_open(end) => Vec::new(),
            end => end.to_vec(),
        };
        Self { begin: key.to_vec(), end }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let is_left =
            compare(&self.begin, &other.begin).is_lt() && compare(&self.end, &other.begin).is_le();
        let is_right = compare(&self.begin, &other.end).is_ge();
        !is_left && !is_right
    }
}

/// See the module text. Invariant: both are in the order of their begins.
#[derive(Debug, Clone, Default)]
pub(super) struct Grants {
    read: Vec<Interval>,
    write: Vec<Interval>,
}

impl Grants {
    pub(super) fn new<'a>(roles: impl Iterator<Item = &'a authpb::Role>) -> Self {
        use authpb::permission::Type;
        let mut grants = Self::default();
        for permission in roles.flat_map(|role| &role.key_permission) {
            let interval = Interval::new(&permission.key, &permission.range_end);
            match Type::try_from(permission.perm_type) {
                Ok(Type::Read) => grants.read.push(interval),
                Ok(Type::Write) => grants.write.push(interval),
                Ok(Type::Readwrite) => {
                    grants.read.push(interval.clone());
                    grants.write.push(interval);
                }
                Err(_) => {}
            }
        }
        for list in [&mut grants.read, &mut grants.write] {
            list.sort_by(|a, b| compare(&a.begin, &b.begin));
        }
        grants
    }

    /// True if all of the range is allowed; of a single key, if it is.
    pub(super) fn cover(&self, access: Access, key: &[u8], end: &[u8]) -> bool {
        let list = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        };
        let wanted = Interval::new(key, end);
        let mut overlapping = list.iter().filter(|interval| wanted.overlaps(interval));
        let Some(first) = overlapping.next() else { return false };
        if end.is_empty() {
            return true;
        }
        let mut reached = &first.end;
        for interval in overlapping {
            if compare(reached, &interval.begin).is_lt() {
                return false;
            }
            if compare(&interval.end, reached).is_gt() {
                reached = &interval.end;
            }
        }
        compare(reached, &wanted.end).is_ge() && compare(&first.begin, &wanted.begin).is_le()
    }
}

/// Whether a permission may be given for this range.
pub(super) fn is_valid(key: &[u8], end: &[u8]) -> bool {
    !key.is_empty() && (end.is_empty() || compare(key, end).is_lt() || is_open(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(list: &[(i32, &'static str, &'static str)]) -> Grants {
        let key_permission = list
            .iter()
            .map(|(perm_type, key, end)| authpb::Permission {
                perm_type: *perm_type,
                key: (*key).into(),
                range_end: (*end).into(),
            })
            .collect();
        Grants::new([&authpb::Role { name: "r".into(), key_permission }].into_iter())
    }

    #[test]
    fn ranges_that_touch_are_one_and_a_gap_is_none() {
        let granted = grants(&[(2, "a", "c"), (0, "c", "e"), (1, "x", "")]);
        let reads =
            |key: &str, end: &str| granted.cover(Access::Read, key.as_bytes(), end.as_bytes());
        assert!(reads("a", "") && reads("d", "") && reads("a", "e") && reads("b", "d"));
        assert!(!reads("e", "") && !reads("a", "f") && !reads("A", "b") && !reads("x", ""));
        assert!(!reads("a", "\0"), "to the last key");
        let writes =
            |key: &str, end: &str| granted.cover(Access::Write, key.as_bytes(), end.as_bytes());
        assert!(writes("x", "") && writes("b", "") && !writes("c", "") && writes("x", "x\0"));
    }

    #[test]
    fn an_open_end_reaches_behind_every_key() {
        let granted = grants(&[(2, "m", "\0"), (0, "\0", "n")]);
        let reads = |key: &[u8], end: &[u8]| granted.cover(Access::Read, key, end);
        assert!(reads(b"\0", b"\0") && reads(b"\xff\xff", b"") && reads(b"z", b"\0"));
        assert!(!granted.cover(Access::Write, b"a", b"\0"));
        assert!(granted.cover(Access::Write, b"m", b"\0"));
    }

    #[test]
    fn a_permission_needs_a_key_and_an_end_behind_it() {
        assert!(is_valid(b"a", b"") && is_valid(b"a", b"b") && is_valid(b"b", b"\0"));
        assert!(!is_valid(b"", b"b") && !is_valid(b"b", b"a") && !is_valid(b"b", b"b"));
    }
}
