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

/// Intervals to be looked up in. What their begins have in common is kept apart, and the next
/// bytes of each stand together in one number: thousands of them are searched in a few lines of
/// the processor's cache.
///
/// Invariants: the intervals are in order, and between any two there is a gap; `heads` are those of
/// their begins behind `common`.
#[derive(Debug, Clone, Default)]
struct Ranges {
    common: Vec<u8>,
    heads: Vec<u128>,
    list: Vec<Interval>,
}

/// The first bytes, so that numbers have the order of texts, but for what is behind them.
fn head(text: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    let len = text.len().min(bytes.len());
    bytes[..len].copy_from_slice(&text[..len]);
    u128::from_be_bytes(bytes)
}

impl Ranges {
    fn new(list: Vec<Interval>) -> Self {
        let list = merged(list);
        let (Some(first), Some(last)) = (list.first(), list.last()) else { return Self::default() };
        let same = first.begin.iter().zip(&last.begin).take_while(|(a, b)| a == b).count();
        let common = first.begin[..same].to_vec();
        let heads = list.iter().map(|interval| head(&interval.begin[same..])).collect();
        Self { common, heads, list }
    }

    /// How many begin at the key or before it.
    fn begun_by(&self, key: &[u8]) -> usize {
        let all_or_none = |all: bool| if all { self.list.len() } else { 0 };
        let Some((front, rest)) = key.split_at_checked(self.common.len()) else {
            return all_or_none(key > self.common.as_slice());
        };
        if front != self.common {
            return all_or_none(front > self.common.as_slice());
        }
        let wanted = head(rest);
        let count = self.heads.partition_point(|head| *head <= wanted);
        if count.checked_sub(1).is_none_or(|last| self.heads[last] != wanted) {
            return count;
        }
        // As a rule it is one that is alike in so many bytes.
        let first = self.heads[..count].partition_point(|head| *head < wanted);
        let alike = &self.list[first..count];
        first + alike.partition_point(|interval| interval.begin.as_slice() <= key)
    }

    fn cover(&self, key: &[u8], end: &[u8]) -> bool {
        let Some(at) = self.begun_by(key).checked_sub(1) else { return false };
        let reached = &self.list[at].end;
        if key.is_empty() || compare(key, reached).is_ge() {
            return false;
        }
        match end {
            [] => true,
            end if is_open(end) => reached.is_empty(),
            end => compare(reached, end).is_ge(),
        }
    }
}

/// See the module text.
#[derive(Debug, Clone, Default)]
pub(super) struct Grants {
    read: Ranges,
    write: Ranges,
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
        Self { read: Ranges::new(read), write: Ranges::new(write) }
    }

    /// True if all of the range is allowed; of a single key, if it is. An end before the key asks
    /// for the key alone, as in etcd.
    pub(super) fn cover(&self, access: Access, key: &[u8], end: &[u8]) -> bool {
        match access {
            Access::Read => self.read.cover(key, end),
            Access::Write => self.write.cover(key, end),
        }
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
        assert_eq!(granted.read.list.len(), 2);
        let reads = |key: &[u8], end: &[u8]| granted.cover(Access::Read, key, end);
        assert!(
            reads(b"a", b"f\0") && !reads(b"a", b"f\0\0") && reads(b"g", b"") && !reads(b"h", b"")
        );
        assert!(reads(b"b", b"a"), "nothing lies in it, and the key is allowed");
        assert!(!reads(b"z", b"a"), "nothing lies in it, and the key is not allowed");
    }

    #[test]
    fn the_search_finds_what_looking_at_each_would_find() {
        let mut draw = etcore_proto::splitmix::SplitMix64::new(1);
        for round in 0..300 {
            // Few letters, so that texts have much in common, beyond sixteen bytes as well.
            let front = ["", "a", "aaaaaaaaaaaaaaaaaaaa"][round % 3];
            let mut text = || {
                let len = draw.draw() % 6;
                let letters = (0..len).map(|_| ["a", "b", "\0"][(draw.draw() % 3) as usize]);
                format!("{front}{}", letters.collect::<String>())
            };
            let pairs: Vec<(String, String)> = (0..8).map(|_| (text(), text())).collect();
            let ranges = Ranges::new(
                pairs
                    .iter()
                    .filter_map(|(a, b)| Interval::new(a.as_bytes(), b.as_bytes()))
                    .collect(),
            );
            for _ in 0..50 {
                let (key, end) = (text(), text());
                let (key, end) = (key.as_bytes(), end.as_bytes());
                let found = ranges.list.iter().filter(|known| known.begin.as_slice() <= key);
                assert_eq!(ranges.begun_by(key), found.count(), "{key:?} in {ranges:?}");
                let holds = |known: &&Interval| {
                    known.begin.as_slice() <= key && compare(key, &known.end).is_lt()
                };
                let wanted = if is_open(end) { &[] } else { end };
                let single = end.is_empty();
                let covers = ranges
                    .list
                    .iter()
                    .find(holds)
                    .is_some_and(|known| single || compare(&known.end, wanted).is_ge());
                assert_eq!(ranges.cover(key, end), covers && !key.is_empty(), "{key:?} {end:?}");
            }
        }
    }

    #[test]
    fn permissions_that_hold_no_key_allow_nothing() {
        let granted = grants(&[(2, "c", "b"), (2, "c", "c"), (2, "", "\0"), (2, "", "")]);
        assert!(granted.read.list.is_empty() && granted.write.list.is_empty());
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
