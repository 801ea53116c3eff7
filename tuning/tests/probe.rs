//! The built program, as an operator runs it.

use std::path::Path;
use std::process::{Command, Output};

fn probe(dir: &Path, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_etcore-tune"))
        .args(["probe", "--writes", "30", "--file-mib", "1", "--seconds", "5", "--data-dir"])
        .arg(dir)
        .args(more)
        .output()
        .expect("runs")
}

#[test]
fn a_probe_reports_as_text_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = probe(dir.path(), &[]);
    let text = String::from_utf8(output.stdout).expect("text");
    assert!(matches!(output.status.code(), Some(0 | 1)), "{text}");
    for needle in ["Host", "Durable writes of 4096 bytes", "portable", "Findings"] {
        assert!(text.contains(needle), "{needle} in {text}");
    }
    assert!(output.stderr.is_empty(), "no progress without a terminal");
    assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
}

#[test]
fn a_probe_reports_as_json_with_peers() {
    let dir = tempfile::tempdir().expect("a directory");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let peer = listener.local_addr().expect("an address").to_string();
    let output = probe(&dir.path().join("not/yet"), &["--json", "--peers", &peer]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["peers"][0]["listening"], true);
    assert_eq!(json["measured_dir"], dir.path().to_str().expect("text"));
    assert_eq!(json["disk"].as_array().map(Vec::len), Some(4));
    let problems = json["findings"].as_array().expect("findings").iter();
    let problems = problems.filter(|finding| finding["level"] == "problem").count();
    assert_eq!(output.status.code(), Some(i32::from(problems > 0)));
}

#[test]
fn what_cannot_be_done_ends_with_status_2_and_a_reason() {
    let dir = tempfile::tempdir().expect("a directory");
    let wrong = probe(dir.path(), &["--write-bytes", "2000000"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("does not fit"));
    assert_eq!(probe(Path::new("/proc/self"), &[]).status.code(), Some(2));
    let usage = Command::new(env!("CARGO_BIN_EXE_etcore-tune")).output().expect("runs");
    assert_eq!(usage.status.code(), Some(2));
}
