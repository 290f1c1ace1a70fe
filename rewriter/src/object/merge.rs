//! Numbers the kept sections and the symbols of the objects that take part and translates their relocations.

use super::classify::{self, Role};
use super::contents::{RawReloc, Reader};
use super::parse::{At, Bind, InputSymbol};
use super::resolve::{Link, State};
use super::{MergeOptions, Report};
use crate::diag::{Diagnostic, Place};
use crate::program::{
    DebugSection, Definition, ObjectId, ObjectInfo, Program, Reloc, Section, SectionId, SectionKind, Symbol, SymbolId, SymbolKind,
};
use object::elf;
use std::collections::{HashMap, HashSet};

/// The merged program.
pub(super) fn merge(link: &Link, options: &MergeOptions, report: &mut Report) -> Program {
    let mut merger = Merger { link, program: Program::default(), sections: Vec::new(), symbols: Vec::new() };
    let order = merger.number_sections();
    merger.number_symbols(options);
    merger.fill(&order, report);
    refuse_ifunc_entries(link, options, report);
    merger.program
}

struct Merger<'l, 'a> {
    link: &'l Link<'a>,
    program: Program,
    /// By object and ELF section index.
    sections: Vec<Vec<Option<SectionId>>>,
    /// By object and symbol table index; `None` for file names.
    symbols: Vec<Vec<Option<SymbolId>>>,
}

/// `value` as an index of the 32-bit kind that the program uses.
///
/// Every section and symbol takes part of an input file (24 bytes at least), so there cannot be 2^32 of them in memory.
fn number(value: usize) -> u32 {
    u32::try_from(value).expect("fewer than 2^32 sections, symbols and objects fit in memory")
}

impl Merger<'_, '_> {
    /// Gives every kept section its id: link order, constructors last in run order. Returns object and ELF index by id.
    fn number_sections(&mut self) -> Vec<(usize, usize, SectionKind)> {
        let mut order = Vec::new();
        let mut constructors = Vec::new();
        for (o, object) in self.link.objects.iter().enumerate() {
            for (i, section) in object.sections.iter().enumerate() {
                match section.role {
                    _ if self.link.discarded[o][i] => {}
                    Role::Kept(kind @ (SectionKind::InitArray | SectionKind::FiniArray)) => constructors.push((o, i, kind)),
                    Role::Kept(kind) => order.push((o, i, kind)),
                    _ => {}
                }
            }
        }
        // Stable: equal priorities stay in link order.
        constructors.sort_by_key(|&(o, i, _)| {
            let section = &self.link.objects[o].sections[i];
            classify::run_order(section.name, section.kind)
        });
        let commons = self.commons();
        let first_constructor = order.len() + commons.len();
        self.sections = self.link.objects.iter().map(|object| vec![None; object.sections.len()]).collect();
        for (id, &(o, i, _)) in order.iter().enumerate() {
            self.sections[o][i] = Some(SectionId(number(id)));
        }
        for (id, &(o, i, _)) in (first_constructor..).zip(&constructors) {
            self.sections[o][i] = Some(SectionId(number(id)));
        }
        for &(o, i, kind) in &order {
            self.push_section(o, i, kind);
        }
        self.program.sections.extend(commons);
        for &(o, i, kind) in &constructors {
            self.push_section(o, i, kind);
        }
        order.extend(constructors);
        order
    }

    /// One synthesised section for each COMMON symbol that nothing defines, in the order in which `number_symbols` meets them.
    fn commons(&self) -> Vec<Section> {
        let mut seen = HashSet::new();
        let mut sections = Vec::new();
        for symbol in self.link.objects.iter().flat_map(|object| &object.symbols).filter(|s| s.bind != Bind::Local) {
            let Some(State::Common { object, symbol: winner, size, align }) = self.link.globals.get(symbol.name).map(|g| g.state)
            else {
                continue;
            };
            if !seen.insert(symbol.name) {
                continue;
            }
            let tls = self.link.objects[object].symbols[winner].kind == elf::STT_TLS;
            sections.push(Section {
                object: ObjectId(number(object)),
                index: 0,
                name: "COMMON".to_owned(),
                kind: if tls { SectionKind::TlsBss } else { SectionKind::Bss },
                align,
                data: Vec::new(),
                size,
                relocs: Vec::new(),
            });
        }
        sections
    }

