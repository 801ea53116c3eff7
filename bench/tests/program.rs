//! The program as a process: exit statuses and what goes to which stream.

mod common;

use std::net::TcpListener;
use std::process::{Command, Output};

use common::{Behaviour, Fake};

fn program(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_benchmark"));
    command.args(line.split_whitespace()).output().expect("the program runs")
}

fn complaint(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn bad_usage_is_status_2_with_a_reason_on_one_line() {
    let cases = [
        ("", "requires a subcommand"),
        ("watch", "unrecognized subcommand 'watch'"),
        ("put --no-such-flag", "unexpected argument '--no-such-flag'"),
        ("put --total=many", "invalid value 'many' for '--total <COUNT>'"),
        ("put --total", "a value is required for '--total <COUNT>'"),
        ("--endpoints=https://127.0.0.1:1 put", "needs --cacert"),
        ("--server-pid=4000000000 put", "--server-pid: cannot read /proc/4000000000/stat"),
        ("range", "range needs a key"),
    ];
    for (line, expected) in cases {
        let output = program(line);
        let complaint = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{line}: {complaint}");
        assert!(complaint.contains(expected), "{line}: {complaint}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn no_server_is_status_1_with_one_line() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    for command in ["put", "range key", "--target-leader put"] {
        let output = program(&format!("--endpoints={address} {command}"));
        let complaint = complaint(&output);
        assert_eq!(output.status.code(), Some(1), "{complaint}");
        assert!(complaint.contains(&format!("cannot connect to {address}: ")), "{complaint}");
        assert_eq!(complaint.lines().count(), 1, "{complaint}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn success_and_help_are_status_0_and_draw_no_bar_without_a_terminal() {
    let fake = Fake::start(Behaviour::default());
    let output = program(&format!("--endpoints={} put --total=100", fake.address));
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty(), "{}", complaint(&output));
    assert!(!output.stdout.is_empty());
    for (line, expected) in [("--help", "Commands:"), ("put -h", "--key-size")] {
        let output = program(line);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8(output.stdout).unwrap().contains(expected));
    }
}

#[test]
fn json_is_one_line_and_nothing_else() {
    let fake = Fake::start(Behaviour::default());
    let output = program(&format!("--endpoints={} --json range key --total=100", fake.address));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.starts_with("{\"command\":\"range\",") && text.ends_with("}\n"), "{text}");
}
