//! What is done to a directory: one piece of damage, drawn from a seed, at or near a boundary.
//!
//! Everything is a list of plain edits, so that a failing case can be printed and repeated.

use etcore_engine::testing::prng::Prng;

use super::image::{Content, DB, Image, WAL};
use super::layout::{Layout, PageKind, SECTOR, UNIT};

/// One change of a directory.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Other bytes.
    Bytes {
        file: String,
        at: usize,
        bytes: Vec<u8>,
    },
    /// Another length; what is added is zeros.
    Len {
        file: String,
        len: usize,
    },
    Remove {
        file: String,
    },
    Rename {
        from: String,
        to: String,
    },
    /// A file as another directory has it.
    Replace {
        file: String,
        with: &'static str,
    },
    /// A new file.
    Add {
        file: String,
        like: Option<String>,
    },
}

/// A case.
#[derive(Debug, Clone)]
pub struct Patch {
    /// What kind of damage.
    pub kind: &'static str,
    pub edits: Vec<Edit>,
}

/// The directories that patches are made from.
pub struct Sources<'s> {
    pub image: &'s Image,
    pub layout: &'s Layout,
    /// The same directory earlier.
    pub older: &'s Image,
    /// Another member's.
    pub foreign: &'s Image,
}

impl Patch {
    pub fn apply(&self, sources: &Sources<'_>) -> Image {
        let mut image = sources.image.clone();
        for edit in &self.edits {
            match edit {
                Edit::Bytes { file, at, bytes } => {
                    image.files.get_mut(file).expect("there").write(*at, bytes);
                }
                Edit::Len { file, len } => {
                    image.files.get_mut(file).expect("there").set_len(*len);
                }
                Edit::Remove { file } => {
                    image.files.remove(file);
                }
                Edit::Rename { from, to } => {
                    let content = image.files.remove(from).expect("there");
                    image.files.insert(to.clone(), content);
                }
                Edit::Replace { file, with } => {
                    let from = if *with == "older" { sources.older } else { sources.foreign };
                    let content = from.files[file].clone();
                    image.files.insert(file.clone(), content);
                }
                Edit::Add { file, like } => {
                    let content = like.as_ref().map_or_else(
                        || Content::new(b"not one of ours".to_vec()),
                        |like| sources.image.files[like].clone(),
                    );
                    image.files.insert(file.clone(), content);
                }
            }
        }
        image
    }

    /// The file that was changed, and the bytes of it from the first to behind the last, if it is
    /// one file whose content was changed.
    pub fn place(&self) -> Option<(&str, usize, usize)> {
        let mut place: Option<(&str, usize, usize)> = None;
        for edit in &self.edits {
            let (file, from, to) = match edit {
                Edit::Bytes { file, at, bytes } => (file, *at, at + bytes.len()),
                Edit::Len { file, len } => (file, *len, usize::MAX),
                _ => return None,
            };
            place = Some(match place {
                Some((_, old_from, old_to)) => (file, from.min(old_from), to.max(old_to)),
                None => (file, from, to),
            });
        }
        place
    }

    pub fn text(&self) -> String {
        let edits = self.edits.iter().map(|edit| match edit {
            Edit::Bytes { file, at, bytes } if bytes.len() > 24 => {
                format!("{file} at {at}: {} bytes {:02x?}...", bytes.len(), &bytes[..24])
            }
            Edit::Bytes { file, at, bytes } => format!("{file} at {at}: {bytes:02x?}"),
            other => format!("{other:?}"),
        });
        format!("{}: {}", self.kind, edits.collect::<Vec<_>>().join("; "))
    }
}

/// A place of interest: where, and the range that it starts.
struct Point {
    file: String,
    at: usize,
    range: (usize, usize),
}

