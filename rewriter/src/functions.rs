//! Phase 2: where functions start and end, which labels data refers to, which functions never return.

use crate::elf;
use crate::liveness::CALLER_SAVED;
use crate::program::{Definition, Program, Reloc, SectionId, SectionKind, SymbolKind};
use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind};
use std::collections::BTreeMap;

/// A place in original code: section and byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CodeRef {
    pub section: SectionId,
    pub offset: u64,
}

/// A function symbol's extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionRange {
    pub start: u64,
    /// Exclusive; the next start or the section's end when the symbol has no size.
    pub end: u64,
    pub name: String,
    /// A compiler's split-off unlikely part: belongs to its parent, never entered by a call.
    pub cold: bool,
}

/// What the symbol tables and relocations say about code, before any of it is analysed.
#[derive(Debug, Default)]
pub struct Functions {
    /// Per text section, ascending by start, one range per start.
    ranges: HashMap<SectionId, Vec<FunctionRange>>,
    /// Per text section: offsets that are named by an exact address (not a function start), ascending.
    labels: HashMap<SectionId, Vec<u64>>,
    /// Per data section: offsets that code refers to, ascending; a jump table ends where the next reference begins.
    referenced: HashMap<SectionId, Vec<u64>>,
    noreturn: HashSet<CodeRef>,
    /// Registers (bit = number) that a call may change: everything the function's bytes write, its callees' included.
    clobbers: HashMap<CodeRef, u16>,
    /// Bytes of arguments that a function pops when it returns (`ret $n`).
    pops: HashMap<CodeRef, u16>,
    /// What `syscall` instructions call.
    syscall: Option<CodeRef>,
}

/// Functions of the C library that do not come back; used only when they are undefined in the objects.
const NORETURN_NAMES: &[&str] = &["abort", "exit", "_exit", "_Exit", "__stack_chk_fail", "__assert_fail", "__cxa_pure_virtual"];

/// Whether an undefined function of this name never returns.
#[must_use]
pub fn is_noreturn_name(name: &str) -> bool {
    // A sanitizer's report ends the program unless it says otherwise.
    let report = name.starts_with("__asan_report_") && !name.ends_with("_noabort");
    NORETURN_NAMES.contains(&name) || crate::jumps::is_longjmp(name) || report
}

/// The section and offset that `symbol + addend` names, if it is in a section.
#[must_use]
pub fn exact_target(program: &Program, reloc: &Reloc) -> Option<(SectionId, u64)> {
    match program.symbol(reloc.symbol).definition {
        Definition::Section(section, value) => Some((section, value.wrapping_add_signed(reloc.addend))),
        _ => None,
    }
}

/// Whether relocations of this type name an absolute address.
#[must_use]
pub fn is_absolute(kind: u32) -> bool {
    matches!(kind, elf::R_X86_64_64 | elf::R_X86_64_32 | elf::R_X86_64_32S)
}

/// The instruction at `at`, with its section offset as instruction pointer; invalid bytes give `Code::INVALID`. Transfers to thunks are what
/// the thunks do.
#[must_use]
pub fn decode(program: &Program, at: CodeRef) -> Instruction {
    crate::thunks::resolve(program, at, decode_plain(program, at))
}

/// The instruction at `at` as it stands there.
pub(crate) fn decode_plain(program: &Program, at: CodeRef) -> Instruction {
    let data = &program.section(at.section).data;
    let from = usize::try_from(at.offset).unwrap_or(usize::MAX).min(data.len());
    let to = data.len().min(from + 15);
    Decoder::with_ip(64, &data[from..to], at.offset, DecoderOptions::NONE).decode()
}

/// Relocations whose field lies in the `length` bytes at `at`.
#[must_use]
pub fn relocs_at(program: &Program, at: CodeRef, length: usize) -> &[Reloc] {
    let relocs = &program.section(at.section).relocs;
    let from = relocs.partition_point(|r| r.offset < at.offset);
    let to = from + relocs[from..].partition_point(|r| r.offset < at.offset + length as u64);
    &relocs[from..to]
}

/// Where a direct branch or call goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BranchTarget {
    Code(CodeRef),
    /// A symbol that is not in a text section (an import, weak zero, data).
    Symbol(Reloc),
}

