//! The rules of the house, checked like any other behaviour: dependency directions between crates
//! and between the server's rooms, lengths of files and functions, file headers, banned calls,
//! where `unsafe` may stand, turns of the tests, and the files that documents name.

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

/// The server's rooms from the bottom up, each with those below that it may use; it may use no
/// other. A new use is a decision: it is made here, in the same change.
const FLOORS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("ids", &[]),
    ("limits", &[]),
    ("notify", &[]),
    ("quota", &[]),
    ("sys", &[]),
    ("wire", &[]),
    ("work", &[]),
    ("freer", &["limits"]),
    ("entry", &["quota", "wire"]),
    ("auth", &["entry"]),
    ("cluster", &["entry"]),
    ("metrics", &["cluster"]),
    ("driver", &["clock", "limits"]),
    ("disk", &["driver", "limits"]),
    ("log", &["limits", "sys"]),
    ("config", &["auth", "cluster", "driver", "log"]),
    ("net", &["config"]),
    ("tls", &["config", "limits"]),
    ("kv", &["limits", "metrics", "wire"]),
    ("lease", &["kv", "limits", "wire"]),
    (
        "channel",
        &[
            "auth", "clock", "cluster", "config", "disk", "driver", "freer", "ids", "kv", "lease",
            "metrics", "tls", "wire",
        ],
    ),
    ("http", &["channel", "cluster", "metrics"]),
    ("replies", &["http"]),
    ("watch", &["limits", "replies", "wire"]),
    ("background", &["auth", "channel", "clock", "disk", "driver", "lease", "limits", "sys"]),
    (
        "replica",
        &[
            "auth",
            "background",
            "channel",
            "clock",
            "cluster",
            "disk",
            "driver",
            "entry",
            "freer",
            "http",
            "ids",
            "kv",
            "lease",
            "limits",
            "metrics",
            "quota",
            "wire",
            "work",
        ],
    ),
    (
        "api",
        &[
            "auth",
            "background",
            "channel",
            "clock",
            "cluster",
            "config",
            "disk",
            "driver",
            "entry",
            "http",
            "ids",
            "kv",
            "limits",
            "log",
            "metrics",
            "quota",
            "replies",
            "sys",
            "watch",
            "wire",
            "work",
        ],
    ),
    (
        "front",
        &[
            "api", "channel", "clock", "config", "driver", "http", "limits", "metrics", "net",
            "replies", "sys", "tls", "work",
        ],
    ),
    (
        "peers",
        &[
            "channel", "clock", "cluster", "config", "disk", "driver", "http", "limits", "log",
            "metrics", "net", "replica", "sys", "tls",
        ],
    ),
    (
        "shard",
        &["channel", "clock", "driver", "front", "limits", "metrics", "peers", "replica", "work"],
    ),
    (
        "boot",
        &[
            "api",
            "background",
            "channel",
            "clock",
            "cluster",
            "config",
            "disk",
            "driver",
            "freer",
            "front",
            "ids",
            "lease",
            "limits",
            "metrics",
            "net",
            "peers",
            "replica",
            "shard",
            "sys",
            "tls",
        ],
    ),
];

/// Files that look up from their room, each for one room; none may be added.
const LOOK_UP: &[(&str, &str)] = &[
    // The type of a flag's value, which is what the replica skips by.
    ("server/src/config.rs", "replica"),
    // The page file's name, for the line about a fault in its map.
    ("server/src/log.rs", "boot"),
];

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
    "server/src/metrics/process.rs",
    "server/src/net.rs",
    "server/src/sys.rs",
    "tuning/src/disk/uring.rs",
];

/// The only files of the member that read a clock or ask for randomness.
const CLOCK_FILES: &[&str] =
    &["server/src/clock.rs", "server/src/log.rs", "server/src/metrics/process.rs"];

const PRODUCTION_LINES_MAX: usize = 700;
const COLUMNS_MAX: usize = 100;
/// Lines between a function's first and last brace.
const FUNCTION_LINES_MAX: usize = 70;

/// Longer functions that are lists of values without a decision, and those that are to be cut
/// together with their room; none may be added.
const LONG_FUNCTIONS: &[(&str, &str)] = &[
    // A metric a line, in the order of `/metrics`.
    ("server/src/metrics.rs", "new"),
];

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
    let default = manifest.lines().find(|line| line.starts_with("default ="));
    assert_eq!(default, None, "nothing is there by default");
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

