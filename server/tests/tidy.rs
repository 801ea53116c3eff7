//! The rules of the house, checked like any other behaviour: dependency directions between crates,
//! file headers and lengths, banned calls, and where `unsafe` may stand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const CRATES: [&str; 7] = ["bench", "engine", "history", "proto", "raftlog", "server", "tuning"];

/// Which crates of the workspace a crate may use.
fn allowed_dependencies(name: &str) -> &'static [&'static str] {
    match name {
        // The judges of histories, for the simulator alone: an optional dependency.
        "server" => &["engine", "history", "proto", "raftlog"],
        "raftlog" => &["engine", "proto"],
        "bench" | "history" => &["proto"],
        _ => &[],
    }
}

/// The only files with `unsafe` in them, each with its contract in its header.
const UNSAFE_FILES: &[&str] = &[
    "engine/src/map.rs",
    "engine/src/map/fault.rs",
    "engine/src/table/segment.rs",
    "server/src/background/glommio_disk.rs",
    "server/src/driver/portable.rs",
    "server/src/driver/probe.rs",
    "server/src/driver/reserve.rs",
    "server/src/driver/uring.rs",
    "server/src/driver/uring/buffers.rs",
    "server/src/driver/wake.rs",
    "server/src/metrics.rs",
    "server/src/net.rs",
    "server/src/sys.rs",
    "tuning/src/disk/uring.rs",
];

/// The only files of the member that read a clock or ask for randomness.
const CLOCK_FILES: &[&str] = &["server/src/clock.rs", "server/src/log.rs", "server/src/metrics.rs"];

const PRODUCTION_LINES_MAX: usize = 700;
const COLUMNS_MAX: usize = 100;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn sources(below: &Path, files: &mut BTreeMap<String, String>) {
    let Ok(entries) = std::fs::read_dir(below) else { return };
    for entry in entries {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            files.insert(name, std::fs::read_to_string(&path).expect("UTF-8"));
        }
    }
}

fn all_sources() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for name in CRATES {
        for folder in ["src", "tests", "benches", "examples"] {
            sources(&root().join(name).join(folder), &mut files);
        }
    }
    assert!(files.len() > 50, "found only {} files", files.len());
    files
}

fn is_test_file(name: &str) -> bool {
    name.contains("/tests/")
        || name.ends_with("/tests.rs")
        || name.contains("/benches/")
        || name.contains("/examples/")
        || name.contains("/testing/")
}

/// The lines outside unit tests, wherever those stand, with their numbers. A module ends at the
/// first brace in the first column, since rustfmt is asked as well.
fn production(text: &str) -> Vec<(usize, &str)> {
    let mut lines = (1..).zip(text.lines()).peekable();
    let mut kept = Vec::new();
    while let Some((number, line)) = lines.next() {
        let opens = |(_, next): &(usize, &str)| next.starts_with("mod tests");
        if line != "#[cfg(test)]" || !lines.peek().is_some_and(opens) {
            kept.push((number, line));
        } else if lines.next().is_some_and(|(_, line)| line.ends_with('{')) {
            lines.by_ref().find(|(_, line)| *line == "}");
        }
    }
    kept
}

#[test]
fn unit_tests_are_told_from_what_stands_around_them() {
    let text = "a\n#[cfg(test)]\nmod tests;\nb\n#[cfg(test)]\nmod tests {\n    {\n    }\n}\nc\n";
    assert_eq!(production(text), [(1, "a"), (4, "b"), (10, "c")]);
    assert_eq!(production("#[cfg(test)]\nfn a() {}"), [(1, "#[cfg(test)]"), (2, "fn a() {}")]);
}

