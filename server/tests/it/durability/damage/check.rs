//! What a directory is worth: opened in this process with the code that a start uses, and compared
//! with what was acknowledged.
//!
//! It must never accept a state that differs from the truth, nor a refusal that does not say where
//! the damage is.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use etcore_engine::bucket::Bucket;
use etcore_engine::page::Fetch;
use etcore_engine::store::Store;
use etcore_engine::types::{Identity, Revision};
use etcore_raftlog::node::Effects;
use etcore_raftlog::types::{EntryKind, LogEntry};
use etcore_server::boot::{self, Stored};
use etcore_server::config::Config;

use super::image::{DB, Image, ImagePages};
use super::layout::{Layout, PageKind, may_have_lost};
use super::patches::{Patch, Sources};

/// Everything in a page file, as a checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageState {
    pub applied: u64,
    pub term: u64,
    pub revision: i64,
    pub compacted: i64,
    pub leases: Vec<i64>,
    pub identity: Identity,
    pub conf_state: Vec<u8>,
    pub keys: u64,
    pub crc: u32,
}

/// What came of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It does not start, and says why.
    Refused(String),
    /// It starts and has everything.
    Whole,
    /// It starts, and the last entries of the log are gone in a way that FORMAT.md documents.
    Cut(u64),
}

/// The directory's truth.
pub struct Truth {
    pub config: Config,
    /// States of the page file that are true, by what they have applied.
    pub states: BTreeMap<u64, PageState>,
    pub layout: Layout,
}

fn add(crc: &mut u32, bytes: &[u8]) {
    let len = (bytes.len() as u64).to_le_bytes();
    *crc = crc32c::crc32c_append(crc32c::crc32c_append(*crc, &len), bytes);
}

/// Reads all there is: every revision, the newest keys with their fields, the small buckets.
fn page_state(stored: &mut Stored, image: &Image) -> Result<PageState, String> {
    let store: &mut Store = &mut stored.store;
    let view = store.publish();
    let mut crc = 0;
    if let Some(content) = image.files.get(DB) {
        let mut pages = ImagePages::new(content);
        let from = Revision(view.compact_revision.0.max(1) - 1);
        let mut events = view.events(from, view.revision, None).map_err(|e| e.to_string())?;
        loop {
            match events.next(&mut pages).map_err(|error| error.to_string())? {
                Fetch::Ready(Some(event)) => {
                    add(&mut crc, format!("{:?} {}", event.at, event.tombstone).as_bytes());
                    add(&mut crc, event.kv);
                }
                Fetch::Ready(None) => break,
                Fetch::Pending(_) => return Err("a page never comes".to_owned()),
            }
        }
        let hits = view.range(b"\0", b"\0", Revision(0), 0).map_err(|e| e.to_string())?;
        for hit in hits.hits() {
            add(&mut crc, hits.key(hit));
            add(&mut crc, format!("{hit:?}").as_bytes());
            match view.value(hit.modified, &mut pages).map_err(|error| error.to_string())? {
                Fetch::Ready(bytes) => add(&mut crc, bytes),
                Fetch::Pending(_) => return Err("a page never comes".to_owned()),
            }
        }
    }
    for bucket in Bucket::ALL.into_iter().filter(|bucket| *bucket != Bucket::Key) {
        for (key, value) in store.bucket_iter(bucket, b"") {
            add(&mut crc, key);
            add(&mut crc, value);
        }
    }
    let (applied, term) = store.applied();
    Ok(PageState {
        applied: applied.0,
        term: term.0,
        revision: view.revision.0,
        compacted: view.compact_revision.0,
        leases: stored.lessor.list(),
        identity: Identity::default(),
        conf_state: store.conf_state().to_vec(),
        keys: view.key_count(),
        crc,
    })
}

/// A directory that was opened, and everything committed that its page file does not have.
pub struct Opened {
    pub state: PageState,
    pub last_index: u64,
    pub committed: Vec<LogEntry>,
}

/// Opens a directory as a start does, and lets the log come to rest.
pub fn open(config: &Config, image: &Image) -> Result<Opened, String> {
    let (mut page_disk, mut log_disk) = (image.clone(), image.clone());
    let dir = Path::new("member");
    let mut stored = boot::open_stored(config, 1, dir, &mut page_disk, &mut log_disk)
        .map_err(|error| error.to_string())?;
    let state = page_state(&mut stored, &page_disk)?;
    let last_index = stored.log.node.status().last_index.0;
    let (mut committed, mut effects) = (Vec::new(), Effects::default());
    let unlikely = |error: &dyn std::fmt::Display| format!("after the start: {error}");
    loop {
        stored.log.drive(&mut log_disk).map_err(|error| unlikely(&error))?;
        let before = committed.len();
        let mut any = false;
        while stored.log.turn(&mut effects).map_err(|error| unlikely(&error))? {
            any = true;
            committed.append(&mut effects.committed);
        }
        for entry in &committed[before..] {
            if entry.kind != EntryKind::Normal {
                let changed = stored.log.node.apply_conf_change(entry.kind, &entry.data);
                changed.map_err(|error| unlikely(&error))?;
            }
            stored.log.node.on_applied(entry.index);
        }
        if !any {
            return Ok(Opened { state, last_index, committed });
        }
    }
}

