//! Replays the corpus of every parser, and seeded mutations of it, with memory watched.
//!
//! `ETCORE_LONG=1` makes a hundred times as many mutations.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicIsize, Ordering};

use etcore_proto::fuzz::ENTRIES;

struct Watching;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn grew(bytes: isize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grew(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        grew(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`, and `pointer` is the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// What one input of a few KiB may make a parser hold, in bytes.
const HELD_BYTES_MAX: isize = 16 << 20;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }
}

/// Flips, cuts, repeats and splices.
fn mutate(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let place = random.below(input.len());
        match random.below(6) {
            0 if !input.is_empty() => input[place] ^= 1 << random.below(8),
            1 if !input.is_empty() => input[place] = random.below(256) as u8,
            2 => input.truncate(place),
            3 => {
                let end = (place + random.below(64)).min(input.len());
                let copy = input[place..end].to_vec();
                let times = random.below(20);
                for _ in 0..times {
                    input.splice(place..place, copy.iter().copied());
                }
            }
            4 => {
                let other = &seeds[random.below(seeds.len())];
                let start = random.below(other.len());
                input.extend_from_slice(&other[start..]);
            }
            _ => input.insert(place.min(input.len()), random.below(256) as u8),
        }
    }
    input
}

#[test]
fn no_input_panics_or_takes_much_memory() {
    let rounds = if std::env::var_os("ETCORE_LONG").is_some() { 2_000_000 } else { 20_000 };
    for (name, entry) in ENTRIES {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut paths: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let seeds: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
        assert!(!seeds.is_empty(), "{name} has a corpus");
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let run = |input: &[u8]| {
            let before = LIVE.load(Ordering::Relaxed);
            PEAK.store(before, Ordering::Relaxed);
            entry(input);
            let held = PEAK.load(Ordering::Relaxed) - before;
            assert!(held < HELD_BYTES_MAX, "{name} held {held} bytes for {} bytes", input.len());
        };
        for seed in &seeds {
            run(seed);
        }
        for _ in 0..rounds {
            run(&mutate(&seeds, &mut random));
        }
    }
}
