//! The state behind a [`MemDisk`](super::MemDisk): what programs see, what is durable, and the list
//! of changes in between.
//!
//! Used by `MemDisk` alone. It must never complete a change that `crash_at` has cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::SECTOR_BYTES;
use crate::file::{FileId, FileOp, FileOutput, OpenMode};
use crate::testing::prng::Prng;
use crate::testing::sparse_file::SparseFile;

/// Whether a change survives a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Undecided: a sync will harden it.
    Open,
    /// Undecided for ever: its sync failed, and later ones do not see it.
    Stuck,
    /// Durable.
    Hard,
}

#[derive(Debug, Clone)]
enum Change {
    Bytes { offset_bytes: u64, bytes: Vec<u8> },
    Len(u64),
}

/// A file: `durable` with all of `changes` applied in order is `visible`; the first change, if any,
/// is not hard.
#[derive(Debug, Clone, Default)]
struct Inode {
    visible: SparseFile,
    durable: SparseFile,
    changes: Vec<(Change, Fate)>,
}

/// One atomic step of a directory; renames unlink and link at once.
#[derive(Debug, Clone)]
struct NameChange {
    directory: String,
    unlink: Option<String>,
    link: Option<(String, Entry)>,
    fate: Fate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    File(usize),
    Directory,
}

#[derive(Debug, Default)]
pub(super) struct Image {
    /// No file can be extended.
    is_full: bool,
    inodes: Vec<Inode>,
    visible_names: BTreeMap<String, Entry>,
    durable_names: BTreeMap<String, Entry>,
    name_changes: Vec<NameChange>,
    open_files: BTreeMap<FileId, usize>,
    next_file: u32,
    change_count: u64,
    read_count: u64,
    sync_count: u64,
    crash_at: Option<u64>,
    crashed: bool,
    failures: BTreeMap<u64, io::ErrorKind>,
    read_failures: BTreeMap<u64, io::ErrorKind>,
}

impl Image {
    pub(super) fn execute(&mut self, op: FileOp) -> io::Result<FileOutput> {
        if self.crashed {
            return Err(crashed());
        }
        if let FileOp::Close { file } = op {
            self.open_files.remove(&file);
            return Ok(FileOutput::Done);
        }
        if !self.changes_something(&op) {
            let number = self.read_count;
            self.read_count += 1;
            return match self.read_failures.get(&number) {
                Some(kind) => Err((*kind).into()),
                None => self.execute_read(op),
            };
        }
        let number = self.change_count;
        self.change_count += 1;
        if self.crash_at == Some(number) {
            self.execute_half(op, Fate::Open);
            self.crashed = true;
            return Err(crashed());
        }
        if let Some(kind) = self.failures.get(&number).copied() {
            self.execute_half(op, Fate::Stuck);
            return Err(kind.into());
        }
        self.execute_change(op)
    }

    pub(super) fn change_count(&self) -> u64 {
        self.change_count
    }

    pub(super) fn read_count(&self) -> u64 {
        self.read_count
    }

    pub(super) fn sync_count(&self) -> u64 {
        self.sync_count
    }

    pub(super) fn crash_at(&mut self, change: u64) {
        self.crash_at = Some(change);
    }

    pub(super) fn has_crashed(&self) -> bool {
        self.crashed
    }

    pub(super) fn fail_at(&mut self, change: u64, kind: io::ErrorKind) {
        self.failures.insert(change, kind);
    }

    pub(super) fn fail_read_at(&mut self, read: u64, kind: io::ErrorKind) {
        self.read_failures.insert(read, kind);
    }

    pub(super) fn crash(&self, seed: u64) -> Image {
        let mut prng = Prng::new(seed);
        let mut names = self.durable_names.clone();
        for change in &self.name_changes {
            if change.fate == Fate::Hard || survives(seed, &mut prng) {
                apply_names(&mut names, change);
            }
        }
        drop_orphans(&mut names);
        let mut inodes = Vec::with_capacity(self.inodes.len());
        for inode in &self.inodes {
            let mut content = inode.durable.clone();
            let mood = Mood::draw(seed, inode.changes.len(), &mut prng);
            for (at, (change, fate)) in inode.changes.iter().enumerate() {
                match (fate, mood.keeps(at, &mut prng)) {
                    (Fate::Hard, _) | (_, Some(true)) => apply(&mut content, change),
                    (_, Some(false)) => {}
                    (_, None) => apply_uncertain(&mut content, change, &mut prng),
                }
            }
            inodes.push(Inode { visible: content.clone(), durable: content, changes: Vec::new() });
        }
        Image { inodes, visible_names: names.clone(), durable_names: names, ..Image::default() }
    }

