//! What happened, as one number: equal seeds must give equal traces, to the last byte.
//!
//! Written by the world for every event. On request it keeps lines that people can read; keeping
//! them must change nothing else.

use std::collections::VecDeque;
use std::fmt::Write;

/// See the module text.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    events: u64,
    /// How many lines are kept; 0 for a run that nobody reads.
    lines_max: usize,
    lines: VecDeque<String>,
}

impl Trace {
    /// A trace that keeps the last `lines_max` lines.
    pub fn new(lines_max: usize) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, events: 0, lines_max, lines: VecDeque::new() }
    }

    /// The hash of all events so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// How many there were.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The lines that were kept, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// An event: what, with numbers that tell it from others.
    pub fn event(&mut self, now_ns: u64, what: &'static str, numbers: &[u64]) {
        self.events += 1;
        self.mix(now_ns);
        self.bytes(what.as_bytes());
        for number in numbers {
            self.mix(*number);
        }
        if self.lines_max > 0 {
            let mut line = String::from(what);
            for number in numbers {
                let _ = write!(line, " {number}");
            }
            self.keep(now_ns, &line);
        }
    }

    /// Bytes that belong to the last event.
    pub fn bytes(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
        let mut word = [0; 8];
        word[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        self.mix(u64::from_le_bytes(word) ^ (bytes.len() as u64) << 56);
    }

    /// A line for people; made only if somebody reads it.
    pub fn say(&mut self, now_ns: u64, line: impl FnOnce() -> String) {
        if self.lines_max > 0 {
            let line = line();
            self.keep(now_ns, &line);
        }
    }

    fn keep(&mut self, now_ns: u64, line: &str) {
        if self.lines.len() == self.lines_max {
            self.lines.pop_front();
        }
        let (s, us) = (now_ns / 1_000_000_000, now_ns / 1000 % 1_000_000);
        self.lines.push_back(format!("{s:4}.{us:06} {line}"));
    }

    fn mix(&mut self, word: u64) {
        self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
        self.hash ^= self.hash >> 32;
    }
}
