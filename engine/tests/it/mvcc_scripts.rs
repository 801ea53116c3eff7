//! Golden scripts of MVCC behaviour: `testscripts/mvcc/*`, each named as the sentence it proves.
//!
//! A script is blocks of commands, `---`, and what they answer. `REWRITE=1` writes the answers
//! anew; the difference is to be reviewed. Commands:
//!
//! * `put key value [lease=n]`, `del key [end]`: one entry each
//! * `txn op; op; ...`: one entry; `rollback op; op; ...`: the same, dropped
//! * `range key [end] [rev=n] [limit=n]`, `count key [end] [rev=n]`; `end` may be `*`: from key on
//! * `events from to`, `compact rev`, `pin rev`, `unpin`, `checkpoint`, `reopen`

use std::fmt::Write;
use std::path::Path;

use etcore_engine::checkpoint::Checkpointer;
use etcore_engine::page::Fetch;
use etcore_engine::pins::RevisionPin;
use etcore_engine::store::{EngineConfig, Store, Txn};
use etcore_engine::testing::disk_pages::DiskPages;
use etcore_engine::testing::mem_disk::MemDisk;
use etcore_engine::types::{LeaseId, LogIndex, Revision, Term};
use etcore_engine::view::View;
use etcore_engine::wire::KvRef;

struct Runner {
    disk: MemDisk,
    store: Store,
    checkpointer: Checkpointer,
    pin: Option<RevisionPin>,
}

/// Arguments without and with a name.
struct Args<'a> {
    plain: Vec<&'a str>,
    named: Vec<(&'a str, i64)>,
}

impl<'a> Args<'a> {
    fn new(words: &'a str) -> Self {
        let mut args = Self { plain: Vec::new(), named: Vec::new() };
        for word in words.split_whitespace() {
            match word.split_once('=') {
                Some((name, number)) => args.named.push((name, number.parse().unwrap())),
                None => args.plain.push(word),
            }
        }
        args
    }

    fn named(&self, name: &str) -> i64 {
        self.named.iter().find(|(other, _)| *other == name).map_or(0, |(_, number)| *number)
    }

    fn end(&self, at: usize) -> &[u8] {
        match self.plain.get(at) {
            Some(&"*") => b"\0",
            Some(end) => end.as_bytes(),
            None => b"",
        }
    }
}

impl Runner {
    fn new() -> Self {
        let disk = MemDisk::new();
        let opened = Store::open(&mut disk.clone(), EngineConfig::default()).unwrap();
        Self { disk, store: opened.0, checkpointer: opened.1, pin: None }
    }

    fn run(&mut self, line: &str) -> String {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let args = Args::new(rest);
        let index = LogIndex(self.store.applied().0.0 + 1);
        match command {
            "put" | "del" => {
                let mut txn = self.store.begin(index, Term(1));
                let answer = operate(&mut txn, line);
                format!("{answer} -> revision {}", txn.commit())
            }
            "txn" | "rollback" => {
                let mut txn = self.store.begin(index, Term(1));
                let answers: Vec<_> = rest.split(';').map(|op| operate(&mut txn, op)).collect();
                let revision = if command == "txn" { txn.commit() } else { Revision(-1) };
                format!("{} -> revision {revision}", answers.join("; "))
            }
            "range" => self.range(&args),
            "count" => {
                let (key, rev) = (args.plain[0].as_bytes(), Revision(args.named("rev")));
                let view = self.store.publish();
                view.count(key, args.end(1), rev).map_or_else(|e| e.to_string(), |n| n.to_string())
            }
            "events" => self.events(&args),
            "compact" => match self.store.compact(Revision(args.plain[0].parse().unwrap())) {
                Ok(()) => {
                    while self.store.maintain() {}
                    "ok".to_owned()
                }
                Err(error) => error.to_string(),
            },
            "pin" => {
                let revision = Revision(args.plain[0].parse().unwrap());
                self.pin = Some(self.store.revision_pins().pin(revision).unwrap());
                "ok".to_owned()
            }
            "unpin" => {
                self.pin = None;
                "ok".to_owned()
            }
            "checkpoint" => {
                self.store.publish();
                self.checkpointer.start(self.store.freeze(0).unwrap());
                let output = self.checkpointer.run(&mut self.disk.clone()).unwrap().unwrap();
                self.store.on_checkpoint(&output);
                format!("compaction finished at {}", output.compact_finished)
            }
            "reopen" => {
                let mut disk = self.disk.clone();
                (self.store, self.checkpointer) =
                    Store::open(&mut disk, EngineConfig::default()).unwrap();
                format!("revision {}", self.store.revision())
            }
            other => panic!("unknown command {other}"),
        }
    }

