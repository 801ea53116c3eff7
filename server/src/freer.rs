//! A thread that frees what would take a thread that serves too long.
//!
//! A view of the store shares most of its index with the next one; but after an entry that changed
//! a million keys it alone holds all that was there before. Whoever lets go of such a view last
//! would free that, node by node. Started by boot; a simulated member has none. It must never hold
//! up whoever gives it something.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::{Sender, bounded};
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::view::View;

use crate::limits;

/// The way to the thread; it ends with the last of these.
#[derive(Debug, Clone)]
pub struct Freer {
    views: Sender<Arc<View>>,
    /// A view of no data.
    nothing: Arc<View>,
}

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
        let nothing = Store::in_memory(EngineConfig::default()).publish();
        Ok(Self { views: sender, nothing })
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

    /// Its holder lets go of the view. Nothing of it is left there: the thread may be done before
    /// this returns, and whoever is the last frees it.
    pub fn let_go(&self, view: &mut Arc<View>) {
        if self.elsewhere.load(Ordering::Acquire)
            && let Some(freer) = &self.freer
        {
            let view = std::mem::replace(view, freer.nothing.clone());
            // If there is no room, it is freed here.
            let _ = freer.views.try_send(view);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_view_goes_to_the_thread_whole_if_that_was_said() {
        let freer = Freer::start().unwrap();
        let mut here = Store::in_memory(EngineConfig::default()).publish();
        let (first, held) = (Arc::downgrade(&here), Freeing::by(Some(&freer)));
        held.let_go(&mut here);
        assert!(Arc::ptr_eq(&here, &first.upgrade().unwrap()), "nobody has said so");
        held.elsewhere();
        held.let_go(&mut here);
        assert!(Arc::ptr_eq(&here, &freer.nothing));
        let end = Instant::now() + Duration::from_secs(20);
        while first.strong_count() > 0 {
            assert!(Instant::now() < end, "the thread frees it");
            std::thread::yield_now();
        }
    }
}
