//! A thread that frees what would take a thread that serves too long.
//!
//! A view of the store shares most of its index with the next one; but after an entry that changed
//! a million keys it alone holds all that was there before. Whoever lets go of such a view last
//! would free that, node by node. Started by boot; a simulated member has none. It must never hold
//! up whoever gives it something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, bounded};
use etcore_engine::view::View;

use crate::limits;

/// The way to the thread; it ends with the last of these.
#[derive(Debug, Clone)]
pub struct Freer(Sender<Arc<View>>);

impl Freer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start() -> std::io::Result<Self> {
        let (sender, views) = bounded(limits::VIEWS_FREED);
        std::thread::Builder::new()
            .name("etcore-freer".into())
            .spawn(move || views.into_iter().for_each(drop))?;
        Ok(Self(sender))
    }
}

/// Says, of a view, who frees it.
#[derive(Debug, Default)]
pub struct Freeing {
    freer: Option<Freer>,
    elsewhere: AtomicBool,
}

impl Freeing {
    /// By this thread, should [`Freeing::elsewhere`] be said.
    pub fn by(freer: Option<&Freer>) -> Self {
        Self { freer: freer.cloned(), elsewhere: AtomicBool::new(false) }
    }

    /// Much of the view is nobody else's.
    pub fn elsewhere(&self) {
        self.elsewhere.store(true, Ordering::Release);
    }

    /// Its holder lets go of the view.
    pub fn let_go(&self, view: &Arc<View>) {
        if self.elsewhere.load(Ordering::Acquire)
            && let Some(freer) = &self.freer
        {
            // If there is no room, it is freed here.
            let _ = freer.0.try_send(view.clone());
        }
    }
}
