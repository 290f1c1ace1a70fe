//! Phase 3b, metered images only: r14 is the count of instructions, so no function may hold a value in it (DESIGN §8).
//!
//! A function that never names r14 needs nothing. In any other, r14 trades places with the callee-saved register whose eviction costs least: one
//! that the function never names costs nothing. If there is none, the value lives where the function's own `push` made room for the caller's: that
//! push saves nothing any more, since the caller keeps no value in r14 either. [`crate::plan`] turns the uses into accesses of that slot.

use crate::body::{Body, Flow, Node};
use crate::diag::{Diagnostic, Refusals};
use crate::functions::CodeRef;
use crate::program::Program;
use crate::values::{NOT_PUSHED, Value};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedRegister};
use rayon::prelude::*;

/// The register that counts in metered images.
pub const COUNT: Register = Register::R14;
/// Its bit in a [`crate::liveness::Live`].
pub const COUNT_BIT: u16 = 1 << 14;

/// Callee-saved registers that r14 may trade places with, the cheapest to encode last (they are the busiest).
const PARTNERS: [Register; 5] = [Register::R15, Register::R13, Register::R12, Register::RBX, Register::RBP];

/// Where the value is that the function would have in r14.
#[derive(Clone, Debug, Default)]
pub struct Evicted {
    /// Per node: a push or pop that only moves rsp.
    room: Vec<bool>,
    /// Per node: the slot's offset from rsp at entry, where it is allocated.
    slot: Vec<Option<i32>>,
    /// No instruction reads more than the low 32 bits.
    pub narrow: bool,
}

impl Evicted {
    /// Whether node `id` is a push or pop of r14 of which only the room is left.
    #[must_use]
    pub fn is_room(&self, id: u32) -> bool {
        self.room[id as usize]
    }

    /// Offset of the slot from rsp at function entry, before node `id`.
    #[must_use]
    pub fn slot(&self, id: u32) -> Option<i32> {
        self.slot[id as usize]
    }
}

/// Frees r14 in all bodies.
///
/// # Errors
/// Every function in which that is impossible; compiling with `-ffixed-r14` helps.
pub fn free(program: &Program, bodies: &mut [Body]) -> Result<(), Refusals> {
    let refused: Vec<Option<Trouble>> = bodies.par_iter_mut().map(|body| free_one(body).err()).collect();
    let explain = |(at, why): Trouble| {
        let message = format!("{why}; metered images need r14 as the count: compile with -ffixed-r14");
        Diagnostic::new(program.place(at.section, at.offset), "count-register", message)
    };
    let problems: Vec<Diagnostic> = refused.into_iter().flatten().map(explain).collect();
    if problems.is_empty() { Ok(()) } else { Err(Refusals(problems)) }
}

fn free_one(body: &mut Body) -> Result<(), Trouble> {
    let named = named(body);
    if named & COUNT_BIT == 0 {
        return Ok(());
    }
    let weights = weights(body);
    let own = examine(body, COUNT, &weights)?;
    let mut best = own.place.map(|evicted| (own.cost, None, evicted));
    for partner in PARTNERS.into_iter().filter(|_| own.swappable) {
        let unnamed = named >> partner.number() & 1 == 0;
        let theirs = if unnamed { Ok(Uses::none()) } else { examine(body, partner, &weights) };
        if let Ok(Uses { cost, swappable: true, place: Ok(evicted) }) = theirs
            && best.as_ref().map_or(true, |(least, ..)| cost < *least)
        {
            best = Ok((cost, Some(partner), evicted));
        }
    }
    let (_, partner, evicted) = best?;
    if let Some(partner) = partner {
        trade(body, partner);
    }
    body.evicted = evicted;
    Ok(())
}

/// Where something stands in the way, and what.
type Trouble = (CodeRef, String);

