//! Compiles the `.proto` files of `etcd/` with protox, so that no protoc is needed, and writes down
//! the shapes of their messages, from which those are decoded, and their names, by which JSON calls
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;

use protox::prost_reflect::prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

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
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("shapes.rs"), shapes)?;
    std::fs::write(out.join("json_tables.rs"), json_tables(&descriptors)?)?;
    prost_build::Config::new()
        .bytes(["."])
        .disable_comments(["."])
        .boxed(".etcdserverpb.RequestOp.request.request_txn")
        .compile_fds(descriptors)?;
    Ok(())
}

/// The tables of `json`: messages, enums and methods with their names.
fn json_tables(descriptors: &FileDescriptorSet) -> Result<String, Box<dyn Error>> {
    let mut out = String::new();
    let mut methods = String::new();
    let wanted = types_of_methods(descriptors);
    for file in &descriptors.file {
        let package = file.package();
        for values in &file.enum_type {
            let name = format!(".{package}.{}", values.name());
            if wanted.contains(&name) {
                json_enum(&name, values, &mut out)?;
            }
        }
        for message in &file.message_type {
            let name = format!(".{package}.{}", message.name());
            for values in &message.enum_type {
                let name = format!("{name}.{}", values.name());
                if wanted.contains(&name) {
                    json_enum(&name, values, &mut out)?;
                }
            }
            if wanted.contains(&name) {
                json_message(&name, message, &mut out)?;
            }
        }
        for service in &file.service {
            for method in &service.method {
                writeln!(
                    methods,
                    "    Method {{ path: \"/{package}.{}/{}\", request: &{}, response: &{}, \
                     client_streams: {}, server_streams: {} }},",
                    service.name(),
                    method.name(),
                    constant(method.input_type()),
                    constant(method.output_type()),
                    method.client_streaming(),
                    method.server_streaming(),
                )?;
            }
        }
    }
    writeln!(out, "pub(super) static METHODS: &[Method] = &[\n{methods}];")?;
    Ok(out)
}

/// The messages and enums that methods ask or answer: what else goes into the log has no JSON.
fn types_of_methods(descriptors: &FileDescriptorSet) -> BTreeSet<String> {
    let mut fields = BTreeMap::new();
    let mut next = Vec::new();
    for file in &descriptors.file {
        for message in &file.message_type {
            let name = format!(".{}.{}", file.package(), message.name());
            let types = message.field.iter().map(|field| field.type_name().to_owned());
            fields.insert(name, types.filter(|name| !name.is_empty()).collect::<Vec<_>>());
        }
        let methods = file.service.iter().flat_map(|service| &service.method);
        next.extend(methods.flat_map(|method| [method.input_type(), method.output_type()]));
    }
    let mut wanted = BTreeSet::new();
    let mut next: Vec<String> = next.into_iter().map(str::to_owned).collect();
    while let Some(name) = next.pop() {
        next.extend(
            fields.get(&name).filter(|_| !wanted.contains(&name)).into_iter().flatten().cloned(),
        );
        wanted.insert(name);
    }
    wanted
}

fn json_enum(name: &str, values: &EnumDescriptorProto, out: &mut String) -> std::fmt::Result {
    let values: Vec<String> = values
        .value
        .iter()
        .map(|value| format!("({:?}, {})", value.name(), value.number()))
        .collect();
    writeln!(out, "static {}: Enum = Enum(&[{}]);", constant(name), values.join(", "))
}

fn json_message(name: &str, message: &DescriptorProto, out: &mut String) -> std::fmt::Result {
    let short = name.trim_start_matches('.');
    writeln!(out, "static {}: Message = Message {{ fields: &[", constant(name))?;
    let mut last = 0;
    for field in &message.field {
        // JSON is written in the order of declaration, and messages come in the order of numbers.
        assert!(field.number() > last, "{name}: fields are not in their numbers' order");
        assert!(message.field.len() <= 64, "{name}: a reader notes its fields in 64 bits");
        last = field.number();
        let oneof = match field.oneof_index {
            Some(at) => format!("Some(\"{short}.{}\")", message.oneof_decl[at as usize].name()),
            None => "None".into(),
        };
        writeln!(
            out,
            "    Field {{ name: {:?}, json: {:?}, number: {}, kind: {}, repeated: {}, \
             oneof: {oneof} }},",
            field.name(),
            json_name(field.name()),
            field.number(),
            json_kind(field.r#type.unwrap_or(0), field.type_name()),
            field.label == Some(3),
        )?;
    }
    writeln!(out, "] }};")
}

/// The `json::Kind` of a field, by the number of its type in descriptor.proto.
fn json_kind(number: i32, type_name: &str) -> String {
    match number {
        3 => "Kind::Int64".into(),
        4 => "Kind::Uint64".into(),
        8 => "Kind::Bool".into(),
        9 => "Kind::Text".into(),
        11 => format!("Kind::Message(&{})", constant(type_name)),
        12 => "Kind::Bytes".into(),
        13 => "Kind::Uint32".into(),
        14 => format!("Kind::Enum(&{})", constant(type_name)),
        other => panic!("no field of etcd's has type {other}: say what it is in JSON"),
    }
}

/// A field's other name, as protoc makes it.
fn json_name(name: &str) -> String {
    let mut camel = String::new();
    let mut is_next = false;
    for letter in name.chars() {
        match letter {
            '_' => is_next = true,
            _ if std::mem::take(&mut is_next) => camel.push(letter.to_ascii_uppercase()),
            _ => camel.push(letter),
        }
    }
    camel
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
