//! Source lines of text offsets, from the image's DWARF. It is untrusted and serves reports only: what makes no sense is left out, and no
//! more rows are taken than the line section has bytes.

use super::elf::DebugSections;
use super::places::printable;
use cordon_checker::layout::TEXT_VADDR;
use gimli::{AttributeValue, Dwarf, EndianSlice, LineProgramHeader, LittleEndian, SectionId, Unit};
use std::collections::{HashMap, HashSet};

/// Most source files known by name.
const FILE_LIMIT: usize = 1 << 16;

/// Most units read: the rewriter writes one. Each may have the parser read all abbreviations and a whole line header again.
const UNIT_LIMIT: usize = 16;

/// Bytes of names that are looked at in all: files may share names, or begin anywhere in a long one.
const NAME_BYTES: usize = 32 << 20;

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// Copies of the image's DWARF sections.
#[derive(Debug, Default)]
pub struct Debug {
    abbrev: Box<[u8]>,
    info: Box<[u8]>,
    line: Box<[u8]>,
    strings: Box<[u8]>,
    line_strings: Box<[u8]>,
}

impl Debug {
    pub fn new(from: &DebugSections<'_>) -> Debug {
        Debug {
            abbrev: from.abbrev.into(),
            info: from.info.into(),
            line: from.line.into(),
            strings: from.strings.into(),
            line_strings: from.line_strings.into(),
        }
    }

    fn section(&self, id: SectionId) -> Slice<'_> {
        let bytes: &[u8] = match id {
            SectionId::DebugAbbrev => &self.abbrev,
            SectionId::DebugInfo => &self.info,
            SectionId::DebugLine => &self.line,
            SectionId::DebugStr => &self.strings,
            SectionId::DebugLineStr => &self.line_strings,
            _ => &[],
        };
        EndianSlice::new(bytes, LittleEndian)
    }
}

/// A place in a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SourceLine {
    /// Path as the compiler recorded it, with its folder.
    pub file: String,
    /// Counted from 1.
    pub line: u32,
    /// Counted from 1; 0 if it is not known.
    pub column: u32,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    start: u32,
    end: u32,
    file: u32,
    line: u32,
    column: u32,
}

/// The line table.
#[derive(Debug, Default)]
pub struct Lines {
    /// Ascending by start.
    rows: Vec<Row>,
    files: Vec<String>,
}

impl Lines {
    /// Reads what there is.
    pub fn read(debug: &Debug) -> Lines {
        let load = |id| Ok::<_, gimli::Error>(debug.section(id));
        let Ok(dwarf) = Dwarf::load(load) else { return Lines::default() };
        let mut reader = Reader {
            lines: Lines::default(),
            known: HashMap::new(),
            left: debug.line.len(),
            names_left: NAME_BYTES,
            seen: HashSet::new(),
        };
        let mut headers = dwarf.units();
        for _ in 0..UNIT_LIMIT {
            let Ok(Some(header)) = headers.next() else { break };
            if let Ok(unit) = dwarf.unit(header) {
                // What was read before the mistake stays.
                let _ = reader.unit(&dwarf, &unit);
            }
        }
        reader.lines.rows.sort_by_key(|row| row.start);
        reader.lines
    }

    /// The source line of the instruction at text offset `offset`.
    pub fn at(&self, offset: u32) -> Option<SourceLine> {
        let after = self.rows.partition_point(|row| row.start <= offset);
        let row = self.rows[..after].last().filter(|row| offset < row.end && row.line > 0)?;
        Some(SourceLine { file: self.files.get(row.file as usize)?.clone(), line: row.line, column: row.column })
    }
}

struct Reader {
    lines: Lines,
    /// Index in `lines.files` by name.
    known: HashMap<String, u32>,
    /// Rows that may still be taken.
    left: usize,
    /// Bytes of names that may still be looked at.
    names_left: usize,
    /// Line programs read already: units may name one twice.
    seen: HashSet<usize>,
}

impl Reader {
    fn unit(&mut self, dwarf: &Dwarf<Slice<'_>>, unit: &Unit<Slice<'_>>) -> Result<(), gimli::Error> {
        let Some(program) = unit.line_program.clone() else { return Ok(()) };
        if !self.seen.insert(program.header().offset().0) {
            return Ok(());
        }
        let mut files: HashMap<u64, u32> = HashMap::new();
        let mut rows = program.rows();
        let mut open: Option<Row> = None;
        while let Some((header, row)) = rows.next_row()? {
            let Some(left) = self.left.checked_sub(1) else { return Ok(()) };
            self.left = left;
            let Some(at) = row.address().checked_sub(TEXT_VADDR).and_then(|at| u32::try_from(at).ok()) else { continue };
            if let Some(before) = open.take().filter(|before| before.start < at) {
                self.lines.rows.push(Row { end: at, ..before });
            }
            if row.end_sequence() {
                continue;
            }
            let index = row.file_index();
            let file = match files.get(&index) {
                Some(file) => *file,
                None => *files.entry(index).or_insert(self.file(dwarf, unit, header, index)),
            };
            let line = row.line().map_or(0, |line| u32::try_from(line.get()).unwrap_or(0));
            let column = match row.column() {
                gimli::ColumnType::LeftEdge => 0,
                gimli::ColumnType::Column(column) => u32::try_from(column.get()).unwrap_or(0),
            };
            open = Some(Row { start: at, end: at, file, line, column });
        }
        Ok(())
    }

