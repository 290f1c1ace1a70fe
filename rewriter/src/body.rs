//! Phase 3: a function's control-flow graph with the static stack depth of every instruction (DESIGN §4).
//!
//! A body is everything that direct jumps, switches and fall-through reach from one entry, tail calls excepted. Depth analysis and discovery
//! are one fixpoint, since a switch can only be followed when the value of its table register is known.

use crate::diag::{Diagnostic, Reason};
use crate::functions::{BranchTarget, CodeRef, Functions, branch_target, decode, exact_target, is_noreturn_name, relocs_at};
use crate::object::refused_in_code;
use crate::program::{Program, Reloc, SectionKind};
use crate::tables::{Table, TableId};
use crate::transfer;
use crate::values::{State, Value};
use foldhash::{HashMap, HashMapExt as _};
use iced_x86::{Code, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use std::collections::{BTreeMap, BTreeSet};

/// Which copy of an instruction this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Context {
    /// Bytes that over-alignments (`and $-32,%rsp`) took so far; one copy of the code per value keeps every depth static.
    pub padding: u16,
    /// After `alloca`.
    pub dynamic: bool,
    /// A copy for arrivals with this depth instead of the usual one, up to the next instruction that sets rsp whatever it was (clang leaves stack
    /// arguments to such an epilogue); 0 = the usual one.
    pub deeper: i32,
}

/// An instruction in a body: the place and the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub context: Context,
    pub at: CodeRef,
}

/// Where a direct transfer out of the body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// Another function.
    Function(CodeRef),
    /// A symbol outside text: an import, or a weak one that is 0.
    Symbol(Reloc),
}

/// How control leaves an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flow {
    Next(Key),
    Jump(Key),
    /// Taken target, fall-through.
    Branch(Key, Key),
    /// A conditional tail call.
    BranchOut(Outside, Key),
    TailCall(Outside),
    /// An indirect jump through a function pointer at depth 0.
    TailIndirect,
    /// A direct call and where it returns to, if it does.
    Call(Outside, Option<Key>),
    CallIndirect(Key),
    Return,
    /// A jump through tables (bit set); `None` = through a label value of unknown origin.
    Switch(Option<u64>),
    /// `and $-align,%rsp`: one successor for each padding 0, 8, …
    Align(Vec<Key>),
    /// `ud2` and everything that only ever faults.
    Trap,
}

/// One instruction of a body.
#[derive(Clone, Debug)]
pub struct Node {
    pub key: Key,
    pub insn: Instruction,
    /// State before it.
    pub state: State,
    pub flow: Flow,
}

/// What a transfer out of a body calls or jumps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    Known(Outside),
    Pointer,
}

impl Node {
    /// What it calls or jumps to outside the body.
    #[must_use]
    pub fn callee(&self) -> Option<Callee> {
        match self.flow {
            Flow::Call(out, _) | Flow::TailCall(out) | Flow::BranchOut(out, _) => Some(Callee::Known(out)),
            Flow::CallIndirect(_) | Flow::TailIndirect => Some(Callee::Pointer),
            _ => None,
        }
    }
}

/// A function ready for planning.
#[derive(Clone, Debug)]
pub struct Body {
    pub entry: CodeRef,
    pub name: String,
    /// In the order in which they will be laid out; the entry is not necessarily first.
    pub nodes: Vec<Node>,
    pub index: HashMap<Key, u32>,
    pub tables: Vec<Table>,
    /// Address-taken labels that an indirect jump of this body may reach (computed goto), ascending.
    pub labels: Vec<u64>,
    /// Most bytes of stack arguments that calls after an `alloca` may pass, and the bytes of each.
    pub dynamic_arguments: i32,
    pub call_arguments: BTreeMap<Key, i32>,
    /// Instructions that compute the address of memory about to be allocated from a copy of the static stack pointer.
    pub arena_bases: BTreeSet<Key>,
    /// Where the value of r14 waits while r14 counts; `None` = nothing names r14.
    pub evicted: Option<crate::count::Evicted>,
}

impl Body {
    /// The node at `key`.
    #[must_use]
    pub fn node(&self, key: Key) -> u32 {
        self.index[&key]
    }

