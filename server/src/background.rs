//! The background thread: checkpoints, and copies of the page file for other members.
//!
//! The replica hands it tasks and gets answers; it owns the page file's writing side. The work is a
//! state machine over [`Disk`] ([`worker::Worker`]); what runs it is a glommio executor under the
//! `uring` driver and a plain thread under `portable`. It must never publish anything: only the
//! replica does.
//!
//! glommio 0.9.0 may park although a task can run, when its thread was off its core for 100 ms just
//! before it would have run one (executor/mod.rs, `run_task_queues`): a pause of the process is
//! enough, and only another wake-up ends it. So every wake-up here reaches the executor, whether or
//! not one was sent before, and the replica sends one with each of its ticks while it waits for
//! anything ([`Background::nudge`]). A plain thread does not need it, and is not disturbed by it.

use std::io;
use std::sync::{Arc, Mutex};
use std::task::Waker as TaskWaker;
use std::thread::JoinHandle;

use crossbeam_queue::ArrayQueue;
use etcore_engine::checkpoint::Checkpointer;

use crate::driver::Waker;
use crate::driver::probe::{self, DriverKind};
use crate::limits;

mod glommio_disk;
pub mod hasher;
pub mod passwords;
mod plain;
pub mod profiler;
pub(crate) mod snapshots;
pub mod worker;

pub use worker::{Answer, Leftovers, Loaded, Received, Task};

/// The replica's handle. Without a thread, the simulator does the work.
pub struct Background {
    tasks: Arc<Mailbox>,
    answers: Arc<ArrayQueue<Answer>>,
    thread: Option<JoinHandle<()>>,
}

/// Tasks for the background and the waker of whoever waits for them.
pub struct Mailbox {
    tasks: ArrayQueue<Task>,
    /// Stays when it was used: the executor may have slept through the last time.
    waker: Mutex<Option<TaskWaker>>,
    thread: std::sync::OnceLock<std::thread::Thread>,
}

/// The other end of a handle without a thread.
pub struct SimulatedBackground {
    tasks: Arc<Mailbox>,
    answers: Arc<ArrayQueue<Answer>>,
}

impl SimulatedBackground {
    /// True if no task waits.
    pub fn is_empty(&self) -> bool {
        self.tasks.tasks.is_empty()
    }

    /// The next task.
    pub fn take(&self) -> Option<Task> {
        self.tasks.pop()
    }

    /// Answers one. At most one answer a task, and the rings are equally long.
    pub fn answer(&self, answer: Answer) {
        let _ = self.answers.push(answer);
    }
}

impl Mailbox {
    fn new() -> Self {
        Self {
            tasks: ArrayQueue::new(limits::BACKGROUND_TASKS),
            waker: Mutex::new(None),
            thread: std::sync::OnceLock::new(),
        }
    }

    fn pop(&self) -> Option<Task> {
        self.tasks.pop()
    }

    /// Whom to wake from now on: an executor's task, again whenever it goes to sleep.
    fn register(&self, waker: &TaskWaker) {
        let mut known = self.waker.lock().expect("nothing panics while holding it");
        match &mut *known {
            Some(known) if known.will_wake(waker) => {}
            known => *known = Some(waker.clone()),
        }
    }

    fn notify(&self) {
        if let Some(waker) = &*self.waker.lock().expect("nothing panics while holding it") {
            waker.wake_by_ref();
        }
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// Where the background works and whom it wakes.
pub struct Setup {
    /// The page file's writing side, with the disk its files are open in.
    pub checkpointer: Checkpointer,
    /// That disk.
    pub disk: etcore_engine::file::StdDisk,
    /// The driver that the member uses.
    pub driver: DriverKind,
    /// Wakes the replica's shard.
    pub replica: Waker,
}

impl Background {
    /// Starts the thread. Under `uring` with too little lockable memory for glommio, and on a disk
    /// without syncs, the plain thread is used; the reason is logged.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let tasks = Arc::new(Mailbox::new());
        let answers = Arc::new(ArrayQueue::new(limits::BACKGROUND_TASKS));
        let with_glommio =
            setup.driver == DriverKind::Uring && setup.disk.syncs() && probe::memlock_suffices();
        let (inbox, outbox) = (tasks.clone(), answers.clone());
        let thread =
            std::thread::Builder::new().name("etcore-background".into()).spawn(move || {
                let _ = inbox.thread.set(std::thread::current());
                crate::sys::yield_to_shards();
                let worker = worker::Worker::new(setup.checkpointer);
                let answer = move |answer: Answer| {
                    // At most one answer a task, and the rings are equally long.
                    let _ = outbox.push(answer);
                    setup.replica.wake();
                };
                if with_glommio {
                    tracing::info!(
                        executor = "glommio",
                        "background executor chosen: io_uring works and memory can be locked"
                    );
                    glommio_disk::run(worker, setup.disk, &inbox, answer);
                } else {
                    tracing::info!(
                        executor = "thread",
                        "background executor chosen: glommio needs io_uring, 512 KiB of memlock \
                         and syncs"
                    );
                    plain::run(worker, setup.disk, &inbox, answer);
                }
            })?;
        Ok(Self { tasks, answers, thread: Some(thread) })
    }

    /// A handle whose tasks the simulator takes from the returned desk.
    pub fn simulated() -> (Self, SimulatedBackground) {
        let tasks = Arc::new(Mailbox::new());
        let answers = Arc::new(ArrayQueue::new(limits::BACKGROUND_TASKS));
        let desk = SimulatedBackground { tasks: tasks.clone(), answers: answers.clone() };
        (Self { tasks, answers, thread: None }, desk)
    }

    /// Hands over a task; false if the mailbox is full (the caller tries again in a later turn).
    pub fn submit(&self, task: Task) -> Result<(), Task> {
        self.tasks.tasks.push(task)?;
        self.tasks.notify();
        Ok(())
    }

    /// Like [`Background::submit`] for what can wait: leaves room for the tasks that cannot.
    pub fn offer(&self, task: Task) -> Result<(), Task> {
        if self.tasks.tasks.len() + limits::BACKGROUND_TASKS_KEPT >= limits::BACKGROUND_TASKS {
            return Err(task);
        }
        self.submit(task)
    }

    /// Wakes the thread once more, for whoever waits for an answer: a wake-up may have been lost.
    pub fn nudge(&self) {
        self.tasks.notify();
    }

    /// The next answer.
    pub fn poll(&self) -> Option<Answer> {
        self.answers.pop()
    }

    /// True if an answer waits.
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        while self.tasks.tasks.push(Task::Stop).is_err() {
            self.tasks.notify();
            std::thread::yield_now();
        }
        self.tasks.notify();
        let _ = thread.join();
    }
}
