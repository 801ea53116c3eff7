//! Stock etcdctl against a member, on both drivers: golden transcripts below `etcdctl/`, whose
//! names are what they show.
//!
//! A line `$ …` is a command, the lines `< …` behind it are its standard input, everything else is
//! what it prints: standard output, then standard error, then `status N` if it is not 0. A line
//! `& …` is a command that goes on in the background, until the next or the end; `= N` shows the
//! next N lines that it prints. etcd
//! itself writes the transcripts (`REWRITE=1`), and where its binary is at hand it is held to them
//! like every driver, so a transcript cannot claim what etcd does not do. It must never judge by
//! anything but what the client prints.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use crate::harness::{DRIVERS, Etcd, Setup, http_get, is_available, oracle};

/// Runs the transcript against every driver, and against etcd where it is at hand.
fn holds(name: &str) {
    let Some(etcdctl) = oracle("etcdctl") else { return };
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/tools/etcdctl")
        .join(format!("{name}.txt"));
    let mut golden = std::fs::read_to_string(&path).unwrap();
    if let Some(etcd) = oracle("etcd") {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), "uring");
        let _etcd = Etcd::start(&etcd, &setup);
        wait_for_storage_version(&setup);
        let found = play(&golden, &etcdctl, &setup);
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&path, &found).unwrap();
            golden = found;
        } else {
            assert_same(&found, &golden, "etcd itself");
        }
    }
    for driver in DRIVERS.into_iter().filter(|driver| is_available(driver)) {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup::new(dir.path(), driver);
        let _member = setup.start();
        let found = play(&golden, &etcdctl, &setup);
        assert_same(&found, &golden, driver);
    }
}

