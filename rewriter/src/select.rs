//! Phase 5: what takes part. From the entries on, every function, data section, import and GOT word that something reachable refers to.

use crate::body::{Body, Flow, Outside, discover};
use crate::diag::{Diagnostic, Place, Refusals};
use crate::elf;
use crate::functions::{CodeRef, Functions, exact_target, is_absolute, relocs_at};
use crate::operand::immediate_size;
use crate::pipeline::is_hidden;
use crate::program::{Definition, Program, Reloc, SectionId, SectionKind, SymbolId, SymbolKind};
use crate::progress::{Phase, Progress};
use crate::transfer::is_got;
use rayon::prelude::*;
use std::collections::BTreeSet;

/// Functions that the loader provides when the objects leave them undefined.
pub const GATES: &[&str] = &["memcpy", "memmove", "memset", "memcmp", "strlen"];
/// Undefined functions whose call is a trap.
pub const TRAPS: &[&str] = &["__stack_chk_fail", "abort", "__cxa_pure_virtual"];
/// What registers the destructor of a static object: nothing, as a handler is never left for good. Whole programs have their C library's.
pub const AT_EXIT: &str = "__cxa_atexit";
/// The entry of whole programs.
pub const START: &str = "_start";
/// The resolver of thread-local addresses: its argument already is the address.
pub const TLS_RESOLVER: &str = "__tls_get_addr";

/// What a GOT word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GotWord {
    Address(SymbolId),
    /// Offset from the thread pointer.
    ThreadOffset(SymbolId),
}

/// Everything that goes into the image.
#[derive(Debug, Default)]
pub struct Selection {
    /// Ascending by entry.
    pub bodies: Vec<Body>,
    /// Functions whose address is taken, ascending.
    pub address_taken: BTreeSet<CodeRef>,
    pub sections: BTreeSet<SectionId>,
    /// Import names in use, in slot order (ascending).
    pub imports: BTreeSet<String>,
    pub got: BTreeSet<GotWord>,
    /// Image entries: name and function.
    pub entries: Vec<(String, CodeRef)>,
    /// Constructors in run order.
    pub constructors: Vec<CodeRef>,
    pub uses_arena: bool,
    /// A whole program: it runs its constructors itself, and what is to be done at exit.
    pub whole_program: bool,
}

struct Selector<'a> {
    program: &'a Program,
    functions: &'a Functions,
    imports: &'a [String],
    chosen: Selection,
    wanted: BTreeSet<CodeRef>,
    seen: BTreeSet<CodeRef>,
    sections: Vec<SectionId>,
    problems: Vec<Diagnostic>,
}

/// The name under which an undefined function is imported.
#[must_use]
pub fn import_name(name: &str) -> &str {
    if name == "bcmp" { "memcmp" } else { crate::jumps::import(name).unwrap_or(name) }
}

/// Linker-defined symbols that the window layout gives a value.
#[must_use]
pub fn is_linker_defined(name: &str) -> bool {
    matches!(
        name,
        "__cordon_heap_start"
            | "__cordon_heap_end"
            | "__cordon_arg_start"
            | "__cordon_arg_end"
            | "__init_array_start"
            | "__init_array_end"
            | "__fini_array_start"
            | "__fini_array_end"
            | crate::syscall::THREAD_POINTER
            | "_GLOBAL_OFFSET_TABLE_"
            | "__dso_handle"
    )
}

