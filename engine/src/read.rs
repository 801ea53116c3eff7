//! Pages read with plain calls: the [`PageSource`] of a thread that may block.
//!
//! For work beside the requests, such as hashing the whole key space. It keeps a few pages, enough
//! for a walk in key order. It must never skip a checksum.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::EngineError;
use crate::limits::READ_PAGES_KEPT;
use crate::page::node::DB_FILE;
use crate::page::{Fetch, PagePtr, PageSource};

/// See the module text.
#[derive(Debug)]
pub struct BlockingPages {
    /// None while there is nothing to read.
    file: Option<Arc<File>>,
    /// Verified pages; the oldest is replaced first.
    kept: Vec<(PagePtr, Vec<u8>)>,
    next: usize,
}

impl BlockingPages {
    /// Pages of the page file `file`.
    pub fn new(file: Arc<File>) -> Self {
        Self { file: Some(file), kept: Vec::new(), next: 0 }
    }

    /// Reads `file` from now on, if it is another one.
    pub fn follow(&mut self, file: &Arc<File>) {
        if self.file.as_ref().is_none_or(|known| !Arc::ptr_eq(file, known)) {
            *self = Self::new(file.clone());
        }
    }

    /// Lets go of the file and of what was read of it, until [`BlockingPages::follow`].
    pub fn let_go(&mut self) {
        *self = Self { file: None, kept: Vec::new(), next: 0 };
    }
}

impl PageSource for BlockingPages {
    fn get(&mut self, ptr: PagePtr) -> Result<Fetch<&[u8]>, EngineError> {
        if let Some(at) = self.kept.iter().position(|(known, _)| *known == ptr) {
            return Ok(Fetch::Ready(&self.kept[at].1));
        }
        let mut bytes = vec![0; ptr.len_bytes as usize];
        let file = self.file.as_ref().ok_or_else(|| {
            EngineError::io(DB_FILE, "read", &std::io::ErrorKind::NotConnected.into())
        })?;
        file.read_exact_at(&mut bytes, ptr.offset_bytes())
            .map_err(|error| EngineError::io(DB_FILE, "read", &error))?;
        ptr.verify(&bytes)?;
        let at = if self.kept.len() < READ_PAGES_KEPT {
            self.kept.push((ptr, bytes));
            self.kept.len() - 1
        } else {
            self.next = (self.next + 1) % READ_PAGES_KEPT;
            self.kept[self.next] = (ptr, bytes);
            self.next
        };
        Ok(Fetch::Ready(&self.kept[at].1))
    }
}