    fn push_section(&mut self, o: usize, i: usize, kind: SectionKind) {
        let section = &self.link.objects[o].sections[i];
        self.program.sections.push(Section {
            object: ObjectId(number(o)),
            index: i,
            name: section.name.to_owned(),
            kind,
            align: section.align,
            data: Vec::new(),
            size: section.size,
            relocs: Vec::new(),
        });
    }

    /// Gives every symbol its id; [`SymbolId`] 0 is the null symbol, an absolute 0.
    fn number_symbols(&mut self, options: &MergeOptions) {
        if self.link.objects.is_empty() {
            return;
        }
        let null = Symbol {
            name: String::new(),
            definition: Definition::Absolute(0),
            size: 0,
            kind: SymbolKind::Other,
            global: false,
            object: ObjectId(0),
        };
        self.program.symbols.push(null);
        let provided: HashSet<&str> = options.known_undefined.iter().map(String::as_str).collect();
        let mut globals: HashMap<&str, SymbolId> = HashMap::new();
        let commons = self.program.sections.iter().position(|s| s.index == 0).unwrap_or(0);
        let mut next_common = SectionId(number(commons));
        for (o, object) in self.link.objects.iter().enumerate() {
            let mut ids = Vec::with_capacity(object.symbols.len());
            for (i, symbol) in object.symbols.iter().enumerate() {
                let id = SymbolId(number(self.program.symbols.len()));
                ids.push(match symbol.bind {
                    _ if i == 0 => Some(SymbolId(0)),
                    Bind::Local if symbol.kind == elf::STT_FILE => None,
                    Bind::Local => {
                        self.program.symbols.push(self.local(o, symbol));
                        Some(id)
                    }
                    Bind::Global | Bind::Weak => {
                        let known = globals.get(symbol.name).copied();
                        if known.is_none() {
                            let global = self.global(symbol, &provided, &mut next_common);
                            self.program.symbols.push(global);
                            globals.insert(symbol.name, id);
                        }
                        known.or(Some(id))
                    }
                });
            }
            self.symbols.push(ids);
        }
        self.program.globals = globals.into_iter().map(|(name, id)| (name.to_owned(), id)).collect();
    }

    fn local(&self, o: usize, symbol: &InputSymbol) -> Symbol {
        let mut name = symbol.name;
        let definition = match symbol.at {
            At::Section(s) => match self.sections[o][s] {
                Some(id) => Definition::Section(id, symbol.value),
                None => {
                    if name.is_empty() {
                        name = self.link.objects[o].sections[s].name;
                    }
                    Definition::Undefined { weak: false }
                }
            },
            At::Absolute => Definition::Absolute(symbol.value),
            At::Undefined | At::Common => Definition::Undefined { weak: false },
        };
        Symbol {
            name: name.to_owned(),
            definition,
            size: symbol.size,
            kind: kind(symbol),
            global: false,
            object: ObjectId(number(o)),
        }
    }

    fn global(&self, symbol: &InputSymbol, provided: &HashSet<&str>, next_common: &mut SectionId) -> Symbol {
        let global = &self.link.globals[symbol.name];
        let (definition, object, by) = match global.state {
            State::Undefined { weak } => {
                (Definition::Undefined { weak: weak && !provided.contains(symbol.name) }, global.first, *symbol)
            }
            State::Defined { object, symbol: s, .. } => {
                let by = self.link.objects[object].symbols[s];
                let definition = match by.at {
                    At::Section(section) => match self.sections[object][section] {
                        Some(id) => Definition::Section(id, by.value),
                        None => Definition::Undefined { weak: false },
                    },
                    _ => Definition::Absolute(by.value),
                };
                (definition, object, by)
            }
            State::Common { object, symbol: s, size, .. } => {
                let section = *next_common;
                next_common.0 += 1;
                (Definition::Section(section, 0), object, InputSymbol { size, ..self.link.objects[object].symbols[s] })
            }
        };
        Symbol {
            name: symbol.name.to_owned(),
            definition,
            size: by.size,
            kind: kind(&by),
            global: true,
            object: ObjectId(number(object)),
        }
    }

