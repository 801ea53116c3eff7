//! The command line as values.
//!
//! `run` parses it once; everything else reads [`Options`]. The flags are those of etcd's own
//! `benchmark` 3.7, minus what this tool cannot do (TLS, users), plus what it adds. Must refuse
//! what makes no sense before anything is sent.

use std::fmt;
use std::time::Duration;

use crate::flags::{self, Command, Flag, FlagError, Parsed, invalid};
use crate::{gotext, limits};

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Choice {
    Help(String),
    Run(Box<Options>),
    Watch(Box<WatchOptions>),
}

/// A server's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port, also the `:authority` of calls.
    pub(crate) authority: String,
}

/// Everything a run needs to know.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) target_leader: bool,
    pub(crate) conns: usize,
    pub(crate) clients: usize,
    pub(crate) threads: usize,
    pub(crate) precise: bool,
    pub(crate) sample: bool,
    pub(crate) json: bool,
    pub(crate) dial_timeout: Duration,
    pub(crate) server_pids: Vec<u32>,
    pub(crate) total: u64,
    /// Requests a second, 0 for as many as the clients make.
    pub(crate) rate: u64,
    pub(crate) load: Load,
}

/// The command.
#[derive(Debug, Clone)]
pub(crate) enum Load {
    Put(PutOptions),
    Range(RangeOptions),
}

#[derive(Debug, Clone)]
pub(crate) struct PutOptions {
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
    pub(crate) key_space: u64,
    pub(crate) sequential: bool,
    /// Time between compactions, none if zero.
    pub(crate) compact_interval: Duration,
    /// Revisions that a compaction keeps.
    pub(crate) compact_delta: i64,
}

#[derive(Debug, Clone)]
pub(crate) struct RangeOptions {
    pub(crate) key: Vec<u8>,
    pub(crate) end: Vec<u8>,
    pub(crate) limit: i64,
    pub(crate) serializable: bool,
    pub(crate) count_only: bool,
    pub(crate) keys_only: bool,
    pub(crate) stream: bool,
    pub(crate) paginate: bool,
}

/// Everything that `watch-latency` needs to know.
#[derive(Debug, Clone)]
pub(crate) struct WatchOptions {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) conns: usize,
    pub(crate) json: bool,
    pub(crate) dial_timeout: Duration,
    pub(crate) server_pids: Vec<u32>,
    pub(crate) streams: u64,
    pub(crate) watchers_per_stream: u64,
    pub(crate) prev_kv: bool,
    pub(crate) put_total: u64,
    /// A second.
    pub(crate) put_rate: u64,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
    /// Different keys; stream n watches key n modulo so many.
    pub(crate) keys: u64,
    /// Every watcher watches all keys.
    pub(crate) prefix: bool,
}

impl Load {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Load::Put(_) => "put",
            Load::Range(_) => "range",
        }
    }
}

impl Options {
    /// What etcd's tool says before it starts.
    pub(crate) fn opening_line(&self) -> Option<&'static str> {
        match &self.load {
            Load::Range(range) if range.serializable => Some("bench with serializable range"),
            Load::Range(_) => Some("bench with linearizable range"),
            Load::Put(_) => None,
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.authority)
    }
}

/// Reads a command line without the program's name.
pub(crate) fn parse(arguments: &[String]) -> Result<Choice, FlagError> {
    let parsed = flags::parse(arguments, GLOBALS, COMMANDS)?;
    if parsed.help {
        return Ok(Choice::Help(flags::help(GLOBALS, COMMANDS, parsed.command)));
    }
    let load = match parsed.command.ok_or(FlagError::NoCommand)?.name {
        "watch-latency" => return Ok(Choice::Watch(Box::new(watch(&parsed)?))),
        "put" => Load::Put(put(&parsed)?),
        _ => Load::Range(range(&parsed)?),
    };
    let conns = parsed.integer("conns", 1, 1, limits::CONNS_MAX)? as usize;
    let threads = parsed.integer("threads", 1, 1, limits::THREADS_MAX)? as usize;
    Ok(Choice::Run(Box::new(Options {
        endpoints: endpoints(&parsed)?,
        target_leader: parsed.switch("target-leader")?,
        conns,
        clients: parsed.integer("clients", 1, 1, limits::CLIENTS_MAX)? as usize,
        threads: threads.min(conns),
        precise: parsed.switch("precise")?,
        sample: parsed.switch("sample")?,
        json: parsed.switch("json")?,
        dial_timeout: dial_timeout(&parsed)?,
        server_pids: server_pids(&parsed)?,
        total: parsed.integer("total", 10_000, 1, limits::TOTAL_MAX)?,
        rate: parsed.integer("rate", 0, 0, limits::RATE_MAX)?,
        load,
    })))
}

