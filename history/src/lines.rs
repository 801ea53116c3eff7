//! Histories as files: JSON, one record a line, in any order.
//!
//! Used by recorders, and to judge later. A line is an object with one member, whose name says what
//! the record is. Must never skip what it does not understand: an unknown record is an error with
//! the number of its line.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::types::{Hash, History, Operation, Start, Watch};

#[derive(Deserialize)]
enum Record {
    Start(Start),
    Operation(Operation),
    Watch(Watch),
    Hash(Hash),
}

#[derive(Serialize)]
enum RecordRef<'a> {
    Start(&'a Start),
    Operation(&'a Operation),
    Watch(&'a Watch),
    Hash(&'a Hash),
}

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read the history: {0}")]
    Io(#[from] io::Error),
    /// A line is no record.
    #[error("line {line} of the history: {cause}")]
    Malformed {
        /// The first is 1.
        line: usize,
        /// What is wrong with it.
        cause: serde_json::Error,
    },
}

/// Writes all of it.
///
/// # Errors
///
/// Errors of the writer.
pub fn write(history: &History, out: &mut impl Write) -> io::Result<()> {
    let start = std::iter::once(RecordRef::Start(&history.start));
    let operations = history.operations.iter().map(RecordRef::Operation);
    let watches = history.watches.iter().map(RecordRef::Watch);
    let hashes = history.hashes.iter().map(RecordRef::Hash);
    for record in start.chain(operations).chain(watches).chain(hashes) {
        serde_json::to_writer(&mut *out, &record)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Reads all of it. Empty lines are passed over; without a start the store was new.
///
/// # Errors
///
/// The first line that is no record, or the reader's error.
pub fn read(input: impl BufRead) -> Result<History, ReadError> {
    let mut history = History::default();
    for (number, line) in input.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let record = serde_json::from_str(&line)
            .map_err(|cause| ReadError::Malformed { line: number + 1, cause })?;
        match record {
            Record::Start(start) => history.start = start,
            Record::Operation(operation) => history.operations.push(operation),
            Record::Watch(watch) => history.watches.push(watch),
            Record::Hash(hash) => history.hashes.push(hash),
        }
    }
    Ok(history)
}
