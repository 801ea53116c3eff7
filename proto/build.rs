//! Compiles the `.proto` files of `etcd/` with protox, so that no protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=etcd");
    let files = [
        "etcd/rpc.proto",
        "etcd/raft_internal.proto",
        "etcd/lease.proto",
        "etcd/etcdserver.proto",
        "etcd/v3lock.proto",
        "etcd/v3election.proto",
    ];
    let descriptors = protox::compile(files, ["etcd"])?;
    prost_build::Config::new()
        .bytes(["."])
        .disable_comments(["."])
        .boxed(".etcdserverpb.RequestOp.request.request_txn")
        .compile_fds(descriptors)?;
    Ok(())
}
