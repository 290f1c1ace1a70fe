//! Jump tables: found at the instruction that reads them, sized by the relocations that fill them.

use crate::elf;
use crate::functions::{CodeRef, Functions, exact_target, is_absolute};
use crate::program::{Program, Reloc, SectionId, SectionKind};

/// Number of a table within its body, below 64.
pub type TableId = u32;

/// How a table's entries stand for code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// 8-byte addresses.
    Absolute,
    /// 4-byte distances from the table's start.
    Relative,
}

/// A jump table in a data section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub section: SectionId,
    pub offset: u64,
    pub kind: TableKind,
    /// Offset of each entry in the section, and the code it names; none for a case that cannot occur (the compiler names the function's end).
    pub entries: Vec<(u64, Option<CodeRef>)>,
}

/// The table of `kind` at `section + offset` whose entries lie in the function around `entry`, if there is one.
#[must_use]
pub fn find(
    program: &Program,
    functions: &Functions,
    entry: CodeRef,
    section: SectionId,
    offset: i64,
    kind: TableKind,
) -> Option<Table> {
    let start = u64::try_from(offset).ok()?;
    let data = program.section(section);
    if data.kind == SectionKind::Text {
        return None;
    }
    let width = if kind == TableKind::Absolute { 8 } else { 4 };
    let end = functions.next_reference(section, start);
    let first = data.relocs.partition_point(|r| r.offset < start);
    let mut entries = Vec::new();
    for (i, reloc) in data.relocs[first..].iter().enumerate() {
        let place = start + i as u64 * width;
        if reloc.offset != place || place >= end {
            break;
        }
        match entry_target(program, reloc, start, kind) {
            Some(to) if belongs(functions, entry, to) => entries.push((place, Some(to))),
            Some(to) if is_end(functions, entry, to) => entries.push((place, None)),
            _ => break,
        }
    }
    // A table of nothing but function starts holds function pointers.
    let inside = |to: &CodeRef| functions.start_at(*to).is_none_or(|r| r.cold);
    entries.iter().any(|(_, to)| to.as_ref().is_some_and(inside)).then_some(Table { section, offset: start, kind, entries })
}

fn entry_target(program: &Program, reloc: &Reloc, table: u64, kind: TableKind) -> Option<CodeRef> {
    let exact = match kind {
        TableKind::Absolute if is_absolute(reloc.kind) => *reloc,
        // The entry holds target − table; its relocation says target − place.
        TableKind::Relative if matches!(reloc.kind, elf::R_X86_64_PC32 | elf::R_X86_64_PLT32) => {
            Reloc { addend: reloc.addend.wrapping_sub_unsigned(reloc.offset - table), ..*reloc }
        }
        _ => return None,
    };
    let (section, offset) = exact_target(program, &exact)?;
    let text = program.section(section);
    (text.kind == SectionKind::Text && offset <= text.size).then_some(CodeRef { section, offset })
}

/// Whether `to` is the place right behind the function at `entry`.
fn is_end(functions: &Functions, entry: CodeRef, to: CodeRef) -> bool {
    functions.containing(entry).is_some_and(|own| to.section == entry.section && to.offset == own.end)
}

/// Whether code at `to` can be a case of a switch in the function at `entry`: in its own range or in a split-off cold part.
fn belongs(functions: &Functions, entry: CodeRef, to: CodeRef) -> bool {
    let Some(own) = functions.containing(entry) else { return to.section == entry.section };
    if to.section == entry.section && own.start <= to.offset && to.offset < own.end {
        return true;
    }
    functions.containing(to).is_some_and(|r| r.cold)
}
