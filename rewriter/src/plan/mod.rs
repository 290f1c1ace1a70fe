//! Phase 7: what every instruction becomes. One file per kind of change; this one holds the plan's form and the dispatch.

pub mod backward;
pub mod bits;
pub mod branch;
pub mod dispatch;
pub mod encode;
pub mod evict;
pub mod gather;
pub mod memory;
pub mod stack;
pub mod string;

pub use string::gate_name;

use crate::Masking;
use crate::body::{Body, Flow, Node};
use crate::diag::{Diagnostic, Reason};
use crate::functions::{CodeRef, Functions, relocs_at};
use crate::kernel;
use crate::liveness::Liveness;
use crate::program::{Program, Reloc};
use crate::select::Selection;
use crate::space::Space;
use crate::transfer::{displacement_reloc, immediate_reloc};
use cordon_checker::layout;
use cordon_checker::policy::Host;
use cordon_checker::{Features, Mode, Policy, describe};
use foldhash::HashMap;
use iced_x86::{Code, IcedError, Instruction, Mnemonic, OpKind, Register};
use std::collections::BTreeMap;

/// Where a jump within a body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Node(u32),
    /// A place inside one node's sequence, by a number that is unique in the body.
    Label(u32),
}

/// A stretch of planned code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// What follows stands for this node.
    Node(u32),
    Label(u32),
    /// Final bytes.
    Bytes(Vec<u8>),
    /// `jmp` or, with a condition (low nibble of the opcode), `jcc`.
    Jump(Option<u8>, Target),
    /// `call rel32`.
    Call(CodeRef),
    /// `jmp rel32` or `jcc rel32` to another body.
    JumpOut(Option<u8>, CodeRef),
    /// The checker's hint: depth in bytes and the pushed set at what follows.
    Hint(u32, u32),
    /// The next node begins a loop that was aligned: to 16 bytes if that is cheap, else to 8 (what gcc does).
    Align,
    /// What follows (behind its hint, if it has one) begins a loop that control never falls into: to 32 bytes, which costs no time.
    AlignFree,
    /// The checker shall keep no facts here but those of these registers (match mode).
    Forget(u16),
    /// A `ud2` that ends the call because of what stands at `place`.
    Stub {
        place: Target,
        /// The fuel is used up; else an access goes astray.
        fuel: bool,
    },
    /// LIMIT with this constant, behind `endbr64` if the function is reached through a table or by the host (kernel).
    Limit {
        limit: u32,
        indirect: bool,
    },
}

/// A body's plan.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    pub pieces: Vec<Piece>,
    /// Per node: what was changed and why (empty = unchanged or only re-encoded).
    pub changes: Vec<&'static str>,
    /// Natively pushed slots before each node: bit i = i-th slot below the return address.
    pub pushed: Vec<u64>,
    /// Labels in use: 1 to this number.
    pub labels: u32,
}

/// What planning reads.
#[derive(Clone, Copy, Debug)]
pub struct Env<'a> {
    pub program: &'a Program,
    pub functions: &'a Functions,
    pub chosen: &'a Selection,
    pub space: &'a Space,
    pub bodies: &'a HashMap<CodeRef, usize>,
    pub mode: Mode,
    pub masking: Masking,
}

pub(crate) type Planned<T> = Result<T, Reason>;

/// Turns an encoder error into a refusal.
pub(crate) fn ok<T>(result: Result<T, IcedError>) -> Planned<T> {
    result.map_err(|e| ("unencodable", e.to_string()))
}

/// From the data stack pointer, where a borrowed register waits: below the data stack's red zone, which no signal ever overwrites.
const SPILL: i32 = -128 - 8;

/// Plans one body at a time.
#[derive(Debug)]
pub struct Planner<'a> {
    pub env: Env<'a>,
    /// Index of the body in the selection.
    pub index: usize,
    pub body: &'a Body,
    pub live: &'a Liveness,
    pub native: stack::Native,
    /// Additions of a table's address that are left out, by the load of the entry.
    sums: BTreeMap<u32, u32>,
    pieces: Vec<Piece>,
    labels: u32,
    change: &'static str,
}

