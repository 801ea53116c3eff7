//! The disk of plain blocking calls, and the calls on a file that other disks make as well.
//!
//! Used at boot, by offline tools and on threads that may block. It must never retry a write or a
//! sync that failed.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{
    AlignedBuf, BLOCK_BYTES, Completion, Disk, FileId, FileOp, FileOutput, OpenMode, SharedFile,
    Token,
};
use crate::limits::ZERO_CHUNK_BYTES;

/// A [`Disk`] of plain blocking system calls below one directory. Each operation is carried out in
/// `submit`; boot, offline tools and dedicated threads use it.
pub struct StdDisk {
    root: PathBuf,
    files: HashMap<FileId, std::sync::Arc<File>>,
    next_file: u32,
    completed: Vec<Completion>,
    locks: bool,
    syncs: bool,
}

/// How long [`StdDisk::with_locks`] waits for a file that is locked. The kernel lets go of a killed
/// process's files some time after the process is gone; more than five seconds were seen.
const LOCK_WAIT_MS: u64 = 30_000;

impl StdDisk {
    /// A disk rooted at `root`, which must exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            files: HashMap::new(),
            next_file: 0,
            completed: Vec::new(),
            locks: false,
            syncs: true,
        }
    }

    /// Like [`StdDisk::new`], and every file it opens is locked by flock(2) for as long as it is
    /// open. That keeps out other programs that lock, and it waits for the last writes of a process
    /// that was killed: an io_uring write goes on after its process is gone, and holds the file,
    /// hence the lock, until it is done. Without this wait such a write could land on top of what
    /// the next process has written.
    pub fn with_locks(root: impl Into<PathBuf>) -> Self {
        Self { locks: true, ..Self::new(root) }
    }

    /// A disk that leaves it to the system when what was written gets to the device, as an operator
    /// may ask for: a power cut may lose all of it, and leave damage. The end of the process alone
    /// loses nothing.
    #[must_use]
    pub fn without_syncs(self) -> Self {
        Self { syncs: false, ..self }
    }

    /// False of one that leaves it to the system when writes get to the device.
    pub fn syncs(&self) -> bool {
        self.syncs
    }

    /// The directory below which names are resolved.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The open file behind `file`, for a driver that carries on with it.
    pub fn handle(&self, file: FileId) -> Option<std::sync::Arc<File>> {
        self.files.get(&file).cloned()
    }

    /// Takes over an already open file.
    pub fn adopt(&mut self, file: std::sync::Arc<File>) -> FileId {
        let id = FileId(self.next_file);
        self.next_file += 1;
        self.files.insert(id, file);
        id
    }

    fn file(&self, file: FileId) -> io::Result<&File> {
        self.files
            .get(&file)
            .map(|file| &**file)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{file:?} is not open")))
    }

    fn open(&mut self, name: &str, mode: OpenMode, direct: bool) -> io::Result<FileOutput> {
        let path = self.root.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match mode {
            OpenMode::Existing => {}
            OpenMode::CreateNew => {
                options.create_new(true);
            }
            OpenMode::OpenOrCreate => {
                options.create(true).truncate(false);
            }
        }
        let file = if direct && self.syncs {
            match options.clone().custom_flags(libc::O_DIRECT).open(&path) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => options.open(&path)?,
                other => other?,
            }
        } else {
            options.open(&path)?
        };
        if self.locks {
            lock(&file)?;
        }
        Ok(FileOutput::Opened(self.adopt(std::sync::Arc::new(file))))
    }

    fn execute(&mut self, op: FileOp) -> io::Result<FileOutput> {
        match op {
            FileOp::Open { name, mode, direct } => self.open(&name, mode, direct),
            FileOp::Close { file } => {
                self.files.remove(&file);
                Ok(FileOutput::Done)
            }
            FileOp::Len { file } => Ok(FileOutput::Len(self.file(file)?.metadata()?.len())),
            FileOp::Read { file, offset_bytes, len_bytes } => {
                read_at_most(self.file(file)?, offset_bytes, len_bytes).map(FileOutput::Data)
            }
            FileOp::Write { file, offset_bytes, data, durable } => {
                let handle = self.file(file)?;
                handle.write_all_at(&data, offset_bytes)?;
                if durable && self.syncs {
                    handle.sync_data()?;
                }
                Ok(FileOutput::Written(data))
            }
            FileOp::ZeroFill { file, len_bytes } => {
                let file = self.file(file)?;
                if self.syncs {
                    zero_fill(file, len_bytes, Duration::ZERO)?;
                } else {
                    extend_with_zeros(file, len_bytes, Duration::ZERO)?;
                }
                Ok(FileOutput::Done)
            }
            FileOp::Sync { .. } | FileOp::SyncDir { .. } if !self.syncs => Ok(FileOutput::Done),
            FileOp::Sync { file } => self.file(file)?.sync_data().map(|()| FileOutput::Done),
            FileOp::Allocate { file, len_bytes } => {
                allocate(self.file(file)?, len_bytes)?;
                Ok(FileOutput::Done)
            }
            FileOp::SetLen { file, len_bytes } => {
                self.file(file)?.set_len(len_bytes).map(|()| FileOutput::Done)
            }
            FileOp::Rename { from, to } => {
                std::fs::rename(self.root.join(from), self.root.join(to)).map(|()| FileOutput::Done)
            }
            FileOp::Remove { name } => {
                std::fs::remove_file(self.root.join(name)).map(|()| FileOutput::Done)
            }
            FileOp::SyncDir { name } => {
                File::open(self.root.join(name))?.sync_all().map(|()| FileOutput::Done)
            }
            FileOp::CreateDir { name } => {
                std::fs::create_dir_all(self.root.join(name)).map(|()| FileOutput::Done)
            }
            FileOp::List { name } => list(&self.root.join(name)).map(FileOutput::Names),
        }
    }
}