/// Selects from `entries` on.
///
/// # Errors
/// All functions that cannot be analysed and all undefined names that are reached.
pub fn select(
    program: &Program,
    functions: &Functions,
    entries: Vec<(String, CodeRef)>,
    imports: &[String],
    progress: &Progress,
) -> Result<Selection, Refusals> {
    progress.enter(Phase::Analysing, 0);
    let mut s = Selector {
        program,
        functions,
        imports,
        chosen: Selection::default(),
        wanted: entries.iter().map(|(_, at)| *at).collect(),
        seen: BTreeSet::new(),
        sections: Vec::new(),
        problems: Vec::new(),
    };
    s.chosen.whole_program = program.syscall.is_some() && entries.iter().any(|(name, _)| name == START);
    s.chosen.entries = entries;
    s.constructors();
    loop {
        s.drain_sections();
        let wave: Vec<CodeRef> = std::mem::take(&mut s.wanted).into_iter().filter(|at| s.seen.insert(*at)).collect();
        if wave.is_empty() {
            break;
        }
        progress.found(wave.len());
        let discovered = |at: &CodeRef| {
            let body = discover(program, functions, *at);
            progress.step();
            body
        };
        let found: Vec<_> = wave.par_iter().map(discovered).collect();
        for result in found {
            match result {
                Ok(body) if functions.pops(body.entry) != 0 && s.called_from_outside(body.entry) => {
                    let place = program.place(body.entry.section, body.entry.offset);
                    let message = "pops its stack arguments (`ret $n`), which only direct callers can know";
                    s.problems.push(Diagnostic::new(place, "unsupported-return", message));
                }
                Ok(body) => s.take(body),
                Err(problems) => s.problems.extend(problems),
            }
        }
    }
    s.finish()
}

