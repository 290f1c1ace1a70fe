//! Writes one DWARF 4 compilation unit for the whole image.

use super::Row;
use super::files::{FileId, Files};
use crate::emit::{DebugSections, ImageSymbol};
use cordon_checker::layout::TEXT_VADDR;
use gimli::write::{Address, AttributeValue, DwarfUnit, EndianVec, LineProgram, LineString, Sections};
use gimli::{Encoding, Format, LineEncoding, LittleEndian};

/// DWARF 4: older tools read it too, and its line programs need no further sections.
const ENCODING: Encoding = Encoding { format: Format::Dwarf32, version: 4, address_size: 8 };

/// The unit for text offsets `located` (ascending, with their rows) and `functions`; empty if no offset has a row.
pub(super) fn unit(
    located: impl Iterator<Item = (u32, Option<Row>)>,
    functions: &[ImageSymbol],
    files: &Files,
) -> gimli::write::Result<DebugSections> {
    let located: Vec<_> = located.collect();
    if located.iter().all(|(_, row)| row.is_none()) {
        return Ok(DebugSections::default());
    }
    let functions = || functions.iter().filter(|f| f.function && f.size > 0 && f.value.checked_add(f.size).is_some());
    let last = located.last().map_or(0, |(new, _)| u64::from(*new) + 1);
    let end = functions().map(|f| f.value + f.size).fold(last, u64::max);
    let mut dwarf = DwarfUnit::new(ENCODING);
    dwarf.unit.line_program = program(&located, end, files);
    let root = dwarf.unit.root();
    let producer = dwarf.strings.add("cordon");
    let entry = dwarf.unit.get_mut(root);
    entry.set(gimli::DW_AT_producer, AttributeValue::StringRef(producer));
    entry.set(gimli::DW_AT_name, AttributeValue::StringRef(producer));
    entry.set(gimli::DW_AT_language, AttributeValue::Language(gimli::DW_LANG_C99));
    entry.set(gimli::DW_AT_low_pc, AttributeValue::Address(Address::Constant(TEXT_VADDR)));
    entry.set(gimli::DW_AT_high_pc, AttributeValue::Udata(end));
    entry.set(gimli::DW_AT_stmt_list, AttributeValue::LineProgramRef);
    for function in functions() {
        let name = dwarf.strings.add(function.name.replace('\0', ""));
        let entry = dwarf.unit.add(root, gimli::DW_TAG_subprogram);
        let entry = dwarf.unit.get_mut(entry);
        entry.set(gimli::DW_AT_name, AttributeValue::StringRef(name));
        entry.set(gimli::DW_AT_external, AttributeValue::Flag(function.global));
        entry.set(gimli::DW_AT_low_pc, AttributeValue::Address(Address::Constant(TEXT_VADDR.wrapping_add(function.value))));
        entry.set(gimli::DW_AT_high_pc, AttributeValue::Udata(function.size));
    }
    let mut sections = Sections::new(EndianVec::new(LittleEndian));
    dwarf.write(&mut sections)?;
    Ok(DebugSections {
        abbrev: sections.debug_abbrev.0.into_vec(),
        info: sections.debug_info.0.into_vec(),
        line: sections.debug_line.0.into_vec(),
        strings: sections.debug_str.0.into_vec(),
        ..DebugSections::default()
    })
}

/// The line program: a sequence for each run of text whose lines are known.
fn program(located: &[(u32, Option<Row>)], end: u64, files: &Files) -> LineProgram {
    // Directory 0 is not written before DWARF 5; no file refers to it unless its directory is unknown.
    let here = LineString::String(b".".to_vec());
    let name = LineString::String(b"cordon".to_vec());
    let mut program = LineProgram::new(ENCODING, LineEncoding::default(), here, None, name, None);
    let mut ids = vec![None; files.list.len()];
    // Start of the open sequence and the row written last.
    let mut open: Option<(u64, Row)> = None;
    let mut behind = 0;
    for (i, (new, row)) in located.iter().enumerate() {
        let new = u64::from(*new);
        // Of entries for one offset the last counts; what is out of order cannot be said in a line program.
        if new < behind || located.get(i + 1).is_some_and(|(next, _)| u64::from(*next) == new) {
            continue;
        }
        behind = new + 1;
        let Some((row, position)) = row.and_then(|row| row.position.map(|p| (row, p))) else {
            if let Some((start, _)) = open.take() {
                program.end_sequence(new - start);
            }
            continue;
        };
        if open.is_some_and(|(_, last)| last == row) {
            continue;
        }
        let start = open.map_or(new, |(start, _)| start);
        if open.is_none() {
            program.begin_sequence(Some(Address::Constant(TEXT_VADDR + start)));
        }
        open = Some((start, row));
        let file = *ids[position.file.0].get_or_insert_with(|| add_file(&mut program, files, position.file));
        let out = program.row();
        out.address_offset = new - start;
        out.file = file;
        out.line = u64::from(position.line);
        out.column = u64::from(position.column);
        out.is_statement = row.statement;
        out.prologue_end = row.prologue_end;
        program.generate_row();
    }
    if let Some((start, _)) = open {
        program.end_sequence(end.max(behind) - start);
    }
    program
}

fn add_file(program: &mut LineProgram, files: &Files, id: FileId) -> gimli::write::FileId {
    let (directory, name) = &files.list[id.0];
    let directory = match directory.is_empty() {
        true => program.default_directory(),
        false => program.add_directory(LineString::String(directory.clone())),
    };
    program.add_file(LineString::String(name.clone()), directory, None)
}
