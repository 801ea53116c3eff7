//! The Watch service over real sockets, on both drivers.
//!
//! What a client sees of each rule is a script below `watch/`, whose name is the rule. A line `$ …`
//! is an action, everything else is what came of it, all fields of each response included. etcd
//! itself writes the scripts (`REWRITE=1`), and where its binary is at hand it is held to them like
//! every driver. What etcd does otherwise or cannot do is tested in plain code below.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use etcore_proto::pb::{etcdserverpb as pb, mvccpb};
use pb::watch_request::RequestUnion;
use tonic::Code;

use crate::harness::watch::Watch;
use crate::harness::{Client, DRIVERS, Etcd, Setup, block_on, is_available, oracle};

/// Runs the script against every driver, and against etcd where it is at hand.
fn holds(name: &str) {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/services/watch")
        .join(format!("{name}.txt"));
    let mut golden = std::fs::read_to_string(&path).unwrap();
    if let Some(etcd) = oracle("etcd") {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), "portable");
        let _etcd = Etcd::start(&etcd, &setup);
        let found = block_on(play(&golden, &setup));
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&path, &found).unwrap();
            golden = found;
        } else {
            assert!(found == golden, "etcd itself does otherwise:\n{found}");
        }
    }
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let _member = setup.start();
        let found = block_on(play(&golden, &setup));
        assert!(found == golden, "{driver} does otherwise:\n{found}");
    }
}

/// The script with what comes of its actions now.
async fn play(script: &str, setup: &Setup) -> String {
    let client = Client::connect(setup).await;
    let mut streams = BTreeMap::new();
    let mut out = String::new();
    for line in script.lines() {
        let Some(action) = line.strip_prefix("$ ") else { continue };
        let _ = writeln!(out, "{line}");
        act(action, &client, &mut streams, &mut out).await;
    }
    out
}

async fn act(
    action: &str,
    client: &Client,
    streams: &mut BTreeMap<String, Watch>,
    out: &mut String,
) {
    let words: Vec<&str> = action.split_whitespace().collect();
    match words[..] {
        ["put", key, value] => {
            client.put_kv(key, value).await;
        }
        ["del", key, ref rest @ ..] => {
            let range_end = rest.first().copied().unwrap_or_default().to_owned().into();
            let request =
                pb::DeleteRangeRequest { key: bytes(key), range_end, ..Default::default() };
            client.delete_range(request).await.unwrap();
        }
        // Puts `count` keys of `size` bytes in one revision.
        ["txn", prefix, count, size] => {
            let value = "x".repeat(size.parse().unwrap());
            let put = |number: usize| pb::RequestOp {
                request: Some(pb::request_op::Request::RequestPut(pb::PutRequest {
                    key: format!("{prefix}{number:03}").into(),
                    value: value.clone().into(),
                    ..Default::default()
                })),
            };
            let success = (0..count.parse().unwrap()).map(put).collect();
            client.txn(pb::TxnRequest { success, ..Default::default() }).await.unwrap();
        }
        ["compact", revision] => {
            let request =
                pb::CompactionRequest { revision: revision.parse().unwrap(), physical: true };
            client.compact(request).await.unwrap();
        }
        ["open", name] => {
            streams.insert(name.to_owned(), Watch::open(client).await);
        }
        ["close", name] => {
            streams.remove(name).unwrap();
        }
        [name, "create", ref options @ ..] => {
            streams.get(name).unwrap().create(create(options)).await;
        }
        [name, "cancel", id] => {
            let request = pb::WatchCancelRequest { watch_id: id.parse().unwrap() };
            streams.get(name).unwrap().ask(RequestUnion::CancelRequest(request)).await;
        }
        [name, "progress"] => {
            let request = RequestUnion::ProgressRequest(pb::WatchProgressRequest::default());
            streams.get(name).unwrap().ask(request).await;
        }
        [name, "expect", count] => {
            for _ in 0..count.parse().unwrap() {
                let response = streams.get_mut(name).unwrap().next().await.unwrap();
                describe(&response, out);
            }
        }
        [name, "quiet"] => {
            let nothing = streams.get_mut(name).unwrap().nothing_for(300).await;
            match nothing {
                None => out.push_str("nothing\n"),
                Some(response) => describe(&response, out),
            }
        }
        _ => panic!("what is {action:?}?"),
    }
}

fn bytes(text: &str) -> bytes::Bytes {
    text.replace("\\0", "\0").into()
}

