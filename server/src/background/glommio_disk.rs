//! Runs the worker on a glommio executor, with page reads, writes and syncs through its io_uring
//! and everything rare on its blocking pool: the `uring` driver's background.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use etcore_engine::file::{
    AlignedBuf, Completion, Disk, FileId, FileOp, FileOutput, SharedFile, StdDisk, Token, allocate,
    zero_fill,
};
use glommio::io::BufferedFile;
use glommio::{Latency, LocalExecutorBuilder, Placement, Shares, TaskQueueHandle};

use super::Mailbox;
use super::worker::{Answer, Worker};

/// The checkpoints' part of the 1000 shares that the background's queues divide.
const CHECKPOINT_SHARES: usize = 800;

/// Runs until the worker is told to stop. If glommio cannot start after all, the plain loop takes
/// over.
pub(super) fn run(worker: Worker, disk: StdDisk, inbox: &Mailbox, mut answer: impl FnMut(Answer)) {
    let executor = match LocalExecutorBuilder::new(Placement::Unbound)
        .name("etcore-background")
        .io_memory(1 << 20)
        .ring_depth(128)
        .make()
    {
        Ok(executor) => executor,
        Err(error) => {
            tracing::warn!(error = %error, "glommio did not start; using a plain thread");
            return super::plain::run(worker, disk, inbox, answer);
        }
    };
    executor.run(async move {
        let queue = glommio::executor().create_task_queue(
            Shares::Static(CHECKPOINT_SHARES),
            Latency::NotImportant,
            "checkpoint",
        );
        let mut disk = GlommioDisk::new(disk, queue);
        let mut worker = worker;
        let mut completions = Vec::new();
        loop {
            while let Some(task) = inbox.pop() {
                worker.add(task);
            }
            disk.poll(&mut completions);
            worker.turn(&mut disk, &mut completions, &mut answer);
            if worker.is_stopped() {
                return;
            }
            let done = disk.done.clone();
            poll_fn(|context| {
                inbox.register(context.waker());
                let mut done = done.borrow_mut();
                if !done.completions.is_empty() || !inbox.tasks.is_empty() {
                    return Poll::Ready(());
                }
                done.waker = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
        }
    });
}

#[derive(Default)]
struct Done {
    completions: Vec<Completion>,
    waker: Option<Waker>,
}

/// A [`Disk`] on the current executor. File ids are those of the [`StdDisk`] it goes on from.
struct GlommioDisk {
    std: StdDisk,
    files: HashMap<FileId, Rc<BufferedFile>>,
    done: Rc<RefCell<Done>>,
    queue: TaskQueueHandle,
}

impl GlommioDisk {
    fn new(std: StdDisk, queue: TaskQueueHandle) -> Self {
        Self { std, files: HashMap::new(), done: Rc::default(), queue }
    }

    fn file(&mut self, file: FileId) -> io::Result<Rc<BufferedFile>> {
        if let Some(open) = self.files.get(&file) {
            return Ok(open.clone());
        }
        let handle = self.std.handle(file).ok_or(io::ErrorKind::NotFound)?;
        let fd = handle.try_clone()?.into_raw_fd();
        // SAFETY: the duplicate made just above belongs to nobody else; the BufferedFile closes it.
        let open = Rc::new(unsafe { BufferedFile::from_raw_fd(fd) });
        self.files.insert(file, open.clone());
        Ok(open)
    }

    fn spawn(
        &self,
        token: Token,
        operation: impl Future<Output = io::Result<FileOutput>> + 'static,
    ) {
        let done = self.done.clone();
        let task = async move {
            let result = operation.await;
            finish(&done, token, result);
        };
        match glommio::spawn_local_into(task, self.queue) {
            Ok(task) => {
                task.detach();
            }
            Err(error) => finish(&self.done, token, Err(io::Error::other(error.to_string()))),
        }
    }

    fn spawn_op(&mut self, token: Token, op: FileOp) -> io::Result<()> {
        match op {
            FileOp::Read { file, offset_bytes, len_bytes } => {
                let file = self.file(file)?;
                self.spawn(token, async move {
                    let mut data = Vec::with_capacity(len_bytes);
                    while data.len() < len_bytes {
                        let at = offset_bytes + data.len() as u64;
                        let part = file.read_at(at, len_bytes - data.len()).await?;
                        if part.is_empty() {
                            break;
                        }
                        data.extend_from_slice(&part);
                    }
                    Ok(FileOutput::Data(data))
                });
            }
            FileOp::Write { file, offset_bytes, data, durable } => {
                let file = self.file(file)?;
                self.spawn(token, async move {
                    write_all(&file, offset_bytes, &data).await?;
                    if durable {
                        file.fdatasync().await?;
                    }
                    Ok(FileOutput::Written(data))
                });
            }
            FileOp::Sync { file } => {
                let file = self.file(file)?;
                self.spawn(token, async move {
                    file.fdatasync().await?;
                    Ok(FileOutput::Done)
                });
            }
            FileOp::ZeroFill { file, len_bytes } => {
                let handle = self.std.handle(file).ok_or(io::ErrorKind::NotFound)?;
                self.spawn(token, async move {
                    glommio::executor()
                        .spawn_blocking(move || zero_fill(&handle, len_bytes, Duration::ZERO))
                        .await
                        .map(|()| FileOutput::Done)
                });
            }
            FileOp::Allocate { file, len_bytes } => {
                let handle = self.std.handle(file).ok_or(io::ErrorKind::NotFound)?;
                self.spawn(token, async move {
                    glommio::executor()
                        .spawn_blocking(move || allocate(&handle, len_bytes))
                        .await
                        .map(|()| FileOutput::Done)
                });
            }
            FileOp::Close { file } => {
                self.files.remove(&file);
                self.std.submit(token, FileOp::Close { file });
            }
            // Names and lengths: short calls that the file system answers from memory, but for
            // SyncDir, which waits for its journal; nothing else runs on this thread meanwhile.
            other => self.std.submit(token, other),
        }
        Ok(())
    }
}

async fn write_all(file: &BufferedFile, offset_bytes: u64, data: &AlignedBuf) -> io::Result<()> {
    let mut written = 0;
    while written < data.len() {
        let rest = data[written..].to_vec();
        match file.write_at(rest, offset_bytes + written as u64).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => written += count,
        }
    }
    Ok(())
}

fn finish(done: &RefCell<Done>, token: Token, result: io::Result<FileOutput>) {
    let mut done = done.borrow_mut();
    done.completions.push(Completion { token, result });
    if let Some(waker) = done.waker.take() {
        waker.wake();
    }
}

impl Disk for GlommioDisk {
    fn submit(&mut self, token: Token, op: FileOp) {
        if let Err(error) = self.spawn_op(token, op) {
            finish(&self.done, token, Err(error));
        }
        // What the inner disk did at once counts as done.
        let mut ready = Vec::new();
        self.std.poll(&mut ready);
        for completion in ready {
            finish(&self.done, completion.token, completion.result);
        }
    }

    fn poll(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.done.borrow_mut().completions);
    }

    fn wait(&mut self, out: &mut Vec<Completion>) {
        // Waiting is the executor's: `run` awaits completions.
        self.poll(out);
    }

    fn share(&self, file: FileId) -> Option<SharedFile> {
        self.std.share(file)
    }
}
