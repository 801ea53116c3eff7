//! A member's directory in memory: files that are cheap to copy and to change, as a [`Disk`].
//!
//! The damage test patches copies of a real directory and opens them as a start does. It must
//! never write to the directory that it was read from.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use etcore_engine::error::{Corruption, EngineError};
use etcore_engine::file::{Completion, Disk, FileId, FileOp, FileOutput, OpenMode, Token};
use etcore_engine::page::{Fetch, PagePtr, PageSource};

pub const DB: &str = "etcore.db";
pub const WAL: &str = "wal";

/// The bytes as they were read, and what was written since.
#[derive(Clone, Default)]
pub struct Content {
    base: Arc<Vec<u8>>,
    /// How much of `base` still counts.
    base_len: usize,
    len: usize,
    edits: Vec<(usize, Vec<u8>)>,
}

impl Content {
    pub fn new(mut bytes: Vec<u8>) -> Self {
        let len = bytes.len();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1);
        bytes.truncate(used);
        bytes.shrink_to_fit();
        Self { base: Arc::new(bytes), base_len: used, len, edits: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Up to `len` bytes from `at`, fewer at the end of the file.
    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let end = at.saturating_add(len).min(self.len);
        let mut out = vec![0; end.saturating_sub(at)];
        let base_end = end.min(self.base_len);
        if at < base_end {
            out[..base_end - at].copy_from_slice(&self.base[at..base_end]);
        }
        for (start, bytes) in &self.edits {
            let (from, to) = ((*start).max(at), (start + bytes.len()).min(end));
            if from < to {
                out[from - at..to - at].copy_from_slice(&bytes[from - start..to - start]);
            }
        }
        out
    }

    pub fn all(&self) -> Vec<u8> {
        self.read(0, self.len)
    }

    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        self.len = self.len.max(at + bytes.len());
        self.edits.push((at, bytes.to_vec()));
    }

    pub fn set_len(&mut self, len: usize) {
        self.len = len;
        self.base_len = self.base_len.min(len);
        for (start, bytes) in &mut self.edits {
            bytes.truncate(len.saturating_sub(*start));
        }
    }
}

/// A directory below `member/`.
#[derive(Default)]
pub struct Image {
    pub files: BTreeMap<String, Content>,
    open: BTreeMap<FileId, String>,
    next_file: u32,
    done: Vec<Completion>,
}

impl Clone for Image {
    fn clone(&self) -> Self {
        Self { files: self.files.clone(), ..Self::default() }
    }
}

impl Image {
    /// Reads `dir`, the member's directory.
    pub fn load(dir: &Path) -> Self {
        let mut image = Self::default();
        let mut add = |name: String, path: &Path| {
            image.files.insert(name, Content::new(std::fs::read(path).expect("readable")));
        };
        add(DB.to_owned(), &dir.join(DB));
        for entry in std::fs::read_dir(dir.join(WAL)).expect("a log") {
            let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
            add(format!("{WAL}/{name}"), &dir.join(WAL).join(&name));
        }
        image
    }

    /// Writes it to `dir`, which is made; zeros become holes.
    pub fn store(&self, dir: &Path) {
        use std::os::unix::fs::FileExt;
        std::fs::create_dir_all(dir.join(WAL)).expect("made");
        for (name, content) in &self.files {
            let file = std::fs::File::create(dir.join(name)).expect("made");
            file.set_len(content.len() as u64).expect("sized");
            let bytes = content.all();
            for (at, chunk) in bytes.chunks(4096).enumerate() {
                if chunk.iter().any(|byte| *byte != 0) {
                    file.write_all_at(chunk, at as u64 * 4096).expect("written");
                }
            }
        }
    }

    /// The log's segments, oldest first.
    pub fn segments(&self) -> Vec<String> {
        let wal = self.files.keys().filter(|name| name.ends_with(".wal"));
        wal.cloned().collect()
    }