    /// Every node that control may go to from `node` within the body.
    #[must_use]
    pub fn successors(&self, node: &Node) -> Vec<u32> {
        match &node.flow {
            Flow::Next(a) | Flow::Jump(a) | Flow::BranchOut(_, a) | Flow::Call(_, Some(a)) | Flow::CallIndirect(a) => {
                vec![self.index[a]]
            }
            Flow::Branch(a, b) => vec![self.index[a], self.index[b]],
            Flow::Align(keys) => keys.iter().map(|k| self.index[k]).collect(),
            Flow::Switch(tables) => switch_targets(&self.tables, &self.labels, self.entry, *tables, node.key.context)
                .iter()
                .map(|k| self.index[k])
                .collect(),
            Flow::TailCall(_) | Flow::TailIndirect | Flow::Call(_, None) | Flow::Return | Flow::Trap => Vec::new(),
        }
    }
}

/// The keys that a switch in `context` can reach.
#[must_use]
pub fn switch_targets(tables: &[Table], labels: &[u64], entry: CodeRef, through: Option<u64>, context: Context) -> Vec<Key> {
    let mut targets: BTreeSet<CodeRef> = BTreeSet::new();
    for (id, table) in tables.iter().enumerate() {
        if through.is_none_or(|set| set >> id & 1 == 1) {
            targets.extend(table.entries.iter().filter_map(|&(_, to)| to));
        }
    }
    if through.is_none() {
        targets.extend(labels.iter().map(|&offset| CodeRef { section: entry.section, offset }));
    }
    targets.into_iter().map(|at| Key { context, at }).collect()
}

/// Largest alignment of rsp that is turned into copies of the code.
const MAX_ALIGN: i64 = 128;
/// Nodes beyond which a function is refused rather than analysed.
const MAX_NODES: usize = 4_000_000;

/// Discovers the body that starts at `entry`.
///
/// # Errors
/// What in it cannot be carried over faithfully.
pub fn discover(program: &Program, functions: &Functions, entry: CodeRef) -> Result<Body, Vec<Diagnostic>> {
    let mut growing = BTreeSet::new();
    let mut arguments = 0;
    loop {
        let mut discovery = Discovery::new(program, functions, entry, arguments, growing.clone());
        if let Err(problems) = discovery.run() {
            let found = discovery.growing();
            if found.is_subset(&growing) {
                return Err(problems);
            }
            growing.extend(found);
            continue;
        }
        let body = discovery.finish();
        let call_arguments = crate::dynamic::arguments(&body);
        let needed = call_arguments.values().copied().max().unwrap_or(0);
        if needed <= arguments {
            return Ok(Body { call_arguments, ..body });
        }
        arguments = needed;
    }
}

pub(crate) struct Discovery<'a> {
    pub program: &'a Program,
    pub functions: &'a Functions,
    pub entry: CodeRef,
    pub tables: Vec<Table>,
    pub labels: Vec<u64>,
    pub dynamic_arguments: i32,
    /// Instructions from which on rsp is virtual: they allocate memory of a constant size in a loop.
    pub growing: BTreeSet<CodeRef>,
    arena_bases: BTreeSet<Key>,
    pub nodes: Vec<Node>,
    pub index: HashMap<Key, u32>,
    work: BTreeSet<u32>,
    /// Indirect jumps at depth 0 that are judged when nothing else is left.
    deferred: BTreeSet<u32>,
    all_tables_known: bool,
    problems: Vec<Diagnostic>,
    /// Depths for which code was copied that is more than an epilogue.
    pub copies: BTreeSet<i32>,
    /// Made once: it allocates.
    pub info: InstructionInfoFactory,
}

impl<'a> Discovery<'a> {
    fn new(
        program: &'a Program,
        functions: &'a Functions,
        entry: CodeRef,
        dynamic_arguments: i32,
        growing: BTreeSet<CodeRef>,
    ) -> Self {
        let labels = functions.containing(entry).map_or(&[] as &[u64], |r| functions.labels_in(entry.section, r.start, r.end));
        Discovery {
            program,
            functions,
            entry,
            tables: Vec::new(),
            labels: labels.to_vec(),
            dynamic_arguments,
            growing,
            arena_bases: BTreeSet::new(),
            nodes: Vec::new(),
            index: HashMap::new(),
            work: BTreeSet::new(),
            deferred: BTreeSet::new(),
            all_tables_known: false,
            problems: Vec::new(),
            copies: BTreeSet::new(),
            info: InstructionInfoFactory::new(),
        }
    }

