//! etcore bench.
