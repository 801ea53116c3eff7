//! `benchmark compare` as a process: what it refuses, and one comparison from end to end.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A scratch folder on a disk, gone after the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        Scratch(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn compare(scratch: &Scratch, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_benchmark"));
    for variable in ["GATES_ROUNDS", "GATES_QUICK", "GATES_OUT", "GATES_PORT", "BENCHMARK_BIN"] {
        command.env_remove(variable);
    }
    command.env("GATES_DIR", scratch.0.join("data")).env("GATES_OUT", scratch.0.join("results"));
    command.arg("compare").args(arguments).output().expect("the program runs")
}

/// A port that is free, as is the tenth after it. Below those that the kernel gives to outgoing
/// connections, one of which would take the second port.
fn port(from: u16) -> u16 {
    let is_free = |port: &u16| {
        [*port, port + 10].iter().all(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
    };
    (from..from + 1_000).step_by(20).find(is_free).expect("a free port")
}

#[test]
fn what_cannot_be_compared_is_status_2_before_anything_starts() {
    let scratch = Scratch::new("refused");
    let cases: [(&[&str], &str); 4] = [
        (&["member", "--left", "a=/no/such/server"], "there is no /no/such/server"),
        (&["member", "--left", "../a=/bin/true"], "is no name"),
        (&["member", "--left=a=/bin/true", "--right=a=/bin/true"], "both servers are called a"),
        (&["members"], "invalid value 'members'"),
    ];
    for (arguments, expected) in cases {
        let output = compare(&scratch, arguments);
        let complaint = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        assert!(complaint.contains(expected), "{complaint}");
        assert!(!scratch.0.exists());
    }
}

#[test]
fn a_server_that_ends_at_once_is_status_1_and_named() {
    let scratch = Scratch::new("ended");
    let port = format!("--port={}", port(21_000));
    let sides = ["--left=gone=/bin/true", "--right=other=/bin/true"];
    let output = compare(&scratch, &["member", "--quick", &port, sides[0], sides[1]]);
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("gone ended: see "), "{complaint}");
}

#[test]
fn two_servers_are_measured_and_told_apart() {
    let Some(etcd) = std::env::var_os("ETCD_BIN").filter(|path| Path::new(path).is_file()) else {
        eprintln!("skipped: ETCD_BIN names no etcd");
        return;
    };
    let scratch = Scratch::new("member");
    let etcd = Path::new(&etcd).canonicalize().unwrap();
    let (left, right) = (format!("one={}", etcd.display()), format!("two={}", etcd.display()));
    let port = format!("-port={}", port(22_000));
    let arguments = ["member", "-quick", &port, "--left", &left, "--right", &right];
    let output = compare(&scratch, &arguments);
    let progress = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{progress}");
    assert!(progress.contains("round 1/1, two: starts"), "{progress}");

    let summary = String::from_utf8(output.stdout).unwrap();
    let stored = std::fs::read_to_string(scratch.0.join("results/summary.md")).unwrap();
    assert_eq!(summary, stored);
    assert!(summary.starts_with("# two against one, 20"), "{summary}");
    assert!(summary.contains("quick: these figures mean nothing"), "{summary}");
    assert!(summary.contains("| metric | unit | one | two | ratio |\n"), "{summary}");
    assert!(summary.contains("- one: etcd Version: "), "{summary}");

    let raw = std::fs::read_to_string(scratch.0.join("results/raw.csv")).unwrap();
    let mut metrics = vec!["p50_put_1", "p50_range_s_1", "rate_put_1000", "rss_anon"];
    if !summary.contains("h2load is missing") {
        metrics.extend(["cpu_range_s_16x64", "cpu_range_l_16x1", "cpu_put_16x64", "cpu_put_16x1"]);
    }
    for metric in metrics {
        for side in ["one", "two"] {
            let start = format!("1,{side},{metric},");
            let line = raw.lines().find(|line| line.starts_with(&start));
            let line = line.unwrap_or_else(|| panic!("no {start}: {raw}"));
            let value: f64 = line.rsplit(',').next().unwrap().parse().unwrap();
            assert!(value >= 0.0, "{line}");
        }
    }
}
