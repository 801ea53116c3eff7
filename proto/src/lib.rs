//! Wire formats and protocols, without I/O: etcd's protobuf messages, its error table, HTTP/2, HPACK
//! and gRPC, and HTTP/1.1. Bytes go in, events and bytes come out; sockets, clocks and threads
//! belong to the callers.

pub mod error;
pub mod pb;
pub mod raftpb;