fn dial_timeout(parsed: &Parsed) -> Result<Duration, FlagError> {
    match duration(parsed, "dial-timeout")? {
        Duration::ZERO => Ok(limits::DIAL_TIMEOUT),
        timeout => Ok(timeout),
    }
}

fn watch(parsed: &Parsed) -> Result<WatchOptions, FlagError> {
    if let Some(argument) = parsed.arguments.first() {
        return Err(FlagError::Contradiction(format!(
            "watch-latency takes no argument, got {argument:?}"
        )));
    }
    let many = limits::WATCHERS_MAX;
    Ok(WatchOptions {
        endpoints: endpoints(parsed)?,
        conns: parsed.integer("conns", 1, 1, limits::CONNS_MAX)? as usize,
        json: parsed.switch("json")?,
        dial_timeout: dial_timeout(parsed)?,
        server_pids: server_pids(parsed)?,
        streams: parsed.integer("streams", 10, 1, many)?,
        watchers_per_stream: parsed.integer("watchers-per-stream", 10, 1, many)?,
        prev_kv: parsed.switch("prevkv")?,
        put_total: parsed.integer("put-total", 1_000, 1, 1 << 32)?,
        put_rate: parsed.integer("put-rate", 100, 1, limits::RATE_MAX)?,
        key_bytes: parsed.integer("key-size", 32, 9, limits::KEY_BYTES_MAX)? as usize,
        value_bytes: parsed.integer("val-size", 32, 8, limits::VALUE_BYTES_MAX)? as usize,
        keys: parsed.integer("key-space-size", 1, 1, i64::MAX as u64)?,
        prefix: parsed.switch("prefix")?,
    })
}

fn put(parsed: &Parsed) -> Result<PutOptions, FlagError> {
    if let Some(argument) = parsed.arguments.first() {
        return Err(FlagError::Contradiction(format!("put takes no argument, got {argument:?}")));
    }
    let key_bytes = parsed.integer("key-size", 8, 1, limits::KEY_BYTES_MAX)? as usize;
    let key_space = parsed.integer("key-space-size", 1, 1, i64::MAX as u64)?;
    let needed = crate::workload::varint_bytes(key_space - 1);
    if key_bytes < needed {
        return Err(FlagError::Contradiction(format!(
            "--key-size={key_bytes} is too small for --key-space-size={key_space}: keys are \
             varints of up to {needed} bytes"
        )));
    }
    let delta = parsed.integer("compact-index-delta", 1_000, 0, i64::MAX as u64)?;
    Ok(PutOptions {
        key_bytes,
        value_bytes: parsed.integer("val-size", 8, 0, limits::VALUE_BYTES_MAX)? as usize,
        key_space,
        sequential: parsed.switch("sequential-keys")?,
        compact_interval: duration(parsed, "compact-interval")?,
        compact_delta: delta as i64,
    })
}

fn range(parsed: &Parsed) -> Result<RangeOptions, FlagError> {
    let contradiction = |text: &str| Err(FlagError::Contradiction(text.to_owned()));
    let prefix = parsed.switch("prefix")?;
    let (key, end) = match parsed.arguments.as_slice() {
        [] if prefix => (Vec::new(), None),
        [] => return contradiction("range needs a key"),
        [key] => (key.clone().into_bytes(), None),
        [key, end] => (key.clone().into_bytes(), Some(end.clone().into_bytes())),
        [_, _, extra, ..] => {
            return contradiction(&format!("range takes a key and an end, got also {extra:?}"));
        }
    };
    let options = RangeOptions {
        serializable: match parsed.last("consistency") {
            // The digit is a misprint of the letter in etcd's performance guide.
            None | Some("l" | "1") => false,
            Some("s") => true,
            Some(other) => return Err(invalid("consistency", other, "expected l or s")),
        },
        limit: parsed.integer("limit", 0, 0, i64::MAX as u64)? as i64,
        count_only: parsed.switch("count-only")?,
        keys_only: parsed.switch("keys-only")?,
        stream: parsed.switch("stream")?,
        paginate: parsed.switch("paginate")?,
        end: match end {
            _ if prefix => prefix_end(&key),
            Some(end) => end,
            None => Vec::new(),
        },
        // A prefix of nothing is everything, which begins at the least key.
        key: if prefix && key.is_empty() { vec![0] } else { key },
    };
    if options.paginate && options.limit > 0 {
        return contradiction("--paginate and --limit are mutually exclusive");
    }
    if options.paginate && options.stream {
        return contradiction("--paginate and --stream are mutually exclusive");
    }
    if options.count_only && options.keys_only {
        return contradiction("--keys-only and --count-only are mutually exclusive");
    }
    Ok(options)
}

