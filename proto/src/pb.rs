//! The protobuf messages of etcd's API, generated from `proto/etcd` at build time.
//!
//! Used by the server's api, by the tools and by tests. Byte fields are [`bytes::Bytes`]: decoding
//! from a `Bytes` shares the received buffer. Nothing here may be edited by hand.

#![allow(missing_docs, clippy::all, clippy::pedantic)]

/// The client API and what raft entries carry.
pub mod etcdserverpb {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}
/// Stored key-values and events.
pub mod mvccpb {
    include!(concat!(env!("OUT_DIR"), "/mvccpb.rs"));
}
/// Users, roles and permissions.
pub mod authpb {
    include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
}
/// Members as replicated.
pub mod membershippb {
    include!(concat!(env!("OUT_DIR"), "/membershippb.rs"));
}
/// Leases as stored.
pub mod leasepb {
    include!(concat!(env!("OUT_DIR"), "/leasepb.rs"));
}
/// The Lock service.
pub mod v3lockpb {
    include!(concat!(env!("OUT_DIR"), "/v3lockpb.rs"));
}
/// The Election service.
pub mod v3electionpb {
    include!(concat!(env!("OUT_DIR"), "/v3electionpb.rs"));
}
