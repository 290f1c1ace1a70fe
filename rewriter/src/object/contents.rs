//! The bytes and relocations of the sections of one participating object.

use super::classify::{self, Role};
use super::parse::ObjectFile;
use super::{Report, fields};
use crate::diag::{Diagnostic, Place};
use crate::program::SectionKind;
use object::elf;
use std::collections::HashMap;

/// Bytes of an `Elf64_Rela`.
const RELA: usize = 24;

/// Greatest distance from a symbol: beyond all that compilers mean, and sums of several do not overflow.
const MOST_ADDEND: u64 = 1 << 40;

/// A relocation whose symbol is still an index into the object's symbol table (in range).
#[derive(Clone, Copy, Debug)]
pub(super) struct RawReloc {
    pub offset: u64,
    pub kind: u32,
    pub symbol: usize,
    pub addend: i64,
}

/// A section as it enters the program.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub data: Vec<u8>,
    /// Ascending, in range, no two at overlapping fields.
    pub relocs: Vec<RawReloc>,
}

/// Reads sections of one object.
pub(super) struct Reader<'o, 'a> {
    object: &'o ObjectFile<'a>,
    /// Relocation sections by the section that they apply to.
    relocations: HashMap<usize, Vec<usize>>,
}

impl<'o, 'a> Reader<'o, 'a> {
    /// Sorts out which relocation section belongs to which section, and reports the sections that are refused.
    pub fn new(object: &'o ObjectFile<'a>, discarded: &[bool], report: &mut Report) -> Self {
        let mut relocations: HashMap<usize, Vec<usize>> = HashMap::new();
        for (index, section) in object.sections.iter().enumerate() {
            match section.role {
                Role::Relocations => {
                    let target = section.info as usize;
                    let sound = target != 0
                        && object.sections.get(target).is_some_and(|t| t.role != Role::Relocations)
                        && section.link as usize == object.symbol_table
                        && section.file.len().is_multiple_of(RELA);
                    if sound {
                        relocations.entry(target).or_default().push(index);
                    } else {
                        let message = "the relocation section has no valid target, symbol table or size";
                        report.push(Diagnostic::new(object.place(index, None), "malformed-relocation", message));
                    }
                }
                Role::Refused(code, message) if !discarded[index] => {
                    report.push(Diagnostic::new(object.place(index, None), code, message));
                }
                _ => {}
            }
        }
        Reader { object, relocations }
    }

    /// Section `index`, which is kept as `kind`.
    pub fn section(&self, index: usize, kind: SectionKind, report: &mut Report) -> Contents {
        let relocs = self.relocs(index, report);
        let mut contents = Contents { data: self.object.bytes(index).to_vec(), relocs };
        if kind == SectionKind::InitArray {
            self.constructors(index, &mut contents, report);
        }
        contents
    }

    /// The DWARF sections with their indices; none at all if one of them is compressed or malformed.
    pub fn debug(&self, discarded: &[bool]) -> Vec<(usize, Contents)> {
        let mut found = Vec::new();
        let mut problems = Report::default();
        for (index, section) in self.object.sections.iter().enumerate() {
            if section.role != Role::Debug || discarded[index] {
                continue;
            }
            if section.flags & elf::SHF_COMPRESSED.0 != 0 {
                return Vec::new();
            }
            let relocs = self.relocs(index, &mut problems);
            found.push((index, Contents { data: self.object.bytes(index).to_vec(), relocs }));
        }
        if problems.done().is_ok() { found } else { Vec::new() }
    }

    /// The relocations of section `index`, sorted and checked.
    fn relocs(&self, index: usize, report: &mut Report) -> Vec<RawReloc> {
        let Some(tables) = self.relocations.get(&index) else { return Vec::new() };
        let mut relocs = Vec::new();
        for &table in tables {
            for entry in self.object.bytes(table).chunks_exact(RELA) {
                let reloc = decode(entry);
                match self.check(index, &reloc) {
                    Ok(0) if reloc.kind == elf::R_X86_64_NONE.0 => {}
                    Ok(_) => relocs.push(reloc),
                    Err((code, message)) => {
                        report.push(Diagnostic::new(self.reloc_place(index, &reloc), code, message));
                    }
                }
            }
        }
        relocs.sort_by_key(|r| r.offset);
        let mut end = 0;
        for reloc in &relocs {
            let width = fields::width(reloc.kind).unwrap_or(0);
            if width > 0 && reloc.offset < end {
                let message = "two relocations fill in the same bytes";
                report.push(Diagnostic::new(self.reloc_place(index, reloc), "overlapping-relocations", message));
            }
            end = end.max(reloc.offset.saturating_add(width));
        }
        relocs
    }

