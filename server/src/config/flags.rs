//! The command line and the environment, by the rules of etcd and of Go's flag package: `-flag`
//! and `--flag` are the same, booleans may stand alone, a flag given twice counts the second time,
//! `ETCD_NAME` sets `--name`, and a setting given both ways is an error. With a configuration file
//! nothing else counts.
//!
//! Called by `main`, and by tests and the simulator to make a configuration. Settings that are
//! known and not served are refused here, however they came.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::nearest::nearest;
use super::old::{self, OLD, Old};
use super::table::{self, Flag, Status};
use super::value::{Kind, Value};
use super::{Config, check, file, help};
use crate::cluster::version;

/// What the command line asks for.
#[derive(Debug)]
pub enum Asked {
    /// Run a member.
    Run(Box<Config>, Notes),
    /// Print this and exit with status 0.
    Print(String),
}

/// Notes about the settings, to be logged.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// The configuration file that all settings are from.
    pub file: Option<String>,
    /// This machine's address, if others are told it since nothing else was said.
    pub default_host: Option<String>,
    /// Variables of the environment that were used.
    pub used: Vec<String>,
    /// Variables of the environment that nobody knows.
    pub unknown: Vec<String>,
    /// Keys of the configuration file that nobody knows.
    pub unknown_keys: Vec<String>,
    /// Warnings.
    pub warnings: Vec<String>,
}

/// Why the process cannot start.
#[derive(Debug)]
pub struct Refused {
    /// 2 for bad flags, 1 for bad values and variables.
    pub status: u8,
    /// What to print on standard error.
    pub message: String,
}

/// Where a value came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The command line.
    Line,
    /// A variable of the environment.
    Environment,
    /// The configuration file.
    File,
}

impl Source {
    /// The exit status of a value from there that cannot be taken.
    fn status(self) -> u8 {
        if self == Self::Line { 2 } else { 1 }
    }
}

/// The settings that were given. All others have their defaults.
#[derive(Debug, Default)]
pub(super) struct Values {
    given: BTreeMap<&'static str, (Value, Source)>,
    /// Old settings that were given.
    given_old: BTreeSet<&'static str>,
    /// What these say in today's words, until all is read.
    translated: Vec<(&'static Flag, Value, Source)>,
}

/// Variables that etcd looks at apart from its flags, or takes out of the environment.
const SPECIAL: [&str; 2] = ["ETCD_UNSUPPORTED_ARCH", "ETCD_VERSION"];

/// The setting that names the configuration file.
const FILE: &str = "config-file";

/// Parses `args` (without the program name) and the environment; there is no configuration file.
///
/// # Errors
/// [`Refused`] with the exit status and one message.
pub fn parse(
    args: impl IntoIterator<Item = String>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Asked, Refused> {
    let open = |path: &str| Err(format!("open {path}: there are no files here"));
    parse_with_file(args, env, open, || None)
}

/// Parses `args` (without the program name) and the environment, or the configuration file that
/// they name, whose text `open` brings. `default_host` is asked for this machine's address if
/// others are to be told one.
///
/// # Errors
/// [`Refused`] with the exit status and one message.
pub fn parse_with_file(
    args: impl IntoIterator<Item = String>,
    env: impl IntoIterator<Item = (String, String)>,
    open: impl FnOnce(&str) -> Result<String, String>,
    default_host: impl FnOnce() -> Option<String>,
) -> Result<Asked, Refused> {
    let (mut values, mut notes) = (Values::default(), Notes::default());
    if values.read_line(args.into_iter(), &mut notes)? == Line::Help {
        return Ok(Asked::Print(help::text()));
    }
    if values.bool("version") {
        return Ok(Asked::Print(version::long()));
    }
    let variables: BTreeMap<String, String> =
        env.into_iter().filter(|(variable, _)| variable.starts_with("ETCD_")).collect();
    // Looked at apart: it says whether the others count at all.
    let path = match values.text(FILE) {
        path if path.is_empty() => variables.get(&variable_of(FILE)).cloned().unwrap_or_default(),
        path => path,
    };
    let refused = |message: String| Refused { status: 1, message };
    if path.is_empty() {
        values.read_environment(&variables, &mut notes)?;
        values.settle_old();
    } else {
        (values, notes) = (Values::default(), Notes::default());
        let text = open(&path).map_err(refused)?;
        let remarks = file::read(&text, &mut values).map_err(|why| {
            refused(format!("configuration file {path}: {why}{}", file::hint(&text)))
        })?;
        (notes.warnings, notes.unknown_keys) = (remarks.warnings, remarks.unknown);
        notes.file = Some(path);
    }
    values.refuse_unserved()?;
    notes.warnings.extend(values.warnings());
    notes.default_host = values.tell_default_host(default_host);
    let config = check::check(&values).map_err(refused)?;
    Ok(Asked::Run(Box::new(config), notes))
}

/// What the command line was.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Settings,
    Help,
}

impl Values {
    fn read_line(
        &mut self,
        mut args: impl Iterator<Item = String>,
        notes: &mut Notes,
    ) -> Result<Line, Refused> {
        let bad = |message: String| Refused { status: 2, message };
        while let Some(arg) = args.next() {
            let rest = match arg.strip_prefix('-') {
                Some("-") => return no_more(args.next()),
                Some("") | None => return no_more(Some(arg)),
                Some(rest) => rest.strip_prefix('-').unwrap_or(rest),
            };
            let (name, inline) = match rest.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (rest, None),
            };
            if name.is_empty() || name.starts_with('-') {
                return Err(bad(format!("bad flag syntax: {arg}")));
            }
            let Some(known) = Known::find(name) else {
                if name == "help" || name == "h" {
                    return Ok(Line::Help);
                }
                return Err(bad(undefined(name)));
            };
            let text = match inline {
                Some(text) => text.to_owned(),
                None if known.may_stand_alone() => "true".to_owned(),
                None => {
                    args.next().ok_or_else(|| bad(format!("flag needs an argument: -{name}")))?
                }
            };
            let kind = known.kind();
            let value = kind.parse(&text).map_err(|why| {
                bad(match kind {
                    Kind::Bool => format!("invalid boolean value {text:?} for -{name}: {why}"),
                    _ => format!("invalid value {text:?} for flag -{name}: {why}"),
                })
            })?;
            self.take(known, value, Source::Line, notes)?;
        }
        Ok(Line::Settings)
    }

