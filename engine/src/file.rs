//! The file trait: everything `engine` and `raftlog` ever ask of a disk.
//!
//! Called by the WAL writer, the checkpointer and recovery; implemented by the server's drivers, by
//! [`StdDisk`] (plain blocking calls: boot and offline tools) and by the in-memory disk of the
//! tests. It must never interpret what it stores, retry an operation, or complete a durable
//! operation before the device has acknowledged it.

mod aligned;
mod std_disk;

use std::fs::File;
use std::io;

pub use aligned::AlignedBuf;
pub use std_disk::{StdDisk, allocate, extend_with_zeros, read_at_most, zero_fill};

/// Bytes in one disk block: the alignment of every [`AlignedBuf`] and of direct I/O.
pub const BLOCK_BYTES: usize = 4096;

/// A file opened through a [`Disk`]; never reused while that disk lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// Chosen by the submitter, returned with the completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u64);

/// How [`FileOp::Open`] treats the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// The file must exist.
    Existing,
    /// The file must not exist; an empty one is made.
    CreateNew,
    /// Opened if it exists, made otherwise.
    OpenOrCreate,
}

/// One operation. Names are relative to the disk's root directory and use `/`.
#[derive(Debug)]
pub enum FileOp {
    /// Opens `name`. `direct` asks for O_DIRECT: offsets and lengths are then multiples of
    /// [`BLOCK_BYTES`]; a file system that refuses it gets ordinary I/O. Completes with
    /// [`FileOutput::Opened`].
    Open {
        /// Relative path.
        name: String,
        /// What must be there.
        mode: OpenMode,
        /// Bypass the page cache.
        direct: bool,
    },
    /// Forgets the file. Outstanding operations on it finish first.
    Close {
        /// The file.
        file: FileId,
    },
    /// Completes with [`FileOutput::Len`].
    Len {
        /// The file.
        file: FileId,
    },
    /// Completes with [`FileOutput::Data`], shorter than asked only at the end of the file.
    Read {
        /// The file.
        file: FileId,
        /// First byte.
        offset_bytes: u64,
        /// How many bytes.
        len_bytes: usize,
    },
    /// Writes the whole buffer. With `durable` the completion also means that the data (and the
    /// file length, if it grew) is on the device, as after fdatasync. Completes with
    /// [`FileOutput::Written`], which hands the buffer back.
    Write {
        /// The file.
        file: FileId,
        /// First byte.
        offset_bytes: u64,
        /// The bytes.
        data: AlignedBuf,
        /// Write and sync as one operation.
        durable: bool,
    },
    /// Sets the length and writes real zeros from the old end, so that later writes inside touch no
    /// allocation metadata; then syncs.
    ZeroFill {
        /// The file.
        file: FileId,
        /// New length.
        len_bytes: u64,
    },
    /// fdatasync.
    Sync {
        /// The file.
        file: FileId,
    },
    /// fallocate: extends the file and takes the blocks for it, so that later writes inside find
    /// room. Without support of the file system zeros are written.
    Allocate {
        /// The file.
        file: FileId,
        /// New length; not below the old one.
        len_bytes: u64,
    },
    /// ftruncate.
    SetLen {
        /// The file.
        file: FileId,
        /// New length.
        len_bytes: u64,
    },
    /// rename(2), replacing the target.
    Rename {
        /// Old name.
        from: String,
        /// New name.
        to: String,
    },
    /// unlink(2).
    Remove {
        /// Relative path.
        name: String,
    },
    /// fsync of a directory: makes creations, renames and removals in it durable.
    SyncDir {
        /// Relative path; empty for the root.
        name: String,
    },
    /// mkdir -p.
    CreateDir {
        /// Relative path.
        name: String,
    },
    /// Completes with [`FileOutput::Names`], sorted; empty if the directory does not exist.
    List {
        /// Relative path; empty for the root.
        name: String,
    },
}

/// What a successful operation returns.
#[derive(Debug)]
pub enum FileOutput {
    /// Nothing to say.
    Done,
    /// The opened file.
    Opened(FileId),
    /// A length in bytes.
    Len(u64),
    /// Bytes read.
    Data(Vec<u8>),
    /// The written buffer, for reuse.
    Written(AlignedBuf),
    /// Sorted file names.
    Names(Vec<String>),
}

/// The end of one operation.
#[derive(Debug)]
pub struct Completion {
    /// As submitted.
    pub token: Token,
    /// What came of it.
    pub result: io::Result<FileOutput>,
}

/// Submit/complete file access. Operations on one file may complete in any order unless the
/// submitter waits in between.
pub trait Disk {
    /// Queues `op`. Never blocks on the device in a driver of a running member.
    fn submit(&mut self, token: Token, op: FileOp);
    /// Moves what has completed to the end of `out`; does not wait.
    fn poll(&mut self, out: &mut Vec<Completion>);
    /// Like [`Disk::poll`], but waits for one completion if any operation is outstanding.
    fn wait(&mut self, out: &mut Vec<Completion>);
    /// An open file, for readers on other threads; `None` if it is not open, or if this disk lends
    /// nothing out.
    fn share(&self, _file: FileId) -> Option<SharedFile> {
        None
    }
}

/// An open file as threads read it that do not own the disk. It stays readable when its name is
/// given to another file, or taken away.
#[derive(Debug, Clone)]
pub enum SharedFile {
    /// A file of the operating system.
    Std(std::sync::Arc<File>),
    /// A file of a disk in memory.
    Simulated(std::sync::Arc<dyn SimulatedFile>),
}

/// What a disk in memory lends out.
pub trait SimulatedFile: std::fmt::Debug + Send + Sync {
    /// Up to so many bytes from here on; fewer at the end of the file.
    fn read_at(&self, offset_bytes: u64, len_bytes: usize) -> Vec<u8>;
}

/// Runs one operation to its end. For boot, offline tools and tests: nothing else may be
/// outstanding on `disk`.
pub fn run(disk: &mut dyn Disk, op: FileOp) -> io::Result<FileOutput> {
    const TOKEN: Token = Token(u64::MAX);
    let mut completions = Vec::new();
    disk.submit(TOKEN, op);
    disk.wait(&mut completions);
    match completions.pop() {
        Some(completion) if completion.token == TOKEN && completions.is_empty() => {
            completion.result
        }
        _ => Err(io::Error::other("file::run needs a disk with nothing outstanding")),
    }
}
