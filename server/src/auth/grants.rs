//! What the roles of a user allow, merged: intervals of keys to read and to write.
//!
//! Called by `auth` for every request of a client. In these intervals, as in etcd's, an empty end
//! is behind every key.

use std::cmp::Ordering;

use etcore_proto::pb::authpb;

use super::Access;

/// Keys from one on, up to an end; never empty.
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
    /// `None` if nothing lies in it, as in permissions of before etcd checked them.
    fn new(key: &[u8], end: &[u8]) -> Option<Self> {
        let end = match end {
            [] => [key, &[0]].concat(),
            end if is_open(end) => Vec::new(),
            end => end.to_vec(),
        };
        let begin = key.to_vec();
        (!begin.is_empty() && compare(&begin, &end).is_lt()).then_some(Self { begin, end })
    }
}

/// Joins intervals that overlap or touch, and puts them in order.
fn merged(mut list: Vec<Interval>) -> Vec<Interval> {
    list.sort_unstable_by(|a, b| a.begin.cmp(&b.begin));
    let mut out: Vec<Interval> = Vec::new();
    for next in list {
        match out.last_mut() {
            Some(last) if compare(&last.end, &next.begin).is_ge() => {
                if compare(&next.end, &last.end).is_gt() {
                    last.end = next.end;
                }
            }
            _ => out.push(next),
        }
    }
    out.shrink_to_fit();
    out
}

/// See the module text. Invariant: both are in order, and between any two there is a gap.
#[derive(Debug, Clone, Default)]
pub(super) struct Grants {
    read: Vec<Interval>,
    write: Vec<Interval>,
}

impl Grants {
    pub(super) fn new<'a>(roles: impl Iterator<Item = &'a authpb::Role>) -> Self {
        use authpb::permission::Type;
        let (mut read, mut write) = (Vec::new(), Vec::new());
        for permission in roles.flat_map(|role| &role.key_permission) {
            let Some(interval) = Interval::new(&permission.key, &permission.range_end) else {
                continue;
            };
            match Type::try_from(permission.perm_type) {
                Ok(Type::Read) => read.push(interval),
                Ok(Type::Write) => write.push(interval),
                Ok(Type::Readwrite) => {
                    read.push(interval.clone());
                    write.push(interval);
                }
                Err(_) => {}
            }
        }
        Self { read: merged(read), write: merged(write) }
    }

    /// True if all of the range is allowed; of a single key, if it is. An end before the key asks
    /// for the key alone, as in etcd.
    pub(super) fn cover(&self, access: Access, key: &[u8], end: &[u8]) -> bool {
        let list = match access {
            Access::Read => &self.read,
            Access::Write => &self.write,
        };
        let at = list.partition_point(|interval| interval.begin.as_slice() <= key);
        let Some(interval) = at.checked_sub(1).map(|at| &list[at]) else { return false };
        if key.is_empty() || compare(key, &interval.end).is_ge() {
            return false;
        }
        let end = if is_open(end) {
            &[]
        } else if end.is_empty() {
            return true;
        } else {
            end
        };
        compare(&interval.end, end).is_ge()
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
    fn overlapping_ranges_of_many_roles_become_few() {
        let granted = grants(&[(2, "a", "c"), (2, "b", "f"), (2, "f", ""), (2, "g", "h")]);
        assert_eq!(granted.read.len(), 2);
        let reads = |key: &[u8], end: &[u8]| granted.cover(Access::Read, key, end);
        assert!(
            reads(b"a", b"f\0") && !reads(b"a", b"f\0\0") && reads(b"g", b"") && !reads(b"h", b"")
        );
        assert!(reads(b"b", b"a"), "nothing lies in it, and the key is allowed");
        assert!(!reads(b"z", b"a"), "nothing lies in it, and the key is not allowed");
    }

    #[test]
    fn permissions_that_hold_no_key_allow_nothing() {
        let granted = grants(&[(2, "c", "b"), (2, "c", "c"), (2, "", "\0"), (2, "", "")]);
        assert!(granted.read.is_empty() && granted.write.is_empty());
        assert!(
            !granted.cover(Access::Read, b"", b"\0") && !granted.cover(Access::Read, b"b", b"")
        );
    }

    #[test]
    fn a_permission_needs_a_key_and_an_end_behind_it() {
        assert!(is_valid(b"a", b"") && is_valid(b"a", b"b") && is_valid(b"b", b"\0"));
        assert!(!is_valid(b"", b"b") && !is_valid(b"b", b"a") && !is_valid(b"b", b"b"));
    }
}