/// The target of the direct branch `insn` at `at`.
#[must_use]
pub fn branch_target(program: &Program, at: CodeRef, insn: &Instruction) -> BranchTarget {
    if let Some(reloc) = relocs_at(program, at, insn.len()).last().copied() {
        let end = at.offset + insn.len() as u64;
        let bias = end.wrapping_sub(reloc.offset).cast_signed();
        let adjusted = Reloc { addend: reloc.addend.wrapping_add(bias), ..reloc };
        if let Some((section, offset)) = exact_target(program, &adjusted)
            && program.section(section).kind == SectionKind::Text
        {
            return BranchTarget::Code(CodeRef { section, offset });
        }
        return BranchTarget::Symbol(adjusted);
    }
    BranchTarget::Code(CodeRef { section: at.section, offset: insn.near_branch_target() })
}

impl Functions {
    /// Reads symbols and relocations, then infers which functions cannot return.
    #[must_use]
    pub fn find(program: &Program) -> Functions {
        let syscall = program.syscall.map(|section| CodeRef { section, offset: 0 });
        let mut found = Functions { ranges: ranges(program), syscall, ..Functions::default() };
        found.collect_references(program);
        found.infer_noreturn(program);
        found.sweep(program);
        found
    }

    /// The function symbol that starts at `at`.
    #[must_use]
    pub fn start_at(&self, at: CodeRef) -> Option<&FunctionRange> {
        let list = self.ranges.get(&at.section)?;
        list.binary_search_by_key(&at.offset, |r| r.start).ok().map(|i| &list[i])
    }

    /// The function symbol that covers `at`.
    #[must_use]
    pub fn containing(&self, at: CodeRef) -> Option<&FunctionRange> {
        let list = self.ranges.get(&at.section)?;
        let i = list.partition_point(|r| r.start <= at.offset).checked_sub(1)?;
        (at.offset < list[i].end).then(|| &list[i])
    }

    /// Where the function symbol that covers `at` starts, and where the next one or the section ends: padding included.
    #[must_use]
    pub fn extent(&self, program: &Program, at: CodeRef) -> Option<(u64, u64)> {
        let list = self.ranges.get(&at.section)?;
        let next = list.partition_point(|r| r.start <= at.offset);
        let end = list.get(next).map_or(program.section(at.section).size, |r| r.start);
        Some((list[next.checked_sub(1)?].start, end))
    }

    /// All function ranges of a section, ascending.
    #[must_use]
    pub fn in_section(&self, section: SectionId) -> &[FunctionRange] {
        self.ranges.get(&section).map_or(&[], Vec::as_slice)
    }

    /// Offsets in `from..to` of `section` that some exact address names and that start no function.
    #[must_use]
    pub fn labels_in(&self, section: SectionId, from: u64, to: u64) -> &[u64] {
        let list = self.labels.get(&section).map_or(&[] as &[u64], Vec::as_slice);
        let a = list.partition_point(|&l| l < from);
        let b = list.partition_point(|&l| l < to);
        &list[a..b.max(a)]
    }

    /// First offset behind `offset` in a data section that code refers to.
    #[must_use]
    pub fn next_reference(&self, section: SectionId, offset: u64) -> u64 {
        let list = self.referenced.get(&section).map_or(&[] as &[u64], Vec::as_slice);
        list.get(list.partition_point(|&r| r <= offset)).copied().unwrap_or(u64::MAX)
    }

    /// Last offset up to `offset` in a data section that code refers to.
    #[must_use]
    pub fn last_reference(&self, section: SectionId, offset: u64) -> Option<u64> {
        let list = self.referenced.get(&section)?;
        list.partition_point(|&r| r <= offset).checked_sub(1).map(|i| list[i])
    }

    /// Whether the function that starts at `at` never returns.
    #[must_use]
    pub fn is_noreturn(&self, at: CodeRef) -> bool {
        self.noreturn.contains(&at)
    }

    /// Registers that a call of the function at `at` may change, as far as its symbol's extent shows; all of them if it has none.
    #[must_use]
    pub fn clobbers(&self, at: CodeRef) -> u16 {
        self.clobbers.get(&at).copied().unwrap_or(u16::MAX)
    }