    /// Takes a value of a setting, be it of today or old.
    fn take(
        &mut self,
        known: Known,
        value: Value,
        source: Source,
        notes: &mut Notes,
    ) -> Result<(), Refused> {
        match known {
            Known::Flag(flag) => self.set(flag, value, source),
            Known::Old(old) => {
                let warning = self
                    .add_old(old, value, source)
                    .map_err(|message| Refused { status: source.status(), message })?;
                notes.warnings.push(warning);
            }
        }
        Ok(())
    }

    /// Takes a value of an old setting, and says what to warn of.
    ///
    /// # Errors
    /// Why it cannot be done any more.
    pub(super) fn add_old(
        &mut self,
        old: &'static Old,
        value: Value,
        source: Source,
    ) -> Result<String, String> {
        let called = match source {
            Source::Line => format!("--{}", old.name),
            Source::Environment => variable_of(old.name),
            Source::File => old.name.to_owned(),
        };
        let translated = old.translate(value).map_err(|why| format!("{called}: {why}"))?;
        self.given_old.insert(old.name);
        let settings = translated.settings.into_iter();
        self.translated.extend(settings.map(|(flag, value)| (flag, value, source)));
        Ok(format!("{called}: {}", translated.warning))
    }

    /// Old settings say what no setting of today has said; of two that say the same the last one
    /// counts.
    pub(super) fn settle_old(&mut self) {
        for (flag, value, source) in std::mem::take(&mut self.translated).into_iter().rev() {
            match (self.given.get_mut(flag.name), value) {
                (None, value) => {
                    self.given.insert(flag.name, (value, source));
                }
                (Some((Value::Text(given), _)), Value::Text(gates)) if flag.kind == Kind::Gates => {
                    given.insert_str(0, &format!("{gates},"));
                }
                (Some(_), _) => {}
            }
        }
    }

    /// The last word counts, except for feature gates, which each change one thing.
    pub(super) fn set(&mut self, flag: &'static Flag, mut value: Value, source: Source) {
        if flag.kind == Kind::Gates
            && let Some((Value::Text(before), _)) = self.given.get(flag.name)
            && let Value::Text(text) = &mut value
        {
            text.insert_str(0, &format!("{before},"));
        }
        self.given.insert(flag.name, (value, source));
    }