    fn run(&mut self) -> Result<(), Vec<Diagnostic>> {
        let start = Key { context: Context::default(), at: self.entry };
        self.arrive(start, &State::entry(), None);
        loop {
            let Some(id) = self.work.pop_first() else {
                // Only now all tables are known, and with them which labels only a computed goto can reach.
                if self.deferred.is_empty() || self.all_tables_known {
                    break;
                }
                self.all_tables_known = true;
                self.work.append(&mut self.deferred);
                continue;
            };
            self.step(id);
            if self.problems.len() > 20 || self.nodes.len() > MAX_NODES {
                break;
            }
        }
        if !self.problems.is_empty() {
            self.problems.sort();
            self.problems.dedup();
            return Err(std::mem::take(&mut self.problems));
        }
        Ok(())
    }

    /// Sorts the nodes into layout order: this function's own range first, other parts behind, copies last.
    fn finish(self) -> Body {
        let range = self.functions.containing(self.entry).cloned();
        let name = range.as_ref().map_or_else(|| format!("text_{:x}", self.entry.offset), |r| r.name.clone());
        let own = |at: CodeRef| {
            at.section == self.entry.section && range.as_ref().is_none_or(|r| r.start <= at.offset && at.offset < r.end)
        };
        let mut nodes = self.nodes;
        nodes.sort_by_key(|n| (n.key.context, !own(n.key.at), n.key.at));
        let index = nodes.iter().enumerate().map(|(i, n)| (n.key, i as u32)).collect();
        let mut renumber: Vec<u32> = vec![0; nodes.len()];
        for (key, old) in &self.index {
            renumber[*old as usize] = Body::position(&index, *key);
        }
        crate::values::renumber(nodes.iter_mut().map(|n| &mut n.state), &renumber);
        Body {
            entry: self.entry,
            name,
            nodes,
            index,
            tables: self.tables,
            labels: self.labels,
            dynamic_arguments: self.dynamic_arguments,
            call_arguments: BTreeMap::new(),
            arena_bases: self.arena_bases,
            evicted: None,
        }
    }

    /// Notes that what node `origin` computed became the stack pointer.
    pub fn arena_base(&mut self, origin: u32) {
        self.arena_bases.insert(self.nodes[origin as usize].key);
    }

    pub fn problem(&mut self, at: CodeRef, code: &'static str, message: impl Into<String>) {
        self.problems.push(Diagnostic::new(self.program.place(at.section, at.offset), code, message));
    }

    /// Control arrives at `key` with `state`.
    fn arrive(&mut self, key: Key, state: &State, from: Option<CodeRef>) {
        if let Some(&id) = self.index.get(&key) {
            match self.nodes[id as usize].state.join(state) {
                Ok(true) => {
                    self.work.insert(id);
                }
                Ok(false) => {}
                Err((a, b)) => {
                    let origin = from.map_or(String::new(), |f| format!(" from {:#x}", f.offset));
                    self.problem(key.at, "stack-depth-conflict", format!("reached with {a} and{origin} with {b} bytes of stack"));
                }
            }
            return;
        }
        let size = self.program.section(key.at.section).data.len() as u64;
        if key.at.offset >= size {
            self.problem(from.unwrap_or(key.at), "falls-through", "control runs past the end of the section");
            return;
        }
        let insn = decode(self.program, key.at);
        if insn.code() == Code::INVALID {
            self.problem(key.at, "undecodable", "no valid instruction here");
            return;
        }
        if key.context.deeper != 0 && !self.leads_to_reset(key.at) {
            self.copies.insert(key.context.deeper);
        }
        let id = self.nodes.len() as u32;
        self.nodes.push(Node { key, insn, state: state.clone(), flow: Flow::Trap });
        self.index.insert(key, id);
        self.work.insert(id);
    }

