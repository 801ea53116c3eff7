//! Flags as data, and a parser that behaves like the one of etcd's tools.
//!
//! Used by `options`. `--name=value`, `--name value`, switches without a value, flags before and
//! after the command, `--` before positional arguments. Must never guess: what it does not know is
//! an error.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// One flag.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    /// The word for its value in the help, or none if it is a switch.
    pub(crate) value: Option<&'static str>,
    pub(crate) help: &'static str,
}

/// One command.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// Its positional arguments, for the help.
    pub(crate) arguments: &'static str,
    pub(crate) help: &'static str,
    pub(crate) flags: &'static [Flag],
}

/// Why a command line makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FlagError {
    #[error("no command: try `benchmark --help`")]
    NoCommand,
    #[error("unknown command {0:?}: try `benchmark --help`")]
    UnknownCommand(String),
    #[error("unknown flag: {0}")]
    UnknownFlag(String),
    #[error("flag needs an argument: --{0}")]
    NoValue(&'static str),
    #[error("invalid argument {value:?} for \"--{flag}\" flag: {reason}")]
    Invalid { flag: &'static str, value: String, reason: String },
    #[error("{0}")]
    Contradiction(String),
}

/// What a command line says.
#[derive(Debug)]
pub(crate) struct Parsed {
    /// The command, if one is named.
    pub(crate) command: Option<&'static Command>,
    /// Positional arguments after it.
    pub(crate) arguments: Vec<String>,
    /// Help is asked for.
    pub(crate) help: bool,
    values: BTreeMap<&'static str, Vec<String>>,
}

impl Parsed {
    /// All values of a flag, in their order.
    pub(crate) fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map_or(&[], Vec::as_slice)
    }

    /// The last value of a flag.
    pub(crate) fn last(&self, name: &str) -> Option<&str> {
        self.all(name).last().map(String::as_str)
    }

    /// Whether a switch is on.
    pub(crate) fn switch(&self, name: &'static str) -> Result<bool, FlagError> {
        match self.last(name) {
            None | Some("false" | "f" | "F" | "FALSE" | "False" | "0") => Ok(false),
            Some("true" | "t" | "T" | "TRUE" | "True" | "1") => Ok(true),
            Some(value) => Err(invalid(name, value, "expected true or false")),
        }
    }

    /// A whole number between `min` and `max`.
    pub(crate) fn integer(
        &self,
        name: &'static str,
        default: u64,
        min: u64,
        max: u64,
    ) -> Result<u64, FlagError> {
        let Some(text) = self.last(name) else { return Ok(default) };
        match text.parse() {
            Ok(value) if (min..=max).contains(&value) => Ok(value),
            _ => Err(invalid(name, text, &format!("expected a number from {min} to {max}"))),
        }
    }
}

pub(crate) fn invalid(flag: &'static str, value: &str, reason: &str) -> FlagError {
    FlagError::Invalid { flag, value: value.to_owned(), reason: reason.to_owned() }
}

/// Sorts a command line into flags and positional arguments.
pub(crate) fn parse(
    arguments: &[String],
    globals: &'static [Flag],
    commands: &'static [Command],
) -> Result<Parsed, FlagError> {
    let mut parsed =
        Parsed { command: None, arguments: Vec::new(), help: false, values: BTreeMap::new() };
    let mut left = arguments.iter();
    let mut only_positional = false;
    while let Some(argument) = left.next() {
        match argument.strip_prefix("--") {
            Some("") if !only_positional => only_positional = true,
            Some(flag) if !only_positional => {
                let (name, value) = match flag.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (flag, None),
                };
                if name == "help" {
                    parsed.help = true;
                    continue;
                }
                let own = parsed.command.map_or(&[][..], |command| command.flags);
                let known = globals.iter().chain(own).find(|known| known.name == name);
                let Some(known) = known else {
                    return Err(FlagError::UnknownFlag(format!("--{name}")));
                };
                let value = match (value, known.value) {
                    (Some(value), _) => value,
                    (None, None) => "true".to_owned(),
                    (None, Some(_)) => {
                        left.next().cloned().ok_or(FlagError::NoValue(known.name))?
                    }
                };
                parsed.values.entry(known.name).or_default().push(value);
            }
            _ if only_positional || !argument.starts_with('-') || argument == "-" => {
                if parsed.command.is_some() {
                    parsed.arguments.push(argument.clone());
                    continue;
                }
                let found = commands.iter().find(|command| command.name == argument);
                parsed.command =
                    Some(found.ok_or_else(|| FlagError::UnknownCommand(argument.clone()))?);
            }
            _ if argument == "-h" => parsed.help = true,
            _ => return Err(FlagError::UnknownFlag(argument.clone())),
        }
    }
    Ok(parsed)
}

