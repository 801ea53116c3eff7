//! What `--help` prints: usage, and the table of settings in the form of etcd's.

use super::table::{Flag, GROUPS, Status};
use super::value::Kind;

const USAGE: &str = "\
Usage:

  etcore [flags]
    Start a member. Flags are etcd's; each may also be set by an environment variable, --name by
    ETCD_NAME and so on.

  etcore --config-file FILE
    Take all settings from this file, YAML or JSON; flags and variables are ignored.

  etcore --version
    Print the version.

  etcore -h | --help
    Print this.
";

/// The whole text.
pub(super) fn text() -> String {
    let mut text = USAGE.to_owned();
    for (heading, flags) in GROUPS {
        text += &format!("\n{heading}:\n");
        for flag in *flags {
            text += &line(flag);
        }
    }
    text
}

fn line(flag: &Flag) -> String {
    let default = match flag.kind {
        Kind::Uint(_) | Kind::Int => flag.default.to_owned(),
        _ => format!("'{}'", flag.default),
    };
    let accepted = match &flag.status {
        Status::Served | Status::Any | Status::Deprecated(_) | Status::Moot(..) => String::new(),
        Status::Only(_, why) => match flag.accepted() {
            values if values.is_empty() => format!(" ({why}.)"),
            values => format!(" ({why}: only {}.)", values.join(" or ")),
        },
    };
    format!("  --{} {default}\n    {}{accepted}\n", flag.name, flag.help)
}