/// Plans `body`.
///
/// # Errors
/// Every instruction that has no faithful form.
pub fn plan(env: Env<'_>, index: usize, live: &Liveness) -> Result<Plan, Vec<Diagnostic>> {
    let body = &env.chosen.bodies[index];
    let native = stack::classify(env.program, body, live);
    let sums = dispatch::needless_sums(env, index, live);
    let mut planner = Planner { env, index, body, live, native, sums, pieces: Vec::new(), labels: 0, change: "" };
    let pushed: Vec<u64> = body.nodes.iter().map(|n| planner.native.set(n)).collect();
    let mut changes = Vec::with_capacity(body.nodes.len());
    let mut problems = Vec::new();
    let arrivals = branch::forward_arrivals(body);
    for (id, node) in body.nodes.iter().enumerate() {
        let id = id as u32;
        planner.start(id, node, &arrivals, pushed[id as usize]);
        planner.change = "";
        if let Err((code, message)) = planner.node(id, node) {
            problems.push(Diagnostic::new(env.program.place(node.key.at.section, node.key.at.offset), code, message));
        }
        changes.push(planner.change);
    }
    if problems.is_empty() { Ok(Plan { pieces: planner.pieces, changes, pushed, labels: planner.labels }) } else { Err(problems) }
}

impl<'a> Planner<'a> {
    pub(crate) fn bytes(&mut self, bytes: Vec<u8>) {
        if let Some(Piece::Bytes(last)) = self.pieces.last_mut() {
            last.extend(bytes);
        } else {
            self.pieces.push(Piece::Bytes(bytes));
        }
    }

    pub(crate) fn piece(&mut self, piece: Piece) {
        self.pieces.push(piece);
    }

    pub(crate) fn note(&mut self, change: &'static str) {
        self.change = change;
    }

    pub(crate) fn label(&mut self) -> u32 {
        self.labels += 1;
        self.labels
    }

    /// The depth hint, the alignment and the node mark in front of a node.
    fn start(&mut self, id: u32, node: &Node, arrivals: &branch::Arrivals, pushed: u64) {
        if arrivals.needs_hint(id) && (node.state.depth != 0 || pushed != 0) {
            self.piece(Piece::Hint(node.state.depth.cast_unsigned(), (pushed & ((1 << layout::HINT_SLOTS) - 1)) as u32));
        }
        if arrivals.begins_loop(id) && node.key.at.offset.is_multiple_of(8) {
            self.piece(Piece::Align);
        }
        self.piece(Piece::Node(id));
    }

    fn node(&mut self, id: u32, node: &Node) -> Planned<()> {
        if self.evicted(id, node)? {
            return Ok(());
        }
        match &node.flow {
            Flow::Next(to) => {
                self.straight(id, node)?;
                self.fall_through(id, *to);
                Ok(())
            }
            _ => self.branch(id, node),
        }
    }

    /// An instruction that goes on to the next one.
    fn straight(&mut self, id: u32, node: &Node) -> Planned<()> {
        let insn = &node.insn;
        self.every_relocation(node)?;
        match insn.mnemonic() {
            Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Cld => {
                self.note("padding, landing pad or direction flag: not needed");
                return Ok(());
            }
            Mnemonic::Std => return self.set_direction(node),
            Mnemonic::Push | Mnemonic::Pop | Mnemonic::Leave => return self.push_pop(id, node),
            Mnemonic::Cpuid | Mnemonic::Xgetbv | Mnemonic::Fldcw | Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => {
                return self.gate_instruction(id, node);
            }
            _ => {}
        }
        if insn.mnemonic() == Mnemonic::Xlatb {
            return self.table_byte(id, node);
        }
        if self.is_needless_sum(id) {
            self.note("switch: the case's number needs no address of the table");
            return Ok(());
        }
        if self.entry_load(id, node)? {
            return Ok(());
        }
        if string::is_string(insn) {
            return if self.is_backward(node) { self.copy_backward(id, node) } else { self.string(id, node) };
        }
        if self.moves_stack(node) {
            return self.move_rsp(id, node);
        }
        if insn.mnemonic() == Mnemonic::Lea {
            return self.lea(id, node);
        }
        if self.bit_string(id, node)? || self.gather(id, node)? {
            return Ok(());
        }
        self.ordinary(id, node)
    }

