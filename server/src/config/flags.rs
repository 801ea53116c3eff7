//! The command line and the environment, by the rules of etcd and of Go's flag package: `-flag`
//! and `--flag` are the same, booleans may stand alone, a flag given twice counts the second time,
//! `ETCD_NAME` sets `--name`, and a setting given both ways is an error.
//!
//! Called by `main`, and by tests and the simulator to make a configuration. Settings that are
//! known and not served are refused here, however they came.

use std::collections::BTreeMap;
use std::time::Duration;

use super::table::{self, Flag, GROUPS, Status};
use super::value::{Kind, Value};
use super::{Config, check, help};
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
    /// Variables of the environment that nobody knows.
    pub unknown: Vec<String>,
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
enum Source {
    Line,
    Environment,
}

/// The settings that were given. All others have their defaults.
#[derive(Debug, Default)]
pub(super) struct Values {
    given: BTreeMap<&'static str, (Value, Source)>,
}

/// Variables that etcd looks at apart from its flags, or takes out of the environment.
const SPECIAL: [&str; 2] = ["ETCD_UNSUPPORTED_ARCH", "ETCD_VERSION"];

/// Parses `args` (without the program name) and the environment.
///
/// # Errors
/// [`Refused`] with the exit status and one message.
pub fn parse(
    args: impl IntoIterator<Item = String>,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<Asked, Refused> {
    let mut values = Values::default();
    if values.read_line(args.into_iter())? == Line::Help {
        return Ok(Asked::Print(help::text()));
    }
    if values.bool("version") {
        return Ok(Asked::Print(version::long()));
    }
    let mut notes = values.read_environment(env)?;
    values.refuse_unserved()?;
    for name in values.given.keys() {
        if let Some(Status::Deprecated(warning)) = table::find(name).map(|flag| &flag.status) {
            notes.warnings.push((*warning).to_owned());
        }
    }
    let config = check::check(&values).map_err(|message| Refused { status: 1, message })?;
    Ok(Asked::Run(Box::new(config), notes))
}

/// What the command line was.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Settings,
    Help,
}

impl Values {
    fn read_line(&mut self, mut args: impl Iterator<Item = String>) -> Result<Line, Refused> {
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
            let Some(flag) = table::find(name) else {
                if name == "help" || name == "h" {
                    return Ok(Line::Help);
                }
                return Err(bad(format!("flag provided but not defined: -{name}")));
            };
            let text = match (inline, flag.kind) {
                (Some(text), _) => text.to_owned(),
                (None, Kind::Bool) => "true".to_owned(),
                (None, _) => {
                    args.next().ok_or_else(|| bad(format!("flag needs an argument: -{name}")))?
                }
            };
            let value = flag.kind.parse(&text).map_err(|why| {
                bad(match flag.kind {
                    Kind::Bool => format!("invalid boolean value {text:?} for -{name}: {why}"),
                    _ => format!("invalid value {text:?} for flag -{name}: {why}"),
                })
            })?;
            self.set(flag, value, Source::Line);
        }
        Ok(Line::Settings)
    }

    /// The last word counts, except for feature gates, which each change one thing.
    fn set(&mut self, flag: &Flag, mut value: Value, source: Source) {
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
        env: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Notes, Refused> {
        let bad = |message: String| Refused { status: 1, message };
        let ours = env.into_iter().filter(|(variable, _)| variable.starts_with("ETCD_"));
        let variables: BTreeMap<String, String> = ours.collect();
        let mut notes = Notes::default();
        let mut wrong = None;
        for (variable, text) in &variables {
            if SPECIAL.contains(&variable.as_str()) {
                if variable == "ETCD_VERSION" && !text.is_empty() {
                    let warning = "cannot set special environment variable ETCD_VERSION";
                    notes.warnings.push(warning.to_owned());
                }
                continue;
            }
            let Some(flag) = of_variable(variable) else {
                notes.unknown.push(variable.clone());
                continue;
            };
            if self.given.contains_key(flag.name) {
                return Err(bad(format!(
                    "conflicting environment variable {variable:?} is shadowed by corresponding \
                     command-line flag (either unset environment variable or disable flag)"
                )));
            }
            if text.is_empty() {
                continue;
            }
            match flag.kind.parse(text) {
                Ok(value) => self.set(flag, value, Source::Environment),
                Err(why) => {
                    wrong = Some(format!("invalid value {text:?} for {variable}: {why}"));
                }
            }
        }
        wrong.map_or(Ok(notes), |message| Err(bad(message)))
    }

    /// A setting that is known and not served must not be taken for one that is.
    fn refuse_unserved(&self) -> Result<(), Refused> {
        for (name, (value, source)) in &self.given {
            let Some(flag) = table::find(name) else { continue };
            let Some(why) = flag.refusal(value) else { continue };
            // Values may be secrets.
            let (given, status) = match source {
                Source::Line => (format!("--{name}"), 2),
                Source::Environment => (variable_of(name), 1),
            };
            let mut message = format!("{given}: {why}; leave it out");
            let accepted = flag.accepted();
            if !accepted.is_empty() {
                message += &format!(", or set it to {}", accepted.join(" or "));
            }
            return Err(Refused { status, message });
        }
        Ok(())
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

fn variable_of(name: &str) -> String {
    format!("ETCD_{}", name.to_ascii_uppercase().replace('-', "_"))
}

/// The flag that a variable sets.
fn of_variable(variable: &str) -> Option<&'static Flag> {
    let mut flags = GROUPS.iter().flat_map(|(_, flags)| *flags);
    flags.find(|flag| variable_of(flag.name) == variable)
}

#[cfg(test)]
mod tests;
