//! Where log lines go: `--log-outputs`, and `--enable-log-rotation` for a file among them.
//!
//! What the flags say is parsed without I/O ([`Outputs::parse`]); the log's thread opens and writes
//! ([`Writer`]). A write that fails is nobody's business: there is nowhere to tell it.

use std::fs::File;
use std::io::{self, Write};

use etcore_proto::gotext::format_error;

use super::Format;
use super::journal::Journal;
use super::rotate::{Rotated, Rotation, WallClock};

/// One output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// A file, to which lines are appended.
    File(String),
    /// systemd's journal.
    Journal,
}

/// All outputs; each line goes to every one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs {
    list: Vec<Output>,
    /// How the file among them is rotated.
    rotation: Option<Rotation>,
}

impl Outputs {
    /// The outputs.
    pub fn list(&self) -> &[Output] {
        &self.list
    }

    /// Reads `--log-outputs`; `rotation` is the JSON of `--log-rotation-config-json` if files are
    /// to be rotated.
    ///
    /// # Errors
    /// etcd's texts (`embed.Config.setupLogging`, `setupLogRotation`).
    pub fn parse(text: &str, rotation: Option<&str>) -> Result<Self, String> {
        const JOURNAL: &str = "systemd/journal";
        let mut names: Vec<&str> = text.split(',').collect();
        names.sort_unstable();
        names.dedup();
        if names == [""] {
            names = vec!["default"];
        }
        if names.len() > 1 && names.contains(&"default") {
            return Err("multi logoutput for \"default\" is not supported yet".to_owned());
        }
        let rotation = match rotation {
            Some(json) => {
                let is_file = |name: &&&str| !["default", "stderr", "stdout"].contains(*name);
                let files = names.iter().filter(is_file).count();
                if files > 1 || files == 0 && names.len() == 1 {
                    return Err("--log-outputs requires a single file path when \
                                --log-rotate-config-json is defined"
                        .to_owned());
                }
                Some(Rotation::parse(json)?)
            }
            None => None,
        };
        if names.len() > 1 && names.contains(&JOURNAL) {
            return Err(format!(
                "running with systemd/journal but other '--log-outputs' values ({names:?}) are \
                 configured with 'default'; override 'default' value with something else"
            ));
        }
        // What is thrown away is nowhere else, as zap has it.
        if names.contains(&"/dev/null") {
            names = vec!["/dev/null"];
        }
        let output = |name: &str| match name {
            "default" | "stderr" => Ok(Output::Stderr),
            "stdout" => Ok(Output::Stdout),
            JOURNAL => Ok(Output::Journal),
            "" => Err("open sink \"\": open : no such file or directory".to_owned()),
            path => Ok(Output::File(path.strip_prefix("file://").unwrap_or(path).to_owned())),
        };
        let list = names.into_iter().map(output).collect::<Result<_, _>>()?;
        Ok(Self { list, rotation })
    }
}

/// Opened outputs.
pub(super) struct Writer {
    sinks: Vec<Sink>,
}

enum Sink {
    Stderr,
    Stdout,
    File(File),
    Rotated(Box<Rotated>),
    Journal(Journal),
}

impl Writer {
    /// Opens them all.
    ///
    /// # Errors
    /// One sentence about the first that cannot be opened.
    pub(super) fn open(outputs: &Outputs, clock: WallClock) -> Result<Self, String> {
        let open = |output: &Output| {
            Ok(match output {
                Output::Stderr => Sink::Stderr,
                Output::Stdout => Sink::Stdout,
                Output::Journal => Sink::Journal(
                    Journal::open().map_err(|error| format!("systemd/journal: {error}"))?,
                ),
                Output::File(path) => match outputs.rotation {
                    Some(rotation) => Rotated::open(path, rotation, clock)
                        .map(|file| Sink::Rotated(Box::new(file)))
                        .map_err(|error| could_not_open(path, &error))?,
                    None => append_to(path)
                        .map(Sink::File)
                        .map_err(|error| could_not_open(path, &error))?,
                },
            })
        };
        let sinks = outputs.list.iter().map(open).collect::<Result<_, String>>()?;
        Ok(Self { sinks })
    }

