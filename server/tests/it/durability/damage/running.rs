//! Pages that rot under a running member: whoever reads one gets etcd's error for damaged data, all
//! others go on, and what must not go on stops the member with file and offset.
//!
//! Part of the damage test. It must never patch a page that the member has read since its start.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use etcore_proto::pb::etcdserverpb as pb;
use tonic::Code;

use super::history::{self, End, History, Served};
use super::image::DB;
use super::layout::{Layout, PageKind};
use crate::harness::watch::Watch;
use crate::harness::{Client, DRIVERS, Member, Setup, block_on, is_available};

const CORRUPT: &str = "etcdserver: corrupt cluster";
const NAMED: &str = "etcore.db: corrupt at byte";

/// A member that has just started on a directory whose leaves of `kind` are then damaged on disk:
/// every one that `choose` takes by its number.
fn start_damaged(history: &History, choose: impl Fn(usize) -> bool) -> (Member, usize) {
    let dir = history::member_dir(&history.setup);
    let mut member = history.setup.start();
    let image = super::image::Image::load(&dir);
    // A start writes little, so the leaves of the last life are still those of the tree.
    let layout = Layout::of(&image);
    let file = std::fs::File::options().write(true).open(dir.join(DB)).unwrap();
    let leaves = layout.pages.iter().filter(|page| page.newest && page.kind == PageKind::Leaf);
    let mut damaged = 0;
    for (number, page) in leaves.enumerate() {
        let bucket = image.files[DB].read(page.start + 1, 1)[0];
        if bucket == 0 && choose(number) {
            let at = page.start + page.len - 3;
            let byte = image.files[DB].read(at, 1)[0];
            file.write_all_at(&[byte ^ 0x10], at as u64).unwrap();
            damaged += 1;
        }
    }
    member.seen.clear();
    (member, damaged)
}

fn is_corrupt<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) {
    let status = answer.expect_err("a damaged page was served");
    assert_eq!((status.code(), status.message()), (Code::DataLoss, CORRUPT), "{status:?}");
}

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

fn put(key: &str, prev_kv: bool) -> pb::PutRequest {
    let (key, value) = (key.to_owned().into(), "new".into());
    pb::PutRequest { key, value, prev_kv, ..Default::default() }
}

fn drivers() -> impl Iterator<Item = &'static str> {
    DRIVERS.into_iter().filter(|driver| is_available(driver))
}

/// The alarm of the history would stand in the way of writes.
async fn disarm(client: &Client) {
    let request = pb::AlarmRequest { action: 2, member_id: 7, alarm: 1 };
    client.alarm(request).await.unwrap();
}

#[test]
fn a_page_that_rots_under_a_running_member_is_an_error_for_its_readers_and_for_nobody_else() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for (round, driver) in drivers().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let history = history::make(dir.path(), driver, End::Stopped, 77 + round as u64);
        for step in [1, 3] {
            let (mut member, damaged) = start_damaged(&history, |number| number % step == 0);
            assert!(damaged > 3, "{damaged} leaves");
            block_on(async {
                let client = Client::connect(&history.setup).await;
                let served: Served = history::ask(&client).await;
                let wrong = served.differences(&history.served);
                assert!(wrong.is_empty(), "{driver}: {wrong:#?}");
                assert!(served.errors() > 5, "{driver}: {} errors", served.errors());
                assert!(step == 1 || served.errors() < served.answers.len() / 2);
                if step == 1 {
                    is_corrupt(client.range(pb::RangeRequest { limit: 3, ..all() }).await);
                    client.range(all()).await.expect_err("reset, as its length was sent already");
                    is_corrupt(client.range_stream(all()).await);
                    is_corrupt(client.hash_kv(pb::HashKvRequest::default()).await);
                    is_corrupt(client.hash(pb::HashRequest::default()).await);
                    let mut watch = Watch::connect(&history.setup).await;
                    watch
                        .create(pb::WatchCreateRequest {
                            key: "\0".into(),
                            range_end: "\0".into(),
                            start_revision: history.served.revision - 40,
                            ..Default::default()
                        })
                        .await;
                    assert!(watch.next().await.expect("a response").created);
                    is_corrupt(watch.next().await);
                }
                // What is in memory, or needs no page, goes on.
                let count = pb::RangeRequest { count_only: true, ..all() };
                assert!(client.range(count).await.unwrap().count > 10);
                assert!(client.status(pb::StatusRequest::default()).await.is_ok());
            });
            member.wait_for_line(NAMED);
            // The next start reads every page, and refuses.
            member.kill();
            let mut member = history.setup.spawn();
            let status = member.wait_for_ready(Duration::from_secs(30)).unwrap();
            assert_eq!(status.expect("refused").code(), Some(1));
            assert!(member.seen.iter().any(|line| line.contains(NAMED)));
            // As it was, for the next step.
            history.image.store(&history::member_dir(&history.setup));
        }
    }
}

