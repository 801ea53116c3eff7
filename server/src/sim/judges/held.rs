//! What a view shows does not change while somebody holds it.
//!
//! A held view is read twice, at the beginning and at the end, from what the disk holds then:
//! checkpoints and compactions in between must have left its pages alone. Must never hold a view
//! of a member that is not running.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use etcore_engine::page::Fetch;
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::types::Revision;

use super::state::Fnv;
use crate::channel::MemberView;
use crate::sim::Violation;

/// The property.
pub const STAYS: &str = "what a view shows stays as it is while somebody holds it";

/// A view, and the hash of all its keys and values when it was taken.
pub(in crate::sim) struct HeldView {
    view: Arc<MemberView>,
    hash: u64,
}

impl HeldView {
    /// Takes the view; `None` if it cannot be read.
    pub(in crate::sim) fn take(view: &Arc<MemberView>, disk: &MemDisk) -> Option<Self> {
        Some(Self { view: view.clone(), hash: hash(view, disk).ok()? })
    }

    /// Reads it again.
    ///
    /// # Errors
    /// The property.
    pub(in crate::sim) fn look(self, member: usize, disk: &MemDisk) -> Result<(), Violation> {
        let detail = match hash(&self.view, disk) {
            Ok(hash) if hash == self.hash => return Ok(()),
            Ok(_) => "other values".to_owned(),
            Err(error) => error,
        };
        let revision = self.view.store.revision.0;
        let detail = format!("member {member}, view of revision {revision}: {detail}");
        Err(Violation { property: STAYS, detail })
    }
}

fn hash(view: &MemberView, disk: &MemDisk) -> Result<u64, String> {
    let mut pages = DiskPages::new(disk);
    pages.follow(view.page_file.file.as_ref());
    let hits = view.store.range(b"\0", b"\0", Revision(0), 0).map_err(|error| error.to_string())?;
    let mut hash = Fnv::default();
    for hit in hits.hits() {
        match view.store.value(hit.modified, &mut pages).map_err(|error| error.to_string())? {
            Fetch::Ready(row) => row.hash(&mut hash),
            Fetch::Pending(_) => return Err("a page that does not come".to_owned()),
        }
    }
    Ok(hash.finish())
}
