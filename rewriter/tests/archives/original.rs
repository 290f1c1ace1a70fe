//! The objects before they are rewritten, read anew: sections, symbols, relocations.

use cordon_rewriter::object::Input;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};
use object::elf;
use object::read::archive::ArchiveFile;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags, SymbolSection};
use std::collections::HashMap;

/// A place in a section of an object; common symbols are sections of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub object: usize,
    pub section: usize,
    pub offset: i64,
}

/// What a symbol plus an addend stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meaning {
    Place(Place),
    Number(i64),
    /// Nobody defines it.
    Absent {
        name: String,
        weak: bool,
        addend: i64,
    },
}

#[derive(Clone, Copy, Debug)]
pub struct Reloc {
    pub offset: u64,
    pub kind: u32,
    pub addend: i64,
    symbol: usize,
}

#[derive(Debug, Default)]
pub struct Section {
    pub data: Vec<u8>,
    pub size: u64,
    pub code: bool,
    /// Allocated, and part of the program.
    pub kept: bool,
    /// Ascending.
    pub relocs: Vec<Reloc>,
}

#[derive(Debug)]
struct Symbol {
    name: String,
    global: bool,
    weak: bool,
    function: bool,
    /// None = undefined.
    at: Option<Meaning>,
}

#[derive(Debug)]
pub struct Object {
    pub name: String,
    /// By ELF index, then those of common symbols.
    pub sections: Vec<Section>,
    symbols: Vec<Symbol>,
}

#[derive(Debug)]
pub struct Originals {
    pub objects: Vec<Object>,
    globals: HashMap<String, (usize, usize)>,
}

/// Functions that give way to something else, whoever defines them.
const OF_THE_HOST: [&str; 10] = [
    "setjmp",
    "_setjmp",
    "__setjmp",
    "sigsetjmp",
    "__sigsetjmp",
    "longjmp",
    "_longjmp",
    "siglongjmp",
    "__longjmp_chk",
    TLS_RESOLVER,
];
/// Its argument is the address already.
pub const TLS_RESOLVER: &str = "__tls_get_addr";

/// `SHN_COMMON` of the symbol `index`, as a section number.
const COMMON: usize = 1 << 20;

impl Originals {
    pub fn read(members: &[Input]) -> Originals {
        let objects: Vec<Object> = members.iter().enumerate().map(|(number, m)| read(number, m)).collect();
        let mut globals: HashMap<String, (usize, usize)> = HashMap::new();
        for (o, object) in objects.iter().enumerate() {
            for (s, symbol) in
                object.symbols.iter().enumerate().filter(|(_, s)| s.global && s.at.is_some() && !OF_THE_HOST.contains(&&*s.name))
            {
                let better = |old: &(usize, usize)| {
                    let old = &objects[old.0].symbols[old.1];
                    old.weak && !symbol.weak || is_common(old) && !is_common(symbol)
                };
                if globals.get(&symbol.name).is_none_or(better) {
                    globals.insert(symbol.name.clone(), (o, s));
                }
            }
        }
        Originals { objects, globals }
    }

    pub fn section(&self, place: Place) -> Option<&Section> {
        self.objects[place.object].sections.get(place.section)
    }

    pub fn is_code(&self, place: Place) -> bool {
        self.section(place).is_some_and(|s| s.code)
    }

    /// What the relocation's symbol plus `addend` stands for.
    pub fn meaning(&self, object: usize, reloc: &Reloc, addend: i64) -> Meaning {
        let own = &self.objects[object].symbols[reloc.symbol];
        let found = if own.global { self.globals.get(&own.name).map(|(o, s)| &self.objects[*o].symbols[*s]) } else { Some(own) };
        match found.and_then(|s| s.at.clone()) {
            Some(Meaning::Place(place)) => Meaning::Place(Place { offset: place.offset + addend, ..place }),
            Some(Meaning::Number(n)) => Meaning::Number(n + addend),
            _ => Meaning::Absent { name: own.name.clone(), weak: own.weak, addend },
        }
    }

    /// The instruction at `place`, with its section offset as address.
    pub fn decode(&self, place: Place) -> Instruction {
        let data = self.section(place).map_or(&[] as &[u8], |s| &s.data);
        let from = usize::try_from(place.offset).unwrap_or(usize::MAX).min(data.len());
        Decoder::with_ip(64, &data[from..], place.offset as u64, DecoderOptions::NONE).decode()
    }

    /// The relocations of the instruction at `place`.
    pub fn relocs(&self, place: Place, length: usize) -> &[Reloc] {
        let Some(section) = self.section(place) else { return &[] };
        let from = section.relocs.partition_point(|r| (r.offset as i64) < place.offset);
        let to = section.relocs.partition_point(|r| (r.offset as i64) < place.offset + length as i64);
        &section.relocs[from..to]
    }