/// etcd brings its storage up to its own version some time after it has begun to serve.
fn wait_for_storage_version(setup: &Setup) {
    let deadline = Instant::now() + Duration::from_secs(20);
    crate::harness::block_on(async {
        let client = crate::harness::Client::connect(setup).await;
        while Instant::now() < deadline {
            let status = client.status(etcore_proto::pb::etcdserverpb::StatusRequest {}).await;
            if status.is_ok_and(|status| status.storage_version.starts_with("3.7")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

/// Shows the lines from the first command on whose output differs.
fn assert_same(found: &str, golden: &str, who: &str) {
    let (found, golden) = (&squeeze_tables(found), &squeeze_tables(golden));
    let blocks = |text: &str| -> Vec<String> {
        text.split_inclusive('\n').fold(Vec::new(), |mut blocks, line| {
            match blocks.last_mut() {
                Some(block) if !line.starts_with("$ ") => *block += line,
                _ => blocks.push(line.to_owned()),
            }
            blocks
        })
    };
    let mut differences = String::new();
    for (found, golden) in blocks(found).iter().zip(&blocks(golden)) {
        if found != golden {
            let _ = writeln!(differences, "expected:\n{golden}but found:\n{found}");
        }
    }
    assert!(found == golden, "{who}:\n{differences}");
}

/// Tables are as wide as what was masked in them: an ID may have a digit less. Rules and padding
/// are therefore compared without their lengths.
fn squeeze_tables(text: &str) -> String {
    let mut out = String::new();
    for line in text.split_inclusive('\n') {
        let in_table = line.starts_with(['┌', '├', '└', '│']);
        for c in line.chars() {
            let repeats = in_table && matches!(c, '─' | ' ') && out.ends_with(c);
            if !repeats {
                out.push(c);
            }
        }
    }
    out
}

/// The transcript with what the commands print now.
fn play(transcript: &str, etcdctl: &Path, setup: &Setup) -> String {
    let mut out = String::new();
    let mut background: Option<Background> = None;
    // What LEASE stands for: the lease granted last.
    let mut lease = String::new();
    let mut lines = transcript.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(count) = line.strip_prefix("= ") {
            let _ = writeln!(out, "{line}");
            let running = background.as_mut().expect("a command in the background");
            let count = count.parse().expect("a number of lines");
            let lines: String = (0..count).map(|_| running.next_line() + "\n").collect();
            out.push_str(&masked(&lines, setup));
            continue;
        }
        let in_background = line.strip_prefix("& ");
        let Some(command) = line.strip_prefix("$ ").or(in_background) else { continue };
        let _ = writeln!(out, "{line}");
        let mut input = String::new();
        while let Some(line) = lines.next_if(|line| line.starts_with('<')) {
            let _ = writeln!(out, "{line}");
            let _ = writeln!(input, "{}", line[1..].trim_start());
        }
        let command = command.replace("LEASE", &lease);
        let input = input.replace("LEASE", &lease);
        if in_background.is_some() {
            drop(background.take());
            background = Some(Background::start(etcdctl, setup, &command, &input));
            continue;
        }
        let text = print(etcdctl, setup, &command, &input);
        if let Some(granted) = text.strip_prefix("lease ").filter(|text| text.contains("granted")) {
            lease = granted.split(' ').next().unwrap_or_default().to_owned();
        }
        out.push_str(&masked(&text, setup));
    }
    out
}

/// A watch that goes on; killed when dropped.
struct Background {
    child: Child,
    lines: Receiver<String>,
}

impl Background {
    /// Starts a watch and waits until the member has its watchers: one, or one for each `watch` of
    /// its input.
    fn start(etcdctl: &Path, setup: &Setup, command: &str, input: &str) -> Self {
        // Those of the one before are forgotten when the member notices its end.
        wait_for_watchers(setup, command, |count| count == 0);
        let mut child = Command::new(etcdctl)
            .arg(format!("--endpoints={}", setup.endpoint()))
            .args(words(command))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcdctl starts");
        let (sender, lines) = sync_channel(1000);
        let output = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        let mut wanted = u64::from(input.is_empty());
        for line in input.lines() {
            let stdin = child.stdin.as_mut().expect("piped");
            writeln!(stdin, "{line}").expect("it reads");
            wanted += u64::from(line.starts_with("watch"));
            // One after the other, so that their ids are known.
            wait_for_watchers(setup, command, |count| count == wanted);
        }
        wait_for_watchers(setup, command, |count| count == wanted);
        Self { child, lines }
    }

    fn next_line(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(20)).expect("a line within 20 s")
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watchers(setup: &Setup) -> u64 {
    let (_, text) = http_get(setup.client_port, "/metrics");
    let line =
        text.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
    line.expect("the metric").parse().expect("a number")
}

fn wait_for_watchers(setup: &Setup, command: &str, enough: impl Fn(u64) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !enough(watchers(setup)) {
        assert!(Instant::now() < deadline, "{command}: {} watchers", watchers(setup));
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn print(etcdctl: &Path, setup: &Setup, command: &str, input: &str) -> String {
    let mut child = Command::new(etcdctl)
        .arg(format!("--endpoints={}", setup.endpoint()))
        .args(words(command))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("etcdctl starts");
    // A command that does not read its input may have closed it.
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("etcdctl ends");
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        // The client's own log, with times in it.
        if !line.starts_with("{\"level\":") {
            let _ = writeln!(text, "{line}");
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !output.status.success() {
        let _ = writeln!(text, "status {}", output.status.code().unwrap_or(-1));
    }
    text
}

/// The words of a command; those in single quotes may be empty.
fn words(command: &str) -> impl Iterator<Item = String> {
    command.split_whitespace().map(|word| word.replace('\'', ""))
}

/// Replaces what differs from run to run: ports, the ids that are made from them, times and sizes.
fn masked(text: &str, setup: &Setup) -> String {
    let mut text = text
        .replace(&format!(":{}", setup.client_port), ":CLIENT")
        .replace(&format!(":{}", setup.peer_port), ":PEER");
    for field in [
        "cluster_id",
        "member_id",
        "ID",
        "leader",
        "dbSize",
        "dbSizeInUse",
        "raftIndex",
        "raftAppliedIndex",
        "id",
        "lease",
        "ttl",
    ] {
        mask_after(&mut text, &format!("\"{field}\":"));
    }
    for field in ["ClusterID", "MemberID", "ID", "TTL", "Lease"] {
        mask_after(&mut text, &format!("\"{field}\" : "));
    }
    for time in ["took = ", "took ", "\"Took\" : "] {
        mask_after(&mut text, time);
    }
    // A second may have begun since the lease was granted.
    mask_after(&mut text, "remaining(");
    let masked: Vec<String> = text.lines().map(mask_hex_id).collect();
    masked.iter().map(|line| format!("{line}\n")).collect()
}

/// Replaces the word behind each `prefix`, up to a comma, a bracket or the end of the line.
fn mask_after(text: &mut String, prefix: &str) {
    let mut from = 0;
    while let Some(at) = text[from..].find(prefix) {
        let start = from + at + prefix.len();
        let end = start + text[start..].find([',', '}', ')', '\n']).unwrap_or(text.len() - start);
        text.replace_range(start..end, "N");
        from = start;
    }
}

/// Ids in lists are words of 13 to 16 hexadecimal digits (leading zeros are not printed).
fn mask_hex_id(line: &str) -> String {
    let is_id = |word: &str| {
        let digits =
            word.bytes().all(|byte| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase());
        (13..=16).contains(&word.len()) && digits
    };
    let words = line.split_inclusive([' ', ',']);
    let masked = words.map(|word| {
        let bare = word.trim_end_matches([' ', ',']);
        if is_id(bare) { word.replace(bare, "ID") } else { word.to_owned() }
    });
    masked.collect()
}

#[test]
fn keys_are_put_and_read() {
    let _turn = crate::harness::turn::light();
    holds("keys_are_put_and_read");
}

#[test]
fn older_revisions_are_read_until_they_are_compacted() {
    let _turn = crate::harness::turn::light();
    holds("older_revisions_are_read_until_they_are_compacted");
}

#[test]
fn ranges_start_at_a_key_and_are_deleted() {
    let _turn = crate::harness::turn::light();
    holds("ranges_start_at_a_key_and_are_deleted");
}

#[test]
fn results_are_sorted_filtered_and_counted() {
    let _turn = crate::harness::turn::light();
    holds("results_are_sorted_filtered_and_counted");
}

#[test]
fn transactions_take_one_branch() {
    let _turn = crate::harness::turn::light();
    holds("transactions_take_one_branch");
}

#[test]
fn watches_print_what_happens() {
    let _turn = crate::harness::turn::light();
    holds("watches_print_what_happens");
}

#[test]
fn leases_are_granted_kept_alive_and_revoked() {
    let _turn = crate::harness::turn::light();
    holds("leases_are_granted_kept_alive_and_revoked");
}

#[test]
fn the_member_speaks_of_itself() {
    let _turn = crate::harness::turn::light();
    holds("the_member_speaks_of_itself");
}

#[test]
fn histories_are_hashed() {
    let _turn = crate::harness::turn::light();
    holds("histories_are_hashed");
}

#[test]
fn a_healthy_member_has_no_alarms() {
    let _turn = crate::harness::turn::light();
    holds("a_healthy_member_has_no_alarms");
}

#[test]
fn a_member_has_the_ids_that_etcd_would_give_it() {
    let _turn = crate::harness::turn::light();
    let (Some(etcdctl), Some(etcd)) = (oracle("etcdctl"), oracle("etcd")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut setup = Setup::new(&dir.path().join("etcd"), "portable");
    let list = |setup: &Setup| {
        let output = Command::new(&etcdctl)
            .arg(format!("--endpoints={}", setup.endpoint()))
            .args(["member", "list", "-w", "json"])
            .output()
            .expect("etcdctl runs");
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let theirs = {
        let _etcd = Etcd::start(&etcd, &setup);
        list(&setup)
    };
    setup.data_dir = dir.path().join("ours");
    let _member = setup.start();
    assert_eq!(list(&setup), theirs);
}
