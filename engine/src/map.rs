//! The page file through memory maps: the [`PageSource`] of a running member.
//!
//! Each reading thread owns a [`PageMap`]. The file is mapped in windows; a window is dereferenced
//! only after a thread that may block has populated it, so that an I/O error is a value there and
//! not a signal here; one that comes later, when the kernel has let go of a page and reads it
//! again, ends the process ([`fault`]). This file holds unsafe code; its contract:
//!
//! * The checkpointer shortens the file only above every page that a durable meta or a pinned
//!   version reaches, so every byte of a page that is read has a page of memory behind it. Windows
//!   made before a cut are dropped ([`PageMap::forget`]) before a view is read that was published
//!   after it: else a window might reach into what was cut and has grown again, unpopulated. (The
//!   data directory is locked against other processes.)
//! * A page is read only through a pointer that the tree of a live view contains. The view pins its
//!   version, and pages of pinned versions are not overwritten: so the bytes of a returned slice
//!   do not change while it lives. Slices of whole windows are never made: other pages in them
//!   may be written at any time.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::error::{Corruption, EngineError};
use crate::page::node::DB_FILE;
use crate::page::{Fetch, PagePtr, PageSource, Ticket, UNIT_BYTES};

pub mod fault;

/// Units of a window.
const WINDOW_UNITS: u64 = 256;
/// Bytes of a window.
pub const WINDOW_BYTES: u64 = WINDOW_UNITS * UNIT_BYTES as u64;
/// Windows being populated at a time, per map; more are asked for again by their readers.
pub const POPULATE_DEPTH: usize = 64;

/// Windows that are kept whatever the budget says: a descent touches one per level, and starts
/// again from the root after each `Pending`, so it must not push out its own.
pub const WINDOWS_MIN: usize = 16;

/// Adjacent windows mapped as one: more than one only for pages that cross a border.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    first: u64,
    count: u64,
}

/// One thread's windows, at most a budget of bytes of them.
#[derive(Debug)]
pub struct PageMap {
    file: Arc<File>,
    budget_bytes: u64,
    /// Ascending.
    windows: Vec<(Span, Window)>,
    /// Position of the window used last: neighbours are read one after the other.
    last_used: usize,
    pending: BTreeMap<Span, Ticket>,
    failed: BTreeMap<Span, EngineError>,
    requests: Vec<PopulateRequest>,
    next_ticket: u64,
    clock: u64,
    /// Cuts of the file that the windows are not older than.
    cuts: u64,
    /// Bytes that the evaluation under way may still have fetched before it reads in place.
    patience_bytes: Option<u64>,
}

#[derive(Debug)]
struct Window {
    /// Before the map, so that it is forgotten first.
    _place: fault::Place,
    map: MmapRaw,
    /// Per unit, the checksum that the page starting there was verified against; 0 if none was.
    verified: Vec<u64>,
    used_at: u64,
}

const VERIFIED: u64 = 1 << 32;

/// Work for a thread that may block.
#[derive(Debug)]
pub struct PopulateRequest {
    ticket: Ticket,
    span: Span,
    file: Arc<File>,
    cuts: u64,
}

/// The outcome of a [`PopulateRequest`].
#[derive(Debug)]
pub struct Populated {
    ticket: Ticket,
    span: Span,
    file: Arc<File>,
    cuts: u64,
    result: io::Result<MmapRaw>,
}

impl PopulateRequest {
    /// Maps and reads the window. Blocks.
    pub fn run(self) -> Populated {
        let result = self.file.metadata().and_then(|metadata| self.populate(metadata.len()));
        self.finish(result)
    }

    /// After a failure the window is tried again: the file may have been cut since its length was
    /// asked for, within the window and behind all that anybody reads.
    fn finish(self, result: io::Result<MmapRaw>) -> Populated {
        let again = |_| self.file.metadata().and_then(|metadata| self.populate(metadata.len()));
        let result = result.or_else(again);
        Populated { ticket: self.ticket, span: self.span, file: self.file, cuts: self.cuts, result }
    }