    fn range(&mut self, args: &Args<'_>) -> String {
        let view = self.store.publish();
        let (key, end) = (args.plain[0].as_bytes(), args.end(1));
        let limit = usize::try_from(args.named("limit")).unwrap();
        let rev = Revision(args.named("rev"));
        let hits = match (&self.pin, view.range(key, end, rev, limit)) {
            (_, Ok(hits)) => hits,
            (Some(pin), Err(_)) if pin.revision() == rev => {
                view.range_pinned(key, end, pin, limit).unwrap()
            }
            (_, Err(error)) => return error.to_string(),
        };
        let mut text = format!("{} of {}", hits.hits().len(), hits.count());
        for hit in hits.hits() {
            let value = self.value(&view, hit.modified);
            let key = std::str::from_utf8(hits.key(hit)).unwrap();
            let (create, modified, version) = (hit.create, hit.modified, hit.version);
            write!(text, "\n  {key}={value} create {create} mod {modified} version {version}")
                .unwrap();
        }
        text
    }

    fn value(&self, view: &View, at: etcore_engine::types::RevKey) -> String {
        let mut pages = DiskPages::new(&self.disk);
        match view.value(at, &mut pages).unwrap() {
            Fetch::Ready(bytes) => {
                let kv = KvRef::parse(bytes).unwrap();
                let lease =
                    if kv.lease.0 == 0 { String::new() } else { format!("@{}", kv.lease.0) };
                format!("{}{lease}", std::str::from_utf8(kv.value).unwrap())
            }
            Fetch::Pending(_) => panic!("a disk in memory is never pending"),
        }
    }

    fn events(&mut self, args: &Args<'_>) -> String {
        let revision = |at: usize| Revision(args.plain[at].parse().unwrap());
        let view = self.store.publish();
        let mut events = match view.events(revision(0), revision(1), self.pin.as_ref()) {
            Ok(events) => events,
            Err(error) => return error.to_string(),
        };
        let mut pages = DiskPages::new(&self.disk);
        let mut text = Vec::new();
        while let Fetch::Ready(Some(event)) = events.next(&mut pages).unwrap() {
            let kv = KvRef::parse(event.kv).unwrap();
            let what = if event.tombstone { "delete" } else { "put" };
            let previous = event.previous.map_or("none".to_owned(), |at| at.to_string());
            let key = std::str::from_utf8(kv.key).unwrap();
            text.push(format!("{} {what} {key}, before: {previous}", event.at));
        }
        text.join("\n")
    }
}

fn operate(txn: &mut Txn<'_>, line: &str) -> String {
    let line = line.trim();
    let (command, rest) = line.split_once(' ').unwrap();
    let args = Args::new(rest);
    let key = args.plain[0].as_bytes();
    match command {
        "put" => {
            let outcome = txn.put(key, args.plain[1].as_bytes(), LeaseId(args.named("lease")));
            let before = outcome.prev.map_or("none".to_owned(), |at| at.to_string());
            format!("put {} version {} before {before}", outcome.at, outcome.version)
        }
        "del" => format!("deleted {}", txn.delete_range(key, args.end(1)).count()),
        "count" => format!("count {}", txn.count(key, args.end(1), Revision(0)).unwrap()),
        other => panic!("unknown operation {other}"),
    }
}

fn answer(script: &str) -> String {
    let mut runner = Runner::new();
    let mut text = String::new();
    let mut commands: Vec<&str> = Vec::new();
    let mut in_answer = false;
    for line in script.lines().chain([""]) {
        match line {
            "---" => in_answer = true,
            "" if !commands.is_empty() => {
                let answers: Vec<_> = commands.iter().map(|line| runner.run(line)).collect();
                writeln!(text, "{}\n---\n{}\n", commands.join("\n"), answers.join("\n")).unwrap();
                commands.clear();
                in_answer = false;
            }
            line if line.starts_with('#') && !in_answer => writeln!(text, "{line}").unwrap(),
            line if !in_answer && !line.is_empty() => commands.push(line),
            _ => {}
        }
    }
    text
}

#[test]
fn every_script_answers_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testscripts/mvcc");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let script = std::fs::read_to_string(&path).unwrap();
        let answer = answer(&script);
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&path, answer).unwrap();
        } else {
            assert_eq!(script, answer, "{}", path.display());
        }
        count += 1;
    }
    assert!(count >= 8, "{count} scripts");
}