fn point(sources: &Sources<'_>, prng: &mut Prng) -> Point {
    let layout = sources.layout;
    if prng.chance(1, 2) {
        // The last segment is where the tail rule decides: as likely as all others together.
        let last = layout.segments.len() - 1;
        let number = if prng.chance(1, 2) { last } else { prng.index(last + 1) };
        let segment = &layout.segments[number];
        let record = match prng.below(6) {
            // The last batches.
            0 | 1 => {
                segment.records
                    [segment.records.len() - 1 - prng.index(6).min(segment.records.len() - 1)]
            }
            _ => segment.records[prng.index(segment.records.len())],
        };
        let at = match prng.below(6) {
            0 | 1 => record.start,
            2 => record.start + 8,
            3 => record.end,
            4 => record.start + prng.index(record.end - record.start),
            _ if prng.chance(1, 4) => segment.used + prng.index(8192),
            _ => segment.batches[prng.index(segment.batches.len())].1,
        };
        return Point { file: segment.name.clone(), at, range: (record.start, record.end) };
    }
    let page = match prng.below(8) {
        0 | 1 => &layout.pages[prng.index(layout.pages.len())],
        2 => {
            let metas: Vec<_> =
                layout.pages.iter().filter(|page| page.kind == PageKind::Meta).collect();
            metas[prng.index(metas.len())]
        }
        3 => {
            let rare: Vec<_> = layout
                .pages
                .iter()
                .filter(|page| matches!(page.kind, PageKind::Space | PageKind::Inner))
                .collect();
            if rare.is_empty() { &layout.pages[0] } else { rare[prng.index(rare.len())] }
        }
        _ => {
            let newest: Vec<_> = layout.pages.iter().filter(|page| page.newest).collect();
            newest[prng.index(newest.len())]
        }
    };
    let at = match prng.below(6) {
        0 => page.start,
        1 => page.start + page.len,
        2 => page.end(),
        3 => page.start + prng.index(page.units * UNIT),
        _ => page.fields[prng.index(page.fields.len())],
    };
    Point { file: DB.to_owned(), at, range: (page.start, page.end()) }
}

/// A piece of damage.
pub fn draw(sources: &Sources<'_>, prng: &mut Prng) -> Patch {
    if prng.chance(1, 20) {
        return draw_files(sources, prng);
    }
    let Point { file, at, range } = point(sources, prng);
    let content = &sources.image.files[&file];
    // At the boundary, or a little beside it.
    let at = match prng.below(3) {
        0 => (at + prng.index(17)).saturating_sub(8),
        _ => at,
    };
    let at = at.min(content.len().saturating_sub(1));
    let bytes = |at: usize, bytes: Vec<u8>| Edit::Bytes { file: file.clone(), at, bytes };
    let sector = at / SECTOR * SECTOR;
    let one = |kind, edit| Patch { kind, edits: vec![edit] };
    match prng.below(14) {
        0..=3 => {
            let byte = content.read(at, 1)[0] ^ 1 << prng.below(8);
            one("a flipped bit", bytes(at, vec![byte]))
        }
        4 => one("zeros", bytes(at, vec![0; 1 + prng.index(64)])),
        5 => one("ones", bytes(at, vec![0xff; 1 + prng.index(64)])),
        6 => {
            let mut noise = vec![0; 1 + prng.index(64)];
            prng.fill(&mut noise);
            one("noise", bytes(at, noise))
        }
        7 => one("a sector of zeros", bytes(sector, vec![0; SECTOR * (1 + prng.index(3))])),
        8 => {
            let mut noise = vec![0; SECTOR];
            if prng.chance(1, 2) {
                noise.fill(0xff);
            } else {
                prng.fill(&mut noise);
            }
            one("a sector of something else", bytes(sector, noise))
        }
        9 => stale(sources, prng, &file, range, sector),
        10 | 11 => moved(sources, prng, &file, range),
        12 => {
            let len = if prng.chance(1, 2) { at } else { at.next_multiple_of(UNIT) };
            one("a file cut short", Edit::Len { file, len })
        }
        _ => {
            // Behind the end, or behind what is used.
            let used = if prng.chance(1, 2) { content.len() } else { range.1 };
            let mut noise = vec![0; 1 + prng.index(5000)];
            prng.fill(&mut noise);
            one("bytes behind it", Edit::Bytes { file, at: used, bytes: noise })
        }
    }
}

