//! The tests of the judges, one binary.

/// Known-bad and known-good histories before all judges.
mod judges;