/// The server's room that a file belongs to.
fn room_of(name: &str) -> Option<&str> {
    let path = name.strip_prefix("server/src/")?;
    path.split('/').next().map(|room| room.trim_end_matches(".rs"))
}

/// The rooms that a text names behind `crate::`, with the lines; groups in braces as well, over
/// several lines or one.
fn rooms_used(text: &str) -> Vec<(usize, String)> {
    let is_letter = |c: char| c.is_ascii_lowercase() || c == '_';
    let mut used = Vec::new();
    let mut group: Option<String> = None;
    for (number, line) in production(text) {
        let code = line.split("//").next().unwrap_or("");
        if let Some(inside) = &mut group {
            inside.push_str(code);
        } else {
            for (start, _) in code.match_indices("crate::") {
                let rest = &code[start + "crate::".len()..];
                if let Some(list) = rest.strip_prefix('{') {
                    group = Some(list.to_owned());
                } else {
                    let end = rest.find(|c| !is_letter(c)).unwrap_or(rest.len());
                    used.push((number, rest[..end].to_owned()));
                }
            }
        }
        if code.trim_end().ends_with("};")
            && let Some(list) = group.take()
        {
            let mut depth = 0;
            let top = list.chars().filter(|c| {
                depth += i32::from(*c == '{') - i32::from(*c == '}');
                depth == 0
            });
            for name in top.collect::<String>().split(',') {
                let name = name.trim();
                let end = name.find(|c| !is_letter(c)).unwrap_or(name.len());
                used.push((number, name[..end].to_owned()));
            }
        }
    }
    used.retain(|(_, room)| !room.is_empty());
    used
}

/// What a file uses that its room may not.
fn looks_up(name: &str, text: &str) -> Vec<String> {
    let Some(room) = room_of(name) else { return Vec::new() };
    if ["bin", "lib", "main", "sim"].contains(&room) || is_test_file(name) {
        return Vec::new();
    }
    let Some((_, allowed)) = FLOORS.iter().find(|(floor, _)| *floor == room) else {
        return vec![format!("{name} is in a room that FLOORS does not know")];
    };
    let is_wrong = |used: &str| {
        let is_known = FLOORS.iter().any(|(floor, _)| *floor == used) || used == "sim";
        is_known && used != room && !allowed.contains(&used) && !LOOK_UP.contains(&(name, used))
    };
    let wrong = rooms_used(text).into_iter().filter(|(_, used)| is_wrong(used));
    wrong.map(|(number, used)| format!("{name}:{number}: {room} must not use {used}")).collect()
}

#[test]
fn a_use_of_a_higher_room_is_seen_however_it_is_written() {
    let seen = |name: &str, text: &str| looks_up(name, text).len();
    assert_eq!(seen("server/src/front/conn.rs", "use crate::replica::Reply;"), 1);
    assert_eq!(seen("server/src/replica/apply.rs", "    crate::api::routes::all();"), 1);
    assert_eq!(seen("server/src/kv.rs", "use crate::{channel::Shared, wire};"), 1);
    assert_eq!(seen("server/src/kv.rs", "use crate::{\n    wire::{a, b},\n    front,\n};"), 1);
    assert_eq!(seen("server/src/cellar.rs", ""), 1);
    assert_eq!(seen("server/src/kv.rs", "use crate::wire; // not crate::front"), 0);
    let test = "#[cfg(test)]\nmod tests {\n    use crate::front;\n}\n";
    assert_eq!(seen("server/src/kv.rs", test), 0);
}

#[test]
fn rooms_use_only_what_lies_below_them() {
    for (place, (room, below)) in FLOORS.iter().enumerate() {
        for used in *below {
            let known = FLOORS[..place].iter().any(|(lower, _)| lower == used);
            assert!(known, "{room} may use {used}, which does not lie below it");
        }
    }
    let mut complaints = Vec::new();
    for (name, text) in all_sources() {
        complaints.extend(looks_up(&name, &text));
    }
    complain(&complaints);
}

