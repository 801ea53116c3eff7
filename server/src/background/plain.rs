//! Runs the worker on a plain thread with blocking file calls: the `portable` driver's background.

use etcore_engine::file::{Disk, StdDisk};

use super::Mailbox;
use super::worker::{Answer, Worker};

/// Runs until the worker is told to stop.
pub(super) fn run(
    mut worker: Worker,
    mut disk: StdDisk,
    inbox: &Mailbox,
    mut answer: impl FnMut(Answer),
) {
    let mut completions = Vec::new();
    loop {
        while let Some(task) = inbox.pop() {
            worker.add(task);
        }
        worker.turn(&mut disk, &mut completions, &mut answer);
        disk.poll(&mut completions);
        if worker.is_stopped() {
            return;
        }
        if completions.is_empty() && inbox.tasks.is_empty() {
            // An unpark that came before is not lost: park then returns at once.
            std::thread::park();
        }
    }
}