    /// Where the direct branch or call at `place` goes.
    pub fn branch_target(&self, place: Place, insn: &Instruction) -> Meaning {
        match self.relocs(place, insn.len()) {
            [] => Meaning::Place(Place { offset: insn.near_branch_target() as i64, ..place }),
            // The field is at the instruction's end, and the addend counts from the field.
            [.., reloc] => {
                self.meaning(place.object, reloc, reloc.addend + place.offset + insn.len() as i64 - reloc.offset as i64)
            }
        }
    }

    /// The relocation of the displacement (true) or immediate of the instruction at `place`.
    pub fn field(&self, place: Place, insn: &Instruction, displacement: bool) -> Option<&Reloc> {
        let memory = (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory);
        let immediate = insn.len() - immediate_start(insn);
        let end = place.offset as u64 + insn.len() as u64;
        let tail = |r: &&Reloc| end - r.offset;
        self.relocs(place, insn.len()).iter().find(|r| match displacement {
            true => memory && tail(r) == 4 + immediate as u64,
            false => immediate != 0 && tail(r) == immediate as u64,
        })
    }

    /// Every global function: object, name and place.
    pub fn global_functions(&self) -> impl Iterator<Item = (&str, Place)> {
        self.globals.iter().filter_map(|(name, (o, s))| match &self.objects[*o].symbols[*s] {
            Symbol { function: true, at: Some(Meaning::Place(place)), .. } if self.is_code(*place) => {
                Some((name.as_str(), *place))
            }
            _ => None,
        })
    }
}

/// Where in the instruction its immediate starts; its length if it has none.
fn immediate_start(insn: &Instruction) -> usize {
    let size = |i| match insn.op_kind(i) {
        OpKind::Immediate8
        | OpKind::Immediate8_2nd
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64 => 1,
        OpKind::Immediate16 => 2,
        OpKind::Immediate32 | OpKind::Immediate32to64 => 4,
        OpKind::Immediate64 => 8,
        _ => 0,
    };
    insn.len() - (0..insn.op_count()).map(size).sum::<usize>()
}

fn is_common(symbol: &Symbol) -> bool {
    matches!(&symbol.at, Some(Meaning::Place(place)) if place.section >= COMMON)
}

fn read(number: usize, member: &Input) -> Object {
    let archive = ArchiveFile::parse(&*member.bytes).expect("an archive");
    let data = archive.members().next().expect("a member").and_then(|m| m.data(&*member.bytes)).expect("its bytes");
    let file = ElfFile64::<LittleEndian>::parse(data).expect("an object");
    let last = file.sections().map(|s| s.index().0).max().unwrap_or(0);
    let mut sections: Vec<Section> = Vec::new();
    sections.resize_with(last + 1, Section::default);
    for section in file.sections() {
        let flags = section.elf_section_header().sh_flags.get(LittleEndian).0;
        let reloc = |(offset, r): (u64, object::Relocation)| {
            let (RelocationFlags::Elf { r_type }, object::RelocationTarget::Symbol(symbol)) = (r.flags(), r.target()) else {
                panic!("{}: a relocation without a symbol", member.name)
            };
            Reloc { offset, kind: r_type.0, addend: r.addend(), symbol: symbol.0 }
        };
        let mut relocs: Vec<Reloc> = section.relocations().map(reloc).collect();
        relocs.sort_by_key(|r| r.offset);
        let unwinding = section.name().is_ok_and(|n| n.starts_with(".eh_frame") || n.starts_with(".note"));
        sections[section.index().0] = Section {
            data: section.data().unwrap_or_default().to_vec(),
            size: section.size(),
            code: flags & elf::SHF_EXECINSTR.0 != 0,
            kept: flags & elf::SHF_ALLOC.0 != 0 && !unwinding,
            relocs,
        };
    }
    let mut symbols: Vec<Symbol> = Vec::new();
    for symbol in file.symbols() {
        // The null symbol is not listed.
        while symbols.len() < symbol.index().0 {
            symbols.push(Symbol {
                name: String::new(),
                global: false,
                weak: false,
                function: false,
                at: Some(Meaning::Number(0)),
            });
        }
        let at = |section| Meaning::Place(Place { object: number, section, offset: symbol.address() as i64 });
        let at = match symbol.section() {
            SymbolSection::Section(index) => Some(at(index.0)),
            SymbolSection::Absolute => Some(Meaning::Number(symbol.address() as i64)),
            SymbolSection::Common => {
                Some(Meaning::Place(Place { object: number, section: COMMON + symbol.index().0, offset: 0 }))
            }
            _ => None,
        };
        symbols.push(Symbol {
            name: symbol.name().unwrap_or_default().to_owned(),
            global: symbol.is_global(),
            weak: symbol.is_weak(),
            function: symbol.kind() == object::SymbolKind::Text,
            at,
        });
    }
    Object { name: member.name.clone(), sections, symbols }
}
