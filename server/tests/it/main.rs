//! All tests of the server from outside, one binary: it is linked once.
//!
//! A line a module says what belongs there; a test whose place is in doubt goes to the narrowest.
//! What starts real members uses `harness`, and every test begins by taking its turn
//! ([`harness::turn`]). The rules of the house are a binary of their own, `tests/tidy.rs`.

// Modules of a test have no readers outside of it.
#![allow(missing_docs, unreachable_pub)]

/// Real members as processes, clusters of them, clients, and whose turn it is.
mod harness;
/// Whole clusters in virtual time, and the faults that they must find.
mod sim;

/// What clients are answered, service by service, and that it is what etcd answers.
mod services {
    /// Answers of any size: they flow, and they end.
    mod answers;
    /// Users, roles, logins, permissions, and whoever would do without.
    mod auth;
    /// Random programs, every field beside a real etcd's.
    pub(crate) mod differential;
    /// Campaigns, leaders and who observes them.
    mod election;
    /// Odd and wrong requests, byte by byte beside a real etcd's answers.
    mod equals;
    /// JSON over HTTP, beside a real etcd's.
    pub(crate) mod json;
    /// The static pod that kubeadm writes.
    mod kubeadm;
    /// Range, Put, DeleteRange, Txn and Compact.
    mod kv;
    /// Leases: grants, ends, keepalives, lists.
    mod lease;
    /// Locks: who waits, who gives up, who is next.
    mod lock;
    /// Status, alarms, defragmentation and hashes.
    mod maintenance;
    /// One member's start, flags, HTTP side and stop.
    mod member;
    /// Settings: refusals beside etcd, the configuration file, what they do.
    mod settings;
    /// What an operator is told, beside what etcd tells.
    mod tells;
    /// TLS for clients: who is let in, with what, and what changes while a member runs.
    mod tls;
    /// Watches, as scripts.
    mod watch;
}

/// What is acknowledged stays: crashes, kills, damage, disks that fail or are full.
mod durability {
    /// A power cut at every change of the disk.
    mod crash;
    /// Files with bytes patched at every record and page.
    mod damage;
    /// A disk that is full, or stalls.
    mod disk;
    /// System calls that fail.
    mod faults;
    /// Processes that are stopped for moments.
    mod pauses;
    /// A long mixed load: nothing creeps.
    mod soak;
    /// `kill -9` under load, again and again.
    mod survive;
}

/// Several members.
mod cluster {
    /// A member that was away catches up over a slow network.
    mod catch_up;
    /// Comparisons of the members' data.
    mod corruption;
    /// Entries that only an etcd would have written.
    mod entries;
    /// How long writes wait when the leader goes.
    mod failover;
    /// What clients are told under faults, recorded and judged.
    mod history;
    /// Three members, founded, killed, brought back.
    mod members;
    /// Members that come and go.
    mod membership;
    /// The peer protocol against etcd's own.
    mod peers;
    /// A quorum that is lost for a while.
    mod quorum;
    /// Snapshots to a member that lags.
    mod snapshot;
    /// TLS between members, and with etcd's.
    mod tls;
}

/// Clients that mean no good, limits that are reached, and how long anybody waits then.
mod abuse {
    /// Bounds of rings, descriptors and buffers.
    mod bounds;
    /// The conformance suite for HTTP/2.
    mod h2spec;
    /// Floods, slow readers, crowds.
    pub(crate) mod hostile;
    /// Thousands of TLS connections at once.
    mod storm;
    /// The worst requests: no step of a thread takes long.
    mod worst;
}

/// Other people's programs against a member.
mod tools {
    /// Client libraries in other languages.
    mod clients;
    /// `etcdctl`, as transcripts.
    mod etcdctl;
}
