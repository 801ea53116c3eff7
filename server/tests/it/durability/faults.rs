//! A disk whose calls fail under a real member: strace lets one system call after the other return
//! EIO or ENOSPC, on the portable driver, whose calls it can see. A failed write or sync of the log
//! or the page file stops the member with a line that says which; it is never tried again, nothing
//! is acknowledged after it, and everything acknowledged before it is there after a restart. What
//! the member can do without, a spare segment or room for growth, it reports and goes on. Without
//! strace the test says that it was skipped. `ETCORE_LONG=1` fails every call of each kind.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::Duration;

use etcore_engine::testing::prng::Prng;
use etcore_proto::pb::etcdserverpb as pb;

use crate::harness::{Client, Member, Setup, block_on};

/// What clients were told: key to value, as of the last answer.
#[derive(Default)]
struct Told {
    values: BTreeMap<String, Vec<u8>>,
    /// Asked for without an answer: either value is right.
    open: BTreeMap<String, Vec<Vec<u8>>>,
}

/// A system call as strace knows it, and which of the files it can concern.
struct Call {
    name: &'static str,
    errors: &'static [&'static str],
    /// The member cannot go on without it.
    fatal: bool,
}

const CALLS: [Call; 6] = [
    Call { name: "pwritev2", errors: &["EIO", "ENOSPC"], fatal: true },
    Call { name: "pwrite64", errors: &["EIO", "ENOSPC"], fatal: false },
    Call { name: "fdatasync", errors: &["EIO", "ENOSPC"], fatal: false },
    Call { name: "fsync", errors: &["EIO"], fatal: false },
    Call { name: "rename", errors: &["EIO", "ENOSPC"], fatal: false },
    Call { name: "fallocate", errors: &["ENOSPC", "EIO"], fatal: false },
];

fn strace_works() -> bool {
    let probe = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=fsync:error=EIO", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let works = probe.is_ok_and(|status| status.success());
    if !works {
        eprintln!("SKIPPED: strace is not here or may not trace; failing calls are not tested");
    }
    works
}

