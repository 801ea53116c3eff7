//! etcore tuning.
