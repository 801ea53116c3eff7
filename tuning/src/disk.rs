//! How long a durable write takes in the data directory.
//!
//! Called by the probe. Measures as the log writes: whole 4096-byte blocks, one after the other and
//! each several times, into a file that was filled with zeros and synced before; once without a
//! pause, as a busy log does, and once with the thread asleep before each write, as the log of one
//! lonely client does. The file loses its name before the first write, so it is gone whatever
//! happens. It must never touch a file that it did not make.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sample::Distribution;

mod uring;

/// Bytes in a block.
pub const BLOCK_BYTES: usize = 4096;

/// A way to write durably.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// io_uring: a write linked to an fdatasync.
    UringLinkedFdatasync,
    /// io_uring: one write with RWF_DSYNC.
    UringDsync,
    /// One blocking write with the effect of RWF_DSYNC: the portable driver.
    PortableDsync,
    /// A buffered write and then fdatasync: what etcd does.
    BufferedFdatasync,
}

impl Method {
    /// All methods, in the order in which they are measured.
    pub const ALL: [Self; 4] = [
        Self::UringLinkedFdatasync,
        Self::UringDsync,
        Self::PortableDsync,
        Self::BufferedFdatasync,
    ];

    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::UringLinkedFdatasync => "io_uring, write + fdatasync linked",
            Self::UringDsync => "io_uring, one RWF_DSYNC write",
            Self::PortableDsync => "portable, one RWF_DSYNC write",
            Self::BufferedFdatasync => "buffered write, then fdatasync (etcd)",
        }
    }

    fn is_direct(self) -> bool {
        self != Self::BufferedFdatasync
    }
}

/// What to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The data directory, or one on the same file system.
    pub dir: PathBuf,
    /// Writes per method and pace.
    pub writes: u32,
    /// Bytes per write, a multiple of the block.
    pub write_bytes: u32,
    /// Length of the file, a multiple of the block and at least one write.
    pub file_bytes: u64,
    /// A method stops early when its writes of one pace have taken this long.
    pub at_most: Duration,
}

/// How one method did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Which.
    pub method: Method,
    /// The distribution of writes one after the other, if it worked.
    pub latency: Option<Distribution>,
    /// Writes before each of which the thread slept for [`PAUSE`], so that core and
    /// device had gone to rest: what one client's puts meet, one at a time.
    pub after_pause: Option<Distribution>,
    /// Why not, if it did not.
    pub error: Option<String>,
    /// False if the file system refused O_DIRECT and the page cache took part.
    pub direct: bool,
}

/// With the 50 microseconds by which Linux lets a timer be late, about what passes between the end
/// of one put's write and the next one's when a single client waits for each answer: that answer's
/// way, and the next request's.
pub const PAUSE: Duration = Duration::from_micros(20);

#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// Measures every method, in turns of [`TURN`] writes a pace, so that other work on the disk
/// disturbs all alike. `progress` hears what is done and how far it is, in percent.
///
/// Errors: the directory cannot be written to, or has no room.
pub fn measure(plan: &Plan, progress: &mut dyn FnMut(&str, u32)) -> io::Result<Vec<Measured>> {
    let path = plan.dir.join(format!(".etcore-tune-probe.{}", std::process::id()));
    let file = OpenOptions::new().write(true).mode(0o600).create_new(true).open(&path)?;
    let lanes = Method::ALL.map(|method| Lane::open(method, &path));
    // The open files live on without the name: nothing is left however the process ends.
    std::fs::remove_file(&path)?;
    progress("filling a file with zeros", 0);
    fill(&file, plan.file_bytes)?;
    let blocks = vec![Block([0x5a; BLOCK_BYTES]); plan.write_bytes as usize / BLOCK_BYTES];
    let data: &[u8] = bytemuck::cast_slice(&blocks);
    let mut lanes: Vec<Lane> = lanes.into_iter().collect::<io::Result<_>>()?;
    let mut number = 0;
    while lanes.iter().any(|lane| lane.is_open(plan)) {
        progress(
            "measuring durable writes",
            (u64::from(number) * 100 / u64::from(plan.writes)) as u32,
        );
        let turn = number..plan.writes.min(number + TURN);
        for lane in &mut lanes {
            lane.turn(plan, data, turn.clone(), Pace::Busy);
        }
        for lane in &mut lanes {
            lane.turn(plan, data, turn.clone(), Pace::Paused);
        }
        number = turn.end;
    }
    Ok(lanes.into_iter().map(Lane::finish).collect())
}

/// Writes of one method before the next one's turn.
const TURN: u32 = 25;

/// What the thread does before a write.
#[derive(Debug, Clone, Copy)]
enum Pace {
    /// Nothing: the last write has just ended.
    Busy,
    /// It sleeps for [`PAUSE`].
    Paused,
}

/// The times of the writes of one pace. Only the writes count, not the pauses.
#[derive(Debug, Default)]
struct Samples {
    took: Vec<Duration>,
    spent: Duration,
}

impl Samples {
    /// True if neither the writes nor the time are used up.
    fn is_open(&self, plan: &Plan) -> bool {
        let started = !self.took.is_empty();
        (self.took.len() as u64) < u64::from(plan.writes)
            && !(started && self.spent >= plan.at_most)
    }

    fn push(&mut self, took: Duration) {
        self.spent += took;
        self.took.push(took);
    }
}

/// One method under measurement.
struct Lane {
    method: Method,
    file: File,
    direct: bool,
    ring: Option<uring::Writer>,
    /// By [`Pace`].
    samples: [Samples; 2],
    error: Option<io::Error>,
}