    fn populate(&self, file_len: u64) -> io::Result<MmapRaw> {
        let offset = self.span.first * WINDOW_BYTES;
        let len = file_len.saturating_sub(offset).min(self.span.count * WINDOW_BYTES);
        // Only whole units: the rest of the last page of a file reads as zeros until it grows.
        let len = len - len % UNIT_BYTES as u64;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let map = MmapOptions::new().offset(offset).len(len).map_raw_read_only(&*self.file)?;
        match map.advise(Advice::PopulateRead) {
            Ok(()) => Ok(map),
            // Kernels before 5.14: reading brings the pages into the cache, errors included.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let mut buffer = vec![0; UNIT_BYTES * 16];
                let mut at = 0;
                while at < len {
                    let count = buffer.len().min(len - at);
                    self.file.read_exact_at(&mut buffer[..count], offset + at as u64)?;
                    at += count;
                }
                Ok(map)
            }
            Err(error) => Err(error),
        }
    }
}

impl PageMap {
    /// A map of `file` with at most `budget_bytes` of windows (but at least
    /// [`WINDOWS_MIN`] windows).
    pub fn new(file: Arc<File>, budget_bytes: u64) -> Self {
        Self {
            file,
            budget_bytes,
            windows: Vec::new(),
            last_used: 0,
            pending: BTreeMap::new(),
            failed: BTreeMap::new(),
            requests: Vec::new(),
            next_ticket: 0,
            clock: 0,
            cuts: 0,
            patience_bytes: None,
        }
    }

    /// Moves the requests made since the last call to the end of `out`. Each is to be run on a
    /// thread that may block, and its outcome handed to [`PageMap::on_populated`].
    pub fn take_requests(&mut self, out: &mut Vec<PopulateRequest>) {
        out.append(&mut self.requests);
    }

    /// Takes over a populated window; whoever waits for the returned ticket asks again.
    pub fn on_populated(&mut self, populated: Populated) -> Ticket {
        let Populated { ticket, span, file, cuts, result } = populated;
        if !Arc::ptr_eq(&file, &self.file) {
            // It belongs to a page file that is read no more.
            return ticket;
        }
        self.pending.remove(&span);
        if cuts != self.cuts {
            // It may be of the file before a cut: whoever waits asks for it anew.
            return ticket;
        }
        match result {
            Ok(map) => {
                self.clock += 1;
                let verified = vec![0; map.len() / UNIT_BYTES];
                if let Some(left) = &mut self.patience_bytes {
                    *left = left.saturating_sub(map.len() as u64);
                }
                let offset = span.first * WINDOW_BYTES;
                let place = fault::Place::new(map.as_ptr() as usize, map.len(), offset);
                let window = Window { _place: place, map, verified, used_at: self.clock };
                match self.windows.binary_search_by_key(&span, |(span, _)| *span) {
                    Ok(at) => self.windows[at].1 = window,
                    Err(at) => self.windows.insert(at, (span, window)),
                }
                self.evict();
            }
            Err(error) => {
                self.failed.insert(span, EngineError::io(DB_FILE, "populate", &error));
            }
        }
        ticket
    }

    /// Drops all windows if the file was cut since they were made. `cuts` counts the cuts as the
    /// view that is read next says.
    pub fn forget(&mut self, cuts: u64) {
        if cuts != self.cuts {
            self.cuts = cuts;
            self.windows.clear();
            self.failed.clear();
        }
    }

    /// Reads another file from now on: the view that is read next has its pages there. `cuts`
    /// counts that file's cuts.
    pub fn replace(&mut self, file: Arc<File>, cuts: u64) {
        self.file = file;
        self.cuts = cuts;
        self.windows.clear();
        self.failed.clear();
        // Whoever waits for what is under way asks again when it has come.
        self.pending.clear();
    }

    /// An evaluation that must end begins: it starts again after each `Pending`, and would do so
    /// for ever if it needs more windows than the budget keeps. Once half of the budget was fetched
    /// for it, missing windows are populated in place: the caller blocks, and the evaluation ends.
    /// Again before [`PageMap::end_evaluation`], nothing changes.
    pub fn begin_evaluation(&mut self) {
        let half = (self.budget_bytes / 2).max(WINDOW_BYTES * WINDOWS_MIN as u64 / 2);
        self.patience_bytes.get_or_insert(half);
    }

    /// It has ended.
    pub fn end_evaluation(&mut self) {
        self.patience_bytes = None;
    }

    /// Bytes of windows mapped.
    pub fn mapped_bytes(&self) -> u64 {
        self.windows.iter().map(|(_, window)| window.map.len() as u64).sum()
    }

