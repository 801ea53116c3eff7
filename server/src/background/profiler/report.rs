//! A profile as `go tool pprof` reads it (google/pprof `profile.proto`): the parts of the message
//! that a CPU profile needs.

use std::collections::HashMap;
use std::time::UNIX_EPOCH;

use pprof::Report;
use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
    #[prost(int64, tag = "9")]
    time_nanos: i64,
    #[prost(int64, tag = "10")]
    duration_nanos: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

/// Numbers of texts, here as everywhere below.
#[derive(Clone, Copy, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Label>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function_id: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    filename: i64,
}

/// Texts and their numbers; the first is empty, as the format has it.
struct Texts {
    table: Vec<String>,
    numbers: HashMap<String, i64>,
}

impl Texts {
    fn new() -> Self {
        Self { table: vec![String::new()], numbers: HashMap::from([(String::new(), 0)]) }
    }

    fn number(&mut self, text: &str) -> i64 {
        if let Some(number) = self.numbers.get(text) {
            return *number;
        }
        let number = i64::try_from(self.table.len()).unwrap_or(i64::MAX);
        self.table.push(text.to_owned());
        self.numbers.insert(text.to_owned(), number);
        number
    }
}

/// The message of a report whose samples are a `period_ns` of processor time each.
pub(super) fn encode(report: &Report, period_ns: i64) -> Vec<u8> {
    let mut texts = Texts::new();
    let mut profile = Profile::default();
    // A function has one place here, which is where it was first seen.
    let mut places: HashMap<String, u64> = HashMap::new();
    let thread = texts.number("thread");
    for (frames, count) in &report.data {
        let count = i64::try_from(*count).unwrap_or(i64::MAX);
        let mut sample = Sample {
            location_id: Vec::new(),
            value: vec![count, count.saturating_mul(period_ns)],
            label: vec![Label { key: thread, text: texts.number(&frames.thread_name_or_id()) }],
        };
        for symbol in frames.frames.iter().flatten() {
            let name = symbol.name();
            let id = places.get(&name).copied().unwrap_or_else(|| {
                let id = profile.function.len() as u64 + 1;
                profile.function.push(Function {
                    id,
                    name: texts.number(&name),
                    system_name: texts.number(&symbol.sys_name()),
                    filename: texts.number(&symbol.filename()),
                });
                let line = Line { function_id: id, line: i64::from(symbol.lineno()) };
                profile.location.push(Location { id, line: vec![line] });
                places.insert(name, id);
                id
            });
            sample.location_id.push(id);
        }
        profile.sample.push(sample);
    }
    let mut value = |kind, unit| ValueType { kind: texts.number(kind), unit: texts.number(unit) };
    let cpu = value("cpu", "nanoseconds");
    profile.sample_type = vec![value("samples", "count"), cpu];
    (profile.period_type, profile.period) = (Some(cpu), period_ns);
    let timing = &report.timing;
    let nanos = |duration: std::time::Duration| i64::try_from(duration.as_nanos());
    let since = timing.start_time.duration_since(UNIX_EPOCH).unwrap_or_default();
    profile.time_nanos = nanos(since).unwrap_or(0);
    profile.duration_nanos = nanos(timing.duration).unwrap_or(0);
    profile.string_table = texts.table;
    profile.encode_to_vec()
}
