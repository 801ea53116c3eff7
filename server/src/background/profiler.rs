//! CPU profiles of the process: samples by SIGPROF, as Go takes them, in the form that `go tool
//! pprof` opens.
//!
//! The services start one with a thread of its own, which sleeps while the kernel's timer
//! interrupts whoever runs, and makes the report afterwards. One at a time: the signal is the
//! process'. Nothing on a shard waits for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use pprof::ProfilerGuardBuilder;

use crate::channel::Shared;
use crate::driver::Waker;

mod report;

/// Samples a second, as in Go.
const FREQUENCY_HZ: i32 = 100;
/// How often the thread looks whether the member stops.
const STEP: Duration = Duration::from_millis(100);
/// Libraries that are skipped: a sample in the middle of these could not be unwound safely.
const BLOCKED: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// Profiles that are done, with what they were asked for by.
pub type Profiles<T> = Arc<ArrayQueue<(T, Result<Vec<u8>, String>)>>;

/// Starts a profile of so many seconds; it comes to `done`, whose owner is woken.
///
/// # Errors
/// Why there will be none.
pub fn start<T: Send + 'static>(
    shared: Arc<Shared>,
    seconds: u64,
    (asked, done, waker): (T, Profiles<T>, Waker),
) -> Result<(), String> {
    if shared.profiling.swap(true, Ordering::AcqRel) {
        return Err("Could not enable CPU profiling: cpu profiling already in use".to_owned());
    }
    let thread = std::thread::Builder::new().name("etcore-profile".into());
    let own = shared.clone();
    let started = thread.spawn(move || {
        let profile = take(&own, seconds);
        own.profiling.store(false, Ordering::Release);
        // There is one at a time, and room for it.
        let _ = done.push((asked, profile));
        waker.wake();
    });
    started.map(drop).map_err(|error| {
        shared.profiling.store(false, Ordering::Release);
        format!("Could not enable CPU profiling: {error}")
    })
}

fn take(shared: &Shared, seconds: u64) -> Result<Vec<u8>, String> {
    let failed = |error: pprof::Error| format!("Could not enable CPU profiling: {error}");
    let guard = ProfilerGuardBuilder::default()
        .frequency(FREQUENCY_HZ)
        .blocklist(&BLOCKED)
        .build()
        .map_err(failed)?;
    let end = shared.clock.elapsed() + Duration::from_secs(seconds);
    while shared.clock.elapsed() < end && !shared.lifecycle.is_stopping() {
        std::thread::sleep(STEP);
    }
    let report = guard.report().build().map_err(failed)?;
    drop(guard);
    Ok(report::encode(&report, 1_000_000_000 / i64::from(FREQUENCY_HZ)))
}