    /// Index of the file's name, relative to the folder of compilation if it is written so; `u32::MAX` if there is none.
    fn file(
        &mut self,
        dwarf: &Dwarf<Slice<'_>>,
        unit: &Unit<Slice<'_>>,
        header: &LineProgramHeader<Slice<'_>>,
        index: u64,
    ) -> u32 {
        let left = &mut self.names_left;
        let mut text = |value: AttributeValue<Slice<'_>>| {
            if *left == 0 {
                return None;
            }
            let bytes = dwarf.attr_string(unit, value).ok()?;
            *left = left.saturating_sub(bytes.slice().len());
            Some(String::from_utf8_lossy(bytes.slice()).into_owned())
        };
        let Some(entry) = header.file(index) else { return u32::MAX };
        let Some(name) = text(entry.path_name()) else { return u32::MAX };
        let folder = entry.directory(header).filter(|_| entry.directory_index() != 0 && !name.starts_with('/')).and_then(text);
        let name = printable(&folder.map_or_else(|| name.clone(), |folder| format!("{folder}/{name}")));
        if let Some(known) = self.known.get(&name) {
            return *known;
        }
        if self.lines.files.len() >= FILE_LIMIT {
            return u32::MAX;
        }
        let number = self.lines.files.len() as u32;
        self.lines.files.push(name.clone());
        self.known.insert(name, number);
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_gives_no_lines() {
        let mut seed = 1_u64;
        for _ in 0..2000 {
            let mut bytes = || {
                let mut part = vec![0_u8; 64];
                for byte in &mut part {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    *byte = (seed >> 56) as u8;
                }
                part[..4].copy_from_slice(&60_u32.to_le_bytes());
                part[4] = 4;
                part[5] = 0;
                part
            };
            let (abbrev, info, line) = (bytes(), bytes(), bytes());
            let sections = DebugSections { abbrev: &abbrev, info: &info, line: &line, ..DebugSections::default() };
            assert!(Lines::read(&Debug::new(&sections)).at(0).is_none_or(|at| at.line > 0));
        }
    }
    /// Lines of a unit that has nothing but a line program, at 0.
    fn read(units: usize, abbrev: Vec<u8>, line: Vec<u8>, line_strings: &[u8]) -> Lines {
        // Length, version, compilation unit, address size, abbreviations; the first of them, the line program.
        let info = [13, 0, 0, 0, 5, 0, 1, 8, 0, 0, 0, 0, 1, 0, 0, 0, 0].repeat(units);
        let sections = DebugSections { abbrev: &abbrev, info: &info, line: &line, line_strings, ..DebugSections::default() };
        Lines::read(&Debug::new(&sections))
    }

    /// 1 is a compilation unit without children that has a line program.
    const UNIT: [u8; 7] = [1, 0x11, 0, 0x10, 0x17, 0, 0];

    #[test]
    fn many_units_with_many_abbreviations_cost_no_time() {
        let mut abbrev = UNIT.to_vec();
        for code in 2..200_000_u32 {
            let low = |shift: u32| (code >> shift & 0x7f) as u8;
            abbrev.extend([low(0) | 0x80, low(7) | 0x80, low(14), 0x11, 0, 0, 0]);
        }
        let begin = std::time::Instant::now();
        assert_eq!(read(5000, abbrev, Vec::new(), &[]).at(0), None);
        assert!(begin.elapsed() < std::time::Duration::from_secs(10), "{:?}", begin.elapsed());
    }

    #[test]
    fn many_files_with_long_names_cost_no_time() {
        const FILES: u16 = 10_000;
        let number = |n: u16| [(n & 0x7f) as u8 | 0x80, (n >> 7) as u8];
        // Lengths of instructions, statements, line steps, opcodes with their operands; one folder and the files by place of their names.
        let mut header = vec![1, 1, 1, 0, 1, 10, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 0x1f, 1, 0, 0, 0, 0, 1, 1, 0x1f];
        header.extend(number(FILES));
        header.extend((0..FILES).flat_map(|n| u32::from(n).to_le_bytes()));
        let mut program = vec![0, 9, 2];
        program.extend(TEXT_VADDR.to_le_bytes());
        for file in 0..FILES {
            program.push(4);
            program.extend(number(file));
            program.push(1);
        }
        // One byte on, so that the last row has a place; the end.
        program.extend([2, 1, 0, 1, 1]);
        let mut line = (header.len() as u32 + program.len() as u32 + 8).to_le_bytes().to_vec();
        line.extend([5, 0, 8, 0]);
        line.extend((header.len() as u32).to_le_bytes());
        line.extend(header.iter().chain(&program));
        let mut names = vec![b'n'; 4 << 20];
        names.push(0);
        let begin = std::time::Instant::now();
        let lines = read(1, UNIT.to_vec(), line, &names);
        assert!(begin.elapsed() < std::time::Duration::from_secs(10), "{:?}", begin.elapsed());
        assert_eq!((lines.rows.len(), lines.files.len()), (1, 1));
    }
}