    /// That each relocation is of a field of the instruction.
    fn every_relocation(&self, node: &Node) -> Planned<()> {
        let (program, insn) = (self.env.program, &node.insn);
        let fields = [displacement_reloc(program, node.key.at, insn), immediate_reloc(program, node.key.at, insn)];
        let is_field = |r: &Reloc| fields.iter().flatten().any(|f| f.offset == r.offset);
        match relocs_at(program, node.key.at, insn.len()).iter().find(|r| !is_field(r)) {
            Some(r) => {
                let at = r.offset - node.key.at.offset;
                Err(("unsupported-relocation", format!("relocation type {} at byte {at} of `{insn}` is of no field", r.kind)))
            }
            None => Ok(()),
        }
    }

    /// Everything whose operands are registers, immediates and at most one memory operand.
    fn ordinary(&mut self, id: u32, node: &Node) -> Planned<()> {
        let mut insn = node.insn;
        strip_prefixes(&mut insn);
        if self.env.space.kernel {
            // One call at a time is inside a window, and a split lock is fatal to a kernel.
            insn.set_has_lock_prefix(false);
        }
        if let Some(code) = crate::operand::listed(&insn) {
            insn.set_code(code);
        }
        let entered = self.enter_with(id, node)?;
        let node = entered.as_ref().unwrap_or(node);
        if self.address_load(node, &insn)? {
            return Ok(());
        }
        self.immediate(node, &mut insn)?;
        let mut borrowed = Borrow::default();
        if self.body.arena_bases.contains(&node.key) {
            self.note("address of memory to allocate: from the arena");
            let base = insn.op0_register();
            let word = self.env.space.arena_word.cast_signed();
            let bytes = ok(encode::load(encode::narrow(base), Register::None, word))?;
            self.bytes(bytes);
        }
        if insn.memory_base() == Register::None && self.counted_from(node, &node.insn)?.is_some() {
            let begin = self.begin_of_allocations(insn.op0_register())?;
            self.bytes(begin);
        }
        if self.stack_pointer_operand(id, node, &mut insn, &mut borrowed)? {
            return Ok(());
        }
        let exact = self.memory(id, node, &mut insn, &mut borrowed)?;
        self.finish_borrow_before(&borrowed)?;
        if self.env.space.kernel && kernel::is_exchange(&insn) {
            self.exchange(id, &insn, &borrowed)?;
            return self.finish_borrow_after(&borrowed);
        }
        let bytes = ok(encode::encode(&insn))?;
        accepted(&bytes, &self.env.space.policy()).map_err(|lacking| refused(&node.insn, lacking))?;
        let free = if exact { self.free_load(&insn) } else { None };
        self.bytes(free.unwrap_or(bytes));
        self.finish_borrow_after(&borrowed)
    }

    /// A register that holds nothing of value around node `id` and that `insn` does not name; else one whose value is kept on the data stack.
    pub(crate) fn borrow(&self, id: u32, insn: &Instruction, taken: &[Register]) -> Borrowed {
        let live = self.live.before[id as usize].or(self.live.after[id as usize]);
        let named = |r: Register| {
            let mut factory = iced_x86::InstructionInfoFactory::new();
            taken.contains(&r) || factory.info(insn).used_registers().iter().any(|u| u.register().full_register() == r)
        };
        let all = [
            Register::RAX,
            Register::RCX,
            Register::RDX,
            Register::RSI,
            Register::RDI,
            Register::R8,
            Register::R9,
            Register::R10,
            Register::R11,
            Register::RBX,
            Register::RBP,
            Register::R12,
            Register::R13,
            Register::R14,
            Register::R15,
        ];
        let free = all.iter().copied().find(|r| !live.has(*r) && !named(*r));
        let register = free.unwrap_or_else(|| all.iter().copied().find(|r| !named(*r)).unwrap_or(Register::R11));
        Borrowed { register, keep: free.is_none() }
    }

