//! What a summary says of the machine, the day and the programs.
//!
//! Called once, at the end. Must never fail: what is not known is said to be unknown.

use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use etcore_proto::civil;

use super::args::Side;

/// The machine's name without its domain.
pub(super) fn name() -> String {
    let uname = rustix::system::uname();
    let node = uname.nodename().to_string_lossy();
    node.split('.').next().unwrap_or("unknown").to_owned()
}

/// Name, cores, processor, kernel and the scratch folder's file system.
pub(super) fn line(scratch: &Path) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let filesystem = filesystem(scratch);
    format!("{}, {cores} cores, {model}, Linux {kernel}, scratch on {filesystem}", name())
}

/// The type of the file system that holds this folder.
pub(super) fn filesystem(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    filesystem_in(&mounts, &folder).unwrap_or("unknown").to_owned()
}

/// The type of the innermost mount, and the last one there: later mounts hide earlier ones.
fn filesystem_in<'a>(mounts: &'a str, folder: &Path) -> Option<&'a str> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let around = mounts.filter(|(point, _)| folder.starts_with(point));
    around.max_by_key(|(point, _)| point.len()).map(|(_, kind)| kind)
}

/// What a server calls itself, and where it is.
pub(super) fn version(side: &Side) -> String {
    let said = first_line(Command::new(&side.path).arg("--version"));
    format!("{}: {said} ({})", side.name, side.path.display())
}

/// The commit that is checked out here.
pub(super) fn checkout() -> String {
    format!("commit {}", first_line(Command::new("git").args(["describe", "--always", "--dirty"])))
}

fn first_line(command: &mut Command) -> String {
    let output = command.output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.as_deref().and_then(|text| text.lines().next()).unwrap_or("unknown").to_owned()
}

/// Today in UTC.
pub(super) fn date() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (year, month, day) = civil::date_of(since.as_secs() / 86_400);
    format!("{year}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_holds_a_folder() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n/dev/b /tmp/disk xfs rw 0 0\n";
        let kind = |folder: &str| filesystem_in(mounts, Path::new(folder));
        assert_eq!(kind("/home/x"), Some("ext4"));
        assert_eq!(kind("/tmp/x"), Some("tmpfs"));
        assert_eq!(kind("/tmp/disk/x"), Some("xfs"));
        assert_eq!(kind("/tmpx"), Some("ext4"));
    }
}