/// An older version of a sector, record, page or meta page, where the file had one.
fn stale(
    sources: &Sources<'_>,
    prng: &mut Prng,
    file: &str,
    range: (usize, usize),
    sector: usize,
) -> Patch {
    let (from, to) = if prng.chance(1, 2) { range } else { (sector, sector + SECTOR) };
    let older = sources.older.files.get(file).map_or_else(Vec::new, |content| {
        let mut bytes = content.read(from, to - from);
        bytes.resize(to - from, 0);
        bytes
    });
    let kind = "an older version of a part";
    Patch { kind, edits: vec![Edit::Bytes { file: file.to_owned(), at: from, bytes: older }] }
}

/// A record, sector or page in another one's place, or two that changed places.
fn moved(sources: &Sources<'_>, prng: &mut Prng, file: &str, range: (usize, usize)) -> Patch {
    let other = loop {
        let other = point(sources, prng);
        if other.file == file {
            break other.range;
        }
    };
    let by_sector = prng.chance(1, 3);
    let align = |(start, end): (usize, usize)| {
        if by_sector {
            (start / SECTOR * SECTOR, start / SECTOR * SECTOR + SECTOR)
        } else {
            (start, end)
        }
    };
    let (here, there) = (align(range), align(other));
    let len = (here.1 - here.0).min(there.1 - there.0);
    let content = &sources.image.files[file];
    let (mine, its) = (content.read(here.0, len), content.read(there.0, len));
    let edit = |at, bytes| Edit::Bytes { file: file.to_owned(), at, bytes };
    if prng.chance(1, 2) {
        return Patch { kind: "a part twice", edits: vec![edit(here.0, its)] };
    }
    Patch { kind: "two parts changed places", edits: vec![edit(here.0, its), edit(there.0, mine)] }
}

/// Damage to whole files.
fn draw_files(sources: &Sources<'_>, prng: &mut Prng) -> Patch {
    let names: Vec<String> = sources.image.files.keys().cloned().collect();
    let segments = sources.image.segments();
    let file = match prng.below(3) {
        0 => DB.to_owned(),
        1 => segments.last().expect("a segment").clone(),
        _ => names[prng.index(names.len())].clone(),
    };
    let one = |kind, edit| Patch { kind, edits: vec![edit] };
    match prng.below(8) {
        0 => one("a file gone", Edit::Remove { file }),
        1 => {
            let to = match prng.below(4) {
                0 => format!("{file}.bak"),
                1 => format!("{WAL}/{:016x}-{:016x}.wal", prng.below(9), prng.below(900)),
                2 => format!("{DB}.part"),
                _ => "elsewhere".to_owned(),
            };
            one("a file renamed", Edit::Rename { from: file, to })
        }
        2 => {
            let to = match prng.below(4) {
                0 => format!("{WAL}/{:016x}.tmp", prng.below(99)),
                1 => {
                    let number = segments.len() as u64 + prng.below(2);
                    format!("{WAL}/{number:016x}-{:016x}.wal", prng.below(900))
                }
                2 => format!("{DB}.part"),
                _ => format!("{WAL}/notes.txt"),
            };
            let like = prng.chance(2, 3).then_some(file);
            one("a file more", Edit::Add { file: to, like })
        }
        3 | 4 if sources.older.files.contains_key(&file) => {
            one("an older version of a file", Edit::Replace { file, with: "older" })
        }
        5 | 6 if sources.foreign.files.contains_key(&file) => {
            one("another member's file", Edit::Replace { file, with: "foreign" })
        }
        _ => {
            let len = *[0, 1, 511, 512, 4095, 4096, 8192].get(prng.index(7)).expect("seven");
            one("hardly anything of a file", Edit::Len { file, len })
        }
    }
}