impl Selector<'_> {
    fn finish(mut self) -> Result<Selection, Refusals> {
        if !self.problems.is_empty() {
            self.problems.sort();
            self.problems.dedup();
            return Err(Refusals(self.problems));
        }
        self.chosen.bodies.sort_by_key(|b| b.entry);
        Ok(self.chosen)
    }

    /// Whether the host or an indirect call may call the function at `at`.
    fn called_from_outside(&self, at: CodeRef) -> bool {
        self.chosen.address_taken.contains(&at) || self.chosen.entries.iter().any(|(_, entry)| *entry == at)
    }

    fn constructors(&mut self) {
        for (index, section) in self.program.sections.iter().enumerate() {
            if self.chosen.whole_program && matches!(section.kind, SectionKind::InitArray | SectionKind::FiniArray) {
                self.section(SectionId(index as u32));
                continue;
            }
            if section.kind != SectionKind::InitArray {
                continue;
            }
            for reloc in &section.relocs {
                match exact_target(self.program, reloc) {
                    Some((text, offset)) if is_absolute(reloc.kind) && self.program.section(text).kind == SectionKind::Text => {
                        let at = CodeRef { section: text, offset };
                        self.chosen.constructors.push(at);
                        self.wanted.insert(at);
                    }
                    _ => {
                        let place = self.program.place(SectionId(index as u32), reloc.offset);
                        self.problems.push(Diagnostic::new(
                            place,
                            "bad-constructor",
                            "a constructor pointer does not name a function",
                        ));
                    }
                }
            }
        }
    }

    fn section(&mut self, id: SectionId) {
        if self.chosen.sections.insert(id) {
            self.sections.push(id);
        }
    }

    /// Follows the relocations of the data sections reached so far.
    fn drain_sections(&mut self) {
        while let Some(id) = self.sections.pop() {
            for reloc in &self.program.section(id).relocs {
                let Some((target, offset)) = exact_target(self.program, reloc) else {
                    self.undefined(reloc, id, reloc.offset, Use::Address);
                    continue;
                };
                if self.program.section(target).kind != SectionKind::Text {
                    self.section(target);
                } else if is_absolute(reloc.kind) {
                    self.code_from_data(reloc, CodeRef { section: target, offset });
                }
            }
        }
    }

    /// A pointer in data to the start of a function makes that function reachable; pointers to labels are jump tables of code that is reached
    /// (or not) by itself.
    fn code_from_data(&mut self, reloc: &Reloc, at: CodeRef) {
        let symbol = self.program.symbol(reloc.symbol);
        if symbol.kind != SymbolKind::Section && reloc.addend == 0 || self.functions.start_at(at).is_some() {
            self.chosen.address_taken.insert(at);
            self.wanted.insert(at);
        }
    }

    fn take(&mut self, body: Body) {
        for node in &body.nodes {
            self.chosen.uses_arena |= node.state.dynamic;
            match node.flow {
                Flow::Call(out, _) | Flow::TailCall(out) | Flow::BranchOut(out, _) => {
                    self.outside(out, node.key.at, matches!(node.flow, Flow::Call(..)));
                    continue;
                }
                _ if crate::thunks::stands_for_thunk(&node.insn) => continue,
                _ => {}
            }
            if let Some(gate) = crate::plan::gate_name(&node.insn) {
                self.chosen.imports.insert(gate);
            }
            if !matches!(node.flow, Flow::Jump(_) | Flow::Branch(..)) {
                self.operands(&body, node.key.at, &node.insn);
            }
        }
        for table in &body.tables {
            self.section(table.section);
        }
        self.chosen.bodies.push(body);
    }

    fn outside(&mut self, out: Outside, at: CodeRef, call: bool) {
        match out {
            Outside::Function(f) => {
                self.wanted.insert(f);
            }
            Outside::Symbol(reloc) => match self.program.symbol(reloc.symbol).definition {
                Definition::Undefined { .. } => {
                    let name = &self.program.symbol(reloc.symbol).name;
                    if !call && crate::jumps::import(name) == Some(crate::jumps::SETJMP) {
                        self.no_setjmp(name, at.section, at.offset, "is jumped to at the end of a function");
                    }
                    self.undefined(&reloc, at.section, at.offset, Use::Call);
                }
                _ => {
                    let place = self.program.place(at.section, at.offset);
                    self.problems.push(Diagnostic::new(place, "branch-to-data", "jumps to something that is not code"));
                }
            },
        }
    }

    fn operands(&mut self, body: &Body, at: CodeRef, insn: &iced_x86::Instruction) {
        let relocs = relocs_at(self.program, at, insn.len());
        for reloc in relocs {
            if is_got(reloc.kind) && insn.mnemonic() != iced_x86::Mnemonic::Mov {
                self.chosen.got.insert(GotWord::Address(reloc.symbol));
            }
            if reloc.kind == elf::R_X86_64_GOTTPOFF && insn.mnemonic() != iced_x86::Mnemonic::Mov {
                self.chosen.got.insert(GotWord::ThreadOffset(reloc.symbol));
            }
            let bias = code_bias(reloc, insn);
            let exact = Reloc { addend: reloc.addend.wrapping_add(bias), ..*reloc };
            match exact_target(self.program, &exact) {
                Some((section, offset)) if self.program.section(section).kind == SectionKind::Text => {
                    self.code_operand(body, CodeRef { section, offset });
                }
                Some((section, _)) => self.section(section),
                None => self.undefined(reloc, at.section, at.offset, use_of(reloc, insn)),
            }
        }
        if relocs.is_empty() && insn.is_ip_rel_memory_operand() {
            self.code_operand(body, CodeRef { section: at.section, offset: insn.ip_rel_memory_address() });
        }
    }

    /// The address of code is taken: a function's, unless it is a label of this body.
    fn code_operand(&mut self, body: &Body, to: CodeRef) {
        let label = to.section == body.entry.section && body.labels.binary_search(&to.offset).is_ok();
        if self.functions.start_at(to).is_some() || !label {
            self.chosen.address_taken.insert(to);
            self.wanted.insert(to);
        }
    }

    /// setjmp returns as often as somebody jumps, so the code around its call must know that it is one.
    fn no_setjmp(&mut self, name: &str, section: SectionId, offset: u64, what: &str) {
        let message = format!("`{name}` {what}; only a direct call returns more than once");
        self.problems.push(Diagnostic::new(self.program.place(section, offset), "unsupported-setjmp", message));
    }

    fn undefined(&mut self, reloc: &Reloc, section: SectionId, offset: u64, how: Use) {
        let symbol = self.program.symbol(reloc.symbol);
        let name = symbol.name.as_str();
        let weak = match symbol.definition {
            Definition::Undefined { weak } => weak,
            _ => return,
        };
        let jump = crate::jumps::import(name);
        if how != Use::Call && jump == Some(crate::jumps::SETJMP) {
            self.no_setjmp(name, section, offset, "has its address taken");
        } else if GATES.contains(&import_name(name)) || jump.is_some() || self.imports.iter().any(|i| i == name) {
            if name.contains(is_hidden) {
                let place = Place { symbol: Some(name.escape_debug().to_string()), ..self.program.place(section, offset) };
                let message = "an import's name has characters that no terminal shows";
                self.problems.push(Diagnostic::new(place, "unprintable-name", message));
            }
            self.chosen.imports.insert(import_name(name).to_owned());
        } else if !(weak
            || is_linker_defined(name)
            || TRAPS.contains(&name)
            || [TLS_RESOLVER, AT_EXIT].contains(&name) && how == Use::Call)
        {
            let place = self.program.place(section, offset);
            let message = match instrumented_by(name) {
                Some(flag) => format!("`{name}` is defined nowhere: the object was compiled with {flag}; compile it without"),
                None if name == "main" => "`main` is defined nowhere: one of the inputs of a whole program must have it".into(),
                None if how == Use::Data => {
                    format!(
                        "`{name}` is defined nowhere and is data here, which no host provides: define it; with --import {name} such accesses fault"
                    )
                }
                None => format!("`{name}` is defined nowhere; the host can provide it with --import {name}"),
            };
            self.problems.push(Diagnostic::new(place, "undefined-symbol", message));
        }
    }
}

