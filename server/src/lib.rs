//! etcore server.
