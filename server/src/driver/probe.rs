//! Chooses the driver at start: tries what io_uring needs, once, and says what it found.
//!
//! Called by boot before the shards start. It must never choose silently: the reason goes to the
//! log.

use std::io;

use rustix::process::{Resource, getrlimit};

use super::uring::Uring;
use super::{AnySocket, Completions, Driver, SocketId, Waker, WriteToken, portable::Portable};
use etcore_engine::file::AlignedBuf;

/// The driver that the shards use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// io_uring.
    Uring,
    /// epoll and a log thread.
    Portable,
}

/// A choice and its reason in words.
#[derive(Debug, Clone)]
pub struct Choice {
    /// What was chosen.
    pub kind: DriverKind,
    /// Why, for the log line.
    pub reason: String,
}

/// glommio's executor locks this much memory per thread; below it the background falls back too.
pub const GLOMMIO_MEMLOCK_BYTES: u64 = 512 << 10;

/// Chooses by probing, or checks what `forced` asks for.
///
/// # Errors
/// When io_uring is forced and cannot be had: the text says why.
pub fn choose(forced: Option<DriverKind>) -> Result<Choice, String> {
    if forced == Some(DriverKind::Portable) {
        return Ok(Choice {
            kind: DriverKind::Portable,
            reason: "asked for by --io-driver".to_owned(),
        });
    }
    match (probe_uring(), forced) {
        (Ok(()), Some(_)) => Ok(Choice {
            kind: DriverKind::Uring,
            reason: "asked for by --io-driver, and the kernel has all it needs".to_owned(),
        }),
        (Ok(()), None) => Ok(Choice {
            kind: DriverKind::Uring,
            reason: "multishot receive, provided buffers and durable writes work here".to_owned(),
        }),
        (Err(why), Some(_)) => Err(format!("--io-driver=uring cannot be had: {why}")),
        (Err(why), None) => {
            Ok(Choice { kind: DriverKind::Portable, reason: format!("no io_uring: {why}") })
        }
    }
}

/// Makes the chosen driver on the calling thread.
///
/// # Errors
/// What the kernel said.
pub fn create(kind: DriverKind, waker: Waker) -> io::Result<Box<dyn Driver>> {
    Ok(match kind {
        DriverKind::Uring => Box::new(Uring::new(waker)?),
        DriverKind::Portable => Box::new(Portable::new(waker)?),
    })
}

/// Whether the memory-lock limit lets glommio's executor start.
pub fn memlock_suffices() -> bool {
    let limit = getrlimit(Resource::Memlock).current;
    limit.is_none_or(|bytes| bytes >= GLOMMIO_MEMLOCK_BYTES)
}

/// Moves one byte through a socket pair with exactly the operations the driver uses.
fn probe_uring() -> Result<(), String> {
    let mut driver =
        Waker::new().and_then(Uring::new).map_err(|error| format!("setup failed: {error}"))?;
    let (ours, mut theirs) =
        std::os::unix::net::UnixStream::pair().map_err(|error| error.to_string())?;
    let socket = driver
        .attach(std::os::fd::OwnedFd::from(ours).into())
        .map_err(|error| error.to_string())?;
    io::Write::write_all(&mut theirs, b"x").map_err(|error| error.to_string())?;
    let mut seen = Seen::default();
    for _ in 0..10 {
        driver
            .wait(Some(std::time::Duration::from_millis(20)), &mut seen)
            .map_err(|error| format!("waiting failed: {error}"))?;
        if seen.received {
            driver.close(socket);
            return Ok(());
        }
        if let Some(error) = seen.error {
            return Err(format!("multishot receive failed: {error}"));
        }
    }
    Err("multishot receive brought nothing".to_owned())
}

#[derive(Default)]
struct Seen {
    received: bool,
    error: Option<String>,
}

impl Completions for Seen {
    fn accepted(&mut self, _: u32, _: AnySocket) {}
    fn connected(&mut self, _: SocketId, _: io::Result<()>) {}
    fn received(&mut self, _: SocketId, bytes: &[u8]) {
        self.received |= bytes == b"x";
    }
    fn disconnected(&mut self, _: SocketId, error: Option<io::Error>) {
        self.error = Some(error.map_or_else(|| "end of stream".to_owned(), |e| e.to_string()));
    }
    fn sent(&mut self, _: SocketId, _: Vec<u8>, _: io::Result<()>) {}
    fn written(&mut self, _: WriteToken, _: AlignedBuf, _: io::Result<()>) {}
}
