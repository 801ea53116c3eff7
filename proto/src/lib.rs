//! etcore proto.