    /// Reads the contents of all sections, and the debug information.
    fn fill(&mut self, order: &[(usize, usize, SectionKind)], report: &mut Report) {
        let link = self.link;
        let mut kept: Vec<Vec<(usize, SectionKind)>> = vec![Vec::new(); link.objects.len()];
        for &(o, i, kind) in order {
            kept[o].push((i, kind));
        }
        for (o, object) in link.objects.iter().enumerate() {
            let reader = Reader::new(object, &link.discarded[o], report);
            for &(i, kind) in &kept[o] {
                let contents = reader.section(i, kind, report);
                self.refuse_ifuncs(o, i, &contents.relocs, report);
                let relocs = contents.relocs.iter().filter_map(|r| self.reloc(o, r, r.addend)).collect();
                if let Some(id) = self.sections[o][i] {
                    let section = &mut self.program.sections[id.0 as usize];
                    if kind == SectionKind::InitArray {
                        // `.init` has changed its form.
                        section.size = contents.data.len() as u64;
                    }
                    section.data = contents.data;
                    section.relocs = relocs;
                }
            }
            let debug = reader.debug(&link.discarded[o]);
            let debug = debug.into_iter().map(|(i, contents)| DebugSection {
                name: object.sections[i].name.to_owned(),
                data: contents.data,
                relocs: contents.relocs.iter().filter_map(|r| self.debug_reloc(o, r)).collect(),
            });
            let info = ObjectInfo { name: object.name.clone(), explicit: object.explicit, debug: debug.collect() };
            self.program.objects.push(info);
        }
    }

    fn reloc(&self, o: usize, raw: &RawReloc, addend: i64) -> Option<Reloc> {
        let symbol = self.symbols[o][raw.symbol]?;
        Some(Reloc { offset: raw.offset, kind: raw.kind, symbol, addend })
    }

    /// A symbol within another debug section becomes undefined; its value moves to the addend.
    fn debug_reloc(&self, o: usize, raw: &RawReloc) -> Option<Reloc> {
        let symbol = &self.link.objects[o].symbols[raw.symbol];
        let value = match symbol.at {
            At::Section(s) if self.sections[o][s].is_none() => symbol.value,
            _ => 0,
        };
        self.reloc(o, raw, raw.addend.wrapping_add_unsigned(value))
    }

    fn refuse_ifuncs(&self, o: usize, section: usize, relocs: &[RawReloc], report: &mut Report) {
        let object = &self.link.objects[o];
        for reloc in relocs {
            let symbol = &object.symbols[reloc.symbol];
            let (definer, index) = match self.link.globals.get(symbol.name).map(|g| g.state) {
                Some(State::Defined { object, symbol: s, .. }) if symbol.bind != Bind::Local => (object, s),
                _ => (o, reloc.symbol),
            };
            if self.link.is_ifunc(definer, index) {
                let place = Place { symbol: Some(symbol.name.to_owned()), ..object.place(section, Some(reloc.offset)) };
                report.push(Diagnostic::new(
                    place,
                    "ifunc",
                    "the function picks its implementation at load time (STT_GNU_IFUNC)",
                ));
            }
        }
    }
}

/// An entry that is an IFUNC could not be called.
fn refuse_ifunc_entries(link: &Link, options: &MergeOptions, report: &mut Report) {
    for name in &options.entries {
        let Some(State::Defined { object, symbol, .. }) = link.globals.get(name.as_str()).map(|g| g.state) else { continue };
        if link.is_ifunc(object, symbol) {
            let place = Place { object: link.objects[object].name.clone(), symbol: Some(name.clone()), ..Place::default() };
            report.push(Diagnostic::new(place, "ifunc", "an entry cannot be an STT_GNU_IFUNC function"));
        }
    }
}

fn kind(symbol: &InputSymbol) -> SymbolKind {
    match symbol.kind {
        elf::STT_FUNC => SymbolKind::Function,
        elf::STT_OBJECT | elf::STT_COMMON => SymbolKind::Object,
        elf::STT_SECTION => SymbolKind::Section,
        elf::STT_TLS => SymbolKind::Tls,
        _ => SymbolKind::Other,
    }
}