    /// Bytes of stack arguments that the function at `at` takes off the stack itself.
    #[must_use]
    pub fn pops(&self, at: CodeRef) -> u16 {
        self.pops.get(&at).copied().unwrap_or(0)
    }

    /// The function that `syscall` instructions call, if they are allowed.
    #[must_use]
    pub fn syscall(&self) -> Option<CodeRef> {
        self.syscall
    }

    /// One linear pass over every function: what it writes, where it goes, what it pops.
    fn sweep(&mut self, program: &Program) {
        let mut edges: HashMap<CodeRef, Vec<CodeRef>> = HashMap::new();
        let mut factory = InstructionInfoFactory::new();
        for (&section, list) in &self.ranges {
            let data = &program.section(section).data;
            for (i, range) in list.iter().enumerate() {
                let start = CodeRef { section, offset: range.start };
                // A symbol within another's extent is a function of its own that control may fall into.
                let inner = list.get(i + 1).map(|next| next.start).filter(|next| *next < range.end);
                if let Some(offset) = inner {
                    edges.entry(start).or_default().push(CodeRef { section, offset });
                }
                let end = inner.unwrap_or(range.end);
                let to = usize::try_from(end).unwrap_or(0).min(data.len());
                let from = usize::try_from(range.start).unwrap_or(0).min(to);
                let mut set = 0;
                for insn in Decoder::with_ip(64, &data[from..to], range.start, DecoderOptions::NONE) {
                    let at = CodeRef { section, offset: insn.ip() };
                    let insn = crate::thunks::resolve(program, at, insn);
                    set |= crate::liveness::written(&mut factory, &insn);
                    match insn.flow_control() {
                        FlowControl::Call if insn.code() == Code::Syscall => set |= crate::syscall::CLOBBERS,
                        FlowControl::IndirectCall | FlowControl::IndirectBranch => set |= CALLER_SAVED,
                        FlowControl::Return if insn.code() == Code::Retnq_imm16 => {
                            self.pops.insert(start, insn.immediate16());
                        }
                        FlowControl::Call | FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => {
                            match branch_target(program, at, &insn) {
                                BranchTarget::Code(to)
                                    if to.section == section && range.start <= to.offset && to.offset < end => {}
                                BranchTarget::Code(to) => edges.entry(start).or_default().push(to),
                                BranchTarget::Symbol(_) => set |= CALLER_SAVED,
                            }
                        }
                        _ => {}
                    }
                }
                self.clobbers.insert(start, set);
            }
        }
        self.close_clobbers(&edges);
        if let Some(syscall) = self.syscall {
            // It puts the others back.
            self.clobbers.insert(syscall, crate::syscall::CLOBBERS);
        }
    }

    fn close_clobbers(&mut self, edges: &HashMap<CodeRef, Vec<CodeRef>>) {
        loop {
            let mut changed = false;
            for (from, list) in edges {
                let mut set = self.clobbers(*from);
                for to in list {
                    let range = self.containing(*to).map(|r| CodeRef { section: to.section, offset: r.start });
                    // What callees save and restore is theirs; a jump into another part of the same function is not a call, but saves the same way.
                    set |= range.map_or(u16::MAX, |r| self.clobbers(r)) & CALLER_SAVED;
                }
                changed |= self.clobbers.insert(*from, set) != Some(set);
            }
            if !changed {
                return;
            }
        }
    }

    fn collect_references(&mut self, program: &Program) {
        let mut labels: HashMap<SectionId, Vec<u64>> = HashMap::new();
        for (index, section) in program.sections.iter().enumerate() {
            let text = section.kind == SectionKind::Text;
            let trailing = if text { self.scan_operands(program, SectionId(index as u32), &mut labels) } else { HashMap::new() };
            for reloc in &section.relocs {
                // What a rip-relative field names counts from the instruction's end: behind the field and an immediate.
                let relative = text && reloc.kind == elf::R_X86_64_PC32;
                let bias = if relative { 4 + trailing.get(&reloc.offset).copied().unwrap_or(0) } else { 0 };
                let exact = Reloc { addend: reloc.addend.wrapping_add(bias), ..*reloc };
                if !relative && !is_absolute(reloc.kind) {
                    continue;
                }
                let Some((target, offset)) = exact_target(program, &exact) else { continue };
                if program.section(target).kind == SectionKind::Text {
                    if !(text && is_branch_field(program, SectionId(index as u32), reloc.offset)) {
                        labels.entry(target).or_default().push(offset);
                    }
                } else if text {
                    self.referenced.entry(target).or_default().push(offset);
                }
            }
        }
        for (section, list) in &mut labels {
            list.sort_unstable();
            list.dedup();
            list.retain(|&offset| self.start_at(CodeRef { section: *section, offset }).is_none());
        }
        for list in self.referenced.values_mut() {
            list.sort_unstable();
            list.dedup();
        }
        self.labels = labels;
    }

