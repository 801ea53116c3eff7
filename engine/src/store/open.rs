//! Opening a store: choosing a meta page, reading the tree, rebuilding what lives in memory.
//!
//! Called at boot and by offline tools, on a disk with nothing else outstanding. Recovery is a
//! table over the two meta pages:
//!
//! | page 0 | page 1 | what it means | what happens |
//! |---|---|---|---|
//! | sound | sound | the usual state | the one with the higher number counts |
//! | sound | damaged | a flip was torn | the sound one counts |
//! | damaged | sound | a flip was torn | the sound one counts |
//! | later format | any | a later program ran here | refused |
//! | any | later format | a later program ran here | refused |
//! | damaged | damaged | not our doing | refused |
//!
//! It must never write to a file that it then refuses.

use std::sync::Arc;

use super::{CheckpointState, EngineConfig, IndexCompaction, Store, txn};
use crate::bucket::changes::Changes;
use crate::bucket::{Bucket, Buckets};
use crate::checkpoint::Checkpointer;
use crate::error::{Corruption, EngineError};
use crate::file::{self, AlignedBuf, Disk, FileId, FileOp, FileOutput, OpenMode};
use crate::index::{Index, State};
use crate::limits::{FILE_RESERVE_BYTES, ROW_BYTES_MAX};
use crate::page::meta::{FORMAT_VERSION, Meta, MetaError};
use crate::page::node::{DB_FILE, NodeRef};
use crate::page::space::Space;
use crate::page::{PagePtr, UNIT_BYTES};
use crate::pins::{RevisionPins, VersionPins};
use crate::table::Tables;
use crate::types::{LogIndex, RevKey};
use crate::view::TreeVersion;
use crate::wire::KvRef;

/// A new file grows under this name.
const PART_FILE: &str = "etcore.db.part";

/// Bytes read ahead: rows lie mostly in the order of their revisions.
const READ_BYTES: usize = 1 << 20;

impl Store {
    /// Opens the page file of `disk`'s root directory, which is made if it is absent. Blocks.
    pub fn open(
        disk: &mut dyn Disk,
        config: EngineConfig,
    ) -> Result<(Store, Checkpointer), EngineError> {
        Self::open_visiting(disk, config, &mut |_| {})
    }

    /// Like [`Store::open`]; `visit` sees every row of the key space in the order of revisions, of
    /// a deletion's only the key. What it makes of the last row of each key is the newest state.
    pub fn open_visiting(
        disk: &mut dyn Disk,
        config: EngineConfig,
        visit: &mut dyn FnMut(&KvRef<'_>),
    ) -> Result<(Store, Checkpointer), EngineError> {
        let file = open_file(disk)?;
        let len_bytes = match call(disk, FileOp::Len { file }, "length")? {
            FileOutput::Len(len_bytes) => len_bytes,
            _ => return Err(unexpected("length")),
        };
        let (window, inner) = (Vec::new(), Vec::new());
        let mut reader = Reader { disk, file, start_bytes: 0, window, inner, pages_left: 0 };
        let (meta, older) = choose_meta(&mut reader)?;
        reader.pages_left = meta.end_unit;
        let space = read_space(&mut reader, &meta)?;
        let mut loaded = Loaded::default();
        for bucket in Bucket::ALL {
            if let Some(root) = meta.roots[bucket as usize] {
                load(&mut reader, root, bucket, &mut loaded, visit)?;
            }
        }
        let file = OpenFile { file, len_bytes };
        Ok(Self::assemble(config, file, meta, older, space, loaded))
    }

    /// A store, and the writing side of its file, of everything that was read of it. `older`: the
    /// last entry that the other meta page has, if it is sound.
    pub(crate) fn assemble(
        config: EngineConfig,
        file: OpenFile,
        meta: Meta,
        older: Option<LogIndex>,
        space: Space,
        loaded: Loaded,
    ) -> (Store, Checkpointer) {
        let mut index = loaded.index;
        let mut cursor = Some(Vec::new());
        while let Some(from) = cursor {
            cursor = index.compact(&from, meta.compact_scheduled, usize::MAX);
        }
        let version_pins = VersionPins::default();
        let tree = TreeVersion {
            root: meta.roots[Bucket::Key as usize],
            _pin: version_pins.pin(meta.checkpoint),
        };
        let store = Store {
            config,
            index,
            tables: Tables::default(),
            buckets: Arc::new(loaded.buckets),
            bucket_changes: Changes::default(),
            revision: meta.revision,
            compact_revision: meta.compact_scheduled,
            applied: meta.applied,
            term: meta.term,
            durable_applied: older.unwrap_or(meta.applied),
            conf_state: meta.conf_state.clone().into(),
            identity: meta.identity,
            tree: Arc::new(tree),
            version_pins: version_pins.clone(),
            revision_pins: RevisionPins::default(),
            index_compaction: IndexCompaction { done: meta.compact_scheduled, pass: None },
            removed: meta.compact_scheduled,
            checkpoint: CheckpointState {
                compact_reached: meta.compact_finished,
                ..CheckpointState::default()
            },
            defragment: false,
            undo: txn::Undo::default(),
            suspended: None,
        };
        (store, Checkpointer::new(file.file, file.len_bytes, meta, space, version_pins))
    }
}

/// A page file that was opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenFile {
    pub(crate) file: FileId,
    pub(crate) len_bytes: u64,
}

