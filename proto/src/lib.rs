//! etcore proto.

pub mod hpack;