    /// Displacement from native to data stack.
    pub(crate) fn k(&self) -> i32 {
        self.env.space.stack_shift.cast_signed()
    }

    /// Saves a borrowed register that is in use.
    pub(crate) fn keep(&mut self, borrowed: Borrowed, slot: i32) -> Planned<()> {
        if borrowed.keep {
            let bytes = ok(encode::store(borrowed.register, Register::RSP, self.k() + SPILL - 8 * slot))?;
            self.bytes(bytes);
        }
        Ok(())
    }

    /// Puts a borrowed register back.
    pub(crate) fn give_back(&mut self, borrowed: Borrowed, slot: i32) -> Planned<()> {
        if borrowed.keep {
            let bytes = ok(encode::load(borrowed.register, Register::RSP, self.k() + SPILL - 8 * slot))?;
            self.bytes(bytes);
        }
        Ok(())
    }

    fn finish_borrow_before(&mut self, borrow: &Borrow) -> Planned<()> {
        for (slot, (borrowed, fill)) in borrow.0.iter().enumerate() {
            self.keep(*borrowed, slot as i32)?;
            self.bytes(fill.clone());
        }
        Ok(())
    }

    fn finish_borrow_after(&mut self, borrow: &Borrow) -> Planned<()> {
        for (slot, (borrowed, _)) in borrow.0.iter().enumerate() {
            self.give_back(*borrowed, slot as i32)?;
        }
        Ok(())
    }
}

/// A register taken for a few instructions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Borrowed {
    pub register: Register,
    /// It holds a value that must survive.
    pub keep: bool,
}

/// Registers borrowed for one instruction, with the code that fills them.
#[derive(Debug, Default)]
pub(crate) struct Borrow(pub Vec<(Borrowed, Vec<u8>)>);

/// Drops prefixes that mean nothing on this instruction, and segment overrides (they are handled with the memory operand).
fn strip_prefixes(insn: &mut Instruction) {
    insn.set_has_repne_prefix(false);
    if insn.mnemonic() != Mnemonic::Pause {
        insn.set_has_rep_prefix(false);
    }
    insn.set_has_xacquire_prefix(false);
    insn.set_has_xrelease_prefix(false);
}

/// The refusal of an instruction that the checker's allow-list does not have.
fn refused(insn: &Instruction, lacking: Option<&str>) -> Reason {
    let privileged = insn.is_privileged() || matches!(insn.mnemonic(), Mnemonic::Syscall | Mnemonic::Sysenter | Mnemonic::Int);
    if let Some(feature) = lacking {
        ("unsupported-instruction", format!("`{insn}` needs {feature}, which the host does not allow"))
    } else if privileged {
        ("privileged-instruction", format!("`{insn}` is not for handlers"))
    } else if insn.cpuid_features().iter().any(|feature| format!("{feature:?}").starts_with("AVX512")) {
        ("unsupported-instruction", format!("`{insn}` is of AVX-512, which has no accepted form; compile with -mno-avx512f"))
    } else {
        ("unsupported-instruction", format!("`{insn}` has no accepted form"))
    }
}

/// Whether the checker's allow-list has this one instruction, or what it needs beyond the policy.
fn accepted(bytes: &[u8], policy: &Policy) -> Result<(), Option<&'static str>> {
    let described = describe(bytes, Host::User).map_err(|_| None)?;
    let lacking = Features(described.features.0 & !policy.features.0);
    let named = Features::NAMES.iter().find(|(feature, _)| lacking.contains(*feature));
    match named {
        Some((_, name)) => Err(Some(name)),
        None if lacking == Features::NONE && described.len == bytes.len() => Ok(()),
        None => Err(None),
    }
}

/// Whether any explicit register operand is the stack pointer (any width).
pub(crate) fn names_stack_pointer(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).full_register() == Register::RSP)
}

/// `Code` of an instruction that traps.
pub(crate) const UD2: [u8; 2] = [0x0f, 0x0b];

/// `mov r64,imm64` whose value fits 32 bits is written short.
pub(crate) fn is_wide_move(insn: &Instruction) -> bool {
    insn.code() == Code::Mov_r64_imm64
}