/// Collects complaints, so that one run shows them all.
fn complain(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn crates_depend_on_each_other_only_in_the_directions_of_the_architecture() {
    let mut complaints = Vec::new();
    for name in CRATES {
        let manifest = std::fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        let normal = manifest.split("[dev-dependencies]").next().unwrap();
        for other in CRATES {
            let used = normal.lines().any(|line| line.starts_with(&format!("etcore-{other}")));
            if used && !allowed_dependencies(name).contains(&other) {
                complaints.push(format!("{name} must not depend on {other}"));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn a_member_can_be_built_without_the_simulator_and_what_it_needs() {
    let manifest = std::fs::read_to_string(root().join("server/Cargo.toml")).unwrap();
    let line = manifest.lines().find(|line| line.starts_with("etcore-history")).unwrap();
    assert!(line.contains("optional = true"), "{line}");
    let mut complaints = Vec::new();
    for (name, text) in all_sources() {
        let simulator = name.starts_with("server/src/sim") || name == "server/src/bin/sim.rs";
        if name.starts_with("server/src") && !simulator && text.contains("etcore_history") {
            complaints.push(format!("{name} uses etcore_history"));
        }
    }
    complain(&complaints);
}

#[test]
fn the_core_crates_know_no_executor_and_no_socket() {
    let mut complaints = Vec::new();
    for (name, text) in all_sources() {
        let core = ["engine/src", "raftlog/src", "proto/src"];
        if !core.iter().any(|folder| name.starts_with(folder)) || is_test_file(&name) {
            continue;
        }
        for banned in ["std::net::Tcp", "std::net::Udp", "std::thread::spawn", "tokio::", "glommio"]
        {
            if production(&text).iter().any(|(_, line)| line.contains(banned)) {
                complaints.push(format!("{name} uses {banned}: I/O belongs to server::driver"));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn every_file_says_what_it_is_and_stays_short() {
    let mut complaints = Vec::new();
    for (name, text) in all_sources() {
        if !text.starts_with("//!") && !name.ends_with("/tests.rs") {
            complaints.push(format!("{name} does not open with //!"));
        }
        let lines = production(&text).len();
        if lines > PRODUCTION_LINES_MAX && !is_test_file(&name) {
            complaints.push(format!("{name} has {lines} production lines: split it"));
        }
        for (number, line) in text.lines().enumerate() {
            // A text that clients compare is not broken into pieces.
            let quotes = line.matches('"').count() >= 2;
            if line.chars().count() > COLUMNS_MAX && !quotes {
                complaints.push(format!("{name}:{} is longer than {COLUMNS_MAX}", number + 1));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn unsafe_stands_only_behind_the_named_doors() {
    let mut complaints = Vec::new();
    for (name, text) in all_sources() {
        if is_test_file(&name) || UNSAFE_FILES.contains(&name.as_str()) {
            continue;
        }
        for (number, line) in production(&text) {
            let code = line.split("//").next().unwrap_or("");
            // A dash joins words, as in the flag --unsafe-no-fsync.
            let is_between = |c: char| !c.is_alphanumeric() && c != '_' && c != '-';
            if code.split(is_between).any(|word| word == "unsafe") {
                complaints.push(format!("{name}:{number} has unsafe code"));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn banned_calls_are_not_made() {
    // What, where it is allowed, and what to use instead.
    let banned: &[(&str, &[&str], &str)] = &[
        ("Instant::now", CLOCK_FILES, "the clock handed to the turn"),
        ("SystemTime::now", CLOCK_FILES, "the clock handed to the turn"),
        ("crossbeam_channel::unbounded", &[], "a bounded channel with its bound in limits"),
        ("mpsc::channel(", &[], "a bounded channel with its bound in limits"),
        ("thread_rng", &[], "the seeded generator"),
        ("println!", &[], "tracing, or a writer that the caller passes"),
        (".unwrap()", &[], "an error, or expect with a sentence that proves it"),
    ];
    let mut complaints = Vec::new();
    for (name, text) in all_sources() {
        let tool = ["bench/", "tuning/"].iter().any(|tool| name.starts_with(tool));
        if is_test_file(&name) || tool {
            continue;
        }
        for (number, line) in production(&text) {
            let code = line.split("//").next().unwrap_or("");
            for (call, allowed, instead) in banned {
                if code.contains(call) && !allowed.contains(&name.as_str()) {
                    complaints.push(format!("{name}:{number} has {call}: use {instead}"));
                }
            }
        }
    }
    complain(&complaints);
}

#[test]
fn nothing_is_imported_by_glob_outside_tests() {
    let mut complaints = Vec::new();
    for (name, text) in all_sources() {
        for (number, line) in production(&text) {
            let glob = line.trim_start().starts_with("use ") && line.trim_end().ends_with("::*;");
            if glob && !line.contains("super::*") {
                complaints.push(format!("{name}:{number} imports a glob"));
            }
        }
    }
    complain(&complaints);
}
