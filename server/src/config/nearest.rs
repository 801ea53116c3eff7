//! The known name that is most like a mistyped one.
//!
//! Used by the command line for its refusals; never to guess what was meant.

/// The name with the fewest letters to change, put in, left out or swapped, if these are few
/// enough to look like a slip.
pub(super) fn nearest<'a>(
    typed: &str,
    names: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    /// Longer ones are no slips of a finger, and cost the square of their length.
    const LONGEST: usize = 80;
    if typed.len() > LONGEST {
        return None;
    }
    let typed = typed.to_ascii_lowercase().replace('_', "-");
    let most = typed.len() / 4 + 1;
    let scored = names.into_iter().map(|name| (distance(typed.as_bytes(), name.as_bytes()), name));
    scored.filter(|(distance, _)| *distance <= most).min().map(|(_, name)| name)
}

/// Edits between two names: optimal string alignment.
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut before_last = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            row[j] = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before_last[j - 2] + 1);
            }
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_told_from_another_word() {
        let names = ["name", "data-dir", "wal-dir", "max-wals", "listen-client-urls"];
        let cases = [
            ("nmae", Some("name")),
            ("data_dir", Some("data-dir")),
            ("datadir", Some("data-dir")),
            ("listen-clients-url", Some("listen-client-urls")),
            ("max-walls", Some("max-wals")),
            ("start", None),
            ("", None),
        ];
        for (typed, expected) in cases {
            assert_eq!(nearest(typed, names), expected, "{typed}");
        }
        assert_eq!(distance(b"abcd", b"acbd"), 1);
        assert_eq!(nearest(&"x".repeat(10_000), names), None);
    }
}
