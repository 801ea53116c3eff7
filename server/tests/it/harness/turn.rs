//! Whose turn it is: which tests may run beside each other.
//!
//! Every test takes a turn first (tidy checks it) and gives it back at its end. Tests that measure
//! time, memory or processor time, or load the machine so that others would measure it, run beside
//! those of their own file alone ([`of_file`]); the rest run beside each other ([`light`]). A test
//! never takes two turns, so nobody waits in a circle.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The group that holds the turn, and how many of its tests run.
struct Turns {
    running: Mutex<Option<(&'static str, usize)>>,
    changed: Condvar,
}

static TURNS: Turns = Turns::new();

/// A test's turn; over when dropped, also by a panic.
#[must_use = "the turn ends when this is dropped"]
pub struct Turn(&'static Turns);

/// For a test that neither measures nor disturbs: beside all others that say so.
pub fn light() -> Turn {
    TURNS.take("light")
}

/// For a test that wants the machine to itself and the tests of its file: those of
/// `module_path!()`, which may be a part of the file.
pub fn of_file(module: &'static str) -> Turn {
    TURNS.take(file_of(module))
}

/// The test binary, the folder and the file of a module's path.
fn file_of(module: &'static str) -> &'static str {
    module.match_indices("::").nth(2).map_or(module, |(end, _)| &module[..end])
}

impl Turns {
    const fn new() -> Self {
        Self { running: Mutex::new(None), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(&'static str, usize)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&'static self, group: &'static str) -> Turn {
        let mut running = self.lock();
        loop {
            match &mut *running {
                None => {
                    *running = Some((group, 1));
                    return Turn(self);
                }
                Some((current, count)) if *current == group => {
                    *count += 1;
                    return Turn(self);
                }
                Some(_) => {
                    let woken = self.changed.wait(running);
                    running = woken.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut running = self.0.lock();
        match &mut *running {
            Some((_, count)) if *count > 1 => *count -= 1,
            _ => {
                *running = None;
                // Members of these tests are gone, and so is their need of ports.
                super::release_ports();
                self.0.changed.notify_all();
            }
        }
    }
}

mod tests {
    use std::sync::mpsc::{RecvTimeoutError, sync_channel};
    use std::time::Duration;

    use super::{Turns, file_of};

    #[test]
    fn tests_of_one_group_run_beside_each_other_and_those_of_another_wait() {
        let _turn = super::light();
        static OWN: Turns = Turns::new();
        let (first, second) = (OWN.take("a"), OWN.take("a"));
        let (sender, taken) = sync_channel(1);
        let other = std::thread::spawn(move || {
            let _turn = OWN.take("b");
            sender.send(()).unwrap();
        });
        drop(first);
        let waits = taken.recv_timeout(Duration::from_millis(50));
        assert_eq!(waits, Err(RecvTimeoutError::Timeout));
        drop(second);
        taken.recv_timeout(Duration::from_secs(20)).unwrap();
        other.join().unwrap();
    }

    #[test]
    fn parts_of_a_file_belong_to_it() {
        let _turn = super::light();
        assert_eq!(file_of("it::abuse::hostile::crowd"), "it::abuse::hostile");
        assert_eq!(file_of("it::abuse::hostile"), "it::abuse::hostile");
        assert_eq!(file_of("it::sim"), "it::sim");
    }
}
