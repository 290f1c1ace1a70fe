//! Phase 4: which registers and flags still matter before and after each instruction.

use crate::body::{Body, Flow, Outside};
use crate::functions::CodeRef;
use iced_x86::{FlowControl, InstructionInfoFactory, Mnemonic, OpAccess, Register, RflagsBits};
use std::collections::HashMap;

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
/// rax (vector count of variadic calls), rdi, rsi, rdx, rcx, r8, r9, r10 (static chain), rsp.
const ARGUMENTS: u16 = bit(0) | bit(1) | bit(2) | bit(4) | bit(6) | bit(7) | bit(8) | bit(9) | bit(10);
/// Results rax and rdx.
const RESULTS: u16 = bit(0) | bit(2);
const STATUS: u32 = RflagsBits::OF | RflagsBits::SF | RflagsBits::ZF | RflagsBits::AF | RflagsBits::CF | RflagsBits::PF;

/// What one instruction reads and overwrites.
#[derive(Clone, Copy, Debug, Default)]
struct Effect {
    reads: Live,
    kills: Live,
    writes: u16,
}

fn effect(factory: &mut InstructionInfoFactory, insn: &iced_x86::Instruction) -> Effect {
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

/// Registers that a call of each body may change, its callees' included (gcc's -fipa-ra counts on the others).
#[must_use]
pub fn clobbers(bodies: &[Body]) -> Vec<u16> {
    let index: HashMap<CodeRef, usize> = bodies.iter().enumerate().map(|(i, b)| (b.entry, i)).collect();
    let mut sets: Vec<u16> = Vec::with_capacity(bodies.len());
    let mut callees: Vec<Vec<usize>> = Vec::with_capacity(bodies.len());
    let mut factory = InstructionInfoFactory::new();
    for body in bodies {
        let (mut set, mut calls) = (0, Vec::new());
        for node in &body.nodes {
            set |= effect(&mut factory, &node.insn).writes;
            match node.flow {
                Flow::Call(Outside::Function(f), _)
                | Flow::TailCall(Outside::Function(f))
                | Flow::BranchOut(Outside::Function(f), _) => {
                    calls.extend(index.get(&f).copied());
                }
                Flow::Call(..) | Flow::TailCall(_) | Flow::BranchOut(..) | Flow::CallIndirect(_) | Flow::TailIndirect => {
                    set |= !CALLEE_SAVED;
                }
                _ => {}
            }
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

/// Solves liveness for `body`, which changes at most the registers `clobbers`.
#[must_use]
pub fn solve(body: &Body, clobbers: u16) -> Liveness {
    let n = body.nodes.len();
    let mut factory = InstructionInfoFactory::new();
    let effects: Vec<Effect> = body.nodes.iter().map(|node| effect(&mut factory, &node.insn)).collect();
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
        let out = successors[i].iter().fold(leaving(&body.nodes[i].flow, clobbers), |l, &s| l.or(live.before[s as usize]));
        let call = matches!(body.nodes[i].insn.flow_control(), FlowControl::Call | FlowControl::IndirectCall);
        let e = &effects[i];
        let mut before = Live { registers: out.registers & !e.kills.registers, flags: out.flags & !e.kills.flags }.or(e.reads);
        if call {
            before = Live { registers: out.registers | ARGUMENTS, flags: 0 }.or(e.reads);
        }
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

/// What is live where control leaves the body.
fn leaving(flow: &Flow, clobbers: u16) -> Live {
    let registers = match flow {
        Flow::Return => RESULTS | CALLEE_SAVED | !clobbers,
        Flow::TailCall(_) | Flow::BranchOut(..) | Flow::TailIndirect => ARGUMENTS | CALLEE_SAVED | !clobbers,
        _ => 0,
    };
    Live { registers, flags: 0 }
}