    fn content(&mut self, file: FileId) -> io::Result<&mut Content> {
        let name = self.open.get(&file).ok_or(io::ErrorKind::NotFound)?;
        self.files.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn execute(&mut self, op: FileOp) -> io::Result<FileOutput> {
        let size = |bytes: u64| usize::try_from(bytes).expect("a 64-bit machine");
        match op {
            FileOp::Open { name, mode, .. } => {
                let exists = self.files.contains_key(&name);
                match mode {
                    OpenMode::Existing if !exists => return Err(io::ErrorKind::NotFound.into()),
                    OpenMode::CreateNew if exists => {
                        return Err(io::ErrorKind::AlreadyExists.into());
                    }
                    _ => {}
                }
                self.files.entry(name.clone()).or_default();
                let file = FileId(self.next_file);
                self.next_file += 1;
                self.open.insert(file, name);
                return Ok(FileOutput::Opened(file));
            }
            FileOp::Close { file } => {
                self.open.remove(&file);
            }
            FileOp::Len { file } => return Ok(FileOutput::Len(self.content(file)?.len() as u64)),
            FileOp::Read { file, offset_bytes, len_bytes } => {
                let bytes = self.content(file)?.read(size(offset_bytes), len_bytes);
                return Ok(FileOutput::Data(bytes));
            }
            FileOp::Write { file, offset_bytes, data, .. } => {
                self.content(file)?.write(size(offset_bytes), &data);
                return Ok(FileOutput::Written(data));
            }
            FileOp::ZeroFill { file, len_bytes }
            | FileOp::Allocate { file, len_bytes }
            | FileOp::SetLen { file, len_bytes } => self.content(file)?.set_len(size(len_bytes)),
            FileOp::Rename { from, to } => {
                let content = self.files.remove(&from).ok_or(io::ErrorKind::NotFound)?;
                self.files.insert(to.clone(), content);
                for name in self.open.values_mut().filter(|name| **name == from) {
                    name.clone_from(&to);
                }
            }
            FileOp::Remove { name } => {
                self.files.remove(&name).ok_or(io::ErrorKind::NotFound)?;
            }
            FileOp::Sync { .. } | FileOp::SyncDir { .. } | FileOp::CreateDir { .. } => {}
            FileOp::List { name } => {
                let prefix = if name.is_empty() { name } else { name + "/" };
                let below = self.files.keys().filter_map(|file| file.strip_prefix(&prefix));
                let mut names: Vec<String> =
                    below.map(|file| file.split('/').next().unwrap_or("").to_owned()).collect();
                names.dedup();
                return Ok(FileOutput::Names(names));
            }
        }
        Ok(FileOutput::Done)
    }
}

impl Disk for Image {
    fn submit(&mut self, token: Token, op: FileOp) {
        let result = self.execute(op);
        self.done.push(Completion { token, result });
    }

    fn poll(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.done);
    }

    fn wait(&mut self, out: &mut Vec<Completion>) {
        self.poll(out);
    }
}

/// Pages of the image's page file, each checked once.
pub struct ImagePages<'i> {
    content: &'i Content,
    known: BTreeMap<(u64, u32), Vec<u8>>,
}

impl<'i> ImagePages<'i> {
    pub fn new(content: &'i Content) -> Self {
        Self { content, known: BTreeMap::new() }
    }
}

impl PageSource for ImagePages<'_> {
    fn get(&mut self, ptr: PagePtr) -> Result<Fetch<&[u8]>, EngineError> {
        use std::collections::btree_map::Entry;
        let bytes = match self.known.entry((ptr.first_unit, ptr.crc)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let at = usize::try_from(ptr.offset_bytes()).expect("a 64-bit machine");
                let bytes = self.content.read(at, ptr.len_bytes as usize);
                let found = crc32c::crc32c(&bytes);
                if found != ptr.crc {
                    let what = Corruption::Checksum { expected: ptr.crc, found };
                    let (file, offset_bytes) = (DB.to_owned(), ptr.offset_bytes());
                    return Err(EngineError::Corrupt { file, offset_bytes, what });
                }
                place.insert(bytes)
            }
        };
        Ok(Fetch::Ready(bytes))
    }
}
