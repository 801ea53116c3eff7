//! Log lines with zap's field names, as JSON or for people, written by a thread of its own.
//!
//! Installed once by `main`; everything logs through `tracing`. It must never block a shard: lines
//! go through a bounded queue, and when the output does not take them they are dropped and the
//! next line that gets through says how many.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use etcore_engine::map::fault;
use etcore_proto::civil;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::boot::DB_FILE;
use crate::limits;

mod journal;
mod outputs;
mod rotate;

use outputs::Writer;
pub use outputs::{Output, Outputs};

/// How lines look (`--log-format`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// Tab-separated words.
    Console,
}

/// Keeps the writer thread; dropping it writes what is still queued, for at most a second.
pub struct Guard {
    queue: Option<Sender<String>>,
    finished: Receiver<()>,
}

/// Installs the logger for the whole process.
///
/// # Errors
/// When an output cannot be opened, the writer thread cannot be started or a logger is installed
/// already.
pub fn install(level: Level, format: Format, outputs: &Outputs) -> Result<Guard, String> {
    let mut writer = Writer::open(outputs, SystemTime::now)?;
    let (queue, lines) = bounded::<String>(limits::LOG_LINES);
    let (done, finished) = bounded(1);
    let dropped = Arc::new(AtomicU64::new(0));
    let writer_dropped = dropped.clone();
    std::thread::Builder::new()
        .name("etcore-log".into())
        .spawn(move || {
            let mut write = |line: &str| writer.line(line, format);
            write_lines(&lines, &writer_dropped, format, &mut write);
            let _ = done.send(());
        })
        .map_err(|error| format!("cannot start the log thread: {error}"))?;
    let layer = ZapLayer { level, format, queue: queue.clone(), dropped };
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))
        .map_err(|error| error.to_string())?;
    Ok(Guard { queue: Some(queue), finished })
}

/// What was installed, for [`page_lost`].
static INSTALLED: OnceLock<(Format, Outputs)> = OnceLock::new();

/// Has a page of the page file that is mapped and cannot be read end the process with a line that
/// says where it is.
pub fn tell_of_lost_pages(format: Format, outputs: Outputs) {
    if INSTALLED.set((format, outputs)).is_ok() {
        fault::on_fault(page_lost);
    }
}

/// There is no way back to whoever reads, and no time for the queue.
fn page_lost(offset_bytes: u64) -> ! {
    if let Some((format, outputs)) = INSTALLED.get() {
        let mut fields = serde_json::Map::new();
        let error = format!(
            "{DB_FILE}: cannot read at byte {offset_bytes}: the device failed, or the file was cut"
        );
        fields.insert("error".into(), error.into());
        let text = "stopped after a failure";
        let line = render(*format, Level::ERROR, "server/log.rs", text, &fields);
        for output in outputs.list() {
            outputs::last_line(output, &line);
        }
    }
    crate::sys::end_at_once(1)
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(queue) = self.queue.take() {
            // The layer holds a sender for good, so the end is told by an empty line.
            let _ = queue.send_timeout(String::new(), Duration::from_secs(1));
            let _ = self.finished.recv_timeout(Duration::from_secs(1));
        }
    }
}

fn write_lines(
    lines: &Receiver<String>,
    dropped: &AtomicU64,
    format: Format,
    write: &mut impl FnMut(&str),
) {
    for line in lines {
        if line.is_empty() {
            return;
        }
        write(&line);
        let lost = dropped.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let mut fields = serde_json::Map::new();
            fields.insert("dropped-lines".into(), lost.into());
            let text = "the output of the log was blocked; log lines were dropped";
            let line = render(format, Level::WARN, "server/log.rs", text, &fields);
            write(&line);
        }
    }
}

