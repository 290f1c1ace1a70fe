//! Phase 4: which registers and flags still matter before and after each instruction.

use crate::body::{Body, Callee, Flow, Node, Outside};
use crate::functions::CodeRef;
use foldhash::HashMap;
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, Register, RflagsBits};
use rayon::prelude::*;

/// A set of general registers (bit = hardware number) and status flags ([`RflagsBits`] of OF, SF, ZF, AF, CF, PF).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Live {
    pub registers: u16,
    pub flags: u16,
}

impl Live {
    /// Union.
    #[must_use]
    pub fn or(self, other: Live) -> Live {
        Live { registers: self.registers | other.registers, flags: self.flags | other.flags }
    }

    /// Whether the full register of `register` may still be read.
    #[must_use]
    pub fn has(self, register: Register) -> bool {
        self.registers >> register.full_register().number() & 1 == 1
    }
}

const fn bit(register: u16) -> u16 {
    1 << register
}

/// rsp, and the registers that a function must preserve: rbx, rbp, r12-r15.
pub const CALLEE_SAVED: u16 = bit(3) | bit(4) | bit(5) | bit(12) | bit(13) | bit(14) | bit(15);
/// Registers that a call may change (psABI 3.2.1).
pub const CALLER_SAVED: u16 = !CALLEE_SAVED;
/// rax (vector count of variadic calls), rdi, rsi, rdx, rcx, r8, r9, r10 (static chain), rsp.
pub(crate) const ARGUMENTS: u16 = bit(0) | bit(1) | bit(2) | bit(4) | bit(6) | bit(7) | bit(8) | bit(9) | bit(10);
/// The result rax.
const RESULT: u16 = bit(0);
/// The second half of a result in two registers, rdx: live at a return only if some caller reads it.
const SECOND_RESULT: u16 = bit(2);
pub(crate) const STATUS: u32 =
    RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// What one instruction reads and overwrites.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Effect {
    pub reads: Live,
    pub kills: Live,
    pub writes: u16,
}

/// The effect of one instruction, a call's apart.
pub(crate) fn effect(factory: &mut InstructionInfoFactory, insn: &Instruction) -> Effect {
    let mut e = Effect::default();
    for used in factory.info(insn).used_registers() {
        if !used.register().is_gpr() {
            continue;
        }
        let mask = bit(used.register().full_register().number() as u16);
        let whole = used.register().is_gpr64() || used.register().is_gpr32();
        match used.access() {
            OpAccess::Read | OpAccess::CondRead => e.reads.registers |= mask,
            OpAccess::Write if whole => {
                e.kills.registers |= mask;
                e.writes |= mask;
            }
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
                e.reads.registers |= mask;
                e.writes |= mask;
            }
            _ => {}
        }
    }
    e.reads.flags = (insn.rflags_read() & STATUS) as u16;
    e.kills.flags = (insn.rflags_modified() & STATUS) as u16;
    // A shift by cl may leave every flag as it was.
    if is_shift(insn.mnemonic()) && insn.op_register(insn.op_count() - 1) == Register::CL {
        e.kills.flags = 0;
    }
    e
}

fn is_shift(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd)
}

/// Registers that `insn` writes, whole or in part, calls' effects apart.
#[must_use]
pub fn written(factory: &mut InstructionInfoFactory, insn: &Instruction) -> u16 {
    effect(factory, insn).writes
}

/// Registers that a call of each body may change, its callees' included (gcc's -fipa-ra counts on the others); functions that are not known
/// change `unknown`.
fn clobbers(bodies: &[Body], unknown: u16) -> Vec<u16> {
    let index: HashMap<CodeRef, usize> = bodies.iter().enumerate().map(|(i, b)| (b.entry, i)).collect();
    let mut sets: Vec<u16> = Vec::with_capacity(bodies.len());
    let mut callees: Vec<Vec<usize>> = Vec::with_capacity(bodies.len());
    let mut factory = InstructionInfoFactory::new();
    for body in bodies {
        let (mut set, mut calls) = (0, Vec::new());
        for node in &body.nodes {
            set |= effect(&mut factory, &node.insn).writes;
            match node.callee() {
                Some(Callee::Known(Outside::Function(f))) => calls.extend(index.get(&f).copied()),
                Some(_) => set |= unknown,
                None => {}
            }
        }
        if body.name == crate::syscall::FUNCTION {
            // It puts the others back.
            (set, calls) = (crate::syscall::CLOBBERS, Vec::new());
        }
        sets.push(set);
        callees.push(calls);
    }
    loop {
        let mut changed = false;
        for i in 0..sets.len() {
            let joined = callees[i].iter().fold(sets[i], |s, &c| s | sets[c] & !CALLEE_SAVED);
            changed |= joined != sets[i];
            sets[i] = joined;
        }
        if !changed {
            return sets;
        }
    }
}

