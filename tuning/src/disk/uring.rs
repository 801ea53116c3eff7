//! Durable writes through io_uring, and what the kernel's io_uring can do.
//!
//! Called by the disk measurement only. One operation is under way at a time, so buffers and files
//! always outlive it. This is the crate's one file with unsafe code.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use io_uring::{IoUring, Probe, opcode, squeue, types};
use serde::Serialize;

/// What matters to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Features {
    /// IORING_SETUP_SINGLE_ISSUER and DEFER_TASKRUN: fewer interruptions (Linux 6.1).
    pub defer_taskrun: bool,
    /// Send, receive, accept, write and fsync are there.
    pub operations: bool,
    /// Provided buffers can be a ring (Linux 5.19).
    pub buffer_rings: bool,
}

/// A ring for one write at a time.
///
/// Invariant: unless `broken`, nothing is queued or under way between two calls.
pub(super) struct Writer {
    ring: IoUring,
    broken: bool,
}

impl Writer {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { ring: IoUring::new(8)?, broken: false })
    }

    /// A write and an fdatasync that starts when it is done.
    pub(super) fn write_and_sync(
        &mut self,
        file: &File,
        data: &[u8],
        offset_bytes: u64,
    ) -> io::Result<()> {
        let fd = types::Fd(file.as_raw_fd());
        let write = opcode::Write::new(fd, data.as_ptr(), data.len() as u32)
            .offset(offset_bytes)
            .build()
            .flags(squeue::Flags::IO_LINK)
            .user_data(data.len() as u64);
        let sync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build().user_data(0);
        self.submit(&[write, sync])
    }

    /// One write that is durable when it is done.
    pub(super) fn write_dsync(
        &mut self,
        file: &File,
        data: &[u8],
        offset_bytes: u64,
    ) -> io::Result<()> {
        let fd = types::Fd(file.as_raw_fd());
        let write = opcode::Write::new(fd, data.as_ptr(), data.len() as u32)
            .offset(offset_bytes)
            .rw_flags(libc::RWF_DSYNC)
            .build()
            .user_data(data.len() as u64);
        self.submit(&[write])
    }

    /// Submits and waits for all; each must return the number in its user data.
    fn submit(&mut self, entries: &[squeue::Entry]) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::other("the ring failed before"));
        }
        // SAFETY: the caller borrows buffer and file until this function returns. It returns early
        // only when the kernel took nothing, and then `broken` keeps what is queued from ever being
        // submitted; otherwise it returns when every operation has completed.
        unsafe { self.ring.submission().push_multiple(entries) }
            .map_err(|_| io::Error::other("the submission queue is full"))?;
        let mut done = 0;
        let mut result = Ok(());
        while done < entries.len() {
            match self.ring.submit_and_wait(entries.len() - done) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if done == 0 && self.ring.submission().len() == entries.len() => {
                    // Nothing was taken by the kernel.
                    self.broken = true;
                    return Err(error);
                }
                // What was taken will complete: wait for it.
                Err(_) | Ok(_) => {}
            }
            for completion in self.ring.completion() {
                done += 1;
                let returned = i64::from(completion.result());
                if returned < 0 {
                    result = Err(io::Error::from_raw_os_error(-completion.result()));
                } else if returned as u64 != completion.user_data() {
                    result = Err(io::Error::from(io::ErrorKind::WriteZero));
                }
            }
        }
        result
    }
}

/// Sets a ring up and asks what it can do.
pub(super) fn features() -> io::Result<Features> {
    let ring = IoUring::new(8)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Write::CODE,
        opcode::Fsync::CODE,
        opcode::Accept::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
    ];
    let mut builder = IoUring::<squeue::Entry>::builder();
    let defer_taskrun = builder.setup_single_issuer().setup_defer_taskrun().build(8).is_ok();
    Ok(Features {
        defer_taskrun,
        operations: needed.iter().all(|code| probe.is_supported(*code)),
        // The socket operation arrived with the same release.
        buffer_rings: probe.is_supported(opcode::Socket::CODE),
    })
}