    fn step(&mut self, id: u32) {
        let Node { key, insn, ref state, .. } = self.nodes[id as usize];
        let mut after = state.clone();
        let deeper = if transfer::resets_rsp(&insn) { 0 } else { key.context.deeper };
        let context = Context { deeper, ..key.context };
        let next = Key { context, at: CodeRef { section: key.at.section, offset: key.at.offset + insn.len() as u64 } };
        let flow = match self.flow(id, key, next, &insn, &mut after) {
            Ok(flow) => self.redirect(flow, &after),
            Err((code, message)) => {
                self.problem(key.at, code, message);
                return;
            }
        };
        self.propagate(key, &flow, &after);
        self.nodes[id as usize].flow = flow;
    }

    fn propagate(&mut self, key: Key, flow: &Flow, after: &State) {
        let from = Some(key.at);
        match flow {
            Flow::Next(to) | Flow::Jump(to) => self.arrive(*to, after, from),
            Flow::Branch(a, b) => {
                self.arrive(*b, after, from);
                self.arrive(*a, after, from);
            }
            Flow::BranchOut(_, to) => self.arrive(*to, after, from),
            Flow::Call(_, Some(to)) | Flow::CallIndirect(to) => self.arrive(*to, after, from),
            Flow::Align(keys) => {
                let base = i32::from(key.context.padding);
                for to in keys {
                    let mut padded = after.clone();
                    padded.set_depth(after.depth + i32::from(to.context.padding) - base);
                    self.arrive(*to, &padded, from);
                }
            }
            Flow::Switch(through) => {
                for to in switch_targets(&self.tables, &self.labels, self.entry, *through, key.context) {
                    self.arrive(to, after, from);
                }
            }
            Flow::TailCall(_) | Flow::TailIndirect | Flow::Call(_, None) | Flow::Return | Flow::Trap => {}
        }
    }

    fn flow(&mut self, id: u32, key: Key, next: Key, insn: &Instruction, state: &mut State) -> Result<Flow, Reason> {
        let far = insn.is_call_far_indirect() || insn.is_jmp_far_indirect() || insn.is_call_far() || insn.is_jmp_far();
        if far || (insn.flow_control() == FlowControl::Return && insn.mnemonic() != Mnemonic::Ret) {
            return Err(("privileged-instruction", format!("`{insn}` is not for handlers")));
        }
        if matches!(insn.flow_control(), FlowControl::Call | FlowControl::IndirectCall) {
            transfer::whole_words(insn, state)?;
        }
        match insn.flow_control() {
            FlowControl::Next => self.straight(id, key, next, insn, state),
            FlowControl::UnconditionalBranch => Ok(match self.direct(key, insn, state)? {
                Ok(to) => Flow::Jump(to),
                Err(out) => Flow::TailCall(out),
            }),
            FlowControl::ConditionalBranch => Ok(match self.direct(key, insn, state)? {
                Ok(to) => Flow::Branch(to, self.checked_next(next, state)?),
                Err(out) => Flow::BranchOut(out, next),
            }),
            FlowControl::Call if insn.code() == Code::Syscall => match self.functions.syscall() {
                Some(gate) => self.call_out(Outside::Function(gate), next, state),
                None => Err((
                    "privileged-instruction",
                    format!("`{insn}` is not for handlers (for whole programs there is --syscalls)"),
                )),
            },
            FlowControl::Call => self.call(key, next, insn, state),
            FlowControl::IndirectCall => {
                if let Some(out) = self.through_got(key, insn) {
                    return self.call_out(out, next, state);
                }
                transfer::clobber_by_call(state, u16::MAX);
                Ok(Flow::CallIndirect(next))
            }
            FlowControl::IndirectBranch => self.indirect(id, key, insn, state),
            FlowControl::Return => {
                let pops = insn.code() == Code::Retnq_imm16 && insn.immediate16() == self.functions.pops(self.entry);
                if insn.code() != Code::Retnq && !pops {
                    return Err(("unsupported-return", format!("`{insn}` has no accepted form")));
                }
                if state.depth != 0 || state.dynamic {
                    return Err(("stack-depth-conflict", format!("returns with {} bytes still on the stack", state.depth)));
                }
                Ok(Flow::Return)
            }
            FlowControl::Interrupt if insn.code() == Code::Int3 => Ok(Flow::Trap),
            FlowControl::Exception => Ok(Flow::Trap),
            _ => Err(("privileged-instruction", format!("`{insn}` is not for handlers"))),
        }
    }

