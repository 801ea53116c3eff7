//! Members that are stopped for a moment again and again while they are written to: as CPU limits,
//! live migration and SIGSTOP do it. Nothing that a member waits for may be lost in one.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etcore_engine::file::StdDisk;
use etcore_engine::store::{EngineConfig, Store};
use etcore_engine::testing::prng::Prng;
use etcore_engine::types::{LeaseId, LogIndex, Term};
use etcore_proto::pb::etcdserverpb as pb;
use etcore_server::background::{Answer, Background, Setup as BackgroundSetup, Task};
use etcore_server::driver::Waker;
use etcore_server::driver::probe::DriverKind;

use crate::harness::{Client, DRIVERS, Setup, block_on, is_available};

/// Ten minutes by hand, less than half a minute otherwise.
fn lasts() -> Duration {
    match std::env::var_os("ETCORE_LONG") {
        Some(_) => Duration::from_secs(600),
        None => Duration::from_secs(15),
    }
}

/// Bytes of a put: so many that checkpoints follow each other, and that a member whose checkpoints
/// have ended takes no more of them within seconds.
const VALUE_BYTES: usize = 256 << 10;
/// Puts after which older values are compacted, so that the disk does not fill.
const COMPACT_EVERY: u64 = 50;
/// What a put takes at most, the pauses included.
const PUT_MAX: Duration = Duration::from_secs(6);

fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).unwrap();
    // SAFETY: a plain system call; the process is a child that was not waited for.
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0, "the member runs");
}

fn stop_and_write(driver: &'static str, seed: u64) {
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), driver).with_long_segments();
    let member = setup.start();
    let pid = member.pid();
    let end = Instant::now() + lasts();
    let stops = std::thread::spawn(move || {
        let mut prng = Prng::new(seed);
        let mut stops = 0;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5 + prng.below(40)));
            signal(pid, libc::SIGSTOP);
            std::thread::sleep(Duration::from_millis(100 + prng.below(60)));
            signal(pid, libc::SIGCONT);
            stops += 1;
        }
        stops
    });
    let (mut puts, mut longest) = (0u64, Duration::ZERO);
    block_on(async {
        let client = Client::connect(&setup).await;
        while Instant::now() < end {
            let put = pb::PutRequest {
                key: format!("k{}", puts % 20).into(),
                value: vec![puts as u8; VALUE_BYTES].into(),
                ..Default::default()
            };
            let began = Instant::now();
            let put = tokio::time::timeout(PUT_MAX, client.put(put)).await;
            let took = began.elapsed();
            put.unwrap_or_else(|_| panic!("seed {seed}, {driver}: put {puts} stands still"))
                .unwrap_or_else(|error| panic!("seed {seed}, {driver}, put {puts}: {error}"));
            longest = longest.max(took);
            puts += 1;
            if puts.is_multiple_of(COMPACT_EVERY) {
                let request = pb::CompactionRequest { revision: puts as i64, physical: false };
                client.compact(request).await.unwrap();
            }
        }
    });
    let stops = stops.join().unwrap();
    eprintln!("{driver}: {stops} stops, {puts} puts, the longest {longest:?}, seed {seed}");
    assert!(stops > 50 && puts as usize * VALUE_BYTES > 40 << 20, "{stops} stops, {puts} puts");
}

#[test]
fn a_member_that_is_stopped_for_moments_goes_on_with_everything() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let drivers = DRIVERS.into_iter().filter(|driver| is_available(driver));
    let threads: Vec<_> = drivers
        .zip(1..)
        .map(|(driver, seed)| std::thread::spawn(move || stop_and_write(driver, seed)))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Names the directory of the process that runs checkpoints, in its environment.
const CHECKPOINTS_IN: &str = "ETCORE_TEST_CHECKPOINTS_IN";
/// How long that process waits for a checkpoint: far longer than one of some kilobytes takes.
const CHECKPOINT_MAX: Duration = Duration::from_secs(5);

/// Runs checkpoints one after the other, with what the replica does while it waits; returns how
/// many once `lasts` is over, or `None` if one does not end.
fn run_checkpoints(dir: &std::path::Path, lasts: Duration) -> Option<u64> {
    let mut disk = StdDisk::new(dir);
    let (mut store, checkpointer) = Store::open(&mut disk, EngineConfig::default()).unwrap();
    let replica = Waker::new().unwrap();
    let driver = DriverKind::Uring;
    let background =
        Background::start(BackgroundSetup { checkpointer, disk, driver, replica }).unwrap();
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < lasts {
        count += 1;
        let mut txn = store.begin(LogIndex(count), Term(1));
        txn.put(b"key", &[1; 4096], LeaseId(0));
        txn.commit();
        store.publish();
        let input = store.freeze(count).unwrap();
        assert!(background.submit(Task::Checkpoint(Box::new(input))).is_ok());
        let (mut waited, mut nudged) = (Duration::ZERO, Duration::ZERO);
        let mut last = Instant::now();
        let output = loop {
            match background.poll() {
                Some(Answer::Checkpoint(output)) => break output,
                Some(_) => panic!("the disk has room and works"),
                None => {}
            }
            std::thread::yield_now();
            // Time in which this process was stopped does not count.
            let now = Instant::now();
            waited += (now - std::mem::replace(&mut last, now)).min(Duration::from_millis(10));
            if waited - nudged > Duration::from_millis(100) {
                nudged = waited;
                background.nudge();
            }
            if waited > CHECKPOINT_MAX {
                return None;
            }
        };
        store.on_checkpoint(&output);
    }
    Some(count)
}

#[test]
fn a_checkpoint_ends_though_a_wake_up_was_lost_in_a_pause() {
    let _turn = crate::harness::turn::of_file(module_path!());
    if let Some(dir) = std::env::var_os(CHECKPOINTS_IN) {
        match run_checkpoints(std::path::Path::new(&dir), lasts() / 3) {
            Some(count) => eprintln!("{count} checkpoints"),
            // Not even a stop would end: its thread sleeps.
            None => std::process::exit(3),
        }
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let own = "durability::pauses::a_checkpoint_ends_though_a_wake_up_was_lost_in_a_pause";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([own, "--exact", "--nocapture"])
        .env(CHECKPOINTS_IN, dir.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (mut prng, mut stops) = (Prng::new(7), 0);
    let status = loop {
        std::thread::sleep(Duration::from_millis(2 + prng.below(30)));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        signal(child.id(), libc::SIGSTOP);
        std::thread::sleep(Duration::from_millis(105 + prng.below(30)));
        signal(child.id(), libc::SIGCONT);
        stops += 1;
    };
    assert!(status.success(), "a checkpoint did not end after {stops} stops");
    assert!(stops > 20, "{stops} stops");
}