fn create(options: &[&str]) -> pb::WatchCreateRequest {
    let mut request = pb::WatchCreateRequest::default();
    for option in options {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "key" => request.key = bytes(value),
            "end" => request.range_end = bytes(value),
            "start" => request.start_revision = value.parse().unwrap(),
            "id" => request.watch_id = value.parse().unwrap(),
            "progress" => request.progress_notify = true,
            "prev" => request.prev_kv = true,
            "fragment" => request.fragment = true,
            "filter" => request.filters.push(value.parse().unwrap()),
            _ => panic!("what is {option:?}?"),
        }
    }
    request
}

fn describe(response: &pb::WatchResponse, out: &mut String) {
    let header = response.header.as_ref().expect("a header");
    assert!(header.cluster_id != 0 && header.member_id != 0);
    let _ = write!(out, "rev={} term={}", header.revision, header.raft_term);
    let _ = write!(out, " id={}", response.watch_id);
    for (is, name) in [
        (response.created, "created"),
        (response.canceled, "canceled"),
        (response.fragment, "fragment"),
    ] {
        let _ = if is { write!(out, " {name}") } else { Ok(()) };
    }
    if response.compact_revision != 0 {
        let _ = write!(out, " compact={}", response.compact_revision);
    }
    if !response.cancel_reason.is_empty() {
        let _ = write!(out, " reason={:?}", response.cancel_reason);
    }
    out.push('\n');
    for event in &response.events {
        let kind = if event.r#type == 0 { "PUT" } else { "DELETE" };
        let _ = write!(out, "  {kind} {}", kv(event.kv.as_ref().expect("a key")));
        if let Some(previous) = &event.prev_kv {
            let _ = write!(out, " was {}", kv(previous));
        }
        out.push('\n');
    }
}

fn kv(kv: &mvccpb::KeyValue) -> String {
    let value = match kv.value.len() {
        0..20 => String::from_utf8_lossy(&kv.value).into_owned(),
        length => format!("({length} bytes)"),
    };
    let key = String::from_utf8_lossy(&kv.key);
    let (create, modified, version) = (kv.create_revision, kv.mod_revision, kv.version);
    format!("{key}={value} create={create} mod={modified} version={version} lease={}", kv.lease)
}

macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            let _turn = crate::harness::turn::light();
            holds(stringify!($name));
        })*
    };
}

scripts! {
    a_watcher_sees_what_happens_to_its_keys
    a_watcher_may_start_in_the_past_or_the_future
    what_was_compacted_cannot_be_watched
    ids_are_given_or_chosen_and_never_twice
    what_makes_no_sense_is_refused
    filters_and_previous_values
    large_responses_come_in_fragments_if_asked_for
    progress_is_told_once_all_is_sent
    a_revision_is_never_split
}

fn each_driver(flags: &[&str], test: impl AsyncFn(&Setup, Client)) {
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let setup = flags.iter().fold(setup, |setup, flag| setup.with(flag));
        let _member = setup.start();
        block_on(async { test(&setup, Client::connect(&setup).await).await });
    }
}

fn prefix(key: &str) -> pb::WatchCreateRequest {
    let mut end = key.as_bytes().to_vec();
    *end.last_mut().unwrap() += 1;
    pb::WatchCreateRequest { key: bytes(key), range_end: end.into(), ..Default::default() }
}

/// Reads responses until `count` events have come; their revisions.
async fn revisions(watch: &mut Watch, count: usize) -> Vec<i64> {
    let mut found = Vec::new();
    while found.len() < count {
        let response = watch.next().await.unwrap();
        assert!(!response.canceled, "{response:?}");
        found.extend(response.events.iter().map(|e| e.kv.as_ref().unwrap().mod_revision));
    }
    found
}

fn long() -> bool {
    std::env::var_os("ETCORE_LONG").is_some()
}

#[test]
fn a_reader_that_stops_costs_writers_and_other_watchers_nothing_and_loses_nothing() {
    let _turn = crate::harness::turn::light();
    let puts: i64 = if long() { 50_000 } else { 6_000 };
    // More than the windows hold that this client opens.
    let value = "v".repeat(2_000);
    each_driver(&[], async |setup, client| {
        let (mut slow, mut quick) = (Watch::connect(setup).await, Watch::connect(setup).await);
        for watch in [&mut slow, &mut quick] {
            watch.create(prefix("k")).await;
            assert!(watch.next().await.unwrap().created);
        }
        let value = &value;
        let mut tasks = tokio::task::JoinSet::new();
        for worker in 0..64 {
            let (client, value) = (client.clone(), value.clone());
            tasks.spawn(async move {
                for number in (worker..puts).step_by(64) {
                    client.put_kv(&format!("k{}", number % 500), &value).await;
                }
            });
        }
        // The quick one reads along while all of it is written.
        let expected: Vec<i64> = (2..puts + 2).collect();
        assert_eq!(revisions(&mut quick, expected.len()).await, expected);
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let (_, text) = crate::harness::http_get(setup.client_port, "/metrics");
        assert!(text.contains("\netcd_debugging_mvcc_slow_watcher_total 1\n"), "{text}");
        assert_eq!(revisions(&mut slow, expected.len()).await, expected);
        let (_, text) = crate::harness::http_get(setup.client_port, "/metrics");
        assert!(text.contains("\netcd_debugging_mvcc_slow_watcher_total 0\n"), "{text}");
    });
}