    pub(super) fn set_full(&mut self, is_full: bool) {
        self.is_full = is_full;
    }

    pub(super) fn content(&self, name: &str) -> Option<Vec<u8>> {
        let file = &self.inodes[self.inode_named(name).ok()?].visible;
        Some(file.read(0, usize::try_from(file.len()).ok()?))
    }

    pub(super) fn read_at(&self, name: &str, offset: u64, len_bytes: usize) -> Option<Vec<u8>> {
        Some(self.inodes[self.inode_named(name).ok()?].visible.read(offset, len_bytes))
    }

    /// The file that is open as `file`, whatever its name is now.
    pub(super) fn open_inode(&self, file: FileId) -> Option<usize> {
        self.open_files.get(&file).copied()
    }

    pub(super) fn read_inode(&self, inode: usize, offset: u64, len_bytes: usize) -> Vec<u8> {
        self.inodes[inode].visible.read(offset, len_bytes)
    }

    pub(super) fn patch(&mut self, name: &str, offset_bytes: u64, bytes: &[u8]) -> bool {
        let change = Change::Bytes { offset_bytes, bytes: bytes.to_vec() };
        self.inode_named(name).map(|inode| self.change(inode, change, Fate::Hard)).is_ok()
    }

    pub(super) fn truncate(&mut self, name: &str, len_bytes: u64) -> bool {
        let change = Change::Len(len_bytes);
        self.inode_named(name).map(|inode| self.change(inode, change, Fate::Hard)).is_ok()
    }

    pub(super) fn names(&self) -> Vec<String> {
        let files = self.visible_names.iter().filter(|(_, entry)| **entry != Entry::Directory);
        files.map(|(name, _)| name.clone()).collect()
    }

    fn changes_something(&self, op: &FileOp) -> bool {
        match op {
            FileOp::Open { mode: OpenMode::Existing, .. } => false,
            FileOp::Open { name, .. } => !self.visible_names.contains_key(name),
            FileOp::Close { .. }
            | FileOp::Len { .. }
            | FileOp::Read { .. }
            | FileOp::List { .. } => false,
            _ => true,
        }
    }

