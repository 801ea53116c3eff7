//! Looks at a log record by record, for people and tools.
//!
//! Called by the offline tools. It reads one segment at a time, never repairs anything, and goes on
//! to the next segment after damage, telling where and what.

use etcore_engine::file::{Disk, FileOp, run};

use super::error::WalError;
use super::name::SegmentName;
use super::record::Record;
use super::recovery::{list, open, read_segment, segment_names};
use super::scan::{Scan, Step};
use super::tail::Stop;

/// What the inspector meets, in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// A segment begins.
    Segment {
        /// Its name.
        name: SegmentName,
        /// Length of the file.
        len_bytes: u64,
    },
    /// An intact record.
    Record {
        /// Where its frame starts.
        offset_bytes: u64,
        /// The record.
        record: Record,
    },
    /// The segment's records end here.
    Stop {
        /// Behind the last intact record.
        offset_bytes: u64,
        /// Why; anything but [`Stop::Clean`] is damage.
        stop: Stop,
        /// The finding in words.
        what: &'static str,
    },
}

/// Calls `each` for everything in the log at `dir`, until it returns false.
///
/// Errors: no log, missing segments, failing files. Damaged records are findings, not errors.
pub fn inspect(
    disk: &mut dyn Disk,
    dir: &str,
    mut each: impl FnMut(Finding) -> bool,
) -> Result<(), WalError> {
    let names = list(disk, dir)?;
    let mut crc = None;
    for name in segment_names(dir, &names)? {
        let path = format!("{dir}/{name}");
        let file = open(disk, &path)?;
        let bytes = read_segment(disk, &path, file)?;
        run(disk, FileOp::Close { file }).map_err(|error| WalError::io("close", &path, &error))?;
        if !each(Finding::Segment { name, len_bytes: bytes.len() as u64 }) {
            return Ok(());
        }
        let mut scan = Scan::new(&bytes, crc);
        loop {
            let finding = match scan.step() {
                Step::Record(offset, record) => {
                    Finding::Record { offset_bytes: offset as u64, record }
                }
                Step::Stop(stop, what) => {
                    Finding::Stop { offset_bytes: scan.offset() as u64, stop, what }
                }
            };
            let stop = match &finding {
                Finding::Stop { stop, .. } => Some(*stop),
                _ => None,
            };
            if !each(finding) {
                return Ok(());
            }
            match stop {
                None => {}
                Some(Stop::Clean) => {
                    crc = scan.crc();
                    break;
                }
                Some(_) => {
                    // The next head says where the checksum goes on.
                    crc = None;
                    break;
                }
            }
        }
    }
    Ok(())
}