    /// Writes a line to every output.
    pub(super) fn line(&mut self, line: &str, format: Format) {
        for sink in &mut self.sinks {
            // Nothing can be done, and nobody told, when an output is gone.
            let _ = match sink {
                Sink::Stderr => io::stderr().write_all(line.as_bytes()),
                Sink::Stdout => io::stdout().write_all(line.as_bytes()),
                Sink::File(file) => file.write_all(line.as_bytes()),
                Sink::Rotated(file) => file.line(line.as_bytes()),
                Sink::Journal(journal) => journal.line(line, format),
            };
        }
    }
}

fn could_not_open(path: &str, error: &io::Error) -> String {
    format!("open sink {path:?}: open {path}: {}", format_error(error))
}

fn append_to(path: &str) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// Writes a line of a process that is about to end, past the log's thread.
pub(super) fn last_line(output: &Output, line: &str) {
    // Nothing can be done, and nobody told, when an output is gone.
    let _ = match output {
        Output::Stderr | Output::Journal => io::stderr().write_all(line.as_bytes()),
        Output::Stdout => io::stdout().write_all(line.as_bytes()),
        Output::File(path) => append_to(path).and_then(|mut file| file.write_all(line.as_bytes())),
    };
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    const USUAL: &str = "{\"maxsize\": 100, \"maxage\": 0, \"maxbackups\": 0}";

    #[test]
    fn outputs_are_what_etcd_makes_of_them() {
        let parse = |text| Outputs::parse(text, None).map(|outputs| outputs.list);
        let file = |path: &str| Output::File(path.to_owned());
        assert_eq!(parse("default"), Ok(vec![Output::Stderr]));
        assert_eq!(parse(""), Ok(vec![Output::Stderr]));
        assert_eq!(
            parse("stdout,/b.log,stderr,a.log,stdout"),
            Ok(vec![file("/b.log"), file("a.log"), Output::Stderr, Output::Stdout])
        );
        assert_eq!(parse("file:///c.log"), Ok(vec![file("/c.log")]));
        assert_eq!(parse("stderr,/dev/null"), Ok(vec![file("/dev/null")]));
        assert_eq!(parse("systemd/journal"), Ok(vec![Output::Journal]));
        let why = "multi logoutput for \"default\" is not supported yet";
        assert_eq!(parse("stderr,default"), Err(why.to_owned()));
        assert!(parse("stderr,systemd/journal").unwrap_err().starts_with("running with systemd"));
    }

    #[test]
    fn only_one_file_can_be_rotated() {
        assert!(Outputs::parse("/a.log,stdout", Some(USUAL)).unwrap().rotation.is_some());
        for outputs in ["stderr", "default", "/a.log,/b.log"] {
            let why = Outputs::parse(outputs, Some(USUAL)).unwrap_err();
            assert!(why.starts_with("--log-outputs requires a single file path"), "{why}");
        }
        let why = Outputs::parse("/a.log", Some("{")).unwrap_err();
        assert!(why.starts_with("improperly formatted log rotation config: "), "{why}");
    }

    #[test]
    fn a_line_goes_to_every_file_behind_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name).display().to_string());
        std::fs::write(&a, "before\n").unwrap();
        let outputs = Outputs::parse(&format!("{a},{b}"), None).unwrap();
        Writer::open(&outputs, SystemTime::now).unwrap().line("line\n", Format::Json);
        last_line(&Output::File(b.clone()), "last\n");
        assert_eq!(std::fs::read_to_string(&a).unwrap(), "before\nline\n");
        assert_eq!(std::fs::read_to_string(&b).unwrap(), "line\nlast\n");
        let nowhere = Outputs::parse("/no/such/directory/x", None).unwrap();
        let why = Writer::open(&nowhere, SystemTime::now).err().unwrap();
        assert!(why.starts_with("open sink \"/no/such/directory/x\": "), "{why}");
    }
}
