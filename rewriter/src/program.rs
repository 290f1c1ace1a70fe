//! The merged input: sections, symbols and relocations of every object that takes part, with all references resolved.

use crate::diag::Place;
use std::collections::BTreeMap;

/// An object file or archive member that takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(pub u32);

/// A kept, allocated input section.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectionId(pub u32);

/// A symbol after resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SymbolId(pub u32);

/// What a section holds; decides where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectionKind {
    /// SHF_EXECINSTR.
    Text,
    /// Allocated, neither writable nor executable (also `.data.rel.ro`: nothing is relocated at load).
    Rodata,
    /// Writable with bytes.
    Data,
    /// Writable, SHT_NOBITS (COMMON symbols too).
    Bss,
    /// SHF_TLS with bytes: the template of the one TLS block.
    TlsData,
    /// SHF_TLS, SHT_NOBITS.
    TlsBss,
    /// `.init_array*`, `.preinit_array`, `.ctors*` (in run order once merged): pointers to constructors.
    InitArray,
    /// `.fini_array*`: pointers to what a whole program runs at exit, last one first.
    FiniArray,
}

/// A relocation (psABI x86-64 table 4.9). All are RELA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reloc {
    /// Offset in the section.
    pub offset: u64,
    /// ELF type, `object::elf::R_X86_64_*`.
    pub kind: u32,
    pub symbol: SymbolId,
    pub addend: i64,
}

/// One input section of a participating object. COMDAT losers, debug, notes, `.eh_frame` and excluded sections are not here.
#[derive(Clone, Debug)]
pub struct Section {
    pub object: ObjectId,
    /// ELF section index in its object (for debug information); 0 for synthesised sections.
    pub index: usize,
    pub name: String,
    pub kind: SectionKind,
    /// Power of two.
    pub align: u64,
    /// Bytes; empty for Bss and TlsBss.
    pub data: Vec<u8>,
    /// Size in memory; equals `data.len()` unless Bss or TlsBss.
    pub size: u64,
    /// Ascending by offset, no two at overlapping fields.
    pub relocs: Vec<Reloc>,
}

/// What a symbol stands for after resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Definition {
    /// Offset in a kept section.
    Section(SectionId, u64),
    /// SHN_ABS.
    Absolute(u64),
    /// No definition anywhere; `weak` ones resolve to 0.
    Undefined { weak: bool },
}

/// ELF symbol type, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SymbolKind {
    Function,
    Object,
    Section,
    Tls,
    Other,
}

/// A symbol. Globals of the same name from several objects are one symbol here; locals are one each.
#[derive(Clone, Debug)]
pub struct Symbol {
    /// Empty for section symbols.
    pub name: String,
    pub definition: Definition,
    pub size: u64,
    pub kind: SymbolKind,
    /// STB_GLOBAL or STB_WEAK (default visibility or not).
    pub global: bool,
    /// Object of the definition, or of the first reference.
    pub object: ObjectId,
}

/// The DWARF sections of one object with their relocations, kept for line tables.
#[derive(Clone, Debug, Default)]
pub struct DebugSection {
    pub name: String,
    pub data: Vec<u8>,
    /// Relocations against `SymbolId`s (section symbols of dropped sections resolve to undefined).
    pub relocs: Vec<Reloc>,
}

/// A participating object.
#[derive(Clone, Debug)]
pub struct ObjectInfo {
    /// `file.o` or `lib.a(member.o)`.
    pub name: String,
    /// Named on the command line as an object (its global functions are entries), not pulled out of an archive.
    pub explicit: bool,
    pub debug: Vec<DebugSection>,
}

/// Everything that later phases read; none changes it.
#[derive(Clone, Debug, Default)]
pub struct Program {
    pub objects: Vec<ObjectInfo>,
    pub sections: Vec<Section>,
    pub symbols: Vec<Symbol>,
    /// Global symbols by name.
    pub globals: BTreeMap<String, SymbolId>,
    /// The section of the function that stands for `syscall` instructions, if there is one (`crate::syscall`).
    pub syscall: Option<SectionId>,
}

impl Program {
    /// The section `id`.
    #[must_use]
    pub fn section(&self, id: SectionId) -> &Section {
        &self.sections[id.0 as usize]
    }

    /// The symbol `id`.
    #[must_use]
    pub fn symbol(&self, id: SymbolId) -> &Symbol {
        &self.symbols[id.0 as usize]
    }

    /// The place of `offset` in section `id`, with the function or object symbol that covers it.
    #[must_use]
    pub fn place(&self, id: SectionId, offset: u64) -> Place {
        let section = self.section(id);
        let symbol = self
            .symbols
            .iter()
            .filter(|s| s.kind != SymbolKind::Section && !s.name.is_empty())
            .filter_map(|s| match s.definition {
                Definition::Section(at, start) if at == id && start <= offset && (offset < start + s.size || s.size == 0) => {
                    Some((start, s))
                }
                _ => None,
            })
            .max_by_key(|(start, _)| *start)
            .map(|(_, s)| s.name.clone());
        Place {
            object: self.objects[section.object.0 as usize].name.clone(),
            section: Some(section.name.clone()),
            offset: Some(offset),
            symbol,
        }
    }
}
