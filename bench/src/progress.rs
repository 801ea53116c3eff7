//! The progress bar on a terminal.
//!
//! Drawn by the thread that waits for the load to end. Must never write to anything but the stream
//! it was given, and only if the caller found that to be a terminal.

use std::io::Write;

const WIDTH: u64 = 40;

/// Draws the bar over its last drawing. A terminal that went away is no reason to stop.
pub(crate) fn draw(err: &mut dyn Write, done: u64, total: u64) {
    let line = line(done, total);
    let _ = write!(err, "\r{line}").and_then(|()| err.flush());
}

/// Ends the line of the bar.
pub(crate) fn finish(err: &mut dyn Write) {
    let _ = writeln!(err);
}

fn line(done: u64, total: u64) -> String {
    let total = total.max(1);
    let done = done.min(total);
    let filled = (u128::from(done) * u128::from(WIDTH) / u128::from(total)) as usize;
    let percent = u128::from(done) * 100 / u128::from(total);
    let bar = format!("{}{}", "=".repeat(filled), " ".repeat(WIDTH as usize - filled));
    format!("{done} / {total} [{bar}] {percent}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_empty_half_and_full() {
        assert!(line(0, 10).ends_with(&format!("[{}] 0%", " ".repeat(40))));
        let half = format!("[{}{}] 50%", "=".repeat(20), " ".repeat(20));
        assert!(line(5, 10).ends_with(&half));
        assert!(line(11, 10).ends_with(&format!("[{}] 100%", "=".repeat(40))));
        assert_eq!(line(0, 0).split(' ').next(), Some("0"));
    }
}
