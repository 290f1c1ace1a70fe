//! Reads the objects' line programs. Addresses in them are relocated to made-up ones that name section and offset.
//!
//! Input is untrusted: everything is bounded by the size of the sections, and an object whose DWARF is malformed loses the rest of it.

use super::files::{FileId, Files, MAX_PATH};
use super::{Lines, Position, Row};
use crate::program::{DebugSection, Definition, ObjectInfo, Program, Reloc, SectionId, SectionKind};
use foldhash::{HashMap, HashMapExt as _};
use gimli::{AttributeValue, DebugAbbrev, DebugLineOffset, EndianSlice, LittleEndian, Reader, UnitType};
use object::elf;

type Slice<'a> = EndianSlice<'a, LittleEndian>;
/// Why the rest of an object's lines is left out.
type Problem = Box<dyn std::error::Error>;

/// Largest header of a line program (its file table), bytes. Real ones stay below 100 KiB.
const MAX_HEADER: usize = 1 << 20;
/// Attributes that are looked at in the first entry of a unit. Compilers write about ten.
const MAX_ATTRIBUTES: usize = 64;

/// The lines of all objects.
pub(super) fn lines(program: &Program, files: &mut Files, warnings: &mut Vec<String>) -> Lines {
    let mut lines = Lines::default();
    let mut room = vec![0; program.objects.len()];
    for section in program.sections.iter().filter(|s| s.kind == SectionKind::Text) {
        // Twice what compilers need: a row for each byte at most, and one for the end of each sequence.
        room[section.object.0 as usize] += 2 * section.data.len() + 2;
    }
    for (number, object) in program.objects.iter().enumerate() {
        let sections = Sections::new(program, object);
        let mut reader =
            ObjectReader { program, object: number, sections: &sections, lines: &mut lines, files, room: room[number] };
        if let Err(e) = reader.read() {
            warnings.push(format!("{}: some line information is left out: {e}", object.name));
        }
    }
    for rows in lines.0.values_mut() {
        // Where one sequence ends, another may begin; of rows with one address the last covers it.
        rows.sort_by_key(|row| (row.start, row.position.is_some()));
    }
    lines
}

/// The relocated DWARF sections of an object.
struct Sections {
    line: Vec<Vec<u8>>,
    info: Vec<Vec<u8>>,
    abbrev: Vec<u8>,
    strings: Vec<u8>,
    line_strings: Vec<u8>,
}

impl Sections {
    fn new(program: &Program, object: &ObjectInfo) -> Self {
        let all = |name: &str| {
            let named = object.debug.iter().filter(|d| d.name == name);
            named.map(|d| relocated(program, d)).collect::<Vec<_>>()
        };
        let first = |name| all(name).into_iter().next().unwrap_or_default();
        Sections {
            line: all(".debug_line"),
            info: all(".debug_info"),
            abbrev: first(".debug_abbrev"),
            strings: first(".debug_str"),
            line_strings: first(".debug_line_str"),
        }
    }

    fn string<'a>(&'a self, value: AttributeValue<Slice<'a>>) -> Option<&'a [u8]> {
        let at = |section: &'a [u8], offset: usize| {
            let rest = section.get(offset..)?;
            // Longer ones make no path, and hostile ones without an end would be searched again and again.
            rest.get(..rest.iter().take(MAX_PATH + 1).position(|b| *b == 0)?)
        };
        match value {
            AttributeValue::String(string) => Some(string.slice()),
            AttributeValue::DebugStrRef(offset) => at(&self.strings, offset.0),
            AttributeValue::DebugLineStrRef(offset) => at(&self.line_strings, offset.0),
            _ => None,
        }
    }
}

/// The address that stands for `offset` of `section` in relocated DWARF. 0 is no section; offsets stay below 2^32.
fn encode(section: SectionId, offset: u64) -> u64 {
    ((u64::from(section.0) + 1) << 32).wrapping_add(offset)
}

