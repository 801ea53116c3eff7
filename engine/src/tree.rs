//! Reading the copy-on-write B+tree of the page file.
//!
//! Views and transactions look rows up here. Every descent is bounded by the level in the root
//! pointer, which falls by one per step or the node is refused; nothing is read that was not
//! verified.

use crate::error::EngineError;
use crate::page::node::{NodeRef, RowRef};
use crate::page::{Fetch, PagePtr, PageSource};

/// The value of the row whose key starts with `prefix`: row keys of revisions may carry a mark
/// behind the number. `None` if there is none.
pub(crate) fn get<'p>(
    root: PagePtr,
    prefix: &[u8],
    pages: &'p mut dyn PageSource,
) -> Result<Fetch<Option<&'p [u8]>>, EngineError> {
    let mut ptr = root;
    while ptr.level > 0 {
        ptr = match pages.get(ptr)? {
            Fetch::Ready(bytes) => {
                let node = NodeRef::new(ptr, bytes)?;
                // A marked key that starts a node sorts behind its own prefix.
                let at = node.lower_bound(prefix)?;
                let starts = at < node.count() && node.key(at)?.starts_with(prefix);
                node.child(if starts { at } else { at.saturating_sub(1) })?
            }
            Fetch::Pending(ticket) => return Ok(Fetch::Pending(ticket)),
        };
    }
    match pages.get(ptr)? {
        Fetch::Ready(bytes) => {
            let node = NodeRef::new(ptr, bytes)?;
            let at = node.lower_bound(prefix)?;
            if at == node.count() {
                return Ok(Fetch::Ready(None));
            }
            let (key, value) = node.row(at)?;
            Ok(Fetch::Ready(key.starts_with(prefix).then_some(value)))
        }
        Fetch::Pending(ticket) => Ok(Fetch::Pending(ticket)),
    }
}

/// The first row at or above `key`.
pub(crate) fn first_from<'p>(
    root: PagePtr,
    key: &[u8],
    pages: &'p mut dyn PageSource,
) -> Result<Fetch<Option<RowRef<'p>>>, EngineError> {
    let mut from = key.to_vec();
    loop {
        let (leaf, above) = match descend(root, &from, pages)? {
            Fetch::Ready(found) => found,
            Fetch::Pending(ticket) => return Ok(Fetch::Pending(ticket)),
        };
        let at = match pages.get(leaf)? {
            Fetch::Ready(bytes) => {
                let node = NodeRef::new(leaf, bytes)?;
                let at = node.lower_bound(&from)?;
                (at < node.count()).then_some(at)
            }
            Fetch::Pending(ticket) => return Ok(Fetch::Pending(ticket)),
        };
        match (at, above) {
            (Some(at), _) => {
                // Asked for a second time because a borrow cannot leave the loop conditionally.
                return match pages.get(leaf)? {
                    Fetch::Ready(bytes) => {
                        Ok(Fetch::Ready(Some(NodeRef::new(leaf, bytes)?.row(at)?)))
                    }
                    Fetch::Pending(ticket) => Ok(Fetch::Pending(ticket)),
                };
            }
            (None, None) => return Ok(Fetch::Ready(None)),
            (None, Some(above)) if above > from => from = above,
            (None, Some(_)) => return Err(root.corrupt("keys between nodes do not ascend")),
        }
    }
}

/// A leaf, and the smallest key above it.
type Leaf = (PagePtr, Option<Vec<u8>>);

/// The leaf of `key`.
fn descend(
    root: PagePtr,
    key: &[u8],
    pages: &mut dyn PageSource,
) -> Result<Fetch<Leaf>, EngineError> {
    let mut ptr = root;
    let mut above = None;
    while ptr.level > 0 {
        let node = match pages.get(ptr)? {
            Fetch::Ready(bytes) => NodeRef::new(ptr, bytes)?,
            Fetch::Pending(ticket) => return Ok(Fetch::Pending(ticket)),
        };
        let at = node.child_index(key)?;
        if at + 1 < node.count() {
            above = Some(node.key(at + 1)?.to_vec());
        }
        ptr = node.child(at)?;
    }
    Ok(Fetch::Ready((ptr, above)))
}
