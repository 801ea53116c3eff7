//! Members that are stopped for a moment again and again while they are written to: as CPU limits,
//! live migration and SIGSTOP do it. Nothing that a member waits for may be lost in one.

use std::time::{Duration, Instant};

use etcore_engine::testing::prng::Prng;
use etcore_proto::pb::etcdserverpb as pb;

mod harness;

use harness::{Client, DRIVERS, Setup, block_on, is_available};

/// Ten minutes by hand, half a minute for each driver otherwise.
fn lasts() -> Duration {
    match std::env::var_os("ETCORE_LONG") {
        Some(_) => Duration::from_secs(600),
        None => Duration::from_secs(30),
    }
}

/// Bytes of a put, and the time between two: some megabytes a second, so that a member whose
/// checkpoints have ended takes no more of them within ten seconds.
const VALUE_BYTES: usize = 128 << 10;
const BETWEEN: Duration = Duration::from_millis(10);
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
            std::thread::sleep(Duration::from_millis(20 + prng.below(150)));
            signal(pid, libc::SIGSTOP);
            std::thread::sleep(Duration::from_millis(100 + prng.below(200)));
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
                key: format!("k{}", puts % 100).into(),
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
            tokio::time::sleep(BETWEEN).await;
        }
    });
    let stops = stops.join().unwrap();
    eprintln!("{driver}: {stops} stops, {puts} puts, the longest {longest:?}, seed {seed}");
    assert!(stops > 50 && puts as usize * VALUE_BYTES > 40 << 20, "{stops} stops, {puts} puts");
}

#[test]
fn a_member_that_is_stopped_for_moments_goes_on_with_everything() {
    let drivers = DRIVERS.into_iter().filter(|driver| is_available(driver));
    let threads: Vec<_> = drivers
        .zip(1..)
        .map(|(driver, seed)| std::thread::spawn(move || stop_and_write(driver, seed)))
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