/// The first key after all keys with this prefix; etcd writes "no end" as a zero byte.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

fn duration(parsed: &Parsed, name: &'static str) -> Result<Duration, FlagError> {
    let Some(text) = parsed.last(name) else { return Ok(Duration::ZERO) };
    gotext::parse_duration(text)
        .ok_or_else(|| invalid(name, text, "expected a duration such as 500ms or 1m30s"))
}

/// The items of a flag that may be repeated and may hold commas.
fn items(parsed: &Parsed, name: &'static str) -> Result<Vec<String>, FlagError> {
    let all = parsed.all(name).iter().flat_map(|value| value.split(','));
    let items: Vec<String> = all.map(|item| item.trim().to_owned()).collect();
    match items.len() {
        ..=limits::LIST_ITEMS_MAX => Ok(items),
        count => Err(invalid(name, &items[0], &format!("too many values ({count})"))),
    }
}

fn endpoints(parsed: &Parsed) -> Result<Vec<Endpoint>, FlagError> {
    let mut texts = items(parsed, "endpoints")?;
    if texts.is_empty() {
        texts.push("127.0.0.1:2379".to_owned());
    }
    texts.iter().map(|text| endpoint(text)).collect()
}

fn endpoint(text: &str) -> Result<Endpoint, FlagError> {
    let complain = |reason: &str| Err(invalid("endpoints", text, reason));
    let authority = match text.split_once("://") {
        None => text,
        Some(("http", authority)) => authority,
        Some(("https", _)) => return complain("TLS is not supported by this tool"),
        Some(_) => return complain("expected host:port or http://host:port"),
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let port = authority.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    match port.map(|(_, port)| port.parse::<u16>()) {
        Some(Ok(_)) => Ok(Endpoint { authority: authority.to_owned() }),
        _ => complain("expected host:port or http://host:port"),
    }
}

fn server_pids(parsed: &Parsed) -> Result<Vec<u32>, FlagError> {
    let items = items(parsed, "server-pid")?;
    let pids = items
        .iter()
        .map(|item| item.parse().map_err(|_| invalid("server-pid", item, "expected a process id")));
    pids.collect()
}

const fn value(name: &'static str, value: &'static str, help: &'static str) -> Flag {
    Flag { name, value: Some(value), help }
}

const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, value: None, help }
}

const GLOBALS: &[Flag] = &[
    value("endpoints", "list", "servers, host:port or http://host:port (default 127.0.0.1:2379)"),
    switch("target-leader", "connect only to the leader among the endpoints"),
    value("conns", "count", "connections, spread over the endpoints in turn (default 1)"),
    value("clients", "count", "clients with one request each at a time (default 1)"),
    value("threads", "count", "threads that make the load (default 1)"),
    value("dial-timeout", "duration", "time for each connection (default 5s)"),
    value("server-pid", "list", "processes whose CPU and memory are reported"),
    switch("precise", "print all digits"),
    switch("sample", "print latencies and throughput of each second"),
    switch("json", "print one JSON object instead of text"),
    switch("help", "print this"),
];

const TOTAL: Flag = value("total", "count", "requests (default 10000)");
const RATE: Flag = value(
    "rate",
    "count",
    "requests a second, on a fixed schedule; those that wait for a client count their wait",
);