/// The message of a panic, or what the closure returned.
pub fn catching<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("panicked: {}", text.unwrap_or_default())
    })
}

impl Truth {
    /// Learns the truth from the undamaged directory, and the older states of its page file that a
    /// start may fall back to.
    pub fn of(config: Config, image: &Image, older: &Image) -> Self {
        let mut truth = Self { config, states: BTreeMap::new(), layout: Layout::of(image) };
        let newest = open(&truth.config, image).expect("undamaged");
        assert_eq!(newest.last_index, truth.layout.last_index(), "nothing is cut");
        truth.check_entries(&newest).expect("the log's entries");
        for image in [image, older] {
            for damaged in [None, Some(0), Some(1)] {
                let mut image = image.clone();
                if let Some(slot) = damaged {
                    image.files.get_mut(DB).expect("there").write(slot * 4096 + 100, &[0xa5; 8]);
                }
                let state = open(&truth.config, &image).expect("undamaged").state;
                let known = truth.states.insert(state.applied, state.clone());
                assert!(known.is_none_or(|known| known == state), "two states at one entry");
            }
        }
        let mut empty = image.clone();
        empty.files.remove(DB);
        if let Ok(opened) = open(&truth.config, &empty) {
            truth.states.insert(0, opened.state);
        }
        truth
    }

    /// The committed entries follow the page file's state without a gap and are the true ones.
    fn check_entries(&self, opened: &Opened) -> Result<(), String> {
        let mut expected = opened.state.applied + 1;
        for entry in &opened.committed {
            if entry.index.0 > opened.last_index {
                break;
            }
            if entry.index.0 != expected {
                return Err(format!("entry {} comes where {expected} belongs", entry.index));
            }
            expected += 1;
            let kind = match entry.kind {
                EntryKind::Normal => 0,
                EntryKind::ConfChange => 1,
                EntryKind::ConfChangeV2 => 2,
            };
            let found = (entry.term.0, kind, entry.data.to_vec());
            if self.layout.entries.get(&entry.index.0) != Some(&found) {
                return Err(format!("entry {} is not the one that was written", entry.index));
            }
        }
        if expected != opened.last_index + 1 {
            return Err(format!("entries from {expected} to {} are missing", opened.last_index));
        }
        Ok(())
    }

    /// The verdict on a patched directory; an error is a wrong answer.
    pub fn judge(
        &self,
        patch: &Patch,
        sources: &Sources<'_>,
        image: &Image,
    ) -> Result<Verdict, String> {
        let opened = match catching(|| open(&self.config, image))? {
            Ok(opened) => opened,
            Err(reason) => {
                self.check_refusal(patch, &reason)?;
                return Ok(Verdict::Refused(reason));
            }
        };
        let known = self.states.get(&opened.state.applied);
        if known != Some(&opened.state) {
            return Err(format!("the page file says {:?}, not {known:?}", opened.state));
        }
        self.check_entries(&opened)?;
        let lost = self.layout.last_index().saturating_sub(opened.last_index);
        if lost == 0 {
            return Ok(Verdict::Whole);
        }
        let segment = self.layout.segments.last().expect("a segment");
        let original = sources.image.files[&segment.name].all();
        // A whole segment that is gone is the log of a moment ago.
        let is_documented = image
            .files
            .get(&segment.name)
            .is_none_or(|patched| may_have_lost(segment, &original, &patched.all()));
        if !is_documented {
            return Err(format!("{lost} acknowledged entries are silently gone"));
        }
        Ok(Verdict::Cut(lost))
    }

    /// A refusal names the damaged file, where in it, and what to do.
    fn check_refusal(&self, patch: &Patch, reason: &str) -> Result<(), String> {
        let what_to_do = ["restore", "remove", "use the flags", "format version"];
        if !what_to_do.iter().any(|advice| reason.contains(advice)) {
            return Err(format!("the refusal does not say what to do: {reason}"));
        }
        if reason.contains('\n') {
            return Err(format!("the refusal is more than a line: {reason}"));
        }
        let Some((file, from, to)) = patch.place() else {
            let named = ["etcore.db", "wal", "the log", "belongs to"];
            if named.iter().any(|name| reason.contains(name)) {
                return Ok(());
            }
            return Err(format!("the refusal names no file: {reason}"));
        };
        let named = reason.contains(file) && reason.contains(" at byte ");
        if file == DB && named && to != usize::MAX {
            return self.check_page(reason, from, to);
        }
        // A file cut short may lack what other files say was there.
        let fits = reason.contains("do not belong together") && to == usize::MAX;
        if named || fits {
            return Ok(());
        }
        Err(format!("the refusal does not name {file} and the offset: {reason}"))
    }

    /// The offset is that of a page which the patch touched.
    fn check_page(&self, reason: &str, from: usize, to: usize) -> Result<(), String> {
        let number = reason.split(" at byte ").nth(1).unwrap_or("");
        let number: String = number.chars().take_while(char::is_ascii_digit).collect();
        let offset: usize = number.parse().map_err(|_| format!("no offset: {reason}"))?;
        let page = self.layout.pages.iter().find(|page| page.start == offset);
        match page {
            Some(page) if page.start < to && from < page.end() => Ok(()),
            // Both metas are named by the first one.
            Some(page) if page.kind == PageKind::Meta => Ok(()),
            _ => Err(format!("no page at {offset} was patched: {reason}")),
        }
    }
}
