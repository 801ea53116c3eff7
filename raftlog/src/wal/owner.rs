//! Reads whose log it is, and nothing else of it.
//!
//! Called by boot before the log is opened, since opening may have to cut a torn tail. It must not
//! change anything, nor judge: what it cannot read, recovery will refuse with its place.

use etcore_engine::file::{Disk, FileOp, FileOutput, run};
use etcore_proto::raftpb;
use prost::Message as _;

use super::error::WalError;
use super::record::RecordKind;
use super::recovery::{list, open, segment_names};
use super::scan::{Scan, Step};
use crate::limits;

/// The member and the cluster in the first segment's head; `None` if it has no intact one.
///
/// # Errors
/// No log, missing segments, and failing files.
pub fn owner(disk: &mut dyn Disk, dir: &str) -> Result<Option<raftpb::Metadata>, WalError> {
    let names = list(disk, dir)?;
    let segments = segment_names(dir, &names)?;
    let Some(first) = segments.first() else { return Ok(None) };
    let path = format!("{dir}/{first}");
    let file = open(disk, &path)?;
    let len_bytes = limits::BATCH_OVERHEAD_BYTES as usize;
    let read = run(disk, FileOp::Read { file, offset_bytes: 0, len_bytes });
    run(disk, FileOp::Close { file }).map_err(|error| WalError::io("close", &path, &error))?;
    let bytes = match read {
        Ok(FileOutput::Data(bytes)) => bytes,
        Ok(_) => return Err(WalError::Driver { what: "Read" }),
        Err(error) => return Err(WalError::io("read", &path, &error)),
    };
    let mut scan = Scan::new(&bytes, None);
    while let Step::Record(_, record) = scan.step() {
        if record.kind == RecordKind::Metadata {
            return Ok(raftpb::Metadata::decode(record.data).ok());
        }
    }
    Ok(None)
}