#[test]
fn watchers_of_every_front_see_the_writes_of_every_other() {
    let _turn = crate::harness::turn::light();
    each_driver(&["--fronts=2"], async |setup, client| {
        let mut watches = Vec::new();
        for _ in 0..6 {
            let mut watch = Watch::connect(setup).await;
            watch.create(prefix("k")).await;
            assert!(watch.next().await.unwrap().created);
            watches.push(watch);
        }
        for number in 0..50 {
            client.put_kv(&format!("k{number}"), "v").await;
            // One at a time: a front that sleeps must be woken for each.
            for watch in &mut watches {
                assert_eq!(revisions(watch, 1).await, [number + 2]);
            }
        }
        // What was acknowledged is before what is watched from now on.
        for number in 50..100 {
            let revision = client.put_kv("k", "v").await;
            assert_eq!(revision, number + 2);
            let mut late = Watch::connect(setup).await;
            late.create(prefix("k")).await;
            let created = late.next().await.unwrap();
            assert_eq!(created.header.unwrap().revision, revision);
        }
    });
}

#[test]
fn a_thousand_watchers_of_one_prefix_all_get_a_large_event() {
    let _turn = crate::harness::turn::light();
    each_driver(&[], async |setup, client| {
        let mut watches = Vec::new();
        for _ in 0..10 {
            let mut watch = Watch::connect(setup).await;
            for _ in 0..100 {
                watch.create(prefix("k")).await;
                assert!(watch.next().await.unwrap().created);
            }
            watches.push(watch);
        }
        for number in 0..3 {
            client.put_kv("k", &"v".repeat(3_000)).await;
            for watch in &mut watches {
                let mut ids = Vec::new();
                for _ in 0..100 {
                    let response = watch.next().await.unwrap();
                    assert_eq!(response.events[0].kv.as_ref().unwrap().mod_revision, number + 2);
                    assert_eq!(response.events[0].kv.as_ref().unwrap().value.len(), 3_000);
                    ids.push(response.watch_id);
                }
                ids.sort_unstable();
                assert_eq!(ids, (0..100).collect::<Vec<_>>());
            }
        }
    });
}

