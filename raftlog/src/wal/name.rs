//! Names of segment files.
//!
//! Called by the writer, recovery and the inspector. A name carries the segment's sequence number
//! and the index of the first entry it may hold; nothing else may be read out of it.

/// Suffix of a spare segment, which is no part of the log until it is renamed; etcd skips it too.
pub const SPARE_SUFFIX: &str = ".tmp";

/// The name of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// Counts up by one from segment to segment.
    pub sequence: u64,
    /// Entries below this index are in earlier segments.
    pub first_index: u64,
}

impl SegmentName {
    /// Parses `%016x-%016x.wal`.
    pub fn parse(name: &str) -> Option<Self> {
        let (sequence, first_index) = name.strip_suffix(".wal")?.split_once('-')?;
        Some(Self { sequence: hex(sequence)?, first_index: hex(first_index)? })
    }
}

impl std::fmt::Display for SegmentName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}-{:016x}.wal", self.sequence, self.first_index)
    }
}

fn hex(digits: &str) -> Option<u64> {
    let plain = digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    if digits.len() != 16 || !plain {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_back() {
        let name = SegmentName { sequence: 0x1f, first_index: 99 };
        assert_eq!(name.to_string(), "000000000000001f-0000000000000063.wal");
        assert_eq!(SegmentName::parse(&name.to_string()), Some(name));
    }

    #[test]
    fn anything_else_is_no_segment() {
        for name in ["0.tmp", "a-b.wal", "000000000000001F-0000000000000063.wal", "", "x.wal"] {
            assert_eq!(SegmentName::parse(name), None, "{name}");
        }
    }
}