    /// The width of the relocation's field, if it is one that can stand there.
    fn check(&self, index: usize, reloc: &RawReloc) -> Result<u64, (&'static str, String)> {
        let width = fields::width(reloc.kind)
            .ok_or_else(|| ("unsupported-relocation", format!("{} is not supported", fields::refused_name(reloc.kind))))?;
        let size = self.object.bytes(index).len() as u64;
        if reloc.offset.checked_add(width).is_none_or(|end| end > size) {
            return Err(("relocation-out-of-range", "the relocation lies outside of its section".to_owned()));
        }
        if reloc.addend.unsigned_abs() > MOST_ADDEND {
            return Err(("relocation-out-of-range", format!("{:#x} is too far from any symbol", reloc.addend)));
        }
        match self.object.symbols.get(reloc.symbol) {
            Some(symbol) if symbol.kind != elf::STT_FILE => Ok(width),
            _ => Err(("malformed-relocation", format!("the relocation's symbol {} does not exist", reloc.symbol))),
        }
    }

    fn reloc_place(&self, index: usize, reloc: &RawReloc) -> Place {
        let symbol = self.object.symbols.get(reloc.symbol).filter(|s| !s.name.is_empty());
        Place { symbol: symbol.map(|s| s.name.to_owned()), ..self.object.place(index, Some(reloc.offset)) }
    }

    /// Checks that a constructor array consists of relocated pointers, and turns one that runs backward around.
    fn constructors(&self, index: usize, contents: &mut Contents, report: &mut Report) {
        let pointer = elf::R_X86_64_64.0;
        if self.object.sections[index].name == classify::INIT {
            match calls_as_pointers(contents) {
                Some(pointers) => *contents = pointers,
                None => {
                    let message = "code in .init that does more than call functions; use a constructor in .init_array";
                    report.push(Diagnostic::new(self.object.place(index, None), "init-section", message));
                }
            }
            return;
        }
        let sound = contents.data.len() == contents.relocs.len() * 8
            && contents.relocs.iter().enumerate().all(|(i, r)| r.kind == pointer && r.offset == i as u64 * 8);
        if !sound {
            let message = "an array of constructors must consist of 8-byte pointers (R_X86_64_64)";
            report.push(Diagnostic::new(self.object.place(index, None), "malformed-constructors", message));
        } else if classify::runs_backward(self.object.sections[index].name) {
            let last = (contents.relocs.len() as u64).saturating_sub(1) * 8;
            contents.relocs.reverse();
            contents.relocs.iter_mut().for_each(|r| r.offset = last - r.offset);
        }
    }
}

/// The array of constructors that does what a section of direct calls (`e8 rel32`) does.
fn calls_as_pointers(calls: &Contents) -> Option<Contents> {
    let call = |(i, bytes): (usize, &[u8])| {
        let reloc = calls.relocs.get(i)?;
        let kind = elf::RelocationType(reloc.kind);
        let direct = matches!(kind, elf::R_X86_64_PLT32 | elf::R_X86_64_PC32);
        let sound = direct && bytes.len() == 5 && bytes[0] == 0xe8 && reloc.offset == i as u64 * 5 + 1;
        // The call's field counts from its end.
        let addend = reloc.addend.checked_add(4)?;
        sound.then_some(RawReloc { offset: i as u64 * 8, kind: elf::R_X86_64_64.0, symbol: reloc.symbol, addend })
    };
    let relocs: Vec<_> = calls.data.chunks(5).enumerate().map(call).collect::<Option<_>>()?;
    (relocs.len() == calls.relocs.len()).then(|| Contents { data: vec![0; relocs.len() * 8], relocs })
}

fn decode(entry: &[u8]) -> RawReloc {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&entry[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let info = word(8);
    RawReloc { offset: word(0), kind: info as u32, symbol: (info >> 32) as usize, addend: word(16).cast_signed() }
}