#[test]
fn history_is_read_from_the_page_file_after_a_restart() {
    let _turn = crate::harness::turn::light();
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let puts = if long() { 100_000 } else { 3_000 };
        let member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            let mut tasks = tokio::task::JoinSet::new();
            for worker in 0..32 {
                let client = client.clone();
                tasks.spawn(async move {
                    for number in (worker..puts).step_by(32) {
                        client.put_kv(&format!("k{number}"), &"v".repeat(700)).await;
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            // Longer than the time between checkpoints.
            tokio::time::sleep(Duration::from_millis(400)).await;
        });
        member.kill();
        let _member = setup.start();
        block_on(async {
            let mut watch = Watch::connect(&setup).await;
            let mut one = prefix("k17");
            (one.start_revision, one.prev_kv) = (1, true);
            watch.create(pb::WatchCreateRequest { start_revision: 2, ..prefix("k") }).await;
            watch.create(one).await;
            let (mut all, mut some) = (Vec::new(), 0);
            while all.len() < puts as usize {
                let response = watch.next().await.unwrap();
                let events = response.events.iter();
                if response.watch_id == 0 {
                    all.extend(events.map(|e| e.kv.as_ref().unwrap().mod_revision));
                } else {
                    some +=
                        events.filter(|e| e.kv.as_ref().unwrap().key.starts_with(b"k17")).count();
                }
            }
            assert_eq!(all, (2..puts + 2).collect::<Vec<i64>>());
            let expected = (0..puts).filter(|n| format!("k{n}").starts_with("k17")).count();
            while some < expected {
                some += watch.next().await.unwrap().events.len();
            }
            assert_eq!(some, expected);
        });
    }
}

#[test]
fn a_revision_of_many_megabytes_reaches_its_watchers_whole() {
    let _turn = crate::harness::turn::light();
    each_driver(&[], async |setup, client| {
        let mut whole = Watch::connect(setup).await;
        whole.create(pb::WatchCreateRequest { prev_kv: true, ..prefix("k") }).await;
        let mut parts = Watch::connect(setup).await;
        let fragment = true;
        parts.create(pb::WatchCreateRequest { prev_kv: true, fragment, ..prefix("k") }).await;
        let mut one = Watch::connect(setup).await;
        one.create(pb::WatchCreateRequest { key: "k07".into(), ..Default::default() }).await;
        for watch in [&mut whole, &mut parts, &mut one] {
            assert!(watch.next().await.unwrap().created);
        }
        for number in 0..50 {
            client.put_kv(&format!("k{number:02}"), &"v".repeat(120_000)).await;
        }
        // Six megabytes of previous values in one revision.
        let all =
            pb::DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
        assert_eq!(client.delete_range(all).await.unwrap().deleted, 50);
        client.put_kv("k", "after").await;
        for watch in [&mut whole, &mut parts] {
            assert_eq!(revisions(watch, 50).await, (2..52).collect::<Vec<_>>());
        }
        let response = whole.next().await.unwrap();
        assert_eq!(response.events.len(), 50);
        let (mut fragments, mut events) = (0, Vec::new());
        loop {
            let part = parts.next().await.unwrap();
            fragments += 1;
            events.extend(part.events);
            if !part.fragment {
                break;
            }
        }
        assert_eq!((fragments, &events), (3, &response.events));
        for (number, event) in events.iter().enumerate() {
            let (kv, before) = (event.kv.as_ref().unwrap(), event.prev_kv.as_ref().unwrap());
            assert_eq!((event.r#type, kv.mod_revision), (1, 52));
            assert_eq!(kv.key, format!("k{number:02}"));
            assert_eq!((&kv.key, before.value.len()), (&before.key, 120_000));
        }
        assert_eq!(revisions(&mut one, 2).await, [9, 52]);
        assert_eq!(revisions(&mut whole, 1).await, [53]);
        assert_eq!(revisions(&mut parts, 1).await, [53]);
    });
}

#[test]
fn notifications_of_progress_come_by_the_flag() {
    let _turn = crate::harness::turn::light();
    each_driver(&["--watch-progress-notify-interval=200ms"], async |setup, client| {
        let mut watch = Watch::connect(setup).await;
        watch.create(pb::WatchCreateRequest { progress_notify: true, ..prefix("k") }).await;
        assert!(watch.next().await.unwrap().created);
        for revision in 2..5 {
            client.put_kv("other", "v").await;
            loop {
                let response = watch.next().await.unwrap();
                assert!(response.events.is_empty() && response.watch_id == 0);
                if response.header.unwrap().revision == revision {
                    break;
                }
            }
        }
    });
}

#[test]
fn a_stop_ends_streams_at_once_and_clients_may_go_elsewhere() {
    let _turn = crate::harness::turn::light();
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let mut member = setup.start();
        block_on(async {
            let client = Client::connect(&setup).await;
            let mut watch = Watch::connect(&setup).await;
            watch.create(prefix("k")).await;
            assert!(watch.next().await.unwrap().created);
            client.put_kv("k", "v").await;
            let began = Instant::now();
            member.terminate();
            assert_eq!(revisions(&mut watch, 1).await, [2]);
            let status = watch.next().await.unwrap_err();
            assert_eq!(status.code(), Code::Unavailable, "{status:?}");
            assert_eq!(status.message(), "etcdserver: server stopped");
            drop((watch, client));
            assert!(member.wait().success());
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        });
    }
}

#[test]
fn metrics_count_streams_watchers_and_events() {
    let _turn = crate::harness::turn::light();
    each_driver(&[], async |setup, client| {
        let mut watch = Watch::connect(setup).await;
        for _ in 0..3 {
            watch.create(prefix("k")).await;
            assert!(watch.next().await.unwrap().created);
        }
        client.put_kv("k", "v").await;
        for _ in 0..3 {
            watch.next().await.unwrap();
        }
        let says = |line: &str| {
            let (_, text) = crate::harness::http_get(setup.client_port, "/metrics");
            text.lines().any(|found| found == format!("etcd_debugging_mvcc_{line}"))
        };
        for line in
            ["watch_stream_total 1", "watcher_total 3", "events_total 3", "pending_events_total 0"]
        {
            assert!(says(line), "{line}");
        }
        drop(watch);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !says("watch_stream_total 0") || !says("watcher_total 0") {
            assert!(Instant::now() < deadline, "the stream is still counted");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}
