//! A disk in memory that remembers what a power cut could lose.
//!
//! Tests and the simulator hand it to the code under test as its [`Disk`]. It must never make
//! anything durable that was not synced, and never forget anything that was.
//!
//! The model: a sector of 512 bytes is written whole or not at all; the sectors of unsynced writes
//! reach the device in any order and any subset; a failed sync hardens nothing, and neither does a
//! later sync of the same writes (as on Linux); a name created, renamed or removed survives only if
//! its directory was synced, even if the file was.

mod image;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::file::{Completion, Disk, FileId, FileOp, SharedFile, SimulatedFile, Token};
use crate::testing::prng::Prng;
use image::Image;

/// Unit of atomicity of the simulated device.
pub const SECTOR_BYTES: usize = 512;

/// A handle; clones share the disk, and each receives the completions of its own operations.
///
/// Operations are counted as two sequences, each from 0: *changes* (everything that alters a file
/// or directory or syncs one) and *reads* (the rest, but not `Close`).
pub struct MemDisk {
    image: Arc<Mutex<Image>>,
    manual: Option<Prng>,
    queued: Vec<(Token, FileOp)>,
    completed: Vec<Completion>,
}

impl MemDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::from_image(Image::default())
    }

    /// From now on operations of this handle stay queued until `poll` or `wait`, which carry out
    /// some of them (`wait`: at least one) in an order drawn from `seed`.
    pub fn complete_in_seeded_order(&mut self, seed: u64) {
        self.manual = Some(Prng::new(seed));
    }

    /// How many changes were carried out or refused so far.
    pub fn change_count(&self) -> u64 {
        self.image().change_count()
    }

    /// How many reads were carried out or refused so far.
    pub fn read_count(&self) -> u64 {
        self.image().read_count()
    }

    /// How many syncs (durable writes, zero fills and directory syncs included) have succeeded.
    pub fn sync_count(&self) -> u64 {
        self.image().sync_count()
    }

    /// The change numbered `change` is cut off half way: its effect is as uncertain as an unsynced
    /// write's, and it and every operation after it complete with an error.
    pub fn crash_at(&self, change: u64) {
        self.image().crash_at(change);
    }

    /// True once the change named to [`MemDisk::crash_at`] was met.
    pub fn has_crashed(&self) -> bool {
        self.image().has_crashed()
    }

    /// The change numbered `change` completes with an error of `kind`; the others work on.
    pub fn fail_at(&self, change: u64, kind: io::ErrorKind) {
        self.image().fail_at(change, kind);
    }

    /// From now on no file can be extended, or, with `false`, all can again.
    pub fn set_full(&self, is_full: bool) {
        self.image().set_full(is_full);
    }

    /// The read numbered `read` completes with an error of `kind`.
    pub fn fail_read_at(&self, read: u64, kind: io::ErrorKind) {
        self.image().fail_read_at(read, kind);
    }

    /// What a machine could find after losing power now, drawn from `seed`: a new disk, all of
    /// whose content is durable. This disk is left as it is. Seed 0 loses everything unsynced,
    /// seed 1 keeps it all, others draw per file, write or sector.
    pub fn crash(&self, seed: u64) -> Self {
        Self::from_image(self.image().crash(seed))
    }

    /// The current content of the file `name`.
    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        self.image().content(name)
    }

    /// Up to `len_bytes` of the file `name`; `None` if there is no such file.
    pub fn read_at(&self, name: &str, offset_bytes: u64, len_bytes: usize) -> Option<Vec<u8>> {
        self.image().read_at(name, offset_bytes, len_bytes)
    }

    /// Overwrites bytes of `name` on the device itself, as bit rot or a misdirected write would.
    /// False if there is no such file.
    pub fn patch(&self, name: &str, offset_bytes: u64, bytes: &[u8]) -> bool {
        self.image().patch(name, offset_bytes, bytes)
    }

    /// Cuts `name` on the device itself. False if there is no such file.
    pub fn truncate(&self, name: &str, len_bytes: u64) -> bool {
        self.image().truncate(name, len_bytes)
    }

    /// All file names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.image().names()
    }

    fn from_image(image: Image) -> Self {
        Self {
            image: Arc::new(Mutex::new(image)),
            manual: None,
            queued: Vec::new(),
            completed: Vec::new(),
        }
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().expect("no operation on the image panics")
    }

    fn carry_out(&mut self, token: Token, op: FileOp) {
        let result = self.image().execute(op);
        self.completed.push(Completion { token, result });
    }

    fn carry_out_queued(&mut self, at_least: usize) {
        let Some(mut prng) = self.manual.take() else { return };
        let some = prng.index(self.queued.len() + 1).max(at_least).min(self.queued.len());
        for _ in 0..some {
            if self.queued.is_empty() {
                break;
            }
            let index = prng.index(self.queued.len());
            let (token, op) = self.queued.remove(index);
            if let FileOp::Close { file } = op {
                // Outstanding operations on a closed file finish first.
                let (before, others): (Vec<_>, Vec<_>) =
                    self.queued.drain(..).partition(|(_, op)| image::file_of(op) == Some(file));
                self.queued = others;
                for (token, op) in before {
                    self.carry_out(token, op);
                }
            }
            self.carry_out(token, op);
        }
        self.manual = Some(prng);
    }
}

impl Default for MemDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for MemDisk {
    fn clone(&self) -> Self {
        Self {
            image: self.image.clone(),
            manual: self.manual.clone(),
            queued: Vec::new(),
            completed: Vec::new(),
        }
    }
}

impl Disk for MemDisk {
    fn submit(&mut self, token: Token, op: FileOp) {
        if self.manual.is_some() {
            self.queued.push((token, op));
        } else {
            self.carry_out(token, op);
        }
    }

    fn poll(&mut self, out: &mut Vec<Completion>) {
        self.carry_out_queued(0);
        out.append(&mut self.completed);
    }

    fn wait(&mut self, out: &mut Vec<Completion>) {
        if self.completed.is_empty() {
            self.carry_out_queued(1);
        }
        out.append(&mut self.completed);
    }

    fn share(&self, file: FileId) -> Option<SharedFile> {
        let inode = self.image().open_inode(file)?;
        let lent = LentFile { image: self.image.clone(), inode };
        Some(SharedFile::Simulated(Arc::new(lent)))
    }
}

/// A file of a [`MemDisk`] for readers; their reads are not counted and never fail.
struct LentFile {
    image: Arc<Mutex<Image>>,
    inode: usize,
}

impl SimulatedFile for LentFile {
    fn read_at(&self, offset_bytes: u64, len_bytes: usize) -> Vec<u8> {
        let image = self.image.lock().expect("no operation on the image panics");
        image.read_inode(self.inode, offset_bytes, len_bytes)
    }
}

impl std::fmt::Debug for LentFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LentFile").field("inode", &self.inode).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