/// The help of the whole tool or of one command.
pub(crate) fn help(globals: &[Flag], commands: &[Command], command: Option<&Command>) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = match command {
        Some(command) => write!(
            text,
            "{}\n\nUsage:\n  benchmark {}{}{} [flags]\n\nFlags:\n{}",
            command.help,
            command.name,
            if command.arguments.is_empty() { "" } else { " " },
            command.arguments,
            table(command.flags),
        ),
        None => {
            text.push_str("Load for etcd's API, and what it cost the server.\n\n");
            text.push_str("Usage:\n  benchmark [flags] command\n\nCommands:\n");
            let rows = commands.iter().map(|command| (command.name.to_owned(), command.help));
            text.push_str(&columns(rows));
            Ok(())
        }
    };
    let _ = write!(text, "\nGlobal flags:\n{}", table(globals));
    text
}

fn table(flags: &[Flag]) -> String {
    columns(flags.iter().map(|flag| {
        let value = flag.value.map(|value| format!(" {value}")).unwrap_or_default();
        (format!("--{}{value}", flag.name), flag.help)
    }))
}

fn columns<'a>(rows: impl Iterator<Item = (String, &'a str)>) -> String {
    let rows: Vec<(String, &str)> = rows.collect();
    let width = rows.iter().map(|(left, _)| left.len()).max().unwrap_or(0);
    rows.iter().map(|(left, right)| format!("  {left:width$}   {right}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBALS: &[Flag] = &[
        Flag { name: "list", value: Some("strings"), help: "many" },
        Flag { name: "loud", value: None, help: "a switch" },
    ];
    const COMMANDS: &[Command] = &[Command {
        name: "go",
        arguments: "where",
        help: "Goes.",
        flags: &[Flag { name: "steps", value: Some("int"), help: "how many" }],
    }];

    fn parsed(line: &str) -> Result<Parsed, FlagError> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        parse(&words, GLOBALS, COMMANDS)
    }

    #[test]
    fn flags_stand_before_and_after_the_command_in_both_forms() {
        let parsed = parsed("--list=a --loud go there --steps 7 --list b -- --steps").unwrap();
        assert_eq!(parsed.command.map(|command| command.name), Some("go"));
        assert_eq!(parsed.arguments, ["there", "--steps"]);
        assert_eq!(parsed.all("list"), ["a", "b"]);
        assert_eq!(parsed.switch("loud"), Ok(true));
        assert_eq!(parsed.integer("steps", 1, 0, 9), Ok(7));
    }

    #[test]
    fn what_is_unknown_or_wrong_is_an_error_that_names_it() {
        let complaint = |line: &str| parsed(line).unwrap_err().to_string();
        assert_eq!(complaint("--steps 3 go"), "unknown flag: --steps");
        assert_eq!(complaint("go -x"), "unknown flag: -x");
        assert_eq!(complaint("go --steps"), "flag needs an argument: --steps");
        assert_eq!(complaint("run"), "unknown command \"run\": try `benchmark --help`");
        let parsed = parsed("go --steps=-1 --loud=maybe").unwrap();
        let complaint = parsed.integer("steps", 1, 0, 9).unwrap_err().to_string();
        let expected =
            "invalid argument \"-1\" for \"--steps\" flag: expected a number from 0 to 9";
        assert_eq!(complaint, expected);
        assert!(parsed.switch("loud").is_err());
    }
}