impl Lane {
    fn open(method: Method, path: &Path) -> io::Result<Self> {
        let mut flags = if method.is_direct() { libc::O_DIRECT } else { 0 };
        if method == Method::PortableDsync {
            // The flag that RWF_DSYNC sets for one write, for all of them.
            flags |= libc::O_DSYNC;
        }
        let open =
            |flags: i32| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let (file, direct) = match open(flags) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                (open(flags & !libc::O_DIRECT)?, false)
            }
            other => (other?, method.is_direct()),
        };
        let (ring, error) = match method {
            Method::UringLinkedFdatasync | Method::UringDsync => match uring::Writer::new() {
                Ok(ring) => (Some(ring), None),
                Err(error) => (None, Some(error)),
            },
            Method::PortableDsync | Method::BufferedFdatasync => (None, None),
        };
        Ok(Self { method, file, direct, ring, samples: Default::default(), error })
    }

    /// True if it has neither failed, nor finished, nor used up its time.
    fn is_open(&self, plan: &Plan) -> bool {
        self.error.is_none() && self.samples.iter().any(|samples| samples.is_open(plan))
    }

    fn turn(&mut self, plan: &Plan, data: &[u8], numbers: std::ops::Range<u32>, pace: Pace) {
        for number in numbers {
            if self.error.is_some() || !self.samples[pace as usize].is_open(plan) {
                return;
            }
            if matches!(pace, Pace::Paused) {
                std::thread::sleep(PAUSE);
            }
            let start = Instant::now();
            match self.write(data, offset(plan, number)) {
                Ok(()) => self.samples[pace as usize].push(start.elapsed()),
                Err(error) => self.error = Some(error),
            }
        }
    }

    fn write(&mut self, data: &[u8], offset_bytes: u64) -> io::Result<()> {
        let file = &self.file;
        match (self.method, &mut self.ring) {
            (Method::UringLinkedFdatasync, Some(ring)) => {
                ring.write_and_sync(file, data, offset_bytes)
            }
            (Method::UringDsync, Some(ring)) => ring.write_dsync(file, data, offset_bytes),
            (Method::BufferedFdatasync, _) => {
                file.write_all_at(data, offset_bytes).and_then(|()| file.sync_data())
            }
            _ => file.write_all_at(data, offset_bytes),
        }
    }

    /// A method that failed on the way has no distribution: what it did before is no promise.
    fn finish(self) -> Measured {
        let works = self.error.is_none();
        let [latency, after_pause] = self.samples.map(|samples| match works {
            true => Distribution::of(samples.took),
            false => None,
        });
        Measured {
            method: self.method,
            latency,
            after_pause,
            error: self.error.map(|error| error.to_string()),
            direct: self.direct,
        }
    }
}

/// Where write `number` goes: forward through the file, each place [`REWRITES`] times, since small
/// batches share a block.
fn offset(plan: &Plan, number: u32) -> u64 {
    let places = plan.file_bytes / u64::from(plan.write_bytes);
    u64::from(number / REWRITES) % places * u64::from(plan.write_bytes)
}

/// How often one block is written: a batch of a few hundred bytes fills an eighth of it.
const REWRITES: u32 = 8;

/// Writes real zeros and syncs, so that later writes change no allocation.
fn fill(file: &File, len_bytes: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut offset = 0;
    while offset < len_bytes {
        let count = (len_bytes - offset).min(zeros.len() as u64) as usize;
        file.write_all_at(&zeros[..count], offset)?;
        offset += count as u64;
    }
    file.sync_all()
}

/// True if io_uring can be set up here; otherwise why not.
pub fn uring_works() -> io::Result<uring::Features> {
    uring::features()
}

pub use uring::Features;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(dir: &Path) -> Plan {
        Plan {
            dir: dir.to_owned(),
            writes: 40,
            write_bytes: 4096,
            file_bytes: 64 << 10,
            at_most: Duration::from_secs(5),
        }
    }

    #[test]
    fn every_method_is_measured_and_nothing_is_left_behind() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut heard = Vec::new();
        let measured =
            measure(&plan(dir.path()), &mut |what, _| heard.push(what.to_owned())).expect("runs");
        assert_eq!(measured.len(), Method::ALL.len());
        for one in &measured {
            assert!(one.latency.is_some() != one.error.is_some(), "{one:?}");
            assert_eq!(one.latency.is_some(), one.after_pause.is_some(), "{one:?}");
            for latency in one.latency.iter().chain(&one.after_pause) {
                assert_eq!(latency.count, 40);
                assert!(latency.p50_us > 0.0);
            }
        }
        let portable = measured.iter().find(|one| one.method == Method::PortableDsync);
        assert!(portable.is_some_and(|one| one.latency.is_some()));
        assert!(heard.iter().any(|what| what == "measuring durable writes"));
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = dir.path().join("missing");
        assert!(measure(&plan(&missing), &mut |_, _| ()).is_err());
    }

    #[test]
    fn a_slow_method_stops_early() {
        let dir = tempfile::tempdir().expect("a directory");
        let quick = Plan { at_most: Duration::ZERO, ..plan(dir.path()) };
        for one in measure(&quick, &mut |_, _| ()).expect("runs") {
            assert!(one.latency.is_none_or(|latency| latency.count == 1), "{one:?}");
        }
    }

    #[test]
    fn offsets_stay_in_the_file_and_come_back() {
        let plan = plan(Path::new("/"));
        let offsets: Vec<u64> = (0..200).map(|number| offset(&plan, number)).collect();
        assert!(offsets.iter().all(|offset| offset + 4096 <= plan.file_bytes));
        assert_eq!((offsets[0], offsets[7], offsets[8]), (0, 0, 4096));
        assert_eq!(offsets[128], 0);
    }
}