    /// One linear decode of each function: finds labels whose `lea label(%rip)` needs no relocation, and gives the sizes of the immediates
    /// behind relocated displacements, by the field's offset.
    fn scan_operands(&self, program: &Program, id: SectionId, labels: &mut HashMap<SectionId, Vec<u64>>) -> HashMap<u64, i64> {
        let section = program.section(id);
        let mut trailing = HashMap::new();
        for range in self.in_section(id) {
            let to = usize::try_from(range.end).unwrap_or(0).min(section.data.len());
            let from = usize::try_from(range.start).unwrap_or(0).min(to);
            for insn in Decoder::with_ip(64, &section.data[from..to], range.start, DecoderOptions::NONE) {
                if !insn.is_ip_rel_memory_operand() {
                    continue;
                }
                let relocs = relocs_at(program, CodeRef { section: id, offset: insn.ip() }, insn.len());
                let immediate = crate::operand::immediate_size(&insn) as i64;
                if let (Some(field), 1..) = (relocs.first(), immediate) {
                    trailing.insert(field.offset, immediate);
                } else if relocs.is_empty() && insn.code() == Code::Lea_r64_m {
                    labels.entry(id).or_default().push(insn.ip_rel_memory_address());
                }
            }
        }
        trailing
    }

    /// Greatest set of functions without a path to a return, an indirect jump or a jump to something unknown.
    fn infer_noreturn(&mut self, program: &Program) {
        let mut starts: Vec<CodeRef> = Vec::new();
        for (&section, list) in &self.ranges {
            starts.extend(list.iter().map(|r| CodeRef { section, offset: r.start }));
        }
        starts.sort_unstable();
        let mut returns: HashSet<CodeRef> = HashSet::new();
        // Per callee: the places that become reachable once it is known to return.
        let mut waiting: BTreeMap<CodeRef, Vec<(CodeRef, Waiting)>> = BTreeMap::new();
        let mut seen: HashMap<CodeRef, HashSet<CodeRef>> = HashMap::new();
        let mut work: Vec<(CodeRef, CodeRef)> = starts.iter().map(|&s| (s, s)).collect();
        while let Some((function, at)) = work.pop() {
            if returns.contains(&function) {
                continue;
            }
            let mut walk = ReturnWalk {
                program,
                functions: self,
                function,
                returns: &returns,
                seen: seen.entry(function).or_default(),
                blocked: Vec::new(),
            };
            let found = walk.run(at);
            for (callee, then) in walk.blocked {
                waiting.entry(callee).or_default().push((function, then));
            }
            if found {
                returns.insert(function);
                let mut newly = vec![function];
                while let Some(done) = newly.pop() {
                    for (waiter, then) in waiting.remove(&done).unwrap_or_default() {
                        match then {
                            Waiting::Continue(at) => work.push((waiter, at)),
                            Waiting::Tail => {
                                if returns.insert(waiter) {
                                    newly.push(waiter);
                                }
                            }
                        }
                    }
                }
            }
        }
        self.noreturn = starts.into_iter().filter(|s| !returns.contains(s)).collect();
    }
}

#[derive(Clone, Copy, Debug)]
enum Waiting {
    /// The code after a call.
    Continue(CodeRef),
    /// A tail jump: the waiter returns when its target does.
    Tail,
}

struct ReturnWalk<'a> {
    program: &'a Program,
    functions: &'a Functions,
    function: CodeRef,
    returns: &'a HashSet<CodeRef>,
    seen: &'a mut HashSet<CodeRef>,
    blocked: Vec<(CodeRef, Waiting)>,
}

