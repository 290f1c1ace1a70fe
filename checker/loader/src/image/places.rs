//! Which function and which original instruction a text offset belongs to: for reports only, from untrusted tables.

use super::elf::Parts;
use std::fmt;

/// Longest name kept, in bytes; the rest is cut off.
const NAME_LIMIT: usize = 512;

/// Most object names kept: an empty one takes one byte in the file and two dozen here.
const OBJECT_LIMIT: usize = 1 << 16;

/// Longest instruction, bytes.
const LONGEST: usize = 15;

/// Where an instruction came from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Origin {
    /// Object file or archive member.
    pub object: String,
    /// ELF section index in that object.
    pub section: u32,
    /// Byte offset in that section.
    pub offset: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} section {} offset {:#x}", self.object, self.section, self.offset)
    }
}

/// What a `ud2` that a check or a meter branches to is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stub {
    /// Text offset of the `ud2`.
    pub at: u32,
    /// Text offset of the access that the check is for, or of the meter.
    pub place: u32,
    /// The fuel is used up; else an access goes astray.
    pub fuel: bool,
}

/// Symbols, the old→new map, original instructions and stubs of an image.
#[derive(Debug, Default)]
pub struct Places {
    /// Offset, size, name; ascending by offset.
    symbols: Vec<(u32, u32, String)>,
    /// New offset, object, section, old offset, place of the length byte in `originals`; ascending.
    map: Vec<[u32; 5]>,
    objects: Vec<String>,
    originals: Box<[u8]>,
    /// Ascending.
    stubs: Vec<Stub>,
}

impl Places {
    pub fn new(parts: &Parts<'_>) -> Places {
        let mut symbols: Vec<_> = parts.symbols.iter().map(|&(start, size, name)| (start, size, printable(name))).collect();
        symbols.sort();
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let mut original = 0_usize;
        let record = |r: &[u8]| {
            let here = original;
            original += 1 + usize::from(parts.originals.get(here).copied().unwrap_or_default());
            [word(r), word(&r[4..]), word(&r[8..]), word(&r[12..]), u32::try_from(here).unwrap_or(u32::MAX)]
        };
        let mut map: Vec<[u32; 5]> = parts.map.chunks_exact(16).map(record).collect();
        map.sort_unstable();
        let stub = |r: &[u8]| Stub { at: word(r), place: word(&r[4..]) & 0x7fff_ffff, fuel: r[7] >> 7 == 1 };
        let mut stubs: Vec<Stub> =
            parts.stubs.chunks_exact(8).map(stub).filter(|s| (s.place as usize) < parts.text.len()).collect();
        stubs.sort_unstable();
        let objects =
            parts.objects.split(|&b| b == 0).take(OBJECT_LIMIT).map(|name| printable(&String::from_utf8_lossy(name))).collect();
        Places { symbols, map, objects, originals: parts.originals.into(), stubs }
    }

    /// Name of the function that covers text offset `offset`, and the distance from its start.
    pub fn function(&self, offset: u32) -> Option<(&str, u32)> {
        let after = self.symbols.partition_point(|(start, ..)| *start <= offset);
        let (start, size, name) = self.symbols.get(after.checked_sub(1)?)?;
        let distance = offset - start;
        (distance < (*size).max(1)).then_some((name, distance))
    }

    /// Where the instruction at text offset `offset` came from.
    pub fn origin(&self, offset: u32) -> Option<Origin> {
        let after = self.map.partition_point(|[new, ..]| *new <= offset);
        let [_, object, section, old, _] = *self.map.get(after.checked_sub(1)?)?;
        Some(Origin { object: self.objects.get(object as usize)?.clone(), section, offset: old })
    }

    /// The bytes of the original of the instruction at text offset `offset`.
    pub fn original(&self, offset: u32) -> Option<&[u8]> {
        let after = self.map.partition_point(|[new, ..]| *new <= offset);
        let at = self.map.get(after.checked_sub(1)?)?[4] as usize;
        let len = usize::from(*self.originals.get(at)?);
        self.originals.get(at + 1..at + 1 + len).filter(|_| (1..=LONGEST).contains(&len))
    }

    /// What the `ud2` at text offset `at` is about.
    pub fn stub(&self, at: u32) -> Option<Stub> {
        self.stubs.binary_search_by_key(&at, |stub| stub.at).ok().map(|found| self.stubs[found])
    }
}

/// `name` without anything that a terminal would act on, cut to [`NAME_LIMIT`].
pub fn printable(name: &str) -> String {
    let cut = (0..=NAME_LIMIT.min(name.len())).rev().find(|&i| name.is_char_boundary(i)).unwrap_or(0);
    name[..cut].chars().map(|c| if is_hidden(c) { '\u{fffd}' } else { c }).collect()
}

/// Whether `name` can be shown as it is.
pub fn is_printable(name: &str) -> bool {
    !name.contains(is_hidden)
}

fn is_hidden(c: char) -> bool {
    c.is_control() || is_direction_mark(c)
}

/// Invisible characters that reorder what follows.
const fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_control_characters_and_length() {
        assert_eq!(printable("a\u{1b}[31mb\n\u{202e}"), "a\u{fffd}[31mb\u{fffd}\u{fffd}");
        assert_eq!(printable(&"é".repeat(1000)).len(), NAME_LIMIT);
    }

    #[test]
    fn finds_function_and_origin() {
        let places = Places {
            symbols: vec![(0, 16, "a".into()), (32, 8, "b".into())],
            map: vec![[0, 1, 2, 3, 0], [8, 0, 5, 6, 3]],
            objects: vec!["x.o".into(), "y.o".into()],
            originals: [2, 0x31, 0xc0, 1, 0xc3].into(),
            stubs: vec![Stub { at: 40, place: 8, fuel: true }],
        };
        assert_eq!((places.original(7), places.original(8)), (Some(&[0x31, 0xc0][..]), Some(&[0xc3][..])));
        assert_eq!((places.stub(40).map(|s| s.place), places.stub(41)), (Some(8), None));
        assert_eq!(places.function(5), Some(("a", 5)));
        assert_eq!(places.function(16), None);
        assert_eq!(places.function(39), Some(("b", 7)));
        assert_eq!(places.origin(7), Some(Origin { object: "y.o".into(), section: 2, offset: 3 }));
        assert_eq!(places.origin(100), Some(Origin { object: "x.o".into(), section: 5, offset: 6 }));
    }
}