/// What code does with a symbol.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Call,
    /// Takes its address, which may be a function's.
    Address,
    /// Reads or writes what lies there.
    Data,
}

/// What `insn` does with the symbol of its relocation `reloc`. Only where the symbol is plainly the operand in memory is it data.
fn use_of(reloc: &Reloc, insn: &iced_x86::Instruction) -> Use {
    let operand = reloc.kind == elf::R_X86_64_PC32 && insn.is_ip_rel_memory_operand();
    if operand && insn.mnemonic() != iced_x86::Mnemonic::Lea { Use::Data } else { Use::Address }
}

/// The compiler flag that makes code call a function of this name in a runtime that handlers do not have.
fn instrumented_by(name: &str) -> Option<&'static str> {
    const FLAGS: &[(&str, &str)] = &[
        ("__asan_", "-fsanitize=address"),
        ("__hwasan_", "-fsanitize=hwaddress"),
        ("__tsan_", "-fsanitize=thread"),
        ("__msan_", "-fsanitize=memory"),
        ("__ubsan_", "-fsanitize=undefined"),
        ("__safestack_", "-fsanitize=safe-stack"),
        ("__sanitizer_cov_", "-fsanitize-coverage"),
        ("__gcov_", "--coverage or -fprofile-generate"),
        ("llvm_gc", "--coverage"),
        ("__llvm_profile_", "-fprofile-generate"),
        ("__cyg_profile_func_", "-finstrument-functions"),
        ("mcount", "-pg"),
        ("__fentry__", "-pg -mfentry"),
        ("__morestack", "-fsplit-stack"),
    ];
    FLAGS.iter().find(|(prefix, _)| name.starts_with(prefix)).map(|(_, flag)| *flag)
}

/// What has to be added to the addend of a relocation in `insn` so that it names the operand itself.
#[must_use]
pub fn code_bias(reloc: &Reloc, insn: &iced_x86::Instruction) -> i64 {
    let relative = matches!(
        reloc.kind,
        elf::R_X86_64_PC32 | elf::R_X86_64_PLT32 | elf::R_X86_64_TLSGD | elf::R_X86_64_TLSLD | elf::R_X86_64_GOTTPOFF
    ) || is_got(reloc.kind);
    if relative { 4 + immediate_size(insn) as i64 } else { 0 }
}
