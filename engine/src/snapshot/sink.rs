//! The receiving side of a copy: writes the parts, reads all of them again, names the file, and
//! puts it in the page file's place.
//!
//! Driven by the background one operation at a time. A copy gets its name only after every page
//! that can be reached from its meta page was read back and matched its checksum: what takes the
//! page file's place can be opened. What lives in memory of a store is made in the same pass, so
//! that nothing has to be read again when the copy is put into use. Whatever goes wrong before,
//! what was written is removed.

use std::collections::VecDeque;
use std::io;

use super::{META_UNITS, PART_FILE, Part, complete_name, is_copy};
use crate::bucket::Bucket;
use crate::checkpoint::Checkpointer;
use crate::error::EngineError;
use crate::file::{AlignedBuf, FileId, FileOp, FileOutput, OpenMode};
use crate::limits::{SNAPSHOT_CHECK_BYTES, SNAPSHOT_SYNC_BYTES};
use crate::page::meta::Meta;
use crate::page::node::{DB_FILE, NodeRef};
use crate::page::space::Space;
use crate::page::{PagePtr, UNIT_BYTES};
use crate::store::open::{Loaded, OpenFile};
use crate::store::{EngineConfig, Store};
use crate::types::{Identity, LogIndex, Term};
use crate::wire::KvRef;

