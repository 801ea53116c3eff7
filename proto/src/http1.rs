//! HTTP/1.1 without I/O: for the JSON gateway, health, metrics and the peer port.
//!
//! A [`Server`] or a [`Client`] per connection: bytes in, events out; answers or requests in, bytes
//! out. One exchange at a time: a pipelined request waits in the input until its predecessor is
//! answered. Anything ambiguous about where a body ends is refused, since two parsers that disagree
//! there make a hole.

mod body;
mod client;
mod head;
mod server;

pub use body::BodyError;
pub use client::{Client, ClientEvent, Http1Error};
pub use head::{RequestHead, ResponseHead};
pub use server::{BodyLength, Server, ServerEvent};

/// Appends a head's fields and the empty line that ends it.
///
/// Names and values come from our own code; CR and LF in them are dropped, so that a value taken
/// from elsewhere cannot start a new field.
fn put_fields(fields: &[(&str, &str)], out: &mut Vec<u8>) {
    let clean = |text: &str, out: &mut Vec<u8>| {
        out.extend(text.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n' | 0)));
    };
    for (name, value) in fields {
        clean(name, out);
        out.extend_from_slice(b": ");
        clean(value, out);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