/// The file, made under another name and renamed so that it never exists without its metas.
fn open_file(disk: &mut dyn Disk) -> Result<FileId, EngineError> {
    let root = String::new;
    let names = match call(disk, FileOp::List { name: root() }, "list")? {
        FileOutput::Names(names) => names,
        _ => return Err(unexpected("list")),
    };
    if !names.iter().any(|name| name == DB_FILE) {
        if names.iter().any(|name| name == PART_FILE) {
            call(disk, FileOp::Remove { name: PART_FILE.to_owned() }, "remove")?;
        }
        let file = open_named(disk, PART_FILE, OpenMode::CreateNew)?;
        let mut data = AlignedBuf::default();
        for checkpoint in 0..2 {
            data.extend_from_slice(&Meta::empty(checkpoint).encode());
        }
        call(disk, FileOp::Write { file, offset_bytes: 0, data, durable: false }, "write")?;
        // The first reserve; a disk without room for it is found out about by the checkpoints.
        let len_bytes = FILE_RESERVE_BYTES;
        let _ = call(disk, FileOp::Allocate { file, len_bytes }, "extend");
        call(disk, FileOp::Sync { file }, "sync")?;
        call(disk, FileOp::Close { file }, "close")?;
        let (from, to) = (PART_FILE.to_owned(), DB_FILE.to_owned());
        call(disk, FileOp::Rename { from, to }, "rename")?;
        call(disk, FileOp::SyncDir { name: root() }, "sync the directory")?;
    }
    let file = open_named(disk, DB_FILE, OpenMode::Existing)?;
    // A killed process may have left a checkpoint that can be read and would be lost with the
    // power: the next one must not overwrite what only the one before it needs.
    call(disk, FileOp::Sync { file }, "sync")?;
    call(disk, FileOp::SyncDir { name: root() }, "sync the directory")?;
    Ok(file)
}

fn open_named(disk: &mut dyn Disk, name: &str, mode: OpenMode) -> Result<FileId, EngineError> {
    let op = FileOp::Open { name: name.to_owned(), mode, direct: false };
    match call(disk, op, "open")? {
        FileOutput::Opened(file) => Ok(file),
        _ => Err(unexpected("open")),
    }
}

/// The newest sound meta page, and the entry that the other one, if sound, is at.
fn choose_meta(reader: &mut Reader<'_>) -> Result<(Meta, Option<LogIndex>), EngineError> {
    let mut sound = Vec::new();
    for slot in 0..2 {
        let page = reader.read(slot * UNIT_BYTES as u64, UNIT_BYTES)?;
        match Meta::decode(page, slot) {
            Ok(meta) => sound.push(meta),
            Err(MetaError::Damaged) => {}
            Err(MetaError::Version(version)) => {
                let (file, newest) = (DB_FILE.to_owned(), FORMAT_VERSION);
                return Err(EngineError::UnknownFormat { file, version, newest });
            }
        }
    }
    sound.sort_by_key(|meta| meta.checkpoint);
    let newest =
        sound.pop().ok_or_else(|| EngineError::corrupt(DB_FILE, 0, Corruption::BothMetas))?;
    let older = sound.pop();
    if older.as_ref().is_some_and(|older| older.checkpoint + 1 != newest.checkpoint) {
        let what = Corruption::Structure("the numbers of the meta pages do not follow each other");
        return Err(EngineError::corrupt(DB_FILE, newest.offset_bytes(), what));
    }
    Ok((newest, older.map(|older| older.applied)))
}

fn read_space(reader: &mut Reader<'_>, meta: &Meta) -> Result<Space, EngineError> {
    let Some(ptr) = meta.space else { return Ok(Space::new(meta.end_unit)) };
    let bytes = reader.page(ptr)?;
    Space::decode(bytes, meta.end_unit)
        .ok_or_else(|| ptr.corrupt("the list of free extents contradicts itself"))
}

/// What lives in memory, of the rows read so far.
#[derive(Debug)]
pub(crate) struct Loaded {
    index: Index,
    buckets: Buckets,
    /// The row key before and its bucket, to see that keys ascend across nodes.
    last: Option<(Bucket, Vec<u8>)>,
}

impl Default for Loaded {
    fn default() -> Self {
        Self { index: Index::new(), buckets: Buckets::default(), last: None }
    }
}