#[test]
fn a_page_that_is_lost_behind_a_map_stops_the_member_with_one_line_that_says_where() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for driver in drivers() {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let member = setup.start();
        let value = "v".repeat(1000);
        let puts = |client: Client| async move {
            for number in 0..2000 {
                client.put_kv(&format!("k{number:04}"), &value).await;
            }
        };
        block_on(async { puts(Client::connect(&setup).await).await });
        member.terminate();
        let mut member = member;
        assert_eq!(member.wait().code(), Some(0));
        // What it reads now comes from pages, through the map.
        let mut member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            let whole = client.range(all()).await.unwrap();
            assert_eq!(whole.count, 2000);
            let file = history::member_dir(&setup).join(DB);
            // Another process does that, or the device below loses what was there.
            std::fs::File::options().write(true).open(file).unwrap().set_len(65_536).unwrap();
            let lost = client.range(all()).await;
            assert!(lost.is_err(), "{driver}: pages that are gone were read");
        });
        let status = member.wait();
        let log = member.seen.join("\n");
        assert_eq!(status.code(), Some(1), "{driver}: {status:?}\n{log}");
        let told: Vec<&String> =
            member.seen.iter().filter(|line| line.contains("stopped after a failure")).collect();
        assert_eq!(told.len(), 1, "{driver}:\n{log}");
        assert!(told[0].contains("etcore.db: cannot read at byte"), "{driver}: {}", told[0]);
    }
}

#[test]
fn what_cannot_go_on_without_a_rotten_page_stops_the_member_and_says_where() {
    let _turn = crate::harness::turn::of_file(module_path!());
    for (round, driver) in drivers().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let history = history::make(dir.path(), driver, End::Stopped, 99 + round as u64);
        for what in ["compaction", "defragmentation", "previous value"] {
            let (mut member, _) = start_damaged(&history, |_| true);
            block_on(async {
                let client = Client::connect(&history.setup).await;
                disarm(&client).await;
                match what {
                    "compaction" => {
                        let revision = history.served.revision;
                        let request = pb::CompactionRequest { revision, physical: true };
                        let answer = client.compact(request).await;
                        assert!(answer.is_err(), "{driver}: the pages cannot be compacted");
                    }
                    "defragmentation" => {
                        // Only pages that move are read; then the file may be as small as it gets.
                        let _ = client.defragment(pb::DefragmentRequest::default()).await;
                        let _ = client.put(put("k1", true)).await;
                    }
                    _ => {
                        // Applying reads the page; it must not be answered differently from what a
                        // later start, or another member, would make of the entry.
                        let mut refused = 0;
                        for key in 0..40 {
                            let answer = client.put(put(&format!("k{key}"), true)).await;
                            refused += u64::from(answer.is_err());
                        }
                        assert!(refused > 0, "{driver}: no previous value was read");
                    }
                }
            });
            let status = member.wait();
            let log = member.seen.join("\n");
            assert_eq!(status.code(), Some(1), "{driver}, {what}:\n{log}");
            assert!(log.contains(NAMED), "{driver}, {what}:\n{log}");
            assert!(!log.contains("panicked"), "{driver}, {what}:\n{log}");
            history.image.store(&history::member_dir(&history.setup));
        }
    }
}