    fn straight(&mut self, id: u32, key: Key, next: Key, insn: &Instruction, state: &mut State) -> Result<Flow, Reason> {
        if insn.mnemonic() == Mnemonic::Hlt {
            return Ok(Flow::Trap);
        }
        // Said here, since what follows would fail for want of the address.
        if let Some(why) = relocs_at(self.program, key.at, insn.len()).iter().find_map(|r| refused_in_code(r.kind)) {
            return Err(("unsupported-relocation", why));
        }
        if insn.mnemonic() == Mnemonic::And && insn.op0_register() == Register::RSP {
            return self.align(key, next, insn, state);
        }
        if let Some((after, depth)) = transfer::probe_loop(self.program, key.at, insn, state) {
            state.set_depth(depth);
            return Ok(Flow::Next(Key { context: key.context, at: after }));
        }
        transfer::apply(self, id, key, insn, state)?;
        let context = Context { dynamic: state.dynamic, ..next.context };
        self.checked_next(Key { context, ..next }, state).map(Flow::Next)
    }

    /// Falling into another function is a tail call in disguise; only at depth 0 has it a meaning.
    fn checked_next(&self, next: Key, state: &State) -> Result<Key, Reason> {
        let starts = self.functions.start_at(next.at).is_some_and(|r| !r.cold) && next.at != self.entry;
        if starts && (state.depth != 0 || state.dynamic) {
            let name = &self.functions.start_at(next.at).expect("checked above").name;
            return Err(("falls-through", format!("control falls into `{name}` with {} bytes on the stack", state.depth)));
        }
        Ok(next)
    }

    fn align(&mut self, key: Key, next: Key, insn: &Instruction, state: &mut State) -> Result<Flow, Reason> {
        transfer::whole_words(insn, state)?;
        let mask = insn.try_immediate(1).unwrap_or(0).cast_signed();
        let align = mask.wrapping_neg();
        if insn.op1_kind() == OpKind::Register || state.dynamic || align <= 0 || align & (align - 1) != 0 || align > MAX_ALIGN {
            return Err((
                "unsupported-alignment",
                format!("`{insn}`: only alignments of the stack up to {MAX_ALIGN} bytes are carried over"),
            ));
        }
        let paddings = (0..align.max(8)).step_by(8);
        let to = |p: i64| Key { context: Context { padding: key.context.padding + p as u16, ..key.context }, ..next };
        Ok(Flow::Align(paddings.map(to).collect()))
    }

    /// `Ok(Ok)` within the body, `Ok(Err)` out of it.
    fn direct(&mut self, key: Key, insn: &Instruction, state: &State) -> Result<Result<Key, Outside>, Reason> {
        match branch_target(self.program, key.at, insn) {
            BranchTarget::Code(at) => {
                let other = self.functions.start_at(at).filter(|r| !r.cold && at != self.entry);
                match other {
                    Some(_) if state.depth == 0 && !state.dynamic => Ok(Err(Outside::Function(at))),
                    _ => Ok(Ok(Key { context: key.context, at })),
                }
            }
            BranchTarget::Symbol(_) if state.depth != 0 || state.dynamic => {
                Err(("stack-depth-conflict", format!("jumps out of the function with {} bytes on the stack", state.depth)))
            }
            BranchTarget::Symbol(reloc) => Ok(Err(Outside::Symbol(reloc))),
        }
    }

    fn call(&mut self, key: Key, next: Key, insn: &Instruction, state: &mut State) -> Result<Flow, Reason> {
        if insn.op0_kind() != OpKind::NearBranch64 {
            return Err(("privileged-instruction", format!("`{insn}` is not for handlers")));
        }
        match branch_target(self.program, key.at, insn) {
            BranchTarget::Code(at) if at == next.at => {
                Err(("reads-return-address", "calls the next instruction to learn its own address".into()))
            }
            BranchTarget::Code(at) => self.call_out(Outside::Function(at), next, state),
            BranchTarget::Symbol(reloc) => self.call_out(Outside::Symbol(reloc), next, state),
        }
    }