/// What is live before and after each node.
#[derive(Clone, Debug)]
pub struct Liveness {
    pub before: Vec<Live>,
    pub after: Vec<Live>,
}

impl Liveness {
    /// Adds `registers` to every set.
    fn with(mut self, registers: u16) -> Liveness {
        for live in self.before.iter_mut().chain(&mut self.after) {
            live.registers |= registers;
        }
        self
    }
}

/// Solves liveness for all bodies together: what a function's callers still need after its return is live at its return, so that a scratch
/// register is never one that gcc's -fipa-ra keeps a value in across the call. The registers `reserved` are live everywhere.
#[must_use]
pub fn solve(bodies: &[Body], reserved: u16) -> Vec<Liveness> {
    let kept = kept_across_indirect_calls(bodies);
    let clobbers = clobbers(bodies, CALLER_SAVED & !kept);
    let index: HashMap<CodeRef, usize> = bodies.iter().enumerate().map(|(i, b)| (b.entry, i)).collect();
    let callee = |flow: &Flow| match flow {
        Flow::Call(Outside::Function(f), _) | Flow::TailCall(Outside::Function(f)) | Flow::BranchOut(Outside::Function(f), _) => {
            index.get(f).copied()
        }
        _ => None,
    };
    let mut wanted: Vec<u16> = clobbers.iter().map(|c| kept & !c).collect();
    let mut solved: Vec<Option<Liveness>> = vec![None; bodies.len()];
    loop {
        let fresh: Vec<(usize, Liveness)> = (0..bodies.len())
            .into_par_iter()
            .filter(|i| solved[*i].is_none())
            .map(|i| (i, solve_one(&bodies[i], wanted[i], |flow| callee(flow).map_or(!kept, |c| clobbers[c]))))
            .collect();
        for (i, live) in fresh {
            solved[i] = Some(live);
        }
        let mut next = wanted.clone();
        let mut wanted_of_any = 0;
        for (i, body) in bodies.iter().enumerate() {
            let Some(live) = &solved[i] else { continue };
            for (id, node) in body.nodes.iter().enumerate() {
                if let Some(c) = callee(&node.flow) {
                    let after = if let Flow::Call(..) = node.flow { live.after[id].registers } else { wanted[i] };
                    next[c] |= after & CALLER_SAVED & (!clobbers[c] | SECOND_RESULT);
                }
                wanted_of_any |= match node.flow {
                    Flow::CallIndirect(_) => live.after[id].registers & SECOND_RESULT,
                    Flow::TailIndirect => wanted[i] & SECOND_RESULT,
                    _ => 0,
                };
            }
        }
        next.iter_mut().for_each(|set| *set |= wanted_of_any);
        let mut stable = true;
        for i in 0..bodies.len() {
            if next[i] != wanted[i] {
                stable = false;
                solved[i] = None;
            }
        }
        if stable {
            return solved.into_iter().flatten().map(|l: Liveness| l.with(reserved)).collect();
        }
        wanted = next;
    }
}

/// Caller-saved registers that some function surely counts on across an indirect call: gcc does that where it knows what the pointer is (large code
/// model). Then no function may change them that did not before.
fn kept_across_indirect_calls(bodies: &[Body]) -> u16 {
    let kept = |body: &Body| {
        let indirect = |node: &Node| matches!(node.flow, Flow::CallIndirect(_));
        if !body.nodes.iter().any(indirect) {
            return (0, 0);
        }
        let mut factory = InstructionInfoFactory::new();
        let effects: Vec<Effect> = body.nodes.iter().map(|node| certain_effect(&mut factory, node)).collect();
        let live = fixpoint(body, &effects, |_| Live::default());
        let after = |(_, live): (&Node, &Live)| live.registers;
        let calls = || body.nodes.iter().zip(&live.after).filter(|(n, _)| indirect(n) || matches!(n.flow, Flow::Call(..)));
        let through_pointers = calls().filter(|(n, _)| indirect(n)).map(after).fold(0, |a, b| a | b);
        (through_pointers & CALLER_SAVED, calls().map(after).fold(0, |a, b| a | b) & CALLER_SAVED)
    };
    let (indirect, any) = bodies.par_iter().map(kept).reduce(|| (0, 0), |a, b| (a.0 | b.0, a.1 | b.1));
    if indirect == 0 { 0 } else { any }
}

