//! Phase 9: data sections with their relocations resolved to window offsets, slots and table indices.

use crate::diag::{Diagnostic, Reason, Refusals};
use crate::elf;
use crate::emit::Segment;
use crate::functions::{CodeRef, exact_target};
use crate::plan::Env;
use crate::program::{Reloc, SectionId, SectionKind};
use crate::select::GotWord;
use crate::space::SELF;
use crate::tables::TableKind;

/// The canary at offset 0x28 of the thread control block: not secret, a zero byte in front stops string functions.
const CANARY: u64 = 0x5bd1_e995_c3a5_7700;

/// Builds the read-only and the writable segment.
///
/// # Errors
/// Relocations that have no meaning in a window.
pub fn data(env: Env<'_>) -> Result<(Segment, Segment), Refusals> {
    let space = env.space;
    let mut rodata = Segment { start: space.rodata.0, bytes: Vec::new(), size: space.rodata.1 - space.rodata.0 };
    let mut data = Segment { start: space.data.0, bytes: Vec::new(), size: space.data.1 - space.data.0 };
    let mut problems = Vec::new();
    for (&id, &at) in &space.sections {
        let section = env.program.section(id);
        let segment = if at < space.rodata.1 { &mut rodata } else { &mut data };
        let from = (at - segment.start) as usize;
        if !section.data.is_empty() {
            put(&mut segment.bytes, from, &section.data);
        }
        for reloc in &section.relocs {
            match value(env, id, at, reloc) {
                Ok((bytes, width)) => put(&mut segment.bytes, from + reloc.offset as usize, &bytes.to_le_bytes()[..width]),
                Err((code, message)) => problems.push(Diagnostic::new(env.program.place(id, reloc.offset), code, message)),
            }
        }
    }
    for (word, at) in &space.got {
        let value = got(env, *word);
        put(&mut rodata.bytes, (at - rodata.start) as usize, &value.to_le_bytes());
    }
    let mut fixed = |at: u32, value: u64| put(&mut data.bytes, (at - data.start) as usize, &value.to_le_bytes());
    fixed(space.thread_pointer, space.thread_pointer.into());
    fixed(space.thread_pointer + SELF, space.thread_pointer.into());
    fixed(space.thread_pointer + 0x28, CANARY);
    fixed(space.arena_word, space.arena_top.into());
    if problems.is_empty() {
        Ok((rodata, data))
    } else {
        problems.sort();
        Err(Refusals(problems))
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, what: &[u8]) {
    if bytes.len() < at + what.len() {
        bytes.resize(at + what.len(), 0);
    }
    bytes[at..at + what.len()].copy_from_slice(what);
}

/// The window offset, slot value or number that `symbol + addend` stands for in data of no particular body.
fn symbol(env: Env<'_>, reloc: &Reloc) -> Result<i64, Reason> {
    match exact_target(env.program, reloc) {
        Some((section, offset)) if env.program.section(section).kind == SectionKind::Text => {
            Ok(code(env, CodeRef { section, offset }))
        }
        _ => crate::plan::memory::data_value(env, reloc),
    }
}

/// A function's slot, or the index of a label in the computed gotos of the function around it; 0 (the trap) for code that is not reached.
fn code(env: Env<'_>, at: CodeRef) -> i64 {
    if let Some(slot) = env.space.function_slots.get(&at) {
        return i64::from(*slot) * 8;
    }
    let owner = (0..env.chosen.bodies.len()).find_map(|i| env.space.label_value(i, at));
    owner.map_or(0, i64::from)
}

fn got(env: Env<'_>, word: GotWord) -> i64 {
    let (id, thread) = match word {
        GotWord::Address(id) => (id, false),
        GotWord::ThreadOffset(id) => (id, true),
    };
    let reloc = Reloc { offset: 0, kind: elf::R_X86_64_64, symbol: id, addend: 0 };
    let value = symbol(env, &reloc).unwrap_or(0);
    if thread { value - i64::from(env.space.thread_pointer) } else { value }
}

/// The number that goes into a relocated field, and the field's width in bytes.
type Field = Result<(i64, usize), Reason>;

fn value(env: Env<'_>, id: SectionId, at: u32, reloc: &Reloc) -> Field {
    let place = i64::from(at) + reloc.offset.cast_signed();
    if let Some(found) = table_entry(env, id, reloc) {
        return found;
    }
    let fits = |value: i64, width: usize| {
        let range = if width == 4 { i32::try_from(value).is_ok() || u32::try_from(value).is_ok() } else { true };
        if range { Ok((value, width)) } else { Err(("address-range", format!("{value:#x} does not fit 4 bytes"))) }
    };
    let code = exact_target(env.program, reloc).is_some_and(|(s, _)| env.program.section(s).kind == SectionKind::Text);
    if code {
        no_lost_table(env, id, reloc)?;
    }
    match reloc.kind {
        elf::R_X86_64_64 => Ok((symbol(env, reloc)?, 8)),
        elf::R_X86_64_32 | elf::R_X86_64_32S => fits(symbol(env, reloc)?, 4),
        // A relative table of code that is not reached (else `table_entry` knew it): nobody reads it.
        elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 if code => Ok((0, 4)),
        elf::R_X86_64_PC32 => fits(symbol(env, reloc)? - place, 4),
        elf::R_X86_64_PC64 => Ok((symbol(env, reloc)? - place, 8)),
        elf::R_X86_64_TPOFF64 => Ok((symbol(env, reloc)? - i64::from(env.space.thread_pointer), 8)),
        elf::R_X86_64_DTPOFF64 => Ok((symbol(env, reloc)? - i64::from(env.space.tls_start), 8)),
        elf::R_X86_64_SIZE64 => Ok((env.program.symbol(reloc.symbol).size.cast_signed().wrapping_add(reloc.addend), 8)),
        kind => Err(("unsupported-relocation", format!("relocation type {kind} in data"))),
    }
}

/// A reference to the inside of a function that is reached must be one that some jump of it was seen to use.
fn no_lost_table(env: Env<'_>, id: SectionId, reloc: &Reloc) -> Result<(), Reason> {
    let Some((section, offset)) = exact_target(env.program, reloc) else { return Ok(()) };
    let relative = matches!(reloc.kind, elf::R_X86_64_PC32 | elf::R_X86_64_PLT32);
    let at = CodeRef { section, offset };
    if env.space.function_slots.contains_key(&at) && !relative {
        return Ok(());
    }
    // A relative entry's target depends on where its table starts, which only the jump knows: the function around it is what can be told. It may
    // lie in front of that function, in one that is not reached, if the table starts where code refers to last before the entry.
    let owner = |offset: u64| {
        let around = |body: &crate::body::Body| {
            let range = env.functions.containing(body.entry);
            range.is_some_and(|r| body.entry.section == section && r.start <= offset && offset < r.end)
        };
        env.chosen.bodies.iter().position(around)
    };
    if relative && let Some(start) = env.functions.last_reference(id, reloc.offset) {
        let first = offset.wrapping_sub(reloc.offset - start);
        let unreached = env.functions.containing(CodeRef { section, offset: first }).is_some() && owner(first).is_none();
        if unreached {
            return Ok(());
        }
    }
    match owner(offset) {
        Some(index) if relative || env.space.label_value(index, at).is_none() => {
            let name = &env.chosen.bodies[index].name;
            let section = &env.program.section(id).name;
            Err((
                "unrecognized-code-reference",
                format!("`{section}` refers into `{name}`, but no jump of it was seen to use that"),
            ))
        }
        _ => Ok(()),
    }
}

/// The value of a jump table's entry.
fn table_entry(env: Env<'_>, id: SectionId, reloc: &Reloc) -> Option<Field> {
    let (body, table) = *env.space.table_places.get(&(id, reloc.offset))?;
    let found = &env.chosen.bodies[body as usize].tables[table as usize];
    let index = found.entries.binary_search_by_key(&reloc.offset, |(at, _)| *at).ok()?;
    let group = env.space.group_of_table(body as usize, table)?;
    let value = i64::from(group.entry_value(index, found.entries[index].1)?);
    Some(Ok(match found.kind {
        TableKind::Absolute => (value, if reloc.kind == elf::R_X86_64_64 { 8 } else { 4 }),
        TableKind::Relative => (value - env.space.start_of_table(found)?, 4),
    }))
}