    fn read_environment(
        &mut self,
        variables: &BTreeMap<String, String>,
        notes: &mut Notes,
    ) -> Result<(), Refused> {
        let bad = |message: String| Refused { status: 1, message };
        let mut wrong = None;
        for (variable, text) in variables {
            if SPECIAL.contains(&variable.as_str()) {
                if variable == "ETCD_VERSION" && !text.is_empty() {
                    let warning = "cannot set special environment variable ETCD_VERSION";
                    notes.warnings.push(warning.to_owned());
                }
                continue;
            }
            let Some(known) = Known::of_variable(variable) else {
                notes.unknown.push(variable.clone());
                continue;
            };
            if self.has(known) {
                return Err(bad(format!(
                    "conflicting environment variable {variable:?} is shadowed by corresponding \
                     command-line flag (either unset environment variable or disable flag)"
                )));
            }
            if text.is_empty() {
                continue;
            }
            notes.used.push(variable.clone());
            match known.kind().parse(text) {
                Ok(value) => self.take(known, value, Source::Environment, notes)?,
                Err(why) => {
                    wrong = Some(format!("invalid value {text:?} for {variable}: {why}"));
                }
            }
        }
        wrong.map_or(Ok(()), |message| Err(bad(message)))
    }

    /// Who listens on all addresses and has not said which one others are told, tells them the one
    /// of the default route (etcd: `UpdateDefaultClusterFromName`). Returns it if so.
    fn tell_default_host(&mut self, host: impl FnOnce() -> Option<String>) -> Option<String> {
        // On the command line clients must be told something.
        let clients = self.is_given("advertise-client-urls") || self.are_of_file();
        let pairs = [
            ("listen-peer-urls", "initial-advertise-peer-urls", true),
            ("listen-client-urls", "advertise-client-urls", clients),
        ];
        let mut wanted = Vec::new();
        for (listen, told, _) in pairs.into_iter().filter(|(_, _, counts)| *counts) {
            let flag = table::find(told)?;
            let listen = self.urls(listen).into_iter().next().unwrap_or_default();
            let port =
                listen.strip_prefix("http://0.0.0.0:").map(|port| port.trim_end_matches('/'));
            if let Some(port) = port.filter(|_| self.urls(told) == [flag.default]) {
                wanted.push((flag, port.to_owned()));
            }
        }
        if wanted.is_empty() {
            return None;
        }
        let host = host()?;
        for (flag, port) in wanted {
            let url = format!("http://{host}:{port}");
            let source = if self.are_of_file() { Source::File } else { Source::Line };
            self.set(flag, Value::Urls(vec![url]), source);
        }
        Some(host)
    }

    fn has(&self, known: Known) -> bool {
        match known {
            Known::Flag(flag) => self.given.contains_key(flag.name),
            Known::Old(old) => self.given_old.contains(old.name),
        }
    }

    /// Warnings about the settings that were given.
    fn warnings(&self) -> Vec<String> {
        let told = |(name, (value, source)): (&&str, &(Value, Source))| {
            let flag = table::find(name)?;
            match &flag.status {
                Status::Deprecated(warning) => Some((*warning).to_owned()),
                _ => {
                    flag.remark(value).map(|why| format!("{}: {why}", file::called(flag, *source)))
                }
            }
        };
        self.given.iter().filter_map(told).collect()
    }

    /// A setting that is known and not served must not be taken for one that is.
    fn refuse_unserved(&self) -> Result<(), Refused> {
        for (name, (value, source)) in &self.given {
            let Some(flag) = table::find(name) else { continue };
            let Some(why) = flag.refusal(value) else { continue };
            // Values may be secrets.
            let given = file::called(flag, *source);
            let status = source.status();
            let mut message = format!("{given}: {why}; leave it out");
            let accepted = flag.accepted();
            if !accepted.is_empty() {
                message += &format!(", or set it to {}", accepted.join(" or "));
            }
            return Err(Refused { status, message });
        }
        Ok(())
    }

    /// True if the settings are from a configuration file.
    pub(super) fn are_of_file(&self) -> bool {
        self.given.values().any(|(_, source)| *source == Source::File)
    }

