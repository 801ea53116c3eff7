//! JSON for etcd's messages, as protojson maps them: between the text of a request and its protobuf
//! bytes, and back for answers of any length.
//!
//! Used by the server's JSON gateway. The tables are generated at build time from the same files as
//! the messages, and nothing is built in between: a request is read straight into the bytes that a
//! gRPC client would have sent, and an answer is written as its bytes come ([`Writer`]), however
//! large it is. Reflection over dynamic messages could do neither. No recursion follows the input.
//!
//! Texts of errors are Go's: `encoding/json` looks at the syntax ([`Scanner`]), then protojson
//! reads what is there ([`read`]).

mod number;
mod read;
mod scan;
#[cfg(test)]
mod tests;
mod text;
mod write;

pub use read::read;
pub use scan::{Scanned, Scanner, SyntaxError};
pub use write::{Writer, write, write_text};

/// A message and the names of its fields.
#[derive(Debug)]
pub struct Message {
    /// In the order of declaration, which is that of their numbers.
    fields: &'static [Field],
}

/// A field.
#[derive(Debug)]
struct Field {
    /// As in the `.proto` file: what is written.
    name: &'static str,
    /// In lowerCamelCase: what is read as well, and named in errors.
    json: &'static str,
    number: u32,
    kind: Kind,
    repeated: bool,
    /// The full name of the oneof that it belongs to.
    oneof: Option<&'static str>,
}

/// What a field holds.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Bool,
    Int64,
    Uint32,
    Uint64,
    Text,
    Bytes,
    Enum(&'static Enum),
    Message(&'static Message),
}

impl Kind {
    /// What Go calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int64 => "int64",
            Self::Uint32 => "uint32",
            Self::Uint64 => "uint64",
            Self::Text => "string",
            Self::Bytes => "bytes",
            Self::Enum(_) => "enum",
            Self::Message(_) => "message",
        }
    }
}

/// The names of an enum's numbers.
#[derive(Debug)]
struct Enum(&'static [(&'static str, i32)]);

/// A method of etcd's services.
#[derive(Debug)]
pub struct Method {
    /// Such as `/etcdserverpb.KV/Range`.
    pub path: &'static str,
    /// What it is asked.
    pub request: &'static Message,
    /// What it answers.
    pub response: &'static Message,
    /// Its requests are a stream.
    pub client_streams: bool,
    /// Its answers are a stream.
    pub server_streams: bool,
}

/// The method of a path.
#[must_use]
pub fn method(path: &str) -> Option<&'static Method> {
    tables::METHODS.iter().find(|method| method.path == path)
}

mod tables {
    use super::{Enum, Field, Kind, Message, Method};

    include!(concat!(env!("OUT_DIR"), "/json_tables.rs"));
}