impl Loaded {
    /// Takes the rows of the next leaf of `bucket`, in the order of keys; `visit` sees those of the
    /// key space.
    pub(crate) fn leaf(
        &mut self,
        ptr: PagePtr,
        bucket: Bucket,
        node: &NodeRef<'_>,
        visit: &mut dyn FnMut(&KvRef<'_>),
    ) -> Result<(), EngineError> {
        for at in 0..node.count() {
            let (key, value) = node.row(at)?;
            let before = self.last.as_ref().filter(|(known, _)| *known == bucket);
            if before.is_some_and(|(_, before)| &before[..] >= key) {
                return Err(ptr.corrupt("row keys do not ascend"));
            }
            let last = self.last.get_or_insert_with(|| (bucket, Vec::new()));
            last.0 = bucket;
            last.1.clear();
            last.1.extend_from_slice(key);
            if bucket == Bucket::Key {
                load_row(ptr, key, value, &mut self.index, visit)?;
            } else {
                self.buckets.put(bucket, key, value, |_| {});
            }
        }
        Ok(())
    }
}

/// Visits the subtree's rows in key order. Levels fall from parent to child and no more pages are
/// read than the file has units, so this ends whatever the bytes say.
fn load(
    reader: &mut Reader<'_>,
    ptr: PagePtr,
    bucket: Bucket,
    loaded: &mut Loaded,
    visit: &mut dyn FnMut(&KvRef<'_>),
) -> Result<(), EngineError> {
    let bytes = reader.page(ptr)?;
    let node = NodeRef::new(ptr, bytes)?;
    if node.bucket() != bucket as u8 {
        return Err(ptr.corrupt("a node belongs to another bucket"));
    }
    if ptr.level > 0 {
        let children = (0..node.count()).map(|at| node.child(at)).collect::<Result<Vec<_>, _>>()?;
        for child in children {
            load(reader, child, bucket, loaded, visit)?;
        }
        return Ok(());
    }
    loaded.leaf(ptr, bucket, &node, visit)
}

fn load_row(
    ptr: PagePtr,
    key: &[u8],
    value: &[u8],
    index: &mut Index,
    visit: &mut dyn FnMut(&KvRef<'_>),
) -> Result<(), EngineError> {
    let (at, tombstone) =
        RevKey::from_row_key(key).ok_or_else(|| ptr.corrupt("a row key is no revision"))?;
    let kv = KvRef::parse(value).map_err(|_| ptr.corrupt("a row is no KeyValue"))?;
    let len = u32::try_from(value.len()).ok().filter(|len| *len as usize <= ROW_BYTES_MAX);
    let len = len.ok_or_else(|| ptr.corrupt("a row is too long"))?;
    let state = if tombstone {
        State::tombstone(at, len)
    } else {
        State::put(at, kv.create_revision, kv.version.cast_unsigned(), len)
    };
    index.update(kv.key, |_| state);
    visit(&kv);
    Ok(())
}

/// Blocking reads through a window, so that pages side by side cost one read.
struct Reader<'d> {
    disk: &'d mut dyn Disk,
    file: FileId,
    start_bytes: u64,
    window: Vec<u8>,
    inner: Vec<u8>,
    pages_left: u64,
}

impl Reader<'_> {
    /// The page's verified bytes.
    fn page(&mut self, ptr: PagePtr) -> Result<&[u8], EngineError> {
        self.pages_left = self
            .pages_left
            .checked_sub(1)
            .ok_or_else(|| ptr.corrupt("the tree has more nodes than the file has pages"))?;
        let (offset_bytes, len_bytes) = (ptr.offset_bytes(), ptr.len_bytes as usize);
        if ptr.level > 0 {
            // Inner nodes lie apart from the leaves; they must not move the window away.
            self.inner = self.fetch(offset_bytes, len_bytes)?;
            ptr.verify(&self.inner)?;
            return Ok(&self.inner);
        }
        let bytes = self.read(offset_bytes, len_bytes)?;
        ptr.verify(bytes)?;
        Ok(bytes)
    }

    fn fetch(&mut self, offset_bytes: u64, len_bytes: usize) -> Result<Vec<u8>, EngineError> {
        let op = FileOp::Read { file: self.file, offset_bytes, len_bytes };
        match call(self.disk, op, "read")? {
            FileOutput::Data(bytes) => Ok(bytes),
            _ => Err(unexpected("read")),
        }
    }

    /// Less than `len_bytes` at the end of the file.
    fn read(&mut self, offset_bytes: u64, len_bytes: usize) -> Result<&[u8], EngineError> {
        let end = offset_bytes + len_bytes as u64;
        let have = self.start_bytes..self.start_bytes + self.window.len() as u64;
        if offset_bytes < have.start || end > have.end {
            self.window = self.fetch(offset_bytes, len_bytes.max(READ_BYTES))?;
            self.start_bytes = offset_bytes;
        }
        let start = usize::try_from(offset_bytes - self.start_bytes).expect("within the window");
        let end = (start + len_bytes).min(self.window.len());
        Ok(&self.window[start.min(end)..end])
    }
}

fn call(disk: &mut dyn Disk, op: FileOp, what: &'static str) -> Result<FileOutput, EngineError> {
    file::run(disk, op).map_err(|error| EngineError::io(DB_FILE, what, &error))
}

fn unexpected(operation: &'static str) -> EngineError {
    let error = std::io::Error::other("the disk answered another operation");
    EngineError::io(DB_FILE, operation, &error)
}
