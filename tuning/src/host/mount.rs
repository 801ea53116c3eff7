//! Which file system and which device a directory is on.
//!
//! Called by the probe with the data directory. Found through /proc/self/mountinfo; a stacked
//! device (a partition, device mapper) is followed to the queue that schedules its requests.

use std::path::Path;

use serde::Serialize;

use super::System;

/// The mount that holds a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where it is mounted.
    pub point: String,
    /// `ext4`, `xfs` …
    pub kind: String,
    /// The mounted device or directory.
    pub source: String,
    /// Options of the mount and of the file system.
    pub options: String,
    /// The active I/O scheduler.
    pub scheduler: Option<String>,
    /// True for spinning disks.
    pub rotational: Option<bool>,
    /// `write back` if the device has a volatile cache, so that a sync costs a flush.
    pub write_cache: Option<String>,
}

/// The mount of `dir`, an absolute path.
pub fn of(system: &System, dir: &Path) -> Option<Mount> {
    let text = system.read("/proc/self/mountinfo")?;
    let lines = text.lines().filter_map(parse);
    // A later mount at the same point hides the earlier one.
    let best = lines
        .filter(|line| dir.starts_with(&line.point))
        .max_by_key(|line| Path::new(&line.point).components().count())?;
    let queue = queue(system, &best.device);
    let read = |name: &str| system.read(&format!("{}/{name}", queue.as_ref()?));
    let scheduler = read("scheduler").map(|text| active(&text).to_owned());
    Some(Mount {
        scheduler,
        rotational: read("rotational").map(|text| text == "1"),
        write_cache: read("write_cache"),
        point: best.point,
        kind: best.kind,
        source: best.source,
        options: best.options,
    })
}

struct Line {
    device: String,
    point: String,
    kind: String,
    source: String,
    options: String,
}

fn parse(line: &str) -> Option<Line> {
    let (front, back) = line.split_once(" - ")?;
    let front: Vec<&str> = front.split(' ').collect();
    let back: Vec<&str> = back.split(' ').collect();
    let super_options = back.get(2).copied().unwrap_or_default();
    Some(Line {
        device: (*front.get(2)?).to_owned(),
        point: unescape(front.get(4)?),
        options: format!("{},{super_options}", front.get(5)?),
        kind: (*back.first()?).to_owned(),
        source: unescape(back.get(1)?),
    })
}

/// The kernel writes spaces and the like as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// The queue directory of device `major:minor`: its own, or for a partition its disk's.
fn queue(system: &System, device: &str) -> Option<String> {
    let own = format!("/sys/dev/block/{device}/queue");
    if system.path(&own).is_dir() {
        return Some(own);
    }
    let disk = format!("/sys/dev/block/{device}/../queue");
    system.path(&disk).is_dir().then_some(disk)
}

/// The name in brackets, or all of it.
fn active(schedulers: &str) -> &str {
    let inner = schedulers.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inner.map_or(schedulers, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::system;

    const INFO: &str = "22 27 0:21 / /proc rw - proc proc rw\n\
        30 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw,barrier=1\n\
        31 30 253:0 / /var/lib/my\\040data rw,noatime - xfs /dev/mapper/d rw\n";

    #[test]
    fn the_longest_mount_point_wins_and_its_queue_is_found() {
        let (_root, system) = system(&[
            ("/proc/self/mountinfo", INFO),
            ("/sys/dev/block/253:0/queue/scheduler", "mq-deadline [none] bfq\n"),
            ("/sys/dev/block/253:0/queue/rotational", "0\n"),
            ("/sys/dev/block/253:0/queue/write_cache", "write back\n"),
        ]);
        let mount = of(&system, Path::new("/var/lib/my data/member")).expect("a mount");
        assert_eq!((mount.kind.as_str(), mount.source.as_str()), ("xfs", "/dev/mapper/d"));
        assert_eq!(mount.scheduler.as_deref(), Some("none"));
        assert_eq!(mount.rotational, Some(false));
        assert_eq!(mount.write_cache.as_deref(), Some("write back"));
        let root = of(&system, Path::new("/var/lib")).expect("a mount");
        assert_eq!(
            (root.kind.as_str(), root.options.as_str()),
            ("ext4", "rw,relatime,rw,barrier=1")
        );
        assert_eq!(root.scheduler, None);
    }

    #[test]
    fn the_live_system_knows_the_root() {
        let mount = of(&System::live(), Path::new("/")).expect("a mount");
        assert_eq!(mount.point, "/");
        assert!(!mount.kind.is_empty());
    }
}
