//! A disk that is full and a disk that stands still, as real file systems under a real member: a
//! small tmpfs, and an ext4 on a loop device that is frozen. Mounting needs root; without it the
//! tests say that they were skipped.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etcore_proto::pb::etcdserverpb as pb;
use tonic::Code;

use crate::harness::{Client, DRIVERS, Setup, block_on, is_available};

fn run(program: &str, args: &[&str]) -> bool {
    let status = Command::new(program).args(args).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A mounted file system; unmounted when dropped.
struct Mount {
    at: PathBuf,
    frozen: bool,
}

impl Mount {
    fn tmpfs(at: &Path, size: &str) -> Option<Self> {
        let path = at.to_str().unwrap();
        if !run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "none", path]) {
            eprintln!("SKIPPED: a tmpfs cannot be mounted here; a full disk is not tested");
            return None;
        }
        Some(Self { at: at.to_owned(), frozen: false })
    }

    fn ext4(dir: &Path, at: &Path) -> Option<Self> {
        let image = dir.join("image");
        std::fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
        let (image, path) = (image.to_str().unwrap(), at.to_str().unwrap());
        let mounted =
            run("mkfs.ext4", &["-q", image]) && run("mount", &["-o", "loop", image, path]);
        if !mounted || !run("fsfreeze", &["--unfreeze", path]) && !can_freeze(path) {
            eprintln!("SKIPPED: no loop device or no fsfreeze here; a stalling disk is not tested");
            if mounted {
                run("umount", &["-l", path]);
            }
            return None;
        }
        Some(Self { at: at.to_owned(), frozen: false })
    }

    fn freeze(&mut self) {
        assert!(run("fsfreeze", &["--freeze", self.at.to_str().unwrap()]));
        self.frozen = true;
    }

    fn thaw(&mut self) {
        if std::mem::take(&mut self.frozen) {
            assert!(run("fsfreeze", &["--unfreeze", self.at.to_str().unwrap()]));
        }
    }
}

fn can_freeze(path: &str) -> bool {
    run("fsfreeze", &["--freeze", path]) && run("fsfreeze", &["--unfreeze", path])
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.thaw();
        run("umount", &["-l", self.at.to_str().unwrap()]);
    }
}

fn put(key: &str, len: usize) -> pb::PutRequest {
    pb::PutRequest {
        key: key.to_owned().into(),
        value: vec![b'x'; len].into(),
        ..Default::default()
    }
}

/// Puts until the member refuses; how many it took.
async fn fill(client: &Client, prefix: &str) -> usize {
    let mut count = 0;
    loop {
        match client.put(put(&format!("{prefix}{count:05}"), 100_000)).await {
            Ok(_) => count += 1,
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
                assert_eq!(status.message(), "etcdserver: mvcc: database space exceeded");
                return count;
            }
        }
        assert!(count < 10_000, "the disk never fills up");
    }
}

async fn key_count(client: &Client) -> i64 {
    let request = pb::RangeRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        count_only: true,
        ..Default::default()
    };
    client.range(request).await.unwrap().count
}

#[test]
fn on_a_full_disk_puts_are_refused_reads_and_deletes_go_on_and_space_brings_puts_back() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("disk");
        std::fs::create_dir(&at).unwrap();
        let Some(_mount) = Mount::tmpfs(&at, "80m") else { return };
        let setup = Setup::new(&at, driver);
        let mut member = setup.start();
        let taken = block_on(async {
            let client = Client::connect(&setup).await;
            let taken = fill(&client, "k").await;
            assert!(taken > 100, "{taken} values of 100 kB on a disk of 80 MB");
            assert_eq!(key_count(&client).await, i64::try_from(taken).unwrap());
            assert_eq!(client.get("k00000").await.unwrap().len(), 100_000);
            taken
        });
        member.wait_for_line("the disk is full");
        // Whatever was acknowledged is there after a restart on the full disk.
        member.kill();
        let mut member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            assert_eq!(key_count(&client).await, i64::try_from(taken).unwrap());
            fill(&client, "again").await;
            // Deleting and compacting make room by themselves.
            let all = pb::DeleteRangeRequest {
                key: "\0".into(),
                range_end: "\0".into(),
                ..Default::default()
            };
            let revision = client.delete_range(all).await.unwrap().header.unwrap().revision;
            let request = pb::CompactionRequest { revision, physical: false };
            client.compact(request).await.unwrap();
            fill_as_room_comes(&client, 50).await;
            // So does an operator who makes the disk larger.
            let path = at.to_str().unwrap();
            assert!(run("mount", &["-o", "remount,size=160m", path]));
            member.wait_for_line("there is room on the disk again");
            wait_for_room(&client).await;
            assert!(fill(&client, "third").await > 100);
        });
    }
}

/// Puts `count` values and waits whenever the member has no room: what a compaction frees comes
/// back checkpoint by checkpoint.
async fn fill_as_room_comes(client: &Client, count: usize) {
    let mut taken = 0;
    while taken < count {
        wait_for_room(client).await;
        taken += fill(client, &format!("second{taken}-")).await;
    }
}

async fn wait_for_room(client: &Client) {
    let began = Instant::now();
    while client.put(put("room", 1)).await.is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "writes are never accepted again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[test]
fn on_a_disk_that_stands_still_reads_go_on_and_writes_time_out_with_etcds_error() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("disk");
        std::fs::create_dir(&at).unwrap();
        let Some(mut mount) = Mount::ext4(dir.path(), &at) else { return };
        // A short election timeout makes a short request timeout: 5 s + 2 elections.
        let setup =
            Setup::new(&at, driver).with("--election-timeout=100").with("--heartbeat-interval=20");
        let member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            client.put_kv("a", "1").await;
            mount.freeze();
            let began = Instant::now();
            let write = client.put(put("a", 1));
            let reads = async {
                let mut reads = 0;
                while began.elapsed() < Duration::from_secs(4) {
                    assert_eq!(client.get("a").await.as_deref(), Some("1"));
                    reads += 1;
                }
                reads
            };
            let (written, reads) = tokio::join!(write, reads);
            let status = written.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable);
            assert_eq!(status.message(), "etcdserver: request timed out");
            let took = began.elapsed().as_secs_f64();
            assert!((4.9..7.0).contains(&took), "timed out after {took} s");
            assert!(reads > 100, "{reads} reads in four seconds");
            mount.thaw();
            // What timed out may have happened; what follows is in order again.
            let revision = client.put_kv("b", "2").await;
            assert_eq!(revision, 4, "the write that timed out was carried out");
        });
        member.kill();
        let _member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            assert_eq!(client.get("b").await.as_deref(), Some("2"));
        });
    }
}