/// Why a copy cannot be taken on.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The disk refused.
    #[error("{DB_FILE}: copy: {what}: {error}")]
    Io {
        /// The operation that failed.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The parts make no copy of the state that was announced.
    #[error("the parts received are no snapshot at entry {0}")]
    Foreign(LogIndex),
    /// A page of it is not what its checksum says.
    #[error("the snapshot received is damaged: {0}")]
    Damaged(#[from] EngineError),
}

#[derive(Debug)]
enum Stage {
    /// Removing what lies there, making the file; then parts are taken.
    Parts,
    /// All parts are written and are read again.
    Checking(Box<(Walk, Loaded)>),
    /// Making it durable under its name.
    Ending,
    /// It is; nothing is to be done.
    Complete,
    /// Giving it the page file's name.
    Adopting,
    /// It is the page file.
    Adopted,
    /// It was given up, and is being removed.
    Leaving,
}

/// Writes a copy, one operation at a time.
///
/// Invariant: the meta page is written after everything else was checked and synced.
#[derive(Debug)]
pub struct SnapshotSink {
    index: LogIndex,
    term: Term,
    identity: Identity,
    stage: Stage,
    /// Open, until it is closed.
    file: Option<FileId>,
    /// What it is called, once it exists.
    name: Option<String>,
    /// With this member's identity.
    meta: Option<Meta>,
    /// Checksum of the state that the parts belong to.
    state: u32,
    /// Bytes written since the last sync.
    unsynced_bytes: usize,
    /// What was read of it, once all was.
    loaded: Option<(Loaded, Space)>,
    ops: VecDeque<(&'static str, FileOp)>,
    /// What the operation that is out was for.
    busy: Option<&'static str>,
}

impl SnapshotSink {
    /// A sink for a copy that ends with entry `index` of `term`, to become the page file of the
    /// member `identity`. All copies that lie there are removed.
    pub fn new(index: LogIndex, term: Term, identity: Identity) -> Self {
        let (name, mode) = (PART_FILE.to_owned(), OpenMode::CreateNew);
        let open = ("create", FileOp::Open { name, mode, direct: false });
        Self {
            index,
            term,
            identity,
            stage: Stage::Parts,
            file: None,
            name: None,
            meta: None,
            state: 0,
            unsynced_bytes: 0,
            loaded: None,
            ops: VecDeque::from([("list", FileOp::List { name: String::new() }), open]),
            busy: None,
        }
    }

    /// Only removes the copies that lie there.
    pub fn remover() -> Self {
        let mut sink = Self::new(LogIndex(0), Term(0), Identity::default());
        sink.ops.pop_back();
        sink.stage = Stage::Leaving;
        sink
    }

    /// Takes a part: the first one before all others, those in any order, each as often as it
    /// comes. Call it when [`SnapshotSink::is_idle`].
    ///
    /// # Errors
    /// [`SinkError::Foreign`]: it is not of the state that was announced.
    pub fn add(&mut self, part: Part<'_>) -> Result<(), SinkError> {
        let foreign = SinkError::Foreign(self.index);
        let (Some(file), Stage::Parts) = (self.file, &self.stage) else { return Err(foreign) };
        let Some(meta) = &self.meta else { return self.begin(file, part) };
        if (part.end_unit, part.state) != (meta.end_unit, self.state)
            || part.first_unit < META_UNITS
        {
            return Err(foreign);
        }
        if part.data.is_empty() {
            return Ok(());
        }
        self.unsynced_bytes += part.data.len();
        self.write("write", file, part.first_unit * UNIT_BYTES as u64, part.data);
        if self.unsynced_bytes >= SNAPSHOT_SYNC_BYTES {
            // All at once at the end, it would keep the log's writes waiting.
            self.unsynced_bytes = 0;
            self.ops.push_back(("sync", FileOp::Sync { file }));
        }
        Ok(())
    }

    /// All parts were given: what is left to do makes the copy complete.
    ///
    /// # Errors
    /// [`SinkError::Foreign`]: there was not even a first one.
    pub fn end_parts(&mut self) -> Result<(), SinkError> {
        match (&self.meta, &self.stage) {
            (Some(meta), Stage::Parts) => {
                self.stage = Stage::Checking(Box::new((Walk::new(meta), Loaded::default())));
                Ok(())
            }
            _ => Err(SinkError::Foreign(self.index)),
        }
    }

    /// The first part: the meta page.
    fn begin(&mut self, file: FileId, part: Part<'_>) -> Result<(), SinkError> {
        let foreign = SinkError::Foreign(self.index);
        let slot = |slot| Meta::decode(part.data, slot).ok();
        let Some(mut meta) = slot(0).or_else(|| slot(1)) else { return Err(foreign) };
        let announced = (self.index, self.term, self.identity.cluster_id);
        let len_bytes = meta.end_unit.checked_mul(UNIT_BYTES as u64);
        let Some(len_bytes) = len_bytes.filter(|len_bytes| i64::try_from(*len_bytes).is_ok())
        else {
            return Err(foreign);
        };
        if (part.from_unit, part.first_unit, part.end_unit) != (0, 0, meta.end_unit)
            || (meta.applied, meta.term, meta.identity.cluster_id) != announced
            || part.state != crc32c::crc32c(part.data)
        {
            return Err(foreign);
        }
        meta.identity = self.identity;
        self.state = part.state;
        // Without room for it, that is known before anything was sent.
        self.ops.push_back(("extend", FileOp::Allocate { file, len_bytes }));
        self.meta = Some(meta);
        Ok(())
    }

    /// The next operation; one is out at a time.
    ///
    /// # Errors
    /// [`SinkError::Damaged`]; the copy is to be given up.
    pub fn next_op(&mut self) -> Result<Option<FileOp>, SinkError> {
        self.next_op_visiting(&mut |_| {})
    }

    /// Like [`SnapshotSink::next_op`]; `visit` sees the rows of the key space as those of
    /// [`Store::open_visiting`] do.
    ///
    /// # Errors
    /// As there.
    pub fn next_op_visiting(
        &mut self,
        visit: &mut dyn FnMut(&KvRef<'_>),
    ) -> Result<Option<FileOp>, SinkError> {
        if self.busy.is_some() {
            return Ok(None);
        }
        if let (Stage::Checking(checking), Some(file), true) =
            (&mut self.stage, self.file, self.ops.is_empty())
        {
            let (walk, loaded) = &mut **checking;
            if let Some((offset_bytes, len_bytes)) = walk.step(loaded, visit)? {
                self.busy = Some("read");
                return Ok(Some(FileOp::Read { file, offset_bytes, len_bytes }));
            }
            let space = walk.space.take().unwrap_or_else(|| Space::new(walk.end_unit));
            self.loaded = Some((std::mem::take(loaded), space));
            self.end(file);
        }
        let Some((what, op)) = self.ops.pop_front() else { return Ok(None) };
        self.busy = Some(what);
        Ok(Some(op))
    }

    /// The store of a complete copy, and what writes its file from now on. Once.
    pub fn take_store(&mut self, config: EngineConfig) -> Option<(Store, Checkpointer)> {
        let (Stage::Complete, Some(file)) = (&self.stage, self.file) else { return None };
        let (loaded, space) = self.loaded.take()?;
        let meta = self.meta.clone()?;
        let file = OpenFile { file, len_bytes: meta.end_unit * UNIT_BYTES as u64 };
        Some(Store::assemble(config, file, meta, None, space, loaded))
    }

    /// Puts the complete copy in the page file's place: what is left to do renames it. The log must
    /// go on from it. From here on it cannot be given up.
    pub fn adopt(&mut self) {
        assert!(matches!(self.stage, Stage::Complete), "only a complete copy is a page file");
        self.stage = Stage::Adopting;
        let (from, to) = (complete_name(self.index), DB_FILE.to_owned());
        self.ops.extend([
            ("put the copy in place", FileOp::Rename { from, to }),
            ("sync the directory", FileOp::SyncDir { name: String::new() }),
        ]);
    }

    /// The copy is the page file.
    pub fn is_adopted(&self) -> bool {
        matches!(self.stage, Stage::Adopted)
    }

    /// Every page is there: the meta page makes a page file of them.
    fn end(&mut self, file: FileId) {
        let Some(meta) = &self.meta else { return };
        let (offset_bytes, page) = (meta.offset_bytes(), meta.encode());
        assert!(
            matches!(self.stage, Stage::Checking(_)),
            "the meta page is written after everything else was checked"
        );
        self.stage = Stage::Ending;
        self.ops.push_back(("sync", FileOp::Sync { file }));
        self.write("write the meta page", file, offset_bytes, &page);
        let (from, to) = (PART_FILE.to_owned(), complete_name(self.index));
        self.ops.extend([
            ("sync the meta page", FileOp::Sync { file }),
            (RENAME, FileOp::Rename { from, to }),
            ("sync the directory", FileOp::SyncDir { name: String::new() }),
        ]);
    }

    fn write(&mut self, what: &'static str, file: FileId, offset_bytes: u64, data: &[u8]) {
        let data = AlignedBuf::from(data);
        let write = FileOp::Write { file, offset_bytes, data, durable: false };
        self.ops.push_back((what, write));
    }

    /// How the operation went.
    ///
    /// # Errors
    /// [`SinkError::Io`]; the copy is to be given up. Not once it was.
    pub fn done(&mut self, result: io::Result<FileOutput>) -> Result<(), SinkError> {
        let what = self.busy.take().unwrap_or("an operation nobody asked for");
        let is_leaving = matches!(self.stage, Stage::Leaving);
        let output = match result {
            Ok(output) => output,
            // What cannot be removed now, the next copy or the next start removes.
            Err(_) if is_leaving => FileOutput::Done,
            Err(error) => return Err(SinkError::Io { what, error }),
        };
        match output {
            FileOutput::Opened(file) => {
                (self.file, self.name) = (Some(file), Some(PART_FILE.to_owned()));
            }
            FileOutput::Names(names) => {
                for name in names.into_iter().filter(|name| is_copy(name)) {
                    self.ops.push_front(("remove", FileOp::Remove { name }));
                }
            }
            FileOutput::Data(data) => {
                if let Stage::Checking(checking) = &mut self.stage {
                    checking.0.loaded(data);
                }
            }
            _ => {}
        }
        if what == RENAME {
            self.name = Some(complete_name(self.index));
        }
        if is_leaving {
            self.leave();
        }
        if self.ops.is_empty() {
            match self.stage {
                Stage::Ending => self.stage = Stage::Complete,
                Stage::Adopting => self.stage = Stage::Adopted,
                _ => {}
            }
        }
        Ok(())
    }

    /// Nothing is left to do but to take the next part.
    pub fn is_idle(&self) -> bool {
        self.busy.is_none() && self.ops.is_empty() && matches!(self.stage, Stage::Parts)
    }

    /// The copy is durable under its own name.
    pub fn is_complete(&self) -> bool {
        matches!(self.stage, Stage::Complete)
    }

    /// Gives the copy up: what is left to do removes it. [`SnapshotSink::is_over`] tells the end.
    pub fn give_up(&mut self) {
        assert!(!matches!(self.stage, Stage::Adopting | Stage::Adopted), "it is the page file");
        self.ops.clear();
        self.stage = Stage::Leaving;
        if self.busy.is_none() {
            self.leave();
        }
    }

    /// True once a copy that was given up is gone.
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Leaving) && self.busy.is_none() && self.ops.is_empty()
    }

    /// What a copy that was given up has left behind.
    fn leave(&mut self) {
        if let Some(file) = self.file.take() {
            self.ops.push_back(("close", FileOp::Close { file }));
        }
        if let Some(name) = self.name.take() {
            self.ops.push_back(("remove", FileOp::Remove { name }));
        }
    }
}

const RENAME: &str = "rename";

/// All pages that a meta page reaches, in the order of keys. Levels fall from parent to child and
/// no more pages are read than the file has units, so this ends whatever the bytes say.
#[derive(Debug)]
struct Walk {
    /// To be read, the next one last: the bucket of a node, or `None` for the free extents.
    left: Vec<(Option<Bucket>, PagePtr)>,
    pages_left: u64,
    end_unit: u64,
    window_bytes: u64,
    window: Vec<u8>,
    inner: Vec<u8>,
    /// The read that is out is for an inner node, which must not move the window away.
    reads_inner: bool,
    /// What was read must hold the next page, or the file is too short.
    was_read: bool,
    space: Option<Space>,
}

impl Walk {
    fn new(meta: &Meta) -> Self {
        let roots = Bucket::ALL
            .iter()
            .rev()
            .filter_map(|bucket| meta.roots[*bucket as usize].map(|root| (Some(*bucket), root)));
        Self {
            left: meta.space.map(|space| (None, space)).into_iter().chain(roots).collect(),
            pages_left: meta.end_unit,
            end_unit: meta.end_unit,
            window_bytes: 0,
            window: Vec::new(),
            inner: Vec::new(),
            reads_inner: false,
            was_read: false,
            space: None,
        }
    }

    /// Goes on as far as it can, giving the leaves to `loaded`; what to read next (first byte and
    /// length), or `None` at the end.
    fn step(
        &mut self,
        loaded: &mut Loaded,
        visit: &mut dyn FnMut(&KvRef<'_>),
    ) -> Result<Option<(u64, usize)>, EngineError> {
        while let Some((bucket, ptr)) = self.left.last().copied() {
            let len_bytes = ptr.len_bytes as usize;
            let Some(bytes) = self.bytes_of(ptr) else {
                self.was_read = false;
                self.reads_inner = ptr.level > 0;
                if self.reads_inner {
                    return Ok(Some((ptr.offset_bytes(), len_bytes)));
                }
                self.window_bytes = ptr.offset_bytes();
                return Ok(Some((self.window_bytes, len_bytes.max(SNAPSHOT_CHECK_BYTES))));
            };
            ptr.verify(bytes)?;
            let mut children = Vec::new();
            match bucket {
                None => {
                    let space = Space::decode(bytes, self.end_unit).ok_or_else(|| {
                        ptr.corrupt("the list of free extents contradicts itself")
                    })?;
                    self.space = Some(space);
                }
                Some(bucket) => {
                    let node = NodeRef::new(ptr, bytes)?;
                    if node.bucket() != bucket as u8 {
                        return Err(ptr.corrupt("a node belongs to another bucket"));
                    }
                    if ptr.level > 0 {
                        for at in (0..node.count()).rev() {
                            children.push((Some(bucket), node.child(at)?));
                        }
                    } else {
                        loaded.leaf(ptr, bucket, &node, visit)?;
                    }
                }
            }
            self.pages_left = self
                .pages_left
                .checked_sub(1)
                .ok_or_else(|| ptr.corrupt("the tree has more nodes than the file has pages"))?;
            self.was_read = false;
            self.left.pop();
            self.left.append(&mut children);
        }
        Ok(None)
    }

    /// The page's bytes if they were read, fewer at the end of the file.
    fn bytes_of(&self, ptr: PagePtr) -> Option<&[u8]> {
        let len_bytes = ptr.len_bytes as usize;
        if ptr.level > 0 {
            return self.was_read.then(|| &self.inner[..len_bytes.min(self.inner.len())]);
        }
        let start = usize::try_from(ptr.offset_bytes().checked_sub(self.window_bytes)?).ok()?;
        match self.window.get(start..start.checked_add(len_bytes)?) {
            None if self.was_read => self.window.get(start..).or(Some(&[])),
            found => found,
        }
    }

    fn loaded(&mut self, data: Vec<u8>) {
        self.was_read = true;
        if self.reads_inner {
            self.inner = data;
        } else {
            self.window = data;
        }
    }
}