    /// True if the setting was given, be it with its default.
    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// # Panics
    /// For a name or default that the table does not have; every start asks for all of them.
    fn get(&self, name: &str) -> Value {
        match self.given.get(name) {
            Some((Value::Urls(urls), _)) if urls.is_empty() => {}
            Some((value, _)) => return value.clone(),
            None => {}
        }
        let flag = table::find(name).expect("a name of the table");
        flag.kind.parse(flag.default).expect("defaults are written as values are")
    }

    /// The value of a [`Kind::Bool`].
    pub(super) fn bool(&self, name: &str) -> bool {
        matches!(self.get(name), Value::Bool(true))
    }

    /// The value of a [`Kind::Uint`].
    pub(super) fn uint(&self, name: &str) -> u64 {
        if let Value::Uint(number) = self.get(name) { number } else { 0 }
    }

    /// The value of a [`Kind::Int`].
    pub(super) fn int(&self, name: &str) -> i64 {
        if let Value::Int(number) = self.get(name) { number } else { 0 }
    }

    /// The value of a [`Kind::Duration`].
    ///
    /// # Errors
    /// A sentence for a negative one.
    pub(super) fn duration(&self, name: &str) -> Result<Duration, String> {
        let Value::Duration(ns) = self.get(name) else { return Ok(Duration::ZERO) };
        let ns = u64::try_from(ns).map_err(|_| format!("--{name} must not be negative"))?;
        Ok(Duration::from_nanos(ns))
    }

    /// The value of a [`Kind::Duration`], whatever its sign.
    pub(super) fn nanoseconds(&self, name: &str) -> i64 {
        if let Value::Duration(ns) = self.get(name) { ns } else { 0 }
    }

    /// The value of a [`Kind::Text`] or of a choice.
    pub(super) fn text(&self, name: &str) -> String {
        if let Value::Text(text) = self.get(name) { text } else { String::new() }
    }

    /// The value of a [`Kind::Urls`].
    pub(super) fn urls(&self, name: &str) -> Vec<String> {
        if let Value::Urls(urls) = self.get(name) { urls } else { Vec::new() }
    }
}

/// etcd takes nothing after its flags but the names of its proxies.
fn no_more(arg: Option<String>) -> Result<Line, Refused> {
    let message = match arg.as_deref() {
        None => return Ok(Line::Settings),
        Some(proxy @ ("gateway" | "grpc-proxy")) => format!("etcore has no {proxy} yet"),
        Some(other) => format!("{other:?} is not a valid flag"),
    };
    Err(Refused { status: 1, message })
}

/// The name of the variable of a setting.
pub(super) fn variable_of(name: &str) -> String {
    format!("ETCD_{}", name.to_ascii_uppercase().replace(['-', '.'], "_"))
}

/// A name that no setting has, and the one that is most like it.
fn undefined(name: &str) -> String {
    let names = table::all().map(|flag| flag.name).chain(OLD.iter().map(|old| old.name));
    let mut message = format!("flag provided but not defined: -{name}");
    if let Some(nearest) = nearest(name, names) {
        message += &format!("; did you mean --{nearest}?");
    }
    message
}

/// A setting that has a name.
#[derive(Clone, Copy)]
enum Known {
    /// One of today.
    Flag(&'static Flag),
    /// One of an older etcd.
    Old(&'static Old),
}

impl Known {
    fn find(name: &str) -> Option<Self> {
        table::find(name).map(Self::Flag).or_else(|| old::find(name).map(Self::Old))
    }

    /// The setting that a variable sets.
    fn of_variable(variable: &str) -> Option<Self> {
        let is = |name: &str| variable_of(name) == variable;
        let flag = table::all().find(|flag| is(flag.name)).map(Self::Flag);
        flag.or_else(|| OLD.iter().find(|old| is(old.name)).map(Self::Old))
    }

    fn kind(self) -> Kind {
        match self {
            Self::Flag(flag) => flag.kind,
            Self::Old(old) => old.kind(),
        }
    }

    fn may_stand_alone(self) -> bool {
        match self {
            Self::Flag(flag) => flag.kind == Kind::Bool,
            Self::Old(old) => old.may_stand_alone(),
        }
    }
}

#[cfg(test)]
mod tests;