/// The functions of a text outside unit tests: their names and the lines of their bodies. A body
/// ends at the brace below its `fn`, since rustfmt is asked as well.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines = production(text);
    let mut found = Vec::new();
    for (place, (number, line)) in lines.iter().enumerate() {
        let code = line.trim_start();
        let words = ["pub", "pub(crate)", "pub(super)", "const", "async", "unsafe"];
        let mut rest = code.split(' ').skip_while(|word| words.contains(word));
        if rest.next() != Some("fn") {
            continue;
        }
        let name = rest.next().unwrap_or("").split(['(', '<']).next().unwrap_or("").to_owned();
        let indent = &line[..line.len() - code.len()];
        let end = format!("{indent}}}");
        let opens = |(_, line): &&(usize, &str)| line.ends_with(['{', ';', '}']);
        let Some(head) = lines[place..].iter().position(|line| opens(&line)) else { continue };
        if !lines[place + head].1.ends_with('{') {
            continue;
        }
        let body = &lines[place + head + 1..];
        let length = body.iter().position(|(_, line)| *line == end).unwrap_or(body.len());
        found.push((name, *number, length));
    }
    found
}

#[test]
fn the_length_of_a_function_is_that_of_its_body() {
    let method = "impl A {\n    pub(super) fn a(\n        b: B,\n    ) -> C {\n        {\n        }\n    }\n}\n";
    let others = "fn one() {}\nconst fn two() {\n    2\n}\ntrait T {\n    fn three();\n}\n";
    let text = format!("{method}{others}");
    let expected = [("a".to_owned(), 2, 2), ("two".to_owned(), 10, 1)];
    assert_eq!(functions(&text), expected);
    let long = format!("fn long() {{\n{}}}\n", "    a();\n".repeat(FUNCTION_LINES_MAX + 1));
    assert_eq!(functions(&long), [("long".to_owned(), 1, FUNCTION_LINES_MAX + 1)]);
}

#[test]
fn functions_stay_short() {
    let mut complaints = Vec::new();
    let mut excepted = Vec::new();
    for (name, text) in all_sources() {
        if is_test_file(&name) {
            continue;
        }
        for (function, number, lines) in functions(&text) {
            if lines <= FUNCTION_LINES_MAX {
                continue;
            }
            let exception =
                LONG_FUNCTIONS.iter().find(|known| **known == (&*name, function.as_str()));
            match exception {
                Some(exception) => excepted.push(exception),
                None => complaints.push(format!(
                    "{name}:{number}: {function} has {lines} lines, more than {FUNCTION_LINES_MAX}"
                )),
            }
        }
    }
    for known in LONG_FUNCTIONS {
        if !excepted.contains(&known) {
            complaints.push(format!("{known:?} is short now: take it off the list"));
        }
    }
    complain(&complaints);
}

#[test]
fn every_test_of_the_server_takes_its_turn() {
    let mut complaints = Vec::new();
    for (name, text) in all_sources() {
        if !name.starts_with("server/tests/it/") {
            continue;
        }
        let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
        for place in (0..lines.len()).filter(|place| lines[*place].ends_with("#[test]")) {
            let body = lines[place..].iter().position(|line| line.starts_with("fn "));
            let first = body.and_then(|body| lines.get(place + body + 1));
            if !first.is_some_and(|line| line.starts_with("let _turn = ")) {
                complaints.push(format!("{name}:{} takes no turn (harness::turn)", place + 1));
            }
        }
    }
    complain(&complaints);
}

/// Where a document's links and names in backquotes lead that look like files of this repository.
fn named_files(text: &str) -> Vec<&str> {
    let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let links = links.filter(|link| !link.starts_with(['#', 'h']) || !link.contains("://"));
    links.map(|link| link.split('#').next().unwrap_or("")).filter(|link| !link.is_empty()).collect()
}

#[test]
fn documents_name_only_files_that_exist() {
    assert_eq!(named_files("a [b](c/d.rs#L1), [e](#f) and [g](https://h/i)"), ["c/d.rs"]);
    let mut complaints = Vec::new();
    for name in ["README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md"] {
        let path = root().join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let folder = path.parent().expect("a folder");
        for file in named_files(&text) {
            if !folder.join(file).exists() {
                complaints.push(format!("{name} names {file}, which does not exist"));
            }
        }
    }
    complain(&complaints);
}