    fn execute_read(&mut self, op: FileOp) -> io::Result<FileOutput> {
        match op {
            FileOp::Open { name, mode, .. } => {
                let inode = self.inode_named(&name)?;
                if mode == OpenMode::CreateNew {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                Ok(self.opened(inode))
            }
            FileOp::Len { file } => {
                Ok(FileOutput::Len(self.inodes[self.inode_open(file)?].visible.len()))
            }
            FileOp::Read { file, offset_bytes, len_bytes } => {
                let inode = self.inode_open(file)?;
                Ok(FileOutput::Data(self.inodes[inode].visible.read(offset_bytes, len_bytes)))
            }
            FileOp::List { name } => {
                let names = self.visible_names.keys().filter(|path| parent_of(path) == name);
                let last = |path: &String| path.rsplit('/').next().unwrap_or(path).to_owned();
                Ok(FileOutput::Names(names.map(last).collect()))
            }
            other => Err(io::Error::other(format!("{other:?} is not a read"))),
        }
    }

    fn execute_change(&mut self, op: FileOp) -> io::Result<FileOutput> {
        match op {
            FileOp::Open { name, .. } => {
                let inode = self.create_file(&name)?;
                Ok(self.opened(inode))
            }
            FileOp::Write { file, offset_bytes, data, durable } => {
                let inode = self.inode_open(file)?;
                let change = Change::Bytes { offset_bytes, bytes: data.to_vec() };
                self.change(inode, change, if durable { Fate::Hard } else { Fate::Open });
                self.sync_count += u64::from(durable);
                Ok(FileOutput::Written(data))
            }
            FileOp::Allocate { .. } | FileOp::ZeroFill { .. } if self.is_full => {
                Err(io::ErrorKind::StorageFull.into())
            }
            FileOp::ZeroFill { file, len_bytes } => {
                let inode = self.inode_open(file)?;
                if self.inodes[inode].visible.len() < len_bytes {
                    self.change(inode, Change::Len(len_bytes), Fate::Open);
                }
                self.harden(inode);
                Ok(FileOutput::Done)
            }
            FileOp::Sync { file } => {
                let inode = self.inode_open(file)?;
                self.harden(inode);
                Ok(FileOutput::Done)
            }
            FileOp::SetLen { file, len_bytes } | FileOp::Allocate { file, len_bytes } => {
                let inode = self.inode_open(file)?;
                self.change(inode, Change::Len(len_bytes), Fate::Open);
                Ok(FileOutput::Done)
            }
            FileOp::Rename { from, to } => self.rename(from, to).map(|()| FileOutput::Done),
            FileOp::Remove { name } => {
                self.inode_named(&name)?;
                self.change_names(&name.clone(), Some(name), None);
                Ok(FileOutput::Done)
            }
            FileOp::SyncDir { name } => {
                self.require_directory(&name)?;
                self.harden_names(&name);
                Ok(FileOutput::Done)
            }
            FileOp::CreateDir { name } => {
                self.create_directories(&name);
                Ok(FileOutput::Done)
            }
            other => Err(io::Error::other(format!("{other:?} changes nothing"))),
        }
    }

    /// A change that was interrupted: its data may have arrived, nothing is hardened.
    fn execute_half(&mut self, op: FileOp, fate: Fate) {
        match op {
            FileOp::Write { file, offset_bytes, data, .. } => {
                if let Ok(inode) = self.inode_open(file) {
                    let change = Change::Bytes { offset_bytes, bytes: data.to_vec() };
                    self.change(inode, change, fate);
                }
            }
            FileOp::ZeroFill { file, len_bytes }
            | FileOp::SetLen { file, len_bytes }
            | FileOp::Allocate { file, len_bytes } => {
                if let Ok(inode) = self.inode_open(file) {
                    self.change(inode, Change::Len(len_bytes), fate);
                }
            }
            FileOp::Sync { file } if fate == Fate::Stuck => {
                if let Ok(inode) = self.inode_open(file) {
                    for (_, open) in &mut self.inodes[inode].changes {
                        if *open == Fate::Open {
                            *open = Fate::Stuck;
                        }
                    }
                }
            }
            FileOp::Sync { .. } | FileOp::SyncDir { .. } => {}
            // A failed change of a name has no effect; a cut-off one may have happened.
            names if fate == Fate::Open => drop(self.execute_change(names)),
            _ => {}
        }
    }

    fn change(&mut self, inode: usize, change: Change, fate: Fate) {
        let inode = &mut self.inodes[inode];
        apply(&mut inode.visible, &change);
        inode.changes.push((change, fate));
        inode.settle();
    }

    fn harden(&mut self, inode: usize) {
        self.sync_count += 1;
        let inode = &mut self.inodes[inode];
        for (_, fate) in &mut inode.changes {
            if *fate == Fate::Open {
                *fate = Fate::Hard;
            }
        }
        inode.settle();
    }

    fn create_file(&mut self, name: &str) -> io::Result<usize> {
        self.require_directory(&parent_of(name))?;
        self.inodes.push(Inode::default());
        let inode = self.inodes.len() - 1;
        self.change_names(name, None, Some((name.to_owned(), Entry::File(inode))));
        Ok(inode)
    }

    fn create_directories(&mut self, name: &str) {
        let mut path = String::new();
        for part in name.split('/').filter(|part| !part.is_empty()) {
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(part);
            if !self.visible_names.contains_key(&path) {
                self.change_names(&path, None, Some((path.clone(), Entry::Directory)));
            }
        }
    }

    fn rename(&mut self, from: String, to: String) -> io::Result<()> {
        self.require_directory(&parent_of(&to))?;
        let entry = *self.visible_names.get(&from).ok_or(io::ErrorKind::NotFound)?;
        if entry == Entry::Directory {
            for path in self.visible_names.keys() {
                if parent_of(path).starts_with(&from) {
                    return Err(io::Error::other("renaming a directory with files in it"));
                }
            }
        }
        self.change_names(&to.clone(), Some(from), Some((to, entry)));
        Ok(())
    }

    fn change_names(&mut self, of: &str, unlink: Option<String>, link: Option<(String, Entry)>) {
        let change = NameChange { directory: parent_of(of), unlink, link, fate: Fate::Open };
        apply_names(&mut self.visible_names, &change);
        self.name_changes.push(change);
    }

    fn harden_names(&mut self, directory: &str) {
        self.sync_count += 1;
        for change in &mut self.name_changes {
            if change.directory == directory {
                change.fate = Fate::Hard;
            }
        }
        let soft = self.name_changes.iter().position(|change| change.fate != Fate::Hard);
        for change in self.name_changes.drain(..soft.unwrap_or(self.name_changes.len())) {
            apply_names(&mut self.durable_names, &change);
        }
    }

    fn opened(&mut self, inode: usize) -> FileOutput {
        let id = FileId(self.next_file);
        self.next_file += 1;
        self.open_files.insert(id, inode);
        FileOutput::Opened(id)
    }

    fn inode_open(&self, file: FileId) -> io::Result<usize> {
        self.open_files.get(&file).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn inode_named(&self, name: &str) -> io::Result<usize> {
        match self.visible_names.get(name) {
            Some(Entry::File(inode)) => Ok(*inode),
            Some(Entry::Directory) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn require_directory(&self, name: &str) -> io::Result<()> {
        if name.is_empty() || self.visible_names.get(name) == Some(&Entry::Directory) {
            return Ok(());
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

impl Inode {
    /// Moves the hard prefix of the changes into the durable content.
    fn settle(&mut self) {
        let soft = self.changes.iter().position(|(_, fate)| *fate != Fate::Hard);
        for (change, _) in self.changes.drain(..soft.unwrap_or(self.changes.len())) {
            apply(&mut self.durable, &change);
        }
    }
}

/// The file an operation is about, if it is about an open one.
pub(super) fn file_of(op: &FileOp) -> Option<FileId> {
    match op {
        FileOp::Close { file }
        | FileOp::Len { file }
        | FileOp::Read { file, .. }
        | FileOp::Write { file, .. }
        | FileOp::ZeroFill { file, .. }
        | FileOp::Sync { file }
        | FileOp::Allocate { file, .. }
        | FileOp::SetLen { file, .. } => Some(*file),
        _ => None,
    }
}

fn apply(content: &mut SparseFile, change: &Change) {
    match change {
        Change::Bytes { offset_bytes, bytes } => content.write(*offset_bytes, bytes),
        Change::Len(len_bytes) => content.set_len(*len_bytes),
    }
}

/// What a power cut does to the unsynced changes of one file. Each alone would leave the faults
/// unseen that another shows: sectors drawn one by one hardly ever keep a whole page.
#[derive(Debug, Clone, Copy)]
enum Mood {
    LoseAll,
    KeepAll,
    /// Each sector by itself.
    Tear,
    /// Each change by itself, whole.
    Pick,
    /// Writes before this one are lost; it and all after it are kept.
    KeepFrom(usize),
}

impl Mood {
    fn draw(seed: u64, changes: usize, prng: &mut Prng) -> Self {
        match (seed, prng.below(8)) {
            (0, _) | (2.., 0) => Self::LoseAll,
            (1, _) | (_, 1) => Self::KeepAll,
            (_, 2) => Self::Pick,
            (_, 3) => Self::KeepFrom(prng.index(changes + 1)),
            _ => Self::Tear,
        }
    }

    /// Whether the change of this number is kept; `None` if its sectors are drawn.
    fn keeps(self, at: usize, prng: &mut Prng) -> Option<bool> {
        match self {
            Self::LoseAll => Some(false),
            Self::KeepAll => Some(true),
            Self::Tear => None,
            Self::Pick => Some(prng.chance(1, 2)),
            Self::KeepFrom(first) => Some(at >= first),
        }
    }
}

/// Draws the sectors of a change one by one.
fn apply_uncertain(content: &mut SparseFile, change: &Change, prng: &mut Prng) {
    match change {
        Change::Len(_) => {
            if prng.chance(1, 2) {
                apply(content, change);
            }
        }
        Change::Bytes { offset_bytes, bytes } => {
            let mut start = 0;
            while start < bytes.len() {
                let at = offset_bytes + start as u64;
                let lead = usize::try_from(at % SECTOR_BYTES as u64).expect("below a sector");
                let end = bytes.len().min(start + SECTOR_BYTES - lead);
                if prng.chance(1, 2) {
                    content.write(at, &bytes[start..end]);
                } else if prng.chance(1, 4) && content.len() < offset_bytes + bytes.len() as u64 {
                    // The new length arrived before the data.
                    content.set_len(offset_bytes + bytes.len() as u64);
                }
                start = end;
            }
        }
    }
}

fn survives(seed: u64, prng: &mut Prng) -> bool {
    match seed {
        0 => false,
        1 => true,
        _ => prng.chance(1, 2),
    }
}

fn apply_names(names: &mut BTreeMap<String, Entry>, change: &NameChange) {
    if let Some(name) = &change.unlink {
        names.remove(name);
    }
    if let Some((name, entry)) = &change.link {
        names.insert(name.clone(), *entry);
    }
}

/// Removes whatever lies in a directory that did not survive.
fn drop_orphans(names: &mut BTreeMap<String, Entry>) {
    let mut directories: BTreeSet<String> = BTreeSet::from([String::new()]);
    // A directory sorts before what is in it, so one pass suffices.
    names.retain(|name, entry| {
        let reachable = directories.contains(&parent_of(name));
        if reachable && *entry == Entry::Directory {
            directories.insert(name.clone());
        }
        reachable
    });
}

fn parent_of(path: &str) -> String {
    path.rsplit_once('/').map_or(String::new(), |(parent, _)| parent.to_owned())
}

fn crashed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the disk has crashed")
}
