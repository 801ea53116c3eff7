//! Compiles the `.proto` files of `etcd/` with protox, so that no protoc is needed, and writes down
//! the shapes of their messages, from which those are decoded.

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

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
    let mut shapes = String::new();
    for file in &descriptors.file {
        let package = file.package();
        for message in &file.message_type {
            // Nothing of etcd's API nests messages; what is not in the table cannot be decoded.
            assert!(message.nested_type.is_empty(), "a nested message: {}", message.name());
            let name = format!(".{package}.{}", message.name());
            let mut fields = Vec::new();
            for field in &message.field {
                let kind =
                    kind(field.r#type.unwrap_or(0), field.label == Some(3), field.type_name());
                fields.push((field.number(), kind));
            }
            fields.sort();
            let fields: Vec<String> =
                fields.iter().map(|(number, kind)| format!("({number}, {kind})")).collect();
            let (constant, path) = (constant(&name), path(&name));
            writeln!(shapes, "static {constant}: Shape = Shape(&[{}]);", fields.join(", "))?;
            writeln!(shapes, "impl Described for {path} {{")?;
            writeln!(shapes, "    fn shape() -> &'static Shape {{ &{constant} }}\n}}")?;
            if !DEEP.contains(&name.as_str()) {
                writeln!(shapes, "impl Flat for {path} {{}}")?;
            }
        }
    }
    std::fs::write(PathBuf::from(std::env::var("OUT_DIR")?).join("shapes.rs"), shapes)?;
    prost_build::Config::new()
        .bytes(["."])
        .disable_comments(["."])
        .boxed(".etcdserverpb.RequestOp.request.request_txn")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The messages that hold themselves, over however many steps, or one that does.
const DEEP: [&str; 3] =
    [".etcdserverpb.TxnRequest", ".etcdserverpb.RequestOp", ".etcdserverpb.InternalRaftRequest"];

/// The `decode::Kind` of a field, by the number of its type in descriptor.proto.
fn kind(number: i32, repeated: bool, message: &str) -> String {
    match number {
        3 | 4 | 5 | 8 | 13 | 14 if repeated => "Kind::Varints".into(),
        3 | 4 | 5 | 8 | 13 | 14 => "Kind::Varint".into(),
        9 => "Kind::Text".into(),
        12 => "Kind::Bytes".into(),
        11 if message == DEEP[0] => "Kind::Txn".into(),
        11 => format!("Kind::Message(&{})", constant(message)),
        other => panic!("no field of etcd's has type {other}: say how it is decoded"),
    }
}

fn constant(name: &str) -> String {
    name.trim_start_matches('.').replace('.', "_").to_uppercase()
}

/// Where prost puts the message: it writes `KVRequest` as `KvRequest`.
fn path(name: &str) -> String {
    let (package, message) = name.trim_start_matches('.').rsplit_once('.').unwrap_or(("", name));
    let letters: Vec<char> = message.chars().collect();
    let is_upper = |at: usize| letters.get(at).is_none_or(char::is_ascii_uppercase);
    let mut camel = String::new();
    for (at, letter) in letters.iter().enumerate() {
        let inner = at > 0 && is_upper(at) && is_upper(at - 1) && is_upper(at + 1);
        camel.push(if inner { letter.to_ascii_lowercase() } else { *letter });
    }
    format!("crate::pb::{package}::{camel}")
}
