//! gRPC over `h2`, both sides, without I/O.
//!
//! The server's fronts own a [`Server`] per connection; `benchmark`, tests and the simulator own a
//! [`Client`]. Texts and codes of the errors that the transport itself answers are grpc-go's, since
//! etcd's clients have seen those for years.

mod assembler;
mod base64;
mod calls;
mod client;

mod code;
mod gzip;
mod message;
mod metadata;
mod routes;
mod server;
mod text;

pub use base64::{decode_base64, encode_base64};
pub use client::{
    CallOptions, Client, ClientConfig, ClientEvent, MetadataHandle, MethodHandle, StartError,
};
pub use code::Code;
pub use message::Message;
pub use metadata::Metadata;
pub use routes::{MethodId, Routes, RoutesError};
pub use server::{OpenCall, RequestMeta, Server, ServerConfig, ServerEvent, frame_message};
pub use text::{TimeoutError, decode_message, encode_message, encode_timeout_ms, parse_timeout_ms};

pub use crate::h2::{SendError, StreamId};

/// Bytes before each message on the wire: the compressed flag and the length.
pub const MESSAGE_PREFIX_BYTES: usize = 5;
