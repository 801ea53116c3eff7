//! What a member may wait for without an end: named here, watched by the replica
//! (`replica/watchdog.rs`), shown by the health checks.

/// What the replica waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StalledWork {
    /// A durable write of the log.
    LogWrite = 0,
    /// Another operation of the log: the rename of a segment, the sync of a directory.
    LogFile = 1,
    /// A checkpoint.
    Checkpoint = 2,
}

impl StalledWork {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::LogWrite, Self::LogFile, Self::Checkpoint];

    /// As logs, metrics and health checks say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::LogWrite => "log write",
            Self::LogFile => "log file operation",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// What in this list of bits stands still.
    pub fn of_bits(bits: u8) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |work| bits & (1 << *work as u8) != 0)
    }
}