/// What a node reads for certain; calls change nothing but their results.
fn certain_effect(factory: &mut InstructionInfoFactory, node: &Node) -> Effect {
    let mut e = effect(factory, &node.insn);
    let reading = |a| !matches!(a, OpAccess::Write | OpAccess::CondWrite | OpAccess::None | OpAccess::NoMemAccess);
    let used = factory.info(&node.insn).used_registers().iter();
    let read = used.filter(|u| u.register().is_gpr() && reading(u.access()) && !crate::count::ignores_value(&node.insn));
    e.reads.registers = read.fold(0, |set, u| set | bit(u.register().full_register().number() as u16));
    if let Flow::Call(..) | Flow::CallIndirect(_) = node.flow {
        e.kills.registers |= RESULT | SECOND_RESULT;
    }
    e
}

/// Liveness of one body whose callers need `wanted` after it; `callee` gives what the target of a direct call may change.
fn solve_one(body: &Body, wanted: u16, callee: impl Fn(&Flow) -> u16) -> Liveness {
    let mut factory = InstructionInfoFactory::new();
    let effects: Vec<Effect> = body.nodes.iter().map(|node| node_effect(&mut factory, node, &callee)).collect();
    fixpoint(body, &effects, |flow| leaving(flow, wanted))
}

/// Liveness of one body from its nodes' effects and what is live where it is left.
fn fixpoint(body: &Body, effects: &[Effect], leaving: impl Fn(&Flow) -> Live) -> Liveness {
    let n = body.nodes.len();
    let successors: Vec<Vec<u32>> = body.nodes.iter().map(|node| body.successors(node)).collect();
    let mut predecessors: Vec<Vec<u32>> = vec![Vec::new(); n];
    for (i, list) in successors.iter().enumerate() {
        for &s in list {
            predecessors[s as usize].push(i as u32);
        }
    }
    let mut live = Liveness { before: vec![Live::default(); n], after: vec![Live::default(); n] };
    let mut queued = vec![true; n];
    let mut work: Vec<u32> = (0..n as u32).collect();
    while let Some(id) = work.pop() {
        let i = id as usize;
        queued[i] = false;
        let out = successors[i].iter().fold(leaving(&body.nodes[i].flow), |l, &s| l.or(live.before[s as usize]));
        let e = &effects[i];
        let before = Live { registers: out.registers & !e.kills.registers, flags: out.flags & !e.kills.flags }.or(e.reads);
        live.after[i] = out;
        if before != live.before[i] {
            live.before[i] = before;
            for &p in &predecessors[i] {
                if !std::mem::replace(&mut queued[p as usize], true) {
                    work.push(p);
                }
            }
        }
    }
    live
}

/// What a node reads and overwrites, calls included.
fn node_effect(factory: &mut InstructionInfoFactory, node: &Node, callee: impl Fn(&Flow) -> u16) -> Effect {
    let mut e = effect(factory, &node.insn);
    if let Flow::Call(..) | Flow::CallIndirect(_) = node.flow {
        e.reads.registers |= ARGUMENTS;
        // No compiler expects a value in a register that the callee may change.
        e.kills.registers |= callee(&node.flow) & CALLER_SAVED;
        e.kills.flags = STATUS as u16;
        // `syscall` would keep them in r11, where nobody looks for them.
        e.reads.flags = 0;
    }
    e
}

/// What is live where control leaves the body.
fn leaving(flow: &Flow, wanted: u16) -> Live {
    let registers = match flow {
        Flow::Return => RESULT | CALLEE_SAVED | wanted,
        Flow::TailCall(_) | Flow::BranchOut(..) | Flow::TailIndirect => ARGUMENTS | CALLEE_SAVED | wanted,
        _ => 0,
    };
    Live { registers, flags: 0 }
}