impl Disk for StdDisk {
    fn submit(&mut self, token: Token, op: FileOp) {
        let result = self.execute(op);
        self.completed.push(Completion { token, result });
    }

    fn poll(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.completed);
    }

    fn wait(&mut self, out: &mut Vec<Completion>) {
        self.poll(out);
    }

    fn share(&self, file: FileId) -> Option<SharedFile> {
        self.handle(file).map(SharedFile::Std)
    }
}

/// Reads up to `len_bytes`, less only at the end of the file. The buffer is block-aligned so that
/// files opened for direct I/O can be read too.
pub fn read_at_most(file: &File, offset_bytes: u64, len_bytes: usize) -> io::Result<Vec<u8>> {
    let start = offset_bytes - offset_bytes % BLOCK_BYTES as u64;
    let lead = usize::try_from(offset_bytes - start).expect("less than one block");
    let mut buf = AlignedBuf::zeroed((lead + len_bytes).next_multiple_of(BLOCK_BYTES));
    let mut filled = 0;
    while filled < lead + len_bytes {
        match file.read_at(&mut buf[filled..], start + filled as u64) {
            Ok(0) => break,
            // A direct read that stops off a block boundary has met the end of the file.
            Ok(count) if !count.is_multiple_of(BLOCK_BYTES) => {
                filled += count;
                if filled < lead + len_bytes && file.metadata()?.len() > start + filled as u64 {
                    continue;
                }
                break;
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let end = filled.min(lead + len_bytes);
    Ok(buf[lead.min(end)..end].to_vec())
}

/// Extends `file` to `len_bytes` with written zeros and syncs it. A `pause` after every
/// [`ZERO_CHUNK_BYTES`] leaves the device to others.
///
/// # Errors
/// What the system says; a full file system says so before anything is written.
pub fn zero_fill(file: &File, len_bytes: u64, pause: Duration) -> io::Result<()> {
    extend_with_zeros(file, len_bytes, pause)?;
    file.sync_all()
}

/// As [`zero_fill`], without the sync.
///
/// # Errors
/// As [`zero_fill`].
pub fn extend_with_zeros(file: &File, len_bytes: u64, pause: Duration) -> io::Result<()> {
    let old_len_bytes = file.metadata()?.len();
    // A full file system says so here, before anything is written.
    allocate(file, len_bytes)?;
    let zeros = AlignedBuf::zeroed(ZERO_CHUNK_BYTES);
    let mut offset = old_len_bytes - old_len_bytes % BLOCK_BYTES as u64;
    if offset < old_len_bytes {
        // The last partial block holds data: keep it and start behind it.
        offset += BLOCK_BYTES as u64;
    }
    while offset < len_bytes {
        let left = usize::try_from(len_bytes - offset).unwrap_or(usize::MAX);
        let count = left.min(ZERO_CHUNK_BYTES);
        file.write_all_at(&zeros[..count], offset)?;
        offset += count as u64;
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    Ok(())
}

/// Extends `file` to `len_bytes` and takes the blocks for it.
///
/// # Errors
/// `StorageFull` when there are none left; the file is as long as before.
pub fn allocate(file: &File, len_bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    let old_len_bytes = file.metadata()?.len();
    if old_len_bytes >= len_bytes {
        return Ok(());
    }
    match fallocate(file, FallocateFlags::empty(), old_len_bytes, len_bytes - old_len_bytes) {
        Ok(()) => Ok(()),
        // A longer file alone would have no blocks, and find that out where they are written.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
            extend_by_writing(file, old_len_bytes, len_bytes)
        }
        Err(error) => {
            // Some of it may have been given.
            file.set_len(old_len_bytes)?;
            Err(error.into())
        }
    }
}

/// Extends `file` for file systems that cannot be asked for blocks: by writing zeros. Some choose
/// blocks only when what was written leaves the memory, and find out then that there are none left:
/// so that is waited for.
fn extend_by_writing(file: &File, old_len_bytes: u64, len_bytes: u64) -> io::Result<()> {
    let zeros = AlignedBuf::zeroed(ZERO_CHUNK_BYTES);
    let mut offset = old_len_bytes;
    let mut written = Ok(());
    while offset < len_bytes && written.is_ok() {
        let left = usize::try_from(len_bytes - offset).unwrap_or(usize::MAX);
        let count = left.min(ZERO_CHUNK_BYTES);
        written = file.write_all_at(&zeros[..count], offset);
        offset += count as u64;
    }
    if let Err(error) = written.and_then(|()| file.sync_data()) {
        // Nothing but zeros is lost.
        file.set_len(old_len_bytes)?;
        return Err(error);
    }
    Ok(())
}

/// Takes the lock, waiting a little for whoever has it.
fn lock(file: &File) -> io::Result<()> {
    const STEP_MS: u64 = 5;
    for _ in 0..LOCK_WAIT_MS / STEP_MS {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(std::fs::TryLockError::WouldBlock) => {
                std::thread::sleep(std::time::Duration::from_millis(STEP_MS));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process has it locked"))
}

fn list(path: &Path) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::super::run;
    use super::*;

    fn open(disk: &mut StdDisk, name: &str) -> io::Result<FileOutput> {
        run(
            disk,
            FileOp::Open { name: name.to_owned(), mode: OpenMode::OpenOrCreate, direct: false },
        )
    }

    #[test]
    fn a_locked_file_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = StdDisk::with_locks(dir.path());
        open(&mut first, "a").unwrap();
        let waiter = std::thread::spawn({
            let root = dir.path().to_owned();
            move || open(&mut StdDisk::with_locks(root), "a").map(|_| ())
        });
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(!waiter.is_finished(), "it waits");
        drop(first);
        waiter.join().unwrap().unwrap();
    }

    #[test]
    fn a_disk_without_syncs_writes_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = StdDisk::new(dir.path()).without_syncs();
        let Ok(FileOutput::Opened(file)) = open(&mut disk, "a") else { panic!("opened") };
        let data = AlignedBuf::zeroed(BLOCK_BYTES);
        for op in [
            FileOp::ZeroFill { file, len_bytes: 3 * BLOCK_BYTES as u64 },
            FileOp::Write { file, offset_bytes: 0, data, durable: true },
            FileOp::Sync { file },
            // A directory that is not there is no error: nobody looks into it.
            FileOp::SyncDir { name: "none".to_owned() },
        ] {
            run(&mut disk, op).unwrap();
        }
        assert_eq!(std::fs::metadata(dir.path().join("a")).unwrap().len(), 3 * BLOCK_BYTES as u64);
        assert!(!disk.syncs() && StdDisk::new(dir.path()).syncs());
    }

    #[test]
    fn zero_filling_keeps_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"data").unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        zero_fill(&file, 10_000, Duration::ZERO).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len(), &bytes[..4]), (10_000, &b"data"[..]));
        assert!(bytes[4..].iter().all(|byte| *byte == 0));
        assert_eq!(read_at_most(&file, 2, 4).unwrap(), b"ta\0\0");
        assert_eq!(read_at_most(&file, 9_998, 10).unwrap(), [0, 0]);
    }

    #[test]
    fn a_file_system_that_gives_no_blocks_is_asked_by_writing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, b"data").unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let len_bytes = 3 * ZERO_CHUNK_BYTES as u64 + 5;
        extend_by_writing(&file, 4, len_bytes).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len() as u64, &bytes[..4]), (len_bytes, &b"data"[..]));
        use std::os::unix::fs::MetadataExt;
        assert!(file.metadata().unwrap().blocks() * 512 >= len_bytes - 4096, "it has blocks");
        let short = OpenOptions::new().read(true).open(&path).unwrap();
        extend_by_writing(&short, 4, len_bytes).unwrap_err();
    }
}
