//! A log file that is put aside when it is full: `--log-rotation-config-json`, by the rules of
//! lumberjack, which etcd uses.
//!
//! Written by the log's thread. What is full is renamed to `name-<time>.ext` beside it; a thread
//! that lives for that removes what is too old or too much, and compresses the rest.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded};
use etcore_proto::civil;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Deserialize;

use crate::sys;

/// How files are rotated; what is 0 or false is not done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Rotation {
    /// Megabytes of a file; 0 is 100.
    maxsize: u32,
    /// Days that old files are kept.
    maxage: u32,
    /// Old files that are kept.
    maxbackups: u32,
    /// Old files are named by the local time, not by UTC.
    localtime: bool,
    /// Old files are compressed by gzip.
    compress: bool,
}

/// Ending of compressed files.
const GZ: &str = ".gz";
/// `2006-01-02T15-04-05.000`.
const STAMP_BYTES: usize = 23;

impl Rotation {
    /// Reads the JSON of the flag; names are taken in any case, and unknown ones mean nothing.
    ///
    /// # Errors
    /// etcd's texts.
    pub(super) fn parse(json: &str) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_str(json)
            .map_err(|error| format!("improperly formatted log rotation config: {error}"))?;
        let value = match value {
            serde_json::Value::Object(fields) => {
                let lower = fields.into_iter().filter(|(_, value)| !value.is_null());
                lower.map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
            }
            other => other,
        };
        serde_json::from_value(value)
            .map_err(|error| format!("invalid log rotation config: {error}"))
    }

    fn bytes_max(self) -> u64 {
        let megabytes = if self.maxsize == 0 { 100 } else { self.maxsize };
        u64::from(megabytes) << 20
    }
}

/// Tells the time of day.
pub(super) type WallClock = fn() -> SystemTime;

/// A file that is rotated.
pub(super) struct Rotated {
    path: PathBuf,
    rotation: Rotation,
    bytes_max: u64,
    file: File,
    len_bytes: u64,
    clock: WallClock,
    /// Wakes the thread that looks after old files.
    mill: Sender<()>,
}

impl Rotated {
    /// Goes on with the file, or begins it; its directory is made.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(super) fn open(path: &str, rotation: Rotation, clock: WallClock) -> io::Result<Self> {
        Self::with(Path::new(path), rotation, rotation.bytes_max(), clock)
    }

    fn with(path: &Path, rotation: Rotation, bytes_max: u64, clock: WallClock) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = File::options().create(true).append(true).mode(0o600).open(path)?;
        let len_bytes = file.metadata()?.len();
        // One signal waits at most: it is about all that is there.
        let (mill, signals) = bounded(1);
        let of_mill = path.to_owned();
        std::thread::Builder::new().name("etcore-log-old".into()).spawn(move || {
            look_after_old(&of_mill, rotation, clock, &signals);
        })?;
        let path = path.to_owned();
        let rotated = Self { path, rotation, bytes_max, file, len_bytes, clock, mill };
        rotated.wake_mill();
        Ok(rotated)
    }

    fn wake_mill(&self) {
        let _ = self.mill.try_send(());
    }

    /// Writes a line, into a new file if this one has no room for it.
    ///
    /// # Errors
    /// The line is longer than a file may be, or files fail.
    pub(super) fn line(&mut self, line: &[u8]) -> io::Result<()> {
        let line_bytes = line.len() as u64;
        if line_bytes > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if self.len_bytes + line_bytes > self.bytes_max {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.len_bytes += line_bytes;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mode = self.file.metadata()?.permissions().mode() & 0o777;
        let aside = aside(&self.path, (self.clock)(), self.rotation.localtime);
        std::fs::rename(&self.path, aside)?;
        let mut options = File::options();
        self.file = options.create(true).append(true).mode(0o600).open(&self.path)?;
        self.file.set_permissions(Permissions::from_mode(mode))?;
        self.len_bytes = self.file.metadata()?.len();
        self.wake_mill();
        Ok(())
    }
}

/// The name of a file that is put aside at `time`.
fn aside(path: &Path, time: SystemTime, local: bool) -> PathBuf {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let utc_s = i64::try_from(since.as_secs()).unwrap_or(0);
    let shown_s = if local { utc_s + sys::utc_offset_s(utc_s) } else { utc_s };
    let shown_s = u64::try_from(shown_s).unwrap_or(0);
    let (year, month, day) = civil::date_of(shown_s / 86_400);
    let of_day = shown_s % 86_400;
    let stamp = format!(
        "{year:04}-{month:02}-{day:02}T{:02}-{:02}-{:02}.{:03}",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        since.subsec_millis()
    );
    let (prefix, ext) = parts(path);
    path.with_file_name(format!("{prefix}{stamp}{ext}"))
}

/// What stands before and behind the time in the names of old files.
fn parts(path: &Path) -> (String, String) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ext = path.extension().map(|ext| format!(".{}", ext.to_string_lossy()));
    (format!("{stem}-"), ext.unwrap_or_default())
}

/// Old files, newest first, each with its time as written.
fn old_files(path: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let (prefix, ext) = parts(path);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let plain = name.strip_suffix(GZ).unwrap_or(&name);
        let stamp = plain.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(&ext));
        if let Some(stamp) = stamp.filter(|stamp| is_stamp(stamp)) {
            files.push((stamp.to_owned(), entry.path()));
        }
    }
    files.sort();
    files.reverse();
    Ok(files)
}

fn is_stamp(text: &str) -> bool {
    let like = |(c, form): (u8, u8)| if form == b'0' { c.is_ascii_digit() } else { c == form };
    text.len() == STAMP_BYTES && text.bytes().zip(*b"0000-00-00T00-00-00.000").all(like)
}

