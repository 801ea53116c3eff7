//! The log's durable writes on the ring: each a chain of a write and an fdatasync, or one write
//! with RWF_DSYNC.
//!
//! Used by the io_uring driver alone. It must never report a write as done that the kernel has not
//! called durable, and never takes one write's completion for another's.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use etcore_engine::file::AlignedBuf;
use io_uring::types::Fd;
use io_uring::{opcode, squeue, types};

use super::method::Method;
use super::{DURABLE, SYNC, Uring, WRITE};
use crate::driver::{Completions, WriteToken};
use crate::limits;

/// One of them, in the driver's table until it ends.
pub(super) struct LogWrite {
    /// Its completion names it; its place in the table is the remainder by the table's length.
    pub(super) number: u64,
    pub(super) token: WriteToken,
    pub(super) file: Arc<File>,
    pub(super) buf: AlignedBuf,
    pub(super) offset_bytes: u64,
    pub(super) written: usize,
    /// By the driver's clock.
    pub(super) begun: Duration,
    pub(super) method: Method,
}

impl LogWrite {
    pub(super) fn new(
        token: WriteToken,
        file: Arc<File>,
        offset_bytes: u64,
        buf: AlignedBuf,
    ) -> Self {
        let (begun, method) = (Duration::ZERO, Method::Chain);
        Self { number: 0, token, file, buf, offset_bytes, written: 0, begun, method }
    }
}

/// Where a log write is kept.
fn place_of(number: u64) -> usize {
    (number % limits::LOG_WRITES as u64) as usize
}

impl Uring {
    /// Begins a write by the method that is quicker at the moment.
    pub(super) fn begin_write(&mut self, mut write: LogWrite) {
        write.method = self.methods.choose(write.buf.len());
        write.begun = self.clock.elapsed();
        self.push_write(write);
    }

    fn push_write(&mut self, mut write: LogWrite) {
        let next = self.last_write + 1;
        let mut numbers = next..next + limits::LOG_WRITES as u64;
        let free = numbers.find(|number| self.writes[place_of(*number)].is_none());
        let number = free.unwrap_or_else(|| panic!("more than {} log writes", limits::LOG_WRITES));
        self.last_write = number;
        write.number = number;
        let write = self.writes[place_of(number)].insert(write);
        let rest = &write.buf[write.written..];
        let fd = Fd(write.file.as_raw_fd());
        let data =
            opcode::Write::new(fd, rest.as_ptr(), u32::try_from(rest.len()).unwrap_or(u32::MAX))
                .offset(write.offset_bytes + write.written as u64);
        match write.method {
            Method::Chain => {
                let data = data
                    .build()
                    .flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS)
                    .user_data(WRITE | number);
                self.push_chain(&data, fd, number);
            }
            Method::OneWrite => {
                let data = data.rw_flags(libc::RWF_DSYNC).build().user_data(DURABLE | number);
                self.push(&data);
            }
        }
    }

    /// Write, and once that has succeeded fdatasync. One completion tells of the chain: a write
    /// that succeeded says nothing, and behind one that did not (a short one neither) the sync is
    /// dropped in silence.
    fn push_chain(&mut self, data: &squeue::Entry, fd: Fd, number: u64) {
        let sync = opcode::Fsync::new(fd)
            .flags(types::FsyncFlags::DATASYNC)
            .build()
            .user_data(SYNC | number);
        // A chain must be handed over in one piece.
        let room = {
            let queue = self.ring.submission();
            queue.capacity() - queue.len()
        };
        if room < 2 {
            let _ = self.ring.submit();
        }
        self.push(data);
        self.push(&sync);
    }

    /// Takes a log write out of the table, if it is the one that the number was given to.
    fn take_write(&mut self, number: u64) -> Option<LogWrite> {
        self.writes[place_of(number)].take_if(|write| write.number == number)
    }

    /// A write failed, or fell short; the sync of a chain is never heard of then.
    pub(super) fn complete_short(
        &mut self,
        number: u64,
        result: i32,
        completions: &mut dyn Completions,
    ) {
        let Some(mut write) = self.take_write(number) else { return };
        let error = match result {
            0 => io::ErrorKind::WriteZero.into(),
            error if error < 0 => io::Error::from_raw_os_error(-error),
            count => {
                write.written += count as usize;
                // The rest goes as a chain of its own.
                write.method = Method::Chain;
                return self.push_write(write);
            }
        };
        completions.written(write.token, write.buf, Err(error));
    }

    /// A single write ended.
    pub(super) fn complete_one_write(
        &mut self,
        number: u64,
        result: i32,
        completions: &mut dyn Completions,
    ) {
        if matches!(-result, libc::EOPNOTSUPP | libc::EINVAL) {
            // Not a kernel or file system that knows it.
            let Some(mut write) = self.take_write(number) else { return };
            self.methods.give_up_one_write();
            write.method = Method::Chain;
            return self.push_write(write);
        }
        let write = self.writes[place_of(number)].as_ref();
        let left = write.map_or(0, |write| write.buf.len() - write.written);
        if usize::try_from(result) == Ok(left) {
            return self.complete_sync(number, 0, completions);
        }
        self.complete_short(number, result, completions);
    }

    /// The sync of a chain ended, so its write had succeeded; or a single write did.
    pub(super) fn complete_sync(
        &mut self,
        number: u64,
        result: i32,
        completions: &mut dyn Completions,
    ) {
        let Some(write) = self.take_write(number) else { return };
        let outcome = match result {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            _ => {
                let took = self.clock.elapsed().saturating_sub(write.begun);
                self.methods.took(write.method, write.buf.len(), took);
                Ok(())
            }
        };
        completions.written(write.token, write.buf, outcome);
    }
}