struct ZapLayer {
    level: Level,
    format: Format,
    queue: Sender<String>,
    dropped: Arc<AtomicU64>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for ZapLayer {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.level() <= &self.level && metadata.target().starts_with("etcore")
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let caller = format!(
            "{}:{}",
            metadata.file().map_or("unknown", short_path),
            metadata.line().unwrap_or(0)
        );
        let line = render(self.format, *metadata.level(), &caller, &fields.message, &fields.others);
        if let Err(TrySendError::Full(_)) = self.queue.try_send(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// `server/src/boot.rs` becomes `server/boot.rs`, as zap shortens its callers.
fn short_path(path: &str) -> &str {
    path.rsplit_once("src/").map_or(path, |(_, file)| file)
}

#[derive(Default)]
struct Fields {
    message: String,
    others: serde_json::Map<String, Value>,
}

impl Fields {
    /// Field names use `-` in etcd's logs; Rust identifiers cannot.
    fn put(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().replace('_', "-"), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, text.into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.put(field, value.into());
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

fn render(
    format: Format,
    level: Level,
    caller: &str,
    message: &str,
    fields: &serde_json::Map<String, Value>,
) -> String {
    let level = match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        _ => "debug",
    };
    let ts = rfc3339_micros(SystemTime::now());
    let mut line = String::with_capacity(256);
    match format {
        Format::Json => {
            let _ = write!(
                line,
                r#"{{"level":"{level}","ts":"{ts}","caller":"{caller}","msg":{}"#,
                Value::from(message)
            );
            for (name, value) in fields {
                let _ = write!(line, ",{}:{value}", Value::from(name.as_str()));
            }
            line.push_str("}\n");
        }
        Format::Console => {
            let _ = write!(line, "{ts}\t{level}\t{caller}\t{message}");
            if !fields.is_empty() {
                let _ = write!(line, "\t{}", Value::from(fields.clone()));
            }
            line.push('\n');
        }
    }
    line
}

/// UTC with microseconds, as zap's encoder prints it.
pub fn rfc3339_micros(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second_of_day) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil::date_of(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        second_of_day / 3600,
        second_of_day / 60 % 60,
        second_of_day % 60,
        since.subsec_micros()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_find_the_queue_full_are_dropped_counted_and_owned_up_to() {
        let (queue, lines) = bounded::<String>(limits::LOG_LINES);
        let dropped = Arc::new(AtomicU64::new(0));
        let (level, format) = (Level::DEBUG, Format::Json);
        let layer = ZapLayer { level, format, queue: queue.clone(), dropped: dropped.clone() };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for number in 0..limits::LOG_LINES + 17 {
                tracing::debug!(number, "nobody writes this");
            }
        });
        assert_eq!(lines.len(), limits::LOG_LINES);
        assert_eq!(dropped.load(Ordering::Relaxed), 17);
        drop(queue);
        let mut text = String::new();
        write_lines(&lines, &dropped, Format::Json, &mut |line| text += line);
        assert_eq!(text.lines().count(), limits::LOG_LINES + 1);
        let told: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!(told["dropped-lines"], 17);
    }

    #[test]
    fn timestamps_are_utc_with_microseconds() {
        let at = |seconds, micros| {
            rfc3339_micros(
                UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros),
            )
        };
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(at(951_782_399, 7), "2000-02-28T23:59:59.000007Z");
        assert_eq!(at(951_782_400, 0), "2000-02-29T00:00:00.000000Z");
        assert_eq!(at(1_795_262_400, 123_456), "2026-11-21T12:00:00.123456Z");
    }

    #[test]
    fn a_line_is_one_json_object_with_zaps_field_names() {
        let mut fields = serde_json::Map::new();
        fields.insert("data-dir".into(), "a\"b\n".into());
        let line = render(Format::Json, Level::INFO, "boot.rs:1", "it \"works\"", &fields);
        assert_eq!(line.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "info");
        assert_eq!(value["msg"], "it \"works\"");
        assert_eq!(value["data-dir"], "a\"b\n");
        assert!(value["ts"].is_string() && value["caller"].is_string());
    }
}
