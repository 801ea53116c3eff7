//! `etcd_server_apply_duration_seconds`: how long entries take to be applied, by what they do.
//!
//! Counted by the replica alone, a batch at a time. Entries of a turn are timed together, and each
//! counts as its share of that.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::calls::seen_histograms;
use super::cells::{Buckets, Sum, exponential};

/// etcd's: 0.1 ms to 52 s.
static BOUNDS: [f64; 20] = exponential(0.0001, 2.0);

/// What an entry may do: the field of its request (etcd `raft_internal.proto`) and etcd's name.
const OPS: [(u32, &str); 30] = [
    (4, "Put"),
    (6, "Txn"),
    (5, "DeleteRange"),
    (9, "LeaseRevoke"),
    (8, "LeaseGrant"),
    (7, "Compaction"),
    (11, "LeaseCheckpoint"),
    (3, "Range"),
    (10, "Alarm"),
    (1000, "AuthEnable"),
    (1011, "AuthDisable"),
    (1012, "Authenticate"),
    // etcd gives it no name.
    (1013, "unknown"),
    (1100, "AuthUserAdd"),
    (1101, "AuthUserDelete"),
    (1102, "AuthUserGet"),
    (1103, "AuthUserChangePassword"),
    (1104, "AuthUserGrantRole"),
    (1105, "AuthUserRevokeRole"),
    (1106, "AuthUserList"),
    (1107, "AuthRoleList"),
    (1200, "AuthRoleAdd"),
    (1201, "AuthRoleDelete"),
    (1202, "AuthRoleGet"),
    (1203, "AuthRoleGrantPermission"),
    (1204, "AuthRoleRevokePermission"),
    (1300, "ClusterVersionSet"),
    (1301, "ClusterMemberAttrSet"),
    (1302, "DowngradeInfoSet"),
    (9900, "DowngradeVersionTest"),
];

/// What one turn has applied: for each kind of entry, those that succeeded and those that did not.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    counts: [[u32; 2]; OPS.len()],
    total: u32,
}

impl Applied {
    /// An entry with this field was applied.
    #[inline]
    pub fn note(&mut self, field: u32, success: bool) {
        if let Some(op) = OPS.iter().position(|(known, _)| *known == field) {
            self.counts[op][usize::from(!success)] += 1;
            self.total += 1;
        }
    }
}

/// See the module text.
#[derive(Debug, Clone)]
pub struct Applies {
    seconds: Arc<[[Buckets; 2]]>,
}

impl Default for Applies {
    fn default() -> Self {
        let both = |_| [Buckets::new(&BOUNDS), Buckets::new(&BOUNDS)];
        Self { seconds: OPS.iter().map(both).collect() }
    }
}

impl Applies {
    /// These entries took so long together. They are forgotten.
    pub fn observe(&self, applied: &mut Applied, took: Duration) {
        let total = std::mem::take(&mut applied.total);
        if total == 0 {
            return;
        }
        let each = took / total;
        for (counts, seconds) in applied.counts.iter_mut().zip(&*self.seconds) {
            for (count, seconds) in counts.iter_mut().zip(seconds) {
                if *count > 0 {
                    seconds.observe(u64::from(std::mem::take(count)), each);
                }
            }
        }
    }
}

impl Collector for Applies {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let rows: Vec<_> = OPS
            .iter()
            .zip(&*self.seconds)
            .flat_map(|((_, op), [good, bad])| [(op, "true", good), (op, "false", bad)])
            .map(|(op, success, seconds)| {
                ([("op", *op), ("success", success), ("version", "v3")], Sum::of([seconds]))
            })
            .collect();
        let help = "The latency distributions of v2 apply called by backend.";
        seen_histograms(&mut encoder, "etcd_server_apply_duration_seconds", help, &rows)
    }
}
