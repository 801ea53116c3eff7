//! A downgrade of the cluster as its members keep it.
//!
//! Stored by the replica when the entry is applied, read by whoever shows it.

use etcore_engine::bucket::Bucket;
use etcore_engine::store::Store;
use serde::{Deserialize, Serialize};

/// Key of the row in the cluster's bucket (etcd `schema.ClusterDowngradeKeyName`).
pub const KEY: &[u8] = b"downgrade";

/// A downgrade of the cluster, in etcd's JSON.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Downgrade {
    /// Empty if there is none.
    #[serde(rename = "target-version")]
    pub target_version: String,
    /// It is under way.
    pub enabled: bool,
}

impl Downgrade {
    /// The row as etcd writes it.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a string and a flag always serialize")
    }

    /// The store's; none is under way if it has none.
    pub fn load(store: &Store) -> Self {
        let json = store.bucket_get(Bucket::Cluster, KEY).unwrap_or_default();
        serde_json::from_slice(json).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_downgrade_is_stored_as_etcd_stores_it() {
        let on = Downgrade { target_version: "3.6.0".into(), enabled: true };
        assert_eq!(on.to_json(), br#"{"target-version":"3.6.0","enabled":true}"#);
        let off = br#"{"target-version":"","enabled":false}"#;
        assert_eq!(Downgrade::default().to_json(), off);
    }
}
