//! systemd's journal as an output, by its native protocol: one datagram of fields a line.
//!
//! Used by the log's thread. What does not fit into a datagram is cut: a line that long says enough
//! in its beginning.

use std::io;
use std::os::unix::net::UnixDatagram;

use super::Format;

const SOCKET: &str = "/run/systemd/journal/socket";
/// Bytes of a line that are sent; datagrams of some hundred KiB get through everywhere.
const LINE_BYTES: usize = 64 << 10;

/// An open way to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// # Errors
    /// There is no journal.
    pub(super) fn open() -> io::Result<Self> {
        Self::at(SOCKET)
    }

    fn at(path: &str) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        // The journal may be slow; lines are dropped and counted then as for any output.
        Ok(Self { socket })
    }

    /// # Errors
    /// The journal took nothing.
    pub(super) fn line(&self, line: &str, format: Format) -> io::Result<()> {
        let mut end = line.trim_end().len().min(LINE_BYTES);
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        let text = &line[..end];
        let priority = priority(text, format);
        let fields = format!("PRIORITY={priority}\nSYSLOG_IDENTIFIER=etcore\nMESSAGE={text}\n");
        self.socket.send(fields.as_bytes()).map(drop)
    }
}

/// syslog's number of a line's level.
fn priority(line: &str, format: Format) -> u8 {
    let level = match format {
        Format::Json => line.strip_prefix("{\"level\":\"").and_then(|rest| rest.split('"').next()),
        Format::Console => line.split('\t').nth(1),
    };
    match level {
        Some("error") => 3,
        Some("warn") => 4,
        Some("debug") => 7,
        _ => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_datagram_with_its_priority() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let listener = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(path.to_str().unwrap()).unwrap();
        journal.line("{\"level\":\"warn\",\"msg\":\"x\"}\n", Format::Json).unwrap();
        journal.line("ts\terror\tcaller\tmsg\n", Format::Console).unwrap();
        let long = format!("{{\"level\":\"info\",\"msg\":\"{}\"}}\n", "ä".repeat(LINE_BYTES));
        journal.line(&long, Format::Json).unwrap();
        let mut buf = vec![0; 2 * LINE_BYTES];
        let mut heard = || {
            let len = listener.recv(&mut buf).unwrap();
            String::from_utf8(buf[..len].to_vec()).unwrap()
        };
        let expected = "PRIORITY=4\nSYSLOG_IDENTIFIER=etcore\n\
                        MESSAGE={\"level\":\"warn\",\"msg\":\"x\"}\n";
        assert_eq!(heard(), expected);
        assert!(heard().starts_with("PRIORITY=3\n"));
        assert!(heard().len() < LINE_BYTES + 100);
        assert!(Journal::at("/no/such/journal").is_err());
    }
}
