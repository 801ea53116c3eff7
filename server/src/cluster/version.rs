//! The versions this program answers with: etcd's, whose contract it keeps, and its own.

/// The etcd release whose behaviour is the contract; tools parse it.
pub const ETCD: &str = "3.7.1";
/// The cluster version of a cluster whose members all keep this contract.
pub const CLUSTER: &str = "3.7.0";
/// The oldest cluster version whose members are talked to (etcd: MinClusterVersion).
pub const CLUSTER_MIN: &str = "3.0.0";
/// The storage version reported to tools.
pub const STORAGE: &str = "3.7.0";
/// etcore's own version.
pub const OWN: &str = env!("CARGO_PKG_VERSION");

/// What `--version` prints: etcd's lines first, in etcd's order.
pub fn long() -> String {
    format!(
        "etcd Version: {ETCD}\nGit SHA: Not provided (this is etcore)\nGo Version: none (Rust)\n\
         Go OS/Arch: linux/amd64\netcore Version: {OWN}\n"
    )
}
