//! The event log: changes in revision order, from memory where they still are, else from pages.
//!
//! Watch hubs read it for live and for catch-up watching alike. It must never skip a change that
//! compaction has left.

use super::View;
use crate::error::EngineError;
use crate::page::{Fetch, PageSource};
use crate::tree;
use crate::types::{RevKey, Revision};
use crate::wire::KvRef;

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its revision.
    pub at: RevKey,
    /// A deletion; its KeyValue has a key and nothing else.
    pub tombstone: bool,
    /// The revision of the value that the key had before this main revision, if it had one and
    /// compaction has left it. What the same transaction wrote earlier does not count, and a change
    /// that creates the key has none, as in etcd.
    pub previous: Option<RevKey>,
    /// The KeyValue in wire form, as stored.
    pub kv: &'a [u8],
}

/// A cursor over the changes of a view.
#[derive(Debug)]
pub struct Events<'v> {
    view: &'v View,
    next: RevKey,
    to: Revision,
    /// Whether the previous revisions are looked up.
    with_previous: bool,
}

impl<'v> Events<'v> {
    pub(super) fn new(view: &'v View, next: RevKey, to: Revision) -> Self {
        Self { view, next, to, with_previous: true }
    }

    /// The rows from `next` up to the revision `to`, below the compact revision too where they are
    /// left, without their previous revisions.
    pub(crate) fn raw(view: &'v View, next: RevKey, to: Revision) -> Self {
        Self { view, next, to: to.min(view.revision), with_previous: false }
    }

    /// The next change, `None` at the end. After `Pending` the same call is made again.
    pub fn next<'a>(
        &'a mut self,
        pages: &'a mut dyn PageSource,
    ) -> Result<Fetch<Option<Event<'a>>>, EngineError> {
        if self.next.main > self.to {
            return Ok(Fetch::Ready(None));
        }
        let oldest_in_memory = self.view.tables.first_revision();
        if let Some(root) = self.view.tree.root
            && oldest_in_memory.is_none_or(|oldest| self.next.main < oldest)
        {
            match self.next_in_pages(root, oldest_in_memory, pages)? {
                Fetch::Ready(None) => {}
                found => return Ok(found),
            }
        }
        let Some((row, kv)) = self.view.tables.first_from(self.next) else {
            self.next = RevKey::last(self.to);
            return Ok(Fetch::Ready(None));
        };
        if row.at().main > self.to {
            return Ok(Fetch::Ready(None));
        }
        self.next = after(row.at());
        let previous = row.previous().filter(|_| self.with_previous).and_then(|previous| {
            let stored = KvRef::parse(kv).unwrap_or_default();
            let key = stored.key;
            if previous.main == row.at().main {
                // A key that the transaction made has none, whatever was there before it.
                let creates = !row.is_tombstone() && stored.create_revision == previous.main;
                let before = RevKey::first(previous.main);
                return if creates { None } else { self.view.previous(key, before) };
            }
            let is_left = previous.main > self.view.removed || self.view.is_left(key, previous);
            is_left.then_some(previous)
        });
        let tombstone = row.is_tombstone();
        Ok(Fetch::Ready(Some(Event { at: row.at(), tombstone, previous, kv })))
    }

    fn next_in_pages<'a>(
        &mut self,
        root: crate::page::PagePtr,
        oldest_in_memory: Option<Revision>,
        pages: &'a mut dyn PageSource,
    ) -> Result<Fetch<Option<Event<'a>>>, EngineError> {
        let (key, kv) = match tree::first_from(root, &self.next.to_row_key(), pages)? {
            Fetch::Ready(Some(row)) => row,
            Fetch::Ready(None) => return Ok(Fetch::Ready(None)),
            Fetch::Pending(ticket) => return Ok(Fetch::Pending(ticket)),
        };
        let (at, tombstone) =
            RevKey::from_row_key(key).ok_or_else(|| root.corrupt("a row key is no revision"))?;
        if at.main > self.to || oldest_in_memory.is_some_and(|oldest| at.main >= oldest) {
            return Ok(Fetch::Ready(None));
        }
        let stored = KvRef::parse(kv).map_err(|_| root.corrupt("a row is no KeyValue"))?;
        self.next = after(at);
        let creates = !tombstone && stored.create_revision == at.main;
        let previous = if self.with_previous && !creates {
            self.view.previous(stored.key, RevKey::first(at.main))
        } else {
            None
        };
        Ok(Fetch::Ready(Some(Event { at, tombstone, previous, kv })))
    }
}

fn after(at: RevKey) -> RevKey {
    RevKey { main: at.main, sub: at.sub + 1 }
}