fn look_after_old(path: &Path, rotation: Rotation, clock: WallClock, signals: &Receiver<()>) {
    for () in signals {
        // What fails now is tried again with the next file that is full.
        let _ = mill(path, rotation, clock());
    }
}

/// Removes what is too much or too old, and compresses the rest.
fn mill(path: &Path, rotation: Rotation, now: SystemTime) -> io::Result<()> {
    let mut files = old_files(path)?;
    if rotation.maxbackups > 0 {
        let kept = usize::try_from(rotation.maxbackups).unwrap_or(usize::MAX);
        let mut stamps: Vec<String> = files.iter().map(|(stamp, _)| stamp.clone()).collect();
        stamps.dedup();
        // A file and its compressed form, should the process have ended in between, are one.
        if let Some(oldest) = stamps.get(kept.saturating_sub(1)).cloned() {
            remove(files.extract_if(.., |(stamp, _)| *stamp < oldest))?;
        }
    }
    if rotation.maxage > 0 {
        let age = Duration::from_secs(u64::from(rotation.maxage) * 86_400);
        let cut = aside(path, now.checked_sub(age).unwrap_or(UNIX_EPOCH), rotation.localtime);
        let (prefix, _) = parts(path);
        let name = cut.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let cut: String = name.chars().skip(prefix.chars().count()).take(STAMP_BYTES).collect();
        remove(files.extract_if(.., |(stamp, _)| *stamp < cut))?;
    }
    if rotation.compress {
        for (_, file) in files.iter().filter(|(_, file)| !file.to_string_lossy().ends_with(GZ)) {
            compress(file)?;
        }
    }
    Ok(())
}

fn remove(files: impl Iterator<Item = (String, PathBuf)>) -> io::Result<()> {
    files.map(|(_, file)| std::fs::remove_file(file)).fold(Ok(()), io::Result::and)
}

fn compress(file: &Path) -> io::Result<()> {
    let mut source = File::open(file)?;
    let target = PathBuf::from(format!("{}{GZ}", file.display()));
    let mode = source.metadata()?.permissions().mode() & 0o777;
    let out = File::options().create(true).truncate(true).write(true).mode(mode).open(&target)?;
    let mut encoder = GzEncoder::new(out, Compression::default());
    io::copy(&mut source, &mut encoder)?;
    encoder.finish()?;
    std::fs::remove_file(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_configuration_is_read_as_gos_json_reads_it() {
        let given = "{\"maxsize\": 1, \"MaxAge\": 2, \"maxbackups\": 3, \"localtime\": true, \
                     \"compress\": true, \"no-such\": 1}";
        let expected =
            Rotation { maxsize: 1, maxage: 2, maxbackups: 3, localtime: true, compress: true };
        assert_eq!(Rotation::parse(given), Ok(expected));
        assert_eq!(Rotation::parse("{}").unwrap().bytes_max(), 100 << 20);
        let why = Rotation::parse("{\"maxsize\": \"1\"}").unwrap_err();
        assert!(why.starts_with("invalid log rotation config: "), "{why}");
        let why = Rotation::parse("maxsize").unwrap_err();
        assert!(why.starts_with("improperly formatted log rotation config: "), "{why}");
    }

    #[test]
    fn a_full_file_is_put_aside_and_the_line_begins_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/m.log");
        let mut file = Rotated::with(&path, Rotation::default(), 10, SystemTime::now).unwrap();
        file.line(b"12345\n").unwrap();
        file.line(b"789\n").unwrap();
        assert!(file.line(b"longer than a file\n").is_err());
        assert_eq!(names(path.parent().unwrap()), ["m.log"]);
        file.line(b"x\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\n");
        let all = names(path.parent().unwrap());
        assert_eq!(all.len(), 2, "{all:?}");
        assert!(all[0].starts_with("m-20") && all[0].ends_with(".log"), "{all:?}");
        // A restart goes on with the file.
        drop(file);
        Rotated::with(&path, Rotation::default(), 10, SystemTime::now)
            .unwrap()
            .line(b"y\n")
            .unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\ny\n");
    }

    #[test]
    fn old_files_are_removed_by_number_and_age_and_the_rest_is_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.log");
        let at = |day: u64| UNIX_EPOCH + Duration::from_secs(day * 86_400);
        let old: Vec<PathBuf> = [1, 2, 10, 11].map(|day| aside(&path, at(day), false)).into();
        assert!(old[2].ends_with("m-1970-01-11T00-00-00.000.log"), "{old:?}");
        for file in [&old[..], &[path.clone(), dir.path().join("m-other.log")]].concat() {
            std::fs::write(file, "lines\n").unwrap();
        }
        let rotation = Rotation { maxbackups: 3, maxage: 5, compress: true, ..Rotation::default() };
        mill(&path, Rotation { maxage: 0, compress: false, ..rotation }, at(12)).unwrap();
        assert!(!old[0].exists() && old[1].exists(), "three are kept");
        mill(&path, rotation, at(12)).unwrap();
        let expected = [
            "m-1970-01-11T00-00-00.000.log.gz",
            "m-1970-01-12T00-00-00.000.log.gz",
            "m-other.log",
            "m.log",
        ];
        assert_eq!(names(dir.path()), expected);
        let packed = File::open(dir.path().join(expected[0])).unwrap();
        let mut text = String::new();
        io::Read::read_to_string(&mut flate2::read::GzDecoder::new(packed), &mut text).unwrap();
        assert_eq!(text, "lines\n");
        mill(&path, rotation, at(12)).unwrap();
        assert_eq!(names(dir.path()), expected, "nothing is left to do");
    }
}