    /// Unmaps the windows that were not used for longest.
    fn evict(&mut self) {
        while self.windows.len() > WINDOWS_MIN && self.mapped_bytes() > self.budget_bytes {
            let oldest = self.windows.iter().enumerate().min_by_key(|(_, (_, w))| w.used_at);
            let Some(at) = oldest.map(|(at, _)| at) else { return };
            self.windows.remove(at);
        }
    }

    fn request(&mut self, span: Span) -> Ticket {
        if let Some(ticket) = self.pending.get(&span) {
            return *ticket;
        }
        if self.pending.len() >= POPULATE_DEPTH
            && let Some(ticket) = self.pending.values().next()
        {
            return *ticket;
        }
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.pending.insert(span, ticket);
        self.requests.push(PopulateRequest {
            ticket,
            span,
            file: self.file.clone(),
            cuts: self.cuts,
        });
        ticket
    }
}

impl PageSource for PageMap {
    fn get(&mut self, ptr: PagePtr) -> Result<Fetch<&[u8]>, EngineError> {
        let first = ptr.first_unit / WINDOW_UNITS;
        let last = (ptr.first_unit + u64::from(ptr.units) - 1) / WINDOW_UNITS;
        let span = Span { first, count: last - first + 1 };
        let unit = usize::try_from(ptr.first_unit - first * WINDOW_UNITS).expect("below 256");
        let (start, len) = (unit * UNIT_BYTES, ptr.len_bytes as usize);
        let mut position = self.position_of(span, start + len);
        if position.is_none() && self.patience_bytes == Some(0) {
            self.populate_now(span);
            position = self.position_of(span, start + len);
        }
        let Some(at) = position else { return self.miss(span, &ptr) };
        self.clock += 1;
        self.last_used = at;
        let window = &mut self.windows[at].1;
        window.used_at = self.clock;
        // SAFETY: the range lies in the map, which `covers` has checked; it was populated, and the
        // contract of this file keeps these bytes unchanged while the slice lives.
        let bytes = unsafe { std::slice::from_raw_parts(window.map.as_ptr().add(start), len) };
        if window.verified[unit] != VERIFIED | u64::from(ptr.crc) {
            ptr.verify(bytes)?;
            window.verified[unit] = VERIFIED | u64::from(ptr.crc);
        }
        Ok(Fetch::Ready(bytes))
    }
}

impl PageMap {
    fn position(&self, span: Span) -> Option<usize> {
        match self.windows.get(self.last_used) {
            Some((last, _)) if *last == span => Some(self.last_used),
            _ => self.windows.binary_search_by_key(&span, |(span, _)| *span).ok(),
        }
    }

    /// The position of a window that covers the span up to `end`.
    fn position_of(&self, span: Span, end: usize) -> Option<usize> {
        self.position(span).filter(|at| end <= self.windows[*at].1.map.len())
    }

    fn populate_now(&mut self, span: Span) {
        // A request that is out for it changes nothing when it is done.
        let ticket = self.pending.get(&span).copied().unwrap_or(Ticket(self.next_ticket));
        let request = PopulateRequest { ticket, span, file: self.file.clone(), cuts: self.cuts };
        self.on_populated(request.run());
    }

    /// A page whose window is not here, or ends before it because the file has grown since.
    fn miss(&mut self, span: Span, ptr: &PagePtr) -> Result<Fetch<&'static [u8]>, EngineError> {
        if let Some(error) = self.failed.remove(&span) {
            return Err(error);
        }
        if self.file_ends_within(ptr)? {
            let what = Corruption::Truncated;
            return Err(EngineError::corrupt(DB_FILE, ptr.offset_bytes(), what));
        }
        Ok(Fetch::Pending(self.request(span)))
    }

    /// True if a pointer leads beyond the end of the file: asking for the window again and again
    /// would never help.
    fn file_ends_within(&self, ptr: &PagePtr) -> Result<bool, EngineError> {
        let end = ptr.offset_bytes() + u64::from(ptr.len_bytes);
        let metadata =
            self.file.metadata().map_err(|error| EngineError::io(DB_FILE, "length", &error))?;
        Ok(metadata.len() < end)
    }
}

#[cfg(test)]
mod tests;