/// What evicting a register would mean.
#[derive(Debug)]
struct Uses {
    /// Roughly cycles, weighted by loops.
    cost: u64,
    /// Every use is an explicit operand that any other callee-saved register could be.
    swappable: bool,
    /// The slots, if every use has one; `None` if there is no use.
    place: Result<Option<Evicted>, Trouble>,
}

impl Uses {
    fn none() -> Uses {
        Uses { cost: 0, swappable: true, place: Ok(None) }
    }
}

/// General registers that any instruction of `body` names or uses implicitly.
fn named(body: &Body) -> u16 {
    let mut factory = InstructionInfoFactory::new();
    let mut set = 0;
    for node in &body.nodes {
        for used in factory.info(&node.insn).used_registers().iter().filter(|u| u.register().is_gpr()) {
            set |= 1 << used.register().full_register().number();
        }
    }
    set
}

/// Per node: 8 to the power of the number of backward branches that span it.
fn weights(body: &Body) -> Vec<u64> {
    let mut change = vec![0i32; body.nodes.len() + 1];
    for (id, node) in body.nodes.iter().enumerate() {
        for to in body.successors(node).into_iter().filter(|&to| to as usize <= id) {
            change[to as usize] += 1;
            change[id + 1] -= 1;
        }
    }
    let mut depth = 0;
    let mut weigh = |change: &i32| {
        depth += change;
        1 << (3 * depth.clamp(0, 6))
    };
    change[..body.nodes.len()].iter().map(&mut weigh).collect()
}

/// Finds out how `body` uses the callee-saved `register`.
///
/// `Err` if it does not treat the register as the psABI says: then callers or callees know more about it than can be seen here.
fn examine(body: &Body, register: Register, weights: &[u64]) -> Result<Uses, Trouble> {
    let untouched = |node: &Node| node.state.registers[register.number()] == Value::Entry;
    let is =
        |node: &Node, mnemonic| node.insn.mnemonic() == mnemonic && node.insn.op0_register() == register && !node.state.dynamic;
    let saves: Vec<bool> = body.nodes.iter().map(|n| is(n, Mnemonic::Push) && untouched(n)).collect();
    let saved = |pushes: &[u32]| !pushes.is_empty() && pushes.iter().all(|&p| p != NOT_PUSHED && saves[p as usize]);
    let slot_of = |node: &Node| node.state.frame.iter().rev().find(|(_, slot)| saved(&slot.pushes)).map(|(offset, _)| *offset);
    let slot: Vec<Option<i32>> = body.nodes.iter().map(slot_of).collect();
    let mut found = Evicted { room: saves.clone(), slot, narrow: true };
    let mut factory = InstructionInfoFactory::new();
    let (mut cost, mut swappable, mut problem) = (0, true, None);
    for (id, node) in body.nodes.iter().enumerate() {
        if leaves(&node.flow) && !untouched(node) {
            return Err((node.key.at, format!("leaves the function with the caller's {register:?} changed")));
        }
        let restored = node.state.frame.get(&-node.state.depth).is_some_and(|slot| saved(&slot.pushes));
        found.room[id] |= is(node, Mnemonic::Pop) && restored;
        let uses: Vec<UsedRegister> = used(&mut factory, &node.insn, register);
        if uses.is_empty() || found.room[id] {
            continue;
        }
        let reads = uses.iter().any(|u| is_read(u.access()));
        if reads && untouched(node) && !ignores_value(&node.insn) {
            return Err((node.key.at, format!("takes the value that {register:?} has at entry")));
        }
        swappable &= is_plain(&node.insn, register);
        found.narrow &= !uses.iter().any(|u| is_read(u.access()) && u.register().is_gpr64());
        cost += weights[id] * cost_of(&node.insn, register, reads);
        if found.slot[id].is_none() {
            problem = problem.or_else(|| Some((node.key.at, format!("changes {register:?} without having pushed it"))));
        }
        let moved = body
            .successors(node)
            .into_iter()
            .find(|&to| found.slot[to as usize] != found.slot[id] && !untouched(&body.nodes[to as usize]));
        if moved.is_some() {
            problem = problem.or_else(|| Some((node.key.at, format!("saves {register:?} in more than one place"))));
        }
    }
    Ok(Uses { cost, swappable, place: problem.map_or(Ok(Some(found)), Err) })
}