impl ReturnWalk<'_> {
    /// Whether a return can be reached from `at`; call targets not known to return end up in `blocked`.
    fn run(&mut self, at: CodeRef) -> bool {
        let mut work = vec![at];
        while let Some(at) = work.pop() {
            if !self.seen.insert(at) {
                continue;
            }
            let insn = decode(self.program, at);
            let next = CodeRef { section: at.section, offset: at.offset + insn.len() as u64 };
            match insn.flow_control() {
                FlowControl::Return | FlowControl::IndirectBranch => return true,
                FlowControl::Exception | FlowControl::Interrupt => {
                    if insn.code() == Code::INVALID
                        || matches!(insn.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 | Mnemonic::Int3)
                    {
                        continue;
                    }
                    work.push(next);
                }
                FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch => {
                    if self.follow(at, &insn, &mut work) {
                        return true;
                    }
                    if insn.flow_control() == FlowControl::ConditionalBranch {
                        work.push(next);
                    }
                }
                FlowControl::Call if insn.code() == Code::Syscall => work.push(next),
                FlowControl::Call => match branch_target(self.program, at, &insn) {
                    BranchTarget::Code(callee)
                        if self.functions.start_at(callee).is_some() && !self.returns.contains(&callee) =>
                    {
                        self.blocked.push((callee, Waiting::Continue(next)));
                    }
                    BranchTarget::Symbol(reloc) if is_noreturn_name(&self.program.symbol(reloc.symbol).name) => {}
                    _ => work.push(next),
                },
                _ if insn.code() == Code::Hlt => {}
                _ => work.push(next),
            }
        }
        false
    }

    fn follow(&mut self, at: CodeRef, insn: &Instruction, work: &mut Vec<CodeRef>) -> bool {
        if insn.op0_kind() != OpKind::NearBranch64 {
            return true;
        }
        match branch_target(self.program, at, insn) {
            BranchTarget::Code(to) => {
                let other = self.functions.start_at(to).is_some_and(|r| !r.cold) && to != self.function;
                if !other {
                    work.push(to);
                } else if self.returns.contains(&to) {
                    return true;
                } else {
                    self.blocked.push((to, Waiting::Tail));
                }
                false
            }
            BranchTarget::Symbol(reloc) => !is_noreturn_name(&self.program.symbol(reloc.symbol).name),
        }
    }
}

/// Whether the relocated field at `offset` is the displacement of a direct `call`, `jmp` or `jcc`.
fn is_branch_field(program: &Program, section: SectionId, offset: u64) -> bool {
    let data = &program.section(section).data;
    let at = usize::try_from(offset).unwrap_or(usize::MAX);
    let byte = |back: usize| at.checked_sub(back).and_then(|i| data.get(i)).copied();
    matches!(byte(1), Some(0xe8 | 0xe9)) || (byte(2) == Some(0x0f) && byte(1).is_some_and(|b| b & 0xf0 == 0x80))
}

fn ranges(program: &Program) -> HashMap<SectionId, Vec<FunctionRange>> {
    let mut all: HashMap<SectionId, Vec<FunctionRange>> = HashMap::new();
    for symbol in &program.symbols {
        let Definition::Section(section, start) = symbol.definition else { continue };
        let text = program.section(section);
        let function = symbol.kind == SymbolKind::Function || (symbol.kind == SymbolKind::Other && symbol.global);
        if text.kind != SectionKind::Text || !function || start >= text.size {
            continue;
        }
        let cold = !symbol.global && symbol.name.contains(".cold");
        all.entry(section).or_default().push(FunctionRange {
            start,
            end: start.saturating_add(symbol.size),
            name: symbol.name.clone(),
            cold,
        });
    }
    for (section, list) in &mut all {
        // Of several names for one place keep a global-looking, sized one first; order is the symbol table's otherwise.
        list.sort_by_key(|r| (r.start, std::cmp::Reverse(r.end)));
        list.dedup_by_key(|r| r.start);
        let size = program.section(*section).size;
        for i in 0..list.len() {
            let limit = list.get(i + 1).map_or(size, |n| n.start);
            if list[i].end == list[i].start {
                list[i].end = limit;
            }
            list[i].end = list[i].end.min(size);
        }
    }
    all
}