const COMMANDS: &[Command] = &[
    Command {
        name: "put",
        arguments: "",
        help: "Puts keys.",
        flags: &[
            TOTAL,
            RATE,
            value("key-size", "bytes", "size of keys (default 8)"),
            value("val-size", "bytes", "size of values (default 8)"),
            value("key-space-size", "count", "different keys (default 1)"),
            switch("sequential-keys", "take keys in their order instead of at random"),
            value("compact-interval", "duration", "compact this often (default never)"),
            value("compact-index-delta", "count", "revisions a compaction keeps (default 1000)"),
        ],
    },
    Command {
        name: "watch-latency",
        arguments: "",
        help: "Puts keys at a fixed rate and measures when watchers get the events.",
        flags: &[
            value("streams", "count", "watch streams (default 10)"),
            value("watchers-per-stream", "count", "watchers of each (default 10)"),
            switch("prevkv", "ask for previous values"),
            value("put-total", "count", "puts (default 1000)"),
            value("put-rate", "count", "puts a second, on a fixed schedule (default 100)"),
            value("key-size", "bytes", "size of keys (default 32)"),
            value("val-size", "bytes", "size of values, the put's number included (default 32)"),
            value("key-space-size", "count", "different keys, shared out to streams (default 1)"),
            switch("prefix", "every watcher watches all keys"),
        ],
    },
    Command {
        name: "range",
        arguments: "key [end]",
        help: "Ranges over a key or an interval.",
        flags: &[
            TOTAL,
            RATE,
            value("consistency", "l|s", "linearizable or serializable (default l)"),
            value("limit", "count", "most keys in an answer (default 0, no limit)"),
            switch("count-only", "ask for the count only"),
            switch("keys-only", "ask for keys without values"),
            switch("stream", "use RangeStream"),
            switch("paginate", "read pages of 10000 keys; all pages are one request"),
            switch("prefix", "range over all keys with this prefix"),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Result<Options, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match parse(&words) {
            Ok(Choice::Run(options)) => Ok(*options),
            Ok(Choice::Watch(_)) => Err("watches".to_owned()),
            Ok(Choice::Help(text)) => Err(text),
            Err(error) => Err(error.to_string()),
        }
    }

    fn range(line: &str) -> RangeOptions {
        match options(line).unwrap().load {
            Load::Range(range) => range,
            Load::Put(_) => panic!("a put"),
        }
    }

    #[test]
    fn defaults_are_those_of_etcd_s_tool() {
        let options = options("put").unwrap();
        assert_eq!((options.conns, options.clients, options.total), (1, 1, 10_000));
        assert_eq!(options.endpoints[0].authority, "127.0.0.1:2379");
        let Load::Put(put) = options.load else { panic!("a range") };
        assert_eq!((put.key_bytes, put.value_bytes, put.key_space), (8, 8, 1));
        assert_eq!(put.compact_delta, 1_000);
    }

    #[test]
    fn endpoints_come_with_and_without_scheme_repeated_and_in_lists() {
        let options = options("--endpoints=a:1,http://b:2/ put --endpoints [::1]:3").unwrap();
        let found: Vec<&str> =
            options.endpoints.iter().map(|endpoint| endpoint.authority.as_str()).collect();
        assert_eq!(found, ["a:1", "b:2", "[::1]:3"]);
    }

    #[test]
    fn the_guide_s_misprinted_consistency_means_linearizable() {
        assert!(!range("range k --consistency=1").serializable);
        assert!(!range("range k --consistency=l").serializable);
        assert!(range("range k --consistency=s").serializable);
    }

    #[test]
    fn prefixes_become_ends() {
        assert_eq!(range("range ab --prefix").end, b"ac");
        assert_eq!(range("range a b").end, b"b");
        let all = range("range --prefix");
        assert_eq!((all.key, all.end), (vec![0], vec![0]));
        assert_eq!(prefix_end(b"a\xff\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let lines = [
            ("", "no command"),
            ("put x", "takes no argument"),
            ("put --total=0", "expected a number from 1"),
            ("put --key-size=1 --key-space-size=1000", "too small"),
            ("put --compact-interval=5", "expected a duration"),
            ("--endpoints=https://a:1 put", "TLS is not supported"),
            ("--endpoints=a put", "expected host:port"),
            ("--conns=0 put", "expected a number from 1"),
            ("--server-pid=x put", "expected a process id"),
            ("range", "needs a key"),
            ("range a b c", "got also"),
            ("range a --consistency=x", "expected l or s"),
            ("range a --paginate --limit=3", "mutually exclusive"),
            ("range a --keys-only --count-only", "mutually exclusive"),
        ];
        for (line, expected) in lines {
            let complaint = options(line).unwrap_err();
            assert!(complaint.contains(expected), "{line:?}: {complaint}");
        }
    }
}