fn leaves(flow: &Flow) -> bool {
    matches!(flow, Flow::Return | Flow::TailCall(_) | Flow::TailIndirect | Flow::BranchOut(..))
}

fn is_read(access: OpAccess) -> bool {
    matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

fn used(factory: &mut InstructionInfoFactory, insn: &Instruction, register: Register) -> Vec<UsedRegister> {
    let full = |u: &&UsedRegister| u.register().is_gpr() && u.register().full_register() == register;
    factory.info(insn).used_registers().iter().filter(full).copied().collect()
}

/// Forms that set a constant although they look as if they read: `or $-1`, `and $0`, an operation with itself (`sbb` depends on the carry only).
#[must_use]
pub fn ignores_value(insn: &Instruction) -> bool {
    let immediate = insn.try_immediate(1).ok().map(u64::cast_signed);
    match insn.mnemonic() {
        Mnemonic::Or => immediate == Some(-1),
        Mnemonic::And => immediate == Some(0),
        Mnemonic::Sbb | Mnemonic::Xor | Mnemonic::Sub => {
            insn.op1_kind() == OpKind::Register && insn.op0_register() == insn.op1_register()
        }
        _ => false,
    }
}

/// Whether `register` is an explicit operand here that may become any other register.
fn is_plain(insn: &Instruction, register: Register) -> bool {
    let high = |r: Register| matches!(r, Register::AH | Register::CH | Register::DH | Register::BH);
    let operands = || (0..insn.op_count()).filter(|&i| insn.op_kind(i) == OpKind::Register).map(|i| insn.op_register(i));
    names(insn, register) && !operands().any(high)
}

/// Whether an operand of `insn` is `register` in any width, or is addressed by it.
#[must_use]
pub fn names(insn: &Instruction, register: Register) -> bool {
    let is = |r: Register| r.is_gpr() && r.full_register() == register;
    is(insn.memory_base())
        || is(insn.memory_index())
        || (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Register && is(insn.op_register(i)))
}

/// Cycles that a use costs when the register is memory, very roughly.
fn cost_of(insn: &Instruction, register: Register, reads: bool) -> u64 {
    let addressed = [insn.memory_base(), insn.memory_index()].iter().any(|r| r.is_gpr() && r.full_register() == register);
    let target = insn.op_count() > 0 && insn.op0_register().is_gpr() && insn.op0_register().full_register() == register;
    match (addressed, target && reads) {
        (true, _) => 4,
        (_, true) => 6,
        _ => 2,
    }
}

/// Lets r14 and `partner` trade places in the whole body.
fn trade(body: &mut Body, partner: Register) {
    for node in &mut body.nodes {
        node.state.registers.swap(COUNT.number(), partner.number());
        rename(&mut node.insn, |r| match r {
            COUNT => partner,
            _ if r == partner => COUNT,
            _ => r,
        });
    }
}

/// Replaces the general registers of all explicit operands by what `to` gives for their 64-bit names.
pub fn rename(insn: &mut Instruction, to: impl Fn(Register) -> Register) {
    let renamed = |r: Register| if r.is_gpr() { sized(to(r.full_register()), r) } else { r };
    for i in 0..insn.op_count() {
        if insn.op_kind(i) == OpKind::Register {
            insn.set_op_register(i, renamed(insn.op_register(i)));
        }
    }
    insn.set_memory_base(renamed(insn.memory_base()));
    insn.set_memory_index(renamed(insn.memory_index()));
}

/// The part of `register` that `like` is of its own.
fn sized(register: Register, like: Register) -> Register {
    if register == like.full_register() { like } else { crate::plan::string::sized(register, like.size() as u32) }
}
