//! `--auto-compaction-mode` and `--auto-compaction-retention`: how much history is kept when the
//! member compacts by itself.
//!
//! Parsed by the flags, carried out by the replica.

use std::time::Duration;

use etcore_proto::gotext::{duration_error, parse_duration};

/// The compactions that a member begins by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AutoCompaction {
    /// Nothing.
    #[default]
    Off,
    /// Revisions that are older than this.
    Periodic(Duration),
    /// All but so many of the newest revisions; at least one.
    Revision(i64),
}

impl AutoCompaction {
    /// Reads both settings: a bare number is hours or revisions, and anything else a duration.
    ///
    /// # Errors
    /// etcd's texts (`embed.Config.Validate`, `parseCompactionRetention`).
    pub(super) fn parse(mode: &str, retention: &str) -> Result<Self, String> {
        const HOUR_NS: i64 = 3_600_000_000_000;
        let is_periodic = match mode {
            "periodic" => true,
            "revision" => false,
            "" => return Err("undefined auto-compaction-mode".to_owned()),
            other => return Err(format!("unknown auto-compaction-mode {other:?}")),
        };
        let retention = if retention.is_empty() { "0" } else { retention };
        let wrong = |why: &str| Err(format!("error parsing CompactionRetention: {why}"));
        // Hours, or revisions; nanoseconds, or what etcd makes of them: as many revisions.
        let kept = match retention.parse::<i64>() {
            Ok(count @ 0..) if is_periodic => count.checked_mul(HOUR_NS),
            Ok(count @ 0..) => Some(count),
            _ => match parse_duration(retention) {
                Some(ns) => Some(ns),
                None => return wrong(&duration_error(retention)),
            },
        };
        match kept {
            Some(0) => Ok(Self::Off),
            Some(kept @ 1..) if is_periodic => {
                Ok(Self::Periodic(Duration::from_nanos(kept.unsigned_abs())))
            }
            Some(kept @ 1..) => Ok(Self::Revision(kept)),
            Some(_) => wrong(&format!("{retention} is negative")),
            None => wrong(&format!("{retention} hours are too many")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_has_all_of_etcds_forms() {
        let periodic = |seconds| Ok(AutoCompaction::Periodic(Duration::from_secs(seconds)));
        let cases = [
            ("periodic", "", Ok(AutoCompaction::Off)),
            ("periodic", "0", Ok(AutoCompaction::Off)),
            ("revision", "0", Ok(AutoCompaction::Off)),
            ("periodic", "0s", Ok(AutoCompaction::Off)),
            ("periodic", "1", periodic(3600)),
            ("periodic", "+2", periodic(7200)),
            ("periodic", "5m", periodic(300)),
            ("periodic", "1h30m", periodic(5400)),
            ("periodic", "0.5h", periodic(1800)),
            ("revision", "1000", Ok(AutoCompaction::Revision(1000))),
            // etcd's own reading of it.
            ("revision", "1us", Ok(AutoCompaction::Revision(1000))),
        ];
        for (mode, retention, expected) in cases {
            assert_eq!(AutoCompaction::parse(mode, retention), expected, "{mode} {retention}");
        }
        let wrong = |mode, retention| AutoCompaction::parse(mode, retention).unwrap_err();
        assert_eq!(wrong("hourly", "1"), "unknown auto-compaction-mode \"hourly\"");
        assert_eq!(wrong("", "1"), "undefined auto-compaction-mode");
        for retention in ["5d", "-1", "-1h", "0x10", "9999999999999"] {
            let why = wrong("periodic", retention);
            assert!(why.starts_with("error parsing CompactionRetention: "), "{why}");
        }
    }
}