/// The section of an address that [`encode`] made.
fn decode(address: u64) -> Option<SectionId> {
    u32::try_from(address >> 32).ok()?.checked_sub(1).map(SectionId)
}

fn relocated(program: &Program, section: &DebugSection) -> Vec<u8> {
    let mut data = section.data.clone();
    for reloc in &section.relocs {
        let value = match program.symbol(reloc.symbol).definition {
            Definition::Section(id, offset) => encode(id, offset),
            Definition::Absolute(value) => value,
            // Other DWARF sections and code that lost to another COMDAT group: the addend alone.
            Definition::Undefined { .. } => 0,
        };
        fill_in(&mut data, reloc, value.wrapping_add_signed(reloc.addend));
    }
    data
}

fn fill_in(data: &mut [u8], reloc: &Reloc, value: u64) {
    let width = match elf::RelocationType(reloc.kind) {
        elf::R_X86_64_64 | elf::R_X86_64_DTPOFF64 => 8,
        elf::R_X86_64_32 | elf::R_X86_64_32S | elf::R_X86_64_DTPOFF32 => 4,
        _ => return,
    };
    let field = usize::try_from(reloc.offset).ok().and_then(|at| data.get_mut(at..at.checked_add(width)?));
    if let Some(field) = field {
        field.copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

struct ObjectReader<'a, 'm> {
    program: &'a Program,
    object: usize,
    sections: &'a Sections,
    lines: &'m mut Lines,
    files: &'m mut Files,
    /// Rows that may still be read.
    room: usize,
}

impl<'a> ObjectReader<'a, '_> {
    /// Reads the line programs one behind the other, so that none is read twice.
    fn read(&mut self) -> Result<(), Problem> {
        let mut units = None;
        for section in &self.sections.line {
            let line = gimli::DebugLine::new(section, LittleEndian);
            let mut rest = Slice::new(section, LittleEndian);
            while !rest.is_empty() {
                let offset = section.len() - rest.len();
                let (length, format) = rest.read_initial_length()?;
                let mut program = rest.split(length)?;
                let version = program.read_u16()?;
                if version >= 5 {
                    program.skip(2)?;
                }
                if program.read_length(format)? > MAX_HEADER {
                    return Err("a line program has a header of more than 1 MiB".into());
                }
                // Since DWARF 5 the header has the directories that only the unit knew before.
                let base = match version {
                    0..=4 => units.get_or_insert_with(|| self.directories()).get(&offset).copied().unwrap_or_default(),
                    _ => &[],
                };
                let program = line.program(DebugLineOffset(offset), 8, None, None)?;
                self.rows(program, base)?;
            }
        }
        Ok(())
    }

    fn rows(&mut self, program: gimli::IncompleteLineProgram<Slice<'a>>, base: &[u8]) -> Result<(), Problem> {
        let mut known: HashMap<u64, Option<FileId>> = HashMap::new();
        let mut rows = program.rows();
        // Section and end of the sequence's code; `None` outside of a sequence.
        let mut sequence: Option<Option<(SectionId, u64)>> = None;
        while let Some((header, row)) = rows.next_row()? {
            let current = *sequence.get_or_insert_with(|| self.home(row.address()));
            if row.end_sequence() {
                sequence = None;
            }
            let Some((section, size)) = current else { continue };
            let start = row.address().wrapping_sub(encode(section, 0));
            let Some(start) = u32::try_from(start).ok().filter(|start| u64::from(*start) <= size) else { continue };
            let file = *known.entry(row.file_index()).or_insert_with(|| self.file(header, row.file_index(), base));
            let column = match row.column() {
                gimli::ColumnType::LeftEdge => 0,
                gimli::ColumnType::Column(column) => u32::try_from(column.get()).unwrap_or(0),
            };
            let line = row.line().map_or(0, |line| u32::try_from(line.get()).unwrap_or(0));
            let row = Row {
                start,
                position: file.filter(|_| !row.end_sequence()).map(|file| Position { file, line, column }),
                statement: row.is_stmt(),
                prologue_end: row.prologue_end(),
            };
            let rows = self.lines.0.entry(section).or_default();
            match rows.last_mut().filter(|last| last.start == start && last.position.is_some()) {
                Some(last) => *last = row,
                None => {
                    self.room = self.room.checked_sub(1).ok_or("there are more lines than bytes of code")?;
                    rows.push(row);
                }
            }
        }
        Ok(())
    }

    /// The section of this object that `address` lies in, with its size.
    fn home(&self, address: u64) -> Option<(SectionId, u64)> {
        let id = decode(address)?;
        let section = self.program.sections.get(id.0 as usize)?;
        (section.object.0 as usize == self.object).then_some((id, section.size))
    }

    fn file(&mut self, header: &gimli::LineProgramHeader<Slice<'a>>, index: u64, base: &[u8]) -> Option<FileId> {
        let version = header.version();
        let file = if version <= 4 && index == 0 { None } else { header.file(index) }?;
        let name = self.sections.string(file.path_name())?;
        let directory = |index| header.directory(index).and_then(|d| self.sections.string(d)).unwrap_or_default();
        let base = if version <= 4 { base } else { directory(0) };
        let place = if file.directory_index() == 0 { &[] } else { directory(file.directory_index()) };
        self.files.add(base, place, name)
    }

    /// The compilation directories by offset of the line program, from units up to DWARF 4. Malformed units are passed over.
    fn directories(&self) -> HashMap<usize, &'a [u8]> {
        let mut found = HashMap::new();
        for info in &self.sections.info {
            let mut units = Vec::new();
            let mut headers = gimli::DebugInfo::new(info, LittleEndian).units();
            while let Ok(Some(header)) = headers.next() {
                if header.version() <= 4 && header.type_() == UnitType::Compilation {
                    units.push(header);
                }
            }
            // Tables of abbreviations lie one behind the other: reading each only up to the next bounds the work.
            let mut tables: Vec<usize> = units.iter().map(|u| u.debug_abbrev_offset().0).collect();
            tables.sort_unstable();
            tables.dedup();
            let mut parsed = HashMap::new();
            for header in &units {
                let start = header.debug_abbrev_offset().0;
                let abbreviations = parsed.entry(start).or_insert_with(|| {
                    let next = tables.get(tables.partition_point(|t| *t <= start)).copied();
                    let end = next.unwrap_or(self.sections.abbrev.len()).min(self.sections.abbrev.len());
                    let table = self.sections.abbrev.get(start..end).unwrap_or_default();
                    DebugAbbrev::new(table, LittleEndian).abbreviations(gimli::DebugAbbrevOffset(0)).ok()
                });
                let directory = abbreviations.as_ref().and_then(|a| self.directory(header, a));
                found.extend(directory);
            }
        }
        found
    }

    /// DW_AT_stmt_list and DW_AT_comp_dir of a unit.
    fn directory(&self, header: &gimli::UnitHeader<Slice<'a>>, table: &gimli::Abbreviations) -> Option<(usize, &'a [u8])> {
        let mut entries = header.entries_raw(table, None).ok()?;
        let abbreviation = entries.read_abbreviation().ok()??;
        let (mut program, mut directory) = (None, None);
        for specification in abbreviation.attributes().iter().take(MAX_ATTRIBUTES) {
            let attribute = entries.read_attribute(*specification).ok()?;
            match attribute.name() {
                gimli::DW_AT_stmt_list => {
                    program = match attribute.value() {
                        AttributeValue::DebugLineRef(offset) => Some(offset.0),
                        other => other.udata_value().and_then(|v| usize::try_from(v).ok()),
                    };
                }
                gimli::DW_AT_comp_dir => directory = self.sections.string(attribute.value()),
                _ => {}
            }
        }
        program.zip(directory)
    }
}