/// Attaches strace to the running member: the `when`-th call of that name of each thread
/// fails.
fn inject(member: &Member, call: &str, error: &str, when: u64, log: &std::path::Path) -> Strace {
    let mut strace = Command::new("strace")
        .args(["-f", "-y", "-o"])
        .arg(log)
        .args(["-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={call}:error={error}:when={when}")])
        .args(["-p", &member.pid().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace starts");
    // It says so once it is attached to every thread.
    let stderr = strace.stderr.take().expect("piped");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
    let attached = lines.by_ref().map_while(Result::ok).any(|line| line.contains("attached"));
    assert!(attached, "strace could not attach");
    std::thread::spawn(move || lines.for_each(drop));
    Strace(strace)
}

struct Strace(std::process::Child);

impl Drop for Strace {
    fn drop(&mut self) {
        // SIGINT lets it detach first.
        let pid = i32::try_from(self.0.id()).expect("a pid");
        // SAFETY: a signal to our own child, which has not been reaped.
        unsafe { libc::kill(pid, libc::SIGINT) };
        let _ = self.0.wait();
    }
}

/// Puts, one after the other and in batches, until one fails or all are answered.
async fn load(setup: &Setup, told: &mut Told, prng: &mut Prng) {
    let client = Client::connect(setup).await;
    for _ in 0..60 {
        let mut tasks = tokio::task::JoinSet::new();
        let mut batch = BTreeMap::new();
        for _ in 0..1 + prng.below(4) {
            let key = format!("k{}", prng.below(20));
            let mut value = vec![0; [20, 900, 20_000][prng.index(3)]];
            prng.fill(&mut value);
            batch.insert(key, value);
        }
        for (key, value) in batch {
            let client = client.clone();
            told.open.entry(key.clone()).or_default().push(value.clone());
            tasks.spawn(async move {
                let request = pb::PutRequest {
                    key: key.clone().into(),
                    value: value.clone().into(),
                    ..Default::default()
                };
                let put = tokio::time::timeout(Duration::from_secs(15), client.put(request));
                (key, value, put.await.is_ok_and(|answer| answer.is_ok()))
            });
        }
        let mut failed = false;
        while let Some(done) = tasks.join_next().await {
            let (key, value, acknowledged) = done.expect("no panic");
            if acknowledged {
                told.open.remove(&key);
                told.values.insert(key, value);
            } else {
                failed = true;
            }
        }
        if failed {
            return;
        }
        tokio::time::sleep(Duration::from_millis(prng.below(20))).await;
    }
}

async fn check(setup: &Setup, told: &Told, label: &str) {
    let client = Client::connect(setup).await;
    for (key, value) in &told.values {
        let request = pb::RangeRequest { key: key.clone().into(), ..Default::default() };
        let answer = client.range(request).await.expect("a range");
        let found = answer.kvs.first().map(|kv| kv.value.to_vec());
        let found = found.unwrap_or_else(|| panic!("{label}: {key} is gone"));
        let open = told.open.get(key).is_some_and(|open| open.contains(&found));
        assert!(found == *value || open, "{label}: {key} has another value");
    }
}

/// Where a failed call was and whether one on the same file followed it.
fn injected(log: &str) -> Option<(&str, bool)> {
    let mut lines = log.lines().skip_while(|line| !line.contains("(INJECTED)"));
    let line = lines.next()?;
    let thread = line.split(' ').next()?;
    let file = line.split(['<', '>']).nth(1).unwrap_or(line);
    let again = lines.any(|later| {
        later.starts_with(thread) && later.contains(&format!("<{file}>")) && later.contains(" = ")
    });
    Some((file, again))
}

#[test]
fn a_call_that_fails_is_reported_and_nothing_acknowledged_is_lost() {
    let _turn = crate::harness::turn::of_file(module_path!());
    if !strace_works() {
        return;
    }
    let is_long = std::env::var_os("ETCORE_LONG").is_some();
    let numbers: &[u64] = if is_long { &[1, 2, 3, 4, 5, 7, 9, 12, 20, 40] } else { &[1, 3] };
    let mut outcomes: BTreeMap<String, u64> = BTreeMap::new();
    for call in &CALLS {
        for error in call.errors {
            for when in numbers {
                let outcome = one(call, error, *when);
                *outcomes.entry(format!("{} {error}: {outcome}", call.name)).or_default() += 1;
            }
        }
    }
    for (outcome, count) in &outcomes {
        eprintln!("  {outcome}: {count}");
    }
    let stopped = outcomes.iter().filter(|(text, _)| text.ends_with("stopped"));
    assert!(stopped.map(|(_, count)| count).sum::<u64>() >= 6, "{outcomes:?}");
}

fn one(call: &Call, error: &str, when: u64) -> &'static str {
    let label = format!("{} number {when} fails with {error}", call.name);
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup::new(dir.path(), "portable").with("--wal-segment-bytes=65536");
    let mut member = setup.start();
    let log_path = dir.path().join("strace");
    let mut told = Told::default();
    let mut prng = Prng::new(when ^ 0x5eed);
    let strace = inject(&member, call.name, error, when, &log_path);
    block_on(load(&setup, &mut told, &mut prng));
    // A background call may still be on its way.
    std::thread::sleep(Duration::from_millis(200));
    let stopped = member.has_ended(Duration::from_secs(if call.fatal { 10 } else { 1 }));
    drop(strace);
    let calls = std::fs::read_to_string(&log_path).unwrap();
    let fault = injected(&calls);
    let outcome = if let Some(status) = stopped {
        let log = member.seen.join("\n");
        assert_eq!(status.code(), Some(1), "{label}:\n{log}");
        assert!(!log.contains("panicked"), "{label}:\n{log}");
        let named = log.contains("write-ahead log: ") || log.contains("page file: ");
        assert!(named && log.contains("stopped after a failure"), "{label}:\n{log}");
        let (file, again) = fault.unwrap_or_else(|| panic!("{label}: stopped for nothing\n{log}"));
        assert!(!again, "{label}: {file} was used again:\n{calls}");
        "stopped"
    } else if let Some((file, _)) = fault {
        // Only a spare segment and growth are things to do without.
        let dispensable = file.contains(".tmp") || file.contains(DB) && error == "ENOSPC";
        let removal = call.name == "fsync" && file.ends_with("/wal");
        assert!(dispensable || removal, "{label}: it goes on although {file} failed:\n{calls}");
        let reported = ["spare log segment", "the disk is full", "file system"];
        let log = member.lines_so_far().join("\n");
        let reports = log.lines().any(|line| reported.iter().any(|text| line.contains(text)));
        member.kill();
        assert!(reports, "{label}: it goes on without a word:\n{log}");
        "reported, went on"
    } else {
        member.kill();
        "did not happen"
    };
    let _member = setup.start();
    block_on(check(&setup, &told, &label));
    outcome
}

const DB: &str = "etcore.db";

#[test]
fn the_injected_call_is_found_in_a_trace() {
    let _turn = crate::harness::turn::of_file(module_path!());
    let log = "12 pwritev2(7</d/wal/a.wal>, \"\", 1) = -1 EIO (Input/output error) (INJECTED)\n\
               12 pwritev2(7</d/wal/a.wal>, \"\", 1) = 4096\n";
    assert_eq!(injected(log), Some(("/d/wal/a.wal", true)));
    assert_eq!(injected("12 fsync(3</d>) = 0\n"), None);
}