    /// `call|jmp *f@GOTPCREL(%rip)` is a direct transfer.
    fn through_got(&self, key: Key, insn: &Instruction) -> Option<Outside> {
        let reloc = transfer::displacement_reloc(self.program, key.at, insn).filter(|r| transfer::is_got(r.kind))?;
        let exact = Reloc { addend: 0, ..reloc };
        Some(match exact_target(self.program, &exact) {
            Some((section, offset)) if self.program.section(section).kind == SectionKind::Text => {
                Outside::Function(CodeRef { section, offset })
            }
            _ => Outside::Symbol(exact),
        })
    }

    fn call_out(&self, out: Outside, next: Key, state: &mut State) -> Result<Flow, Reason> {
        let (returns, clobbers) = match out {
            Outside::Function(at) => {
                self.take_popped(at, state)?;
                (!self.functions.is_noreturn(at), self.functions.clobbers(at))
            }
            Outside::Symbol(reloc) => (!is_noreturn_name(&self.program.symbol(reloc.symbol).name), u16::MAX),
        };
        transfer::clobber_by_call(state, clobbers);
        // A call with nothing behind it was not meant to return, whatever is known of its callee (`_start`).
        let returns = returns && next.at.offset < self.program.section(next.at.section).data.len() as u64;
        Ok(Flow::Call(out, returns.then_some(next)))
    }

    /// A callee that ends in `ret $n` takes its stack arguments with it.
    fn take_popped(&self, callee: CodeRef, state: &mut State) -> Result<(), Reason> {
        let by = i32::from(self.functions.pops(callee));
        if by == 0 {
            return Ok(());
        }
        if by % 8 != 0 || state.dynamic || state.depth < by {
            return Err(("unsupported-return", format!("calls a function that pops {by} bytes of arguments")));
        }
        state.set_depth(state.depth - by);
        Ok(())
    }

    fn indirect(&mut self, id: u32, key: Key, insn: &Instruction, state: &mut State) -> Result<Flow, Reason> {
        if let Some(out) = self.through_got(key, insn) {
            if state.depth != 0 || state.dynamic {
                return Err((
                    "stack-depth-conflict",
                    format!("jumps out of the function with {} bytes on the stack", state.depth),
                ));
            }
            return Ok(Flow::TailCall(out));
        }
        let value = match insn.op0_kind() {
            OpKind::Register => state.register(insn.op0_register()),
            OpKind::Memory => transfer::load(self, key.at, insn, state, 8),
            _ => return Err(("privileged-instruction", format!("`{insn}` is not for handlers"))),
        };
        if let Value::Code(set) = value {
            return Ok(Flow::Switch(Some(set)));
        }
        if value == Value::Computed {
            return Err(("unresolved-jump", format!("`{insn}` through a computed address: its table was not found")));
        }
        if state.depth != 0 || state.dynamic {
            return if self.labels.is_empty() {
                Err(("unresolved-jump", format!("`{insn}` with {} bytes on the stack: its table was not found", state.depth)))
            } else {
                Ok(Flow::Switch(None))
            };
        }
        let loose = self
            .labels
            .iter()
            .any(|&l| !self.tables.iter().any(|t| t.entries.iter().any(|(_, to)| to.is_some_and(|to| to.offset == l))));
        if loose && !self.all_tables_known {
            self.deferred.insert(id);
            return Ok(Flow::TailIndirect);
        }
        // A tail call or a computed goto: the table for it has functions and labels.
        Ok(if loose { Flow::Switch(None) } else { Flow::TailIndirect })
    }

    /// The number of the table at `section + offset`, discovering it if it is one.
    pub fn table(&mut self, table: Option<Table>) -> Option<TableId> {
        let table = table?;
        if let Some(known) =
            self.tables.iter().position(|t| t.section == table.section && t.offset == table.offset && t.kind == table.kind)
        {
            return Some(known as TableId);
        }
        (self.tables.len() < 64).then(|| {
            self.tables.push(table);
            (self.tables.len() - 1) as TableId
        })
    }
}

impl Body {
    fn position(index: &HashMap<Key, u32>, key: Key) -> u32 {
        index[&key]
    }
}
